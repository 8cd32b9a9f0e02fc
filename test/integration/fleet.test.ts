import { assert, describe, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { randomUUID } from "node:crypto"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"
import { ended, eventually, makeWitness, soon } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** 25 places for anybody: 30 less 3 for superusers and 2 for who may use reserved ones. */
const Server = EmbeddedPostgres.layer({
  useDatabaseUrl: false,
  settings: { max_connections: "30", superuser_reserved_connections: "3", reserved_connections: "2" }
})

/** A plain user and a database of its own, dropped with the scope, and a superuser who looks on. */
const makeTenant = Effect.fnUntraced(function*(limits: { readonly role?: number; readonly database?: number } = {}) {
  const server = yield* EmbeddedPostgres
  const name = `t${randomUUID().replaceAll("-", "")}`
  const witness = yield* makeWitness(server.url)
  yield* witness.query(`CREATE ROLE ${name} LOGIN PASSWORD 'word' CONNECTION LIMIT ${limits.role ?? -1}`)
  yield* Effect.addFinalizer(() => Effect.orDie(witness.query(`DROP ROLE ${name}`)))
  yield* witness.query(`CREATE DATABASE ${name} CONNECTION LIMIT ${limits.database ?? -1}`)
  yield* Effect.addFinalizer(() => Effect.orDie(witness.query(`DROP DATABASE ${name} WITH (FORCE)`)))
  const url = Redacted.make(`postgres://${name}:word@${server.host}:${server.port}/${name}`)
  const count = witness.value<number>(
    "SELECT count(*)::int FROM pg_stat_activity WHERE usename = $1 AND application_name = 'orders'",
    [name]
  )
  return { name, url, witness, count }
})

/** One environment of the fleet `orders`. */
const makeEnvironment = Effect.fnUntraced(function*(url: Redacted.Redacted, options: Pg.Options) {
  const scope = yield* Scope.fork(yield* Effect.scope)
  const context = yield* Scope.provide(
    Layer.build(Pg.layer({ url, applicationName: "orders", retry: false, breaker: false, ...options })),
    scope
  )
  const pool = Context.get(context, Pg.Pool.Pool)
  const sql = Context.get(context, SqlClient)
  return {
    pool,
    sql,
    report: Effect.map(pool.fleet, Option.getOrThrow),
    close: Scope.close(scope, Exit.void)
  }
})

layer(Server)("a fleet on a server", (it) => {
  it.effect("is sized by what its first session is told", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTenant()
      const { pool, report, sql } = yield* makeEnvironment(url, {
        ...Pg.Pool.sizeForFleet({ environments: 2, overlap: 1, share: 1, ceiling: 20 })
      })
      assert.strictEqual(pool.statsUnsafe().max, 1)
      yield* sql`SELECT 1`
      const found = yield* report
      console.log(found)
      assert.strictEqual(pool.statsUnsafe().max, found.size)
    }), 30_000)
})
