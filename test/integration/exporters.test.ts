/** Every exporter reads the same numbers, by whatever names: after one workload with failures they tell the same. */
import * as OtelMetrics from "@effect/opentelemetry/OtelMetrics"
import * as Resource from "@effect/opentelemetry/Resource"
import { assert, describe, it } from "@effect/vitest"
import {
  AggregationTemporality,
  InMemoryMetricExporter,
  PeriodicExportingMetricReader
} from "@opentelemetry/sdk-metrics"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as OtlpExporter from "effect/observability/OtlpExporter"
import * as OtlpMetrics from "effect/observability/OtlpMetrics"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { once } from "node:events"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import * as prom from "prom-client"
import * as Pg from "../../src/index.ts"
import { FaultProxy } from "../../src/testing/index.ts"
import { freshDatabase } from "./database.ts"

/** What an exporter says of one series: a number, or how many values were in each bucket. */
interface Point {
  readonly name: string
  readonly attributes: Readonly<Record<string, string>>
  readonly value: number | {
    readonly bounds: ReadonlyArray<number>
    readonly counts: ReadonlyArray<number>
    readonly sum: number
  }
}

/** OpenTelemetry's name of what Prometheus calls otherwise, and the label that each attribute is there. */
const names: Readonly<Record<string, readonly [prometheus: string, labels: Readonly<Record<string, string>>]>> = {
  "db.client.connection.count": ["db_pool_connections", { "db.client.connection.state": "state" }],
  "db.client.connection.limit": ["db_pool_connections_max", {}],
  "db.client.connection.idle.min": ["db_pool_connections_min", {}],
  "db.client.connection.pending_requests": ["db_pool_pending_requests", {}],
  "db.client.connection.wait_time": ["db_pool_acquire_duration_seconds", { "error.type": "outcome" }],
  "db.client.connection.use_time": ["db_pool_use_duration_seconds", {}],
  "db.client.connection.create_time": ["db_pool_connect_duration_seconds", { "error.type": "outcome" }],
  "db.client.connection.timeouts": ["db_pool_acquire_timeouts_total", {}],
  "db.client.operation.duration": [
    "db_query_duration_seconds",
    { "db.operation.name": "operation", "error.type": "outcome" }
  ],
  "db.pool.acquire.errors": ["db_pool_acquire_errors_total", { "error.type": "error_type" }],
  "db.pool.connections.opened": ["db_pool_connections_opened_total", {}],
  "db.pool.connections.closed": ["db_pool_connections_closed_total", { reason: "reason" }],
  "db.query.errors": ["db_query_errors_total", { "db.operation.name": "operation", "error.type": "error_type" }],
  "db.query.retries": ["db_query_retries_total", { "error.type": "reason" }],
  "db.retry_budget.tokens": ["db_retry_budget_tokens", {}],
  "db.circuit_breaker.state": ["db_circuit_breaker_state", { state: "state" }],
  "db.circuit_breaker.transitions": ["db_circuit_breaker_transitions_total", { to: "to" }],
  "db.circuit_breaker.rejections": ["db_circuit_breaker_rejections_total", { reason: "reason" }],
  "db.up": ["db_up", {}]
}

/** What Prometheus calls it when all went well, where OpenTelemetry has no `error.type`. */
const successes: Readonly<Record<string, string>> = {
  db_pool_acquire_duration_seconds: "acquired",
  db_pool_connect_duration_seconds: "ok",
  db_query_duration_seconds: "ok"
}

/** In whatever order the values were added up. */
const round = (figures: Readonly<Record<string, number>>): Record<string, number> =>
  Object.fromEntries(Object.entries(figures).map(([series, value]) => [series, Math.round(value * 1e9) / 1e9]))

const key = (name: string, labels: Readonly<Record<string, string>>) =>
  `${name}{${Object.entries(labels).map(([label, value]) => `${label}=${value}`).sort().join(",")}}`

/** The points as Prometheus has them, kinds of failure being one outcome. */
const asPrometheus = (points: ReadonlyArray<Point>): Record<string, number> => {
  const figures: Record<string, number> = {}
  const add = (name: string, labels: Readonly<Record<string, string>>, value: number) => {
    figures[key(name, labels)] = (figures[key(name, labels)] ?? 0) + value
  }
  for (const { attributes, name, value } of points) {
    const [prometheus, labelOf] = names[name] ?? assert.fail(`nobody knows ${name}`)
    const labels: Record<string, string> = {}
    for (const [attribute, label] of Object.entries(labelOf)) {
      if (attributes[attribute] !== undefined) labels[label] = attributes[attribute]
    }
    const success = successes[prometheus]
    if (success !== undefined) {
      labels["outcome"] ??= success
      const isKind = prometheus === "db_query_duration_seconds" && !["ok", "interrupted"].includes(labels["outcome"])
      if (isKind) labels["outcome"] = "error"
    }
    if (typeof value === "number") {
      add(prometheus, labels, value)
      continue
    }
    let cumulative = 0
    value.counts.forEach((count, index) => {
      cumulative += count
      add(`${prometheus}_bucket`, { ...labels, le: String(value.bounds[index] ?? "+Inf") }, cumulative)
    })
    add(`${prometheus}_count`, labels, cumulative)
    add(`${prometheus}_sum`, labels, value.sum)
  }
  return round(figures)
}

const sample = /^(?<name>\w+)(?:\{(?<labels>.*)\})? (?<value>\S+)$/

const samplesOf = (page: string) =>
  page.split("\n").filter((line) => line !== "" && !line.startsWith("#")).map((line) => {
    const { labels = "", name = "", value } = sample.exec(line)?.groups ?? assert.fail(`no sample: ${line}`)
    const pairs = Array.from(labels.matchAll(/([\w.]+)="([^"]*)"/g), ([, label, text]) => [label!, text!] as const)
    return { name, labels: Object.fromEntries(pairs), value: Number(value) }
  })

/** What prom-client prints, without what only it has. */
const figuresOf = (page: string): Record<string, number> =>
  round(Object.fromEntries(
    samplesOf(page).filter(({ name }) => name !== "db_pool_size").map((
      { labels: { pool: _, ...labels }, name, value }
    ) => [
      key(name, labels),
      value
    ])
  ))

/** What Effect's own page says: names with underscores, cumulative buckets. */
const pointsOfPage = (page: string): ReadonlyArray<Point> => {
  const known = new Map(Object.keys(names).map((name) => [name.replaceAll(".", "_"), name]))
  const attribute = (label: string) =>
    Object.values(names).flatMap(([, labels]) => Object.keys(labels)).find((name) =>
      name.replaceAll(".", "_") === label
    ) ?? label
  const histograms = new Map<
    string,
    { name: string; attributes: Record<string, string>; buckets: Array<readonly [number, number]>; sum: number }
  >()
  const points: Array<Point> = []
  for (const { labels, name, value } of samplesOf(page)) {
    const { le, ...rest } = labels
    const attributes = Object.fromEntries(Object.entries(rest).map(([label, text]) => [attribute(label), text]))
    const plain = known.get(name)
    if (plain !== undefined) {
      points.push({ name: plain, attributes, value })
      continue
    }
    const [, base = "", part] = /^(.*)_(bucket|sum|count)$/.exec(name) ?? []
    const whole = known.get(base) ?? assert.fail(`nobody knows ${name}`)
    const id = key(whole, attributes)
    const histogram = histograms.get(id) ?? { name: whole, attributes, buckets: [], sum: 0 }
    histograms.set(id, histogram)
    if (part === "sum") histogram.sum = value
    if (part === "bucket") histogram.buckets.push([le === "+Inf" ? Infinity : Number(le), value])
  }
  for (const { attributes, buckets, name, sum } of histograms.values()) {
    points.push({
      name,
      attributes,
      value: {
        bounds: buckets.map(([bound]) => bound).filter((bound) => bound < Infinity),
        counts: buckets.map(([, count], index) => count - (buckets[index - 1]?.[1] ?? 0)),
        sum
      }
    })
  }
  return points
}

/** A collector that takes OTLP as JSON. */
const receiver = Effect.acquireRelease(
  Effect.promise(async () => {
    const bodies: Array<string> = []
    const server = createServer((request, response) => {
      const chunks: Array<Buffer> = []
      request.on("data", (chunk: Buffer) => chunks.push(chunk))
      request.on("end", () => {
        bodies.push(Buffer.concat(chunks).toString())
        response.writeHead(200, { "content-type": "application/json" }).end("{}")
      })
    }).listen(0, "127.0.0.1")
    await once(server, "listening")
    return { bodies, server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/metrics` }
  }),
  ({ server }) => Effect.sync(() => server.close())
)

interface OtlpPoint {
  readonly attributes: ReadonlyArray<{ readonly key: string; readonly value: { readonly stringValue: string } }>
  readonly asDouble?: number
  readonly explicitBounds?: ReadonlyArray<number>
  readonly bucketCounts?: ReadonlyArray<number | string>
  readonly sum?: number
}

interface OtlpMetric {
  readonly name: string
  readonly unit: string
  readonly gauge?: { readonly dataPoints: ReadonlyArray<OtlpPoint> }
  readonly sum?: { readonly dataPoints: ReadonlyArray<OtlpPoint> }
  readonly histogram?: { readonly dataPoints: ReadonlyArray<OtlpPoint> }
}

const otlpMetrics = (body: string): ReadonlyArray<OtlpMetric> =>
  (JSON.parse(body) as {
    readonly resourceMetrics: ReadonlyArray<{
      readonly scopeMetrics: ReadonlyArray<{ readonly metrics: ReadonlyArray<OtlpMetric> }>
    }>
  }).resourceMetrics.flatMap(({ scopeMetrics }) => scopeMetrics.flatMap(({ metrics }) => metrics))

const pointsOfOtlp = (metrics: ReadonlyArray<OtlpMetric>): ReadonlyArray<Point> =>
  metrics.flatMap(({ gauge, histogram, name, sum }) =>
    (gauge ?? sum ?? histogram)!.dataPoints.map((point): Point => ({
      name,
      attributes: Object.fromEntries(point.attributes.map(({ key, value }) => [key, value.stringValue])),
      value: point.asDouble ??
        { bounds: point.explicitBounds!, counts: point.bucketCounts!.map(Number), sum: point.sum! }
    }))
  )

const pointsOfOtel = (exporter: InMemoryMetricExporter): ReadonlyArray<Point> =>
  exporter.getMetrics().at(-1)!.scopeMetrics.flatMap(({ metrics }) => metrics).flatMap(({ dataPoints, descriptor }) =>
    dataPoints.map(({ attributes, value }): Point => ({
      name: descriptor.name,
      attributes: attributes as Record<string, string>,
      value: typeof value === "number"
        ? value
        : "buckets" in value && "boundaries" in value.buckets
        ? { bounds: value.buckets.boundaries, counts: value.buckets.counts, sum: value.sum! }
        : assert.fail(`${descriptor.name} is no histogram`)
    }))
  )

/** A bit of everything that there is to count. */
const workload = (proxy: FaultProxy.FaultProxy) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    const executor = yield* Pg.Executor.Executor
    const pool = yield* Pg.Pool.Pool
    const breaker = yield* Pg.Breaker.Breaker
    yield* sql`CREATE TABLE t (n int PRIMARY KEY)`
    yield* Effect.forEach([1, 2, 3, 4, 5], (n) => sql`INSERT INTO t VALUES (${n})`, { concurrency: 3 })
    yield* Effect.flip(sql`INSERT INTO t VALUES (1)`)
    yield* Effect.flip(sql`SELECT nonsense`)
    yield* Effect.timeoutOption(sql`SELECT pg_sleep(60)`, "50 millis")
    yield* Effect.flip(sql.withTransaction(Effect.andThen(sql`DELETE FROM t`, sql`SELECT 1 / 0`)))
    yield* sql.withTransaction(sql`UPDATE t SET n = n + 10`)
    yield* Effect.exit(proxy.during(FaultProxy.cutAfter(0))(sql`SELECT 1`))
    yield* Effect.scoped(Effect.gen(function*() {
      yield* pool.reserve()
      yield* pool.reserve()
      yield* Effect.flip(executor.run(sql`SELECT 1`, { acquireTimeout: "10 millis" }))
    }))
    yield* Effect.scoped(Effect.andThen(breaker.isolate("for a moment"), Effect.flip(sql`SELECT 1`)))
    yield* pool.evictAll
    yield* proxy.during(FaultProxy.refuse())(Effect.exit(sql`SELECT 1`))
  })

describe("after one workload with failures", () => {
  it.live("prom-client, OpenTelemetry's SDK, OTLP and Effect's own page tell the same", () =>
    Effect.gen(function*() {
      const proxy = yield* FaultProxy.make(yield* freshDatabase)
      const collector = yield* receiver
      const register = new prom.Registry()
      const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
      const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 3_600_000 })
      const exporters = Layer.mergeAll(
        Pg.Metrics.layerPromClient({ register }),
        Pg.Metrics.layerOpenTelemetry()
      ).pipe(
        Layer.provideMerge(Pg.layer({ url: proxy.url, name: "shop", max: 2, retry: { base: 1, jitter: "none" } })),
        Layer.provideMerge(OtelMetrics.layer(() => reader).pipe(Layer.provide(Resource.layerEmpty))),
        Layer.provideMerge(
          OtlpMetrics.layer({ url: collector.url, resource: { serviceName: "test" }, exportInterval: "1 hour" }).pipe(
            Layer.provide([OtlpSerialization.layerJson, FetchHttpClient.layer])
          )
        )
      )
      yield* Effect.gen(function*() {
        yield* workload(proxy)
        const page = yield* Effect.promise(() => register.metrics())
        const expected = figuresOf(page)
        // It was a workload with failures, and with some of everything.
        for (
          const prefix of [
            "db_query_duration_seconds_count{operation=SELECT,outcome=error}",
            "db_query_duration_seconds_count{operation=SELECT,outcome=interrupted}",
            "db_query_errors_total{error_type=Rejected,operation=INSERT}",
            "db_query_retries_total{reason=Unreachable}",
            "db_pool_acquire_duration_seconds_count{outcome=timeout}",
            "db_pool_acquire_duration_seconds_count{outcome=failed}",
            "db_pool_connect_duration_seconds_count{outcome=error}",
            "db_pool_connections_closed_total{reason=invalid}",
            "db_circuit_breaker_rejections_total{reason=isolated}"
          ]
        ) assert.isAbove(expected[prefix] ?? 0, 0, prefix)

        yield* Effect.promise(() => reader.forceFlush())
        assert.deepStrictEqual(asPrometheus(pointsOfOtel(exporter)), expected)

        yield* Effect.flatMap(OtlpExporter.Flusher, ({ flush }) => flush)
        const sent = otlpMetrics(collector.bodies.at(-1)!)
        assert.deepStrictEqual(asPrometheus(pointsOfOtlp(sent)), expected)
        assert.deepStrictEqual(
          Object.fromEntries(sent.map(({ name, unit }) => [name, unit])),
          Object.fromEntries(Object.keys(names).map((name) => [name, units[name] ?? "1"]))
        )

        const select = pointsOfOtlp(sent).find(({ attributes, name }) =>
          name === "db.client.operation.duration" && attributes["error.type"] === "Rejected" &&
          attributes["db.operation.name"] === "INSERT"
        )
        assert.deepStrictEqual(select?.attributes, {
          "db.client.connection.pool.name": "shop",
          "db.namespace": new URL(Redacted.value(proxy.url)).pathname.slice(1),
          "db.operation.name": "INSERT",
          "db.system.name": "postgresql",
          "error.type": "Rejected",
          "server.address": proxy.host,
          "server.port": String(proxy.port),
          unit: "s"
        })

        const own = yield* PrometheusMetrics.format()
        assert.deepStrictEqual(asPrometheus(pointsOfPage(own)), expected)
        // Nothing has happened meanwhile.
        assert.deepStrictEqual(figuresOf(yield* Effect.promise(() => register.metrics())), expected)
      }).pipe(Effect.provide(exporters), Effect.provideService(Metric.MetricRegistry, new Map()))
    }))
})

const units: Readonly<Record<string, string>> = {
  "db.client.connection.count": "{connection}",
  "db.client.connection.limit": "{connection}",
  "db.client.connection.idle.min": "{connection}",
  "db.client.connection.pending_requests": "{request}",
  "db.client.connection.wait_time": "s",
  "db.client.connection.use_time": "s",
  "db.client.connection.create_time": "s",
  "db.client.connection.timeouts": "{timeout}",
  "db.client.operation.duration": "s",
  "db.pool.acquire.errors": "{error}",
  "db.pool.connections.opened": "{connection}",
  "db.pool.connections.closed": "{connection}",
  "db.query.errors": "{error}",
  "db.query.retries": "{retry}",
  "db.retry_budget.tokens": "{token}",
  "db.circuit_breaker.transitions": "{transition}",
  "db.circuit_breaker.rejections": "{call}"
}

describe("Metrics.layerOpenTelemetry", () => {
  const registry = () => new Map() as Context.Service.Shape<typeof Metric.MetricRegistry>
  const inRegistry = (map: ReturnType<typeof registry>) => Effect.provideService(Metric.MetricRegistry, map)
  const join = (name: string, scope: Scope.Scope) =>
    Layer.buildWithScope(
      Layer.fresh(Pg.Metrics.layerOpenTelemetry().pipe(Layer.provideMerge(Pg.Metrics.layer({ name })))),
      scope
    )

  it.effect("series of a pool leave the registry with its scope, and those of others stay", () =>
    Effect.gen(function*() {
      const map = registry()
      const [one, other] = [yield* Scope.make(), yield* Scope.make()]
      const pools = () =>
        new Set(Array.from(map.values(), ({ attributes }) => attributes?.["db.client.connection.pool.name"]))
      yield* inRegistry(map)(join("one", one))
      yield* inRegistry(map)(join("other", other))
      assert.deepStrictEqual(pools(), new Set(["one", "other"]))
      yield* Scope.close(one, Exit.void)
      assert.deepStrictEqual(pools(), new Set(["other"]))
      // The name is free again.
      yield* inRegistry(map)(join("one", one))
      yield* Scope.close(other, Exit.void)
    }))

  it.effect("a second pool of the same name is refused, and the first one stays", () =>
    Effect.gen(function*() {
      const map = registry()
      const [one, other] = [yield* Scope.make(), yield* Scope.make()]
      yield* inRegistry(map)(join("shop", one))
      const size = map.size
      const error = yield* Effect.flip(inRegistry(map)(join("shop", other)))
      assert.deepInclude(error, { _tag: "RegistryConflict", pool: "shop", metric: null })
      yield* Scope.close(other, Exit.void)
      assert.strictEqual(map.size, size)
      // In another registry it is in nobody's way.
      yield* inRegistry(registry())(join("shop", other))
    }))

  it.effect("a series that appears later is there from then on, and none comes after the scope has closed", () =>
    Effect.gen(function*() {
      const map = registry()
      const scope = yield* Scope.make()
      const metrics = Context.get(yield* inRegistry(map)(join("shop", scope)), Pg.Metrics.Metrics)
      const durations = () =>
        Metric.snapshotUnsafe(Context.make(Metric.MetricRegistry, map)).filter(({ id }) =>
          id === "db.client.operation.duration"
        )
      assert.deepStrictEqual(durations(), [])
      metrics.store.queries.succeeded("SELECT 1", 0.5)
      const [first] = durations()
      assert(first?.type === "Histogram")
      assert.deepStrictEqual([first.state.count, first.state.sum, first.state.min, first.state.max], [1, 0.5, 0.5, 0.5])
      yield* Scope.close(scope, Exit.void)
      metrics.store.queries.succeeded("COMMIT", 0.5)
      assert.strictEqual(map.size, 0)
    }))
})
