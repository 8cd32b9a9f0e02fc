import * as Instruments from "./instruments.ts"
import type { Operation } from "./operation.ts"
import type { CloseReason } from "./session.ts"
import type * as Stores from "./store.ts"
import type { Kind } from "./verdict.ts"
import { kinds } from "./verdict.ts"

/** How a statement ended. */
export type Outcome = "ok" | "error" | "interrupted"

/** Durations of the statements of one sort. */
export interface Queries {
  readonly operation: Operation
  readonly outcome: Outcome
  readonly kind: Kind | undefined
  readonly durations: Instruments.HistogramSnapshot
}

/** An immutable copy of a store. Times are in seconds. */
export interface Copy {
  /** Durations of statements, by outcome. */
  readonly query: Readonly<Record<Outcome, Instruments.HistogramSnapshot>>
  /** The same by operation, outcome and kind of failure, as far as there were any. */
  readonly queries: ReadonlyArray<Queries>
  /** From asking for a connection to having one, or to the end of the wait. */
  readonly acquire: Readonly<Record<Stores.AcquireOutcome, Instruments.HistogramSnapshot>>
  readonly acquireErrors: Readonly<Record<Stores.AcquireFailure, number>>
  readonly acquireTimeouts: number
  /** For how long connections were lent. */
  readonly use: Instruments.HistogramSnapshot
  /** How long opening a connection took, hooks included. */
  readonly connect: Readonly<Record<"ok" | "error", Instruments.HistogramSnapshot>>
  readonly connectionsOpened: number
  readonly connectionsClosed: Readonly<Record<CloseReason, number>>
  /** Failed statements and checkouts, by kind. */
  readonly errors: Readonly<Record<Kind, number>>
  readonly errorsByOperation: Readonly<Record<Stores.ErrorOperation, Readonly<Record<Kind, number>>>>
  /** Attempts after the first one, by the kind of failure that caused them. */
  readonly retries: Readonly<Record<Kind, number>>
  readonly lastFailure: Stores.LastFailure | undefined
  /** The state that the breaker is in. One that is `Open` stays so until it is asked again. */
  readonly breakerState: Stores.BreakerState
  /** Changes of the breaker's state, by the state entered. */
  readonly breakerTransitions: Readonly<Record<Stores.BreakerState, number>>
  readonly breakerRejections: Readonly<Record<Stores.Rejection, number>>
}

/** The kinds of failure are one outcome. */
export const outcomeOf = (end: Stores.End): Outcome => end === "ok" || end === "interrupted" ? end : "error"

const noDurations = () => new Instruments.Histogram().snapshot()

const mapRecord = <K extends string, A, B>(record: Readonly<Record<K, A>>, f: (value: A) => B): Record<K, B> =>
  Object.fromEntries(Object.entries(record).map(([key, value]) => [key, f(value as A)])) as Record<K, B>

export const copy = (store: Stores.Store): Copy => {
  const queries = store.queries.list().map(({ durations, end, operation }): Queries => ({
    operation,
    outcome: outcomeOf(end),
    kind: end === "ok" || end === "interrupted" ? undefined : end,
    durations: durations.snapshot()
  }))
  const all = (outcome: Outcome) =>
    Instruments.sum([noDurations(), ...queries.filter((one) => one.outcome === outcome).map((one) => one.durations)])
  const errors = Instruments.counters(kinds)
  for (const byKind of Object.values(store.errors)) for (const kind of kinds) errors[kind] += byKind[kind]
  return {
    query: { ok: all("ok"), error: all("error"), interrupted: all("interrupted") },
    queries,
    acquire: mapRecord(store.acquire, (histogram) => histogram.snapshot()),
    acquireErrors: { ...store.acquireErrors },
    acquireTimeouts: store.acquireErrors.AcquireTimeout,
    use: store.use.snapshot(),
    connect: mapRecord(store.connect, (histogram) => histogram.snapshot()),
    connectionsOpened: store.connectionsOpened,
    connectionsClosed: { ...store.connectionsClosed },
    errors,
    errorsByOperation: mapRecord(store.errors, (byKind) => ({ ...byKind })),
    retries: { ...store.retries },
    lastFailure: store.lastFailure,
    breakerState: store.breakerState,
    breakerTransitions: { ...store.breakerTransitions },
    breakerRejections: { ...store.breakerRejections }
  }
}
