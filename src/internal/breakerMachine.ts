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

/** What a call may report when it is done. */
export type Outcome = "Success" | "Failure" | "Ignored"

/** The numbers that shape a circuit, all durations in milliseconds. */
export interface Config {
  /** Failures in a row that open the circuit. */
  readonly failures: number
  /** How long the first opening lasts; each one after it lasts twice the previous. */
  readonly openFor: number
  /** An opening lasts its base times a number between these two. */
  readonly jitterMin: number
  readonly jitterMax: number
  /** No opening lasts longer. */
  readonly maxOpenFor: number
  /** A failure that comes later than this after the previous one begins a new streak. */
  readonly streakWindow: number
  /** A probe that has not answered by then loses its slot to the next call. */
  readonly probeLease: number
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
  /** `undefined` when the call is rejected. */
  readonly permit: Permit | undefined
  /** How long a rejected call has to wait, in milliseconds: 0 for an admitted one. */
  readonly retryAfter: number
}

/** Calls run; failures in a row are counted. */
export interface Closed {
  readonly _tag: "Closed"
  readonly generation: number
  readonly streak: number
  readonly lastFailureAt: number
  /** The sockets whose failure is already in the streak: a broken one fails all its statements, and counts once. */
  readonly sources: ReadonlyArray<number>
  /** Openings without a quiet time between them, up to this close. */
  readonly openings: number
  readonly closedAt: number
  readonly lastOpenFor: number
  /** What every call gets in this generation, made once so that a healthy call allocates nothing. */
  readonly admission: Admission
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

export type Circuit = Closed | Open | HalfOpen

const none: ReadonlyArray<number> = []

const closed = (generation: number, openings: number, closedAt: number, lastOpenFor: number): Closed => ({
  _tag: "Closed",
  generation,
  streak: 0,
  lastFailureAt: -Infinity,
  sources: none,
  openings,
  closedAt,
  lastOpenFor,
  admission: { circuit: undefined, permit: { _tag: "Permit", generation, probe: false, ramp: false }, retryAfter: 0 }
})

/** A circuit that has seen nothing yet. */
export const initial: Closed = closed(0, 0, -Infinity, 0)

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

/** Decides on one call. */
export const admit = (circuit: Circuit, now: number, config: Config): Admission => {
  switch (circuit._tag) {
    case "Closed":
      return circuit.admission
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

const fail = (
  circuit: Closed,
  now: number,
  config: Config,
  source: number | undefined,
  draw: number
): Closed | Open => {
  const fresh = now - circuit.lastFailureAt > config.streakWindow
  const sources = fresh ? none : circuit.sources
  if (source !== undefined && sources.includes(source)) return circuit
  const streak = fresh ? 1 : circuit.streak + 1
  if (streak < config.failures) {
    return {
      ...circuit,
      streak,
      lastFailureAt: now,
      sources: source === undefined ? sources : [...sources, source],
      // The clock went back: the quiet time is counted from here.
      closedAt: Math.min(circuit.closedAt, now)
    }
  }
  const quiet = now - circuit.closedAt >= circuit.lastOpenFor
  return open(circuit.generation, quiet ? 1 : circuit.openings + 1, now, draw, config)
}

const settleClosed = (
  circuit: Closed,
  outcome: Outcome,
  now: number,
  config: Config,
  source: number | undefined,
  draw: number
): Closed | Open => {
  switch (outcome) {
    case "Success":
      return circuit.streak === 0 ? circuit : { ...circuit, streak: 0, lastFailureAt: -Infinity, sources: none }
    case "Failure":
      return fail(circuit, now, config, source, draw)
    case "Ignored":
      return circuit
  }
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
    case "Open":
      return circuit
    case "HalfOpen":
      switch (outcome) {
        case "Success":
          return closed(circuit.generation + 1, circuit.openings, now, circuit.lastOpenFor)
        case "Failure":
          return open(circuit.generation, circuit.openings + 1, now, draw, config)
        case "Ignored":
          return { ...circuit, generation: circuit.generation + 1, probeSince: undefined }
      }
  }
}

/** How long a call that comes now would be told to wait, in milliseconds: 0 when it would be let in. */
export const retryAfter = (circuit: Circuit, now: number, config: Config): number => {
  switch (circuit._tag) {
    case "Closed":
      return 0
    case "Open":
      return timeLeft(circuit.openedAt, circuit.openFor, now)
    case "HalfOpen":
      return circuit.probeSince === undefined ? 0 : timeLeft(circuit.probeSince, config.probeLease, now)
  }
}

/** The failures in a row that still count now. */
export const streak = (circuit: Closed, now: number, config: Config): number =>
  now - circuit.lastFailureAt > config.streakWindow ? 0 : circuit.streak
