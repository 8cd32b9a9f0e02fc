import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"
import { freshDatabase } from "./database.ts"
import { makeImpostor } from "./proxy.ts"
import { ended, eventually, makeWitness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** The pool alone: what it says reaches the test without a retry or a breaker in between. */
const alone = { retry: false, breaker: false } as const

const acquireTimeout = (error: { readonly _tag: string }): Pg.Errors.AcquireTimeout =>
  error instanceof Pg.Errors.AcquireTimeout ? error : assert.fail(`expected AcquireTimeout, got ${error._tag}`)

describe("a checkout that takes longer than acquireTimeout", () => {
  it.live("says that it waited in the queue, who holds the sessions, and that nothing ran", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const executor = yield* Pg.Executor.Executor
        const sql = yield* SqlClient
        const metrics = yield* Pg.Metrics.Metrics
        yield* Effect.scoped(Effect.gen(function*() {
          // The short timeout is for the queue, and not for the connects before it.
          yield* pool.reserve({ timeout: 20_000 })
          yield* pool.reserve({ timeout: 20_000 })
          const patient = yield* Effect.forkChild(pool.use(() => Effect.succeed("served"), { timeout: 20_000 }))
          yield* eventually("a waiter", Effect.map(pool.stats, ({ waiting }) => waiting === 1))
          const error = acquireTimeout(yield* Effect.flip(pool.use(() => Effect.void)))
          assert.strictEqual(error.phase, "Queue")
          assert.isAtLeast(error.waited, 99)
          assert.strictEqual(error.stats.active, 2)
          assert.strictEqual(error.stats.total, 2)
          assert.strictEqual(error.stats.max, 2)
          assert.isAtLeast(error.stats.waiting, 1)
          assert.isNull(error.lastConnectFailure)
          assert.isTrue(error.isRetryable)
          // The same through the client, where it travels inside of a SqlError.
          const sqlError = yield* Effect.flip(sql`SELECT 1`)
          assert.strictEqual(Pg.Errors.fromSqlError(sqlError)?._tag, "AcquireTimeout")
          assert.isTrue(sqlError.isRetryable)
          assert.strictEqual((yield* Effect.flip(executor.run(sql`SELECT 1`)))._tag, "AcquireTimeout")
          assert.strictEqual((yield* metrics.snapshot).acquireTimeouts, 3)
          // Who gave up is not in the way of who did not.
          assert.strictEqual((yield* pool.stats).waiting, 1)
          assert.isUndefined(patient.pollUnsafe())
          return patient
        })).pipe(Effect.flatMap(Fiber.join), Effect.map((answer) => assert.strictEqual(answer, "served")))
        assert.strictEqual((yield* sql`SELECT 1`).length, 1)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url, max: 2, acquireTimeout: 100 })))
    }))

  it.live("says that it was connecting, when nobody answers the connect", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("is silent")
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = acquireTimeout(yield* Effect.flip(pool.use(() => Effect.void)))
        assert.strictEqual(error.phase, "Connect")
        assert.strictEqual(error.stats.active, 0)
        assert.strictEqual(error.stats.connecting, 1)
        assert.isNull(error.lastConnectFailure)
        assert.strictEqual(impostor.accepted(), 1)
      }).pipe(
        Effect.provide(Pg.layer({ ...alone, url: impostor.url, max: 2, acquireTimeout: 100, connectTimeout: 1000 }))
      )
    }))

  it.live("says what the last connect failed with", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("is silent")
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* Effect.flip(pool.use(() => Effect.void, { timeout: 5000 }))
        // The pause after the failed connect is over: the next borrower waits for a new one.
        yield* Effect.sleep(200)
        const error = acquireTimeout(yield* Effect.flip(pool.use(() => Effect.void, { timeout: 50 })))
        assert.strictEqual(error.phase, "Connect")
        assert.match(error.lastConnectFailure?.message ?? "", /timed out/i)
        assert.match(error.message, /timed out/i)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: impostor.url, max: 2, connectTimeout: 300 })))
    }))

  it.live("says that it was checking an idle session, when the server has fallen silent", () =>
    Effect.gen(function*() {
      const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        yield* server.pause
        const before = yield* Clock.currentTimeMillis
        const error = yield* Effect.scoped(Effect.gen(function*() {
          const error = acquireTimeout(yield* Effect.flip(pool.reserve({ prove: true, timeout: 200 })))
          // Given back already, although the scope is still open.
          assert.strictEqual((yield* pool.stats).active, 0)
          return error
        }))
        assert.strictEqual(error.phase, "Validate")
        // The driver alone would wait five seconds for the answer to its cancel request.
        assert.isBelow((yield* Clock.currentTimeMillis) - before, 3000)
        assert.strictEqual(error.stats.max, 2)
        yield* server.resume
        assert.strictEqual((yield* sql`SELECT 1`).length, 1)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: server.url, max: 2, validationTimeout: 1000 })))
    }))

  it.live("gives up an unanswered check after validationTimeout, distrusts all older sessions, and opens a new one", () =>
    Effect.gen(function*() {
      const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const sql = yield* SqlClient
        const scopes = yield* Effect.forEach(range(3), () =>
          Effect.gen(function*() {
            const scope = yield* Scope.make()
            yield* Scope.provide(pool.reserve(), scope)
            yield* Effect.sleep(5)
            return scope
          }))
        // The youngest comes back last, so it is the next to be lent.
        for (const scope of scopes) yield* Scope.close(scope, Exit.void)
        assert.strictEqual((yield* pool.stats).idle, 3)
        yield* server.pause
        const fiber = yield* Effect.forkChild(pool.use(({ id }) => Effect.succeed(id), { prove: true }))
        yield* eventually("an empty pool", Effect.map(pool.stats, ({ total }) => total === 0))
        yield* server.resume
        const exit = yield* ended(fiber)
        if (Exit.isFailure(exit)) assert.fail(Cause.pretty(exit.cause))
        assert.isAbove(exit.value, 3)
        assert.strictEqual((yield* sql`SELECT 1`).length, 1)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: server.url, max: 3, min: 3, validationTimeout: 100 })))
    }))
})

describe("more borrowers than maxWaiting", () => {
  it.live("are turned away at once, and those who wait are served", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const executor = yield* Pg.Executor.Executor
        const sql = yield* SqlClient
        const waiters = yield* Effect.scoped(Effect.gen(function*() {
          yield* pool.reserve()
          const waiters = []
          for (let name = 0; name < 3; name++) {
            waiters.push(yield* Effect.forkDetach(sql`SELECT 1`, { startImmediately: true }))
          }
          assert.strictEqual((yield* pool.stats).waiting, 3)
          const error = yield* Effect.flip(executor.run(sql`SELECT 1`))
          assert.strictEqual(error._tag, "PoolSaturated")
          if (error._tag === "PoolSaturated") {
            assert.strictEqual(error.waiting, 3)
            assert.strictEqual(error.maxWaiting, 3)
            assert.strictEqual(error.stats.active, 1)
            assert.isTrue(error.isRetryable)
          }
          assert.strictEqual((yield* Effect.flip(pool.use(() => Effect.void)))._tag, "PoolSaturated")
          assert.strictEqual((yield* pool.stats).waiting, 3)
          return waiters
        }))
        for (const waiter of waiters) assert.isTrue(Exit.isSuccess(yield* ended(waiter)))
      }).pipe(Effect.provide(Pg.layer({ ...alone, url, max: 1, maxWaiting: 3 })))
    }))

  it.live("are turned away from the queue only: maxWaiting 0 still lends every session", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* Effect.scoped(Effect.gen(function*() {
          yield* Effect.forEach(range(3), () => pool.reserve(), { concurrency: 3 })
          assert.strictEqual((yield* Effect.flip(pool.use(() => Effect.void)))._tag, "PoolSaturated")
        }))
        yield* pool.use(() => Effect.void)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url, max: 3, maxWaiting: 0 })))
    }))
})

describe("a thousand borrowers on a dead server", () => {
  it.live("make a handful of connects, and all get the cause", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const errors = yield* Effect.forEach(range(1000), () => Effect.flip(pool.use(() => Effect.void)), {
          concurrency: "unbounded"
        })
        for (const error of errors) {
          if (error._tag !== "SqlError") assert.fail(`unexpected ${error._tag}: ${error.message}`)
          assert.strictEqual(error.reason._tag, "ConnectionError")
        }
        // One has found out for all who came before its end; on a slow machine some come later than the pause lasts.
        assert.isAtMost(impostor.accepted(), 3)
        const { active, connecting, total, waiting } = yield* pool.stats
        assert.deepStrictEqual({ active, connecting, total, waiting }, {
          active: 0,
          connecting: 0,
          total: 0,
          waiting: 0
        })
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: impostor.url, max: 10 })))
    }))

  it.live("do not make more of them by retrying", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const executor = yield* Pg.Executor.Executor
        const errors = yield* Effect.forEach(range(1000), () => Effect.flip(executor.run(sql`SELECT 1`)), {
          concurrency: "unbounded"
        })
        for (const error of errors) assert.include(["RetriesExhausted", "SqlError", "CircuitOpen"], error._tag)
        assert.isAtMost(impostor.accepted(), 30)
      }).pipe(
        Effect.provide(Pg.layer({ url: impostor.url, max: 10, breaker: false, retry: { attempts: 3, base: 20 } }))
      )
    }))

  it.live("are all served soon after it is back", () =>
    Effect.gen(function*() {
      const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
      yield* server.stop
      let connects = 0
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const fibers = yield* Effect.forEach(range(300), () => Effect.forkChild(sql`SELECT pg_sleep(0.001)`))
        yield* eventually("some failed connects", Effect.sync(() => connects > 3))
        yield* server.start
        for (const fiber of fibers) assert.isTrue(Exit.isSuccess(yield* ended(fiber, 20)))
        assert.isBelow(connects, 60)
      }).pipe(Effect.provide(Pg.layer({
        url: server.url,
        max: 5,
        breaker: false,
        retry: { attempts: 200, base: 50, cap: 200 },
        beforeConnect: Effect.sync(() => connects++)
      })))
    }), 60_000)
})

describe("a borrower who gives up", () => {
  it.live("by its timeout, leaves its connect to whoever comes next", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      let connects = 0
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = acquireTimeout(yield* Effect.flip(pool.use(() => Effect.void, { timeout: 30 })))
        assert.strictEqual(error.phase, "Connect")
        assert.strictEqual(error.stats.connecting, 1)
        yield* eventually(
          "an idle session",
          Effect.map(pool.stats, ({ connecting, idle }) => idle === 1 && connecting === 0)
        )
        assert.strictEqual(yield* witness.count, 1)
        yield* pool.use(() => Effect.void)
        assert.strictEqual(connects, 1)
      }).pipe(Effect.provide(Pg.layer({
        ...alone,
        url,
        max: 3,
        beforeConnect: Effect.andThen(Effect.sync(() => connects++), Effect.sleep(300))
      })))
    }))
})
