import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import type { Permit } from "./breakerMachine.ts"
import type { Evidence, Judgement } from "./evidence.ts"
import type { ExclusiveLease } from "./exclusive.ts"
import type { Held, Restore } from "./held.ts"
import * as LastWords from "./lastWords.ts"
import type { Session } from "./session.ts"
import { Turn } from "./statementTurn.ts"
import { TrackedConnection } from "./trackedConnection.ts"
import * as UnitOfWork from "./unitOfWork.ts"
import type { Circumstances, Failure, Signal } from "./verdict.ts"

export interface CheckoutOptions {
  readonly prove?: boolean | undefined
  readonly provedFor?: number | undefined
  readonly timeout?: number | undefined
}

/** Milliseconds for which an answer of a session is proof enough for a circuit that recovers. */
const freshFor = 500

/** Who lets calls in. */
interface Gate<C> {
  readonly withPermit: <A, E, R>(use: (permit: Permit) => Effect.Effect<A, E, R>) => Effect.Effect<A, E | C, R>
  readonly settleUnsafe: (
    permit: Permit,
    outcome: Signal,
    now: number,
    failure?: (Failure & { readonly source?: number | undefined }) | undefined
  ) => void
  readonly probeTimeout: number
}

/** Who lends sessions. */
interface Lender<E> {
  readonly use: <A, E2, R>(
    f: (session: Session) => Effect.Effect<A, E2, R>,
    options?: CheckoutOptions
  ) => Effect.Effect<A, E2 | E, R>
  readonly get: (options?: CheckoutOptions) => Effect.Effect<Session, E, Scope.Scope>
  readonly reserve: (
    options?: CheckoutOptions
  ) => Effect.Effect<
    { readonly session: Session; readonly driver: PgConnection.PgConnection },
    E,
    Scope.Scope
  >
  readonly exclusiveUnsafe: {
    readonly take: (restore: Restore) => Effect.Effect<ExclusiveLease, E>
    readonly giveBack: (lease: ExclusiveLease) => Effect.Effect<void> | undefined
  }
  readonly exclude: (session: Session) => Effect.Effect<void, never, Scope.Scope>
  readonly isClosing: () => boolean
}

/** Who decides what a checkout says about the server. */
interface Court<C, E> {
  readonly breaker: Gate<C>
  readonly pool: Lender<E>
  readonly evidence: Evidence
  /** Wall-clock milliseconds. */
  readonly now: () => number
  readonly judge: (error: unknown) => Judgement | undefined
  readonly judgeEnd: (failure: Failure, circumstances: Circumstances) => Signal
  /** Whether the error is that the server was waited for in vain, and not that others stood in the queue. */
  readonly hasWaitedInVain: (error: unknown) => boolean
}

/**
 * The breaker around a checkout, and not around a statement: COMMIT and ROLLBACK always pass, and a lease is one outcome.
 */
export const make = <C, E>(court: Court<C, E>) => {
  const { breaker, evidence, now, pool } = court

  /** What a checkout that handed nothing out says. Statements speak for themselves, through the observer. */
  const settle = (permit: Permit, cause: Cause.Cause<unknown>): void => {
    const failed = Cause.findErrorOption(cause)
    const error = failed._tag === "Some" ? failed.value : undefined
    const judgement = court.judge(error)
    if (judgement !== undefined) {
      const { failure, isTold, source, verdict } = judgement
      if (isTold) return
      return breaker.settleUnsafe(permit, verdict.breaker, now(), { ...failure, source })
    }
    // A probe that waited for the server in vain has found out what it was sent for; the queue says nothing.
    const isInVain = (permit.probe || permit.ramp) && court.hasWaitedInVain(error)
    breaker.settleUnsafe(permit, isInVain ? "Failure" : "Ignored", now(), isInVain ? { code: "ETIMEDOUT" } : undefined)
  }

  const checkoutOptions = (unit: UnitOfWork.UnitOfWork | undefined): CheckoutOptions | undefined =>
    unit?.acquireTimeout === undefined ? undefined : { timeout: unit.acquireTimeout }

  const admittedCheckout = (
    permit: Permit,
    usual: CheckoutOptions | undefined
  ): CheckoutOptions | undefined =>
    permit.probe
      ? { prove: true, timeout: Math.min(breaker.probeTimeout, usual?.timeout ?? Infinity) }
      : permit.ramp
      ? { ...usual, prove: true, provedFor: freshFor }
      : usual

  /** A probe is settled as soon as the server has answered, and not when the caller's work ends. */
  const settleProbe = (permit: Permit): void => {
    if (permit.probe) breaker.settleUnsafe(permit, "Success", now())
  }

  const admitted = <A, E2, R>(
    checkout: (permit: Permit, options: CheckoutOptions | undefined) => Effect.Effect<A, E2, R>
  ): Effect.Effect<A, E2 | C, R> =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const usual = checkoutOptions(UnitOfWork.of(fiber))
      return breaker.withPermit((permit) =>
        Effect.onExitPrimitive(checkout(permit, admittedCheckout(permit, usual)), (exit) => {
          if (exit._tag === "Failure") settle(permit, exit.cause)
          return undefined
        })
      )
    })

  const track = (
    session: Session,
    connection: PgConnection.PgConnection,
    exclude?: Effect.Effect<void, never, Scope.Scope>
  ): TrackedConnection => {
    evidence.meet(session)
    return new TrackedConnection(session, connection, evidence.observer, exclude)
  }
  const trackShared = (session: Session) => track(session, session.driver, pool.exclude(session))

  const trackedSessions = new WeakMap<Session, TrackedConnection>()
  const tracked = (session: Session): TrackedConnection => {
    let connection = trackedSessions.get(session)
    if (connection === undefined) {
      connection = trackShared(session)
      trackedSessions.set(session, connection)
    }
    return connection
  }

  /** Binds a statement to what admitted it, so that its outcome is told under that permit and no later one. */
  const trackUnder = (session: Session, permit: Permit): TrackedConnection => {
    const connection = tracked(session)
    connection.permit = permit
    return connection
  }

  const underPermit = <A, R>(
    permit: Permit,
    f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>
  ) =>
  (session: Session): Effect.Effect<A, SqlError, R> => f(trackUnder(session, permit))

  const borrowAdmitted = <A, R>(f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>) =>
    admitted((permit, options) =>
      pool.use((session) => {
        settleProbe(permit)
        return underPermit(permit, f)(session)
      }, options)
    )

  /** For what has to be asked whatever the circuit thinks. Nobody's evidence. */
  const borrowUnguarded = <A, R>(f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>) =>
    pool.use((session) => f(trackShared(session)), { prove: true })

  /** A lease is one outcome for the breaker: whether its session was alive in the end. */
  const leaseOnce = (
    checkout: (
      options: CheckoutOptions | undefined
    ) => Effect.Effect<TrackedConnection, E, Scope.Scope>
  ) =>
    admitted((permit, options) =>
      Effect.tap(checkout(options), (connection) => {
        // Nor may a long lease hold up the recovery of a circuit.
        if (permit.probe || permit.ramp) breaker.settleUnsafe(permit, "Success", now())
        return Effect.addFinalizer((exit) => Effect.sync(() => settleLease(permit, connection, exit)))
      })
    )

  const settleLease = (
    permit: Permit,
    connection: TrackedConnection,
    exit: Exit.Exit<unknown, unknown>
  ): void => {
    const { lastFailure, session } = connection
    const outcome = leaseOutcome(connection, exit)
    const evidenceOfLoss = () => ({
      ...LastWords.failureOf(session.wire.obituary()),
      source: evidence.sourceOfLoss(session)
    })
    breaker.settleUnsafe(
      permit,
      outcome,
      now(),
      outcome === "Failure" ? lastFailure ?? evidenceOfLoss() : undefined
    )
  }

  const leaseOutcome = ({ session, signal }: TrackedConnection, exit: Exit.Exit<unknown, unknown>): Signal => {
    if (!session.wire.isDead()) {
      return signal === "Failure"
        ? signal
        : Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
        ? "Ignored"
        : "Success"
    }
    if (pool.isClosing()) return "Ignored"
    // Whoever judged the failure that ended the session knows best.
    if (signal !== undefined) return signal
    const obituary = session.wire.obituary()
    switch (obituary?.by) {
      case "driver":
      case "pool":
        return "Ignored"
      case "server": {
        const failure: Failure = { sqlState: obituary.sqlState, severity: "FATAL", message: obituary.message }
        return court.judgeEnd(failure, { phase: "Transaction", reused: true, replied: true })
      }
      default:
        return "Failure"
    }
  }

  const leaseShared = leaseOnce((options) => Effect.map(pool.get(options), trackShared))
  const leaseExclusive = leaseOnce((options) =>
    Effect.map(pool.reserve(options), ({ driver, session }) => track(session, driver))
  )

  /** The same under a permit that is at hand, without a scope, for whoever cannot be interrupted. */
  const holdExclusive = (permit: Permit, restore: Restore): Effect.Effect<Held, E> =>
    Effect.map(pool.exclusiveUnsafe.take(restore), (lease): Held => {
      const { driver, isPinned, session } = lease
      evidence.meet(session)
      // The driver keeps a pinned connection's statements in order by itself.
      const turn = isPinned ? undefined : new Turn()
      const tracked = new TrackedConnection(session, driver, evidence.observer, undefined, turn)
      return {
        tracked,
        release: (exit) => {
          if (turn !== undefined) turn.isOver = true
          settleLease(permit, tracked, exit)
          return pool.exclusiveUnsafe.giveBack(lease)
        }
      }
    })

  return {
    holdExclusive,
    settle,
    checkoutOptions,
    trackUnder,
    underPermit,
    borrowAdmitted,
    borrowUnguarded,
    leaseShared,
    leaseExclusive
  }
}
