import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Alarms from "./alarms.ts"
import type { Session } from "./session.ts"
import type { UnitOfWork } from "./unitOfWork.ts"

const leastGrace = 90
const mostGrace = 1000

/**
 * Milliseconds in which late work may be cancelled politely. A peer that does not answer by then loses its socket: the
 * driver would go on waiting for it for five seconds. A CancelRequest travels on a connection of its own, so it needs
 * about as long as the session's own connect took.
 */
const cancelGrace = (sessions: Iterable<Session>): number => {
  let slowest = 0
  for (const { connectTook } of sessions) slowest = Math.max(slowest, connectTook)
  return Math.min(Math.max(leastGrace, 3 * slowest), mostGrace)
}

/** Succeeds with the end of a fiber, or with nothing after so many milliseconds. */
const endOf = <A, E>(
  fiber: Fiber.Fiber<A, E>,
  millis: number,
  clock: Clock.Clock
): Effect.Effect<Exit.Exit<A, E> | undefined> =>
  Effect.callback((resume) => {
    const alarm = Alarms.set(clock, millis, () => resume(Effect.succeed(undefined)))
    const stopListening = fiber.addObserver((exit) => {
      alarm.stop()
      resume(Effect.succeed(exit))
    })
    return Effect.sync(() => {
      alarm.stop()
      stopListening()
    })
  })

/**
 * Interrupts the work when its time is up, and destroys the sockets of those sessions that still owe it an answer.
 *
 * Work that has come to its own end by then, as a COMMIT that cannot be interrupted does, has the last word: its result
 * must not be thrown away. `onTimeout` is asked after all of the work has ended, when it is known what it has done.
 */
export const within = <A, E, R, E2>(
  work: Effect.Effect<A, E, R>,
  millis: number,
  unit: () => UnitOfWork,
  onTimeUp: () => void,
  onTimeout: () => E2
): Effect.Effect<A, E | E2, R> => {
  const destroyAwaited = ({ awaited }: UnitOfWork) =>
    Effect.sync(() => {
      for (const session of awaited.keys()) {
        session.wire.destroy({ by: "silence", message: `no answer within ${millis} ms` })
      }
    })
  /** A caller who leaves early waits for a silent peer no longer than one who stays. */
  const leave = (fiber: Fiber.Fiber<A, E>, endsAt: number, clock: Clock.Clock): Effect.Effect<void> =>
    Effect.suspend(() => {
      const late = unit()
      const wait = Math.max(0, endsAt - clock.currentTimeMillisUnsafe()) + cancelGrace(late.awaited.keys())
      return Effect.flatMap(
        Effect.forkDetach(Effect.delay(destroyAwaited(late), wait), { startImmediately: true }),
        (kill) => Effect.andThen(Fiber.interrupt(fiber), Fiber.interrupt(kill))
      )
    })
  const cutOff = (fiber: Fiber.Fiber<A, E>): Effect.Effect<A, E | E2> =>
    Effect.suspend((): Effect.Effect<unknown> => {
      onTimeUp()
      const late = unit()
      const grace = cancelGrace(late.awaited.keys())
      const kill = Effect.forkDetach(Effect.delay(destroyAwaited(late), grace), { startImmediately: true })
      // To be interrupted would replace the success of a COMMIT, so one that is out may come to its end.
      return late.committing > 0 ? Effect.andThen(kill, Effect.timeoutOption(Fiber.await(fiber), grace)) : kill
    }).pipe(
      Effect.andThen(Fiber.interrupt(fiber)),
      Effect.andThen(Fiber.await(fiber)),
      Effect.flatMap((exit): Effect.Effect<A, E | E2> =>
        Exit.isSuccess(exit) || !Cause.hasInterruptsOnly(exit.cause) ? exit : Effect.fail(onTimeout())
      )
    )
  return Effect.uninterruptibleMask((restore) =>
    Effect.withFiber((parent: Fiber.Fiber<unknown, unknown>) => {
      const clock = parent.getRef(Clock.Clock)
      const endsAt = clock.currentTimeMillisUnsafe() + millis
      const fiber = Effect.runForkWith(parent.context as Context.Context<R>)(work)
      return fiber.pollUnsafe() ?? Effect.matchCauseEffect(restore(endOf(fiber, millis, clock)), {
        onSuccess: (exit): Effect.Effect<A, E | E2> => exit ?? cutOff(fiber),
        onFailure: (interrupted) => Effect.andThen(leave(fiber, endsAt, clock), Effect.failCause(interrupted))
      })
    })
  )
}
