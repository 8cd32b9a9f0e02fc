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

/** Errors that have been counted as missed deadlines. */
const missed = new WeakSet<object>()

export const isMissed = (error: object): boolean => missed.has(error)

/** Tells whoever works for a unit that its deadline was missed. */
export const miss = (
  allowed: number,
  unit: UnitOfWork.UnitOfWork,
  error: object,
  overseer: UnitOfWork.Overseer | undefined = unit.overseer
): void => {
  missed.add(error)
  overseer?.missed(allowed, unit, error)
}

/** One statement whose parts are done one by one, for the same unit. */
export interface Statement {
  readonly unit: UnitOfWork.UnitOfWork | undefined
  readonly sql: string
}

/**
 * Ends work at the deadline: queueing, connecting, waiting between attempts and statements, whatever it is in. Without an
 * overseer it is whoever was asked by then that counts it.
 */
export const enforce = <A, E, R, E2 extends object>(
  work: Effect.Effect<A, E, R>,
  deadlineAt: number,
  now: () => number,
  errorOf: (allowed: number, unit: UnitOfWork.UnitOfWork) => E2,
  overseer?: UnitOfWork.Overseer,
  statement?: Statement
): Effect.Effect<A, E | E2, R> =>
  Effect.withFiber((fiber: Fiber<unknown, unknown>) => {
    const unit = statement?.unit ?? unitUntil(deadlineAt, UnitOfWork.of(fiber))
    const allowed = Math.max(0, deadlineAt - now())
    const onTimeUp = () => UnitOfWork.expire(unit, () => errorOf(allowed, unit), statement?.sql)
    const onTimeout = () => {
      const error = errorOf(allowed, unit)
      miss(allowed, unit, error, overseer)
      return error
    }
    if (allowed > 0) {
      return TimeLimit.within(UnitOfWork.run(work, unit), allowed, () => unit, onTimeUp, onTimeout)
    }
    onTimeUp()
    return Effect.fail(onTimeout())
  })
