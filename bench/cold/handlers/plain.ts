import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"

const runtime = ManagedRuntime.make(
  PgClient.layer({ url: Redacted.make(process.env["DATABASE_URL"]!), maxConnections: 2 })
)

const one = Effect.flatMap(SqlClient, (sql) => sql<{ readonly one: number }>`SELECT 1 AS one`)

export const handler = () => runtime.runPromise(one)
