import { assert, describe, it } from "@effect/vitest"
import * as ConnectGate from "../src/internal/connectGate.ts"

describe("the connect gate", () => {
  it("lets one connect find out whether there is a server, and doubles with each round that works", () => {
    const gate = ConnectGate.make<string>()
    for (const allowed of [1, 2, 4, 8, 16]) {
      while (ConnectGate.decide(gate, 0) === "Go") ConnectGate.begin(gate, 0)
      assert.strictEqual(gate.connecting, allowed)
      while (gate.connecting > 0) {
        gate.connecting--
        ConnectGate.succeeded(gate)
      }
    }
  })

  it("begins with one again after a failure, and when nothing is left of what it knew", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.succeeded(gate)
    ConnectGate.succeeded(gate)
    assert.strictEqual(gate.allowance, 3)
    ConnectGate.forget(gate)
    assert.strictEqual(gate.allowance, 1)
    ConnectGate.succeeded(gate)
    ConnectGate.failed(gate, gate.round, "refused", 0)
    assert.strictEqual(gate.allowance, 1)
  })

  it("counts connects that were under way together as one failure", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.succeeded(gate)
    const rounds = [ConnectGate.begin(gate, 0), ConnectGate.begin(gate, 0)]
    for (const round of rounds) ConnectGate.failed(gate, round, "refused", 1000)
    assert.strictEqual(gate.failures, 1)
    assert.strictEqual(gate.shutUntil, 1100)
  })

  it("tells the cause of a failed connect to everybody who asks during the pause", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, gate.round, "refused", 1000)
    assert.deepStrictEqual(ConnectGate.decide(gate, 1000), { cause: "refused", retryAfter: 100 })
    assert.deepStrictEqual(ConnectGate.decide(gate, 1099), { cause: "refused", retryAfter: 1 })
    assert.strictEqual(ConnectGate.decide(gate, 1100), "Go")
  })

  it("lets one connect find out for all after the pause", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, gate.round, "refused", 0)
    assert.strictEqual(ConnectGate.decide(gate, 100), "Go")
    gate.connecting++
    assert.strictEqual(ConnectGate.decide(gate, 100), "Wait")
  })

  it("pauses longer after each failure, by half, and never above two seconds", () => {
    const pauses = Array.from({ length: 10 }, (_, index) => ConnectGate.pauseAfter(index + 1))
    assert.deepStrictEqual(pauses.slice(0, 4), [100, 150, 225, 337.5])
    assert.strictEqual(pauses[9], 2000)
  })

  it("lets chance say when a server that is full is asked again: up to twice as late each time, and two seconds", () => {
    const most = Array.from({ length: 7 }, (_, index) => ConnectGate.crowdPauseAfter(1)(index + 1))
    assert.deepStrictEqual(most, [100, 200, 400, 800, 1600, 2000, 2000])
    assert.strictEqual(ConnectGate.crowdPauseAfter(0.25)(3), 100)
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, gate.round, "full", 1000, ConnectGate.crowdPauseAfter(0.5))
    assert.strictEqual(gate.shutUntil, 1050)
    ConnectGate.failed(gate, gate.round, "full", 1050, ConnectGate.crowdPauseAfter(0))
    assert.strictEqual(ConnectGate.decide(gate, 1050), "Go")
  })

  /** What a connect does that sets out at that time, and that nobody answers. */
  const unanswered = (gate: ConnectGate.ConnectGate<string>, at: number, cause = "refused") => {
    end(gate, ConnectGate.begin(gate, at), at, cause)
  }
  const end = (gate: ConnectGate.ConnectGate<string>, round: number, at: number, cause = "refused") => {
    gate.connecting--
    ConnectGate.failed(gate, round, cause, at, undefined, true)
  }

  it("lets one be tried out of turn, and everybody else pause as if it had not been", () => {
    const gate = ConnectGate.make<string>()
    for (const at of [0, 100]) unanswered(gate, at)
    for (const at of [120, 140, 160]) {
      ConnectGate.outOfTurn(gate, at)
      assert.strictEqual(ConnectGate.decide(gate, at), "Go")
      unanswered(gate, at, "starting")
      assert.deepStrictEqual(ConnectGate.decide(gate, at), { cause: "starting", retryAfter: 250 - at })
    }
    assert.strictEqual(ConnectGate.decide(gate, 250), "Go")
    unanswered(gate, 250)
    assert.strictEqual(gate.pause, 225)
    ConnectGate.outOfTurn(gate, 300)
    ConnectGate.begin(gate, 300)
    ConnectGate.succeeded(gate)
    gate.connecting--
    unanswered(gate, 300)
    assert.strictEqual(gate.shutUntil, 400)
  })

  it("counts a connect that was under way when one was wanted out of turn, and lets nobody go beside it", () => {
    const gate = ConnectGate.make<string>()
    unanswered(gate, 0)
    const round = ConnectGate.begin(gate, 100)
    ConnectGate.outOfTurn(gate, 5_000)
    assert.strictEqual(ConnectGate.decide(gate, 5_000), "Wait")
    end(gate, round, 5_050)
    assert.strictEqual(gate.failures, 2)
    assert.deepStrictEqual(ConnectGate.decide(gate, 5_050), { cause: "refused", retryAfter: 150 })
  })

  it("is not deceived by what was under way before, when one is wanted out of turn", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.succeeded(gate)
    const [first, second] = [ConnectGate.begin(gate, 0), ConnectGate.begin(gate, 0)]
    end(gate, first, 1_000)
    ConnectGate.outOfTurn(gate, 1_010)
    end(gate, second, 1_020)
    assert.deepStrictEqual(ConnectGate.decide(gate, 1_020), { cause: "refused", retryAfter: 80 })
    unanswered(gate, 1_100)
    assert.strictEqual(gate.failures, 2)
  })

  it("counts what answers as a failure like any other, out of turn or not", () => {
    const gate = ConnectGate.make<string>()
    unanswered(gate, 0)
    ConnectGate.outOfTurn(gate, 50)
    ConnectGate.failed(gate, ConnectGate.begin(gate, 50), "full", 50)
    gate.connecting--
    assert.deepStrictEqual(ConnectGate.decide(gate, 50), { cause: "full", retryAfter: 150 })
  })

  it("forgets that one was wanted out of turn when it is reopened, or none was tried for a while", () => {
    for (const forget of [(gate: ConnectGate.ConnectGate<string>) => ConnectGate.reopen(gate), () => {}]) {
      const gate = ConnectGate.make<string>()
      for (const at of [0, 100]) unanswered(gate, at)
      ConnectGate.outOfTurn(gate, 110)
      forget(gate)
      unanswered(gate, 250)
      assert.deepStrictEqual([gate.failures, gate.pause], [3, 225])
    }
  })

  it("pauses after a session that was disproved, while one is tried out of turn", () => {
    const gate = ConnectGate.make<string>()
    unanswered(gate, 0)
    ConnectGate.outOfTurn(gate, 50)
    const round = ConnectGate.begin(gate, 50)
    ConnectGate.failed(gate, gate.round, "disproved", 60)
    end(gate, round, 70)
    assert.deepStrictEqual(ConnectGate.decide(gate, 70), { cause: "refused", retryAfter: 140 })
  })

  it("forgets failures with the first connect that works", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, gate.round, "refused", 0)
    ConnectGate.failed(gate, gate.round, "refused", 200)
    ConnectGate.succeeded(gate)
    assert.strictEqual(ConnectGate.decide(gate, 201), "Go")
  })

  it("does not stay shut when the wall clock is set back", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, gate.round, "refused", 3_600_000)
    assert.strictEqual(ConnectGate.decide(gate, 0), "Go")
    assert.strictEqual(ConnectGate.remainingPause(gate, 0), 0)
    assert.strictEqual(ConnectGate.remainingPause(gate, 3_600_040), 60)
  })
})
