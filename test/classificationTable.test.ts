import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import { render } from "../scripts/classification-table.ts"

describe("docs/classification.md", () => {
  it("says what the tables say; if not, run: npm run docs:classification", () => {
    const written = readFileSync(new URL("../docs/classification.md", import.meta.url), "utf8")
    assert.strictEqual(written, render())
  })
})
