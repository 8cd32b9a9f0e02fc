// A Lambda handler, and what Lambda does with it, done by hand: two calls to one environment, and its end.
import "./support/database.ts"
import { PgConnection } from "@effect/sql-pg"
import { Effect, Layer, Redacted } from "effect"
import * as Pg from "effect-pg-pool"
import * as CloudWatch from "effect-pg-pool/CloudWatch"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"

interface Event {
  readonly name: string
}

const greet = Effect.fn("greet")(function*({ name }: Event) {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ greeting: string; session: number }>`
    SELECT 'Hello, ' || ${name}::text AS greeting, pg_backend_pid() AS session`
  return row
})

// The pool as one environment needs it, with the last word for the variables of the function (DATABASE_URL, DB_POOL_MAX).
const DatabaseLive = Pg.layerConfig(Pg.withEnvironment(Pg.Serverless.preset()))

export const handler = Pg.Serverless.lambda(
  // What it has done is one line on standard output, of which CloudWatch makes metrics.
  (event: Event) => greet(event).pipe(CloudWatch.withEmission()),
  {
    layer: CloudWatch.layer().pipe(Layer.provideMerge(DatabaseLive)),
    shutdown: { internalExtension: true } // so that there is a SIGTERM before the end
  }
)
await handler.ready

const context = { awsRequestId: "1", getRemainingTimeInMillis: () => 3000 }
const cold = await handler({ name: "cold start" }, context)
const warm = await handler({ name: "warm start" }, context)
assert.deepEqual([cold?.greeting, warm?.greeting], ["Hello, cold start", "Hello, warm start"])
assert.equal(warm?.session, cold?.session)
console.log("two calls, one session:", cold, warm)

// A database that is too slow is an error 250 ms before the end, and not the end of the environment.
const late = handler({ name: "too late" }, { ...context, getRemainingTimeInMillis: () => 0 })
await assert.rejects(late, { name: "InvocationTimeout" })

// The handler ends its sessions at SIGTERM, and would end the process, were nobody else listening who wants to look on.
process.on("SIGTERM", () => {})
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
