import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { eventually, makeTable } from "./witness.ts"

/** A pool whose circuit has just closed: five failures, the open time, and one probe. */
const recovering = Effect.gen(function*() {
  const sql = yield* SqlClient
  const breaker = yield* Pg.Breaker.Breaker
  const now = yield* Clock.currentTimeMillis
  for (let source = 1; source <= 5; source++) {
    const permit = breaker.closedPermitUnsafe()
    if (permit === undefined) return assert.fail("the circuit was not closed")
    breaker.settleUnsafe(permit, "Failure", now, { code: "ECONNRESET", source: 1_000_000 + source })
  }
  yield* eventually(
    "the circuit may be probed",
    Effect.map(breaker.state, (state) => state._tag === "Open" && state.retryAfter === 0)
  )
  yield* sql`SELECT 1`
  assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0, limit: 1 })
  return { breaker, sql, executor: yield* Pg.Executor.Executor, pool: yield* Pg.Pool.Pool }
})

const layer = (url: Redacted.Redacted, breaker?: Pg.Breaker.Options) =>
  Pg.layer({ url, max: 8, retry: false, breaker: { openFor: "3 seconds", jitter: "none", ...breaker } })

describe("a pool whose circuit has just closed", () => {
  it.live("30: is asked by 1, 2, 4 and 8 of a hundred waiting callers at a time, and answers all", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const { breaker, executor, sql } = yield* recovering
        const statement = sql<{ started: number; ended: number }>`
          SELECT extract(epoch FROM started)::float8 AS started, extract(epoch FROM clock_timestamp())::float8 AS ended
          FROM (SELECT clock_timestamp() AS started, pg_sleep(0.03) OFFSET 0) AS work`
        const rows = yield* Effect.forEach(Array.from({ length: 100 }), () => executor.run(statement), {
          concurrency: "unbounded"
        })
        const runs = rows.flat().sort((a, b) => a.started - b.started)
        assert.strictEqual(runs.length, 100)
        const together = runs.map(({ started }, index) =>
          runs.slice(0, index + 1).filter(({ ended }) => ended > started).length
        )
        assert.isAtMost(Math.max(...together.slice(0, 1)), 1)
        assert.isAtMost(Math.max(...together.slice(1, 3)), 2)
        assert.isAtMost(Math.max(...together.slice(3, 7)), 4)
        assert.isAtMost(Math.max(...together), 8)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }).pipe(Effect.provide(layer(url)))
    }))

  it.live("is not held up by a transaction that takes its time", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* recovering
        yield* sql.withTransaction(Effect.gen(function*() {
          yield* sql`INSERT INTO t VALUES (1)`
          // Its place was given back when it got its session.
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0, limit: 2 })
        }))
        assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM t"), 1)
      }).pipe(Effect.provide(layer(url)))
    }))

  it.live("gets as many at a time as it has sessions, and is named by its server, unless told otherwise", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const limits = Effect.gen(function*() {
        const { breaker, sql } = yield* recovering
        const seen = new Set<number | undefined>()
        for (let i = 0; i < 20; i++) {
          const state = yield* breaker.state
          seen.add(state._tag === "Closed" ? state.limit : undefined)
          yield* sql`SELECT 1`
        }
        return { key: breaker.key, limits: [...seen] }
      })
      const byDefault = yield* Effect.provide(limits, layer(url))
      assert.match(byDefault.key, /^[^/]+:\d+\/\w+$/)
      assert.deepStrictEqual(byDefault.limits, [1, 2, 4, 8, undefined])
      const told = yield* Effect.provide(limits, layer(url, { key: "orders", ramp: 2 }))
      assert.deepStrictEqual(told, { key: "orders", limits: [1, 2, undefined] })
    }))
})

describe("a pool whose circuit is held by hand", () => {
  it.live("31: asks nothing while isolated, and lets the transaction that was under way come to its end", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const breaker = yield* Pg.Breaker.Breaker
        const { snapshot } = yield* Pg.Metrics.Metrics
        yield* Effect.scoped(
          sql.withTransaction(Effect.gen(function*() {
            yield* sql`INSERT INTO t VALUES (1)`
            yield* breaker.isolate("moving to another host")
            yield* sql`INSERT INTO t VALUES (2)`
            assert.strictEqual((yield* snapshot).breakerState, "Isolated")
          })).pipe(
            Effect.andThen(Effect.flip(sql`INSERT INTO t VALUES (3)`)),
            Effect.tap((error) =>
              Effect.sync(() => assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "CircuitIsolated"))
            )
          )
        )
        yield* sql`INSERT INTO t VALUES (4)`
        assert.strictEqual((yield* snapshot).breakerState, "Closed")
        assert.strictEqual(
          yield* witness.value<string>("SELECT string_agg(n::text, ',' ORDER BY n) FROM t"),
          "1,2,4"
        )
      }).pipe(Effect.provide(layer(url)))
    }))

  it.live("32: tells how it would have fared while it is disabled", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const breaker = yield* Pg.Breaker.Breaker
        const { snapshot } = yield* Pg.Metrics.Metrics
        yield* breaker.disable
        yield* sql`SELECT 1`
        const { breakerState, breakerTransitions } = yield* snapshot
        assert.deepStrictEqual([breakerState, breakerTransitions.Disabled], ["Disabled", 1])
      }).pipe(Effect.scoped, Effect.provide(layer(url)))
    }))
})
