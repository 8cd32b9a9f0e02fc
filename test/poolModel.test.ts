import { afterAll, assert, beforeAll, beforeEach, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import { vi } from "vitest"
import type { Act, World } from "./poolModel.ts"
import { Model, step, world } from "./poolModel.ts"

// One clock for all: the pool's own, and the timers of Node's at the socket.
beforeAll(() => {
  vi.useFakeTimers({ toFake: ["Date", "setTimeout", "clearTimeout", "setInterval", "clearInterval"] })
})
// One that has failed leaves some.
beforeEach(() => {
  vi.clearAllTimers()
})
afterAll(() => {
  vi.useRealTimers()
})

// The same sequences each time, so that a failure is a change's. POOL_MODEL_SEED=... looks further, and with what a failure
// tells for POOL_MODEL_PATH=... runs that sequence alone.
const seed = process.env["POOL_MODEL_SEED"] ?? "20261123"
const path = process.env["POOL_MODEL_PATH"]
const numRuns = Number(process.env["POOL_MODEL_RUNS"] ?? 5000)

// What was never reached was not proved.
const reached = [
  "AcquireTimeout",
  "PoolClosed",
  "PoolSaturated",
  "a failed connect",
  "ended by close",
  "ended by deserted drain",
  "ended by drain",
  "ended by release",
  "interrupted",
  "order checked strictly",
  "served by a share",
  "served by reserve",
  "somebody waited for good reason",
  "stats checked strictly"
]

describe("the pool", () => {
  it("keeps every promise, whatever happens in whatever order", async () => {
    const seen = new Map<string, number>()
    await fc.assert(
      fc.asyncProperty(
        world,
        fc.array(step, { minLength: 1, maxLength: 40, size: "max" }),
        async (world, steps) => {
          vi.clearAllTimers()
          await new Model(world, seen).run(steps)
        }
      ),
      {
        numRuns,
        seed: Number(seed),
        // One that went on after its time would do so among the tests behind it, and make them fail.
        interruptAfterTimeLimit: 280_000,
        markInterruptAsFailure: true,
        ...(path === undefined ? {} : { path, endOnFailure: true })
      }
    )
    assert.deepStrictEqual(path === undefined ? [...seen.keys()].sort() : reached, reached)
  }, 300_000)
})

describe("what has gone wrong once", () => {
  const usual: World = {
    max: 1,
    min: 0,
    multiplex: false,
    maxUses: undefined,
    maxWaiting: undefined,
    whenServerFull: "fail",
    hooks: "none",
    setUp: "at once",
    end: "release"
  }
  const comes: Act = { do: "borrow", by: "use", prove: false, timeout: undefined, asks: false }
  const replay = async (different: Partial<World>, ...acts: ReadonlyArray<Act>): Promise<Model> => {
    const model = new Model({ ...usual, ...different }, new Map())
    await model.run(acts.map((act) => ({ act, then: "settle" })))
    return model
  }

  it("a session that died while a hook set it up left its borrower waiting for nothing", async () => {
    const { seen } = await replay(
      { setUp: "slow" },
      comes,
      { do: "kill", which: 0, how: "reset" },
      { do: "wait", ms: 50 }
    )
    assert.strictEqual(seen.get("a failed connect"), 1)
  })

  it("a hook that died left its borrower waiting, and the pool connecting without end", async () => {
    const model = new Model({ ...usual, setUp: "dies" }, new Map())
    await model.open()
    const borrower = model.borrow(comes)
    await model.settle()
    assert.strictEqual(borrower.state, "gone")
    assert.strictEqual(model.seen.get("HookFailed"), 1)
    assert.strictEqual(model.server.peers.length, 1)
    await model.endByClose()
  })

  it("a drain was over before one was served whose session had gone in the meantime", async () => {
    const { seen } = await replay({ multiplex: true, setUp: "slow", end: "drain" }, comes, comes)
    assert.strictEqual(seen.get("served by a share"), 2)
  })

  it("and before one was who stood in line with nothing but a place, and was handed a session that had gone", async () => {
    const proves: Act = { ...comes, prove: true }
    const { seen } = await replay(
      { max: 2, multiplex: true, end: "drain" },
      comes,
      { do: "connects", manner: "closes" },
      proves,
      proves,
      comes,
      { do: "mute", which: 0 },
      { do: "greet" }
    )
    assert.strictEqual(seen.get("served by a share"), 2)
  })

  it("a drain went on for a connect that nobody waited for any more", async () => {
    const { seen } = await replay(
      { end: "deserted drain" },
      { do: "connects", manner: "accepts when told" },
      comes,
      comes
    )
    assert.strictEqual(seen.get("interrupted"), 2)
  })

  it("a pool that was made smaller kept idle sessions above max, since one that was shared lay below them", async () => {
    const { seen } = await replay(
      { max: 4, multiplex: true },
      comes,
      { do: "warm", count: 4 },
      { do: "resize", max: 1, min: 0 }
    )
    assert.strictEqual(seen.get("ended by release"), 1)
  })

  const finish = (which: number): Act => ({ do: "finish", which })
  const shrink: Act = { do: "resize", max: 1, min: 0 }

  it("a shrunk pool kept a session that nobody used beside one on its last use", async () => {
    const { seen } = await replay(
      { max: 2, maxUses: 3 },
      comes,
      finish(0),
      comes,
      finish(0),
      comes,
      comes,
      shrink,
      finish(1)
    )
    assert.isAbove(seen.get("stats checked strictly") ?? 0, 0)
  })

  it("and one beside a shared one that had been told to go; the shared one stays instead", async () => {
    const model = new Model({ ...usual, max: 2, multiplex: true }, new Map())
    await model.run([comes, comes, comes, comes, finish(0), shrink, finish(1), finish(0), comes].map((act) => ({
      act,
      then: "settle"
    })))
    assert.strictEqual(model.server.peers.length, 2)
  })
})
