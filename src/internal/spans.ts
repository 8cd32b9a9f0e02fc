/**
 * The words of the traces, and the spans of ours: one for each thing that took place beside the statement itself. They are
 * made when it is over, so that a wait that was none leaves nothing, and only where a tracer is there to keep them.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Exit from "effect/Exit"
import type { Fiber } from "effect/Fiber"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as References from "effect/References"
import { isSqlError } from "effect/sql/SqlError"
import * as Tracer from "effect/Tracer"
import type { HostAddress } from "./address.ts"
import * as Tables from "./classify.ts"
import { digFailure, nameOf, PoolErrorTypeId } from "./failure.ts"
import * as LogFields from "./logFields.ts"
import * as Operation from "./operation.ts"
import * as StatementSpan from "./statementSpan.ts"
import * as Store from "./store.ts"
import * as UnitOfWork from "./unitOfWork.ts"
import type { Circumstances, Kind } from "./verdict.ts"

/** The spans of ours. Those of statements and transactions are Effect's. */
export const name = {
  acquire: "db.pool.acquire",
  connect: "db.pool.connect",
  retry: "db.retry",
  rejected: "db.circuit_breaker.rejected"
} as const

/**
 * OpenTelemetry's names where it has one, ours elsewhere, and the same as in the logs.
 * https://opentelemetry.io/docs/specs/semconv/db/postgresql/ (1.45)
 */
export const attribute = {
  pool: "db.client.connection.pool.name",
  operation: "db.operation.name",
  errorType: "error.type",
  serverAddress: "server.address",
  serverPort: "server.port",
  connectOutcome: "db.connection.outcome",
  acquireOutcome: "db.acquire.outcome",
  phases: "db.acquire.phases",
  waited: "db.acquire.waited_ms",
  /** How often a statement was run, when more than once. */
  attempts: "db.retry.attempts",
  /** Which attempt of the surrounding `run` or `transaction` it belongs to, when not the first; on `db.retry`: which follows. */
  attempt: "db.retry.attempt",
  delay: "db.retry.delay_ms",
  reason: "db.retry.reason",
  breakerState: "db.breaker.state",
  retryAfter: "db.breaker.retry_after_ms"
} as const

export type Attributes = Readonly<Record<string, unknown>>

const isMuted = (fiber: Fiber<unknown, unknown>): boolean =>
  LogLevel.isGreaterThan(fiber.getRef(Tracer.MinimumTraceLevel), fiber.getRef(Tracer.CurrentTraceLevel))

/** The beginning of what may become a span. */
export interface Beginning {
  readonly tracer: Tracer.Tracer
  readonly parent: Tracer.AnySpan | undefined
  readonly annotations: Attributes
  readonly links: ReadonlyArray<Tracer.SpanLink>
  readonly startedAt: bigint
  readonly nanos: () => bigint
}

/** A span that hides from its children is passed over, as Effect does. */
const visible = (span: Tracer.AnySpan | undefined): Tracer.AnySpan | undefined => {
  let each = span
  while (each !== undefined && Context.get(each.annotations, Tracer.DisablePropagation)) {
    each = each._tag === "Span" ? Option.getOrUndefined(each.parent) : undefined
  }
  return each
}

/** Notes where and when something begins; `undefined` where nobody would see it. */
export const begin = (fiber: Fiber<unknown, unknown>): Beginning | undefined => {
  if (!StatementSpan.isTraced(fiber) || isMuted(fiber)) return undefined
  const parent = visible(StatementSpan.nearest(fiber))
  if (parent?.sampled === false) return undefined
  const clock = fiber.getRef(Clock.Clock)
  const isTimed = fiber.getRef(References.TracerTimingEnabled)
  const nanos = () => isTimed ? clock.currentTimeNanosUnsafe() : 0n
  return {
    tracer: fiber.cache.tracer!,
    parent,
    annotations: fiber.getRef(References.TracerSpanAnnotations),
    links: fiber.getRef(References.TracerSpanLinks),
    startedAt: nanos(),
    nanos
  }
}

/** The same place, later. */
export const again = (beginning: Beginning): Beginning => ({ ...beginning, startedAt: beginning.nanos() })

export interface End {
  readonly name: string
  readonly attributes: Attributes
  readonly exit?: Exit.Exit<unknown, unknown> | undefined
  readonly kind?: Tracer.SpanKind | undefined
  /** Not a part of what caused it, which may end before it: the cause is linked. */
  readonly isApart?: boolean | undefined
}

/** Makes the span of something that is over. */
export const end = (
  { annotations, links, nanos, parent, startedAt, tracer }: Beginning,
  { attributes, exit = Exit.void, isApart = false, kind = "internal", name }: End
): void => {
  const span = tracer.span({
    name,
    parent: isApart ? Option.none() : Option.fromUndefinedOr(parent),
    annotations: Context.empty(),
    links: isApart && parent !== undefined ? [...links, { span: parent, attributes: {} }] : Array.from(links),
    startTime: startedAt,
    kind,
    root: isApart,
    sampled: true
  })
  mark(span, annotations)
  mark(span, attributes)
  // What it succeeded with is nobody's to see.
  span.end(nanos(), Exit.asVoid(exit))
}

/** Adds to a span that is still open. */
export const mark = (span: Tracer.Span, attributes: Attributes): void => {
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) span.attribute(key, value)
}

// -------------------------------------------------------------------------------------------------------------------
// what failed
// -------------------------------------------------------------------------------------------------------------------

/** The typed error that a `SqlError` carries, and what made it give up, if that is what it says. */
const essence = (error: unknown): unknown => {
  if (isSqlError(error) && isTyped(error.reason.cause)) return essence(error.reason.cause)
  return isTyped(error) && error._tag === "RetriesExhausted" ? essence(error.last) : error
}

/** An error of `Errors.ts`. */
const isTyped = (error: unknown): error is { readonly _tag: string; readonly last?: unknown } =>
  typeof error === "object" && error !== null && PoolErrorTypeId in error

/**
 * An error in the words of the logs, and none of its text: the SQLSTATE when the server has said one, else the tag of the
 * typed error, the socket's code, or the kind of the failure.
 */
export const describe = (error: unknown, kind?: Kind): Attributes => {
  const own = essence(error)
  const failure = digFailure(own)
  const judged = kind ?? (isSqlError(own) ? Tables.classify(failure, connectCircumstances).kind : undefined)
  return {
    ...LogFields.ofFailure(failure, own, { kind: judged }),
    [attribute.errorType]: failure.sqlState ?? (isTyped(own) ? own._tag : failure.code ?? judged ?? nameOf(own)) ??
      LogFields.unnamed
  }
}

/** Of statements somebody has made a judgement. */
const connectCircumstances: Circumstances = { phase: "Connect", reused: false, replied: false }

/** The same of an exit: who is interrupted has not failed. */
export const failureOf = (
  exit: Exit.Exit<unknown, unknown>,
  kindOf?: (error: unknown) => Kind | undefined
): Attributes => {
  if (exit._tag === "Success" || Cause.hasInterruptsOnly(exit.cause)) return {}
  const error = Cause.squash(exit.cause)
  return describe(error, kindOf?.(error))
}

// -------------------------------------------------------------------------------------------------------------------
// the spans of statements
// -------------------------------------------------------------------------------------------------------------------

/** What a statement does, by the text that Effect has given its span; a transaction has none. */
const operationIn = (span: Tracer.Span): string | undefined => {
  const sql = span.attributes.get("db.query.text")
  return typeof sql === "string" ? Operation.wordOf(sql) : undefined
}

/** Completes the span of a statement that is about to be sent; `server`, where there are several. */
export const send = (
  fiber: Fiber<unknown, unknown>,
  pool: string,
  sql: string,
  server: HostAddress | undefined
): Tracer.Span | undefined => {
  const span = StatementSpan.of(fiber, pool)
  if (span === undefined) return undefined
  const attempt = fiber.getRef(UnitOfWork.CurrentAttempt)
  mark(span, {
    [attribute.operation]: Operation.wordOf(sql),
    [attribute.attempt]: attempt > 1 ? attempt : undefined,
    ...(server !== undefined && serverOf(server))
  })
  return span
}

/** Completes the span of a statement that came to an end only after something had gone wrong. */
export const conclude = (
  span: Tracer.Span,
  exit: Exit.Exit<unknown, unknown>,
  failedAttempts: number,
  kindOf: (error: unknown) => Kind | undefined
): void => {
  const attempts = failedAttempts + (exit._tag === "Success" ? 1 : 0)
  mark(span, {
    // One that was never sent has not been looked at yet.
    [attribute.operation]: operationIn(span),
    [attribute.attempts]: attempts > 1 ? attempts : undefined,
    ...failureOf(exit, kindOf)
  })
}

/**
 * Lets the span of a statement or transaction that is cut off because the time of its unit is up end with what the caller
 * is told: by itself it has only been interrupted.
 */
export const watchTime = (fiber: Fiber<unknown, unknown>, span: Tracer.Span): void => {
  const unit = UnitOfWork.of(fiber)
  if (unit === undefined || !span.sampled) return
  const end = span.end.bind(span)
  span.end = (endTime, exit) => {
    const isInterrupted = exit._tag === "Failure" && Cause.hasInterruptsOnly(exit.cause)
    const lateness = isInterrupted ? UnitOfWork.latenessOf(unit) : undefined
    if (lateness === undefined) return end(endTime, exit)
    const error = lateness.error()
    mark(span, { [attribute.operation]: operationIn(span), ...describe(error) })
    end(endTime, Exit.fail(error))
  }
}

// -------------------------------------------------------------------------------------------------------------------
// what took place
// -------------------------------------------------------------------------------------------------------------------

/** What followed a failed attempt. */
export interface Pause {
  /** The number of the attempt that comes next, if any. */
  readonly attempt: number
  /** Milliseconds. */
  readonly delay: number
  readonly error: unknown
  /** What was wrong with the failed one; `undefined` if the database was not asked. */
  readonly kind: Kind | undefined
}

const rejections = new WeakSet<object>()

/** A retry, or the rejection by a circuit, which whoever is outside of the work that was rejected hears of as well. */
export const pause = (since: Beginning, pool: string, { attempt, delay, error, kind }: Pause): void => {
  if (kind !== undefined) {
    return end(since, {
      name: name.retry,
      attributes: {
        [attribute.pool]: pool,
        [attribute.attempt]: attempt,
        [attribute.delay]: Math.round(delay),
        [attribute.reason]: kind,
        ...describe(error, kind)
      }
    })
  }
  const reason = isTyped(error) ? Store.rejectionOf(error._tag) : undefined
  if (reason === undefined || rejections.has(error as object)) return
  rejections.add(error as object)
  // Whoever waits for the circuit has not.
  const hasFailed = delay === 0
  end(since, {
    name: name.rejected,
    attributes: {
      [attribute.pool]: pool,
      [attribute.breakerState]: reason,
      [attribute.retryAfter]: (error as { readonly retryAfter?: number | null }).retryAfter ?? undefined,
      ...(hasFailed && describe(error))
    },
    exit: hasFailed ? Exit.fail(error) : Exit.void
  })
}

/** Where a server is. */
export const serverOf = ({ host, path, port }: HostAddress): Attributes => ({
  [attribute.serverAddress]: path ?? host,
  [attribute.serverPort]: port
})
