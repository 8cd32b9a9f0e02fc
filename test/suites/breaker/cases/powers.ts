import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { Case } from "../case.ts"
import type { Circuit, Engine, Settings, Time } from "../engine.ts"
import { Failed, Reports } from "../engine.ts"
import {
  attempt,
  demand,
  down,
  fail,
  halfOpened,
  is,
  minutes,
  opened,
  pass,
  power,
  rejectionIn,
  rejects,
  seconds,
  settle,
  start,
  staysOpenFor,
  succeed,
  turnBack,
  when
} from "../trial.ts"

/** Takes a power in a scope of its own. Answers the effect that ends it. */
const take = (what: Effect.Effect<void, never, Scope.Scope>) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    yield* Scope.provide(what, scope)
    return Scope.close(scope, Exit.void)
  })

/** A circuit that goes on, after `later`, from what this one leaves in a snapshot. */
const goesOn = Effect.fnUntraced(function*(
  engine: Engine,
  circuit: Circuit,
  later: Effect.Effect<void, never, Time>,
  settings: Settings = {}
) {
  const snapshot = JSON.stringify(yield* yield* power("snapshot", circuit.snapshot))
  yield* later
  return yield* engine.make({ ...settings, snapshot: JSON.parse(snapshot) })
})

/** Asks by so many failures how many of them in a row open it. */
const failuresUntilOpen = Effect.fnUntraced(function*(circuit: Circuit, atMost: number) {
  for (let failures = 0; failures < atMost; failures++) {
    if (rejectionIn(yield* attempt(circuit, Effect.fail(down))) !== undefined) return failures
  }
  return atMost
})

/** Recovery, control by hand, state that outlives a process or is shared, observers, keys. */
export const powers: ReadonlyArray<Case> = [
  {
    number: 30,
    title: "after the close, with a pool of 8 and 100 waiting callers",
    expected: "1, 2, 4, 8 calls at a time; a failure at 4 opens it again",
    run: Effect.fnUntraced(function*(engine) {
      const crowd = Effect.fnUntraced(function*() {
        const circuit = yield* halfOpened(engine, { ramp: 8 })
        yield* succeed(circuit)
        const callers = yield* Effect.forEach(Array.from({ length: 100 }), () => start(circuit))
        const running = () => callers.filter((caller) => caller.status() === "Running")
        const wave = Effect.fnUntraced(function*(expected: number) {
          yield* settle
          const now = running()
          yield* demand(now.length === expected, `${now.length} calls run at a time, not ${expected}`)
          return now
        })
        return { circuit, callers, wave }
      })
      const calm = yield* crowd()
      for (const expected of [1, 2, 4, 8]) {
        for (const call of yield* calm.wave(expected)) yield* call.succeed
      }

      const relapse = yield* crowd()
      for (const expected of [1, 2]) {
        for (const call of yield* relapse.wave(expected)) yield* call.succeed
      }
      const [first, ...others] = yield* relapse.wave(4)
      yield* first!.fail
      yield* is(relapse.circuit, "Open", { retryAfter: seconds(30) })
      for (const call of others) yield* call.succeed
      yield* settle
      for (const caller of relapse.callers) {
        yield* demand(caller.status() === "Ended", `a caller is ${caller.status().toLowerCase()} after it opened again`)
      }
      yield* rejects(relapse.circuit)
    })
  },
  {
    number: 31,
    title: "isolated twice, released once, released again",
    expected: "still isolated, whatever time passes or call returns; then closed",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      const isolate = yield* power("isolation by hand", circuit.isolate)
      const early = yield* start(circuit)
      const releaseOne = yield* take(isolate)
      const releaseOther = yield* take(isolate)
      yield* is(circuit, "Isolated")
      yield* rejects(circuit, { state: "Isolated" })
      yield* releaseOne
      yield* early.succeed
      yield* pass(minutes(60))
      yield* is(circuit, "Isolated")
      yield* rejects(circuit, { state: "Isolated" })
      yield* releaseOther
      yield* is(circuit, "Closed", { failures: 0 })
      yield* succeed(circuit)
    })
  },
  {
    number: 32,
    title: "disabled",
    expected: "lets every call in, still counts, and tells when it would have opened",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      const enable = yield* take(yield* power("way to disable it", circuit.disable))
      yield* fail(circuit, 4)
      const before = yield* circuit.events
      yield* demand(!before.includes("WouldOpen"), "it told too early that it would have opened")
      yield* fail(circuit, 1)
      yield* succeed(circuit)
      yield* settle
      const after = yield* circuit.events
      yield* demand(!after.includes("Open"), "it opened")
      yield* demand(after.includes("WouldOpen"), "it never told that it would have opened")
      yield* enable
      yield* succeed(circuit)
    })
  },
  {
    number: 33,
    title: "a snapshot of a half-open circuit goes on elsewhere",
    expected: "open, a probe allowed at once, the back-off kept",
    run: Effect.fnUntraced(function*(engine) {
      const settings = { backoff: true }
      const circuit = yield* halfOpened(engine, settings)
      yield* start(circuit)
      const elsewhere = yield* goesOn(engine, circuit, Effect.void, settings)
      yield* is(elsewhere, "Open", { retryAfter: 0 })
      yield* fail(elsewhere, 1)
      yield* is(elsewhere, "Open", { retryAfter: seconds(60) })
      yield* staysOpenFor(elsewhere, seconds(60))
      yield* when("60 s after it opened again")(succeed(elsewhere))
    })
  },
  {
    number: 34,
    title: "a snapshot of an open circuit goes on 10 s later, 40 s later, an hour before; and garbage",
    expected: "20 s left; a probe; 30 s left; closed with a warning",
    run: Effect.fnUntraced(function*(engine) {
      yield* when("10 s later")(Effect.gen(function*() {
        const circuit = yield* goesOn(engine, yield* opened(engine), pass(seconds(10)))
        yield* is(circuit, "Open", { retryAfter: seconds(20) })
        yield* staysOpenFor(circuit, seconds(20))
        yield* succeed(circuit)
      }))
      yield* when("40 s later")(Effect.gen(function*() {
        yield* succeed(yield* goesOn(engine, yield* opened(engine), pass(seconds(40))))
      }))
      yield* when("an hour before")(Effect.gen(function*() {
        const circuit = yield* goesOn(engine, yield* opened(engine), turnBack(minutes(60)))
        yield* is(circuit, "Open", { retryAfter: seconds(30) })
        yield* staysOpenFor(circuit, seconds(30))
        yield* succeed(circuit)
      }))
      const before = (yield* Reports).length
      const garbage = yield* when("garbage")(engine.make({ snapshot: { version: 99, state: "fine" } }))
      yield* is(garbage, "Closed", { failures: 0 })
      yield* succeed(garbage)
      yield* demand((yield* Reports).length === before + 1, "it did not warn of the garbage")
    })
  },
  {
    number: 35,
    title: "the shared store is down when read and when written",
    expected: "calls run; reported once for each outage, not for each call",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      const store = yield* power("shared store", circuit.store)
      const reports = yield* Reports
      for (const outage of [1, 2]) {
        yield* store.down
        for (let i = 0; i < 3; i++) {
          yield* fail(circuit, 1)
          yield* settle
          yield* succeed(circuit)
        }
        yield* demand(
          reports.length === outage,
          `after ${outage * 6} calls in ${outage} outage${
            outage > 1 ? "s" : ""
          } it has reported ${reports.length} times`
        )
        yield* store.up
        yield* fail(circuit, 1)
        yield* settle
        yield* succeed(circuit)
      }
    })
  },
  {
    number: 45,
    title: "one observer never returns, another dies",
    expected: "no call is delayed or fails for it; what a slow one misses is the oldest",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make({ failures: 1 })
      const gate = yield* Deferred.make<void>()
      const seen: Array<string> = []
      yield* circuit.observe((event) =>
        Effect.suspend(() => {
          seen.push(event)
          return Deferred.await(gate)
        })
      )
      yield* circuit.observe(() => Effect.die(new Error("the observer's bug")))
      const cycles = 100
      for (let i = 0; i < cycles; i++) {
        yield* fail(circuit, 1)
        yield* pass(seconds(30))
        yield* succeed(circuit)
      }
      const onTime = seen.length
      yield* Deferred.succeed(gate, undefined)
      yield* Effect.repeat(settle, { times: 50 })
      const late = seen.length - onTime
      yield* demand(late <= 200, `it kept ${late} events of ${cycles * 3} for a slow observer: nothing bounds them`)
      yield* demand(onTime + late >= 100, `a slow observer sees ${onTime + late} of ${cycles * 3} events`)
      yield* demand(seen.at(-1) === "Closed", "a slow observer misses the newest event")
    })
  },
  {
    number: 48,
    title: "one key is used with two configurations",
    expected: "an error, or one and the same policy for both",
    run: Effect.fnUntraced(function*(engine) {
      const get = yield* yield* power("keys", engine.registry)
      const both = Effect.fnUntraced(function*(key: string) {
        const patient = yield* get(key, { failures: 5 })
        const strict = yield* Effect.exit(get(key, { failures: 1 }))
        return { patient, strict: Exit.isSuccess(strict) ? strict.value : undefined }
      })
      const { patient, strict } = yield* both("db1")
      if (strict === undefined) return yield* succeed(patient)
      const bound = 10
      const byOne = yield* failuresUntilOpen(patient, bound)
      const byOther = yield* failuresUntilOpen((yield* both("db2")).strict!, bound)
      if (byOne !== byOther) {
        yield* Effect.fail(
          new Failed({ message: `it opens after ${byOne} failures of one user and after ${byOther} of the other` })
        )
      }
    })
  }
]
