// One query through the pool. Run it with DATABASE_URL set, or let it start a PostgreSQL of its own.
import "./support/database.ts"
import assert from "node:assert/strict"

// The quick start of the README, line for line.
import { Effect } from "effect"
import * as Pg from "effect-pg-pool"
import { SqlClient } from "effect/sql"

const program = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  return yield* sql`SELECT n, n * n AS square FROM generate_series(1, ${3}::int) AS n`
})

const rows = await Effect.runPromise(Effect.provide(program, Pg.layerConfig()))
console.log(rows)

assert.deepEqual(rows.map(({ square }) => square), [1, 4, 9])
