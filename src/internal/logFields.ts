/** What a line says beside its words: the names of its fields, and where they are taken from. */
import type { HostAddress } from "./address.ts"
import type { Transition } from "./breakerView.ts"
import type { ErrorText } from "./discretion.ts"
import { digFailure, digWhole, hookOf, nameOf, namesIn } from "./failure.ts"
import type { Bound, Plan, Sizing } from "./fleet.ts"
import type { Attempt } from "./history.ts"
import type { Outage } from "./outage.ts"
import type { CloseReason, Session } from "./session.ts"
import type { Failure, Kind, Outcome } from "./verdict.ts"

/** The fields of all lines. Durations are milliseconds. */
export interface Fields {
  readonly "server.address": string
  readonly "server.port"?: number | undefined
  readonly "db.connection.id": number
  readonly "db.connection.pid": number
  readonly "db.connection.connect_ms": number
  readonly "db.connection.age_ms": number
  readonly "db.connection.uses": number
  readonly "db.connection.close_reason": CloseReason
  readonly "db.connection.retry_after_ms": number
  readonly "db.connection.held_ms": number
  readonly "db.connection.holder.fiber": number
  readonly "db.connection.holder.span"?: string | undefined
  readonly "db.connection.holder.at"?: string | undefined
  readonly "db.hook"?: string | undefined
  /** The SQLSTATE, else the socket's code, else the kind of the failure, else the name of the error. */
  readonly "error.type"?: string | undefined
  /** The SQLSTATE. */
  readonly "db.response.status_code"?: string | undefined
  readonly "db.error.kind"?: Kind | undefined
  readonly "db.error.effect"?: Outcome | undefined
  readonly "db.error.constraint"?: string | undefined
  /** The table, as OpenTelemetry calls it. */
  readonly "db.collection.name"?: string | undefined
  /** All that was said, with `errorText: "full"` alone; of a layer that cannot be built, what may be shown. */
  readonly "exception.message"?: string | undefined
  /** The name of an error, and of those that have caused it. */
  readonly "exception.type": string
  /** Without the words above the frames that may not be shown. */
  readonly "exception.stacktrace"?: string | undefined
  /** Of those that the metrics tell apart. */
  readonly "db.operation.name"?: string | undefined
  readonly "db.deadline_ms": number
  readonly "db.retry.attempt": number
  readonly "db.retry.attempts": number
  readonly "db.retry.delay_ms": number
  readonly "db.retry.stopped_by": string
  readonly "db.acquire.phase": string
  readonly "db.acquire.waited_ms": number
  readonly "db.pool.total": number
  readonly "db.pool.idle": number
  readonly "db.pool.active": number
  readonly "db.pool.waiting": number
  readonly "db.pool.connecting": number
  readonly "db.pool.max": number
  readonly "db.pool.evicted": number
  readonly "db.pool.cut_off": number
  readonly "db.pool.waited_ms": number
  readonly "db.pool.left": number
  readonly "db.fleet.environments": number
  readonly "db.fleet.workers": number
  readonly "db.fleet.overlap": number
  readonly "db.fleet.share": number
  /** Which limit leaves the least, and what it is. */
  readonly "db.fleet.bound": Bound
  readonly "db.fleet.limit": number
  readonly "db.fleet.others": number
  readonly "db.fleet.safe_environments": number
  readonly "db.breaker.key": string
  readonly "db.breaker.from": string
  readonly "db.breaker.to": string
  readonly "db.breaker.retry_after_ms"?: number | undefined
  readonly "db.breaker.openings"?: number | undefined
  readonly "db.breaker.reason"?: string | undefined
  readonly "db.breaker.outage_ms"?: number | undefined
  readonly "db.breaker.rejected"?: number | undefined
  readonly "db.breaker.step": "load" | "read" | "save"
  readonly "db.credentials.expires_at": string
  /** By signal: `metrics (status 500), traces (ECONNREFUSED)`. */
  readonly "db.otlp.reasons": string
  readonly "db.otlp.waited_ms": number
  /** As OpenTelemetry calls it. */
  readonly "faas.invocation_id"?: string | undefined
  /** Lines that were left out before this one. */
  readonly suppressed?: number | undefined
}

/** What an error says, without any of its text. */
export type FailureFields = Pick<
  Fields,
  | "error.type"
  | "db.response.status_code"
  | "db.error.kind"
  | "db.error.constraint"
  | "db.collection.name"
  | "exception.message"
>

/** What OpenTelemetry calls an error that has no name of its own. */
export const unnamed = "_OTHER"

/** What is known of a failure that was read out of an error before. */
export const ofFailure = (
  { code, sqlState }: Failure,
  error: unknown,
  { errorText, kind }: { readonly kind?: Kind | undefined; readonly errorText?: ErrorText | undefined } = {}
): FailureFields => {
  const { constraint, table } = namesIn(error)
  return {
    "error.type": sqlState ?? code ?? kind ?? nameOf(error) ?? unnamed,
    "db.response.status_code": sqlState,
    "db.error.kind": kind,
    "db.error.constraint": constraint,
    "db.collection.name": table,
    "exception.message": errorText === "full" ? digWhole(error).message : undefined
  }
}

/** Of the caller's own code, whose words are its own. */
export const ofDefect = (defect: unknown) => ({ "error.type": nameOf(defect) ?? unnamed })

/** Of what has kept a layer from being built, with as much of its text as may be shown. */
export const ofBuild = (error: unknown) => ({ ...ofDefect(error), "exception.message": digFailure(error).message })

/** What is known of an error of any shape. */
const ofError = (error: unknown, errorText: ErrorText, kind?: Kind): FailureFields =>
  ofFailure(digFailure(error), error, { errorText, kind })

export const ofConnect = (error: unknown, kind: Kind, errorText: ErrorText, retryAfter: number) => ({
  ...ofError(error, errorText, kind),
  "db.hook": hookOf(error),
  "db.connection.retry_after_ms": Math.round(retryAfter)
})

export const ofReset = (sqlState: string | undefined) => ({
  "error.type": sqlState ?? unnamed,
  "db.response.status_code": sqlState
})

/** Calls fail, or would, from then on. */
export const isAlarm = ({ from, to }: Transition): boolean => to === "Open" || to === "Isolated" || from === to

export const changed = (transition: Transition, over?: Outage) => ({
  "db.breaker.key": transition.key,
  "db.breaker.from": transition.from,
  "db.breaker.to": transition.to,
  ...("reason" in transition && { "db.breaker.reason": transition.reason }),
  ...("retryAfter" in transition && {
    "db.breaker.retry_after_ms": Math.round(transition.retryAfter),
    "db.breaker.openings": transition.consecutiveOpenings
  }),
  ...("failure" in transition && transition.failure !== undefined && {
    "error.type": transition.failure.sqlState ?? transition.failure.code ?? unnamed,
    "db.response.status_code": transition.failure.sqlState
  }),
  ...(over !== undefined && {
    "db.breaker.outage_ms": Math.round(over.took),
    "db.breaker.rejected": over.rejected
  })
})

export const repeated = (
  { attempt, delay, effect, failure, kind }: Attempt,
  error: unknown,
  errorText: ErrorText
) => ({
  "db.retry.attempt": attempt + 1,
  "db.retry.delay_ms": Math.round(delay),
  "db.error.effect": effect,
  ...ofFailure(failure, error, { errorText, kind })
})

export const exhausted = (
  last: unknown,
  history: ReadonlyArray<Attempt>,
  stoppedBy: string,
  errorText: ErrorText
) => {
  const attempt = history.at(-1)
  return {
    "db.retry.attempts": history.length,
    "db.retry.stopped_by": stoppedBy,
    "db.error.effect": attempt?.effect,
    ...ofError(last, errorText, attempt?.kind)
  }
}

/** Of work that was not done in time; `operation`, if a statement was under way. */
export const late = (allowed: number, operation: string | undefined, effect: Outcome) => ({
  "db.deadline_ms": Math.round(allowed),
  "db.operation.name": operation,
  "db.error.effect": effect,
  "error.type": "DeadlineExceeded"
})

export const doubtful = (
  operation: string | undefined,
  { failure, kind }: { readonly failure: Failure; readonly kind: Kind },
  error: unknown,
  errorText: ErrorText
) => ({ "db.operation.name": operation, ...ofFailure(failure, error, { errorText, kind }) })

/** Of a fleet that does not fit into what the server allows. */
export const ofFleet = (fleet: Plan & Sizing) => ({
  "db.fleet.environments": fleet.environments,
  "db.fleet.workers": fleet.workers,
  "db.fleet.overlap": fleet.overlap,
  "db.fleet.share": fleet.share,
  "db.fleet.bound": fleet.bound,
  "db.fleet.limit": fleet.limit,
  "db.fleet.others": fleet.others,
  "db.fleet.safe_environments": fleet.safeEnvironments
})

/** Of a server that has not said what it allows. */
export const ofUnknownFleet = (sqlState: string | undefined, max: number) => ({
  "error.type": sqlState ?? unnamed,
  "db.response.status_code": sqlState,
  "db.pool.max": max
})

export const ofHook = (hook: string, error: unknown, errorText: ErrorText) => ({
  "db.hook": hook,
  ...ofError(error, errorText)
})

interface Servers {
  readonly targets: ReadonlyArray<{ readonly address: HostAddress }>
}

/** Which session it is, and on which server. */
const ofSession = ({ connection, host, id }: Session, { targets }: Servers) => {
  const { address } = targets[host]!
  return {
    "db.connection.id": id,
    "db.connection.pid": connection.processId,
    "server.address": address.path ?? address.host,
    "server.port": address.path === undefined ? address.port : undefined
  }
}

export const opened = (session: Session, servers: Servers) => ({
  ...ofSession(session, servers),
  "db.connection.connect_ms": session.connectTook
})

export const closed = (session: Session, servers: Servers, at: number) => ({
  ...ofSession(session, servers),
  "db.connection.close_reason": session.condemned ?? "error",
  "db.connection.age_ms": Math.max(0, at - session.openedAt),
  "db.connection.uses": session.uses
})

/** What an `AcquireTimeout` tells. */
export const waitedInVain = (
  { lastConnectFailure, phase, stats, waited }: {
    readonly phase: string
    readonly waited: number
    readonly stats: {
      readonly total: number
      readonly idle: number
      readonly active: number
      readonly waiting: number
      readonly connecting: number
      readonly max: number
    }
    readonly lastConnectFailure: Failure | null
  }
) => ({
  "db.acquire.phase": phase,
  "db.acquire.waited_ms": waited,
  "db.pool.total": stats.total,
  "db.pool.idle": stats.idle,
  "db.pool.active": stats.active,
  "db.pool.waiting": stats.waiting,
  "db.pool.connecting": stats.connecting,
  "db.pool.max": stats.max,
  "error.type": lastConnectFailure?.sqlState ?? lastConnectFailure?.code,
  "db.response.status_code": lastConnectFailure?.sqlState
})
