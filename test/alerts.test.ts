import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll } from "vitest"

const folder = fileURLToPath(new URL("../dashboards", import.meta.url))
const read = (file: string) => Fs.readFileSync(Path.join(folder, file), "utf8")

/** A file of rules or of tests, in pieces that can be left out: what comes before the first, then one for each. */
const pieces = (text: string, start: RegExp): readonly [head: string, ...pieces: ReadonlyArray<string>] => {
  const [head, ...rest] = text.split(start)
  return [head!, ...rest]
}
const rules = read("alerts.yml")
const [, ...allRules] = pieces(rules, /^(?= {6}- (?:alert|record): )/m)
const [testHead, ...allTests] = pieces(read("alerts.test.yml"), /^(?= {2}- name: )/m)
const alertName = (rule: string) => /^ {6}- alert: (\w+)$/m.exec(rule)?.[1]
const alertNames = new Set(allRules.flatMap((rule) => alertName(rule) ?? []))
assert.isAbove(alertNames.size, 9)

const scratch = Fs.mkdtempSync(Path.join(Os.tmpdir(), "alerts-test-"))
afterAll(() => Fs.rmSync(scratch, { recursive: true, force: true }))

const promtool = (...args: ReadonlyArray<string>) => {
  const { error, status, stderr, stdout } = spawnSync("promtool", args, { cwd: scratch, encoding: "utf8" })
  if (error !== undefined) {
    assert.fail(
      `promtool is not on the PATH: install the Debian package prometheus (brew install prometheus). ${error}`
    )
  }
  return { passes: status === 0, said: stdout + stderr }
}

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

describe("the alerts", () => {
  it("are rules that promtool accepts, without a complaint", () => {
    const { passes, said } = promtool("check", "rules", "--lint=all", "--lint-fatal", Path.join(folder, "alerts.yml"))
    assert.isTrue(passes, said)
  })

  it("fire and do not fire as their own tests say", () => {
    const { passes, said } = promtool("test", "rules", Path.join(folder, "alerts.test.yml"))
    assert.isTrue(passes, said)
  })

  for (const name of alertNames) {
    it(`${name} is tested so closely that another threshold, or another minute, would be noticed`, () => {
      const own = allRules.filter((rule) => alertName(rule) === name)
      const needed = allRules.filter((rule) =>
        own.includes(rule) || own.some((alert) => alert.includes(/- record: (\S+)/.exec(rule)?.[1] ?? " "))
      )
      const tests = allTests.filter((test) => test.includes(`alertname: ${name}\n`))
      const test = (run: ReadonlyArray<string>) => {
        Fs.writeFileSync(
          Path.join(scratch, "alerts.yml"),
          `groups:\n  - name: some\n    rules:\n${run.map((rule) => rule.replace(/^ {2}\S[^]*/m, "")).join("")}`
        )
        Fs.writeFileSync(Path.join(scratch, "alerts.test.yml"), testHead + tests.join(""))
        return promtool("test", "rules", "alerts.test.yml")
      }
      const unchanged = test(needed)
      assert.isTrue(unchanged.passes, unchanged.said)
      const survivors = own.flatMap((rule) => {
        const mutants = mutantsOf(rule)
        assert.isAbove(mutants.length, 1)
        return mutants
          .filter(([, mutant]) => test(needed.map((other) => (other === rule ? mutant : other))).passes)
          .map(([change]) => change)
      })
      assert.deepStrictEqual(survivors, [])
    })
  }

  it("each have a severity, a summary, a description with the value and a section of the runbook", () => {
    const runbook = Fs.readFileSync(Path.join(folder, "../docs/runbook.md"), "utf8")
    const anchors = new Set(
      Array.from(runbook.matchAll(/^#+ (.*)$/gm), ([, heading]) => heading!.toLowerCase().replaceAll(" ", "-"))
    )
    for (const [link, anchor] of runbook.matchAll(/\]\(#([^)]+)\)/g)) assert.include(anchors, anchor!, link)
    for (const rule of allRules) {
      const name = alertName(rule)
      if (name === undefined) continue
      assert.match(rule, /severity: (critical|warning)$/m, name)
      assert.match(rule, /summary: .*\{\{ \$labels\.pool \}\}/, name)
      assert.match(rule.slice(rule.indexOf("description: ")), /\{\{ \$value( \| humanize\w*)? \}\}/, name)
      assert.include(anchors, name.toLowerCase())
      assert.include(rule, `runbook_url: docs/runbook.md#${name.toLowerCase()}\n`, name)
    }
  })
})
