/** What a caller of a function is told of its failure: a name, a sentence and a SQLSTATE, and nothing that is secret. */
import * as Cause from "effect/Cause"
import { isSqlError } from "effect/sql/SqlError"
import { framesOf } from "./discretion.ts"
import { describe, digFailure, nameOf, namesOf, PoolErrorTypeId, read } from "./failure.ts"
import * as RefusedVariable from "./refusedVariable.ts"
import * as Showable from "./showable.ts"

/** Where a database is, in one of its two spellings: with or without a password, that is nobody's business outside. */
const connectionUrl =
  /\b((?:postgres(?:ql)?|mysql|redis|rediss|mongodb(?:\+srv)?|amqps?):\/\/)(?!user:password@host:port\/database|<redacted>,)[^\s"'`]*/gi
const connectionWords =
  /\b(?:(?:host|hostaddr|port|user|password|dbname|sslmode|application_name|options)=\S*\s*){2,}/gi

/** What Node says of a socket, and of a certificate. */
const socketAddress = /\b(connect|getaddrinfo|query[A-Z]+) (E[A-Z_]+) [^\s"')]*[^\s"').,;]/g
const certificateNames = /(certificate's altnames): .*$/gs

const bearer = /\b(Bearer|Basic)\s+[\w.~+/=-]+/g

/** What a value was that could not be read, as parsers quote it. */
const quoted = /(["'`])(?:\\.|(?!\1).)*\1/gs
const quotedValue = /\b(is|got|received|value) "(?:\\.|[^"\\])*"/gs

/** It was worded here, with care for what it holds. */
const isWordedHere = (error: unknown): boolean =>
  read(error, PoolErrorTypeId) !== undefined || nameOf(error) === "InvocationTimeout" || RefusedVariable.has(error)

const withoutValues = (error: unknown, text: string): string => {
  switch (nameOf(error)) {
    case "SyntaxError":
      return text.replace(quoted, "***")
    case "ConfigError":
      return isWordedHere(error) ? text.replace(/^SourceError: /, "") : text.replace(quotedValue, "$1 ***")
    case "SchemaError":
      return text.replace(quotedValue, "$1 ***")
    case "NoSuitableHost":
      return text.replace(/: .*(?=\. Look at)/s, "")
    default:
      return text
  }
}

/** What this library says is long only where it has something to say. */
const longestOwn = 1_000

const mask = (text: string, longest?: number): string =>
  Showable.discreet(
    text.replace(connectionUrl, "$1***").replace(connectionWords, "*** ").replace(socketAddress, "$1 $2")
      .replace(certificateNames, "$1").replace(bearer, "$1 ***"),
    longest
  )

/** The typed error that travels inside of a `SqlError`, else the error itself. */
const unwrapped = (error: unknown): unknown => {
  try {
    const carried = isSqlError(error) ? error.reason.cause : undefined
    return isWordedHere(carried) ? carried : error
  } catch {
    // What refuses to be looked at (a revoked proxy) has nothing to say.
    return undefined
  }
}

const sentenceOf = (error: unknown): string => {
  if (isSqlError(error)) return describe(digFailure(error))
  const text = typeof error === "string" ? error : read(error, "message")
  // Effect's wrapper has no words of its own, and those below it are not for everybody.
  const said = typeof text !== "string" || text.startsWith("An error occurred in Effect.")
    ? ""
    : withoutValues(error, text)
  return said === "" ? namesOf(error) : said
}

const interrupted = {
  name: "Interrupted",
  message:
    "The invocation was interrupted before it was done. Look for who has interrupted it, or ended the environment."
}

/** What a failure is about. */
export const subjectOf = (cause: Cause.Cause<unknown>): unknown =>
  Cause.hasInterruptsOnly(cause) ? interrupted : unwrapped(Cause.squash(cause))

/** The error that stands for a failure: made anew, so that nothing travels along with it. */
export const encode = (cause: Cause.Cause<unknown>): Error => {
  const error = subjectOf(cause)
  const answer = new Error(mask(sentenceOf(error), isWordedHere(error) ? longestOwn : undefined))
  const name = nameOf(error) ?? "Error"
  const frames = error instanceof Error ? framesOf(error).replace(/\n(?! {4}at ).*/g, "") : ""
  // As other errors have it: a name that is listed would be printed twice.
  Object.defineProperty(answer, "name", { value: name, configurable: true, writable: true })
  answer.stack = `${name}: ${answer.message}${frames}`
  const { sqlState } = digFailure(error)
  return sqlState === undefined ? answer : Object.assign(answer, { sqlState })
}
