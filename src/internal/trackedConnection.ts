import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type * as Tracer from "effect/Tracer"
import type { Permit } from "./breakerMachine.ts"
import * as Commits from "./commits.ts"
import * as Deadline from "./deadline.ts"
import { Delegate } from "./delegate.ts"
import type * as Rider from "./rider.ts"
import type { Session } from "./session.ts"
import * as Turn from "./statementTurn.ts"
import * as UnitOfWork from "./unitOfWork.ts"
import type { Failure, Signal } from "./verdict.ts"

/** Where a connection stands towards COMMIT. */
export type TransactionPhase = "None" | "Open" | "Committing"

/** Who learns what became of each statement, and judges the failed ones. */
export interface Observer {
  readonly monotonicNanos: () => bigint
  /** Completes the span of a statement that is about to be sent, if it has one that somebody will see. */
  readonly traced: (fiber: Fiber.Fiber<unknown, unknown>, session: Session, sql: string) => Tracer.Span | undefined
  readonly succeeded: (statement: Statement) => void
  /** Hears of a BEGIN that was answered together with the statement that has just ended on the session. */
  readonly begun: (session: Session) => void
  readonly interrupted: (statement: Statement) => void
  /** Returns the error as the caller shall see it, and says whether the statement is proved to have left no trace. */
  readonly failed: (
    statement: Statement,
    error: SqlError,
    written: boolean
  ) => { readonly error: SqlError; readonly traceless: boolean }
  /** Ends work at a deadline, in wall-clock milliseconds. `statement` is what it is a part of, when that is known. */
  readonly enforce: <A, E, R>(
    work: Effect.Effect<A, E, R>,
    deadlineAt: number,
    statement?: Deadline.Statement
  ) => Effect.Effect<A, E | SqlError, R>
}

/** One statement under way. */
export interface Statement {
  readonly connection: TrackedConnection
  readonly sql: string
  readonly startedAt: bigint
  /** What admitted it: others may have been admitted to a shared connection since. */
  readonly permit: Permit | undefined
  readonly unit: UnitOfWork.UnitOfWork | undefined
  /** What had been written to the socket before it. */
  readonly mark: number
  /** Whether it counts by itself. Inside a transaction only the COMMIT takes effect. */
  readonly counts: boolean
  /** Whether it is a COMMIT that the caller has written. */
  readonly commits: boolean
  readonly span: Tracer.Span | undefined
}

/**
 * The driver's connection, watched: each statement marks its session as owing an answer, and each failure is judged
 * by whether anything had been written. A statement that works pays two clock reads and some additions.
 */
export class TrackedConnection extends Delegate {
  readonly session: Session
  readonly observer: Observer
  /** Takes a shared session out of circulation; nothing to do for an exclusive one. */
  readonly exclude: Effect.Effect<void, never, Scope.Scope>
  transaction: TransactionPhase = "None"
  /** Whose statements wait for each other here, and not in the driver. */
  readonly turn: Turn.Turn | undefined
  /** The server has answered something on this connection. */
  replied = false
  /** The caller asked for a transaction that cannot write. */
  isReadOnlyByChoice = false
  /** The caller has ended a transaction by hand here: what is committed next is another one. */
  hasEndedByHand = false
  /** What admitted the statements of a shared connection; an exclusive one is one outcome, settled at its end. */
  permit: Permit | undefined = undefined
  /** What the failures of this connection said about the server: the worst of it. */
  signal: Signal | undefined = undefined
  /** The last of them that spoke against the server. */
  lastFailure: (Failure & { readonly source: number }) | undefined = undefined

  constructor(
    session: Session,
    base: PgConnection.PgConnection,
    observer: Observer,
    exclude: Effect.Effect<void, never, Scope.Scope> = Effect.void,
    turn?: Turn.Turn
  ) {
    super(base)
    this.session = session
    this.observer = observer
    this.exclude = exclude
    this.turn = turn
  }

  override get pin(): Effect.Effect<PgConnection.PgConnection, never, Scope.Scope> {
    return Effect.map(
      Effect.andThen(this.exclude, this.base.pin),
      (pinned) => new TrackedConnection(this.session, pinned, this.observer)
    )
  }

  override query(
    sql: string,
    params?: ReadonlyArray<unknown>,
    prepare?: boolean
  ): Effect.Effect<PgConnection.Result, SqlError> {
    return this.track(sql, this.base.query(sql, params, prepare))
  }

  override queryValues(
    sql: string,
    params?: ReadonlyArray<unknown>,
    prepare?: boolean
  ): Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, SqlError> {
    return this.track(sql, this.base.queryValues(sql, params, prepare))
  }

  /** A query without a name, and with it in the same write statements of ours, whose first row is the answer. */
  queryWithRider(sql: string, rider: ReadonlyArray<string>): Effect.Effect<Rider.Answer | undefined, SqlError> {
    const { wire } = this.session
    const both = Effect.suspend(() => {
      const mark = wire.mark()
      let aboard: Fiber.Fiber<unknown, unknown> | undefined
      const boarded = Effect.withFiber((own: Fiber.Fiber<unknown, unknown>) => {
        aboard = own
        return wire.ride(rider)
      })
      // The finalizer stands before anybody has boarded: a fiber can be interrupted between any two steps.
      return Effect.onExit(
        Effect.flatMap(
          Effect.forkChild(boarded, { startImmediately: true }),
          (riding) =>
            Effect.flatMap(Effect.exit(this.base.query(sql, [], false)), (exit) => {
              if (exit._tag === "Success") return Fiber.join(riding)
              // After a refusal, too, the answer to the rest is on its way. A pooler whose client leaves before it has come
              // gives it to the next one (PgBouncer 1.18).
              const failed = Effect.failCause(exit.cause)
              const isAnswered = wire.mark() !== mark && !wire.isDead()
              return isAnswered ? Effect.andThen(Fiber.join(riding), failed) : failed
            })
        ),
        (exit) => exit._tag === "Success" || aboard === undefined ? Effect.void : Fiber.interrupt(aboard)
      )
    })
    return this.track(sql, both)
  }

  /** Silence is watched while rows are asked for, and not while their consumer is busy with them. */
  override stream(sql: string, params?: ReadonlyArray<unknown>): Stream.Stream<PgConnection.Row, SqlError> {
    return Stream.unwrap(Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const outer = UnitOfWork.of(fiber)
      const deadlineAt = Deadline.unenforced(fiber, outer)
      // All pulls are one statement, so they are done for one unit.
      const unit = deadlineAt === Infinity ? outer : Deadline.unitUntil(deadlineAt, outer)
      const statement = this.begin(sql, unit, fiber)
      let isOwed = false
      const owe = (next: boolean) => {
        if (next === isOwed) return
        isOwed = next
        this.owe(statement.unit, next ? 1 : -1)
        if (next) this.session.wire.expectAnswer()
      }
      const rows = Stream.transformPull(this.base.stream(sql, params), (pull) =>
        Effect.succeed(Effect.suspend(() => {
          owe(true)
          const owed = Effect.onExitPrimitive(pull, (exit) => {
            // An interrupted pull has no answer yet: the driver goes on to wait for it.
            if (!isInterrupted(exit)) owe(false)
            return undefined
          })
          return deadlineAt === Infinity ? owed : this.observer.enforce(owed, deadlineAt, { unit, sql })
        }))).pipe(
          Stream.mapError((error) => this.judge(statement, error)),
          Stream.onExit((exit) => Effect.sync(() => this.end(statement, exit)))
        )
      // Registered before the stream is opened, so that it runs when the driver has let go.
      const settled = Effect.addFinalizer(() => Effect.sync(() => owe(false)))
      return Effect.as(Effect.andThen(settled, this.exclude), rows)
    }))
  }

  override listen(
    channel: string
  ): Effect.Effect<Queue.Dequeue<PgConnection.Notification, SqlError>, SqlError, Scope.Scope> {
    return Effect.andThen(this.exclude, this.track("LISTEN", this.base.listen(channel)))
  }

  /** To be called after the statement with which a BEGIN went that the server has answered. */
  noteBegin(): void {
    this.observer.begun(this.session)
  }

  private begin(
    sql: string,
    unit: UnitOfWork.UnitOfWork | undefined,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Statement {
    const commits = this.transaction === "Open" && Commits.isByHand(sql)
    const counts = commits || this.transaction !== "Open"
    if (unit !== undefined) {
      UnitOfWork.start(unit)
      if (counts) UnitOfWork.addEffects(unit, 1)
    }
    return {
      connection: this,
      sql,
      startedAt: this.observer.monotonicNanos(),
      permit: this.permit,
      unit,
      mark: this.session.wire.mark(),
      counts,
      commits,
      span: fiber.cache.tracer === undefined ? undefined : this.observer.traced(fiber, this.session, sql)
    }
  }

  judge(statement: Statement, error: SqlError): SqlError {
    const { counts, mark, unit } = statement
    const verdict = this.observer.failed(statement, error, this.session.wire.mark() !== mark)
    if (unit !== undefined && counts && verdict.traceless) UnitOfWork.addEffects(unit, -1)
    return verdict.error
  }

  end(statement: Statement, exit: Exit.Exit<unknown, unknown>): void {
    if (exit._tag === "Success") {
      this.session.isAnswering = true
      this.session.answeredSince = statement.startedAt
      this.replied = true
      if (this.transaction === "Open") this.noteOwnEnd(statement)
      this.observer.succeeded(statement)
    } else if (isInterrupted(exit)) {
      this.session.isAnswering = false
      this.session.wire.suspect()
      this.observer.interrupted(statement)
    }
  }

  /** A caller may end the transaction by hand: what follows takes effect by itself. */
  private noteOwnEnd({ commits, sql, unit }: Statement): void {
    if (commits || Commits.endsInRollback(sql)) this.hasEndedByHand = true
    // COMMIT AND CHAIN begins the next one.
    if (!this.session.wire.isIdle()) return
    this.transaction = "None"
    if (unit !== undefined && !commits && !Commits.isRollback(sql)) UnitOfWork.addEffects(unit, 1)
  }

  /** A borrowed statement is under its borrower's deadline; on a leased connection each statement has to look. */
  private untilDeadline<A, E, R>(work: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError, R> {
    return Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<A, E | SqlError, R> => {
      const deadlineAt = Deadline.unenforced(fiber, UnitOfWork.of(fiber))
      return deadlineAt === Infinity ? work : this.observer.enforce(work, deadlineAt)
    })
  }

  private owe(unit: UnitOfWork.UnitOfWork | undefined, count: 1 | -1): void {
    this.session.busy += count
    if (unit !== undefined) UnitOfWork.addAwaited(unit, this.session, count)
  }

  private track<A, R>(sql: string, statement: Effect.Effect<A, SqlError, R>): Effect.Effect<A, SqlError, R> {
    return this.permit === undefined && this.transaction !== "Committing"
      ? this.untilDeadline(this.trackNow(sql, statement))
      : this.trackNow(sql, statement)
  }

  private trackNow<A, R>(sql: string, statement: Effect.Effect<A, SqlError, R>): Effect.Effect<A, SqlError, R> {
    const { turn } = this
    return Effect.suspend(() => {
      let begun: Statement | undefined
      let isCommit = false
      // The finalizer stands before anything is owed: a fiber can be interrupted between any two steps.
      return Effect.onExitPrimitive(
        Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
          if (turn?.isTaken === true) return Effect.flatMap(turn.free, () => this.trackNow(sql, statement))
          const own = begun = this.begin(sql, UnitOfWork.of(fiber), fiber)
          if (turn !== undefined) turn.isTaken = true
          this.owe(own.unit, 1)
          isCommit = own.commits || this.transaction === "Committing"
          if (isCommit) this.session.committing++
          if (own.commits && own.unit !== undefined) UnitOfWork.addCommitting(own.unit, 1)
          return Effect.mapError(
            turn?.isOver === true ? Effect.fail(Turn.over()) : statement,
            (error) => this.judge(own, error)
          )
        }),
        (exit) => {
          if (begun === undefined) return undefined
          this.owe(begun.unit, -1)
          if (isCommit) this.session.committing--
          if (begun.commits && begun.unit !== undefined) UnitOfWork.addCommitting(begun.unit, -1)
          this.end(begun, exit)
          turn?.end()
          return undefined
        }
      )
    })
  }
}

const isInterrupted = (exit: Exit.Exit<unknown, unknown>): boolean =>
  exit._tag === "Failure" && exit.cause.reasons.some((reason) => reason._tag === "Interrupt")
