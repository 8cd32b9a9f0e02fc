import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as fc from "fast-check"
import type { Case } from "../case.ts"
import type { Engine, State } from "../engine.ts"
import { Failed } from "../engine.ts"
import type { InFlight } from "../trial.ts"
import { demand, fatal, pass, reply, seconds, start } from "../trial.ts"

const openFor = seconds(30)
const lease = seconds(5)

/** The changes of state that there are, each made by one thing that happens. */
const legal = new Set([
  "Closed>Open",
  "Open>HalfOpen",
  "HalfOpen>Open",
  "HalfOpen>Closed",
  "Closed>Isolated",
  "Open>Isolated",
  "HalfOpen>Isolated",
  "Isolated>Closed"
])

const step = fc.oneof(
  { weight: 5, arbitrary: fc.constant({ do: "start" } as const) },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("end" as const),
      which: fc.nat(),
      how: fc.constantFrom("succeed", "fail", "fail", "fail", "answer", "deny", "interrupt")
    })
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("wait" as const),
      ms: fc.constantFrom(1, 1_000, 4_999, 5_000, 29_999, 30_000, 30_001, 60_000, 60_001)
    })
  },
  { weight: 1, arbitrary: fc.constant({ do: "isolate" } as const) }
)
type Step = typeof step extends fc.Arbitrary<infer A> ? A : never

/** One life of a circuit. Fails with the promise that it broke. */
const live = Effect.fnUntraced(function*(engine: Engine, steps: ReadonlyArray<Step>) {
  const circuit = yield* engine.make({ failures: 3 })
  let inFlight: Array<{ readonly call: InFlight; readonly startedAt: number; isProbe: boolean }> = []
  let now = 0
  let openUntil = 0
  let release: Effect.Effect<void> | undefined
  let before: State = yield* circuit.state

  for (const step of steps) {
    switch (step.do) {
      case "start":
        inFlight.push({ call: yield* start(circuit), startedAt: now, isProbe: false })
        break
      case "end": {
        const running = inFlight.filter(({ call }) => call.status() === "Running")
        if (running.length === 0) continue
        const [ending] = running.splice(step.which % running.length, 1)
        const { call } = ending!
        inFlight = inFlight.filter((other) => other !== ending)
        // Each of these demands that the call ends with what its work ended with, once.
        if (step.how === "succeed") yield* call.succeed
        else if (step.how === "fail") yield* call.fail
        else if (step.how === "answer") yield* call.failWith(reply("23505"))
        else if (step.how === "deny") yield* call.failWith(fatal("28P01"))
        else yield* call.interrupt
        break
      }
      case "wait":
        now += step.ms
        yield* pass(step.ms)
        break
      case "isolate":
        if (circuit.isolate === undefined) continue
        if (release === undefined) {
          const scope = yield* Scope.make()
          yield* Scope.provide(circuit.isolate, scope)
          release = Scope.close(scope, Exit.void)
        } else {
          yield* release
          release = undefined
        }
    }

    const after = yield* circuit.state
    if (after.tag !== before.tag) {
      const edge = `${before.tag}>${after.tag}`
      yield* demand(legal.has(edge), `it went from ${before.tag} to ${after.tag} in one step (${step.do})`)
      // A circuit that is shared may be open for less: it was, elsewhere, for a while.
      if (after.tag === "Open") openUntil = now + (after.retryAfter ?? openFor)
    }
    if (after.retryAfter !== undefined) {
      yield* demand(after.retryAfter >= 0 && after.retryAfter <= openFor, `it says retryAfter ${after.retryAfter}`)
    }
    const newest = inFlight.at(-1)
    if (step.do === "start" && newest?.call.status() === "Running") {
      yield* demand(before.tag !== "Isolated", "isolated, it let a call in")
      yield* demand(before.tag !== "Open" || now >= openUntil, "open, it let a call in")
      newest.isProbe = after.tag === "HalfOpen"
    }
    const probes = inFlight.filter(({ call, isProbe, startedAt }) =>
      isProbe && call.status() === "Running" && now - startedAt < lease
    )
    yield* demand(after.tag !== "HalfOpen" || probes.length <= 1, `${probes.length} probes run at a time`)
    inFlight = inFlight.filter(({ call }) => call.status() !== "Ended")
    before = after
  }
  if (release !== undefined) yield* release
})

/** Model-based: many lives of a circuit, the same ones in every run. */
export const interleavings: Case = {
  number: 46,
  title: "any interleaving of calls, outcomes, time and isolation (400 lives, seeded)",
  expected: "1 live probe at most; open admits nobody; each call ends once, as its work did; only legal edges",
  run: Effect.fnUntraced(function*(engine) {
    const lives = fc.sample(fc.array(step, { minLength: 20, maxLength: 60, size: "max" }), { seed: 46, numRuns: 400 })
    for (const [index, steps] of lives.entries()) {
      yield* Effect.mapError(
        Effect.scoped(live(engine, steps)),
        (error) => error._tag === "Failed" ? new Failed({ message: `life ${index + 1}: ${error.message}` }) : error
      )
    }
  })
}
