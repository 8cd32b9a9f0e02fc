import * as Cause from "effect/Cause"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Instruments from "./instruments.ts"
import type { Operation } from "./operation.ts"
import * as Operations from "./operation.ts"
import type { CloseReason } from "./session.ts"
import type { Failure, Kind, Verdict } from "./verdict.ts"
import { kinds } from "./verdict.ts"

/** How an attempt to get a connection ended. */
export type AcquireOutcome = "acquired" | "timeout" | "interrupted" | "failed"

/** Why an attempt to get a connection failed. */
export type AcquireFailure = typeof acquireFailures[number]

export const acquireFailures = [
  "AcquireTimeout",
  "PoolSaturated",
  "PoolClosed",
  "HookFailed",
  "CredentialsFailed",
  "NoSuitableHost",
  "FleetTooLarge",
  "ConnectFailed"
] as const

/** A statement, or `CHECKOUT`: work that failed before it had a session. */
export type ErrorOperation = Operation | "CHECKOUT"

export type BreakerState = "Closed" | "Open" | "HalfOpen" | "Isolated" | "Disabled"

/** Why a circuit has let a call not in. */
export type Rejection = "open" | "half_open" | "isolated"

/** The same, by the tag of the error that the call got; `undefined` for any other error. */
export const rejectionOf = (tag: string): Rejection | undefined => {
  switch (tag) {
    case "CircuitOpen":
      return "open"
    case "CircuitHalfOpen":
      return "half_open"
    case "CircuitIsolated":
      return "isolated"
    default:
      return undefined
  }
}

/** The last failure that said something of the database. */
export interface LastFailure {
  readonly kind: Kind
  /** The SQLSTATE, or the code of the socket. */
  readonly code: string | undefined
  /** Wall-clock milliseconds. */
  readonly at: number
}

/** The numbers of one pool. */
export interface Store {
  readonly queries: Queries
  readonly acquire: Readonly<Record<AcquireOutcome, Instruments.Histogram>>
  readonly acquireErrors: Record<AcquireFailure, number>
  /** For how long connections were lent. */
  readonly use: Instruments.Histogram
  readonly connect: Readonly<Record<"ok" | "error", Instruments.Histogram>>
  readonly connectionsClosed: Record<CloseReason, number>
  connectionsOpened: number
  readonly errors: Readonly<Record<ErrorOperation, Record<Kind, number>>>
  readonly retries: Record<Kind, number>
  lastFailure: LastFailure | undefined
  /** Most callers that have waited at a time, since whoever reads it has set it back. */
  peakWaiting: number
  breakerState: BreakerState
  /** Wall-clock milliseconds of its last change; 0 before there is one. */
  breakerChangedAt: number
  readonly breakerTransitions: Record<BreakerState, number>
  readonly breakerRejections: Record<Rejection, number>
}

/** Durations of one sort of statement. */
export interface QueryHistogram {
  readonly operation: Operation
  readonly end: End
  readonly durations: Instruments.Histogram
}

/** How a statement ended: well, without an answer that anybody waited for, or with a failure of this kind. */
export type End = "ok" | "interrupted" | Kind

const ends: ReadonlyArray<End> = ["ok", "interrupted", ...kinds]
const ok = 0
const interrupted = 1

/** Durations of statements by operation and end; a histogram is made when it gets its first value. */
export class Queries {
  // Always of this length, so that a histogram is found by two additions.
  private readonly histograms: Array<QueryHistogram | undefined> = Array.from(
    { length: Operations.operations.length * ends.length },
    () => undefined
  )
  private readonly onAppear: () => void

  constructor(onAppear: () => void) {
    this.onAppear = onAppear
  }

  succeeded(sql: string, seconds: number): void {
    this.observe(Operations.indexOf(sql), ok, seconds)
  }

  interrupted(sql: string, seconds: number): void {
    this.observe(Operations.indexOf(sql), interrupted, seconds)
  }

  failed(sql: string, kind: Kind, seconds: number): void {
    this.observe(Operations.indexOf(sql), ends.indexOf(kind), seconds)
  }

  /** Those that have values. */
  list(): ReadonlyArray<QueryHistogram> {
    return this.histograms.filter((histogram) => histogram !== undefined)
  }

  /** All that succeeded: how many, and the seconds that they took together. */
  succeededInAll(): { readonly count: number; readonly sum: number } {
    let count = 0
    let sum = 0
    for (const { durations, end } of this.list()) {
      if (end !== "ok") continue
      const snapshot = durations.snapshot()
      count += snapshot.count
      sum += snapshot.sum
    }
    return { count, sum }
  }

  private observe(operation: number, end: number, seconds: number): void {
    const place = operation * ends.length + end
    const histogram = this.histograms[place]
    if (histogram !== undefined) return histogram.durations.observe(seconds)
    const durations = new Instruments.Histogram()
    durations.observe(seconds)
    this.histograms[place] = { operation: Operations.operations[operation]!, end: ends[end]!, durations }
    this.onAppear()
  }
}

/** `onAppear` hears that there are series that were not there before. */
export const make = (onAppear: () => void): Store => {
  const waits = () => new Instruments.Histogram(Instruments.waitBounds)
  const durations = () => new Instruments.Histogram()
  return {
    queries: new Queries(onAppear),
    acquire: { acquired: waits(), timeout: waits(), interrupted: waits(), failed: waits() },
    acquireErrors: Instruments.counters(acquireFailures),
    use: waits(),
    connect: { ok: durations(), error: durations() },
    connectionsOpened: 0,
    connectionsClosed: Instruments.counters(["idle", "lifetime", "uses", "resize", "invalid", "error", "shutdown"]),
    errors: Object.fromEntries(
      [...Operations.operations, "CHECKOUT"].map((operation) => [operation, Instruments.counters(kinds)])
    ) as Store["errors"],
    retries: Instruments.counters(kinds),
    lastFailure: undefined,
    peakWaiting: 0,
    breakerState: "Closed",
    breakerChangedAt: 0,
    breakerTransitions: Instruments.counters(["Closed", "Open", "HalfOpen", "Isolated", "Disabled"]),
    breakerRejections: Instruments.counters(["open", "half_open", "isolated"])
  }
}

/** Counts one failure, and remembers it if it says something of the database. */
export const countFailure = (
  store: Store,
  operation: ErrorOperation,
  { kind }: Verdict,
  { code, sqlState }: Failure,
  at: number
): void => {
  store.errors[operation][kind]++
  if (isOfDatabase(kind)) store.lastFailure = { kind, code: sqlState ?? code, at }
}

/**
 * A refused statement or a lost race for a row is an answer, a session that had died while it was idle is replaced, and
 * what the caller or this side has given up says nothing.
 */
const isOfDatabase = (kind: Kind): boolean =>
  kind === "Unreachable" || kind === "Overloaded" || kind === "Denied" || kind === "ReadOnly"

/** The tag of the error that an attempt to get a connection failed with. */
const failureOf = (exit: Exit.Exit<unknown, unknown>): unknown =>
  (Option.getOrUndefined(Exit.findErrorOption(exit)) as { readonly _tag?: unknown } | undefined)?._tag

/** How an attempt to get a connection ended. */
export const acquireOutcomeOf = (exit: Exit.Exit<unknown, unknown>): AcquireOutcome =>
  exit._tag === "Success"
    ? "acquired"
    : Cause.hasInterruptsOnly(exit.cause)
    ? "interrupted"
    : failureOf(exit) === "AcquireTimeout"
    ? "timeout"
    : "failed"

/** Counts the end of an attempt to get a connection. */
export const countAcquire = (store: Store, seconds: number, exit: Exit.Exit<unknown, unknown>): void => {
  const outcome = acquireOutcomeOf(exit)
  store.acquire[outcome].observe(seconds)
  if (outcome === "acquired" || outcome === "interrupted") return
  const failure = failureOf(exit)
  store.acquireErrors[acquireFailures.find((known) => known === failure) ?? "ConnectFailed"]++
}
