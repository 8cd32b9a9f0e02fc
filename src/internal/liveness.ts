import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { Session } from "./session.ts"

/**
 * Whether a session answers a round trip within `timeout` milliseconds. Nobody else must be able to get it meanwhile. A
 * session that is not proved is worth nothing, so its socket goes before the question is interrupted: the driver would
 * wait for the answer.
 */
export const prove = (session: Session, timeout: number): Effect.Effect<boolean> => {
  const giveUp = (message: string) => Effect.sync(() => session.wire.destroy({ by: "silence", message }))
  const question = Effect.suspend(() => {
    session.busy++
    return session.connection.query("SELECT 1")
  }).pipe(
    Effect.onExit(() => Effect.sync(() => session.busy--)),
    Effect.exit,
    Effect.map(Exit.isSuccess)
  )
  const timeUp = Effect.sleep(timeout).pipe(Effect.andThen(giveUp(`no answer within ${timeout} ms`)), Effect.as(false))
  return Effect.flatMap(
    Effect.forkDetach(question, { startImmediately: true }),
    (fiber) =>
      Effect.onInterrupt(Effect.raceFirst(Fiber.join(fiber), timeUp), () => giveUp("nobody waited for the answer"))
  )
}
