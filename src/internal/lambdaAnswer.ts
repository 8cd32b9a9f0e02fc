/** What a caller of a function is told of its failure: a name, a sentence and a SQLSTATE, and nothing that is secret. */
import * as Cause from "effect/Cause"
import { isSqlError } from "effect/sql/SqlError"
import { framesOf } from "./discretion.ts"
import { describe, digFailure, nameOf, PoolErrorTypeId, read } from "./failure.ts"
import * as Showable from "./showable.ts"

/** Where a database is, in one of its two spellings: with or without a password, that is nobody's business outside. */
const connectionUrl = /\b((?:postgres(?:ql)?|mysql|redis|rediss|mongodb(?:\+srv)?|amqps?):\/\/)[^\s"'`]*/gi
const connectionWords =
  /\b(?:(?:host|hostaddr|port|user|password|dbname|sslmode|application_name|options)=\S*\s*){2,}/gi

/** What Node says of a socket, and of a certificate. */
const socketAddress = /\b(connect|getaddrinfo|query[A-Z]+) (E[A-Z_]+) [^\s"')]*[^\s"').,;]/g
const certificateNames = /(certificate's altnames): .*$/gs

const bearer = /\b(Bearer|Basic)\s+[\w.~+/=-]+/g

/** What a value was that could not be read, as parsers quote it. */
const quoted = /(["'`])(?:\\.|(?!\1).)*\1/gs
const quotedValue = /\b(is|got|received|value) "(?:\\.|[^"\\])*"/gs

const withoutValues = (error: unknown, text: string): string => {
  switch (nameOf(error)) {
    case "SyntaxError":
      return text.replace(quoted, "***")
    case "ConfigError":
    case "SchemaError":
      return text.replace(quotedValue, "$1 ***")
    case "NoSuitableHost":
      return text.replace(/: .*(?=\. Look at)/s, "")
    default:
      return text
  }
}

const mask = (text: string): string =>
  Showable.discreet(
    text.replace(connectionUrl, "$1***").replace(connectionWords, "*** ").replace(socketAddress, "$1 $2")
      .replace(certificateNames, "$1").replace(bearer, "$1 ***")
  )

/** The typed error that travels inside of a `SqlError`, else the error itself. */
const unwrapped = (error: unknown): unknown => {
  try {
    const carried = isSqlError(error) ? error.reason.cause : undefined
    return read(carried, PoolErrorTypeId) === undefined ? error : carried
  } catch {
    // What refuses to be looked at (a revoked proxy) has nothing to say.
    return undefined
  }
}

const sentenceOf = (error: unknown): string => {
  if (isSqlError(error)) return describe(digFailure(error))
  const text = typeof error === "string" ? error : read(error, "message")
  return typeof text === "string" ? withoutValues(error, text) : ""
}

const interrupted = {
  name: "Interrupted",
  message:
    "The invocation was interrupted before it was done. Look for who has interrupted it, or ended the environment."
}

/** The error that stands for a failure: made anew, so that nothing travels along with it. */
export const encode = (cause: Cause.Cause<unknown>): Error => {
  const error = Cause.hasInterruptsOnly(cause) ? interrupted : unwrapped(Cause.squash(cause))
  const answer = new Error(mask(sentenceOf(error)))
  const name = nameOf(error) ?? "Error"
  const frames = error instanceof Error ? framesOf(error).replace(/\n(?! {4}at ).*/g, "") : ""
  // As other errors have it: a name that is listed would be printed twice.
  Object.defineProperty(answer, "name", { value: name, configurable: true, writable: true })
  answer.stack = `${name}: ${answer.message}${frames}`
  const { sqlState } = digFailure(error)
  return sqlState === undefined ? answer : Object.assign(answer, { sqlState })
}
