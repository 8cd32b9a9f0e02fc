/** What an HTTP client is told of a failure: a status that it can act on, and codes; nothing that was said anywhere. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { isSqlError } from "effect/sql/SqlError"
import { digFailure, nameOf, PoolErrorTypeId } from "./failure.ts"

/** Whoever was asked on behalf of the client did not answer in time: RFC 9110, section 15.6.5. */
const tooLate: ReadonlySet<string> = new Set(["InvocationTimeout", "DeadlineExceeded", "StatementTimeout"])

/** Nothing ran, and whether it will is not up to whoever asks. */
const unavailable: ReadonlySet<string> = new Set([
  "CircuitOpen",
  "CircuitHalfOpen",
  "CircuitIsolated",
  "PoolClosed",
  "NoSuitableHost",
  "CredentialsFailed"
])

interface Failure {
  readonly name: string
  /** Of ours, so that its name means what it says. */
  readonly isTyped: boolean
  /** Nothing of the work is left, and the same again may succeed. */
  readonly isRetryable: boolean
  readonly retryAfter: unknown
}

const read = (error: unknown, key: string): unknown => Predicate.hasProperty(error, key) ? error[key] : undefined

const isTyped = (error: unknown): boolean =>
  Predicate.hasProperty(error, PoolErrorTypeId) || Predicate.isTagged(error, "InvocationTimeout")

const failureOf = (error: unknown): Failure => {
  const isOfDriver = isSqlError(error)
  const reason = isOfDriver ? error.reason : undefined
  const told = isTyped(reason?.cause) ? reason?.cause : error
  const typed = isTyped(told)
  return {
    name: nameOf(typed ? told : reason ?? told) ?? "Error",
    isTyped: typed,
    // What a program's own errors say of themselves is for itself.
    isRetryable: (typed || isOfDriver) && read(told, "isRetryable") === true,
    retryAfter: typed ? read(told, "retryAfter") : undefined
  }
}

/**
 * Proxies repeat what was answered with 503 (RFC 9110, section 15.6.4), so only that has it of which nothing was applied;
 * an outcome that is not known is a 500.
 */
const statusOf = ({ isRetryable, isTyped, name }: Failure): number => {
  if (isTyped && tooLate.has(name)) return 504
  return isRetryable || (isTyped && unavailable.has(name)) ? 503 : 500
}

/** Whole seconds, as RFC 9110, section 10.2.3 has it; none would be an invitation to ask at once. */
const seconds = (millis: number): string => String(Math.max(1, Math.ceil(millis / 1_000)))

/** What nobody has foreseen has to be found by somebody. All else is told by its status. */
export const line = (cause: Cause.Cause<unknown>): Effect.Effect<void> | undefined =>
  Cause.hasInterruptsOnly(cause) || statusOf(failureOf(Cause.squash(cause))) !== 500
    ? undefined
    : Effect.logError("A request has failed: it was answered with 500, or its answer broke off.", cause)

export const answer = (error: unknown): Response => {
  const failure = failureOf(error)
  const headers = new Headers({ "content-type": "application/json", "cache-control": "no-store" })
  if (typeof failure.retryAfter === "number") headers.set("retry-after", seconds(failure.retryAfter))
  const { sqlState } = digFailure(error)
  return new Response(JSON.stringify({ error: failure.name, sqlState }), { status: statusOf(failure), headers })
}
