import { assert, describe, it } from "@effect/vitest"
import * as Errors from "../src/Errors.ts"
import { abstain, compose } from "../src/internal/classifier.ts"

const at = (phase: Errors.Phase): Errors.Circumstances => ({ phase, reused: false, replied: true })

const raised: Errors.Failure = { sqlState: "P0001", severity: "ERROR", message: "seat was taken" }
const lost: Errors.Failure = { code: "ECONNRESET" }

const judge = (failure: Errors.Failure, phase: Errors.Phase, ...classifiers: ReadonlyArray<Errors.Classify>) => {
  const reports: Array<unknown> = []
  const composed = compose(classifiers, (defect) => void reports.push(defect))
  return { verdict: composed(failure, at(phase), Errors.classify(failure, at(phase))), reports }
}

const saying = (change: Partial<Errors.Verdict>): Errors.Classify => (_failure, _circumstances, byDefault) => ({
  ...byDefault,
  ...change
})

describe("a classifier", () => {
  it("has the last word where it knows better", () => {
    const { verdict } = judge(raised, "InFlight", saying({ kind: "Contention", retry: "Backoff" }))
    assert.deepStrictEqual(verdict, {
      kind: "Contention",
      effect: "RolledBack",
      retry: "Backoff",
      breaker: "Success",
      connection: "Keep"
    })
    assert.isTrue(Errors.isSafeToRepeat(verdict, false))
  })

  it("that has nothing to say changes nothing", () => {
    assert.deepStrictEqual(judge(raised, "InFlight", abstain).verdict, Errors.classify(raised, at("InFlight")))
    assert.deepStrictEqual(judge(raised, "InFlight").verdict, Errors.classify(raised, at("InFlight")))
  })

  it("sees what the one before it said", () => {
    const seen: Array<string> = []
    const { verdict } = judge(
      raised,
      "InFlight",
      saying({ kind: "Overloaded" }),
      (_failure, _circumstances, byDefault) => {
        seen.push(byDefault.kind)
        return { ...byDefault, retry: "BackoffSlow" }
      }
    )
    assert.deepStrictEqual(seen, ["Overloaded"])
    assert.deepStrictEqual([verdict.kind, verdict.retry], ["Overloaded", "BackoffSlow"])
  })

  it("may declare a breaker's signal and the end of all sessions", () => {
    const { verdict } = judge(raised, "InFlight", saying({ breaker: "Failure", connection: "EvictAll" }))
    assert.deepStrictEqual([verdict.breaker, verdict.connection], ["Failure", "EvictAll"])
  })
})

describe("a classifier cannot change that", () => {
  it("what was written may have run: its NotRun becomes RolledBack", () => {
    for (const phase of ["InFlight", "Transaction", "Commit"] as const) {
      assert.strictEqual(judge(raised, phase, saying({ effect: "NotRun" })).verdict.effect, "RolledBack")
    }
  })

  it("nothing ran before the first byte", () => {
    for (const phase of ["Connect", "BeforeWrite"] as const) {
      for (const effect of ["RolledBack", "Unknown"] as const) {
        assert.strictEqual(judge(raised, phase, saying({ effect })).verdict.effect, "NotRun")
      }
    }
  })

  it("nobody knows what became of work without an answer", () => {
    for (const phase of ["InFlight", "Commit"] as const) {
      for (const effect of ["NotRun", "RolledBack"] as const) {
        const { verdict } = judge(lost, phase, saying({ effect, retry: "Now", kind: "Contention" }))
        assert.strictEqual(verdict.effect, "Unknown")
        assert.isFalse(Errors.isSafeToRepeat(verdict, false))
      }
    }
  })

  it("a session is over that was ended or lost", () => {
    assert.strictEqual(judge(lost, "InFlight", saying({ connection: "Keep" })).verdict.connection, "Evict")
    assert.strictEqual(
      judge({ sqlState: "57P02", severity: "FATAL" }, "InFlight", saying({ connection: "Keep" })).verdict.connection,
      "EvictAll"
    )
  })

  it("but an answer that the tables do not know may be taken at its word", () => {
    const refusal: Errors.Failure = { sqlState: "08P01", severity: "FATAL", message: "a pooler nobody has heard of" }
    assert.strictEqual(Errors.classify(refusal, at("InFlight")).effect, "Unknown")
    const { verdict } = judge(refusal, "InFlight", saying({ effect: "RolledBack", retry: "Backoff" }))
    assert.strictEqual(verdict.effect, "RolledBack")
    assert.isTrue(Errors.isSafeToRepeat(verdict, false))
  })
})

describe("a classifier that fails", () => {
  const broken: Errors.Classify = () => {
    throw new Error("no")
  }

  it("has said nothing, and is reported once", () => {
    const reports: Array<unknown> = []
    const composed = compose([broken, saying({ retry: "Backoff" })], (defect) => void reports.push(defect))
    const byDefault = Errors.classify(raised, at("InFlight"))
    for (let i = 0; i < 3; i++) {
      assert.deepStrictEqual(composed(raised, at("InFlight"), byDefault), { ...byDefault, retry: "Backoff" })
    }
    assert.strictEqual(reports.length, 1)
  })

  it.each([
    ["nothing", undefined],
    ["a word", "Contention"],
    ["half a verdict", { kind: "Contention" }],
    ["a verdict in other words", { ...Errors.classify(raised, at("InFlight")), retry: "Later" }]
  ])("by returning %s has said nothing", (_, said) => {
    const { reports, verdict } = judge(raised, "InFlight", (() => said) as unknown as Errors.Classify)
    assert.deepStrictEqual(verdict, Errors.classify(raised, at("InFlight")))
    assert.instanceOf(reports[0], TypeError)
  })
})
