import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"

/**
 * Tells everybody who listens, and waits for nobody. `effect/PubSub` can do that too, and much more, which every handler would
 * carry with it.
 */
export interface Broadcast<A> {
  readonly tellUnsafe: (message: A) => void
  /** What is told from now on, until the broadcast ends. Who is slow loses the oldest. */
  readonly stream: Stream.Stream<A>
}

/** A broadcast that ends with the scope. `capacity`: how many messages a listener may be behind. */
export const make = <A>(capacity: number): Effect.Effect<Broadcast<A>, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const listeners = new Set<Queue.Queue<A, Cause.Done>>()
      let isOver = false
      const listen = Effect.acquireRelease(
        Effect.map(Queue.sliding<A, Cause.Done>(capacity), (queue) => {
          if (isOver) Queue.endUnsafe(queue)
          else listeners.add(queue)
          return queue
        }),
        (queue) => Effect.sync(() => listeners.delete(queue))
      )
      return {
        tellUnsafe: (message: A): void => {
          for (const queue of listeners) Queue.offerUnsafe(queue, message)
        },
        endUnsafe: (): void => {
          isOver = true
          for (const queue of listeners) Queue.endUnsafe(queue)
        },
        stream: Stream.unwrap(Effect.map(listen, Stream.fromQueue))
      }
    }),
    ({ endUnsafe }) => Effect.sync(endUnsafe)
  )
