import { assert, describe, it, vi } from "@effect/vitest"
import * as renamedProm from "@prometheus-io/client"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as References from "effect/References"
import * as prom from "prom-client"
import * as Health from "../src/Health.ts"
import * as Metrics from "../src/Metrics.ts"
import { full, makeWorld } from "./healthWorld.ts"

/** What is asked over either way of serving the routes. */
type Ask = (
  path: string,
  init?: { readonly method?: string; readonly headers?: Record<string, string> }
) => Effect.Effect<{ readonly status: number; readonly headers: Headers; readonly text: string }>

const asking = (handler: (request: Request) => Promise<Response>): Ask => (path, init) =>
  Effect.promise(async () => {
    const response = await handler(new Request(`http://localhost${path}`, init))
    return { status: response.status, headers: response.headers, text: await response.text() }
  })

interface Options extends Health.RoutesOptions<Metrics.Metrics, never, never> {}

/** The same routes, served by a router of Effect's and by the plain function. */
const servers = {
  "a router": (options: Options) =>
    Effect.acquireRelease(
      Effect.sync(() =>
        HttpRouter.toWebHandler(
          Health.layerRoutes(options).pipe(Layer.provide([Metrics.layer({ name: "main" }), Logger.layer([])])),
          { disableLogger: true }
        )
      ),
      ({ dispose }) => Effect.promise(dispose)
    ).pipe(Effect.map(({ handler }) => asking(handler))),
  "a plain function": (options: Options) =>
    Effect.acquireRelease(
      Effect.sync(() => ManagedRuntime.make(Layer.merge(Metrics.layer({ name: "main" }), Logger.layer([])))),
      (runtime) => runtime.disposeEffect
    ).pipe(Effect.map((runtime) => asking(Health.toWebHandler(runtime, options))))
}

const only = (monitor: Health.Monitor) => Effect.succeed(monitor)

const secrets = ["db.internal", "5432", "shop", "clerk", "18.1", "secret"]

/** Down, with everything that strangers must not learn. */
const makeDown = () => {
  const made = makeWorld()
  made.world.breaker = { _tag: "Open", retryAfter: 12_345, lastFailure: { code: "ECONNREFUSED", message: "secret" } }
  made.world.server = { version: "18.1 (Debian)", role: "primary" }
  return made
}

for (const [by, serve] of Object.entries(servers)) {
  describe(`the routes of health, served by ${by}`, () => {
    it.live("200 and the report in the words of the draft and in our own, when the database is up", () =>
      Effect.gen(function*() {
        const { world, ...monitor } = makeWorld()
        world.lastReplyAt = Date.now()
        const ask = yield* serve({ pools: only(monitor) })
        const { headers, status, text } = yield* ask("/health/database")
        assert.strictEqual(status, 200)
        assert.strictEqual(headers.get("content-type"), "application/health+json")
        assert.strictEqual(headers.get("cache-control"), "no-store")
        assert.isNull(headers.get("retry-after"))
        const body = JSON.parse(text)
        assert.deepInclude(body, { status: "pass", state: "up", name: "main", breaker: "Closed", pool: world.stats })
        assert.notProperty(body, "output")
        assert.match(body.checkedAt, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/)
        const component = { componentId: "main", componentType: "datastore", status: "pass", time: body.checkedAt }
        assert.deepStrictEqual(body.checks, {
          postgresql: [component],
          "postgresql:connections": [{ ...component, observedValue: 0, observedUnit: "connections" }],
          "postgresql:circuitBreaker": [{ ...component, observedValue: "Closed" }]
        })
      }))

    it.live("200 when it is degraded: busy is not down", () =>
      Effect.gen(function*() {
        const { world, ...monitor } = makeWorld()
        world.stats = full
        const { status, text } = yield* (yield* serve({ pools: only(monitor) }))("/health/database")
        assert.strictEqual(status, 200)
        const body = JSON.parse(text)
        assert.deepInclude(body, { status: "warn", state: "degraded" })
        assert.strictEqual(body.output, body.reasons.join(" "))
      }))

    it.live("503 when it is down, with the time to come back, and nothing about the server", () =>
      Effect.gen(function*() {
        const ask = yield* serve({ pools: only(makeDown()) })
        for (const path of ["/health/database", "/health/database/main", "/readyz"]) {
          const { headers, status, text } = yield* ask(path)
          assert.strictEqual(status, 503)
          assert.strictEqual(headers.get("retry-after"), "13")
          assert.strictEqual(headers.get("cache-control"), "no-store")
          assert.deepInclude(JSON.parse(text), { status: "fail", state: "down" })
          for (const word of secrets) assert.notInclude(text, word)
        }
        assert.deepStrictEqual(JSON.parse((yield* ask("/health/database")).text).server, { role: "primary" })
      }))

    it.live("details are for those whom the function says yes to, and for nobody when it throws", () =>
      Effect.gen(function*() {
        const ask = yield* serve({
          pools: only(makeDown()),
          details: ({ headers, url }) => {
            if (url.includes("mistake")) throw new Error("secret")
            return headers.get("authorization") === "Bearer ops"
          }
        })
        const shown = yield* ask("/health/database", { headers: { authorization: "Bearer ops" } })
        assert.deepInclude(JSON.parse(shown.text), {
          server: { version: "18.1 (Debian)", role: "primary" },
          details: { hosts: ["db.internal:5432"], database: "shop", username: "clerk", failure: "secret" }
        })
        for (const path of ["/health/database", "/health/database?mistake"]) {
          const { status, text } = yield* ask(path)
          assert.strictEqual(status, 503)
          for (const word of secrets) assert.notInclude(text, word)
        }
        // A promise of an answer is none, whatever it will be.
        const late = yield* serve({ pools: only(makeDown()), details: (() => Promise.resolve(false)) as never })
        assert.notInclude((yield* late("/health/database")).text, "db.internal")
        const open = yield* serve({ pools: only(makeDown()), details: true })
        assert.include((yield* open("/health/database")).text, "db.internal")
      }))

    it.live("a probe that is asked for asks, and its answer has the time that it took", () =>
      Effect.gen(function*() {
        const { world, ...monitor } = makeWorld({ probe: false })
        const ask = yield* serve({ pools: only(monitor) })
        assert.notProperty(JSON.parse((yield* ask("/health/database")).text), "latencyMs")
        assert.strictEqual(world.pings, 0)
        world.traffic = { count: 3, sum: 0.001 }
        const body = JSON.parse((yield* ask("/health/database?probe=1")).text)
        assert.strictEqual(world.pings, 1)
        assert.match(String(body.latencyMs), /^\d+(\.\d{1,3})?$/)
        assert.strictEqual(body.trafficLatencyMs, 0.333)
        assert.strictEqual(body.checks["postgresql:responseTime"][0].observedValue, body.latencyMs)
      }))

    it.live("a check of the application's is told of, whatever its name is", () =>
      Effect.gen(function*() {
        const ask = yield* serve({ pools: only(makeDown()), checks: { postgresql: Effect.fail("no") } })
        const { checks } = JSON.parse((yield* ask("/readyz")).text)
        assert.deepStrictEqual(
          checks.postgresql.map(({ componentId, output }: { componentId?: string; output: string }) => [
            componentId,
            output
          ])[1],
          [undefined, "failed"]
        )
      }))

    it.live("/livez is 200 whatever becomes of the database, and looks at nothing", () =>
      Effect.gen(function*() {
        const { world, ...monitor } = makeDown()
        const ask = yield* serve({ pools: only(monitor), checks: { other: Effect.fail("no") } })
        world.isClosing = true
        const { headers, status, text } = yield* ask("/livez")
        assert.deepStrictEqual([status, text], [200, "{\"status\":\"pass\"}"])
        assert.strictEqual(headers.get("cache-control"), "no-store")
      }))

    it.live("/readyz fails from the moment the pool drains", () =>
      Effect.gen(function*() {
        const { world, ...monitor } = makeWorld()
        world.lastReplyAt = Date.now()
        const ask = yield* serve({ pools: only(monitor) })
        assert.strictEqual((yield* ask("/readyz")).status, 200)
        world.isClosing = true
        assert.strictEqual((yield* ask("/readyz")).status, 503)
      }))

    it.live("/readyz waits for the application's own checks, and shows why they fail to those who may know", () =>
      Effect.gen(function*() {
        const { world, ...monitor } = makeWorld()
        world.lastReplyAt = Date.now()
        let runs = 0
        const options: Options = {
          pools: only(monitor),
          checks: {
            cache: Effect.sync(() => {
              runs++
            }),
            metrics: Effect.asVoid(Metrics.Metrics),
            search: Effect.fail(new Error("secret of the search engine")),
            queue: Effect.die("secret"),
            mail: Effect.never
          }
        }
        const ask = yield* serve(options)
        const [{ headers, status, text }] = yield* Effect.all([ask("/readyz"), ask("/readyz")], { concurrency: 2 })
        assert.strictEqual(status, 503)
        assert.strictEqual(headers.get("retry-after"), "1")
        assert.notInclude(text, "secret")
        assert.strictEqual(runs, 1)
        const { checks, output } = JSON.parse(text)
        const told = Object.fromEntries(
          Object.entries(checks).map(([name, [check]]: [string, any]) => [
            name,
            [check.status, check.output]
          ])
        )
        assert.deepInclude(told, {
          cache: ["pass", undefined],
          metrics: ["pass", undefined],
          search: ["fail", "failed"],
          queue: ["fail", "failed"],
          mail: ["fail", "no answer within 1 s"],
          postgresql: ["pass", undefined]
        })
        assert.strictEqual(output, "search: failed queue: failed mail: no answer within 1 s")

        const open = yield* serve({ ...options, details: true })
        assert.include((yield* open("/readyz")).text, "secret of the search engine")
        const others = yield* serve({ ...options, checks: { cache: Effect.void } })
        assert.strictEqual((yield* others("/readyz")).status, 200)
      }))

    it.live("several pools: all in one answer, the worst of them deciding, and each by its name", () =>
      Effect.gen(function*() {
        const orders = makeWorld()
        orders.world.lastReplyAt = Date.now()
        const archive = { ...makeDown(), name: "archive:5432/db" }
        const ask = yield* serve({ pools: Effect.succeed([orders, { ...archive, name: "old archive/1" }]) })
        for (const path of ["/health/database", "/readyz"]) {
          const { headers, status, text } = yield* ask(path)
          assert.deepStrictEqual([status, headers.get("retry-after")], [503, "13"])
          const { checks, state } = JSON.parse(text)
          assert.strictEqual(state, "down")
          assert.deepStrictEqual(checks.postgresql.map(({ status }: { status: string }) => status), ["pass", "fail"])
        }
        assert.strictEqual((yield* ask("/health/database/main")).status, 200)
        assert.strictEqual((yield* ask(`/health/database/${encodeURIComponent("old archive/1")}`)).status, 503)
        assert.strictEqual((yield* ask("/health/database/unknown")).status, 404)
        assert.strictEqual((yield* ask("/livez")).status, 200)
      }))

    it.live("paths are the user's: a prefix, another name, or none at all", () =>
      Effect.gen(function*() {
        const { world, ...monitor } = makeWorld()
        world.lastReplyAt = Date.now()
        const ask = yield* serve({
          pools: only(monitor),
          metrics: Metrics.render,
          prefix: "/internal/",
          paths: { database: "db", livez: "/alive/", readyz: false }
        })
        for (const path of ["/internal/db", "/internal/db/main", "/internal/alive", "/internal/metrics"]) {
          assert.strictEqual((yield* ask(path)).status, 200, path)
        }
        for (const path of ["/health/database", "/livez", "/readyz", "/internal/readyz", "/metrics", "/"]) {
          assert.strictEqual((yield* ask(path)).status, 404, path)
        }
      }))

    it.live("HEAD is answered like GET, without a body", () =>
      Effect.gen(function*() {
        const ask = yield* serve({ pools: only(makeDown()) })
        for (const [path, expected] of [["/health/database", 503], ["/readyz", 503], ["/livez", 200]] as const) {
          const { headers, status, text } = yield* ask(path, { method: "HEAD" })
          assert.deepStrictEqual([status, text], [expected, ""])
          assert.strictEqual(headers.get("content-type"), "application/health+json")
        }
      }))

    it.live("/metrics serves the text of an Effect", () =>
      Effect.gen(function*() {
        const { headers, status, text } = yield* (yield* serve({
          pools: only(makeWorld()),
          metrics: Metrics.render
        }))("/metrics")
        assert.strictEqual(status, 200)
        assert.strictEqual(headers.get("content-type"), "text/plain; version=0.0.4; charset=utf-8")
        assert.include(text, "db_pool_size{pool=\"main\",state=\"total\"} 0")
      }))

    it.live("/metrics serves a registry, under its own content type", () =>
      Effect.gen(function*() {
        const old = new prom.Registry()
        new prom.Counter({ name: "orders_total", help: "Orders", registers: [old] }).inc(3)
        const renamed = new renamedProm.Registry()
        new renamedProm.Counter({ name: "orders_total", help: "Orders", registers: [renamed] }).inc(3)
        for (const register of [old, renamed]) {
          const ask = yield* serve({ pools: only(makeWorld()), metrics: register })
          const { headers, text } = yield* ask("/metrics")
          assert.strictEqual(headers.get("content-type"), register.contentType)
          assert.include(text, "orders_total 3")
        }
      }))

    it.live("a registry that cannot be read is a 500 without its error, and the next route is unharmed", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        new prom.Gauge({
          name: "bad",
          help: "Bad",
          registers: [register],
          collect() {
            throw new Error("secret of the host")
          }
        })
        const ask = yield* serve({ pools: only(makeWorld()), metrics: register })
        const { status, text } = yield* ask("/metrics")
        assert.strictEqual(status, 500)
        assert.notInclude(text, "secret")
        assert.strictEqual((yield* ask("/health/database")).status, 200)
      }))

    it.live("there is no /metrics unless asked for", () =>
      Effect.gen(function*() {
        assert.strictEqual((yield* (yield* serve({ pools: only(makeWorld()) }))("/metrics")).status, 404)
      }))
  })
}

/** What is in no type, or cannot be: each with the option that the message names. */
const impossible: ReadonlyArray<readonly [option: string, options: object, allowed: string]> = [
  ["paths.readyz", { paths: { livez: "/up", readyz: "up/" } }, "a path of its own: livez is answered there"],
  ["paths.metrics", { paths: { metrics: "/livez" }, metrics: Metrics.render }, "livez is answered there"],
  ["paths.liveness", { paths: { liveness: "/up" } }, "there are the paths database, livez, readyz, metrics"],
  ["paths.livez", { paths: { livez: true } }, "a path"],
  ["prefix", { prefix: 7 }, "a path"],
  ["pools", { pools: [] }, "an Effect"],
  ["checks.mail", { checks: { mail: () => true } }, "an Effect"],
  ["details", { details: "yes" }, "true, false, or a function"],
  ["metrics", { metrics: "on" }, "an Effect such as Metrics.render, or a registry"]
]

describe("impossible options of the routes", () => {
  for (const [option, options, allowed] of impossible) {
    it.effect(`${option}: ${JSON.stringify(options)} is refused`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Effect.scoped(Layer.build(
          Health.layerRoutes({ pools: only(makeWorld()), ...options }).pipe(Layer.provide(HttpRouter.layer))
        )))
        assert.deepInclude(error, { _tag: "InvalidOption", option: `health.${option}` })
        const runtime = ManagedRuntime.make(Layer.empty)
        assert.throws(() => Health.toWebHandler(runtime, { pools: only(makeWorld()), ...options }), allowed)
      }).pipe(Effect.provide(Layer.orDie(Metrics.layer()))))
  }

  it("a route that there is not is refused by the plain function", () => {
    const runtime = ManagedRuntime.make(Layer.empty)
    assert.throws(
      () => Health.toWebHandler(runtime, { pools: only(makeWorld()), route: "nope" as never }),
      "health.route is \"nope\", but must be one of database, livez, readyz, metrics."
    )
  })

  it.effect("one path is fine for what is not there: no metrics, or a route that is off", () =>
    Effect.scoped(Layer.build(
      Health.layerRoutes({
        pools: only(makeWorld()),
        paths: { metrics: "/livez", readyz: false, database: "/readyz" }
      }).pipe(Layer.provide(HttpRouter.layer))
    )))

  it.live("two pools of one name are refused, since only one of them could be asked for", () =>
    Effect.gen(function*() {
      const pools = Effect.succeed([makeWorld(), makeWorld()])
      const error = yield* Effect.flip(Effect.scoped(Layer.build(
        Health.layerRoutes({ pools }).pipe(Layer.provide(HttpRouter.layer))
      )))
      assert.deepInclude(error, { _tag: "InvalidOption", option: "health.pools", value: "main, main" })
      const ask = asking(Health.toWebHandler(ManagedRuntime.make(Layer.empty), { pools }))
      for (const path of ["/health/database/main", "/readyz"]) {
        const { status, text } = yield* ask(path)
        assert.strictEqual(status, 503)
        assert.deepInclude(JSON.parse(text), { status: "fail", state: "down" })
      }
      assert.strictEqual((yield* ask("/livez")).status, 200)
    }))
})

describe("Health.toWebHandler", () => {
  class Missing extends Context.Service<Missing, { readonly isThere: true }>()("test/Missing") {}
  const pools = Effect.as(Missing, makeWorld())

  const handlerOf = (layer: Layer.Layer<Missing, unknown>) =>
    Effect.map(
      Effect.acquireRelease(
        Effect.sync(() => ManagedRuntime.make(layer)),
        (runtime) => runtime.disposeEffect
      ),
      (runtime) => ({
        runtime,
        ask: asking(Health.toWebHandler(runtime, { pools }))
      })
    )

  it.live("answers one route whatever the path is, where the framework has done the routing", () =>
    Effect.gen(function*() {
      const runtime = ManagedRuntime.make(Layer.empty)
      const options = { pools: only(makeDown()) }
      const ask = (route: "database" | "livez" | "readyz" | "metrics") =>
        Effect.map(asking(Health.toWebHandler(runtime, { ...options, route }))("/api/x"), ({ status }) => status)
      assert.deepStrictEqual(
        yield* Effect.all([ask("database"), ask("livez"), ask("readyz"), ask("metrics")]),
        [503, 200, 503, 404]
      )
    }))

  it.live("refuses what is neither GET nor HEAD", () =>
    Effect.gen(function*() {
      const ask = asking(Health.toWebHandler(ManagedRuntime.make(Layer.empty), { pools: only(makeDown()) }))
      const { headers, status } = yield* ask("/health/database", { method: "POST" })
      assert.deepStrictEqual([status, headers.get("allow")], [405, "GET, HEAD"])
    }))

  it.live("is 503 without a word of the cause when the services cannot be built; the process lives all the same", () =>
    Effect.gen(function*() {
      const { ask } = yield* handlerOf(Layer.effectDiscard(Effect.fail("secret")) as Layer.Layer<Missing, unknown>)
      for (const path of ["/health/database", "/readyz"]) {
        const { headers, status, text } = yield* ask(path)
        assert.deepStrictEqual([status, headers.get("retry-after")], [503, "1"])
        assert.deepInclude(JSON.parse(text), { status: "fail", state: "down" })
        assert.notInclude(text, "secret")
      }
      assert.strictEqual((yield* ask("/livez")).status, 200)
    }))

  it.live("is 503 once the services have ended, which is no alarm but a line for whoever debugs", () =>
    Effect.gen(function*() {
      const printed = yield* Effect.acquireRelease(
        Effect.sync(() => vi.spyOn(console, "log")),
        (spy) => Effect.sync(() => spy.mockRestore())
      )
      const lines: Array<string> = []
      const logger = Logger.map(Logger.formatLogFmt, (line) => void lines.push(line))
      const { ask, runtime } = yield* handlerOf(
        Layer.mergeAll(
          Layer.succeed(Missing, { isThere: true }),
          Logger.layer([logger]),
          Layer.succeed(References.MinimumLogLevel, "Debug")
        )
      )
      assert.strictEqual((yield* ask("/readyz")).status, 200)
      yield* runtime.disposeEffect
      assert.strictEqual((yield* ask("/readyz")).status, 503)
      assert.strictEqual((yield* ask("/livez")).status, 200)
      assert.strictEqual(lines.length, 1)
      assert.match(lines[0]!, /level=DEBUG.*have ended.*event.name=db.health.ended/i)
      assert.strictEqual(printed.mock.calls.length, 0)
      // What could not be built is an alarm, as before.
      const broken = yield* handlerOf(Layer.effectDiscard(Effect.fail("gone")) as Layer.Layer<Missing, unknown>)
      yield* broken.ask("/readyz")
      assert.strictEqual(printed.mock.calls.length, 1)
    }))

  it.live("is 503 without a line when the services have ended before anybody asked", () =>
    Effect.gen(function*() {
      const printed = yield* Effect.acquireRelease(
        Effect.sync(() => vi.spyOn(console, "log")),
        (spy) => Effect.sync(() => spy.mockRestore())
      )
      const { ask, runtime } = yield* handlerOf(Layer.succeed(Missing, { isThere: true }))
      yield* runtime.disposeEffect
      assert.strictEqual((yield* ask("/health/database")).status, 503)
      assert.strictEqual(printed.mock.calls.length, 0)
    }))
})
