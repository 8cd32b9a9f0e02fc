/** What is promised of the pool's performance, and whether a run has held it. */
import { isMultiplexed } from "../load/contender.ts"
import { axes, growthOf, steepest, suiteOf } from "../scaling/axes.ts"
import type { LoadRow, Row } from "./row.ts"
import { whole } from "./text.ts"

export interface Verdict {
  readonly target: string
  readonly measured: string
  /** `undefined` when nothing was measured that could tell. */
  readonly isHeld: boolean | undefined
  /** Missed, but by less than what can be told apart. */
  readonly isLevel?: boolean
}

/** A row of a fault, as far as it is judged here. */
export interface FaultRow extends Row {
  readonly readErrors: number
  readonly untruthful: number
  readonly recoveryMs: number | null
}

/** A row of the layer's cost, as far as it is judged here. */
export interface CostRow extends Row {
  readonly heat: string
  readonly beyond: string | null
  readonly nanos: number
  readonly spread: number
  readonly quietNanos?: number
}

export interface Measured {
  readonly load?: ReadonlyArray<LoadRow> | undefined
  readonly scaling?: ReadonlyArray<LoadRow> | undefined
  readonly "layer-cost"?: ReadonlyArray<CostRow> | undefined
  readonly recovery?: ReadonlyArray<FaultRow> | undefined
}

export const ours = "effect-pg-pool"
export const oursMultiplexed = "effect-pg-pool, multiplexed"

const titles: Readonly<Record<string, string>> = {
  read: "reads",
  range: "100-row reads",
  insert: "inserts",
  transaction: "transactions"
}

interface Found {
  readonly value: number
  readonly where: string
}

const unmeasured = "not measured"

/** Held when the worst of them is; tells which that was, and how many miss when some do. */
const bounded = (
  target: string,
  found: ReadonlyArray<Found>,
  bound: number,
  which: "at least" | "at most",
  print: (value: number) => string = (value) => value.toFixed(2),
  aside = ""
): Verdict => {
  if (found.length === 0) return { target, measured: unmeasured, isHeld: undefined }
  const misses = ({ value }: Found) => (which === "at least" ? value < bound : value > bound)
  const worst = found.toSorted((one, other) =>
    which === "at least" ? one.value - other.value : other.value - one.value
  )[0]!
  const missed = found.filter(misses).length
  const tally = missed === 0 || found.length === 1 ? "" : `; ${missed} of ${found.length} miss it`
  const measured = found.length <= 3
    ? found.map(({ value, where }) => `${print(value)}${where === "" ? "" : ` (${where})`}`).join(", ")
    : `${print(worst.value)} at worst (${worst.where})${tally}`
  return { target, measured: `${measured}${aside}`, isHeld: missed === 0 }
}

const ofLoad = (rows: ReadonlyArray<LoadRow>): ReadonlyArray<Verdict> => {
  type Figure = (row: LoadRow) => number | null
  const find = (
    contender: string,
    suites: ReadonlyArray<string>,
    callers: ReadonlyArray<number>,
    figure: Figure
  ): ReadonlyArray<Found> =>
    rows
      .filter((row) => row.contender === contender && suites.includes(row.suite) && callers.includes(row.callers))
      .flatMap((row) => {
        const value = figure(row)
        const place = suites.length === 1 ? "" : `${titles[row.suite]} `
        return value === null ? [] : [{ value, where: `${place}at ${whole(row.callers)}` }]
      })
  /** The same of the suites of which nothing is promised. */
  const beside = (contender: string, callers: ReadonlyArray<number>, figure: Figure): string => {
    const worst = ["insert", "range"].flatMap((suite) => {
      const values = find(contender, [suite], callers, figure).map(({ value }) => value)
      return values.length === 0 ? [] : [`${titles[suite]} ${Math.min(...values).toFixed(2)}`]
    })
    return worst.length === 0 ? "" : `; ${worst.join(", ")}`
  }
  const toPgClient: Figure = ({ ratioToPgClient }) => ratioToPgClient
  const toPostgresJs: Figure = ({ ratioToPostgresJs }) => ratioToPostgresJs
  const toPg: Figure = ({ ratioToPg }) => ratioToPg
  const single = ["read", "range", "insert"]
  const read = ["read"]
  const multiplexedOf = (callers: number) =>
    rows.find((row) => row.contender === oursMultiplexed && row.suite === "read" && row.callers === callers)?.qps
  const levels = [100, 1000, 10_000].flatMap((callers) => {
    const qps = multiplexedOf(callers)
    return qps === undefined ? [] : [{ callers, qps }]
  })
  const kept = levels.flatMap((from, index) =>
    levels.slice(index + 1).map((to) => ({
      value: to.qps / from.qps,
      where: `${whole(from.callers)} to ${whole(to.callers)}`
    }))
  )
  const memory = (contender: string): ReadonlyArray<Found> => {
    const of = (name: string) =>
      rows.find((row) => row.contender === name && row.suite === "read" && row.callers === 10_000)?.rssMb
    const [own, other] = [of(contender), of("postgres.js")]
    return own === undefined || other === undefined
      ? []
      : [{ value: own / other, where: `${whole(own)} MiB to ${whole(other)}` }]
  }
  const transactions = (contender: string, mode: string): ReadonlyArray<Verdict> => [
    bounded(
      `3. Transactions${mode}, 10 to 1,000 callers: at least 1.4 of PgClient's`,
      find(contender, ["transaction"], [10, 100, 1000], toPgClient),
      1.4,
      "at least"
    ),
    bounded(
      `3. Transactions${mode}, 10 to 1,000 callers: at least 1.0 of pg's`,
      find(contender, ["transaction"], [10, 100, 1000], toPg),
      1,
      "at least"
    )
  ]
  return [
    bounded(
      "1. Plain, 1 to 10,000 callers, reads, inserts, 100-row reads: at least 0.97 of PgClient",
      find(ours, single, [1, 10, 100, 1000, 10_000], toPgClient),
      0.97,
      "at least"
    ),
    bounded(
      "1. Plain, 1,000 callers: at least 1.05 of PgClient",
      find(ours, single, [1000], toPgClient),
      1.05,
      "at least"
    ),
    bounded(
      "1. Plain, 10,000 callers: at least 1.2 of PgClient",
      find(ours, single, [10_000], toPgClient),
      1.2,
      "at least"
    ),
    bounded(
      "2. Multiplexed reads, 100 callers: at least 0.95 of PgClient multiplexed",
      find(oursMultiplexed, read, [100], toPgClient),
      0.95,
      "at least",
      undefined,
      beside(oursMultiplexed, [100], toPgClient)
    ),
    bounded(
      "2. Multiplexed reads, 1,000 and 10,000 callers: at least 1.9 of PgClient multiplexed",
      find(oursMultiplexed, read, [1000, 10_000], toPgClient),
      1.9,
      "at least",
      undefined,
      beside(oursMultiplexed, [1000, 10_000], toPgClient)
    ),
    bounded(
      "2. Multiplexed reads, 1,000 and 10,000 callers: at least 1.0 of postgres.js",
      find(oursMultiplexed, read, [1000, 10_000], toPostgresJs),
      1,
      "at least",
      undefined,
      beside(oursMultiplexed, [1000, 10_000], toPostgresJs)
    ),
    bounded("2. Multiplexed reads, 100 to 10,000 callers: keeps at least 0.9", kept, 0.9, "at least"),
    ...transactions(ours, ""),
    ...transactions(oursMultiplexed, " multiplexed"),
    bounded(
      "4. p99 of multiplexed reads, 1,000 callers: at most postgres.js's",
      find(oursMultiplexed, read, [1000], ({ p99RatioToPostgresJs }) => p99RatioToPostgresJs),
      1,
      "at most"
    ),
    bounded(
      "4. p50 of a single caller's reads: at most 1.03 of PgClient's",
      [ours, oursMultiplexed].flatMap((contender) =>
        find(contender, read, [1], ({ p50RatioToPgClient }) => p50RatioToPgClient).map(({ value }) => ({
          value,
          where: contender === ours ? "plain" : "multiplexed"
        }))
      ),
      1.03,
      "at most"
    ),
    bounded("5. Resident with 10,000 callers: at most postgres.js's", memory(ours), 1, "at most"),
    bounded(
      "5. Resident with 10,000 callers, multiplexed: at most postgres.js's",
      memory(oursMultiplexed),
      1,
      "at most"
    )
  ]
}

/** The rows of the layer's cost that are about the layer as a whole. */
const isOfLayer = ({ beyond, contender, heat }: CostRow): boolean =>
  contender === ours && beyond === "PgClient" && heat.startsWith("A statement")

const ofCost = (rows: ReadonlyArray<CostRow>): ReadonlyArray<Verdict> => [
  bounded(
    "6. The layer on a healthy statement: less than 1 microsecond beyond PgClient",
    rows.filter(isOfLayer).map(({ heat, nanos }) => ({
      value: nanos / 1000,
      where: heat.replace("A statement, ", "")
    })),
    1,
    "at most",
    (value) => `${value.toFixed(2)} us`
  )
]

const faultTitles: Readonly<Record<string, string>> = {
  "recovery/terminate": "sessions terminated",
  "recovery/restart": "3 s restart",
  "recovery/freeze": "5 s frozen"
}

/** Answers are counted in bins of so many milliseconds, which begin anywhere: nearer times cannot be told apart. */
const bin = 20

const ofRecovery = (rows: ReadonlyArray<FaultRow>): ReadonlyArray<Verdict> => {
  const own = rows.filter(({ contender }) => contender.startsWith(ours))
  const found = (figure: (row: FaultRow) => number) =>
    own.map((row) => ({ value: figure(row), where: faultTitles[row.suite] ?? row.suite }))
  const isOurs = new Set<FaultRow>(own)
  return [
    bounded("7. Faults: no error on idempotent reads", found(({ readErrors }) => readErrors), 0, "at most", whole),
    bounded("7. Faults: no write told wrongly", found(({ untruthful }) => untruthful), 0, "at most", whole),
    ...own.map((row): Verdict => {
      const mode = isMultiplexed(row.contender) ? ", multiplexed" : ""
      const others = rows.filter((other) => other.suite === row.suite && !isOurs.has(other))
      const first = others
        .toSorted((one, other) => (one.recoveryMs ?? Infinity) - (other.recoveryMs ?? Infinity))[0]
      const print = (
        value: number | null | undefined
      ) => (value === null || value === undefined ? "never" : `${whole(value)} ms`)
      const [own, best] = [row.recoveryMs ?? Infinity, first?.recoveryMs ?? Infinity]
      const isHeld = own < Infinity && own <= best
      return {
        target: `7. ${faultTitles[row.suite] ?? row.suite}${mode}: first to be back at 90 %`,
        measured: `${print(row.recoveryMs)}, the best other ${print(first?.recoveryMs)}${
          first === undefined ? "" : ` (${first.contender})`
        }`,
        isHeld,
        isLevel: !isHeld && own < best + bin
      }
    })
  ]
}

const ofScaling = (rows: ReadonlyArray<LoadRow>): ReadonlyArray<Verdict> =>
  axes.map((axis) => {
    const growths = (contenders: ReadonlyArray<string>): ReadonlyArray<Found> =>
      contenders.flatMap((contender) => {
        const own = rows.filter((row) => row.suite === suiteOf(axis) && row.contender === contender)
        return own.length < 3
          ? []
          : [{ value: growthOf(axis, own), where: isMultiplexed(contender) ? "multiplexed" : "plain" }]
      })
    // What the kernel and the server do to one at the end of an axis, they do to the other.
    const theirs = growths(["PgClient", "PgClient, multiplexed"]).map(({ value }) => value.toFixed(2))
    return bounded(
      `8. Cost against ${axis.title.toLowerCase()}: nothing worse than linear (slope at most ${steepest})`,
      growths([ours, oursMultiplexed]),
      steepest,
      "at most",
      undefined,
      theirs.length === 0 ? "" : `; PgClient ${theirs.join(", ")}`
    )
  })

export const judge = (measured: Measured): ReadonlyArray<Verdict> => [
  ...ofLoad(measured.load ?? []),
  ...ofCost(measured["layer-cost"] ?? []),
  ...ofRecovery(measured.recovery ?? []),
  ...ofScaling(measured.scaling ?? [])
]

export const verdictOf = ({ isHeld, isLevel = false }: Verdict): string =>
  isHeld === undefined ? "not measured" : isHeld ? "held" : isLevel ? "level" : "missed"
