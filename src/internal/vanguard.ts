import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as Result from "effect/Result"

/** What became of a BEGIN that went ahead of a statement. */
export type Outcome = "Unanswered" | "Begun" | "Refused"

/**
 * A BEGIN in front of the driver's next statement, in the same write and under the same Sync: a server that refuses it
 * skips the statement as well. Its answer is taken out of the stream, and the driver sees its own statement's alone; a
 * refusal is left in, since it is that statement's answer, too.
 */
export interface Vanguard {
  /** The outcome so far. */
  readonly outcome: () => Outcome
  /** Passes on what is not an answer to BEGIN. Must be fed everything that comes in until it has an outcome. */
  readonly take: (chunk: Uint8Array, passOn: (rest: Uint8Array) => void) => void
}

const parseComplete = 0x31
const bindComplete = 0x32
const commandComplete = 0x43
const errorResponse = 0x45
const headerLength = 5

/** Unnamed, so that no name can have been lost: the driver would send its own statement again, without a BEGIN. */
export const frame: Uint8Array = Buffer.concat([
  Result.getOrThrow(PgProtocol.encodeParse({ name: "", query: "BEGIN", parameterTypes: [] })),
  Result.getOrThrow(PgProtocol.encodeBind({ portal: "", statement: "", parameters: [] })),
  PgProtocol.encodeExecute({ portal: "", maxRows: 0 })
])

/** ParseComplete, BindComplete and CommandComplete "BEGIN", as they come in one piece. */
const answer = Buffer.from("31000000043200000004430000000a424547494e00", "hex")

const isAnswer = (chunk: Uint8Array): boolean => {
  if (chunk.length < answer.length) return false
  for (let at = 0; at < answer.length; at++) if (chunk[at] !== answer[at]) return false
  return true
}

export const make = (): Vanguard => {
  let outcome: Outcome = "Unanswered"
  const header = new Uint8Array(headerLength)
  let fill = 0
  let bodyLeft = 0
  let isFresh = true

  const isOwn = (type: number): boolean => type === parseComplete || type === bindComplete || type === commandComplete

  /** Whatever else a server says at any time, a notice or a setting, is not ours. */
  const takeSlowly: Vanguard["take"] = (chunk, passOn) => {
    let offset = 0
    while (offset < chunk.length) {
      if (fill < headerLength) {
        header[fill++] = chunk[offset++]!
        if (fill < headerLength) continue
        bodyLeft = Math.max(0, (header[1]! << 24 | header[2]! << 16 | header[3]! << 8 | header[4]!) - 4)
        if (!isOwn(header[0]!)) passOn(header.slice())
      }
      const step = Math.min(bodyLeft, chunk.length - offset)
      if (step > 0 && !isOwn(header[0]!)) passOn(chunk.subarray(offset, offset + step))
      bodyLeft -= step
      offset += step
      if (bodyLeft > 0) return
      fill = 0
      if (header[0] === commandComplete) outcome = "Begun"
      else if (header[0] === errorResponse) outcome = "Refused"
      else continue
      return passOn(chunk.subarray(offset))
    }
  }

  return {
    outcome: () => outcome,
    take: (chunk, passOn) => {
      if (!isFresh || !isAnswer(chunk)) {
        isFresh = false
        return takeSlowly(chunk, passOn)
      }
      outcome = "Begun"
      passOn(chunk.subarray(answer.length))
    }
  }
}
