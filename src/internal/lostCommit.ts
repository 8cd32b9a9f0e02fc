import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { SqlError } from "effect/sql/SqlError"
import * as CommitFate from "./commitFate.ts"
import { Deadline } from "./deadline.ts"
import * as UnitOfWork from "./unitOfWork.ts"

/** What is needed to find out about a COMMIT, and the words in which it is told. */
export interface Inquiry {
  /** Wall-clock milliseconds. */
  readonly now: () => number
  readonly ask: (question: CommitFate.Question, until: number) => Effect.Effect<PgConnection.Result, SqlError>
  /** Milliseconds for which the server is asked when there is no deadline. */
  readonly acquireTimeout: number
  /** Whether the error leaves open what became of the COMMIT. */
  readonly isUnknown: (error: SqlError) => boolean
  /** Whether the server has said no, so that asking again is no use. */
  readonly isRefusal: (error: SqlError) => boolean
  readonly rolledBack: (lost: SqlError) => SqlError
  readonly unresolved: (lost: SqlError, reason: string) => SqlError
}

/** Finds out what became of a COMMIT that failed: succeeds if it was applied. */
export const make =
  (inquiry: Inquiry) => (error: SqlError, ticket: CommitFate.Ticket | undefined): Effect.Effect<void, SqlError> =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      if (!inquiry.isUnknown(error)) return Effect.fail(error)
      if (ticket === undefined) {
        return Effect.fail(
          inquiry.unresolved(
            error,
            "the server would not say which transaction it was, or it was not the one that was begun"
          )
        )
      }
      // On a standby there was nothing to be lost.
      if (ticket.xid === undefined) return Effect.void
      const unit = UnitOfWork.of(fiber)
      const patience = inquiry.now() + (unit?.acquireTimeout ?? inquiry.acquireTimeout)
      const until = Math.min(patience, unit?.deadlineAt ?? Infinity, fiber.getRef(Deadline))
      // The region is that of a COMMIT, which nobody interrupts; its inquiry anybody may.
      return Effect.interruptible(CommitFate.resolve({
        ask: Effect.map(
          inquiry.ask(CommitFate.question(ticket), until),
          ({ rows }) => CommitFate.fateOf(ticket, rows[0] as CommitFate.Answer | undefined)
        ),
        fence: inquiry.ask(CommitFate.fence(ticket), until),
        isRefusal: inquiry.isRefusal,
        until,
        now: inquiry.now
      })).pipe(Effect.flatMap((fate) => {
        switch (fate._tag) {
          case "Committed":
            return Effect.void
          case "Aborted":
            if (unit !== undefined) UnitOfWork.addEffects(unit, -1)
            return Effect.fail(inquiry.rolledBack(error))
          case "Unknown":
            return Effect.fail(inquiry.unresolved(error, fate.reason))
        }
      }))
    })
