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
import * as Scheduler from "effect/Scheduler"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { ConnectionError, SqlError, UniqueViolation } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as Breaker from "../src/Breaker.ts"
import * as Errors from "../src/Errors.ts"
import { inProcess } from "./suites/breaker/engines/ours.ts"
import { breakerSuite } from "./suites/breakerSuite.ts"

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

/** A call that stays in flight until the test ends. */
const inFlight = (breaker: Service) => Effect.forkChild(breaker.protect(Effect.never), { startImmediately: true })

describe("Breaker", () => {
  // It has no store that could be down.
  describe("in process", () => {
    breakerSuite(inProcess, [35])
  })

  describe("the cycle", () => {
    it.effect("2: a rejection says when to come back, why it opened, and is not retryable", () =>
      Effect.gen(function*() {
        const breaker = yield* opened
        const error = yield* Effect.flip(breaker.protect(up))
        assert(error instanceof Errors.CircuitOpen)
        assert.strictEqual(error.retryAfter, 30_000)
        assert.strictEqual(error.lastFailure?.code, "ECONNREFUSED")
        assert.isFalse(error.isRetryable)
      }))

    it.effect("4: a rejection beside a probe says when its lease ends, and is not retryable", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        yield* inFlight(breaker)
        const error = yield* Effect.flip(breaker.protect(up))
        assert(error instanceof Errors.CircuitHalfOpen)
        assert.strictEqual(error.retryAfter, 5_000)
        assert.isFalse(error.isRetryable)
      }))

    it.effect("6: a probe interrupted before its first step leaves its place to the next call", () =>
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
  })

  describe("what counts", () => {
    it.effect("13: failures of one socket count once, and what opened it is told without the socket", () =>
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

    it.effect("14: a deadlock ends the streak too: the server answered", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        yield* calls(breaker, Effect.fail(reply("40P01")), 5)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

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

    it.effect("20: a full queue, a closed pool and the breaker's own rejections count for nothing", () =>
      Effect.gen(function*() {
        const breaker = yield* make
        yield* calls(breaker, down, 4)
        const stats = { total: 1, idle: 0, active: 1, waiting: 5, connecting: 0, max: 1, min: 0, oldestLease: 0 }
        for (
          const error of [
            new Errors.PoolSaturated({ by: "Length", waiting: 5, waited: 0, maxWaiting: 5, stats }),
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
    it.effect("25: stateUnsafe tells the same of the moment that it is asked about", () =>
      Effect.gen(function*() {
        const breaker = yield* halfOpened
        yield* TestClock.adjust("1 hour")
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 0 })
        assert.deepInclude(breaker.stateUnsafe(yield* Clock.currentTimeMillis), { _tag: "Open", retryAfter: 0 })
      }))

    it.effect("27: jitter spreads the open time from 30 to 36 seconds, and never shortens it", () =>
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

    it.effect("45: an observer that is 300 transitions behind has missed all but the last 128", () =>
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
