import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as Errand from "./errand.ts"
import type { Session } from "./session.ts"

const unproven = (cause: unknown): SqlError => {
  const why = cause instanceof Error ? cause.message : String(cause)
  const message = `PgConnection: The session failed its liveness check: ${why}`
  return new SqlError({ reason: new ConnectionError({ cause, message, operation: "connect" }) })
}

/**
 * Sees whether a session answers a round trip within `timeout` milliseconds, and succeeds with what speaks against it.
 * Nobody else must be able to get it meanwhile.
 */
export const prove = (session: Session, timeout: number): Effect.Effect<SqlError | undefined> => {
  const question = Effect.suspend(() => {
    session.busy++
    return session.connection.query("SELECT 1")
  }).pipe(Effect.onExit(() => Effect.sync(() => session.busy--)))
  return Effect.matchCause(
    Errand.run(question, session.wire, {
      millis: timeout,
      onTimeUp: () => new Error(`no answer within ${timeout} ms`)
    }),
    { onSuccess: () => undefined, onFailure: (cause) => unproven(Cause.squash(cause)) }
  )
}
