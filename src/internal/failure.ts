/**
 * Reads failures out of errors, and writes them down without giving anything away.
 */
import * as Cause from "effect/Cause"
import * as Redacted from "effect/Redacted"
import { ruleOfRefusal } from "./refusal.ts"
import { ruleOfText } from "./socketCode.ts"
import { conditionOf } from "./sqlState.ts"
import type { Failure } from "./verdict.ts"

/** Marks the typed errors of `Errors.ts`. */
export const PoolErrorTypeId = "~effect-pg-pool/Errors/PoolError"

const longestText = 300

/** More than this is not even looked at. */
const longestRead = 1_000

/** The beginning of a long text, without a URL that is cut in half: its credentials could not be told from its host. */
const beginning = (text: string): string =>
  text.length <= longestRead ? text : text.slice(0, longestRead).replace(/:\/\/\S*$/, "...")

const urlWithCredentials = /([a-z][a-z0-9+.-]*:\/\/)\S*@/gi

const namedSecret =
  /(password|passwd|pwd|secret|token|api[_-]?key)(["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\S*[^\s,;&]|\S+)/gi

/** One line, no credentials, not too long. */
const discreet = (text: string): string => {
  const line = beginning(text.replace(/\s+/g, " "))
    .replace(urlWithCredentials, "$1***@")
    .replace(namedSecret, "$1$2***")
    .trim()
  return line.length <= longestText ? line : `${line.slice(0, longestText - 3)}...`
}

/**
 * Whether a server's text of this SQLSTATE speaks about the server, the session or the transaction. The others may quote
 * a value of a row or of a parameter (22P02 does), or are whatever a function chose to raise.
 */
const speaksOfItself = (sqlState: string, message: string): boolean =>
  /^(08|0A|25|26|28|3D|40|53|55|57)/.test(sqlState) || ruleOfRefusal(sqlState, message) !== undefined

/** The text of a failure that may be shown, if any. */
const shownText = (sqlState: string | undefined, message: string | undefined): string | undefined =>
  message === undefined || message === "" || (sqlState !== undefined && !speaksOfItself(sqlState, message))
    ? undefined
    : discreet(message)

/** A failure in half a sentence, for the messages of errors. */
export const describe = (failure: Failure): string => {
  const text = shownText(failure.sqlState, failure.message)?.replace(/[.\s]+$/, "")
  const name = failure.sqlState === undefined
    ? failure.code
    : [failure.sqlState, conditionOf(failure.sqlState)].filter((part) => part !== undefined).join(" ")
  if (name === undefined) return text ?? "a failure of unknown kind"
  return text === undefined ? name : text.includes(name) ? text : `${name}: ${text}`
}

/** A value for the message of `InvalidOption`. */
export const shown = (option: string, value: unknown): string => {
  if (Redacted.isRedacted(value) || /passw|secret|token|credential/i.test(option)) return "a secret that is not shown"
  switch (typeof value) {
    case "string":
      return JSON.stringify(discreet(value))
    case "number":
    case "boolean":
    case "bigint":
    case "undefined":
      return String(value)
    default:
      return value === null ? "null" : Array.isArray(value) ? "an array" : `a value of type ${typeof value}`
  }
}

/** Reads a property of anything. A getter that throws has nothing to say. */
const read = (self: unknown, key: string): unknown => {
  if ((typeof self !== "object" || self === null) && typeof self !== "function") return undefined
  try {
    return (self as Record<string, unknown>)[key]
  } catch {
    return undefined
  }
}

const readText = (self: unknown, key: string): string | undefined => {
  const value = read(self, key)
  return typeof value === "string" && value !== "" ? value : undefined
}

/**
 * A SQLSTATE comes with a severity, which is mandatory in an ErrorResponse. Without one, it must at least not look like
 * an errno: `EPIPE` and `EPERM` have five characters too, and no class of PostgreSQL's begins with an E.
 */
const sqlStateOf = (self: unknown): string | undefined => {
  const code = readShaped(self, "code", sqlStateShape)
  if (code === undefined || readText(self, "severity") !== undefined) return code
  return code.startsWith("E") || read(self, "syscall") !== undefined ? undefined : code
}

/** A text of the shape that it must have: what has another one might be anything, a secret too. */
const readShaped = (self: unknown, key: string, shape: RegExp): string | undefined => {
  const text = readText(self, key)
  return text !== undefined && shape.test(text) ? text : undefined
}

const sqlStateShape = /^[0-9A-Z]{5}$/

/** Node's. */
const codeShape = /^[A-Z][A-Z0-9_]*$/

/** Node's, or the name of an error of ours. */
const nameShape = /^[A-Za-z][A-Za-z0-9_]*$/

/** In any language. */
const severityShape = /^[\p{L}\p{M}]+$/u

const longestName = 60

/** What an error is called, where that is told without any of its text: its tag, class or code. */
export const nameOf = (error: unknown): string | undefined =>
  [readShaped(error, "_tag", nameShape), readShaped(error, "name", nameShape), readShaped(error, "code", nameShape)]
    .find((name) => name !== undefined && name !== "Error" && name.length <= longestName)

const isSqlReason = (self: unknown): boolean => read(self, "~effect/sql/SqlError/Reason") !== undefined

interface Findings {
  reply: Failure | undefined
  coded: Failure | undefined
  /** The driver's own sentence, and what it says of the cause. */
  sentence: string | undefined
  operation: string | undefined
  innermost: string | undefined
}

const deepest = 32

const dig = (error: unknown, findings: Findings, seen: Set<unknown>): void => {
  if (findings.reply !== undefined || seen.size >= deepest || seen.has(error)) return
  if (typeof error === "string") {
    findings.innermost = error
    return
  }
  if (typeof error !== "object" || error === null) return
  seen.add(error)
  try {
    digInto(error, findings, seen)
  } catch {
    // What refuses to be looked at (a revoked proxy) has nothing to say, and who holds it may have.
  }
}

const digInto = (error: object, findings: Findings, seen: Set<unknown>): void => {
  if (Cause.isCause(error)) return dig(Cause.squash(error), findings, seen)

  if (read(error, PoolErrorTypeId) !== undefined) return digOwn(error, findings, seen)

  const message = readText(error, "message")
  const sqlState = sqlStateOf(error)
  if (sqlState !== undefined) {
    findings.reply = {
      sqlState,
      // The localized severity reads otherwise in every language.
      severity: readShaped(error, "severityUnlocalized", severityShape) ?? readShaped(error, "severity", severityShape),
      message
    }
    return
  }

  const errors = read(error, "errors")
  const inner = Array.isArray(errors) ? errors : []
  const code = readShaped(error, "code", codeShape)
  if (code !== undefined && findings.coded === undefined) {
    // An AggregateError of several addresses has a code and no text.
    const texts = message === undefined ? inner.map((each) => readText(each, "message")) : [message]
    findings.coded = { code, message: [...new Set(texts.filter((text) => text !== undefined))].join("; ") }
  }

  const wrapper = isSqlReason(error) || isSqlReason(read(error, "reason"))
  if (isSqlReason(error)) {
    // A typed error of ours lent the reason its words.
    const cause = read(error, "cause")
    if (read(cause, PoolErrorTypeId) !== undefined) return dig(cause, findings, seen)
    findings.sentence ??= readText(error, "message")
    findings.operation ??= readText(error, "operation")
  } else if (!wrapper && message !== undefined) {
    findings.innermost = message
  }
  dig(read(error, "reason"), findings, seen)
  dig(read(error, "cause"), findings, seen)
  for (const each of inner) dig(each, findings, seen)
}

/** A failure that a typed error of ours tells of. */
const digTold = (failure: unknown, findings: Findings): void => {
  const sqlState = readShaped(failure, "sqlState", sqlStateShape)
  const code = readShaped(failure, "code", nameShape)
  const message = readText(failure, "message")
  if (sqlState !== undefined) {
    findings.reply = { sqlState, severity: readShaped(failure, "severity", severityShape), message }
  } else if (code !== undefined) findings.coded ??= { code, message }
  else findings.innermost = message
}

const digOwn = (error: object, findings: Findings, seen: Set<unknown>): void => {
  const tag = readShaped(error, "_tag", nameShape)
  switch (tag) {
    case "OutcomeUnknown":
    case "StatementTimeout":
      return digTold(read(error, "failure"), findings)
    case "NoSuitableHost": {
      const hosts = read(error, "hosts")
      const unreached = Array.isArray(hosts) && hosts.every((host) => read(host, "role") === null)
        ? hosts[0]
        : undefined
      // Where nobody has answered, that is what it comes to.
      if (unreached !== undefined) return digTold(read(unreached, "failure"), findings)
      findings.coded ??= { code: tag, message: readText(error, "message") }
      return
    }
    case "RetriesExhausted":
      return dig(read(error, "last"), findings, seen)
    case "HookFailed": {
      dig(read(error, "cause"), findings, seen)
      findings.coded ??= { code: tag, message: readText(error, "message") }
      return
    }
    default:
      findings.coded ??= { code: tag, message: readText(error, "message") }
  }
}

/** What a failure without any code has to say. */
const textOf = ({ innermost, operation, sentence }: Findings): string | undefined => {
  if (sentence === undefined) return innermost
  if (innermost === undefined || sentence.includes(innermost)) return sentence
  // Below a query, the cause may be about a value that could not be encoded or decoded.
  return operation === "connect" || ruleOfText(innermost) !== undefined ? `${sentence}: ${innermost}` : sentence
}

const compact = ({ code, message, severity, sqlState }: Failure): Failure => {
  const text = shownText(sqlState, message)
  return {
    ...(sqlState !== undefined && { sqlState }),
    ...(severity !== undefined && { severity }),
    ...(code !== undefined && { code }),
    ...(text !== undefined && { message: text })
  }
}

/** The failure in an error of any shape, with all of its text. The server's word counts most, then a code, then a text. */
export const digWhole = (error: unknown): Failure => {
  const findings: Findings = {
    reply: undefined,
    coded: undefined,
    sentence: undefined,
    operation: undefined,
    innermost: undefined
  }
  dig(error, findings, new Set())
  return findings.reply ?? findings.coded ?? { message: textOf(findings) }
}

/** The failure, with as much of its text as may be shown. */
export const digFailure = (error: unknown): Failure => compact(digWhole(error))
