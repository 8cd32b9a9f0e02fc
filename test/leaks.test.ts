/** Who holds a session for too long is told of, by name. The server is in this process. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as Pg from "../src/index.ts"
import { makeMemoryServer } from "./memoryServer.ts"

interface Line {
  readonly level: string
  readonly text: string
  readonly about: Readonly<Record<string, unknown>>
}

/** A pool whose log lines are collected. */
const setUp = Effect.fnUntraced(function*(options?: Omit<Pg.Pool.Options, "url" | "stream">) {
  const lines: Array<Line> = []
  const logger = Logger.make(({ fiber, logLevel, message }) => {
    const about = fiber.getRef(References.CurrentLogAnnotations)
    lines.push({ level: logLevel, text: String(message), about })
  })
  const clock = yield* Clock.Clock
  let sleepers = 0
  const counting: Clock.Clock = {
    ...clock,
    sleep: (duration) =>
      Effect.acquireUseRelease(
        Effect.sync(() => sleepers++),
        () => clock.sleep(duration),
        () => Effect.sync(() => sleepers--)
      )
  }
  const scope = yield* Scope.fork(yield* Effect.scope)
  const context = yield* Layer.build(Layer.provideMerge(
    Pg.Pool.layer({
      stream: makeMemoryServer().stream,
      username: "nobody",
      prepare: false,
      max: 4,
      leakThreshold: "30 seconds",
      ...options
    }),
    Pg.Metrics.layer({ name: "shop" })
  )).pipe(
    Scope.provide(scope),
    Effect.provide(Logger.layer([logger])),
    Effect.provideService(Clock.Clock, counting)
  )
  const pool = yield* Effect.provide(Pg.Pool.Pool, context)
  // A connect takes turns of the event loop, and not the clock's time.
  yield* pool.warm(1)
  return { lines, pool, sleepers: Effect.sync(() => sleepers), close: Scope.close(scope, Exit.void) }
})

describe("a lease that is held for longer than leakThreshold", () => {
  const leases = [
    ["use", (pool: Pg.Pool.Pool["Service"]) => pool.use(() => Effect.never)],
    ["get", (pool: Pg.Pool.Pool["Service"]) => Effect.scoped(Effect.andThen(pool.get(), Effect.never))],
    ["reserve", (pool: Pg.Pool.Pool["Service"]) => Effect.scoped(Effect.andThen(pool.reserve(), Effect.never))]
  ] as const

  for (const [how, lease] of leases) {
    it.effect(`is told of once, with the fiber, the span and the call site that took it: ${how}`, () =>
      Effect.gen(function*() {
        const { lines, pool } = yield* setUp()
        const placeOrder = Effect.fn("placeOrder")(function*() {
          return yield* Effect.withSpan(lease(pool), "borrow")
        })
        const fiber = yield* Effect.forkScoped(placeOrder(), { startImmediately: true })
        yield* TestClock.adjust("29 seconds")
        assert.deepStrictEqual(lines, [])
        yield* TestClock.adjust("1 second")
        assert.strictEqual(lines.length, 1)
        const [line] = lines
        assert.strictEqual(line?.level, "Warn")
        assert.match(line?.text ?? "", /held for longer than leakThreshold/)
        assert.strictEqual(line?.about["db.client.connection.pool.name"], "shop")
        assert.strictEqual(line?.about["db.connection.held_ms"], 30_000)
        assert.strictEqual(line?.about["db.connection.holder.fiber"], fiber.id)
        assert.strictEqual(line?.about["event.name"], "db.pool.leak")
        assert.strictEqual(line?.about["db.connection.holder.span"], "borrow")
        assert.match(String(line?.about["trace_id"]), /^[0-9a-f]{32}$/)
        assert.match(line?.text ?? "", /placeOrder/)
        assert.include(String(line?.about["db.connection.holder.at"]), "placeOrder")
        assert.include(String(line?.about["db.connection.holder.at"]), "leaks.test.ts")
        yield* TestClock.adjust("10 minutes")
        assert.strictEqual(lines.length, 1)
        assert.strictEqual((yield* pool.stats).oldestLease, 630_000)
      }))
  }

  it.effect("is told of again when it comes back after all, with how long that took", () =>
    Effect.gen(function*() {
      const { lines, pool } = yield* setUp()
      const scope = yield* Scope.make()
      yield* Scope.provide(pool.reserve(), scope)
      yield* TestClock.adjust("45 seconds")
      yield* Scope.close(scope, Exit.void)
      yield* Effect.yieldNow
      assert.deepStrictEqual(lines.map(({ level }) => level), ["Warn", "Info"])
      assert.match(lines[1]!.text, /come back/)
      assert.strictEqual(lines[1]!.about["db.connection.held_ms"], 45_000)
      assert.strictEqual(lines[1]!.about["event.name"], "db.pool.leak_over")
      assert.isDefined(lines[0]!.about["db.connection.id"])
      assert.strictEqual(lines[1]!.about["db.connection.id"], lines[0]!.about["db.connection.id"])
      assert.strictEqual((yield* pool.stats).oldestLease, 0)
    }))

  it.effect("is told apart from those that end in time, however many there are", () =>
    Effect.gen(function*() {
      const { lines, pool } = yield* setUp()
      const late = yield* Scope.make()
      yield* Scope.provide(pool.get(), late)
      for (let turn = 0; turn < 20; turn++) {
        const scope = yield* Scope.make()
        yield* Scope.provide(pool.get(), scope)
        yield* TestClock.adjust("5 seconds")
        yield* Scope.close(scope, Exit.void)
      }
      assert.strictEqual(lines.length, 1)
      const second = yield* Scope.make()
      yield* Scope.provide(pool.get(), second)
      yield* TestClock.adjust("31 seconds")
      assert.deepStrictEqual(lines.map(({ level }) => level), ["Warn", "Warn"])
      yield* Scope.close(late, Exit.void)
      yield* Scope.close(second, Exit.void)
      yield* Effect.yieldNow
      assert.deepStrictEqual(lines.map(({ level }) => level), ["Warn", "Warn", "Info", "Info"])
    }))

  it.effect("says how a call site can be had when there is none", () =>
    Effect.gen(function*() {
      const { lines, pool } = yield* setUp()
      yield* Effect.forkScoped(pool.use(() => Effect.never), { startImmediately: true })
      yield* TestClock.adjust("30 seconds")
      assert.notProperty(lines[0]?.about, "db.connection.holder.span")
      assert.notProperty(lines[0]?.about, "db.connection.holder.at")
      assert.match(lines[0]?.text ?? "", /Effect\.fn/)
    }))
})

describe("watching for leaks", () => {
  it.effect("needs a timer while something is lent, and none when nothing is", () =>
    Effect.gen(function*() {
      const { pool, sleepers } = yield* setUp()
      yield* pool.warm(2)
      assert.strictEqual(yield* sleepers, 0)
      const first = yield* Scope.make()
      const second = yield* Scope.make()
      yield* Scope.provide(pool.get(), first)
      yield* Scope.provide(pool.get(), second)
      assert.strictEqual(yield* sleepers, 1)
      yield* Scope.close(first, Exit.void)
      assert.strictEqual(yield* sleepers, 1)
      yield* Scope.close(second, Exit.void)
      yield* Effect.yieldNow
      assert.strictEqual(yield* sleepers, 0)
    }))

  it.effect("ends with the pool, whoever still believes to hold a session", () =>
    Effect.gen(function*() {
      const { close, lines, pool, sleepers } = yield* setUp({ closeTimeout: 0 })
      yield* Effect.forkScoped(pool.use(() => Effect.never), { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      const closing = yield* Effect.forkScoped(close)
      yield* TestClock.adjust("5 seconds")
      assert.isDefined(closing.pollUnsafe())
      assert.strictEqual(yield* sleepers, 0)
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(lines, [])
    }))

  it.effect("is off by default", () =>
    Effect.gen(function*() {
      const { lines, pool, sleepers } = yield* setUp({ leakThreshold: undefined })
      yield* Effect.forkScoped(pool.use(() => Effect.never), { startImmediately: true })
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(lines, [])
      assert.strictEqual((yield* pool.stats).oldestLease, 3_600_000)
      assert.strictEqual(yield* sleepers, 0)
    }))
})
