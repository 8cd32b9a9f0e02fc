import { assert, describe, it } from "@effect/vitest"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll } from "vitest"
import { promtool } from "./promtool.ts"

const folder = fileURLToPath(new URL("../dashboards", import.meta.url))
const read = (file: string) => Fs.readFileSync(Path.join(folder, file), "utf8")

// Both files in pieces that can be left out: one for each rule, without the head of the next group, and for each test.
const [, ...rules] = read("alerts.yml").split(/^(?= {6}- (?:alert|record): )/m).map((rule) =>
  rule.replace(/^ {2}\S[^]*/m, "")
)
const [head, ...tests] = read("alerts.test.yml").split(/^(?= {2}- name: )/m)

const alertName = (rule: string) => /^ {6}- alert: (\w+)$/m.exec(rule)?.[1]
const alertNames = new Set(rules.flatMap((rule) => alertName(rule) ?? []))
assert.isAbove(alertNames.size, 9)

const scratch = Fs.mkdtempSync(Path.join(Os.tmpdir(), "alerts-test-"))
afterAll(() => Fs.rmSync(scratch, { recursive: true, force: true }))

/** The changes of one rule that its tests have to notice: thresholds by a tenth or by one, `for` by a minute. */
const mutantsOf = (rule: string): ReadonlyArray<readonly [change: string, rule: string]> => {
  const thresholds = new Set(Array.from(rule.matchAll(/ (?:>|<|==) [\d.]+(?: \* [\d.]+)?$/gm), ([found]) => found))
  return [...thresholds, ...(rule.match(/for: \d+[mh]$/m) ?? [])].flatMap((found) => {
    const [, before, number, unit] = /^(.*?) ([\d.]+)(.*)$/.exec(found)!
    const value = Number(number)
    const changed = before === "for:"
      ? [1, -1].map((minutes) => `${value * (unit === "h" ? 60 : 1) + minutes}m`)
      : [1, -1].map((sign) => `${value + sign * (Number.isInteger(value) && unit === "" ? 1 : value / 10)}${unit}`)
    // The long and the short window of a budget have the same threshold, and change together.
    return changed.map((to) => [`${found.trim()} -> ${to}`, rule.replaceAll(found, `${before} ${to}`)] as const)
  })
}

/**
 * Which variants of a rule the tests of its alert complain of. They are tried in one run, each under a name of its own. An
 * alert may have several rules, each with a window of its own: only what is expected of this one is looked at.
 */
const caught = (name: string, variants: ReadonlyArray<string>): ReadonlyArray<boolean> => {
  const [rule] = variants
  const records = rules.filter((other) => rule!.includes(/- record: (\S+)/.exec(other)?.[1] ?? "nothing of the kind"))
  const alerts = variants.map((variant, index) => variant.replace(`- alert: ${name}`, `- alert: ${name}_${index}`))
  const window = / window: \S+\n/.exec(rule!)?.[0] ?? ""
  const named = tests.filter((test) => test.includes(`alertname: ${name}\n`)).map((test) =>
    test
      .replace(/^ {10}- exp_labels:\n(?: {12}.*\n)+/gm, (expected) => expected.includes(window) ? expected : "")
      .replace(
        /(?<=^ {4}alert_rule_test:\n)(?: {6}.*\n)+/m,
        (cases) => variants.map((_, index) => cases.replaceAll(`: ${name}\n`, `: ${name}_${index}\n`)).join("")
      )
  )
  Fs.writeFileSync(
    Path.join(scratch, "alerts.yml"),
    `groups:\n  - name: some\n    rules:\n${[...records, ...alerts].join("")}`
  )
  Fs.writeFileSync(Path.join(scratch, "alerts.test.yml"), [head, ...named].join(""))
  const complaints = promtool(["test", "rules", Path.join(scratch, "alerts.test.yml")])
  const complainedOf = new Set(Array.from(complaints.matchAll(/alertname: (\w+), time: /g), ([, alert]) => alert))
  assert.strictEqual(complaints === "", complainedOf.size === 0, complaints)
  return variants.map((_, index) => complainedOf.has(`${name}_${index}`))
}

describe("the alerts", () => {
  it("are rules that promtool accepts, without a complaint", () => {
    assert.strictEqual(promtool(["check", "rules", "--lint=all", "--lint-fatal", Path.join(folder, "alerts.yml")]), "")
  })

  it("fire and do not fire as their own tests say", () => {
    assert.strictEqual(promtool(["test", "rules", Path.join(folder, "alerts.test.yml")]), "")
  })

  for (const name of alertNames) {
    it(`${name} is tested so closely that another threshold, or another minute, would be noticed`, () => {
      const survivors = rules.filter((rule) => alertName(rule) === name).flatMap((rule) => {
        const mutants = mutantsOf(rule)
        assert.isAbove(mutants.length, 1)
        const [isCaught, ...areCaught] = caught(name, [rule, ...mutants.map(([, mutant]) => mutant)])
        assert.isFalse(isCaught, "the rule itself passes")
        return mutants.flatMap(([change], index) => areCaught[index] === true ? [] : [change])
      })
      assert.deepStrictEqual(survivors, [])
    })
  }

  it("have a runbook that names what the log and the environment have", () => {
    const read = (page: string) => Fs.readFileSync(Path.join(folder, "../docs", page), "utf8")
    const runbook = read("runbook.md")
    // These two pages are held to the code by tests of their own.
    for (const [page, names] of [["logs.md", /`db\.[a-z_.]+`/g], ["migrating.md", /\bDB_[A-Z_]+/g]] as const) {
      const known = read(page)
      const named = runbook.match(names) ?? []
      assert.isAbove(named.length, 3)
      for (const name of named) assert.include(known, name)
    }
  })

  it("each have a severity, a summary, a description with the value and a section of the runbook", () => {
    const runbook = Fs.readFileSync(Path.join(folder, "../docs/runbook.md"), "utf8")
    const anchors = new Set(
      Array.from(runbook.matchAll(/^#+ (.*)$/gm), ([, heading]) => heading!.toLowerCase().replaceAll(" ", "-"))
    )
    for (const [link, anchor] of runbook.matchAll(/\]\(#([^)]+)\)/g)) assert.include(anchors, anchor!, link)
    for (const rule of rules) {
      const name = alertName(rule)
      if (name === undefined) continue
      assert.match(rule, /severity: (critical|warning)$/m, name)
      assert.match(rule, /summary: .*\{\{ \$labels\.pool \}\}/, name)
      assert.match(
        rule.slice(rule.indexOf("description: ")),
        /\{\{ \$value( \| (humanize\w*|printf "%.0f"))? \}\}/,
        name
      )
      assert.include(anchors, name.toLowerCase())
      assert.include(rule, `runbook_url: docs/runbook.md#${name.toLowerCase()}\n`, name)
    }
  })
})
