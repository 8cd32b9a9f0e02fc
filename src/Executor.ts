/**
 * Runs work against the pool so that it survives what can be survived, and tells the truth about the rest.
 *
 * The order is: deadline, retry, breaker, checkout, attempt timeout, work. The breaker guards the checkout and not each
 * statement, so COMMIT and ROLLBACK always pass and a transaction is one outcome. Work is repeated only when it is
 * proved that it left no trace, or when the caller has declared it idempotent.
 *
 * A {@link Deadline} bounds all of it: queueing, connecting, waiting between attempts, and statements, which are cancelled
 * on the server. No wait ever goes past it.
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
import * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as EffectSchedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import { ConnectionError, isSqlError, SqlError } from "effect/sql/SqlError"
import * as Breaker from "./Breaker.ts"
import * as Errors from "./Errors.ts"
import * as Admission from "./internal/admission.ts"
import * as Classifier from "./internal/classifier.ts"
import * as CommitFate from "./internal/commitFate.ts"
import * as Deadlines from "./internal/deadline.ts"
import * as Discretion from "./internal/discretion.ts"
import * as Evidence from "./internal/evidence.ts"
import { describe } from "./internal/failure.ts"
import * as Flight from "./internal/flight.ts"
import * as Held from "./internal/held.ts"
import * as History from "./internal/history.ts"
import * as Hosts from "./internal/hosts.ts"
import * as Logbook from "./internal/logbook.ts"
import * as LogFields from "./internal/logFields.ts"
import * as Lookout from "./internal/lookout.ts"
import * as LostCommit from "./internal/lostCommit.ts"
import { millis } from "./internal/millis.ts"
import * as Operation from "./internal/operation.ts"
import * as Recovery from "./internal/recovery.ts"
import type { Session } from "./internal/session.ts"
import * as Spans from "./internal/spans.ts"
import * as StatementSpan from "./internal/statementSpan.ts"
import * as Store from "./internal/store.ts"
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
  /** Bounds each wait for a session: queue, connect and check together. Default: the pool's `acquireTimeout`. */
  readonly acquireTimeout?: Duration.Input | undefined
  /**
   * Waits out an outage, for as long as the deadline allows (without a deadline: the `acquireTimeout`), instead of failing.
   * From the first failed connect on, and as long as such a call waits, the pool tries one connect at a time: every 50
   * milliseconds or after each fiftieth of the outage, whichever is longer; where nobody listens (ECONNREFUSED) every 20 or after
   * each hundredth; every 20 at first while the server says that it starts (57P03); 2 seconds at the most. The first that works ends the
   * pauses between attempts, makes an open circuit ask the server at once, and has sessions opened for all who wait. A circuit
   * that was opened by anything else is waited for as long as its `retryAfter` says, if that is in time. Waiting is no
   * attempt, and goes on when the attempts are used up on a server that was not there. An isolated circuit is not waited for.
   * Default: what the surrounding work says, else false.
   */
  readonly waitForCircuit?: boolean | undefined
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
  /** One statement by its text, for the fiber that asks: what it would `borrow` a session for, in fewer steps while all is well. */
  readonly sendUnsafe: Flight.Send
  /** A session until the scope closes; shared with `multiplex`. */
  readonly lease: Effect.Effect<TrackedConnection, SqlError, Scope.Scope>
  /**
   * A session for exclusive use until the scope closes: one outcome for the breaker. `prepare` runs on it first (a
   * BEGIN, say) and must leave no trace when it fails: another session is then tried.
   */
  readonly reserve: (
    prepare?: (connection: TrackedConnection) => Effect.Effect<unknown, SqlError, Scope.Scope>
  ) => Effect.Effect<TrackedConnection, SqlError, Scope.Scope>
  /**
   * The same for whoever cannot be interrupted but where `restore` allows it, and lets go of it by himself. Fewer steps while
   * all is well.
   */
  readonly hold: (restore: Held.Restore) => Effect.Effect<Held.Held, SqlError>
  /**
   * The same, after a session on which `prepare` would have worked but for its loss, with which `cause` came: that was the
   * first attempt.
   */
  readonly renew: (
    cause: Cause.Cause<SqlError>,
    prepare: (connection: TrackedConnection) => Effect.Effect<unknown, SqlError, Scope.Scope>
  ) => Effect.Effect<TrackedConnection, SqlError, Scope.Scope>
  /** Ends work at a deadline, in milliseconds of the wall clock. */
  readonly enforce: <A, E, R>(work: Effect.Effect<A, E, R>, deadlineAt: number) => Effect.Effect<A, E | SqlError, R>
  /** Finds out what became of a COMMIT that failed with `error`: succeeds if it was applied. */
  readonly resolve: (error: SqlError, ticket: CommitFate.Ticket | undefined) => Effect.Effect<void, SqlError>
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
   * What bounds the retries of all calls together: a retry after a lost connection costs one token, one after an overload
   * two, one after a lost race for a row nothing; a retry that works gets its tokens back. `false` for no bound.
   * Default: 10 tokens, of which each success brings back 0.1.
   */
  readonly retryBudget?: Schedule.BudgetOptions | false | undefined
  /**
   * Judges failures that the program knows better, for this executor only; it is asked after `Errors.Classifier` and
   * has the last word. Default: what `Errors.Classifier` says, which by default is what `Errors.classify` says.
   */
  readonly classify?: Errors.Classify | undefined
}

/** Milliseconds. What is no duration is a mistake in the program, and not a failure that it could handle. */
const timeLimit = (
  option: "attemptTimeout" | "deadline" | "acquireTimeout",
  input: Duration.Input | undefined
): number | undefined => {
  if (input === undefined) return undefined
  const limit = millis(input)
  // What is left of a time that has passed is less than nothing: that is no mistake.
  if (option === "deadline" ? !Number.isNaN(limit) : limit > 0) return limit
  throw new Errors.InvalidOption({
    option,
    value: input,
    allowed: option === "deadline" ? "a duration" : "a duration above 0"
  })
}

/** The driver reports "Connection closed" for a FATAL that met a statement: the socket has kept the server's words. */
const withLastWords = (error: SqlError, session: Session): SqlError => {
  const obituary = session.wire.obituary()
  if (obituary?.by !== "server" || Errors.failureOf(error).sqlState !== undefined) return error
  const cause = Object.assign(new Error(obituary.message), { code: obituary.sqlState, severity: "FATAL" })
  return new SqlError({
    reason: new ConnectionError({
      cause,
      message: `The server ended the session: ${describe(Errors.failureOf(cause))}`,
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
  const { targets } = pool.settings
  const metrics = yield* Metrics.Metrics
  const { store } = metrics
  const book = yield* Logbook.make(metrics.pool)
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe()
  const defaultRetry = options.retry === false || EffectSchedule.isSchedule(options.retry)
    ? options.retry as EffectSchedule.Schedule<unknown, unknown> | false
    : yield* Schedule.make(options.retry as Schedule.RetryOptions | undefined)
  const budget = options.retryBudget === false ? undefined : yield* Schedule.budget(options.retryBudget)
  const random = yield* Random.Random
  if (budget !== undefined) metrics.registerBudget(() => budget.tokens)

  // ---------------------------------------------------------------------------------------------------------------
  // judging failures
  // ---------------------------------------------------------------------------------------------------------------

  const treat = Discretion.treatmentOf(pool.settings.errorText)
  const reclassify = Classifier.compose(
    [yield* Errors.Classifier, options.classify],
    (defect) => book.write("classifierFailed", () => LogFields.ofDefect(defect))
  )

  const evidence = Evidence.make({
    reclassify,
    isForReading: Hosts.isForReading(pool.settings.sessionAttrs),
    monotonicNanos: () => clock.monotonicTimeNanosUnsafe(),
    store,
    now,
    onSuccess: () => budget?.succeeded(),
    isCalm: breaker.isCalmUnsafe,
    settle: (permit, signal, failure) => breaker.settleUnsafe(permit, signal, now(), failure),
    dispose: (session, disposal) => {
      pool.evictUnsafe(session, "error")
      if (disposal === "EvictAll") Effect.runSync(pool.evictAll)
    },
    complete: (error, session) => treat(withLastWords(error, session)),
    enforce: (work, deadlineAt, statement) => enforce(work, deadlineAt, statement),
    onDoubt: ({ connection, sql, unit }, error, { failure, verdict }) => {
      const isAskedFor = connection.transaction === "Committing" &&
        Fiber.getCurrent()?.getRef(UnitOfWork.ResolveCommit) === true
      if (!isAskedFor) doubt(Operation.of(sql), unit, error, { failure, kind: verdict.kind })
    },
    traced: (fiber, session, sql) =>
      Spans.send(fiber, pool.name, sql, targets.length > 1 ? targets[session.host]?.address : undefined),
    tell: ({ session, transaction }, error, { elapsed, failure, verdict }) =>
      session.wire.obituary()?.by === "silence"
        ? Errors.toSqlError(
          new Errors.StatementTimeout({
            timeout: elapsed,
            by: "client",
            effect: verdict.effect,
            failure
          })
        )
        : Errors.truthful(error, verdict, transaction === "Committing" ? "commit" : "statement")
  })

  /** Tells of work that may or may not have taken effect, unless it is repeated all the same. */
  const doubt = (
    operation: Operation.Operation,
    unit: UnitOfWork.UnitOfWork | undefined,
    error: unknown,
    judgement: { readonly failure: Errors.Failure; readonly kind: Errors.Kind }
  ): void => {
    const fiber = Fiber.getCurrent()
    const typed = isSqlError(error) ? Errors.fromSqlError(error) : error
    if (!(typed instanceof Errors.OutcomeUnknown || typed instanceof Errors.StatementTimeout)) return
    if (UnitOfWork.isRepeatable(unit) || fiber?.getRef(UnitOfWork.Idempotent) === true) return
    book.write("outcomeUnknown", () => LogFields.doubtful(operation, judgement, error, pool.settings.errorText))
  }

  /** What is known of an error. One that came from elsewhere, another client's say, proves nothing. */
  const find = (error: unknown): Evidence.Judgement | undefined => {
    if (typeof error !== "object" || error === null) return undefined
    const known = evidence.find(error)
    if (known !== undefined || !isSqlError(error)) return known
    const typed = Errors.fromSqlError(error)
    return typed === undefined ? undefined : evidence.find(typed)
  }

  const kindOf = (error: unknown): Errors.Kind | undefined => find(error)?.verdict.kind

  /** Statements are judged where they fail, so a checkout's `SqlError` without a judgement is a connect that failed. */
  const isFailedConnect = (error: unknown): error is SqlError | Errors.CredentialsFailed | Errors.NoSuitableHost =>
    error instanceof Errors.CredentialsFailed || error instanceof Errors.NoSuitableHost ||
    (isSqlError(error) && Errors.fromSqlError(error) === undefined)

  const judgeCheckout = (error: unknown): Evidence.Judgement | undefined => {
    const judgement = find(error) ?? (isFailedConnect(error) ? evidence.judgeConnect(error) : undefined)
    if (judgement?.isOfConnect === true) {
      Store.countFailure(store, "CHECKOUT", judgement.verdict, judgement.failure, now())
    } else if (judgement === undefined && Errors.isPoolError(error)) store.errors.CHECKOUT.Local++
    return judgement
  }

  /** The error as its caller shall see it: what the driver says of a refused connect is not always the truth. */
  const told = (error: SqlError): SqlError => {
    const judgement = find(error)
    if (judgement === undefined) return error
    const truth = Errors.truthful(error, judgement.verdict)
    if (truth !== error) evidence.remember(truth, judgement)
    return truth
  }

  const {
    borrowAdmitted,
    borrowUnguarded,
    checkoutOptions,
    holdExclusive,
    leaseExclusive,
    leaseShared,
    settle,
    trackUnder,
    underPermit
  } = Admission.make<
    Errors.CircuitError,
    Pool.AcquireError
  >({
    breaker,
    pool,
    evidence,
    now,
    judge: judgeCheckout,
    judgeEnd: (failure, circumstances) =>
      reclassify(failure, circumstances, Errors.classify(failure, circumstances)).breaker,
    hasWaitedInVain: (error) =>
      Errors.isPoolError(error) && error._tag === "AcquireTimeout" &&
      (error.phase === "Connect" || error.phase === "Validate")
  })

  /** Whether nobody has answered a connect, or nobody yet: another one costs the server next to nothing. */
  const isAway = (error: unknown): boolean =>
    Errors.classify(Errors.failureOf(error), { phase: "Connect", reused: false, replied: false }).kind === "Unreachable"

  // ---------------------------------------------------------------------------------------------------------------
  // trying again
  // ---------------------------------------------------------------------------------------------------------------

  /** What a circuit has rejected for good: a call that waits for it is not rejected before it stops to wait. */
  const countRejection = (error: unknown): void => {
    const reason = Errors.isPoolError(error) ? Store.rejectionOf(error._tag) : undefined
    if (reason === undefined) return
    store.breakerRejections[reason]++
    store.errors.CHECKOUT.Local++
  }

  const isHalfOpen = (error: unknown): error is Errors.CircuitHalfOpen => error instanceof Errors.CircuitHalfOpen

  /** How long a circuit that has rejected a call asks to be left alone; while it is half open, that is decided soon. */
  const circuitPause = (error: unknown): number | undefined => {
    const typed = isSqlError(error) ? Errors.fromSqlError(error) : error
    return typed instanceof Errors.CircuitOpen
      ? typed.retryAfter
      : isHalfOpen(typed)
      ? Math.min(typed.retryAfter, 50)
      : undefined
  }

  const runFork = Effect.runForkWith(Logbook.naming(yield* Effect.context<never>(), metrics.pool))

  /**
   * By one more call, which has nothing to do: as the probe it finds out whether the server serves whom it lets in, if no
   * other call does so already. Unless it does not, sessions are opened for those who wait while the circuit lets them in a
   * few at a time, and not only for those few.
   */
  const reached = (waiting: number) =>
    Effect.suspend(() => {
      breaker.reachedUnsafe(now())
      if (breaker.closedPermitUnsafe() !== undefined) return Effect.void
      return Effect.map(Effect.exit(borrowAdmitted(() => Effect.void)), (exit) => {
        const isServed = Exit.isSuccess(exit) || Option.exists(Exit.findErrorOption(exit), isHalfOpen)
        if (isServed) runFork(Effect.timeoutOption(Effect.exit(pool.warm(waiting)), breaker.probeTimeout))
      })
    })

  const sign = (): Lookout.Sign => {
    const { code, sqlState } = Errors.failureOf(pool.lastConnectFailureUnsafe())
    return code === "ECONNREFUSED" ? "Refused" : sqlState === "57P03" ? "Starting" : undefined
  }

  const lookout = Lookout.make({
    now,
    draw: () => random.nextDoubleUnsafe(),
    runFork,
    sign,
    isOutOfReach: () => pool.lastConnectFailureUnsafe() !== undefined,
    leastPause: () => {
      const failure = pool.lastConnectFailureUnsafe()
      return failure !== undefined && isAway(failure) ? 0 : pool.connectPauseUnsafe()
    },
    connect: Effect.suspend(() => {
      const { max, total } = pool.statsUnsafe()
      if (total < max) pool.outOfTurnUnsafe()
      // Sessions that there are tell nothing of whether another one is let in.
      return Effect.map(Effect.exit(pool.warm(total + 1)), () => pool.lastConnectFailureUnsafe() === undefined)
    }),
    reached,
    isOver: pool.isClosing,
    over: pool.closing
  })

  const { recover } = Recovery.make({
    now,
    draw: () => random.nextDoubleUnsafe(),
    find,
    lookout,
    connectPause: pool.connectPauseUnsafe,
    circuitPause,
    budget,
    onRetry: (kind, attempt, error) => {
      store.retries[kind]++
      book.write("queryRetry", () => LogFields.repeated(attempt, error, pool.settings.errorText))
    },
    onPause: (since, pause) => Spans.pause(since, pool.name, pause),
    exhausted: (last, history, stoppedBy) => {
      book.write("queryGaveUp", () => LogFields.exhausted(last, history, stoppedBy, pool.settings.errorText))
      return new Errors.RetriesExhausted({
        attempts: history.length,
        last: isSqlError(last) ? told(last) : last,
        history,
        stoppedBy
      })
    }
  })

  const asSqlError = <E>(error: E | SqlError | Errors.PoolError): SqlError => {
    const history = Errors.historyOf(error)
    // Programs that match on the reason of the last failure go on working after retries.
    const asked = !Errors.isPoolError(error)
      ? told(error as SqlError)
      : error._tag === "RetriesExhausted" && isSqlError(error.last)
      ? Errors.withCause(error.last, error)
      : Errors.toSqlError(error)
    History.remember(asked, history)
    return asked
  }

  const waitForCircuitUntil = (terms: UnitOfWork.Terms | undefined): number | undefined =>
    terms?.waitsForCircuit !== true
      ? undefined
      : terms.deadlineAt < Infinity
      ? terms.deadlineAt
      : now() + (terms.acquireTimeout ?? pool.settings.acquireTimeout)

  /** Tells the span of a statement how it ended. */
  const concluded = <A, E, R>(
    work: Effect.Effect<A, E, R>,
    fiber: Fiber.Fiber<unknown, unknown>,
    failedAttempts: () => number = () => 0
  ): Effect.Effect<A, E, R> => {
    const span = StatementSpan.of(fiber, pool.name)
    return span === undefined
      ? work
      : Effect.onExit(work, (exit) => Effect.sync(() => Spans.conclude(span, exit, failedAttempts(), kindOf)))
  }

  /** A statement is repeated by itself wherever that is safe, on the terms of the unit around it. */
  const recoverStatement = <A, E, R>(
    cause: Cause.Cause<E>,
    attempt: Effect.Effect<A, E, R>,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Effect.Effect<A, SqlError, R> => {
    const unit = UnitOfWork.of(fiber)
    const terms: Recovery.Terms = {
      retry: unit?.retry ?? defaultRetry,
      idempotent: fiber.getRef(UnitOfWork.Idempotent),
      deadlineAt: unit?.deadlineAt ?? Infinity,
      inTransaction: fiber.getRef(UnitOfWork.InTransaction),
      waitForCircuitUntil: waitForCircuitUntil(unit),
      isTraceless: () => true,
      onRefusal: countRejection
    }
    const history: Array<Errors.Attempt> = []
    const recovered = Effect.mapError(recover(cause, () => attempt, terms, history), asSqlError)
    return concluded(recovered, fiber, () => history.length)
  }

  const overseer: UnitOfWork.Overseer = {
    missed: (allowed, unit) => {
      const sql = unit.lateness?.cutOff
      const operation = sql === undefined ? undefined : Operation.of(sql)
      store.errors[operation ?? "CHECKOUT"].Local++
      book.write("deadlineExceeded", () => LogFields.late(allowed, operation, UnitOfWork.effectOf(unit)))
    }
  }

  /** A question of ours that goes unanswered is no call that has failed. */
  const nobody: UnitOfWork.Overseer = { missed: () => {} }

  const deadlineExceeded = (allowed: number, unit: UnitOfWork.UnitOfWork): SqlError =>
    Errors.toSqlError(new Errors.DeadlineExceeded({ deadline: allowed, effect: UnitOfWork.effectOf(unit) }))

  const enforce = <A, E, R>(
    work: Effect.Effect<A, E, R>,
    deadlineAt: number,
    statement?: Deadlines.Statement,
    by = overseer
  ): Effect.Effect<A, E | SqlError, R> =>
    Effect.withFiber((fiber) =>
      concluded(Deadlines.enforce(work, deadlineAt, now, deadlineExceeded, by, statement), fiber)
    )

  const underDeadline = <A, R>(
    work: (fiber: Fiber.Fiber<unknown, unknown>, unit: UnitOfWork.UnitOfWork | undefined) => Effect.Effect<
      A,
      SqlError,
      R
    >,
    by = overseer
  ): Effect.Effect<A, SqlError, R> => {
    const inTime: Effect.Effect<A, SqlError, R> = Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const unit = UnitOfWork.of(fiber)
      if (unit !== undefined) UnitOfWork.oversee(unit, by)
      const deadlineAt = Deadlines.unenforced(fiber, unit)
      return deadlineAt === Infinity ? work(fiber, unit) : enforce(inTime, deadlineAt, undefined, by)
    })
    return inTime
  }

  const retried = <A, R>(attempt: Effect.Effect<A, SqlError | Errors.PoolError, R>): Effect.Effect<A, SqlError, R> =>
    underDeadline((fiber) => Effect.catchCause(attempt, (cause) => recoverStatement(cause, attempt, fiber)))

  /** The life of a healthy statement: a permit that needs no clock, a session from the front of the pool, the work. */
  const borrow = <A, R>(f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>) =>
    underDeadline((fiber, unit): Effect.Effect<A, SqlError, R> => {
      const permit = breaker.closedPermitUnsafe()
      if (permit === undefined) return retried(borrowAdmitted(f))
      return Effect.catchCause(pool.use(underPermit(permit, f), checkoutOptions(unit)), (cause) => {
        settle(permit, cause)
        return recoverStatement(cause, borrowAdmitted(f), fiber)
      })
    })

  const sendUnsafe = Flight.make({
    closedPermit: breaker.closedPermitUnsafe,
    take: pool.takeUnsafe,
    giveBack: pool.giveBackUnsafe,
    stand: pool.standUnsafe,
    examined: (claim, permit, f) => pool.examinedUnsafe(claim, underPermit(permit, f)),
    tracked: trackUnder,
    borrow,
    enforce: (work, deadlineAt) => enforce(work, deadlineAt),
    overseer,
    recover: (cause, permit, f, fiber) => {
      settle(permit, cause)
      return recoverStatement(cause, borrowAdmitted(f), fiber)
    }
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

  const reserve: Executor["Service"]["reserve"] = (prepare) =>
    retried(prepare === undefined ? leaseExclusive : prepared(prepare))

  const hold = (restore: Held.Restore): Effect.Effect<Held.Held, SqlError> =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const unit = UnitOfWork.of(fiber)
      const isPlain = unit?.acquireTimeout === undefined && Deadlines.unenforced(fiber, unit) === Infinity
      const permit = isPlain ? breaker.closedPermitUnsafe() : undefined
      if (unit !== undefined) UnitOfWork.oversee(unit, overseer)
      if (permit === undefined) return Held.hold(reserve(), restore)
      return Effect.catchCause(holdExclusive(permit, restore), (cause) => {
        settle(permit, cause)
        return Held.hold(recoverStatement(cause, leaseExclusive, fiber), restore)
      })
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

  /**
   * Who owes a late attempt its answer: a session, a connect under way, or a server that does not let go of the last
   * session that it had. Nobody, if it only stands in the queue.
   */
  const whomItWaitsFor = (
    { awaited }: UnitOfWork.UnitOfWork
  ): { readonly session: Session | undefined } | undefined => {
    const [session] = awaited.keys()
    if (session !== undefined) return { session }
    const { active, connecting, max, total } = pool.statsUnsafe()
    const isServersTurn = (connecting > 0 && active < max) || (total === 0 && pool.leavingUnsafe() > 0)
    return isServersTurn ? { session } : undefined
  }

  const timedOut = (timeout: number, own: UnitOfWork.UnitOfWork): Errors.StatementTimeout =>
    new Errors.StatementTimeout({
      timeout,
      by: "client",
      effect: UnitOfWork.effectOf(own),
      failure: { code: "ETIMEDOUT" }
    })

  /** Its statement, if it had one under way, counts as interrupted. */
  const attemptTimedOut = (
    timeout: number,
    own: UnitOfWork.UnitOfWork,
    session: Session | undefined
  ): Errors.StatementTimeout => {
    const error = timedOut(timeout, own)
    const { effect } = error
    const verdict: Errors.Verdict = {
      kind: "Unreachable",
      effect,
      retry: "Backoff",
      breaker: "Failure",
      connection: "Evict"
    }
    const failure = { code: "ETIMEDOUT", message: error.message }
    const cutOff = own.lateness?.cutOff
    const operation = cutOff === undefined ? "OTHER" : Operation.of(cutOff)
    Store.countFailure(store, session === undefined ? "CHECKOUT" : operation, verdict, failure, now())
    evidence.record(error, failure, verdict)
    if (effect === "Unknown") doubt(operation, own, error, { failure, kind: verdict.kind })
    return error
  }

  const attemptOnce = <A, E, R>(
    work: Effect.Effect<A, E, R>,
    own: UnitOfWork.UnitOfWork,
    number: number,
    attemptTimeout: number | undefined
  ): Effect.Effect<A, E | Errors.StatementTimeout, R> => {
    const once = UnitOfWork.run(work, own, number)
    if (attemptTimeout === undefined) return once
    const permit = breaker.closedPermitUnsafe()
    let late: { readonly session: Session | undefined } | undefined
    const noteLateness = () => {
      late = whomItWaitsFor(own)
      UnitOfWork.expire(own, () => timedOut(attemptTimeout, own))
    }
    return TimeLimit.within(once, attemptTimeout, () => own, noteLateness, () => {
      if (late !== undefined && permit !== undefined) {
        const source = evidence.sourceOfSilence(late.session)
        breaker.settleUnsafe(permit, "Failure", now(), { code: "ETIMEDOUT", source })
      }
      return attemptTimedOut(attemptTimeout, own, late?.session)
    })
  }

  const exposeRemembering = <E>(error: E): E | SqlError | Errors.PoolError => {
    if (!isSqlError(error)) return error
    const exposed = expose(error)
    History.remember(exposed, Errors.historyOf(error))
    return exposed
  }

  const unit = <A, E, R>(
    work: Effect.Effect<A, E, R>,
    options: RunOptions
  ): Effect.Effect<A, E | RunError, R> =>
    Effect.withFiber((fiber) => {
      const outer = UnitOfWork.of(fiber)
      if (outer !== undefined) UnitOfWork.oversee(outer, overseer)
      const idempotent = options.idempotent ?? fiber.getRef(UnitOfWork.Idempotent)
      const attemptTimeout = timeLimit("attemptTimeout", options.attemptTimeout)
      const allowed = timeLimit("deadline", options.deadline) ?? Infinity
      const set = fiber.getRef(Deadlines.Deadline)
      const startedAt = allowed === Infinity && set === Infinity ? 0 : now()
      const ownDeadlineAt = Math.min(startedAt + allowed, set)
      const isOwnTighter = ownDeadlineAt < (outer?.deadlineAt ?? Infinity)
      const terms: UnitOfWork.Terms = {
        retry: options.retry ?? outer?.retry,
        deadlineAt: isOwnTighter ? ownDeadlineAt : outer?.deadlineAt ?? Infinity,
        acquireTimeout: timeLimit("acquireTimeout", options.acquireTimeout) ?? outer?.acquireTimeout,
        waitsForCircuit: options.waitForCircuit ?? outer?.waitsForCircuit ?? false
      }
      const isRepeatable = idempotent && (terms.retry ?? defaultRetry) !== false
      const history: Array<Errors.Attempt> = []
      let current = UnitOfWork.make(terms, outer, isRepeatable)
      const again = (number: number) =>
        Effect.suspend(() => {
          current = UnitOfWork.make(terms, outer, isRepeatable)
          return attemptOnce(work, current, number, attemptTimeout)
        })
      const all = Effect.catchCause(attemptOnce(work, current, 1, attemptTimeout), (cause) =>
        Effect.mapError(
          recover(cause, again, {
            ...terms,
            retry: terms.retry ?? defaultRetry,
            idempotent,
            inTransaction: fiber.getRef(UnitOfWork.InTransaction),
            waitForCircuitUntil: waitForCircuitUntil(terms),
            isTraceless: () => current.effects === 0,
            // Whatever was refused in here was refused to one of its parts.
            onRefusal: () => {}
          }, history),
          exposeRemembering
        )) as Effect.Effect<A, E | RunError, R>
      return isOwnTighter ? boundUnit(all, Math.max(0, ownDeadlineAt - startedAt), () => current, history) : all
    })

  /** Work whose attempts add to `history`, and of which `current` is the last. */
  const boundUnit = <A, E, R>(
    work: Effect.Effect<A, E, R>,
    allowed: number,
    current: () => UnitOfWork.UnitOfWork,
    history: ReadonlyArray<Errors.Attempt>
  ): Effect.Effect<A, E | Errors.DeadlineExceeded, R> => {
    const lateError = () => {
      const isDoubtful = history.some(({ effect }) => effect === "Unknown")
      const effect = isDoubtful ? "Unknown" : UnitOfWork.effectOf(current())
      return new Errors.DeadlineExceeded({ deadline: allowed, effect })
    }
    const outOfTime = () => {
      const error = lateError()
      History.remember(error, history)
      Deadlines.miss(allowed, current(), error, overseer)
      return error
    }
    if (allowed === 0) return Effect.suspend(() => Effect.fail(outOfTime()))
    return TimeLimit.within(work, allowed, current, () => UnitOfWork.expire(current(), lateError), outOfTime)
  }

  // ---------------------------------------------------------------------------------------------------------------
  // a COMMIT whose answer was lost
  // ---------------------------------------------------------------------------------------------------------------

  const resolve = LostCommit.make({
    now,
    ask: ({ params, sql }, until) =>
      // Past the circuit, which the same loss may have opened. Nobody's unit of work, since a question has no effect.
      underDeadline(
        () => Effect.mapError(borrowUnguarded((connection) => connection.query(sql, params, false)), asSqlError),
        nobody
      )
        .pipe(
          Effect.provideService(Deadlines.Deadline, until),
          idempotent,
          UnitOfWork.detached
        ),
    acquireTimeout: pool.settings.acquireTimeout,
    isUnknown: (error) => {
      const typed = Errors.fromSqlError(error)
      const isLost = typed?._tag === "OutcomeUnknown" || typed?._tag === "StatementTimeout"
      return isLost && find(error)?.verdict.effect === "Unknown"
    },
    isRefusal: (error) => find(error)?.verdict.kind === "Rejected",
    rolledBack: (lost) => {
      const message = "The answer to COMMIT was lost; the server says that the transaction was rolled back."
      const error = new SqlError({ reason: new ConnectionError({ cause: lost, message, operation: "commit" }) })
      evidence.record(error, { ...Errors.failureOf(lost), message }, {
        kind: "Unreachable",
        effect: "RolledBack",
        retry: "Backoff",
        breaker: "Ignored",
        connection: "Keep"
      })
      return error
    },
    unresolved: (lost, reason) => {
      const failure = Errors.failureOf(lost)
      const error = Errors.toSqlError(
        new Errors.OutcomeUnknown({ operation: "commit", failure, cause: lost, unresolved: reason })
      )
      const judgement = find(lost)
      if (judgement !== undefined) evidence.remember(error, judgement)
      const fiber = Fiber.getCurrent()
      const unit = fiber === undefined ? undefined : UnitOfWork.of(fiber)
      doubt("COMMIT", unit, error, { failure, kind: judgement?.verdict.kind ?? "Unreachable" })
      return error
    }
  })

  return Executor.of({
    run: (effect, options = {}) => unit(effect, options),
    use: (f, options = {}) =>
      unit(Effect.scopedWith((scope) => Effect.flatMap(Scope.provide(leaseExclusive, scope), f)), options),
    borrow,
    sendUnsafe,
    lease: retried(leaseShared),
    reserve,
    hold,
    renew: (cause, prepare) => underDeadline((fiber) => recoverStatement(cause, prepared(prepare), fiber)),
    enforce,
    resolve
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
 * The time at which all work of a fiber must be done: a point in time and not a duration, in milliseconds of the wall
 * clock (as `Clock.currentTimeMillis` has it); `Infinity` for none, which is the default. Every statement, checkout,
 * transaction and `run` honours it: what is not done by then fails with `DeadlineExceeded` (in a `SqlError`, where the
 * error of a statement is one) and is cancelled on the server. Set it with {@link withDeadline}, or
 * provide it where a platform says how long there is.
 *
 * @category references
 * @since 0.1.0
 */
export const Deadline: Context.Reference<number> = Deadlines.Deadline

/**
 * Gives an effect a {@link Deadline}: this long from when it starts, or what the surrounding deadline leaves of that.
 * The effect is interrupted when its time is up, and fails with `DeadlineExceeded`, which says what is known of what it
 * did. A COMMIT that is under way is given a moment to end.
 *
 * **Example** (Two seconds for everything)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Executor from "effect-pg-pool/Executor"
 * import { SqlClient } from "effect/sql"
 *
 * export const report = Effect.gen(function*() {
 *   const sql = yield* SqlClient.SqlClient
 *   const orders = yield* sql`SELECT count(*) FROM orders`
 *   const customers = yield* sql`SELECT count(*) FROM customers`
 *   return { orders, customers }
 * }).pipe(Executor.withDeadline("2 seconds"))
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const withDeadline: {
  (
    deadline: Duration.Input
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | Errors.DeadlineExceeded, R>
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    deadline: Duration.Input
  ): Effect.Effect<A, E | Errors.DeadlineExceeded, R>
} = /* @__PURE__ */ dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, deadline: Duration.Input) =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const clock = fiber.getRef(Clock.Clock)
      const now = () => clock.currentTimeMillisUnsafe()
      const deadlineAt = now() + (timeLimit("deadline", deadline) ?? Infinity)
      const outer = Math.min(fiber.getRef(Deadline), UnitOfWork.of(fiber)?.deadlineAt ?? Infinity)
      // Whoever has set a tighter one enforces it.
      if (deadlineAt >= outer) return self as Effect.Effect<A, E | Errors.DeadlineExceeded, R>
      return Deadlines.enforce(
        Effect.provideService(self, Deadline, deadlineAt),
        deadlineAt,
        now,
        (allowed, unit) => new Errors.DeadlineExceeded({ deadline: allowed, effect: UnitOfWork.effectOf(unit) })
      )
    })
)

/**
 * The number of the attempt that is running, from 1: for the body of a `run` or a {@link transaction}.
 *
 * @category references
 * @since 0.1.0
 */
export const CurrentAttempt: Context.Reference<number> = UnitOfWork.CurrentAttempt

/**
 * How a transaction is begun and repeated.
 *
 * @category options
 * @since 0.1.0
 */
export interface TransactionOptions extends RunOptions {
  /** Default: the server's `default_transaction_isolation`, which is `read committed` unless changed. */
  readonly isolation?: "read uncommitted" | "read committed" | "repeatable read" | "serializable" | undefined
  /** Default: the server's `default_transaction_read_only`, which is `read write` unless changed. */
  readonly accessMode?: "read write" | "read only" | undefined
  /**
   * Waits for a snapshot with which nothing can fail to serialize: for long reports. Only with `isolation: "serializable"`
   * and `accessMode: "read only"`. Default: false.
   */
  readonly deferrable?: boolean | undefined
  /**
   * Looks up what became of a COMMIT whose answer was lost, by `pg_xact_status`: one that was applied is a success, one
   * that was rolled back is repeated like any other loss. It needs PostgreSQL 13 or newer and costs a transaction id per
   * transaction, which comes with the answer to BEGIN. What the server cannot tell, after a failover
   * say, stays an `OutcomeUnknown`, whose `unresolved` says why. It is asked until the deadline, or for the
   * `acquireTimeout`. Default: what the surrounding work says, else false.
   *
   * https://www.postgresql.org/docs/18/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
   */
  readonly resolveCommit?: boolean | undefined
}

const beginOf = ({ accessMode, deferrable, isolation }: TransactionOptions): string | undefined => {
  if (deferrable === true && (isolation !== "serializable" || accessMode !== "read only")) {
    throw new Errors.InvalidOption({
      option: "deferrable",
      value: deferrable,
      allowed: "false, or given with isolation \"serializable\" and accessMode \"read only\""
    })
  }
  const modes = [
    ...(isolation === undefined ? [] : [`ISOLATION LEVEL ${isolation.toUpperCase()}`]),
    ...(accessMode === undefined ? [] : [accessMode.toUpperCase()]),
    ...(deferrable === undefined ? [] : [deferrable ? "DEFERRABLE" : "NOT DEFERRABLE"])
  ]
  return modes.length === 0 ? undefined : `BEGIN ${modes.join(", ")}`
}

/** A savepoint has the isolation of its transaction, so it cannot be given another one. */
const refuseNested = ({ accessMode, deferrable, isolation }: TransactionOptions): void => {
  const [named] = Object.entries({ isolation, accessMode, deferrable }).filter(([, value]) => value !== undefined)
  if (named === undefined) return
  throw new Errors.InvalidOption({
    option: named[0],
    value: named[1],
    allowed: "left out inside another transaction, whose own it is"
  })
}

/**
 * Runs an effect in a transaction of the `SqlClient` in the context, all of it again when that may help and nothing of it
 * is left: after a serialization failure (40001) or a deadlock (40P01), and after a connection was lost before COMMIT
 * was sent, which the server answers by rolling back. What the effect does elsewhere is repeated with it, and it can ask
 * {@link CurrentAttempt}. A part of a transaction is never repeated, but for its first statement, which goes with BEGIN: when
 * the connection is lost before BEGIN is answered, both go to another session. Either way a rollback does not undo everything:
 * sequences go on, and what was done outside of the database stays. The retries are those of `run`.
 *
 * Inside another transaction it is a savepoint: it is rolled back by itself and never repeated by itself.
 *
 * A COMMIT whose answer is lost fails with `OutcomeUnknown`, unless `resolveCommit` finds out; one statement can have
 * that too, as a transaction of its own. Impossible options are defects (`InvalidOption`), since they are mistakes in the
 * program.
 *
 * https://www.postgresql.org/docs/18/mvcc-serialization-failure-handling.html
 *
 * **Example** (Moving money, once)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Executor from "effect-pg-pool/Executor"
 * import { SqlClient } from "effect/sql"
 *
 * export const transfer = (from: number, to: number, amount: number) =>
 *   Effect.gen(function*() {
 *     const sql = yield* SqlClient.SqlClient
 *     yield* sql`UPDATE account SET balance = balance - ${amount} WHERE id = ${from}`
 *     yield* sql`UPDATE account SET balance = balance + ${amount} WHERE id = ${to}`
 *   }).pipe(Executor.transaction({ isolation: "serializable", resolveCommit: true, deadline: "5 seconds" }))
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const transaction: {
  (options?: TransactionOptions): <A, E, R>(
    effect: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | SqlError | RunError, R | Executor | SqlClient.SqlClient>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    options?: TransactionOptions
  ): Effect.Effect<A, E | SqlError | RunError, R | Executor | SqlClient.SqlClient>
} = /* @__PURE__ */ dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(effect: Effect.Effect<A, E, R>, options: TransactionOptions = {}) =>
    Effect.gen(function*() {
      const executor = yield* Executor
      const sql = yield* SqlClient.SqlClient
      const isNested = Option.isSome(yield* Effect.serviceOption(sql.transactionService))
      if (isNested) {
        refuseNested(options)
        return yield* executor.run(sql.withTransaction(effect), options)
      }
      const begin = beginOf(options)
      // The modes are this transaction's, and not those of another pool's inside of it.
      const outerBegin = yield* SqlClient.BeginTransaction
      const begun = sql.withTransaction(Effect.provideService(effect, SqlClient.BeginTransaction, outerBegin))
      const withModes = begin === undefined ? begun : Effect.provideService(begun, SqlClient.BeginTransaction, begin)
      return yield* executor.run(
        options.resolveCommit === undefined
          ? withModes
          : Effect.provideService(withModes, UnitOfWork.ResolveCommit, options.resolveCommit),
        options
      )
    })
)

/**
 * Runs an effect through the executor of the context: see {@link Executor}.
 *
 * @category combinators
 * @since 0.1.0
 */
export const run: {
  (options?: RunOptions): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | RunError, R | Executor>
  <A, E, R>(effect: Effect.Effect<A, E, R>, options?: RunOptions): Effect.Effect<A, E | RunError, R | Executor>
} = /* @__PURE__ */ dual(
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
