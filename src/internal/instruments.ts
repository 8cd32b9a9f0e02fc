/**
 * Counters and histograms as plain numbers. Nothing here knows about Effect, Prometheus or OpenTelemetry: the hot path
 * adds to numbers, and whoever exports them reads the numbers when it is asked to.
 */

/**
 * Upper bounds of the buckets, in seconds. They contain the nine bounds that OpenTelemetry advises for database
 * durations and the eleven defaults of prom-client, so either view can be recovered by dropping bounds.
 */
export const durationBounds: ReadonlyArray<number> = [
  0.001,
  0.0025,
  0.005,
  0.01,
  0.025,
  0.05,
  0.075,
  0.1,
  0.25,
  0.5,
  1,
  2.5,
  5,
  10
]

/** The same for waits, which last for up to a minute. */
export const waitBounds: ReadonlyArray<number> = [...durationBounds, 30]

/** An immutable copy of a histogram, in the form in which exporters want it. */
export interface HistogramSnapshot {
  /** Pairs of upper bound and the number of values at or below it (cumulative). The last bound is `Infinity`. */
  readonly buckets: ReadonlyArray<readonly [bound: number, cumulative: number]>
  readonly count: number
  readonly sum: number
  /** 0 without a value. */
  readonly min: number
  /** 0 without a value. */
  readonly max: number
}

/** A histogram of durations in seconds. */
export class Histogram {
  readonly bounds: ReadonlyArray<number>
  // Doubles, since 32-bit counts wrap after four billion values.
  private readonly counts: Float64Array
  private sum = 0
  private min = Infinity
  private max = 0

  constructor(bounds: ReadonlyArray<number> = durationBounds) {
    this.bounds = bounds
    this.counts = new Float64Array(bounds.length + 1)
  }

  /** Adds one value. A value that is not a duration (negative, NaN, infinite) counts as 0: a sum must never go down. */
  observe(seconds: number): void {
    const value = seconds >= 0 && seconds < Infinity ? seconds : 0
    const bounds = this.bounds
    let index = 0
    while (index < bounds.length && value > bounds[index]!) index++
    this.counts[index]! += 1
    this.sum += value
    if (value < this.min) this.min = value
    if (value > this.max) this.max = value
  }

  snapshot(): HistogramSnapshot {
    const buckets: Array<readonly [number, number]> = []
    let cumulative = 0
    for (let index = 0; index < this.counts.length; index++) {
      cumulative += this.counts[index]!
      buckets.push([this.bounds[index] ?? Infinity, cumulative])
    }
    return { buckets, count: cumulative, sum: this.sum, min: cumulative === 0 ? 0 : this.min, max: this.max }
  }
}

/** What one histogram would have counted of all values together. They must have the same bounds. */
export const sum = (
  [first, ...rest]: readonly [HistogramSnapshot, ...ReadonlyArray<HistogramSnapshot>]
): HistogramSnapshot =>
  rest.reduce((total, { buckets, count, max, min, sum }) => ({
    buckets: total.buckets.map(([bound, cumulative], index) => [bound, cumulative + buckets[index]![1]] as const),
    count: total.count + count,
    sum: total.sum + sum,
    min: total.count === 0 ? min : count === 0 ? total.min : Math.min(total.min, min),
    max: Math.max(total.max, max)
  }), first)

/** One counter per key, all at 0: a series that is there from the start is what makes its first increment visible. */
export const counters = <const K extends string>(keys: ReadonlyArray<K>): Record<K, number> =>
  Object.fromEntries(keys.map((key) => [key, 0])) as Record<K, number>
