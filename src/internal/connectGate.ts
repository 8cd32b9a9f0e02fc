/**
 * The state that all connects of one pool share. A server that nobody has reached yet, or that has just failed, is tried
 * by one connect; each that works makes room for one more beside it, so that a server that is back is met by 1, 2, 4, ...
 * at once. Failed connects pause together, however many borrowers wait. Numbers in, decisions out: nothing here waits or
 * reads a clock.
 */
export interface ConnectGate<E> {
  /** Rounds of connects that failed since one worked; connects that were under way together are one round. */
  failures: number
  /** Wall-clock milliseconds before which no connect is tried. */
  shutUntil: number
  /** Milliseconds from the last failure until then. */
  pause: number
  /** What the last failed connect said: everybody who asks while the gate is shut gets it. */
  cause: E | undefined
  /** Connects under way. */
  connecting: number
  /** How many may be under way at once. */
  allowance: number
  round: number
  /** Wall-clock milliseconds at which one was wanted out of turn. */
  wantedAt: number | undefined
  /** Whether the connect under way is tried out of turn. */
  isOutOfTurn: boolean
}

const firstPause = 100
const pauseGrowth = 1.5
const longestPause = 2000
const longestSearchPause = 500

export const make = <E>(): ConnectGate<E> => ({
  failures: 0,
  shutUntil: 0,
  pause: 0,
  cause: undefined,
  connecting: 0,
  allowance: 1,
  round: 0,
  wantedAt: undefined,
  isOutOfTurn: false
})

/** `Go`: connect. `Wait`: as many as may be are under way. Otherwise the shared cause. */
export type Decision<E> = "Go" | "Wait" | { readonly cause: E; readonly retryAfter: number }

export const decide = <E>(gate: ConnectGate<E>, now: number): Decision<E> => {
  if (gate.connecting >= gate.allowance) return "Wait"
  if (isWanted(gate, now)) return "Go"
  const retryAfter = remainingPause(gate, now)
  return retryAfter > 0 ? { cause: gate.cause as E, retryAfter } : "Go"
}

/** Who wanted one may have gone without it. */
const isWanted = <E>({ wantedAt }: ConnectGate<E>, now: number): boolean =>
  wantedAt !== undefined && now >= wantedAt && now - wantedAt < firstPause

/** Milliseconds until the next connect may be tried, 0 when it may be tried now. */
export const remainingPause = <E>(gate: ConnectGate<E>, now: number): number => {
  const retryAfter = gate.shutUntil - now
  // A pause never grows because the wall clock was set back.
  return gate.failures > 0 && retryAfter > 0 && retryAfter <= gate.pause ? retryAfter : 0
}

export const pauseAfter = (failures: number): number =>
  Math.min(firstPause * pauseGrowth ** Math.max(failures - 1, 0), longestPause)

/** Hosts that answer are asked again soon: the next writer may have been promoted meanwhile. */
export const searchPauseAfter = (failures: number): number => Math.min(pauseAfter(failures), longestSearchPause)

/**
 * A server that is full is full for many processes at once, each of which a connect costs a process there. So they must
 * not come back together: any time from now to twice what it was the time before ("full jitter"), where `share` is from
 * 0 to 1.
 *
 * https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
 */
export const crowdPauseAfter = (share: number) => (failures: number): number =>
  share * Math.min(firstPause * 2 ** Math.max(failures - 1, 0), longestPause)

/** Notes that a connect sets out; the answer goes to `failed`. */
export const begin = <E>(gate: ConnectGate<E>, now: number): number => {
  gate.isOutOfTurn = isWanted(gate, now)
  gate.wantedAt = undefined
  gate.connecting++
  return gate.round
}

/** `isAway`: nobody has answered. */
export const failed = <E>(
  gate: ConnectGate<E>,
  round: number,
  cause: E,
  now: number,
  pauseOf: (failures: number) => number = pauseAfter,
  isAway = false
): void => {
  gate.cause = cause
  gate.allowance = 1
  if (round !== gate.round) return
  gate.round++
  const { isOutOfTurn } = gate
  gate.isOutOfTurn = false
  gate.wantedAt = undefined
  if (isOutOfTurn && isAway) return
  gate.failures++
  gate.pause = pauseOf(gate.failures)
  gate.shutUntil = now + gate.pause
}

export const succeeded = <E>(gate: ConnectGate<E>): void => {
  gate.failures = 0
  gate.cause = undefined
  gate.wantedAt = undefined
  gate.isOutOfTurn = false
  gate.shutUntil = 0
  gate.allowance++
}

/** Nothing is known of a server to which no session is left. */
export const forget = <E>(gate: ConnectGate<E>): void => {
  if (gate.failures === 0) gate.allowance = 1
}

/** What has failed a while ago, by a clock that stood still meanwhile, says nothing of now. */
export const reopen = <E>(gate: ConnectGate<E>): void => {
  gate.wantedAt = undefined
  gate.isOutOfTurn = false
  gate.shutUntil = 0
}

/**
 * Lets one connect be tried now by somebody who looks out for all: if nobody answers it, everybody else pauses as if it had
 * not been. A server that answers has been asked like any other time. What is under way already will tell as well.
 */
export const outOfTurn = <E>(gate: ConnectGate<E>, now: number): void => {
  if (gate.connecting === 0) gate.wantedAt = now
}
