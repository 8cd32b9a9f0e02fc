/** What an HTTP client is told of a failure: a status that it can act on, and codes; nothing that was said anywhere. */
import type * as Cause from "effect/Cause"
import * as Predicate from "effect/Predicate"
import { isSqlError } from "effect/sql/SqlError"
import { digFailure, nameOf, PoolErrorTypeId, read } from "./failure.ts"
import * as LambdaAnswer from "./lambdaAnswer.ts"

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

const isTyped = (error: unknown): boolean =>
  Predicate.hasProperty(error, PoolErrorTypeId) || Predicate.isTagged(error, "InvocationTimeout")

const failureOf = (error: unknown): Failure => {
  const typed = isTyped(error)
  return {
    name: nameOf(error) ?? "Error",
    isTyped: typed,
    // What a program's own errors say of themselves is for itself.
    isRetryable: (typed || isSqlError(error)) && read(error, "isRetryable") === true,
    retryAfter: typed ? read(error, "retryAfter") : undefined
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

export const answer = (cause: Cause.Cause<unknown>): Response => {
  const error = LambdaAnswer.subjectOf(cause)
  const failure = failureOf(error)
  const headers = new Headers({ "content-type": "application/json", "cache-control": "no-store" })
  if (typeof failure.retryAfter === "number") headers.set("retry-after", seconds(failure.retryAfter))
  const { sqlState } = digFailure(error)
  return new Response(JSON.stringify({ error: failure.name, sqlState }), { status: statusOf(failure), headers })
}
