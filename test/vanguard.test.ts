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
const feed = (chunks: ReadonlyArray<Uint8Array>) => {
  const vanguard = Vanguard.make()
  const driver: Array<Uint8Array> = []
  for (const chunk of chunks) {
    if (vanguard.outcome() === "Unanswered") vanguard.take(chunk, (rest) => driver.push(rest))
    else driver.push(chunk)
  }
  return { outcome: vanguard.outcome(), driver: Buffer.concat(driver) }
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
      assert.deepStrictEqual(feed(chunks), { outcome: "Refused", driver: refusal })
    }
  })

  it("that has not come in full is none", () => {
    for (let end = 1; end < begun.length; end++) {
      assert.deepStrictEqual(feed([begun.subarray(0, end)]), { outcome: "Unanswered", driver: Buffer.alloc(0) })
    }
  })
})
