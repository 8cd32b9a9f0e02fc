/**
 * The words in which a failure is described and judged. Pure types and the small functions that combine them;
 * `Errors.ts` publishes them, the tables of this folder fill them in.
 */

/** What sort of trouble it was. */
export type Kind = typeof kinds[number]

/** All of them, in the order in which they are told. */
export const kinds = [
  "Unreachable",
  "Overloaded",
  "StaleConnection",
  "Contention",
  "Rejected",
  "Denied",
  "ReadOnly",
  "Cancelled",
  "Local"
] as const

/** How far the work had come when it failed. */
export type Phase = "Connect" | "BeforeWrite" | "InFlight" | "Transaction" | "Commit"

/** What is known about the work's effect on the database. */
export type Outcome = "NotRun" | "RolledBack" | "Unknown"

/** What a repetition would need, if it is safe at all. */
export type Retry = "Never" | "Now" | "Backoff" | "BackoffSlow"

/** What a circuit breaker should make of it. */
export type Signal = "Success" | "Failure" | "Ignored"

/** What should become of the session, and of its siblings. */
export type Disposal = "Keep" | "Evict" | "EvictAll"

export interface Verdict {
  readonly kind: Kind
  readonly effect: Outcome
  readonly retry: Retry
  readonly breaker: Signal
  readonly connection: Disposal
}

export interface Failure {
  readonly sqlState?: string | undefined
  readonly severity?: string | undefined
  readonly code?: string | undefined
  readonly message?: string | undefined
}

export interface Circumstances {
  readonly phase: Phase
  readonly reused: boolean
  readonly replied: boolean
}

/**
 * What a failure proves about a statement that had been written, or may have been.
 *
 * - `Undone`: the server's ERROR reply; it aborts the (implicit or explicit) transaction before it is sent.
 * - `Refused`: said before any statement is accepted; the statement waited for a session that never came.
 * - `Ended`: the session was ended while idle or idle in a transaction, before the next statement was read.
 * - `Lost`: the answer is missing. Autocommit or COMMIT may have been applied.
 * - `Doubtful`: an internal error. An ERROR has aborted the transaction; anything else proves nothing.
 * - `Unknowable`: the code itself says that the outcome is not known.
 */
export type Proof = "Undone" | "Refused" | "Ended" | "Lost" | "Doubtful" | "Unknowable"

/** One line of a table: the verdict on a failure before its circumstances are looked at. */
export interface Rule {
  readonly kind: Kind
  readonly proof: Proof
  readonly retry: Retry
  readonly breaker: Signal
  readonly connection: Disposal
}

/** FATAL and PANIC end the session, and can be sent after a commit, at the next interrupt check. */
export const isFatal = (severity: string | undefined): boolean => severity === "FATAL" || severity === "PANIC"

const afterWrite = (proof: Proof, phase: "InFlight" | "Commit", severity: string | undefined): Outcome => {
  switch (proof) {
    case "Ended":
      return "RolledBack"
    case "Undone":
      return isFatal(severity) ? "Unknown" : "RolledBack"
    case "Refused":
      return phase === "InFlight" ? "RolledBack" : "Unknown"
    case "Doubtful":
      return phase === "InFlight" && severity === "ERROR" ? "RolledBack" : "Unknown"
    case "Lost":
    case "Unknowable":
      return "Unknown"
  }
}

/**
 * What a failure leaves behind. `NotRun` follows from the phase alone, never from what a failure says: only before the
 * first byte is written is it certain that nothing ran.
 */
export const effectOf = (proof: Proof, phase: Phase, severity: string | undefined): Outcome => {
  switch (phase) {
    case "Connect":
    case "BeforeWrite":
      return "NotRun"
    case "Transaction":
      return proof === "Unknowable" ? "Unknown" : "RolledBack"
    case "InFlight":
    case "Commit":
      return afterWrite(proof, phase, severity)
  }
}

/** Whether failed work may be repeated, and whether that could help: see `isSafeToRepeat` of `Errors.ts`. */
export const isSafeToRepeat = (verdict: Verdict, idempotent: boolean): boolean =>
  verdict.retry !== "Never" && (idempotent || (verdict.effect !== "Unknown" && verdict.kind !== "Cancelled"))
