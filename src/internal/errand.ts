import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Wire } from "./socket.ts"

/**
 * What the pool itself, or a hook, does on a session before or after its borrower. When its time is up, or nobody waits
 * for it any more, the socket goes first and nobody waits for the work's own end: the driver would wait five seconds for
 * a silent server's answer, and a session on which something was left half done is worth nothing.
 */
export const run = <A, E, E2>(
  work: Effect.Effect<A, E>,
  wire: Wire,
  bound?: { readonly millis: number; readonly onTimeUp: () => E2 }
): Effect.Effect<A, E | E2> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkDetach(work, { startImmediately: true }), (fiber) => {
      const giveUp = (message: string) =>
        Effect.sync(() => {
          wire.destroy({ by: "silence", message })
          fiber.interruptUnsafe()
        })
      const ended = Fiber.join(fiber)
      const answer = bound === undefined
        ? restore(ended)
        : Effect.flatMap(restore(Effect.timeoutOption(ended, bound.millis)), (answer) =>
          answer._tag === "Some"
            ? Effect.succeed(answer.value)
            : Effect.andThen(
              giveUp(`no answer within ${bound.millis} ms`),
              Effect.suspend(() => Effect.fail(bound.onTimeUp()))
            ))
      return Effect.onInterrupt(answer, () => giveUp("nobody waited for the answer"))
    })
  )
