/** A program that a container runs, from its start to the signal that ends it. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { constants } from "node:os"

export type Signal = NodeJS.Signals

interface Environment<R> {
  readonly runExit: <A, E>(
    effect: Effect.Effect<A, E, R | Scope.Scope>,
    options: { readonly signal: AbortSignal }
  ) => Promise<Exit.Exit<A, unknown>>
  readonly dispose: (within: number) => Promise<void>
}

/** Node ends a process in which nothing is left to do; one that waits for a signal has something left to do. */
const alive = Effect.forever(Effect.sleep("1 days"))

/** As shells and containers have it. */
const codeOf = (signal: Signal): number => 128 + constants.signals[signal]

/**
 * A signal interrupts the work. What is left of its time then is the layer's, so that both have ended `within` milliseconds
 * of it, however the work takes it.
 */
export const run = <A, E, R>(
  environment: Environment<R>,
  main: Effect.Effect<A, E, R | Scope.Scope>,
  { signals, within }: { readonly signals: ReadonlyArray<Signal>; readonly within: number }
): Promise<A> => {
  const stop = new AbortController()
  const signalled = Deferred.makeUnsafe<void>()
  let received: Signal | undefined
  const onSignal = (signal: Signal): void => {
    if (received !== undefined) process.exit(codeOf(signal))
    received = signal
    stop.abort()
    Deferred.doneUnsafe(signalled, Exit.void)
  }
  for (const signal of signals) process.on(signal, onSignal)

  const running = environment.runExit(main, { signal: stop.signal })
  const life = Effect.gen(function*() {
    const clock = yield* Clock.Clock
    let endsAt: number | undefined
    const timeIsUp = Effect.raceFirst(Deferred.await(signalled), alive).pipe(
      Effect.andThen(Effect.sync(() => {
        endsAt = clock.currentTimeMillisUnsafe() + within
      })),
      Effect.andThen(Effect.sleep(within)),
      Effect.as(undefined)
    )
    const exit = yield* Effect.raceFirst(Effect.promise(() => running), timeIsUp)
    const left = endsAt === undefined ? within : Math.max(0, endsAt - clock.currentTimeMillisUnsafe())
    yield* Effect.promise(() => environment.dispose(left))
    return exit
  })
  return Effect.runPromise(life).finally(() => {
    for (const signal of signals) process.off(signal, onSignal)
  }).then((exit) => {
    if (
      exit !== undefined && Exit.isFailure(exit) && !(received !== undefined && Cause.hasInterruptsOnly(exit.cause))
    ) {
      process.exitCode = 1
      throw Cause.squash(exit.cause)
    }
    if (received !== undefined) process.exit(codeOf(received))
    return (exit as Exit.Success<A>).value
  })
}
