/**
 * What the pool counts, and how it is read.
 *
 * Every instrument lives once, as plain numbers in the {@link Store} of its pool. Counting costs nanoseconds, since
 * nothing is exported, hashed or labelled on the way: exporters ({@link layerPromClient}, {@link render}) read the
 * numbers when they are asked to. Gauges are never counted up and down; they are read from the pool itself.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Errors from "./Errors.ts"
import * as instruments from "./internal/instruments.ts"
import type { CloseReason as SessionEnd } from "./internal/session.ts"
import type { Kind } from "./internal/verdict.ts"
import { kinds } from "./internal/verdict.ts"

// -----------------------------------------------------------------------------
// models
// -----------------------------------------------------------------------------

/**
 * Why a physical connection was closed: `idle` (over the idle timeout), `lifetime` (over the maximum age), `uses` (over
 * the maximum number of checkouts), `invalid` (failed its liveness check or was evicted), `error` (broken in use, or
 * its socket closed), `shutdown` (the pool was closed).
 *
 * @category models
 * @since 0.1.0
 */
export type CloseReason = SessionEnd

/**
 * The state of the breaker, as the breaker itself names it.
 *
 * @category models
 * @since 0.1.0
 */
export type BreakerState = "Closed" | "Open" | "HalfOpen" | "Isolated" | "Disabled"

/**
 * How a query ended. `interrupted` is neither a success nor a failure of the database.
 *
 * @category models
 * @since 0.1.0
 */
export type Outcome = "ok" | "error" | "interrupted"

/**
 * The figures of a pool that are gauges: connections by state, callers waiting, and the limits.
 *
 * @category models
 * @since 0.1.0
 */
export type PoolStats = Errors.PoolStats

/**
 * A histogram of durations in seconds, as plain numbers: `observe(seconds)` adds a value in a few nanoseconds.
 *
 * @category models
 * @since 0.1.0
 */
export type Histogram = instruments.Histogram

/**
 * An immutable copy of a {@link Histogram}: cumulative buckets, count and sum (seconds).
 *
 * @category models
 * @since 0.1.0
 */
export type HistogramSnapshot = instruments.HistogramSnapshot

/**
 * The numbers of one pool. They are mutable so that counting stays cheap, and are **written by the pool and its breaker
 * only**; read them through `snapshot`.
 *
 * Counting is `store.query.ok.observe(seconds)` or `store.errors[kind]++`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Store {
  /** Durations of queries in seconds, by outcome. */
  readonly query: Readonly<Record<Outcome, Histogram>>
  /** Time from asking for a connection to holding one, in seconds. */
  readonly acquire: Histogram
  /** Failed queries and checkouts, by kind. */
  readonly errors: Record<Kind, number>
  /** Attempts after the first one, by the kind of failure that caused them. */
  readonly retries: Record<Kind, number>
  /** Checkouts that gave up waiting. */
  acquireTimeouts: number
  /** Physical connections opened. */
  connectionsOpened: number
  /** Physical connections closed, by reason. */
  readonly connectionsClosed: Record<CloseReason, number>
  /** Changes of the breaker's state, by the state entered. */
  readonly breakerTransitions: Record<BreakerState, number>
  /** The state the breaker is in now. */
  breakerState: BreakerState
}

/**
 * An immutable copy of everything that is measured, taken at one moment.
 *
 * @category models
 * @since 0.1.0
 */
export interface Snapshot {
  /** The value of the label `pool`. */
  readonly pool: string
  /** All zero while no pool has registered; `undefined` when the pool's own figures could not be read. */
  readonly stats: PoolStats | undefined
  readonly query: Readonly<Record<Outcome, HistogramSnapshot>>
  readonly acquire: HistogramSnapshot
  readonly errors: Readonly<Record<Kind, number>>
  readonly retries: Readonly<Record<Kind, number>>
  readonly acquireTimeouts: number
  readonly connectionsOpened: number
  readonly connectionsClosed: Readonly<Record<CloseReason, number>>
  readonly breakerTransitions: Readonly<Record<BreakerState, number>>
  readonly breakerState: BreakerState
}

/**
 * What is needed of a registry: the part that prom-client's `Registry` (14 and 15) and that of its renamed successor
 * `@prometheus-io/client` have in common. Neither package is imported.
 *
 * @category models
 * @since 0.1.0
 */
export interface PromRegistry {
  // `never`: each package has a metric type of its own, which cannot be named without importing the package.
  registerMetric(metric: never): void
  getSingleMetric(name: string): unknown
  removeSingleMetric(name: string): void
}

// -----------------------------------------------------------------------------
// errors
// -----------------------------------------------------------------------------

/**
 * The metrics of a pool could not be added to a registry, because the registry already has a pool of that name, or a
 * metric of that name which is not ours. Found when the layer is built.
 *
 * @category errors
 * @since 0.1.0
 */
export class RegistryConflict
  extends Schema.TaggedError<RegistryConflict>("effect-pg-pool/Metrics/RegistryConflict")("RegistryConflict", {
    /** The name of the pool that was to be added. */
    pool: Schema.String,
    /** The name of the foreign metric that is in the way; `null` when the name of the pool is taken. */
    metric: Schema.NullOr(Schema.String)
  })
{
  /** Adding the same pool again fails again. */
  get isRetryable(): boolean {
    return false
  }

  override get message(): string {
    return this.metric === null
      ? `The registry already has a pool named "${this.pool}": its series could not be told apart. `
        + `Give each pool a name of its own, for example Pg.layer({ name: "orders" }).`
      : `The registry already has a metric "${this.metric}" that does not belong to a pool of this library. `
        + `Remove it, or give the pool "${this.pool}" another registry.`
  }
}

// -----------------------------------------------------------------------------
// service
// -----------------------------------------------------------------------------

/**
 * The metrics of one pool. Its parts write to `store`; everybody else takes a `snapshot`.
 *
 * @category services
 * @since 0.1.0
 */
export class Metrics extends Context.Service<Metrics, {
  /** The value of the label `pool`. */
  readonly pool: string
  /** The numbers, written by the pool and its breaker only. */
  readonly store: Store
  /** A copy of all numbers, with the pool's own figures read at this moment. */
  readonly snapshot: Effect.Effect<Snapshot>
  /** The same, synchronously, for collectors outside of Effect. It never throws. */
  readonly snapshotUnsafe: () => Snapshot
  /**
   * Says where gauges are read. The function is called at each collection and must be cheap. The answer removes it
   * again. When several pools share these metrics, their figures add up, as their counters do.
   */
  readonly registerPool: (stats: () => PoolStats) => () => void
}>()("effect-pg-pool/Metrics") {}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The value of the label `pool`, unique among the pools of a registry. Default: `"default"`. */
  readonly name?: string | undefined
}

const makeStore = (): Store => ({
  query: {
    ok: new instruments.Histogram(),
    error: new instruments.Histogram(),
    interrupted: new instruments.Histogram()
  },
  acquire: new instruments.Histogram(),
  errors: instruments.counters(kinds),
  retries: instruments.counters(kinds),
  acquireTimeouts: 0,
  connectionsOpened: 0,
  connectionsClosed: instruments.counters(["idle", "lifetime", "uses", "resize", "invalid", "error", "shutdown"]),
  breakerTransitions: instruments.counters(["Closed", "Open", "HalfOpen", "Isolated", "Disabled"]),
  breakerState: "Closed"
})

const readStats = (sources: Iterable<() => PoolStats>): PoolStats | undefined => {
  const sum = { total: 0, idle: 0, active: 0, waiting: 0, connecting: 0, max: 0, min: 0, oldestLease: 0 }
  try {
    for (const source of sources) {
      const stats = source()
      for (const key of Object.keys(sum) as Array<keyof PoolStats>) {
        sum[key] = key === "oldestLease" ? Math.max(sum[key], stats[key]) : sum[key] + stats[key]
      }
    }
    return sum
  } catch {
    // One gauge that cannot be read must not cost the user the whole scrape.
    return undefined
  }
}

/**
 * Makes the metrics of one pool, with every series at 0.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options?: Options): Effect.Effect<Metrics["Service"]> =>
  Effect.sync(() => {
    const pool = options?.name ?? "default"
    const store = makeStore()
    const sources = new Set<() => PoolStats>()
    const snapshotUnsafe = (): Snapshot => ({
      pool,
      stats: readStats(sources),
      query: {
        ok: store.query.ok.snapshot(),
        error: store.query.error.snapshot(),
        interrupted: store.query.interrupted.snapshot()
      },
      acquire: store.acquire.snapshot(),
      errors: { ...store.errors },
      retries: { ...store.retries },
      acquireTimeouts: store.acquireTimeouts,
      connectionsOpened: store.connectionsOpened,
      connectionsClosed: { ...store.connectionsClosed },
      breakerTransitions: { ...store.breakerTransitions },
      breakerState: store.breakerState
    })
    return Metrics.of({
      pool,
      store,
      snapshot: Effect.sync(snapshotUnsafe),
      snapshotUnsafe,
      registerPool: (stats) => {
        sources.add(stats)
        return () => {
          sources.delete(stats)
        }
      }
    })
  })

/**
 * Provides the metrics of one pool. They cost nothing to keep and are exported nowhere until an exporter is added.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<Metrics> => Layer.effect(Metrics, make(options))

// -----------------------------------------------------------------------------
// the table: every metric by the name that Prometheus knows
// -----------------------------------------------------------------------------

interface Sample {
  readonly suffix: "" | "_bucket" | "_sum" | "_count"
  readonly labels: Readonly<Record<string, string | number>>
  readonly value: number
}

interface Family {
  readonly name: string
  readonly help: string
  readonly type: "gauge" | "counter" | "histogram"
  /** Kept for dashboards made before this library; left out with `legacy: false`. */
  readonly legacy?: true
  readonly samples: (snapshot: Snapshot) => ReadonlyArray<Sample>
}

const one = (value: number, labels: Readonly<Record<string, string>>): Sample => ({ suffix: "", labels, value })

const each = <K extends string>(
  values: Readonly<Record<K, number>>,
  labels: (key: K) => Readonly<Record<string, string>>
) => (Object.keys(values) as Array<K>).map((key) => one(values[key], labels(key)))

const distribution = (
  histogram: HistogramSnapshot,
  labels: Readonly<Record<string, string>>
): ReadonlyArray<Sample> => [
  ...histogram.buckets.map(([bound, value]): Sample => ({
    suffix: "_bucket",
    labels: { le: bound === Infinity ? "+Inf" : bound, ...labels },
    value
  })),
  { suffix: "_sum", labels, value: histogram.sum },
  { suffix: "_count", labels, value: histogram.count }
]

const gauge = (read: (stats: PoolStats) => number) => ({ pool, stats }: Snapshot): ReadonlyArray<Sample> =>
  stats === undefined ? [] : [one(read(stats), { pool })]

const stateLabel: Record<BreakerState, string> = {
  Closed: "closed",
  Open: "open",
  HalfOpen: "half_open",
  Isolated: "isolated",
  Disabled: "disabled"
}

const families: ReadonlyArray<Family> = [
  {
    name: "db_pool_size",
    help: "Connections of the pool by state (total, idle, active), and callers waiting for one.",
    type: "gauge",
    legacy: true,
    samples: ({ pool, stats }) =>
      stats === undefined ? [] : each(
        { total: stats.total, idle: stats.idle, active: stats.active, waiting: stats.waiting },
        (state) => ({ pool, state })
      )
  },
  {
    name: "db_pool_connections",
    help: "Connections of the pool by state; the states add up to all connections, those being opened included.",
    type: "gauge",
    samples: ({ pool, stats }) =>
      stats === undefined ? [] : each(
        { idle: stats.idle, used: stats.active, connecting: stats.connecting },
        (state) => ({ pool, state })
      )
  },
  {
    name: "db_pool_connections_max",
    help: "Most connections that the pool may have open at a time.",
    type: "gauge",
    samples: gauge((stats) => stats.max)
  },
  {
    name: "db_pool_connections_min",
    help: "Idle connections that are kept, however long they idle.",
    type: "gauge",
    samples: gauge((stats) => stats.min)
  },
  {
    name: "db_pool_pending_requests",
    help: "Callers waiting for a connection.",
    type: "gauge",
    samples: gauge((stats) => stats.waiting)
  },
  {
    name: "db_pool_acquire_duration_seconds",
    help: "Time from asking for a connection to holding one.",
    type: "histogram",
    samples: ({ acquire, pool }) => distribution(acquire, { pool })
  },
  {
    name: "db_pool_acquire_timeouts_total",
    help: "Callers who gave up waiting for a connection.",
    type: "counter",
    samples: ({ acquireTimeouts, pool }) => [one(acquireTimeouts, { pool })]
  },
  {
    name: "db_pool_connections_opened_total",
    help: "Connections opened.",
    type: "counter",
    samples: ({ connectionsOpened, pool }) => [one(connectionsOpened, { pool })]
  },
  {
    name: "db_pool_connections_closed_total",
    help: "Connections closed, by reason.",
    type: "counter",
    samples: ({ connectionsClosed, pool }) => each(connectionsClosed, (reason) => ({ pool, reason }))
  },
  {
    name: "db_query_duration_seconds",
    help: "Duration of queries, by outcome.",
    type: "histogram",
    samples: ({ pool, query }) =>
      (Object.keys(query) as Array<Outcome>).flatMap((outcome) => distribution(query[outcome], { pool, outcome }))
  },
  {
    name: "db_query_errors_total",
    help: "Failed queries and checkouts, by kind of failure.",
    type: "counter",
    samples: ({ errors, pool }) => each(errors, (kind) => ({ pool, kind }))
  },
  {
    name: "db_query_retries_total",
    help: "Attempts after the first, by the kind of failure that caused them.",
    type: "counter",
    samples: ({ pool, retries }) => each(retries, (kind) => ({ pool, kind }))
  },
  {
    name: "db_circuit_breaker_state",
    help: "1 for the state that the circuit breaker is in, 0 for the others.",
    type: "gauge",
    samples: ({ breakerState, pool }) =>
      (Object.keys(stateLabel) as Array<BreakerState>).map((state) =>
        one(state === breakerState ? 1 : 0, { pool, state: stateLabel[state] })
      )
  },
  {
    name: "db_circuit_breaker_transitions_total",
    help: "Changes of the circuit breaker's state, by the state entered.",
    type: "counter",
    samples: ({ breakerTransitions, pool }) => each(breakerTransitions, (to) => ({ pool, to: stateLabel[to] }))
  }
]

// -----------------------------------------------------------------------------
// exporters
// -----------------------------------------------------------------------------

/**
 * The content type of {@link render}.
 *
 * @category exporters
 * @since 0.1.0
 */
export const contentType = "text/plain; version=0.0.4; charset=utf-8"

const escape = (value: string | number): string =>
  String(value).replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\"", "\\\"")

const formatFamily = (family: Family, snapshot: Snapshot): string =>
  [
    `# HELP ${family.name} ${family.help}`,
    `# TYPE ${family.name} ${family.type}`,
    ...family.samples(snapshot).map(({ labels, suffix, value }) => {
      const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escape(text)}"`)
      return `${family.name}${suffix}{${pairs.join(",")}} ${value}`
    })
  ].join("\n")

/**
 * The metrics of the pool in Prometheus' text format 0.0.4, for programs that have no prom-client. The text is the one
 * that a prom-client registry would print.
 *
 * @example
 * ```ts run
 * import * as Effect from "effect/Effect"
 * import * as Metrics from "effect-pg-pool/Metrics"
 *
 * const text = await Effect.runPromise(Metrics.render.pipe(Effect.provide(Metrics.layer({ name: "shop" }))))
 * console.log(text.includes("db_pool_acquire_timeouts_total{pool=\"shop\"} 0")) // => true
 * ```
 *
 * @category exporters
 * @since 0.1.0
 */
export const render: Effect.Effect<string, never, Metrics> = Effect.map(
  Metrics.use((metrics) => metrics.snapshot),
  (snapshot) => families.map((family) => formatFamily(family, snapshot)).join("\n\n") + "\n"
)

interface Member {
  readonly metrics: Metrics["Service"]
  readonly legacy: boolean
}

interface Collector {
  /** Mutable: a registry in OpenMetrics mode cuts `_total` off the names of counters, and appends it when it prints. */
  name: string
  readonly help: string
  readonly type: Family["type"]
  readonly aggregator: "sum"
  readonly labelNames: ReadonlyArray<string>
  get(): Promise<unknown>
  reset(): void
}

const makeCollector = (family: Family, members: ReadonlyMap<string, Member>): Collector => ({
  name: family.name,
  help: family.help,
  type: family.type,
  aggregator: "sum",
  labelNames: [],
  // A promise because the registry wants one. Nothing in here waits, throws or asks the database: a collector that
  // fails takes the whole scrape with it.
  get() {
    const { aggregator, help, name, type } = this
    const values = Array.from(members.values()).flatMap((member) =>
      family.legacy && !member.legacy ? [] : family.samples(member.metrics.snapshotUnsafe()).map((sample) => ({
        ...(sample.suffix === "" ? {} : { metricName: `${name}${sample.suffix}` }),
        labels: sample.labels,
        value: sample.value
      }))
    )
    return Promise.resolve({ name, help, type, aggregator, values })
  },
  // The same numbers feed other exporters: emptying one registry does not set them back.
  reset() {}
})

interface Membership {
  readonly members: Map<string, Member>
  readonly collectors: ReadonlyArray<readonly [name: string, collector: Collector]>
}

// One set of collectors per registry, shared by all its pools: a registry takes each metric name once.
const memberships = new WeakMap<PromRegistry, Membership>()

const membershipOf = (register: PromRegistry): Membership => {
  const existing = memberships.get(register)
  if (existing !== undefined) return existing
  const members = new Map<string, Member>()
  const membership = {
    members,
    collectors: families.map((family) => [family.name, makeCollector(family, members)] as const)
  }
  memberships.set(register, membership)
  return membership
}

const join = (register: PromRegistry, member: Member): RegistryConflict | undefined => {
  const pool = member.metrics.pool
  const { collectors, members } = membershipOf(register)
  if (members.has(pool)) return new RegistryConflict({ pool, metric: null })
  for (const [name, collector] of collectors) {
    const taken = register.getSingleMetric(name)
    if (taken !== undefined && taken !== collector) return new RegistryConflict({ pool, metric: name })
  }
  members.set(pool, member)
  for (const [name, collector] of collectors) {
    // Also when other pools are there already: `registry.clear()` may have thrown the collectors out.
    if (register.getSingleMetric(name) === collector) continue
    collector.name = name
    register.registerMetric(collector as never)
  }
}

const leave = (register: PromRegistry, member: Member): void => {
  const { collectors, members } = membershipOf(register)
  members.delete(member.metrics.pool)
  if (members.size > 0) return
  for (const [name, collector] of collectors) {
    if (register.getSingleMetric(name) === collector) register.removeSingleMetric(name)
  }
}

/**
 * @category options
 * @since 0.1.0
 */
export interface PromClientOptions {
  /** The registry that gets the metrics: a `Registry` of prom-client or `@prometheus-io/client`, made by you. */
  readonly register: PromRegistry
  /**
   * Whether `db_pool_size{state="total|idle|active|waiting"}` is there too, for dashboards that know it. New ones do
   * better with `db_pool_connections` and `db_pool_connections_max`. Default: `true`.
   */
  readonly legacy?: boolean | undefined
}

/**
 * Adds the metrics of the pool to a registry, until the scope closes. They are read when the registry is scraped, and
 * reading them never asks the database. Any number of pools share a registry, told apart by the label `pool`.
 *
 * Fails with {@link RegistryConflict} when the registry already has a pool of that name, or a metric of its own under
 * one of our names.
 *
 * @example
 * ```ts
 * import * as Layer from "effect/Layer"
 * import * as Metrics from "effect-pg-pool/Metrics"
 * import * as prom from "prom-client"
 *
 * const register = new prom.Registry()
 * export const MetricsLive = Metrics.layerPromClient({ register }).pipe(
 *   Layer.provideMerge(Metrics.layer({ name: "shop" }))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerPromClient = (options: PromClientOptions): Layer.Layer<never, RegistryConflict, Metrics> =>
  Layer.effectDiscard(
    Effect.flatMap(Metrics, (metrics): Effect.Effect<Member, RegistryConflict, Scope.Scope> => {
      const member: Member = { metrics, legacy: options.legacy ?? true }
      return Effect.acquireRelease(
        Effect.suspend(() => {
          const conflict = join(options.register, member)
          return conflict === undefined ? Effect.succeed(member) : Effect.fail(conflict)
        }),
        () => Effect.sync(() => leave(options.register, member))
      )
    })
  )
