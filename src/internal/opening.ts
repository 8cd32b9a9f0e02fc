import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Bell from "./bell.ts"
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
  private readonly renew: Renew
  /** Of the first statement. */
  private state: "Ahead" | "Under way" | "Over" = "Ahead"
  private bell: Bell.Bell | undefined
  /** Why there is no transaction although one was wanted. */
  private refusal: Cause.Cause<SqlError> | undefined

  constructor(tracked: TrackedConnection, renew: Renew) {
    this.tracked = tracked
    this.renew = renew
  }

  /** One whose transaction has been begun by now. */
  static begun(tracked: TrackedConnection): Opening {
    const opening = new Opening(tracked, Effect.failCause)
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

  private get settled(): Effect.Effect<void> {
    this.bell ??= Bell.make()
    return this.bell.until(() => this.state !== "Under way")
  }

  /** Whoever comes while the first statement is under way waits until it is known which session theirs is. */
  private first<A>(run: Run<A>, isBegunAlone = false): Effect.Effect<A, SqlError> {
    return Effect.suspend(() => {
      if (this.state === "Over") return run(this.tracked)
      if (this.state === "Under way") return Effect.flatMap(this.settled, () => this.first(run, isBegunAlone))
      return this.open(run, isBegunAlone)
    })
  }

  private open<A>(run: Run<A>, isBegunAlone: boolean): Effect.Effect<A, SqlError> {
    const { tracked } = this
    const { wire } = tracked.session
    this.state = "Under way"
    this.refusal = undefined
    tracked.transaction = "Open"
    const lead = isBegunAlone ? undefined : wire.lead()
    const opened = lead === undefined ? Effect.flatMap(tracked.query("BEGIN"), () => run(tracked)) : run(tracked)
    return Effect.onExitPrimitive(
      Effect.catchCause(opened, (cause) => {
        lead?.withdraw()
        const isBegun = lead?.outcome() === "Begun"
        if (isBegun || !isLost(tracked)) {
          if (!isBegun && !Cause.hasInterrupts(cause)) this.refusal = cause
          return Effect.failCause(cause)
        }
        return Effect.flatMap(this.renew(cause), (renewed) => {
          this.tracked = renewed
          return run(renewed)
        })
      }),
      (exit) => {
        lead?.withdraw()
        const isBegun = exit._tag === "Success" || lead?.outcome() === "Begun" || this.tracked !== tracked
        // A session that is lost has no transaction to go on with, and whatever is said on it fails.
        this.state = isBegun || wire.isDead() ? "Over" : "Ahead"
        if (lead?.outcome() === "Begun") tracked.noteBegin()
        this.bell?.notify()
        return undefined
      }
    )
  }
}

/** Whether the session is gone for another reason than that we, or the driver, gave up on its answer. */
const isLost = ({ session: { wire } }: TrackedConnection): boolean => {
  const by = wire.obituary()?.by
  return wire.isDead() && by !== "silence" && by !== "driver"
}
