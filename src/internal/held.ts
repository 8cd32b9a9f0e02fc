import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { TrackedConnection } from "./trackedConnection.ts"

/** A session that somebody has for himself until he lets go of it, which he has to do once. */
export interface Held {
  readonly tracked: TrackedConnection
  readonly release: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<void> | undefined
}

export type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** What a scope would hold. To be run where nothing can be interrupted but what is restored. */
export const hold = <E>(
  lease: Effect.Effect<TrackedConnection, E, Scope.Scope>,
  restore: Restore
): Effect.Effect<Held, E> =>
  Effect.suspend(() => {
    const scope = Scope.makeUnsafe()
    return Effect.onExitPrimitive(
      Effect.map(Scope.provide(restore(lease), scope), (tracked): Held => ({
        tracked,
        release: (exit) => Scope.close(scope, exit)
      })),
      (exit) => exit._tag === "Success" ? undefined : Scope.close(scope, exit),
      true
    )
  })
