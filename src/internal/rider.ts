import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as Result from "effect/Result"
import * as BackendMessages from "./backendMessages.ts"

/** In the order in which the bytes came. */
interface Parts {
  readonly before: Uint8Array
  readonly own: Uint8Array
  readonly after: Uint8Array
}

/**
 * Statements that travel with the driver's next one, in the same write, and whose answer is taken out of the stream
 * before the driver sees it. They cost no round trip of their own: the driver sends one statement at a time and waits.
 */
export interface Rider {
  readonly frame: Uint8Array
  /**
   * Splits a chunk into the rider's own and what belongs to the driver before and after it; any of them may be empty.
   * Must be fed everything that comes after the frame was sent, until `isDone`.
   */
  readonly take: (chunk: Uint8Array) => Parts
  readonly isDone: () => boolean
  /** The answer, once done: the columns of its first row; `undefined` if there is none, or the server refused it. */
  readonly answer: () => ReadonlyArray<string | null> | undefined
  /** The SQLSTATE with which the server refused one of them, and with it all, once done. */
  readonly refusedBy: () => string | undefined
}

/** What became of a rider. */
export interface Answer {
  readonly row: ReadonlyArray<string | null> | undefined
  readonly refusedBy: string | undefined
}

const inTransaction = "T"
const none = new Uint8Array(0)

/** Parse, Bind and Execute of unnamed statements without parameters. Their results should be text. */
export const encode = (statements: ReadonlyArray<string>): Uint8Array =>
  Buffer.concat(statements.flatMap((sql) => [
    Result.getOrThrow(PgProtocol.encodeParse({ name: "", query: sql, parameterTypes: [] })),
    Result.getOrThrow(PgProtocol.encodeBind({ portal: "", statement: "", parameters: [] })),
    PgProtocol.encodeExecute({ portal: "", maxRows: 0 })
  ]))

/** The columns of the first row among messages of the server. */
export const firstRow = (messages: ReadonlyArray<Uint8Array>): Answer["row"] => {
  for (const message of PgProtocol.makeParser().push(Buffer.concat(messages))) {
    if (message._tag !== "DataRow") continue
    return message.values.map((value) => value === null ? null : Buffer.from(value).toString("utf8"))
  }
  return undefined
}

/** Statements that ride along with one that opens a transaction, and run inside of it. */
export const make = (statements: ReadonlyArray<string>): Rider => {
  const find = BackendMessages.makeFinder()
  const messages = BackendMessages.makeScanner()
  const taken: Array<Uint8Array> = []
  let cyclesSeen = 0
  return {
    frame: Buffer.concat([encode(statements), PgProtocol.encodeSync()]),
    take: (chunk) => {
      let start = 0
      if (cyclesSeen === 0) {
        const end = find(chunk, 0)
        if (end === undefined) return { before: chunk, own: none, after: none }
        cyclesSeen = 1
        start = end
      }
      const end = find(chunk, start)
      if (end !== undefined) cyclesSeen = 2
      const own = chunk.subarray(start, end ?? chunk.length)
      messages.scan(own)
      taken.push(new Uint8Array(own))
      return { before: chunk.subarray(0, start), own, after: chunk.subarray(end ?? chunk.length) }
    },
    isDone: () => cyclesSeen === 2,
    refusedBy: () => cyclesSeen < 2 ? undefined : messages.lastError()?.code,
    // Outside of the transaction, what it found out is about another one.
    answer: () => cyclesSeen < 2 || messages.transactionStatus() !== inTransaction ? undefined : firstRow(taken)
  }
}
