/** What the callers of one client saw of a fault, in numbers. */
import { bin, type Testimony } from "./testimony.ts"

/** When a fault began and ended, in milliseconds of the wall clock. */
export interface Fault {
  readonly began: number
  readonly ended: number
  /** When the callers stopped. */
  readonly until: number
}

export interface Figures {
  /** Operations per second before the fault. */
  readonly qps: number
  readonly readErrors: number
  readonly writeErrors: number
  /** Writes that failed with an error that leaves open whether they were made. */
  readonly unknownWrites: number
  /** Acknowledged, but not there; said not to have been made, but there; there twice. */
  readonly untruthful: number
  /** Milliseconds from the end of the fault until the throughput was back, `undefined` if it did not come back. */
  readonly recoveryMs: number | undefined
  /** The longest time without an operation that worked, from just before the fault on. */
  readonly longestGapMs: number
  /** The slowest operation. */
  readonly peakMs: number
  readonly failures: Readonly<Record<string, number>>
  /** Operations per second in each bin. */
  readonly curve: ReadonlyArray<number>
  /** The bin in which the fault began, and the one in which it ended. */
  readonly faultBins: readonly [number, number]
}

/** Bins that are looked at together: 100 ms. */
const slide = 100 / bin
/** Of the throughput before. */
const back = 0.9

const median = (values: ReadonlyArray<number>): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0

export const figuresOf = (
  { acknowledged, bins, failed, failures, from, slow }: Testimony,
  { began, ended, until }: Fault,
  present: ReadonlyMap<number, number>
): Figures => {
  const indexOf = (at: number) => Math.floor((at - from) / bin)
  const last = indexOf(until)
  const counts = Array.from({ length: last }, (_, index) => bins[index]?.successes ?? 0)
  const windowAt = (index: number) => counts.slice(index, index + slide).reduce((sum, each) => sum + each, 0)
  const firstFault = indexOf(began)
  // The second before; what came earlier is warm-up.
  const before = Array.from({ length: 1000 / bin - slide }, (_, index) => windowAt(firstFault - slide - index))
  const usual = median(before)
  const firstAfter = Math.max(0, Math.ceil((ended - from) / bin))
  let recovered: number | undefined
  for (let index = firstAfter; index + slide <= last && recovered === undefined; index++) {
    if (windowAt(index) >= back * usual) recovered = index
  }
  let gap = 0
  let longestGap = 0
  for (let index = firstFault; index < last; index++) {
    gap = counts[index] === 0 ? gap + 1 : 0
    longestGap = Math.max(longestGap, gap)
  }
  const untruthful = acknowledged.filter((id) => !present.has(id)).length +
    failed.filter(([id, fate]) => fate === "NotRun" && present.has(id)).length +
    Array.from(present.values()).filter((times) => times > 1).length
  return {
    qps: (usual * 1000) / (slide * bin),
    readErrors: bins.reduce((sum, { readErrors }) => sum + readErrors, 0),
    writeErrors: bins.reduce((sum, { writeErrors }) => sum + writeErrors, 0),
    unknownWrites: failed.filter(([, fate]) => fate === "Unknown").length,
    untruthful,
    recoveryMs: recovered === undefined ? undefined : Math.max(0, Math.round(from + recovered * bin - ended)),
    longestGapMs: longestGap * bin,
    peakMs: slow.reduce((most, [, took]) => Math.max(most, took), bin),
    failures,
    curve: counts.map((count) => Math.round((count * 1000) / bin)),
    faultBins: [firstFault, indexOf(ended)]
  }
}
