import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Roster from "./roster.ts"

/** A layer that has been built, and lives. */
export interface Built<R> {
  /** Everything that a fiber needs which works with it. */
  readonly context: Context.Context<R>
  readonly scope: Scope.Closeable
}

export interface LayerMemo<R, E> {
  /**
   * The built layer. Whoever asks while it is being built waits for the same build; one whose last waiter has left is
   * interrupted. A build that fails is told to those who wait for it, and tried again by whoever asks next.
   */
  readonly get: Effect.Effect<Built<R>, E>
  /** What `get` would succeed with at once. */
  readonly built: () => Built<R> | undefined
  /** The pools of the layer, as long as they live. */
  readonly roster: Roster.Roster
  /** Interrupts the build that is under way, closes what has been built, and forgets it. */
  readonly close: Effect.Effect<void>
}

interface Build<R, E> {
  fiber: Fiber.Fiber<Built<R>, E> | undefined
  waiters: number
}

/** Remembers the success of a build, and no failure. `home` is what builds run in; whoever asks lends them nothing. */
export const make = <R, E>(layer: Layer.Layer<R, E>, home: Context.Context<never>): LayerMemo<R, E> => {
  const roster = Roster.make()
  const base = Context.add(home, Roster.Current, roster)
  let built: Built<R> | undefined
  let current: Build<R, E> | undefined

  const start = (): Build<R, E> => {
    const build: Build<R, E> = { fiber: undefined, waiters: 0 }
    const scope = Scope.makeUnsafe()
    current = build
    build.fiber = Effect.runForkWith(base)(
      Layer.buildWithMemoMap(layer, Layer.makeMemoMapUnsafe(), scope).pipe(
        Effect.map((services): Built<R> => ({ context: Context.merge(base, services), scope })),
        Effect.onExit((exit) => {
          if (current === build) {
            current = undefined
            if (Exit.isSuccess(exit)) built = exit.value
          }
          // One that its waiters have left is nobody's, even if it has come to its end meanwhile.
          return built?.scope === scope ? Effect.void : Scope.close(scope, exit)
        })
      )
    )
    return build
  }

  const leave = (build: Build<R, E>): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (--build.waiters > 0 || build.fiber === undefined) return Effect.void
      if (current === build) current = undefined
      return Fiber.interrupt(build.fiber)
    })

  const wait = Effect.suspend(() => {
    if (built !== undefined) return Effect.succeed(built)
    const build = current ?? start()
    build.waiters++
    return Effect.onExit(Fiber.join(build.fiber!), () => leave(build))
  })

  return {
    get: wait,
    built: () => built,
    roster,
    close: Effect.suspend(() => {
      const underWay = current?.fiber
      const house = built
      current = undefined
      built = undefined
      const stop = underWay === undefined ? Effect.void : Fiber.interrupt(underWay)
      return house === undefined ? stop : Effect.andThen(stop, Scope.close(house.scope, Exit.void))
    })
  }
}
