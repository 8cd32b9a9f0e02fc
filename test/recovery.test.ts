import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { TestClock } from "effect/testing"
import * as Errors from "../src/Errors.ts"
import type { Judgement } from "../src/internal/evidence.ts"
import * as Recovery from "../src/internal/recovery.ts"
import * as Schedule from "../src/Schedule.ts"

/** What a scripted database answers; each failure is an event of its own unless it names one. */
class Down extends Error {
  readonly judgement: Judgement
  constructor(judgement: Partial<Judgement> = {}) {
    super("down")
    this.judgement = {
      verdict: { kind: "Unreachable", effect: "NotRun", retry: "Backoff", breaker: "Failure", connection: "Evict" },
      failure: { code: "ECONNREFUSED" },
      source: ++events,
      elapsed: 0,
      isTold: true,
      isOfConnect: false,
      ...judgement
    }
  }
}
let events = 0

const verdictOf = (kind: Errors.Kind, effect: Errors.Outcome, retry: Errors.Verdict["retry"] = "Backoff") => ({
  verdict: { kind, effect, retry, breaker: "Failure", connection: "Keep" } satisfies Errors.Verdict
})

const terms: Recovery.Terms = {
  retry: Schedule.retry({ jitter: "none" }),
  idempotent: false,
  deadlineAt: Infinity,
  inTransaction: false,
  waitForCircuitUntil: undefined,
  isTraceless: () => true,
  onRefusal: () => {}
}

/** Runs work as the executor does: once, and then under recovery. */
const setUp = Effect.fnUntraced(function*(budget?: Schedule.Budget, backAt = 0, lookoutIsBroken = false) {
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe()
  const retries: Array<string> = []
  const { recover } = Recovery.make<Errors.RetriesExhausted>({
    now,
    draw: () => lookoutIsBroken ? 1 : 0,
    find: (error) => error instanceof Down ? error.judgement : undefined,
    connectPause: () => 0,
    lookout: {
      isNeeded: () => now() < backAt,
      wait: (millis) =>
        lookoutIsBroken
          ? Effect.succeed(false)
          : Effect.as(Effect.sleep(Math.min(millis, Math.max(0, backAt - now()))), true)
    },
    circuitPause: (error) => error instanceof Errors.CircuitOpen ? error.retryAfter : undefined,
    budget,
    onPause: () => {},
    onRetry: (kind) => retries.push(kind),
    exhausted: (last, history, stoppedBy) =>
      new Errors.RetriesExhausted({ attempts: history.length, last, history, stoppedBy })
  })
  const run = <A, E>(attempt: (number: number) => Effect.Effect<A, E>, own: Partial<Recovery.Terms> = {}) =>
    Effect.catchCause(attempt(1), (cause: Cause.Cause<E>) => recover(cause, attempt, { ...terms, ...own }, []))
  return { run, retries }
})

const failing = (times: number, make: () => Down = () => new Down()) => {
  let runs = 0
  const attempt = () =>
    Effect.suspend((): Effect.Effect<string, Down> => ++runs > times ? Effect.succeed("row") : Effect.fail(make()))
  return { attempt, runs: () => runs }
}

/** The result, and the time on the clock at which it was there. */
const timed = <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(
      Effect.flatMap(Effect.result(effect), (result) => Effect.map(Clock.currentTimeMillis, (at) => ({ result, at }))),
      { startImmediately: true }
    )
    yield* TestClock.adjust("1 hour")
    return yield* Fiber.join(fiber)
  })

const open = (retryAfter: number) => new Errors.CircuitOpen({ key: "default", retryAfter, lastFailure: null })

describe("recovery", () => {
  it.effect("38: a database that fails four times and then works answers the fifth attempt, after 812.5 ms", () =>
    Effect.gen(function*() {
      const { retries, run } = yield* setUp()
      const { result, at } = yield* timed(run(failing(4).attempt))
      assert.strictEqual(result._tag === "Success" && result.success, "row")
      assert.closeTo(at, 812.5, 1)
      assert.deepStrictEqual(retries, ["Unreachable", "Unreachable", "Unreachable", "Unreachable"])
    }))

  it.effect("38: one that fails five times has failed, and the error carries all five attempts", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      const work = failing(5)
      const error = yield* timed(run(work.attempt))
      assert(error.result._tag === "Failure" && error.result.failure instanceof Errors.RetriesExhausted)
      const { attempts, history, stoppedBy } = error.result.failure
      assert.deepStrictEqual([attempts, stoppedBy, work.runs()], [5, "attempts", 5])
      assert.deepStrictEqual(history.map(({ delay }) => delay), [100, 150, 225, 337.5, 0])
      assert.strictEqual(Errors.historyOf(error.result.failure), history)
    }))

  it.effect("39: retries that meet an open circuit stop at once, with CircuitOpen and the attempts so far", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      let runs = 0
      const { at, result } = yield* timed(
        run(() => Effect.suspend(() => Effect.fail(++runs === 1 ? new Down() : open(30_000))))
      )
      assert(result._tag === "Failure" && result.failure instanceof Errors.CircuitOpen)
      assert.deepStrictEqual([runs, at], [2, 100])
      assert.deepStrictEqual(Errors.historyOf(result.failure).map(({ attempt, delay }) => [attempt, delay]), [[1, 100]])
    }))

  it.effect("39: unless the call waits for it, and the time until then fits", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      let runs = 0
      const work = () => Effect.suspend(() => ++runs === 1 ? Effect.fail(open(30_000)) : Effect.succeed("row"))
      const { at, result } = yield* timed(run(work, { waitForCircuitUntil: 31_000 }))
      assert.strictEqual(result._tag, "Success")
      assert.strictEqual(at, 30_000)
    }))

  it.effect("39: a wait that does not fit is not begun", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      const { at, result } = yield* timed(run(() => Effect.fail(open(30_000)), { waitForCircuitUntil: 29_000 }))
      assert(result._tag === "Failure" && result.failure instanceof Errors.CircuitOpen)
      assert.strictEqual(at, 0)
    }))

  it.effect("39: waiting for the circuit is no attempt", () =>
    Effect.gen(function*() {
      const { retries, run } = yield* setUp()
      let runs = 0
      const work = () => Effect.suspend(() => ++runs <= 20 ? Effect.fail(open(1_000)) : Effect.succeed("row"))
      const { result } = yield* timed(run(work, { waitForCircuitUntil: 60_000 }))
      assert.strictEqual(result._tag, "Success")
      assert.deepStrictEqual(retries, [])
    }))

  it.effect("39: nor need it fit while the server is looked out for, which may be back sooner", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp(undefined, 3_000)
      let runs = 0
      const work = () => Effect.suspend(() => ++runs === 1 ? Effect.fail(open(30_000)) : Effect.succeed("row"))
      const { at, result } = yield* timed(run(work, { waitForCircuitUntil: 10_000 }))
      assert.strictEqual(result._tag, "Success")
      assert.strictEqual(at, 3_000)
    }))

  it.effect("39: a call that waited in vain says so just before its time is up", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp(undefined, Infinity)
      const { at, result } = yield* timed(run(() => Effect.fail(open(30_000)), { waitForCircuitUntil: 10_000 }))
      assert(result._tag === "Failure" && result.failure instanceof Errors.CircuitOpen)
      assert.strictEqual(at, 9_995)
    }))

  const unreachable = () => new Down({ isOfConnect: true })

  it.effect("38: attempts that end before the server is back are none of a call that waits for it", () =>
    Effect.gen(function*() {
      const { retries, run } = yield* setUp(undefined, 3_000)
      const work = failing(5, unreachable)
      const { at, result } = yield* timed(run(work.attempt, { waitForCircuitUntil: 10_000 }))
      assert.strictEqual(result._tag, "Success")
      assert.deepStrictEqual([work.runs(), at, retries.length], [6, 3_000, 4])
    }))

  it.effect("38: they are those of a call that does not, and of a failure that was not one to connect", () =>
    Effect.gen(function*() {
      for (const [make, own] of [[unreachable, {}], [() => new Down(), { waitForCircuitUntil: 10_000 }]] as const) {
        const { run } = yield* setUp(undefined, Infinity)
        const { result } = yield* timed(run(failing(6, make).attempt, own))
        assert(result._tag === "Failure" && result.failure instanceof Errors.RetriesExhausted)
        assert.deepStrictEqual([result.failure.attempts, result.failure.stoppedBy], [5, "attempts"])
      }
    }))

  it.effect("38: a call whose server never comes back has the attempts that it made", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp(undefined, Infinity)
      const { at, result } = yield* timed(run(failing(9, unreachable).attempt, { waitForCircuitUntil: 10_000 }))
      assert(result._tag === "Failure" && result.failure instanceof Errors.RetriesExhausted)
      assert.deepStrictEqual([result.failure.attempts, at], [5, 9_995])
    }))

  it.effect("38: a call whose server nobody can look out for waits between its attempts all the same", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp(undefined, Infinity, true)
      const work = failing(500, unreachable)
      const { at } = yield* timed(run(work.attempt, { waitForCircuitUntil: 10_000 }))
      assert.strictEqual(at, 9_995)
      assert.isBelow(work.runs(), 100)
    }))

  it.effect("40: a wait with another attempt behind it that would pass the deadline is not begun", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      // 100 + 150 + 225 have passed; 337.5 and an attempt of 80 do not fit into the 400 that are left.
      const work = failing(5, () => new Down({ elapsed: 80 }))
      const { at, result } = yield* timed(run(work.attempt, { deadlineAt: 875 }))
      assert(result._tag === "Failure" && result.failure instanceof Errors.RetriesExhausted)
      assert.strictEqual(result.failure.stoppedBy, "deadline")
      assert.include(result.failure.message, "deadline")
      assert.strictEqual(at, 475)
      assert.strictEqual(work.runs(), 4)
    }))

  it.effect("41: ten callers on a dead database send at most twenty queries, the budget of ten included", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp(yield* Schedule.budget())
      const work = failing(Infinity)
      const { result } = yield* timed(Effect.all(
        Array.from({ length: 10 }, () => Effect.result(run(work.attempt))),
        { concurrency: "unbounded" }
      ))
      assert.strictEqual(work.runs(), 20)
      assert(result._tag === "Success")
      const stops = result.success.map((each) =>
        each._tag === "Failure" && each.failure instanceof Errors.RetriesExhausted && each.failure.stoppedBy
      )
      assert.isTrue(stops.every((stop) => stop === "budget"))
    }))

  it.effect("41: without a budget they send fifty", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      const work = failing(Infinity)
      yield* timed(Effect.all(
        Array.from({ length: 10 }, () => Effect.result(run(work.attempt))),
        { concurrency: "unbounded" }
      ))
      assert.strictEqual(work.runs(), 50)
    }))

  it.effect("41: what fails together costs once, and what works gets its tokens back", () =>
    Effect.gen(function*() {
      const budget = yield* Schedule.budget({ capacity: 2 })
      const { run } = yield* setUp(budget)
      budget.withdraw(1)
      const works = Array.from({ length: 100 }, () => failing(1, () => new Down({ source: -7 })))
      const { result } = yield* timed(
        Effect.forEach(works, (work) => run(work.attempt), { concurrency: "unbounded" })
      )
      assert.strictEqual(result._tag, "Success")
      // The one that paid has its token back, and the others have nothing to get.
      assert.strictEqual(budget.tokens, 1)
    }))

  it.effect("42: what may have been applied is not repeated, unless it was declared idempotent", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      const doubtful = () => failing(1, () => new Down(verdictOf("Unreachable", "Unknown")))
      const once = doubtful()
      const { result } = yield* timed(run(once.attempt))
      assert.deepStrictEqual([result._tag, once.runs()], ["Failure", 1])
      const twice = doubtful()
      const idempotent = yield* timed(run(twice.attempt, { idempotent: true }))
      assert.deepStrictEqual([idempotent.result._tag, twice.runs()], ["Success", 2])
      const unsent = failing(1)
      assert.strictEqual((yield* timed(run(unsent.attempt))).result._tag, "Success")
    }))

  it.effect("43: what lost a race inside a transaction is not repeated by itself", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      const statement = failing(1, () => new Down(verdictOf("Contention", "RolledBack")))
      const { result } = yield* timed(run(statement.attempt, { inTransaction: true }))
      assert.deepStrictEqual([result._tag, statement.runs()], ["Failure", 1])
    }))

  it.effect("44: an interruption ends the wait, and there is no further attempt", () =>
    Effect.gen(function*() {
      const { run } = yield* setUp()
      const work = failing(Infinity)
      const fiber = yield* Effect.forkChild(run(work.attempt), { startImmediately: true })
      yield* TestClock.adjust(50)
      yield* Fiber.interrupt(fiber)
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(work.runs(), 1)
    }))

  it.effect("what is repeated at once costs as any other failure of the server does, and nothing where it is well", () =>
    Effect.gen(function*() {
      const budget = yield* Schedule.budget({ capacity: 10 })
      const { run } = yield* setUp(budget)
      const paid = (kind: Errors.Kind, breaker: Errors.Verdict["breaker"]) =>
        Effect.map(
          timed(run(() =>
            Effect.suspend(() => {
              const { verdict } = verdictOf(kind, "NotRun", "Now")
              tokens.push(budget.tokens)
              return tokens.length === 1 ? Effect.fail(new Down({ verdict: { ...verdict, breaker } })) : Effect.void
            })
          )),
          ({ at }) => [at, ...tokens.splice(0)]
        )
      const tokens: Array<number> = []
      assert.deepStrictEqual(yield* paid("StaleConnection", "Ignored"), [0, 10, 10])
      assert.deepStrictEqual((yield* paid("Unreachable", "Failure")).slice(1), [10, 9])
    }))

  it.effect("a lost race costs no budget, an overload costs twice", () =>
    Effect.gen(function*() {
      const budget = yield* Schedule.budget({ capacity: 10 })
      const { run } = yield* setUp(budget)
      yield* timed(run(failing(Infinity, () => new Down(verdictOf("Contention", "RolledBack"))).attempt))
      assert.strictEqual(budget.tokens, 10)
      const overloaded = failing(Infinity, () => new Down(verdictOf("Overloaded", "NotRun", "BackoffSlow")))
      yield* timed(run(overloaded.attempt))
      assert.strictEqual(budget.tokens, 2)
    }))
})
