import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Redacted from "effect/Redacted"
import { BeginTransaction, SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { makeProxy } from "./proxy.ts"
import { eventually, makeTable } from "./witness.ts"

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

/** A server that refuses what comes with BEGIN, and gets the ROLLBACK after it when it is let go. */
const holdRollback = Effect.fnUntraced(function*(url: Redacted.Redacted) {
  const proxy = yield* makeProxy(url)
  let deliver: (() => void) | undefined
  let rollbacks = 0
  proxy.onRequest((request, link) => {
    const at = request.indexOf("SELECT set_config(")
    if (at >= 0) request.write("SELECT net_config(", at, "latin1")
    if (!request.includes("ROLLBACK") || ++rollbacks > 1) return "pass"
    const held = Buffer.from(request)
    deliver = () => link.deliver(held)
    return "drop"
  })
  const holds = eventually("the ROLLBACK", Effect.sync(() => deliver !== undefined))
  const letGo = Effect.sync(() => deliver?.())
  /** In the moment when the ROLLBACK is on its way. */
  const interrupt = Effect.fnUntraced(function*(fiber: Fiber.Fiber<unknown, unknown>) {
    yield* holds
    const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
    yield* letGo
    yield* Fiber.join(interruption)
  })
  return { url: proxy.url, holds, letGo, interrupt, rollbacks: () => rollbacks }
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

    it.live("is done without each time, by a server that refuses it each time", () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        let refused = 0
        proxy.onRequest((request) => {
          const at = request.indexOf("SELECT set_config(")
          if (at >= 0) {
            refused++
            request.write("SELECT net_config(", at, "latin1")
          }
          return "pass"
        })
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const bound = Pg.Executor.withDeadline(sql.withTransaction(put), "5 seconds")
          yield* bound
          yield* bound
          assert.deepStrictEqual([yield* rows, refused], [2, 2])
        }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, multiplex })))
      }))

    it.live("leaves a transaction open: what is lost in it has been rolled back", () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        let refused = 0
        proxy.onRequest((request, link) => {
          const at = request.indexOf("pg_current_xact_id()")
          if (at >= 0) {
            refused++
            request.write("no_current_xact_id()", at, "latin1")
          }
          if (!request.includes("SELECT 4711")) return "pass"
          link.cut()
          return "drop"
        })
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const error = yield* Effect.flip(
            Pg.Executor.transaction(Effect.andThen(put, sql`SELECT 4711`), { resolveCommit: true, retry: false })
          )
          assert.notStrictEqual(error._tag, "OutcomeUnknown")
          assert.deepStrictEqual([yield* rows, refused], [0, 2])
        }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, multiplex })))
      }))

    it.live("is no refusal for a statement that comes while BEGIN is sent once more", () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const server = yield* holdRollback(url)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const late = Effect.gen(function*() {
            yield* server.holds
            const fiber = yield* Effect.forkChild(put, { startImmediately: true })
            yield* server.letGo
            yield* Fiber.join(fiber)
          })
          yield* Pg.Executor.withDeadline(
            sql.withTransaction(Effect.all([put, late], { concurrency: 2 })),
            "5 seconds"
          )
          assert.strictEqual(yield* rows, 2)
        }).pipe(Effect.provide(Pg.layer({ url: server.url, max: 1, multiplex })))
      }))

    it.live("is rolled back when it is interrupted before BEGIN is sent once more", () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const server = yield* holdRollback(url)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const bound = Pg.Executor.withDeadline(sql.withTransaction(put), "5 seconds")
          const fiber = yield* Effect.forkChild(bound, { startImmediately: true })
          yield* server.interrupt(fiber)
          assert.strictEqual(server.rollbacks(), 2)
          yield* sql.withTransaction(put)
          assert.strictEqual(yield* rows, 1)
        }).pipe(Effect.provide(Pg.layer({ url: server.url, max: 1, multiplex })))
      }))

    it.live("lets a program that goes on after such an interruption apply nothing", () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const server = yield* holdRollback(url)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const goesOn = Effect.gen(function*() {
            const fiber = yield* Effect.forkChild(put, { startImmediately: true })
            yield* server.interrupt(fiber)
            yield* Effect.flip(put)
          })
          yield* Effect.flip(Pg.Executor.withDeadline(sql.withTransaction(goesOn), "5 seconds"))
          assert.strictEqual(yield* rows, 0)
          yield* sql.withTransaction(put)
          assert.strictEqual(yield* rows, 1)
        }).pipe(Effect.provide(Pg.layer({ url: server.url, max: 1, multiplex })))
      }))

    it.live("is sent to another session when the server ends this one in it", () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        let ended = 0
        proxy.onRequest((request) => {
          const at = request.indexOf("SELECT set_config(")
          if (at < 0 || ended++ > 0) return "pass"
          const end = "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)"
          request.write(end.padEnd(request.indexOf(0, at) - at), at, "latin1")
          return "pass"
        })
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* Pg.Executor.withDeadline(sql.withTransaction(put), "5 seconds")
          assert.deepStrictEqual([yield* rows, ended], [1, 2])
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
