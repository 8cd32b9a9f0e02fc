/**
 * Every line that is logged here: its event, its level, its fields, and its words. The table in `docs/logs.md` is held to
 * this one. Lines carry codes, names and numbers, and never a text of the server's, of a statement or of a caller's error.
 */
import type * as LogLevel from "effect/LogLevel"
import * as Fleet from "./fleet.ts"
import type { FailureFields, Fields } from "./logFields.ts"
import { unnamed } from "./logFields.ts"
import { conditionOf } from "./sqlState.ts"

/** The level of a line that is written. */
export type Level = Exclude<LogLevel.Severity, "Fatal" | "Trace">

export interface Line<K extends keyof Fields = keyof Fields> {
  readonly event: string
  readonly level: Level
  readonly fields: ReadonlyArray<K>
  /** Whose logger, annotations and span it has: the pool's, or those of the fiber that it happens to. */
  readonly of: "pool" | "caller"
  readonly says: (about: Pick<Fields, K>) => string
  /** Which lines of the event are limited together; `false`: it is not limited. */
  readonly limitedBy: ((about: Pick<Fields, K>) => string) | false
}

const line = <const K extends keyof Fields>(
  event: string,
  level: Level,
  fields: ReadonlyArray<K>,
  says: Line<K>["says"],
  { limitedBy = () => "", of = "pool" }: Partial<Pick<Line<K>, "limitedBy" | "of">> = {}
): Line<K> => ({ event, level, fields, of, says, limitedBy })

const failureFields = [
  "error.type",
  "db.response.status_code",
  "db.error.kind",
  "db.error.constraint",
  "db.collection.name",
  "exception.message"
] as const

/** `53300 too_many_connections`, `ECONNREFUSED`. */
const named = (about: Pick<Fields, "error.type" | "db.response.status_code">): string => {
  const { "db.response.status_code": sqlState, "error.type": type = unnamed } = about
  if (type === unnamed) return "an error without a name"
  const condition = sqlState === undefined ? undefined : conditionOf(sqlState)
  return condition === undefined ? type : `${type} ${condition}`
}

const byKind = (about: FailureFields): string => about["db.error.kind"] ?? ""

const counted = (count: number, one: string, many = `${one}s`): string => `${count} ${count === 1 ? one : many}`

const transitionFields = [
  "db.breaker.key",
  "db.breaker.from",
  "db.breaker.to",
  "db.breaker.retry_after_ms",
  "db.breaker.openings",
  "db.breaker.reason",
  "db.breaker.outage_ms",
  "db.breaker.rejected",
  "error.type",
  "db.response.status_code"
] as const

const limits: Readonly<Record<string, string>> = {
  attempts: "as many as retry allows",
  deadline: "for want of time before the deadline",
  budget: "for want of retry budget: too much else fails as well",
  refusal: "for want of a session"
}

const whatIsKnown = (effect: Fields["db.error.effect"]): string => {
  switch (effect) {
    case "NotRun":
      return "Nothing was run."
    case "RolledBack":
      return "Nothing of it is left."
    default:
      return "Nobody knows what it has done."
  }
}

const holderOf = (about: Pick<Fields, "db.connection.holder.at" | "db.connection.holder.fiber">): string =>
  about["db.connection.holder.at"] ??
    `fiber ${about["db.connection.holder.fiber"]} (run the work inside Effect.fn or Effect.withSpan to learn where)`

const snapshotTroubles: Readonly<Record<Fields["db.breaker.step"], (key: string) => string>> = {
  read: (key) => `The snapshot of the circuit ${key} is of no use, so it begins closed`,
  load: (key) => `The snapshot of the circuit ${key} could not be loaded, so it begins closed`,
  save: (key) => `The snapshot of the circuit ${key} could not be saved`
}

const transitionWords = (about: Pick<Fields, typeof transitionFields[number]>): string => {
  const circuit = `The circuit ${about["db.breaker.key"]}`
  const why = about["error.type"] === undefined ? "" : `: ${named(about)}`
  switch (about["db.breaker.to"]) {
    case "Open":
      return `${circuit} is open${why}. Calls fail at once; the database is asked again in ${
        about["db.breaker.retry_after_ms"]
      } ms.`
    case "HalfOpen":
      return `${circuit} is half open: one call finds out whether the database is back.`
    case "Isolated":
      return `${circuit} is isolated by hand (${about["db.breaker.reason"]}): every call fails at once.`
    case "Disabled":
      return about["db.breaker.from"] === "Disabled"
        ? `${circuit} would have opened${why}, but it is disabled by hand.`
        : `${circuit} is disabled by hand: every call is let in.`
    default: {
      const { "db.breaker.outage_ms": outage, "db.breaker.rejected": rejected = 0 } = about
      const over = outage === undefined
        ? ""
        : ` It has kept calls out for ${outage} ms and turned ${counted(rejected, "call")} away.`
      return `${circuit} is closed: calls run again.${over}`
    }
  }
}

export const lines = {
  connectionOpened: line(
    "db.connection.opened",
    "Debug",
    ["db.connection.id", "db.connection.pid", "db.connection.connect_ms", "server.address", "server.port"],
    (about) =>
      `Session ${about["db.connection.id"]} is open: the server's process ${about["db.connection.pid"]}, after ${
        about["db.connection.connect_ms"]
      } ms.`,
    { limitedBy: false }
  ),
  connectionClosed: line(
    "db.connection.closed",
    "Debug",
    [
      "db.connection.id",
      "db.connection.pid",
      "db.connection.close_reason",
      "db.connection.age_ms",
      "db.connection.uses",
      "server.address",
      "server.port"
    ],
    (about) =>
      `Session ${about["db.connection.id"]} is closed (${about["db.connection.close_reason"]}) after ${
        about["db.connection.age_ms"]
      } ms and ${counted(about["db.connection.uses"], "checkout")}.`,
    { limitedBy: false }
  ),
  connectionFailed: line(
    "db.connection.failed",
    "Warn",
    ["db.connection.retry_after_ms", "db.hook", ...failureFields],
    (about) =>
      `No session could be opened: ${named(about)}${
        about["db.hook"] === undefined ? "" : ` in the hook ${about["db.hook"]}`
      }. The next connect is tried within ${about["db.connection.retry_after_ms"]} ms.`,
    { limitedBy: byKind }
  ),
  resetFailed: line(
    "db.connection.reset_failed",
    "Warn",
    ["error.type", "db.response.status_code"],
    (about) =>
      `A session could not be reset between two borrowers and was closed (SQLSTATE ${
        about["db.response.status_code"] ?? "unknown"
      }). Each lease costs a connect until the server takes what the option reset sends.`
  ),
  hookFailed: line(
    "db.connection.hook_failed",
    "Warn",
    ["db.hook", ...failureFields],
    (about) => `The ${about["db.hook"]} hook failed: ${named(about)}. Its session is closed.`,
    { limitedBy: (about) => about["db.hook"] ?? "" }
  ),
  acquireTimeout: line(
    "db.acquire.timeout",
    "Warn",
    [
      "db.acquire.phase",
      "db.acquire.waited_ms",
      "db.pool.total",
      "db.pool.idle",
      "db.pool.active",
      "db.pool.waiting",
      "db.pool.connecting",
      "db.pool.max",
      "error.type",
      "db.response.status_code"
    ],
    (about) =>
      `No session could be had within ${about["db.acquire.waited_ms"]} ms: ${about["db.pool.active"]} of ${
        about["db.pool.max"]
      } are in use, ${counted(about["db.pool.waiting"], "other waits", "others wait")} (phase ${
        about["db.acquire.phase"]
      }).`,
    { limitedBy: (about) => about["db.acquire.phase"], of: "caller" }
  ),
  queryRetry: line(
    "db.query.retry",
    "Info",
    ["db.retry.attempt", "db.retry.delay_ms", "db.error.effect", ...failureFields],
    (about) =>
      `Attempt ${about["db.retry.attempt"]} begins, ${about["db.retry.delay_ms"]} ms after the last one failed: ${
        named(about)
      }.`,
    { limitedBy: byKind, of: "caller" }
  ),
  queryGaveUp: line(
    "db.query.gave_up",
    "Error",
    ["db.retry.attempts", "db.retry.stopped_by", "db.error.effect", ...failureFields],
    (about) =>
      `Given up after ${counted(about["db.retry.attempts"], "attempt")}, ${
        limits[about["db.retry.stopped_by"]] ?? `for want of ${about["db.retry.stopped_by"]}`
      }: ${named(about)}.`,
    { limitedBy: byKind, of: "caller" }
  ),
  deadlineExceeded: line(
    "db.query.deadline_exceeded",
    "Warn",
    ["db.deadline_ms", "db.operation.name", "db.error.effect", "error.type"],
    (about) =>
      `A call was not done within its deadline of ${about["db.deadline_ms"]} ms: ${
        about["db.operation.name"] === undefined
          ? "no statement of it was under way"
          : `its ${about["db.operation.name"]} was cut off`
      }. ${whatIsKnown(about["db.error.effect"])}`,
    { limitedBy: (about) => about["db.operation.name"] ?? "", of: "caller" }
  ),
  outcomeUnknown: line(
    "db.query.outcome_unknown",
    "Error",
    ["db.operation.name", ...failureFields],
    (about) =>
      `Nobody knows whether a statement (${about["db.operation.name"] ?? "OTHER"}) took effect: its answer was lost (${
        named(about)
      }). It is not repeated; declare idempotent what may be.`,
    { limitedBy: byKind, of: "caller" }
  ),
  classifierFailed: line(
    "db.classifier.failed",
    "Warn",
    ["error.type"],
    (about) =>
      `A classifier failed; the default verdict stands (${
        named(about)
      }). It is not told of again: it has to return a verdict.`
  ),
  leak: line(
    "db.pool.leak",
    "Warn",
    [
      "db.connection.id",
      "db.connection.held_ms",
      "db.connection.holder.fiber",
      "db.connection.holder.span",
      "db.connection.holder.at"
    ],
    (about) =>
      `Session ${about["db.connection.id"]} has been held for longer than leakThreshold, ${
        about["db.connection.held_ms"]
      } ms so far, by ${holderOf(about)}.`
  ),
  leakOver: line(
    "db.pool.leak_over",
    "Info",
    [
      "db.connection.id",
      "db.connection.held_ms",
      "db.connection.holder.fiber",
      "db.connection.holder.span",
      "db.connection.holder.at"
    ],
    (about) =>
      `Session ${about["db.connection.id"]}, which was held for longer than leakThreshold, has come back after ${
        about["db.connection.held_ms"]
      } ms, from ${holderOf(about)}.`
  ),
  evictAll: line(
    "db.pool.evict_all",
    "Warn",
    ["db.pool.evicted"],
    (about) =>
      `All sessions are given up, ${
        about["db.pool.evicted"]
      } of them: idle ones now, lent ones when they come back. Somebody has asked for it, or the server is not what it was.`
  ),
  fleetTooLarge: line(
    "db.fleet.too_large",
    "Warn",
    [
      "db.fleet.environments",
      "db.fleet.workers",
      "db.fleet.overlap",
      "db.fleet.share",
      "db.fleet.bound",
      "db.fleet.limit",
      "db.fleet.others",
      "db.fleet.safe_environments"
    ],
    (about) =>
      Fleet.tooLarge({
        environments: about["db.fleet.environments"],
        workers: about["db.fleet.workers"],
        overlap: about["db.fleet.overlap"],
        share: about["db.fleet.share"],
        bound: about["db.fleet.bound"],
        limit: about["db.fleet.limit"],
        others: about["db.fleet.others"],
        safeEnvironments: about["db.fleet.safe_environments"]
      })
  ),
  fleetUnknown: line(
    "db.fleet.unknown",
    "Warn",
    ["error.type", "db.response.status_code", "db.pool.max"],
    (about) =>
      `The server has not said how many sessions it allows (${named(about)}): the pool keeps to ${
        about["db.pool.max"]
      } and asks again with its next session. Give max instead of Pool.sizeForFleet if it never does.`
  ),
  fleetOff: line(
    "db.fleet.off",
    "Info",
    ["server.address", "db.pool.max"],
    (about) =>
      `${
        about["server.address"]
      } looks like a pooler, whose places are not the server's: the pool is not sized for its fleet, and may have ${
        counted(about["db.pool.max"], "session")
      }. If it is one for transactions, set pooler: "transaction".`
  ),
  drainFailed: line(
    "db.pool.drain_failed",
    "Error",
    ["db.pool.cut_off", "db.pool.waited_ms"],
    (about) =>
      `The pool closes, and after ${about["db.pool.waited_ms"]} ms ${
        counted(about["db.pool.cut_off"], "borrower is", "borrowers are")
      } not done: their work is cancelled. Stop the work first, or allow more time (closeTimeout, or the deadline of drain).`
  ),
  closed: line(
    "db.pool.closed",
    // The last word of a program that prints something else, whose loggers write to the same output by default.
    "Debug",
    ["db.pool.left", "suppressed"],
    (about) =>
      about["db.pool.left"] === 0
        ? "The pool is closed, and no session is left."
        : `The pool is closed, and ${counted(about["db.pool.left"], "session")} had to be left to the server to end.`
  ),
  breakerOpened: line(
    "db.breaker.transition",
    "Warn",
    transitionFields,
    transitionWords,
    { limitedBy: (about) => about["db.breaker.to"] }
  ),
  breakerMoved: line(
    "db.breaker.transition",
    "Info",
    transitionFields,
    transitionWords,
    { limitedBy: (about) => about["db.breaker.to"] }
  ),
  breakerObserverFailed: line(
    "db.breaker.observer_failed",
    "Warn",
    ["db.breaker.key", "error.type"],
    (about) => `The onTransition of the circuit ${about["db.breaker.key"]} threw: ${named(about)}.`
  ),
  breakerSnapshotFailed: line(
    "db.breaker.snapshot_failed",
    "Warn",
    ["db.breaker.key", "db.breaker.step", "error.type"],
    (about) => `${snapshotTroubles[about["db.breaker.step"]](about["db.breaker.key"])} (${named(about)}).`,
    { limitedBy: (about) => about["db.breaker.step"] }
  ),
  breakerStoreLost: line(
    "db.breaker.store_lost",
    "Warn",
    ["db.breaker.key", "error.type"],
    (about) =>
      `The store of the circuit ${
        about["db.breaker.key"]
      } gives no answer that can be used: until it does, this process goes by its own (${named(about)}).`
  ),
  breakerStoreBack: line(
    "db.breaker.store_back",
    "Info",
    ["db.breaker.key"],
    (about) => `The store of the circuit ${about["db.breaker.key"]} answers again, and the circuit is shared again.`
  ),
  credentialsNotRenewed: line(
    "db.credentials.not_renewed",
    "Warn",
    ["error.type", "db.credentials.expires_at"],
    (about) =>
      `The password could not be renewed: ${named(about)}. The one at hand is good until ${
        about["db.credentials.expires_at"]
      }.`,
    // The cache itself asks less and less often.
    { limitedBy: false, of: "caller" }
  ),
  healthOptionFailed: line(
    "db.health.option_failed",
    "Warn",
    ["error.type"],
    (about) => `The option details of the health routes threw, so nobody is shown any: ${named(about)}.`,
    { of: "caller" }
  ),
  healthUnavailable: line(
    "db.health.unavailable",
    "Error",
    ["error.type", "exception.message"],
    (about) =>
      `The services that health is asked of could not be built, and every question is answered with 503: ${
        about["exception.message"] ?? named(about)
      }`
  ),
  healthEnded: line(
    "db.health.ended",
    // Balancers go on asking while a process ends.
    "Debug",
    [],
    () => "The services that health is asked of have ended, and every question is answered with 503."
  ),
  metricsUnreadable: line(
    "db.metrics.unreadable",
    "Error",
    ["error.type"],
    (about) =>
      `The metrics could not be read: ${
        named(about)
      }. A collector in the registry fails, or two pools have one name; whoever scrapes is answered with 500.`,
    { of: "caller" }
  ),
  otlpRefused: line(
    "db.otlp.refused",
    "Warn",
    ["db.otlp.reasons"],
    (about) =>
      `The collector has not taken ${
        about["db.otlp.reasons"]
      }. What it refuses is not sent for a minute: spans and log records of that time are lost, metrics are made up for.`,
    { of: "caller" }
  ),
  otlpLate: line(
    "db.otlp.late",
    "Warn",
    ["db.otlp.waited_ms"],
    (about) =>
      `The collector has not answered within ${about["db.otlp.waited_ms"]} ms. The next flush waits for it once more.`,
    { of: "caller" }
  ),
  invocationOverran: line(
    "db.invocation.overran",
    "Error",
    ["faas.invocation_id", "db.deadline_ms"],
    (about) =>
      `The invocation ${about["faas.invocation_id"]} was allowed ${
        about["db.deadline_ms"]
      } ms, and is answered although its work goes on: something in it cannot be interrupted, or a finalizer hangs. It may run on in the next invocation.`,
    { of: "caller" }
  ),
  invocationFailed: line(
    "db.invocation.failed",
    "Error",
    [
      "faas.invocation_id",
      "error.type",
      "db.response.status_code",
      "exception.type",
      "exception.message",
      "exception.stacktrace"
    ],
    (about) => {
      const { "exception.message": words = "", "exception.type": names, "faas.invocation_id": id } = about
      return `${id === undefined ? "An invocation" : `The invocation ${id}`} has failed: ${
        words.startsWith(names) ? words : `${names}: ${words}`
      }`
    },
    { limitedBy: false, of: "caller" }
  ),
  environmentNotWarmed: line(
    "db.environment.not_warmed",
    "Warn",
    ["error.type", "exception.message"],
    (about) =>
      `Nothing could be made ready before the first invocation, which tries again: ${
        about["exception.message"] ?? named(about)
      }`,
    { limitedBy: false, of: "caller" }
  ),
  releaseListenerFailed: line(
    "db.environment.listener_failed",
    "Warn",
    ["error.type"],
    (about) =>
      `A listener for the release of Serverless.vercel threw: ${
        named(about)
      }. The platform may suspend this process while its sessions are open.`,
    { limitedBy: false, of: "caller" }
  ),
  extensionNotRegistered: line(
    "db.environment.extension_not_registered",
    "Warn",
    ["error.type"],
    (about) =>
      `The internal extension could not be registered (${
        named(about)
      }), so Lambda kills this process without a SIGTERM. Await the handler's ready at the top level of its module.`,
    { limitedBy: false, of: "caller" }
  )
}
