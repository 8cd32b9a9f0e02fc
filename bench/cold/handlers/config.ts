import * as Pg from "effect-pg-pool"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { SqlClient } from "effect/sql/SqlClient"

const runtime = ManagedRuntime.make(Pg.layerConfig())

const one = Effect.flatMap(SqlClient, (sql) => sql<{ readonly one: number }>`SELECT 1 AS one`)

export const handler = () => runtime.runPromise(one)
