/** What a fleet goes through, phase by phase, the same for every client. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Chance from "../soak/chance.ts"
import type { Contestant, Setting } from "./contestants.ts"
import * as Hosts from "./hosts.ts"
import { type Arrival, now, type Outcome } from "./order.ts"
import type { Server, Witnessed } from "./server.ts"

export interface Plan {
  readonly seed: number
  readonly processes: number
  /** Milliseconds that the platform gives an invocation. */
  readonly deadline: number
  /** Requests in a second, of the whole fleet. */
  readonly rate: number
  /** Seconds of steady load. */
  readonly steady: number
  /** Seconds that a freeze lasts. */
  readonly freeze: number
  /** Seconds into its phase at which the server crashes, for how long it is away, and for how long it is watched then. */
  readonly crash: { readonly at: number; readonly lasts: number; readonly watched: number }
}

export type PhaseName = "cold start" | "steady" | "freeze" | "thaw" | "restart"

export interface Phase {
  readonly name: PhaseName
  readonly from: number
  readonly to: number
  readonly outcomes: ReadonlyArray<Outcome>
}

export interface Life extends Witnessed {
  readonly contestant: Contestant
  readonly environments: number
  readonly from: number
  readonly to: number
  readonly phases: ReadonlyArray<Phase>
  /** When the server crashed, and when it took connections again. */
  readonly crash: { readonly down: number; readonly up: number }
}

/** Milliseconds that the wall clock moves on in a freeze. */
const ages = 10 * 60_000
/** For the order to reach all processes. */
const ahead = 100

/** Seconds of load in the phase with the crash. */
export const lengthOfCrash = ({ crash }: Plan): number => crash.at + crash.lasts + crash.watched

export interface Arrivals {
  readonly atOnce: ReadonlyArray<Arrival>
  readonly steady: ReadonlyArray<Arrival>
  readonly restart: ReadonlyArray<Arrival>
}

/** Independent requests at a steady rate: the gaps between them are exponential. */
export const arrivals = Effect.fnUntraced(function*(plan: Plan, environments: number) {
  const poisson = Effect.fnUntraced(function*(name: string, seconds: number) {
    const chance = yield* Chance.make(plan.seed, name)
    const all: Array<Arrival> = []
    let at = 0
    while (true) {
      at -= (Math.log(1 - chance.next()) / plan.rate) * 1000
      if (at >= seconds * 1000) return all
      all.push([at, chance.whole(0, environments - 1)])
    }
  })
  const all: Arrivals = {
    atOnce: Array.from({ length: environments }, (_, index) => [0, index]),
    steady: yield* poisson("steady", plan.steady),
    restart: yield* poisson("restart", lengthOfCrash(plan))
  }
  return all
})

export const live = Effect.fnUntraced(function*(options: {
  readonly plan: Plan
  readonly setting: Setting
  readonly contestant: Contestant
  readonly environments: number
  readonly arrivals: Arrivals
  readonly server: Server
  /** The server, or the pooler in front of it. */
  readonly url: string
}): Effect.fn.Return<Life, unknown, Scope.Scope> {
  const { contestant, environments, plan, server, setting } = options
  const hosts = yield* Hosts.make(plan.processes)
  yield* hosts.build({
    client: contestant.client,
    url: options.url,
    isPooled: setting.isPooled,
    fleet: environments,
    deadline: plan.deadline
  })
  const phases: Array<Phase> = []
  const phase = Effect.fnUntraced(function*<E>(
    name: PhaseName,
    work: (from: number) => Effect.Effect<ReadonlyArray<Outcome>, E>
  ) {
    const from = now() + ahead
    const outcomes = yield* work(from)
    phases.push({ name, from, to: Math.max(now(), from), outcomes })
  })

  const begun = now()
  yield* phase("cold start", (from) => hosts.run(from, options.arrivals.atOnce))
  yield* phase("steady", (from) => hosts.run(from, options.arrivals.steady))
  yield* phase("freeze", () =>
    Effect.gen(function*() {
      yield* hosts.age(ages)
      yield* hosts.freeze
      yield* server.endHalf
      yield* Effect.sleep(1000 * plan.freeze)
      yield* hosts.thaw
      return []
    }))
  yield* phase("thaw", (from) => hosts.run(from, options.arrivals.atOnce))
  let down = 0
  let up = 0
  yield* phase("restart", (from) =>
    Effect.map(
      Effect.all([
        hosts.run(from, options.arrivals.restart),
        Effect.gen(function*() {
          yield* Effect.sleep(from + 1000 * plan.crash.at - now())
          down = now()
          yield* server.kill
          yield* Effect.sleep(1000 * plan.crash.lasts)
          yield* server.start
          up = now()
        })
      ], { concurrency: "unbounded" }),
      ([outcomes]) => outcomes
    ))
  const to = now()
  // What the log and the counter have seen is read in between.
  yield* Effect.sleep(150)
  return { contestant, environments, from: begun, to, phases, crash: { down, up }, ...server.since(begun) }
})
