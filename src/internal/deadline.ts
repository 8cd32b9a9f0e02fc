import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Fiber } from "effect/Fiber"
import * as TimeLimit from "./timeLimit.ts"
import * as UnitOfWork from "./unitOfWork.ts"

/** Wall-clock milliseconds at which all work of a fiber must be done. Published by `Executor.ts`. */
export const Deadline = Context.Reference<number>("effect-pg-pool/Deadline", { defaultValue: () => Infinity })

/** The deadline of a fiber, if nobody around it enforces that or a tighter one already; else Infinity. */
export const unenforced = (fiber: Fiber<unknown, unknown>, unit: UnitOfWork.UnitOfWork | undefined): number => {
  const deadlineAt = fiber.getRef(Deadline)
  return deadlineAt === Infinity || deadlineAt >= (unit?.deadlineAt ?? Infinity) ? Infinity : deadlineAt
}

/** A unit of work that is bound by a deadline, and by whatever binds the one around it. */
export const unitUntil = (deadlineAt: number, outer: UnitOfWork.UnitOfWork | undefined): UnitOfWork.UnitOfWork =>
  UnitOfWork.make(
    {
      retry: outer?.retry,
      acquireTimeout: outer?.acquireTimeout,
      waitsForCircuit: outer?.waitsForCircuit ?? false,
      deadlineAt
    },
    outer
  )

/** Ends work at the deadline: queueing, connecting, waiting between attempts and statements, whatever it is in. */
export const enforce = <A, E, R, E2>(
  work: Effect.Effect<A, E, R>,
  deadlineAt: number,
  now: () => number,
  onTimeout: (allowed: number, unit: UnitOfWork.UnitOfWork) => E2,
  known?: UnitOfWork.UnitOfWork
): Effect.Effect<A, E | E2, R> =>
  Effect.withFiber((fiber: Fiber<unknown, unknown>) => {
    const unit = known ?? unitUntil(deadlineAt, UnitOfWork.of(fiber))
    const allowed = deadlineAt - now()
    if (allowed <= 0) return Effect.fail(onTimeout(0, unit))
    return TimeLimit.within(
      UnitOfWork.run(work, unit),
      allowed,
      () => unit,
      () => {},
      () => onTimeout(allowed, unit)
    )
  })
