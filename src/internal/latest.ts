import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/**
 * Makes a way to have an effect run in the background of the scope, from where there is no fiber to fork in. It runs
 * once at a time; asked for while it runs, it runs once more afterwards. No fiber waits between.
 */
export const make = <R>(
  effect: Effect.Effect<unknown, never, R>
): Effect.Effect<() => void, never, R | Scope.Scope> =>
  Effect.gen(function*() {
    const scope = yield* Effect.scope
    const runFork = Effect.runForkWith(yield* Effect.context<R>())
    let isRunning = false
    let isStale = false
    const untilFresh: Effect.Effect<void, never, R> = Effect.suspend(() => {
      isStale = false
      return Effect.andThen(
        effect,
        Effect.suspend(() => {
          if (isStale) return untilFresh
          // In the same step: whoever asks from here on starts it anew.
          isRunning = false
          return Effect.void
        })
      )
    })
    const running = Effect.onError(untilFresh, () =>
      Effect.sync(() => {
        isRunning = false
      }))
    return () => {
      isStale = true
      if (isRunning) return
      isRunning = true
      runFork(Effect.forkIn(running, scope))
    }
  })
