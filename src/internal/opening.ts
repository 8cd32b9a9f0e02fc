import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type * as Begin from "./begin.ts"
import * as Bell from "./bell.ts"
import type { Lead } from "./interludes.ts"
import * as Turn from "./statementTurn.ts"
import type { TrackedConnection } from "./trackedConnection.ts"

/** Another session, in a transaction, for one that was lost before it had answered. */
export type Renew = (cause: Cause.Cause<SqlError>) => Effect.Effect<TrackedConnection, SqlError>

type Run<A> = (tracked: TrackedConnection) => Effect.Effect<A, SqlError>

/**
 * The session of a transaction whose BEGIN goes along with its first statement.
 *
 * It belongs to the checkout all the same: where the session turns out to have been gone, nothing of the transaction has
 * been answered, the server has rolled back whatever it got, and the first statement is run on another session.
 */
export class Opening {
  tracked: TrackedConnection
  private readonly order: Begin.Order
  private readonly renew: Renew
  /**
   * Of the first statement. "Refused": the server would not begin, and is not asked again, since a program that goes on would
   * commit the rest of its transaction without the first part. "Missed": the transaction has ended without a statement.
   */
  private state: "Ahead" | "Under way" | "Over" | "Refused" | "Missed" = "Ahead"
  private bell: Bell.Bell | undefined
  /** Why there is no transaction although one was wanted. */
  private refusal: Cause.Cause<SqlError> | undefined
  /** Between the transaction that was refused something and the next one, where somebody may be interrupted: either may be open. */
  private isBetween = false

  constructor(tracked: TrackedConnection, order: Begin.Order, renew: Renew) {
    this.tracked = tracked
    this.order = order
    this.renew = renew
  }

  /** One whose transaction has been begun by now. */
  static begun(tracked: TrackedConnection): Opening {
    const opening = new Opening(tracked, hasBegun, Effect.failCause)
    opening.state = "Over"
    return opening
  }

  query(
    sql: string,
    params?: ReadonlyArray<unknown>,
    prepare?: boolean
  ): Effect.Effect<PgConnection.Result, SqlError> {
    return this.state === "Over"
      ? this.tracked.query(sql, params, prepare)
      : this.first((tracked) => tracked.query(sql, params, prepare))
  }

  queryValues(
    sql: string,
    params?: ReadonlyArray<unknown>,
    prepare?: boolean
  ): Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, SqlError> {
    return this.state === "Over"
      ? this.tracked.queryValues(sql, params, prepare)
      : this.first((tracked) => tracked.queryValues(sql, params, prepare))
  }

  /** Rows that a caller has seen cannot be taken back, so a stream comes after its BEGIN. */
  stream(sql: string, params?: ReadonlyArray<unknown>): Stream.Stream<PgConnection.Row, SqlError> {
    return this.state === "Over"
      ? this.tracked.stream(sql, params)
      : Stream.unwrap(Effect.map(this.first(() => Effect.void, true), () => this.tracked.stream(sql, params)))
  }

  /**
   * Waits for the end of a first statement that is under way, and tells whether a transaction is open, or is to be taken for
   * one; fails where the server refused to open one.
   */
  readonly isOpen: Effect.Effect<boolean, SqlError> = Effect.suspend(() =>
    this.state === "Over"
      ? Effect.succeed(true)
      : this.state === "Under way"
      ? Effect.flatMap(this.settled, () => this.isOpen)
      : this.refusal === undefined
      ? Effect.succeed(false)
      : Effect.failCause(this.refusal)
  )

  /**
   * The same for whoever ends the transaction. Where none is open, none will be: a fiber that was left behind must not begin
   * one on a session that belongs to somebody else by then.
   */
  readonly end: Effect.Effect<boolean, SqlError> = Effect.suspend(() => {
    if (this.state === "Under way") return Effect.flatMap(this.settled, () => this.end)
    if (this.state === "Ahead") this.state = "Missed"
    return this.isOpen
  })

  /** The same for whoever rolls back, and has to do so as well where nobody knows. */
  get rollback(): Effect.Effect<boolean, SqlError> {
    return Effect.catchCause(this.end, (cause) => this.isBetween ? Effect.succeed(true) : Effect.failCause(cause))
  }

  private get settled(): Effect.Effect<void> {
    this.bell ??= Bell.make()
    return this.bell.until(() => this.state !== "Under way")
  }

  /** Whoever comes while the first statement is under way waits until it is known which session theirs is. */
  private first<A>(run: Run<A>, isBegunAlone = false): Effect.Effect<A, SqlError> {
    return Effect.suspend(() => {
      let settle: ((isSuccess: boolean) => void) | undefined
      // The finalizer stands before anything has begun: a fiber can be interrupted between any two steps.
      return Effect.onExitPrimitive(
        Effect.suspend(() => {
          if (this.state === "Over") return run(this.tracked)
          if (this.state === "Missed") return Effect.fail(Turn.over())
          if (this.state === "Under way") return Effect.flatMap(this.settled, () => this.first(run, isBegunAlone))
          if (this.refusal !== undefined) return Effect.failCause(this.refusal)
          const { tracked } = this
          this.state = "Under way"
          tracked.transaction = "Open"
          const luggage = isBegunAlone ? undefined : this.order.luggage?.()
          const lead = luggage && tracked.session.wire.lead(luggage.statements)
          settle = (isSuccess) => {
            if (lead?.outcome() === "Begun") luggage!.answered(tracked, lead.row)
            this.settle(tracked, lead, isSuccess)
          }
          return this.open(run, tracked, lead)
        }),
        (exit) => {
          settle?.(exit._tag === "Success")
          return undefined
        }
      )
    })
  }

  private open<A>(run: Run<A>, tracked: TrackedConnection, lead: Lead | undefined): Effect.Effect<A, SqlError> {
    const opened = lead === undefined ? Effect.flatMap(this.order.alone(tracked), () => run(tracked)) : run(tracked)
    return Effect.catchCause(opened, (cause) => {
      lead?.withdraw()
      const outcome = lead?.outcome()
      const isHindered = outcome === "Hindered" && !Cause.hasInterrupts(cause)
      if (isHindered && !tracked.session.wire.isDead()) return this.openAlone(run, tracked, cause)
      // What was hindered has not run, though BEGIN was answered.
      if (outcome === "Begun" || !isLost(tracked)) {
        // A statement that could not even be sent has taken its BEGIN with it: the next one has another.
        const isRefused = outcome === undefined || outcome === "Refused"
        if (isRefused && !Cause.hasInterrupts(cause)) this.refusal = cause
        return Effect.failCause(cause)
      }
      return Effect.flatMap(this.renew(cause), (renewed) => {
        this.tracked = renewed
        return run(renewed)
      })
    })
  }

  /** After a refusal of what came with BEGIN, which has failed the transaction before the statement: without that. */
  private openAlone<A>(
    run: Run<A>,
    tracked: TrackedConnection,
    cause: Cause.Cause<SqlError>
  ): Effect.Effect<A, SqlError> {
    this.refusal = cause
    this.isBetween = true
    return Effect.flatMap(Effect.andThen(tracked.query("ROLLBACK"), this.order.alone(tracked)), () => {
      this.refusal = undefined
      this.isBetween = false
      return run(tracked)
    })
  }

  private settle(tracked: TrackedConnection, lead: Lead | undefined, isSuccess: boolean): void {
    lead?.withdraw()
    const outcome = lead?.outcome()
    const hasBegun = outcome === "Begun" || outcome === "Hindered"
    const isBegun = isSuccess || hasBegun || this.tracked !== tracked
    // A session that is lost has no transaction to go on with, and whatever is said on it fails.
    this.state = tracked.session.wire.isDead()
      ? "Over"
      : this.refusal !== undefined
      ? "Refused"
      : isBegun
      ? "Over"
      : "Ahead"
    if (hasBegun) tracked.noteBegin()
    this.bell?.notify()
  }
}

/** Nothing is left to be sent. */
const hasBegun: Begin.Order = { alone: () => Effect.void, luggage: undefined }

/** Whether the session is gone for another reason than that we, or the driver, gave up on its answer. */
const isLost = ({ session: { wire } }: TrackedConnection): boolean => {
  const by = wire.obituary()?.by
  return wire.isDead() && by !== "silence" && by !== "driver"
}
