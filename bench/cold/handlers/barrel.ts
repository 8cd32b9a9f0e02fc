import * as Pg from "effect-pg-pool"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"

export const handler = Pg.Serverless.lambda(
  () => Effect.flatMap(SqlClient, (sql) => sql<{ readonly one: number }>`SELECT 1 AS one`),
  { layer: Pg.layer({ url: Redacted.make(process.env["DATABASE_URL"]!), min: 0, max: 2 }) }
)
