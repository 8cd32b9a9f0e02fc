import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import * as FrontendMessages from "../src/testing/frontendMessages.ts"

const lengths = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 8 })

const typed = fc.oneof(
  fc.constant(["S", PgProtocol.encodeSync()] as const),
  fc.constant(["H", PgProtocol.encodeFlush()] as const),
  fc.string({ maxLength: 60 }).map((query) =>
    [
      "P",
      Result.getOrThrow(PgProtocol.encodeParse({
        name: "",
        query: query.replaceAll("\0", ""),
        parameterTypes: [23]
      }))
    ] as const
  ),
  // Somebody else's Sync, as far as bytes go.
  fc.constant(["p", PgProtocol.encodePasswordMessage({ password: "S\u0001S" })] as const)
)

const types = (bytes: Buffer, cuts: ReadonlyArray<number>): ReadonlyArray<string> => {
  const reader = FrontendMessages.makeReader()
  const types: Array<string> = []
  for (let offset = 0, index = 0; offset < bytes.length; index++) {
    const end = offset + cuts[index % cuts.length]!
    types.push(...reader.push(bytes.subarray(offset, end)).map(({ type }) => type))
    offset = end
  }
  return types
}

describe("the messages of a client", () => {
  it("are the same, wherever chunks cut them", () => {
    fc.assert(
      fc.property(fc.boolean(), fc.array(typed, { maxLength: 12 }), lengths, (asksForTls, messages, cuts) => {
        const start = asksForTls ? [["SSLRequest", PgProtocol.encodeSslRequest()] as const] : []
        const startup = ["startup", PgProtocol.encodeStartupMessage({ user: "u" })] as const
        const all = [...start, startup, ...messages]
        const bytes = Buffer.concat(all.map(([, bytes]) => bytes))
        assert.deepStrictEqual(types(bytes, cuts), all.map(([type]) => type))
      }),
      { numRuns: 1000 }
    )
  })

  it("tell a CancelRequest from a session", () => {
    const request = Buffer.from(PgProtocol.encodeCancelRequest({ pid: 1, secret: 2 }))
    assert.deepStrictEqual(types(request, [3]), ["CancelRequest"])
  })

  it("end where they are no PostgreSQL", () => {
    assert.deepStrictEqual(types(Buffer.from("GET / HTTP/1.1\r\n\r\n"), [4]), [])
    assert.deepStrictEqual(types(Buffer.from([0, 0, 0, 0, 1, 2, 3, 4, 5]), [2]), [])
  })

  it("have fields, and nothing beyond them", () => {
    const bytes = Buffer.from("name\0\0\x02\0\0\0\x07\0\0\0\x01x", "latin1")
    const fields = FrontendMessages.fieldsOf(bytes)
    assert.strictEqual(fields.text(), "name")
    assert.strictEqual(fields.int16(), 2)
    assert.strictEqual(fields.int32(), 7)
    assert.deepStrictEqual(fields.bytes(), bytes.subarray(-1))
    assert.isTrue(fields.isAtEnd())
    assert.throws(fields.int32)
    assert.throws(fields.text)
    assert.throws(FrontendMessages.fieldsOf(Buffer.from([0, 0, 0, 9, 1])).bytes)
  })
})
