/** The suite of `client.test.ts` through a PgBouncer in transaction mode, with what must differ there and why. */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Pg from "effect-pg-pool"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { afterAll, beforeAll } from "vitest"
import { type Deviations, discreet } from "../suites/client/deviations.ts"
import type { Engine } from "../suites/client/engine.ts"
import { eventually, reasonOf } from "../suites/client/engine.ts"
import { clientSuite } from "../suites/clientSuite.ts"
import { databaseUrl } from "./database.ts"
import { makePgBouncer, type PgBouncer } from "./pgbouncer.ts"

const scope = Scope.makeUnsafe()
let bouncer: PgBouncer
beforeAll(async () => {
  bouncer = await Effect.runPromise(Scope.provide(makePgBouncer(), scope))
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

const through = (extra: Pg.Options): Engine => (options) =>
  Layer.unwrap(Effect.sync(() =>
    Pg.layer({
      ...options,
      url: bouncer.through(options.url!),
      directUrl: options.url,
      pooler: "transaction",
      ...extra
    })
  ))

const refusalOf = (change: (url: URL) => void) =>
  Effect.suspend(() => {
    const url = new URL(Redacted.value(databaseUrl))
    change(url)
    return Effect.flip(
      Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`).pipe(
        Effect.provide(through({})({ url: Redacted.make(url.href) })),
        Effect.mapError((error) => error as SqlError)
      )
    )
  })

const settingsAreRefused = Effect.gen(function*() {
  const sql = yield* SqlClient
  const error = yield* Effect.flip(sql`SELECT 1`)
  assert.match(error.message, /unsupported startup parameter: .*leave out startupParameters/)
})

const nothingIsPrepared = Effect.gen(function*() {
  const sql = yield* SqlClient
  for (const n of [1, 2]) assert.deepStrictEqual(yield* sql`SELECT ${n}::int4 AS n`, [{ n }])
  yield* sql.withTransaction(sql.withTransaction(sql`SELECT 1`))
  assert.deepStrictEqual(yield* sql`SELECT count(*)::int4 AS n FROM pg_prepared_statements`, [{ n: 0 }])
})

const lent = "a session of the server is lent for one transaction"
const unnamed = "statements have no names"
const unset = "settings at the start are refused"

const deviations: Deviations = {
  ...discreet,
  "a reserved connection is one session until its scope closes": {
    because: lent,
    instead: Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`CREATE TEMP TABLE private (n int4) ON COMMIT DROP`
        yield* sql`INSERT INTO private VALUES (1)`
        assert.deepStrictEqual(yield* sql`SELECT n FROM private`, [{ n: 1 }])
      }))
    })
  },
  "nobody else is given a reserved connection": {
    because: lent,
    instead: Effect.gen(function*() {
      const sql = yield* SqlClient
      const pid = Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, pg_sleep(0.005)`, ([row]) => row!.pid)
      const root = yield* PgClient
      yield* sql.withTransaction(Effect.gen(function*() {
        const own = yield* pid
        const others = yield* Effect.replicateEffect(
          Effect.scoped(Effect.flatMap(root.reserve, (other) => other.executeValues("SELECT pg_backend_pid()", []))),
          30,
          { concurrency: 7 }
        )
        assert.isFalse(others.flat(2).includes(own))
        assert.strictEqual(yield* pid, own)
      }))
    })
  },
  "an interrupted statement leaves the reserved connection usable": {
    because: "what comes after it may run on another session of the server",
    instead: Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* sql.reserve
        yield* Effect.timeoutOption(connection.executeRaw("SELECT pg_sleep(100)", []), "50 millis")
        assert.deepStrictEqual(yield* connection.executeValues("SELECT 1", []), [[1]])
      }))
    })
  },
  "only statements that are not run unprepared are kept prepared": { because: unnamed, instead: nothingIsPrepared },
  "one text is prepared once per parameter types": { because: unnamed, instead: nothingIsPrepared },
  "transactions prepare their savepoints and COMMIT": { because: unnamed, instead: nothingIsPrepared },
  "a statement follows its table when the columns change": {
    because: unnamed,
    instead: Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE shifting (a int4)`
      yield* sql`INSERT INTO shifting VALUES (1)`
      assert.deepStrictEqual(yield* sql`SELECT * FROM shifting`, [{ a: 1 }])
      yield* sql`ALTER TABLE shifting ADD COLUMN b text DEFAULT 'added'`
      assert.deepStrictEqual(yield* sql`SELECT * FROM shifting`, [{ a: 1, b: "added" }])
    })
  },
  "settings are the session's defaults, which RESET brings back": { because: unset, instead: settingsAreRefused },
  "the encoding is UTF-8": { because: unset, instead: settingsAreRefused },
  "a session that was killed is replaced, with the same settings": { because: unset, instead: settingsAreRefused },
  "a wrong password is an authentication error": {
    because: "PgBouncer before 1.21 says so by a code that means something else",
    instead: Effect.gen(function*() {
      const error = yield* refusalOf((url) => {
        url.password = "wrong"
      })
      const [tag, code] = reasonOf(error)
      assert.strictEqual(tag, "AuthenticationError")
      assert.include(["08P01", "28P01"], code)
      assert.isFalse(error.isRetryable)
    })
  },
  "an unknown database is told with the server's code": {
    because: "PgBouncer before 1.21 says so by a code that means something else",
    instead: Effect.gen(function*() {
      const error = yield* refusalOf((url) => {
        url.pathname = "/no_such_database"
      })
      assert.include(["08P01", "3D000"], reasonOf(error)[1])
      assert.match(String(error.reason.cause), /database "no_such_database" does not exist/)
      assert.isFalse(error.isRetryable)
    })
  },
  "after its layer is gone, no session is left on the server": {
    because: "those of the server are the pooler's; it has no client of ours any more",
    instead: Effect.gen(function*() {
      yield* Effect.flatMap(
        SqlClient,
        (sql) => Effect.replicateEffect(sql`SELECT pg_sleep(0.01)`, 20, { concurrency: "unbounded" })
      ).pipe(
        Effect.provide(through({ applicationName: "gone" })({ url: databaseUrl, max: 4 }))
      )
      const ours = Effect.map(
        Effect.orDie(bouncer.say("SHOW CLIENTS")),
        (clients) => clients.filter(({ application_name }) => application_name === "gone").length
      )
      yield* eventually(Effect.map(ours, (count) => count === 0))
    })
  }
}

clientSuite("through PgBouncer", through({}), deviations)

clientSuite("through PgBouncer, multiplexed", through({ multiplex: true }), deviations)
