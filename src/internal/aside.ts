import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as Reset from "./reset.ts"

/** What came of a question: its first row, or the SQLSTATE with which the server refused it. */
export interface Answer {
  readonly row: ReadonlyArray<string | null> | undefined
  readonly refusedBy: string | undefined
}

/** A question that is asked past the driver, in text: its answer is taken out of the stream. */
export interface Aside {
  readonly frame: Uint8Array
  /**
   * Takes its own from a chunk and hands back the rest. Must be fed everything that comes, until `isDone`. That the
   * session has ended is for the driver to hear.
   */
  readonly take: (chunk: Uint8Array) => Uint8Array
  readonly isDone: () => boolean
  /** Once done: `undefined` when the session has ended. */
  readonly answer: () => Answer | undefined
}

/** A question that is asked when nothing else is owed: its answer is the first thing to come. */
export const make = (sql: string, onParameter: (name: string, value: string) => void): Aside => {
  const replies = Reset.makeAnswer(onParameter)
  const taken: Array<Uint8Array> = []
  return {
    frame: Reset.encodeQuery(sql),
    take: (chunk) => {
      const rest = replies.take(chunk)
      taken.push(new Uint8Array(chunk.subarray(0, chunk.length - rest.length)))
      return rest
    },
    isDone: replies.isDone,
    answer: () => {
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
  }
}
