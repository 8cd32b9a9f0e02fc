import type * as Effect from "effect/Effect"
import * as Bell from "./bell.ts"

/**
 * Whether a CancelRequest may still hit a statement of the session that it was sent for.
 *
 * - `"None"`: it cannot, or none was sent.
 * - `"Pending"`: its statement was cancelled, but the server has not closed the request's connection yet.
 * - `"Stray"`: nobody will ever know.
 */
export type Threat = "None" | "Pending" | "Stray"

/** What became of the CancelRequests that were sent for one session. */
export interface CancelRequests {
  readonly sent: () => void
  /** A statement has failed because somebody asked for it. */
  readonly answered: () => void
  /** The connection of a request has ended: by the server's own doing, which ends it last of all, or in any other way. */
  readonly ended: (byServer: boolean) => void
  /** The session itself has ended. */
  readonly giveUp: () => void
  readonly isAnswerDue: () => boolean
  readonly threat: () => Threat
  /** Waits until the threat is not pending any more. */
  readonly decided: Effect.Effect<void>
}

/**
 * A request is harmless once both is known of it. PostgreSQL signals the session's process before it closes the
 * request's connection, and a process that is not executing anything ignores the signal: so nothing comes after the end
 * of that connection. A proxy may close it before it has passed the request on, though (Neon's does): so the statement
 * must have been cancelled too, since one signal cancels one statement.
 *
 * https://www.postgresql.org/docs/18/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS, SendCancelRequest in
 * src/backend/storage/ipc/procsignal.c, ProcessInterrupts in src/backend/tcop/postgres.c.
 *
 * `isOurs`: whether nobody but this session's borrower runs statements where the requests go.
 */
export const make = (isOurs: boolean): CancelRequests => {
  const connectionEnded = Bell.make()
  let open = 0
  let unanswered = 0
  let isLost = false
  return {
    sent: () => {
      open++
      unanswered++
      if (!isOurs) isLost = true
    },
    answered: () => {
      if (unanswered > 0) unanswered--
    },
    ended: (byServer) => {
      open--
      if (!byServer) isLost = true
      connectionEnded.notify()
    },
    giveUp: () => {
      isLost = true
      connectionEnded.notify()
    },
    isAnswerDue: () => unanswered > 0,
    threat: () => isLost || unanswered > 0 ? "Stray" : open > 0 ? "Pending" : "None",
    decided: connectionEnded.until(() => isLost || open === 0)
  }
}
