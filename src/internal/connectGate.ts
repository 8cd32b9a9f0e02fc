/**
 * The state that all connects of one pool share, so that a dead server is tried by one connect at a time, with growing
 * pauses, however many borrowers wait. Numbers in, decisions out: nothing here waits or reads a clock.
 */
export interface ConnectGate<E> {
  /** Connects that failed since the last one that worked. */
  failures: number
  /** Wall-clock milliseconds before which no connect is tried. */
  shutUntil: number
  /** What the last failed connect said: everybody who asks while the gate is shut gets it. */
  cause: E | undefined
  /** Connects under way. */
  connecting: number
}

const firstPause = 100
const pauseGrowth = 1.5
const longestPause = 2000

export const make = <E>(): ConnectGate<E> => ({ failures: 0, shutUntil: 0, cause: undefined, connecting: 0 })

/** `Go`: connect. `Wait`: another connect is finding out for everybody. Otherwise the shared cause. */
export type Decision<E> = "Go" | "Wait" | { readonly cause: E; readonly retryAfter: number }

export const decide = <E>(gate: ConnectGate<E>, now: number): Decision<E> => {
  if (gate.failures === 0) return "Go"
  if (gate.connecting > 0) return "Wait"
  const pause = pauseAfter(gate.failures)
  const retryAfter = gate.shutUntil - now
  // A pause never grows because the wall clock was set back.
  return retryAfter > 0 && retryAfter <= pause ? { cause: gate.cause as E, retryAfter } : "Go"
}

export const pauseAfter = (failures: number): number =>
  Math.min(firstPause * pauseGrowth ** Math.max(failures - 1, 0), longestPause)

export const failed = <E>(gate: ConnectGate<E>, cause: E, now: number): void => {
  gate.failures++
  gate.cause = cause
  gate.shutUntil = now + pauseAfter(gate.failures)
}

export const succeeded = <E>(gate: ConnectGate<E>): void => {
  gate.failures = 0
  gate.cause = undefined
  gate.shutUntil = 0
}
