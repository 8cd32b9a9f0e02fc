import type * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as BackendMessages from "./backendMessages.ts"

/** How much of what a borrower has left on a session is undone when the session comes back. */
export type Reset = "none" | "clean" | "discard-all"

/**
 * What `DISCARD ALL` stands for, but for the prepared statements, which the driver has need of.
 *
 * https://www.postgresql.org/docs/18/sql-discard.html
 */
const clean = [
  "CLOSE ALL",
  "SET SESSION AUTHORIZATION DEFAULT",
  "RESET ALL",
  "UNLISTEN *",
  "SELECT pg_catalog.pg_advisory_unlock_all()",
  "DISCARD TEMP",
  "DISCARD SEQUENCES"
]

const statements: { readonly [_ in Exclude<Reset, "none">]: ReadonlyArray<string> } = {
  clean,
  "discard-all": [...clean, "DEALLOCATE ALL", "DISCARD PLANS"]
}

/** The message Query, which the driver's encoders leave out. */
export const encodeQuery = (sql: string): Uint8Array => {
  const body = Buffer.from(`${sql}\0`)
  const header = Buffer.alloc(5)
  header.write("Q", "latin1")
  header.writeInt32BE(body.length + 4, 1)
  return Buffer.concat([header, body])
}

/**
 * One message, and one transaction: when a part of it fails, the session stays in a failed transaction, and the server
 * refuses whatever is on its way behind. `DISCARD ALL` itself cannot be run inside of one. The isolation level may have
 * been left at one that waits.
 *
 * https://www.postgresql.org/docs/18/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT
 */
export const frameOf = (reset: Exclude<Reset, "none">): Uint8Array =>
  encodeQuery(["BEGIN ISOLATION LEVEL READ COMMITTED", ...statements[reset], "COMMIT"].join("; "))

/** Why a session could not be reset. */
export interface Refusal {
  readonly fields: PgProtocol.ErrorFields | undefined
  /** Whether the server refuses whatever was sent behind it. */
  readonly isSealed: boolean
}

/** What the server says to a reset, taken out of the stream: the driver knows nothing of it. */
export interface Answer {
  /**
   * Takes its own from a chunk and hands back the rest. Must be fed everything that comes, until `isDone`. That the
   * session has ended is for the driver to hear.
   */
  readonly take: (chunk: Uint8Array) => Uint8Array
  readonly isDone: () => boolean
  /** Once done: whether the session has ended instead. */
  readonly hasEnded: () => boolean
  /** Once done: `undefined` when all went well, or when the session has ended. */
  readonly refusal: () => Refusal | undefined
}

const nothing = new Uint8Array(0)

/**
 * The answer to a reset that was sent when nothing else was owed: it is the first thing to come. `onParameter` hears of
 * each ParameterStatus in it.
 */
export const makeAnswer = (onParameter: (name: string, value: string) => void): Answer => {
  const find = BackendMessages.makeFinder()
  const messages = BackendMessages.makeScanner(onParameter)
  let isDone = false
  return {
    take: (chunk) => {
      if (isDone) return chunk
      const end = find(chunk, 0)
      messages.scan(end === undefined ? chunk : chunk.subarray(0, end))
      const isOver = messages.fatal() !== undefined
      isDone = isOver || end !== undefined
      return isOver ? messages.errorBytes() : end === undefined ? nothing : chunk.subarray(end)
    },
    isDone: () => isDone,
    hasEnded: () => messages.fatal() !== undefined,
    refusal: () => {
      if (messages.fatal() !== undefined) return undefined
      const fields = messages.lastError()
      return fields === undefined && messages.isIdle()
        ? undefined
        : { fields, isSealed: messages.transactionStatus() === "E" }
    }
  }
}
