import * as Redacted from "effect/Redacted"
import { read, sqlStateOf } from "./failure.ts"
import * as Undisclosed from "./undisclosed.ts"

/** All that the server said, as it said it. */
export interface ServerReply {
  readonly sqlState: string
  readonly severity: string | undefined
  readonly message: string
  readonly detail: string | undefined
  readonly hint: string | undefined
  /** Where in the statement, in characters from 1. */
  readonly position: string | undefined
  /** A statement that the server has made itself, and where in it. */
  readonly internalQuery: string | undefined
  readonly internalPosition: string | undefined
  /** The functions and statements that were being run, innermost first. */
  readonly where: string | undefined
  readonly schema: string | undefined
  readonly table: string | undefined
  readonly column: string | undefined
  readonly dataType: string | undefined
  readonly constraint: string | undefined
  readonly file: string | undefined
  readonly line: string | undefined
  readonly routine: string | undefined
}

const readText = (error: object, field: string): string | undefined => {
  const value = read(error, field)
  return typeof value === "string" ? value : undefined
}

const replyOf = (error: object, sqlState: string): ServerReply => ({
  sqlState,
  severity: readText(error, "severityUnlocalized") ?? readText(error, "severity"),
  message: Undisclosed.textOf(error) ?? readText(error, "message") ?? "",
  detail: readText(error, "detail"),
  hint: readText(error, "hint"),
  position: readText(error, "position"),
  internalQuery: readText(error, "internalQuery"),
  internalPosition: readText(error, "internalPosition"),
  where: readText(error, "where"),
  schema: readText(error, "schema"),
  table: readText(error, "table"),
  column: readText(error, "column"),
  dataType: readText(error, "dataType"),
  constraint: readText(error, "constraint"),
  file: readText(error, "file"),
  line: readText(error, "line"),
  routine: readText(error, "routine")
})

const most = 32

/** The reply behind an error of any shape, or `undefined` if the server has said nothing. */
export const find = (error: unknown, seen: Set<unknown> = new Set()): ServerReply | undefined => {
  if (typeof error !== "object" || error === null || seen.size >= most || seen.has(error)) return undefined
  seen.add(error)
  try {
    return findIn(error, seen)
  } catch {
    // What refuses to be looked at (a revoked proxy, a secret that was wiped) has nothing to say.
    return undefined
  }
}

const findIn = (error: object, seen: Set<unknown>): ServerReply | undefined => {
  if (Redacted.isRedacted(error)) return find(Redacted.value(error), seen)
  const sqlState = sqlStateOf(error)
  if (sqlState !== undefined) return replyOf(error, sqlState)
  for (const below of ["reason", "cause", "last"]) {
    const found = find(read(error, below), seen)
    if (found !== undefined) return found
  }
  return undefined
}
