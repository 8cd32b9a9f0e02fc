// An HTTP server with the two routes that operations ask for: GET /metrics and GET /health/database.
// It asks itself for both and ends; with --serve it goes on until Ctrl-C.
import "./support/database.ts"
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Effect, Layer } from "effect"
import * as Pg from "effect-pg-pool"
import { HttpRouter, HttpServer, HttpServerResponse } from "effect/http"
import { SqlClient } from "effect/sql"
import assert from "node:assert/strict"
import { createServer } from "node:http"
import * as prom from "prom-client"

const register = new prom.Registry()

const Now = HttpRouter.add(
  "GET",
  "/now",
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    return yield* HttpServerResponse.json(yield* sql`SELECT now() AS now`)
  })
)

const ServerLive = HttpRouter.serve(
  Layer.merge(Now, Pg.Health.layerRoutes({ metrics: register })),
  { disableLogger: true, disableListenLog: true }
).pipe(
  Layer.merge(Pg.Metrics.layerPromClient({ register })),
  Layer.provide(Pg.layerConfig()),
  Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
)

const get = (url: string) =>
  Effect.promise(async () => {
    const response = await fetch(url)
    return { status: response.status, body: await response.text() }
  })

const program = HttpServer.addressFormattedWith((address) =>
  Effect.gen(function*() {
    console.log(`Listening on ${address}: /now, /metrics, /health/database, /livez, /readyz`)
    if (process.argv.includes("--serve")) return yield* Effect.never

    assert.equal((yield* get(`${address}/now`)).status, 200)
    const health = yield* get(`${address}/health/database`)
    assert.equal(health.status, 200)
    assert.equal(JSON.parse(health.body).state, "up")
    console.log(health.body)

    const metrics = yield* get(`${address}/metrics`)
    assert.equal(metrics.status, 200)
    assert.match(metrics.body, /^db_query_duration_seconds_count\{.*outcome="ok"\} 1$/m)
    console.log(
      metrics.body.split("\n").filter((line) => /^db_(pool_size|query_duration.*_count)/.test(line)).join("\n")
    )
  })
)

NodeRuntime.runMain(Effect.provide(program, ServerLive))
