import { assert, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import type { Admission, Circuit, Config, Outcome, Permit } from "../src/internal/breakerMachine.ts"
import * as Machine from "../src/internal/breakerMachine.ts"

const config: Config = {
  failures: 5,
  openFor: 30_000,
  jitterMin: 1,
  jitterMax: 1,
  maxOpenFor: 300_000,
  streakWindow: 60_000,
  probeLease: 5_000
}

/** A circuit with a clock beside it, for the length of a test. */
class Bench {
  circuit: Circuit = Machine.initial
  now = 0
  readonly config: Config
  constructor(config_: Config = config) {
    this.config = config_
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
    return Machine.streak(this.circuit, this.now, this.config)
  }
}

describe("breakerMachine", () => {
  describe("closed", () => {
    it("hands out the same admission and keeps the same circuit while calls succeed", () => {
      const bench = new Bench()
      const admission = bench.admit()
      assert.strictEqual(bench.admit(), admission)
      assert.strictEqual(
        Machine.settle(Machine.initial, admission.permit!, "Success", 1, config, undefined, 0),
        Machine.initial
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
      assert.strictEqual(new Bench({ ...config, failures: 1 }).fail(1).circuit._tag, "Open")
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

  it("46: any interleaving of calls, outcomes and time keeps every promise", () => {
    const settings: Config = { ...config, failures: 3, jitterMax: 1.2 }
    const outcome = fc.constantFrom<Outcome>("Success", "Failure", "Failure", "Ignored")
    const step = fc.oneof(
      { weight: 4, arbitrary: fc.record({ do: fc.constant("admit" as const) }) },
      {
        weight: 5,
        arbitrary: fc.record({
          do: fc.constant("settle" as const),
          which: fc.nat(),
          outcome,
          source: fc.option(fc.nat(3), { nil: undefined }),
          draw: fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true })
        })
      },
      {
        weight: 2,
        arbitrary: fc.record({
          do: fc.constant("wait" as const),
          ms: fc.oneof(
            fc.integer({ min: 0, max: 6_000 }),
            fc.integer({ min: 0, max: 70_000 }),
            fc.constantFrom(1, 4_999, 5_000, 29_999, 30_000, 36_000, 60_000, 60_001, 3_600_000, -1, -3_600_000)
          )
        })
      }
    )
    const legal = new Set(["Closed>Open", "Open>HalfOpen", "HalfOpen>Open", "HalfOpen>Closed"])
    const seen = new Set<string>()

    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 120, size: "max" }), (steps) => {
        let circuit = Object.freeze(Machine.initial) as Circuit
        let now = 1_700_000_000_000
        const inFlight: Array<Permit> = []
        // What the closed circuit has counted, kept the naive way.
        let counted: Array<{ readonly at: number; readonly source: number | undefined }> = []

        const move = (next: Circuit): void => {
          if (next === circuit) return
          if (next._tag !== circuit._tag) {
            const edge = `${circuit._tag}>${next._tag}`
            assert(legal.has(edge), edge)
            seen.add(edge)
            assert(next.generation > circuit.generation, "a new state is a new generation")
            counted = []
          }
          assert(next.generation >= circuit.generation, "generations only grow")
          if (next._tag === "Open" && circuit._tag !== "Open") {
            assert(next.openings === 1 || next.openings === circuit.openings + 1, "openings count one by one")
            assert(next.openFor >= settings.openFor && next.openFor <= settings.maxOpenFor, `open for ${next.openFor}`)
          }
          circuit = Object.freeze(next)
        }

        for (const step of steps) {
          const before = circuit
          const wait = Machine.retryAfter(before, now, settings)
          switch (step.do) {
            case "wait":
              now += step.ms
              break
            case "admit": {
              const admission = Machine.admit(circuit, now, settings)
              if (admission.circuit !== undefined) move(admission.circuit)
              // What reading says and what asking says is the same, and an open circuit lets nobody in.
              assert.strictEqual(admission.permit !== undefined, wait === 0)
              assert.strictEqual(admission.retryAfter, wait)
              if (admission.permit === undefined) break
              assert.strictEqual(admission.permit.probe, before._tag !== "Closed")
              assert.strictEqual(admission.permit.generation, circuit.generation)
              inFlight.push(admission.permit)
              break
            }
            case "settle": {
              if (inFlight.length === 0) break
              const [permit] = inFlight.splice(step.which % inFlight.length, 1)
              const next = Machine.settle(circuit, permit!, step.outcome, now, settings, step.source, step.draw)
              const late = permit!.generation !== circuit.generation
              if (late) assert.strictEqual(next, before, "a late outcome changes nothing")
              if (!late && before._tag === "Closed") {
                if (step.outcome === "Success") counted = []
                if (step.outcome === "Failure") {
                  const last = counted.at(-1)
                  if (last !== undefined && now - last.at > settings.streakWindow) counted = []
                  const known = step.source !== undefined && counted.some((one) => one.source === step.source)
                  if (!known) counted.push({ at: now, source: step.source })
                }
                assert.strictEqual(next._tag, counted.length >= settings.failures ? "Open" : "Closed")
                if (next._tag === "Closed") assert.strictEqual(next.streak, counted.length)
              }
              if (!late && before._tag === "HalfOpen") {
                assert.strictEqual(
                  next._tag,
                  step.outcome === "Success" ? "Closed" : step.outcome === "Failure" ? "Open" : "HalfOpen"
                )
                assert.strictEqual(
                  Machine.settle(next, permit!, "Failure", now, settings, undefined, 0),
                  next,
                  "a probe settles once"
                )
              }
              move(next)
              break
            }
          }
          const left = Machine.retryAfter(circuit, now, settings)
          const bound = circuit._tag === "Open"
            ? circuit.openFor
            : circuit._tag === "HalfOpen"
            ? settings.probeLease
            : 0
          assert(left >= 0 && left <= bound, `retryAfter ${left} of ${bound}`)
          const probes = inFlight.filter((permit) => permit.probe && permit.generation === circuit.generation).length
          assert.strictEqual(probes, circuit._tag === "HalfOpen" && circuit.probeSince !== undefined ? 1 : 0)
        }
      }),
      { numRuns: 5_000 }
    )
    assert.deepStrictEqual(seen, legal)
  })
})
