import { assert, describe, it } from "@effect/vitest"
import { poolerTexts } from "../scripts/pooler-texts.ts"
import { classify, isSafeToRepeat, type Phase } from "../src/Errors.ts"

const at = (phase: Phase) => ({ phase, reused: true, replied: true })

for (const pooler of new Set(poolerTexts.map(({ pooler }) => pooler))) {
  describe(`${pooler} says`, () => {
    for (const { inFlight, kind, severity, sqlState, text } of poolerTexts.filter((each) => each.pooler === pooler)) {
      const failure = { sqlState, severity, message: text }

      it(`${text}: ${kind}`, () => {
        // To who is only connecting, an idle session's end is one more refusal.
        assert.strictEqual(classify(failure, at("Connect")).kind, kind === "StaleConnection" ? "Unreachable" : kind)
        assert.strictEqual(classify(failure, at("InFlight")).kind, kind)
        assert.strictEqual(classify(failure, at("InFlight")).effect, inFlight)
        assert.strictEqual(classify(failure, at("Commit")).effect, "Unknown")
      })

      it(`${text}: ${kind === "Rejected" || kind === "Denied" ? "and is not asked again" : "and may be asked again"}`, () => {
        const { connection, retry } = classify(failure, at("Connect"))
        const isPermanent = kind === "Rejected" || kind === "Denied"
        assert.strictEqual(retry === "Never", isPermanent)
        assert.strictEqual(connection, "Evict")
      })
    }
  })
}

describe("a text that is a pooler's", () => {
  it("means nothing through a code that is the server's own", () => {
    const { kind } = classify({ sqlState: "P0001", severity: "ERROR", message: "query_wait_timeout" }, at("InFlight"))
    assert.strictEqual(kind, "Rejected")
  })

  it("is looked for only at the beginning of a long text", () => {
    const message = `${"endpoint ".repeat(200_000)}query_wait_timeout`
    const verdict = classify({ sqlState: "XX000", severity: "ERROR", message }, at("InFlight"))
    assert.isFalse(isSafeToRepeat(verdict, true))
  })
})
