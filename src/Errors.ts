/**
 * What can go wrong, what it means, and what may be done about it.
 *
 * - `failureOf` reads a failure out of anything that was thrown or failed with.
 * - `classify` turns it, and the circumstances in which it happened, into a `Verdict`. It is a pure function.
 * - `isSafeToRepeat` is the one question a retry has to ask of a verdict.
 * - The typed errors (`PoolError`) are what a caller of this library handles; `toSqlError` and `fromSqlError` carry
 *   them through the `SqlClient` interface, whose error type is fixed, and `truthful` corrects what the driver says
 *   about its own errors.
 * - `Classifier` is how a program judges its own codes otherwise, for each pool.
 *
 * The rules themselves are tables: SQLSTATEs in the order of PostgreSQL's Appendix A, socket, DNS and TLS codes, and
 * the texts of poolers that speak through a code meant for something else. Anything that is in no table falls to the
 * safe side: the server answered, nothing is repeated.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import { AuthenticationError, ConnectionError, SqlError, UnknownError } from "effect/sql/SqlError"
import { abstain, type Classify as ClassifyFunction } from "./internal/classifier.ts"
import * as Tables from "./internal/classify.ts"
import * as Discretion from "./internal/discretion.ts"
import { describe, digFailure, nameOf, PoolErrorTypeId as TypeId, shown } from "./internal/failure.ts"
import { tooLarge } from "./internal/fleet.ts"
import * as History from "./internal/history.ts"
import { allSessionAttrs } from "./internal/hosts.ts"
import { isBadLogin, withAdvice } from "./internal/poolerAdvice.ts"
import * as Reply from "./internal/serverReply.ts"
import * as V from "./internal/verdict.ts"

// ---------------------------------------------------------------------------------------------------------------------
// Classification
// ---------------------------------------------------------------------------------------------------------------------

/**
 * What sort of trouble it was.
 *
 * - `Unreachable`: no connection, or it was lost.
 * - `Overloaded`: the server, or a pooler before it, has no room.
 * - `StaleConnection`: a session that had served before turned out dead before anything was written to it.
 * - `Contention`: a race with another transaction was lost.
 * - `Rejected`: the server answered and said no.
 * - `Denied`: wrong credentials or none, no such database, or a peer that is not trusted.
 * - `ReadOnly`: a write met a server that only reads.
 * - `Cancelled`: the server has stopped the work on purpose, at a time limit (`statement_timeout`) or because somebody asked it
 *   to (`pg_cancel_backend`). What its caller interrupts is no failure, and has no kind.
 * - `Local`: this process refused, before the server was asked.
 *
 * @category models
 * @since 0.1.0
 */
export type Kind = V.Kind

/**
 * How far the work had come when it failed, by the bytes that its socket had been given (`bytesWritten`) and by what
 * they were.
 *
 * - `Connect`: there was no session yet.
 * - `BeforeWrite`: a session was in hand, and its socket had been given no byte of the statement: `bytesWritten` was
 *   the same before and after. The socket was dead already, or the statement could not be sent.
 * - `InFlight`: a statement outside of a transaction was written, or may have been.
 * - `Transaction`: a transaction was open and its COMMIT had not been written.
 * - `Commit`: COMMIT was written, and not answered.
 *
 * @category models
 * @since 0.1.0
 */
export type Phase = V.Phase

/**
 * What is known about the effect of failed work on the database: none because it never ran, none because it was
 * undone, or not known.
 *
 * @category models
 * @since 0.1.0
 */
export type Outcome = V.Outcome

/**
 * What a failure means and what may be done next.
 *
 * - `effect`: what the failed work did to the database. `NotRun` follows from the phase alone; see `Phase`.
 * - `retry`: what a repetition needs, *if* it is safe (ask `isSafeToRepeat`): `Now` is once, at once, on a fresh
 *   connection; `Backoff` the ordinary schedule; `BackoffSlow` a slower one, since every attempt adds load.
 * - `breaker`: what a circuit breaker should make of it. `Success` means that the server answered.
 * - `connection`: whether the session may be used again, and whether every session opened so far should go with it.
 *
 * @category models
 * @since 0.1.0
 */
export type Verdict = V.Verdict

/**
 * What can be known of a failure from the outside, without secrets and without row data.
 *
 * - `sqlState`: the five characters of a server's reply (PostgreSQL, Appendix A).
 * - `severity`: `ERROR`, `FATAL` or `PANIC`, as the server gave it. FATAL and PANIC end the session.
 * - `code`: the code of Node (`ECONNRESET`, `ENOTFOUND`, `CERT_HAS_EXPIRED`, ...), or the tag of an error of ours. What the
 *   driver says without a code has the one that means the same: `ETIMEDOUT`, `ECONNRESET` or `EPROTO`.
 * - `message`: the text, where it speaks about the server, the connection, or names and types. The texts of SQLSTATE classes
 *   that may quote values of a row or of a parameter are left out; {@link serverReply} has them.
 *
 * @category models
 * @since 0.1.0
 */
export type Failure = V.Failure

/**
 * The circumstances of a failure. A code alone says too little: the same `ECONNRESET` is harmless before the first byte
 * and an open question after it, and says nothing of the server's present state when the session is an old one.
 *
 * - `phase`: how far the work had come, which is what was written: see {@link Phase}. It alone decides `NotRun`.
 * - `reused`, `replied`: the age of the connection, as far as it matters. `reused`: the session had served an earlier
 *   checkout, so it may have died since, unnoticed. `replied`: the server has answered something since this checkout,
 *   so it was alive after that. A loss `BeforeWrite` of a session that is `reused` and has not `replied` is a
 *   `StaleConnection`.
 *
 * @category models
 * @since 0.1.0
 */
export type Circumstances = V.Circumstances

/**
 * Schema of `Failure`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Failure = Schema.Struct({
  sqlState: Schema.optional(Schema.String),
  severity: Schema.optional(Schema.String),
  code: Schema.optional(Schema.String),
  message: Schema.optional(Schema.String)
})

/**
 * Schema of `Kind`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Kind = Schema.Literals(V.kinds)

/**
 * Reads the failure out of any error: a `SqlError`, its reason, the cause below it, an `AggregateError` (Node tries
 * several addresses of one host), a plain Node error, or a typed error of this module.
 *
 * A SQLSTATE and a Node code can look alike (`EPIPE` has five characters): a code counts as a SQLSTATE only if it comes
 * with the severity that every ErrorResponse carries (PostgreSQL, "Error and Notice Message Fields"), or if it cannot
 * be a Node code. Total: never throws, and returns `{}` where nothing can be read. URLs are stripped of credentials,
 * and texts longer than 300 characters are cut.
 *
 * @category classification
 * @since 0.1.0
 */
export const failureOf = (error: unknown): Failure => digFailure(error)

/**
 * All that the server said, as it said it: for programs that read it. The text of a reply may quote a row or a parameter,
 * and so may `detail`, `where` and `internalQuery`; `hint` and what a function raises may say anything.
 *
 * @category models
 * @since 0.1.0
 */
export type ServerReply = Reply.ServerReply

/**
 * The server's reply behind any error: a `SqlError`, or a typed error of this module that one led to. `undefined` if the
 * server has said nothing.
 *
 * What is printed of an error, logged, traced and serialised is a summary (`23505 unique_violation, constraint
 * "users_email_key", table "users"`), unless the option `errorText` is `"full"`: the message of the reason's `cause` is
 * replaced, and its `detail`, `hint`, `where` and `internalQuery` can be read and are not listed. This has all of it.
 *
 * @example
 * ```ts
 * import * as Effect from "effect/Effect"
 * import type { SqlError } from "effect/sql/SqlError"
 * import * as Errors from "effect-pg-pool/Errors"
 *
 * // What our functions RAISE is meant for the caller.
 * export const said = <A, R>(work: Effect.Effect<A, SqlError, R>) =>
 *   Effect.catchTag(work, "SqlError", (error) => {
 *     const reply = Errors.serverReply(error)
 *     return reply?.sqlState === "P0001" ? Effect.succeed(reply.message) : Effect.fail(error)
 *   })
 * ```
 *
 * @category inspection
 * @since 0.1.0
 */
export const serverReply = (error: unknown): ServerReply | undefined => Reply.find(error)

/**
 * Judges a failure in its circumstances. Pure and total.
 *
 * `docs/classification.md` in this package has the verdict of every code and text in every phase, and the source of
 * each. The rules, in the order in which they are applied:
 *
 * 1. Before the first byte (`Connect`, `BeforeWrite`) nothing can have run, whatever the failure says. No other phase
 *    ever yields `NotRun` (pgx `SafeToRetry`: https://github.com/jackc/pgx, `pgconn/errors.go`).
 * 2. Inside a transaction whose COMMIT was not written, all is rolled back, by the server's ERROR or by the end of the
 *    session. Only 08007 and 40003, which say that nobody knows, are believed instead.
 * 3. An ERROR reply aborts the transaction, explicit or implicit, before it is sent: `RolledBack`
 *    (https://www.postgresql.org/docs/18/protocol-flow.html, "Extended Query"). It is the server's word about the whole
 *    statement; a procedure that commits inside itself has broken its work into several.
 * 4. A FATAL in flight or in COMMIT proves nothing: an autocommit statement commits at Sync, and the session can be
 *    terminated after that (PostgreSQL, `SyncRepWaitForLSN` in `src/backend/replication/syncrep.c`, says as much: the
 *    transaction "has already committed locally"). Exceptions are refusals that precede any statement (57P03, 53300,
 *    class 28, a pooler's) and sessions that were ended while idle (57P05, 25P03). A pooler's refusal is known by its
 *    text alone: PgBouncer says nearly all of them through 08P01, Supavisor and Neon through XX000.
 * 5. A missing answer in flight or in COMMIT is `Unknown`.
 * 6. A lost connection on a session that had served before, when nothing was written and nothing was answered since
 *    its checkout, is a `StaleConnection`: no fault of the server's present state, so it is repeated at once and not
 *    counted.
 *
 * @example
 * ```ts
 * import * as Errors from "effect-pg-pool/Errors"
 *
 * Errors.classify({ code: "ECONNRESET" }, { phase: "InFlight", reused: true, replied: true }).effect // "Unknown"
 * Errors.classify({ code: "ECONNRESET" }, { phase: "BeforeWrite", reused: true, replied: false }).retry // "Now"
 * ```
 *
 * @category classification
 * @since 0.1.0
 */
export const classify: (failure: Failure, circumstances: Circumstances) => Verdict = Tables.classify

/**
 * A function that judges a failure which has a verdict already, `byDefault`. The failure's `message` is all of the
 * server's text, which may quote values of a row: compare it, and do not pass it on.
 *
 * @category models
 * @since 0.1.0
 */
export type Classify = ClassifyFunction

/**
 * What a program knows better than `classify`: the meaning of its own error codes, of a pooler nobody has heard of. It
 * is read once, when an executor is made, so a value provided to the layer of one pool is for that pool alone; the
 * option `classify` of `Pg.layer` is asked after it and has the last word. Default: `byDefault`.
 *
 * Some things are facts, and stay so whatever it returns:
 *
 * - Whether anything was run follows from the phase: `NotRun` after a write is corrected to `RolledBack`, and before
 *   the first byte all is `NotRun`. A `RolledBack` after a write is taken at its word.
 * - Without a reply of the server (no SQLSTATE), an `Unknown` effect stays `Unknown`: nobody can know. Declare such work
 *   idempotent instead.
 * - A session that is over is not kept.
 *
 * It must not block and needs no state. If it throws, or returns something else than a verdict, `byDefault` stands and
 * the first such defect is logged as a warning.
 *
 * @example
 * ```ts
 * import * as Layer from "effect/Layer"
 * import * as Pg from "effect-pg-pool"
 *
 * // What our functions raise when somebody else was faster: the transaction is worth another try.
 * const seats: Pg.Errors.Classify = (failure, _circumstances, byDefault) =>
 *   failure.sqlState === "P0001" && failure.message === "seat was taken"
 *     ? { ...byDefault, kind: "Contention", retry: "Backoff" }
 *     : byDefault
 *
 * export const one = Pg.layer({ database: "seats", classify: seats })
 *
 * export const all = Layer.succeed(Pg.Errors.Classifier, seats)
 * export const another = Pg.layer({ database: "seats" }).pipe(Layer.provide(all))
 * ```
 *
 * @category classification
 * @since 0.1.0
 */
export const Classifier: Context.Reference<Classify> = Context.Reference<Classify>("effect-pg-pool/Errors/Classifier", {
  defaultValue: () => abstain
})

/**
 * Whether failed work may be repeated, and whether that could help. `idempotent` is the caller's declaration that
 * running the work twice does no harm.
 *
 * Work with an `Unknown` effect, and work that was cancelled, is repeated only if declared idempotent; what would only
 * fail again (`retry: "Never"`) is not repeated at all.
 *
 * @category classification
 * @since 0.1.0
 */
export const isSafeToRepeat: (verdict: Verdict, idempotent: boolean) => boolean = V.isSafeToRepeat

// ---------------------------------------------------------------------------------------------------------------------
// Typed errors
// ---------------------------------------------------------------------------------------------------------------------

const seconds = (milliseconds: number): string =>
  milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${Math.round(milliseconds / 100) / 10} s`

const because = (lead: string, failure: Failure | null): string =>
  failure === null ? "" : ` ${lead} ${describe(failure)}.`

/**
 * How a pool stood at one moment, in sessions (`waiting` in callers).
 *
 * - `total`: open sessions, idle and active.
 * - `connecting`: sessions being opened; they count towards `max`.
 *
 * @category models
 * @since 0.1.0
 */
export interface PoolStats {
  readonly total: number
  readonly idle: number
  readonly active: number
  readonly waiting: number
  readonly connecting: number
  readonly max: number
  readonly min: number
  /** Milliseconds for which the session that was lent first has been held; 0 when none is lent. */
  readonly oldestLease: number
}

/**
 * Schema of `PoolStats`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const PoolStats = Schema.Struct({
  total: Schema.Finite,
  idle: Schema.Finite,
  active: Schema.Finite,
  waiting: Schema.Finite,
  connecting: Schema.Finite,
  max: Schema.Finite,
  min: Schema.Finite,
  oldestLease: Schema.Finite
})

const inUse = (stats: PoolStats): string =>
  `${stats.active} of at most ${stats.max} sessions in use, ${stats.connecting} connecting, ${stats.waiting} callers waiting`

/**
 * No session could be had in time. Nothing of the work ran, so the same call may be repeated.
 *
 * - `phase`: what the time was spent on: waiting in the queue, connecting, checking an idle session, the `beforeAcquire` hook
 *   or the sessions that it refused, or waiting for the end of `Pool.suspend`.
 * - `waited`: milliseconds.
 * - `stats`: how the pool stood.
 * - `lastConnectFailure`: why the pool could not grow, if it tried.
 *
 * @category errors
 * @since 0.1.0
 */
export class AcquireTimeout extends Schema.TaggedError<AcquireTimeout>("effect-pg-pool/Errors/AcquireTimeout")(
  "AcquireTimeout",
  {
    phase: Schema.Literals(["Queue", "Connect", "Validate", "Hook", "Suspended"]),
    waited: Schema.Finite,
    stats: PoolStats,
    lastConnectFailure: Schema.NullOr(Failure)
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    const head = `No connection within ${seconds(this.waited)}`
    switch (this.phase) {
      case "Queue":
        return `${head}: ${inUse(this.stats)}.${
          because("The last attempt to connect failed with", this.lastConnectFailure)
        } Shorten or bound the work that holds sessions, or raise max or acquireTimeout.`
      case "Connect":
        return `${head}: the server did not accept one.${
          because("The last attempt to connect failed with", this.lastConnectFailure)
        } ${
          this.lastConnectFailure?.sqlState === "53300"
            ? "It is full: open fewer sessions (max, or the number of processes), put a pooler in between, or raise its max_connections."
            : "Check host, port, network and that the server is up."
        }`
      case "Validate":
        return `${head}: idle sessions did not answer the liveness check.${
          because("The last attempt to connect failed with", this.lastConnectFailure)
        } The server or the network stalls; check both.`
      case "Hook":
        return `${head}: the beforeAcquire hook took the time, or refused the sessions. Make it faster, or let it accept more.`
      case "Suspended":
        return `${head}: the pool is suspended. Call its resume, or suspend it for less time.`
    }
  }
  /** Nothing ran and the same call may succeed later. @since 0.1.0 */
  get isRetryable(): boolean {
    return true
  }
}

/**
 * The queue of waiting callers is too long. Nothing of the work ran, so the same call may be repeated, later.
 *
 * - `by`: `Length` when `maxWaiting` callers wait already, `Lateness` when callers have waited for too long (`shedding`).
 * - `waited`: milliseconds that this one has waited.
 * - `maxWaiting`: `null` for no bound.
 *
 * @category errors
 * @since 0.1.0
 */
export class PoolSaturated extends Schema.TaggedError<PoolSaturated>("effect-pg-pool/Errors/PoolSaturated")(
  "PoolSaturated",
  {
    by: Schema.Literals(["Length", "Lateness"]),
    waiting: Schema.Finite,
    waited: Schema.Finite,
    maxWaiting: Schema.NullOr(Schema.Finite),
    stats: PoolStats
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return this.by === "Length"
      ? `The queue for a connection is full: ${this.waiting} callers wait and maxWaiting is ${this.maxWaiting}; ${
        inUse(this.stats)
      }. Admit less work at once, or raise max or maxWaiting.`
      : `The queue for a connection is too slow: this caller was turned away after ${seconds(this.waited)}; ${
        inUse(this.stats)
      }. Admit less work at once, shorten the work that holds sessions, or raise max or shedding.target.`
  }
  /** Nothing ran and the same call may succeed later. @since 0.1.0 */
  get isRetryable(): boolean {
    return true
  }
}

/**
 * The pool's scope was closed, or the pool is drained, so it lends no more sessions.
 *
 * @category errors
 * @since 0.1.0
 */
export class PoolClosed extends Schema.TaggedError<PoolClosed>("effect-pg-pool/Errors/PoolClosed")("PoolClosed", {}) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return "The pool is closed or being drained. End the work that uses it before, or keep its scope open for longer."
  }
  /** A closed pool stays closed. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/** A circuit by its name, where it was given one. */
const circuit = (key: string): string => key === "default" ? "The database circuit" : `The database circuit ${key}`

/**
 * The circuit is open after repeated failures of the infrastructure, and the call was rejected without being tried.
 * Not retryable: a retry would only meet the same open circuit before `retryAfter` (milliseconds) has passed. `key`
 * names the circuit.
 *
 * @category errors
 * @since 0.1.0
 */
export class CircuitOpen extends Schema.TaggedError<CircuitOpen>("effect-pg-pool/Errors/CircuitOpen")("CircuitOpen", {
  key: Schema.String,
  retryAfter: Schema.Finite,
  lastFailure: Schema.NullOr(Failure)
}) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return `${circuit(this.key)} is open; the next probe is due in ${seconds(this.retryAfter)}.${
      because("It opened on", this.lastFailure)
    } Answer without the database until then.`
  }
  /** A rejection must never invite a retry. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The circuit lets one call at a time find out whether the database is back, and this call was rejected without being
 * tried. `key` names the circuit. `retryAfter` is in milliseconds: the time until that call's lease ends at the latest.
 *
 * @category errors
 * @since 0.1.0
 */
export class CircuitHalfOpen extends Schema.TaggedError<CircuitHalfOpen>("effect-pg-pool/Errors/CircuitHalfOpen")(
  "CircuitHalfOpen",
  {
    key: Schema.String,
    retryAfter: Schema.Finite
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return `${circuit(this.key)} is half open and its probe is under way; it is decided within ${
      seconds(this.retryAfter)
    }. Answer without the database until then.`
  }
  /** A rejection must never invite a retry. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The circuit was isolated by hand, and the call was rejected without being tried. `key` names the circuit, `reason` is
 * what whoever isolated it has said.
 *
 * @category errors
 * @since 0.1.0
 */
export class CircuitIsolated extends Schema.TaggedError<CircuitIsolated>("effect-pg-pool/Errors/CircuitIsolated")(
  "CircuitIsolated",
  {
    key: Schema.String,
    reason: Schema.String
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return `${
      circuit(this.key)
    } is isolated: ${this.reason}. Answer without the database until whoever isolated it ends that.`
  }
  /** Nobody can say when it ends; the other rejections of a circuit have milliseconds here. @since 0.1.0 */
  get retryAfter(): null {
    return null
  }
  /** A rejection must never invite a retry. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/**
 * What a circuit rejects a call with.
 *
 * @category errors
 * @since 0.1.0
 */
export type CircuitError = CircuitOpen | CircuitHalfOpen | CircuitIsolated

/**
 * The answer was lost after the work had been sent: it may have been applied, or not. It is never repeated silently.
 *
 * - `operation`: what was under way: one statement, a COMMIT, or work of several statements.
 * - `failure`: how the answer was lost.
 * - `cause`: the driver's error.
 * - `unresolved`: with `resolveCommit`, why the server could not tell afterwards either.
 *
 * @category errors
 * @since 0.1.0
 */
export class OutcomeUnknown extends Schema.TaggedError<OutcomeUnknown>("effect-pg-pool/Errors/OutcomeUnknown")(
  "OutcomeUnknown",
  {
    operation: Schema.Literals(["statement", "commit", "work"]),
    failure: Failure,
    cause: Schema.Defect(),
    unresolved: Schema.optional(Schema.String)
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    const what = this.operation === "commit"
      ? "The COMMIT"
      : this.operation === "statement"
      ? "The statement"
      : "The work"
    // A procedure and a DO block may commit on their way to an error.
    const how = this.failure.severity === "ERROR"
      ? `the server answered with ${
        describe(this.failure)
      }, but such a statement may have committed parts of itself before`
      : `it was sent, and its answer was lost (${describe(this.failure)})`
    const fate = this.unresolved === undefined ? "" : ` Its fate could not be resolved: ${this.unresolved}.`
    return `${what} may have been applied: ${how}.${fate} Verify in the database before repeating it, or declare it idempotent.`
  }
  /** Repeating could apply it twice. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/**
 * Schema of `Outcome`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Outcome = Schema.Literals(["NotRun", "RolledBack", "Unknown"])

const certainty = (effect: Outcome): string => {
  switch (effect) {
    case "NotRun":
      return "Nothing of it was run."
    case "RolledBack":
      return "It was rolled back."
    case "Unknown":
      return "It may have been applied: verify in the database before repeating it."
  }
}

/**
 * A statement, or an attempt at a unit of work, ran out of its time. `timeout` is how long it was given or took, in
 * milliseconds; `effect` says what is known of what it did.
 *
 * - `by: "server"`: PostgreSQL's statement_timeout cancelled it; it was rolled back and the session is sound.
 * - `by: "client"`: there was no answer in time. A server that is alive was asked to cancel it, a silent one lost its
 *   connection.
 *
 * @category errors
 * @since 0.1.0
 */
export class StatementTimeout extends Schema.TaggedError<StatementTimeout>("effect-pg-pool/Errors/StatementTimeout")(
  "StatementTimeout",
  {
    timeout: Schema.Finite,
    by: Schema.Literals(["server", "client"]),
    effect: Outcome,
    failure: Failure
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return this.by === "server"
      ? `The server's statement_timeout ended the statement after ${seconds(this.timeout)}. ${
        certainty(this.effect)
      } Make it faster, or give it more time.`
      : `No answer within ${seconds(this.timeout)}. ${
        certainty(this.effect)
      } Check the server and the network, or allow more time.`
  }
  /** A repetition usually repeats the timeout, and could apply the work twice. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The time the caller allowed for the whole call (`deadline`, milliseconds) is over or too short for another attempt.
 * `effect` says what is known of what the call did.
 *
 * @category errors
 * @since 0.1.0
 */
export class DeadlineExceeded extends Schema.TaggedError<DeadlineExceeded>("effect-pg-pool/Errors/DeadlineExceeded")(
  "DeadlineExceeded",
  {
    deadline: Schema.Finite,
    effect: Outcome
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return `The call was not done within its deadline of ${seconds(Math.max(0, this.deadline))}. ${
      certainty(this.effect)
    } Allow more time, or do less within it.`
  }
  /** The time is spent. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/**
 * An invocation of a serverless function was not done in the time that it was allowed: what the platform leaves, less a margin
 * for the answer. It was interrupted. `allowed` is that time in milliseconds; `effect` says what is known of what it did to the
 * database.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvocationTimeout extends Schema.TaggedError<InvocationTimeout>("effect-pg-pool/Errors/InvocationTimeout")(
  "InvocationTimeout",
  {
    allowed: Schema.Finite,
    effect: Outcome
  }
) {
  /** @since 0.1.0 */
  override get message(): string {
    const what = this.allowed > 0
      ? `The invocation was not done within the ${
        seconds(this.allowed)
      } that the platform left it, and was interrupted.`
      : "The platform had left the invocation no time when it began."
    return `${what} ${ofDatabase[this.effect]} Raise the time limit of the function, or do less in one invocation.`
  }
  /** The time is spent. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

const ofDatabase = {
  NotRun: "Nothing was sent to the database.",
  RolledBack: "What it did to the database was rolled back.",
  Unknown: "What it did to the database may have been applied: verify there before repeating it."
}

/**
 * Schema of `Attempt`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Attempt = Schema.Struct({
  attempt: Schema.Finite,
  kind: Kind,
  effect: Outcome,
  failure: Failure,
  delay: Schema.Finite
})

/**
 * One failed attempt: its number (from 1), what it failed with, and the milliseconds waited after it (0 after the last).
 *
 * @category models
 * @since 0.1.0
 */
export type Attempt = History.Attempt

const stops = {
  attempts: "Retrying is over.",
  deadline: "Another attempt would not fit into the deadline.",
  budget: "The retry budget is spent, since too little succeeds.",
  refusal: "No further attempt was let through."
}

/**
 * Every attempt failed, and there is no other. `last` is the error of the last attempt, `history` has one entry for
 * each.
 *
 * - `stoppedBy: "attempts"`: the schedule has ended.
 * - `stoppedBy: "deadline"`: the wait and another attempt like the last one do not fit into the deadline any more.
 * - `stoppedBy: "budget"`: the pool's retry budget is spent, since too little succeeds.
 * - `stoppedBy: "refusal"`: the circuit or the pool lets no further attempt through: `last` says why. Its own error would say
 *   that nothing ran, which after a doubtful attempt is not the whole truth.
 *
 * @category errors
 * @since 0.1.0
 */
export class RetriesExhausted extends Schema.TaggedError<RetriesExhausted>("effect-pg-pool/Errors/RetriesExhausted")(
  "RetriesExhausted",
  {
    attempts: Schema.Finite,
    last: Schema.Defect(),
    history: Schema.Array(Attempt),
    stoppedBy: Schema.Literals(["attempts", "deadline", "budget", "refusal"])
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return `Failed ${this.attempts} ${this.attempts === 1 ? "time" : "times"}, the last time with ${
      describe(failureOf(this.last))
    }. ${stops[this.stoppedBy]} Look for the cause in the server or the network.`
  }
  /** What the last attempt's error says, unless an attempt may have been applied. @since 0.1.0 */
  get isRetryable(): boolean {
    return Predicate.hasProperty(this.last, "isRetryable") && this.last.isRetryable === true &&
      this.history.every(({ effect }) => effect !== "Unknown")
  }
}

/**
 * The failed attempts behind an error that came out of an executor: of a `RetriesExhausted`, and just as well of a
 * `CircuitOpen` that ended the retries or of a reply that must not be repeated. Empty when there was one attempt only.
 *
 * @category inspection
 * @since 0.1.0
 */
export const historyOf = (error: unknown): ReadonlyArray<Attempt> => {
  if (error instanceof RetriesExhausted) return error.history
  const known = History.of(error)
  if (known !== undefined) return known
  const typed = error instanceof SqlError ? fromSqlError(error) : undefined
  return typed === undefined ? [] : historyOf(typed)
}

/** What somebody else's code has failed with. It travels by its name. */
const Sealed = Schema.Defect().pipe(
  Schema.decodeTo(
    Schema.Redacted(Schema.Unknown),
    SchemaTransformation.transform({
      decode: Discretion.seal,
      encode: (cause): unknown => {
        const name = nameOf(Redacted.value(cause))
        return Object.assign(new Error("(text withheld)"), name === undefined ? {} : { name })
      }
    })
  )
)

const withWords = (
  { cause, text }: { readonly cause: Redacted.Redacted<unknown>; readonly text?: string | undefined }
) => {
  const words = (text ?? nameOf(Redacted.value(cause)))?.replace(/[.\s]+$/, "")
  return words === undefined ? "" : ` with ${words}`
}

/**
 * A hook of the pool failed, so the session it was about was not used.
 *
 * - `cause`: what it failed with. It may hold anything, so `Redacted.value` has it and what is printed has its name.
 * - `text`: what may be said of the cause; with `errorText: "full"`, all of its message.
 *
 * @category errors
 * @since 0.1.0
 */
export class HookFailed extends Schema.TaggedError<HookFailed>("effect-pg-pool/Errors/HookFailed")("HookFailed", {
  hook: Schema.String,
  cause: Sealed,
  text: Schema.optional(Schema.String)
}) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return `The hook ${this.hook} failed${
      withWords(this)
    }, so its connection was not used. See the cause, and make the hook succeed or handle its own errors.`
  }
  /** What a hook does is not known here. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The effect that yields the `password` failed, died, or yielded none, so nobody was asked to connect. Whoever issues
 * passwords may be busy or down for a moment, so the same call may be repeated, later; it says nothing about the
 * database, so a circuit breaker does not count it.
 *
 * - `cause`: what the effect failed with. It may hold the secret, so `Redacted.value` has it and what is printed has its name.
 * - `text`: what may be said of the cause; with `errorText: "full"`, all of its message.
 * - `refusal`: what the server had said to the password before, where that was the reason to ask for another one.
 *
 * @category errors
 * @since 0.1.0
 */
export class CredentialsFailed extends Schema.TaggedError<CredentialsFailed>("effect-pg-pool/Errors/CredentialsFailed")(
  "CredentialsFailed",
  {
    cause: Sealed,
    text: Schema.optional(Schema.String),
    refusal: Schema.NullOr(Failure)
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return `The password could not be had: the effect that yields it failed${withWords(this)}.${
      because("The server had refused the one before with", this.refusal)
    } See the cause, and check whoever issues it and the right to ask there.`
  }
  /** Nothing ran and the same call may succeed later. @since 0.1.0 */
  get isRetryable(): boolean {
    return true
  }
}

/**
 * Not even one session for each pool of the fleet fits into what the server allows, and `whenUnsafe` is `"fail"`: see
 * `Pool.sizeForFleet`. Nothing was run. The server is asked again by the next connect, but its limits and the size of the
 * fleet do not change by themselves, so repeating the call is in vain; it says nothing of the database's health either, so
 * a circuit breaker does not count it.
 *
 * - `environments`, `workers`, `overlap`, `share`: what the pool was told of the fleet.
 * - `bound`: which limit leaves the least: the `"server"`'s `max_connections` less what is reserved, the `CONNECTION LIMIT`
 *   of the `"role"` or that of the `"database"`; `limit` is its number, `others` how many sessions of others count
 *   against it.
 * - `safeEnvironments`: how many environments would fit, with one session for each of their pools.
 *
 * @category errors
 * @since 0.1.0
 */
export class FleetTooLarge extends Schema.TaggedError<FleetTooLarge>("effect-pg-pool/Errors/FleetTooLarge")(
  "FleetTooLarge",
  {
    environments: Schema.Number,
    workers: Schema.Number,
    overlap: Schema.Number,
    share: Schema.Number,
    bound: Schema.Literals(["server", "role", "database"]),
    limit: Schema.Number,
    others: Schema.Number,
    safeEnvironments: Schema.Number
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return tooLarge(this)
  }
  /** Limits do not change by themselves. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

const servers = {
  any: "could be connected to",
  "read-write": "takes writes",
  "read-only": "refuses writes",
  primary: "is a primary",
  standby: "is a standby",
  "prefer-standby": "could be connected to"
}

/**
 * None of the hosts would do: each could not be reached, or is not what `targetSessionAttrs` asks for. Nothing of the
 * work ran, so the same call may be repeated. While some host answers, a circuit breaker does not count it, so that the
 * search for the writer can go on.
 *
 * - `targetSessionAttrs`: what was looked for.
 * - `hosts`: those that were tried, in that order: `host` is `name:port` or a Unix socket; `role` what it said of itself,
 *   `null` if it was not reached; `failure` why not.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoSuitableHost extends Schema.TaggedError<NoSuitableHost>("effect-pg-pool/Errors/NoSuitableHost")(
  "NoSuitableHost",
  {
    targetSessionAttrs: Schema.Literals(allSessionAttrs),
    hosts: Schema.Array(Schema.Struct({
      host: Schema.String,
      role: Schema.NullOr(Schema.Literals(["primary", "read-only primary", "standby"])),
      failure: Schema.NullOr(Failure)
    }))
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    const findings = this.hosts.map(({ failure, host, role }) =>
      role === null ? `${host} failed with ${describe(failure ?? {})}` : `${host} is a ${role}`
    )
    return `No host ${servers[this.targetSessionAttrs]} (targetSessionAttrs "${this.targetSessionAttrs}"): ${
      findings.join("; ")
    }. Look at the servers, wait for the end of a failover, or correct hosts or targetSessionAttrs.`
  }
  /** Nothing ran and the same call may succeed later. @since 0.1.0 */
  get isRetryable(): boolean {
    return true
  }
}

/**
 * An option has an impossible value. `option` names it, `value` is what was given (never that of a secret), `allowed`
 * says what would do.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidOption extends Schema.TaggedError<InvalidOption>("effect-pg-pool/Errors/InvalidOption")(
  "InvalidOption",
  {
    option: Schema.String,
    value: Schema.Unknown,
    allowed: Schema.String
  }
) {
  /** @since 0.1.0 */
  readonly [TypeId] = TypeId
  /** @since 0.1.0 */
  override get message(): string {
    return `${this.option} is ${shown(this.option, this.value)}, but must be ${this.allowed}.`
  }
  /** The same value stays impossible. @since 0.1.0 */
  get isRetryable(): boolean {
    return false
  }
}

/**
 * Every typed error of this library.
 *
 * @category errors
 * @since 0.1.0
 */
export type PoolError =
  | AcquireTimeout
  | PoolSaturated
  | PoolClosed
  | CircuitOpen
  | CircuitHalfOpen
  | CircuitIsolated
  | OutcomeUnknown
  | StatementTimeout
  | DeadlineExceeded
  | RetriesExhausted
  | HookFailed
  | CredentialsFailed
  | NoSuitableHost
  | FleetTooLarge
  | InvalidOption

/**
 * Schema of `PoolError`.
 *
 * @category schemas
 * @since 0.1.0
 */
// Not made where nobody asks for it: it makes the schema of each of them.
export const PoolError = /* @__PURE__ */ Schema.Union([
  AcquireTimeout,
  PoolSaturated,
  PoolClosed,
  CircuitOpen,
  CircuitHalfOpen,
  CircuitIsolated,
  OutcomeUnknown,
  StatementTimeout,
  DeadlineExceeded,
  RetriesExhausted,
  HookFailed,
  CredentialsFailed,
  NoSuitableHost,
  FleetTooLarge,
  InvalidOption
])

/**
 * Whether a value is one of the typed errors of this library.
 *
 * @category guards
 * @since 0.1.0
 */
export const isPoolError = (u: unknown): u is PoolError => Predicate.hasProperty(u, TypeId)

// ---------------------------------------------------------------------------------------------------------------------
// Through SqlClient
// ---------------------------------------------------------------------------------------------------------------------

/**
 * Wraps a typed error for the `SqlClient` interface, whose error type is fixed. The typed error is the reason's `cause`,
 * and the reason is chosen so that `isRetryable` tells the truth: a `ConnectionError` where nothing ran and the call
 * may be repeated, an `UnknownError` everywhere else. (`StatementTimeoutError` says "retryable" of itself, so a
 * `StatementTimeout` does not travel as one.)
 *
 * @category conversions
 * @since 0.1.0
 */
export const toSqlError = (error: PoolError): SqlError => {
  const fields = { cause: error, message: error.message, operation: operationOf(error) }
  return new SqlError({ reason: error.isRetryable ? new ConnectionError(fields) : new UnknownError(fields) })
}

const operationOf = (error: PoolError): string => {
  switch (error._tag) {
    case "OutcomeUnknown":
      return error.operation
    case "StatementTimeout":
      return "statement"
    case "InvalidOption":
      return "configure"
    case "DeadlineExceeded":
    case "RetriesExhausted":
      return "work"
    default:
      return "acquire"
  }
}

/**
 * Gets the typed error back out of a `SqlError` that `toSqlError` made, or `undefined` if it carries none.
 *
 * @example
 * ```ts
 * import * as Effect from "effect/Effect"
 * import type { SqlError } from "effect/sql/SqlError"
 * import * as Errors from "effect-pg-pool/Errors"
 *
 * export const patient = <A, R>(work: Effect.Effect<A, SqlError, R>) =>
 *   Effect.catchTag(work, "SqlError", (error) => {
 *     const typed = Errors.fromSqlError(error)
 *     return typed?._tag === "OutcomeUnknown" ? Effect.succeed("verify first") : Effect.fail(error)
 *   })
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const fromSqlError = (error: SqlError): PoolError | undefined => {
  const cause = error.reason.cause
  return isPoolError(cause) ? cause : undefined
}

/**
 * A `SqlError` with the reason of another one and a typed error as the reason's `cause`, so that programs match on the
 * reason as before and `fromSqlError` finds what became of it.
 *
 * @category conversions
 * @since 0.1.0
 */
export const withCause = (error: SqlError, cause: PoolError): SqlError => {
  const reason = error.reason
  const Reason = reason.constructor as new(fields: object) => SqlError["reason"]
  return new SqlError({ reason: new Reason({ ...reason, message: cause.message, cause }) })
}

/**
 * Makes a driver's `SqlError` tell the truth about `isRetryable`, as the verdict has it.
 *
 * - An `Unknown` effect becomes an `OutcomeUnknown` (the driver calls a reset in mid-INSERT retryable).
 * - A refusal that may be repeated becomes a `ConnectionError` (the driver calls 57P01, 57P03, 53300 and 25006 not
 *   retryable); one that would only be repeated in vain becomes an `UnknownError`.
 * - Contention and cancellation keep the driver's own reasons: the server rolled them back, so programs that match on
 *   `SerializationError`, `DeadlockError`, `LockTimeoutError` or `StatementTimeoutError` go on working.
 * - A pooler's refusal of a user or password becomes an `AuthenticationError`, whatever its SQLSTATE; and what only somebody
 *   hears who takes a transaction pooler for the server gets a message that says so.
 * - What the driver complains of itself (a row that it cannot decode) stays as it is; it never called that retryable.
 * - What tells the truth already is returned as it is, the same object. The driver's cause stays the reason's `cause`,
 *   or the `cause` of the `OutcomeUnknown`.
 *
 * @param operation what was under way, for `OutcomeUnknown`; "statement" by default
 * @category conversions
 * @since 0.1.0
 */
export const truthful = (
  error: SqlError,
  verdict: Verdict,
  operation: OutcomeUnknown["operation"] = "statement"
): SqlError => {
  if (fromSqlError(error) !== undefined) return error
  if (verdict.effect === "Unknown") {
    const failure = failureOf(error)
    const ofTheDriver = verdict.kind === "Rejected" && failure.sqlState === undefined && !error.isRetryable
    return ofTheDriver ? error : toSqlError(new OutcomeUnknown({ operation, failure, cause: error }))
  }
  if (verdict.kind === "Contention" || verdict.kind === "Cancelled") return error
  const repeatable = isSafeToRepeat(verdict, false)
  const failure = failureOf(error)
  const { _tag, cause, message: said, operation: during } = error.reason
  const message = withAdvice(said, failure)
  const fields = { cause, message, operation: during }
  if (verdict.kind === "Denied" && isBadLogin(failure) && _tag !== "AuthenticationError") {
    return new SqlError({ reason: new AuthenticationError(fields) })
  }
  if (error.isRetryable === repeatable && message === said) return error
  return new SqlError({ reason: repeatable ? new ConnectionError(fields) : new UnknownError(fields) })
}
