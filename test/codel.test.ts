import { assert, describe, it } from "@effect/vitest"
import * as Codel from "../src/internal/codel.ts"
import { chance } from "./integration/witness.ts"

const make = () => Codel.make({ target: 50, interval: 500 })

/** Who leaves the line, as `[at, waited]`, and whether the last one is turned away. */
const lastIsLate = (...leaves: ReadonlyArray<readonly [at: number, waited: number]>): boolean => {
  const codel = make()
  let isLate = false
  for (const [at, waited] of leaves) isLate = Codel.isLate(codel, waited, at)
  return isLate
}

describe("shedding by queue time", () => {
  it("turns nobody away before a whole interval has gone by", () => {
    assert.isFalse(lastIsLate([0, 10_000]))
    assert.isFalse(lastIsLate([0, 10_000], [499, 10_000]))
  })

  it("turns away who has waited for more than twice the target, after an interval in which all waits were longer", () => {
    assert.isTrue(lastIsLate([0, 51], [500, 101]))
    assert.isFalse(lastIsLate([0, 51], [500, 100]))
  })

  it("does not when one wait of the interval was within the target", () => {
    assert.isFalse(lastIsLate([0, 300], [250, 50], [499, 300], [500, 300]))
  })

  it("ends with the first wait within the target", () => {
    assert.isTrue(lastIsLate([0, 300], [500, 300], [510, 300]))
    assert.isFalse(lastIsLate([0, 300], [500, 300], [510, 50], [520, 300]))
  })

  it("goes on for as long as nobody is served within the target", () => {
    assert.isTrue(lastIsLate([0, 300], [500, 300], [1000, 90], [1500, 90], [2000, 101]))
  })

  it("holds what was long ago against nobody but those who have waited since", () => {
    assert.isFalse(lastIsLate([0, 300], [600_000, 300]))
    assert.isTrue(lastIsLate([0, 300], [2000, 1600]))
  })

  it("judges anew when the wall clock is set back", () => {
    const codel = make()
    Codel.isLate(codel, 300, 3_600_000)
    Codel.isLate(codel, 300, 0)
    Codel.isLate(codel, 300, 499)
    assert.isTrue(Codel.isLate(codel, 300, 500))
  })
})

/** A line before servers that are busy for 10 ms with each, for as many seconds as asked for. */
const simulate = (options: {
  readonly load: number
  readonly servers: number
  readonly seconds: number
  readonly codel: Codel.Codel | undefined
}) => {
  const { codel, load, seconds, servers } = options
  const { next } = chance(20261123)
  const service = 10
  const line: Array<number> = []
  const busyUntil = Array.from({ length: servers }, () => 0)
  const waits: Array<{ readonly at: number; readonly waited: number }> = []
  let turnedAway = 0
  let arrival = 0
  for (let now = 0; now < seconds * 1000; now++) {
    while (arrival <= now) {
      line.push(now)
      arrival += -Math.log(1 - next()) * service / (servers * load)
    }
    for (const [index, until] of busyUntil.entries()) {
      if (until > now) continue
      for (let since = line.shift(); since !== undefined; since = line.shift()) {
        const waited = now - since
        if (codel !== undefined && Codel.isLate(codel, waited, now)) {
          turnedAway++
          continue
        }
        waits.push({ at: now, waited })
        busyUntil[index] = now + service
        break
      }
    }
  }
  const after = (second: number) => waits.filter(({ at }) => at >= second * 1000).map(({ waited }) => waited)
  return { after, served: waits.length, turnedAway }
}

const percentile = (values: ReadonlyArray<number>, share: number): number =>
  values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * share)]!

describe("more load than the sessions can take", () => {
  for (const load of [1.05, 1.3, 2, 5]) {
    const options = { load, servers: 5, seconds: 60 }
    it(`${load} times as much: waits grow without shedding, and stay near twice the target with it`, () => {
      const without = simulate({ ...options, codel: undefined })
      const shed = simulate({ ...options, codel: make() })
      assert.isAbove(percentile(without.after(50), 0), 1000)
      assert.isAtMost(percentile(shed.after(5), 0.5), 100)
      assert.isAtMost(percentile(shed.after(5), 0.99), 130)
      assert.isAtLeast(shed.served, without.served * 0.98)
    })
  }

  it("0.8 times as much: nobody is turned away", () => {
    assert.strictEqual(simulate({ load: 0.8, servers: 5, seconds: 60, codel: make() }).turnedAway, 0)
  })
})
