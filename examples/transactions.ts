// Transactions: all or nothing, in parts (savepoints), and as a whole once more when the connection is lost.
import "./support/database.ts"
import { Data, Effect } from "effect"
import * as Pg from "effect-pg-pool"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"

class TooPoor extends Data.TaggedError("TooPoor")<{ readonly name: string }> {}

const transfer = Effect.fn("transfer")(function*(from: string, to: string, amount: number) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`UPDATE example_account SET balance = balance + ${amount}::int WHERE name = ${to}`
  const [left] = yield* sql<{ balance: number }>`
    UPDATE example_account SET balance = balance - ${amount}::int WHERE name = ${from} RETURNING balance`
  if (left === undefined || left.balance < 0) return yield* new TooPoor({ name: from })
}, (body) => Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(body)))

const program = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const expectBalances = Effect.fnUntraced(function*(what: string, expected: Record<string, number>) {
    const rows = yield* sql<{ name: string; balance: number }>`SELECT name, balance FROM example_account ORDER BY name`
    const balances = Object.fromEntries(rows.map(({ balance, name }) => [name, balance]))
    assert.deepEqual(balances, expected)
    console.log(what, balances)
  })

  yield* sql`DROP TABLE IF EXISTS example_account`
  yield* sql`CREATE TABLE example_account (name text PRIMARY KEY, balance int NOT NULL)`
  yield* sql`INSERT INTO example_account ${sql.insert([{ name: "ada", balance: 100 }, { name: "bob", balance: 0 }])}`

  yield* transfer("ada", "bob", 30)
  yield* expectBalances("committed                   ", { ada: 70, bob: 30 })

  const error = yield* Effect.flip(transfer("ada", "bob", 1000))
  assert(error._tag === "TooPoor")
  yield* expectBalances("failed, so rolled back      ", { ada: 70, bob: 30 })

  // A transaction inside a transaction is a savepoint: the inner one fails alone.
  yield* sql.withTransaction(Effect.gen(function*() {
    yield* transfer("ada", "bob", 10)
    yield* transfer("bob", "ada", 1000).pipe(Effect.catchTag("TooPoor", () => Effect.void))
  }))
  yield* expectBalances("inner one rolled back       ", { ada: 60, bob: 40 })

  // The connection dies before COMMIT, so the server has rolled back, and `run` does all of it again.
  let attempts = 0
  const interrupted = sql.withTransaction(Effect.gen(function*() {
    yield* transfer("ada", "bob", 10)
    if (++attempts === 1) yield* sql`SELECT pg_terminate_backend(pg_backend_pid())`
  }))
  yield* Pg.Executor.run(interrupted)
  assert.equal(attempts, 2)
  yield* expectBalances("run twice, committed once   ", { ada: 50, bob: 50 })

  yield* sql`DROP TABLE example_account`
})

await Effect.runPromise(Effect.provide(program, Pg.layerConfig()))
