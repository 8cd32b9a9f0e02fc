import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { eventually, makeWitness } from "./witness.ts"

const services = Effect.gen(function*() {
  return {
    sql: yield* SqlClient,
    pool: yield* Pg.Pool.Pool,
    breaker: yield* Pg.Breaker.Breaker,
    metrics: yield* Pg.Metrics.Metrics
  }
})

const pid = Effect.flatMap(
  SqlClient,
  (sql) => Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]!.pid)
)

/** A database, and whether some session of the pool works for the given number of seconds. */
const makeDatabase = Effect.gen(function*() {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  const works = eventually(
    "the slow statement runs",
    Effect.map(
      witness.value<number>(
        "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
      ),
      (count) => count > 0
    )
  )
  return { url, witness, works }
})

describe("a check of a shared session does not end the statements of others", () => {
  /** Shorter than the others' statement, so that the check behind it would fail. */
  const multiplexed = { max: 1, multiplex: true, validationTimeout: 100 } as const

  it.live("before each use", () =>
    Effect.gen(function*() {
      const { url, works } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { metrics, sql } = yield* services
        yield* sql`SELECT 1`
        const slow = yield* Effect.forkChild(sql`SELECT 'answered' AS slow, pg_sleep(0.7)`)
        yield* works
        assert.deepStrictEqual(yield* sql`SELECT 2 AS quick`, [{ quick: 2 }])
        assert.strictEqual((yield* Fiber.join(slow))[0]?.["slow"], "answered")
        assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
      }).pipe(Effect.provide(Pg.layer({ ...multiplexed, url, validate: "always", retry: false })))
    }))

  it.live("for a health check", () =>
    Effect.gen(function*() {
      const { url, works } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { metrics, pool, sql } = yield* services
        yield* sql`SELECT 1`
        const slow = yield* Effect.forkChild(sql`SELECT 'answered' AS slow, pg_sleep(0.7)`)
        yield* works
        // What Health asks of the pool when it asks.
        yield* pool.use(({ connection }) => connection.query("SELECT 1"), { prove: true })
        assert.strictEqual((yield* Fiber.join(slow))[0]?.["slow"], "answered")
        assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
      }).pipe(Effect.provide(Pg.layer({ ...multiplexed, url, retry: false })))
    }))

  it.live("for a probe of the circuit breaker", () =>
    Effect.gen(function*() {
      const { url, works } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { breaker, metrics, sql } = yield* services
        yield* sql`SELECT 1`
        const slow = yield* Effect.forkChild(sql`SELECT 'answered' AS slow, pg_sleep(0.9)`)
        yield* works
        const now = yield* Clock.currentTimeMillis
        const permit = breaker.closedPermitUnsafe()
        if (permit === undefined) return assert.fail("the circuit was not closed")
        breaker.settleUnsafe(permit, "Failure", now, { code: "ECONNRESET" })
        assert.strictEqual((yield* breaker.state)._tag, "Open")
        yield* Effect.sleep(100)
        assert.deepStrictEqual(yield* sql`SELECT 2 AS quick`, [{ quick: 2 }])
        assert.strictEqual((yield* breaker.state)._tag, "Closed")
        assert.strictEqual((yield* Fiber.join(slow))[0]?.["slow"], "answered")
        assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
      }).pipe(Effect.provide(Pg.layer({
        ...multiplexed,
        url,
        retry: false,
        breaker: { failures: 1, openFor: 50, jitter: "none" }
      })))
    }))

  it.live("and still finds out an idle one that is dead", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const before = yield* pid
        yield* witness.terminate([before])
        assert.notStrictEqual(yield* pid, before)
        yield* sql`SELECT 1`
      }).pipe(Effect.provide(Pg.layer({ ...multiplexed, url, validate: "always", retry: false })))
    }))
})

describe("a shared session in unbroken use", () => {
  it.live("is not closed as idle, and is once it is", () =>
    Effect.gen(function*() {
      const { url } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { metrics, sql } = yield* services
        const until = (yield* Clock.currentTimeMillis) + 1500
        // Two that overlap: the session is never without a borrower.
        const worker = Effect.gen(function*() {
          while ((yield* Clock.currentTimeMillis) < until) yield* sql`SELECT pg_sleep(0.02)`
        })
        yield* Effect.all([worker, Effect.delay(worker, 11)], { concurrency: 2 })
        const { connectionsClosed, connectionsOpened } = yield* metrics.snapshot
        assert.deepStrictEqual(connectionsClosed, {
          idle: 0,
          lifetime: 0,
          uses: 0,
          invalid: 0,
          error: 0,
          shutdown: 0,
          resize: 0
        })
        assert.isAtMost(connectionsOpened, 2)
        yield* Effect.sleep(400)
        yield* sql`SELECT 1`
        yield* eventually(
          "the idle ones are gone",
          Effect.map(metrics.snapshot, ({ connectionsClosed: { idle } }) => idle === connectionsOpened)
        )
      }).pipe(Effect.provide(Pg.layer({ url, max: 4, min: 0, multiplex: true, idleTimeout: 200 })))
    }))

  it.live("is not checked as one that has idled for long", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const until = (yield* Clock.currentTimeMillis) + 1500
        let asked = 0
        const worker = Effect.gen(function*() {
          while ((yield* Clock.currentTimeMillis) < until) {
            asked++
            yield* sql`SELECT pg_sleep(0.05)`
          }
        })
        yield* Effect.all([worker, Effect.delay(worker, 25)], { concurrency: 2 })
        assert.strictEqual(proxy.statements(), asked)
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, multiplex: true, validateAfter: 500 })))
    }))
})

describe("a transaction that wants a shared session for itself", () => {
  it.live("waits for what runs there for no longer than acquireTimeout, and ends nothing of it", () =>
    Effect.gen(function*() {
      const { url, works } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { metrics, sql } = yield* services
        yield* sql`SELECT 1`
        const slow = yield* Effect.forkChild(sql`SELECT 'answered' AS slow, pg_sleep(3)`)
        yield* works
        const error = yield* Effect.flip(sql.withTransaction(sql`SELECT 2`))
        const isStillRunning = slow.pollUnsafe() === undefined
        assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "AcquireTimeout")
        assert.isTrue(isStillRunning)
        // The session is open to others again.
        const quick = yield* Effect.forkChild(sql`SELECT 'too' AS quick`)
        const [first, second] = [yield* Fiber.await(slow), yield* Fiber.await(quick)]
        assert.isTrue(Exit.isSuccess(first) && Exit.isSuccess(second))
        assert.strictEqual((yield* sql.withTransaction(sql`SELECT 2`)).length, 1)
        assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex: true, acquireTimeout: 1000, retry: false })))
    }))
})

describe("whoever shares a session with somebody who needs it alone", () => {
  it.live("does not write into a transaction that was left open", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeDatabase
      yield* witness.query("CREATE TABLE ledger (id text NOT NULL)")
      yield* Effect.gen(function*() {
        const { pool } = yield* services
        const executor = yield* Pg.Executor.Executor
        const shared = yield* Scope.make()
        const connection = yield* Scope.provide(executor.lease, shared)
        const alone = yield* Scope.make()
        const lease = yield* Scope.provide(pool.reserve(), alone)
        assert.strictEqual(connection.session, lease.session)
        yield* lease.connection.query("BEGIN")
        yield* lease.connection.query("INSERT INTO ledger VALUES ('left open')")
        const behind = yield* Effect.forkChild(connection.query("INSERT INTO ledger VALUES ('behind it')"), {
          startImmediately: true
        })
        yield* Scope.close(alone, Exit.void)
        const exit = yield* Fiber.await(behind)
        yield* Scope.close(shared, Exit.void)
        assert.isTrue(Exit.isFailure(exit))
        if (Exit.isFailure(exit)) {
          const error = Cause.findErrorOption(exit.cause)
          // It never left: another session will do.
          assert.isTrue(error._tag === "Some" && error.value.isRetryable, Cause.pretty(exit.cause))
        }
        yield* Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO ledger VALUES ('acknowledged')`)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex: true })))
      assert.deepStrictEqual(yield* witness.query("SELECT id FROM ledger"), [{ id: "acknowledged" }])
    }))
})
