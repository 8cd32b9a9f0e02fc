import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as CircuitBreaker from "effect/persistence/CircuitBreaker"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as Breaker from "../src/Breaker.ts"
import * as Errors from "../src/Errors.ts"
import { shared } from "./suites/breaker/engines/ours.ts"
import { breakerSuite } from "./suites/breakerSuite.ts"

type Service = Breaker.Breaker["Service"]
type Store = CircuitBreaker.CircuitBreakerStore["Service"]
type Options = Parameters<typeof Breaker.layerShared>[0]

const key = "default"
const down = Effect.fail(Object.assign(new Error("refused"), { code: "ECONNREFUSED" }))
const up = Effect.succeed("row")

/** Whatever runs in the background has had its turn. */
const settled = TestClock.adjust(0)

const fail = (breaker: Service, times: number) =>
  Effect.andThen(
    Effect.forEach(Array.from({ length: times }), () => Effect.exit(breaker.protect(down))),
    settled
  )

const tagOf = (exit: Exit.Exit<unknown, unknown>) => {
  if (Exit.isSuccess(exit)) return "ran"
  const error = exit.cause.reasons.find((reason) => reason._tag === "Fail")?.error
  return error instanceof Error && "_tag" in error ? String(error._tag) : "ran"
}

const told = (breaker: Service, effect: Effect.Effect<unknown, unknown> = up) =>
  Effect.map(Effect.exit(breaker.protect(effect)), tagOf)

/** The store in memory, with every question to it noted. */
const makeStore = Effect.gen(function*() {
  const store = Context.get(
    yield* Layer.build(Layer.fresh(CircuitBreaker.layerStoreMemory())),
    CircuitBreaker.CircuitBreakerStore
  )
  const asked: Array<string> = []
  const noted = <A, E, R>(name: string, effect: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => {
      asked.push(name)
      return effect
    })
  return {
    asked,
    store: CircuitBreaker.CircuitBreakerStore.of({
      admit: (of) => noted("admit", store.admit(of)),
      record: (options) => noted(`record ${options.outcome}`, store.record(options)),
      state: (of) => noted("state", store.state(of))
    })
  }
})

const instance = (store: Store, options?: Options) =>
  Effect.map(
    Layer.build(Layer.fresh(
      Breaker.layerShared({ jitter: "none", ramp: false, ...options }).pipe(
        Layer.provide(Layer.succeed(CircuitBreaker.CircuitBreakerStore, store))
      )
    )),
    Context.get(Breaker.Breaker)
  )

/** Instances of one fleet, with the changes of state that each of them has seen. */
const fleet = Effect.fnUntraced(function*(size: number, options?: Options) {
  const { asked, store } = yield* makeStore
  const seen = Array.from({ length: size }, (): Array<string> => [])
  const instances = yield* Effect.forEach(
    seen,
    (edges) => instance(store, { ...options, onTransition: ({ from, to }) => void edges.push(`${from}>${to}`) })
  )
  return { a: instances[0]!, b: instances[1] ?? instances[0]!, instances, asked, store, seen }
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

const unavailable = Effect.fail(
  new CircuitBreaker.CircuitBreakerError({
    reason: new CircuitBreaker.CircuitBreakerStoreError({ message: "gone" })
  })
)

describe("Breaker.layerShared", () => {
  breakerSuite(shared, [48])

  it.effect("a process that can reach the database again leaves it to the fleet when to probe", () =>
    Effect.gen(function*() {
      const { a, asked } = yield* fleet(1)
      yield* fail(a, 5)
      asked.length = 0
      a.reachedUnsafe(yield* Clock.currentTimeMillis)
      assert.strictEqual(yield* told(a), "CircuitOpen")
      assert.deepStrictEqual(asked, ["admit"])
      assert.strictEqual((yield* a.state)._tag, "Open")
      yield* TestClock.adjust("36 seconds")
      assert.strictEqual(yield* told(a), "ran")
    }))

  describe("while all is well", () => {
    it.effect("building it asks the store nothing, and neither do calls that succeed", () =>
      Effect.gen(function*() {
        const { a, asked } = yield* fleet(1)
        for (let call = 0; call < 1000; call++) yield* a.protect(up)
        yield* settled
        assert.deepStrictEqual(asked, [])
        assert.isDefined(a.closedPermitUnsafe())
      }))

    it.effect("a failure that does not count asks nothing", () =>
      Effect.gen(function*() {
        const { a, asked } = yield* fleet(1)
        yield* Effect.exit(a.protect(Effect.fail(Object.assign(new Error("unique"), { sqlState: "23505" })), {
          classify: () => "Success"
        }))
        yield* Effect.exit(a.protect(Effect.interrupt))
        yield* settled
        assert.deepStrictEqual(asked, [])
      }))
  })

  describe("opening", () => {
    it.effect("the fifth failure here opens the fleet's circuit for as long", () =>
      Effect.gen(function*() {
        const { a, asked, store } = yield* fleet(2)
        yield* fail(a, 5)
        assert.deepInclude(yield* store.state(key), { _tag: "Open", retryAfter: Duration.seconds(30) })
        assert.deepStrictEqual(asked.filter((name) => name.startsWith("record")), ["record Failure"])
      }))

    it.effect("is learned on the first failure of another instance, and ends at the same moment", () =>
      Effect.gen(function*() {
        const { a, b, seen } = yield* fleet(2)
        yield* fail(a, 5)
        yield* TestClock.adjust("12 seconds")
        yield* fail(b, 1)
        assert.deepInclude(yield* b.state, { _tag: "Open", retryAfter: 18_000 })
        assert.deepInclude(yield* a.state, { _tag: "Open", retryAfter: 18_000 })
        assert.strictEqual(yield* told(b), "CircuitOpen")
        assert.deepStrictEqual(seen[1], ["Closed>Open"])
      }))

    it.effect("is learned on a later failure too, when the fleet's circuit opened after the first", () =>
      Effect.gen(function*() {
        const { a, b } = yield* fleet(2)
        yield* fail(b, 1)
        yield* fail(a, 5)
        assert.strictEqual((yield* b.state)._tag, "Closed")
        yield* TestClock.adjust("1 second")
        yield* fail(b, 1)
        assert.strictEqual((yield* b.state)._tag, "Open")
      }))

    it.effect("is asked for once a second at most, however often the database fails and answers in turns", () =>
      Effect.gen(function*() {
        const { a, asked } = yield* fleet(1)
        for (let call = 0; call < 2000; call++) {
          yield* Effect.exit(a.protect(call % 2 === 0 ? down : up))
          yield* TestClock.adjust(1)
        }
        assert.deepStrictEqual(asked, ["state", "state"])
      }))

    it.effect("of two that open at once the first is the fleet's, and the other one's ends with it", () =>
      Effect.gen(function*() {
        const { store } = yield* makeStore
        // Both are told that it is closed before either opens it.
        const far = { ...store, admit: (of: string) => Effect.tap(store.admit(of), () => Effect.sleep(1)) }
        const a = yield* instance(far, { jitter: [1, 2] })
        const b = yield* instance(far, { jitter: [1, 2] })
        for (const breaker of [a, b]) {
          for (let call = 0; call < 5; call++) yield* Effect.exit(breaker.protect(down))
        }
        yield* settled
        assert.notDeepEqual(yield* a.state, yield* b.state)
        yield* TestClock.adjust(1)
        const state = yield* store.state(key)
        assert.isTrue(state._tag === "Open" && state.consecutiveOpenings === 1)
        assert.deepStrictEqual(yield* a.state, yield* b.state)
      }))

    it.effect("an instance that opens while the fleet's circuit is open keeps to the fleet's time", () =>
      Effect.gen(function*() {
        const { store } = yield* makeStore
        const a = yield* instance(store)
        yield* fail(a, 5)
        yield* TestClock.adjust("20 seconds")
        const b = yield* instance(store, { failures: 1 })
        yield* fail(b, 1)
        assert.deepInclude(yield* b.state, { _tag: "Open", retryAfter: 10_000 })
      }))
  })

  describe("probing", () => {
    const opened = Effect.fnUntraced(function*(size: number, options?: Options) {
      const all = yield* fleet(size, options)
      yield* Effect.forEach(all.instances, (breaker) => fail(breaker, 5))
      yield* TestClock.adjust("30 seconds")
      all.asked.length = 0
      return all
    })

    it.effect("4: one call in the whole fleet probes, and the others are told when to come back", () =>
      Effect.gen(function*() {
        const { instances } = yield* opened(10)
        const end = yield* Deferred.make<string>()
        let running = 0
        const call = Effect.suspend(() => {
          running++
          return Deferred.await(end)
        })
        const fibers = yield* Effect.forEach(
          instances,
          (breaker) => Effect.forEach(Array.from({ length: 5 }), () => Effect.forkChild(breaker.protect(call)))
        )
        yield* settled
        assert.strictEqual(running, 1)
        yield* Deferred.succeed(end, "row")
        const exits = yield* Effect.forEach(fibers.flat(), Fiber.await)
        assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
        for (const exit of exits) {
          if (Exit.isSuccess(exit)) continue
          const error = yield* Effect.flip(exit)
          assert.isTrue(Errors.isPoolError(error) && (error._tag === "CircuitHalfOpen" || error._tag === "CircuitOpen"))
          assert.isTrue("retryAfter" in error && error.retryAfter! > 0)
        }
      }))

    it.effect("a probe that succeeds closes here at once, and elsewhere with the next call after its pause", () =>
      Effect.gen(function*() {
        const { a, b, seen, store } = yield* opened(2)
        assert.strictEqual(yield* told(a), "ran")
        yield* settled
        assert.strictEqual((yield* store.state(key))._tag, "Closed")
        assert.strictEqual((yield* a.state)._tag, "Closed")
        assert.strictEqual(yield* told(b), "ran")
        assert.strictEqual((yield* b.state)._tag, "Closed")
        assert.deepStrictEqual(seen, [
          ["Closed>Open", "Open>HalfOpen", "HalfOpen>Closed"],
          ["Closed>Open", "Open>HalfOpen", "HalfOpen>Closed"]
        ])
      }))

    it.effect("an instance that learns of the recovery lets calls in one at a time first", () =>
      Effect.gen(function*() {
        const { a, b } = yield* opened(2, { ramp: 8 })
        yield* told(a)
        yield* settled
        yield* told(b)
        const end = yield* Deferred.make<string>()
        yield* Effect.forkChild(b.protect(Deferred.await(end)))
        yield* settled
        assert.deepStrictEqual(yield* b.state, { _tag: "Closed", failures: 0, limit: 1 })
      }))

    it.effect("5, 28: a probe that fails opens the whole fleet for twice as long", () =>
      Effect.gen(function*() {
        const { a, b, store } = yield* opened(2)
        yield* fail(a, 1)
        assert.deepInclude(yield* a.state, { _tag: "Open", retryAfter: 60_000 })
        assert.deepInclude(yield* store.state(key), { retryAfter: Duration.seconds(60), consecutiveOpenings: 2 })
        assert.strictEqual(yield* told(b), "CircuitOpen")
        assert.deepInclude(yield* b.state, { _tag: "Open", retryAfter: 60_000 })
      }))

    it.effect("28, 29: the back-off is the fleet's, whoever opened before", () =>
      Effect.gen(function*() {
        const { a, b, store } = yield* opened(2)
        yield* fail(a, 1)
        yield* TestClock.adjust("60 seconds")
        yield* fail(b, 1)
        assert.deepInclude(yield* b.state, { _tag: "Open", retryAfter: 120_000 })
        yield* TestClock.adjust("120 seconds")
        assert.strictEqual(yield* told(a), "ran")
        yield* settled
        // An instance that has never been open goes on from where the fleet is.
        const c = yield* instance(store)
        yield* fail(c, 5)
        assert.deepInclude(yield* c.state, { _tag: "Open", retryAfter: 240_000 })
      }))

    it.effect("an instance that alone cannot reach the database does not open the fleet's circuit over and over", () =>
      Effect.gen(function*() {
        const { a, b, instances, store } = yield* fleet(3)
        const cutOff = instances[2]!
        let rejected = 0
        // An hour of calls, each second one, in which a and b have a failure every five minutes.
        for (let second = 0; second < 3600; second++) {
          for (const [breaker, offset] of [[a, 150], [b, 299]] as const) {
            if (second % 300 === offset) yield* fail(breaker, 1)
            if ((yield* told(breaker)) !== "ran") rejected++
          }
          yield* fail(cutOff, 3)
          yield* TestClock.adjust("1 second")
        }
        // One opening of the fleet, which ends by the first probe of an instance that reaches the database.
        assert.isBelow(rejected, 72)
        assert.strictEqual((yield* store.state(key))._tag, "Closed")
        assert.strictEqual((yield* cutOff.state)._tag, "Open")
      }))

    it.effect("6: an interrupted probe leaves its place to any instance", () =>
      Effect.gen(function*() {
        const { a, b } = yield* opened(2)
        const fiber = yield* Effect.forkChild(a.protect(Effect.never))
        yield* settled
        assert.strictEqual((yield* a.state)._tag, "HalfOpen")
        yield* Fiber.interrupt(fiber)
        yield* settled
        assert.strictEqual(yield* told(b), "ran")
      }))

    it.effect("8: a probe that never returns loses its place in the fleet too, and its late result is dropped", () =>
      Effect.gen(function*() {
        const { a, b, store } = yield* opened(2)
        const end = yield* Deferred.make<string>()
        const fiber = yield* Effect.forkChild(a.protect(Deferred.await(end)))
        yield* settled
        assert.strictEqual(yield* told(b), "CircuitHalfOpen")
        yield* TestClock.adjust("5 seconds")
        yield* fail(b, 1)
        assert.deepInclude(yield* store.state(key), { _tag: "Open", consecutiveOpenings: 2 })
        yield* Deferred.succeed(end, "row")
        yield* Fiber.join(fiber)
        yield* settled
        assert.strictEqual((yield* store.state(key))._tag, "Open")
      }))

    it.effect("a scope that closes during its probe gives the place back", () =>
      Effect.gen(function*() {
        const { store } = yield* makeStore
        const scope = yield* Scope.make()
        const a = yield* Scope.provide(instance(store), scope)
        const b = yield* instance(store)
        yield* fail(a, 5)
        yield* TestClock.adjust("30 seconds")
        yield* Effect.forkChild(a.protect(Effect.never))
        yield* settled
        yield* Scope.close(scope, Exit.void)
        yield* settled
        assert.deepInclude(yield* store.state(key), { _tag: "HalfOpen", probing: false })
        yield* fail(b, 1)
        assert.strictEqual((yield* b.state)._tag, "Open")
      }))

    it.effect("a caller that is gone when the store gives leave does not keep the place", () =>
      Effect.gen(function*() {
        const { store } = yield* makeStore
        const gate = yield* Deferred.make<void>()
        let isSlow = false
        const slow = {
          ...store,
          admit: (of: string) =>
            Effect.andThen(Effect.suspend(() => isSlow ? Deferred.await(gate) : Effect.void), store.admit(of))
        }
        const a = yield* instance(slow)
        yield* fail(a, 5)
        yield* TestClock.adjust("30 seconds")
        isSlow = true
        const fiber = yield* Effect.forkChild(a.protect(up))
        yield* settled
        yield* Fiber.interrupt(fiber)
        yield* Deferred.succeed(gate, undefined)
        yield* settled
        assert.deepInclude(yield* store.state(key), { _tag: "HalfOpen", probing: false })
        assert.strictEqual(yield* told(a), "ran")
      }))

    it.effect("21, 22: neither a clock that goes back nor a frozen environment keeps the fleet from probing", () =>
      Effect.gen(function*() {
        const { a, b } = yield* fleet(2)
        yield* fail(a, 5)
        yield* fail(b, 1)
        yield* TestClock.adjust("59 minutes")
        assert.strictEqual(yield* told(b), "ran")
        assert.strictEqual(yield* told(a), "ran")
      }))
  })

  describe("by hand", () => {
    it.effect("isolating and disabling one instance is its own affair", () =>
      Effect.gen(function*() {
        const { a, asked, b } = yield* fleet(2)
        yield* Effect.scoped(Effect.gen(function*() {
          yield* a.isolate("moving")
          assert.strictEqual(yield* told(a), "CircuitIsolated")
          assert.strictEqual(yield* told(b), "ran")
        }))
        yield* Effect.scoped(Effect.gen(function*() {
          yield* a.disable
          yield* fail(a, 20)
          assert.strictEqual(yield* told(a), "ran")
        }))
        assert.deepStrictEqual(asked, [])
      }))

    it.effect("after a reset the next failure learns that the fleet's circuit is still open", () =>
      Effect.gen(function*() {
        const { a } = yield* fleet(1)
        yield* fail(a, 5)
        yield* a.reset
        assert.strictEqual(yield* told(a), "ran")
        yield* fail(a, 1)
        assert.deepInclude(yield* a.state, { _tag: "Open", retryAfter: 30_000 })
      }))
  })

  describe("35: a store that is down", () => {
    const broken = { admit: () => unavailable, record: () => unavailable, state: () => unavailable }

    it.effect("leaves the process its own circuit, and is reported once", () => {
      const { layer, messages } = logged()
      return Effect.gen(function*() {
        const a = yield* instance(broken)
        yield* fail(a, 5)
        assert.strictEqual(yield* told(a), "CircuitOpen")
        yield* TestClock.adjust("30 seconds")
        yield* fail(a, 1)
        assert.deepInclude(yield* a.state, { _tag: "Open", retryAfter: 60_000 })
        yield* TestClock.adjust("60 seconds")
        assert.strictEqual(yield* told(a), "ran")
        yield* fail(a, 4)
        assert.strictEqual(messages.length, 1)
        assert.match(messages[0]!, /^Warn: The store of the circuit default gives no answer that can be used/)
      }).pipe(Effect.provide(layer))
    })

    it.effect("is reported again when it goes down again, and once when it is back", () => {
      const { layer, messages } = logged()
      return Effect.gen(function*() {
        const { store } = yield* makeStore
        let isDown = true
        const a = yield* instance({
          ...store,
          state: (of) => Effect.suspend(() => isDown ? unavailable : store.state(of))
        })
        yield* fail(a, 2)
        isDown = false
        yield* TestClock.adjust("1 second")
        yield* fail(a, 2)
        isDown = true
        yield* TestClock.adjust("1 second")
        yield* a.protect(up)
        yield* fail(a, 2)
        assert.deepStrictEqual(messages.map((message) => message.slice(0, message.indexOf(":"))), [
          "Warn",
          "Info",
          "Warn"
        ])
      }).pipe(Effect.provide(layer))
    })

    it.effect("that never answers delays the one call that would probe by storeTimeout, and no other", () => {
      const { layer, messages } = logged()
      return Effect.gen(function*() {
        const stalled = { admit: () => Effect.never, record: () => Effect.never, state: () => Effect.never }
        const a = yield* instance(stalled)
        // Without time going on: no failure waits for the store.
        for (let call = 0; call < 5; call++) yield* Effect.exit(a.protect(down))
        assert.strictEqual((yield* a.state)._tag, "Open")
        yield* TestClock.adjust("30 seconds")
        const probe = yield* Effect.forkChild(told(a))
        yield* settled
        assert.strictEqual(yield* told(a), "CircuitHalfOpen")
        yield* TestClock.adjust(249)
        assert.isUndefined(probe.pollUnsafe())
        yield* TestClock.adjust(1)
        assert.strictEqual(yield* Fiber.join(probe), "ran")
        assert.strictEqual((yield* a.state)._tag, "Closed")
        assert.strictEqual(messages.length, 1)
      }).pipe(Effect.provide(layer))
    })

    it.effect("is not one that has not answered yet when the scope closes", () => {
      const { layer, messages } = logged()
      return Effect.gen(function*() {
        const { store } = yield* makeStore
        let isSlow = false
        const scope = yield* Scope.make()
        const slow = { ...store, admit: (of: string) => isSlow ? Effect.never : store.admit(of) }
        const a = yield* Scope.provide(instance(slow), scope)
        yield* fail(a, 5)
        yield* TestClock.adjust("30 seconds")
        isSlow = true
        const waiting = yield* Effect.forkChild(told(a))
        yield* settled
        yield* Scope.close(scope, Exit.void)
        yield* TestClock.adjust("250 millis")
        assert.strictEqual(yield* Fiber.join(waiting), "ran")
        yield* fail(a, 5)
        yield* TestClock.adjust("1 hour")
        assert.strictEqual(yield* told(a), "ran")
        assert.deepStrictEqual(messages, [])
      }).pipe(Effect.provide(layer))
    })

    it.effect("an opening that the fleet never heard of is not over because the fleet's circuit is closed", () =>
      Effect.gen(function*() {
        const { store } = yield* makeStore
        let isDown = true
        const a = yield* instance({ ...store, admit: (of) => isDown ? unavailable : store.admit(of) })
        yield* fail(a, 5)
        isDown = false
        yield* TestClock.adjust("30 seconds")
        yield* fail(a, 1)
        assert.deepInclude(yield* a.state, { _tag: "Open", retryAfter: 60_000 })
        assert.deepInclude(yield* store.state(key), { _tag: "Open", retryAfter: Duration.seconds(60) })
      }))

    it.effect("that answers nonsense is one that is down", () => {
      const { layer, messages } = logged()
      return Effect.gen(function*() {
        const nonsense = {
          admit: () => Effect.succeed({ generation: NaN } as unknown as CircuitBreaker.Admission),
          record: () => Effect.die("no"),
          state: () => Effect.succeed({ _tag: "Ajar" } as unknown as CircuitBreaker.State)
        }
        const a = yield* instance(nonsense)
        yield* fail(a, 5)
        yield* TestClock.adjust("30 seconds")
        assert.strictEqual(yield* told(a), "ran")
        assert.strictEqual(messages.length, 1)
      }).pipe(Effect.provide(layer))
    })
  })

  it.effect("refuses a storeTimeout that cannot be", () =>
    Effect.gen(function*() {
      const { store } = yield* makeStore
      for (const storeTimeout of [0, -1, NaN, "6 seconds", Infinity] as const) {
        const error = yield* Effect.flip(Effect.scoped(instance(store, { storeTimeout })))
        assert.deepInclude(error, { _tag: "InvalidOption", option: "breaker.storeTimeout", value: storeTimeout })
      }
      yield* instance(store, { probeLease: "100 millis", probeTimeout: "50 millis" })
    }))
})
