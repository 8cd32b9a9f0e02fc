import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import { chmodSync, chownSync, copyFileSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"

const fixture = (name: string) => fileURLToPath(new URL(`./fixtures/tls/${name}`, import.meta.url))

/** What the server shows, and whoever connects has to trust: it names `localhost`. */
export const certificate = readFileSync(fixture("server.crt"), "utf8")

/** A folder for sockets and keys that the server's account may use. */
const folder = Effect.acquireRelease(
  Effect.sync(() => {
    const path = mkdtempSync(join(tmpdir(), "transport-"))
    chmodSync(path, 0o777)
    return path
  }),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

/** PostgreSQL refuses a key that others can read, so it must belong to the account that the server runs under. */
const handOver = (path: string, owner: string) => {
  if (process.getuid?.() !== 0) return
  const { gid, uid } = statSync(owner)
  chownSync(path, uid, gid)
}

/** A server of the scope's own that speaks TLS, and has its Unix socket in the folder `path`. */
export const makeTlsServer = Effect.gen(function*() {
  const path = yield* folder
  const database = yield* EmbeddedPostgres.make({
    useDatabaseUrl: false,
    settings: { unix_socket_directories: path }
  })
  const key = join(path, "server.key")
  const crt = join(path, "server.crt")
  copyFileSync(fixture("server.key"), key)
  copyFileSync(fixture("server.crt"), crt)
  for (const file of [key, crt]) {
    chmodSync(file, 0o600)
    handOver(file, database.dataDirectory!)
  }
  const admin = yield* Layer.build(Layer.fresh(Pg.layer({ url: database.url, max: 1 })))
  yield* Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* sql.unsafe(`ALTER SYSTEM SET ssl_cert_file = '${crt}'`)
    yield* sql.unsafe(`ALTER SYSTEM SET ssl_key_file = '${key}'`)
    yield* sql.unsafe("ALTER SYSTEM SET ssl = on")
    yield* sql`SELECT pg_reload_conf()`
  }).pipe(Effect.provide(admin))
  return { database, path }
})
