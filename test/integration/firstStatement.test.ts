import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { type Link, makeProxy } from "./proxy.ts"
import { ended, eventually, makeTable } from "./witness.ts"

/** A server whose answers to what has `word` in it get lost, as long as `losses` lasts, and a count of how often it came. */
const setUp = Effect.gen(function*() {
  const { rows, url, witness } = yield* makeTable
  yield* witness.query("CREATE SEQUENCE runs")
  const proxy = yield* makeProxy(url)
  const lost: Array<Link> = []
  const state = { word: "INSERT", losses: 1, seen: 0 }
  proxy.onRequest((request, link) => {
    if (!request.includes(state.word)) return "pass"
    state.seen++
    if (state.losses-- > 0) {
      link.mute()
      lost.push(link)
    }
    return "pass"
  })
  const runs = witness.value<number>("SELECT CASE WHEN is_called THEN last_value ELSE 0 END::int FROM runs")
  return { lost, rows, runs, state, url: proxy.url, witness }
})

const insert = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO t SELECT nextval('runs')`)
const transact = <A, E, R>(body: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient, (sql) => sql.withTransaction(body))

for (const multiplex of [false, true]) {
  const options = { max: 1, multiplex, retry: { base: 0, jitter: "none" } } as const

  describe(`the first statement of a transaction, lost before BEGIN was answered${multiplex ? ", multiplexed" : ""}`, () => {
    it.live("runs once more, and its first run is rolled back, with all that a rollback undoes", () =>
      Effect.gen(function*() {
        const { lost, rows, runs, state, url } = yield* setUp
        yield* Effect.gen(function*() {
          const fiber = yield* Effect.forkChild(transact(insert))
          yield* eventually("the first run", Effect.map(runs, (count) => count === 1))
          for (const link of lost) link.cut()
          assert.strictEqual((yield* ended(fiber))._tag, "Success")
          assert.strictEqual(yield* rows, 1)
          // What a rollback leaves: the sequence goes on.
          assert.deepStrictEqual([yield* runs, state.seen], [2, 2])
        }).pipe(Effect.provide(Pg.layer({ ...options, url })))
      }))

    it.live("gets the advisory lock that its first run has left with its session", () =>
      Effect.gen(function*() {
        const { lost, state, url, witness } = yield* setUp
        state.word = "pg_advisory_lock"
        yield* Effect.gen(function*() {
          const fiber = yield* Effect.forkChild(
            transact(Effect.flatMap(SqlClient, (sql) => sql`SELECT pg_advisory_lock(1)`))
          )
          const locked = witness.query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted")
          yield* eventually("the first lock", Effect.map(locked, ({ length }) => length === 1))
          for (const link of lost) link.cut()
          assert.strictEqual((yield* ended(fiber))._tag, "Success")
          assert.strictEqual(state.seen, 2)
        }).pipe(Effect.provide(Pg.layer({ ...options, url })))
      }))

    for (const statement of ["PREPARE TRANSACTION 'x'", "COMMIT", "COMMIT AND CHAIN"]) {
      it.live(`does not run again when it is ${statement}, of which a trace may be left`, () =>
        Effect.gen(function*() {
          const { lost, state, url } = yield* setUp
          state.word = statement
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const fiber = yield* Effect.forkChild(transact(sql.unsafe(statement).unprepared))
            yield* eventually("the loss", Effect.sync(() => lost.length === 1))
            for (const link of lost) link.cut()
            const error = yield* Effect.flip(Fiber.join(fiber))
            assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "OutcomeUnknown")
            assert.strictEqual(state.seen, 1)
          }).pipe(Effect.provide(Pg.layer({ ...options, url })))
        }))
    }

    it.live("cannot commit by itself", () =>
      Effect.gen(function*() {
        const { rows, runs, state, url, witness } = yield* setUp
        state.losses = 0
        yield* witness.query("CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN INSERT INTO t VALUES (1); COMMIT; END'")
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const refusals = {
            "CALL p()": "2D000",
            "DO 'BEGIN INSERT INTO t VALUES (1); COMMIT; END'": "2D000",
            "VACUUM t": "25001",
            "CREATE INDEX CONCURRENTLY i ON t (n)": "25001"
          }
          for (const [statement, code] of Object.entries(refusals)) {
            const error = yield* Effect.flip(transact(sql.unsafe(statement).unprepared))
            assert.strictEqual(Pg.Errors.failureOf(error).sqlState, code)
          }
          assert.deepStrictEqual([yield* rows, yield* runs], [0, 0])
        }).pipe(Effect.provide(Pg.layer({ ...options, url })))
      }))

    it.live("does not run again where nothing is repeated", () =>
      Effect.gen(function*() {
        const { lost, rows, runs, state, url } = yield* setUp
        yield* Effect.gen(function*() {
          const fiber = yield* Effect.forkChild(transact(insert))
          yield* eventually("the first run", Effect.map(runs, (count) => count === 1))
          for (const link of lost) link.cut()
          const error = yield* Effect.flip(Fiber.join(fiber))
          assert.notStrictEqual(Pg.Errors.fromSqlError(error)?._tag, "OutcomeUnknown")
          assert.deepStrictEqual([yield* rows, yield* runs, state.seen], [0, 1, 1])
        }).pipe(Effect.provide(Pg.layer({ ...options, url, retry: false })))
      }))

    it.live("does not run again when it was we who gave up on its answer", () =>
      Effect.gen(function*() {
        const { rows, runs, state, url } = yield* setUp
        yield* Effect.gen(function*() {
          const error = yield* Effect.flip(transact(insert))
          assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "StatementTimeout")
          assert.deepStrictEqual([yield* rows, yield* runs, state.seen], [0, 1, 1])
        }).pipe(Effect.provide(Pg.layer({ ...options, url, queryTimeout: 300, statementTimeout: 200 })))
      }))
  })

  describe(`a transaction whose first statement is a stream${multiplex ? ", multiplexed" : ""}`, () => {
    it.live("has the limits of its deadline, and its COMMIT can be looked up", () =>
      Effect.gen(function*() {
        const { lost, rows, state, url } = yield* setUp
        state.word = "COMMIT"
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const millis = sql<{ millis: number }>`
            INSERT INTO t SELECT (extract(epoch FROM current_setting('statement_timeout')::interval) * 1000)::int
            RETURNING n AS millis`
          const fiber = yield* Effect.forkChild(Pg.Executor.transaction(Stream.runCollect(millis.stream), {
            deadline: 10_000,
            resolveCommit: true
          }))
          yield* eventually("the COMMIT", Effect.map(rows, (count) => count === 1))
          for (const link of lost) link.cut()
          const exit = yield* ended(fiber)
          assert(Exit.isSuccess(exit), String(exit))
          assert.isAtMost(exit.value[0]!.millis, 11_000)
          assert.deepStrictEqual([yield* rows, state.seen], [1, 1])
        }).pipe(Effect.provide(Pg.layer({ ...options, url })))
      }))
  })
}
