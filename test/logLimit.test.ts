import { assert, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import * as LogLimit from "../src/internal/logLimit.ts"

const second = 1000
const minute = 60 * second
const hour = 60 * minute

/** The moments at which lines are written of what happens at these, and how many each says were left out. */
const written = (moments: Iterable<number>, limit = LogLimit.make()) => {
  const lines: Array<{ readonly at: number; readonly suppressed: number }> = []
  for (const at of moments) {
    const suppressed = LogLimit.admit(limit, at)
    if (suppressed !== undefined) lines.push({ at, suppressed })
  }
  return lines
}

const every = (millis: number, until: number, from = 0): ReadonlyArray<number> =>
  Array.from({ length: Math.floor((until - from) / millis) }, (_, index) => from + index * millis)

describe("a line that is written too often", () => {
  it("is written five times at once, and then after pauses of 5 seconds, twice that, and so on up to 5 minutes", () => {
    const at = written(every(100, 25 * minute)).map(({ at }) => at / second)
    assert.deepStrictEqual(at, [0, 0.1, 0.2, 0.3, 0.4, 5.4, 15.4, 35.4, 75.4, 155.4, 315.4, 615.4, 915.4, 1215.4])
  })

  it("is written about twenty times in an hour, and twelve times in each further one, however often it happens", () => {
    assert.strictEqual(written(every(40, hour)).length, 21)
    assert.strictEqual(written(every(40, 24 * hour)).length, 297)
  })

  it("says how many were left out before it", () => {
    assert.deepStrictEqual(written(every(second, 16 * second)).slice(4), [
      { at: 4 * second, suppressed: 0 },
      { at: 9 * second, suppressed: 4 }
    ])
  })

  it("is written at once again when it has been quiet for a minute, and not before", () => {
    const flood = every(10, 2 * second)
    const next = (pause: number) => {
      const limit = LogLimit.make()
      const lastAt = flood.at(-1)!
      assert.strictEqual(written(flood, limit).length, 5)
      // One that is late for the pause of 5 seconds begins the one of 10.
      return written([0, 1, 2].map((more) => lastAt + pause + more), limit).map(({ suppressed }) => suppressed)
    }
    assert.deepStrictEqual(next(minute - 1), [195])
    assert.deepStrictEqual(next(minute), [195, 0, 0])
  })

  it("is not something new each time because it comes with pauses that are as long as the longest", () => {
    const limit = LogLimit.make()
    written(every(100, hour), limit)
    const probes = every(6 * minute, 3 * hour, hour + minute)
    assert.strictEqual(written(probes, limit).length, probes.length)
    const next = probes.at(-1)! + second
    assert.deepStrictEqual(written(every(10, next + second, next), limit), [])
  })

  it("is not silenced by a clock that is set back", () => {
    const limit = LogLimit.make()
    written(every(100, hour), limit)
    assert.deepStrictEqual(written([0], limit).map(({ at }) => at), [0])
  })

  it("is never lost: what was written and what was left out is all there was", () => {
    fc.assert(fc.property(fc.array(fc.integer({ min: 0, max: 400_000 }), { maxLength: 500 }), (pauses) => {
      const limit = LogLimit.make()
      let at = 0
      const lines = written(pauses.map((pause) => at += pause), limit)
      const told = lines.reduce((sum, { suppressed }) => sum + 1 + suppressed, 0)
      assert.strictEqual(told + limit.suppressed, pauses.length)
    }))
  })
})
