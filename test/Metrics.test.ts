import { assert, describe, it } from "@effect/vitest"
import * as successor from "@prometheus-io/client"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import * as promClient from "prom-client"
import * as Pg from "../src/index.ts"
import { durationBounds, Histogram, sum, waitBounds } from "../src/internal/instruments.ts"
import * as Metrics from "../src/Metrics.ts"
import { complaintsAbout } from "./promtool.ts"

const stats: Metrics.PoolStats = {
  total: 7,
  idle: 3,
  active: 4,
  waiting: 2,
  connecting: 1,
  max: 20,
  min: 5,
  oldestLease: 9
}

const kinds = [
  "Unreachable",
  "Overloaded",
  "StaleConnection",
  "Contention",
  "Rejected",
  "Denied",
  "ReadOnly",
  "Cancelled",
  "Local"
] as const

const select = "SELECT 1"

/** Every number different from every other number of its family, so that a mix-up shows. */
const fill = (metrics: Metrics.Metrics["Service"]) => {
  const { store } = metrics
  metrics.registerPool(() => stats)
  // Sums that are exact in binary, so that the text is the same on every machine.
  for (const seconds of [0.0005, 0.001, 0.03125, 0.0625, 0.25, 0.25, 2, 64]) store.queries.succeeded(select, seconds)
  store.queries.failed(select, "Rejected", 0.5)
  store.queries.failed(select, "Unreachable", 0.25)
  store.queries.interrupted("COMMIT", 4)
  Object.values(store.acquire).forEach((waits, index) => waits.observe(0.125 * (index + 1)))
  store.use.observe(16)
  store.connect.ok.observe(0.0625)
  store.connect.error.observe(8)
  kinds.forEach((kind, index) => {
    store.errors.SELECT[kind] = index + 1
    store.errors.CHECKOUT[kind] = index + 21
    store.retries[kind] = index + 11
  })
  Object.keys(store.acquireErrors).forEach((tag, index) => {
    store.acquireErrors[tag as Metrics.AcquireFailure] = index + 6
  })
  metrics.registerBudget(() => 7.5)
  store.connectionsOpened = 15
  Object.assign(store.connectionsClosed, {
    idle: 1,
    lifetime: 2,
    uses: 3,
    resize: 0,
    invalid: 4,
    error: 5,
    shutdown: 0
  })
  Object.assign(store.breakerTransitions, { Closed: 1, Open: 3, HalfOpen: 2 })
  Object.assign(store.breakerRejections, { open: 31, half_open: 32, isolated: 33 })
  store.breakerState = "HalfOpen"
}

const filled = (name?: string) => Effect.tap(Metrics.make({ name }), (metrics) => Effect.sync(() => fill(metrics)))

const build = (metrics: Metrics.Metrics["Service"], options: Metrics.PromClientOptions) =>
  Layer.build(Metrics.layerPromClient(options)).pipe(Effect.provideService(Metrics.Metrics, metrics))

/** prom-client, and what it is called since 0.16: registries of the one shape that is needed. */
const clients = [["prom-client", promClient], [
  "@prometheus-io/client",
  successor as object as typeof promClient
]] as const

const scrape = (register: { metrics(): Promise<string> }) => Effect.promise(() => register.metrics())

const lines = (text: string) => text.split("\n").filter((line) => line !== "").sort()

describe("instruments", () => {
  it("a value on a bound belongs to that bucket, and buckets are cumulative", () => {
    const histogram = new Histogram([1, 2, 3])
    for (const value of [0, 1, 1.5, 2, 3, 3.1]) histogram.observe(value)
    assert.deepStrictEqual(histogram.snapshot(), {
      buckets: [[1, 2], [2, 4], [3, 5], [Infinity, 6]],
      count: 6,
      sum: 10.6,
      min: 0,
      max: 3.1
    })
  })

  it("has 14 ascending bounds that contain those of OpenTelemetry and of prom-client", () => {
    assert.strictEqual(durationBounds.length, 14)
    assert.deepStrictEqual(durationBounds, [...durationBounds].sort((a, b) => a - b))
    const openTelemetry = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]
    const promClient = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
    for (const bound of [...openTelemetry, ...promClient]) assert.include(durationBounds, bound)
  })

  it("has one bound more for waits, since a timeout of a minute is not 10 seconds", () => {
    assert.deepStrictEqual(waitBounds, [...durationBounds, 30])
  })

  it("histograms add up to what one of all values had been", () => {
    const values = [[0.5, 2], [], [3]]
    const parts = values.map((some) => {
      const part = new Histogram([1, 2])
      for (const value of some) part.observe(value)
      return part.snapshot()
    })
    const all = new Histogram([1, 2])
    for (const value of values.flat()) all.observe(value)
    assert.deepStrictEqual(sum([parts[0]!, parts[1]!, parts[2]!]), all.snapshot())
    assert.deepStrictEqual(sum([parts[1]!, parts[0]!, parts[2]!]), all.snapshot())
  })

  it("a value that is no duration is counted as 0, so that the sum never goes down", () => {
    const histogram = new Histogram([1])
    for (const value of [0.5, -5, Number.NaN, Infinity]) histogram.observe(value)
    assert.deepStrictEqual(histogram.snapshot(), {
      buckets: [[1, 4], [Infinity, 4]],
      count: 4,
      sum: 0.5,
      min: 0,
      max: 0.5
    })
  })
})

describe("Metrics", () => {
  it.effect("every counter is there at 0 before anything happened", () =>
    Effect.gen(function*() {
      const text = yield* Metrics.render
      const values = lines(text).filter((line) => !line.startsWith("#"))
      const notZero = values.filter((line) => !line.endsWith(" 0"))
      assert.deepStrictEqual(notZero, [
        "db_circuit_breaker_state{pool=\"default\",state=\"closed\"} 1",
        "db_up{pool=\"default\"} 1"
      ])
      assert.strictEqual(new Set(values).size, values.length)
      for (const value of values) assert.include(value, "pool=\"default\"")
      for (const kind of kinds) {
        for (const operation of ["SELECT", "COMMIT", "OTHER", "CHECKOUT"]) {
          assert.include(
            values,
            `db_query_errors_total{pool="default",operation="${operation}",error_type="${kind}"} 0`
          )
        }
        assert.include(values, `db_query_retries_total{pool="default",reason="${kind}"} 0`)
      }
      for (const outcome of ["acquired", "timeout", "interrupted", "failed"]) {
        assert.include(values, `db_pool_acquire_duration_seconds_count{pool="default",outcome="${outcome}"} 0`)
      }
      // There are many, and most programs use a few.
      assert.deepStrictEqual(values.filter((line) => line.startsWith("db_query_duration_seconds")), [])
      // It is not 0 without a budget: it is not there.
      assert.deepStrictEqual(values.filter((line) => line.startsWith("db_retry_budget_tokens")), [])
    }).pipe(Effect.provide(Metrics.layer())))

  it.effect("a snapshot is a copy that later events do not change", () =>
    Effect.gen(function*() {
      const metrics = yield* filled("main")
      const before = yield* metrics.snapshot
      metrics.store.queries.succeeded(select, 1)
      metrics.store.errors.SELECT.Rejected++
      metrics.store.breakerState = "Open"
      metrics.store.connectionsClosed.idle++
      const after = yield* metrics.snapshot
      assert.deepStrictEqual(before.stats, stats)
      assert.strictEqual(before.query.ok.count, 8)
      assert.strictEqual(after.query.ok.count, 9)
      assert.strictEqual(before.errors.Rejected, 5 + 25)
      assert.strictEqual(after.errors.Rejected, 6 + 25)
      assert.strictEqual(before.errorsByOperation.SELECT.Rejected, 5)
      assert.strictEqual(before.breakerState, "HalfOpen")
      assert.strictEqual(before.connectionsClosed.idle, 1)
    }))

  it.effect("gauges are read from the pool at each collection", () =>
    Effect.gen(function*() {
      const metrics = yield* Metrics.make()
      let active = 0
      metrics.registerPool(() => ({ ...stats, active }))
      assert.strictEqual((yield* metrics.snapshot).stats?.active, 0)
      active = 4
      assert.strictEqual((yield* metrics.snapshot).stats?.active, 4)
    }))

  it.effect("pools that share their metrics add up, until they are removed", () =>
    Effect.gen(function*() {
      const metrics = yield* Metrics.make()
      const remove = metrics.registerPool(() => stats)
      metrics.registerPool(() => ({ ...stats, total: 100 }))
      const both = (yield* metrics.snapshot).stats
      assert.deepStrictEqual([both?.total, both?.max], [107, 40])
      remove()
      const rest = (yield* metrics.snapshot).stats
      assert.deepStrictEqual([rest?.total, rest?.max], [100, 20])
    }))

  it.effect("a name that no series could be told by is refused, and told of without a line break", () =>
    Effect.gen(function*() {
      for (const name of ["", "  ", "orders\narchive", "orders\u0000", 7 as unknown as string]) {
        const error = yield* Effect.flip(Metrics.make({ name }))
        assert.deepInclude(error, { _tag: "InvalidOption", option: "name", value: name })
        assert.notInclude(error.message, "\n")
      }
      assert.strictEqual((yield* Metrics.make({ name: "Bestellungen (alt)" })).pool, "Bestellungen (alt)")
    }))

  it.effect("Pg.layer calls the pool by its name, else by its application, and refuses what is no name", () =>
    Effect.gen(function*() {
      const named = (options: Pg.Options) =>
        Effect.map(Effect.scoped(Layer.build(Pg.layer(options))), (built) => Context.get(built, Metrics.Metrics).pool)
      assert.strictEqual(yield* named({ name: "orders", applicationName: "shop" }), "orders")
      assert.strictEqual(yield* named({ applicationName: "shop" }), "shop")
      // PostgreSQL takes an application without a name.
      assert.strictEqual(yield* named({ applicationName: "" }), "default")
      for (const options of [{ name: "" }, { name: "a\nb" }, { applicationName: "a\nb" }]) {
        assert.deepInclude(yield* Effect.flip(named(options)), { _tag: "InvalidOption", option: "name" })
      }
    }))

  it.effect("the name of a pool is escaped", () =>
    Effect.gen(function*() {
      const metrics = yield* Metrics.make({ name: "a\"b\\c" })
      const register = new promClient.Registry()
      yield* build(metrics, { register })
      const text = yield* Effect.provideService(Metrics.render, Metrics.Metrics, metrics)
      assert.include(text, "db_pool_size{pool=\"a\\\"b\\\\c\",state=\"idle\"} 0")
      assert.strictEqual(yield* scrape(register), text)
    }))
})

for (const [client, prom] of clients) {
  describe(`Metrics.layerPromClient on ${client}`, () => {
    it.effect("a scrape prints the known numbers, word for word", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        yield* build(yield* filled("main"), { register })
        const text = yield* scrape(register)
        const family = (name: string) => text.slice(text.indexOf(`# HELP ${name} `)).split("\n\n")[0]?.trimEnd()
        assert.strictEqual(
          family("db_pool_size"),
          `# HELP db_pool_size Connections of the pool by state (total, idle, active), and callers waiting for one.
# TYPE db_pool_size gauge
db_pool_size{pool="main",state="total"} 7
db_pool_size{pool="main",state="idle"} 3
db_pool_size{pool="main",state="active"} 4
db_pool_size{pool="main",state="waiting"} 2`
        )
        assert.strictEqual(
          family("db_query_duration_seconds")?.split("\n").slice(0, 19).join("\n"),
          `# HELP db_query_duration_seconds Duration of queries, by operation and outcome.
# TYPE db_query_duration_seconds histogram
db_query_duration_seconds_bucket{le="0.001",pool="main",operation="SELECT",outcome="ok"} 2
db_query_duration_seconds_bucket{le="0.0025",pool="main",operation="SELECT",outcome="ok"} 2
db_query_duration_seconds_bucket{le="0.005",pool="main",operation="SELECT",outcome="ok"} 2
db_query_duration_seconds_bucket{le="0.01",pool="main",operation="SELECT",outcome="ok"} 2
db_query_duration_seconds_bucket{le="0.025",pool="main",operation="SELECT",outcome="ok"} 2
db_query_duration_seconds_bucket{le="0.05",pool="main",operation="SELECT",outcome="ok"} 3
db_query_duration_seconds_bucket{le="0.075",pool="main",operation="SELECT",outcome="ok"} 4
db_query_duration_seconds_bucket{le="0.1",pool="main",operation="SELECT",outcome="ok"} 4
db_query_duration_seconds_bucket{le="0.25",pool="main",operation="SELECT",outcome="ok"} 6
db_query_duration_seconds_bucket{le="0.5",pool="main",operation="SELECT",outcome="ok"} 6
db_query_duration_seconds_bucket{le="1",pool="main",operation="SELECT",outcome="ok"} 6
db_query_duration_seconds_bucket{le="2.5",pool="main",operation="SELECT",outcome="ok"} 7
db_query_duration_seconds_bucket{le="5",pool="main",operation="SELECT",outcome="ok"} 7
db_query_duration_seconds_bucket{le="10",pool="main",operation="SELECT",outcome="ok"} 7
db_query_duration_seconds_bucket{le="+Inf",pool="main",operation="SELECT",outcome="ok"} 8
db_query_duration_seconds_sum{pool="main",operation="SELECT",outcome="ok"} 66.59525
db_query_duration_seconds_count{pool="main",operation="SELECT",outcome="ok"} 8`
        )
        for (
          const line of [
            "db_pool_connections{pool=\"main\",state=\"idle\"} 3",
            "db_pool_connections{pool=\"main\",state=\"used\"} 4",
            "db_pool_connections{pool=\"main\",state=\"connecting\"} 1",
            "db_pool_connections_max{pool=\"main\"} 20",
            "db_pool_connections_min{pool=\"main\"} 5",
            "db_pool_pending_requests{pool=\"main\"} 2",
            "db_pool_acquire_duration_seconds_bucket{le=\"0.1\",pool=\"main\",outcome=\"acquired\"} 0",
            "db_pool_acquire_duration_seconds_bucket{le=\"0.25\",pool=\"main\",outcome=\"acquired\"} 1",
            "db_pool_acquire_duration_seconds_sum{pool=\"main\",outcome=\"acquired\"} 0.125",
            "db_pool_acquire_duration_seconds_sum{pool=\"main\",outcome=\"timeout\"} 0.25",
            "db_pool_acquire_duration_seconds_sum{pool=\"main\",outcome=\"interrupted\"} 0.375",
            "db_pool_acquire_duration_seconds_sum{pool=\"main\",outcome=\"failed\"} 0.5",
            "db_pool_use_duration_seconds_bucket{le=\"10\",pool=\"main\"} 0",
            "db_pool_use_duration_seconds_bucket{le=\"30\",pool=\"main\"} 1",
            "db_pool_connect_duration_seconds_sum{pool=\"main\",outcome=\"ok\"} 0.0625",
            "db_pool_connect_duration_seconds_sum{pool=\"main\",outcome=\"error\"} 8",
            "db_pool_acquire_timeouts_total{pool=\"main\"} 6",
            "db_pool_acquire_errors_total{pool=\"main\",error_type=\"AcquireTimeout\"} 6",
            "db_pool_acquire_errors_total{pool=\"main\",error_type=\"PoolSaturated\"} 7",
            "db_pool_acquire_errors_total{pool=\"main\",error_type=\"PoolClosed\"} 8",
            "db_pool_acquire_errors_total{pool=\"main\",error_type=\"HookFailed\"} 9",
            "db_pool_acquire_errors_total{pool=\"main\",error_type=\"CredentialsFailed\"} 10",
            "db_pool_acquire_errors_total{pool=\"main\",error_type=\"NoSuitableHost\"} 11",
            "db_pool_acquire_errors_total{pool=\"main\",error_type=\"FleetTooLarge\"} 12",
            "db_pool_acquire_errors_total{pool=\"main\",error_type=\"ConnectFailed\"} 13",
            "db_pool_connections_opened_total{pool=\"main\"} 15",
            "db_pool_connections_closed_total{pool=\"main\",reason=\"idle\"} 1",
            "db_pool_connections_closed_total{pool=\"main\",reason=\"lifetime\"} 2",
            "db_pool_connections_closed_total{pool=\"main\",reason=\"uses\"} 3",
            "db_pool_connections_closed_total{pool=\"main\",reason=\"invalid\"} 4",
            "db_pool_connections_closed_total{pool=\"main\",reason=\"error\"} 5",
            "db_pool_connections_closed_total{pool=\"main\",reason=\"shutdown\"} 0",
            "db_query_duration_seconds_count{pool=\"main\",operation=\"SELECT\",outcome=\"error\"} 2",
            "db_query_duration_seconds_sum{pool=\"main\",operation=\"SELECT\",outcome=\"error\"} 0.75",
            "db_query_duration_seconds_sum{pool=\"main\",operation=\"COMMIT\",outcome=\"interrupted\"} 4",
            ...kinds.flatMap((kind, index) => [
              `db_query_errors_total{pool="main",operation="SELECT",error_type="${kind}"} ${index + 1}`,
              `db_query_errors_total{pool="main",operation="CHECKOUT",error_type="${kind}"} ${index + 21}`,
              `db_query_errors_total{pool="main",operation="COMMIT",error_type="${kind}"} 0`,
              `db_query_retries_total{pool="main",reason="${kind}"} ${index + 11}`
            ]),
            "db_retry_budget_tokens{pool=\"main\"} 7.5",
            "db_up{pool=\"main\"} 1",
            "db_circuit_breaker_rejections_total{pool=\"main\",reason=\"open\"} 31",
            "db_circuit_breaker_rejections_total{pool=\"main\",reason=\"half_open\"} 32",
            "db_circuit_breaker_rejections_total{pool=\"main\",reason=\"isolated\"} 33",
            "db_circuit_breaker_state{pool=\"main\",state=\"closed\"} 0",
            "db_circuit_breaker_state{pool=\"main\",state=\"open\"} 0",
            "db_circuit_breaker_state{pool=\"main\",state=\"half_open\"} 1",
            "db_circuit_breaker_state{pool=\"main\",state=\"isolated\"} 0",
            "db_circuit_breaker_state{pool=\"main\",state=\"disabled\"} 0",
            "db_circuit_breaker_transitions_total{pool=\"main\",to=\"closed\"} 1",
            "db_circuit_breaker_transitions_total{pool=\"main\",to=\"open\"} 3",
            "db_circuit_breaker_transitions_total{pool=\"main\",to=\"half_open\"} 2"
          ]
        ) assert.include(text.split("\n"), line)
      }))

    it.effect("prints what prom-client's own instruments print for the same events", () =>
      Effect.gen(function*() {
        const ours = new prom.Registry()
        yield* build(yield* filled("main"), { register: ours })
        const theirs = new prom.Registry()
        const histogram = new prom.Histogram({
          name: "db_query_duration_seconds",
          help: "Duration of queries, by operation and outcome.",
          labelNames: ["pool", "operation", "outcome"],
          buckets: [...durationBounds],
          registers: [theirs]
        })
        for (const value of [0.0005, 0.001, 0.03125, 0.0625, 0.25, 0.25, 2, 64]) {
          histogram.observe({ pool: "main", operation: "SELECT", outcome: "ok" }, value)
        }
        for (const value of [0.5, 0.25]) {
          histogram.observe({ pool: "main", operation: "SELECT", outcome: "error" }, value)
        }
        histogram.observe({ pool: "main", operation: "COMMIT", outcome: "interrupted" }, 4)
        const counter = new prom.Counter({
          name: "db_query_retries_total",
          help: "Attempts after the first, by the kind of failure that caused them.",
          labelNames: ["pool", "reason"],
          registers: [theirs]
        })
        kinds.forEach((kind, index) => counter.inc({ pool: "main", reason: kind }, index + 11))
        for (const name of ["db_query_duration_seconds", "db_query_retries_total"]) {
          const [left, right] = yield* Effect.promise(() =>
            Promise.all([ours.getSingleMetricAsString(name), theirs.getSingleMetricAsString(name)])
          )
          assert.deepStrictEqual(lines(left), lines(right))
        }
      }))

    it.effect("render prints the same text without prom-client", () =>
      Effect.gen(function*() {
        const metrics = yield* filled("main")
        const register = new prom.Registry()
        yield* build(metrics, { register })
        const rendered = yield* Effect.provideService(Metrics.render, Metrics.Metrics, metrics)
        assert.strictEqual(rendered, yield* scrape(register))
        assert.strictEqual(Metrics.contentType, register.contentType)
      }))

    it.effect("Prometheus' own linter has no complaints, before anything happened and after all of it", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        yield* build(yield* filled("main"), { register })
        yield* build(yield* Metrics.make({ name: "unused" }), { register })
        assert.strictEqual(complaintsAbout(yield* scrape(register)), "")
        // It does complain.
        assert.include(complaintsAbout("# TYPE connection_count gauge\nconnection_count 1\n"), "connection_count")
      }))

    it.effect("two pools share a registry, each metric being announced once", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        const orders = yield* Metrics.make({ name: "orders" })
        yield* build(yield* filled("main"), { register })
        yield* build(orders, { register })
        orders.store.acquireErrors.AcquireTimeout = 41
        const text = yield* scrape(register)
        assert.include(text, "db_pool_acquire_timeouts_total{pool=\"main\"} 6")
        assert.include(text, "db_pool_acquire_timeouts_total{pool=\"orders\"} 41")
        const announced = text.split("\n").filter((line) => line.startsWith("# TYPE"))
        assert.strictEqual(new Set(announced).size, announced.length)
      }))

    it.effect("one layer in a const serves each pool that it is given", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        const Exported = Metrics.layerPromClient({ register })
        const ordersLive = Metrics.layer({ name: "orders" })
        yield* Layer.build(Layer.mergeAll(
          Exported.pipe(Layer.provide(ordersLive)),
          Exported.pipe(Layer.provide(Metrics.layer({ name: "archive" }))),
          // The same pool once more: it is there once.
          Exported.pipe(Layer.provide(ordersLive))
        ))
        const values = lines(yield* scrape(register)).filter((line) => line.startsWith("db_up"))
        assert.deepStrictEqual(values, ["db_up{pool=\"archive\"} 1", "db_up{pool=\"orders\"} 1"])
      }))

    it.effect("a pool that was added twice is told of once, and stays until it was removed twice", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        const metrics = yield* filled("main")
        const [one, other] = [yield* Scope.make(), yield* Scope.make()]
        yield* Scope.provide(build(metrics, { register, legacy: false }), one)
        const once = yield* scrape(register)
        yield* Scope.provide(build(metrics, { register, legacy: false }), other)
        assert.strictEqual(yield* scrape(register), once)
        yield* Scope.close(one, Exit.void)
        assert.strictEqual(yield* scrape(register), once)
        // One who wants the older names has them.
        yield* Effect.scoped(Effect.gen(function*() {
          yield* build(metrics, { register })
          assert.include(yield* scrape(register), "db_pool_size{pool=\"main\",state=\"total\"} 7")
        }))
        assert.strictEqual(yield* scrape(register), once)
        yield* Scope.close(other, Exit.void)
        assert.strictEqual(register.getMetricsAsArray().length, 0)
      }))

    it.effect("what is no registry is refused by name, and told what one is", () =>
      Effect.gen(function*() {
        const metrics = yield* Metrics.make()
        for (const register of [undefined, {}, prom, () => {}, "default"]) {
          const error = yield* Effect.flip(build(metrics, { register: register as never }))
          assert.deepInclude(error, { _tag: "InvalidOption", option: "register" })
          assert.include(error.message, "must be a Registry of prom-client or @prometheus-io/client")
        }
      }))

    it.effect("renderAll prints what a registry with all of the pools would", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        const pools = [yield* filled("main"), yield* filled("orders"), yield* Metrics.make({ name: "unused" })]
        for (const metrics of pools) yield* build(metrics, { register })
        const page = yield* Metrics.renderAll(pools)
        assert.strictEqual(page, yield* scrape(register))
        assert.strictEqual(complaintsAbout(page), "")
        // The same pool twice is one pool.
        assert.strictEqual(yield* Metrics.renderAll([...pools, pools[0]!]), page)
      }))

    it.effect("the metrics of a pool leave the registry with its scope, and those of others stay", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        const foreign = new prom.Counter({ name: "other_total", help: "Other", registers: [register] })
        const join = Effect.fnUntraced(function*(name: string) {
          const scope = yield* Scope.make()
          yield* Scope.provide(build(yield* Metrics.make({ name }), { register }), scope)
          return Scope.close(scope, Exit.void)
        })
        const closeA = yield* join("a")
        const closeB = yield* join("b")
        yield* closeA
        const text = yield* scrape(register)
        assert.notInclude(text, "pool=\"a\"")
        assert.include(text, "pool=\"b\"")
        yield* closeB
        assert.deepStrictEqual(register.getMetricsAsArray().map((metric) => metric.name), ["other_total"])
        assert.strictEqual(register.getSingleMetric("other_total"), foreign)
        // The name and the registry are free again.
        yield* yield* join("a")
      }))

    it.effect("a second pool of the same name is refused, and the first one stays", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        yield* build(yield* filled("main"), { register })
        const error = yield* Effect.flip(build(yield* Metrics.make({ name: "main" }), { register }))
        assert.deepInclude(error, { _tag: "RegistryConflict", pool: "main", metric: null })
        assert.include(error.message, "another pool named \"main\"")
        assert.include(error.message, "keep its layer in a const")
        assert.isFalse(error.isRetryable)
        assert.include(yield* scrape(register), "db_pool_acquire_timeouts_total{pool=\"main\"} 6")
      }).pipe(Effect.scoped))

    it.effect("a refused pool does not take the accepted one of the same name away when its scope closes", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        yield* build(yield* filled("main"), { register })
        yield* Effect.exit(Effect.scoped(build(yield* Metrics.make({ name: "main" }), { register })))
        assert.include(yield* scrape(register), "db_pool_acquire_timeouts_total{pool=\"main\"} 6")
      }))

    it.effect("a metric of the user under one of our names is refused by name, and nothing is left behind", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        new prom.Gauge({ name: "db_query_errors_total", help: "Mine", registers: [register] })
        const error = yield* Effect.flip(build(yield* Metrics.make(), { register }))
        assert.deepInclude(error, { _tag: "RegistryConflict", metric: "db_query_errors_total" })
        assert.include(error.message, "db_query_errors_total")
        assert.strictEqual(register.getMetricsAsArray().length, 1)
      }))

    it.effect("legacy: false leaves db_pool_size out, for that pool only", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        yield* build(yield* filled("old"), { register })
        yield* build(yield* filled("new"), { register, legacy: false })
        const text = yield* scrape(register)
        assert.include(text, "db_pool_size{pool=\"old\"")
        assert.notInclude(text, "db_pool_size{pool=\"new\"")
        assert.include(text, "db_pool_connections{pool=\"new\",state=\"used\"} 4")
      }))

    it.effect("a pool whose figures cannot be read costs its gauges, not the scrape", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        const metrics = yield* Metrics.make({ name: "broken" })
        metrics.registerPool(() => {
          throw new Error("gone")
        })
        metrics.store.connectionsOpened = 3
        yield* build(metrics, { register })
        yield* build(yield* filled("main"), { register })
        const text = yield* scrape(register)
        assert.notInclude(text, "db_pool_size{pool=\"broken\"")
        assert.include(text, "db_pool_connections_opened_total{pool=\"broken\"} 3")
        assert.include(text, "db_pool_size{pool=\"main\",state=\"total\"} 7")
      }))

    it.effect("the registry's own controls work: default labels, JSON, reset, clear, OpenMetrics", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        register.setDefaultLabels({ app: "shop", pool: "not this" })
        yield* build(yield* filled("main"), { register })
        assert.include(yield* scrape(register), "db_pool_connections_max{pool=\"main\",app=\"shop\"} 20")
        const json = yield* Effect.promise(() => register.getMetricsAsJSON())
        const opened = json.find((metric) => metric.name === "db_pool_connections_opened_total")
        assert.deepStrictEqual(opened?.values.map((value) => value.value), [15])
        register.resetMetrics()
        assert.include(yield* scrape(register), "db_pool_connections_opened_total{pool=\"main\",app=\"shop\"} 15")
        // The next pool to come puts back what the user has cleared.
        register.clear()
        yield* build(yield* Metrics.make({ name: "late" }), { register })
        const text = yield* scrape(register)
        assert.include(text, "db_pool_connections_opened_total{pool=\"main\"} 15")
        assert.include(text, "db_pool_connections_opened_total{pool=\"late\"} 0")

        const open = new prom.Registry<promClient.OpenMetricsContentType>()
        open.setContentType(prom.openMetricsContentType)
        yield* build(yield* filled("main"), { register: open })
        for (let scrapes = 0; scrapes < 2; scrapes++) {
          const openText = yield* Effect.promise(() => open.metrics())
          assert.include(openText, "# TYPE db_pool_connections_opened counter")
          assert.include(openText, "\ndb_pool_connections_opened_total{pool=\"main\"} 15")
          assert.notInclude(openText, "_total_total")
        }
      }))

    it.effect("the layer is built on the pool's own metrics", () =>
      Effect.gen(function*() {
        const register = new prom.Registry()
        const context = yield* Layer.build(
          Metrics.layerPromClient({ register }).pipe(Layer.provideMerge(Metrics.layer({ name: "shop" })))
        )
        const metrics = Context.get(context, Metrics.Metrics)
        metrics.store.retries.Contention++
        assert.strictEqual(metrics.pool, "shop")
        assert.include(yield* scrape(register), "db_query_retries_total{pool=\"shop\",reason=\"Contention\"} 1")
      }))

    it.effect("after random events, counts and buckets add up", () =>
      Effect.gen(function*() {
        const metrics = yield* Metrics.make()
        const register = new prom.Registry()
        yield* build(metrics, { register })
        let seed = 42
        const random = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648
        let sum = 0
        for (let i = 0; i < 10_000; i++) {
          const seconds = 15 * random() ** 6
          sum += seconds
          metrics.store.queries.succeeded(select, seconds)
          metrics.store.errors.SELECT[kinds[Math.floor(random() * kinds.length)] ?? "Local"]++
        }
        const json = yield* Effect.promise(() => register.getMetricsAsJSON())
        const values = (name: string) => json.find((metric) => metric.name === name)?.values ?? []
        const ok = values("db_query_duration_seconds").filter((value) => value.labels["outcome"] === "ok")
        const named = ok.map((value) => ({ name: "metricName" in value ? String(value.metricName) : "", ...value }))
        const buckets = named.filter(({ name }) => name.endsWith("_bucket")).map(({ value }) => value)
        assert.strictEqual(buckets.length, 15)
        buckets.reduce((below, value) => (assert.isAtLeast(value, below), value), 0)
        assert.strictEqual(buckets.at(-1), 10_000)
        assert.strictEqual(named.find(({ name }) => name.endsWith("_count"))?.value, 10_000)
        assert.strictEqual(named.find(({ name }) => name.endsWith("_sum"))?.value, sum)
        assert.strictEqual(values("db_query_errors_total").reduce((total, { value }) => total + value, 0), 10_000)
      }))

    it.effect("takes the registry of that package as it is", () =>
      Effect.gen(function*() {
        const registers = [new promClient.Registry(), new successor.Registry()]
        for (const register of registers) yield* build(yield* filled("main"), { register })
        const [one, other] = yield* Effect.forEach(registers, scrape)
        assert.strictEqual(one, other)
      }))
  })
}

describe("Metrics.renderAll", () => {
  it.effect("refuses two pools of one name", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Metrics.renderAll([yield* filled("main"), yield* filled("main")]))
      assert.deepInclude(error, { _tag: "RegistryConflict", pool: "main", metric: null })
    }))
})

describe("Metrics.layerOpenTelemetry", () => {
  const pools = Effect.map(
    Metric.snapshot,
    (series) =>
      series.filter(({ id }) => id === "db.up").map(({ attributes }) => attributes?.["db.client.connection.pool.name"])
  )

  it.effect("one layer in a const serves each pool that it is given", () =>
    Effect.gen(function*() {
      const Exported = Metrics.layerOpenTelemetry()
      const ordersLive = Metrics.layer({ name: "orders" })
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Layer.build(Layer.mergeAll(
          Exported.pipe(Layer.provide(ordersLive)),
          Exported.pipe(Layer.provide(Metrics.layer({ name: "archive" }))),
          // The same pool once more: it is there once.
          Exported.pipe(Layer.provide(ordersLive))
        ))
        assert.deepStrictEqual((yield* pools).sort(), ["archive", "orders"])
      }))
      assert.deepStrictEqual(yield* pools, [])
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("a pool that was added twice stays until it was removed twice", () =>
    Effect.gen(function*() {
      const metrics = yield* Metrics.make({ name: "orders" })
      const [one, other] = [yield* Scope.make(), yield* Scope.make()]
      for (const scope of [one, other]) {
        yield* Scope.provide(Layer.build(Metrics.layerOpenTelemetry()), scope).pipe(
          Effect.provideService(Metrics.Metrics, metrics)
        )
      }
      yield* Scope.close(one, Exit.void)
      metrics.store.queries.succeeded(select, 0.5)
      assert.deepStrictEqual(yield* pools, ["orders"])
      const durations = (yield* Metric.snapshot).filter(({ id }) => id === "db.client.operation.duration")
      assert.strictEqual(durations.length, 1)
      yield* Scope.close(other, Exit.void)
      assert.deepStrictEqual(yield* Metric.snapshot, [])
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("has a series once, also when another server is told of before the next series appears", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(Metrics.layerOpenTelemetry().pipe(Layer.provideMerge(Metrics.layer())))
      const { registerPool, store } = Context.get(context, Metrics.Metrics)
      const unregister = registerPool(() => stats, { server: { "server.address": "one.example" } })
      store.queries.succeeded(select, 0.5)
      unregister()
      registerPool(() => stats, { server: { "server.address": "two.example" } })
      store.queries.succeeded("COMMIT", 0.5)
      const durations = (yield* Metric.snapshot).filter(({ id }) => id === "db.client.operation.duration")
      assert.deepStrictEqual(
        durations.map(({ attributes }) => [attributes?.["db.operation.name"], attributes?.["server.address"]]).sort(),
        [["COMMIT", "two.example"], ["SELECT", "one.example"]]
      )
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
})

describe("cost", () => {
  it.effect("of one event, measured and printed", () =>
    Effect.gen(function*() {
      const { snapshotUnsafe, store } = yield* Metrics.make()
      const rounds = 1_000_000
      const nanos = (f: (index: number) => void) => {
        for (let i = 0; i < 100_000; i++) f(i)
        const start = process.hrtime.bigint()
        for (let i = 0; i < rounds; i++) f(i)
        return (Number(process.hrtime.bigint() - start) / rounds).toFixed(1)
      }
      const durations = Float64Array.from({ length: 1024 }, (_, index) => 0.0005 * 1.008 ** index)
      const observe = nanos((index) => store.queries.succeeded(select, durations[index & 1023]!))
      const count = nanos((index) => {
        store.errors.SELECT[kinds[index % kinds.length]!]++
      })
      yield* Effect.sync(() => process.stdout.write(`cost: observe ${observe} ns, count by kind ${count} ns\n`))
      assert.strictEqual(snapshotUnsafe().query.ok.count, rounds + 100_000)
    }))
})
