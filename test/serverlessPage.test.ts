/** docs/serverless.md names the tests that hold what it says; they have to be there. */
import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"

const root = new URL("../", import.meta.url)
const read = (path: string): string => readFileSync(new URL(path, root), "utf8")

const page = read("docs/serverless.md")

/** A file, and the names that are quoted after it. */
const references = Array.from(
  page.matchAll(/`(test\/[\w/]+\.test\.ts)`: ((?:"[^"]+"(?:,\s+)?)+)/g),
  ([, file = "", names = ""]) => ({
    file,
    names: Array.from(names.matchAll(/"([^"]+)"/g), ([, name = ""]) => name.replaceAll(/\s+/g, " "))
  })
)

describe("the page about serverless", () => {
  for (const { file, names } of references) {
    for (const name of names) {
      it(`names a test of ${file}: ${name}`, () => {
        assert.isTrue(read(file).includes(name), `${file} has no test "${name}"`)
      })
    }
  }

  it("has a test, or a reason, for each fact of the life cycle", () => {
    const facts = page.split("\n").filter((line) => /^\| L\d+ /.test(line))
    assert.lengthOf(facts, 13)
    for (const fact of facts) assert.match(fact, /`test\/[\w/]+\.test\.ts`: "/)
  })
})
