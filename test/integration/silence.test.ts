import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Net from "node:net"
import { Duplex } from "node:stream"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { farAway } from "./distance.ts"
import { makeProxy } from "./proxy.ts"
import { certificate, makeTlsServer } from "./tlsServer.ts"
import { ended, eventually, makeTable, makeWitness, soon } from "./witness.ts"

const services = Effect.gen(function*() {
  return {
    sql: yield* PgClient.PgClient,
    pool: yield* Pg.Pool.Pool,
    executor: yield* Pg.Executor.Executor,
    metrics: yield* Pg.Metrics.Metrics
  }
})

type Work = (
  sql: PgClient.PgClient,
  executor: Pg.Executor.Executor["Service"]
) => Effect.Effect<unknown, SqlError | Pg.Errors.PoolError | "late">

/** A server behind a proxy that can stop passing on what it is told. */
const makeMute = Effect.gen(function*() {
  const proxy = yield* makeProxy(yield* freshDatabase)
  return { url: proxy.url, fallSilent: Effect.sync(() => proxy.onRequest(() => "drop")) }
})

/** Streams of a caller's own that are no sockets. */
const tunnelTo = (url: Redacted.Redacted) => {
  const { hostname, port } = new URL(Redacted.value(url))
  return () => {
    const socket = Net.connect({ host: hostname, port: Number(port) })
    const tunnel: Duplex = new Duplex({
      read: () => void socket.resume(),
      write: (chunk: Uint8Array, _encoding, done) => void socket.write(chunk, done),
      final: (done) => void socket.end(done),
      destroy: (error, done) => {
        socket.destroy()
        done(error)
      }
    })
    socket.on("data", (chunk) => tunnel.push(chunk))
    socket.on("end", () => tunnel.push(null))
    socket.on("error", (error) => tunnel.destroy(error))
    socket.on("close", () => tunnel.destroy())
    return tunnel
  }
}

/** How many milliseconds an effect takes to fail, and what it fails with. */
const failure = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.timed(Effect.flip(effect)), ([took, error]) => ({ error, took: Duration.toMillis(took) }))

/** The driver goes on waiting for an answer for five seconds, so less than three is none of its doing. */
const promptly = 3000

const insertsSlowly = `SELECT count(*)::int FROM pg_stat_activity
  WHERE datname = current_database() AND state = 'active' AND query LIKE 'INSERT%'`

describe("on a server that has fallen silent, queryTimeout ends", () => {
  const impatient = { max: 1, statementTimeout: 500, queryTimeout: 500, closeTimeout: 100, retry: false } as const

  const kinds: ReadonlyArray<readonly [string, (sql: PgClient.PgClient) => Effect.Effect<unknown, SqlError>]> = [
    ["a stream", (sql) => Stream.runCollect(sql`SELECT generate_series(1, 3)`.stream)],
    ["a LISTEN", (sql) => Effect.scoped(sql.listen("news"))]
  ]

  for (const [name, work] of kinds) {
    it.live(name, () =>
      Effect.gen(function*() {
        const { fallSilent, url } = yield* makeMute
        yield* Effect.gen(function*() {
          const { sql } = yield* services
          yield* sql`SELECT 1`
          yield* fallSilent
          const error = yield* soon("the end of it", Effect.flip(work(sql)), 6)
          const typed = Pg.Errors.fromSqlError(error)
          assert.strictEqual(typed?._tag, "StatementTimeout")
          if (typed?._tag === "StatementTimeout") assert.strictEqual(typed.by, "client")
        }).pipe(Effect.provide(Pg.layer({ ...impatient, url })))
      }))
  }

  it.live("a stream whose server falls silent between two rows", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      let fallSilent = () => {}
      proxy.onRequest((_, link) => {
        fallSilent = link.mute
        return "pass"
      })
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        let rows = 0
        const read = Stream.runForEach(sql`SELECT generate_series(1, 1000000)`.stream, () =>
          Effect.sync(() => rows++ === 0 ? fallSilent() : undefined))
        const error = yield* soon("the end of the stream", Effect.flip(read), 6)
        assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "StatementTimeout")
        assert.isAbove(rows, 0)
        assert.isBelow(rows, 1_000_000)
      }).pipe(Effect.provide(Pg.layer({ ...impatient, url: proxy.url })))
    }))

  it.live("a statement on a session that had been idle for longer than that", () =>
    Effect.gen(function*() {
      const { fallSilent, url } = yield* makeMute
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        yield* sql`SELECT 1`
        yield* Effect.sleep(2000)
        yield* fallSilent
        const error = yield* soon("the end of the statement", Effect.flip(sql`SELECT 2`), 6)
        assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "StatementTimeout")
      }).pipe(Effect.provide(Pg.layer({ ...impatient, url })))
    }))

  it.live("a stream that falls silent after its consumer has taken its time", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        let rows = 0
        const read = Stream.runForEach(
          sql`SELECT repeat('x', 1000), CASE WHEN i > 40 THEN pg_sleep(30)::text END FROM generate_series(1, 41) i`
            .stream,
          () => Effect.suspend(() => rows++ === 0 ? Effect.sleep(2500) : Effect.void)
        )
        const error = yield* soon("the end of the stream", Effect.flip(read), 8)
        assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "StatementTimeout")
      }).pipe(Effect.provide(Pg.layer({ ...impatient, url, statementTimeout: Infinity })))
    }))

  it.live("no stream whose consumer takes its time", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const { metrics, sql } = yield* services
        let rows = 0
        yield* Stream.runForEach(sql`SELECT generate_series(1, 5000)`.stream, () =>
          Effect.suspend(() => rows++ === 0 ? Effect.sleep(2500) : Effect.void))
        assert.strictEqual(rows, 5000)
        yield* sql`SELECT 1`
        assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
      }).pipe(Effect.provide(Pg.layer({ ...impatient, url, statementTimeout: Infinity })))
    }))

  it.live("a statement on a stream of the caller's own that is no socket, and no statement that is answered", () =>
    Effect.gen(function*() {
      const { fallSilent, url } = yield* makeMute
      const stream = tunnelTo(url)
      yield* Effect.gen(function*() {
        const { metrics, sql } = yield* services
        yield* sql`SELECT 1`
        yield* Effect.sleep(2000)
        yield* sql`SELECT 1`
        assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
        yield* fallSilent
        const error = yield* soon("the end of the statement", Effect.flip(sql`SELECT 2`), 8)
        assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "StatementTimeout")
      }).pipe(Effect.provide(Pg.layer({ ...impatient, url, stream })))
    }))
})

describe("on a stream of the caller's own that is no socket, queryTimeout", () => {
  const once = { max: 1, closeTimeout: 100, retry: false, statementTimeout: Infinity } as const

  it.live("gives a statement all of its time, however long the session was idle before it", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const { metrics, sql } = yield* services
        // The session's silence is looked at every 1500 ms: in four rounds of two seconds, once while a statement runs.
        for (let round = 0; round < 4; round++) {
          yield* sql`SELECT pg_sleep(0.8)`
          yield* Effect.sleep(1200)
        }
        assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
      }).pipe(Effect.provide(Pg.layer({ ...once, url, queryTimeout: 500, stream: tunnelTo(url) })))
    }))

  it.live("may be longer than a timer can hold", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const rows = yield* Effect.flatMap(services, ({ sql }) => sql`SELECT 1 AS n FROM pg_sleep(0.2)`).pipe(
        Effect.provide(Pg.layer({ ...once, url, queryTimeout: "60 days", stream: tunnelTo(url) }))
      )
      assert.deepStrictEqual(rows, [{ n: 1 }])
    }))
})

describe("on a server that has fallen silent, a deadline is kept", () => {
  const kinds: ReadonlyArray<readonly [string, Parameters<typeof Pg.layer>[0], Work]> = [
    ["by a unit inside of a unit", {}, (sql, executor) => executor.run(sql`SELECT 2`)],
    ["by a stream", {}, (sql) => Stream.runCollect(sql`SELECT 2`.stream)],
    ["by a transaction", {}, (sql) => sql.withTransaction(sql`SELECT 2`)],
    ["while the session is checked first", { validate: "always" }, (sql) => sql`SELECT 2`]
  ]

  for (const [name, options, work] of kinds) {
    it.live(name, () =>
      Effect.gen(function*() {
        const { fallSilent, url } = yield* makeMute
        yield* Effect.gen(function*() {
          const { executor, sql } = yield* services
          yield* sql`SELECT 1`
          yield* fallSilent
          const { error, took } = yield* failure(executor.run(work(sql, executor), { deadline: 200 }))
          assert.instanceOf(error, Pg.Errors.DeadlineExceeded)
          assert.isBelow(took, promptly)
        }).pipe(Effect.provide(Pg.layer({ ...options, url, max: 1, closeTimeout: 100 })))
      }))
  }

  it.live("and so is an attempt's bound around a unit, which is evidence against the server", () =>
    Effect.gen(function*() {
      const { fallSilent, url } = yield* makeMute
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const breaker = yield* Pg.Breaker.Breaker
        yield* sql`SELECT 1`
        yield* fallSilent
        const { error, took } = yield* failure(
          executor.run(executor.run(sql`SELECT 2`), { attemptTimeout: 200, retry: false })
        )
        assert.strictEqual(error._tag, "StatementTimeout")
        assert.isBelow(took, promptly)
        assert.strictEqual((yield* breaker.state)._tag, "Open")
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, closeTimeout: 100, breaker: { failures: 1 } })))
    }))

  it.live("and so is acquireTimeout, while the session is checked first", () =>
    Effect.gen(function*() {
      const { fallSilent, url } = yield* makeMute
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        yield* sql`SELECT 1`
        yield* fallSilent
        const { error, took } = yield* failure(sql`SELECT 2`)
        const typed = Pg.Errors.fromSqlError(error)
        assert.strictEqual(typed?._tag, "AcquireTimeout")
        if (typed?._tag === "AcquireTimeout") {
          assert.strictEqual(typed.phase, "Validate")
          assert.isBelow(typed.waited, promptly)
        }
        assert.isBelow(took, promptly)
      }).pipe(
        Effect.provide(
          Pg.layer({ url, max: 1, closeTimeout: 100, validate: "always", acquireTimeout: 200, retry: false })
        )
      )
    }))
})

describe("over TLS", () => {
  it.live("the loss of a session is told, and its place is free, as promptly as without", () =>
    Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      yield* Effect.gen(function*() {
        const { metrics, sql } = yield* services
        yield* sql`SELECT 1`
        // One second too many for each of them is six seconds.
        const [took] = yield* Effect.timed(Effect.forEach([1, 2, 3], () =>
          Effect.gen(function*() {
            yield* Effect.flip(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
            yield* sql`SELECT 1`
            yield* Effect.flip(sql`SELECT '{{1,2},{3,4}}'::int4[]`)
            yield* sql`SELECT 1`
          })))
        assert.isBelow(Duration.toMillis(took), promptly)
        assert.isAbove((yield* metrics.snapshot).connectionsOpened, 6)
      }).pipe(Effect.provide(Pg.layer({
        url: database.url,
        ssl: { ca: certificate, servername: "localhost" },
        max: 1,
        retry: false
      })))
    }))
})

describe("a server that is far away", () => {
  it.live("still hears that a write ran out of its time, and does not apply it", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        const error = yield* Effect.flip(
          executor.run(sql`INSERT INTO t SELECT 1 FROM pg_sleep(10)`, { deadline: 200 })
        )
        assert.strictEqual(error._tag, "DeadlineExceeded")
        yield* eventually("it is cancelled", Effect.map(witness.value(insertsSlowly), (count) => count === 0), 5)
        assert.strictEqual(yield* witness.value("SELECT count(*)::int FROM t"), 0)
      }).pipe(Effect.provide(Pg.layer({ url, stream: farAway(url, 100), max: 2, closeTimeout: 100 })))
    }))

  it.live("never has more than max sessions, whatever runs out of its time", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        for (let turn = 0; turn < 5; turn++) {
          yield* Effect.exit(executor.run(sql`SELECT pg_sleep(10)`, { deadline: 300 }))
        }
        assert.isAtMost(watch.most(), 2)
        assert.isAbove(watch.samples(), 20)
      }).pipe(Effect.provide(Pg.layer({ url, stream: farAway(url, 150), max: 2, closeTimeout: 100 })))
    }))
})

describe("closing the pool", () => {
  it.live("cancels what is read as a stream: it does not commit afterwards", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      const reader = yield* Effect.gen(function*() {
        const { sql } = yield* services
        const fiber = yield* Effect.forkDetach(
          Stream.runCollect(sql`INSERT INTO t SELECT 1 FROM pg_sleep(10) RETURNING n`.stream)
        )
        yield* eventually("it runs", Effect.map(witness.value(insertsSlowly), (count) => count === 1))
        return fiber
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, closeTimeout: 100 })))
      yield* eventually("it is cancelled", Effect.map(witness.value(insertsSlowly), (count) => count === 0), 5)
      assert.strictEqual(yield* witness.value("SELECT count(*)::int FROM t"), 0)
      assert.strictEqual((yield* ended(reader))._tag, "Failure")
    }))
})

describe("a link that went dead under callers with little patience", () => {
  const patience: ReadonlyArray<readonly [string, Work]> = [
    [
      "an Effect.timeout",
      (sql) => Effect.timeoutOrElse(sql`SELECT 1`, { duration: 200, orElse: () => Effect.fail("late") })
    ],
    ["an attemptTimeout", (sql, executor) => executor.run(sql`SELECT 1`, { attemptTimeout: 200, retry: false })]
  ]

  for (const multiplex of [false, true]) {
    for (const [name, work] of patience) {
      it.live(`is found out, and the pool recovers: ${name}${multiplex ? ", multiplexed" : ""}`, () =>
        Effect.gen(function*() {
          const proxy = yield* makeProxy(yield* freshDatabase)
          yield* Effect.gen(function*() {
            const { executor, metrics, sql } = yield* services
            yield* sql`SELECT 1`
            proxy.onRequest((_, { id }) => id === 1 ? "drop" : "pass")
            const call = Effect.exit(work(sql, executor))
            let failures = 0
            yield* eventually(
              "a call that works",
              Effect.map(Effect.delay(call, 20), ({ _tag }) => {
                if (_tag === "Failure") failures++
                return _tag === "Success"
              }),
              10
            )
            assert.isAbove(failures, 0)
            for (let turn = 0; turn < 5; turn++) assert.strictEqual((yield* call)._tag, "Success")
            assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 2)
          }).pipe(Effect.provide(Pg.layer({
            url: proxy.url,
            max: 2,
            min: 0,
            multiplex,
            statementTimeout: 500,
            queryTimeout: 500,
            closeTimeout: 100,
            breaker: false
          })))
        }))
    }
  }

  it.live("is not called healthy because callers keep giving sessions back", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        yield* sql`SELECT 1`
        assert.strictEqual((yield* Pg.Health.check).state, "up")
        proxy.onRequest(() => "drop")
        yield* Effect.exit(Effect.timeout(sql`SELECT 1`, 200))
        assert.notStrictEqual((yield* Pg.Health.check).state, "up")
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 2, multiplex: true, closeTimeout: 100 })))
    }))
})
