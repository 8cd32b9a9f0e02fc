import type { State as BreakerState } from "./breakerView.ts"
import type { LastFailure } from "./store.ts"
import type { VitalSigns } from "./vitalSigns.ts"

/** `up`: it answers. `degraded`: send work, but expect delays or some failures. `down`: send work elsewhere. */
export type State = "up" | "degraded" | "down"

/** All that can be known without asking. Times are milliseconds, those that something happened at of the wall clock. */
export interface Facts {
  readonly now: number
  readonly isClosing: boolean
  readonly breaker: BreakerState
  readonly pool: {
    readonly active: number
    readonly waiting: number
    readonly connecting: number
    readonly max: number
    /** Places of sessions that have ended here, and not yet on the server. */
    readonly leaving: number
  }
  readonly signs: VitalSigns
  readonly lastFailure: LastFailure | undefined
  readonly connectPause: number
}

export interface Rules {
  /** How long, in milliseconds, an answer speaks for the database. */
  readonly freshFor: number
  /** Whether a pool that nobody uses may be asked. */
  readonly probe: boolean
}

/** What the facts say: the worst of them is the state, unless the database is still to be asked. */
export interface Findings {
  readonly state: State
  readonly reasons: ReadonlyArray<string>
  readonly asks: boolean
}

/** What became of the question. */
export type Answer =
  | { readonly _tag: "Answered"; readonly latency: number }
  | { readonly _tag: "Silent"; readonly after: number }
  /** It had to wait for others, which says nothing about the database. */
  | { readonly _tag: "Crowded" }
  | { readonly _tag: "Failed"; readonly name: string | undefined }

const seconds = (millis: number): string => `${(millis / 1_000).toFixed(1)} s`

const callers = (count: number): string => count === 1 ? "1 caller waits" : `${count} callers wait`

const calls = (count: number): string => count === 1 ? "1 call" : `${count} calls`

const connections = (count: number): string => count === 1 ? "The only connection is" : `All ${count} connections are`

const isFull = ({ active, max }: Facts["pool"]): boolean => active >= max

/** Whether a session could be taken, and at least one be left for borrowers. A pool of one has no other to ask. */
const hasRoom = ({ active, connecting, leaving, max, waiting }: Facts["pool"]): boolean => {
  const free = max - active - connecting - leaving
  return max === 1 ? free >= 1 && waiting === 0 : free >= 2
}

/** Failures that say something of the database: the others are about one statement, or about its caller. */
const isOfDatabase = ({ kind }: LastFailure): boolean => kind === "Unreachable" || kind === "Overloaded"

const isDue = (breaker: BreakerState): boolean => breaker._tag === "Open" && breaker.retryAfter <= 0

const against = ({ breaker, isClosing }: Facts): ReadonlyArray<string> => {
  const reasons: Array<string> = []
  if (isClosing) reasons.push("The pool is closing and takes no new work.")
  if (breaker._tag === "Isolated") reasons.push("The circuit breaker was isolated by hand.")
  if (breaker._tag === "Open" && !isDue(breaker)) {
    const { retryAfter } = breaker
    reasons.push(
      `The circuit breaker is open after repeated failures; it lets a call through in ${seconds(retryAfter)}.`
    )
  }
  return reasons
}

const doubts = ({ breaker, connectPause, pool, signs }: Facts): ReadonlyArray<string> => {
  const reasons: Array<string> = []
  if (breaker._tag === "HalfOpen") {
    reasons.push("The circuit breaker lets one call through to see whether the database is back.")
  }
  if (signs.isSuspended) reasons.push("The pool was suspended by hand: whoever asks for a connection waits.")
  if (isFull(pool) && pool.waiting > 0) {
    reasons.push(`${connections(pool.max)} in use and ${callers(pool.waiting)}.`)
  }
  if (connectPause > 0) reasons.push(`The last connect failed; the next one is tried in ${seconds(connectPause)}.`)
  return reasons
}

const remarks = ({ breaker }: Facts): ReadonlyArray<string> =>
  breaker._tag === "Disabled"
    ? ["The circuit breaker was disabled by hand."]
    : breaker._tag === "Closed" && breaker.limit !== undefined
    ? [`The circuit breaker has just closed and lets ${calls(breaker.limit)} in at a time.`]
    : []

/** Milliseconds since the last answer of a session that is open, if nothing speaks against the database since then. */
const freshness = ({ lastFailure, now, signs: { lastProofAt } }: Facts): number | undefined => {
  if (lastProofAt === undefined) return undefined
  if (lastFailure !== undefined && isOfDatabase(lastFailure) && lastFailure.at > lastProofAt) return undefined
  // What lies in the future was noted before the clock was set back, and proves nothing.
  return lastProofAt > now ? undefined : now - lastProofAt
}

/** What is believed of a pool that nobody uses, and that must not be asked. Never `down`, which would keep traffic away. */
const unasked = (facts: Facts): readonly [State, string] => {
  const { lastFailure, now, signs: { lastAnswerAt } } = facts
  if (isDue(facts.breaker)) return ["degraded", "The circuit breaker waits for a call to let through; not asked."]
  if (
    lastFailure !== undefined && isOfDatabase(lastFailure) &&
    (lastAnswerAt === undefined || lastFailure.at > lastAnswerAt)
  ) return ["degraded", `The last use failed ${seconds(Math.max(0, now - lastFailure.at))} ago; not asked.`]
  return [
    "up",
    lastAnswerAt === undefined
      ? "The database has not been used yet; not asked."
      : `The database answered ${seconds(Math.max(0, now - lastAnswerAt))} ago; not asked since.`
  ]
}

/** The worst that the facts say, and all of it in words. */
const findingsOf = (facts: Facts, state: State, ...reasons: ReadonlyArray<string>): Findings => {
  const objections = against(facts)
  const doubtful = doubts(facts)
  return {
    state: objections.length > 0 ? "down" : state === "up" && doubtful.length > 0 ? "degraded" : state,
    reasons: [...objections, ...reasons, ...doubtful, ...remarks(facts)],
    asks: false
  }
}

/** Goes down the ladder of `Health.make`. `insists`: the database is asked if that can be done at all. */
export const judge = (facts: Facts, rules: Rules, insists: boolean): Findings => {
  const { breaker, pool, signs } = facts
  if (against(facts).length > 0) return findingsOf(facts, "down")
  const age = freshness(facts)
  if (!isDue(breaker) && !insists && age !== undefined && age <= rules.freshFor) {
    return findingsOf(facts, "up", `The database answered ${seconds(age)} ago.`)
  }
  if (breaker._tag === "HalfOpen" || signs.isSuspended) return findingsOf(facts, "degraded")
  if (isFull(pool)) return findingsOf(facts, "degraded", "No connection is free to ask the database by.")
  if (!hasRoom(pool)) {
    return findingsOf(facts, "degraded", "The last free connection is kept for borrowers; the database was not asked.")
  }
  if (!rules.probe && !insists) return findingsOf(facts, ...unasked(facts))
  return { state: "up", reasons: [], asks: true }
}

/** What the facts say once the database was asked. */
export const conclude = (facts: Facts, answer: Answer): Findings => {
  switch (answer._tag) {
    case "Answered":
      return isDue(facts.breaker)
        ? findingsOf(facts, "degraded", "The database answers again; the circuit breaker closes with the next call.")
        : findingsOf(facts, "up", "The database answered SELECT 1.")
    case "Crowded":
      return findingsOf(facts, "degraded", "No connection came free to ask the database by.")
    case "Silent":
      return findingsOf(facts, "down", `The database did not answer SELECT 1 within ${seconds(answer.after)}.`)
    case "Failed":
      return findingsOf(
        facts,
        "down",
        answer.name === undefined ? "SELECT 1 was cut short." : `SELECT 1 failed: ${answer.name}.`
      )
  }
}
