import * as Showable from "./showable.ts"
import type { Obituary } from "./socket.ts"
import type { Failure } from "./verdict.ts"

/** What the end of a session comes to where no statement has met it, in words that may be shown. */
export const failureOf = (obituary: Obituary | undefined): Failure => {
  if (obituary === undefined) return { code: "ECONNRESET", message: "the connection was closed" }
  const { by, message, sqlState } = obituary
  const text = Showable.textOf(sqlState, message)
  return {
    ...(sqlState !== undefined && { sqlState, severity: "FATAL" }),
    ...(by === "silence" && { code: "ETIMEDOUT" }),
    ...(text !== undefined && { message: text })
  }
}
