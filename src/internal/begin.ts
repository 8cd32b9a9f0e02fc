import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { BeginTransaction } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as CommitFate from "./commitFate.ts"
import { Deadline } from "./deadline.ts"
import type * as Rider from "./rider.ts"
import type { TrackedConnection } from "./trackedConnection.ts"
import * as UnitOfWork from "./unitOfWork.ts"

/** Statements of ours between BEGIN and the first statement. */
export interface Luggage {
  readonly statements: ReadonlyArray<string>
  /** To be told once the transaction has begun with them. */
  readonly answered: (connection: TrackedConnection, row: () => Rider.Answer["row"]) => void
}

/** A BEGIN as the context wants it: the statement, whether its COMMIT may have to be looked up, and the deadline. */
export interface Order {
  /** Sends it by itself, and hears in time of what the server refuses. */
  readonly alone: (connection: TrackedConnection) => Effect.Effect<unknown, SqlError>
  /**
   * What is to come with it when it goes along with the first statement. `undefined`: a statement of the caller's own goes by
   * itself, since the server may refuse it.
   */
  readonly luggage: (() => Luggage) | undefined
}

/** How the transactions of one client are begun. */
export interface Begin {
  readonly orderOf: (fiber: Fiber.Fiber<unknown, unknown>) => Order
  /** What tells its transaction from others; `undefined` when nobody asked for that. */
  readonly inquiryOf: (connection: TrackedConnection) => { readonly ticket: CommitFate.Ticket | undefined } | undefined
}

/** Milliseconds after a deadline at which the server ends what nobody has come to end: the client is dead or frozen. */
const grace = 1000

/** The session's own limit stays where it is the tighter one. The server lets go of it with the transaction. */
const limit = (setting: string, millis: number): string =>
  `set_config('${setting}', least(${millis}, nullif(extract(epoch FROM current_setting('${setting}')::interval) * 1000, 0)
    )::int::text, true)`

const columnsFor = (wantsTicket: boolean, wantsLimits: boolean, left: number): ReadonlyArray<string> => {
  const millis = Math.ceil(Math.max(0, left)) + grace
  return [
    ...(wantsTicket ? CommitFate.identity : []),
    ...(wantsLimits && millis < 2 ** 31
      ? [limit("statement_timeout", millis), limit("idle_in_transaction_session_timeout", millis)]
      : [])
  ]
}

const deadlineOf = (fiber: Fiber.Fiber<unknown, unknown>): number =>
  Math.min(UnitOfWork.of(fiber)?.deadlineAt ?? Infinity, fiber.getRef(Deadline))

/** `undefined_object`: of what rides along, it can only be a setting. */
const unknownSetting = "42704"

/** No such function or setting, no right to it, or not there: a server that says this says it the next time too. */
const isForGood = (sqlState: string | undefined): boolean =>
  sqlState !== undefined && /^(42883|42501|42704|0A000)$/.test(sqlState)

/**
 * `settings` are statements that belong to each transaction, and are gone with it: what a session would have if it were
 * the pool's own. They must not take a snapshot, since the caller may still want to set the isolation.
 */
export const make = (settings: ReadonlyArray<string>): Begin => {
  const inquiries = new WeakMap<TrackedConnection, { readonly ticket: CommitFate.Ticket | undefined }>()
  // Cleared by a server that refuses: it is not asked again.
  let canIdentify = true
  let canSet = settings.length > 0
  let canLimit = true

  const note = (tracked: TrackedConnection, statement: string | undefined): void => {
    tracked.transaction = "Open"
    tracked.hasEndedByHand = false
    tracked.isReadOnlyByChoice = statement !== undefined && /\bread\s+only\b/i.test(statement)
  }

  const send = (tracked: TrackedConnection, statement: string | undefined): Effect.Effect<unknown, SqlError> =>
    Effect.suspend(() => {
      note(tracked, statement)
      // A statement of the caller's own is not fixed, so it is not worth a name on the server.
      return statement === undefined ? tracked.query("BEGIN") : tracked.query(statement, [], false)
    })

  /** More statements in the same write. Their BEGIN has no name, so that the driver cannot have to send it twice. */
  const sendWith = (tracked: TrackedConnection, statement: string, rider: ReadonlyArray<string>) =>
    Effect.suspend(() => {
      note(tracked, statement)
      return tracked.queryWithRider(statement, rider)
    })

  const empty: Luggage = { statements: [], answered: () => {} }
  const plain: Order = { alone: (tracked) => send(tracked, undefined), luggage: () => empty }

  const orderOf: Begin["orderOf"] = (fiber) => {
    const statement = fiber.getRef(BeginTransaction)
    const isToBeResolved = fiber.getRef(UnitOfWork.ResolveCommit)
    const deadlineAt = deadlineOf(fiber)
    if (!isToBeResolved && deadlineAt === Infinity && !canSet) {
      return statement === undefined ? plain : { alone: (tracked) => send(tracked, statement), luggage: undefined }
    }
    const clock = fiber.getRef(Clock.Clock)
    const riderOf = (
      wantsTicket: boolean,
      wantsSettings: boolean,
      wantsLimits: boolean
    ): ReadonlyArray<string> => {
      const left = deadlineAt === Infinity ? Infinity : deadlineAt - clock.currentTimeMillisUnsafe()
      const columns = columnsFor(wantsTicket, wantsLimits, left)
      return [
        ...(wantsSettings ? settings : []),
        ...(columns.length === 0 ? [] : [`SELECT ${columns.join(", ")}`])
      ]
    }
    const attempt = (
      tracked: TrackedConnection,
      wantsTicket: boolean,
      wantsSettings: boolean,
      wantsLimits: boolean
    ): Effect.Effect<unknown, SqlError> => {
      if (isToBeResolved) inquiries.set(tracked, { ticket: undefined })
      const rider = riderOf(wantsTicket, wantsSettings, wantsLimits)
      if (rider.length === 0) return send(tracked, statement)
      return Effect.flatMap(sendWith(tracked, statement ?? "BEGIN", rider), (answer) => {
        const ticket = wantsTicket ? CommitFate.ticketOf(answer?.row) : undefined
        if (isToBeResolved) inquiries.set(tracked, { ticket })
        const refusedBy = answer?.refusedBy
        const isSettingRefused = wantsSettings &&
          (wantsTicket ? refusedBy === unknownSetting : refusedBy !== undefined)
        const isTicketRefused = !isSettingRefused && wantsTicket && ticket === undefined
        const areLimitsRefused = !isSettingRefused && !isTicketRefused && refusedBy !== undefined
        if (!isSettingRefused && !isTicketRefused && !areLimitsRefused) return Effect.void
        if (isSettingRefused) canSet &&= !isForGood(refusedBy)
        if (isTicketRefused) canIdentify &&= !isForGood(refusedBy)
        if (areLimitsRefused) canLimit &&= !isForGood(refusedBy)
        // The refusal has failed the transaction.
        return Effect.andThen(
          tracked.query("ROLLBACK"),
          attempt(
            tracked,
            wantsTicket && !isTicketRefused,
            wantsSettings && !isSettingRefused,
            wantsLimits && !areLimitsRefused
          )
        )
      })
    }
    return {
      alone: (tracked) => Effect.suspend(() => attempt(tracked, isToBeResolved && canIdentify, canSet, canLimit)),
      luggage: statement !== undefined ? undefined : () => {
        const wantsTicket = isToBeResolved && canIdentify
        return {
          statements: riderOf(wantsTicket, canSet, canLimit),
          answered: (tracked, row) => {
            if (isToBeResolved) inquiries.set(tracked, { ticket: wantsTicket ? CommitFate.ticketOf(row()) : undefined })
          }
        }
      }
    }
  }

  const inquiryOf: Begin["inquiryOf"] = (tracked) => {
    const inquiry = inquiries.get(tracked)
    return inquiry !== undefined && tracked.hasEndedByHand ? { ticket: undefined } : inquiry
  }

  return { orderOf, inquiryOf }
}
