import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Bell from "./bell.ts"

/**
 * Looks out for a server that could not be reached, for as long as somebody waits for it: one connect at a time, however many
 * wait. Nobody has to wait for the end of a circuit's time to learn that the server has long been back.
 */
export interface Lookout {
  /** Whether there is anything to look out for: no connect has worked since one failed. */
  readonly isNeeded: () => boolean
  /** Waits until the server is back, so many milliseconds at the most; `false` if looking out for it has broken down. */
  readonly wait: (millis: number) => Effect.Effect<boolean>
}

/** `Refused`: nobody listens there. `Starting`: a server is there that lets nobody in yet, or no more. */
export type Sign = "Refused" | "Starting" | undefined

/** What a lookout goes by. */
export interface Surroundings {
  /** Wall-clock milliseconds. */
  readonly now: () => number
  /** A random number from 0 to 1. */
  readonly draw: () => number
  readonly runFork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  /** Whether the last connect has failed. */
  readonly isOutOfReach: () => boolean
  /** The least pause that the server has asked for: one that is full is not to be asked as often as one that is away. */
  readonly leastPause: () => number
  /** One connect: whether there is a session now. */
  readonly connect: Effect.Effect<boolean>
  /** What the last connect was told. */
  readonly sign: () => Sign
  /** The server has let a session in, for which so many wait. */
  readonly reached: (waiting: number) => Effect.Effect<void>
  /** Nobody will ever be let in again. */
  readonly isOver: () => boolean
  /** Succeeds when that has come. */
  readonly over: Effect.Effect<void>
}

/** The shortest pause, and the share of an outage by which it may be noticed too late that it is over. */
const usual = { shortest: 50, share: 0.02 }
/** A connect to a port at which nobody listens costs no server a process. */
const refused = { shortest: 20, share: 0.01 }
/** That a server has begun to start is news: it may be there in a moment. */
const starting = { shortest: 20, share: 0.5 }
const longestPause = 2_000

const pause = ({ share, shortest }: typeof usual, lasted: number): number =>
  Math.min(Math.max(lasted * share, shortest), longestPause)

/** Milliseconds until the next connect, when the server has been away for so long, and has said for so long that it starts. */
export const pauseAfter = (away: number, sign?: Sign, startingFor = 0): number =>
  sign === "Refused"
    ? pause(refused, away)
    : sign === "Starting"
    ? Math.min(pause(starting, startingFor), pause(usual, away))
    : pause(usual, away)

export const make = (surroundings: Surroundings): Lookout => {
  const { connect, draw, isOutOfReach, isOver, leastPause, now, over, reached, runFork, sign } = surroundings
  const bell = Bell.make()
  let waiting = 0
  let watch: { fiber: Fiber.Fiber<void> | undefined } | undefined
  let awaySince: number | undefined
  let startingSince: number | undefined
  let lastLook: number | undefined
  /** Watches that have come to an end: the server is back, or there is nothing more to look out for. */
  let ends = 0
  let hasBrokenDown = false

  const isNeeded = (): boolean => {
    const isNeeded = isOutOfReach() && !isOver()
    if (!isNeeded) awaySince = startingSince = lastLook = undefined
    return isNeeded
  }

  const look: Effect.Effect<void> = Effect.suspend(() => {
    if (!isNeeded()) return isOver() ? Effect.void : reached(waiting)
    const at = now()
    awaySince ??= at
    const said = sign()
    startingSince = said === "Starting" ? startingSince ?? at : undefined
    // A fleet must not come all at once.
    const pause = pauseAfter(at - awaySince, said, at - (startingSince ?? at)) * (0.75 + draw() / 2)
    // Nobody may have waited for a while. The wall clock may have been set back.
    const rest = Math.min(Math.max((lastLook ?? at) + pause - at, 0), pause)
    return Effect.sleep(Math.max(rest, leastPause())).pipe(
      Effect.andThen(Effect.suspend(() => {
        lastLook = now()
        return connect
      })),
      Effect.flatMap((isThere) => isThere ? reached(waiting) : look)
    )
  })

  /**
   * However a watch ends, even by a defect, whoever waits looks for himself, and the next who comes begins another one. Nobody
   * waits for a pause or a connect of it once the pool closes.
   */
  const begin = (): void => {
    const own: { fiber: Fiber.Fiber<void> | undefined } = watch = { fiber: undefined }
    const watching = Effect.onExitPrimitive(Effect.raceFirst(look, over), (exit) => {
      if (watch !== own) return undefined
      hasBrokenDown = Exit.isFailure(exit)
      watch =
        awaySince =
        startingSince =
        lastLook =
          undefined
      ends++
      bell.notify()
      return undefined
    })
    own.fiber = runFork(Effect.ignoreCause(watching, {
      log: "Unhandled",
      message: "Unhandled error while looking out for the server"
    }))
  }

  const leave = Effect.sync(() => {
    waiting--
    if (waiting > 0 || watch === undefined) return
    const { fiber } = watch
    watch = undefined
    fiber?.interruptUnsafe()
  })

  return {
    isNeeded,
    wait: (millis) =>
      Effect.uninterruptibleMask((restore) => {
        const seen = ends
        waiting++
        if (watch === undefined) begin()
        return Effect.ensuring(
          restore(Effect.map(
            Effect.timeoutOption(bell.until(() => ends > seen), millis),
            (end) => Option.isNone(end) || !hasBrokenDown
          )),
          leave
        )
      })
  }
}
