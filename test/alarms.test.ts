import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import * as Alarms from "../src/internal/alarms.ts"

/** A clock of its own, whose sleeps are counted, and the alarms that have rung. */
const setUp = Effect.map(Clock.Clock, (clock) => {
  const sleeps = { now: 0, most: 0, inAll: 0 }
  const rung: Array<number> = []
  const counting: Clock.Clock = Object.assign(Object.create(clock), {
    sleep: (duration: Parameters<Clock.Clock["sleep"]>[0]) =>
      Effect.suspend(() => {
        sleeps.inAll++
        sleeps.most = Math.max(sleeps.most, ++sleeps.now)
        return Effect.ensuring(clock.sleep(duration), Effect.sync(() => sleeps.now--))
      })
  })
  const set = (millis: number) => Alarms.set(counting, millis, () => void rung.push(millis))
  return { counting, rung, set, sleeps }
})

describe("alarms", () => {
  it.effect("ring in the order of their times, whatever order they were set in, and one sleep serves them all", () =>
    Effect.gen(function*() {
      const { rung, set, sleeps } = yield* setUp
      for (const millis of [50, 20, 70, 10, 60, 40, 30]) set(millis)
      yield* TestClock.adjust(9)
      assert.deepStrictEqual(rung, [])
      yield* TestClock.adjust(31)
      assert.deepStrictEqual(rung, [10, 20, 30, 40])
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(rung, [10, 20, 30, 40, 50, 60, 70])
      assert.strictEqual(sleeps.most, 1)
      assert.strictEqual(sleeps.now, 0)
    }))

  it.effect("that were stopped do not ring, wherever they stood, and none sleeps when the last one was", () =>
    Effect.gen(function*() {
      const { rung, set, sleeps } = yield* setUp
      for (let stopped = 1; stopped <= 9; stopped++) {
        const alarms = [5, 3, 8, 1, 9, 2, 7, 4, 6].map((millis) => ({ millis, alarm: set(millis) }))
        for (const { alarm, millis } of alarms) if (millis === stopped || millis === 9) alarm.stop()
        yield* TestClock.adjust(20)
        assert.deepStrictEqual(rung.splice(0), [1, 2, 3, 4, 5, 6, 7, 8].filter((millis) => millis !== stopped))
      }
      const last = set(5)
      assert.strictEqual(sleeps.now, 1)
      last.stop()
      last.stop()
      assert.strictEqual(sleeps.now, 0)
      yield* TestClock.adjust(20)
      assert.deepStrictEqual(rung, [])
    }))

  it.effect("that are done in time cost no sleep each, as long as another one is set", () =>
    Effect.gen(function*() {
      const { rung, set, sleeps } = yield* setUp
      set(100)
      for (let count = 0; count < 50; count++) set(1000).stop()
      assert.strictEqual(sleeps.inAll, 1)
      yield* TestClock.adjust(2000)
      assert.deepStrictEqual(rung, [100])
    }))

  it.effect("can be set and stopped by what one of them does", () =>
    Effect.gen(function*() {
      const { counting, rung, set, sleeps } = yield* setUp
      const tenth = set(10)
      Alarms.set(counting, 5, () => {
        tenth.stop()
        set(1)
      })
      yield* TestClock.adjust(5)
      yield* TestClock.adjust(50)
      assert.deepStrictEqual(rung, [1])
      assert.strictEqual(sleeps.now, 0)
    }))

  it.effect("of which one throws ring all the same, those that are due with it and those that are set later", () =>
    Effect.gen(function*() {
      const { counting, rung, set, sleeps } = yield* setUp
      const broken = () => {
        throw new Error("broken")
      }
      set(20)
      Alarms.set(counting, 10, broken)
      Alarms.set(counting, 10, broken)
      set(10)
      yield* TestClock.adjust(10)
      assert.deepStrictEqual(rung, [10])
      yield* TestClock.adjust(10)
      assert.deepStrictEqual(rung, [10, 20])
      Alarms.set(counting, 5, broken)
      yield* TestClock.adjust(5)
      set(5)
      yield* TestClock.adjust(5)
      assert.deepStrictEqual(rung, [10, 20, 5])
      assert.strictEqual(sleeps.now, 0)
    }))

  it.effect("without an end never ring", () =>
    Effect.gen(function*() {
      const { rung, set, sleeps } = yield* setUp
      const never = set(Infinity)
      assert.strictEqual(sleeps.inAll, 0)
      set(10)
      yield* TestClock.adjust(20)
      assert.deepStrictEqual(rung, [10])
      never.stop()
    }))
})
