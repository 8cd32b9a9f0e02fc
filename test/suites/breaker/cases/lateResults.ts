import * as Effect from "effect/Effect"
import type { Case } from "../case.ts"
import { demand, fail, is, pass, rejects, seconds, start, staysOpenFor, succeed } from "../trial.ts"

/** What calls report that the circuit has moved on from. */
export const lateResults: ReadonlyArray<Case> = [
  {
    number: 9,
    title: "a success of a call of the closed time arrives while open",
    expected: "stays open, `retryAfter` unchanged",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      const early = yield* start(circuit)
      yield* fail(circuit, 5)
      yield* pass(seconds(10))
      yield* early.succeed
      yield* is(circuit, "Open", { retryAfter: seconds(20) })
      yield* staysOpenFor(circuit, seconds(20))
      yield* succeed(circuit)
    })
  },
  {
    number: 10,
    title: "a failure of a call of the closed time arrives while half-open",
    expected: "the probe is undisturbed",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      const early = yield* start(circuit)
      yield* fail(circuit, 5)
      yield* pass(seconds(30))
      const probe = yield* start(circuit)
      yield* demand(probe.status() === "Running", "the first call after the open time did not run")
      yield* early.fail
      yield* is(circuit, "HalfOpen", { retryAfter: seconds(5) })
      yield* probe.succeed
      yield* is(circuit, "Closed", { failures: 0 })
    })
  },
  {
    number: 11,
    title: "a failure of a call of the closed time arrives after open, half-open and closed",
    expected: "not counted in the new streak",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      const early = yield* start(circuit)
      yield* fail(circuit, 5)
      yield* pass(seconds(30))
      yield* succeed(circuit)
      yield* early.fail
      yield* is(circuit, "Closed", { failures: 0 })
      yield* fail(circuit, 4)
      yield* is(circuit, "Closed", { failures: 4 })
    })
  },
  {
    number: 12,
    title: "10 calls in flight fail one after another, the 5th opens it",
    expected: "failures 6 to 10 neither extend the open time nor announce another opening",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      const ten = yield* Effect.forEach(Array.from({ length: 10 }), () => start(circuit))
      for (const [index, call] of ten.entries()) {
        yield* pass(seconds(1))
        yield* call.fail
        if (index === 4) yield* is(circuit, "Open", { retryAfter: seconds(30) })
      }
      const openings = (yield* circuit.events).filter((event) => event === "Open").length
      yield* demand(openings === 1, `it announced ${openings} openings`)
      yield* is(circuit, "Open", { retryAfter: seconds(25) })
      yield* staysOpenFor(circuit, seconds(25))
      yield* succeed(circuit)
    })
  },
  {
    number: 13,
    title: "32 statements on one multiplexed socket fail together",
    expected: "count as 1 failure",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      const statements = yield* Effect.forEach(Array.from({ length: 32 }), () => start(circuit, 1))
      for (const statement of statements) yield* statement.fail
      yield* is(circuit, "Closed", { failures: 1 })
      yield* fail(circuit, 4)
      yield* rejects(circuit)
    })
  }
]
