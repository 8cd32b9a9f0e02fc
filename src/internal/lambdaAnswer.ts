/** What a caller of a function is told of its failure: a name, a sentence and a SQLSTATE, and nothing that is secret. */
import * as Cause from "effect/Cause"
import { isSqlError } from "effect/sql/SqlError"
import { framesOf } from "./discretion.ts"
import { describe, digFailure, nameOf, PoolErrorTypeId } from "./failure.ts"
import * as Showable from "./showable.ts"

/** The failure that counts: what was failed with, else what was thrown, else what is left of an interruption. */
const culprit = (cause: Cause.Cause<unknown>): unknown => Cause.squash(cause)

export const encode = (cause: Cause.Cause<unknown>): Error => {
  const error = culprit(cause)
  const text = isSqlError(error) ? describe(digFailure(error)) : error instanceof Error ? error.message : String(error)
  const answer = new Error(Showable.discreet(text))
  answer.name = nameOf(error) ?? "Error"
  answer.stack = `${answer.name}: ${answer.message}${error instanceof Error ? framesOf(error) : ""}`
  const { sqlState } = digFailure(error)
  return sqlState === undefined ? answer : Object.assign(answer, { sqlState })
}

export const isTyped = (error: unknown): boolean =>
  typeof error === "object" && error !== null && PoolErrorTypeId in error
