import { Duplex } from "node:stream"
import {
  authentication,
  backendKeyData,
  bindComplete,
  commandComplete,
  int16,
  int32,
  message,
  parseComplete,
  ready
} from "../src/testing/backendEncoder.ts"

/** Whether an answer is there when the write returns, or arrives with all others of its turn of the event loop. */
export type Answers = "at once" | "next turn"

/** A server in this process that knows one statement: it answers with the id that it was asked for. */
export interface StubServer {
  readonly stream: () => Duplex
  /** How many statements it has answered. */
  readonly answered: () => number
}

const idle = ready("I")
const greeting = Buffer.concat([authentication(0), backendKeyData(1, 2), idle])
const int4 = Buffer.concat([int32(23), int16(4), int32(-1), int16(1)])
const text = Buffer.concat([int32(25), int16(-1), int32(-1), int16(1)])
const source = Buffer.concat([int32(0), int16(0)])
const columns = message("T", int16(2), Buffer.from("id\0"), source, int4, Buffer.from("name\0"), source, text)
const name = Buffer.from("a thing")
const row = message("D", int16(2), int32(4), int32(0), int32(name.length), name)
const tail = Buffer.concat([row, commandComplete("SELECT 1"), idle])
const answer = Buffer.concat([bindComplete, tail])
const firstAnswer = Buffer.concat([parseComplete, bindComplete, columns, tail])

/** Where the id is, counted from the end of an answer. */
const idFromEnd = tail.length - 11

const parse = 0x50
const bind = 0x42
const sync = 0x53
const terminate = 0x58

/** The only parameter of a Bind, four bytes, is followed by the one format that is asked of the results. */
const idBeforeEnd = 8

/** From its own end: what `destroy` does at the client's is the client's business. */
const hangUp = (socket: Duplex): void => void Duplex.prototype.destroy.call(socket)

export const makeStubServer = (answers: Answers): StubServer => {
  let answered = 0
  let due: Array<() => void> = []
  const later = (push: () => void): void => {
    if (due.push(push) > 1) return
    setImmediate(() => {
      const now = due
      due = []
      for (const each of now) each()
    })
  }

  /** All answers to the statements of one write, as one chunk. */
  const answerTo = (frame: Buffer): Buffer => {
    const parts: Array<Buffer> = []
    let isFirst = false
    let idAt = 0
    for (let at = 0; at < frame.length;) {
      const type = frame[at]!
      const end = at + 1 + frame.readInt32BE(at + 1)
      if (type === parse) isFirst = true
      else if (type === bind) idAt = end - idBeforeEnd
      else if (type === sync) {
        const one = Buffer.from(isFirst ? firstAnswer : answer)
        frame.copy(one, one.length - idFromEnd, idAt, idAt + 4)
        parts.push(one)
        isFirst = false
      }
      at = end
    }
    answered += parts.length
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts)
  }

  const stream = () => {
    let isGreeted = false
    return new Duplex({
      read() {},
      write(chunk: Buffer | Uint8Array, _encoding, callback) {
        callback()
        if (!isGreeted) {
          isGreeted = true
          this.push(greeting)
        } else if (chunk[0] === terminate) hangUp(this)
        else {
          const reply = answerTo(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength))
          if (answers === "at once") this.push(reply)
          else later(() => this.push(reply))
        }
      },
      final(callback) {
        callback()
        hangUp(this)
      }
    })
  }

  return { stream, answered: () => answered }
}
