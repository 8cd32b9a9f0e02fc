/** Records a run of the scene, and draws each row of the dashboard from it. */
import { EmbeddedPostgres, FaultProxy } from "effect-pg-pool/testing"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { type Panel, type Row, rows } from "./panels.ts"
import * as Prometheus from "./prometheus.ts"
import * as Scene from "./scene.ts"
import { draw, type Drawn, fileOf, type Period } from "./svg.ts"

const seconds = Effect.map(Clock.currentTimeMillis, (millis) => Math.floor(millis / 1000))

const nameOf = (legend: string, labels: Readonly<Record<string, string>>): string =>
  legend.replaceAll(/\{\{(\w+)\}\}/g, (_, label: string) => labels[label] ?? "").trim()

/** The acts that are marked, each by a letter, and when they began. */
const marksOf = (from: number, beat: number): Period["marks"] => {
  let at = from
  return Object.values<Scene.Act>(Scene.acts).flatMap(({ beats, letter }) => {
    const mark = { at, letter: letter ?? "" }
    at += beats * beat
    return letter === undefined ? [] : [mark]
  })
}

export const record = Effect.fnUntraced(function*(folder: string, beat: number) {
  const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
  const proxy = yield* FaultProxy.make(server.url)
  const address = yield* Scene.startExample(proxy.url, {
    PGAPPNAME: "shop",
    DB_POOL_MAX: "8",
    DB_ACQUIRE_TIMEOUT: "500 millis",
    DB_BREAKER_OPEN: "5 seconds"
  })
  const prometheus = yield* Prometheus.make(address, 1)
  const from = yield* seconds
  yield* Scene.play({ address, database: server.url, proxy, beat })
  const period: Period = { from, to: yield* seconds, marks: marksOf(from, beat) }

  const step = Math.max(1, Math.round((period.to - from) / 100))
  const ask = Effect.fnUntraced(function*(panel: Panel): Effect.fn.Return<Drawn, unknown> {
    const width = panel.kind === "heatmap" ? 2 * step : step
    const series = yield* Effect.forEach(panel.queries, ({ expr, legend }) => {
      const interval = panel.kind === "heatmap" ? width : Math.max(4, 2 * step)
      return Effect.map(
        prometheus.range(Prometheus.chooseAll(expr, `${interval}s`), from, period.to, width),
        (all) => all.map((each) => ({ ...each, name: nameOf(legend, each.labels) }))
      )
    })
    return { panel, series: series.flat() }
  })
  const write = (row: Row, panels: ReadonlyArray<Drawn>, name: string, drawn: Period) =>
    writeFileSync(join(folder, fileOf(name)), draw(row, panels, drawn))

  mkdirSync(folder, { recursive: true })
  for (const row of rows) {
    const panels = yield* Effect.forEach(row.panels, ask)
    if (row.height >= 8) write(row, panels, row.title, period)
    else {
      // Figures of one moment: late in the rush, and in the outage.
      for (const { at, letter } of period.marks) {
        if (letter !== "B" && letter !== "C") continue
        write(row, panels, `${row.title} ${letter}`, { ...period, to: at + 3 * beat })
      }
    }
  }
})
