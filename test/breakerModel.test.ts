import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as fc from "fast-check"
import * as Breaker from "../src/Breaker.ts"
import type { Circuit, Config, Holds, Outcome, Permit } from "../src/internal/breakerMachine.ts"
import * as Machine from "../src/internal/breakerMachine.ts"
import * as Memory from "../src/internal/breakerSnapshot.ts"
import type { Trip } from "../src/internal/breakerTally.ts"

const settingsOf = (trip: Trip): Config => ({
  trip,
  openFor: 30_000,
  jitterMin: 1,
  jitterMax: 1.2,
  maxOpenFor: 300_000,
  probeLease: 5_000,
  ramp: 4
})

const trip = fc.constantFrom<Trip>(
  { _tag: "Consecutive", failures: 3, window: 60_000 },
  { _tag: "Rate", threshold: 0.5, size: 6, minimumCalls: 4, window: 60_000 }
)

const does = <K extends string>(kind: K) => fc.record({ do: fc.constant(kind) })

const step = fc.oneof(
  { weight: 12, arbitrary: does("admit") },
  {
    weight: 14,
    arbitrary: fc.record({
      do: fc.constant("settle" as const),
      which: fc.nat(7),
      outcome: fc.constantFrom<Outcome>("Success", "Success", "Failure", "Failure", "Ignored"),
      source: fc.option(fc.nat(3), { nil: undefined }),
      draw: fc.constantFrom(0, 0.3, 0.7, 0.999)
    })
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("wait" as const),
      ms: fc.constantFrom(0, 1, 100, 4_999, 5_000, 29_999, 30_000, 36_000, 60_000, 60_001, 3_600_000, -1, -3_600_000)
    })
  },
  { weight: 3, arbitrary: does("wait to be let in") },
  { weight: 1, arbitrary: does("isolate") },
  { weight: 3, arbitrary: does("end isolation") },
  { weight: 1, arbitrary: does("disable") },
  { weight: 3, arbitrary: does("enable") },
  { weight: 1, arbitrary: does("reset") },
  { weight: 1, arbitrary: does("move to another process") }
)

const start = fc.constantFrom("Closed", "Open", "HalfOpen", "Ramping", "Ramping")

const byItself = [
  "Closed>Open",
  "Open>HalfOpen",
  "HalfOpen>Open",
  "HalfOpen>Ramping",
  "Ramping>Open",
  "Ramping>Closed"
]
const byHand = [
  ...["Closed", "Ramping", "Open", "HalfOpen", "Disabled"].map((from) => `${from}>Isolated`),
  ...["Closed", "Ramping", "Open", "HalfOpen", "Isolated"].map((from) => `${from}>Disabled`),
  ...["Isolated", "Disabled"].map((from) => `${from}>Closed`)
]
const byReset = ["Ramping>Closed", "Open>Closed", "HalfOpen>Closed"]

/** What a circuit that counts has counted, kept the naive way. */
class Counted {
  readonly trip: Trip
  list: Array<{ readonly at: number; readonly failed: boolean; readonly source: number | undefined }> = []
  constructor(trip: Trip) {
    this.trip = trip
  }
  add(failed: boolean, source: number | undefined, now: number): void {
    const { trip } = this
    if (trip._tag === "Consecutive") {
      if (!failed) return void (this.list = [])
      const last = this.list.at(-1)
      if (last !== undefined && now - last.at > trip.window) this.list = []
    } else {
      while (this.list.length > 0 && Math.abs(now - this.list[0]!.at) > trip.window) this.list.shift()
    }
    if (failed && source !== undefined && this.list.some((one) => one.source === source)) return
    this.list.push({ at: now, failed, source: failed ? source : undefined })
    if (trip._tag === "Rate" && this.list.length > trip.size) this.list.shift()
  }
  get failures(): number {
    return this.list.filter(({ failed }) => failed).length
  }
  get trips(): boolean {
    const { trip } = this
    return trip._tag === "Consecutive"
      ? this.failures >= trip.failures
      : this.failures > 0 && this.list.length >= trip.minimumCalls &&
        this.failures / this.list.length >= trip.threshold
  }
}

/** A circuit, the calls in flight through it, and what must be true of both after every step. */
class Model {
  readonly settings: Config
  readonly seen: Set<string>
  circuit: Circuit
  now = 1_700_000_000_000
  holds: Holds = { isolations: [], disablings: 0 }
  inFlight: Array<Permit> = []
  counted: Counted

  constructor(settings: Config, seen: Set<string>) {
    this.settings = settings
    this.seen = seen
    this.circuit = Machine.initial(settings)
    this.counted = new Counted(settings.trip)
  }

  move(next: Circuit, legal: ReadonlyArray<string>): void {
    const { circuit } = this
    if (next === circuit) return
    if (next._tag !== circuit._tag) {
      const edge = `${circuit._tag}>${next._tag}`
      assert(legal.includes(edge), edge)
      this.seen.add(edge)
      assert(next.generation > circuit.generation, "a new state is a new generation")
    }
    if (next.generation > circuit.generation) this.counted = new Counted(this.settings.trip)
    assert(next.generation >= circuit.generation, "generations only grow")
    this.circuit = Object.freeze(next)
  }

  admit(): void {
    const before = this.circuit
    const wait = Machine.retryAfter(before, this.now, this.settings)
    const { circuit, permit, retryAfter } = Machine.admit(before, this.now, this.settings)
    if (circuit !== undefined) this.move(circuit, ["Open>HalfOpen", "Ramping>Closed"])
    // What reading says and what asking says is the same: neither an open nor an isolated circuit lets anybody in.
    assert.strictEqual(permit !== undefined, wait === 0)
    assert.strictEqual(retryAfter, wait)
    if (permit === undefined) return
    assert.strictEqual(permit.generation, this.circuit.generation)
    assert.strictEqual(permit.probe, this.circuit._tag === "HalfOpen")
    assert.strictEqual(permit.ramp, this.circuit._tag === "Ramping")
    this.inFlight.push(permit)
  }

  settle(which: number, outcome: Outcome, source: number | undefined, draw: number): void {
    if (this.inFlight.length === 0) return
    const [permit] = this.inFlight.splice(which % this.inFlight.length, 1)
    const before = this.circuit
    const next = Machine.settle(before, permit!, outcome, this.now, this.settings, source, draw)
    const isLate = permit!.generation !== before.generation
    if (isLate) assert.strictEqual(next, before, "a late outcome changes nothing")
    else this.expect(before, next, permit!, outcome, source)
    this.move(next, byItself)
    // A recovery that is over when its call ends has ended before it: the outcome is the first that is counted.
    if (!isLate && before._tag === "Ramping" && next._tag === "Closed" && this.isRecovered(before)) {
      if (outcome !== "Ignored") this.counted.add(outcome === "Failure", source, this.now)
      assert.strictEqual(next.tally.failures, this.counted.failures)
    }
    if (permit!.probe || permit!.ramp) {
      for (const again of ["Success", "Failure", "Ignored"] as const) {
        const settled = Machine.settle(next, permit!, again, this.now, this.settings, undefined, 0)
        assert.strictEqual(settled, next, "a probe and a ramp permit settle once")
      }
    }
  }

  expect(before: Circuit, next: Circuit, permit: Permit, outcome: Outcome, source: number | undefined): void {
    switch (before._tag) {
      case "Closed": {
        if (outcome === "Ignored") return assert.strictEqual(next, before)
        this.counted.add(outcome === "Failure", source, this.now)
        assert.strictEqual(next._tag, this.counted.trips ? "Open" : "Closed")
        if (next._tag === "Closed") assert.strictEqual(next.tally.failures, this.counted.failures)
        return
      }
      case "HalfOpen":
        return assert.strictEqual(
          next._tag,
          outcome === "Success" ? "Ramping" : outcome === "Failure" ? "Open" : "HalfOpen"
        )
      case "Ramping": {
        const isHeld = before.slots.some((slot) => slot.permit === permit)
        if (!isHeld) return assert.strictEqual(next, before, "a place that was lost is lost")
        if (this.isRecovered(before)) return assert.strictEqual(next._tag, "Closed")
        if (outcome === "Failure") return assert.strictEqual(next._tag, "Open")
        if (next._tag === "Ramping") {
          assert.strictEqual(next.slots.length, before.slots.length - 1)
          assert(next.limit === before.limit || next.limit === before.limit * 2)
        }
        return
      }
      case "Disabled":
        return assert.strictEqual(next._tag, "Disabled")
      default:
        return assert.strictEqual(next, before)
    }
  }

  isRecovered({ closedAt }: Machine.Ramping): boolean {
    return this.now - closedAt >= this.settings.openFor
  }

  hold(holds: Holds): void {
    this.holds = holds
    this.move(Machine.hold(this.circuit, holds, this.settings), byHand)
  }

  moveToAnotherProcess(): void {
    const before = this.circuit
    const left = Machine.retryAfter(before, this.now, this.settings)
    const snapshot: Breaker.Snapshot = {
      version: 1,
      key: "default",
      takenAt: this.now,
      lastFailure: null,
      circuit: Memory.remember(before)
    }
    const carried = Schema.decodeUnknownSync(Breaker.Snapshot)(JSON.parse(JSON.stringify(snapshot)))
    assert.deepStrictEqual(carried, snapshot)
    this.circuit = Object.freeze(Memory.recall(carried.circuit, this.now, this.settings))
    this.inFlight = []
    this.holds = { isolations: [], disablings: 0 }
    this.counted = new Counted(this.settings.trip)
    const { circuit } = this
    switch (before._tag) {
      case "Open":
      case "HalfOpen":
        assert.strictEqual(circuit._tag, "Open")
        assert.deepInclude(circuit, { openings: before.openings })
        assert.strictEqual(
          Machine.retryAfter(circuit, this.now, this.settings),
          before._tag === "Open" ? left : 0
        )
        break
      case "Ramping":
        assert.deepInclude(circuit, { _tag: "Ramping", limit: before.limit, openings: before.openings, slots: [] })
        break
      default:
        assert(circuit._tag === "Closed")
        if (before._tag === "Closed" && before.tally._tag === "Streak") {
          assert.strictEqual(circuit.tally.failures, before.tally.failures)
          const { failures, lastFailureAt } = before.tally
          for (let i = 0; i < failures; i++) {
            this.counted.list.push({ at: Math.min(lastFailureAt, this.now), failed: true, source: undefined })
          }
        }
    }
  }

  /** Brings the circuit into a state that chance seldom leads to. */
  goTo(state: "Closed" | "Open" | "HalfOpen" | "Ramping"): void {
    if (state === "Closed") return
    while (this.circuit._tag === "Closed") {
      this.admit()
      this.settle(0, "Failure", undefined, 0.5)
    }
    if (state === "Open") return
    this.take({ do: "wait to be let in" })
    if (state === "Ramping") this.settle(0, "Success", undefined, 0)
  }

  take(one: typeof step extends fc.Arbitrary<infer A> ? A : never): void {
    const { disablings, isolations } = this.holds
    switch (one.do) {
      case "admit":
        return this.admit()
      case "settle":
        return this.settle(one.which, one.outcome, one.source, one.draw)
      case "wait":
        this.now += one.ms
        return
      case "wait to be let in": {
        const left = Machine.retryAfter(this.circuit, this.now, this.settings)
        if (left < Infinity) this.now += left
        return this.admit()
      }
      case "isolate":
        return this.hold({ disablings, isolations: [...isolations, { reason: `reason ${isolations.length}` }] })
      case "end isolation":
        return this.hold({ disablings, isolations: isolations.slice(1) })
      case "disable":
        return this.hold({ disablings: disablings + 1, isolations })
      case "enable":
        return this.hold({ disablings: Math.max(0, disablings - 1), isolations })
      case "reset":
        return this.move(Machine.reset(this.circuit, this.settings), byReset)
      case "move to another process":
        return this.moveToAnotherProcess()
    }
  }

  check(): void {
    const { circuit, holds, now, settings } = this
    assert.strictEqual(circuit._tag === "Isolated", holds.isolations.length > 0)
    assert.strictEqual(circuit._tag === "Disabled", holds.isolations.length === 0 && holds.disablings > 0)
    const left = Machine.retryAfter(circuit, now, settings)
    const bound = { Closed: 0, Disabled: 0, Ramping: 5_000, HalfOpen: 5_000, Open: 300_000, Isolated: Infinity }
    assert(left >= 0 && left <= bound[circuit._tag], `retryAfter ${left} while ${circuit._tag}`)
    if (circuit._tag === "Open") assert(circuit.openFor >= 30_000 && left <= circuit.openFor)
    const live = this.inFlight.filter(({ generation }) => generation === circuit.generation)
    const isProbed = circuit._tag === "HalfOpen" && circuit.probeSince !== undefined
    assert.strictEqual(live.filter(({ probe }) => probe).length, isProbed ? 1 : 0, "one probe at a time")
    if (circuit._tag === "Ramping") {
      assert(circuit.slots.length <= circuit.limit && circuit.limit <= settings.ramp, "no more than the limit")
      assert(circuit.slots.every(({ permit }) => live.includes(permit)), "a place belongs to a call in flight")
    }
  }
}

describe("breakerMachine", () => {
  it("46: any interleaving of calls, outcomes, time, hands and moves keeps every promise", () => {
    const seen = new Set<string>()
    fc.assert(
      fc.property(trip, start, fc.array(step, { minLength: 1, maxLength: 30, size: "max" }), (by, state, steps) => {
        const model = new Model(settingsOf(by), seen)
        model.goTo(state)
        for (const one of steps) {
          model.take(one)
          model.check()
        }
      }),
      { numRuns: 10_000 }
    )
    // What was never reached was not proved.
    assert.deepStrictEqual([...seen].sort(), [...new Set([...byItself, ...byHand, ...byReset])].sort())
  })
})
