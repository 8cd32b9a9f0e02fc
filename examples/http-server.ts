// An HTTP server with two routes of its own and the two that operations ask for: GET /metrics and GET /health/database.
// It asks itself for all of them and ends; with --serve it goes on until Ctrl-C, on the port PORT, or on any that is free.
import "./support/database.ts"
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Effect, Layer, Random } from "effect"
import * as Pg from "effect-pg-pool"
import { HttpRouter, HttpServer, HttpServerResponse } from "effect/http"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"
import { createServer } from "node:http"
import * as prom from "prom-client"

const register = new prom.Registry()

const prepare = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE IF NOT EXISTS stock (product int PRIMARY KEY, pieces int NOT NULL)`
  yield* sql`CREATE TABLE IF NOT EXISTS orders (id serial PRIMARY KEY, product int NOT NULL)`
  yield* sql`INSERT INTO stock SELECT product, 1000 FROM generate_series(1, 100) AS product ON CONFLICT DO NOTHING`
})

/** While the circuit is open a call fails at once: whoever has asked is told when that may be over. */
const later = ({ retryAfter }: { readonly retryAfter: number | null }) =>
  HttpServerResponse.json({ error: "The database cannot be used at the moment. Please come back later." }, {
    status: 503,
    headers: { "retry-after": String(Math.max(1, Math.ceil((retryAfter ?? 30_000) / 1_000))) }
  })

const Stock = HttpRouter.add(
  "GET",
  "/stock",
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const scarce = sql`SELECT product, pieces FROM stock ORDER BY pieces LIMIT 10`
    // Reading twice does no harm: it may be repeated even when its answer was lost.
    return yield* HttpServerResponse.json(yield* Pg.Executor.run(scarce, { idempotent: true }))
  }).pipe(Effect.catchTags({ CircuitOpen: later, CircuitHalfOpen: later, CircuitIsolated: later }))
)

const Orders = HttpRouter.add(
  "POST",
  "/orders",
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const product = yield* Random.nextIntBetween(1, 100)
    const order = Effect.andThen(
      sql`UPDATE stock SET pieces = pieces - 1 WHERE product = ${product}`,
      sql`INSERT INTO orders (product) VALUES (${product}) RETURNING id`
    )
    return yield* HttpServerResponse.json(yield* Pg.Executor.transaction(order), { status: 201 })
  }).pipe(Effect.catchTags({ CircuitOpen: later, CircuitHalfOpen: later, CircuitIsolated: later }))
)

const isServing = process.argv.includes("--serve")
const port = isServing ? Number(process.env.PORT ?? 0) : 0

const ServerLive = HttpRouter.serve(
  Layer.mergeAll(Stock, Orders, Pg.Health.layerRoutes({ metrics: register })),
  { disableLogger: true, disableListenLog: true }
).pipe(
  Layer.merge(Pg.Metrics.layerPromClient({ register })),
  Layer.provideMerge(Pg.layerConfig()),
  Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port }))
)

const ask = (url: string, method = "GET") =>
  Effect.promise(async () => {
    const response = await fetch(url, { method })
    return { status: response.status, body: await response.text() }
  })

const program = HttpServer.addressFormattedWith((address) =>
  Effect.gen(function*() {
    yield* prepare
    console.log(`Listening on ${address}: /stock, /orders, /metrics, /health/database, /livez, /readyz`)
    if (isServing) return yield* Effect.never

    assert.equal((yield* ask(`${address}/stock`)).status, 200)
    assert.equal((yield* ask(`${address}/orders`, "POST")).status, 201)
    const health = yield* ask(`${address}/health/database`)
    assert.equal(health.status, 200)
    assert.equal(JSON.parse(health.body).state, "up")
    console.log(health.body)

    const { isolate } = yield* Pg.Breaker.Breaker
    const turnedAway = yield* Effect.scoped(
      Effect.andThen(isolate("to see what a caller is told"), ask(`${address}/stock`))
    )
    assert.equal(turnedAway.status, 503)

    const metrics = yield* ask(`${address}/metrics`)
    assert.equal(metrics.status, 200)
    assert.match(metrics.body, /^db_query_duration_seconds_count\{.*outcome="ok"\} \d+$/m)
    console.log(
      metrics.body.split("\n").filter((line) => /^db_(pool_size|query_duration.*_count)/.test(line)).join("\n")
    )
  })
)

NodeRuntime.runMain(Effect.provide(program, ServerLive))
