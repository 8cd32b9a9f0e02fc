/**
 * The way of a healthy statement, from the program to the server and back, in one object and two frames of its fiber. It
 * counts in the unit of work around it. What is not healthy goes the long way: a circuit that is not closed, a wait with a
 * bound of its own, and whatever comes after a failure.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { SqlError } from "effect/sql/SqlError"
import type { Permit } from "./breakerMachine.ts"
import * as Deadline from "./deadline.ts"
import type { Session } from "./session.ts"
import type { Statement, TrackedConnection } from "./trackedConnection.ts"
import type * as Turns from "./turns.ts"
import * as UnitOfWork from "./unitOfWork.ts"

/** How a statement is asked, and what of its answer is wanted. */
export interface Form<A> {
  readonly ask: (
    connection: PgConnection.PgConnection,
    sql: string,
    params: ReadonlyArray<unknown>
  ) => Effect.Effect<A, SqlError>
  /** Must not fail. */
  readonly take: (answer: A) => Effect.Effect<A, SqlError>
}

/** What a statement flies by. */
export interface Airline {
  readonly closedPermit: () => Permit | undefined
  /** A session at once, or none. */
  readonly take: () => Session | undefined
  /** A place in line for a session, unless there is more to be done for one than to wait. */
  readonly stand: (passenger: Turns.Passenger) => Turns.Place | undefined
  /** The statement on a session that has to be looked at before. */
  readonly examined: <A>(
    claim: Turns.Claim,
    permit: Permit,
    f: (connection: TrackedConnection) => Effect.Effect<A, SqlError>
  ) => Effect.Effect<A, unknown>
  /** `seconds`: for how long it was lent. */
  readonly giveBack: (session: Session, seconds: number) => void
  /** The connection of a session as others share it, for one statement under this permit. */
  readonly tracked: (session: Session, permit: Permit) => TrackedConnection
  /** The long way, which ends in the same. */
  readonly borrow: <A>(f: (connection: TrackedConnection) => Effect.Effect<A, SqlError>) => Effect.Effect<A, SqlError>
  /** Ends work at a deadline, in milliseconds of the wall clock. */
  readonly enforce: <A, E, R>(work: Effect.Effect<A, E, R>, deadlineAt: number) => Effect.Effect<A, E | SqlError, R>
  /** Who works for the units of its statements. */
  readonly overseer: UnitOfWork.Overseer
  /** What comes after a failure that has been judged. */
  readonly recover: <A>(
    cause: Cause.Cause<unknown>,
    permit: Permit,
    f: (connection: TrackedConnection) => Effect.Effect<A, SqlError>,
    fiber: Fiber.Fiber<unknown, unknown>
  ) => Effect.Effect<A, SqlError>
}

export type Send = <A>(
  fiber: Fiber.Fiber<unknown, unknown>,
  sql: string,
  params: ReadonlyArray<unknown>,
  form: Form<A>
) => Effect.Effect<A, SqlError>

const inForm =
  <A>(sql: string, params: ReadonlyArray<unknown>, { ask, take }: Form<A>) =>
  (connection: TrackedConnection): Effect.Effect<A, SqlError> => Effect.flatMap(ask(connection, sql, params), take)

const Base = function() {} as unknown as new() => Effect.Effect<unknown, SqlError>
Base.prototype = Effectable.Prototype<Flight>({
  label: "Flight",
  evaluate(fiber: Fiber.Fiber<unknown, unknown>) {
    return this.begin(fiber)
  }
})

/** One statement, which nobody bounds but its caller, and who is around that. */
class Flight extends Base implements Statement, Turns.Passenger {
  private readonly airline: Airline
  private readonly params: ReadonlyArray<unknown>
  private readonly form: Form<any>
  readonly sql: string
  readonly permit: Permit
  readonly unit: UnitOfWork.UnitOfWork | undefined
  /** While it has one. */
  private session: Session | undefined = undefined
  /** While it waits, and while it has a session for which it has waited. */
  private place: Turns.Place | undefined = undefined
  connection!: TrackedConnection
  startedAt = 0n
  mark = 0

  constructor(
    airline: Airline,
    sql: string,
    params: ReadonlyArray<unknown>,
    form: Form<any>,
    permit: Permit,
    unit: UnitOfWork.UnitOfWork | undefined
  ) {
    super()
    this.airline = airline
    this.sql = sql
    this.params = params
    this.form = form
    this.permit = permit
    this.unit = unit
  }

  get counts(): boolean {
    return true
  }

  get commits(): boolean {
    return false
  }

  get span(): undefined {
    return undefined
  }

  /** To be entered when `end` has been laid: a fiber can be interrupted between any two steps. */
  begin(fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<unknown, SqlError> {
    const { airline, form, params, sql, unit } = this
    const session = airline.take()
    if (session !== undefined) return this.board(session, fiber)
    // One watch turns away those who wait for as long as is usual, and nobody else.
    this.place = unit?.acquireTimeout === undefined ? airline.stand(this) : undefined
    return this.place === undefined
      ? airline.borrow(inForm(sql, params, form))
      : this.place
  }

  board(session: Session, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<unknown, SqlError> {
    const { airline, form, params, permit, sql, unit } = this
    const connection = airline.tracked(session, permit)
    this.session = session
    this.connection = connection
    this.startedAt = connection.observer.monotonicNanos()
    this.mark = session.wire.mark()
    session.busy++
    if (unit !== undefined) UnitOfWork.setOut(unit, session)
    return Effect.matchCauseEffect(form.ask(connection.base, sql, params), {
      onSuccess: form.take,
      onFailure: (cause) => this.fail(cause, fiber)
    })
  }

  refused(error: unknown, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<unknown, SqlError> {
    return this.recover(Cause.fail(error), fiber)
  }

  examine(claim: Turns.Claim, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<unknown, SqlError> {
    const { airline, form, params, permit, sql } = this
    return Effect.catchCause(
      airline.examined(claim, permit, inForm(sql, params, form)),
      (cause) => this.recover(cause, fiber)
    )
  }

  end(exit: Exit.Exit<unknown, unknown>): void {
    const { airline, connection, place, session, unit } = this
    if (session !== undefined) {
      this.session = undefined
      session.busy--
      if (unit !== undefined) UnitOfWork.addAwaited(unit, session, -1)
      connection.end(this, exit)
      if (place === undefined) airline.giveBack(session, session.lastTook)
    }
    if (place !== undefined) {
      this.place = undefined
      place.leave(exit)
    }
  }

  /** Whatever is tried next comes after the end of this. */
  private recover(cause: Cause.Cause<unknown>, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<unknown, SqlError> {
    const { airline, form, params, permit, sql } = this
    this.end(Exit.failCause(cause))
    return airline.recover(cause, permit, inForm(sql, params, form), fiber)
  }

  private fail(cause: Cause.Cause<SqlError>, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<unknown, SqlError> {
    return this.recover(Cause.map(cause, (error) => this.connection.judge(this, error)), fiber)
  }
}

export const make = (airline: Airline): Send => {
  const send: Send = (fiber, sql, params, form) => {
    const unit = UnitOfWork.of(fiber)
    const deadlineAt = Deadline.unenforced(fiber, unit)
    if (deadlineAt !== Infinity) {
      return airline.enforce(
        Effect.withFiber((bounded: Fiber.Fiber<unknown, unknown>) => send(bounded, sql, params, form)),
        deadlineAt
      )
    }
    const permit = airline.closedPermit()
    if (permit === undefined) return airline.borrow(inForm(sql, params, form))
    if (unit !== undefined) UnitOfWork.oversee(unit, airline.overseer)
    const flight = new Flight(airline, sql, params, form, permit, unit)
    return Effect.onExitPrimitive(flight as Effect.Effect<any, SqlError>, (exit) => {
      flight.end(exit)
      return undefined
    })
  }
  return send
}
