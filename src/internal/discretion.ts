/** Takes what may be a row's, a parameter's or a secret out of what is printed, and leaves it within reach. */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { isSqlError, type SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { Delegate } from "./delegate.ts"
import { failedOwn } from "./dial.ts"
import { describe, digFailure, headOfReply, isInWords, nameOf, read, shownReply, sqlStateOf } from "./failure.ts"
import * as Undisclosed from "./undisclosed.ts"

export const errorTexts = ["discreet", "full"] as const

/** How much of what was said an error shows where it is printed. */
export type ErrorText = (typeof errorTexts)[number]

const define = (error: object, key: string, value: unknown, enumerable = false): void => {
  // One that is frozen is somebody's constant: it has no row in it.
  Reflect.defineProperty(error, key, { value, enumerable, writable: true, configurable: true })
}

/** The frames of a stack, without the message above them. */
export const framesOf = (error: Error): string => {
  const stack = read(error, "stack")
  if (typeof stack !== "string") return ""
  // A message may look like frames.
  const message = read(error, "message")
  const text = typeof message === "string" ? message : ""
  const start = stack.indexOf(text)
  const frames = stack.slice(Math.max(0, start) + text.length)
  const first = frames.indexOf("\n    at ")
  return first === -1 ? "" : frames.slice(first)
}

const reword = (error: Error, text: string): void => {
  if (Undisclosed.has(error) || error.message === text) return
  const frames = framesOf(error)
  Undisclosed.keep(error, error.message)
  // The `toJSON` of Effect's errors prefers what it lists to what they were made of.
  define(error, "message", text, "toJSON" in error)
  define(error, "stack", `${error.name}: ${text}${frames}`)
}

const hush = (reply: Error): void => {
  reword(reply, shownReply(reply))
  for (const field of Object.keys(reply)) {
    if (!isInWords(reply, field)) continue
    const words: unknown = Reflect.get(reply, field)
    // Printers that are told to show hidden fields do not call a getter.
    Reflect.defineProperty(reply, field, { get: () => words, enumerable: false, configurable: true })
  }
}

/** What the driver's codecs say before they quote a value. */
const beforeValue = (text: string): string =>
  text.replace(/(,? received |: | value "| ?"|(?<=PostgreSQL type) for ).*$/s, "").trim()

/** A value that could not be encoded or decoded may be quoted by whatever went wrong with it. */
const isAboutValue = ({ reason }: SqlError): boolean =>
  /^PgConnection: Failed to (encode query|decode row)/.test(reason.message ?? "")

/**
 * Rewords the error below a `SqlError` of the driver, in place: programs hold on to the object and read its fields, and
 * everything that prints it finds the summary only. Costs nothing while nothing fails.
 */
const conceal = <E>(error: E): E => {
  if (!isSqlError(error)) return error
  const { cause, message } = error.reason
  if (message === `PgConnection: ${failedOwn}`) define(error.reason, "cause", seal(cause), true)
  else if (!(cause instanceof Error)) return error
  else if (sqlStateOf(cause) !== undefined) {
    hush(cause)
    // What the driver says of a violation without a name.
    if ("constraint" in error.reason && isInWords(cause, "constraint")) {
      define(error.reason, "constraint", "unknown", true)
    }
  } else if (isAboutValue(error)) {
    if (nameOf(cause)?.startsWith("Pg") === true) reword(cause, beforeValue(cause.message))
    else define(error.reason, "cause", seal(cause), true)
  }
  return error
}

/**
 * Has a `SqlError` say at its head which reply of the server is below it, so that a search for a SQLSTATE finds it. The
 * message of its reason, and that of the reply, stay as the driver has them.
 */
const label = <E>(error: E): E => {
  if (!isSqlError(error) || Object.hasOwn(error, "message")) return error
  const { cause } = error.reason
  if (!(cause instanceof Error) || sqlStateOf(cause) === undefined) return error
  const text = `${error.message} (${headOfReply(cause)})`
  const frames = framesOf(error)
  define(error, "message", text)
  define(error, "stack", `${error.name}: ${text}${frames}`)
  return error
}

/** How errors of a pool are treated before anybody sees them. */
export const treatmentOf = (mode: ErrorText): Treat => mode === "full" ? label : (error) => label(conceal(error))

type Treat = <E>(error: E) => E

class Guarded extends Delegate {
  private readonly treat: Treat

  constructor(base: PgConnection.PgConnection, treat: Treat) {
    super(base)
    this.treat = treat
  }

  override get pin() {
    return Effect.map(this.base.pin, (pinned) => guard(pinned, this.treat))
  }

  override query(...args: Parameters<PgConnection.PgConnection["query"]>) {
    return Effect.mapError(this.base.query(...args), this.treat)
  }

  override queryValues(...args: Parameters<PgConnection.PgConnection["queryValues"]>) {
    return Effect.mapError(this.base.queryValues(...args), this.treat)
  }

  override stream(...args: Parameters<PgConnection.PgConnection["stream"]>) {
    return Stream.mapError(this.base.stream(...args), this.treat)
  }

  override listen(channel: string) {
    return Effect.mapError(this.base.listen(channel), this.treat)
  }
}

/** The same connection for those who are not watched by an executor: their errors are treated here. */
export const guard = (connection: PgConnection.PgConnection, treat: Treat): PgConnection.PgConnection =>
  new Guarded(connection, treat)

/** What somebody else's code has failed with: it may hold anything, and is told by its name. */
export const seal = (cause: unknown): Redacted.Redacted<unknown> =>
  Redacted.isRedacted(cause) ? cause : Redacted.make(cause, { label: nameOf(cause) })

/** What may be said of somebody else's error, if anything. */
export const wordsOf = (error: unknown, mode: ErrorText): string | undefined => {
  if (isSqlError(error)) return describe(digFailure(error))
  const name = nameOf(error)
  // Effect's wrapper of whatever a promise rejects with.
  const below = Cause.isUnknownError(error) ? wordsOf(error.cause, mode) : undefined
  if (below !== undefined) return `${name}: caused by ${below}`
  if (mode === "discreet") return name
  const text = error instanceof Error ? error.message : typeof error === "string" ? error : ""
  return [name, text].filter((part) => part !== undefined && part !== "").join(": ") || undefined
}
