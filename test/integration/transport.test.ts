import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import { readFileSync } from "node:fs"
import * as Net from "node:net"
import { join } from "node:path"
import { describe } from "vitest"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"
import { certificate, makeTlsServer } from "./tlsServer.ts"

const own = `SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`

const encrypted = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql.unsafe<{ ssl: boolean }>(own)
  return row!.ssl
})

const established = "01"
const keepaliveTimer = "02"

/**
 * Milliseconds until the kernel's next keepalive probe, of each connection to a port.
 * https://docs.kernel.org/networking/proc_net_tcp.html
 */
const keepaliveIn = (port: number): ReadonlyArray<number> =>
  ["/proc/net/tcp", "/proc/net/tcp6"].flatMap((file) =>
    readFileSync(file, "utf8").split("\n").flatMap((line) => {
      const [, , remote, state, , timer] = line.trim().split(/\s+/)
      const [kind, ticks] = timer?.split(":") ?? []
      const isOurs = Number.parseInt(remote?.split(":")[1] ?? "", 16) === port && state === established
      return isOurs && kind === keepaliveTimer ? [Number.parseInt(ticks!, 16) * 10] : []
    })
  )

describe("transport", () => {
  it.live("TLS carries statements, and its losses are told as truthfully as those of a plain socket", () =>
    Effect.scoped(Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      const pool = Pg.layer({ url: database.url, ssl: { ca: certificate, servername: "localhost" }, max: 2 })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        assert.isTrue(yield* encrypted)
        yield* sql`CREATE TABLE t (id int)`

        const cut = yield* Effect.flip(sql`INSERT INTO t SELECT 1 FROM pg_terminate_backend(pg_backend_pid())`)
        assert.strictEqual(Pg.Errors.fromSqlError(cut)?._tag, "OutcomeUnknown")

        const bodies = yield* Effect.flip(sql.withTransaction(
          Effect.andThen(sql`INSERT INTO t VALUES (2)`, sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        ))
        assert.strictEqual(bodies._tag, "SqlError")
        assert.isTrue(bodies.isRetryable, "rolled back, so it may be repeated")
        assert.deepStrictEqual(yield* sql`SELECT * FROM t`, [])
      }).pipe(Effect.provide(pool))
    })))

  it.live("a certificate that cannot be read fails the connect at once", () =>
    Effect.scoped(Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      const pool = Pg.layer({ url: database.url, ssl: { ca: certificate, cert: "no PEM" }, max: 1, retry: false })
      const [took, error] = yield* Effect.timed(Effect.flip(Effect.provide(encrypted, pool)))
      assert.isBelow(Duration.toMillis(took), 3000)
      assert.strictEqual(error._tag, "SqlError")
    })))

  it.live("a server that is not there is told at once, also when the password takes its time", () =>
    Effect.gen(function*() {
      const pool = Pg.layer({
        host: "127.0.0.1",
        port: 1,
        username: "nobody",
        password: Effect.delay(Effect.succeed(Redacted.make("late")), 100),
        max: 1,
        retry: false
      })
      const [took, error] = yield* Effect.timed(Effect.flip(Effect.provide(encrypted, pool)))
      assert.isBelow(Duration.toMillis(took), 3000)
      assert.strictEqual(error._tag, "SqlError")
      if (error._tag === "SqlError") {
        assert.include(JSON.stringify(error.reason.cause), "ECONNREFUSED")
      }
    }))

  it.live("TLS that is only preferred falls back to a server without it", () =>
    Effect.scoped(Effect.gen(function*() {
      const plain = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
      const url = Redacted.make(`${Redacted.value(plain.url)}?sslmode=prefer`)
      assert.isFalse(yield* Effect.provide(encrypted, Pg.layer({ url, max: 1 })))
    })))

  it.live("a Unix socket is found by its folder and by its path", () =>
    Effect.scoped(Effect.gen(function*() {
      const { database, path } = yield* makeTlsServer
      const common = {
        username: database.username,
        password: database.password,
        database: database.database,
        max: 1
      }
      for (
        const options of [
          { ...common, host: path, port: database.port },
          { ...common, path: join(path, `.s.PGSQL.${database.port}`) }
        ]
      ) {
        const rows = yield* Effect.provide(
          Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql<{ local: boolean }>`SELECT inet_client_addr() IS NULL AS local`
          ),
          Pg.layer(options)
        )
        assert.isTrue(rows[0]!.local)
      }
    })))

  it.live.skipIf(process.platform !== "linux")(
    "an idle session is kept alive by TCP, after 30 seconds or as it is told",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const { port, url } = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
        for (const [keepAlive, seconds] of [[undefined, 30], ["2 minutes", 120]] as const) {
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient.SqlClient
            yield* sql`SELECT 1`
            const [next, ...others] = keepaliveIn(port)
            assert.deepStrictEqual(others, [])
            assert.isAtMost(next!, seconds * 1000)
            assert.isAbove(next!, (seconds - 20) * 1000)
          }).pipe(Effect.provide(Pg.layer({ url, max: 1, keepAlive })))
        }
      }))
  )

  it.live("a socket of the caller's own is used for sessions and for cancelling, and is let go of", () =>
    Effect.scoped(Effect.gen(function*() {
      const database = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
      const opened: Array<Net.Socket> = []
      const stream = () => {
        const socket = Net.connect(database.port, database.host)
        opened.push(socket)
        return socket
      }
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`SELECT 1`
        assert.lengthOf(opened, 1)
        yield* Effect.timeoutOption(sql`SELECT pg_sleep(30)`, "100 millis")
        assert.lengthOf(opened, 2)
        yield* sql`SELECT 1`
      }).pipe(Effect.provide(Pg.layer({
        username: database.username,
        password: database.password,
        database: database.database,
        stream,
        max: 1
      })))
      assert.isTrue(opened.every((socket) => socket.destroyed))
    })))
})
