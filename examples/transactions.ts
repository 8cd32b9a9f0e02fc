// Transactions: all or nothing, in parts (savepoints), as a whole once more when the connection is lost, and told apart
// when the answer to COMMIT is.
import "./support/database.ts"
import { Config, Data, Effect, Layer } from "effect"
import * as Pg from "effect-pg-pool"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"
import * as Net from "node:net"

/** A network that breaks whenever the answer to a COMMIT is on its way. */
const loseCommits = () => {
  const { hostname, port } = new URL(process.env.DATABASE_URL!)
  const socket = Net.connect({ host: hostname, port: Number(port || 5432) })
  const write = socket.write.bind(socket) as (chunk: Uint8Array) => boolean
  socket.write = ((chunk: Uint8Array) => {
    if (Buffer.from(chunk).includes("COMMIT")) {
      socket.pause()
      setTimeout(() => socket.destroy(new Error("the network is gone")), 100)
    }
    return write(chunk)
  }) as typeof socket.write
  return socket
}

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

  // The connection dies before COMMIT, so the server has rolled back, and all of it is done again.
  const seen: Array<number> = []
  yield* Pg.Executor.transaction(Effect.gen(function*() {
    seen.push(yield* Pg.Executor.CurrentAttempt)
    yield* transfer("ada", "bob", 10)
    if (seen.length === 1) yield* sql`SELECT pg_terminate_backend(pg_backend_pid())`
  }))
  assert.deepEqual(seen, [1, 2])
  yield* expectBalances("run twice, committed once   ", { ada: 50, bob: 50 })

  // Two that read what the other one writes cannot both be right: one of them is repeated, whole.
  const raise = Pg.Executor.transaction(
    Effect.gen(function*() {
      const [ada] = yield* sql<{ balance: number }>`SELECT balance FROM example_account WHERE name = 'ada'`
      yield* sql`UPDATE example_account SET balance = ${ada!.balance + 5} WHERE name = 'ada'`
    }),
    { isolation: "serializable", deadline: "5 seconds" }
  )
  yield* Effect.all([raise, raise], { concurrency: 2 })
  yield* expectBalances("serializable                ", { ada: 60, bob: 50 })

  // The network dies while COMMIT is answered. Was it applied? The server is asked, and says that it was.
  yield* Effect.provide(
    Effect.gen(function*() {
      const lost = yield* Effect.flip(Pg.Executor.transaction(transfer("ada", "bob", 10)))
      assert(lost._tag === "OutcomeUnknown")
      console.log("without resolveCommit:       ", lost.message)
      yield* Pg.Executor.transaction(transfer("ada", "bob", 10), { resolveCommit: true })
    }),
    Layer.fresh(Pg.layerConfig(
      Config.map(
        Pg.fromEnvironment,
        (options): Pg.Options => ({ ...options, max: 1, prepare: false, stream: loseCommits })
      )
    ))
  )
  yield* expectBalances("both of them were applied   ", { ada: 40, bob: 70 })

  yield* sql`DROP TABLE example_account`
})

await Effect.runPromise(Effect.provide(program, Pg.layerConfig()))
