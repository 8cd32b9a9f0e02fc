import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { MaxOpsBeforeYield } from "effect/Scheduler"
import { BeginTransaction, SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { makeProxy } from "./proxy.ts"
import { eventually, makeTable, soon } from "./witness.ts"

/** Each of these has gone wrong once. */

const { Deadline, run, transaction } = Pg.Executor

const instantly = { retry: { base: 0, jitter: "none" }, prepare: false } as const

const insert = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO t VALUES (1)`)

const byHand = (statement: string) => Effect.flatMap(SqlClient, (sql) => sql.unsafe(statement))

describe("a transaction that its body has ended by hand", () => {
  for (const statement of ["ROLLBACK AND CHAIN", "COMMIT AND CHAIN"]) {
    it.live(`(${statement}) is another one, whose lost COMMIT is not looked up by the id of the first`, () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        let commits = 0
        proxy.onRequest((request, link) => {
          if (!request.includes("COMMIT") || request.includes("CHAIN")) return "pass"
          if (commits++ > 0) return "pass"
          link.mute()
          setTimeout(link.cut, 50)
          return "pass"
        })
        yield* Effect.gen(function*() {
          const error = yield* Effect.flip(transaction(
            Effect.all([insert, byHand(statement), insert], { discard: true }),
            { resolveCommit: true }
          ))
          assert.strictEqual(error._tag, "OutcomeUnknown")
          assert.isAtMost(yield* rows, 2)
        }).pipe(Effect.provide(Pg.layer({ ...instantly, url: proxy.url, max: 1 })))
      }))
  }
})

describe("what rides along with BEGIN", () => {
  it.live("is waited for no longer than a statement, and leaves nothing on the server", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        // Statistics are read through a view, which somebody may have locked.
        yield* Effect.scoped(Effect.gen(function*() {
          const holder = yield* Effect.forkScoped(sql.withTransaction(
            Effect.andThen(byHand("LOCK TABLE pg_stat_bgwriter IN ACCESS EXCLUSIVE MODE"), Effect.never)
          ))
          yield* Effect.sleep(200)
          const startedAt = yield* Clock.currentTimeMillis
          const error = yield* Effect.flip(transaction(insert, { resolveCommit: true, deadline: 500, retry: false }))
          assert.strictEqual(error._tag, "DeadlineExceeded")
          assert.isBelow((yield* Clock.currentTimeMillis) - startedAt, 4_000)
          yield* Fiber.interrupt(holder)
        }))
        yield* eventually(
          "the end of what was left",
          Effect.map(
            witness.value<number>(
              "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ),
            (count) => count === 0
          )
        )
      }).pipe(Effect.provide(Pg.layer({ url, max: 3 })))
    }))

  it.live("does not mix up the session after a BEGIN that the server refuses", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const refused = transaction(insert, { resolveCommit: true, retry: false }).pipe(
          Effect.provideService(BeginTransaction, "BEGIN ISOLATION LEVEL NONSENSE"),
          Effect.flip
        )
        for (let times = 0; times < 30; times++) {
          const [error] = yield* Effect.all([refused, transaction(insert, { resolveCommit: true })], { concurrency: 2 })
          assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "42601")
        }
        assert.strictEqual(yield* rows, 30)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))
})

describe("a lost COMMIT", () => {
  it.live("is asked about although the same loss has opened the circuit", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      let cuts = 0
      proxy.onRequest((request, link) => {
        if (!request.includes("COMMIT") || cuts++ > 0) return "pass"
        link.mute()
        setTimeout(link.cut, 50)
        return "pass"
      })
      yield* Effect.gen(function*() {
        yield* transaction(insert, { resolveCommit: true, deadline: "10 seconds" })
        const { _tag } = yield* (yield* Pg.Breaker.Breaker).state
        assert.strictEqual(_tag, "Open")
        assert.strictEqual(yield* rows, 1)
      }).pipe(
        Effect.provide(Pg.layer({ ...instantly, url: proxy.url, max: 1, breaker: { failures: 1, openFor: "1 hour" } }))
      )
    }))
})

describe("a deadline", () => {
  it.live("of a stream on a silent peer ends it, and says that it may have been applied", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        proxy.onRequest((_, link) => {
          link.mute()
          return "pass"
        })
        const startedAt = yield* Clock.currentTimeMillis
        const error = yield* Effect.flip(
          Stream.runDrain(sql`INSERT INTO t SELECT generate_series(1, 10) RETURNING n`.stream).pipe(
            Effect.provideService(Deadline, startedAt + 300)
          )
        )
        const typed = Pg.Errors.fromSqlError(error)
        assert(typed instanceof Pg.Errors.DeadlineExceeded, String(error))
        assert.strictEqual(typed.effect, "Unknown")
        // The driver alone would wait for five seconds more.
        assert.isBelow((yield* Clock.currentTimeMillis) - startedAt, 4_000)
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1 })))
    }))

  it.live("says of a call whose first attempt may have been applied that it may have been", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        let seen = 0
        proxy.onRequest((request, link) => {
          if (!request.includes("INSERT")) return "pass"
          if (seen++ > 0) return "drop"
          link.mute()
          setTimeout(link.cut, 50)
          return "pass"
        })
        const error = yield* Effect.flip(run(insert, { idempotent: true, deadline: 1_000 }))
        assert(error instanceof Pg.Errors.DeadlineExceeded, String(error))
        assert.strictEqual(error.effect, "Unknown")
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url: proxy.url, max: 1 })))
    }))
})

describe("a statement that is interrupted between any two steps", () => {
  it.live("leaves nothing that its session would owe", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        yield* sql`SELECT 1`
        for (let steps = 5; steps < 120; steps++) {
          const fiber = yield* Effect.forkChild(
            Effect.provideService(Effect.asVoid(sql`SELECT 1`), MaxOpsBeforeYield, steps),
            { startImmediately: true }
          )
          yield* soon("the end of the statement", Fiber.interrupt(fiber))
          const { busy } = yield* Effect.scoped(pool.get())
          assert.strictEqual(busy, 0, `interrupted after ${steps} steps`)
        }
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})

describe("the modes of a transaction", () => {
  it.live("are not those of another pool's transaction inside of it", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const begun = yield* transaction(BeginTransaction, { accessMode: "read only" })
        assert.isUndefined(begun)
        assert.strictEqual(yield* rows, 0)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})
