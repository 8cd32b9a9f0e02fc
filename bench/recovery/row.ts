/** One line of the results. */
import type { Figures } from "./figures.ts"
import type { FaultName, Plan } from "./trial.ts"

export interface Row {
  readonly suite: string
  readonly contender: string
  readonly callers: number
  readonly max: number
  /** Before the fault. */
  readonly qps: number
  readonly ratioToPgClient: null
  readonly p50Ms: null
  readonly p99Ms: null
  readonly clientCpuUs: null
  readonly serverCpuUs: null
  readonly rssMb: null
  /** What callers saw of them in the median round. */
  readonly errors: number
  readonly readErrors: number
  readonly writeErrors: number
  readonly unknownWrites: number
  /** Over all rounds. */
  readonly untruthful: number
  /** `null` when the throughput did not come back while it was watched. */
  readonly recoveryMs: number | null
  readonly longestGapMs: number
  readonly peakMs: number
  /** Of all rounds. */
  readonly failures: Readonly<Record<string, number>>
  /** Milliseconds until it was back, in each round. */
  readonly rounds: ReadonlyArray<number | null>
  /** The round that is drawn: operations per second in bins of 20 ms, and the bins between which the fault lay. */
  readonly curve: ReadonlyArray<number>
  readonly faultBins: readonly [number, number]
}

const middle = <A>(values: ReadonlyArray<A>, of: (value: A) => number): A =>
  values.toSorted((one, other) => of(one) - of(other))[values.length >> 1]!

const median = (values: ReadonlyArray<number>): number => middle(values, (value) => value)

/** Medians of the rounds. */
export const rowOf = (
  fault: FaultName,
  contender: string,
  { callers, max }: Plan,
  seen: ReadonlyArray<Figures>
): Row => {
  const typical = middle(seen, ({ recoveryMs }) => recoveryMs ?? Infinity)
  const failures: Record<string, number> = {}
  for (const each of seen) {
    for (const [name, times] of Object.entries(each.failures)) failures[name] = (failures[name] ?? 0) + times
  }
  return {
    suite: `recovery/${fault}`,
    contender,
    callers,
    max,
    qps: median(seen.map(({ qps }) => qps)),
    ratioToPgClient: null,
    p50Ms: null,
    p99Ms: null,
    clientCpuUs: null,
    serverCpuUs: null,
    rssMb: null,
    errors: median(seen.map(({ readErrors, writeErrors }) => readErrors + writeErrors)),
    readErrors: median(seen.map(({ readErrors }) => readErrors)),
    writeErrors: median(seen.map(({ writeErrors }) => writeErrors)),
    unknownWrites: median(seen.map(({ unknownWrites }) => unknownWrites)),
    untruthful: seen.reduce((sum, each) => sum + each.untruthful, 0),
    recoveryMs: typical.recoveryMs ?? null,
    longestGapMs: median(seen.map(({ longestGapMs }) => longestGapMs)),
    peakMs: median(seen.map(({ peakMs }) => peakMs)),
    failures,
    rounds: seen.map(({ recoveryMs }) => recoveryMs ?? null),
    curve: typical.curve,
    faultBins: typical.faultBins
  }
}
