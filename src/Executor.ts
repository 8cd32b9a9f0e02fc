/**
 * Runs work against the pool so that it survives what can be survived, and tells the truth about the rest.
 *
 * The order is: deadline, retry, breaker, checkout, attempt timeout, work. The breaker guards the checkout and not each
 * statement, so COMMIT and ROLLBACK always pass and a transaction is one outcome. Work is repeated only when it is
 * proved that it left no trace, or when the caller has declared it idempotent.
 *
 * @since 0.1.0
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as EffectSchedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { ConnectionError, isSqlError, SqlError } from "effect/sql/SqlError"
import * as Breaker from "./Breaker.ts"
import * as Errors from "./Errors.ts"
import * as Classifier from "./internal/classifier.ts"
import * as Evidence from "./internal/evidence.ts"
import type { Session } from "./internal/session.ts"
import * as TimeLimit from "./internal/timeLimit.ts"
import { TrackedConnection } from "./internal/trackedConnection.ts"
import * as UnitOfWork from "./internal/unitOfWork.ts"
import * as Metrics from "./Metrics.ts"
import * as Pool from "./Pool.ts"
import * as Schedule from "./Schedule.ts"

/**
 * How one call differs from the executor's defaults.
 *
 * @category options
 * @since 0.1.0
 */
export interface RunOptions {
  /**
   * Declares that running the work twice does no harm, so that it is repeated even when its outcome is unknown.
   * Default: what the surrounding {@link idempotent} says, else false.
   */
  readonly idempotent?: boolean | undefined
  /** Bounds the whole call, waits and retries included. Default: no bound of its own. */
  readonly deadline?: Duration.Input | undefined
  /** Bounds each attempt. Default: no bound of its own; `queryTimeout` watches the socket in any case. */
  readonly attemptTimeout?: Duration.Input | undefined
  /** When to try again; `false` for never. Default: the executor's. */
  readonly retry?: EffectSchedule.Schedule<unknown, unknown> | false | undefined
}

/**
 * A connection lent through the executor.
 *
 * @category models
 * @since 0.1.0
 */
export type Connection = PgConnection.PgConnection

/**
 * What `run` and `use` add to the errors of the work itself.
 *
 * @category errors
 * @since 0.1.0
 */
export type RunError = Exclude<Errors.PoolError, Errors.InvalidOption>

/**
 * The executor service.
 *
 * @category services
 * @since 0.1.0
 */
export class Executor extends Context.Service<Executor, {
  /**
   * Runs an effect that talks to the database through `SqlClient` or `PgClient`. All of it is run again when its
   * failure may pass and nothing of it has taken effect yet, or when it is `idempotent`. Typed errors come out of their
   * `SqlError`; what the server replied stays a `SqlError`.
   */
  readonly run: <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    options?: RunOptions
  ) => Effect.Effect<A, E | RunError, R>
  /** Lends one exclusive connection to an effect, under the same rules as `run`. */
  readonly use: <A, E, R>(
    f: (connection: Connection) => Effect.Effect<A, E, R>,
    options?: RunOptions
  ) => Effect.Effect<A, E | SqlError | RunError, R>
  /** One statement on any session: what a `SqlClient` borrows. All failures are `SqlError`. */
  readonly borrow: <A, R>(
    f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>
  ) => Effect.Effect<A, SqlError, R>
  /** A session until the scope closes; shared with `multiplex`. */
  readonly lease: Effect.Effect<TrackedConnection, SqlError, Scope.Scope>
  /**
   * A session for exclusive use until the scope closes: one outcome for the breaker. `prepare` runs on it first (a
   * BEGIN, say) and must leave no trace when it fails: another session is then tried.
   */
  readonly reserve: (
    prepare?: (connection: TrackedConnection) => Effect.Effect<unknown, SqlError, Scope.Scope>
  ) => Effect.Effect<TrackedConnection, SqlError, Scope.Scope>
}>()("effect-pg-pool/Executor") {}

/**
 * The settings of an executor.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The retry schedule, or options for it; `false` for no retries. Default: `Schedule.transient`. */
  readonly retry?: Schedule.RetryOptions | EffectSchedule.Schedule<unknown, unknown> | false | undefined
  /**
   * Judges failures that the program knows better, for this executor only; it is asked after `Errors.Classifier` and
   * has the last word. Default: what `Errors.Classifier` says, which by default is what `Errors.classify` says.
   */
  readonly classify?: Errors.Classify | undefined
}

/** Overload is answered more slowly than a lost connection. */
const slowFactor = 5

/** The driver reports "Connection closed" for a FATAL that met a statement: the socket has kept the server's words. */
const withLastWords = (error: SqlError, session: Session): SqlError => {
  const obituary = session.wire.obituary()
  if (obituary?.by !== "server" || Errors.failureOf(error).sqlState !== undefined) return error
  const cause = Object.assign(new Error(obituary.message), { code: obituary.sqlState, severity: "FATAL" })
  return new SqlError({
    reason: new ConnectionError({
      cause,
      message: `The server ended the session: ${obituary.message}`,
      operation: error.reason.operation
    })
  })
}

/**
 * Makes an executor over the pool, breaker and metrics of the context.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<Executor["Service"], Errors.InvalidOption, Pool.Pool | Breaker.Breaker | Metrics.Metrics> {
  const pool = yield* Pool.Pool
  const breaker = yield* Breaker.Breaker
  const { store } = yield* Metrics.Metrics
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe()
  const defaultRetry = options.retry === false || EffectSchedule.isSchedule(options.retry)
    ? options.retry as EffectSchedule.Schedule<unknown, unknown> | false
    : yield* Schedule.make(options.retry as Schedule.RetryOptions | undefined)

  // ---------------------------------------------------------------------------------------------------------------
  // judging failures
  // ---------------------------------------------------------------------------------------------------------------

  const runFork = Effect.runForkWith(yield* Effect.context<never>())
  const reclassify = Classifier.compose(
    [yield* Errors.Classifier, options.classify],
    (defect) => runFork(Effect.logWarning("A classifier failed; the default verdict stands", Cause.die(defect)))
  )

  const evidence = Evidence.make({
    reclassify,
    monotonicNanos: () => clock.monotonicTimeNanosUnsafe(),
    observe: (outcome, seconds) => store.query[outcome].observe(seconds),
    count: ({ kind }) => store.errors[kind]++,
    isCalm: breaker.isCalmUnsafe,
    settle: (permit, signal, failure) => breaker.settleUnsafe(permit, signal, now(), failure),
    dispose: (session, disposal) => {
      pool.evictUnsafe(session, "error")
      if (disposal === "EvictAll") Effect.runSync(pool.evictAll)
    },
    complete: withLastWords,
    tell: ({ session, transaction }, error, { elapsed, failure, verdict }) =>
      session.wire.obituary()?.by === "silence"
        ? Errors.toSqlError(
          new Errors.StatementTimeout({
            timeout: elapsed,
            by: "client",
            effect: verdict.effect,
            failure: { ...failure, code: "ETIMEDOUT" }
          })
        )
        : Errors.truthful(error, verdict, transaction === "Committing" ? "commit" : "statement")
  })

  /** What is known of an error. One that came from elsewhere, another client's say, proves nothing. */
  const find = (error: unknown): Evidence.Judgement | undefined => {
    if (typeof error !== "object" || error === null) return undefined
    const known = evidence.find(error)
    if (known !== undefined || !isSqlError(error)) return known
    const typed = Errors.fromSqlError(error)
    return typed === undefined ? undefined : evidence.find(typed)
  }

  /** Statements are judged where they fail, so a checkout's `SqlError` without a judgement is a connect that failed. */
  const judgeCheckout = (error: unknown): Evidence.Judgement | undefined =>
    find(error) ?? (isSqlError(error) && Errors.fromSqlError(error) === undefined
      ? evidence.judgeConnect(error)
      : undefined)

  /** The error as its caller shall see it: what the driver says of a refused connect is not always the truth. */
  const told = (error: SqlError): SqlError => {
    const judgement = find(error)
    if (judgement === undefined) return error
    const truth = Errors.truthful(error, judgement.verdict)
    if (truth !== error) evidence.remember(truth, judgement)
    return truth
  }

  // ---------------------------------------------------------------------------------------------------------------
  // the breaker around a checkout
  // ---------------------------------------------------------------------------------------------------------------

  /** What a checkout that handed nothing out says. Statements speak for themselves, through the observer. */
  const settle = (permit: Breaker.Permit, cause: Cause.Cause<unknown>): void => {
    const failed = Cause.findErrorOption(cause)
    const error = failed._tag === "Some" ? failed.value : undefined
    const judgement = judgeCheckout(error)
    if (judgement !== undefined) {
      const { failure, source, verdict } = judgement
      return breaker.settleUnsafe(permit, verdict.breaker, now(), { ...failure, source })
    }
    // A probe that waited for the server in vain has found out what it was sent for; the queue says nothing.
    const isInVain = permit.probe && Errors.isPoolError(error) && error._tag === "AcquireTimeout" &&
      error.phase !== "Queue"
    breaker.settleUnsafe(permit, isInVain ? "Failure" : "Ignored", now(), isInVain ? { code: "ETIMEDOUT" } : undefined)
  }

  const probeCheckout: Pool.CheckoutOptions = { prove: true, timeout: breaker.probeTimeout }

  /** A probe is settled as soon as the server has answered, and not when the caller's work ends. */
  const handOut = (permit: Breaker.Permit): void => {
    if (permit.probe) breaker.settleUnsafe(permit, "Success", now())
  }

  const admitted = <A, E, R>(
    checkout: (permit: Breaker.Permit, options: Pool.CheckoutOptions | undefined) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | Errors.CircuitOpen | Errors.CircuitHalfOpen, R> =>
    Effect.suspend(() => {
      let permit: Breaker.Permit | undefined
      // The finalizer stands before leave is asked for: a fiber can be interrupted between any two steps.
      return Effect.onExitPrimitive(
        Effect.suspend((): Effect.Effect<A, E | Errors.CircuitOpen | Errors.CircuitHalfOpen, R> => {
          const answer = breaker.admitUnsafe(now())
          if (answer._tag !== "Permit") return Effect.fail(answer)
          permit = answer
          return checkout(permit, permit.probe ? probeCheckout : undefined)
        }),
        (exit) => {
          if (permit !== undefined && exit._tag === "Failure") settle(permit, exit.cause)
          return undefined
        }
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
  const trackShared = (session: Session) => track(session, session.connection, pool.exclude(session))

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
  const underPermit = <A, R>(
    permit: Breaker.Permit,
    f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>
  ) =>
  (session: Session): Effect.Effect<A, SqlError, R> => {
    const connection = tracked(session)
    connection.permit = permit
    return f(connection)
  }

  const borrowAdmitted = <A, R>(f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>) =>
    admitted((permit, options) =>
      pool.use((session) => {
        handOut(permit)
        return underPermit(permit, f)(session)
      }, options)
    )

  /** A lease is one outcome for the breaker: whether its session was alive in the end. */
  const leaseOnce = (
    checkout: (
      options: Pool.CheckoutOptions | undefined
    ) => Effect.Effect<TrackedConnection, Pool.AcquireError, Scope.Scope>
  ) =>
    admitted((permit, options) =>
      Effect.tap(checkout(options), (connection) => {
        handOut(permit)
        return Effect.addFinalizer((exit) => Effect.sync(() => settleLease(permit, connection, exit)))
      })
    )

  const settleLease = (
    permit: Breaker.Permit,
    connection: TrackedConnection,
    exit: Exit.Exit<unknown, unknown>
  ): void => {
    const { lastFailure, session } = connection
    const outcome = leaseOutcome(connection, exit)
    const evidenceOfLoss = () => ({
      ...Errors.failureOf(session.wire.obituary()),
      source: evidence.sourceOfLoss(session)
    })
    breaker.settleUnsafe(
      permit,
      outcome,
      now(),
      outcome === "Failure" ? lastFailure ?? evidenceOfLoss() : undefined
    )
  }

  const leaseOutcome = ({ session, signal }: TrackedConnection, exit: Exit.Exit<unknown, unknown>): Breaker.Outcome => {
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
        const failure: Errors.Failure = { sqlState: obituary.sqlState, severity: "FATAL", message: obituary.message }
        const circumstances: Errors.Circumstances = { phase: "Transaction", reused: true, replied: true }
        return reclassify(failure, circumstances, Errors.classify(failure, circumstances)).breaker
      }
      default:
        return "Failure"
    }
  }

  const leaseShared = leaseOnce((options) => Effect.map(pool.get(options), trackShared))
  const leaseExclusive = leaseOnce((options) =>
    Effect.map(pool.reserve(options), ({ connection, session }) => track(session, connection))
  )

  // ---------------------------------------------------------------------------------------------------------------
  // trying again
  // ---------------------------------------------------------------------------------------------------------------

  interface Terms {
    readonly retry: EffectSchedule.Schedule<unknown, unknown> | false
    readonly idempotent: boolean
    /** Wall-clock milliseconds. */
    readonly deadlineAt: number
    /** A transaction is repeated as a whole or not at all, by whoever is outside of it. */
    readonly inTransaction: boolean
    /** False once something of the failed attempt has taken effect. */
    readonly isTraceless: () => boolean
  }

  const counted = new WeakSet<object>()
  const countLocal = (error: unknown): void => {
    if (!Errors.isPoolError(error) || counted.has(error)) return
    counted.add(error)
    store.errors.Local++
  }

  /** Entered only on failure: decides whether the attempt may be repeated, waits, and repeats it. */
  const recover = Effect.fnUntraced(function*<A, E, R>(
    first: Cause.Cause<E>,
    attempt: Effect.Effect<A, E, R>,
    terms: Terms
  ): Effect.fn.Return<A, E | Errors.RetriesExhausted, R> {
    let cause = first
    let usedFreshConnection = false
    const history: Array<Errors.Attempt> = []
    const exhausted = (last: unknown) =>
      Effect.fail(
        new Errors.RetriesExhausted({
          attempts: history.length,
          last: isSqlError(last) ? told(last) : last,
          history
        })
      )
    const step = terms.retry === false ? undefined : yield* EffectSchedule.toStep(terms.retry)
    for (let attempts = 1;; attempts++) {
      const error = Cause.findErrorOption(cause)
      const judgement = error._tag === "Some" ? find(error.value) : undefined
      if (error._tag === "None" || judgement === undefined || step === undefined || terms.inTransaction) {
        if (error._tag === "Some" && judgement === undefined) countLocal(error.value)
        // A refusal of ours says that nothing ran, which after a doubtful attempt is not the whole truth.
        const isDoubtful = error._tag === "Some" && history.some(({ effect }) => effect === "Unknown")
        return yield* isDoubtful ? exhausted(error.value) : Effect.failCause(cause)
      }
      const { failure, verdict } = judgement
      const attempted = (delay: number) =>
        history.push({ attempt: attempts, kind: verdict.kind, effect: verdict.effect, failure, delay })
      const giveUp = (): Effect.Effect<never, E | Errors.RetriesExhausted> => {
        attempted(0)
        return attempts === 1 ? Effect.failCause(cause) : exhausted(error.value)
      }
      const safe = Errors.isSafeToRepeat(verdict, terms.idempotent) && (terms.idempotent || terms.isTraceless())
      // What must not be repeated comes out as itself: an earlier failure changes nothing about what it says.
      if (!safe) return yield* Effect.failCause(cause)
      let delay = 0
      if (verdict.retry === "Now" && !usedFreshConnection) {
        usedFreshConnection = true
      } else {
        const next = yield* Effect.exit(step(now(), error.value))
        if (next._tag === "Failure") return yield* giveUp()
        delay = Duration.toMillis(next.value[1]) * (verdict.retry === "BackoffSlow" ? slowFactor : 1)
        // While connects pause, an earlier attempt would only be told so.
        delay = Math.max(delay, pool.connectPauseUnsafe())
      }
      if (now() + delay >= terms.deadlineAt) return yield* giveUp()
      attempted(delay)
      if (delay > 0) yield* Effect.sleep(delay)
      store.retries[verdict.kind]++
      const exit = yield* Effect.exit(attempt)
      if (exit._tag === "Success") return exit.value
      cause = exit.cause
    }
  })

  const asSqlError = <E>(error: E | SqlError | Errors.PoolError): SqlError => {
    if (!Errors.isPoolError(error)) return told(error as SqlError)
    // Programs that match on the reason of the last failure go on working after retries.
    return error._tag === "RetriesExhausted" && isSqlError(error.last)
      ? Errors.withCause(error.last, error)
      : Errors.toSqlError(error)
  }

  /** A statement is repeated by itself wherever that is safe, on the terms of the unit around it. */
  const recoverStatement = <A, E, R>(
    cause: Cause.Cause<E>,
    attempt: Effect.Effect<A, E, R>,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Effect.Effect<A, SqlError, R> =>
    Effect.mapError(
      recover(cause, attempt, {
        retry: UnitOfWork.of(fiber)?.retry ?? defaultRetry,
        idempotent: fiber.getRef(UnitOfWork.Idempotent),
        deadlineAt: UnitOfWork.of(fiber)?.deadlineAt ?? Infinity,
        inTransaction: fiber.getRef(UnitOfWork.InTransaction),
        isTraceless: () => true
      }),
      asSqlError
    )

  const retried = <A, R>(attempt: Effect.Effect<A, SqlError | Errors.PoolError, R>): Effect.Effect<A, SqlError, R> =>
    Effect.withFiber((fiber) => Effect.catchCause(attempt, (cause) => recoverStatement(cause, attempt, fiber)))

  /** The life of a healthy statement: a permit that needs no clock, a session from the front of the pool, the work. */
  const borrow = <A, R>(f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>) =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<A, SqlError, R> => {
      const permit = breaker.closedPermitUnsafe()
      if (permit === undefined) return retried(borrowAdmitted(f))
      return Effect.catchCause(pool.use(underPermit(permit, f)), (cause) => {
        settle(permit, cause)
        return recoverStatement(cause, borrowAdmitted(f), fiber)
      })
    })

  /** A lease that could not be prepared is given back before another one is tried. */
  const prepared = (prepare: (connection: TrackedConnection) => Effect.Effect<unknown, SqlError, Scope.Scope>) =>
    Effect.flatMap(Effect.scope, (parent) => {
      const scope = Scope.forkUnsafe(parent)
      return Effect.onExit(
        Scope.provide(Effect.tap(leaseExclusive, prepare), scope),
        (exit) => Exit.isSuccess(exit) ? Effect.void : Scope.close(scope, exit)
      )
    })

  // ---------------------------------------------------------------------------------------------------------------
  // units of work
  // ---------------------------------------------------------------------------------------------------------------

  /** The typed error behind a `SqlError`, where there is one; the server's own reply otherwise. */
  const expose = (error: SqlError): SqlError | Errors.PoolError => {
    const typed = Errors.fromSqlError(error)
    if (typed !== undefined) return typed
    const failure = Errors.failureOf(error)
    return failure.sqlState === "57014" && /statement timeout/i.test(failure.message ?? "")
      ? new Errors.StatementTimeout({ timeout: find(error)?.elapsed ?? 0, by: "server", effect: "RolledBack", failure })
      : told(error)
  }

  /** Who owes a late attempt its answer: a session, or a connect under way. Nobody, if it only stands in the queue. */
  const whomItWaitsFor = (
    { awaited }: UnitOfWork.UnitOfWork
  ): { readonly session: Session | undefined } | undefined => {
    const [session] = awaited.keys()
    if (session !== undefined) return { session }
    const { active, connecting, max } = pool.statsUnsafe()
    return connecting > 0 && active < max ? { session } : undefined
  }

  const effectOf = ({ effects }: UnitOfWork.UnitOfWork) => (effects === 0 ? "NotRun" : "Unknown")

  const attemptTimedOut = (timeout: number, own: UnitOfWork.UnitOfWork): Errors.StatementTimeout => {
    const effect = effectOf(own)
    const error = new Errors.StatementTimeout({ timeout, by: "client", effect, failure: { code: "ETIMEDOUT" } })
    evidence.record(error, { code: "ETIMEDOUT", message: error.message }, {
      kind: "Unreachable",
      effect,
      retry: "Backoff",
      breaker: "Failure",
      connection: "Evict"
    })
    return error
  }

  const unit = <A, E, R>(
    work: Effect.Effect<A, E, R>,
    options: RunOptions
  ): Effect.Effect<A, E | RunError, R> =>
    Effect.withFiber((fiber) => {
      const outer = UnitOfWork.of(fiber)
      const inTransaction = fiber.getRef(UnitOfWork.InTransaction)
      const idempotent = options.idempotent ?? fiber.getRef(UnitOfWork.Idempotent)
      const attemptTimeout = options.attemptTimeout === undefined
        ? undefined
        : Duration.toMillis(options.attemptTimeout)
      const deadline = options.deadline === undefined ? undefined : Duration.toMillis(options.deadline)
      const terms = {
        retry: options.retry ?? outer?.retry ?? defaultRetry,
        deadlineAt: Math.min(deadline === undefined ? Infinity : now() + deadline, outer?.deadlineAt ?? Infinity)
      }
      let current = UnitOfWork.make(terms, outer)
      const attempt: Effect.Effect<A, E | Errors.StatementTimeout, R> = Effect.suspend(() => {
        const own = current = UnitOfWork.make(terms, outer)
        const once = UnitOfWork.run(work, own)
        if (attemptTimeout === undefined) return once
        const permit = breaker.closedPermitUnsafe()
        let late: { readonly session: Session | undefined } | undefined
        const noteLateness = () => {
          late = whomItWaitsFor(own)
        }
        return TimeLimit.within(once, attemptTimeout, () => own, noteLateness, () => {
          if (late !== undefined && permit !== undefined) {
            const source = evidence.sourceOfSilence(late.session)
            breaker.settleUnsafe(permit, "Failure", now(), { code: "ETIMEDOUT", source })
          }
          return attemptTimedOut(attemptTimeout, own)
        })
      })
      const all = Effect.catchCause(attempt, (cause) =>
        recover(cause, attempt, {
          ...terms,
          idempotent,
          inTransaction,
          isTraceless: () => current.effects === 0
        }))
      const bounded = deadline === undefined
        ? all
        : TimeLimit.within(
          all,
          deadline,
          () => current,
          () => {},
          () => new Errors.DeadlineExceeded({ deadline, effect: effectOf(current) })
        )
      return Effect.mapError(bounded, (error) => (isSqlError(error) ? expose(error) : error)) as Effect.Effect<
        A,
        E | RunError,
        R
      >
    })

  return Executor.of({
    run: (effect, options = {}) => unit(effect, options),
    use: (f, options = {}) =>
      unit(Effect.scopedWith((scope) => Effect.flatMap(Scope.provide(leaseExclusive, scope), f)), options),
    borrow,
    lease: retried(leaseShared),
    reserve: (prepare) => retried(prepare === undefined ? leaseExclusive : prepared(prepare))
  })
})

/**
 * Declares that the statements of an effect may be run twice without harm: reads, and writes that set the same state
 * again. They are then repeated even when the answer to the first run was lost.
 *
 * @category combinators
 * @since 0.1.0
 */
export const idempotent = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, UnitOfWork.Idempotent, true)

/**
 * Runs an effect through the executor of the context: see {@link Executor}.
 *
 * @category combinators
 * @since 0.1.0
 */
export const run: {
  (options?: RunOptions): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | RunError, R | Executor>
  <A, E, R>(effect: Effect.Effect<A, E, R>, options?: RunOptions): Effect.Effect<A, E | RunError, R | Executor>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(effect: Effect.Effect<A, E, R>, options?: RunOptions) =>
    Effect.flatMap(Executor, (executor) => executor.run(effect, options))
)

/**
 * Lends one exclusive connection through the executor of the context: see {@link Executor}.
 *
 * @category combinators
 * @since 0.1.0
 */
export const use = <A, E, R>(
  f: (connection: Connection) => Effect.Effect<A, E, R>,
  options?: RunOptions
): Effect.Effect<A, E | SqlError | RunError, R | Executor> =>
  Effect.flatMap(Executor, (executor) => executor.use(f, options))

/**
 * Provides an {@link Executor} over the pool, breaker and metrics of the context.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options?: Options
): Layer.Layer<Executor, Errors.InvalidOption, Pool.Pool | Breaker.Breaker | Metrics.Metrics> =>
  Layer.effect(Executor, make(options))
