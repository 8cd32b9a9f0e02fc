/**
 * The circuit breaker as a function: from a circuit and the time to the next circuit. Numbers in, numbers out; no
 * timer, no clock, no chance of its own. All times are milliseconds; `now` is the wall clock (it goes on while a
 * serverless environment is frozen, a monotonic clock may not), and may jump either way without doing harm.
 *
 * Every change of state and every probe begins a new generation, and an outcome that carries another generation than
 * the circuit's changes nothing, so an answer that comes late can neither close, reopen nor extend anything.
 *
 * A step changes the `_tag` at most once: the transition is the difference between the circuit before and after.
 */
import * as Tally from "./breakerTally.ts"

/** What a call may report when it is done. */
export type Outcome = "Success" | "Failure" | "Ignored"

/** The numbers that shape a circuit, all durations in milliseconds. */
export interface Config {
  /** What opens the circuit. */
  readonly trip: Tally.Trip
  /** How long the first opening lasts; each one after it lasts twice the previous. */
  readonly openFor: number
  /** An opening lasts its base times a number between these two. */
  readonly jitterMin: number
  readonly jitterMax: number
  /** No opening lasts longer. */
  readonly maxOpenFor: number
  /** A probe that has not answered by then loses its slot to the next call; so does a call of a ramp. */
  readonly probeLease: number
  /** How many calls at a time a recovering circuit lets in at most before it is fully closed; 0 for no ramp. */
  readonly ramp: number
}

/** Leave to make one call. Its outcome must be settled once, whatever happens to the call. */
export interface Permit {
  readonly _tag: "Permit"
  readonly generation: number
  /** The one call that finds out whether the database is back. */
  readonly probe: boolean
  /** One of the few calls that are let in at a time while a circuit that has just closed recovers. */
  readonly ramp: boolean
}

/** The answer to one call that wants in. */
export interface Admission {
  /** The circuit after it, `undefined` when it stays as it was. */
  readonly circuit: Circuit | undefined
  /** `undefined` when the call is rejected or, by a ramping circuit, has to wait its turn. */
  readonly permit: Permit | undefined
  /** How long a rejected call has to wait, in milliseconds: 0 for an admitted one. */
  readonly retryAfter: number
}

/** What a circuit remembers of its past openings, to stay open longer when they follow one another. */
interface Past {
  /** Openings without a quiet time between them, up to this close. */
  readonly openings: number
  readonly closedAt: number
  readonly lastOpenFor: number
}

/** Calls run; their outcomes are counted. */
export interface Closed extends Past {
  readonly _tag: "Closed"
  readonly generation: number
  readonly tally: Tally.Tally
  /** What every call gets in this generation, made once so that a healthy call allocates nothing. */
  readonly admission: Admission
}

/**
 * A circuit that has just closed: a few calls run at a time, and twice as many whenever as many as that have
 * succeeded, so that a server which has just come back is not met by all who wait for it.
 */
export interface Ramping extends Past {
  readonly _tag: "Ramping"
  readonly generation: number
  /** How many calls may run at a time now. */
  readonly limit: number
  /** How many have succeeded since the limit was last raised. */
  readonly successes: number
  readonly slots: ReadonlyArray<{ readonly permit: Permit; readonly since: number }>
}

/** Calls are rejected. */
export interface Open {
  readonly _tag: "Open"
  readonly generation: number
  readonly openedAt: number
  readonly openFor: number
  readonly openings: number
}

/** One call, the probe, finds out whether the database is back; the others are rejected while it does. */
export interface HalfOpen {
  readonly _tag: "HalfOpen"
  readonly generation: number
  /** When the probe in flight was admitted, `undefined` when the slot is free. */
  readonly probeSince: number | undefined
  readonly openings: number
  readonly lastOpenFor: number
}

/** Calls are rejected until somebody ends it: neither time nor a probe does. */
export interface Isolated {
  readonly _tag: "Isolated"
  readonly generation: number
  readonly reason: string
}

/** All calls run. Outcomes are counted, so that it can be told when the circuit would have opened. */
export interface Disabled {
  readonly _tag: "Disabled"
  readonly generation: number
  readonly tally: Tally.Tally
  /** How many times it would have opened. */
  readonly wouldHaveOpened: number
  /** When it last would have: like an open circuit it then counts nothing for `openFor`. */
  readonly lastAt: number
  readonly admission: Admission
}

export type Circuit = Closed | Ramping | Open | HalfOpen | Isolated | Disabled

/** Who keeps a circuit by hand from going its own way. Isolation wins. */
export interface Holds {
  readonly isolations: ReadonlyArray<{ readonly reason: string }>
  readonly disablings: number
}

const admitting = (generation: number): Admission => ({
  circuit: undefined,
  permit: { _tag: "Permit", generation, probe: false, ramp: false },
  retryAfter: 0
})

const noPast: Past = { openings: 0, closedAt: -Infinity, lastOpenFor: 0 }

const pastOf = ({ closedAt, lastOpenFor, openings }: Past): Past => ({ openings, closedAt, lastOpenFor })

/** A closed circuit that has counted nothing yet. */
export const closed = (generation: number, past: Past, config: Config): Closed => ({
  _tag: "Closed",
  generation,
  tally: Tally.empty(config.trip),
  ...past,
  admission: admitting(generation)
})

/** A circuit that has seen nothing yet. */
export const initial = (config: Config): Closed => closed(0, noPast, config)

/** A circuit that begins to recover. */
export const ramping = (generation: number, past: Past, limit: number): Ramping => ({
  _tag: "Ramping",
  generation,
  limit,
  successes: 0,
  slots: [],
  ...past
})

const disabled = (generation: number, config: Config): Disabled => ({
  _tag: "Disabled",
  generation,
  tally: Tally.empty(config.trip),
  wouldHaveOpened: 0,
  lastAt: -Infinity,
  admission: admitting(generation)
})

/** What is left of `length` since `start`: 0 to `length`, also when the clock went back before `start`. */
const timeLeft = (start: number, length: number, now: number): number => Math.max(0, length - Math.max(0, now - start))

const reject = (retryAfter: number, circuit: Circuit | undefined): Admission => ({
  circuit,
  permit: undefined,
  retryAfter
})

const probe = (circuit: Open | HalfOpen, now: number): Admission => {
  const generation = circuit.generation + 1
  return {
    circuit: {
      _tag: "HalfOpen",
      generation,
      probeSince: now,
      openings: circuit.openings,
      lastOpenFor: circuit._tag === "Open" ? circuit.openFor : circuit.lastOpenFor
    },
    permit: { _tag: "Permit", generation, probe: true, ramp: false },
    retryAfter: 0
  }
}

/** A ramp ends at the latest when the circuit has been closed for as long as a first opening lasts. */
const isRampOver = (circuit: Ramping, now: number, config: Config): boolean =>
  timeLeft(circuit.closedAt, config.openFor, now) <= 0

const endRamp = (circuit: Ramping, config: Config): Closed => closed(circuit.generation + 1, pastOf(circuit), config)

const admitToRamp = (circuit: Ramping, now: number, config: Config): Admission => {
  if (isRampOver(circuit, now, config)) {
    const next = endRamp(circuit, config)
    return { ...next.admission, circuit: next }
  }
  // The clock went back: count from what is seen now, or a slot would be held as much longer.
  const isSetBack = now < circuit.closedAt || circuit.slots.some(({ since }) => now < since)
  const current = isSetBack
    ? {
      ...circuit,
      closedAt: Math.min(circuit.closedAt, now),
      slots: circuit.slots.map(({ permit, since }) => ({ permit, since: Math.min(since, now) }))
    }
    : circuit
  const held = current.slots.filter(({ since }) => timeLeft(since, config.probeLease, now) > 0)
  if (held.length >= circuit.limit) return reject(retryAfter(current, now, config), isSetBack ? current : undefined)
  const permit: Permit = { _tag: "Permit", generation: circuit.generation, probe: false, ramp: true }
  return { circuit: { ...current, slots: [...held, { permit, since: now }] }, permit, retryAfter: 0 }
}

/** Decides on one call. */
export const admit = (circuit: Circuit, now: number, config: Config): Admission => {
  switch (circuit._tag) {
    case "Closed":
    case "Disabled":
      return circuit.admission
    case "Ramping":
      return admitToRamp(circuit, now, config)
    case "Open": {
      const left = timeLeft(circuit.openedAt, circuit.openFor, now)
      if (left <= 0) return probe(circuit, now)
      // The clock went back: count from what is seen now, or the circuit would stay open as much longer.
      return reject(left, now < circuit.openedAt ? { ...circuit, openedAt: now } : undefined)
    }
    case "HalfOpen": {
      if (circuit.probeSince === undefined) return probe(circuit, now)
      const left = timeLeft(circuit.probeSince, config.probeLease, now)
      if (left <= 0) return probe(circuit, now)
      return reject(left, now < circuit.probeSince ? { ...circuit, probeSince: now } : undefined)
    }
    case "Isolated":
      return reject(Infinity, undefined)
  }
}

/**
 * How long the n-th opening in a row lasts: `openFor`, doubled with each one, times a factor that `draw` (0 to 1)
 * places between the two ends of the jitter. Never shorter than `openFor`, never longer than `maxOpenFor`, and still
 * spread where the doubling meets the cap.
 */
export const openFor = (openings: number, draw: number, config: Config): number => {
  const jitter = config.jitterMin + draw * (config.jitterMax - config.jitterMin)
  const ceiling = Math.max(config.openFor, config.maxOpenFor / config.jitterMax)
  const wanted = Math.min(config.openFor * 2 ** (openings - 1), ceiling) * jitter
  return Math.min(config.maxOpenFor, Math.max(config.openFor, Math.floor(wanted)))
}

const open = (generation: number, openings: number, now: number, draw: number, config: Config): Open => ({
  _tag: "Open",
  generation: generation + 1,
  openedAt: now,
  openFor: openFor(openings, draw, config),
  openings
})

const settleClosed = (
  circuit: Closed,
  outcome: Outcome,
  now: number,
  config: Config,
  source: number | undefined,
  draw: number
): Closed | Open => {
  if (outcome === "Ignored") return circuit
  const tally = Tally.add(circuit.tally, outcome === "Failure", source, now, config.trip)
  if (tally === circuit.tally) return circuit
  if (Tally.trips(tally, config.trip)) {
    const isQuiet = now - circuit.closedAt >= circuit.lastOpenFor
    return open(circuit.generation, isQuiet ? 1 : circuit.openings + 1, now, draw, config)
  }
  // The clock went back: the quiet time is counted from here.
  const closedAt = outcome === "Failure" ? Math.min(circuit.closedAt, now) : circuit.closedAt
  return { ...circuit, tally, closedAt }
}

const settleRamping = (
  circuit: Ramping,
  permit: Permit,
  outcome: Outcome,
  now: number,
  config: Config,
  source: number | undefined,
  draw: number
): Circuit => {
  const slots = circuit.slots.filter((slot) => slot.permit !== permit)
  // It was settled before, or its slot was given to another call.
  if (slots.length === circuit.slots.length) return circuit
  if (isRampOver(circuit, now, config)) {
    return settleClosed(endRamp(circuit, config), outcome, now, config, source, draw)
  }
  switch (outcome) {
    case "Ignored":
      return { ...circuit, slots }
    case "Failure":
      return open(circuit.generation, circuit.openings + 1, now, draw, config)
    case "Success": {
      const successes = circuit.successes + 1
      if (successes < circuit.limit) return { ...circuit, slots, successes }
      if (circuit.limit >= config.ramp) return endRamp(circuit, config)
      return { ...circuit, slots, successes: 0, limit: Math.min(circuit.limit * 2, config.ramp) }
    }
  }
}

const settleDisabled = (
  circuit: Disabled,
  outcome: Outcome,
  now: number,
  config: Config,
  source: number | undefined
): Disabled => {
  if (outcome === "Ignored" || timeLeft(circuit.lastAt, config.openFor, now) > 0) return circuit
  const tally = Tally.add(circuit.tally, outcome === "Failure", source, now, config.trip)
  if (tally === circuit.tally) return circuit
  return Tally.trips(tally, config.trip)
    ? { ...circuit, tally: Tally.empty(config.trip), wouldHaveOpened: circuit.wouldHaveOpened + 1, lastAt: now }
    : { ...circuit, tally }
}

/**
 * Takes the outcome of an admitted call.
 *
 * `source` names the socket (or the attempt to connect) that failed; `draw` is a random number from 0 to 1, used only
 * when this outcome opens the circuit.
 */
export const settle = (
  circuit: Circuit,
  permit: Permit,
  outcome: Outcome,
  now: number,
  config: Config,
  source: number | undefined,
  draw: number
): Circuit => {
  if (permit.generation !== circuit.generation) return circuit
  switch (circuit._tag) {
    case "Closed":
      return settleClosed(circuit, outcome, now, config, source, draw)
    case "Ramping":
      return settleRamping(circuit, permit, outcome, now, config, source, draw)
    case "Disabled":
      return settleDisabled(circuit, outcome, now, config, source)
    case "Open":
    case "Isolated":
      return circuit
    case "HalfOpen":
      switch (outcome) {
        case "Success": {
          const { generation, lastOpenFor, openings } = circuit
          const past: Past = { openings, closedAt: now, lastOpenFor }
          return config.ramp === 0 ? closed(generation + 1, past, config) : ramping(generation + 1, past, 1)
        }
        case "Failure":
          return open(circuit.generation, circuit.openings + 1, now, draw, config)
        case "Ignored":
          return { ...circuit, generation: circuit.generation + 1, probeSince: undefined }
      }
  }
}

/** The circuit under the hands that are on it; a fresh one when the last has let go. */
export const hold = (circuit: Circuit, { disablings, isolations }: Holds, config: Config): Circuit => {
  const isolation = isolations.at(-1)
  if (isolation !== undefined) {
    const { reason } = isolation
    if (circuit._tag !== "Isolated") return { _tag: "Isolated", generation: circuit.generation + 1, reason }
    return circuit.reason === reason ? circuit : { ...circuit, reason }
  }
  if (disablings > 0) return circuit._tag === "Disabled" ? circuit : disabled(circuit.generation + 1, config)
  return circuit._tag === "Isolated" || circuit._tag === "Disabled"
    ? closed(circuit.generation + 1, noPast, config)
    : circuit
}

/** An open circuit whose time is over: the next call is the probe. Whoever holds it goes on holding it. */
export const endWait = (circuit: Circuit): Circuit =>
  circuit._tag !== "Open" ? circuit : {
    _tag: "HalfOpen",
    generation: circuit.generation + 1,
    probeSince: undefined,
    openings: circuit.openings,
    lastOpenFor: circuit.openFor
  }

/** The circuit with all that it has counted and remembers forgotten; whoever holds it goes on holding it. */
export const reset = (circuit: Circuit, config: Config): Circuit => {
  switch (circuit._tag) {
    case "Isolated":
      return circuit
    case "Disabled":
      return disabled(circuit.generation + 1, config)
    default:
      return closed(circuit.generation + 1, noPast, config)
  }
}

/** How long a call that comes now would be told to wait, in milliseconds: 0 when it would be let in. */
export const retryAfter = (circuit: Circuit, now: number, config: Config): number => {
  switch (circuit._tag) {
    case "Closed":
    case "Disabled":
      return 0
    case "Ramping": {
      if (isRampOver(circuit, now, config)) return 0
      const left = circuit.slots.map(({ since }) => timeLeft(since, config.probeLease, now)).filter((ms) => ms > 0)
      return left.length < circuit.limit ? 0 : Math.min(...left)
    }
    case "Open":
      return timeLeft(circuit.openedAt, circuit.openFor, now)
    case "HalfOpen":
      return circuit.probeSince === undefined ? 0 : timeLeft(circuit.probeSince, config.probeLease, now)
    case "Isolated":
      return Infinity
  }
}

/** The failures that count towards opening now. */
export const failures = (circuit: Closed | Ramping | Disabled, now: number, config: Config): number =>
  circuit._tag === "Ramping" ? 0 : Tally.failures(circuit.tally, now, config.trip)

/** How many calls at a time a recovering circuit lets in, `undefined` when any number. */
export const limitOf = (circuit: Closed | Ramping, now: number, config: Config): number | undefined =>
  circuit._tag === "Ramping" && !isRampOver(circuit, now, config) ? circuit.limit : undefined
