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
import * as Errors from "./Errors.ts"
import * as Instruments from "./internal/instruments.ts"
import * as Table from "./internal/instrumentTable.ts"
import * as MetricRegistries from "./internal/metricRegistry.ts"
import type * as Operations from "./internal/operation.ts"
import * as PromRegistries from "./internal/promRegistry.ts"
import type { CloseReason as SessionEnd } from "./internal/session.ts"
import * as Stores from "./internal/store.ts"
import * as Copies from "./internal/storeCopy.ts"
import { kinds } from "./internal/verdict.ts"

// -----------------------------------------------------------------------------
// models
// -----------------------------------------------------------------------------

/**
 * Why a physical connection was closed: `idle` (over the idle timeout), `lifetime` (over the maximum age), `uses` (over
 * the maximum number of checkouts), `resize` (one too many since the pool was made smaller), `invalid` (failed its
 * liveness check or was evicted), `error` (broken in use, or its socket closed), `shutdown` (the pool was closed).
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
export type BreakerState = Stores.BreakerState

/**
 * Why a circuit has rejected a call: it was open, another call was its probe, or somebody had isolated it.
 *
 * @category models
 * @since 0.1.0
 */
export type Rejection = Stores.Rejection

/**
 * How a query ended. `interrupted` is neither a success nor a failure of the database.
 *
 * @category models
 * @since 0.1.0
 */
export type Outcome = Copies.Outcome

/**
 * How asking for a connection ended: with one (`acquired`), with an `AcquireTimeout` (`timeout`), because nobody waited
 * any more (`interrupted`), or with any other error (`failed`).
 *
 * @category models
 * @since 0.1.0
 */
export type AcquireOutcome = Stores.AcquireOutcome

/**
 * The tag of the error with which asking for a connection failed; `ConnectFailed` for what the server or the socket said.
 *
 * @category models
 * @since 0.1.0
 */
export type AcquireFailure = Stores.AcquireFailure

/**
 * What a statement is: its first word in capitals, after blanks, comments and brackets, and `OTHER` for all but these.
 *
 * @category models
 * @since 0.1.0
 */
export type Operation = Operations.Operation

/**
 * What failed: a statement, or `CHECKOUT`, work that failed before it had a connection.
 *
 * @category models
 * @since 0.1.0
 */
export type ErrorOperation = Stores.ErrorOperation

/**
 * The last failure that said something of the database: that it could not be reached (`Unreachable`), had no room
 * (`Overloaded`), refused the user (`Denied`) or did not let him write (`ReadOnly`). `code` is the SQLSTATE or the code
 * of the socket, `at` milliseconds of the wall clock.
 *
 * Other kinds say nothing: what was `Rejected` or lost a race (`Contention`) was answered, a `StaleConnection` is
 * replaced, what was `Cancelled` somebody or a time limit of the session has stopped, and what is `Local` this side has given up.
 *
 * @category models
 * @since 0.1.0
 */
export type LastFailure = Stores.LastFailure

/**
 * The figures of a pool that are gauges: connections by state, callers waiting, and the limits.
 *
 * @category models
 * @since 0.1.0
 */
export type PoolStats = Errors.PoolStats

/**
 * What is read at each collection, and counted nowhere.
 *
 * @category models
 * @since 0.1.0
 */
export interface Gauges {
  /** All zero while no pool has registered; `undefined` when the pool's own figures could not be read. */
  readonly stats: PoolStats | undefined
  /** `undefined` without a retry budget. */
  readonly retryBudgetTokens: number | undefined
  /**
   * `false` when the last evidence says that the database cannot be used: the circuit is isolated, or open without an
   * answer since (a health check may have one while nobody calls), or the last connect has failed and no connection is left.
   */
  readonly isUp: boolean
}

/**
 * A histogram of durations in seconds, as plain numbers: `observe(seconds)` adds a value in a few nanoseconds.
 *
 * @category models
 * @since 0.1.0
 */
export type Histogram = Instruments.Histogram

/**
 * An immutable copy of a {@link Histogram}: cumulative buckets, count, sum, least and greatest value (seconds).
 *
 * @category models
 * @since 0.1.0
 */
export type HistogramSnapshot = Instruments.HistogramSnapshot

/**
 * The numbers of one pool. They are mutable so that counting stays cheap, and are **written by the pool, its executor
 * and its breaker only**; read them through `snapshot`.
 *
 * @category models
 * @since 0.1.0
 */
export type Store = Stores.Store

/**
 * Durations of the statements of one sort, `kind` being the kind of their failure.
 *
 * @category models
 * @since 0.1.0
 */
export type Queries = Copies.Queries

/**
 * An immutable copy of everything that is measured, taken at one moment. Times are in seconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Snapshot extends Gauges, Copies.Copy {
  /** The value of the label `pool`. */
  readonly pool: string
}

/**
 * What is needed of a registry: the part that prom-client's `Registry` (14 and 15) and that of its renamed successor
 * `@prometheus-io/client` have in common. Neither package is imported.
 *
 * @category models
 * @since 0.1.0
 */
export interface PromRegistry extends PromRegistries.Registry {}

// -----------------------------------------------------------------------------
// errors
// -----------------------------------------------------------------------------

/**
 * The metrics of a pool could not be added to a registry, or to a page, because it already has another pool of that name,
 * or a metric of that name which is not ours. Found when the layer is built, or the page rendered.
 *
 * @category errors
 * @since 0.1.0
 */
export class RegistryConflict
  extends /* @__PURE__ */ Schema.TaggedError<RegistryConflict>("effect-pg-pool/Metrics/RegistryConflict")(
    "RegistryConflict",
    {
      /** The name of the pool that was to be added. */
      pool: Schema.String,
      /** The name of the foreign metric that is in the way; `null` when the name of the pool is taken. */
      metric: /* @__PURE__ */ Schema.NullOr(Schema.String)
    }
  )
{
  /** Adding the same pool again fails again. */
  get isRetryable(): boolean {
    return false
  }

  override get message(): string {
    return this.metric === null
      ? `There already is another pool named "${this.pool}", and its series could not be told apart. `
        + `Give each pool a name of its own, for example Pg.layer({ name: "orders" }); `
        + `if they are meant to be one, keep its layer in a const, so that it is built once.`
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
  /** The numbers, written by the pool, its executor and its breaker only. */
  readonly store: Store
  /** A copy of all numbers, with the pool's own figures read at this moment. */
  readonly snapshot: Effect.Effect<Snapshot>
  /** The same, synchronously, for collectors outside of Effect. It never throws. */
  readonly snapshotUnsafe: () => Snapshot
  /** The part of it that is read and not counted. It never throws. */
  readonly gaugesUnsafe: () => Gauges
  /** What is known of the server, by OpenTelemetry's names: `db.namespace`, `server.address`, `server.port`. */
  readonly serverUnsafe: () => Readonly<Record<string, string | number>>
  /**
   * Says where gauges are read. The functions are called at each collection and must be cheap. The answer removes them
   * again. When several pools share these metrics, their figures add up, as their counters do, and all must be up.
   */
  readonly registerPool: (stats: () => PoolStats, more?: PoolSource | undefined) => () => void
  /** Says where the tokens of the retry budget are read: those of the executor that was made last. */
  readonly registerBudget: (tokens: () => number) => void
  /** Hears of series that were not there before. The answer removes the listener. */
  readonly onSeries: (listener: () => void) => () => void
}>()("effect-pg-pool/Metrics") {}

/**
 * What a pool can tell besides its figures.
 *
 * @category models
 * @since 0.1.0
 */
export interface PoolSource {
  /** `false` when the last connect has failed and no connection is left. Default: `true`. */
  readonly isUp?: (() => boolean) | undefined
  /** When the database has last answered, in milliseconds of the wall clock. Default: never. */
  readonly lastAnswerAt?: (() => number | undefined) | undefined
  /** What is known of the server, by OpenTelemetry's names. Default: nothing. */
  readonly server?: Readonly<Record<string, string | number>> | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * The value of the label `pool`, unique among the pools of a registry: not blank, and without control characters.
   * Default: `"default"`.
   */
  readonly name?: string | undefined
}

interface Source extends PoolSource {
  readonly stats: () => PoolStats
}

const sumOf = (sources: Iterable<Source>): PoolStats | undefined => {
  const sum = { total: 0, idle: 0, active: 0, waiting: 0, connecting: 0, max: 0, min: 0, oldestLease: 0 }
  try {
    for (const source of sources) {
      const stats = source.stats()
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

const areUp = (sources: ReadonlySet<Source>, { breakerChangedAt, breakerState }: Store): boolean => {
  if (breakerState === "Isolated") return false
  try {
    for (const { isUp } of sources) if (isUp?.() === false) return false
    // A circuit stays open until somebody calls, and a health check may have found the database well by then.
    return breakerState !== "Open" ||
      Array.from(sources).some(({ lastAnswerAt }) => (lastAnswerAt?.() ?? 0) > breakerChangedAt)
  } catch {
    return breakerState !== "Open"
  }
}

/** Without a type: not everybody has a compiler. Written out, since Unicode's class of them is slow to compile at a cold start. */
const isName = (name: unknown): boolean =>
  // oxlint-disable-next-line no-control-regex
  typeof name === "string" && name.trim() !== "" && !/[\x00-\x1f\x7f-\x9f]/.test(name)

/**
 * Makes the metrics of one pool, with every counter at 0. Durations of statements appear with their first value. Fails
 * with `InvalidOption` for an impossible name.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options?: Options): Effect.Effect<Metrics["Service"], Errors.InvalidOption> =>
  Effect.suspend(() => {
    const pool = options?.name ?? "default"
    if (!isName(pool)) {
      return Effect.fail(
        new Errors.InvalidOption({
          option: "name",
          value: pool,
          allowed: "a text that is not blank and has no control characters, such as line breaks"
        })
      )
    }
    const listeners = new Set<() => void>()
    const tellOfSeries = () => listeners.forEach((listener) => listener())
    const store = Stores.make(tellOfSeries)
    const sources = new Set<Source>()
    let budget: (() => number) | undefined
    const gaugesUnsafe = (): Gauges => ({
      stats: sumOf(sources),
      retryBudgetTokens: budget?.(),
      isUp: areUp(sources, store)
    })
    const snapshotUnsafe = (): Snapshot => ({ pool, ...gaugesUnsafe(), ...Copies.copy(store) })
    return Effect.succeed(Metrics.of({
      pool,
      store,
      snapshot: Effect.sync(snapshotUnsafe),
      snapshotUnsafe,
      gaugesUnsafe,
      serverUnsafe: () => Object.assign({}, ...Array.from(sources, ({ server }) => server)),
      registerPool: (stats, more) => {
        const source = { ...more, stats }
        sources.add(source)
        return () => {
          sources.delete(source)
        }
      },
      registerBudget: (tokens) => {
        budget = tokens
        tellOfSeries()
      },
      onSeries: (listener) => {
        listeners.add(listener)
        return () => {
          listeners.delete(listener)
        }
      }
    }))
  })

/**
 * Provides the metrics of one pool. They cost nothing to keep and are exported nowhere until an exporter is added.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<Metrics, Errors.InvalidOption> =>
  Layer.effect(Metrics, make(options))

// -----------------------------------------------------------------------------
// the table: every instrument, by the name that Prometheus knows and by the one that OpenTelemetry does
// -----------------------------------------------------------------------------

type Service = Metrics["Service"]
type Row = Table.Row<Service>

const one = (read: (metrics: Service) => Table.Value | undefined): Row["series"] => (metrics) => [
  { labels: {}, read: () => read(metrics) }
]

const stat = (read: (stats: PoolStats) => number) =>
  one((metrics) => {
    const { stats } = metrics.gaugesUnsafe()
    return stats === undefined ? undefined : read(stats)
  })

/** One series per value of a label. */
const by = <K extends string>(
  label: string,
  values: (store: Store) => Readonly<Record<K, number | Histogram>>,
  nameOf: (key: K) => string = (key) => key
): Row["series"] =>
({ store }) =>
  (Object.keys(values(store)) as Array<K>).map((key) => ({
    labels: { [label]: nameOf(key) },
    read: () => valueOf(values(store)[key])
  }))

const valueOf = (value: number | Histogram): Table.Value => typeof value === "number" ? value : value.snapshot()

/** One series per state, read from the pool. */
const states =
  (read: (stats: PoolStats) => Readonly<Record<string, number>>, names: ReadonlyArray<string>): Row["series"] =>
  (metrics) =>
    names.map((state) => ({
      labels: { state },
      read: () => {
        const { stats } = metrics.gaugesUnsafe()
        return stats === undefined ? undefined : read(stats)[state]
      }
    }))

/** The kinds of failure are one outcome here. */
const queriesByOutcome: Row["series"] = ({ store }) => {
  const groups = new Map<string, { readonly labels: Table.Labels; readonly of: Array<Histogram> }>()
  for (const { durations, end, operation } of store.queries.list()) {
    const outcome = Copies.outcomeOf(end)
    const group = groups.get(`${operation} ${outcome}`) ?? { labels: { operation, outcome }, of: [] }
    group.of.push(durations)
    groups.set(`${operation} ${outcome}`, group)
  }
  return Array.from(groups.values(), ({ labels, of: [first, ...rest] }) => ({
    labels,
    read: () => Instruments.sum([first!.snapshot(), ...rest.map((histogram) => histogram.snapshot())])
  }))
}

const serverOf = (server: Readonly<Record<string, string | number>>): Table.Labels =>
  Object.fromEntries(Object.entries(server).map(([name, value]) => [name, String(value)]))

/** What went well has no `error.type`. */
const queriesByError: Row["series"] = ({ store }) =>
  store.queries.list().map(({ durations, end, operation }) => ({
    labels: { operation, ...(end !== "ok" && { error_type: end }) },
    read: () => durations.snapshot()
  }))

const errorsByOperation: Row["series"] = ({ store }) =>
  (Object.keys(store.errors) as Array<ErrorOperation>).flatMap((operation) =>
    kinds.map((kind) => ({
      labels: { operation, error_type: kind },
      read: () => store.errors[operation][kind]
    }))
  )

const stateLabel: Record<BreakerState, string> = {
  Closed: "closed",
  Open: "open",
  HalfOpen: "half_open",
  Isolated: "isolated",
  Disabled: "disabled"
}

const breakerStates: Row["series"] = ({ store }) =>
  (Object.keys(stateLabel) as Array<BreakerState>).map((state) => ({
    labels: { state: stateLabel[state] },
    read: () => state === store.breakerState ? 1 : 0
  }))

// A function, so that programs that export nothing do not have it in their bundle.
const table = (): ReadonlyArray<Row> => [
  {
    name: "db_pool_size",
    help: "Connections of the pool by state (total, idle, active), and callers waiting for one.",
    type: "gauge",
    legacy: true,
    series: states((stats) => ({ ...stats }), ["total", "idle", "active", "waiting"])
  },
  {
    name: "db_pool_connections",
    help: "Connections of the pool by state; the states add up to all connections, those being opened included.",
    type: "gauge",
    series: states(
      ({ active, connecting, idle }) => ({ idle, used: active, connecting }),
      ["idle", "used", "connecting"]
    ),
    openTelemetry: {
      name: "db.client.connection.count",
      unit: "{connection}",
      attributes: { state: "db.client.connection.state" }
    }
  },
  {
    name: "db_pool_connections_max",
    help: "Most connections that the pool may have open at a time.",
    type: "gauge",
    series: stat(({ max }) => max),
    openTelemetry: { name: "db.client.connection.limit", unit: "{connection}" }
  },
  {
    name: "db_pool_connections_min",
    help: "Idle connections that are kept, however long they idle.",
    type: "gauge",
    series: stat(({ min }) => min),
    openTelemetry: { name: "db.client.connection.idle.min", unit: "{connection}" }
  },
  {
    name: "db_pool_pending_requests",
    help: "Callers waiting for a connection.",
    type: "gauge",
    series: stat(({ waiting }) => waiting),
    openTelemetry: { name: "db.client.connection.pending_requests", unit: "{request}" }
  },
  {
    name: "db_pool_acquire_duration_seconds",
    help: "Time from asking for a connection to holding one, or to the end of the wait, by outcome.",
    type: "histogram",
    series: by("outcome", ({ acquire }) => acquire),
    openTelemetry: {
      name: "db.client.connection.wait_time",
      unit: "s",
      series: (metrics) => withoutSuccess("acquired", by("error_type", ({ acquire }) => acquire)(metrics)),
      attributes: { error_type: "error.type" }
    }
  },
  {
    name: "db_pool_use_duration_seconds",
    help: "Time for which a connection was lent.",
    type: "histogram",
    series: one(({ store }) => store.use.snapshot()),
    openTelemetry: { name: "db.client.connection.use_time", unit: "s" }
  },
  {
    name: "db_pool_connect_duration_seconds",
    help: "Time that opening a connection took, hooks included, by outcome.",
    type: "histogram",
    series: by("outcome", ({ connect }) => connect),
    openTelemetry: {
      name: "db.client.connection.create_time",
      unit: "s",
      series: (metrics) => withoutSuccess("ok", by("error_type", ({ connect }) => connect)(metrics)),
      attributes: { error_type: "error.type" }
    }
  },
  {
    name: "db_pool_acquire_timeouts_total",
    help: "Callers who gave up waiting for a connection.",
    type: "counter",
    series: one(({ store }) => store.acquireErrors.AcquireTimeout),
    openTelemetry: { name: "db.client.connection.timeouts", unit: "{timeout}" }
  },
  {
    name: "db_pool_acquire_errors_total",
    help: "Callers who were refused a connection or gave up waiting for one, by error.",
    type: "counter",
    series: by("error_type", ({ acquireErrors }) => acquireErrors),
    openTelemetry: { name: "db.pool.acquire.errors", unit: "{error}", attributes: { error_type: "error.type" } }
  },
  {
    name: "db_pool_connections_opened_total",
    help: "Connections opened.",
    type: "counter",
    series: one(({ store }) => store.connectionsOpened),
    openTelemetry: { name: "db.pool.connections.opened", unit: "{connection}" }
  },
  {
    name: "db_pool_connections_closed_total",
    help: "Connections closed, by reason.",
    type: "counter",
    series: by("reason", ({ connectionsClosed }) => connectionsClosed),
    openTelemetry: { name: "db.pool.connections.closed", unit: "{connection}" }
  },
  {
    name: "db_query_duration_seconds",
    help: "Duration of queries, by operation and outcome.",
    type: "histogram",
    series: queriesByOutcome,
    openTelemetry: {
      name: "db.client.operation.duration",
      unit: "s",
      series: queriesByError,
      common: ({ serverUnsafe }) => ({ "db.system.name": "postgresql", ...serverOf(serverUnsafe()) }),
      attributes: { operation: "db.operation.name", error_type: "error.type" }
    }
  },
  {
    name: "db_query_errors_total",
    help: "Failed queries and checkouts, by operation and kind of failure.",
    type: "counter",
    series: errorsByOperation,
    openTelemetry: {
      name: "db.query.errors",
      unit: "{error}",
      attributes: { operation: "db.operation.name", error_type: "error.type" }
    }
  },
  {
    name: "db_query_retries_total",
    help: "Attempts after the first, by the kind of failure that caused them.",
    type: "counter",
    series: by("reason", ({ retries }) => retries),
    openTelemetry: { name: "db.query.retries", unit: "{retry}", attributes: { reason: "error.type" } }
  },
  {
    name: "db_retry_budget_tokens",
    help: "Tokens left that pay for retries.",
    type: "gauge",
    series: (metrics) =>
      metrics.gaugesUnsafe().retryBudgetTokens === undefined
        ? []
        : one(({ gaugesUnsafe }) => gaugesUnsafe().retryBudgetTokens)(metrics),
    openTelemetry: { name: "db.retry_budget.tokens", unit: "{token}" }
  },
  {
    name: "db_circuit_breaker_state",
    help: "1 for the state that the circuit breaker is in, 0 for the others.",
    type: "gauge",
    series: breakerStates,
    openTelemetry: { name: "db.circuit_breaker.state", unit: "1" }
  },
  {
    name: "db_circuit_breaker_transitions_total",
    help: "Changes of the circuit breaker's state, by the state entered.",
    type: "counter",
    series: by("to", ({ breakerTransitions }) => breakerTransitions, (state) => stateLabel[state]),
    openTelemetry: { name: "db.circuit_breaker.transitions", unit: "{transition}" }
  },
  {
    name: "db_circuit_breaker_rejections_total",
    help: "Calls that the circuit breaker has rejected, by the state that it was in.",
    type: "counter",
    series: by("reason", ({ breakerRejections }) => breakerRejections),
    openTelemetry: { name: "db.circuit_breaker.rejections", unit: "{call}" }
  },
  {
    name: "db_up",
    help: "0 when the last evidence says that the database cannot be used, else 1. Nothing is asked to find out.",
    type: "gauge",
    series: one(({ gaugesUnsafe }) => gaugesUnsafe().isUp ? 1 : 0),
    openTelemetry: { name: "db.up", unit: "1" }
  }
]

const withoutSuccess = (success: string, series: ReadonlyArray<Table.Series>): ReadonlyArray<Table.Series> =>
  series.map((one) => one.labels["error_type"] === success ? { ...one, labels: {} } : one)

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
export const render: Effect.Effect<string, never, Metrics> = /* @__PURE__ */ Effect.suspend(() =>
  Metrics.useSync((metrics) => Table.format(table(), new Map([[metrics.pool, metrics]])))
)

/**
 * The metrics of several pools on one page, each metric being announced once: the text that a prom-client registry with all
 * of them would print. Fails with {@link RegistryConflict} when two pools have the same name; a pool that is given twice is
 * there once.
 *
 * **Example** (Two pools, and no prom-client)
 *
 * ```ts
 * import * as Context from "effect/Context"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Pg from "effect-pg-pool"
 *
 * class Orders extends Context.Service<Orders, Pg.Metrics.Metrics["Service"]>()("Orders") {}
 * class Archive extends Context.Service<Archive, Pg.Metrics.Metrics["Service"]>()("Archive") {}
 *
 * export const Counted = Layer.merge(
 *   Layer.effect(Orders, Pg.Metrics.Metrics).pipe(Layer.provide(Pg.layer({ name: "orders" }))),
 *   Layer.effect(Archive, Pg.Metrics.Metrics).pipe(Layer.provide(Pg.layer({ name: "archive" })))
 * )
 *
 * export const page = Effect.flatMap(Effect.all([Orders, Archive]), Pg.Metrics.renderAll)
 * ```
 *
 * @category exporters
 * @since 0.1.0
 */
export const renderAll = (pools: Iterable<Metrics["Service"]>): Effect.Effect<string, RegistryConflict> =>
  Effect.suspend(() => {
    const byName = new Map<string, Service>()
    for (const metrics of pools) {
      const { pool } = metrics
      if ((byName.get(pool) ?? metrics) !== metrics) {
        return Effect.fail(new RegistryConflict({ pool, metric: null }))
      }
      byName.set(pool, metrics)
    }
    return Effect.succeed(Table.format(table(), byName))
  })

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
 * reading them never asks the database. Any number of pools share a registry, told apart by the label `pool`, and one such
 * layer serves them all: it is built anew for each pool that it is given. A pool that is added twice is there once.
 *
 * Fails with {@link RegistryConflict} when the registry already has another pool of that name, or a metric of its own under
 * one of our names, and with `InvalidOption` when `register` is no registry.
 *
 * @example
 * ```ts
 * import * as Layer from "effect/Layer"
 * import * as Pg from "effect-pg-pool"
 * import * as prom from "prom-client"
 *
 * const register = new prom.Registry()
 * export const DatabaseLive = Pg.Metrics.layerPromClient({ register }).pipe(
 *   Layer.provideMerge(Pg.layer({ name: "shop" }))
 * )
 * ```
 *
 * **Example** (Two pools in one registry)
 *
 * ```ts
 * import * as Layer from "effect/Layer"
 * import * as Pg from "effect-pg-pool"
 * import * as prom from "prom-client"
 *
 * const Exported = Pg.Metrics.layerPromClient({ register: prom.register })
 *
 * export const OrdersLive = Exported.pipe(Layer.provideMerge(Pg.layer({ name: "orders" })))
 * export const ArchiveLive = Exported.pipe(Layer.provideMerge(Pg.layer({ name: "archive" })))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerPromClient = (
  options: PromClientOptions
): Layer.Layer<never, RegistryConflict | Errors.InvalidOption, Metrics> =>
  forEachPool(
    Effect.flatMap(Metrics, (metrics): Effect.Effect<unknown, RegistryConflict | Errors.InvalidOption, Scope.Scope> => {
      const { legacy = true, register } = options
      if (!PromRegistries.isRegistry(register)) {
        return Effect.fail(new Errors.InvalidOption({ option: "register", value: register, allowed: aRegistry }))
      }
      const { pool } = metrics
      const member = { pool, source: metrics, legacy }
      return Effect.acquireRelease(
        Effect.suspend(() => {
          const conflict = registries.join(register, member)
          return conflict === undefined ? Effect.void : Effect.fail(new RegistryConflict({ pool, ...conflict }))
        }),
        () => Effect.sync(() => registries.leave(register, member))
      )
    })
  )

const aRegistry = "a Registry of prom-client or @prometheus-io/client: its `register`, or one made by `new Registry()`"

/** Memoised, one layer would serve the first pool that it is given, and none of the others. */
const forEachPool = <E>(effect: Effect.Effect<unknown, E, Metrics | Scope.Scope>): Layer.Layer<never, E, Metrics> =>
  Layer.fresh(Layer.effectDiscard(effect))

const registries = /* @__PURE__ */ PromRegistries.memberships(table)

/**
 * Adds the metrics of the pool to Effect's own registry of metrics, until the scope closes: from there `OtelMetrics` of
 * `@effect/opentelemetry`, and `OtlpMetrics` and `PrometheusMetrics` of `effect/observability`, export them. They are read
 * when an exporter collects, and reading them never asks the database.
 *
 * Names, units and attributes are those of OpenTelemetry's semantic conventions 1.45 for database clients:
 * `db.client.connection.count`, `.limit`, `.idle.min`, `.pending_requests`, `.timeouts`, `.create_time`, `.wait_time`,
 * `.use_time` and `db.client.operation.duration`. What these do not have is named alike: `db.pool.acquire.errors`,
 * `db.pool.connections.opened`, `db.pool.connections.closed`, `db.query.errors`, `db.query.retries`,
 * `db.retry_budget.tokens`, `db.circuit_breaker.state`, `.transitions`, `.rejections`, and `db.up`.
 *
 * - `error.type` is the kind of the failure, `interrupted` for a statement that nobody waited for any more, and for waits
 *   their outcome. What went well has none.
 * - What the conventions call an UpDownCounter is a gauge here: Effect's registry has none that all exporters print well.
 * - Each series has an attribute `unit`, where Effect's exporters look for the unit of an instrument.
 *
 * One such layer serves any number of pools. Fails with {@link RegistryConflict} when the registry already has another pool of
 * that name; a pool that is added twice is there once.
 *
 * **Example** (Push to a collector)
 *
 * ```ts
 * import * as Layer from "effect/Layer"
 * import { FetchHttpClient } from "effect/http"
 * import { OtlpMetrics, OtlpSerialization } from "effect/observability"
 * import * as Pg from "effect-pg-pool"
 *
 * export const DatabaseLive = Pg.Metrics.layerOpenTelemetry().pipe(
 *   Layer.provideMerge(Pg.layer({ name: "shop" })),
 *   Layer.provideMerge(OtlpMetrics.layer({ url: "http://localhost:4318/v1/metrics", resource: { serviceName: "shop" } })),
 *   Layer.provide([OtlpSerialization.layerProtobuf, FetchHttpClient.layer])
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerOpenTelemetry = (): Layer.Layer<never, RegistryConflict, Metrics> =>
  forEachPool(Effect.gen(function*() {
    const metrics = yield* Metrics
    const { pool } = metrics
    const context = yield* Effect.context<never>()
    const { update } = yield* Effect.acquireRelease(
      Effect.suspend(() => {
        const entry = MetricRegistries.join(table(), pool, metrics, context)
        return entry === undefined ? Effect.fail(new RegistryConflict({ pool, metric: null })) : Effect.succeed(entry)
      }),
      (entry) => Effect.sync(entry.remove)
    )
    // A listener of its own, since whoever adds the pool a second time has the same entry.
    const stop = metrics.onSeries(() => update())
    yield* Effect.addFinalizer(() => Effect.sync(stop))
  }))
