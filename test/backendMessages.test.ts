import { assert, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import * as BackendMessages from "../src/internal/backendMessages.ts"
import { message as encode } from "../src/testing/backendEncoder.ts"

const message = (type: string, body: Uint8Array | string): Buffer => encode(type, Buffer.from(body))

const ready = (status: string) => message("Z", status)
const error = (severity: string, code: string, text: string) =>
  message("E", `S${severity}\0V${severity}\0C${code}\0M${text}\0\0`)

/** Feeds the bytes in pieces of the given lengths, over and over. */
const scanned = (bytes: Uint8Array, lengths: ReadonlyArray<number>) => {
  const scanner = BackendMessages.makeScanner()
  for (let offset = 0, index = 0; offset < bytes.length; index++) {
    const end = Math.min(bytes.length, offset + lengths[index % lengths.length]!)
    scanner.scan(bytes.subarray(offset, end))
    offset = end
  }
  return scanner
}

const lengths = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 8 })
const row = fc.uint8Array({ maxLength: 60 }).map((body) => message("D", body))

describe("the messages of the server", () => {
  it("say nothing about a transaction before the first ReadyForQuery", () => {
    assert.isUndefined(BackendMessages.makeScanner().transactionStatus())
  })

  it("tell the transaction state, wherever chunks cut them and whatever the rows hold", () => {
    fc.assert(
      fc.property(fc.array(row, { maxLength: 12 }), fc.constantFrom("I", "T", "E"), lengths, (rows, status, cuts) => {
        const scanner = scanned(Buffer.concat([ready("I"), ...rows, message("C", "SELECT 1\0"), ready(status)]), cuts)
        assert.strictEqual(scanner.transactionStatus(), status)
        assert.isUndefined(scanner.fatal())
      }),
      { numRuns: 2000 }
    )
  })

  it("leave the state open while something else came last", () => {
    const scanner = scanned(Buffer.concat([ready("T"), message("N", "notice\0")]), [100])
    assert.isUndefined(scanner.transactionStatus())
  })

  it("tell what a CancelRequest has to name, wherever chunks cut them", () => {
    const key = Buffer.alloc(8)
    key.writeInt32BE(4711, 0)
    key.writeInt32BE(-42, 4)
    fc.assert(
      fc.property(fc.array(row, { maxLength: 6 }), lengths, (rows, cuts) => {
        const scanner = scanned(Buffer.concat([message("R", "\0\0\0\0"), message("K", key), ready("I"), ...rows]), cuts)
        assert.deepStrictEqual(scanner.cancelKey(), { pid: 4711, secret: -42 })
      }),
      { numRuns: 500 }
    )
    assert.isUndefined(scanned(message("K", key).subarray(0, 9), [4]).cancelKey())
  })

  it("tell the FATAL that ends a session, wherever chunks cut it", () => {
    fc.assert(
      fc.property(fc.array(row, { maxLength: 6 }), lengths, (rows, cuts) => {
        const scanner = scanned(Buffer.concat([...rows, error("FATAL", "57P01", "terminating connection")]), cuts)
        assert.deepStrictEqual(scanner.fatal(), { sqlState: "57P01", message: "terminating connection" })
      }),
      { numRuns: 2000 }
    )
  })

  it("tell a FATAL by the severity that is not translated", () => {
    const german = message("E", "SSCHWERWIEGEND\0VFATAL\0C57P01\0Mend\0\0")
    assert.strictEqual(scanned(german, [9]).fatal()?.sqlState, "57P01")
  })

  it("tell what the server reports of its settings, wherever chunks cut it", () => {
    fc.assert(
      fc.property(fc.array(row, { maxLength: 6 }), lengths, (rows, cuts) => {
        const report = (value: string) => message("S", `in_hot_standby\0${value}\0`)
        const scanner = scanned(Buffer.concat([report("on"), ...rows, report("off"), ready("I")]), cuts)
        assert.strictEqual(scanner.parameter("in_hot_standby"), "off")
        assert.isUndefined(scanner.parameter("server_version"))
        assert.isTrue(scanner.isIdle())
      }),
      { numRuns: 1000 }
    )
  })

  it("tell the FATAL of a server that speaks another encoding, and one that is cut short", () => {
    const fields = Buffer.from("SFATAL\0VFATAL\0C57P01\0Mung\xfcltig", "latin1")
    for (const end of ["\0\0", ""]) {
      const scanner = scanned(message("E", Buffer.concat([fields, Buffer.from(end)])), [100])
      assert.deepStrictEqual(scanner.fatal(), { sqlState: "57P01", message: "ung\ufffdltig" })
    }
    assert.isUndefined(scanned(message("E", ""), [100]).fatal())
  })

  it("do not take an ERROR for the end", () => {
    assert.isUndefined(scanned(Buffer.concat([error("ERROR", "22012", "division by zero"), ready("I")]), [7]).fatal())
  })

  it("do not take bytes of a row for the server's word", () => {
    const forged = message("D", error("FATAL", "57P05", "forged"))
    assert.isUndefined(scanned(forged, [5, 1000]).fatal())
    assert.isUndefined(scanned(Buffer.concat([forged, ready("T")]), [11]).fatal())
  })

  it("do not tell of a FATAL that has not come to its end", () => {
    const whole = error("FATAL", "57P01", "terminating connection")
    assert.isUndefined(scanned(whole.subarray(0, whole.length - 1), [4]).fatal())
  })
})

describe("the end of an answer", () => {
  it("is looked for once in every byte, whatever lengths a stranger claims", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        let reads = 0
        const counted = new Proxy(bytes, {
          get: (target, key) => {
            if (typeof key === "string" && /^-?\d+$/.test(key)) assert.isAtMost(++reads, bytes.length)
            return Reflect.get(target, key)
          }
        })
        const end = BackendMessages.makeFinder()(counted, 0)
        assert.isTrue(end === undefined || end <= bytes.length)
      }),
      { numRuns: 2000 }
    )
  })
})
