// A Lambda handler: one runtime per environment, made outside of the handler, so that warm calls reuse its connection.
import "./support/database.ts"
import { PgConnection } from "@effect/sql-pg"
import { Config, Effect, Layer, ManagedRuntime, Redacted } from "effect"
import * as Pg from "effect-pg-pool"
import * as CloudWatch from "effect-pg-pool/CloudWatch"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"

interface Event {
  readonly name: string
}
interface LambdaContext {
  readonly getRemainingTimeInMillis: () => number
}

const PoolLive = Pg.layerConfig(
  Config.map(Pg.fromEnvironment, (options): Pg.Options => ({
    ...Pg.Pool.sizeServerless(),
    ...options, // DB_POOL_MAX wins where it is set
    closeTimeout: "200 millis" // SIGTERM leaves half a second at most.
  }))
)
const runtime = ManagedRuntime.make(CloudWatch.layer().pipe(Layer.provideMerge(PoolLive)))
process.once("SIGTERM", () => runtime.dispose())

const greet = Effect.fn("greet")(function*(name: string) {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ greeting: string; session: number }>`
    SELECT 'Hello, ' || ${name}::text AS greeting, pg_backend_pid() AS session`
  return row
})

// The deadline is a little shorter than Lambda's, so that a database that is too slow is an error and not a timeout.
// What it has done is one line on standard output, of which CloudWatch makes metrics.
export const handler = (event: Event, context: LambdaContext) =>
  Pg.Executor.run(greet(event.name), { deadline: context.getRemainingTimeInMillis() - 250 }).pipe(
    CloudWatch.withEmission(),
    runtime.runPromise
  )

// What Lambda does, done by hand: two calls to one environment, then its end.
const context: LambdaContext = { getRemainingTimeInMillis: () => 3000 }
const cold = await handler({ name: "cold start" }, context)
const warm = await handler({ name: "warm start" }, context)
assert.deepEqual([cold?.greeting, warm?.greeting], ["Hello, cold start", "Hello, warm start"])
assert.equal(warm?.session, cold?.session)
console.log("two calls, one session:", cold, warm)

process.kill(process.pid, "SIGTERM")
await Effect.gen(function*() {
  const observer = yield* PgConnection.make({ url: Redacted.make(process.env.DATABASE_URL!) })
  const isOpen = Effect.map(
    observer.query("SELECT 1 FROM pg_stat_activity WHERE pid = $1", [cold?.session]),
    ({ rows }) => rows.length > 0
  )
  yield* isOpen.pipe(Effect.delay("50 millis"), Effect.repeat({ while: (open) => open }), Effect.timeout("5 seconds"))
}).pipe(Effect.scoped, Effect.runPromise)
console.log("after SIGTERM: the session is gone from the server, and nothing keeps the process alive")
