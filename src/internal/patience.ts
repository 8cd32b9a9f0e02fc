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
  Effect.flatMap(Effect.forkDetach(effect), (fiber) =>
    Effect.timeoutOption(Fiber.await(fiber), millis).pipe(
      Effect.ensuring(Effect.sync(() => fiber.interruptUnsafe()))
    ))
