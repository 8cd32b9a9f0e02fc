import * as Pg from "effect-pg-pool/Layer"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"

const runtime = ManagedRuntime.make(Pg.layer({ url: Redacted.make(process.env["DATABASE_URL"]!), min: 0, max: 2 }))

const one = Effect.flatMap(SqlClient, (sql) => sql<{ readonly one: number }>`SELECT 1 AS one`)

export const handler = () => runtime.runPromise(one)
