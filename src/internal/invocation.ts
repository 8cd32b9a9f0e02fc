/** One invocation: the time that it has, what happens when that is over, and its one answer. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Deadline from "./deadline.ts"
import * as TimeLimit from "./timeLimit.ts"
import * as UnitOfWork from "./unitOfWork.ts"
import type { Outcome } from "./verdict.ts"

/** Milliseconds, and moments of the wall clock. */
export interface Times {
  /** How long its work may take. */
  readonly allowed: number
  /** Its work is interrupted, and statements are cancelled. */
  readonly deadlineAt: number
  /** Sockets that are still busy are destroyed: whoever waits for an answer of theirs fails. */
  readonly destroyAt: number
  /** Whatever ignores both is not waited for any more. */
  readonly answerAt: number
}

/** `left` is what the platform leaves; the margin is what is kept of that for the end. */
export const times = (startedAt: number, left: number, margin: number): Times => {
  const kept = left === Infinity ? 0 : Math.max(0, Math.min(margin, left / 4))
  const deadlineAt = startedAt + left - kept
  return { allowed: left - kept, deadlineAt, destroyAt: deadlineAt + kept / 2, answerAt: deadlineAt + 3 * kept / 4 }
}

/** Whoever gives an invocation its room. */
export interface Host<T> {
  readonly now: () => number
  readonly runFork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly timedOut: (allowed: number, effect: Outcome) => T
  /** Destroys the sockets that the invocation may be busy with. */
  readonly destroy: (unit: UnitOfWork.UnitOfWork) => Effect.Effect<void>
  /** It has been answered although its work goes on. */
  readonly overran: Effect.Effect<void>
}

export interface Invocation {
  /** Interrupts it, and succeeds when it has ended. */
  readonly stop: Effect.Effect<void>
}

/**
 * Starts the work of an invocation, which notes its own end before its scope is closed. `onAnswer` is called once, maybe before
 * this returns.
 */
export const start = <A, E, T extends object>(
  work: (note: (exit: Exit.Exit<A, E>) => void) => Effect.Effect<A, E>,
  times: Times,
  signal: AbortSignal | undefined,
  host: Host<T>,
  onAnswer: (exit: Exit.Exit<A, E | T>) => void
): Invocation => {
  const { allowed, answerAt, deadlineAt, destroyAt } = times
  const { now, runFork } = host
  const unit = Deadline.unitUntil(deadlineAt, undefined)
  const isBounded = deadlineAt < Infinity
  /** How the work itself has ended, while its scope is being closed. */
  let own: Exit.Exit<A, E> | undefined
  let isLate = false
  let isAnswered = false
  let patience: Fiber.Fiber<void> | undefined

  const timeout = (effect: Outcome): T => {
    const error = host.timedOut(allowed, effect)
    Deadline.miss(allowed, unit, error)
    return error
  }

  const answer = (exit: Exit.Exit<A, E | T>): void => {
    if (isAnswered) return
    isAnswered = true
    signal?.removeEventListener("abort", abort)
    patience?.interruptUnsafe()
    onAnswer(exit)
  }

  /** What was interrupted at the deadline is out of time, whatever has gone wrong on the way out. */
  const told = (exit: Exit.Exit<A, E | T>, effect: () => Outcome): Exit.Exit<A, E | T> =>
    isLate && Exit.isFailure(exit) && Cause.hasInterrupts(exit.cause) ? Exit.fail(timeout(effect())) : exit

  const giveUp = Effect.gen(function*() {
    yield* Effect.sleep(Math.max(0, destroyAt - now()))
    yield* Effect.uninterruptible(host.destroy(unit))
    yield* Effect.sleep(Math.max(0, answerAt - now()))
    yield* host.overran
    const unknown = () => unit.hasStarted ? "Unknown" : "NotRun"
    answer(own === undefined ? Exit.fail(timeout(unknown())) : told(own, unknown))
  })

  const bound = (): void => {
    if (!isBounded || isAnswered) return
    patience ??= runFork(giveUp)
  }

  const abort = (): void => {
    fiber.interruptUnsafe()
    bound()
  }

  const inTime = Effect.suspend(() =>
    work((exit) => {
      own = exit
    })
  )
  const bounded: Effect.Effect<A, E | T> = !isBounded
    ? inTime
    : allowed > 0
    ? TimeLimit.within(UnitOfWork.run(inTime, unit), allowed, () => unit, () => {
      isLate = true
      UnitOfWork.expire(unit, () => host.timedOut(allowed, UnitOfWork.effectOf(unit)))
      bound()
    }, () => timeout(UnitOfWork.effectOf(unit)))
    : Effect.fail(host.timedOut(allowed, "NotRun"))

  const fiber = runFork(bounded)
  fiber.addObserver((exit) => answer(told(exit, () => UnitOfWork.effectOf(unit))))
  if (!isAnswered) signal?.addEventListener("abort", abort, { once: true })
  // The work has begun already, and may have given it.
  if (signal?.aborted === true) abort()
  return { stop: Fiber.interrupt(fiber) }
}
