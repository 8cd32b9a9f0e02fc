import { NodeRedis } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as CircuitBreaker from "effect/persistence/CircuitBreaker"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Breaker from "../../src/Breaker.ts"
import { absence, makeRedis } from "./redis.ts"
import type { RedisServer } from "./redis.ts"

type Service = Breaker.Breaker["Service"]

const key = "default"
const down = Effect.fail(Object.assign(new Error("refused"), { code: "ECONNREFUSED" }))
const up = Effect.succeed("row")

const fail = (breaker: Service, times: number) =>
  Effect.forEach(Array.from({ length: times }), () => Effect.exit(breaker.protect(down)))

/** One process of the fleet, as far as Redis can tell: with a client of its own. */
const makeInstance = Effect.fnUntraced(function*(
  { url }: RedisServer,
  options: Parameters<typeof Breaker.layerShared>[0] = {}
) {
  const context = yield* Layer.build(Layer.fresh(
    Breaker.layerShared({ openFor: "1 second", jitter: "none", ramp: false, ...options }).pipe(
      Layer.provideMerge(CircuitBreaker.layerStoreRedis({ probeLease: "600 millis" })),
      Layer.provide(NodeRedis.layer({ url }))
    )
  ))
  return {
    breaker: Context.get(context, Breaker.Breaker),
    store: Context.get(context, CircuitBreaker.CircuitBreakerStore)
  }
})

const becomes = <A, E, R>(what: Effect.Effect<A, E, R>, holds: (value: A) => boolean) =>
  what.pipe(
    Effect.filterOrFail(holds, (value) => new Error(`still ${JSON.stringify(value)}`)),
    Effect.retry(Schedule.max([Schedule.spaced(10), Schedule.recurs(1000)]))
  )

const isOpen = (breaker: Service) => becomes(breaker.state, ({ _tag }) => _tag === "Open")
const isOver = (breaker: Service) => becomes(breaker.state, (state) => state._tag === "Open" && state.retryAfter === 0)

/** The fleet's open time ends later than that of the instance that opened it, by as long as it took to tell. */
const isOverForAll = ({ store }: { readonly store: CircuitBreaker.CircuitBreakerStore["Service"] }) =>
  becomes(store.state(key), (state) => state._tag === "Open" && Duration.toMillis(state.retryAfter) === 0)

/** What was logged about the store, and nothing of what the client of Redis has to say. */
const logged = () => {
  const messages: Array<string> = []
  const layer = Logger.layer([
    Logger.make(({ logLevel, message }) => {
      const text = String(Array.isArray(message) ? message[0] : message)
      if (text.startsWith("The store of the circuit")) messages.push(logLevel)
    })
  ])
  return { messages, layer }
}

// A clone with nothing but Node and npm can run the tests; where they guard what is published nothing is left out.
const isLeftOut = absence !== undefined && process.env["CI"] === undefined
if (isLeftOut) console.warn(`The tests of the circuit shared through Redis are left out. ${absence}`)

describe.skipIf(isLeftOut)("Breaker.layerShared over Redis", () => {
  it.live("makes no command of ten thousand healthy calls, and none of being built", () =>
    Effect.gen(function*() {
      const redis = yield* makeRedis
      const { breaker, store } = yield* makeInstance(redis)
      const before = yield* redis.commands
      for (let call = 0; call < 10_000; call++) yield* breaker.protect(up)
      assert.strictEqual((yield* redis.commands) - before, 0)
      // A question that is asked shows.
      yield* store.state(key)
      assert.isAbove((yield* redis.commands) - before, 0)
    }))

  it.live("a new instance learns on its first failure that the fleet's circuit is open", () =>
    Effect.gen(function*() {
      const redis = yield* makeRedis
      const [a, b] = yield* Effect.all([
        makeInstance(redis, { openFor: "30 seconds" }),
        makeInstance(redis, { openFor: "30 seconds" })
      ])
      yield* fail(a.breaker, 5)
      yield* becomes(b.store.state(key), ({ _tag }) => _tag === "Open")
      assert.strictEqual((yield* b.breaker.state)._tag, "Closed")
      yield* fail(b.breaker, 1)
      yield* isOpen(b.breaker)
      const error = yield* Effect.flip(b.breaker.protect(up))
      assert.isTrue("_tag" in error && error._tag === "CircuitOpen" && error.retryAfter! > 0)
    }))

  it.live("4: one call of all calls of ten instances probes; when it succeeds, all instances close", () =>
    Effect.gen(function*() {
      const redis = yield* makeRedis
      const fleet = yield* Effect.forEach(
        Array.from({ length: 10 }),
        () => makeInstance(redis, { probeLease: "1 second" }),
        { concurrency: "unbounded" }
      )
      yield* Effect.forEach(fleet, ({ breaker }) => fail(breaker, 5))
      yield* Effect.forEach(fleet, ({ breaker }) => isOver(breaker))
      yield* isOverForAll(fleet[0]!)
      const end = yield* Deferred.make<string>()
      let running = 0
      const call = Effect.suspend(() => {
        running++
        return Deferred.await(end)
      })
      const fibers = yield* Effect.forEach(
        fleet,
        ({ breaker }) =>
          Effect.forEach(Array.from({ length: 5 }), () => Effect.forkChild(Effect.exit(breaker.protect(call))))
      )
      const inFlight = Effect.sync(() => fibers.flat().filter((fiber) => fiber.pollUnsafe() === undefined).length)
      yield* becomes(inFlight, (count) => count === 1)
      assert.strictEqual(running, 1)
      yield* Deferred.succeed(end, "row")
      const exits = yield* Effect.forEach(fibers.flat(), Fiber.join)
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      for (const { breaker } of fleet) {
        yield* Effect.retry(breaker.protect(up), Schedule.max([Schedule.spaced(20), Schedule.recurs(500)]))
        assert.strictEqual((yield* breaker.state)._tag, "Closed")
      }
    }))

  it.live("28: an instance whose probe fails opens the fleet's circuit for twice as long", () =>
    Effect.gen(function*() {
      const redis = yield* makeRedis
      const [a, b] = yield* Effect.all([makeInstance(redis), makeInstance(redis)])
      yield* fail(a.breaker, 5)
      yield* becomes(b.store.state(key), ({ _tag }) => _tag === "Open")
      yield* fail(b.breaker, 1)
      yield* isOver(b.breaker)
      yield* isOverForAll(b)
      yield* fail(b.breaker, 1)
      yield* becomes(
        b.store.state(key),
        (state) =>
          state._tag === "Open" && state.consecutiveOpenings === 2 && Duration.toMillis(state.retryAfter) > 1000
      )
      yield* isOver(a.breaker)
      assert.strictEqual((yield* Effect.flip(a.breaker.protect(up)))._tag as string, "CircuitOpen")
      const state = yield* a.breaker.state
      assert.isTrue(state._tag === "Open" && state.retryAfter > 0)
    }))

  it.live("a process that dies during its probe gives the place up when its lease ends", () =>
    Effect.gen(function*() {
      const redis = yield* makeRedis
      const { breaker, store } = yield* makeInstance(redis)
      yield* fail(breaker, 5)
      yield* becomes(store.state(key), ({ _tag }) => _tag === "Open")
      const died = yield* Effect.scoped(becomes(Effect.exit(store.admit(key)), Exit.isSuccess))
      assert.isTrue(Exit.isSuccess(died) && died.value.probe)
      const first = yield* Effect.flip(breaker.protect(up))
      assert.strictEqual(first._tag as string, "CircuitHalfOpen")
      yield* Effect.retry(breaker.protect(up), Schedule.max([Schedule.spaced(20), Schedule.recurs(500)]))
      yield* becomes(store.state(key), ({ _tag }) => _tag === "Closed")
    }))

  it.live("35: with Redis killed calls run and the circuit trips by itself, with one report, and one when it is back", () => {
    const { layer, messages } = logged()
    return Effect.gen(function*() {
      const redis = yield* makeRedis
      const options = { storeTimeout: "100 millis", probeTimeout: "50 millis" } as const
      const [a, b] = yield* Effect.all([makeInstance(redis, options), makeInstance(redis)])
      yield* redis.kill
      assert.strictEqual(yield* a.breaker.protect(up), "row")
      yield* fail(a.breaker, 5)
      assert.strictEqual((yield* a.breaker.state)._tag, "Open")
      yield* isOver(a.breaker)
      assert.strictEqual(yield* a.breaker.protect(up), "row")
      yield* fail(a.breaker, 4)
      yield* becomes(Effect.sync(() => messages.length), (length) => length > 0)
      assert.deepStrictEqual(messages, ["Warn"])
      yield* redis.start
      yield* a.breaker.protect(up)
      const seen = Effect.andThen(fail(a.breaker, 1), Effect.sync(() => messages.length))
      yield* becomes(Effect.andThen(a.breaker.protect(up), seen), (length) => length === 2)
      assert.deepStrictEqual(messages, ["Warn", "Info"])
      yield* fail(a.breaker, 5)
      yield* becomes(b.store.state(key), ({ _tag }) => _tag === "Open")
      yield* fail(b.breaker, 1)
      yield* isOpen(b.breaker)
    }).pipe(Effect.provide(layer))
  })

  it.live("with Redis stalled a call waits no longer than storeTimeout, and the leave that comes late is given back", () =>
    Effect.gen(function*() {
      const redis = yield* makeRedis
      const { breaker, store } = yield* makeInstance(redis, { storeTimeout: "300 millis" })
      yield* fail(breaker, 5)
      yield* becomes(store.state(key), ({ _tag }) => _tag === "Open")
      yield* isOver(breaker)
      yield* redis.stall
      const [waited, row] = yield* Effect.timed(breaker.protect(up)).pipe(Effect.ensuring(redis.resume))
      assert.strictEqual(row, "row")
      assert.isAtLeast(Duration.toMillis(waited), 290)
      // Far from a whole lease, on however slow a machine.
      assert.isBelow(Duration.toMillis(waited), 3000)
      yield* becomes(store.state(key), (state) => state._tag === "HalfOpen" && !state.probing)
    }))

  it.live("a scope that closes during its probe leaves no lease behind", () =>
    Effect.gen(function*() {
      const redis = yield* makeRedis
      const { store } = yield* makeInstance(redis)
      const scope = yield* Scope.make()
      const { breaker } = yield* Scope.provide(makeInstance(redis), scope)
      yield* fail(breaker, 5)
      yield* isOver(breaker)
      yield* isOverForAll({ store })
      yield* Effect.forkChild(breaker.protect(Effect.never))
      yield* becomes(breaker.state, ({ _tag }) => _tag === "HalfOpen")
      assert.deepInclude(yield* store.state(key), { _tag: "HalfOpen", probing: true })
      yield* Scope.close(scope, Exit.void)
      assert.deepInclude(yield* store.state(key), { _tag: "HalfOpen", probing: false })
    }))
})
