/** A real Prometheus scrapes the example server under load and faults: the dashboard and the alerts have something to say. */
import { assert, describe, it } from "@effect/vitest"
import { FaultProxy } from "effect-pg-pool/testing"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import { rows, variables } from "../../scripts/dashboard/panels.ts"
import * as Prometheus from "../../scripts/dashboard/prometheus.ts"
import * as Scene from "../../scripts/dashboard/scene.ts"
import { freshDatabase } from "./database.ts"
import { eventually, makeWitness } from "./witness.ts"

const seconds = Effect.map(Clock.currentTimeMillis, (millis) => millis / 1000)

/** What an alert compares, without what it is compared with. */
const withoutThresholds = (expr: string): string => expr.replaceAll(/ (?:>|<|==) [\d.]+(?: \* [\d.]+)?(?=\s|$)/g, "")

const runbook = readFileSync(new URL("../../docs/runbook.md", import.meta.url), "utf8")
const fencesOf = (language: string): ReadonlyArray<string> => {
  const fences = runbook.matchAll(new RegExp(`^ *\`\`\`${language}\n([^]*?)\n *\`\`\`$`, "gm"))
  return Array.from(fences, ([, code]) => code!)
}

describe("the runbook", () => {
  it.live("has SQL that the server understands, and answers a member of pg_monitor", () =>
    Effect.gen(function*() {
      const witness = yield* makeWitness(yield* freshDatabase)
      yield* witness.query("SET ROLE pg_monitor")
      const statements = fencesOf("sql")
      assert.isAbove(statements.length, 5)
      yield* Effect.forEach(statements, (statement) => witness.query(statement))
    }))
})

describe("Prometheus", { timeout: 120_000 }, () => {
  it.live("has data for every question of the dashboard, the alerts and the runbook, and alerts when the breaker opens", () =>
    Effect.gen(function*() {
      const database = yield* freshDatabase
      const proxy = yield* FaultProxy.make(database)
      const address = yield* Scene.startExample(proxy.url, {
        DB_POOL_MAX: "4",
        DB_ACQUIRE_TIMEOUT: "250 millis",
        DB_BREAKER_FAILURES: "3",
        DB_BREAKER_OPEN: "1 second"
      })
      const prometheus = yield* Prometheus.make(address, 1)
      const from = yield* seconds
      yield* Scene.play({ address, database, proxy, beat: 1 })

      yield* eventually(
        "an alert because the breaker has opened",
        Effect.map(
          prometheus.rules,
          (rules) => rules.some(({ name, state }) => name === "DbCircuitBreakerOpen" && state === "firing")
        )
      )
      // A machine that stands still for a second misses a scrape.
      yield* eventually("a scrape that works", Effect.map(prometheus.targets, (all) => all[0]?.health === "up"))
      for (const { name, query } of variables) {
        const values = yield* prometheus.labelValues(Prometheus.chooseAll(query, ""))
        assert.isNotEmpty(values, name)
      }

      const to = yield* seconds
      const points = (expr: string) =>
        Effect.map(prometheus.range(expr, from, to, 1), (all) => all.flatMap((series) => series.points))
      const silent: Array<string> = []
      for (const { panels, title } of rows) {
        for (const panel of panels) {
          let highest = -Infinity
          for (const { expr } of panel.queries) {
            const values = yield* points(Prometheus.chooseAll(expr, "5s"))
            if (values.length === 0) silent.push(`no data in ${title}, ${panel.title}: ${expr}`)
            for (const [, value] of values) highest = Math.max(highest, value)
          }
          if (highest === 0) silent.push(`nothing but 0 in ${title}, ${panel.title}`)
        }
      }

      const rules = yield* prometheus.rules
      assert.isAbove(rules.length, 20)
      for (const rule of rules) {
        assert.strictEqual(rule.health, "ok", `${rule.name}: ${rule.lastError}`)
        const values = yield* points(withoutThresholds(rule.query))
        if (values.length === 0) silent.push(`no data for ${rule.name}: ${rule.query}`)
      }
      for (const query of fencesOf("promql")) {
        const values = yield* points(withoutThresholds(query))
        if (values.length === 0) silent.push(`no data for the runbook's ${query}`)
      }
      assert.deepStrictEqual(silent, [])
    }))
})
