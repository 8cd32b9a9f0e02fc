import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeImpostor } from "./proxy.ts"
import { eventually, makeWitness, soon } from "./witness.ts"

const services = Effect.gen(function*() {
  return {
    sql: yield* SqlClient,
    pool: yield* Pg.Pool.Pool,
    executor: yield* Pg.Executor.Executor,
    breaker: yield* Pg.Breaker.Breaker,
    metrics: yield* Pg.Metrics.Metrics
  }
})

const times = <A, E, R>(count: number, effect: Effect.Effect<A, E, R>) =>
  Effect.forEach(Array.from({ length: count }), () => effect)

/** A breaker that writes down its changes of state. */
const makeLog = () => {
  const transitions: Array<string> = []
  const onTransition = ({ from, to }: Pg.Breaker.Transition) => void transitions.push(`${from} to ${to}`)
  return { transitions, onTransition }
}

/** The server has no room left, and says so in the middle of a statement. */
const raise =
  "DO $$ BEGIN PERFORM pg_sleep(0.05); RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'disk full'; END $$"
const diskFull = Effect.flatMap(SqlClient, (sql) => sql.unsafe(raise))

describe("rows that cannot be decoded", () => {
  /** The driver reads arrays of one dimension only, and gives the session up. */
  const undecodable = Effect.flatMap(SqlClient, (sql) => sql`SELECT '{{1,2},{3,4}}'::int4[]`)

  it.live("leave the circuit closed, alone, in transactions and in leases", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { onTransition, transitions } = makeLog()
      yield* Effect.gen(function*() {
        const { breaker, executor, sql } = yield* services
        yield* times(4, Effect.flip(undecodable))
        yield* times(4, Effect.flip(sql.withTransaction(undecodable)))
        yield* times(4, Effect.flip(executor.run(sql.withTransaction(undecodable))))
        yield* times(
          4,
          Effect.flip(executor.use((connection) => connection.query("SELECT '{{1,2},{3,4}}'::int4[]")))
        )
        assert.deepStrictEqual(transitions, [])
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        assert.strictEqual((yield* sql`SELECT 1`).length, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, breaker: { failures: 3, onTransition } })))
    }))
})

describe("a hook that hangs", () => {
  for (const hook of ["beforeConnect", "afterConnect"] as const) {
    it.live(`once does not take its place for ever: connectTimeout bounds it too (${hook})`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        let runs = 0
        const hangsOnce = Effect.suspend(() => ++runs === 1 ? Effect.never : Effect.void)
        yield* Effect.gen(function*() {
          const { pool, sql } = yield* services
          const error = yield* soon("the end of the connect", Effect.flip(sql`SELECT 1`), 5)
          assert.notStrictEqual(Pg.Errors.fromSqlError(error)?._tag, "HookFailed")
          assert.isTrue(error.isRetryable, "nothing ran")
          yield* eventually(
            "a session",
            Effect.map(Effect.exit(sql`SELECT 1`), ({ _tag }) => _tag === "Success"),
            5
          )
          assert.strictEqual(runs, 2)
          assert.deepStrictEqual(
            { ...(yield* pool.stats), min: 0, oldestLease: 0 },
            { total: 1, idle: 1, active: 0, waiting: 0, connecting: 0, max: 1, min: 0, oldestLease: 0 }
          )
          assert.strictEqual(yield* witness.count, 1)
        }).pipe(Effect.provide(Pg.layer({
          url,
          max: 1,
          retry: false,
          breaker: false,
          connectTimeout: 500,
          acquireTimeout: 10_000,
          closeTimeout: 100,
          ...(hook === "beforeConnect" ? { beforeConnect: hangsOnce } : { afterConnect: () => hangsOnce })
        })))
      }))
  }
})

describe("a probe", () => {
  it.live("that waits for the server in vain opens the circuit again, and the next one is further away", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("is silent")
      const { onTransition, transitions } = makeLog()
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* services
        const permit = breaker.closedPermitUnsafe()
        if (permit === undefined) return assert.fail("the circuit was not closed")
        breaker.settleUnsafe(permit, "Failure", yield* Clock.currentTimeMillis, { code: "ECONNRESET" })
        for (let probe = 1; probe <= 2; probe++) {
          yield* eventually(
            "the circuit may be probed",
            Effect.map(Effect.result(sql`SELECT 1`), () => transitions.length >= 2 * probe)
          )
          // The connect itself has five seconds yet: the probe's own end was what counted.
          assert.strictEqual(transitions.at(-1), "HalfOpen to Open")
        }
        assert.deepStrictEqual(transitions, [
          "Closed to Open",
          "Open to HalfOpen",
          "HalfOpen to Open",
          "Open to HalfOpen",
          "HalfOpen to Open"
        ])
      }).pipe(Effect.provide(Pg.layer({
        url: impostor.url,
        max: 2,
        retry: false,
        closeTimeout: 100,
        breaker: { failures: 1, openFor: 300, probeTimeout: 150, probeLease: 300, jitter: "none", onTransition }
      })))
    }))

  it.live("that only stood in the queue does not: that says nothing about the server", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { onTransition, transitions } = makeLog()
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* services
        yield* sql`SELECT 1`
        const holder = yield* Effect.forkChild(sql.withTransaction(Effect.never))
        yield* Effect.sleep(50)
        const permit = breaker.closedPermitUnsafe()
        if (permit === undefined) return assert.fail("the circuit was not closed")
        breaker.settleUnsafe(permit, "Failure", yield* Clock.currentTimeMillis, { code: "ECONNRESET" })
        yield* Effect.sleep(350)
        const error = yield* Effect.flip(sql`SELECT 1`)
        const typed = Pg.Errors.fromSqlError(error)
        assert.strictEqual(typed?._tag === "AcquireTimeout" ? typed.phase : typed?._tag, "Queue")
        assert.deepStrictEqual(transitions, ["Closed to Open", "Open to HalfOpen"])
        yield* Fiber.interrupt(holder)
        yield* eventually(
          "the circuit is closed",
          Effect.map(Effect.exit(sql`SELECT 1`), ({ _tag }) => _tag === "Success")
        )
        assert.strictEqual((yield* breaker.state)._tag, "Closed")
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 1,
        retry: false,
        breaker: { failures: 1, openFor: 300, probeTimeout: 150, probeLease: 300, jitter: "none", onTransition }
      })))
    }))
})

describe("an overloaded server", () => {
  type Work = Effect.Effect<unknown, SqlError | Pg.Errors.PoolError, SqlClient | Pg.Executor.Executor>
  const inTransaction: Work = Effect.flatMap(SqlClient, (sql) => sql.withTransaction(diskFull))
  const handled: Work = Effect.flatMap(SqlClient, (sql) => sql.withTransaction(Effect.exit(diskFull)))
  const inLease: Work = Effect.flatMap(
    Pg.Executor.Executor,
    (executor) => executor.use((connection) => connection.query(raise))
  )
  const ways: ReadonlyArray<readonly [string, Work]> = [
    ["in single statements", diskFull],
    ["in transactions", inTransaction],
    ["in transactions whose body handles it", handled],
    ["in leases", inLease]
  ]

  for (const [name, work] of ways) {
    it.live(`opens the circuit ${name}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const { onTransition, transitions } = makeLog()
        yield* Effect.gen(function*() {
          const { breaker } = yield* services
          const once = Effect.exit(work)
          yield* Effect.all([once, once], { concurrency: 2 })
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 2 })
          yield* Effect.all([once, once, once], { concurrency: 3 })
          assert.deepStrictEqual(transitions, ["Closed to Open"])
        }).pipe(Effect.provide(Pg.layer({ url, max: 3, retry: false, breaker: { failures: 3, onTransition } })))
      }))
  }

  it.live("opens the circuit however few sessions hear of it", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { onTransition, transitions } = makeLog()
      yield* Effect.gen(function*() {
        for (const [, work] of ways) yield* Effect.exit(work)
        assert.deepStrictEqual(transitions, ["Closed to Open"])
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, retry: false, breaker: { failures: 4, onTransition } })))
    }))

  it.live("is forgiven by a transaction that succeeds", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* services
        yield* times(2, Effect.exit(sql.withTransaction(diskFull)))
        yield* sql.withTransaction(sql`SELECT 1`)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, retry: false, breaker: { failures: 3 } })))
    }))
})

describe("a statement on a shared session", () => {
  it.live("is told under what admitted it, and not under what admitted its neighbour later", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { onTransition, transitions } = makeLog()
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* services
        yield* sql`SELECT 1`
        const old = yield* Effect.forkChild(Effect.flip(sql.unsafe(
          "DO $$ BEGIN PERFORM pg_sleep(0.8); RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'disk full'; END $$"
        )))
        yield* Effect.sleep(100)
        // The circuit opens and closes again while that one is under way.
        const now = yield* Clock.currentTimeMillis
        const permit = breaker.closedPermitUnsafe()
        if (permit === undefined) return assert.fail("the circuit was not closed")
        breaker.settleUnsafe(permit, "Failure", now, { code: "ECONNRESET" })
        yield* Effect.sleep(100)
        const neighbours = yield* Effect.forkChild(Effect.all([sql`SELECT 1`, sql`SELECT 2`], { concurrency: 2 }))
        const error = yield* Fiber.join(old)
        assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "53100")
        yield* Fiber.join(neighbours)
        assert.deepStrictEqual(transitions, ["Closed to Open", "Open to HalfOpen", "HalfOpen to Closed"])
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 1,
        multiplex: true,
        retry: false,
        breaker: { failures: 1, openFor: 50, jitter: "none", onTransition }
      })))
    }))
})
