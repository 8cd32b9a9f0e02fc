/** What is done to the server while the shop is open, and when: milliseconds since the workload began. */
import type { Server } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Sessions from "./sessions.ts"
import { plural, seconds } from "./terminal.ts"
import type * as Timeline from "./timeline.ts"

export interface Plan {
  /** When throughput begins to count: the first calls also pay for warming up. */
  readonly calm: number
  readonly endSome: number
  readonly endAll: number
  readonly stop: number
  readonly start: number
  readonly close: number
}

export const full: Plan = { calm: 1500, endSome: 4000, endAll: 7000, stop: 10_000, start: 13_000, close: 20_000 }
export const quick: Plan = { calm: 700, endSome: 1500, endAll: 2400, stop: 3300, start: 5300, close: 7500 }

/** Follows the plan to its end, and returns the act in which the server was back, if it could be stopped. */
export const run = Effect.fnUntraced(function*(
  server: Server,
  sessions: Sessions.Options,
  timeline: Timeline.Timeline,
  plan: Plan
) {
  const at = (time: number) => Effect.suspend(() => Effect.sleep(Math.max(0, time - timeline.now())))

  yield* at(plan.calm)
  yield* timeline.begin("calm", "workload", "warmed up; from here on throughput is compared")

  yield* at(plan.endSome)
  yield* Sessions.direct(sessions, (connection) =>
    Effect.gen(function*() {
      const open = yield* Sessions.count(connection, sessions)
      const some = Math.max(1, Math.round(open / 4))
      const what = `pg_terminate_backend for ${some} of ${plural(open, "session")}, busy ones first`
      yield* timeline.begin("some sessions ended", "server", what)
      yield* Sessions.end(connection, sessions, some)
    }))

  yield* at(plan.endAll)
  yield* Sessions.direct(sessions, (connection) =>
    Effect.gen(function*() {
      const open = yield* Sessions.count(connection, sessions)
      yield* timeline.begin("all sessions ended", "server", `pg_terminate_backend for all ${plural(open, "session")}`)
      yield* Sessions.end(connection, sessions, open)
    }))

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
