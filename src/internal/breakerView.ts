/** What others see of a circuit: its state, and its changes. A circuit that recovers is a closed one to them. */
import type { Circuit, Config } from "./breakerMachine.ts"
import * as Machine from "./breakerMachine.ts"
import type { Failure } from "./verdict.ts"

/** The state of a circuit at one moment; times in milliseconds. */
export type State =
  | { readonly _tag: "Closed"; readonly failures: number; readonly limit?: number | undefined }
  | { readonly _tag: "Open"; readonly retryAfter: number; readonly lastFailure: Failure | null }
  | { readonly _tag: "HalfOpen"; readonly retryAfter: number }
  | { readonly _tag: "Isolated"; readonly reason: string }
  | { readonly _tag: "Disabled"; readonly failures: number }

/** A change of state. */
export type Transition =
  & { readonly key: string; readonly at: number }
  & (
    | {
      readonly from: "Closed" | "HalfOpen"
      readonly to: "Open"
      /** How long the circuit stays open, in milliseconds. */
      readonly retryAfter: number
      /** Openings without a quiet time between them, this one included. */
      readonly consecutiveOpenings: number
      /** The failure that opened it. */
      readonly failure?: Failure | undefined
    }
    | { readonly from: "Open"; readonly to: "HalfOpen" }
    | { readonly from: "Open" | "HalfOpen" | "Isolated" | "Disabled"; readonly to: "Closed" }
    | { readonly from: "Closed" | "Open" | "HalfOpen" | "Disabled"; readonly to: "Isolated"; readonly reason: string }
    | { readonly from: "Closed" | "Open" | "HalfOpen" | "Isolated"; readonly to: "Disabled" }
    | {
      readonly from: "Disabled"
      readonly to: "Disabled"
      /** The failure that would have opened it. */
      readonly failure?: Failure | undefined
    }
  )

/** The state of the circuit at `now`. */
export const stateOf = (circuit: Circuit, now: number, config: Config, lastFailure: Failure | null): State => {
  switch (circuit._tag) {
    case "Closed":
    case "Ramping": {
      const limit = Machine.limitOf(circuit, now, config)
      const failures = Machine.failures(circuit, now, config)
      return limit === undefined ? { _tag: "Closed", failures } : { _tag: "Closed", failures, limit }
    }
    case "Open":
      return { _tag: "Open", retryAfter: Machine.retryAfter(circuit, now, config), lastFailure }
    case "HalfOpen":
      return { _tag: "HalfOpen", retryAfter: Machine.retryAfter(circuit, now, config) }
    case "Isolated":
      return { _tag: "Isolated", reason: circuit.reason }
    case "Disabled":
      return { _tag: "Disabled", failures: Machine.failures(circuit, now, config) }
  }
}

const tagOf = (circuit: Circuit): State["_tag"] => circuit._tag === "Ramping" ? "Closed" : circuit._tag

/** What the step from one circuit to the next is to others, if anything. */
export const transitionOf = (
  key: string,
  previous: Circuit,
  next: Circuit,
  at: number,
  lastFailure: Failure | null
): Transition | undefined => {
  const from = tagOf(previous)
  const to = tagOf(next)
  const failure = lastFailure ?? undefined
  if (previous._tag === "Disabled" && next._tag === "Disabled") {
    return next.wouldHaveOpened > previous.wouldHaveOpened
      ? { key, from: "Disabled", to: "Disabled", at, failure }
      : undefined
  }
  if (from === to) return undefined
  const change = next._tag === "Open"
    ? { key, from, to, at, retryAfter: next.openFor, consecutiveOpenings: next.openings, failure }
    : next._tag === "Isolated"
    ? { key, from, to, at, reason: next.reason }
    : { key, from, to, at }
  // The machine makes no other changes than the type lists: its model test knows them all.
  return change as Transition
}
