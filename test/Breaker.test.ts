import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Scheduler from "effect/Scheduler"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { ConnectionError, SqlError, UniqueViolation } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { execFile } from "node:child_process"
import * as Breaker from "../src/Breaker.ts"
import * as Errors from "../src/Errors.ts"

type Service = Breaker.Breaker["Service"]

class Down extends Schema.TaggedError<Down>()("Down", { code: Schema.String }) {}

/** What the server answers, in the shape in which the driver reports it. */
const reply = (code: string) => Object.assign(new Error(`reply ${code}`), { code, severity: "ERROR" })

const down = Effect.fail(new Down({ code: "ECONNREFUSED" }))
const up = Effect.succeed("row")

const make = Breaker.make({ jitter: "none", ramp: false })

const calls = (breaker: Service, effect: Effect.Effect<unknown, unknown>, times: number) =>
  Effect.forEach(Array.from({ length: times }), () => Effect.exit(breaker.protect(effect)))

const opened = Effect.tap(make, (breaker) => calls(breaker, down, 5))

const halfOpened = Effect.tap(opened, () => TestClock.adjust("30 seconds"))

const rejection = (breaker: Service) =>
  Effect.map(
    Effect.flip(breaker.protect(Effect.die("ran"))),
    (error) => [error._tag, error.retryAfter] as const
  )

/** A call that stays in flight until the test ends it. */
const inFlight = Effect.fnUntraced(function*(breaker: Service) {
  const ending = yield* Deferred.make<string, Down>()
  const fiber = yield* Effect.forkChild(breaker.protect(Deferred.await(ending)), { startImmediately: true })
  return { fiber, succeed: Deferred.succeed(ending, "late"), fail: Deferred.fail(ending, new Down({ code: "EPIPE" })) }
})

describe("Breaker", () => {
  describe("the cycle", () => {
    it.effect("1: four failures, a success and four failures leave it closed with a streak of four", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 4 })
        yield* breaker.protect(up)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        yield* calls(breaker, down, 4)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 4 })
      }))

    it.effect("2: the fifth failure in a row opens it, and its caller gets the failure itself", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        const error = yield* Effect.flip(breaker.protect(down))
        assert.instanceOf(error, Down)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 30_000 })
      }))

    it.effect("2: the rejection says when to come back, why it opened, and is not retryable", () =>
      Effect.gen(function*() {
        const breaker = yield* opened
        const error = yield* Effect.flip(breaker.protect(up))
        assert(error instanceof Errors.CircuitOpen)
        assert.strictEqual(error.retryAfter, 30_000)
        assert.strictEqual(error.lastFailure?.code, "ECONNREFUSED")
        assert.isFalse(error.isRetryable)
      }))

    it.effect("3: a call is rejected one millisecond before the open time ends, and probes when it has ended", () =>
      Effect.gen(function*() {
        const breaker = yield* opened
        yield* TestClock.adjust(29_999)
        assert.deepStrictEqual(yield* rejection(breaker), ["CircuitOpen", 1])
        yield* TestClock.adjust(1)
        assert.strictEqual(yield* breaker.protect(up), "row")
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("4: fifty fibers at half-open, one runs and the others are told when to come back", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        let runs = 0
        const probe = yield* Deferred.make<void>()
        const fibers = yield* Effect.forEach(Array.from({ length: 50 }), () =>
          Effect.forkChild(
            Effect.result(breaker.protect(Effect.suspend(() => {
              runs++
              return Deferred.await(probe)
            }))),
            { startImmediately: true }
          ))
        yield* Deferred.succeed(probe, undefined)
        const results = yield* Effect.forEach(fibers, Fiber.join)
        const failures = results.filter(Result.isFailure).map((result) => result.failure)
        assert.strictEqual(runs, 1)
        assert.strictEqual(failures.length, 49)
        for (const failure of failures) {
          assert(failure instanceof Errors.CircuitHalfOpen)
          assert.strictEqual(failure.retryAfter, 5_000)
          assert.isFalse(failure.isRetryable)
        }
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("5: a probe that succeeds closes it", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        yield* breaker.protect(up)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("5: a probe that fails opens it anew, counted from its failure", () =>
      Effect.gen(function*() {
        const breaker = yield* Breaker.make({ jitter: "none", maxOpenFor: "30 seconds" })
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("30 seconds")
        const probe = yield* inFlight(breaker)
        yield* TestClock.adjust("25 seconds")
        yield* probe.fail
        yield* Fiber.await(probe.fiber)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 30_000 })
        yield* TestClock.adjust(29_999)
        assert.deepStrictEqual(yield* rejection(breaker), ["CircuitOpen", 1])
      }))

    it.effect("6: an interrupted probe leaves its place to the next call and counts for nothing", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        const probe = yield* inFlight(breaker)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "HalfOpen", retryAfter: 5_000 })
        yield* Fiber.interrupt(probe.fiber)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "HalfOpen", retryAfter: 0 })
        yield* breaker.protect(up)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("6: a probe interrupted before its first step leaves its place too", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        for (let ops = 3; ops < 16; ops++) {
          // Makes the fiber yield after a few operations, so that the interruption meets it between two steps.
          const fiber = yield* Effect.forkChild(
            Effect.provideService(breaker.protect(Effect.never), Scheduler.MaxOpsBeforeYield, ops),
            { startImmediately: true }
          )
          yield* Fiber.interrupt(fiber)
          assert.notDeepInclude(yield* breaker.state, { retryAfter: 5_000 })
        }
        yield* breaker.protect(up)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("7: a probe that dies leaves its place to the next call", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        const exit = yield* Effect.exit(breaker.protect(Effect.die("bug")))
        assert.deepStrictEqual(exit, Exit.die("bug"))
        assert.deepStrictEqual(yield* breaker.state, { _tag: "HalfOpen", retryAfter: 0 })
        yield* breaker.protect(up)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("8: a probe that never returns loses its place with its lease, and its late result is dropped", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        const hung = yield* inFlight(breaker)
        yield* TestClock.adjust(4_999)
        assert.deepStrictEqual(yield* rejection(breaker), ["CircuitHalfOpen", 1])
        yield* TestClock.adjust(1)
        const second = yield* inFlight(breaker)
        yield* hung.succeed
        assert.strictEqual(yield* Fiber.join(hung.fiber), "late")
        assert.deepStrictEqual(yield* breaker.state, { _tag: "HalfOpen", retryAfter: 5_000 })
        yield* second.succeed
        yield* Fiber.join(second.fiber)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))
  })

  describe("late results", () => {
    it.effect("9: a success of the closed time does not touch the open circuit", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        const early = yield* inFlight(breaker)
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("10 seconds")
        yield* early.succeed
        yield* Fiber.join(early.fiber)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 20_000 })
      }))

    it.effect("10: a failure of the closed time does not disturb the probe", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        const early = yield* inFlight(breaker)
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("30 seconds")
        const probe = yield* inFlight(breaker)
        yield* early.fail
        yield* Fiber.await(early.fiber)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "HalfOpen", retryAfter: 5_000 })
        yield* probe.succeed
        yield* Fiber.join(probe.fiber)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("11: a failure of the former closed time is not counted in the new one", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        const early = yield* inFlight(breaker)
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("30 seconds")
        yield* breaker.protect(up)
        yield* early.fail
        yield* Fiber.await(early.fiber)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("12: ten calls fail one after another: the fifth opens it, the rest neither extend nor announce", () =>
      Effect.gen(function*() {
        const seen: Array<Breaker.Transition> = []
        const breaker = yield* Breaker.make({
          jitter: "none",
          onTransition: (transition) => void seen.push(transition)
        })
        const ten = yield* Effect.forEach(Array.from({ length: 10 }), () => inFlight(breaker))
        for (const call of ten) {
          yield* TestClock.adjust("1 second")
          yield* call.fail
          yield* Fiber.await(call.fiber)
        }
        assert.strictEqual(seen.length, 1)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 25_000 })
      }))

    it.effect("13: thirty-two statements that fail with one socket count as one failure", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        const permits = Array.from({ length: 32 }, () => breaker.closedPermitUnsafe())
        for (const permit of permits) {
          assert(permit !== undefined)
          breaker.settleUnsafe(permit, "Failure", 0, { code: "ECONNRESET", source: 1 })
        }
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 1 })
        for (const source of [2, 3, 4, 5]) {
          const permit = breaker.closedPermitUnsafe()
          assert(permit !== undefined)
          breaker.settleUnsafe(permit, "Failure", 0, { code: "ECONNRESET", source })
        }
        assert.deepStrictEqual(yield* breaker.state, {
          _tag: "Open",
          retryAfter: 30_000,
          lastFailure: { code: "ECONNRESET" }
        })
      }))
  })

  describe("what counts", () => {
    for (const [what, code] of [["unique violation", "23505"], ["syntax error", "42601"], ["deadlock", "40P01"]]) {
      it.effect(`14: five times a ${what} leaves it closed and ends the streak: the server answered`, () =>
        Effect.gen(function*() {
          const breaker = yield* make
          yield* calls(breaker, down, 4)
          yield* calls(breaker, Effect.fail(reply(code!)), 5)
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        }))
    }

    it.effect("14: the driver's own errors are read through", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        const violation = new SqlError({
          reason: new UniqueViolation({ cause: reply("23505"), message: "duplicate", constraint: "orders_pkey" })
        })
        yield* calls(breaker, Effect.fail(violation), 1)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        const refused = Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" })
        const unreachable = new SqlError({ reason: new ConnectionError({ cause: refused, message: "no connection" }) })
        yield* calls(breaker, Effect.fail(unreachable), 5)
        assert.strictEqual((yield* breaker.state)._tag, "Open")
      }))

    for (const code of ["57P03", "53300"]) {
      it.effect(`15: five times ${code} opens it`, () =>
        Effect.gen(function*() {
          const breaker = yield* make
          yield* calls(breaker, Effect.fail(Object.assign(reply(code), { severity: "FATAL" })), 5)
          assert.strictEqual((yield* breaker.state)._tag, "Open")
        }))
    }

    it.effect("16: five times a wrong password changes nothing, a streak included", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        yield* calls(breaker, Effect.fail(Object.assign(reply("28P01"), { severity: "FATAL" })), 5)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 4 })
      }))

    it.effect("18: a timeout inside counts, however the caller gave up outside", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        const call = Effect.never.pipe(
          Effect.timeout("1 second"),
          breaker.protect,
          Effect.timeout("2 seconds"),
          Effect.exit
        )
        const fiber = yield* Effect.forkChild(Effect.repeat(call, { times: 19 }))
        yield* TestClock.adjust("20 seconds")
        yield* Fiber.join(fiber)
        assert.strictEqual((yield* breaker.state)._tag, "Open")
      }))

    it.effect("19: a hundred healthy calls interrupted by their callers count for nothing", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        const fibers = yield* Effect.forEach(Array.from({ length: 100 }), () => inFlight(breaker))
        yield* Fiber.interruptAll(fibers.map(({ fiber }) => fiber))
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 4 })
      }))

    it.effect("20: a full queue, a closed pool and the breaker's own rejections count for nothing", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        const stats = { total: 1, idle: 0, active: 1, waiting: 5, connecting: 0, max: 1, min: 0 }
        for (
          const error of [
            new Errors.PoolSaturated({ waiting: 5, maxWaiting: 5, stats }),
            new Errors.AcquireTimeout({ phase: "Queue", waited: 60_000, stats, lastConnectFailure: null }),
            new Errors.PoolClosed(),
            new Errors.CircuitOpen({ key: "default", retryAfter: 1, lastFailure: null }),
            new Errors.CircuitHalfOpen({ key: "default", retryAfter: 1 }),
            new Errors.CircuitIsolated({ key: "default", reason: "maintenance" })
          ]
        ) {
          yield* calls(breaker, Effect.fail(error), 2)
          yield* calls(breaker, Effect.fail(Errors.toSqlError(error)), 2)
        }
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 4 })
      }))

    it.effect("takes the caller's word for it", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        const classify = (exit: Exit.Exit<string>): Breaker.Outcome =>
          Exit.isSuccess(exit) && exit.value === "row" ? "Failure" : "Success"
        for (let i = 0; i < 5; i++) yield* breaker.protect(up, { classify })
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Open", retryAfter: 30_000, lastFailure: null })
      }))

    it.effect("never asks the caller's classification about an interruption", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        const fiber = yield* Effect.forkChild(
          breaker.protect(Effect.never, { classify: () => "Failure" }),
          { startImmediately: true }
        )
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("a classification that throws frees the probe and dies", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        const exit = yield* Effect.exit(breaker.protect(up, {
          classify: () => {
            throw new Error("bug")
          }
        }))
        assert(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
        assert.deepStrictEqual(yield* breaker.state, { _tag: "HalfOpen", retryAfter: 0 })
      }))

    it.effect("a failure among interruptions is a failure", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        const cause = Cause.combine(Cause.interrupt(1), Cause.fail(new Down({ code: "ECONNRESET" })))
        yield* calls(breaker, Effect.failCause(cause), 1)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 1 })
      }))
  })

  describe("time", () => {
    it.effect("21: after the clock went back an hour, the probe comes within thirty seconds of what it sees", () =>
      Effect.gen(function*() {
        yield* TestClock.setTime(7_200_000)
        const breaker = yield* opened
        yield* TestClock.setTime(3_600_000)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 30_000 })
        assert.deepStrictEqual(yield* rejection(breaker), ["CircuitOpen", 30_000])
        yield* TestClock.adjust("30 seconds")
        assert.strictEqual(yield* breaker.protect(up), "row")
      }))

    it.effect("22: after 59 minutes frozen while open, the first call is the probe", () =>
      Effect.gen(function*() {
        const breaker = yield* opened
        yield* TestClock.setTime(59 * 60_000)
        assert.strictEqual(yield* breaker.protect(up), "row")
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("23: four failures, thirty minutes frozen and one failure are a streak of one", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        yield* TestClock.setTime(30 * 60_000)
        yield* calls(breaker, down, 1)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 1 })
      }))

    it.effect("24: frozen with a probe in flight, the first call after the thaw may probe", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        yield* inFlight(breaker)
        yield* TestClock.setTime(10 * 60_000)
        assert.strictEqual(yield* breaker.protect(up), "row")
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("25: read after the open time and without a call, it is open with nothing left to wait", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        yield* TestClock.adjust("1 hour")
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 0 })
        assert.deepInclude(breaker.stateUnsafe(yield* Clock.currentTimeMillis), { _tag: "Open", retryAfter: 0 })
      }))

    it("26: a process with an open circuit and nothing else to do has no handle and exits at once", async () => {
      const program = `
        import * as Effect from "effect/Effect"
        import * as Breaker from ${JSON.stringify(new URL("../src/Breaker.ts", import.meta.url).href)}
        const breaker = await Effect.runPromise(Effect.scoped(Breaker.make({ failures: 1 })))
        await Effect.runPromiseExit(breaker.protect(Effect.fail(new Error("down"))))
        const state = await Effect.runPromise(breaker.state)
        const before = performance.now()
        process.on("exit", () => console.log(JSON.stringify([state._tag, process.getActiveResourcesInfo(), performance.now() - before])))
      `
      const output = await new Promise<string>((resolve, reject) =>
        execFile(
          process.execPath,
          ["--input-type=module", "--experimental-strip-types", "--eval", program],
          { cwd: new URL("..", import.meta.url), timeout: 20_000 },
          (error, stdout) => error ? reject(error) : resolve(stdout)
        )
      )
      const [state, resources, ms] = JSON.parse(output)
      assert.strictEqual(state, "Open")
      assert.notInclude(resources, "Timeout")
      assert.isBelow(ms, 1_000)
    })

    it.effect("27: a thousand breakers opened at one instant do not probe at one instant", () =>
      Effect.gen(function*() {
        const lengths = yield* Effect.forEach(Array.from({ length: 1_000 }), () =>
          Effect.gen(function*() {
            const breaker = yield* Breaker.make()
            yield* calls(breaker, down, 5)
            const state = yield* breaker.state
            assert(state._tag === "Open")
            return state.retryAfter
          }))
        const buckets = new Map<number, number>()
        for (const length of lengths) {
          assert(length >= 30_000 && length < 36_000)
          const second = Math.floor(length / 1_000)
          buckets.set(second, (buckets.get(second) ?? 0) + 1)
        }
        assert.strictEqual(buckets.size, 6)
        assert.isAtMost(Math.max(...buckets.values()), 220)
      }).pipe(Random.withSeed("thundering herd")))

    it.effect("27: the same seed gives the same open times", () =>
      Effect.gen(function*() {
        const once = Effect.gen(function*() {
          const breaker = yield* Breaker.make()
          yield* calls(breaker, down, 5)
          return yield* breaker.state
        }).pipe(Random.withSeed("the same"))
        assert.deepStrictEqual(yield* once, yield* once)
      }))

    it.effect("28: openings in a row last 30, 60, 120, 240 and then 300 seconds, and 30 again after a quiet time", () =>
      Effect.gen(function*() {
        const breaker = yield* opened
        for (const expected of [30_000, 60_000, 120_000, 240_000, 300_000, 300_000]) {
          assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: expected })
          yield* TestClock.adjust(expected)
          yield* calls(breaker, down, 1)
        }
        yield* TestClock.adjust(300_000)
        yield* breaker.protect(up)
        yield* TestClock.adjust(300_000)
        yield* calls(breaker, down, 5)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 30_000 })
      }))

    it.effect("29: a database that flaps is left alone for longer, although every probe succeeds", () =>
      Effect.gen(function*() {
        const breaker = yield* Breaker.make({ jitter: "none", failures: 1 })
        for (const expected of [30_000, 60_000, 120_000]) {
          yield* calls(breaker, down, 1)
          assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: expected })
          yield* TestClock.adjust(expected)
          yield* breaker.protect(up)
        }
      }))
  })

  describe("observers", () => {
    it.effect("transitions tells every change, with its time and its failure, and ends with the scope", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const breaker = yield* Scope.provide(make, scope)
        const observer = yield* Effect.forkChild(Stream.runCollect(breaker.transitions), { startImmediately: true })
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("30 seconds")
        yield* calls(breaker, down, 1)
        yield* TestClock.adjust("60 seconds")
        yield* breaker.protect(up)
        yield* Scope.close(scope, Exit.void)
        const transitions = yield* Fiber.join(observer)
        assert.deepStrictEqual(
          transitions.map((transition) => [
            transition.from,
            transition.to,
            transition.at,
            transition.to === "Open" ? transition.retryAfter : undefined,
            transition.to === "Open" ? transition.consecutiveOpenings : undefined,
            transition.to === "Open" ? transition.failure?.code : undefined
          ]),
          [
            ["Closed", "Open", 0, 30_000, 1, "ECONNREFUSED"],
            ["Open", "HalfOpen", 30_000, undefined, undefined, undefined],
            ["HalfOpen", "Open", 30_000, 60_000, 2, "ECONNREFUSED"],
            ["Open", "HalfOpen", 90_000, undefined, undefined, undefined],
            ["HalfOpen", "Closed", 90_000, undefined, undefined, undefined]
          ]
        )
        assert.strictEqual(yield* breaker.protect(up), "row")
      }))

    it.effect("45: an observer that never returns, or dies, neither delays nor fails a call; it loses the oldest", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const breaker = yield* Scope.provide(
          Breaker.make({ failures: 1, jitter: "none", openFor: 1, maxOpenFor: 1 }),
          scope
        )
        const gate = yield* Deferred.make<void>()
        const seen: Array<Breaker.Transition> = []
        const slow = yield* breaker.transitions.pipe(
          Stream.runForEach((transition) => {
            seen.push(transition)
            return Deferred.await(gate)
          }),
          Effect.forkChild({ startImmediately: true })
        )
        const broken = yield* breaker.transitions.pipe(
          Stream.runForEach(() => Effect.die("observer")),
          Effect.forkChild({ startImmediately: true })
        )
        for (let i = 0; i < 100; i++) {
          yield* calls(breaker, down, 1)
          yield* TestClock.adjust(1)
          assert.strictEqual(yield* breaker.protect(up), "row")
        }
        assert(Exit.isFailure(yield* Fiber.await(broken)))
        assert.strictEqual(seen.length, 1)
        yield* Scope.close(scope, Exit.void)
        yield* Deferred.succeed(gate, undefined)
        yield* Fiber.join(slow)
        // 300 transitions: what it was busy with, and the last 128.
        assert.isAtMost(seen.length, 131)
        assert.isAtLeast(seen.length, 128)
        assert.deepInclude(seen.at(-1), { from: "HalfOpen", to: "Closed", at: 100 })
      }))

    it.effect("onTransition is called at once, and what it throws is logged and changes nothing", () =>
      Effect.gen(function*() {
        const logged: Array<unknown> = []
        const seen: Array<string> = []
        const logger = Logger.layer([Logger.make(({ message }) => void logged.push(message))])
        const breaker = yield* Effect.provide(
          Breaker.make({
            jitter: "none",
            onTransition: ({ from, to }) => {
              seen.push(`${from}>${to}`)
              throw new Error("observer")
            }
          }),
          logger
        )
        yield* calls(breaker, down, 4)
        assert.instanceOf(yield* Effect.flip(breaker.protect(down)), Down)
        assert.deepStrictEqual(seen, ["Closed>Open"])
        yield* TestClock.adjust("30 seconds")
        assert.strictEqual(yield* breaker.protect(up), "row")
        assert.deepStrictEqual(seen, ["Closed>Open", "Open>HalfOpen", "HalfOpen>Closed"])
        assert.strictEqual(logged.length, 3)
      }))

    it.effect("onTransition may use the breaker itself", () =>
      Effect.gen(function*() {
        const states: Array<string> = []
        const runSync = Effect.runSyncWith(yield* Effect.context())
        const breaker: Service = yield* Breaker.make({
          jitter: "none",
          onTransition: ({ at }) => {
            states.push(breaker.stateUnsafe(at)._tag, runSync(Effect.flip(breaker.protect(up)))._tag)
          }
        })
        yield* calls(breaker, down, 5)
        assert.deepStrictEqual(states, ["Open", "CircuitOpen"])
      }))
  })

  describe("layers", () => {
    it.effect("protect uses the breaker of the context, as a combinator and as a function", () =>
      Effect.gen(function*() {
        for (let i = 0; i < 3; i++) yield* Effect.exit(down.pipe(Breaker.protect()))
        for (let i = 0; i < 2; i++) yield* Effect.exit(Breaker.protect(down))
        const error = yield* Effect.flip(Breaker.protect(up, { classify: () => "Success" }))
        assert.strictEqual(error._tag, "CircuitOpen")
        const piped = yield* up.pipe(
          Breaker.protect({ classify: Exit.isSuccess as never }),
          Effect.catchTag("CircuitOpen", ({ retryAfter }) => Effect.succeed(retryAfter))
        )
        assert.strictEqual(piped, 30_000)
      }).pipe(Effect.provide(Breaker.layer({ jitter: "none" }))))

    it.effect("layerNoop lets everything in and never opens", () =>
      Effect.gen(function*() {
        const breaker = yield* Breaker.Breaker
        yield* calls(breaker, down, 100)
        assert.strictEqual(yield* Breaker.protect(up), "row")
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        const permit = breaker.closedPermitUnsafe()
        assert(permit !== undefined)
        breaker.settleUnsafe(permit, "Failure", 0)
        assert.strictEqual(yield* breaker.withPermit(Effect.succeed), permit)
        assert.deepStrictEqual(yield* Stream.runCollect(breaker.transitions), [])
      }).pipe(Effect.provide(Breaker.layerNoop)))
  })

  describe("settings", () => {
    const impossible: ReadonlyArray<readonly [option: keyof Breaker.Options, options: Breaker.Options]> = [
      ["failures", { failures: 0 }],
      ["failures", { failures: 2.5 }],
      ["failures", { failures: NaN }],
      ["openFor", { openFor: "-1 seconds" }],
      ["openFor", { openFor: 0 }],
      ["openFor", { openFor: "Infinity" }],
      ["openFor", { openFor: "soon" as never }],
      ["openFor", { openFor: NaN }],
      ["jitter", { jitter: [0.5, 1] }],
      ["jitter", { jitter: [1.2, 1] }],
      ["jitter", { jitter: [1, Infinity] }],
      ["maxOpenFor", { maxOpenFor: "10 seconds" }],
      ["streakWindow", { streakWindow: 0 }],
      ["probeLease", { probeLease: "31 seconds" }],
      ["probeLease", { openFor: "1 second", probeLease: "5 seconds" }],
      ["probeTimeout", { probeTimeout: "6 seconds" }],
      ["probeTimeout", { probeTimeout: "-2 seconds" }]
    ]
    for (const [option, options] of impossible) {
      it.effect(`refuses ${JSON.stringify(options)} and names ${option}`, () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(Breaker.make(options))
          assert.instanceOf(error, Errors.InvalidOption)
          assert.strictEqual(error.option, `breaker.${option}`)
          assert.deepStrictEqual(error.value, options[option])
          assert.isAbove(error.allowed.length, 0)
        }))
    }

    it.effect("the layer fails with the same error", () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Effect.scoped(Layer.build(Breaker.layer({ failures: -1 }))))
        assert.strictEqual(error.option, "breaker.failures")
      }))

    it.effect("defaults follow a shorter open time, so that no default makes a setting impossible", () =>
      Effect.gen(function*() {
        assert.strictEqual((yield* Breaker.make({ openFor: "1 second" })).probeTimeout, 1_000)
        assert.strictEqual((yield* Breaker.make({ openFor: "1 hour" })).probeTimeout, 2_000)
        assert.strictEqual((yield* Breaker.make()).probeTimeout, 2_000)
      }))
  })
})
