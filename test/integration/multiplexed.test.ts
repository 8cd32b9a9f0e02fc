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

describe("a transaction on a shared session", () => {
  const single = { max: 1, multiplex: true, retry: false } as const

  it.live("runs behind statements that were given up, and are still on the wire", () =>
    Effect.gen(function*() {
      const { url, works } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { metrics, pool, sql } = yield* services
        yield* sql`SELECT 1`
        const before = yield* Clock.currentTimeMillis
        // In one write. When the first is answered, the session looks idle.
        const givenUp = [
          yield* Effect.forkChild(sql`SELECT 'first', pg_sleep(0.2)`, { startImmediately: true }),
          yield* Effect.forkChild(sql`SELECT 'second', pg_sleep(0.6)`, { startImmediately: true })
        ]
        yield* works
        yield* Fiber.interruptAll(givenUp)
        yield* Effect.sleep(350)
        const rows = yield* sql.withTransaction(sql`SELECT 'behind' AS them`)
        assert.isAtLeast((yield* Clock.currentTimeMillis) - before, 700)
        assert.deepStrictEqual(rows, [{ them: "behind" }])
        assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
        assert.strictEqual(pool.statsUnsafe().active, 0)
      }).pipe(Effect.provide(Pg.layer({ ...single, url })))
    }))

  it.live("cancels the statement that it is interrupted in, and lets others go on", () =>
    Effect.gen(function*() {
      const { url, witness, works } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { pool, sql } = yield* services
        const slow = yield* Effect.forkChild(
          sql.withTransaction(Effect.andThen(sql`SELECT 1`, sql`SELECT pg_sleep(30)`))
        )
        yield* works
        // One in line for the session alone, and one who would share it.
        const alone = yield* Effect.forkChild(sql.withTransaction(pid), { startImmediately: true })
        const shared = yield* Effect.forkChild(pid, { startImmediately: true })
        yield* Fiber.interrupt(slow)
        assert.isNumber(yield* Fiber.join(alone))
        assert.isNumber(yield* Fiber.join(shared))
        assert.deepStrictEqual(
          yield* witness.query(
            `SELECT count(*)::int FROM pg_stat_activity
             WHERE datname = current_database() AND (wait_event = 'PgSleep' OR state LIKE 'idle in transaction%')`
          ),
          [{ count: 0 }]
        )
        assert.strictEqual(pool.statsUnsafe().active, 0)
      }).pipe(Effect.provide(Pg.layer({ ...single, url })))
    }))

  it.live("may be interrupted while it waits for others to leave, and takes nothing with it", () =>
    Effect.gen(function*() {
      const { url, works } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { metrics, pool, sql } = yield* services
        yield* sql`SELECT 1`
        const slow = yield* Effect.forkChild(sql`SELECT 'answered' AS slow, pg_sleep(0.5)`)
        yield* works
        let hasRun = false
        const waiting = yield* Effect.forkChild(sql.withTransaction(Effect.sync(() => hasRun = true)), {
          startImmediately: true
        })
        const behind = yield* Effect.forkChild(sql.withTransaction(sql`SELECT 'too' AS behind`), {
          startImmediately: true
        })
        yield* Fiber.interrupt(waiting)
        assert.isUndefined(slow.pollUnsafe())
        assert.strictEqual((yield* Fiber.join(slow))[0]?.["slow"], "answered")
        assert.deepStrictEqual(yield* Fiber.join(behind), [{ behind: "too" }])
        assert.isFalse(hasRun)
        assert.deepStrictEqual(yield* sql`SELECT 'shared' AS again`, [{ again: "shared" }])
        const { acquire, connectionsOpened } = yield* metrics.snapshot
        assert.strictEqual(acquire.interrupted.count, 1)
        assert.strictEqual(connectionsOpened, 1)
        assert.strictEqual(pool.statsUnsafe().active, 0)
      }).pipe(Effect.provide(Pg.layer({ ...single, url })))
    }))

  it.live("leaves nothing behind, whenever it is interrupted", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeDatabase
      yield* witness.query("CREATE TABLE ledger (id int NOT NULL)")
      yield* Effect.gen(function*() {
        const { pool, sql } = yield* services
        const acknowledged: Array<number> = []
        const transfer = (id: number) =>
          Effect.map(
            sql.withTransaction(Effect.andThen(sql`INSERT INTO ledger VALUES (${id})`, sql`SELECT pg_sleep(0.002)`)),
            () => acknowledged.push(id)
          )
        for (let round = 0; round < 40; round++) {
          const fibers = yield* Effect.forEach(
            [0, 1, 2, 3],
            (index) => Effect.forkChild(transfer(4 * round + index), { startImmediately: true })
          )
          const shared = yield* Effect.forkChild(sql`SELECT ${round}::int AS round`, { startImmediately: true })
          // Another step of another one each time.
          for (let step = 0; step < round; step++) yield* Effect.yieldNow
          if (round % 3 === 0) yield* Effect.sleep(round / 8)
          yield* Fiber.interrupt(fibers[round % 4]!)
          yield* Fiber.awaitAll(fibers)
          assert.deepStrictEqual(yield* Fiber.join(shared), [{ round }])
        }
        const stats = pool.statsUnsafe()
        assert.deepStrictEqual([stats.active, stats.waiting], [0, 0])
        const kept = yield* witness.query<{ id: number }>("SELECT id FROM ledger ORDER BY id")
        // Whoever was interrupted behind his COMMIT does not know of it.
        assert.includeMembers(kept.map(({ id }) => id), acknowledged)
        assert.isAtLeast(acknowledged.length, 120)
        assert.strictEqual(new Set(kept.map(({ id }) => id)).size, kept.length)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex: true, retry: false })))
    }))

  it.live("gets as many sessions as there may be", () =>
    Effect.gen(function*() {
      const { url } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const transaction = sql.withTransaction(Effect.tap(pid, () => sql`SELECT pg_sleep(0.3)`))
        const pids = yield* Effect.all(Array.from({ length: 8 }, () => transaction), { concurrency: "unbounded" })
        assert.strictEqual(new Set(pids).size, 4)
      }).pipe(Effect.provide(Pg.layer({ url, max: 4, multiplex: true })))
    }))
})

describe("whoever shares a session with somebody who needs it alone", () => {
  it.live.each(["reserve", "exclusiveUnsafe"] as const)(
    "does not write into a transaction that was left open: %s",
    (way) =>
      Effect.gen(function*() {
        const { url, witness } = yield* makeDatabase
        yield* witness.query("CREATE TABLE ledger (id text NOT NULL)")
        yield* Effect.gen(function*() {
          const { pool } = yield* services
          const executor = yield* Pg.Executor.Executor
          const shared = yield* Scope.make()
          const connection = yield* Scope.provide(executor.lease, shared)
          const alone = yield* Scope.make()
          const takenUnsafe = Effect.uninterruptibleMask((restore) =>
            Effect.acquireRelease(
              pool.exclusiveUnsafe.take(restore),
              (lease) => pool.exclusiveUnsafe.giveBack(lease) ?? Effect.void
            )
          )
          const lease = yield* Scope.provide(way === "reserve" ? pool.reserve() : takenUnsafe, alone)
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
      })
  )
})
