import * as Redacted from "effect/Redacted"
import { sqlStateOf } from "./failure.ts"
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

const read = (error: object, field: string): string | undefined => {
  const value: unknown = Reflect.get(error, field)
  return typeof value === "string" ? value : undefined
}

const replyOf = (error: object, sqlState: string): ServerReply => ({
  sqlState,
  severity: read(error, "severityUnlocalized") ?? read(error, "severity"),
  message: Undisclosed.textOf(error) ?? read(error, "message") ?? "",
  detail: read(error, "detail"),
  hint: read(error, "hint"),
  position: read(error, "position"),
  internalQuery: read(error, "internalQuery"),
  internalPosition: read(error, "internalPosition"),
  where: read(error, "where"),
  schema: read(error, "schema"),
  table: read(error, "table"),
  column: read(error, "column"),
  dataType: read(error, "dataType"),
  constraint: read(error, "constraint"),
  file: read(error, "file"),
  line: read(error, "line"),
  routine: read(error, "routine")
})

const deepest = 32

/** The reply behind an error of any shape, or `undefined` if the server has said nothing. */
export const find = (error: unknown, depth = 0): ServerReply | undefined => {
  if (typeof error !== "object" || error === null || depth > deepest) return undefined
  if (Redacted.isRedacted(error)) return find(Redacted.value(error), depth + 1)
  const sqlState = sqlStateOf(error)
  if (sqlState !== undefined) return replyOf(error, sqlState)
  for (const below of ["reason", "cause", "last"]) {
    const found = find(Reflect.get(error, below), depth + 1)
    if (found !== undefined) return found
  }
  return undefined
}
