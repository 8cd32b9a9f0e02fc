import { assert, describe, it } from "@effect/vitest"
import * as Vanguard from "../src/internal/vanguard.ts"
import { message as encode } from "../src/testing/backendEncoder.ts"

const message = (type: string, body: string): Buffer => encode(type, Buffer.from(body))

const begun = Buffer.concat([message("1", ""), message("2", ""), message("C", "BEGIN\0")])
const own = Buffer.concat([
  message("1", ""),
  message("2", ""),
  message("n", ""),
  message("C", "INSERT 0 1\0"),
  message("Z", "T")
])
const refusal = Buffer.concat([message("E", "SERROR\0VERROR\0C25006\0Mno\0\0"), message("Z", "I")])
const notice = message("N", "SWARNING\0VWARNING\0C25001\0Mthere is already a transaction in progress\0\0")
const report = message("S", "TimeZone\0UTC\0")

/** Feeds chunks as a session does: to the vanguard until it knows, and then to the driver. */
const feed = (chunks: ReadonlyArray<Uint8Array>, luggage: ReadonlyArray<string> = []) => {
  const vanguard = Vanguard.make(luggage)
  const driver: Array<Uint8Array> = []
  for (const chunk of chunks) {
    if (!vanguard.isDone()) vanguard.take(chunk, (rest) => driver.push(rest))
    else driver.push(chunk)
  }
  return { outcome: vanguard.outcome(), driver: Buffer.concat(driver), row: vanguard.row() }
}

/** The bytes in one piece, cut in two at every place, and one by one. */
const waysToCut = (bytes: Buffer): ReadonlyArray<ReadonlyArray<Uint8Array>> => [
  [bytes],
  ...Array.from({ length: bytes.length - 1 }, (_, index) => [bytes.subarray(0, index + 1), bytes.subarray(index + 1)]),
  Array.from(bytes, (_, index) => bytes.subarray(index, index + 1))
]

describe("the answer to a BEGIN that went ahead", () => {
  it("is taken out, wherever it is cut, and the driver gets its own statement's whole", () => {
    for (const chunks of waysToCut(Buffer.concat([begun, own]))) {
      const { driver, outcome } = feed(chunks)
      assert.strictEqual(outcome, "Begun")
      assert.deepStrictEqual(driver, own)
    }
  })

  it("leaves what a server says at any time to the driver, in its order", () => {
    const mixed = Buffer.concat([report, message("1", ""), message("2", ""), notice, message("C", "BEGIN\0"), own])
    for (const chunks of waysToCut(mixed)) {
      const { driver, outcome } = feed(chunks)
      assert.strictEqual(outcome, "Begun")
      assert.deepStrictEqual(driver, Buffer.concat([report, notice, own]))
    }
  })

  it("that is a refusal is the statement's own, which the server has skipped", () => {
    for (const chunks of waysToCut(refusal)) {
      const { driver, outcome } = feed(chunks)
      assert.strictEqual(outcome, "Refused")
      assert.deepStrictEqual(driver, refusal)
    }
    for (const chunks of waysToCut(Buffer.concat([message("1", ""), message("2", ""), refusal]))) {
      assert.deepStrictEqual(feed(chunks), { outcome: "Refused", driver: refusal, row: undefined })
    }
  })

  it("that has not come in full is none", () => {
    for (let end = 1; end < begun.length; end++) {
      assert.deepStrictEqual(feed([begun.subarray(0, end)]), {
        outcome: "Unanswered",
        driver: Buffer.alloc(0),
        row: undefined
      })
    }
  })
})

describe("what comes with a BEGIN that went ahead", () => {
  const luggage = ["SET LOCAL lock_timeout = 1", "SELECT 7, NULL, ''"]
  const set = Buffer.concat([message("1", ""), message("2", ""), message("C", "SET\0")])

  it("is sent under the statement's own Sync", () => {
    const { frame } = Vanguard.make(luggage)
    const types: Array<string> = []
    for (let at = 0; at < frame.length; at += 1 + Buffer.from(frame).readInt32BE(at + 1)) {
      types.push(String.fromCharCode(frame[at]!))
    }
    assert.strictEqual(types.join(""), "PBEPBEPBE")
  })

  it("is taken out with its first row, wherever it is cut", () => {
    const bytes = Buffer.from("0003000000013" + "7ffffffff00000000", "hex")
    const selected = Buffer.concat([message("1", ""), message("2", ""), encode("D", bytes), message("C", "SELECT 1\0")])
    for (const chunks of waysToCut(Buffer.concat([begun, set, report, selected, own]))) {
      assert.deepStrictEqual(feed(chunks, luggage), {
        outcome: "Begun",
        driver: Buffer.concat([report, own]),
        row: ["7", null, ""]
      })
    }
  })

  it("hinders the statement when it is refused, and the refusal is the statement's", () => {
    for (const before of [begun, Buffer.concat([begun, set]), Buffer.concat([begun, set, message("1", "")])]) {
      for (const chunks of waysToCut(Buffer.concat([before, refusal]))) {
        assert.deepStrictEqual(feed(chunks, luggage), { outcome: "Hindered", driver: refusal, row: undefined })
      }
    }
  })

  it("is not there when BEGIN is refused", () => {
    for (const chunks of waysToCut(refusal)) {
      assert.deepStrictEqual(feed(chunks, luggage), { outcome: "Refused", driver: refusal, row: undefined })
    }
  })
})
