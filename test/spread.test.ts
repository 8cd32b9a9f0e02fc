/** What a histogram has seen, as values: the sum is that of what was really seen. */
import { assert, describe, it } from "@effect/vitest"
import fc from "fast-check"
import { Histogram } from "../src/internal/instruments.ts"
import * as Spread from "../src/internal/spread.ts"

const duration = fc.oneof(fc.double({ min: 0, max: 0.1, noNaN: true }), fc.double({ min: 0, max: 100, noNaN: true }))

const filled = (values: ReadonlyArray<number>, histogram = new Histogram()) => {
  for (const value of values) histogram.observe(value)
  return histogram
}

const sumOf = (values: ReadonlyArray<number>) => values.reduce((sum, value) => sum + value, 0)

describe("a spread", () => {
  it("has the count and the sum of what was seen since, and each value in its bucket", () =>
    fc.assert(
      fc.property(fc.array(duration), fc.array(duration), (before, after) => {
        const histogram = filled(before)
        const earlier = histogram.snapshot()
        const { counts, values } = Spread.since(filled(after, histogram).snapshot(), earlier)
        assert.strictEqual(sumOf(counts), after.length)
        assert.approximately(sumOf(values.map((value, index) => value * counts[index]!)), sumOf(after), 1e-6)
        const bucketOf = (value: number) => histogram.bounds.filter((bound) => value > bound + 1e-9).length
        const seen = after.map((value) => bucketOf(value)).toSorted((a, b) => a - b)
        const told = values.flatMap((value, index) => Array.from({ length: counts[index]! }, () => bucketOf(value)))
        // A value on a bound may be told as just above it, by the error of the sums.
        for (const [index, bucket] of seen.entries()) assert.approximately(told[index]!, bucket, 1)
      })
    ))

  it("of one value is that value, and of none is nothing", () => {
    const { counts, values } = Spread.since(filled([0.0421]).snapshot(), undefined)
    assert.deepEqual([values.map((value) => Number(value.toFixed(12))), counts], [[0.0421], [1]])
    assert.deepEqual(Spread.since(filled([64]).snapshot(), undefined), { values: [64], counts: [1] })
    const full = filled([1, 2, 3]).snapshot()
    assert.deepEqual(Spread.since(full, full), { values: [], counts: [] })
  })
})
