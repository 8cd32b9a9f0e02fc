/** Draws a row of the dashboard from recorded data, about as Grafana would. */
import type { Color, Meaning, Panel, Row } from "./panels.ts"
import type { Series } from "./prometheus.ts"

export interface Drawn {
  readonly panel: Panel
  /** Each with the name that its legend shows. */
  readonly series: ReadonlyArray<Series & { readonly name: string }>
}

export interface Period {
  /** Seconds since 1970. */
  readonly from: number
  readonly to: number
  /** What began at some second, to be marked with its letter. */
  readonly marks: ReadonlyArray<{ readonly at: number; readonly letter: string }>
}

interface Box {
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

const ink = { page: "#111217", panel: "#181b1f", border: "#2c3235", grid: "#2c3235", text: "#d8d9da", dim: "#9fa7b3" }
const named: Record<Color, string> = {
  green: "#73bf69",
  yellow: "#fade2a",
  orange: "#ff9830",
  red: "#f2495c",
  purple: "#b877d9",
  text: "#9fa7b3"
}
const palette = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ff7383", "#96d98d"]

const n = (value: number): string => String(Math.round(value * 10) / 10)
const escaped = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")

const text = (x: number, y: number, what: string, size: number, fill: string, anchor = "start", more = ""): string =>
  `<text x="${n(x)}" y="${n(y)}" font-size="${size}" fill="${fill}" text-anchor="${anchor}"${more}>${
    escaped(what)
  }</text>`
const rect = ({ height, width, x, y }: Box, attributes: string): string =>
  `<rect x="${n(x)}" y="${n(y)}" width="${n(width)}" height="${n(height)}" ${attributes}/>`
const line = (x1: number, y1: number, x2: number, y2: number, attributes: string): string =>
  `<path d="M${n(x1)} ${n(y1)}L${n(x2)} ${n(y2)}" ${attributes}/>`
/** About as wide as these letters are. */
const widthOf = (what: string, size: number): number => what.length * size * 0.6

const digits = (value: number): string => String(Number(value.toPrecision(3)))

const shown = (value: number, unit: Panel["unit"]): string => {
  switch (unit) {
    case "s":
      return value === 0 ? "0" : value < 1 ? `${digits(value * 1000)} ms` : `${digits(value)} s`
    case "percentunit":
      return `${digits(value * 100)} %`
    case "ops":
      return `${digits(value)}/s`
    case "short":
      return digits(value)
  }
}

/** Steps of 1, 2 or 5 from 0 to above the highest value, four or so of them. */
const scale = (highest: number, fixed: number | undefined): ReadonlyArray<number> => {
  const top = fixed ?? (highest > 0 ? highest : 1)
  const magnitude = 10 ** Math.floor(Math.log10(top / 4))
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((each) => top / each <= 5) ?? magnitude * 10
  return Array.from({ length: Math.ceil(top / step - 1e-9) + 1 }, (_, index) => index * step)
}

const timeAxis = (
  plot: Box,
  { from, marks, to }: Period
): { readonly x: (at: number) => number; readonly svg: string } => {
  const x = (at: number) => plot.x + ((at - from) / (to - from)) * plot.width
  const bottom = plot.y + plot.height
  const step = [5, 10, 30, 60, 120].find((seconds) => (to - from) / seconds <= plot.width / 55) ?? 300
  const ticks = Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, index) => index * step)
  return {
    x,
    svg: [
      ...ticks.map((tick) => {
        const label = `${Math.floor(tick / 60)}:${String(tick % 60).padStart(2, "0")}`
        return text(x(from + tick), bottom + 14, label, 10, ink.dim, "middle")
      }),
      ...marks.filter(({ at }) => at >= from && at <= to).map(({ at, letter }) =>
        line(x(at), plot.y, x(at), bottom, `stroke="${ink.dim}" stroke-opacity=".7" stroke-dasharray="2 3"`)
        + text(x(at) + 3, plot.y + 8, letter, 9, ink.dim)
      )
    ].join("")
  }
}

const legendOf = (box: Box, entries: ReadonlyArray<readonly [name: string, color: string]>): string => {
  let x = box.x + 10
  let y = box.y + box.height - 24
  return entries.map(([name, color]) => {
    const width = 24 + widthOf(name, 10)
    if (x + width > box.x + box.width && x > box.x + 10) {
      x = box.x + 10
      y += 14
    }
    const drawn = rect({ x, y: y - 5, width: 12, height: 3 }, `fill="${color}" rx="1"`) +
      text(x + 16, y, name, 10, ink.text)
    x += width
    return drawn
  }).join("")
}

const plotOf = (box: Box): Box => ({ x: box.x + 52, y: box.y + 34, width: box.width - 66, height: box.height - 92 })

/** Those that were 0 all the time say nothing, if others do. */
const telling = ({ panel, series }: Drawn): Drawn["series"] => {
  const some = series.filter(({ name, points }) => name === panel.limit || points.some(([, value]) => value !== 0))
  return some.length === 0 ? series : some
}

/** In pieces, where something is missing in between. */
const unbroken = <A extends { readonly at: number }>(
  points: ReadonlyArray<A>,
  step: number
): ReadonlyArray<ReadonlyArray<A>> => {
  const starts = points.flatMap((
    { at },
    index
  ) => (at - (points[index - 1]?.at ?? -Infinity) > 1.5 * step ? [index] : []))
  return starts.map((start, index) => points.slice(start, starts[index + 1]))
}

const timeseries = (box: Box, drawn: Drawn, period: Period): string => {
  const { panel } = drawn
  const plot = plotOf(box)
  const times = Array.from(new Set(drawn.series.flatMap(({ points }) => points.map(([at]) => at)))).sort((a, b) =>
    a - b
  )
  const step = Math.min(...times.map((at, index) => at - (times[index - 1] ?? -Infinity)))
  const below = new Map<number, number>()
  const lines = telling(drawn).map(({ name, points }, index) => {
    const isLimit = name === panel.limit
    const values = new Map(points)
    const stacks = panel.stacked === true && !isLimit
    const shape = times.flatMap((at) => {
      const value = values.get(at)
      if (value === undefined && !stacks) return []
      const base = stacks ? below.get(at) ?? 0 : 0
      const top = base + (value ?? 0)
      if (stacks) below.set(at, top)
      return [{ at, base, top }]
    })
    return { name, isLimit, shape, color: isLimit ? named.red : palette[index % palette.length]! }
  })
  const highest = Math.max(0, ...lines.flatMap(({ shape }) => shape.map(({ top }) => top)))
  const ticks = scale(highest, panel.max)
  const y = (value: number) => plot.y + plot.height * (1 - value / ticks.at(-1)!)
  const axis = timeAxis(plot, period)
  const points = (shape: ReadonlyArray<readonly [at: number, value: number]>) =>
    shape.map(([at, value]) => `${n(axis.x(at))} ${n(y(value))}`).join("L")
  return [
    ...ticks.map((tick) =>
      line(plot.x, y(tick), plot.x + plot.width, y(tick), `stroke="${ink.grid}"`)
      + text(plot.x - 6, y(tick) + 3, shown(tick, panel.unit), 10, ink.dim, "end")
    ),
    axis.svg,
    // The first series comes last, so that none is hidden by one that adds nothing to it.
    ...lines.toReversed().flatMap(({ color, isLimit, shape }) =>
      unbroken(shape, step).map((piece) => {
        const top = points(piece.map(({ at, top }) => [at, top]))
        if (isLimit) return `<path d="M${top}" fill="none" stroke="${color}" stroke-dasharray="6 4"/>`
        const base = panel.stacked
          ? points(piece.map(({ at, base }) => [at, base] as const).toReversed())
          : points([[piece.at(-1)!.at, 0], [piece[0]!.at, 0]])
        return `<path d="M${top}L${base}Z" fill="${color}" fill-opacity="${panel.stacked ? ".3" : ".06"}"/>`
          // The stroke of a single point is as long as wide.
          + `<path d="M${top}h0" fill="none" stroke="${color}" stroke-width="${piece.length > 1 ? 1.3 : 4}" `
          + `stroke-linejoin="round" stroke-linecap="round"/>`
      })
    ),
    legendOf(box, lines.map(({ color, name }) => [name, color]))
  ].join("")
}

/** From few to many. */
const heat = ["#2b3a67", "#31688e", "#26828e", "#35b779", "#90d743", "#fde725"]

const heatmap = (box: Box, { panel, series }: Drawn, period: Period): string => {
  const plot = { ...plotOf(box), height: box.height - 66 }
  const bound = (name: string) => (name === "+Inf" ? Infinity : Number(name))
  const cumulative = series.toSorted((a, b) => bound(a.name) - bound(b.name))
  const counts = cumulative.map(({ name, points }, index) => {
    const before = new Map(cumulative[index - 1]?.points)
    return { name, points: points.map(([at, value]) => [at, Math.max(0, value - (before.get(at) ?? 0))] as const) }
  })
  const used = counts.map(({ points }) => points.some(([, count]) => count > 0.01))
  const buckets = counts.slice(Math.max(0, used.indexOf(true)), used.lastIndexOf(true) + 1)
  const most = Math.max(...buckets.flatMap(({ points }) => points.map(([, count]) => count)))
  const axis = timeAxis(plot, period)
  const height = plot.height / buckets.length
  const columns = Array.from(new Set(series.flatMap(({ points }) => points.map(([at]) => at)))).sort((a, b) => a - b)
  const width = axis.x(columns[1] ?? period.to) - axis.x(columns[0] ?? period.from)
  // One path for each colour keeps the file small.
  const cells = heat.map(() => "")
  const labels = buckets.map(({ name, points }, index) => {
    const y = plot.y + plot.height - (index + 1) * height
    for (const [at, count] of points) {
      if (count <= 0.01) continue
      const level = Math.min(heat.length - 1, Math.floor(Math.sqrt(count / most) * heat.length))
      cells[level] += `M${n(axis.x(at) - width)} ${n(y + 0.5)}h${n(width - 0.5)}v${n(height - 1)}h-${n(width - 0.5)}z`
    }
    if (index % Math.ceil(12 / height) > 0) return ""
    const label = name === "+Inf" ? "more" : shown(Number(name), panel.unit)
    return text(plot.x - 6, y + 4, label, 10, ink.dim, "end")
  })
  return [...labels, ...cells.map((path, level) => `<path d="${path}" fill="${heat[level]}"/>`), axis.svg].join("")
}

const meaningOf = (meanings: ReadonlyArray<Meaning>, value: number): Meaning =>
  meanings.find((meaning) => meaning.value === value) ?? { value, text: digits(value), color: "text" }

const stateTimeline = (box: Box, { panel, series }: Drawn, period: Period): string => {
  const plot = plotOf(box)
  const axis = timeAxis(plot, period)
  const height = plot.height / series.length
  const meanings = panel.meanings ?? []
  const bars = series.map(({ points }, index) => {
    const changes = points.filter(([, value], at) => value !== points[at - 1]?.[1])
    return changes.map(([at, value], which) => {
      const until = changes[which + 1]?.[0] ?? period.to
      const bar = {
        x: axis.x(at),
        y: plot.y + index * height + 14,
        width: axis.x(until) - axis.x(at),
        height: height - 18
      }
      const { color, text: label } = meaningOf(meanings, value)
      return rect(bar, `fill="${named[color]}" fill-opacity=".75"`) + (
        bar.width < widthOf(label, 11) + 8
          ? ""
          : text(bar.x + bar.width / 2, bar.y + bar.height / 2 + 4, label, 11, ink.page, "middle", ` font-weight="600"`)
      )
    }).join("")
  })
  return [...bars, axis.svg, legendOf(box, meanings.map(({ color, text: name }) => [name, named[color]]))].join("")
}

const stat = (box: Box, { panel, series }: Drawn, { from, to }: Period): string => {
  const points = (series[0]?.points ?? []).filter(([at]) => at <= to)
  const last = points.at(-1)?.[1]
  if (last === undefined) return text(box.x + box.width / 2, box.y + 66, "no data", 14, ink.dim, "middle")
  const meaning = panel.meanings && meaningOf(panel.meanings, last)
  const color = named[meaning?.color ?? panel.thresholds?.findLast(([least]) => last >= least)?.[1] ?? "green"]
  const value = meaning?.text ?? shown(last, panel.unit)
  const highest = Math.max(...points.map(([, each]) => each), 1e-9)
  const x = (at: number) => box.x + 1 + ((at - from) / (to - from)) * (box.width - 2)
  const bottom = box.y + box.height - 1
  const curve = points.map(([at, each]) => `${n(x(at))} ${n(bottom - (each / highest) * 28)}`).join("L")
  return [
    meaning === undefined
      ? `<path d="M${n(x(points[0]![0]))} ${n(bottom)}L${curve}L${n(x(points.at(-1)![0]))} ${
        n(bottom)
      }Z" fill="${color}" fill-opacity=".25"/>`
      : "",
    text(box.x + box.width / 2, box.y + 66, value, 24, color, "middle", ` font-weight="600"`)
  ].join("")
}

const kinds = { stat, timeseries, heatmap, "state-timeline": stateTimeline }

const pageWidth = 1200
const gap = 8

/** The name of a row's picture. */
export const fileOf = (title: string): string => `${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}.svg`

/** The panels of a row side by side. */
export const draw = (row: Row, panels: ReadonlyArray<Drawn>, period: Period): string => {
  const height = row.height * 30
  let column = 0
  const cards = panels.map((drawn) => {
    const width = (drawn.panel.width / 24) * (pageWidth - gap)
    const box: Box = { x: gap + column, y: 34, width: width - gap, height: height - gap }
    column += width
    return rect(box, `rx="3" fill="${ink.panel}" stroke="${ink.border}"`)
      + text(box.x + 10, box.y + 20, drawn.panel.title, 12, ink.text, "start", ` font-weight="600"`)
      + kinds[drawn.panel.kind](box, drawn, period)
  })
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${pageWidth} ${
      height + 34
    }" font-family="Inter, Helvetica, Arial, sans-serif">`,
    `<title>${escaped(row.title)}</title>`,
    rect({ x: 0, y: 0, width: pageWidth, height: height + 34 }, `fill="${ink.page}"`),
    text(gap + 4, 22, row.title, 14, ink.text, "start", ` font-weight="600"`),
    ...cards,
    "</svg>\n"
  ].join("\n")
}
