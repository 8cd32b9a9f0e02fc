/** Sessions that were opened together, over half an hour of the test's clock. The server is in this process. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import * as Pg from "../src/index.ts"
import { makeMemoryServer } from "./memoryServer.ts"

describe("a thousand sessions that were opened in one moment", () => {
  it.effect(
    "do not end in one: no second sees more than 5 % of them go, and none outlives maxLifetime",
    () =>
      Effect.gen(function*() {
        const server = makeMemoryServer()
        const count = 1000
        const closed: Array<number> = []
        yield* Effect.gen(function*() {
          const pool = yield* Pg.Pool.Pool
          const metrics = yield* Pg.Metrics.Metrics
          const gone = Effect.map(metrics.snapshot, ({ connectionsClosed }) => connectionsClosed.lifetime)
          yield* pool.warm(count)
          assert.strictEqual((yield* pool.stats).idle, count)
          yield* TestClock.adjust("27 minutes")
          assert.strictEqual(yield* gone, 0)
          for (let second = 1; second <= 180; second++) {
            const before = (yield* pool.stats).total
            yield* TestClock.adjust("1 second")
            closed.push(before - (yield* pool.stats).total)
          }
          assert.strictEqual((yield* pool.stats).total, 0)
        }).pipe(Effect.provide(Layer.provideMerge(
          Pg.Pool.layer({
            stream: server.stream,
            username: "nobody",
            max: count,
            min: count,
            reapEvery: "1 second",
            acquireTimeout: "1 hour"
          }),
          Pg.Metrics.layer()
        )))
        assert.strictEqual(closed.reduce((sum, one) => sum + one, 0), count)
        assert.isAtMost(Math.max(...closed), count * 0.05)
        assert.isAbove(closed.filter((one) => one > 0).length, 100)
      }),
    60_000
  )
})

describe("a busy session", () => {
  /** Which session is lent the first time, and after 5000 uses: at once, after 59 seconds, and twice after 61. */
  const lent = (maxUses: number | undefined, multiplex: boolean) =>
    Effect.gen(function*() {
      const pool = yield* Pg.Pool.Pool
      const next = pool.use(({ id }) => Effect.succeed(id))
      const first = yield* next
      yield* Effect.forEach(Array.from({ length: 4999 }), () => next, { discard: true })
      const atOnce = yield* next
      yield* TestClock.adjust("59 seconds")
      const within = yield* next
      yield* TestClock.adjust("2 seconds")
      const ids = [first, atOnce, within, yield* next, yield* next]
      return ids.map((id) => Array.from(new Set(ids)).indexOf(id))
    }).pipe(Effect.provide(Layer.provideMerge(
      Pg.Pool.layer({
        stream: makeMemoryServer().stream,
        username: "nobody",
        max: 2,
        multiplex,
        maxUses,
        validateAfter: "1 hour"
      }),
      Pg.Metrics.layer()
    )))

  for (const multiplex of [false, true]) {
    const how = multiplex ? ", multiplexed" : ""

    it.effect(`is not replaced for its uses in its first minute, if nobody said after how many${how}`, () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* lent(undefined, multiplex), [0, 0, 0, 0, 1])
      }))

    it.effect(`is replaced after maxUses, however young it is${how}`, () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* lent(5000, multiplex), [0, 1, 1, 1, 1])
      }))
  }
})

describe("a session that nobody comes across, as those that are used lie above it", () => {
  it.effect("goes at the first checkout after its lifetime, whenever it was opened", () =>
    Effect.gen(function*() {
      const { stream } = makeMemoryServer()
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const total = Effect.map(pool.stats, ({ total }) => total)
        const visit = pool.use(() => Effect.void)
        yield* pool.warm(1)
        yield* TestClock.adjust("30 seconds")
        yield* pool.warm(2)
        yield* TestClock.adjust("29 seconds")
        yield* visit
        assert.strictEqual(yield* total, 2)
        yield* TestClock.adjust("1 second")
        yield* visit
        assert.strictEqual(yield* total, 1)

        // None is left of those that the last look saw.
        yield* TestClock.adjust("60 seconds")
        yield* visit
        assert.strictEqual(yield* total, 1)
        yield* TestClock.adjust("30 seconds")
        yield* pool.warm(2)
        yield* TestClock.adjust("29 seconds")
        yield* visit
        assert.strictEqual(yield* total, 2)
        yield* TestClock.adjust("1 second")
        yield* visit
        assert.strictEqual(yield* total, 1)
      }).pipe(Effect.provide(Layer.provideMerge(
        Pg.Pool.layer({
          stream,
          username: "nobody",
          max: 2,
          min: 2,
          idleTimeout: "1 second",
          validateAfter: "1 hour",
          maxLifetime: "1 minute",
          maxLifetimeJitter: 0
        }),
        Pg.Metrics.layer()
      )))
    }))
})

describe("a session that idles since the wall clock was set back", () => {
  it.effect("goes when it has idled for too long, and not when the clock has come to where it was", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(3_600_000)
      const context = yield* Layer.build(Layer.provideMerge(
        Pg.Pool.layer({
          stream: makeMemoryServer().stream,
          username: "nobody",
          max: 3,
          min: 0,
          idleTimeout: "1 minute",
          validateAfter: "1 hour"
        }),
        Pg.Metrics.layer()
      ))
      const pool = Context.get(context, Pg.Pool.Pool)
      const lendBoth = (meanwhile: Effect.Effect<unknown>) =>
        Effect.scoped(Effect.andThen(Effect.andThen(pool.get(), pool.get()), meanwhile))
      yield* pool.warm(3)
      yield* TestClock.adjust("1 second")
      yield* lendBoth(Effect.void)
      yield* TestClock.adjust("1 minute")
      yield* pool.use(() => Effect.void)
      assert.strictEqual(pool.statsUnsafe().total, 2)

      yield* lendBoth(TestClock.setTime(0))
      for (let second = 0; second <= 60; second++) {
        yield* pool.use(() => Effect.void)
        assert.strictEqual(pool.statsUnsafe().total, 2)
        yield* TestClock.adjust("1 second")
      }
      yield* pool.use(() => Effect.void)
      assert.strictEqual(pool.statsUnsafe().total, 1)
    }))
})

/** How often somebody goes through the sessions of a pool, one of which is given, while the work runs. */
const scansOf = <A, E, R>(session: Pg.Pool.PoolSession, work: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const { prototype } = Set
    const original = Object.getOwnPropertyDescriptor(prototype, Symbol.iterator)!
    let count = 0
    Object.defineProperty(prototype, Symbol.iterator, {
      ...original,
      value(this: Set<unknown>) {
        if (this.has(session)) count++
        return this.values()
      }
    })
    return Effect.map(
      Effect.ensuring(work, Effect.sync(() => Object.defineProperty(prototype, Symbol.iterator, original))),
      () => count
    )
  })

describe("a healthy checkout", () => {
  const visits = 100
  const idleTimeout = 60_000

  /** A pool with a cold session below the one that is lent. */
  const setUp = (options: Pg.Pool.Options) =>
    Effect.gen(function*() {
      const context = yield* Layer.build(Layer.provideMerge(
        Pg.Pool.layer({
          stream: makeMemoryServer().stream,
          username: "nobody",
          idleTimeout,
          validateAfter: "1 hour",
          maxLifetime: "1 hour",
          maxLifetimeJitter: 0,
          ...options
        }),
        Pg.Metrics.layer()
      ))
      return Context.get(context, Pg.Pool.Pool)
    })

  /** Lets time go by, in which the session on top is lent now and then. */
  const goOn = (pool: Pg.Pool.Pool["Service"], millis: number) =>
    Effect.replicateEffect(
      Effect.andThen(TestClock.adjust(millis / 20), pool.use(Effect.succeed)),
      20
    )

  const visitAll = (pool: Pg.Pool.Pool["Service"]) =>
    Effect.replicateEffect(pool.use(() => Effect.void), visits, { discard: true })

  it.effect("goes through no sessions while those that idle for long are to be kept", () =>
    Effect.gen(function*() {
      const pool = yield* setUp({ max: 3, min: 3 })
      yield* pool.warm(3)
      const [session] = yield* goOn(pool, 10 * idleTimeout)
      assert.strictEqual(yield* scansOf(session!, visitAll(pool)), 0)
      assert.strictEqual(pool.statsUnsafe().total, 3)
    }))

  it.effect("goes through them once when one may go, and then not before the next one may", () =>
    Effect.gen(function*() {
      const pool = yield* setUp({ max: 3, min: 0 })
      yield* pool.warm(3)
      const [session] = yield* goOn(pool, idleTimeout)
      assert.strictEqual(yield* scansOf(session!, visitAll(pool)), 0)
      assert.strictEqual(pool.statsUnsafe().total, 3)
      yield* TestClock.adjust(1)
      assert.isAbove(yield* scansOf(session!, pool.use(() => Effect.void)), 0)
      assert.strictEqual(pool.statsUnsafe().total, 1)
      assert.strictEqual(yield* scansOf(session!, visitAll(pool)), 0)
    }))

  it.effect("goes through none while somebody holds on to a share of the coldest", () =>
    Effect.gen(function*() {
      const pool = yield* setUp({ max: 2, min: 0, multiplex: true, multiplexConcurrency: 2 })
      const coldest = yield* pool.get()
      yield* pool.warm(2)
      const [session] = yield* goOn(pool, 2 * idleTimeout)
      assert.notStrictEqual(session!.id, coldest.id)
      yield* visitAll(pool)
      assert.strictEqual(yield* scansOf(session!, visitAll(pool)), 0)
      assert.strictEqual(pool.statsUnsafe().total, 2)
    }))
})
