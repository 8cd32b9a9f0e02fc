import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { SqlError } from "effect/sql/SqlError"

/**
 * What identifies a transaction for good. The number alone does not: another server counts for itself, so does another
 * timeline after a failover, and after a crash the server gives the numbers again of which it had written nothing.
 */
export interface Ticket {
  /** The transaction id; `undefined` on a standby, where no transaction can have an effect. */
  readonly xid: string | undefined
  readonly cluster: string
  readonly timeline: string
  readonly epoch: string
}

/** What the server knows of a transaction. */
export type Fate =
  | { readonly _tag: "Committed" | "Aborted" }
  /** Its session is still there; `isIdle`: waiting for a statement, so that the COMMIT has not arrived. */
  | { readonly _tag: "InProgress"; readonly isIdle: boolean }
  | { readonly _tag: "Unknown"; readonly reason: string }

/**
 * The statistics are thrown away by crash recovery and kept over an orderly restart, so the time of their reset tells
 * whether numbers may have been given twice (`pgstat_reset_after_failure`, `src/backend/utils/activity/pgstat.c`).
 */
const epoch = `(SELECT (extract(epoch FROM stats_reset) * 1000000)::bigint::text FROM pg_stat_bgwriter)`
const cluster = `(SELECT system_identifier::text FROM pg_control_system())`
/** On a standby there is no WAL to be written, and the function refuses to name its file. */
const timeline = `CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END`

/** The question takes a number itself: what is not below it had not been given before. */
const next = `CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_xact_id() END`

/** The columns that give the transaction its number, and tell what that is worth. */
export const identity: ReadonlyArray<string> = [`(${next})::text`, cluster, timeline, epoch]

export const ticketOf = (row: ReadonlyArray<string | null> | undefined): Ticket | undefined => {
  const [xid, cluster, timeline, epoch] = row ?? []
  if (xid === undefined || typeof cluster !== "string" || typeof timeline !== "string") return undefined
  return { xid: xid ?? undefined, cluster, timeline, epoch: epoch ?? "" }
}

export interface Question {
  readonly sql: string
  readonly params: ReadonlyArray<unknown>
}

/**
 * Asks the server; the first parameter is the transaction id. What is of another server or time is not asked for. Nothing
 * but text and booleans comes back: a program may read transaction ids as whatever it likes, or not at all.
 */
export const question = (ticket: Ticket): Question => ({
  sql: `SELECT place.cluster, place.timeline, place.epoch,
    CASE WHEN place.cluster = $2 AND place.timeline = $3 AND $1::text::xid8 < place.next
      THEN pg_xact_status($1::text::xid8) END AS status,
    $1::text::xid8 >= place.next AS "isAhead",
    (SELECT state FROM pg_stat_activity WHERE backend_xid = $1::text::xid8::xid LIMIT 1) AS state
    FROM (SELECT ${cluster} AS cluster, ${timeline} AS timeline, ${epoch} AS epoch, ${next} AS next) AS place`,
  params: [ticket.xid, ticket.cluster, ticket.timeline]
})

/** Ends a session that waits for a statement which will never come, with the transaction that it holds open. */
export const fence = (ticket: Ticket): Question => ({
  sql: `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_xid = $1::text::xid8::xid AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()`,
  params: [ticket.xid]
})

export interface Answer {
  readonly cluster: string
  readonly timeline: string
  readonly epoch: string | null
  readonly status: string | null
  readonly isAhead: boolean | null
  readonly state: string | null
}

export const fateOf = (ticket: Ticket, answer: Answer | undefined): Fate => {
  const unknown = (reason: string): Fate => ({ _tag: "Unknown", reason })
  if (answer === undefined) return unknown("the server did not answer")
  if (answer.cluster !== ticket.cluster) return unknown("the sessions now lead to another server")
  if (answer.timeline !== ticket.timeline) return unknown("the server is on another timeline since a failover")
  const hasCrashed = (answer.epoch ?? "") !== ticket.epoch
  // After a crash: a number that is not given again yet was never written down, so it was never committed.
  if (answer.isAhead === true) return { _tag: "Aborted" }
  switch (answer.status) {
    case "aborted":
      return { _tag: "Aborted" }
    case "committed":
      return hasCrashed
        ? unknown("the server has recovered from a crash, after which it may have given the number again")
        : { _tag: "Committed" }
    case "in progress":
      return hasCrashed
        ? unknown("the server has recovered from a crash, after which it may have given the number again")
        : { _tag: "InProgress", isIdle: answer.state?.startsWith("idle in transaction") === true }
    default:
      return unknown("the server does not remember a transaction that is so old")
  }
}

/** Milliseconds between two questions: asked soon, and then more patiently, for as long as it takes. */
const firstPause = 5
const pauseGrowth = 1.5
const longestPause = 500

/**
 * Asks until the answer is final, or until `until` (wall-clock milliseconds). A server that cannot be reached is asked
 * again; a session that waits for a COMMIT that does not come, twice in a row, is ended.
 */
export const resolve = Effect.fnUntraced(function*(options: {
  readonly ask: Effect.Effect<Fate, SqlError>
  readonly fence: Effect.Effect<unknown, SqlError>
  /** Whether the server has answered, and will not answer otherwise the next time. */
  readonly isRefusal: (error: SqlError) => boolean
  readonly until: number
  readonly now: () => number
}): Effect.fn.Return<Exclude<Fate, { readonly _tag: "InProgress" }>> {
  let pause = firstPause
  let idleTimes = 0
  let reason = "there was no time left to ask the server"
  while (options.now() < options.until) {
    const exit = yield* Effect.exit(options.ask)
    if (Exit.isSuccess(exit)) {
      const fate = exit.value
      if (fate._tag !== "InProgress") return fate
      reason = "the transaction was still in progress when the time was over"
      idleTimes = fate.isIdle ? idleTimes + 1 : 0
      if (idleTimes >= 2) yield* Effect.ignore(options.fence)
    } else {
      const error = Cause.findErrorOption(exit.cause)
      if (error._tag === "Some" && options.isRefusal(error.value)) {
        return { _tag: "Unknown", reason: "the server refused to tell" }
      }
      reason = "the server could not be asked in time"
    }
    yield* Effect.sleep(Math.max(0, Math.min(pause, options.until - options.now())))
    pause = Math.min(pause * pauseGrowth, longestPause)
  }
  return { _tag: "Unknown", reason }
})
