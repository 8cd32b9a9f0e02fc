import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"

/**
 * What an effect comes to within `millis` milliseconds. It runs in a fiber of its own, since whoever asks must not wait
 * for the end of its interruption: that of a query on a dead connection takes seconds.
 */
export const exitWithin = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  millis: number
): Effect.Effect<Option.Option<Exit.Exit<A, E>>, never, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkDetach(effect), (fiber) =>
      restore(Effect.timeoutOption(Fiber.await(fiber), millis)).pipe(
        Effect.ensuring(Effect.sync(() => fiber.interruptUnsafe()))
      ))
  )

/** For how many milliseconds the answer to a question of health is good: strangers may ask often. */
export const goodFor = 1_000

/**
 * One answer for all who ask at the same time, and for whoever asks within `millis` milliseconds of it. The wall clock may be
 * set back, and must not keep an answer alive for that long.
 */
export const shared = <A>(ask: Effect.Effect<A>, millis: number): Effect.Effect<Effect.Effect<A>> =>
  Effect.map(Effect.cachedInvalidateWithTTL(ask, millis), ([answer, forget]) => {
    let askedAt = 0
    return Effect.flatMap(Clock.currentTimeMillis, (now) => {
      const isSetBack = now < askedAt
      askedAt = now
      return isSetBack ? Effect.andThen(forget, answer) : answer
    })
  })
