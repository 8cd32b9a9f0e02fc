import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import type { Case } from "../case.ts"
import { Failed } from "../engine.ts"
import {
  attempt,
  demand,
  down,
  fail,
  freeze,
  halfOpened,
  is,
  minutes,
  opened,
  pass,
  rejectionIn,
  rejects,
  seconds,
  start,
  staysOpenFor,
  succeed,
  turnBack
} from "../trial.ts"

/** Runs a module in a process of its own, which must end before the open time does. Answers what it had open then. */
const runAlone = (source: string): Effect.Effect<{ readonly isOpen: boolean; readonly handles: string }, Failed> =>
  Effect.callback((resume) => {
    const program = `
      process.on("exit", () => console.log(JSON.stringify(process.getActiveResourcesInfo())))
      ${source}
    `
    const child = execFile(
      process.execPath,
      ["--no-warnings", "--input-type=module", "--experimental-strip-types", "--eval", program],
      { cwd: new URL("../../../..", import.meta.url), timeout: seconds(25) },
      (error, stdout) => {
        const [state, handles] = stdout.trim().split("\n")
        resume(
          error !== null
            ? Effect.fail(new Failed({ message: error.killed ? "the process does not end" : error.message }))
            : Effect.succeed({ isOpen: state === "open", handles: handles ?? "" })
        )
      }
    )
    return Effect.sync(() => child.kill())
  })

/** Clocks that jump, processes that stand still, and how long a circuit stays open. */
export const time: ReadonlyArray<Case> = [
  {
    number: 21,
    title: "the wall clock jumps back 1 h while open",
    expected: "a probe within 30 s of observed time; `retryAfter` never above 30 s",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* opened(engine)
      yield* turnBack(minutes(60))
      yield* is(circuit, "Open", { retryAfter: seconds(30) })
      const { retryAfter } = yield* rejects(circuit)
      yield* demand((retryAfter ?? 0) <= seconds(30), `the rejection says to come back in ${retryAfter} ms`)
      yield* pass(seconds(30))
      yield* succeed(circuit)
    })
  },
  {
    number: 22,
    title: "the environment was frozen for 59 min while open",
    expected: "the first call after the thaw is the probe, no timer needed",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* opened(engine)
      yield* freeze(minutes(59))
      yield* succeed(circuit)
      yield* is(circuit, "Closed", { failures: 0 })
    })
  },
  {
    number: 23,
    title: "4 failures, 30 min frozen, 1 failure",
    expected: "closed, a streak of 1",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      yield* fail(circuit, 4)
      yield* freeze(minutes(30))
      yield* fail(circuit, 1)
      yield* is(circuit, "Closed", { failures: 1 })
      yield* fail(circuit, 3)
      yield* is(circuit, "Closed", { failures: 4 })
    })
  },
  {
    number: 24,
    title: "frozen for 10 min while a probe is in flight",
    expected: "the first call after the thaw may probe",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* halfOpened(engine)
      yield* start(circuit)
      yield* freeze(minutes(10))
      yield* succeed(circuit)
      yield* is(circuit, "Closed", { failures: 0 })
    })
  },
  {
    number: 25,
    title: "the state is read after the open time has passed, without a call",
    expected: "open with `retryAfter` 0, or half-open; never below 0",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* opened(engine)
      yield* pass(minutes(60))
      const { retryAfter, tag } = yield* circuit.state
      yield* demand(tag === "HalfOpen" || tag === "Open", `it is ${tag}`)
      yield* demand((retryAfter ?? 0) === 0, `${tag}, it says retryAfter ${retryAfter}`)
      yield* demand(tag === "HalfOpen" || retryAfter !== undefined, "it says open, and not that a call may come")
    })
  },
  {
    number: 26,
    title: "a process with an open circuit and nothing else to do",
    expected: "exits at once, with no handle left",
    run: Effect.fnUntraced(function*(engine) {
      const { handles, isOpen } = yield* runAlone(engine.openAndIdle)
      yield* demand(isOpen, "the circuit of the process did not open")
      yield* demand(!/Timeout|Immediate/.test(handles), `it still has ${handles}`)
    })
  },
  {
    number: 27,
    title: "1,000 breakers opened at one instant",
    expected: "their probes spread over 20 % of 30 s at least, no second has more than 22 % of them",
    run: Effect.fnUntraced(function*(engine) {
      const fleet = yield* Effect.forEach(
        Array.from({ length: 1_000 }),
        () => opened(engine, { jitter: true })
      )
      let waiting = fleet
      const perSecond = new Map<number, number>()
      yield* pass(seconds(20))
      for (let second = 20; second < 60 && waiting.length > 0; second++) {
        yield* pass(seconds(1))
        const rejected: typeof waiting = []
        for (const circuit of waiting) {
          const exit = yield* attempt(circuit, Effect.fail(down))
          if (rejectionIn(exit) !== undefined) rejected.push(circuit)
        }
        if (rejected.length < waiting.length) perSecond.set(second, waiting.length - rejected.length)
        waiting = rejected
      }
      yield* demand(waiting.length === 0, `${waiting.length} of them had not probed after a minute`)
      const times = [...perSecond.keys()]
      const spread = Math.max(...times) - Math.min(...times) + 1
      yield* demand(spread >= 6, `their probes came within ${spread} s`)
      const most = Math.max(...perSecond.values())
      yield* demand(most <= 220, `${most} of them probed in one second`)
    })
  },
  {
    number: 28,
    title: "it opens again and again",
    expected: "for 30, 60, 120 ... s, 5 min at most; for 30 s again once closed as long as it was last open",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* opened(engine, { backoff: true })
      for (const expected of [30, 60, 120, 240, 300, 300]) {
        yield* is(circuit, "Open", { retryAfter: seconds(expected) })
        yield* staysOpenFor(circuit, seconds(expected))
        yield* fail(circuit, 1)
      }
      yield* staysOpenFor(circuit, minutes(5))
      yield* succeed(circuit)
      yield* pass(minutes(5))
      yield* fail(circuit, 5)
      yield* is(circuit, "Open", { retryAfter: seconds(30) })
      yield* staysOpenFor(circuit, seconds(30))
      yield* succeed(circuit)
    })
  },
  {
    number: 29,
    title: "a database that flaps: each probe succeeds, the next call fails",
    expected: "the back-off survives the close",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make({ backoff: true, failures: 1 })
      for (const expected of [30, 60, 120]) {
        yield* fail(circuit, 1)
        yield* is(circuit, "Open", { retryAfter: seconds(expected) })
        yield* staysOpenFor(circuit, seconds(expected))
        yield* succeed(circuit)
      }
    })
  }
]
