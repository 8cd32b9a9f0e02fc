import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type { Permit } from "./breakerMachine.ts"
import type { Session } from "./session.ts"
import * as UnitOfWork from "./unitOfWork.ts"

/** Where a connection stands towards COMMIT. */
export type TransactionPhase = "None" | "Open" | "Committing"

/** Who learns what became of each statement, and judges the failed ones. */
export interface Observer {
  readonly monotonicNanos: () => bigint
  readonly succeeded: (connection: TrackedConnection, startedAt: bigint) => void
  readonly interrupted: (connection: TrackedConnection, startedAt: bigint) => void
  /** Returns the error as the caller shall see it, and says whether the statement is proved to have left no trace. */
  readonly failed: (
    connection: TrackedConnection,
    error: SqlError,
    startedAt: bigint,
    written: boolean
  ) => { readonly error: SqlError; readonly traceless: boolean }
}

/**
 * The driver's connection, watched: each statement marks its session as owing an answer, and each failure is judged
 * by whether anything had been written. A statement that works pays two clock reads and some additions.
 */
export class TrackedConnection implements PgConnection.PgConnection {
  readonly [PgConnection.TypeId]: PgConnection.TypeId = PgConnection.TypeId
  readonly session: Session
  readonly base: PgConnection.PgConnection
  readonly observer: Observer
  /** Takes a shared session out of circulation; nothing to do for an exclusive one. */
  readonly exclude: Effect.Effect<void, never, Scope.Scope>
  transaction: TransactionPhase = "None"
  /** The caller asked for a transaction that cannot write. */
  isReadOnlyByChoice = false
  /** What admitted the statements of a shared connection; an exclusive one is one outcome, settled at its end. */
  permit: Permit | undefined = undefined

  constructor(
    session: Session,
    base: PgConnection.PgConnection,
    observer: Observer,
    exclude: Effect.Effect<void, never, Scope.Scope> = Effect.void
  ) {
    this.session = session
    this.base = base
    this.observer = observer
    this.exclude = exclude
  }

  get config(): PgConnection.Config {
    return this.base.config
  }

  get processId(): number {
    return this.base.processId
  }

  get interrupt(): Effect.Effect<void> {
    return this.base.interrupt
  }

  get pin(): Effect.Effect<PgConnection.PgConnection, never, Scope.Scope> {
    return Effect.map(
      Effect.andThen(this.exclude, this.base.pin),
      (pinned) => new TrackedConnection(this.session, pinned, this.observer)
    )
  }

  query(
    sql: string,
    params?: ReadonlyArray<unknown>,
    prepare?: boolean
  ): Effect.Effect<PgConnection.Result, SqlError> {
    return this.track(this.base.query(sql, params, prepare))
  }

  queryValues(
    sql: string,
    params?: ReadonlyArray<unknown>,
    prepare?: boolean
  ): Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, SqlError> {
    return this.track(this.base.queryValues(sql, params, prepare))
  }

  /** Silence is watched while rows are asked for, and not while their consumer is busy with them. */
  stream(sql: string, params?: ReadonlyArray<unknown>): Stream.Stream<PgConnection.Row, SqlError> {
    return Stream.unwrap(Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const startedAt = this.observer.monotonicNanos()
      const mark = this.session.wire.mark()
      const unit = this.begin(fiber)
      const rows = Stream.transformPull(
        this.base.stream(sql, params),
        (pull) => Effect.succeed(this.await(pull, unit))
      ).pipe(
        Stream.mapError((error) => this.judge(error, startedAt, mark, unit)),
        Stream.onExit((exit) => Effect.sync(() => this.observe(exit, startedAt)))
      )
      return Effect.as(this.exclude, rows)
    }))
  }

  listen(
    channel: string
  ): Effect.Effect<Queue.Dequeue<PgConnection.Notification, SqlError>, SqlError, Scope.Scope> {
    return Effect.andThen(this.exclude, this.track(this.base.listen(channel)))
  }

  /** A statement inside a transaction takes effect with its COMMIT, so only what runs outside of one counts. */
  private begin(fiber: Fiber.Fiber<unknown, unknown>): UnitOfWork.UnitOfWork | undefined {
    const unit = fiber.getRef(UnitOfWork.Current)
    if (unit !== undefined && this.transaction !== "Open") UnitOfWork.addEffects(unit, 1)
    return unit
  }

  private judge(
    error: SqlError,
    startedAt: bigint,
    mark: number,
    unit: UnitOfWork.UnitOfWork | undefined
  ): SqlError {
    const counted = this.transaction !== "Open"
    const verdict = this.observer.failed(this, error, startedAt, this.session.wire.mark() !== mark)
    if (unit !== undefined && counted && verdict.traceless) UnitOfWork.addEffects(unit, -1)
    return verdict.error
  }

  /** Marks the session as owing an answer while an effect runs. */
  private await<A, E, R>(
    effect: Effect.Effect<A, E, R>,
    unit: UnitOfWork.UnitOfWork | undefined
  ): Effect.Effect<A, E, R> {
    return Effect.suspend(() => {
      const { session } = this
      if (unit !== undefined) UnitOfWork.addAwaited(unit, session, 1)
      session.busy++
      return Effect.onExitPrimitive(effect, () => {
        session.busy--
        if (unit !== undefined) UnitOfWork.addAwaited(unit, session, -1)
        return undefined
      })
    })
  }

  private observe(exit: Exit.Exit<unknown, unknown>, startedAt: bigint): void {
    if (exit._tag === "Success") this.observer.succeeded(this, startedAt)
    else if (exit.cause.reasons.some((reason) => reason._tag === "Interrupt")) {
      this.observer.interrupted(this, startedAt)
    }
  }

  private track<A, R>(statement: Effect.Effect<A, SqlError, R>): Effect.Effect<A, SqlError, R> {
    return Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const { session } = this
      const startedAt = this.observer.monotonicNanos()
      const mark = session.wire.mark()
      const unit = this.begin(fiber)
      if (unit !== undefined) UnitOfWork.addAwaited(unit, session, 1)
      session.busy++
      return Effect.onExitPrimitive(
        Effect.mapError(statement, (error) => this.judge(error, startedAt, mark, unit)),
        (exit) => {
          session.busy--
          if (unit !== undefined) UnitOfWork.addAwaited(unit, session, -1)
          this.observe(exit, startedAt)
          return undefined
        }
      )
    })
  }
}
