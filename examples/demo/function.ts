/** The function that lives through the day: one statement, or a transaction that takes too long. */
import * as Pg from "effect-pg-pool"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql"
import { readFile } from "node:fs/promises"

export interface Event {
  readonly what: "count" | "tooLong"
}

export interface Seen {
  readonly millis: number
  readonly session: number
  readonly orders: number
}

class SecretUnavailable
  extends Schema.TaggedError<SecretUnavailable>("demo/SecretUnavailable")("SecretUnavailable", {})
{
  override get message() {
    return "the secret store does not answer"
  }
}

const secret = Effect.tryPromise({
  try: () => readFile(process.env.SECRET!, "utf8"),
  catch: () => new SecretUnavailable()
})

const name = process.env.AWS_LAMBDA_FUNCTION_NAME

const DatabaseLive = Layer.unwrap(Effect.map(secret, (url) =>
  Pg.layer({
    ...Pg.Serverless.preset(),
    url: Redacted.make(url),
    applicationName: name,
    startupParameters: { search_path: name! }
  })))

const count = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<Omit<Seen, "millis">>`
    SELECT pg_backend_pid() AS session, count(*)::int AS orders FROM orders`
  return row!
})

const tooLong = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`INSERT INTO orders (item) VALUES ('a reel of film')`
  yield* sql`SELECT pg_sleep(60)`
  return yield* count
})

const work = ({ what }: Event) =>
  what === "count" ? count : Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(tooLong))

export const handler = Pg.Serverless.lambda(
  (event: Event) =>
    Effect.map(Effect.timed(work(event)), ([took, seen]): Seen => ({ ...seen, millis: Duration.toMillis(took) })),
  // Twice the usual margin: this computer may have more to do than to run a function.
  { layer: DatabaseLive, margin: "500 millis", shutdown: { internalExtension: true } }
)
await handler.ready
