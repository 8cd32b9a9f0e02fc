import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import { randomUUID } from "node:crypto"
import { inject } from "vitest"

/** The server of this run, its database `postgres`, as a superuser. */
export const databaseUrl: Redacted.Redacted = Redacted.make(inject("databaseUrl"))

/** One statement on a short-lived connection of its own. */
const administer = (statement: string): Effect.Effect<void, SqlError> =>
  Effect.scoped(Effect.flatMap(
    PgConnection.make({ url: databaseUrl, applicationName: "test-administration" }),
    (connection) => Effect.asVoid(connection.query(statement, [], false))
  ))

/** An empty database on the server of this run, dropped with all its sessions when the scope closes. */
export const freshDatabase: Effect.Effect<Redacted.Redacted, SqlError, Scope.Scope> = Effect.acquireRelease(
  Effect.suspend(() => {
    const name = `test_${randomUUID().replaceAll("-", "")}`
    return Effect.as(administer(`CREATE DATABASE ${name}`), name)
  }),
  (name) => Effect.orDie(administer(`DROP DATABASE ${name} WITH (FORCE)`))
).pipe(
  Effect.map((name) => {
    const url = new URL(Redacted.value(databaseUrl))
    url.pathname = `/${name}`
    return Redacted.make(url.href)
  })
)
