import * as Rider from "./rider.ts"

/**
 * What became of a BEGIN that went ahead of a statement. `Hindered`: it was done, and what came with it was refused, so that
 * the server has skipped the statement.
 */
export type Outcome = "Unanswered" | "Begun" | "Hindered" | "Refused"

/**
 * A BEGIN in front of the driver's next statement, in the same write and under the same Sync, and between them what the pool
 * wants to have in the transaction: a server that refuses any of it skips the statement as well. Its answer is taken out of
 * the stream, and the driver sees its own statement's alone; a refusal is left in, since it is that statement's answer, too.
 */
export interface Vanguard {
  readonly frame: Uint8Array
  /** The outcome so far. */
  readonly outcome: () => Outcome
  /** Whether all of it has been answered. */
  readonly isDone: () => boolean
  /** The first row of what came with BEGIN. */
  readonly row: () => Rider.Answer["row"]
  /** Passes on what is not an answer to it. Must be fed everything that comes in until it is done. */
  readonly take: (chunk: Uint8Array, passOn: (rest: Uint8Array) => void) => void
}

const parseComplete = 0x31
const bindComplete = 0x32
const dataRow = 0x44
const commandComplete = 0x43
const errorResponse = 0x45
const headerLength = 5

/** Unnamed, so that no name can have been lost: the driver would send its own statement again, without a BEGIN. */
const begin = Rider.encode(["BEGIN"])

/** ParseComplete, BindComplete and CommandComplete "BEGIN", as they come in one piece. */
const answer = Buffer.from("31000000043200000004430000000a424547494e00", "hex")

const isAnswer = (chunk: Uint8Array): boolean => {
  if (chunk.length < answer.length) return false
  for (let at = 0; at < answer.length; at++) if (chunk[at] !== answer[at]) return false
  return true
}

export const make = (luggage: ReadonlyArray<string>): Vanguard => {
  let outcome: Outcome = "Unanswered"
  const header = new Uint8Array(headerLength)
  let fill = 0
  let bodyLeft = 0
  let isFresh = luggage.length === 0
  /** Statements whose end has not come. */
  let left = 1 + luggage.length
  let rows: Array<Uint8Array> | undefined

  const isOwn = (type: number): boolean =>
    type === parseComplete || type === bindComplete || type === commandComplete || type === dataRow

  const pass = (part: Uint8Array, passOn: (rest: Uint8Array) => void): void => {
    if (!isOwn(header[0]!)) passOn(part)
    else if (header[0] === dataRow) (rows ??= []).push(new Uint8Array(part))
  }

  /** Whatever else a server says at any time, a notice or a setting, is not ours. */
  const takeSlowly: Vanguard["take"] = (chunk, passOn) => {
    let offset = 0
    while (offset < chunk.length) {
      if (fill < headerLength) {
        header[fill++] = chunk[offset++]!
        if (fill < headerLength) continue
        bodyLeft = Math.max(0, (header[1]! << 24 | header[2]! << 16 | header[3]! << 8 | header[4]!) - 4)
        pass(header.slice(), passOn)
      }
      const step = Math.min(bodyLeft, chunk.length - offset)
      if (step > 0) pass(chunk.subarray(offset, offset + step), passOn)
      bodyLeft -= step
      offset += step
      if (bodyLeft > 0) return
      fill = 0
      if (header[0] === commandComplete) {
        outcome = "Begun"
        left--
      } else if (header[0] === errorResponse) {
        outcome = outcome === "Begun" ? "Hindered" : "Refused"
        left = 0
      }
      if (left === 0) return passOn(chunk.subarray(offset))
    }
  }

  return {
    frame: luggage.length === 0 ? begin : Buffer.concat([begin, Rider.encode(luggage)]),
    outcome: () => outcome,
    isDone: () => left === 0,
    row: () => rows && Rider.firstRow(rows),
    take: (chunk, passOn) => {
      if (!isFresh || !isAnswer(chunk)) {
        isFresh = false
        return takeSlowly(chunk, passOn)
      }
      outcome = "Begun"
      left = 0
      passOn(chunk.subarray(answer.length))
    }
  }
}
