import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { SqlClient } from "effect/sql/SqlClient"
import * as TestClock from "effect/testing/TestClock"
import * as Pg from "../src/index.ts"
import * as Metrics from "../src/Metrics.ts"
import * as Pool from "../src/Pool.ts"
import { makeMemoryServer } from "./memoryServer.ts"

const poolOn = (options: Pool.Options) => {
  const server = makeMemoryServer()
  const layer = Pool.layer({ username: "somebody", stream: server.stream, ...options })
  return Effect.map(
    Layer.build(Layer.provideMerge(layer, Metrics.layer())),
    (context) => ({ context, server })
  ).pipe(
    Effect.flatMap(({ context, server }) =>
      Effect.provide(
        Effect.gen(function*() {
          return { pool: yield* Pool.Pool, server }
        }),
        context
      )
    )
  )
}

const failing = <A, E, R>(work: Effect.Effect<A, E, R>) => Effect.flip(work)

describe("maxWaiting", () => {
  it.live("0 lets nobody wait behind an exclusive lease of a session that is shared otherwise", () =>
    Effect.gen(function*() {
      const { pool } = yield* poolOn({ max: 1, multiplex: true, multiplexConcurrency: 32, maxWaiting: 0 })
      yield* pool.reserve()
      const error = yield* failing(pool.use(() => Effect.void, { timeout: 200 }))
      assert.strictEqual(error._tag, "PoolSaturated")
    }))

  it.live("0 lets every share of a session be lent, and no more", () =>
    Effect.gen(function*() {
      const { pool } = yield* poolOn({ max: 2, multiplex: true, multiplexConcurrency: 2, maxWaiting: 0 })
      yield* Effect.forEach([1, 2, 3, 4], () => pool.get(), { concurrency: 4 })
      assert.strictEqual((yield* failing(pool.use(() => Effect.void, { timeout: 200 })))._tag, "PoolSaturated")
    }))

  it.live("0 lets up to 100 share a session, but more than 32 only when there are as many on each of max sessions", () =>
    Effect.gen(function*() {
      const { pool } = yield* poolOn({ max: 2, multiplex: true, maxWaiting: 0 })
      const borrowers = new Map<number, number>()
      const lend = (count: number) =>
        Effect.map(
          Effect.forEach(Array.from({ length: count }), () =>
            Effect.map(pool.get(), ({ id }) => {
              borrowers.set(id, (borrowers.get(id) ?? 0) + 1)
            }), { discard: true }),
          () => Array.from(borrowers.values()).sort((one, other) => one - other)
        )
      assert.deepStrictEqual(yield* lend(32), [32])
      assert.deepStrictEqual(yield* lend(32), [32, 32])
      assert.deepStrictEqual(yield* lend(68), [32, 100])
      assert.deepStrictEqual(yield* lend(68), [100, 100])
      assert.strictEqual((yield* failing(pool.use(() => Effect.void, { timeout: 200 })))._tag, "PoolSaturated")
    }))

  it.live("counts those as well who wait for a suspended pool", () =>
    Effect.gen(function*() {
      const { pool } = yield* poolOn({ max: 4, maxWaiting: 1 })
      yield* pool.suspend
      const first = yield* Effect.forkChild(pool.use(() => Effect.succeed("served")), { startImmediately: true })
      assert.strictEqual((yield* failing(pool.use(() => Effect.void, { timeout: 200 })))._tag, "PoolSaturated")
      yield* pool.resume
      assert.strictEqual(yield* Fiber.join(first), "served")
    }))
})

describe("what is said of a wait", () => {
  it.live("does not blame a connect that failed before another one worked", () =>
    Effect.gen(function*() {
      const { pool, server } = yield* poolOn({ max: 1 })
      server.manner = "refuses"
      yield* failing(pool.use(() => Effect.void))
      server.manner = "accepts"
      yield* Effect.retry(Effect.scoped(pool.reserve()), Schedule.spaced(20))
      yield* pool.reserve()
      const error = yield* failing(pool.use(() => Effect.void, { timeout: 20 }))
      assert.strictEqual(error._tag, "AcquireTimeout")
      if (error._tag === "AcquireTimeout") {
        assert.strictEqual(error.phase, "Queue")
        assert.isNull(error.lastConnectFailure)
      }
    }))

  it.live("counts the one for a session together with the one for those who share it", () =>
    Effect.gen(function*() {
      const { pool } = yield* poolOn({ max: 1, multiplex: true, multiplexConcurrency: 2 })
      yield* pool.use(() => Effect.void)
      const holder = yield* Effect.forkChild(pool.use(({ connection }) => connection.query("SELECT 'hold'")), {
        startImmediately: true
      })
      yield* Effect.forkChild(pool.use(() => Effect.sleep(150)), { startImmediately: true })
      const error = yield* failing(Effect.scoped(pool.reserve({ timeout: 250 })))
      assert.strictEqual(error._tag, "AcquireTimeout")
      if (error._tag === "AcquireTimeout") assert.isAtLeast(error.waited, 249)
      yield* Fiber.interrupt(holder)
    }))
})

describe("a session that was given back in the future", () => {
  it.effect("since the wall clock was set back, is checked: nobody knows for how long it has been idle", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(3_600_000)
      const { pool, server } = yield* poolOn({ max: 1 })
      yield* pool.use(() => Effect.void)
      yield* TestClock.setTime(0)
      const before = server.activity()
      yield* pool.use(() => Effect.void)
      assert.isAbove(server.activity(), before)
    }))
})

describe("a checkout that takes an answer of late for a proof", () => {
  /** Asked by a session that was opened longer ago. */
  const statement = (sql: SqlClient) =>
    Effect.andThen(Effect.andThen(sql`SELECT 1`, TestClock.adjust(1000)), sql`SELECT 1`)

  const cases: ReadonlyArray<
    readonly [
      session: string,
      options: Pool.Options,
      prepare: (pool: Pool.Pool["Service"], sql: SqlClient) => Effect.Effect<unknown, unknown>,
      proofs: number
    ]
  > = [
    [
      "takes a session that has just answered",
      {},
      (_, sql) => Effect.andThen(statement(sql), TestClock.adjust(400)),
      0
    ],
    [
      "proves one that has answered longer ago",
      {},
      (_, sql) => Effect.andThen(statement(sql), TestClock.adjust(600)),
      1
    ],
    [
      "proves one that came back just now, and was held without a statement",
      {},
      (pool, sql) => Effect.andThen(statement(sql), pool.use(() => TestClock.adjust(60_000))),
      1
    ],
    ["takes one that has just been opened", {}, (pool) => pool.warm(1), 0],
    ["takes one that was lent since, but asked nothing", {}, (pool) => pool.use(() => Effect.void), 0],
    ["proves one that was opened longer ago", {}, (pool) => Effect.andThen(pool.warm(1), TestClock.adjust(600)), 1],
    ["proves one that only a pooler has opened", { pooler: "transaction" }, (pool) => pool.warm(1), 1],
    [
      "proves one that only a pooler has opened, though it was lent since",
      { pooler: "transaction" },
      (pool) => pool.use(() => Effect.void),
      1
    ],
    [
      "takes one that has just answered through a pooler",
      { pooler: "transaction" },
      (_, sql) => Effect.andThen(statement(sql), TestClock.adjust(400)),
      0
    ]
  ]
  for (const [does, options, prepare, proofs] of cases) {
    it.effect(does, () =>
      Effect.gen(function*() {
        yield* TestClock.setTime(3_600_000)
        const server = makeMemoryServer()
        const layer = Pg.layer({
          username: "somebody",
          stream: server.stream,
          max: 1,
          validateAfter: "1 hour",
          prepare: false,
          ...options
        })
        const context = yield* Layer.build(layer)
        const pool = Context.get(context, Pool.Pool)
        yield* prepare(pool, Context.get(context, SqlClient))
        const before = server.statements()
        yield* pool.use(() => Effect.void, { prove: true, provedFor: 500 })
        assert.strictEqual(server.statements() - before, proofs)
      }))
  }
})
