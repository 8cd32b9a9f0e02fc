import { assert, describe, it } from "@effect/vitest"
import type { Admission, Circuit, Config, Outcome, Permit } from "../src/internal/breakerMachine.ts"
import * as Machine from "../src/internal/breakerMachine.ts"
import type * as Tally from "../src/internal/breakerTally.ts"

const config: Config = {
  trip: { _tag: "Consecutive", failures: 5, window: 60_000 },
  openFor: 30_000,
  jitterMin: 1,
  jitterMax: 1,
  maxOpenFor: 300_000,
  probeLease: 5_000,
  ramp: 0
}

/** A circuit with a clock beside it, for the length of a test. */
class Bench {
  circuit: Circuit
  now = 0
  readonly config: Config
  constructor(config_: Config = config) {
    this.config = config_
    this.circuit = Machine.initial(config_)
  }
  admit(): Admission {
    const admission = Machine.admit(this.circuit, this.now, this.config)
    if (admission.circuit !== undefined) this.circuit = admission.circuit
    return admission
  }
  permit(): Permit {
    const { permit, retryAfter } = this.admit()
    assert(permit !== undefined, `rejected for ${retryAfter} ms`)
    return permit
  }
  rejected(): number {
    const { permit, retryAfter } = this.admit()
    assert.isUndefined(permit)
    return retryAfter
  }
  settle(permit: Permit, outcome: Outcome, source?: number, draw = 0): this {
    this.circuit = Machine.settle(this.circuit, permit, outcome, this.now, this.config, source, draw)
    return this
  }
  call(outcome: Outcome, source?: number, draw = 0): this {
    return this.settle(this.permit(), outcome, source, draw)
  }
  fail(times: number): this {
    for (let i = 0; i < times; i++) this.call("Failure")
    return this
  }
  pass(ms: number): this {
    this.now += ms
    return this
  }
  open(): Machine.Open {
    assert(this.circuit._tag === "Open", `is ${this.circuit._tag}`)
    return this.circuit
  }
  streak(): number {
    assert(this.circuit._tag === "Closed", `is ${this.circuit._tag}`)
    return Machine.failures(this.circuit, this.now, this.config)
  }
}

describe("breakerMachine", () => {
  describe("closed", () => {
    it("hands out the same admission and keeps the same circuit while calls succeed", () => {
      const bench = new Bench()
      const admission = bench.admit()
      assert.strictEqual(bench.admit(), admission)
      assert.strictEqual(
        Machine.settle(bench.circuit, admission.permit!, "Success", 1, config, undefined, 0),
        bench.circuit
      )
    })

    it("keeps its generation from failure to failure, so that calls in flight keep counting", () => {
      const bench = new Bench()
      const early = [bench.permit(), bench.permit(), bench.permit(), bench.permit(), bench.permit()]
      for (const permit of early.slice(0, 4)) bench.settle(permit, "Failure")
      assert.strictEqual(bench.streak(), 4)
      assert.strictEqual(bench.settle(early[4]!, "Failure").open().openings, 1)
    })

    it("ends a streak with a success, however long it was", () => {
      const bench = new Bench().fail(4).call("Success")
      assert.strictEqual(bench.streak(), 0)
      assert.strictEqual(bench.fail(4).streak(), 4)
    })

    it("leaves a streak alone when an outcome is ignored", () => {
      assert.strictEqual(new Bench().fail(4).call("Ignored").streak(), 4)
    })

    it("takes failures exactly one window apart for a streak, and later ones for a new one", () => {
      assert.strictEqual(new Bench().fail(1).pass(60_000).fail(1).streak(), 2)
      assert.strictEqual(new Bench().fail(1).pass(60_001).fail(1).streak(), 1)
    })

    it("reports a streak that is out of its window as none", () => {
      assert.strictEqual(new Bench().fail(4).pass(60_001).streak(), 0)
    })

    it("counts the failures of one socket once in a streak, and again in the next", () => {
      const bench = new Bench()
      for (let i = 0; i < 32; i++) bench.call("Failure", 7)
      assert.strictEqual(bench.streak(), 1)
      assert.strictEqual(bench.call("Failure", 8).streak(), 2)
      assert.strictEqual(bench.call("Success").call("Failure", 7).streak(), 1)
    })

    it("47: stays closed at four failures and a success, over and over: it counts failures in a row", () => {
      const bench = new Bench()
      for (let i = 0; i < 100; i++) assert.strictEqual(bench.fail(4).call("Success").circuit._tag, "Closed")
    })

    it("opens at the first failure when it is told so", () => {
      assert.strictEqual(
        new Bench({ ...config, trip: { _tag: "Consecutive", failures: 1, window: 60_000 } }).fail(1).circuit._tag,
        "Open"
      )
    })
  })

  describe("open", () => {
    it("rejects to the last millisecond, then lets one probe in", () => {
      const bench = new Bench().fail(5).pass(29_999)
      assert.strictEqual(bench.rejected(), 1)
      assert.isTrue(bench.pass(1).permit().probe)
      assert.strictEqual(bench.circuit._tag, "HalfOpen")
    })

    it("allocates no new circuit to reject", () => {
      const bench = new Bench().fail(5)
      const circuit = bench.circuit
      bench.pass(1).rejected()
      assert.strictEqual(bench.circuit, circuit)
    })

    it("counts from what it sees when the clock goes back, and never says more than it stays open", () => {
      const bench = new Bench()
      bench.now = 10_000_000
      bench.fail(5).pass(-3_600_000)
      assert.strictEqual(Machine.retryAfter(bench.circuit, bench.now, config), 30_000)
      assert.strictEqual(bench.rejected(), 30_000)
      assert.strictEqual(bench.pass(29_999).rejected(), 1)
      assert.isTrue(bench.pass(1).permit().probe)
    })

    it("drops what calls of the closed time report", () => {
      const bench = new Bench()
      const late = [bench.permit(), bench.permit()]
      bench.fail(5).pass(1_000)
      const circuit = bench.circuit
      bench.settle(late[0]!, "Success").settle(late[1]!, "Failure")
      assert.strictEqual(bench.circuit, circuit)
    })
  })

  describe("half-open", () => {
    it("rejects the others for what is left of the lease", () => {
      const bench = new Bench().fail(5).pass(30_000)
      bench.permit()
      assert.strictEqual(bench.rejected(), 5_000)
      assert.strictEqual(bench.pass(4_999).rejected(), 1)
    })

    it("gives the place of a probe without an answer to the next call, and drops its late answer", () => {
      const bench = new Bench().fail(5).pass(30_000)
      const hung = bench.permit()
      const second = bench.pass(5_000).permit()
      assert.isTrue(second.probe)
      for (const outcome of ["Success", "Failure", "Ignored"] as const) {
        const circuit = bench.circuit
        assert.strictEqual(bench.settle(hung, outcome).circuit, circuit)
      }
      assert.strictEqual(bench.settle(second, "Success").circuit._tag, "Closed")
    })

    it("takes the answer of a slow probe when nobody has asked since", () => {
      const bench = new Bench().fail(5).pass(30_000)
      const slow = bench.permit()
      assert.strictEqual(bench.pass(25_000).settle(slow, "Success").circuit._tag, "Closed")
    })

    it("frees the place of an ignored probe at once", () => {
      const bench = new Bench().fail(5).pass(30_000).call("Ignored")
      assert.strictEqual(bench.circuit._tag, "HalfOpen")
      assert.strictEqual(Machine.retryAfter(bench.circuit, bench.now, config), 0)
      assert.isTrue(bench.permit().probe)
    })

    it("does not let the lease grow when the clock goes back", () => {
      const bench = new Bench()
      bench.now = 10_000_000
      bench.fail(5).pass(30_000).permit()
      assert.strictEqual(bench.pass(-3_600_000).rejected(), 5_000)
      assert.isTrue(bench.pass(5_000).permit().probe)
    })
  })

  describe("the time it stays open", () => {
    /** Opens, waits the time out and fails the probe, `times` times over. */
    const openings = (times: number, bench = new Bench(), draw = 0): Array<number> => {
      const lengths: Array<number> = []
      bench.fail(4).call("Failure", undefined, draw)
      for (let i = 0; i < times; i++) {
        lengths.push(bench.open().openFor)
        bench.pass(bench.open().openFor).call("Failure", undefined, draw)
      }
      return lengths
    }

    it("28: doubles with every opening in a row, up to five minutes", () => {
      assert.deepStrictEqual(openings(6), [30_000, 60_000, 120_000, 240_000, 300_000, 300_000])
    })

    it("28: is thirty seconds again after it was closed as long as it was last open", () => {
      const bench = new Bench()
      openings(1, bench)
      bench.pass(60_000).call("Success")
      assert.strictEqual(bench.pass(60_000).fail(5).open().openFor, 30_000)
    })

    it("29: goes on growing when it opens again before that", () => {
      const bench = new Bench()
      openings(1, bench)
      bench.pass(60_000).call("Success")
      assert.strictEqual(bench.pass(59_999).fail(5).open().openFor, 120_000)
    })

    it("29: remembers how long it was open when the probe that closes it is the second one", () => {
      const bench = new Bench().fail(5).pass(30_000).call("Ignored").call("Success")
      assert.strictEqual(bench.pass(29_999).fail(5).open().openFor, 60_000)
    })

    it("counts the quiet time from what it sees when the clock goes back", () => {
      const bench = new Bench()
      bench.now = 10_000_000
      bench.fail(5).pass(30_000).call("Success").pass(-3_600_000).fail(1)
      assert.strictEqual(bench.pass(30_000).fail(4).open().openFor, 30_000)
    })

    it("is never shorter than asked, never longer than the cap, and spread even at the cap", () => {
      const jittered: Config = { ...config, jitterMax: 1.2 }
      assert.deepStrictEqual(
        [1, 2, 3, 4, 5, 50].map((n) => [Machine.openFor(n, 0, jittered), Machine.openFor(n, 1, jittered)]),
        [
          [30_000, 36_000],
          [60_000, 72_000],
          [120_000, 144_000],
          [240_000, 288_000],
          [250_000, 300_000],
          [250_000, 300_000]
        ]
      )
      const capped: Config = { ...jittered, maxOpenFor: 30_000 }
      assert.deepStrictEqual([Machine.openFor(1, 0, capped), Machine.openFor(9, 1, capped)], [30_000, 30_000])
    })

    it("does not overflow after a very long outage", () => {
      assert.strictEqual(Machine.openFor(5_000, 0, config), 300_000)
    })
  })

  describe("by rate", () => {
    const rate = (settings: Partial<Tally.Trip & { readonly _tag: "Rate" }> = {}): Config => ({
      ...config,
      trip: { _tag: "Rate", threshold: 0.5, size: 10, minimumCalls: 4, window: 60_000, ...settings }
    })

    it("47: opens at four failures and a success, over and over, which failures in a row never notice", () => {
      const bench = new Bench(rate({ threshold: 0.8, minimumCalls: 10 }))
      bench.fail(4).call("Success").fail(4)
      assert.strictEqual(bench.circuit._tag, "Closed")
      // It is a success that completes the ten: eight of them failed.
      assert.strictEqual(bench.call("Success").circuit._tag, "Open")
    })

    it("47: does not judge before it has seen as many calls as it must", () => {
      const bench = new Bench(rate())
      assert.strictEqual(bench.fail(3).circuit._tag, "Closed")
      assert.strictEqual(bench.fail(1).circuit._tag, "Open")
    })

    it("47: never opens without a failure, not even at a threshold of 0", () => {
      const bench = new Bench(rate({ threshold: 0 }))
      for (let i = 0; i < 20; i++) bench.call("Success")
      assert.strictEqual(bench.circuit._tag, "Closed")
      assert.strictEqual(bench.fail(1).circuit._tag, "Open")
    })

    it("looks at the last calls only, and at those that are not too old", () => {
      const crowded = new Bench(rate({ minimumCalls: 10 })).fail(3)
      for (let i = 0; i < 10; i++) crowded.call("Success")
      assert.strictEqual(crowded.fail(4).streak(), 4)
      const frozen = new Bench(rate()).fail(3).pass(60_001).fail(3)
      assert.strictEqual(frozen.streak(), 3)
      assert.strictEqual(frozen.pass(60_001).streak(), 0)
      assert.strictEqual(new Bench(rate()).fail(3).pass(60_000).fail(1).circuit._tag, "Open")
    })

    it("does not count what an ignored outcome says, and counts a socket once", () => {
      const bench = new Bench(rate())
      for (let i = 0; i < 32; i++) bench.call("Failure", 7).call("Ignored")
      assert.strictEqual(bench.streak(), 1)
    })

    it("does not keep old outcomes for longer when the clock goes back", () => {
      const bench = new Bench(rate())
      bench.now = 10_000_000
      assert.strictEqual(bench.fail(3).pass(-3_600_000).fail(1).streak(), 1)
    })

    it("is as quick with a hundred thousand calls to look at as with ten", () => {
      const bench = new Bench(rate({ size: 100_000, minimumCalls: 100_000 }))
      for (let i = 0; i < 300_000; i++) bench.call(i % 3 === 0 ? "Failure" : "Success")
      assert.strictEqual(bench.streak(), 33_333)
    })
  })

  describe("after a close", () => {
    const careful: Config = { ...config, ramp: 8 }

    /** A circuit that has just closed. */
    const recovering = (settings: Config = careful) => new Bench(settings).fail(5).pass(30_000).call("Success")

    /** As many permits as it gives now. */
    const all = (bench: Bench): Array<Permit> => {
      const permits: Array<Permit> = []
      for (let { permit } = bench.admit(); permit !== undefined; { permit } = bench.admit()) {
        permits.push(permit)
        if (!permit.ramp) break
      }
      return permits
    }

    it("30: lets in 1, 2, 4 and 8 at a time, each until as many have succeeded, and then all", () => {
      const bench = recovering()
      const limits: Array<number> = []
      while (bench.circuit._tag === "Ramping") {
        const permits = all(bench)
        limits.push(permits.length)
        for (const permit of permits) bench.settle(permit, "Success")
      }
      assert.deepStrictEqual(limits, [1, 2, 4, 8])
      assert.strictEqual(bench.circuit._tag, "Closed")
      assert.isFalse(bench.permit().ramp)
    })

    it("30: goes no further than it was told", () => {
      const limitsTo = (ramp: number) => {
        const bench = recovering({ ...config, ramp })
        const limits: Array<number> = []
        while (bench.circuit._tag === "Ramping") {
          limits.push(bench.circuit.limit)
          bench.call("Success")
        }
        return [...new Set(limits)]
      }
      assert.deepStrictEqual(limitsTo(1), [1])
      assert.deepStrictEqual(limitsTo(5), [1, 2, 4, 5])
      assert.deepStrictEqual(limitsTo(20), [1, 2, 4, 8, 16, 20])
    })

    it("30: a failure at four reopens it at once and for longer, and the other three say nothing any more", () => {
      const bench = recovering()
      while (bench.circuit._tag === "Ramping" && bench.circuit.limit < 4) bench.call("Success")
      const [first, ...others] = all(bench)
      assert.strictEqual(others.length, 3)
      bench.settle(first!, "Failure")
      assert.strictEqual(bench.open().openFor, 60_000)
      const circuit = bench.circuit
      for (const other of others) bench.settle(other, "Success").settle(other, "Failure")
      assert.strictEqual(bench.circuit, circuit)
    })

    it("lets one after another pass without a wait", () => {
      const bench = recovering()
      for (let i = 0; i < 30; i++) bench.pass(10).call(i % 4 === 0 ? "Ignored" : "Success")
      assert.strictEqual(bench.circuit._tag, "Closed")
    })

    it("takes the outcome of a call once", () => {
      const bench = recovering()
      const permit = bench.permit()
      const settled = bench.settle(permit, "Success").circuit
      bench.settle(permit, "Success").settle(permit, "Failure").settle(permit, "Ignored")
      assert.strictEqual(bench.circuit, settled)
    })

    it("gives the place of a call without an answer to another after its lease, and drops its late answer", () => {
      const bench = recovering()
      const hung = bench.permit()
      assert.strictEqual(bench.pass(4_999).rejected(), 1)
      bench.pass(1).permit()
      const circuit = bench.circuit
      assert.strictEqual(bench.settle(hung, "Failure").circuit, circuit)
    })

    it("an ignored call leaves its place and proves nothing", () => {
      const bench = recovering()
      bench.call("Ignored").call("Ignored")
      assert.deepInclude(bench.circuit, { _tag: "Ramping", limit: 1, successes: 0, slots: [] })
    })

    it("is careful for as long as the first opening at most", () => {
      const bench = recovering()
      bench.pass(29_999)
      assert.isTrue(bench.permit().ramp)
      assert.strictEqual(Machine.retryAfter(bench.circuit, bench.now, careful), 5_000)
      bench.pass(1)
      assert.strictEqual(Machine.retryAfter(bench.circuit, bench.now, careful), 0)
      assert.isFalse(bench.permit().ramp)
      assert.strictEqual(bench.circuit._tag, "Closed")
    })

    it("counts a failure that comes after that time as the first of a streak", () => {
      const bench = recovering()
      const slow = bench.permit()
      assert.strictEqual(bench.pass(30_000).settle(slow, "Failure").streak(), 1)
    })

    it("holds no place for longer, and is careful no longer, when the clock goes back", () => {
      const bench = recovering()
      bench.now = 10_000_000
      bench.circuit = Machine.initial(careful)
      bench.fail(5).pass(30_000).call("Success").permit()
      assert.strictEqual(bench.pass(-3_600_000).rejected(), 5_000)
      assert.isTrue(bench.pass(5_000).permit().ramp)
      assert.isFalse(bench.pass(25_000).permit().ramp)
    })

    it("29: a circuit that closed again for long enough has forgotten its openings, careful or not", () => {
      const bench = recovering()
      while (bench.circuit._tag === "Ramping") bench.call("Success")
      assert.strictEqual(bench.pass(30_000).fail(5).open().openFor, 30_000)
    })
  })

  describe("a database that is known to be reachable again", () => {
    it("ends the wait of an open circuit: the next call is the probe, and the back-off is what it was", () => {
      const bench = new Bench()
      for (let call = 0; call < 5; call++) bench.call("Failure")
      bench.now = 3_000
      bench.circuit = Machine.endWait(bench.circuit)
      assert.strictEqual(bench.circuit._tag, "HalfOpen")
      const probe = bench.permit()
      assert.isTrue(probe.probe)
      assert.strictEqual(bench.rejected(), 5_000)
      bench.settle(probe, "Failure")
      assert(bench.circuit._tag === "Open")
      assert.strictEqual(bench.circuit.openFor, 60_000)
    })

    it("is no news for a circuit in any other state", () => {
      const bench = new Bench()
      assert.strictEqual(Machine.endWait(bench.circuit), bench.circuit)
      for (const holds of [{ isolations: [{ reason: "moved" }], disablings: 0 }, { isolations: [], disablings: 1 }]) {
        const held = Machine.hold(bench.circuit, holds, config)
        assert.strictEqual(Machine.endWait(held), held)
      }
    })
  })
})
