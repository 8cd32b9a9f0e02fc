/** What the clients were told about each of their writes. Kept in memory, to be compared with the database at the end. */
import * as Pg from "effect-pg-pool"
import * as Effect from "effect/Effect"
import { isSqlError } from "effect/sql/SqlError"

/**
 * - `acknowledged`: the call succeeded.
 * - `failed`: the call failed, and the error says that nothing of it is in the database.
 * - `unknown`: the error says that it cannot be known, or the client went away before it had an answer.
 */
export type Word = "acknowledged" | "failed" | "unknown"

export interface Ledger {
  readonly words: ReadonlyMap<number, Word>
  /** Gives a write an id of its own, and records what became of it. */
  readonly record: <A, E, R>(write: (id: number) => Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

/** Ids count up from `firstId`. Until there is an answer, nothing is known about a write. */
export const make = (firstId: number): Ledger => {
  const words = new Map<number, Word>()
  let nextId = firstId
  return {
    words,
    record: (write) =>
      Effect.suspend(() => {
        const id = nextId++
        words.set(id, "unknown")
        return write(id).pipe(
          Effect.tap(() => Effect.sync(() => words.set(id, "acknowledged"))),
          Effect.tapError((error) => Effect.sync(() => isUnknown(error) || words.set(id, "failed")))
        )
      })
  }
}

/** Whether the error admits that the write may be in the database. */
const isUnknown = (error: unknown): boolean => {
  const typed = typedError(error)
  switch (typed?._tag) {
    case "OutcomeUnknown":
    case "DeadlineExceeded":
      return true
    case "StatementTimeout":
      return typed.by === "client"
    case "RetriesExhausted":
      return isUnknown(typed.last)
    default:
      return false
  }
}

/** How a failed call shows up in the counts: the typed error's tag, or the kind of the server's reply. */
export const nameOf = (error: unknown): string => {
  const typed = typedError(error)
  if (typed?._tag === "RetriesExhausted" && isUnknown(typed.last)) return "OutcomeUnknown"
  if (typed !== undefined) return typed._tag
  const failure = Pg.Errors.failureOf(error)
  const code = failure.sqlState ?? failure.code
  return code === undefined ? "Other" : `SqlError ${code}`
}

const typedError = (error: unknown): Pg.Errors.PoolError | undefined =>
  Pg.Errors.isPoolError(error) ? error : isSqlError(error) ? Pg.Errors.fromSqlError(error) : undefined
