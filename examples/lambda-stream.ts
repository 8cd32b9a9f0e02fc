// A Lambda function that answers bit by bit: its first rows are with the client while the last ones are still computed.
import "./support/database.ts"
import { Effect, Stream } from "effect"
import * as Pg from "effect-pg-pool"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"
import { PassThrough } from "node:stream"

interface Event {
  readonly count: number
}

const environment = Pg.Serverless.make(Pg.layerConfig())

// Text or bytes; the metadata is for function URLs and API Gateway. Nothing is sent before the first row is there, so what
// fails until then is an error and not half an answer.
export const handler = Pg.Serverless.lambdaStream(
  ({ count }: Event) =>
    Effect.map(SqlClient.SqlClient, (sql) => ({
      metadata: { statusCode: 200, headers: { "content-type": "application/x-ndjson" } },
      body: sql<{ n: number; session: number }>`
        SELECT n, pg_backend_pid() AS session, CASE WHEN n > 5000 THEN pg_sleep(0.01)::text END AS slept
        FROM generate_series(1, ${count}::int) AS n
      `.stream.pipe(Stream.map(({ n, session }) => `${JSON.stringify({ n, session })}\n`))
    })),
  { layer: environment }
)

// What Lambda does, done by hand: it gives the handler a stream, and sends on what is written there.
const invoke = async (event: Event, remaining: number) => {
  const responseStream = new PassThrough()
  const startedAt = performance.now()
  let firstAfter = 0
  let text = ""
  responseStream.setEncoding("utf8").on("data", (chunk: string) => {
    firstAfter ||= performance.now() - startedAt
    text += chunk
  }).on("error", () => {})
  const context = { awsRequestId: "by hand", getRemainingTimeInMillis: () => remaining }
  const error = await handler(event, responseStream, context).then(() => undefined, (error: Error) => error.name)
  // The metadata is a line of JSON that ends with eight zero bytes.
  const [head = "", body = ""] = text.split("\0".repeat(8))
  const rows = body.split("\n").filter((line) => line.endsWith("}")).map((line) => JSON.parse(line))
  return { head, rows, error, firstAfter, took: performance.now() - startedAt }
}

const inMillis = (time: number) => `${time.toFixed(0)} ms`

await invoke({ count: 1 }, 60_000)
const whole = await invoke({ count: 5050 }, 60_000)
assert.deepEqual(JSON.parse(whole.head), { statusCode: 200, headers: { "content-type": "application/x-ndjson" } })
assert.equal(whole.rows.length, 5050)
assert.ok(whole.firstAfter < whole.took)
console.log(
  `${whole.rows.length} rows; the first after ${inMillis(whole.firstAfter)}, the last after ${inMillis(whole.took)}`
)

// One that is not done in time breaks off, the platform is told why, and the statement on the server is ended with it.
const late = await invoke({ count: 1_000_000 }, 1000)
assert.ok(late.rows.length > 0 && late.rows.length < 1_000_000)
assert.match(late.error ?? "", /InvocationTimeout|DeadlineExceeded/)
console.log(`${late.rows.length} rows of the next one, and then ${late.error} after ${inMillis(late.took)}`)

const next = await invoke({ count: 1 }, 60_000)
assert.equal(next.rows.length, 1)
console.log("the next one is fine:", next.rows[0])
await environment.dispose()
