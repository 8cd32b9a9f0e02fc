/**
 * The instruments of pools in Effect's registry of metrics, from which its exporters to OpenTelemetry read.
 */
import * as Context from "effect/Context"
import * as Metric from "effect/Metric"
import type { HistogramSnapshot } from "./instruments.ts"
import type { Labels, OpenTelemetry, Row, Series, Value } from "./instrumentTable.ts"

const ignore = (): void => {}

const bucketsOf = ({ buckets }: HistogramSnapshot) => buckets.map(([bound, count]): [number, number] => [bound, count])

const empty: HistogramSnapshot = { buckets: [], count: 0, sum: 0, min: 0, max: 0 }

const numberOf = (value: Value | undefined): number => typeof value === "number" ? value : 0

const histogramOf = (value: Value | undefined): HistogramSnapshot => typeof value === "object" ? value : empty

const hooks = <State>(get: () => State) => ({ get, update: ignore, modify: ignore })

const register = (
  { name }: OpenTelemetry<never>,
  type: Row<never>["type"],
  options: { readonly description: string; readonly attributes: Labels },
  read: Series["read"],
  context: Context.Context<never>
): Metric.Registration => {
  switch (type) {
    case "gauge":
      return Metric.registerUnsafe(Metric.gauge(name, options), context, hooks(() => ({ value: numberOf(read()) })))
    case "counter":
      return Metric.registerUnsafe(
        Metric.counter(name, { ...options, incremental: true }),
        context,
        hooks(() => ({ count: numberOf(read()), incremental: true }))
      )
    case "histogram":
      return Metric.registerUnsafe(
        Metric.histogram(name, { ...options, boundaries: [] }),
        context,
        hooks(() => {
          const snapshot = histogramOf(read())
          return { ...snapshot, buckets: bucketsOf(snapshot) }
        })
      )
  }
}

const attributesOf = <Source>(
  { attributes = {}, common, unit }: OpenTelemetry<Source>,
  labels: Labels,
  pool: string,
  source: Source
): Labels => ({
  // Where Effect's exporters look for the unit. Without one they say "1", and backends take a count for a ratio.
  unit,
  "db.client.connection.pool.name": pool,
  ...common?.(source),
  ...Object.fromEntries(Object.entries(labels).map(([label, value]) => [attributes[label] ?? label, value]))
})

interface Pool extends Entry {
  readonly source: unknown
  /** How often it was added. */
  times: number
}

const poolsOf = new WeakMap<object, Map<string, Pool>>()

/** One pool in a registry. */
export interface Entry {
  /** Adds what was not there before. */
  readonly update: () => void
  readonly remove: () => void
}

/** Adds a pool, unless there is another one of that name. What was added more than once has to be removed as often. */
export const join = <Source>(
  rows: ReadonlyArray<Row<Source>>,
  pool: string,
  source: Source,
  context: Context.Context<never>
): Entry | undefined => {
  const registry = Context.get(context, Metric.MetricRegistry)
  const pools = poolsOf.get(registry) ?? new Map<string, Pool>()
  poolsOf.set(registry, pools)
  const known = pools.get(pool)
  if (known !== undefined) {
    if (known.source !== source) return undefined
    known.times++
    return known
  }

  const registrations = new Map<string, Metric.Registration>()
  const update = (): void => {
    for (const { help, openTelemetry, series, type } of rows) {
      if (openTelemetry === undefined) continue
      for (const { labels, read } of (openTelemetry.series ?? series)(source)) {
        const key = JSON.stringify([openTelemetry.name, labels])
        if (registrations.has(key)) continue
        const attributes = attributesOf(openTelemetry, labels, pool, source)
        registrations.set(key, register(openTelemetry, type, { description: help, attributes }, read, context))
      }
    }
  }
  update()
  const entry: Pool = {
    source,
    times: 1,
    update,
    remove: () => {
      if (--entry.times > 0) return
      pools.delete(pool)
      for (const registration of registrations.values()) registration.remove()
    }
  }
  pools.set(pool, entry)
  return entry
}
