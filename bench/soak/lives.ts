/** Pools that live for a moment: made, used, and closed in the middle of the work, whatever the network does. */
import * as Pg from "effect-pg-pool"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import type { Chance } from "./chance.ts"
import type { Ledger } from "./ledger.ts"
import * as Variety from "./variety.ts"
import * as Watch from "./watch.ts"
import * as Workload from "./workload.ts"

export interface Options {
  readonly options: Pg.Options & { readonly closeTimeout: number }
  readonly watched: Watch.Watched
  readonly port: number
  readonly sockets: Watch.Sockets
  readonly chance: Chance
  readonly ledger: Ledger
  readonly now: () => number
  readonly isOver: () => boolean
}

/** What closing may take beyond `closeTimeout`: cancelling, and the farewell, on a slow machine. */
const allowance = 10_000

export interface Lives {
  readonly lives: number
  /** Milliseconds: the longest time that one took to close, and that a socket was there afterwards. */
  readonly slowest: number
  readonly lastSocket: number
}

/** Lives one after the other. */
export const live = Effect.fnUntraced(
  function*({ chance, isOver, ledger, now, options, port, sockets, watched }: Options) {
    let lives = 0
    let slowest = 0
    let lastSocket = 0
    while (!isOver()) {
      lives++
      const variety = Variety.make(chance, watched.max, chance.isIt(0.3))
      const scope = Scope.makeUnsafe()
      const services = yield* Scope.provide(Layer.build(Pg.layer({ ...options, ...variety.options })), scope)
      const workload = yield* Workload.start({
        name: watched.name,
        callers: chance.whole(1, 6),
        services,
        chance,
        ledger,
        succeeded: () => Watch.succeeded(watched, now())
      })
      yield* Effect.sleep(chance.isIt(0.3) ? chance.between(0, 20) : chance.between(20, 1500))
      // Some are stopped under the hands of their callers, and some after the last of them has left.
      if (chance.isIt(0.5)) workload.end()
      const from = now()
      if (chance.isIt(0.3)) {
        const { drain } = yield* Effect.provide(Pg.Pool.Pool, services)
        yield* drain(chance.between(0, 500))
      }
      yield* Scope.close(scope, Exit.void)
      const took = now() - from
      slowest = Math.max(slowest, took)
      workload.end()
      if (took > options.closeTimeout + allowance) {
        ledger.problems.push([
          "slow",
          `${watched.name}: ${took.toFixed(0)} ms at ${from.toFixed(0)} ms (${variety.description})`
        ])
      }
      while (sockets.left(port).length > 0 && now() - from - took < allowance) yield* Effect.sleep(10)
      lastSocket = Math.max(lastSocket, now() - from - took)
      const left = sockets.left(port)
      if (left.length > 0) {
        ledger.problems.push([
          "leaked",
          `${watched.name}: sockets at ${now().toFixed(0)} ms: ${left.join("; ")} (${variety.description})`
        ])
      }
    }
    return { lives, slowest, lastSocket } satisfies Lives
  }
)
