import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { makeImpostor, makeProxy } from "./proxy.ts"
import { eventually, makeTable } from "./witness.ts"

/** The cases of the breaker that need a pool and a server. The others are the suite of a breaker alone. */

const services = Effect.gen(function*() {
  return {
    sql: yield* SqlClient,
    breaker: yield* Pg.Breaker.Breaker,
    executor: yield* Pg.Executor.Executor,
    metrics: yield* Pg.Metrics.Metrics
  }
})

const instantly = { retry: { base: 0, jitter: "none" } } as const

const range = (count: number) => Array.from({ length: count }, (_, index) => index)

describe("the breaker of a pool", () => {
  it.live("17: after a thaw, each of five dead sessions costs one retry at most, and the circuit stays closed", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const { breaker, metrics, sql } = yield* services
        const five = Pg.Executor.idempotent(
          Effect.forEach(range(5), () => sql`SELECT pg_sleep(0.05)`, { concurrency: 5 })
        )
        yield* five
        assert.strictEqual(yield* witness.count, 5)
        yield* witness.terminate(yield* witness.sessions)
        yield* five
        const { StaleConnection, Unreachable } = (yield* metrics.snapshot).retries
        assert.isAtMost(StaleConnection + Unreachable, 5)
        const { _tag } = yield* breaker.state
        assert.strictEqual(_tag, "Closed")
      }).pipe(Effect.provide(Pg.layer({ url, max: 5 })))
    }))

  it.live("18: twenty calls that their callers give up on open it all the same, by the attempt's own timeout", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      yield* Effect.gen(function*() {
        const { breaker, executor, sql } = yield* services
        yield* sql`SELECT 1`
        proxy.onRequest((_, link) => {
          link.mute()
          return "drop"
        })
        yield* Effect.forEach(
          range(20),
          () =>
            executor.run(sql`SELECT 1`, { attemptTimeout: 100, retry: false }).pipe(
              Effect.timeout(5_000),
              Effect.ignore
            )
        )
        const { _tag } = yield* breaker.state
        assert.strictEqual(_tag, "Open")
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, breaker: { openFor: "1 hour" } })))
    }))

  it.live("20: a full queue and a wait in it are local: the circuit does not hear of them", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* services
        yield* sql`SELECT 1`
        const holder = yield* Effect.forkChild(sql`SELECT pg_sleep(20)`, { startImmediately: true })
        yield* Effect.sleep(50)
        const errors = yield* Effect.forEach(range(12), () => Effect.flip(sql`SELECT 1`), { concurrency: 12 })
        const tags = errors.map((error) => Pg.Errors.fromSqlError(error)?._tag)
        assert.deepStrictEqual([...new Set(tags)].sort(), ["AcquireTimeout", "PoolSaturated"])
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        yield* Fiber.interrupt(holder)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, maxWaiting: 6, acquireTimeout: 1000 })))
    }))

  it.live("36: COMMIT and ROLLBACK of what is under way pass after the circuit has opened", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* services
        const open = Effect.forEach(
          range(5),
          () => Effect.ignore(breaker.protect(Effect.fail(Object.assign(new Error("down"), { code: "ECONNREFUSED" }))))
        )
        yield* sql.withTransaction(Effect.andThen(sql`INSERT INTO t VALUES (1)`, open))
        const { _tag } = yield* breaker.state
        assert.strictEqual(_tag, "Open")
        assert.strictEqual(yield* rows, 1)
        const rejected = yield* Effect.flip(sql`SELECT 1`)
        assert.strictEqual(Pg.Errors.fromSqlError(rejected)?._tag, "CircuitOpen")
        yield* breaker.reset
        const rolledBack = sql.withTransaction(Effect.gen(function*() {
          yield* sql`INSERT INTO t VALUES (1)`
          yield* open
          return yield* Effect.fail("no")
        }))
        assert.strictEqual(yield* Effect.flip(rolledBack), "no")
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, breaker: { openFor: "1 hour" } })))
    }))

  it.live("a transaction that its caller gives up on says nothing, however well it was rolled back", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* services
        const lost = sql.withTransaction(
          Effect.andThen(sql`SELECT 1`, sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        )
        yield* Effect.exit(lost)
        const before = yield* breaker.state
        assert.deepStrictEqual(before, { _tag: "Closed", failures: 1 })
        yield* Effect.exit(sql.withTransaction(Effect.andThen(sql`SELECT 1`, Effect.interrupt)))
        assert.deepStrictEqual(yield* breaker.state, before)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("37: twelve statements that fail inside one transaction are one outcome, and that is a success", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { breaker, sql } = yield* services
        let outcomes = 0
        yield* Effect.ignore(sql.withTransaction(
          Effect.forEach(range(12), () => Effect.ignore(sql`SELECT 1 / 0`), { discard: true })
        ))
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        // Lost, it is one failure, however many statements saw it.
        yield* Effect.ignore(sql.withTransaction(Effect.andThen(
          Effect.ignore(sql`SELECT pg_terminate_backend(pg_backend_pid())`),
          Effect.forEach(range(12), () =>
            Effect.tapError(sql`SELECT 1`, () => Effect.sync(() => outcomes++)).pipe(
              Effect.ignore
            ), { discard: true })
        )))
        assert.strictEqual(outcomes, 12)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 1 })
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, ...instantly })))
    }))

  it.live("39: a call that waits for the circuit is let in when its time has come", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { breaker, executor, sql } = yield* services
        yield* Effect.forEach(
          range(5),
          () => Effect.ignore(breaker.protect(Effect.fail(Object.assign(new Error("down"), { code: "ECONNREFUSED" }))))
        )
        const startedAt = yield* Clock.currentTimeMillis
        const refused = yield* Effect.flip(executor.run(sql`SELECT 1 AS one`))
        assert.strictEqual(refused._tag, "CircuitOpen")
        const callers = range(20).map(() => executor.run(sql`SELECT 1 AS one`, { waitForCircuit: true }))
        yield* Effect.all(callers, { concurrency: "unbounded" })
        assert.isAtLeast((yield* Clock.currentTimeMillis) - startedAt, 490)
        const tooShort = yield* Effect.flip(
          Effect.andThen(
            Effect.forEach(range(5), () =>
              Effect.ignore(
                breaker.protect(Effect.fail(Object.assign(new Error("down"), { code: "ECONNREFUSED" })))
              )),
            executor.run(sql`SELECT 1`, { waitForCircuit: true, deadline: 100 })
          )
        )
        assert.strictEqual(tooShort._tag, "CircuitOpen")
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, breaker: { openFor: 500, jitter: "none" } })))
    }))

  it.live("41: ten callers on a dead database make no more than twenty connects", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        yield* Effect.forEach(range(10), () => Effect.ignore(sql`SELECT 1`), { concurrency: 10 })
        assert.isAtMost(impostor.accepted(), 20)
        assert.isAtLeast(impostor.accepted(), 1)
      }).pipe(Effect.provide(Pg.layer({ url: impostor.url, max: 10, breaker: false })))
    }))

  it.live("42: an INSERT whose socket dies after it was sent is an OutcomeUnknown, and repeated only if idempotent", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeTable
      const proxy = yield* makeProxy(url)
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        const loseAnswer = () => {
          let isLost = false
          proxy.onRequest((request, link) => {
            if (!isLost && request.includes("INSERT")) {
              isLost = true
              link.mute()
              setTimeout(link.cut, 50)
            }
            return "pass"
          })
        }
        loseAnswer()
        const error = yield* Effect.flip(executor.run(sql`INSERT INTO t VALUES (1)`.unprepared))
        assert.strictEqual(error._tag, "OutcomeUnknown")
        yield* eventually("the row", Effect.map(rows, (count) => count === 1))
        yield* witness.query("CREATE UNIQUE INDEX ON t (n)")
        loseAnswer()
        const upsert = sql`INSERT INTO t VALUES (2) ON CONFLICT DO NOTHING`.unprepared
        yield* executor.run(upsert, { idempotent: true })
        assert.strictEqual(yield* rows, 2)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url: proxy.url, max: 1 })))
    }))

  it.live("43: what cannot be serialized repeats its transaction, and not its statement", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* witness.query("INSERT INTO t VALUES (1)")
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        let reads = 0
        yield* Pg.Executor.transaction(
          Effect.gen(function*() {
            reads++
            const [row] = yield* sql<{ n: number }>`SELECT n FROM t`
            // Somebody else is quicker, the first time.
            if (reads === 1) yield* witness.query("UPDATE t SET n = n + 10")
            yield* sql`UPDATE t SET n = ${row!.n + 1}`
          }),
          { isolation: "repeatable read" }
        )
        assert.strictEqual(reads, 2)
        assert.strictEqual(yield* witness.value("SELECT n FROM t"), 12)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))

  it.live("44: an interruption between two attempts leaves nothing behind", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const pool = yield* Pg.Pool.Pool
        const fiber = yield* Effect.forkChild(sql`SELECT 1`, { startImmediately: true })
        yield* eventually("a connect", Effect.sync(() => impostor.accepted() > 0))
        yield* Effect.sleep(50)
        const before = impostor.accepted()
        yield* Fiber.interrupt(fiber)
        yield* Effect.sleep(500)
        assert.strictEqual(impostor.accepted(), before)
        const { active, connecting, waiting } = yield* pool.stats
        assert.deepStrictEqual([active, connecting, waiting], [0, 0, 0])
      }).pipe(
        Effect.provide(
          Pg.layer({ url: impostor.url, max: 2, breaker: false, retry: { base: 400, jitter: "none" } })
        )
      )
    }))
})
