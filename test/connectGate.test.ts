import { assert, describe, it } from "@effect/vitest"
import * as ConnectGate from "../src/internal/connectGate.ts"

describe("the connect gate", () => {
  it("lets every connect through while none has failed", () => {
    const gate = ConnectGate.make<string>()
    gate.connecting = 7
    assert.strictEqual(ConnectGate.decide(gate, 0), "Go")
  })

  it("tells the cause of a failed connect to everybody who asks during the pause", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, "refused", 1000)
    assert.deepStrictEqual(ConnectGate.decide(gate, 1000), { cause: "refused", retryAfter: 100 })
    assert.deepStrictEqual(ConnectGate.decide(gate, 1099), { cause: "refused", retryAfter: 1 })
    assert.strictEqual(ConnectGate.decide(gate, 1100), "Go")
  })

  it("lets one connect find out for all after the pause", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, "refused", 0)
    assert.strictEqual(ConnectGate.decide(gate, 100), "Go")
    gate.connecting++
    assert.strictEqual(ConnectGate.decide(gate, 100), "Wait")
  })

  it("pauses longer after each failure, by half, and never above two seconds", () => {
    const pauses = Array.from({ length: 10 }, (_, index) => ConnectGate.pauseAfter(index + 1))
    assert.deepStrictEqual(pauses.slice(0, 4), [100, 150, 225, 337.5])
    assert.strictEqual(pauses[9], 2000)
  })

  it("forgets failures with the first connect that works", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, "refused", 0)
    ConnectGate.failed(gate, "refused", 200)
    ConnectGate.succeeded(gate)
    gate.connecting = 3
    assert.strictEqual(ConnectGate.decide(gate, 201), "Go")
  })

  it("does not stay shut when the wall clock is set back", () => {
    const gate = ConnectGate.make<string>()
    ConnectGate.failed(gate, "refused", 3_600_000)
    assert.strictEqual(ConnectGate.decide(gate, 0), "Go")
  })
})
