import * as Effect from "effect/Effect"
import type { Case } from "../case.ts"
import {
  demand,
  die,
  fail,
  halfOpened,
  is,
  opened,
  pass,
  rejects,
  seconds,
  start,
  staysOpenFor,
  succeed
} from "../trial.ts"

/** Closed, open, half-open and back. */
export const cycle: ReadonlyArray<Case> = [
  {
    number: 1,
    title: "4 failures, 1 success, 4 failures",
    expected: "closed, with a streak of 4: one more failure opens it",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      yield* fail(circuit, 4)
      yield* succeed(circuit)
      yield* is(circuit, "Closed", { failures: 0 })
      yield* fail(circuit, 4)
      yield* is(circuit, "Closed", { failures: 4 })
      yield* fail(circuit, 1)
      yield* rejects(circuit)
    })
  },
  {
    number: 2,
    title: "the 5th failure in a row",
    expected: "open; its caller still gets its own error, not the breaker's",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      yield* fail(circuit, 4)
      yield* is(circuit, "Closed")
      yield* fail(circuit, 1)
      yield* is(circuit, "Open", { retryAfter: seconds(30) })
      yield* rejects(circuit, { state: "Open", retryAfter: seconds(30) })
    })
  },
  {
    number: 3,
    title: "a call 29,999 ms and one 30,000 ms after opening",
    expected: "rejected with `retryAfter` 1 ms; admitted as the probe",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* opened(engine)
      yield* pass(29_999)
      yield* rejects(circuit, { state: "Open", retryAfter: 1, told: "when to come back" })
      yield* pass(1)
      yield* succeed(circuit)
      yield* is(circuit, "Closed", { failures: 0 })
    })
  },
  {
    number: 4,
    title: "50 calls arrive at half-open",
    expected: "exactly 1 runs; 49 are rejected with a `retryAfter` above 0",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* halfOpened(engine)
      const calls = yield* Effect.forEach(Array.from({ length: 50 }), () => start(circuit))
      const running = calls.filter((call) => call.status() === "Running")
      const waiting = calls.filter((call) => call.status() === "Waiting")
      yield* demand(running.length === 1, `${running.length} of 50 calls ran`)
      yield* demand(waiting.length === 0, `1 call ran, and ${waiting.length} wait for it to end`)
      for (const call of calls) {
        if (call === running[0]) continue
        const { retryAfter, state } = yield* call.rejection
        yield* demand(state === undefined || state === "HalfOpen", `the rejection says ${state}`)
        yield* demand(retryAfter !== undefined, "the rejection does not say when to come back")
        yield* demand(retryAfter! > 0 && retryAfter! <= seconds(5), `told to come back in ${retryAfter} ms`)
      }
      yield* running[0]!.succeed
      yield* is(circuit, "Closed", { failures: 0 })
    })
  },
  {
    number: 5,
    title: "the probe succeeds; the probe fails",
    expected: "closed; open again for 30 s from its failure, even if it took 25 s",
    run: Effect.fnUntraced(function*(engine) {
      const healed = yield* halfOpened(engine)
      yield* succeed(healed)
      yield* is(healed, "Closed", { failures: 0 })
      yield* succeed(healed)

      const circuit = yield* halfOpened(engine)
      const probe = yield* start(circuit)
      yield* pass(seconds(25))
      yield* probe.fail
      yield* is(circuit, "Open", { retryAfter: seconds(30) })
      yield* staysOpenFor(circuit, seconds(30))
      yield* succeed(circuit)
    })
  },
  {
    number: 6,
    title: "the probe's caller interrupts it",
    expected: "its place is free, still half-open, the next call probes; nothing counted",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* halfOpened(engine)
      const probe = yield* start(circuit)
      yield* is(circuit, "HalfOpen", { retryAfter: seconds(5) })
      yield* probe.interrupt
      yield* is(circuit, "HalfOpen", { retryAfter: 0 })
      const next = yield* start(circuit)
      yield* rejects(circuit)
      yield* next.succeed
      yield* is(circuit, "Closed", { failures: 0 })
    })
  },
  {
    number: 7,
    title: "the probe dies of a bug",
    expected: "its place is free, or it opens again by policy; never wedged, never closed",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* halfOpened(engine)
      yield* die(circuit, new Error("a bug"))
      const state = yield* circuit.state
      yield* demand(state.tag === "HalfOpen" || state.tag === "Open", `it is ${state.tag}`)
      if (state.tag === "Open") yield* staysOpenFor(circuit, seconds(30))
      yield* succeed(circuit)
      yield* is(circuit, "Closed", { failures: 0 })
    })
  },
  {
    number: 8,
    title: "the probe never returns, its lease of 5 s passes",
    expected: "the next call becomes the probe; the late result of the first is dropped",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* halfOpened(engine)
      const hung = yield* start(circuit)
      yield* pass(4_999)
      yield* rejects(circuit, { state: "HalfOpen", retryAfter: 1 })
      yield* pass(1)
      const second = yield* start(circuit)
      yield* demand(second.status() === "Running", "it is wedged: no other call may probe")
      yield* hung.succeed
      yield* is(circuit, "HalfOpen", { retryAfter: seconds(5) })
      yield* second.succeed
      yield* is(circuit, "Closed", { failures: 0 })
    })
  }
]
