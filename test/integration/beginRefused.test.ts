import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { BeginTransaction, SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { makeProxy } from "./proxy.ts"
import { makeTable } from "./witness.ts"

/** A pool of one session, and a server that takes each BEGIN for a mistake while `isRefusing`. */
const setUp = Effect.gen(function*() {
  const { rows, url } = yield* makeTable
  const proxy = yield* makeProxy(url)
  const server = { isRefusing: true, begins: 0 }
  proxy.onRequest((request) => {
    const at = request.indexOf("BEGIN\0")
    if (at < 0) return "pass"
    server.begins++
    if (server.isRefusing) request.write("BEGIX", at, "latin1")
    return "pass"
  })
  return { rows, server, url: proxy.url }
})

const syntaxError = "42601"

const codeOf = (error: SqlError): string | undefined => Pg.Errors.failureOf(error).sqlState

for (const multiplex of [false, true]) {
  describe(`a transaction whose BEGIN is refused${multiplex ? ", multiplexed" : ""}`, () => {
    const put = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO t VALUES (1)`)
    const nested = Effect.flatMap(SqlClient, (sql) => sql.withTransaction(put))
    const streamed = Effect.flatMap(SqlClient, (sql) => Stream.runDrain(sql`SELECT 1`.stream))
    const firsts = { statement: put, savepoint: nested, stream: streamed }

    for (const [name, first] of Object.entries(firsts)) {
      it.live(`fails as a whole, though the program has caught the failure of its first ${name} and goes on`, () =>
        Effect.gen(function*() {
          const { rows, server, url } = yield* setUp
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const seen: Array<string | undefined> = []
            const caught = <A, R>(effect: Effect.Effect<A, SqlError, R>) =>
              Effect.matchEffect(effect, {
                onFailure: (error) => Effect.sync(() => seen.push(codeOf(error))),
                onSuccess: () => Effect.sync(() => seen.push("worked"))
              })
            const goesOn = sql.withTransaction(Effect.gen(function*() {
              yield* caught(first)
              server.isRefusing = false
              yield* Effect.all([caught(put), caught(put), caught(nested), caught(streamed)], { concurrency: 4 })
            }))
            assert.strictEqual(codeOf(yield* Effect.flip(goesOn)), syntaxError)
            assert.deepStrictEqual(seen, Array.from({ length: 5 }, () => syntaxError))
            assert.strictEqual(yield* rows, 0)
            assert.strictEqual(server.begins, 1)
            // What comes next is a transaction of its own.
            yield* sql.withTransaction(put)
            assert.strictEqual(yield* rows, 1)
          }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
        }))
    }

    it.live("fails, though the program has caught the failure and asks no more", () =>
      Effect.gen(function*() {
        const { rows, url } = yield* setUp
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const failure = yield* Effect.flip(sql.withTransaction(Effect.ignore(put)))
          assert.strictEqual(codeOf(failure), syntaxError)
          assert.strictEqual(yield* rows, 0)
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
      }))

    it.live("gives those that came with the first statement the same answer", () =>
      Effect.gen(function*() {
        const { rows, server, url } = yield* setUp
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const failures = Effect.all([put, put, streamed, nested].map(Effect.flip), { concurrency: 4 })
          const seen: Array<string | undefined> = []
          yield* Effect.exit(sql.withTransaction(Effect.map(failures, (errors) => seen.push(...errors.map(codeOf)))))
          assert.deepStrictEqual(seen, Array.from({ length: 4 }, () => syntaxError))
          assert.deepStrictEqual([yield* rows, server.begins], [0, 1])
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
      }))
  })

  describe(`what comes with BEGIN, when it is refused${multiplex ? ", multiplexed" : ""}`, () => {
    const put = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO t VALUES (1)`)

    it.live("is done without: the first statement, which the server has skipped, runs once", () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        let refused = 0
        proxy.onRequest((request) => {
          const at = request.indexOf("SELECT set_config(")
          if (at >= 0 && refused++ === 0) request.write("SELECT net_config(", at, "latin1")
          return "pass"
        })
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const limit = sql<{ limit: string }>`SELECT current_setting('statement_timeout') AS limit`
          const [first] = yield* Pg.Executor.withDeadline(
            sql.withTransaction(Effect.all([Effect.andThen(put, limit), put], { concurrency: 2 })),
            "5 seconds"
          )
          // By itself it was not refused.
          assert.notStrictEqual(first[0]!.limit, "15s")
          assert.deepStrictEqual([yield* rows, refused], [2, 2])
          yield* Effect.flip(Pg.Executor.withDeadline(
            sql.withTransaction(Effect.andThen(put, Effect.fail("no"))),
            "5 seconds"
          ))
          assert.strictEqual(yield* rows, 2)
        }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, multiplex })))
      }))

    it.live("costs no session when it was BEGIN itself that was refused", () =>
      Effect.gen(function*() {
        const { url } = yield* makeTable
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const before = yield* sql`SELECT pg_backend_pid() AS pid`
          for (let turn = 0; turn < 20; turn++) {
            yield* Effect.flip(
              Pg.Executor.withDeadline(sql.withTransaction(put), "5 seconds").pipe(
                Effect.provideService(BeginTransaction, "BEGIN NONSENSE")
              )
            )
            assert.deepStrictEqual(yield* sql`SELECT pg_backend_pid() AS pid`, before)
          }
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
      }))
  })

  describe(`a first statement that cannot be sent${multiplex ? ", multiplexed" : ""}`, () => {
    it.live("is none: the transaction begins with the next one, if there is one", () =>
      Effect.gen(function*() {
        const { rows, server, url } = yield* setUp
        server.isRefusing = false
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const unsendable = Effect.flip(sql`INSERT INTO t VALUES (${Symbol("no value")})`)
          yield* sql.withTransaction(unsendable)
          assert.strictEqual(server.begins, 0)
          yield* sql.withTransaction(Effect.andThen(unsendable, sql`INSERT INTO t VALUES (1)`))
          assert.deepStrictEqual([yield* rows, server.begins], [1, 1])
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
      }))
  })
}
