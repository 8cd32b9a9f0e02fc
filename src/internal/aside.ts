import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import type { Duplex } from "node:stream"
import type { Intake } from "./intake.ts"
import * as Reset from "./reset.ts"

/** What came of a question: its first row, or the SQLSTATE with which the server refused it. */
export interface Answer {
  readonly row: ReadonlyArray<string | null> | undefined
  readonly refusedBy: string | undefined
}

const readAnswer = (replies: Reset.Answer, taken: ReadonlyArray<Uint8Array>): Answer | undefined => {
  if (replies.hasEnded()) return undefined
  const refusal = replies.refusal()
  if (refusal !== undefined) return { row: undefined, refusedBy: refusal.fields?.code }
  for (const message of PgProtocol.makeParser().push(Buffer.concat(taken))) {
    if (message._tag !== "DataRow") continue
    const row = message.values.map((value) => value === null ? null : Buffer.from(value).toString("utf8"))
    return { row, refusedBy: undefined }
  }
  return { row: undefined, refusedBy: undefined }
}

/**
 * Waits for the answer to a question that the driver knows nothing of, and takes it out of what comes in: it is the first
 * thing to come, since nothing else is owed. Returns what to send. `onAnswer` hears once what came of it, `undefined` when
 * the session has ended, which is for the driver to hear as well.
 */
export const board = (duplex: Duplex, inbound: Intake, sql: string, { isDeparting, onAnswer, onChunk, onParameter }: {
  readonly onParameter: (name: string, value: string) => void
  /** Whether nothing but the end of the session is waited for. */
  readonly isDeparting: () => boolean
  readonly onChunk: () => void
  readonly onAnswer: (answer: Answer | undefined) => void
}): Uint8Array => {
  const replies = Reset.makeAnswer(onParameter)
  const taken: Array<Uint8Array> = []
  const settle = (answer: Answer | undefined): void => {
    stopLooking()
    duplex.off("close", settleUnanswered)
    onAnswer(answer)
  }
  const settleUnanswered = (): void => settle(undefined)
  const stopLooking = inbound.join((chunk, passOn) => {
    // Whoever waits for the end wants to hear of every sign of life.
    if (isDeparting()) return passOn(chunk)
    onChunk()
    const rest = replies.take(chunk)
    taken.push(new Uint8Array(chunk.subarray(0, Math.max(0, chunk.length - rest.length))))
    if (!replies.isDone()) return
    settle(readAnswer(replies, taken))
    passOn(rest)
  })
  duplex.once("close", settleUnanswered)
  return Reset.encodeQuery(sql)
}
