import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Fiber } from "effect/Fiber"
import type { Schedule } from "effect/Schedule"
import type { Session } from "./session.ts"
import type { Outcome } from "./verdict.ts"

/** What holds for everything inside of a unit. */
export interface Terms {
  /** `undefined`: what the executor has. */
  readonly retry: Schedule<unknown, unknown> | false | undefined
  /** Wall-clock milliseconds. */
  readonly deadlineAt: number
  /** Milliseconds; `undefined`: what the pool has. */
  readonly acquireTimeout: number | undefined
  /** Whether a circuit that rejects a call is waited for. */
  readonly waitsForCircuit: boolean
}

/** Work whose time is up, while it is being cut off. */
export interface Lateness {
  /** What its caller will be told, as far as is known by now. */
  readonly error: () => unknown
  /** The statement that was under way. */
  cutOff: string | undefined
}

/** Who counts the work that was not done in time. */
export interface Overseer {
  readonly missed: (allowed: number, unit: UnitOfWork, error: object) => void
}

/**
 * What one attempt at a unit of work has done to the database so far. It decides whether the whole unit may be run
 * again, and which sockets to look at when its time is up. What a unit does is done by the units around it as well.
 */
export interface UnitOfWork extends Terms {
  readonly outer: UnitOfWork | undefined
  /** Statements and commits that took effect or may have: back to what it was once they are proved undone. */
  effects: number
  /** Whether it has sent anything to the server at all. */
  hasStarted: boolean
  /** COMMITs that wait for their answer. */
  committing: number
  /** How many answers each session owes to this unit: others may share a session, or have it afterwards. */
  readonly awaited: Map<Session, number>
  /** The executor that it has asked last. */
  overseer: Overseer | undefined
  lateness: Lateness | undefined
  /** Whether all of it is repeated even when nobody knows what it has done. */
  readonly isRepeatable: boolean
}

export const make = (terms: Terms, outer: UnitOfWork | undefined, isRepeatable = false): UnitOfWork => ({
  retry: terms.retry,
  deadlineAt: terms.deadlineAt,
  acquireTimeout: terms.acquireTimeout,
  waitsForCircuit: terms.waitsForCircuit,
  outer,
  effects: 0,
  hasStarted: false,
  committing: 0,
  awaited: new Map(),
  overseer: undefined,
  lateness: undefined,
  isRepeatable
})

export const addEffects = (unit: UnitOfWork, count: 1 | -1): void => {
  for (let each: UnitOfWork | undefined = unit; each !== undefined; each = each.outer) each.effects += count
}

export const addCommitting = (unit: UnitOfWork, count: 1 | -1): void => {
  for (let each: UnitOfWork | undefined = unit; each !== undefined; each = each.outer) each.committing += count
}

/** Notes that something was sent, be it only to be rolled back. */
export const start = (unit: UnitOfWork): void => {
  for (let each: UnitOfWork | undefined = unit; each !== undefined && !each.hasStarted; each = each.outer) {
    each.hasStarted = true
  }
}

/** Notes who works for it. */
export const oversee = (unit: UnitOfWork, overseer: Overseer): void => {
  for (let each: UnitOfWork | undefined = unit; each !== undefined; each = each.outer) each.overseer = overseer
}

/** The time of a unit is up: what is interrupted in it from now on is cut off. */
export const expire = (unit: UnitOfWork, error: () => unknown, statement?: string): void => {
  unit.lateness = { error, cutOff: statement ?? unit.lateness?.cutOff }
}

/** Notes a statement that was interrupted, wherever the time is up. */
export const cutOff = (unit: UnitOfWork, sql: string): void => {
  for (let each: UnitOfWork | undefined = unit; each !== undefined; each = each.outer) {
    if (each.lateness !== undefined) each.lateness.cutOff ??= sql
  }
}

/** Why a unit, or one around it, is being cut off. */
export const latenessOf = (unit: UnitOfWork): Lateness | undefined => {
  for (let each: UnitOfWork | undefined = unit; each !== undefined; each = each.outer) {
    if (each.lateness !== undefined) return each.lateness
  }
  return undefined
}

/** Whether what a unit does may be repeated by whoever is around it, whatever it has done. */
export const isRepeatable = (unit: UnitOfWork | undefined): boolean => {
  for (let each = unit; each !== undefined; each = each.outer) if (each.isRepeatable) return true
  return false
}

/** What is known of what it has done. */
export const effectOf = ({ effects, hasStarted }: UnitOfWork): Outcome =>
  effects > 0 ? "Unknown" : hasStarted ? "RolledBack" : "NotRun"

/** Notes an answer that is owed from now on (1), or has come (-1). */
export const addAwaited = (unit: UnitOfWork, session: Session, count: 1 | -1): void => {
  for (let each: UnitOfWork | undefined = unit; each !== undefined; each = each.outer) {
    const left = (each.awaited.get(session) ?? 0) + count
    if (left > 0) each.awaited.set(session, left)
    else each.awaited.delete(session)
  }
}

/** A statement that counts by itself is sent, and its answer is owed from now on. */
export const setOut = (unit: UnitOfWork, session: Session): void => {
  start(unit)
  addEffects(unit, 1)
  addAwaited(unit, session, 1)
}

/**
 * Units under way in this process. Most programs have none most of the time, and a statement then need not look for
 * its own, which would cost it more than all of its bookkeeping.
 */
let underWay = 0

/** Runs an effect as a unit of work, as its attempt of that number. To be run once. */
export const run = <A, E, R>(effect: Effect.Effect<A, E, R>, unit: UnitOfWork, attempt?: number) => {
  let fiber: Fiber<unknown, unknown> | undefined
  let around: Context.Context<never>
  // The way back stands before anything has changed: a fiber can be interrupted between any two steps.
  return Effect.onExitPrimitive(
    Effect.withFiber((own: Fiber<unknown, unknown>): Effect.Effect<A, E, R> => {
      fiber = own
      around = own.context
      const inside = Context.add(around, Current, unit)
      const isToldAlready = attempt === undefined || own.getRef(CurrentAttempt) === attempt
      underWay++
      own.setContext(isToldAlready ? inside : Context.add(inside, CurrentAttempt, attempt))
      return effect
    }),
    () => {
      if (fiber === undefined) return undefined
      underWay--
      fiber.setContext(around)
      return undefined
    }
  )
}

/** Runs an effect as nobody's unit of work. */
export const detached = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Current, undefined)

/** The unit that a fiber works for, if any. */
export const of = (fiber: Fiber<unknown, unknown>): UnitOfWork | undefined =>
  underWay === 0 ? undefined : fiber.getRef(Current)

const Current = Context.Reference<UnitOfWork | undefined>("effect-pg-pool/UnitOfWork", {
  defaultValue: () => undefined
})

/** Whether statements of the running fiber have been declared repeatable. */
export const Idempotent = Context.Reference<boolean>("effect-pg-pool/Idempotent", { defaultValue: () => false })

/** Whether a COMMIT whose answer is lost is looked up on the server. */
export const ResolveCommit = Context.Reference<boolean>("effect-pg-pool/ResolveCommit", { defaultValue: () => false })

/** The number of the attempt that is running, from 1. */
export const CurrentAttempt = Context.Reference<number>("effect-pg-pool/CurrentAttempt", { defaultValue: () => 1 })

/** Whether the running fiber is inside a transaction, of which no part can be repeated alone. */
export const InTransaction = Context.Reference<boolean>("effect-pg-pool/InTransaction", { defaultValue: () => false })
