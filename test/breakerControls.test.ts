import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as Breaker from "../src/Breaker.ts"
import * as Errors from "../src/Errors.ts"

type Service = Breaker.Breaker["Service"]

const down = Effect.fail(Object.assign(new Error("refused"), { code: "ECONNREFUSED" }))
const up = Effect.succeed("row")

const calls = (breaker: Service, effect: Effect.Effect<unknown, unknown>, times: number) =>
  Effect.forEach(Array.from({ length: times }), () => Effect.exit(breaker.protect(effect)))

const observed = Effect.fnUntraced(function*(options: Breaker.Options = {}) {
  const seen: Array<Breaker.Transition> = []
  const breaker = yield* Breaker.make({
    jitter: "none",
    onTransition: (transition) => void seen.push(transition),
    ...options
  })
  return { breaker, edges: () => seen.map(({ from, to }) => `${from}>${to}`), seen }
})

/** A circuit that has closed a moment ago, after one opening. */
const recovering = Effect.fnUntraced(function*(options: Breaker.Options = {}) {
  const all = yield* observed(options)
  yield* calls(all.breaker, down, 5)
  yield* TestClock.adjust("30 seconds")
  yield* all.breaker.protect(up)
  return all
})

/** Calls that stay in flight until the test ends them, in the order in which they got in. */
const crowd = Effect.fnUntraced(function*(breaker: Service, size: number) {
  const running: Array<{ readonly caller: number; readonly end: Deferred.Deferred<string, Error> }> = []
  const fibers = yield* Effect.forEach(Array.from({ length: size }), (_, caller) =>
    Effect.forkChild(
      breaker.protect(Effect.gen(function*() {
        const end = yield* Deferred.make<string, Error>()
        running.push({ caller, end })
        return yield* Deferred.await(end)
      })),
      { startImmediately: true }
    ))
  const settle = (how: (end: Deferred.Deferred<string, Error>) => Effect.Effect<boolean>) =>
    Effect.suspend(() => Effect.forEach(running.splice(0), ({ end }) => how(end))).pipe(
      Effect.andThen(Effect.yieldNow),
      Effect.andThen(TestClock.adjust(0))
    )
  return {
    running,
    fibers,
    succeed: settle((end) => Deferred.succeed(end, "row")),
    fail: settle((end) => Deferred.fail(end, Object.assign(new Error("gone"), { code: "ECONNRESET" })))
  }
})

const logged = () => {
  const messages: Array<string> = []
  const layer = Logger.layer([
    Logger.make(({ logLevel, message }) => {
      messages.push(`${logLevel}: ${String(Array.isArray(message) ? message[0] : message)}`)
    })
  ])
  return { messages, layer }
}

describe("Breaker", () => {
  describe("recovery", () => {
    it.effect("30: a hundred waiting callers run 1, 2, 4 and 8 at a time, in turn, and then all", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering()
        const { fibers, running, succeed } = yield* crowd(breaker, 100)
        const sizes: Array<number> = []
        const order: Array<number> = []
        while (running.length > 0) {
          sizes.push(running.length)
          order.push(...running.map(({ caller }) => caller))
          yield* succeed
        }
        assert.deepStrictEqual(sizes, [1, 2, 4, 8, 85])
        assert.deepStrictEqual(order, Array.from({ length: 100 }, (_, caller) => caller))
        for (const fiber of fibers) assert.strictEqual(yield* Fiber.join(fiber), "row")
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("30: a failure at four reopens it for longer, and who waits is told so", () =>
      Effect.gen(function*() {
        const { breaker, edges } = yield* recovering()
        const { fail, fibers, running, succeed } = yield* crowd(breaker, 20)
        yield* succeed
        yield* succeed
        assert.strictEqual(running.length, 4)
        yield* fail
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 60_000 })
        const errors = yield* Effect.forEach(fibers.slice(7), (fiber) => Effect.flip(Fiber.join(fiber)))
        assert.strictEqual(errors.length, 13)
        for (const error of errors) {
          assert(error instanceof Errors.CircuitOpen)
          assert.strictEqual(error.retryAfter, 60_000)
        }
        assert.deepStrictEqual(edges().slice(-2), ["HalfOpen>Closed", "Closed>Open"])
      }))

    it.effect("30: one call after another passes without waiting", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering()
        for (const limit of [1, 2, 2, 4, 4, 4, 4]) {
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0, limit })
          // A call that had to wait would need a clock that goes on.
          assert.strictEqual(yield* breaker.protect(up), "row")
        }
      }))

    it.effect("30: without a ramp all run at once", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering({ ramp: false })
        const { running } = yield* crowd(breaker, 100)
        assert.strictEqual(running.length, 100)
      }))

    it.effect("who waits for longer than a probe may take is told that others are at it", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering()
        const hung = yield* crowd(breaker, 1)
        yield* TestClock.adjust("1 second")
        const { fibers, running } = yield* crowd(breaker, 3)
        yield* TestClock.adjust("4999 millis")
        assert.strictEqual(running.length, 0)
        // The first in line takes the place of the call that hung; the others find it taken.
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(running.map(({ caller }) => caller), [0])
        const errors = yield* Effect.forEach(fibers.slice(1), (fiber) => Effect.flip(Fiber.join(fiber)))
        for (const error of errors) {
          assert(error instanceof Errors.CircuitHalfOpen)
          assert.strictEqual(error.retryAfter, 5_000)
        }
        yield* hung.fail
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0, limit: 1 })
      }))

    it.effect("who is interrupted while waiting, or as his turn comes, takes no place with him", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering()
        const first = yield* crowd(breaker, 1)
        const others = yield* crowd(breaker, 6)
        yield* Fiber.interrupt(others.fibers[0]!)
        // His turn comes, and before he can take a step he is gone.
        yield* Deferred.succeed(first.running[0]!.end, "row")
        yield* Fiber.interruptAll(others.fibers.slice(1, 3))
        yield* TestClock.adjust(0)
        assert.deepStrictEqual(others.running.map(({ caller }) => caller).filter((caller) => caller > 2), [3, 4])
      }))

    it.effect("who comes as the last place is given back does not wait for another", () =>
      Effect.gen(function*() {
        for (let ops = 3; ops < 40; ops++) {
          const { breaker } = yield* recovering({ ramp: 1 })
          const first = yield* crowd(breaker, 1)
          // Makes the fiber yield after a few operations: the place is given back between two of its steps.
          const other = yield* Effect.forkChild(
            Effect.provideService(breaker.protect(up), Scheduler.MaxOpsBeforeYield, ops),
            { startImmediately: true }
          )
          yield* first.succeed
          for (let i = 0; i < 100 && other.pollUnsafe() === undefined; i++) yield* Effect.yieldNow
          assert.isDefined(other.pollUnsafe(), `waits on after ${ops} operations`)
        }
      }))

    it.effect("nobody waits on after an isolation that came and went", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering()
        const { fibers, succeed } = yield* crowd(breaker, 4)
        yield* Effect.scoped(breaker.isolate("for a moment"))
        yield* succeed
        const exits = yield* Effect.forEach(fibers, Fiber.await)
        assert.deepStrictEqual(exits.map(Exit.isSuccess), [true, false, false, false])
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("10,000 that wait are served without a deep stack", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering({ ramp: 1_000_000 })
        const fibers = yield* Effect.forEach(
          Array.from({ length: 10_000 }),
          () => Effect.forkChild(breaker.protect(Effect.yieldNow), { startImmediately: true })
        )
        for (const fiber of fibers) yield* Fiber.join(fiber)
      }))

    it.effect("is over by itself when the circuit has been closed for the open time", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering()
        assert.isUndefined(breaker.closedPermitUnsafe())
        yield* TestClock.adjust("30 seconds")
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        const { running } = yield* crowd(breaker, 100)
        assert.strictEqual(running.length, 100)
        assert.isDefined(breaker.closedPermitUnsafe())
      }))
  })

  describe("withPermit", () => {
    it.effect("gives back a probe or a place of the ramp that nobody settled, however the call ends", () =>
      Effect.gen(function*() {
        const { breaker } = yield* observed()
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("30 seconds")
        for (const end of [Effect.void, Effect.die("bug"), Effect.interrupt, down]) {
          const exit = yield* Effect.exit(breaker.withPermit((permit) => {
            assert.isTrue(permit.probe)
            return end
          }))
          assert.strictEqual(Exit.isSuccess(exit), end === Effect.void)
          assert.deepStrictEqual(yield* breaker.state, { _tag: "HalfOpen", retryAfter: 0 })
        }
        yield* breaker.protect(up)
        yield* breaker.withPermit((permit) => Effect.sync(() => assert.isTrue(permit.ramp)))
        yield* breaker.withPermit((permit) => Effect.sync(() => assert.isTrue(permit.ramp)))
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0, limit: 1 })
      }))

    it.effect("takes what was settled for the outcome, once", () =>
      Effect.gen(function*() {
        const { breaker, edges } = yield* observed()
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("30 seconds")
        const now = yield* Clock.currentTimeMillis
        yield* Effect.exit(breaker.withPermit((permit) => {
          breaker.settleUnsafe(permit, "Success", now)
          breaker.settleUnsafe(permit, "Failure", now)
          return Effect.die("the work itself, later")
        }))
        assert.strictEqual(edges().at(-1), "HalfOpen>Closed")
      }))
  })

  describe("by hand", () => {
    it.effect("31: isolated twice and released once, it stays so until the second release", () =>
      Effect.gen(function*() {
        const { breaker, edges } = yield* observed()
        yield* calls(breaker, down, 4)
        const [first, second] = [yield* Scope.make(), yield* Scope.make()]
        yield* Scope.provide(breaker.isolate("moving to db2"), first)
        yield* Scope.provide(breaker.isolate("and checking it"), second)
        yield* Scope.close(second, Exit.void)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Isolated", reason: "moving to db2" })
        const error = yield* Effect.flip(breaker.protect(Effect.die("ran")))
        assert(error instanceof Errors.CircuitIsolated)
        assert.deepInclude({ ...error }, { key: "default", reason: "moving to db2" })
        assert.isNull(error.retryAfter)
        assert.isFalse(error.isRetryable)
        yield* Scope.close(first, Exit.void)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        assert.strictEqual(yield* breaker.protect(up), "row")
        assert.deepStrictEqual(edges(), ["Closed>Isolated", "Isolated>Closed"])
      }))

    it.effect("31: neither time nor a probe under way ends an isolation, and its end leaves the circuit closed", () =>
      Effect.gen(function*() {
        const { breaker } = yield* observed()
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("30 seconds")
        const { running, succeed } = yield* crowd(breaker, 1)
        assert.strictEqual(running.length, 1)
        yield* Effect.scoped(Effect.gen(function*() {
          yield* breaker.isolate("maintenance")
          yield* succeed
          yield* TestClock.adjust("1 hour")
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Isolated", reason: "maintenance" })
          assert.strictEqual((yield* Effect.flip(breaker.protect(up)))._tag, "CircuitIsolated")
        }))
        yield* calls(breaker, down, 5)
        // All that was before is forgotten: this is a first opening.
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 30_000 })
      }))

    it.effect("31: who waits for his turn is told of the isolation", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering()
        const { fibers } = yield* crowd(breaker, 2)
        yield* breaker.isolate("maintenance")
        const error = yield* Effect.flip(Fiber.join(fibers[1]!))
        assert(error instanceof Errors.CircuitIsolated)
      }))

    it.effect("32: disabled it lets all calls in, counts them, and tells when it would have opened", () =>
      Effect.gen(function*() {
        const { breaker, edges, seen } = yield* observed()
        yield* calls(breaker, down, 5)
        yield* Effect.scoped(Effect.gen(function*() {
          yield* breaker.disable
          yield* calls(breaker, down, 4)
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Disabled", failures: 4 })
          assert.strictEqual((yield* Effect.flip(breaker.protect(down))).message, "refused")
          assert.deepInclude(seen.at(-1), { from: "Disabled", to: "Disabled" })
          // For as long as it would be open, an open circuit has nothing to tell.
          yield* calls(breaker, down, 100)
          assert.strictEqual(yield* breaker.protect(up), "row")
          assert.strictEqual(seen.length, 3)
          yield* TestClock.adjust("30 seconds")
          yield* calls(breaker, down, 5)
          assert.isDefined(breaker.closedPermitUnsafe())
        }))
        assert.deepStrictEqual(edges(), [
          "Closed>Open",
          "Open>Disabled",
          "Disabled>Disabled",
          "Disabled>Disabled",
          "Disabled>Closed"
        ])
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("32: isolation wins over disabling, whichever came first", () =>
      Effect.gen(function*() {
        const { breaker, edges } = yield* observed()
        const [isolation, disabling] = [yield* Scope.make(), yield* Scope.make()]
        yield* Scope.provide(breaker.disable, disabling)
        yield* Scope.provide(breaker.isolate("maintenance"), isolation)
        assert.strictEqual((yield* breaker.state)._tag, "Isolated")
        yield* Scope.close(isolation, Exit.void)
        assert.strictEqual((yield* breaker.state)._tag, "Disabled")
        yield* Scope.close(disabling, Exit.void)
        assert.deepStrictEqual(edges(), [
          "Closed>Disabled",
          "Disabled>Isolated",
          "Isolated>Disabled",
          "Disabled>Closed"
        ])
      }))

    it.effect("reset closes it and forgets what it counted and how often it was open", () =>
      Effect.gen(function*() {
        const { breaker, edges } = yield* observed()
        yield* calls(breaker, down, 5)
        yield* TestClock.adjust("30 seconds")
        yield* calls(breaker, down, 1)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 60_000 })
        yield* breaker.reset
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        assert.strictEqual(edges().at(-1), "Open>Closed")
        yield* calls(breaker, down, 5)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 30_000 })
      }))

    it.effect("reset ends neither isolation nor disabling", () =>
      Effect.gen(function*() {
        const { breaker } = yield* observed()
        yield* breaker.disable
        yield* calls(breaker, down, 4)
        yield* breaker.reset
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Disabled", failures: 0 })
        yield* breaker.isolate("maintenance")
        yield* breaker.reset
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Isolated", reason: "maintenance" })
      }))
  })

  describe("by rate", () => {
    it.effect("47: a database that answers one call in five is left alone, which no streak would see to", () =>
      Effect.gen(function*() {
        const flapping = Effect.fnUntraced(function*(breaker: Service) {
          for (let i = 0; i < 4; i++) {
            yield* calls(breaker, down, 4)
            yield* calls(breaker, up, 1)
          }
          return yield* breaker.state
        })
        const streak = yield* Breaker.make({ trip: Breaker.consecutive(5) })
        assert.strictEqual((yield* flapping(streak))._tag, "Closed")
        const rate = yield* Breaker.make({ trip: Breaker.rate({ threshold: 0.75, size: 20 }) })
        assert.isFalse(rate.isCalmUnsafe())
        assert.strictEqual((yield* flapping(rate))._tag, "Open")
      }))
  })

  describe("snapshots", () => {
    /** The JSON of a circuit that opened at 0 and was asked for its snapshot at `at`. */
    const taken = Effect.fnUntraced(function*(how: (breaker: Service) => Effect.Effect<unknown> = () => Effect.void) {
      const { breaker } = yield* observed()
      yield* calls(breaker, down, 5)
      yield* how(breaker)
      return JSON.stringify(yield* breaker.snapshot)
    })

    it.effect("33: half-open here is open there, with nothing left to wait and its openings kept", () =>
      Effect.gen(function*() {
        const json = yield* taken((breaker) =>
          Effect.gen(function*() {
            yield* TestClock.adjust("30 seconds")
            yield* crowd(breaker, 1)
            assert.strictEqual((yield* breaker.state)._tag, "HalfOpen")
          }).pipe(Effect.orDie)
        )
        const { breaker } = yield* observed({ snapshot: JSON.parse(json) })
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 0 })
        yield* calls(breaker, down, 1)
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 60_000 })
      }))

    it.effect("34: open here at 0 has 20 seconds left there at 10 seconds, and knows why", () =>
      Effect.gen(function*() {
        const json = yield* taken()
        yield* TestClock.adjust("10 seconds")
        const { breaker } = yield* observed({ snapshot: JSON.parse(json) })
        const error = yield* Effect.flip(breaker.protect(up))
        assert(error instanceof Errors.CircuitOpen)
        assert.strictEqual(error.retryAfter, 20_000)
        assert.strictEqual(error.lastFailure?.code, "ECONNREFUSED")
      }))

    it.effect("34: at 40 seconds it lets the first call probe", () =>
      Effect.gen(function*() {
        const json = yield* taken()
        yield* TestClock.adjust("40 seconds")
        const { breaker, edges } = yield* observed({ snapshot: JSON.parse(json) })
        assert.strictEqual(yield* breaker.protect(up), "row")
        assert.deepStrictEqual(edges(), ["Open>HalfOpen", "HalfOpen>Closed"])
      }))

    it.effect("34: one from the future is open for its own time at most", () =>
      Effect.gen(function*() {
        yield* TestClock.setTime(7_200_000)
        const json = yield* taken()
        yield* TestClock.setTime(0)
        const { breaker } = yield* observed({ snapshot: JSON.parse(json) })
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 30_000 })
        yield* TestClock.adjust("10 seconds")
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 20_000 })
      }))

    it.effect("34: one that was open for longer than this circuit ever is, is cut to that", () =>
      Effect.gen(function*() {
        const json = yield* taken()
        const { breaker } = yield* observed({
          snapshot: JSON.parse(json),
          openFor: "1 second",
          maxOpenFor: "2 seconds"
        })
        assert.deepInclude(yield* breaker.state, { _tag: "Open", retryAfter: 2_000 })
      }))

    const open = { _tag: "Open", openedAt: 0, openFor: 30_000, openings: 1 }
    const valid = { version: 1, key: "default", takenAt: 0, lastFailure: null, circuit: open }
    for (
      const [what, garbage] of [
        ["a text", "{"],
        ["null", null],
        ["another version", { ...valid, version: 2 }],
        ["another circuit's", { ...valid, key: "db2:5432/app" }],
        ["a state that does not exist", { ...valid, circuit: { ...open, _tag: "Ajar" } }],
        ["a negative time", { ...valid, circuit: { ...open, openFor: -1 } }],
        ["no number", { ...valid, circuit: { ...open, openFor: NaN } }],
        ["half an opening", { ...valid, circuit: { ...open, openings: 0.5 } }]
      ] as const
    ) {
      it.effect(`34: garbage (${what}) leaves it closed, with one warning`, () =>
        Effect.gen(function*() {
          const { layer, messages } = logged()
          const { breaker } = yield* Effect.provide(observed({ snapshot: garbage }), layer)
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
          assert.deepStrictEqual(messages, [
            `Warn: The snapshot of the circuit default is of no use, so it begins closed (${
              what === "another circuit's" ? "AnotherCircuit" : "SchemaError"
            }).`
          ])
        }))
    }

    it.effect("a streak goes on where it was, in time, and opens nothing by itself", () =>
      Effect.gen(function*() {
        const { breaker } = yield* observed()
        yield* calls(breaker, down, 4)
        const snapshot = JSON.parse(JSON.stringify(yield* breaker.snapshot))
        const stricter = yield* Breaker.make({ snapshot, failures: 2 })
        assert.deepStrictEqual(yield* stricter.state, { _tag: "Closed", failures: 1 })
        const next = yield* Breaker.make({ snapshot })
        yield* calls(next, down, 1)
        assert.strictEqual((yield* next.state)._tag, "Open")
        yield* TestClock.adjust(60_001)
        const later = yield* Breaker.make({ snapshot })
        assert.deepStrictEqual(yield* later.state, { _tag: "Closed", failures: 0 })
      }))

    it.effect("a recovery goes on where it was", () =>
      Effect.gen(function*() {
        const { breaker } = yield* recovering()
        yield* breaker.protect(up)
        const next = yield* Breaker.make({ snapshot: JSON.parse(JSON.stringify(yield* breaker.snapshot)) })
        assert.deepStrictEqual(yield* next.state, { _tag: "Closed", failures: 0, limit: 2 })
      }))

    it.effect("isolation and disabling stay in their process", () =>
      Effect.gen(function*() {
        const { breaker } = yield* observed()
        yield* breaker.isolate("maintenance")
        const next = yield* Breaker.make({ snapshot: yield* breaker.snapshot })
        assert.deepStrictEqual(yield* next.state, { _tag: "Closed", failures: 0 })
      }))
  })

  describe("layerHydrated", () => {
    it.effect("goes on from what was saved before", () =>
      Effect.gen(function*() {
        let stored: unknown
        const layer = Breaker.layerHydrated({
          jitter: "none",
          load: Effect.sync(() => stored),
          save: (snapshot) =>
            Effect.sync(() => {
              stored = JSON.parse(JSON.stringify(snapshot))
            })
        })
        const life = <A, E>(self: (breaker: Service) => Effect.Effect<A, E>) =>
          Effect.scoped(
            Effect.flatMap(Layer.build(layer), (context) => Effect.provideContext(Breaker.Breaker.use(self), context))
          )
        yield* life((breaker) => calls(breaker, down, 5))
        yield* TestClock.adjust("10 seconds")
        const error = yield* life((breaker) => Effect.flip(breaker.protect(up)))
        assert.deepInclude({ ...error }, { _tag: "CircuitOpen", retryAfter: 20_000 })
      }))

    it.effect("saves in the background, one at a time and the newest, and at the end once more", () =>
      Effect.gen(function*() {
        const saved: Array<string> = []
        const gate = yield* Deferred.make<void>()
        const layer = Breaker.layerHydrated({
          jitter: "none",
          ramp: false,
          load: Effect.undefined,
          save: ({ circuit }) =>
            Effect.suspend(() => {
              saved.push(circuit._tag)
              return Deferred.await(gate)
            })
        })
        yield* Effect.scoped(Effect.gen(function*() {
          const breaker = yield* Effect.map(
            Layer.build(layer),
            (context) => Effect.runSync(Effect.provideContext(Breaker.Breaker, context))
          )
          yield* calls(breaker, down, 5)
          yield* Effect.yieldNow
          assert.deepStrictEqual(saved, ["Open"])
          // The store hangs, and nobody waits for it.
          yield* TestClock.adjust("30 seconds")
          assert.strictEqual(yield* breaker.protect(up), "row")
          assert.deepStrictEqual(saved, ["Open"])
          yield* Deferred.succeed(gate, undefined)
          yield* TestClock.adjust(0)
          assert.deepStrictEqual(saved, ["Open", "Closed"])
        }))
        assert.deepStrictEqual(saved, ["Open", "Closed", "Closed"])
      }))

    it.effect("a store that fails, or dies, costs a warning and nothing else", () =>
      Effect.gen(function*() {
        const { layer: logger, messages } = logged()
        const layer = Breaker.layerHydrated({
          load: Effect.fail("no such bucket"),
          save: () => Effect.die("no such bucket")
        })
        yield* Effect.scoped(Effect.flatMap(Layer.build(layer), (context) =>
          Effect.provideContext(
            Breaker.Breaker.use((breaker) => Effect.andThen(calls(breaker, down, 5), TestClock.adjust(0))),
            context
          ))).pipe(
            Effect.provide(logger)
          )
        assert.deepStrictEqual(
          messages,
          [
            "Warn: The snapshot of the circuit default could not be loaded, so it begins closed (an error without a name).",
            "Warn: The snapshot of the circuit default could not be saved (an error without a name).",
            "Warn: The snapshot of the circuit default could not be saved (an error without a name)."
          ]
        )
      }))
  })

  describe("keys", () => {
    it("a key names host, port, database and role", () => {
      assert.strictEqual(Breaker.keyOf({ host: "db1" }), "db1:5432")
      assert.strictEqual(Breaker.keyOf({ host: "db1", port: 6432, database: "app" }), "db1:6432/app")
      assert.strictEqual(Breaker.keyOf({ host: "::1", database: "app", role: "standby" }), "[::1]:5432/app#standby")
    })

    it.effect("48: one circuit for each key, each failing by itself", () =>
      Effect.gen(function*() {
        const breakers = yield* Breaker.Breakers
        const [primary, standby] = [yield* breakers.get("db1"), yield* breakers.get("db2", { failures: 1 })]
        yield* calls(standby, down, 1)
        assert.strictEqual((yield* primary.state)._tag, "Closed")
        const error = yield* Effect.flip(standby.protect(up))
        assert.deepInclude({ ...error }, { _tag: "CircuitOpen", key: "db2" })
        assert.strictEqual(yield* breakers.get("db2"), standby)
        assert.strictEqual(yield* breakers.get("db1", { failures: 3 }), primary)
        assert.strictEqual(yield* breakers.get("db2", { failures: 1, openFor: "30 seconds" }), standby)
      }).pipe(Effect.provide(Breaker.Breakers.layer({ failures: 3 }))))

    it.effect("48: a key asked for with other options is an error that names it", () =>
      Effect.gen(function*() {
        const breakers = yield* Breaker.Breakers
        yield* breakers.get("db1", { failures: 3 })
        for (const options of [{ failures: 4 }, { failures: 3, onTransition: () => {} }, {}]) {
          const error = yield* Effect.flip(breakers.get("db1", options))
          assert.instanceOf(error, Errors.InvalidOption)
          assert.deepInclude({ ...error }, { option: "breaker.key", value: "db1" })
        }
      }).pipe(Effect.provide(Breaker.Breakers.layer())))

    it.effect("48: two who ask at once get the same circuit", () =>
      Effect.gen(function*() {
        const breakers = yield* Breaker.Breakers
        const [one, other] = yield* Effect.all([breakers.get("db1"), breakers.get("db1")], { concurrency: 2 })
        assert.strictEqual(one, other)
      }).pipe(Effect.provide(Breaker.Breakers.layer())))

    it.effect("48: impossible options of the layer fail it", () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Effect.scoped(Layer.build(Breaker.Breakers.layer({ ramp: 0 }))))
        assert.strictEqual(error.option, "breaker.ramp")
      }))
  })

  describe("settings", () => {
    const impossible: ReadonlyArray<readonly [option: string, value: unknown, options: Breaker.Options]> = [
      ["failures", 3, { failures: 3, trip: Breaker.consecutive(3) }],
      ["trip.failures", 0, { trip: Breaker.consecutive(0) }],
      ["trip.failures", NaN, { trip: Breaker.consecutive(NaN) }],
      ["trip.threshold", 1.5, { trip: Breaker.rate({ threshold: 1.5 }) }],
      ["trip.threshold", -0.1, { trip: Breaker.rate({ threshold: -0.1 }) }],
      ["trip.threshold", NaN, { trip: Breaker.rate({ threshold: NaN }) }],
      ["trip.size", 0, { trip: Breaker.rate({ size: 0 }) }],
      ["trip.size", 2.5, { trip: Breaker.rate({ size: 2.5 }) }],
      ["trip.minimumCalls", 11, { trip: Breaker.rate({ size: 10, minimumCalls: 11 }) }],
      ["trip.minimumCalls", 0, { trip: Breaker.rate({ minimumCalls: 0 }) }],
      ["trip.window", "-1 seconds", { trip: Breaker.rate({ window: "-1 seconds" }) }],
      ["trip.window", NaN, { trip: Breaker.rate({ window: NaN }) }],
      ["probeLease", "31 seconds", { probeLease: "31 seconds" }],
      ["probeLease", -1, { probeLease: -1 }],
      ["streakWindow", NaN, { streakWindow: NaN }],
      ["maxOpenFor", "-1 seconds", { maxOpenFor: "-1 seconds" }],
      ["jitter", [NaN, NaN], { jitter: [NaN, NaN] }],
      ["ramp", 0, { ramp: 0 }],
      ["ramp", -1, { ramp: -1 }],
      ["ramp", 1.5, { ramp: 1.5 }],
      ["ramp", NaN, { ramp: NaN }]
    ]
    for (const [option, value, options] of impossible) {
      it.effect(`refuses ${option} = ${String(value)}`, () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(Breaker.make(options))
          assert.instanceOf(error, Errors.InvalidOption)
          assert.strictEqual(error.option, `breaker.${option}`)
          assert.deepStrictEqual(error.value, value)
          assert.include(error.message, "must be")
        }))
    }
  })
})
