import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { ended, eventually, makeWitness, type Witness } from "./witness.ts"

const makeLedger = Effect.gen(function*() {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  yield* witness.query("CREATE TABLE ledger (id text)")
  yield* witness.query("CREATE SEQUENCE runs")
  return { url, witness }
})

const idsOf = (witness: Witness) =>
  Effect.map(witness.query<{ id: string }>("SELECT id FROM ledger ORDER BY id"), (rows) => rows.map(({ id }) => id))

const put = (id: string) => Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO ledger VALUES (${id})`)

const transact = <A, E, R>(body: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient, (sql) => sql.withTransaction(body))

/** Ends all sessions of the pool, and waits until the server has done so. */
const killAll = Effect.fnUntraced(function*(witness: Witness) {
  yield* witness.terminate(yield* witness.sessions)
  yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
})

const styles = [{ multiplex: false }, { multiplex: true }] as const

describe("BEGIN", () => {
  it.live("goes with the first statement: as many round trips as statements, and COMMIT", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeLedger
      const proxy = yield* makeProxy(url)
      let requests = 0
      proxy.onRequest(() => {
        requests++
        return "pass"
      })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        const count = <A, E, R>(body: Effect.Effect<A, E, R>) =>
          Effect.gen(function*() {
            const before = requests
            yield* Effect.exit(sql.withTransaction(body))
            return requests - before
          })
        assert.strictEqual(yield* count(put("one")), 2)
        assert.strictEqual(yield* count(Effect.andThen(put("two"), put("three"))), 3)
        assert.strictEqual(yield* count(Effect.andThen(put("rolled back"), Effect.fail("no"))), 2)
        assert.strictEqual(yield* count(sql`INSERT INTO nowhere VALUES (1)`), 2)
        // Nothing is to be begun, so nothing is to be ended.
        assert.strictEqual(yield* count(Effect.void), 0)
        assert.strictEqual(yield* count(Effect.fail("no")), 0)
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1 })))
      assert.deepStrictEqual(yield* idsOf(witness), ["one", "three", "two"])
    }))

  for (const { multiplex } of styles) {
    const named = (name: string) => multiplex ? `${name}, multiplexed` : name

    it.live(
      named("has the same transaction for whatever comes first, and whatever comes at once"),
      () =>
        Effect.gen(function*() {
          const { url, witness } = yield* makeLedger
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const xid = sql<{ xid: string }>`SELECT pg_current_xact_id()::text AS xid`
            const numberOf = Effect.map(xid, (rows) => rows[0]!.xid)
            const firsts: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
              sql`SELECT ${1}`,
              sql`SELECT ${1}`.unprepared,
              sql`SELECT ${1}`.values,
              sql`SELECT ${1}`.raw,
              sql.withTransaction(put("inside").pipe(Effect.provideService(SqlClient, sql))),
              Stream.runDrain(sql`SELECT generate_series(1, 1000)`.stream),
              sql`SET TRANSACTION ISOLATION LEVEL SERIALIZABLE`
            ]
            for (const first of firsts) {
              yield* sql.withTransaction(Effect.gen(function*() {
                yield* first
                const found = new Set(yield* Effect.all([numberOf, numberOf, numberOf], { concurrency: 3 }))
                assert.strictEqual(found.size, 1)
              }))
            }
            const atOnce = yield* sql.withTransaction(
              Effect.all([numberOf, numberOf, Effect.map(Stream.runCollect(xid.stream), (rows) => rows[0]!.xid)], {
                concurrency: 3
              })
            )
            assert.strictEqual(new Set(atOnce).size, 1)
          }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
          assert.deepStrictEqual(yield* idsOf(witness), ["inside"])
        })
    )

    it.live(
      named("is tried on another session when its own was killed after the checkout: nobody notices"),
      () =>
        Effect.gen(function*() {
          const { url, witness } = yield* makeLedger
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const firsts: ReadonlyArray<Effect.Effect<unknown, unknown, SqlClient>> = [
              put("plain"),
              put("savepoint").pipe(sql.withTransaction),
              Effect.andThen(Stream.runDrain(sql`SELECT 1`.stream), put("stream")),
              Effect.all([put("at once 1"), put("at once 2"), put("at once 3")], { concurrency: 3 })
            ]
            for (const first of firsts) {
              let bodies = 0
              yield* sql.withTransaction(Effect.gen(function*() {
                bodies++
                yield* killAll(witness)
                yield* first
              }))
              assert.strictEqual(bodies, 1)
            }
          }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
          assert.deepStrictEqual(yield* idsOf(witness), [
            "at once 1",
            "at once 2",
            "at once 3",
            "plain",
            "savepoint",
            "stream"
          ])
        })
    )

    it.live(
      named("is not tried again once it has been answered, though the first statement is lost"),
      () =>
        Effect.gen(function*() {
          const { url, witness } = yield* makeLedger
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const fiber = yield* Effect.forkChild(
              transact(sql`INSERT INTO ledger SELECT 'asleep' FROM nextval('runs'), pg_sleep(100)`),
              { startImmediately: true }
            )
            const asleep = witness.query(
              "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            )
            yield* eventually("a sleeping statement", Effect.map(asleep, (rows) => rows.length === 1))
            yield* killAll(witness)
            const exit = yield* ended(fiber)
            assert.strictEqual(exit._tag, "Failure")
          }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
          assert.deepStrictEqual(yield* witness.query("SELECT last_value::int AS n, is_called FROM runs"), [
            { n: 1, is_called: true }
          ])
          assert.deepStrictEqual(yield* idsOf(witness), [])
        })
    )

    it.live(named("is rolled back with a first statement that fails or is interrupted"), () =>
      Effect.gen(function*() {
        const { url, witness } = yield* makeLedger
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const before = yield* sql`SELECT pg_backend_pid() AS pid`
          const failing = transact(
            Effect.andThen(Effect.ignore(sql`INSERT INTO nowhere VALUES (1)`), put("after a failure"))
          )
          assert.strictEqual((yield* Effect.exit(failing))._tag, "Failure")
          const slow = transact(sql`INSERT INTO ledger SELECT 'slow' FROM pg_sleep(100)`)
          yield* Effect.timeoutOption(slow, "100 millis")
          // One whose end is not waited for is caught up by what comes next.
          const late = transact(Effect.andThen(
            Effect.timeoutOption(sql`INSERT INTO ledger SELECT 'slow' FROM pg_sleep(100)`, "100 millis"),
            put("after an interruption")
          ))
          assert.strictEqual((yield* Effect.exit(late))._tag, "Failure")
          yield* transact(put("kept"))
          // What was cancelled on a shared session costs it.
          if (!multiplex) assert.deepStrictEqual(yield* sql`SELECT pg_backend_pid() AS pid`, before)
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
        assert.deepStrictEqual(yield* idsOf(witness), ["kept"])
      }))

    it.live(named("and its end leave no room for a fiber that was left behind"), () =>
      Effect.gen(function*() {
        const { url, witness } = yield* makeLedger
        yield* Effect.gen(function*() {
          const go = yield* Deferred.make<void>()
          const left = yield* transact(Effect.andThen(
            put("in time"),
            Effect.forkDetach(Effect.andThen(Deferred.await(go), put("too late")), { startImmediately: true })
          ))
          yield* Deferred.succeed(go, undefined)
          assert.strictEqual((yield* Fiber.await(left))._tag, "Failure")
          yield* put("afterwards")
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
        assert.deepStrictEqual(yield* idsOf(witness), ["afterwards", "in time"])
      }))
  }
})
