// A handler of standard requests, as Vercel, Bun and Deno call it, and a container that serves it with node:http (Cloud Run,
// Lambda Web Adapter). It asks itself and ends; with --serve it goes on until Ctrl-C, on the port PORT, or on any that is free.
import "./support/database.ts"
import { Effect, Schedule, Stream } from "effect"
import * as Pg from "effect-pg-pool"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"
import { createServer, type IncomingMessage, type RequestListener } from "node:http"
import type { AddressInfo } from "node:net"
import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"

const isServing = process.argv.includes("--serve")
const environment = Pg.Serverless.make(Pg.layerConfig())

const numbers = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const rows = sql<{ n: number }>`SELECT generate_series(1, 100000000) AS n`
  // The scope of the request stays open until the client has read this, or left.
  const lines = Stream.mapArray(rows.stream, (rows) => [rows.map(({ n }) => `${n}\n`).join("")])
  return new Response(yield* Stream.toReadableStreamEffect(Stream.encodeText(lines)))
})

export const fetchNumbers = Pg.Serverless.web(
  (request) =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      switch (new URL(request.url).pathname) {
        case "/time":
          return Response.json(yield* sql`SELECT now()`)
        case "/slow":
          return Response.json(yield* sql`SELECT pg_sleep(60)`)
        case "/numbers":
          return yield* numbers
        default:
          return new Response("There is /time, /slow and /numbers.\n", { status: 404 })
      }
    }),
  { layer: environment, deadline: ({ url }) => url.endsWith("/slow") ? "2 seconds" : "60 seconds" }
)

// All that a container needs to serve it.
const toRequest = (incoming: IncomingMessage, signal: AbortSignal): Request => {
  const headers = new Headers()
  for (const [name, values] of Object.entries(incoming.headersDistinct)) {
    for (const value of values ?? []) headers.append(name, value)
  }
  const method = incoming.method ?? "GET"
  const body = method === "GET" || method === "HEAD" ? null : Readable.toWeb(incoming) as ReadableStream<Uint8Array>
  return new Request(`http://${incoming.headers.host}${incoming.url}`, {
    method,
    headers,
    body,
    signal,
    duplex: "half"
  })
}

const listener = (handler: (request: Request) => Promise<Response>): RequestListener => async (incoming, outgoing) => {
  const client = new AbortController()
  outgoing.once("close", () => client.abort())
  const response = await handler(toRequest(incoming, client.signal))
  outgoing.setHeaders(response.headers).writeHead(response.status)
  if (response.body === null) return outgoing.end()
  // A body that breaks breaks the connection; a client that leaves gives up the body.
  await pipeline(Readable.fromWeb(response.body as Parameters<typeof Readable.fromWeb>[0]), outgoing).catch(() => {})
}

const listening = Effect.acquireRelease(
  Effect.callback<ReturnType<typeof createServer>>((resume) => {
    const server = createServer(listener(fetchNumbers))
    server.listen(isServing ? Number(process.env.PORT ?? 0) : 0, () => resume(Effect.succeed(server)))
  }),
  (server) =>
    Effect.callback<void>((resume) => {
      server.close(() => resume(Effect.void))
      server.closeIdleConnections()
    })
)

const isQuiet = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ running: number }>`
    SELECT count(*)::int AS running FROM pg_stat_activity
    WHERE state = 'active' AND datname = current_database() AND pid <> pg_backend_pid()
  `
  return row?.running === 0
})

const main = Effect.gen(function*() {
  const server = yield* listening
  const address = `http://localhost:${(server.address() as AddressInfo).port}`
  console.log(`Listening on ${address}: /time, /slow, /numbers`)
  if (isServing) return yield* Effect.never
  const ask = (path: string) => Effect.promise((signal) => fetch(`${address}${path}`, { signal }))

  const time = yield* ask("/time")
  assert.equal(time.status, 200)
  console.log("/time:", yield* Effect.promise(() => time.text()))

  const slow = yield* ask("/slow")
  assert.equal(slow.status, 504)
  console.log("/slow:", slow.status, yield* Effect.promise(() => slow.text()))

  const reader = (yield* ask("/numbers")).body!.getReader()
  const { value } = yield* Effect.promise(() => reader.read())
  yield* Effect.promise(() => reader.cancel())
  yield* Effect.repeat(isQuiet, { until: (quiet) => quiet, schedule: Schedule.spaced("20 millis") }).pipe(
    Effect.timeout("10 seconds")
  )
  console.log(`/numbers: the client left after ${value?.length} bytes, and the server has stopped counting`)
})

// SIGTERM and SIGINT interrupt it, close the server, and then the pool.
await Pg.Serverless.process(Effect.scoped(main), { layer: environment })
