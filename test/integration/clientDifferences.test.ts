/**
 * Where the pool's client says something else than the driver's, on purpose: each test shows what the driver does and
 * what the pool does, side by side.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Pg from "effect-pg-pool"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { SqlClient } from "effect/sql/SqlClient"
import { isSqlError, type SqlError } from "effect/sql/SqlError"
import * as Tracer from "effect/Tracer"
import * as Net from "node:net"
import { databaseUrl, freshDatabase } from "./database.ts"

type Client = Layer.Layer<PgClient.PgClient | SqlClient, unknown>

const driver = (url: Redacted.Redacted, max = 2): Client => PgClient.layer({ url, maxConnections: max })
const pool = (url: Redacted.Redacted, max = 2): Client => Pg.layer({ url, max })

/** A database, a killer of sessions in it, and a table to count in. */
const scene = Effect.gen(function*() {
  const url = yield* freshDatabase
  const onlooker = yield* PgConnection.make({ url, applicationName: "onlooker" })
  yield* onlooker.query("CREATE TABLE counted (n int4)")
  const rows = (text: string, params: ReadonlyArray<unknown> = []) =>
    Effect.map(onlooker.query(text, params), (result) => result.rows)
  const until = (text: string) =>
    Effect.gen(function*() {
      while ((yield* rows(text)).length === 0) yield* Effect.sleep(10)
    }).pipe(Effect.timeoutOrElse({ duration: "20 seconds", orElse: () => Effect.die(new Error(`never: ${text}`)) }))
  return {
    url,
    count: Effect.map(rows("SELECT count(*)::int4 AS n FROM counted"), ([row]) => row?.n as number),
    kill: (pid: number) => rows("SELECT pg_terminate_backend($1, 5000)", [pid]),
    killStatement: (text: string) =>
      Effect.andThen(
        until(
          `SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() AND query LIKE '%${text}%'`
        ),
        rows(
          "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE $1",
          [`%${text}%`]
        )
      )
  }
})

/** A road to the server that can be cut between the two ends, so that neither says goodbye. */
const makeRoad = Effect.fnUntraced(function*(url: Redacted.Redacted) {
  const { hostname, port } = new URL(Redacted.value(url))
  const ends = new Set<Net.Socket>()
  const cut = Effect.sync(() => {
    for (const end of ends) end.destroy()
  })
  const server = yield* Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const server = Net.createServer((near) => {
        const far = Net.connect({ host: hostname, port: Number(port) })
        for (const end of [near, far]) {
          ends.add(end)
          end.on("error", () => undefined)
        }
        near.pipe(far).pipe(near)
      })
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.andThen(cut, Effect.callback<void>((resume) => void server.close(() => resume(Effect.void))))
  )
  const near = new URL(Redacted.value(url))
  near.hostname = "127.0.0.1"
  near.port = String((server.address() as Net.AddressInfo).port)
  return { url: Redacted.make(near.href), cut }
})

const backend = Effect.flatMap(
  SqlClient,
  (sql) => Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]!.pid)
)

const errorOf = <A>(exit: Exit.Exit<A, unknown>): SqlError => {
  const error = Option.getOrUndefined(Exit.findErrorOption(exit))
  return isSqlError(error) ? error : assert.fail(`no SqlError in ${JSON.stringify(exit)}`)
}

const hasDefect = (exit: Exit.Exit<unknown, unknown>): boolean => Exit.isFailure(exit) && Cause.hasDies(exit.cause)

describe("a write that is cut while it runs", () => {
  const cut = Effect.fnUntraced(function*(make: (url: Redacted.Redacted) => Client) {
    const { count, killStatement, url } = yield* scene
    const exit = yield* Effect.gen(function*() {
      const sql = yield* SqlClient
      const write = yield* Effect.forkScoped(
        Effect.exit(sql`INSERT INTO counted SELECT 1 FROM pg_sleep(100) /* cut write */`)
      )
      yield* killStatement("cut write")
      return yield* Fiber.join(write)
    }).pipe(Effect.provide(make(url)))
    assert.strictEqual(yield* count, 0)
    return errorOf(exit)
  })

  it.live("the driver calls it a connection error that may be retried", () =>
    Effect.gen(function*() {
      const error = yield* cut(driver)
      assert.strictEqual(error.reason._tag, "ConnectionError")
      assert.isTrue(error.isRetryable)
    }))

  it.live("the pool says whether it may have been applied, and never that it may be repeated", () =>
    Effect.gen(function*() {
      const error = yield* cut(pool)
      assert.isFalse(error.isRetryable)
      const typed = Pg.Errors.fromSqlError(error)
      assert.strictEqual(typed?._tag, "OutcomeUnknown")
      assert.strictEqual(typed?._tag === "OutcomeUnknown" && typed.operation, "statement")
    }))
})

describe("a write whose connection is cut without a word", () => {
  const cut = Effect.fnUntraced(function*(make: (url: Redacted.Redacted) => Client) {
    const { url } = yield* scene
    const road = yield* makeRoad(url)
    const exit = yield* Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`SELECT 1`
      const write = yield* Effect.forkScoped(Effect.exit(sql`INSERT INTO counted SELECT 1 FROM pg_sleep(0.5)`))
      yield* Effect.sleep(100)
      yield* road.cut
      return yield* Fiber.join(write)
    }).pipe(Effect.provide(make(road.url)))
    return errorOf(exit)
  })

  it.live("the driver calls it a connection error that may be retried", () =>
    Effect.gen(function*() {
      const error = yield* cut((url) => driver(url, 1))
      assert.strictEqual(error.reason._tag, "ConnectionError")
      assert.isTrue(error.isRetryable)
    }))

  it.live("the pool calls its outcome unknown", () =>
    Effect.gen(function*() {
      const error = yield* cut((url) => pool(url, 1))
      assert.isFalse(error.isRetryable)
      assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "OutcomeUnknown")
    }))
})

describe("a transaction whose session dies under it", () => {
  const die = Effect.fnUntraced(function*(make: (url: Redacted.Redacted) => Client) {
    const { count, kill, url } = yield* scene
    const exit = yield* Effect.gen(function*() {
      const sql = yield* SqlClient
      const exit = yield* Effect.exit(sql.withTransaction(Effect.gen(function*() {
        yield* sql`INSERT INTO counted VALUES (1)`
        yield* kill(yield* backend)
        yield* sql`INSERT INTO counted VALUES (2)`
      })))
      // The pool of either kind goes on.
      yield* Effect.retry(sql`SELECT 1`, { schedule: Schedule.spaced(20), times: 200 })
      return exit
    }).pipe(Effect.provide(make(url)))
    assert.strictEqual(yield* count, 0)
    return exit
  })

  it.live("the driver dies of the rollback that it cannot send", () =>
    Effect.gen(function*() {
      assert.isTrue(hasDefect(yield* die(driver)))
    }))

  it.live("the pool fails: the server has rolled back, so the whole transaction may be repeated", () =>
    Effect.gen(function*() {
      const exit = yield* die(pool)
      assert.isFalse(hasDefect(exit))
      const error = errorOf(exit)
      assert.isTrue(error.isRetryable)
      assert.isUndefined(Pg.Errors.fromSqlError(error))
    }))
})

describe("a transaction inside a transaction that hides a failed statement", () => {
  const hide = Effect.fnUntraced(function*(make: (url: Redacted.Redacted) => Client) {
    const { count, url } = yield* scene
    const exit = yield* Effect.gen(function*() {
      const sql = yield* SqlClient
      return yield* Effect.exit(sql.withTransaction(Effect.gen(function*() {
        yield* sql`INSERT INTO counted VALUES (1)`
        yield* sql.withTransaction(Effect.ignore(sql`SELECT 1 / 0`))
      })))
    }).pipe(Effect.provide(make(url)))
    assert.strictEqual(yield* count, 0)
    return exit
  })

  it.live("the driver dies of the savepoint that it cannot release", () =>
    Effect.gen(function*() {
      assert.isTrue(hasDefect(yield* hide(driver)))
    }))

  it.live("the pool fails at the commit, and commits nothing either", () =>
    Effect.gen(function*() {
      const exit = yield* hide(pool)
      assert.isFalse(hasDefect(exit))
      assert.strictEqual(errorOf(exit).message, "PgClient: COMMIT rolled back an aborted transaction")
    }))
})

describe("an idle session that the server has ended", () => {
  /** Ends all idle sessions and asks at once, many times. */
  const ask = Effect.fnUntraced(function*(make: (url: Redacted.Redacted) => Client) {
    const { kill, url } = yield* scene
    return yield* Effect.gen(function*() {
      const sql = yield* SqlClient
      const exits: Array<Exit.Exit<unknown, SqlError>> = []
      for (let round = 0; round < 5; round++) {
        yield* kill(yield* backend)
        exits.push(yield* Effect.exit(sql`SELECT 1 AS one`))
      }
      return exits
    }).pipe(Effect.provide(make(url)))
  })

  // The driver's answer depends on whether the news of the end or the next statement is first.
  it.live("the pool answers all the same", () =>
    Effect.gen(function*() {
      for (const exit of yield* ask((url) => pool(url, 1))) assert.deepStrictEqual(exit, Exit.succeed([{ one: 1 }]))
    }))
})

describe("a server without room for one more session", () => {
  /** A role that may have one session, which is taken. */
  const knock = Effect.fnUntraced(function*(make: (url: Redacted.Redacted) => Client) {
    const { url } = yield* scene
    const role = new URL(Redacted.value(url)).pathname.slice(1)
    const owner = yield* PgConnection.make({ url })
    yield* owner.query(`CREATE ROLE ${role} LOGIN PASSWORD 'secret' CONNECTION LIMIT 1`)
    yield* Effect.addFinalizer(() => Effect.orDie(owner.query(`DROP ROLE ${role}`)))
    const limited = new URL(Redacted.value(url))
    limited.username = role
    limited.password = "secret"
    const own = Redacted.make(limited.href)
    return yield* Effect.scoped(Effect.andThen(
      PgConnection.make({ url: own }),
      Effect.exit(Effect.provide(Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`), make(own)))
    ))
  })

  it.live("the driver calls it an unknown error that is not to be retried", () =>
    Effect.gen(function*() {
      const error = errorOf(yield* knock(driver))
      assert.strictEqual(error.reason._tag, "UnknownError")
      assert.isFalse(error.isRetryable)
    }))

  it.live("the pool calls it a connection error that may be retried", () =>
    Effect.gen(function*() {
      const error = errorOf(yield* knock((url) => Pg.layer({ url, max: 1, retry: false })))
      assert.strictEqual(error.reason._tag, "ConnectionError")
      assert.isTrue(error.isRetryable)
      assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "53300")
    }))

  it.live("the pool retries by itself, and says how often", () =>
    Effect.gen(function*() {
      const error = errorOf(yield* knock((url) => Pg.layer({ url, max: 1, retry: { base: 1, attempts: 2 } })))
      const typed = Pg.Errors.fromSqlError(error)
      assert.strictEqual(typed?._tag === "RetriesExhausted" && typed.attempts, 2)
    }))
})

describe("a server that speaks no TLS", () => {
  const ask = (client: Client) =>
    Effect.map(Effect.exit(Effect.provide(Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`), client)), errorOf)

  it.live("the driver calls it a connection error that may be retried", () =>
    Effect.gen(function*() {
      const error = yield* ask(PgClient.layer({ url: databaseUrl, ssl: true, maxConnections: 1 }))
      assert.isTrue(error.isRetryable)
    }))

  it.live("the pool knows that it will not speak TLS the next time either", () =>
    Effect.gen(function*() {
      const error = yield* ask(Pg.layer({ url: databaseUrl, ssl: true, max: 1 }))
      assert.isFalse(error.isRetryable)
    }))
})

describe("a layer over a server that is down", () => {
  const nowhere = Redacted.make("postgres://nobody:secret@127.0.0.1:1/nowhere")
  const build = (client: Client) => Effect.exit(Effect.scoped(Layer.build(client)))

  it.live("the pool's is built: the first use tells", () =>
    Effect.gen(function*() {
      assert.isTrue(Exit.isSuccess(yield* build(pool(nowhere))))
      const exit = yield* Effect.exit(
        Effect.provide(
          Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`),
          Pg.layer({ url: nowhere, max: 1, retry: false })
        )
      )
      const error = errorOf(exit)
      assert.strictEqual(error.reason._tag, "ConnectionError")
      assert.isTrue(error.isRetryable)
    }))
})

describe("spans of a client that is configured by URL alone", () => {
  const attributes = (make: (url: Redacted.Redacted) => Client) =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const span = yield* Deferred.make<ReadonlyMap<string, unknown>>()
      const tracer = Tracer.make({
        span: (options) => {
          const native = new Tracer.NativeSpan(options)
          Deferred.doneUnsafe(span, Exit.succeed(native.attributes))
          return native
        }
      })
      yield* Effect.withTracer(sql`SELECT 1`, tracer)
      const seen = yield* Deferred.await(span)
      return [seen.get("db.namespace"), seen.get("server.address"), seen.get("server.port")]
    }).pipe(Effect.provide(make(databaseUrl)))

  it.live("the driver's spans do not know the URL", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* attributes(driver), ["postgres", "localhost", 5432])
    }))

  it.live("the pool's spans name the server that is asked", () =>
    Effect.gen(function*() {
      const { hostname, pathname, port } = new URL(Redacted.value(databaseUrl))
      assert.deepStrictEqual(yield* attributes(pool), [pathname.slice(1), hostname, Number(port)])
    }))
})
