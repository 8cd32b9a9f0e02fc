import { assert, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import * as Rider from "../src/internal/rider.ts"
import { message as encode } from "../src/testing/backendEncoder.ts"

const message = (type: string, body: Uint8Array | string): Buffer => encode(type, Buffer.from(body))

const ready = (status: string) => message("Z", status)

const row = (values: ReadonlyArray<string | null>): Buffer => {
  const count = Buffer.alloc(2)
  count.writeInt16BE(values.length)
  const fields = values.flatMap((value) => {
    const length = Buffer.alloc(4)
    length.writeInt32BE(value === null ? -1 : Buffer.byteLength(value))
    return [length, Buffer.from(value ?? "")]
  })
  return message("D", Buffer.concat([count, ...fields]))
}

const error = message("E", "SERROR\0VERROR\0C42501\0Mpermission denied\0\0")
const begun = Buffer.concat([message("1", ""), message("2", ""), message("n", ""), message("C", "BEGIN\0"), ready("T")])
const answered = (...rows: ReadonlyArray<Buffer>) =>
  Buffer.concat([message("1", ""), message("2", ""), ...rows, message("C", "SELECT 1\0"), ready("T")])

/** Cuts the bytes into pieces of the given lengths, over and over. */
const pieces = (bytes: Buffer, lengths: ReadonlyArray<number>): ReadonlyArray<Buffer> => {
  const all: Array<Buffer> = []
  for (let offset = 0, index = 0; offset < bytes.length; index++) {
    const end = Math.min(bytes.length, offset + lengths[index % lengths.length]!)
    all.push(bytes.subarray(offset, end))
    offset = end
  }
  return all
}

/** Feeds the chunks to a rider until it is done, and the rest to the driver, as a session does. */
const ride = (chunks: ReadonlyArray<Uint8Array>) => {
  const rider = Rider.make(["SELECT 1"])
  const driver: Array<Uint8Array> = []
  const own: Array<Uint8Array> = []
  const inOrder: Array<Uint8Array> = []
  for (const chunk of chunks) {
    const { after, before, own: mine } = rider.isDone()
      ? { before: chunk, own: new Uint8Array(0), after: new Uint8Array(0) }
      : rider.take(chunk)
    driver.push(before, after)
    own.push(mine)
    inOrder.push(before, mine, after)
  }
  return { rider, driver: Buffer.concat(driver), own: Buffer.concat(own), inOrder: Buffer.concat(inOrder) }
}

// What looks like an end inside of a row is none.
const body = fc.oneof(fc.uint8Array({ maxLength: 60 }), fc.constant(ready("T")))
const others = fc.array(
  fc.tuple(fc.constantFrom("D", "C", "N", "S", "2"), body).map(([type, bytes]) => message(type, bytes)),
  { maxLength: 6 }
)
const cycle = fc.tuple(others, fc.constantFrom("I", "T", "E")).map(([all, status]) =>
  Buffer.concat([...all, ready(status)])
)
const lengths = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 8 })

describe("a statement that rides along", () => {
  it("keeps its own answer and nothing else from the driver, wherever chunks cut the stream", () => {
    fc.assert(
      fc.property(cycle, cycle, fc.array(cycle, { maxLength: 3 }), lengths, (first, mine, more, cuts) => {
        const stream = Buffer.concat([first, mine, ...more])
        const { driver, inOrder, own, rider } = ride(pieces(stream, cuts))
        assert.isTrue(rider.isDone())
        assert.isTrue(own.equals(mine))
        assert.isTrue(driver.equals(Buffer.concat([first, ...more])))
        assert.isTrue(inOrder.equals(stream))
      }),
      { numRuns: 10_000 }
    )
  })

  it("has the columns of its first row for an answer, wherever chunks cut it", () => {
    const column = fc.option(fc.string({ maxLength: 20 }))
    fc.assert(
      fc.property(fc.array(column, { minLength: 1, maxLength: 5 }), lengths, (values, cuts) => {
        const stream = Buffer.concat([begun, answered(row(values), row(["second"]))])
        assert.deepStrictEqual(ride(pieces(stream, cuts)).rider.answer(), values)
      }),
      { numRuns: 2000 }
    )
  })

  it("has no answer before all of it has come", () => {
    const stream = Buffer.concat([begun, answered(row(["1"]))])
    const { rider } = ride([stream.subarray(0, -1)])
    assert.isFalse(rider.isDone())
    assert.isUndefined(rider.answer())
  })

  it("has no answer without a row, after a refusal, and outside of the transaction", () => {
    const answerOf = (...mine: ReadonlyArray<Buffer>) => ride([Buffer.concat([begun, ...mine])]).rider.answer()
    assert.isUndefined(answerOf(answered()))
    assert.isUndefined(answerOf(message("1", ""), error, ready("E")))
    assert.isUndefined(answerOf(message("1", ""), message("2", ""), row(["1"]), message("C", "SELECT 1\0"), ready("I")))
  })

  it("tells who has refused it, in whatever encoding that is said", () => {
    const refused = message("E", Buffer.from("SFEHLER\0VERROR\0C42704\0Mung\xfcltig\0\0", "latin1"))
    const { rider } = ride([begun, refused, ready("E")])
    assert.strictEqual(rider.refusedBy(), "42704")
    assert.isUndefined(rider.answer())
  })

  it("keeps what it was given when its socket uses the same memory again", () => {
    const rider = Rider.make(["SELECT 1"])
    const memory = Buffer.concat([begun, answered(row(["seven"]))])
    rider.take(memory)
    memory.fill(0)
    assert.deepStrictEqual(rider.answer(), ["seven"])
  })
})
