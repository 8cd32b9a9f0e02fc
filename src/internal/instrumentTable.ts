/**
 * How a table of instruments is written down, and read as Prometheus has it. Whose instruments they are is not known here.
 */
import type { HistogramSnapshot } from "./instruments.ts"

export type Labels = Readonly<Record<string, string>>

export type Value = number | HistogramSnapshot

/** One time series: `read` is asked at each collection, and answers `undefined` while there is nothing to tell. */
export interface Series {
  readonly labels: Labels
  readonly read: () => Value | undefined
}

/** One row: an instrument by the name that Prometheus knows, and by the one that OpenTelemetry does. */
export interface Row<Source> {
  readonly name: string
  readonly help: string
  readonly type: "gauge" | "counter" | "histogram"
  /** Kept for dashboards made before this library. */
  readonly legacy?: true
  readonly series: (source: Source) => ReadonlyArray<Series>
  readonly openTelemetry?: OpenTelemetry<Source>
}

/** The same instrument as OpenTelemetry has it. */
export interface OpenTelemetry<in Source> {
  readonly name: string
  readonly unit: string
  /** Default: those of the row. */
  readonly series?: (source: Source) => ReadonlyArray<Series>
  /** The attributes that labels become; others stay as they are. */
  readonly attributes?: Labels
  /** What all of its series say besides, as it is when they appear. */
  readonly common?: (source: Source) => Labels
}

interface Sample {
  readonly suffix: "" | "_bucket" | "_sum" | "_count"
  readonly labels: Readonly<Record<string, string | number>>
  readonly value: number
}

const samplesOf = (labels: Labels, value: Value): ReadonlyArray<Sample> =>
  typeof value === "number" ? [{ suffix: "", labels, value }] : [
    ...value.buckets.map(([bound, count]): Sample => ({
      suffix: "_bucket",
      labels: { le: bound === Infinity ? "+Inf" : bound, ...labels },
      value: count
    })),
    { suffix: "_sum", labels, value: value.sum },
    { suffix: "_count", labels, value: value.count }
  ]

/** What Prometheus sees of a row. */
export const samples = <Source>(row: Row<Source>, pool: string, source: Source): ReadonlyArray<Sample> =>
  row.series(source).flatMap(({ labels, read }) => {
    const value = read()
    return value === undefined ? [] : samplesOf({ pool, ...labels }, value)
  })

const escape = (value: string | number): string =>
  String(value).replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\"", "\\\"")

const text = <Source>(row: Row<Source>, pools: ReadonlyMap<string, Source>): string =>
  [
    `# HELP ${row.name} ${row.help}`,
    `# TYPE ${row.name} ${row.type}`,
    ...Array.from(pools).flatMap(([pool, source]) =>
      samples(row, pool, source).map(({ labels, suffix, value }) => {
        const pairs = Object.entries(labels).map(([label, of]) => `${label}="${escape(of)}"`)
        return `${row.name}${suffix}{${pairs.join(",")}} ${value}`
      })
    )
  ].join("\n")

/** Prometheus' text format 0.0.4, as prom-client prints it: each row is announced once, whatever the number of pools. */
export const format = <Source>(rows: ReadonlyArray<Row<Source>>, pools: ReadonlyMap<string, Source>): string =>
  rows.map((row) => text(row, pools)).join("\n\n") + "\n"
