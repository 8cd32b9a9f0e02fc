import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { isCancelRequest, makeImpostor, makeProxy } from "./proxy.ts"
import { eventually, makeTable } from "./witness.ts"

const { Deadline, withDeadline } = Pg.Executor

/** A deadline as a platform would give it: a time, and nobody who enforces it. */
const inMillis = (left: number) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.provideService(effect, Deadline, now + left))

const took = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const startedAt = yield* Clock.currentTimeMillis
    const value = yield* effect
    return { value, millis: (yield* Clock.currentTimeMillis) - startedAt }
  })

const exceeded = (error: unknown): Pg.Errors.DeadlineExceeded => {
  const typed = error instanceof Pg.Errors.DeadlineExceeded ? error : Pg.Errors.fromSqlError(error as SqlError)
  assert(typed instanceof Pg.Errors.DeadlineExceeded, String(error))
  return typed
}

const longAgo = 20_000

describe("a deadline of the context", () => {
  const sleep = Effect.flatMap(SqlClient, (sql) => sql`SELECT pg_sleep(20)`)

  const ways = {
    "a statement": sleep,
    "a stream": Effect.flatMap(SqlClient, (sql) => Stream.runDrain(sql`SELECT pg_sleep(20)`.stream)),
    "a transaction": Effect.flatMap(SqlClient, (sql) => sql.withTransaction(sleep)),
    "a statement on a reserved connection": Effect.scoped(
      Effect.flatMap(
        SqlClient,
        (sql) => Effect.flatMap(sql.reserve, (connection) => connection.execute("SELECT pg_sleep(20)", [], undefined))
      )
    ),
    "work that the executor runs": Pg.Executor.run(sleep),
    "a transaction of the executor": Pg.Executor.transaction(sleep)
  }

  for (const [name, work] of Object.entries(ways)) {
    it.live(`ends ${name}, on the server too`, () =>
      Effect.gen(function*() {
        const { url, witness } = yield* makeTable
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* sql`SELECT 1`
          const { millis, value } = yield* took(Effect.flip(inMillis(300)(work)))
          exceeded(value)
          assert.isBelow(millis, longAgo)
          const active = witness.value<number>(
            "SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' AND state = 'active' AND pid <> pg_backend_pid()"
          )
          yield* eventually("the end of the statement", Effect.map(active, (count) => count === 0))
          assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
        }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
      }))
  }

  /** Less than the driver waits for the answer to a CancelRequest. */
  const withoutWaiting = 4_000

  for (const pooler of ["none", "transaction"] as const) {
    it.live(`ends a statement whose CancelRequest gets lost, as RDS Proxy loses them, with pooler "${pooler}"`, () =>
      Effect.gen(function*() {
        const { url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        proxy.onRequest((request) => isCancelRequest(request) ? "drop" : "pass")
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* sql`SELECT 1`
          for (const work of [sleep, sql.withTransaction(sleep)]) {
            const { millis, value } = yield* took(Effect.flip(inMillis(300)(work)))
            exceeded(value)
            assert.isBelow(millis, withoutWaiting)
          }
        }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 2, pooler })))
      }))
  }

  it.live("ends the wait for a session, and says that nothing ran", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        const holder = yield* Effect.forkChild(sleep, { startImmediately: true })
        yield* Effect.sleep(50)
        const { effect, isRetryable } = exceeded(yield* Effect.flip(inMillis(200)(sql`INSERT INTO t VALUES (1)`)))
        assert.deepStrictEqual([effect, isRetryable], ["NotRun", false])
        yield* Fiber.interrupt(holder)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("ends a connect that gets no answer", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("is silent")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const { millis, value } = yield* took(Effect.flip(inMillis(200)(sql`SELECT 1`)))
        assert.strictEqual(exceeded(value).effect, "NotRun")
        assert.isBelow(millis, 5_000)
      }).pipe(Effect.provide(Pg.layer({ url: impostor.url, max: 1, connectTimeout: "20 seconds" })))
    }))

  it.live("is never slept past between attempts", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const { millis, value } = yield* took(Effect.flip(inMillis(1_000)(sql`SELECT 1`)))
        const typed = Pg.Errors.fromSqlError(value)
        assert(typed instanceof Pg.Errors.RetriesExhausted, String(typed))
        assert.strictEqual(typed.stoppedBy, "deadline")
        assert.isAbove(typed.attempts, 0)
        // The wait of 5 s was not begun.
        assert.isBelow(millis, 1_000)
      }).pipe(
        Effect.provide(
          Pg.layer({ url: impostor.url, max: 1, breaker: false, retry: { base: 5_000, cap: 5_000, jitter: "none" } })
        )
      )
    }))

  it.live("that has passed lets nothing begin", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        for (const work of [sql`INSERT INTO t VALUES (1)`, sql.withTransaction(sql`INSERT INTO t VALUES (1)`)]) {
          assert.strictEqual(exceeded(yield* Effect.flip(inMillis(-1)(work))).effect, "NotRun")
        }
        assert.strictEqual(proxy.accepted(), 0)
        assert.strictEqual(yield* rows, 0)
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1 })))
    }))

  it.live("is the tighter one of two", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const outer = yield* took(Effect.flip(Pg.Executor.run(sleep, { deadline: "10 seconds" }).pipe(inMillis(200))))
        exceeded(outer.value)
        assert.isBelow(outer.millis, 9_000)
        const inner = yield* took(Effect.flip(Pg.Executor.run(sleep, { deadline: 200 }).pipe(inMillis(10_000))))
        exceeded(inner.value)
        assert.isBelow(inner.millis, 9_000)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})

describe("Executor.withDeadline", () => {
  it.live("bounds all that an effect does, and rolls its transaction back", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const work = sql.withTransaction(Effect.andThen(sql`INSERT INTO t VALUES (1)`, Effect.sleep("20 seconds")))
        const error = yield* Effect.flip(work.pipe(withDeadline(300)))
        assert.strictEqual(exceeded(error).effect, "RolledBack")
        assert.strictEqual(yield* rows, 0)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("says that a statement before the end may have been applied", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const work = Effect.andThen(sql`INSERT INTO t VALUES (1)`, Effect.never)
        const error = yield* Effect.flip(withDeadline(work, 300))
        assert.strictEqual(exceeded(error).effect, "Unknown")
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("can be read by what it bounds, and leaves work alone that is done in time", () =>
    Effect.gen(function*() {
      const left = Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.map(Deadline, (at) => at - now))
      assert.strictEqual(yield* left, Infinity)
      const within = yield* withDeadline(left, "10 seconds")
      assert.isAtMost(within, 10_000)
      assert.isAbove(within, 5_000)
      assert.isAtMost(yield* withDeadline(withDeadline(left, "1 hour"), "10 seconds"), 10_000)
    }))
})

describe("acquireTimeout of a call", () => {
  it.live("bounds its wait for a session", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        const holder = yield* Effect.forkChild(sql`SELECT pg_sleep(20)`, { startImmediately: true })
        yield* Effect.sleep(50)
        const error = yield* Effect.flip(Pg.Executor.run(sql`SELECT 1`, { acquireTimeout: 100 }))
        assert(error instanceof Pg.Errors.AcquireTimeout)
        assert.strictEqual(error.phase, "Queue")
        yield* Fiber.interrupt(holder)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})
