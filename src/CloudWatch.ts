/**
 * The pool's metrics for CloudWatch: one line of JSON per invocation on standard output, in the
 * [embedded metric format](https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html),
 * of which CloudWatch makes metrics by itself. Nothing is sent, waited for or kept in the background.
 *
 * A line says what has happened since the last one, so that lines of any number of functions add up:
 *
 * | Metric                                                                                                          | Unit    | What it is                                                        |
 * | --------------------------------------------------------------------------------------------------------------- | ------- | ----------------------------------------------------------------- |
 * | `db_query_duration_seconds`, `db_pool_acquire_duration_seconds`, `db_pool_use_duration_seconds`, `db_pool_connect_duration_seconds` | Seconds | durations, whatever the outcome                                   |
 * | `db_query_errors_total_<Kind>`                                                                                  | Count   | failed statements and checkouts by kind of failure                |
 * | `db_query_retries_total`                                                                                        | Count   | attempts after the first                                          |
 * | `db_pool_acquire_timeouts_total`, `db_pool_acquire_errors_total`                                                | Count   | who waited in vain, and who got no connection for whatever reason |
 * | `db_pool_connections_opened_total`, `db_pool_connections_closed_total`                                          | Count   | connections opened and closed                                     |
 * | `db_circuit_breaker_opened_total`, `db_circuit_breaker_rejections_total`                                        | Count   | openings of the circuit, and calls that it has rejected           |
 * | `db_pool_connections`                                                                                           | Count   | connections open now: at least as many as were in use at a time   |
 * | `db_pool_pending_requests`                                                                                      | Count   | most callers that have waited at a time since the last line       |
 * | `db_circuit_breaker_open`                                                                                       | Count   | 1 while the circuit is open or isolated, else 0                   |
 * | `db_up`                                                                                                         | Count   | 0 when the last evidence says that the database cannot be used    |
 *
 * Counters and durations of which there were none are left out, and so is a line that would have none of them: each name costs
 * money. The lines also say by operation how queries ended, as a property that Logs Insights can ask for and that costs nothing.
 *
 * Durations come from histograms: their count, sum and average are exact, and so is a duration that was the only one. Of a
 * percentile the bucket is known (1, 2.5, 5, 10, 25, 50, 75, 100, 250, 500 milliseconds, 1, 2.5, 5, 10 seconds).
 *
 * This module is not part of the barrel: import it from `effect-pg-pool/CloudWatch`, so that only programs which use it load it.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Errors from "./Errors.ts"
import * as Instruments from "./internal/instruments.ts"
import * as Spread from "./internal/spread.ts"
import * as Metrics from "./Metrics.ts"

// -----------------------------------------------------------------------------
// models and options
// -----------------------------------------------------------------------------

/**
 * What a line says besides metrics, for Logs Insights: the id of the request, say. They cost nothing, however many different values
 * they have.
 *
 * @category models
 * @since 0.1.0
 */
export interface Properties {
  readonly [name: string]: string | number | boolean
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The CloudWatch namespace, 1 to 255 characters. Default: `"effect-pg-pool"`. */
  readonly namespace?: string | undefined
  /**
   * Dimensions beside `pool`, `{ service: "orders" }` say. Every combination of values is a metric of its own and costs money, so ids
   * of requests or instances have no place here. At most 29; names of 1 to 250 and values of 1 to 1024 characters, in ASCII. Default: none.
   */
  readonly dimensions?: Readonly<Record<string, string>> | undefined
}

// The limits of the specification, and of a dimension in PutMetricData.
const mostDimensions = 30
const mostValues = 100
const mostBytes = 256 * 1024

const isPrintable = (text: string, most: number): boolean =>
  text.length <= most && /^[\x20-\x7e]+$/.test(text) && text.trim() !== ""

const settle = (
  { dimensions = {}, namespace = "effect-pg-pool" }: Options,
  pool: string
): Effect.Effect<{ readonly namespace: string; readonly dimensions: Properties }, Errors.InvalidOption> => {
  const invalid = (option: string, value: unknown, allowed: string) =>
    Effect.fail(new Errors.InvalidOption({ option: `cloudWatch.${option}`, value, allowed }))
  if (!isPrintable(namespace, 255) || /^(:|AWS\/)/.test(namespace)) {
    return invalid("namespace", namespace, "1 to 255 ASCII characters, the first of them no colon nor \"AWS/\"")
  }
  const names = Object.keys(dimensions)
  if (names.length >= mostDimensions) return invalid("dimensions", names, `at most ${mostDimensions - 1} names`)
  for (const name of names) {
    if (
      !isPrintable(name, 250) || name.startsWith(":") || name === "pool" || name === "_aws" || name.startsWith("db_")
    ) {
      return invalid(
        "dimensions",
        name,
        "names of 1 to 250 ASCII characters, without \"pool\", \"_aws\" and \"db_...\""
      )
    }
    if (!isPrintable(dimensions[name]!, 1024)) {
      return invalid(`dimensions.${name}`, dimensions[name], "1 to 1024 ASCII characters")
    }
  }
  return Effect.succeed({ namespace, dimensions: { ...dimensions, pool } })
}

// -----------------------------------------------------------------------------
// the document
// -----------------------------------------------------------------------------

type Unit = "Seconds" | "Count"

type Target = number | ReadonlyArray<number> | {
  readonly Values: ReadonlyArray<number>
  readonly Counts: ReadonlyArray<number>
}

interface Figure {
  readonly name: string
  readonly unit: Unit
  readonly target: Target
}

const total = (counts: Readonly<Record<string, number>>): number =>
  Object.values(counts).reduce((sum, count) => sum + count, 0)

/** What only ever grows. */
const counters = (snapshot: Metrics.Snapshot): Readonly<Record<string, number>> => ({
  ...Object.fromEntries(
    Object.entries(snapshot.errors).map(([kind, count]) => [`db_query_errors_total_${kind}`, count])
  ),
  db_query_retries_total: total(snapshot.retries),
  db_pool_acquire_timeouts_total: snapshot.acquireTimeouts,
  db_pool_acquire_errors_total: total(snapshot.acquireErrors),
  db_pool_connections_opened_total: snapshot.connectionsOpened,
  db_pool_connections_closed_total: total(snapshot.connectionsClosed),
  db_circuit_breaker_opened_total: snapshot.breakerTransitions.Open,
  db_circuit_breaker_rejections_total: total(snapshot.breakerRejections)
})

const histograms = (
  { acquire, connect, query, use }: Metrics.Snapshot
): Readonly<Record<string, Metrics.HistogramSnapshot>> => ({
  db_query_duration_seconds: Instruments.sum([query.ok, query.error, query.interrupted]),
  db_pool_acquire_duration_seconds: Instruments.sum([
    acquire.acquired,
    acquire.timeout,
    acquire.interrupted,
    acquire.failed
  ]),
  db_pool_use_duration_seconds: use,
  db_pool_connect_duration_seconds: Instruments.sum([connect.ok, connect.error])
})

const gauges = (
  { breakerState, isUp, stats }: Metrics.Snapshot,
  mostWaiting: number
): Readonly<Record<string, number>> => ({
  ...(stats !== undefined && { db_pool_connections: stats.total }),
  db_pool_pending_requests: mostWaiting,
  db_circuit_breaker_open: breakerState === "Open" || breakerState === "Isolated" ? 1 : 0,
  db_up: isUp ? 1 : 0
})

/** Nanoseconds are enough, and sums of binary fractions have many digits. */
const rounded = (seconds: number): number => Math.round(seconds * 1e9) / 1e9

/** The specification has arrays of values only. What AWS' own agents write, and CloudWatch reads, is shorter for many values. */
const targetOf = ({ counts, values }: Spread.Spread): Target => {
  const seconds = values.map(rounded)
  return counts.reduce((sum, count) => sum + count, 0) <= mostValues
    ? seconds.flatMap((value, index) => Array.from({ length: counts[index]! }, () => value))
    : { Values: seconds, Counts: counts }
}

const growth = (later: Metrics.Snapshot, earlier: Metrics.Snapshot | undefined): ReadonlyArray<Figure> => {
  const before = earlier && { counters: counters(earlier), histograms: histograms(earlier) }
  const durations = Object.entries(histograms(later)).flatMap(([name, histogram]): ReadonlyArray<Figure> => {
    const spread = Spread.since(histogram, before?.histograms[name])
    return spread.values.length === 0 ? [] : [{ name, unit: "Seconds", target: targetOf(spread) }]
  })
  const counts = Object.entries(counters(later)).flatMap(([name, count]): ReadonlyArray<Figure> => {
    const target = count - (before?.counters[name] ?? 0)
    return target === 0 ? [] : [{ name, unit: "Count", target }]
  })
  return [...durations, ...counts]
}

/** How queries ended, by operation. */
const queries = (
  later: Metrics.Snapshot,
  earlier: Metrics.Snapshot | undefined
): Readonly<Record<string, Readonly<Record<string, number>>>> => {
  const ends: Record<string, Record<string, number>> = {}
  for (const { durations, kind, operation, outcome } of later.queries) {
    const before = earlier?.queries.find((one) =>
      one.operation === operation && one.outcome === outcome && one.kind === kind
    )
    const count = durations.count - (before?.durations.count ?? 0)
    if (count > 0) ends[operation] = { ...ends[operation], [kind ?? outcome]: count }
  }
  return ends
}

// -----------------------------------------------------------------------------
// service
// -----------------------------------------------------------------------------

/**
 * Writes what has happened since it last did.
 *
 * @category services
 * @since 0.1.0
 */
export class Emitter extends Context.Service<Emitter, {
  /** See {@link emit}. */
  readonly emit: (properties?: Properties) => Effect.Effect<void>
}>()("effect-pg-pool/CloudWatch/Emitter") {}

/**
 * Lambda has replaced the methods of Node's console by ones that put their words before a line, or the line into JSON of their own, in
 * which CloudWatch finds no metrics. A `Console` of the program's own is used as it is.
 */
const write = (line: string): Effect.Effect<void> =>
  Console.consoleWith((console) =>
    Effect.sync(() => {
      if (console === globalThis.console) process.stdout.write(`${line}\n`)
      else console.log(line)
    })
  )

/**
 * Makes an emitter over the metrics of the context. Fails with `InvalidOption` when CloudWatch would not take what is asked for.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<Emitter["Service"], Errors.InvalidOption, Metrics.Metrics> {
  const metrics = yield* Metrics.Metrics
  const clock = yield* Clock.Clock
  const { dimensions, namespace } = yield* settle(options, metrics.pool)
  let told: Metrics.Snapshot | undefined

  const lineOf = (properties: Properties): string | undefined => {
    const now = metrics.snapshotUnsafe()
    const figures = growth(now, told)
    if (figures.length === 0) return undefined
    const mostWaiting = Math.max(metrics.store.peakWaiting, now.stats?.waiting ?? 0)
    metrics.store.peakWaiting = now.stats?.waiting ?? 0
    const all = [
      ...figures,
      ...Object.entries(gauges(now, mostWaiting)).map(([name, target]): Figure => ({ name, unit: "Count", target }))
    ]
    const document = {
      _aws: {
        Timestamp: clock.currentTimeMillisUnsafe(),
        CloudWatchMetrics: [{
          Namespace: namespace,
          Dimensions: [Object.keys(dimensions)],
          Metrics: all.map(({ name, unit }) => ({ Name: name, Unit: unit }))
        }]
      },
      ...dimensions,
      ...Object.fromEntries(all.map(({ name, target }) => [name, target]))
    }
    const line = JSON.stringify({ queries: queries(now, told), ...properties, ...document })
    told = now
    // A line that is too long is cut, and then is no JSON. All that can be long is what the program has added.
    return Buffer.byteLength(line) <= mostBytes ? line : JSON.stringify(document)
  }

  return {
    emit: (properties = {}) =>
      Effect.suspend(() => {
        const line = lineOf(properties)
        return line === undefined ? Effect.void : write(line)
      })
  }
})

/**
 * Provides an {@link Emitter} over the metrics of a pool.
 *
 * @example
 * ```ts
 * import * as Layer from "effect/Layer"
 * import * as Pg from "effect-pg-pool"
 * import * as CloudWatch from "effect-pg-pool/CloudWatch"
 *
 * export const DatabaseLive = CloudWatch.layer({ dimensions: { service: "orders" } }).pipe(
 *   Layer.provideMerge(Pg.layerConfig())
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<Emitter, Errors.InvalidOption, Metrics.Metrics> =>
  Layer.effect(Emitter, make(options))

// -----------------------------------------------------------------------------
// emitting
// -----------------------------------------------------------------------------

/**
 * Writes one line with what has happened since the last one, or since the start; none if nothing has. Each thing that happens is
 * in exactly one line, however many invocations run at a time. A property that is named like a metric or a dimension gives way to it.
 *
 * @category combinators
 * @since 0.1.0
 */
export const emit = (properties?: Properties): Effect.Effect<void, never, Emitter> =>
  Emitter.use((emitter) => emitter.emit(properties))

/**
 * Runs an effect, an invocation say, and {@link emit}s when it has ended: succeeded, failed or interrupted.
 *
 * @category combinators
 * @since 0.1.0
 */
export const withEmission: {
  (properties?: Properties): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R | Emitter>
  <A, E, R>(self: Effect.Effect<A, E, R>, properties?: Properties): Effect.Effect<A, E, R | Emitter>
} = /* @__PURE__ */ dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, properties?: Properties): Effect.Effect<A, E, R | Emitter> =>
    Effect.ensuring(self, emit(properties))
)
