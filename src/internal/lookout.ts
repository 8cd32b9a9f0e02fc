import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Bell from "./bell.ts"

/**
 * Looks out for a server that could not be reached, for as long as somebody waits for it: one connect at a time, however many
 * wait. Nobody has to wait for the end of a circuit's time to learn that the server has long been back.
 */
export interface Lookout {
  /** Whether there is anything to look out for: no connect has worked since one failed. */
  readonly isNeeded: () => boolean
  /** Waits until the server is back, so many milliseconds at the most. */
  readonly wait: (millis: number) => Effect.Effect<void>
}

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
  /** The server has let a session in. */
  readonly reached: Effect.Effect<void>
  /** Nobody will ever be let in again. */
  readonly isOver: () => boolean
  /** Succeeds when that has come. */
  readonly over: Effect.Effect<void>
}

const shortestPause = 50
const longestPause = 2_000
/** Of an outage, by which it may be noticed too late that it is over. */
const share = 0.02

/** Milliseconds until the next connect, when the server has been away for so long. */
export const pauseAfter = (away: number): number => Math.min(Math.max(away * share, shortestPause), longestPause)

export const make = (surroundings: Surroundings): Lookout => {
  const { connect, draw, isOutOfReach, isOver, leastPause, now, over, reached, runFork } = surroundings
  const bell = Bell.make()
  let waiting = 0
  let watch: { fiber: Fiber.Fiber<void> | undefined } | undefined
  let awaySince: number | undefined
  let lastLook: number | undefined
  /** Watches that have come to an end: the server is back, or there is nothing more to look out for. */
  let ends = 0

  const isNeeded = (): boolean => {
    const isNeeded = isOutOfReach() && !isOver()
    if (!isNeeded) awaySince = lastLook = undefined
    return isNeeded
  }

  const look: Effect.Effect<void> = Effect.suspend(() => {
    if (!isNeeded()) return isOver() ? Effect.void : reached
    const at = now()
    awaySince ??= at
    // A fleet must not come all at once.
    const pause = pauseAfter(at - awaySince) * (0.75 + draw() / 2)
    // Nobody may have waited for a while. The wall clock may have been set back.
    const rest = Math.min(Math.max((lastLook ?? at) + pause - at, 0), pause)
    return Effect.sleep(Math.max(rest, leastPause())).pipe(
      Effect.andThen(Effect.suspend(() => {
        lastLook = now()
        return connect
      })),
      Effect.flatMap((isThere) => isThere ? reached : look)
    )
  })

  /**
   * However a watch ends, even by a defect, whoever waits looks for himself, and the next who comes begins another one. Nobody
   * waits for a pause or a connect of it once the pool closes.
   */
  const begin = (): void => {
    const own: { fiber: Fiber.Fiber<void> | undefined } = watch = { fiber: undefined }
    const kept = Effect.ignoreCause(Effect.raceFirst(look, over), {
      log: "Unhandled",
      message: "Unhandled error while looking out for the server"
    })
    own.fiber = runFork(Effect.onExitPrimitive(kept, () => {
      if (watch !== own) return undefined
      watch = awaySince = lastLook = undefined
      ends++
      bell.notify()
      return undefined
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
          restore(Effect.asVoid(Effect.timeoutOption(bell.until(() => ends > seen), millis))),
          leave
        )
      })
  }
}
