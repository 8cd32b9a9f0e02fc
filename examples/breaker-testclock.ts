// How to test what the circuit breaker does to a program: with a clock of the test's own, no database and no waiting.
import { Effect, Fiber, Stream } from "effect"
import { Breaker } from "effect-pg-pool"
import { TestClock } from "effect/testing"
import assert from "node:assert/strict"

let databaseIsUp = false
const query = Effect.suspend(() =>
  databaseIsUp ? Effect.succeed("row") : Effect.fail(Object.assign(new Error("refused"), { code: "ECONNREFUSED" }))
)

const test = Effect.gen(function*() {
  const breaker = yield* Breaker.Breaker
  const changes = yield* Effect.forkChild(Stream.runCollect(Stream.take(breaker.transitions, 3)), {
    startImmediately: true
  })

  // Five failures in a row, each told to its caller, and the circuit is open.
  for (let i = 0; i < 5; i++) assert.equal((yield* Effect.flip(breaker.protect(query))).message, "refused")
  const rejected = yield* Effect.flip(breaker.protect(query))
  assert("_tag" in rejected && rejected._tag === "CircuitOpen")
  assert.equal(rejected.retryAfter, 30_000)
  assert.deepEqual(rejected.lastFailure, { code: "ECONNREFUSED", message: "refused" })
  console.log("open:     ", rejected.message)

  // Nothing happens by itself: the state is a function of the clock, and the next call finds that its time has come.
  databaseIsUp = true
  yield* TestClock.adjust("29 seconds")
  assert.equal((yield* breaker.state)._tag, "Open")
  yield* TestClock.adjust("1 second")
  const probe = yield* Effect.forkChild(breaker.protect(Effect.delay(query, "100 millis")), { startImmediately: true })
  assert.equal((yield* breaker.state)._tag, "HalfOpen")
  const other = yield* Effect.flip(breaker.protect(query))
  assert("_tag" in other && other._tag === "CircuitHalfOpen")
  console.log("half-open:", other.message)

  yield* TestClock.adjust("100 millis")
  assert.equal(yield* Fiber.join(probe), "row")
  // Closed, and careful: one call at a time, then two, four, eight, for as long as they succeed.
  assert.deepEqual(yield* breaker.state, { _tag: "Closed", failures: 0, limit: 1 })
  assert.equal(yield* breaker.protect(query), "row")

  const log = (yield* Fiber.join(changes)).map(({ at, from, to }) => `${at} ms: ${from} -> ${to}`)
  assert.deepEqual(log, ["0 ms: Closed -> Open", "30000 ms: Open -> HalfOpen", "30100 ms: HalfOpen -> Closed"])
  console.log("closed:   ", log.join(", "))

  // Held open by hand, until the scope ends.
  yield* Effect.scoped(Effect.gen(function*() {
    yield* breaker.isolate("maintenance")
    const held = yield* Effect.flip(breaker.protect(query))
    assert("_tag" in held && held._tag === "CircuitIsolated")
    console.log("isolated: ", held.message)
  }))

  // Down again, and the next process, ten seconds later, knows it without a single failed call of its own.
  databaseIsUp = false
  for (let i = 0; i < 5; i++) yield* Effect.flip(breaker.protect(query))
  const kept = JSON.stringify(yield* breaker.snapshot)
  yield* TestClock.adjust("10 seconds")
  const next = yield* Breaker.make({ jitter: "none", snapshot: JSON.parse(kept) })
  const known = yield* Effect.flip(next.protect(query))
  assert("_tag" in known && known._tag === "CircuitOpen")
  assert.equal(known.retryAfter, 20_000)
  console.log("hydrated: ", known.message)
})

await test.pipe(
  Effect.provide(Breaker.layer({ jitter: "none" })),
  Effect.provide(TestClock.layer()),
  Effect.scoped,
  Effect.runPromise
)
