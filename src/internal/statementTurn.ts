import type * as Effect from "effect/Effect"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as Bell from "./bell.ts"

/**
 * The statements of one transaction, which run one after the other, and none of them after its end: a fiber that was left
 * behind must not run its own on a session that belongs to somebody else by then. It is what the driver's `pin` is for, and
 * costs nothing while nobody waits.
 */
export class Turn {
  isTaken = false
  isOver = false
  private bell: Bell.Bell | undefined

  /** Succeeds when it may be somebody's turn. */
  get free(): Effect.Effect<void> {
    this.bell ??= Bell.make()
    return this.bell.until(() => !this.isTaken)
  }

  end(): void {
    this.isTaken = false
    this.bell?.notify()
  }
}

export const over = (): SqlError => {
  const message = "The transaction has ended, and a statement of it came after its end"
  return new SqlError({ reason: new ConnectionError({ cause: new Error(message), message, operation: "query" }) })
}
