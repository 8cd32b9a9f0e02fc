/**
 * What of a circuit outlives its process: plain values that JSON can carry, and the way back. Calls in flight, holds by
 * hand, and what was counted of single calls do not.
 */
import type { Circuit, Config } from "./breakerMachine.ts"
import * as Machine from "./breakerMachine.ts"
import * as Tally from "./breakerTally.ts"

/** All times are milliseconds of the wall clock; `null` is "never". */
export type Memory =
  | {
    readonly _tag: "Closed"
    readonly failures: number
    readonly lastFailureAt: number | null
    readonly openings: number
    readonly closedAt: number | null
    readonly lastOpenFor: number
    /** How many calls at a time were let in, `null` when any number. */
    readonly limit: number | null
  }
  | { readonly _tag: "Open"; readonly openedAt: number; readonly openFor: number; readonly openings: number }
  | { readonly _tag: "HalfOpen"; readonly openFor: number; readonly openings: number }

const orNull = (at: number): number | null => (Number.isFinite(at) ? at : null)

/** The memory of a circuit that has seen nothing. */
export const blank: Memory = {
  _tag: "Closed",
  failures: 0,
  lastFailureAt: null,
  openings: 0,
  closedAt: null,
  lastOpenFor: 0,
  limit: null
}

export const remember = (circuit: Circuit): Memory => {
  switch (circuit._tag) {
    case "Closed":
    case "Ramping": {
      const { closedAt, lastOpenFor, openings } = circuit
      const streak = circuit._tag === "Closed" && circuit.tally._tag === "Streak" ? circuit.tally : undefined
      return {
        _tag: "Closed",
        failures: streak?.failures ?? 0,
        lastFailureAt: orNull(streak?.lastFailureAt ?? -Infinity),
        openings,
        closedAt: orNull(closedAt),
        lastOpenFor,
        limit: circuit._tag === "Ramping" ? circuit.limit : null
      }
    }
    case "Open": {
      const { openFor, openedAt, openings } = circuit
      return { _tag: "Open", openedAt, openFor, openings }
    }
    case "HalfOpen":
      return { _tag: "HalfOpen", openFor: circuit.lastOpenFor, openings: circuit.openings }
    case "Isolated":
    case "Disabled":
      return blank
  }
}

/** The circuit as it stands at `now`, within the bounds of this process: the memory may be of another clock. */
export const recall = (memory: Memory, now: number, config: Config): Circuit => {
  const past = (at: number | null): number => at === null ? -Infinity : Math.min(at, now)
  switch (memory._tag) {
    case "Closed": {
      const { failures, limit, openings } = memory
      const lastOpenFor = Math.min(memory.lastOpenFor, config.maxOpenFor)
      const closedAt = past(memory.closedAt)
      if (limit !== null && config.ramp > 0) {
        return Machine.ramping(0, { openings, closedAt, lastOpenFor }, Math.min(limit, config.ramp))
      }
      const circuit = Machine.closed(0, { openings, closedAt, lastOpenFor }, config)
      if (config.trip._tag !== "Consecutive") return circuit
      // What is remembered opens nothing by itself: that takes a failure of now.
      const tally = Tally.streakOf(Math.min(failures, config.trip.failures - 1), past(memory.lastFailureAt))
      return { ...circuit, tally }
    }
    case "Open":
      return {
        _tag: "Open",
        generation: 0,
        openedAt: past(memory.openedAt),
        openFor: Math.min(memory.openFor, config.maxOpenFor),
        openings: memory.openings
      }
    case "HalfOpen": {
      // Whoever probed there cannot answer here: the next call probes.
      const openFor = Math.min(memory.openFor, config.maxOpenFor)
      return { _tag: "Open", generation: 0, openedAt: now - openFor, openFor, openings: memory.openings }
    }
  }
}
