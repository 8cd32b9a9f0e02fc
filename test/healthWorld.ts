import * as Effect from "effect/Effect"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import type * as Breaker from "../src/Breaker.ts"
import type * as Errors from "../src/Errors.ts"
import * as Health from "../src/Health.ts"

export const quiet: Errors.PoolStats = {
  total: 3,
  idle: 3,
  active: 0,
  waiting: 0,
  connecting: 0,
  max: 10,
  min: 2,
  oldestLease: 0
}
export const full: Errors.PoolStats = { ...quiet, total: 10, idle: 0, active: 10, waiting: 4 }

/** A database that can be put into every state by hand. */
export const makeWorld = (options?: Health.Options) => {
  const world = {
    stats: quiet,
    leaving: 0,
    breaker: { _tag: "Closed", failures: 0 } as Breaker.State,
    isClosing: false,
    isSuspended: false,
    lastReplyAt: undefined as number | undefined,
    lastFailure: undefined as ReturnType<Health.Sources["lastFailure"]>,
    server: undefined as Health.Report["server"],
    connectPause: 0,
    connectFailure: undefined as unknown,
    traffic: { count: 0, sum: 0 },
    pings: 0,
    ping: Effect.void as Effect.Effect<unknown, unknown>
  }
  const sources: Health.Sources = {
    name: "main",
    stats: () => world.stats,
    leaving: () => world.leaving,
    breaker: Effect.sync(() => world.breaker),
    isClosing: () => world.isClosing,
    signs: () => ({
      lastProofAt: world.lastReplyAt,
      lastAnswerAt: world.lastReplyAt,
      server: world.server,
      isSuspended: world.isSuspended
    }),
    lastFailure: () => world.lastFailure,
    connectPause: () => world.connectPause,
    connectFailure: () => world.connectFailure,
    traffic: () => world.traffic,
    address: { hosts: ["db.internal:5432"], database: "shop", username: "clerk" },
    ping: () =>
      Effect.suspend(() => {
        world.pings++
        return world.ping
      })
  }
  return { world, sources, ...Effect.runSync(Health.make(sources, options)) }
}

export const sqlError = (cause: object) =>
  new SqlError({ reason: new UnknownError({ cause, message: "text of the server" }) })
