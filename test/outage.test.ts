import { assert, describe, it } from "@effect/vitest"
import type { Transition } from "../src/internal/breakerView.ts"
import * as Outage from "../src/internal/outage.ts"

const key = "db"

const opens = (at: number, from: "Closed" | "HalfOpen" = "Closed"): Transition => ({
  key,
  from,
  to: "Open",
  at,
  retryAfter: 1_000,
  consecutiveOpenings: 1
})
const probes = (at: number): Transition => ({ key, from: "Open", to: "HalfOpen", at })
const closes = (at: number): Transition => ({ key, from: "HalfOpen", to: "Closed", at })

const watched = () => {
  let rejections = 7
  const tell = Outage.watch(() => rejections)
  return {
    tell,
    reject: (count: number) => {
      rejections += count
    }
  }
}

describe("an outage", () => {
  it("lasts from the first opening to the close, failed probes included", () => {
    const { reject, tell } = watched()
    assert.isUndefined(tell(opens(1_000)))
    reject(20)
    assert.isUndefined(tell(probes(2_000)))
    reject(3)
    assert.isUndefined(tell(opens(2_500, "HalfOpen")))
    assert.isUndefined(tell(probes(4_500)))
    assert.deepStrictEqual(tell(closes(4_600)), { took: 3_600, rejected: 23 })
  })

  it("of the past is not counted again", () => {
    const { reject, tell } = watched()
    tell(opens(1_000))
    reject(5)
    tell(closes(2_000))
    tell(opens(10_000))
    assert.deepStrictEqual(tell(closes(10_250)), { took: 250, rejected: 0 })
  })

  it("is a circuit isolated by hand, too, and over when all calls are let in by hand", () => {
    const { reject, tell } = watched()
    tell({ key, from: "Closed", to: "Isolated", at: 0, reason: "moving" })
    reject(1)
    assert.deepStrictEqual(tell({ key, from: "Isolated", to: "Disabled", at: 60_000 }), { took: 60_000, rejected: 1 })
    assert.isUndefined(tell({ key, from: "Disabled", to: "Disabled", at: 61_000 }))
    assert.isUndefined(tell({ key, from: "Disabled", to: "Closed", at: 62_000 }))
  })

  it("whose begin nobody has seen has no length", () => {
    assert.isUndefined(watched().tell(closes(5_000)))
  })

  it("is not shorter than nothing when the clock is set back", () => {
    const { tell } = watched()
    tell(opens(9_000))
    assert.deepStrictEqual(tell(closes(1_000)), { took: 0, rejected: 0 })
  })
})
