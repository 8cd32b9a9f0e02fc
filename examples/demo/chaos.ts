/** What is done to the server while the shop is open, and when: milliseconds since the workload began. */
import * as Effect from "effect/Effect"
import type { Server } from "effect-pg-pool/testing"
import * as Sessions from "./sessions.ts"
import { plural, seconds } from "./terminal.ts"
import type * as Timeline from "./timeline.ts"

export interface Plan {
  readonly endSome: number
  readonly endAll: number
  readonly stop: number
  readonly start: number
  readonly close: number
}

export const full: Plan = { endSome: 3000, endAll: 6000, stop: 9500, start: 12_500, close: 20_000 }
export const quick: Plan = { endSome: 800, endAll: 1800, stop: 3000, start: 4500, close: 7000 }

/** Follows the plan to its end, and returns the act in which the server was back, if it could be stopped. */
export const run = Effect.fnUntraced(function*(
  server: Server,
  shop: Sessions.Options,
  timeline: Timeline.Timeline,
  plan: Plan
) {
  const at = (time: number) => Effect.suspend(() => Effect.sleep(Math.max(0, time - timeline.now())))

  yield* at(plan.endSome)
  const before = yield* Sessions.count(shop)
  const some = Math.max(1, Math.round(before / 4))
  yield* timeline.begin(
    "some sessions ended",
    "server",
    `pg_terminate_backend for ${some} of ${plural(before, "session")}, busy ones first`
  )
  yield* Sessions.end(shop, some)

  yield* at(plan.endAll)
  yield* timeline.begin("all sessions ended", "server", "pg_terminate_backend for every session of the pool")
  yield* Sessions.end(shop)

  if (server.external) return yield* Effect.as(at(plan.close), undefined)

  yield* at(plan.stop)
  yield* timeline.begin("server stopped", "server", `stopped, for about ${seconds(plan.start - plan.stop)}`)
  yield* server.stop

  yield* at(plan.start)
  yield* server.start
  const back = yield* timeline.begin("server started again", "server", "started again; it accepts connections")
  yield* at(plan.close)
  return back
})
