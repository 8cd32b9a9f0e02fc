/**
 * Reads failures out of errors, and writes them down without giving anything away.
 */
import * as Cause from "effect/Cause"
import * as Redacted from "effect/Redacted"
import { isSqlError } from "effect/sql/SqlError"
import { pattern } from "./lazy.ts"
import * as Showable from "./showable.ts"
import { codeOfText, ruleOfText } from "./socketCode.ts"
import { conditionOf } from "./sqlState.ts"
import * as Undisclosed from "./undisclosed.ts"
import type { Failure } from "./verdict.ts"

/** Marks the typed errors of `Errors.ts`. */
export const PoolErrorTypeId = "~effect-pg-pool/Errors/PoolError"

/** A SQLSTATE and its name. */
const condition = (sqlState: string): string =>
  [sqlState, conditionOf(sqlState)].filter((part) => part !== undefined).join(" ")

/** A failure in half a sentence, for the messages of errors. */
export const describe = (failure: Failure): string => {
  const text = Showable.textOf(failure.sqlState, failure.message)?.replace(/[.\s]+$/, "")
  const name = failure.sqlState === undefined ? failure.code : condition(failure.sqlState)
  if (name === undefined) return text ?? "a failure of unknown kind"
  return text === undefined ? name : text.includes(name) ? text : `${name}: ${text}`
}

/** Names that the server gives along with its text. */
const named = ["constraint", "column", "dataType", "table", "schema"] as const

/** Who has worded a reply. */
const authorOf = (reply: unknown): Showable.Author =>
  Showable.authorOf(readText(reply, "file"), readText(reply, "routine"))

const nameInSql = pattern(String.raw`^[\p{L}_][\p{L}\p{M}\p{N}_$]*$`, "u")

/** Whether what a reply calls a name is one: a function may call anything so. */
const isNamed = (reply: unknown, field: string): boolean => {
  const name = readText(reply, field)
  return name !== undefined && (authorOf(reply) === "Server" || nameInSql.test(name))
}

/** The fields of a reply that may be anything. */
export const isInWords = (reply: unknown, field: string): boolean =>
  // What nobody knows is a letter.
  /^(detail|hint|where|internalQuery|.)$/.test(field) ||
  (named.some((name) => name === field) && !isNamed(reply, field))

/** The SQLSTATE of a server's reply, and the names of what it is about. */
export const headOfReply = (reply: unknown): string => {
  const sqlState = sqlStateOf(reply)
  const names = named.filter((field) => field !== "schema" && isNamed(reply, field)).map((field) =>
    `${field === "dataType" ? "type" : field} "${readText(reply, field)}"`
  )
  return [sqlState === undefined ? "a reply" : condition(sqlState), ...names].join(", ")
}

/**
 * What may be shown of a server's reply: its own text where that cannot quote a row, a parameter or a function, else its
 * SQLSTATE and the names of what it is about.
 */
export const shownReply = (reply: unknown): string =>
  Showable.textOf(sqlStateOf(reply), readMessage(reply), authorOf(reply)) ?? `${headOfReply(reply)} (text withheld)`

/** A value for the message of `InvalidOption`. */
export const shown = (option: string, value: unknown): string => {
  if (Redacted.isRedacted(value) || /passw|secret|token|credential/i.test(option)) return "a secret that is not shown"
  switch (typeof value) {
    case "string":
      return JSON.stringify(Showable.discreet(value))
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
export const read = (self: unknown, key: string): unknown => {
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
const readShaped = (self: unknown, key: string, shape: Pick<RegExp, "test">): string | undefined => {
  const text = readText(self, key)
  return text !== undefined && shape.test(text) ? text : undefined
}

const sqlStateShape = /^[0-9A-Z]{5}$/

/** Node's. */
const codeShape = /^[A-Z][A-Z0-9_]*$/

/** Node's, or the name of an error of ours. */
const nameShape = /^[A-Za-z][A-Za-z0-9_]*$/

/** In any language. */
const severityShape = pattern(String.raw`^[\p{L}\p{M}]+$`, "u")

const longestName = 60

/** What an error is called, where that is told without any of its text: its tag, class or code. */
export const nameOf = (error: unknown): string | undefined =>
  [readShaped(error, "_tag", nameShape), readShaped(error, "name", nameShape), readShaped(error, "code", nameShape)]
    .find((name) => name !== undefined && name !== "Error" && name.length <= longestName)

const deepestNamed = 8

/** What an error is called, and what those are that it was caused by: `UnknownError: caused by AccessDeniedException`. */
export const namesOf = (error: unknown): string | undefined => {
  const names: Array<string> = []
  for (let each = error, depth = 0; each !== undefined && depth < deepestNamed; depth++) {
    if (Redacted.isRedacted(each)) each = Redacted.value(each)
    const name = sqlStateOf(each) ?? nameOf(each)
    if (name !== undefined) names.push(name)
    each = read(read(each, "reason"), "cause") ?? read(each, "cause")
  }
  return names.length === 0 ? undefined : names.join(": caused by ")
}

/** The hook that has failed, or was at work when the time for connecting was over. */
export const hookOf = (error: unknown): string | undefined =>
  readShaped(error, "hook", nameShape) ?? readShaped(read(read(error, "reason"), "cause"), "hook", nameShape)

/** An identifier of PostgreSQL's as it usually looks; what is quoted to look otherwise might be anything. */
const identifierShape = pattern(String.raw`^[\p{L}_][\p{L}\p{M}\p{N}_$]{0,62}$`, "u")

/** The names that the server's reply below an error gives of what it is about. */
export const namesIn = (
  error: unknown,
  depth = 0
): { readonly constraint?: string | undefined; readonly table?: string | undefined } => {
  if (depth > deepest || typeof error !== "object" || error === null) return {}
  if (sqlStateOf(error) === undefined) return namesIn(read(error, "reason") ?? read(error, "cause"), depth + 1)
  return {
    constraint: readShaped(error, "constraint", identifierShape),
    table: readShaped(error, "table", identifierShape)
  }
}

const isSqlReason = (self: unknown): boolean => read(self, "~effect/sql/SqlError/Reason") !== undefined

interface Findings {
  reply: Failure | undefined
  author: Showable.Author
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
    findings.author = authorOf(error)
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

const compact = ({ code, message, severity, sqlState }: Failure, author: Showable.Author): Failure => {
  const text = Showable.textOf(sqlState, message, author)
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
    author: "Server",
    coded: undefined,
    sentence: undefined,
    operation: undefined,
    innermost: undefined
  }
  dig(error, findings, new Set())
  return findings
}

/** The driver gives no codes to what it says itself: that is told by the code of the socket's that says the same. */
const told = (findings: Findings): Failure => {
  const message = textOf(findings)
  const code = findings.sentence === undefined ? undefined : codeOfText(findings.sentence)
  return code === undefined ? { message } : { code, message }
}

const wholeOf = (findings: Findings): Failure => findings.reply ?? findings.coded ?? told(findings)

/** The failure in an error of any shape, with all of its text. The server's word counts most, then a code, then a text. */
export const digWhole = (error: unknown): Failure => wholeOf(look(error))

/** The failure, with as much of its text as may be shown. */
export const digFailure = (error: unknown): Failure => {
  const findings = look(error)
  return compact(wholeOf(findings), findings.author)
}
