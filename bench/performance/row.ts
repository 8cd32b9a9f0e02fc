/** One line of the results. `null` where a figure makes no sense. */
export interface Row {
  readonly suite: string
  readonly contender: string
  readonly callers: number | null
  /** Sessions at most. */
  readonly max: number | null
  /** Operations a second. */
  readonly qps: number | null
  /** The median of the rounds' ratios of `qps` to the driver's own pool in the same mode. */
  readonly ratioToPgClient: number | null
  readonly p50Ms: number | null
  readonly p99Ms: number | null
  /** Microseconds of CPU per operation. */
  readonly clientCpuUs: number | null
  readonly serverCpuUs: number | null
  /** The most that was resident, in MiB. */
  readonly rssMb: number | null
  readonly errors: number | null
}

/** A row of callers in a closed loop. */
export interface LoadRow extends Row {
  readonly callers: number
  readonly max: number
  readonly qps: number
  readonly clientCpuUs: number
  readonly rssMb: number
  readonly errors: number
  /** Rows of a range, bytes of a payload. */
  readonly size: number | null
  /** Medians of the rounds' ratios, as `ratioToPgClient`. */
  readonly ratioToPostgresJs: number | null
  readonly ratioToPg: number | null
  readonly p50RatioToPgClient: number | null
  readonly p99RatioToPostgresJs: number | null
  /** `qps` and its ratio to PgClient in each round. */
  readonly rounds: ReadonlyArray<number>
  readonly ratios: ReadonlyArray<number> | null
}

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

const texts: ReadonlyArray<keyof Row> = ["suite", "contender"]
const figures: ReadonlyArray<keyof Row> = [
  "callers",
  "max",
  "qps",
  "ratioToPgClient",
  "p50Ms",
  "p99Ms",
  "clientCpuUs",
  "serverCpuUs",
  "rssMb",
  "errors"
]

/** What a row of the results lacks: fields that are missing, of another type, or no number at all. */
export const flawsOf = (row: Row): ReadonlyArray<string> => {
  const isFigure = (value: unknown) => value === null || (typeof value === "number" && Number.isFinite(value))
  return [
    ...texts.filter((name) => typeof row[name] !== "string" || row[name] === ""),
    ...figures.filter((name) => !isFigure(row[name]))
  ].map((name) => `${name} is ${JSON.stringify(row[name]) ?? "missing"}`)
}
