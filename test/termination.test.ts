import { afterEach, assert, beforeEach, describe, it } from "@effect/vitest"
import * as Termination from "../src/internal/termination.ts"

/** One who listens beside us keeps the process of the tests alive. */
const somebodyElse = () => {}
beforeEach(() => {
  process.on("SIGTERM", somebodyElse)
})
afterEach(() => {
  process.off("SIGTERM", somebodyElse)
})

const turn = () => new Promise(setImmediate)

const sigterm = async () => {
  process.emit("SIGTERM", "SIGTERM")
  await turn()
}

describe("SIGTERM", () => {
  it("ends what was made after an earlier one that the process has outlived, and that alone", async () => {
    const ended: Array<string> = []
    Termination.atSigterm(async () => void ended.push("first"))
    await sigterm()
    assert.deepStrictEqual(ended, ["first"])
    assert.strictEqual(process.listenerCount("SIGTERM"), 1)
    Termination.atSigterm(async () => void ended.push("second"))
    await sigterm()
    assert.deepStrictEqual(ended, ["first", "second"])
    assert.strictEqual(process.listenerCount("SIGTERM"), 1)
  })

  it("ends what is made while the others end, and waits for all of them", async () => {
    const ended: Array<string> = []
    let finish = () => {}
    Termination.atSigterm(() =>
      new Promise((resolve) => {
        finish = resolve
      })
    )
    await sigterm()
    Termination.atSigterm(async () => void ended.push("late"))
    await turn()
    assert.deepStrictEqual(ended, [])
    assert.strictEqual(process.listenerCount("SIGTERM"), 2)
    finish()
    await turn()
    assert.deepStrictEqual(ended, ["late"])
    assert.strictEqual(process.listenerCount("SIGTERM"), 1)
  })
})
