import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { MaxOpsBeforeYield } from "effect/Scheduler"
import { TestClock } from "effect/testing"
import * as Bell from "../src/internal/bell.ts"
import * as Lookout from "../src/internal/lookout.ts"

/** A server that is away until it is said to be back. */
const setUp = Effect.gen(function*() {
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe()
  const connects: Array<number> = []
  const server = {
    isAway: true,
    isOver: false,
    leastPause: 0,
    sign: undefined as Lookout.Sign,
    greeted: [] as Array<number>,
    isSilent: false,
    isBroken: false
  }
  const closing = Bell.make()
  const lookout = Lookout.make({
    now,
    draw: () => 0.5,
    runFork: Effect.runForkWith(yield* Effect.context<never>()),
    isOutOfReach: () => server.isAway,
    leastPause: () => server.leastPause,
    connect: Effect.suspend(() => {
      connects.push(now())
      return server.isSilent ? Effect.never : Effect.succeed(!server.isAway)
    }),
    sign: () => server.sign,
    reached: (waiting) =>
      Effect.suspend(() => {
        server.greeted.push(waiting)
        return server.isBroken ? Effect.die("broken") : Effect.void
      }),
    isOver: () => server.isOver,
    over: closing.until(() => server.isOver)
  })
  const close = () => {
    server.isOver = true
    closing.notify()
  }
  const wait = (millis: number) => Effect.forkChild(lookout.wait(millis), { startImmediately: true })
  return { close, connects, lookout, server, wait }
})

const isDone = (fiber: Fiber.Fiber<unknown>) => fiber.pollUnsafe() !== undefined

describe("a lookout", () => {
  it("asks every 50 ms at first, then so often that a return is noticed after a fiftieth of the outage", () => {
    assert.deepStrictEqual([0, 2_500, 10_000, 60_000, 100_000, 1e7].map((away) => Lookout.pauseAfter(away)), [
      50,
      50,
      200,
      1_200,
      2_000,
      2_000
    ])
    assert.strictEqual(Lookout.pauseAfter(-1e6), 50)
  })

  it("asks a port at which nobody listens every 20 ms at first, and then twice as often", () => {
    assert.deepStrictEqual([0, 2_000, 3_000, 60_000, 1e7].map((away) => Lookout.pauseAfter(away, "Refused")), [
      20,
      20,
      30,
      600,
      2_000
    ])
  })

  it("asks a server that has just said that it starts a few times more, and no more often than usual later", () => {
    const pauses = (away: number) =>
      [0, 40, 60, 200, 10_000].map((lasts) => Lookout.pauseAfter(away, "Starting", lasts))
    assert.deepStrictEqual(pauses(1_000), [20, 20, 30, 50, 50])
    assert.deepStrictEqual(pauses(60_000), [20, 20, 30, 100, 1_200])
  })

  it.effect("hears when a server that was gone begins to start, and asks it soon again, but less and less", () =>
    Effect.gen(function*() {
      const { connects, server, wait } = yield* setUp
      server.sign = "Refused"
      yield* wait(60_000)
      yield* TestClock.adjust(1_000)
      assert.strictEqual(connects.length, 50)
      server.sign = "Starting"
      yield* TestClock.adjust(200)
      assert.deepStrictEqual(connects.slice(50).map((at) => at - 1_020), [0, 20, 40, 60, 90, 135])
    }))

  it.effect("makes one connect for all who wait, and wakes all when one has worked", () =>
    Effect.gen(function*() {
      const { connects, server, wait } = yield* setUp
      const fibers = yield* Effect.forEach(Array.from({ length: 100 }), () => wait(60_000))
      yield* TestClock.adjust(1_000)
      assert.strictEqual(connects.length, 20)
      assert.isFalse(fibers.some(isDone))
      server.isAway = false
      yield* TestClock.adjust(50)
      assert.isTrue(fibers.every(isDone))
      assert.deepStrictEqual([connects.length, server.greeted], [21, [100]])
    }))

  it.effect("ends with the last who waits", () =>
    Effect.gen(function*() {
      const { connects, wait } = yield* setUp
      const short = yield* wait(200)
      const long = yield* wait(400)
      yield* TestClock.adjust(300)
      assert.deepStrictEqual([isDone(short), isDone(long)], [true, false])
      assert.strictEqual(connects.length, 6)
      yield* Fiber.interrupt(long)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(connects.length, 6)
    }))

  it.effect("begins again with the next, at once but not faster than before", () =>
    Effect.gen(function*() {
      const { connects, wait } = yield* setUp
      yield* wait(100)
      yield* TestClock.adjust("1 minute")
      const before = connects.length
      yield* wait(4_000)
      yield* TestClock.adjust(10)
      assert.strictEqual(connects.length, before + 1)
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(connects.length, before + 4)
    }))

  it.effect("is no faster than a server that is full wants it to be", () =>
    Effect.gen(function*() {
      const { connects, server, wait } = yield* setUp
      server.leastPause = 1_000
      yield* wait(60_000)
      yield* TestClock.adjust(10_000)
      assert.strictEqual(connects.length, 10)
    }))

  for (const isSilent of [false, true]) {
    it.effect(`ends at once when the pool closes, in ${isSilent ? "a connect without an answer" : "a pause"}`, () =>
      Effect.gen(function*() {
        const { close, connects, lookout, server, wait } = yield* setUp
        server.leastPause = isSilent ? 0 : 60_000
        server.isSilent = isSilent
        const fiber = yield* wait(60_000)
        yield* TestClock.adjust(100)
        close()
        yield* TestClock.adjust(0)
        assert.isTrue(isDone(fiber))
        assert.deepStrictEqual(server.greeted, [])
        assert.isFalse(lookout.isNeeded())
        // Nor does anybody wait who comes after that.
        const late = yield* wait(60_000)
        yield* TestClock.adjust(0)
        assert.isTrue(isDone(late))
        yield* TestClock.adjust("2 minutes")
        assert.strictEqual(connects.length, isSilent ? 1 : 0)
      }))
  }

  it.effect("that breaks down leaves nobody waiting, and the next who waits has another", () =>
    Effect.gen(function*() {
      const { connects, server, wait } = yield* setUp
      server.isBroken = true
      const fibers = [yield* wait(60_000), yield* wait(60_000)]
      server.isAway = false
      yield* TestClock.adjust(50)
      for (const fiber of fibers) assert.isFalse(yield* Fiber.join(fiber))
      server.isAway = true
      server.isBroken = false
      const next = yield* wait(60_000)
      yield* TestClock.adjust(100)
      assert.deepStrictEqual([connects.length, isDone(next)], [3, false])
      server.isAway = false
      yield* TestClock.adjust(50)
      assert.isTrue(isDone(next))
      assert.isTrue(yield* Fiber.join(next))
    }))

  it.effect("is not needed while nothing has failed", () =>
    Effect.gen(function*() {
      const { lookout, server } = yield* setUp
      assert.isTrue(lookout.isNeeded())
      server.isAway = false
      assert.isFalse(lookout.isNeeded())
    }))

  it.effect("looks out for whoever comes while somebody leaves who had nothing to wait for", () =>
    Effect.gen(function*() {
      for (let steps = 2; steps < 20; steps++) {
        const { connects, lookout, server, wait } = yield* setUp
        server.isAway = false
        const first = yield* Effect.forkChild(Effect.provideService(lookout.wait(1_000), MaxOpsBeforeYield, steps), {
          startImmediately: true
        })
        server.isAway = true
        const second = yield* wait(1_000)
        yield* TestClock.adjust(50)
        assert.strictEqual(connects.length, 1, `${steps} steps`)
        yield* Fiber.interruptAll([first, second])
      }
    }))
})
