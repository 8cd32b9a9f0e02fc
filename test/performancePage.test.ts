import { assert, describe, it } from "@effect/vitest"
import { readdirSync, readFileSync } from "node:fs"
import { byHandOf, chartsOf, type Everything, pageOf } from "../bench/performance/page.ts"
import { format, parts, recall } from "../bench/performance/results.ts"
import { flawsOf, type LoadRow } from "../bench/performance/row.ts"
import { judge } from "../bench/performance/targets.ts"
import { slopeOf } from "../bench/scaling/axes.ts"

const everything: Everything = {
  load: recall("load"),
  scaling: recall("scaling"),
  "layer-cost": recall("layer-cost"),
  recovery: recall("recovery")
}

const docs = new URL("../docs/", import.meta.url)
const page = readFileSync(new URL("performance.md", docs), "utf8")

describe("docs/performance.md", () => {
  it("says what bench/results say (else: npm run bench -- --page)", () => {
    assert.strictEqual(page, pageOf(everything, byHandOf(page)))
  })

  it("shows charts that are drawn of bench/results", () => {
    for (const [name, svg] of chartsOf(everything)) {
      assert.strictEqual(readFileSync(new URL(`performance/${name}`, docs), "utf8"), svg, name)
    }
  })

  it("shows every chart that is there, and none that is not", () => {
    const shown = Array.from(page.matchAll(/\]\(performance\/([^)]+)\)/g), ([, name]) => name!)
    assert.deepStrictEqual(shown.toSorted(), readdirSync(new URL("performance/", docs)).toSorted())
  })

  it("keeps what was written by hand", () => {
    const written = pageOf(everything, "The driver encodes twice.")
    assert.strictEqual(byHandOf(written), "The driver encodes twice.")
    assert.strictEqual(pageOf(everything, byHandOf(written)), written)
  })
})

describe("bench/results", () => {
  for (const part of parts) {
    it(`${part}: was measured, and each row has each field`, () => {
      const results = recall(part)
      assert.isDefined(results)
      assert.isNotEmpty(results.rows)
      assert.deepStrictEqual(results.rows.flatMap(flawsOf), [])
      assert.deepStrictEqual(JSON.parse(format(results)), results)
    })
  }
})

describe("The verdicts", () => {
  const row = (contender: string, callers: number, figures: Partial<LoadRow>): LoadRow => ({
    suite: "read",
    contender,
    callers,
    max: 10,
    qps: 1000,
    ratioToPgClient: 1,
    p50Ms: 1,
    p99Ms: 1,
    clientCpuUs: 10,
    serverCpuUs: 10,
    rssMb: 100,
    errors: 0,
    size: null,
    ratioToPostgresJs: 1,
    ratioToPg: 1,
    p50RatioToPgClient: 1,
    p99RatioToPostgresJs: 1,
    rounds: [1000],
    ratios: [1],
    ...figures
  })
  const verdict = (rows: ReadonlyArray<LoadRow>, beginning: string) =>
    judge({ load: rows }).find(({ target }) => target.startsWith(beginning))!

  it("miss a target when one of its cells does, and say which", () => {
    const rows = [1, 10, 100, 1000].map((callers) =>
      row("effect-pg-pool", callers, { ratioToPgClient: callers === 100 ? 0.9 : 1.2 })
    )
    const { isHeld, measured } = verdict(rows, "1. Plain, 1 to 10,000")
    assert.isFalse(isHeld)
    assert.strictEqual(measured, "0.90 at worst (reads at 100); 1 of 4 miss it")
    assert.isTrue(verdict(rows, "1. Plain, 1,000").isHeld)
  })

  it("hold nothing that was not measured", () => {
    assert.isUndefined(verdict([], "1. Plain, 1 to 10,000").isHeld)
    assert.isUndefined(verdict([row("effect-pg-pool", 10_000, {})], "5. Resident").isHeld)
  })

  it("measure memory by that of postgres.js", () => {
    const rows = [row("effect-pg-pool", 10_000, { rssMb: 330 }), row("postgres.js", 10_000, { rssMb: 300 })]
    const { isHeld, measured } = verdict(rows, "5. Resident with 10,000 callers:")
    assert.isFalse(isHeld)
    assert.strictEqual(measured, "1.10 (330 MiB to 300)")
  })

  it("know linear growth from worse", () => {
    const points = [10, 100, 1000]
    assert.closeTo(slopeOf(points.map((x) => [x, 7 * x])), 1, 1e-9)
    assert.closeTo(slopeOf(points.map((x) => [x, 7 * x * x])), 2, 1e-9)
  })
})
