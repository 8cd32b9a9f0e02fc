import type { HistogramSnapshot } from "./instruments.ts"

/** Values, and how often each was seen. */
export interface Spread {
  readonly values: ReadonlyArray<number>
  readonly counts: ReadonlyArray<number>
}

interface Bucket {
  readonly from: number
  readonly to: number
  readonly count: number
}

const bucketsOf = (later: HistogramSnapshot, earlier: HistogramSnapshot | undefined): ReadonlyArray<Bucket> => {
  let from = 0
  let below = 0
  return later.buckets.map(([to, cumulative], index) => {
    const upTo = cumulative - (earlier?.buckets[index]?.[1] ?? 0)
    const bucket = { from, to, count: upTo - below }
    from = to
    below = upTo
    return bucket
  }).filter(({ count }) => count > 0)
}

/**
 * What a histogram has seen since an earlier copy of it, as one value for each bucket. The values are where in their buckets they
 * must be for their sum to be that of what was really seen: count, sum and average are exact, and a single value is itself. What
 * is known of a percentile is the bucket that it lies in.
 */
export const since = (later: HistogramSnapshot, earlier: HistogramSnapshot | undefined): Spread => {
  const buckets = bucketsOf(later, earlier)
  const sum = later.sum - (earlier?.sum ?? 0)
  const bounded = buckets.filter(({ to }) => to !== Infinity)
  const beyond = buckets.find(({ to }) => to === Infinity)
  const least = buckets.reduce((total, { count, from }) => total + count * from, 0)
  const room = bounded.reduce((total, { count, from, to }) => total + count * (to - from), 0)
  // What is beyond the last bound takes what the middles of the others leave.
  const share = room === 0 ? 0 : beyond === undefined ? (sum - least) / room : 0.5
  const at = ({ from, to }: Bucket): number => from + Math.min(1, Math.max(0, share)) * (to - from)
  const rest = sum - bounded.reduce((total, bucket) => total + bucket.count * at(bucket), 0)
  return {
    values: buckets.map((bucket) => bucket === beyond ? Math.max(bucket.from, rest / bucket.count) : at(bucket)),
    counts: buckets.map(({ count }) => count)
  }
}
