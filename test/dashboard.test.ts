import { assert, describe, it } from "@effect/vitest"
import * as Metrics from "effect-pg-pool/Metrics"
import * as Effect from "effect/Effect"
import { readdirSync, readFileSync } from "node:fs"
import { render } from "../scripts/dashboard/grafana.ts"
import { rows } from "../scripts/dashboard/panels.ts"
import { fileOf } from "../scripts/dashboard/svg.ts"

interface Panel {
  readonly id: number
  readonly type: string
  readonly title: string
  readonly description?: string
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number }
  readonly targets?: ReadonlyArray<{ readonly refId: string; readonly expr: string }>
}

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8")
const written = read("dashboards/grafana.json")
const { panels } = JSON.parse(written) as { readonly panels: ReadonlyArray<Panel> }
const shown = panels.filter(({ type }) => type !== "row")

/** The metrics that there are, each with its type. */
const metrics = async (): Promise<ReadonlyMap<string, string>> => {
  const text = await Effect.runPromise(Metrics.render.pipe(Effect.provide(Metrics.layer())))
  return new Map(Array.from(text.matchAll(/^# TYPE (\w+) (\w+)$/gm), ([, name, type]) => [name!, type!]))
}

describe("README.md", () => {
  it("lists each metric with its type, and no other", async () => {
    const types = await metrics()
    const rows = Array.from(read("README.md").matchAll(/^\| (`db_[^|]*)\| *(\w*) *\|/gm))
    const listed = rows.flatMap(([, names, type]) =>
      Array.from(names!.matchAll(/`(\w+)`/g), ([, name]) => [name!, type === "" ? types.get(name!) : type!] as const)
    )
    assert.deepStrictEqual(new Map(listed.toSorted()), new Map([...types].toSorted()))
  })
})

describe("docs/observability.md", () => {
  it("has a picture of each row, in which each of its panels is; if not, run: npm run docs:dashboard", () => {
    const page = read("docs/observability.md")
    for (const { panels, title } of rows) {
      const start = fileOf(title).slice(0, -".svg".length)
      const pictures = readdirSync(new URL("../docs/dashboard", import.meta.url)).filter((file) =>
        file.startsWith(start)
      )
      assert.isNotEmpty(pictures, title)
      for (const picture of pictures) {
        assert.include(page, `(dashboard/${picture})`)
        const svg = read(`docs/dashboard/${picture}`)
        for (const panel of panels) assert.include(svg, `>${panel.title}</text>`, picture)
        assert.notInclude(svg, ">no data<", picture)
      }
    }
  })
})

describe("the Grafana dashboard", () => {
  it("is the one that its panels describe; if not, run: npm run dashboard", () => {
    assert.strictEqual(written, render())
  })

  it("gives each panel an id of its own, and a place where no other is", () => {
    assert.strictEqual(new Set(panels.map(({ id }) => id)).size, panels.length)
    const taken = new Set<string>()
    for (const { gridPos: { h, w, x, y }, title } of panels) {
      assert.isAtMost(x + w, 24, title)
      for (let column = x; column < x + w; column++) {
        for (let line = y; line < y + h; line++) {
          assert.isFalse(taken.has(`${column},${line}`), `${title} overlaps at column ${column}, line ${line}`)
          taken.add(`${column},${line}`)
        }
      }
    }
    // Rows are full: no gap either.
    assert.strictEqual(taken.size, 24 * Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h)))
  })

  it("says in a sentence what each panel is for", () => {
    for (const { description, title } of shown) assert.match(description ?? "", /^[A-Z0-9][^.]*(\.\d[^.]*)*\.$/, title)
  })

  it("asks only for metrics that /metrics has, as the alerts do, and of the chosen pools", async () => {
    const types = await metrics()
    const isMetric = (name: string) =>
      types.has(name) || types.get(name.replace(/_(bucket|sum|count)$/, "")) === "histogram"
    for (const [name] of read("dashboards/alerts.yml").matchAll(/(?<!:)\bdb_\w+/g)) {
      assert.isTrue(isMetric(name), `${name} in the alerts`)
    }
    for (const { targets = [], title } of shown) {
      assert.isNotEmpty(targets, title)
      for (const { expr } of targets) {
        const selected = Array.from(expr.matchAll(/\b(db_\w+)\{([^}]*)\}(\[[^\]]*\])?/g))
        assert.isNotEmpty(selected, expr)
        for (const [, name, matchers, range] of selected) {
          assert.isTrue(isMetric(name!), `${name} in ${title}`)
          assert.isTrue(matchers!.startsWith(`job=~"$job",instance=~"$instance",pool=~"$pool"`), expr)
          if (range !== undefined) assert.strictEqual(range, "[$__rate_interval]", expr)
        }
        assert.strictEqual(expr.match(/\bdb_\w+/g)?.length, selected.length, `a metric without a choice in ${expr}`)
        if (expr.includes("histogram_quantile")) assert.match(expr, /sum by \([^)]*\ble\b/, "of all, not one of each")
      }
    }
  })
})
