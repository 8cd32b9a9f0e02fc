import type { SqlError } from "effect/sql/SqlError"
import type { Permit } from "./breakerMachine.ts"
import type { Classify } from "./classifier.ts"
import * as Tables from "./classify.ts"
import * as Commits from "./commits.ts"
import * as Deadline from "./deadline.ts"
import { digFailure, digWhole } from "./failure.ts"
import * as LastWords from "./lastWords.ts"
import * as Operation from "./operation.ts"
import type { Session } from "./session.ts"
import * as Spans from "./spans.ts"
import * as Store from "./store.ts"
import type { Observer, Statement, TrackedConnection } from "./trackedConnection.ts"
import * as UnitOfWork from "./unitOfWork.ts"
import type { Circumstances, Failure, Phase, Signal, Verdict } from "./verdict.ts"

/** A verdict with the source of the evidence: what fails together counts once. */
export interface Judgement {
  readonly verdict: Verdict
  readonly failure: Failure
  readonly source: number
  /** Milliseconds after which it failed, 0 where that says nothing. */
  readonly elapsed: number
  /** Whether the breaker has heard of it already. */
  readonly isTold: boolean
  /** Whether it is a connect that failed: all who waited for it have the same error, and each has failed. */
  readonly isOfConnect: boolean
}

/** Who acts on what is found out. */
export interface Bench {
  readonly monotonicNanos: () => bigint
  /** What the program knows better. */
  readonly reclassify: Classify
  /** Whether its sessions are for reading: then a write that is refused says nothing about the host. */
  readonly isForReading: boolean
  readonly store: Store.Store
  /** Wall-clock milliseconds. */
  readonly now: () => number
  /** Hears of every statement that worked. */
  readonly onSuccess: () => void
  /** True while a success has nothing to tell the breaker. */
  readonly isCalm: () => boolean
  readonly settle: (permit: Permit, signal: Signal, failure?: Failure & { readonly source: number }) => void
  /** Takes the session, or with it all its siblings, out of circulation. */
  readonly dispose: (session: Session, disposal: "Evict" | "EvictAll") => void
  /** The error as its caller shall see it. */
  readonly tell: (connection: TrackedConnection, error: SqlError, judgement: Judgement) => SqlError
  /** Hears of an answer that was lost when nobody knows what had been done by then. */
  readonly onDoubt: (statement: Statement, error: SqlError, judgement: Judgement) => void
  readonly enforce: Observer["enforce"]
  readonly traced: Observer["traced"]
  /** The driver's error, with the server's last words where the driver has lost them. */
  readonly complete: (error: SqlError, session: Session) => SqlError
}

export interface Evidence {
  readonly observer: Observer
  /** The judgement on an error that came out of this executor, if it is one about the database. */
  readonly find: (error: object) => Judgement | undefined
  /** Judges a failed connect: nothing was run. */
  readonly judgeConnect: (error: object) => Judgement
  /** Lets another error stand for one that was judged. */
  readonly remember: (error: object, judgement: Judgement) => void
  /** Records a judgement on an error that was made here, of work whose statements are counted by themselves. */
  readonly record: (error: object, failure: Failure, verdict: Verdict) => void
  readonly sourceOfLoss: (session: Session) => number
  /** The source for an attempt that ran out of time: the loss of its session, if that is lost, else itself. */
  readonly sourceOfSilence: (session: Session | undefined) => number
  /** Has to hear of every session, in the order in which they are used first. */
  readonly meet: (session: Session) => void
}

const refusal: Verdict = {
  kind: "Rejected",
  effect: "RolledBack",
  retry: "Never",
  breaker: "Success",
  connection: "Keep"
}

const phaseOf = ({ commits, connection }: Statement, written: boolean): Phase => {
  switch (connection.transaction) {
    case "None":
      return written ? "InFlight" : "BeforeWrite"
    case "Open":
      return commits && written ? "Commit" : "Transaction"
    case "Committing":
      return written ? "Commit" : "Transaction"
  }
}

/** A session that was cut off because its server said nothing is closed all the same, which is all that the driver sees. */
const failureOf = (error: SqlError, { wire }: Session): Failure => {
  const failure = digFailure(error)
  const isSilence = failure.sqlState === undefined && wire.obituary()?.by === "silence"
  return isSilence ? { ...failure, code: "ETIMEDOUT" } : failure
}

/** Shared by all executors: work may well go through several of them. */
const judgements = new WeakMap<object, Judgement>()

const worse = (one: Signal | undefined, other: Signal): Signal =>
  one === "Failure" || other === "Failure" ? "Failure" : one === "Success" ? one : other

/** What failures say, of whom, and to whom it is reported. */
export const make = (bench: Bench): Evidence => {
  const { store } = bench
  // Sessions are numbered from 1 upwards, failed connects and other single events from -1 downwards.
  let events = 0
  let newestSession = 0
  let newestAtLoss = 0
  let lossSource = 0

  /**
   * What cuts many sessions at once is one piece of evidence, not as many as there are sessions: only the loss of a
   * session that was opened after the last loss is a new one. A server that is down soon fails connects as well.
   */
  const sourceOfLoss = (session: Session): number => {
    if (session.id > newestAtLoss) {
      newestAtLoss = newestSession
      lossSource = session.id
    }
    return lossSource
  }

  const judgeStatement = (
    statement: Statement,
    error: SqlError,
    written: boolean,
    elapsed: number
  ): Judgement => {
    const { connection, sql } = statement
    const { session } = connection
    const failure = failureOf(error, session)
    const circumstances: Circumstances = {
      phase: phaseOf(statement, written),
      reused: session.uses > 1,
      // A shared connection is another checkout for each statement.
      replied: connection.permit === undefined && connection.replied
    }
    const verdict = Tables.classify(failure, circumstances)
    // The caller's own READ ONLY says nothing about the host.
    const isReadOnlyByChoice = connection.isReadOnlyByChoice || bench.isForReading
    const byDefault: Verdict = isReadOnlyByChoice && failure.sqlState === "25006"
      ? refusal
      : connection.transaction === "None" && verdict.effect === "RolledBack" && Commits.isOnItsWay(sql)
      ? { ...verdict, effect: "Unknown" }
      : verdict
    return {
      elapsed,
      isTold: statement.permit !== undefined,
      isOfConnect: false,
      failure,
      verdict: bench.reclassify(digWhole(error), circumstances, byDefault),
      // A broken socket fails all its statements at once; a session that lives says something new with each answer.
      source: session.wire.isDead() ? sourceOfLoss(session) : -++events
    }
  }

  const secondsSince = (startedAt: bigint) => Number(bench.monotonicNanos() - startedAt) / 1e9

  return {
    sourceOfLoss,
    sourceOfSilence: (session) => session?.wire.isDead() === true ? sourceOfLoss(session) : -++events,
    meet: (session) => {
      newestSession = Math.max(newestSession, session.id)
    },
    find: (error) => judgements.get(error),
    remember: (error, judgement) => {
      judgements.set(error, judgement)
    },
    judgeConnect: (error) => {
      const failure = digFailure(error)
      const circumstances: Circumstances = { phase: "Connect", reused: false, replied: false }
      const verdict = bench.reclassify(digWhole(error), circumstances, Tables.classify(failure, circumstances))
      const judgement: Judgement = { failure, verdict, source: -++events, elapsed: 0, isTold: false, isOfConnect: true }
      judgements.set(error, judgement)
      return judgement
    },
    record: (error, failure, verdict) => {
      judgements.set(error, { failure, verdict, source: -++events, elapsed: 0, isTold: false, isOfConnect: false })
    },
    observer: {
      monotonicNanos: bench.monotonicNanos,
      enforce: bench.enforce,
      traced: bench.traced,
      succeeded: ({ connection, permit, sql, startedAt }) => {
        const seconds = secondsSince(startedAt)
        connection.session.lastTook = seconds
        store.queries.succeeded(sql, seconds)
        bench.onSuccess()
        if (permit !== undefined && !bench.isCalm()) bench.settle(permit, "Success")
      },
      begun: ({ lastTook }) => store.queries.succeeded("BEGIN", lastTook),
      interrupted: ({ connection: { session }, permit, sql, startedAt, unit }) => {
        const seconds = secondsSince(startedAt)
        session.lastTook = seconds
        if (unit !== undefined) UnitOfWork.cutOff(unit, sql)
        store.queries.interrupted(sql, seconds)
        // An interrupted caller proves nothing, unless the peer had fallen silent by then.
        const obituary = session.wire.obituary()
        if (permit !== undefined && obituary?.by === "silence") {
          bench.settle(permit, "Failure", { ...LastWords.failureOf(obituary), source: sourceOfLoss(session) })
        }
      },
      failed: (statement, error, written) => {
        const { connection, permit, span, sql, startedAt } = statement
        const seconds = secondsSince(startedAt)
        connection.session.lastTook = seconds
        const complete = bench.complete(error, connection.session)
        const judgement = judgeStatement(statement, complete, written, Math.round(seconds * 1000))
        const { failure, source, verdict } = judgement
        connection.signal = worse(connection.signal, verdict.breaker)
        if (verdict.breaker === "Failure") connection.lastFailure = { ...failure, source }
        if (verdict.connection !== "Keep") bench.dispose(connection.session, verdict.connection)
        if (Deadline.isMissed(error)) {
          // It has been counted, and nobody waited for the answer.
          store.queries.interrupted(sql, seconds)
        } else {
          store.queries.failed(sql, verdict.kind, seconds)
          Store.countFailure(store, Operation.of(sql), verdict, failure, bench.now())
        }
        const told = bench.tell(connection, complete, judgement)
        if (verdict.effect === "Unknown") bench.onDoubt(statement, told, judgement)
        judgements.set(told, judgement)
        // What was borrowed for one statement may be borrowed again for it.
        if (span !== undefined && permit === undefined) Spans.mark(span, Spans.describe(told, verdict.kind))
        if (permit !== undefined) bench.settle(permit, verdict.breaker, { ...failure, source })
        return { error: told, traceless: verdict.effect !== "Unknown" }
      }
    }
  }
}
