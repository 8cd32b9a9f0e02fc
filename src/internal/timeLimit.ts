import * as Effect from "effect/Effect"
import type { UnitOfWork } from "./unitOfWork.ts"

/**
 * Milliseconds in which late work may be cancelled politely. A peer that does not answer by then loses its socket: the
 * driver would go on waiting for it for five seconds.
 */
const cancelGrace = 90

/** Interrupts the work when its time is up, and destroys the sockets of those sessions that still owe it an answer. */
export const within = <A, E, R, E2>(
  work: Effect.Effect<A, E, R>,
  millis: number,
  unit: () => UnitOfWork,
  onTimeout: () => E2
): Effect.Effect<A, E | E2, R> => {
  const destroyAwaited = ({ awaited }: UnitOfWork) =>
    Effect.sync(() => {
      for (const session of awaited.keys()) {
        session.wire.destroy({ by: "silence", message: `no answer within ${millis} ms` })
      }
    })
  const timeUp = Effect.suspend(() =>
    Effect.forkDetach(Effect.delay(destroyAwaited(unit()), cancelGrace), { startImmediately: true })
  )
  return Effect.raceFirst(
    work,
    Effect.sleep(millis).pipe(
      Effect.andThen(timeUp),
      Effect.andThen(Effect.suspend(() => Effect.fail(onTimeout())))
    )
  )
}
