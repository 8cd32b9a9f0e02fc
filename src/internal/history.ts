import type { Failure, Kind, Outcome } from "./verdict.ts"

/** One failed attempt. */
export interface Attempt {
  readonly attempt: number
  readonly kind: Kind
  readonly effect: Outcome
  readonly failure: Failure
  readonly delay: number
}

/** Kept beside the errors, so that one of the server's or of the caller's own can have a history too. */
const histories = new WeakMap<object, ReadonlyArray<Attempt>>()

export const remember = (error: unknown, history: ReadonlyArray<Attempt>): void => {
  if (history.length > 0 && typeof error === "object" && error !== null) histories.set(error, history.slice())
}

export const of = (error: unknown): ReadonlyArray<Attempt> | undefined =>
  typeof error === "object" && error !== null ? histories.get(error) : undefined
