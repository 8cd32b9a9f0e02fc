/**
 * Reads failures out of errors, and writes them down without giving anything away.
 */
import * as Cause from "effect/Cause"
import * as Redacted from "effect/Redacted"
import { isSqlError } from "effect/sql/SqlError"
import { ruleOfRefusal } from "./refusal.ts"
import { ruleOfText } from "./socketCode.ts"
import { conditionOf } from "./sqlState.ts"
import * as Undisclosed from "./undisclosed.ts"
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
 * Whether a server's text of this SQLSTATE speaks about the server, the session, the transaction, or the names and types
 * in a statement. The others may quote a value of a row or of a parameter (22P02 does), or are whatever a function chose to
 * raise.
 */
const speaksOfItself = (sqlState: string, message: string): boolean =>
  /^(03|08|0A|21|25|26|28|2B|34|3B|3D|3F|40|42|44|53|54|55|57)/.test(sqlState) ||
  ruleOfRefusal(sqlState, message) !== undefined

/** Source files of the procedural languages: what they report is a function's choice, under whichever SQLSTATE. */
const ofLanguage = /^(pl_|plpy|plperl|pltcl|plv8|plr)/

/** Whether a function has raised it, as far as the server tells. */
const isRaised = (reply: unknown): boolean => ofLanguage.test(readText(reply, "file") ?? "")

/** What a syntax error points at is a piece of the statement: names and signs are shown, literals are not. */
const withoutLiterals = (text: string): string =>
  text.replace(/(["«„“])(?!([\p{L}_][\p{L}\p{N}_$.]*|[^\p{L}\p{N}\s'"$]{1,3})["»“”]).*/su, "$1...")

/** The text of a failure that may be shown, if any. */
const shownText = (sqlState: string | undefined, message: string | undefined): string | undefined =>
  message === undefined || message === "" || (sqlState !== undefined && !speaksOfItself(sqlState, message))
    ? undefined
    : discreet(sqlState === "42601" ? withoutLiterals(message) : message)

/** A SQLSTATE and its name. */
const condition = (sqlState: string): string =>
  [sqlState, conditionOf(sqlState)].filter((part) => part !== undefined).join(" ")

/** A failure in half a sentence, for the messages of errors. */
export const describe = (failure: Failure): string => {
  const text = shownText(failure.sqlState, failure.message)?.replace(/[.\s]+$/, "")
  const name = failure.sqlState === undefined ? failure.code : condition(failure.sqlState)
  if (name === undefined) return text ?? "a failure of unknown kind"
  return text === undefined ? name : text.includes(name) ? text : `${name}: ${text}`
}

/** Names that the server gives along with its text. They are the schema's, and not a row's. */
const named = ["constraint", "column", "dataType", "table"] as const

/**
 * A server's reply in one line, without anything of a row: the text where it cannot quote a value, and the names of what it
 * is about in any case.
 */
export const summaryOf = (reply: unknown): string => {
  const sqlState = sqlStateOf(reply)
  const message = readMessage(reply)
  const text = sqlState === undefined || isRaised(reply) ? undefined : shownText(sqlState, message)
  const names = named.flatMap((field) => {
    const name = readText(reply, field)
    return name === undefined || text?.includes(`"${name}"`) === true
      ? []
      : [`${field === "dataType" ? "type" : field} "${discreet(name)}"`]
  })
  const position = readText(reply, "position")
  const head = sqlState === undefined ? "a reply without a SQLSTATE" : condition(sqlState)
  return [
    text === undefined ? head : `${head}: ${text}`,
    ...names,
    ...(position === undefined ? [] : [`at character ${position}`])
  ].join(", ") + (text === undefined ? " (text withheld)" : "")
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

/** The message that an error was made with. */
const readMessage = (self: unknown): string | undefined =>
  (typeof self === "object" && self !== null ? Undisclosed.textOf(self) : undefined) ?? readText(self, "message")

/**
 * A SQLSTATE comes with a severity, which is mandatory in an ErrorResponse. Without one, it must at least not look like
 * an errno: `EPIPE` and `EPERM` have five characters too, and no class of PostgreSQL's begins with an E.
 */
export const sqlStateOf = (self: unknown): string | undefined => {
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
  /** Whether the reply is a function's own. */
  isRaised: boolean
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

  const message = readMessage(error)
  const sqlState = sqlStateOf(error)
  if (sqlState !== undefined) {
    findings.isRaised = isRaised(error)
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
      const cause = read(error, "cause")
      const original = Redacted.isRedacted(cause) ? Redacted.value(cause) : cause
      dig(original, findings, seen)
      findings.coded ??= { code: tag, message: readText(error, "message") }
      // A hook's own errors may say anything; what the server and the driver say is known.
      if (!isSqlError(original)) {
        findings.reply &&= { ...findings.reply, message: undefined }
        findings.coded = {
          ...findings.coded,
          message: findings.coded.code === tag ? findings.coded.message : undefined
        }
      }
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

const compact = ({ code, message, severity, sqlState }: Failure, isRaised: boolean): Failure => {
  const text = isRaised ? undefined : shownText(sqlState, message)
  return {
    ...(sqlState !== undefined && { sqlState }),
    ...(severity !== undefined && { severity }),
    ...(code !== undefined && { code }),
    ...(text !== undefined && { message: text })
  }
}

const look = (error: unknown): Findings => {
  const findings: Findings = {
    reply: undefined,
    isRaised: false,
    coded: undefined,
    sentence: undefined,
    operation: undefined,
    innermost: undefined
  }
  dig(error, findings, new Set())
  return findings
}

const wholeOf = (findings: Findings): Failure => findings.reply ?? findings.coded ?? { message: textOf(findings) }

/** The failure in an error of any shape, with all of its text. The server's word counts most, then a code, then a text. */
export const digWhole = (error: unknown): Failure => wholeOf(look(error))

/** The failure, with as much of its text as may be shown. */
export const digFailure = (error: unknown): Failure => {
  const findings = look(error)
  return compact(wholeOf(findings), findings.isRaised)
}
