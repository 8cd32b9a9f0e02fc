import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as EffectSchedule from "effect/Schedule"
import { TestClock } from "effect/testing"
import { InvalidOption } from "../src/Errors.ts"
import * as Schedule from "../src/Schedule.ts"

/** The waits of a schedule in milliseconds, without waiting them. */
const waits = (schedule: EffectSchedule.Schedule<unknown>) =>
  Effect.gen(function*() {
    const step = yield* EffectSchedule.toStep(schedule)
    const found: Array<number> = []
    while (true) {
      const exit = yield* Effect.exit(step(0, "failure"))
      if (Exit.isFailure(exit)) return found
      found.push(Duration.toMillis(exit.value[1]))
    }
  })

/** When an effect that always fails is attempted under a schedule, on the clock. */
const attempts = Effect.fnUntraced(function*(schedule: EffectSchedule.Schedule<unknown, string>) {
  const times: Array<number> = []
  const attempt = Effect.flatMap(Clock.currentTimeMillis, (now) => {
    times.push(now)
    return Effect.fail("down")
  })
  const fiber = yield* Effect.forkChild(Effect.exit(Effect.retry(attempt, schedule)))
  yield* TestClock.adjust("1 hour")
  assert.deepStrictEqual(yield* Fiber.join(fiber), Exit.fail("down"))
  return times
})

const exact = Schedule.retry({ jitter: "none" })

describe("Schedule", () => {
  it.effect("waits exactly 100, 150, 225 and 337.5 milliseconds without jitter", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* waits(exact), [100, 150, 225, 337.5])
    }))

  it.effect("makes five attempts in total, the last one after 812.5 milliseconds", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* attempts(exact), [0, 100, 250, 475, 812.5])
    }))

  it.effect("an effect that works on the fifth attempt succeeds", () =>
    Effect.gen(function*() {
      let left = 4
      const fiber = yield* Effect.forkChild(
        Effect.retry(Effect.suspend(() => left-- > 0 ? Effect.fail("down") : Effect.succeed("row")), exact)
      )
      yield* TestClock.adjust(812)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* Fiber.join(fiber), "row")
    }))

  it("delays are the envelope, as numbers", () => {
    assert.deepStrictEqual(Schedule.delays(), [100, 150, 225, 337.5])
    assert.deepStrictEqual(Schedule.delays({ attempts: 1 }), [])
    assert.deepStrictEqual(Schedule.delays({ attempts: 4, base: "1 second", factor: 1 }), [1_000, 1_000, 1_000])
    assert.deepStrictEqual(Schedule.delays({ attempts: 4, base: 0, factor: 1e300 }), [0, 0, 0])
  })

  it.effect("no delay is longer than the cap", () =>
    Effect.gen(function*() {
      const options = { attempts: 12, jitter: "none" } as const
      const found = yield* waits(Schedule.retry(options))
      assert.deepStrictEqual(found, Schedule.delays(options))
      assert.deepStrictEqual(found.slice(-4), [1_708.59375, 2_000, 2_000, 2_000])
    }))

  it.effect("one attempt means no retry", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* attempts(Schedule.retry({ attempts: 1 })), [0])
    }))

  it.effect("full jitter spreads each wait from zero to the delay", () =>
    Effect.gen(function*() {
      const runs = yield* Effect.forEach(Array.from({ length: 2_000 }), () => waits(Schedule.transient))
      for (const [index, delay] of Schedule.delays().entries()) {
        const column = runs.map((run) => run[index]!)
        assert(column.every((wait) => wait >= 0 && wait < delay))
        for (let tenth = 0; tenth < 10; tenth++) {
          const share = column.filter((wait) => Math.floor((wait / delay) * 10) === tenth).length
          assert(share > 140 && share < 260, `${share} of 2000 in tenth ${tenth}`)
        }
      }
    }).pipe(Random.withSeed("jitter")))

  it.effect("jitter is reproducible from a seed", () =>
    Effect.gen(function*() {
      const once = waits(Schedule.transient).pipe(Random.withSeed(42))
      assert.deepStrictEqual(yield* once, yield* once)
      assert.notDeepEqual(yield* once, yield* waits(Schedule.transient).pipe(Random.withSeed(43)))
    }))

  it.effect("transient never makes more than five attempts nor waits longer than 812.5 milliseconds in all", () =>
    Effect.gen(function*() {
      for (let i = 0; i < 50; i++) {
        const start = yield* Clock.currentTimeMillis
        const times = yield* attempts(Schedule.transient)
        assert.strictEqual(times.length, 5)
        assert.isAtMost(times[4]! - start, 812.5)
      }
    }))

  it.effect("composes with Effect's own combinators", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* waits(exact.pipe(EffectSchedule.upTo({ times: 2 }))), [100, 150])
      assert.deepStrictEqual(yield* waits(exact.pipe(EffectSchedule.while(({ attempt }) => attempt < 4))), [
        100,
        150,
        225
      ])
      assert.deepStrictEqual(
        yield* waits(exact.pipe(EffectSchedule.addDelay(() => Effect.succeed("1 second")))),
        [1_100, 1_150, 1_225, 1_337.5]
      )
      assert.deepStrictEqual(
        yield* waits(EffectSchedule.max([exact, EffectSchedule.spaced("200 millis")])),
        [200, 200, 225, 337.5]
      )
      const stopped = attempts(exact.pipe(
        EffectSchedule.setInputType<string>(),
        EffectSchedule.passthrough,
        EffectSchedule.while(({ input }) => input !== "down")
      ))
      assert.deepStrictEqual(yield* stopped, [0])
    }))

  it.effect("one schedule may be used by many at once, each from its beginning", () =>
    Effect.gen(function*() {
      const both = yield* Effect.all([attempts(exact), attempts(exact)], { concurrency: 1 })
      assert.strictEqual(both[0].length, 5)
      assert.strictEqual(both[1].length, 5)
    }))

  it.effect("an interruption ends the waiting at once", () =>
    Effect.gen(function*() {
      let runs = 0
      const fiber = yield* Effect.forkChild(
        Effect.retry(Effect.suspend(() => Effect.fail(++runs)), exact),
        { startImmediately: true }
      )
      yield* TestClock.adjust(50)
      yield* Fiber.interrupt(fiber)
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(runs, 1)
    }))

  describe("settings", () => {
    const impossible: ReadonlyArray<readonly [option: keyof Schedule.RetryOptions, options: Schedule.RetryOptions]> = [
      ["attempts", { attempts: 0 }],
      ["attempts", { attempts: -1 }],
      ["attempts", { attempts: 1.5 }],
      ["attempts", { attempts: Infinity }],
      ["base", { base: "-100 millis" }],
      ["base", { base: "Infinity" }],
      ["base", { base: "a while" as never }],
      ["factor", { factor: 0.5 }],
      ["factor", { factor: NaN }],
      ["cap", { cap: "10 millis" }],
      ["cap", { cap: "-1 seconds" }],
      ["jitter", { jitter: "some" as never }]
    ]
    for (const [option, options] of impossible) {
      it.effect(`refuses ${JSON.stringify(options)} and names ${option}`, () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(Schedule.make(options))
          assert.instanceOf(error, InvalidOption)
          assert.strictEqual(error.option, `retry.${option}`)
          assert.deepStrictEqual(error.value, options[option])
          assert.throws(() => Schedule.retry(options), error.message)
          assert.throws(() => Schedule.delays(options), error.message)
        }))
    }

    it.effect("make takes what retry takes", () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* waits(yield* Schedule.make({ jitter: "none" })), [100, 150, 225, 337.5])
      }))

    it("a base longer than the default cap is its own cap", () => {
      assert.deepStrictEqual(Schedule.delays({ base: "3 seconds" }), [3_000, 3_000, 3_000, 3_000])
    })
  })
})

describe("a retry budget", () => {
  it.effect("is full at first, pays until it is empty, and ten successes pay for a retry", () =>
    Effect.gen(function*() {
      const budget = yield* Schedule.budget({ capacity: 2 })
      assert.deepStrictEqual([budget.withdraw(1), budget.withdraw(1), budget.withdraw(1)], [true, true, false])
      for (let i = 0; i < 9; i++) budget.succeeded()
      assert.isFalse(budget.withdraw(1))
      budget.succeeded()
      budget.succeeded()
      assert.isTrue(budget.withdraw(1))
    }))

  it.effect("takes nothing when it cannot pay all of it, and never holds more than its capacity", () =>
    Effect.gen(function*() {
      const budget = yield* Schedule.budget({ capacity: 3 })
      assert.isFalse(budget.withdraw(4))
      assert.strictEqual(budget.tokens, 3)
      budget.deposit(100)
      assert.strictEqual(budget.tokens, 3)
    }))

  it.effect("takes a source that many have met once, and forgets it in time", () =>
    Effect.gen(function*() {
      const budget = yield* Schedule.budget({ capacity: 1000 })
      budget.withdraw(1, -1)
      budget.withdraw(1, -1)
      assert.strictEqual(budget.tokens, 999)
      for (let source = 2; source < 100; source++) budget.withdraw(1, source)
      budget.withdraw(1, -1)
      assert.strictEqual(budget.tokens, 900)
    }))

  it.effect("ends a schedule that it cannot pay for", () =>
    Effect.gen(function*() {
      const budget = yield* Schedule.budget({ capacity: 1 })
      let runs = 0
      const failing = Effect.suspend(() => Effect.fail(++runs))
      const schedule = Schedule.withBudget(Schedule.retry({ base: 0 }), budget)
      yield* Effect.flip(Effect.retry(failing, schedule))
      assert.strictEqual(runs, 2)
      yield* Effect.flip(failing.pipe(Effect.retry(Schedule.transient.pipe(Schedule.withBudget(budget)))))
      assert.strictEqual(runs, 3)
    }))

  for (
    const [option, options] of [
      ["retryBudget.capacity", { capacity: 0 }],
      ["retryBudget.capacity", { capacity: Infinity }],
      ["retryBudget.capacity", { capacity: NaN }],
      ["retryBudget.refill", { refill: 0 }],
      ["retryBudget.refill", { refill: 11 }]
    ] as const
  ) {
    it.effect(`that is impossible is refused by name: ${JSON.stringify(options)}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Schedule.budget(options))
        assert.strictEqual(error.option, option)
      }))
  }
})
