/** Draws figures of clients along a logarithmic axis. */
import { whole } from "./text.ts"

export interface Series {
  readonly name: string
  readonly points: ReadonlyArray<readonly [x: number, y: number]>
}

export interface Chart {
  readonly title: string
  readonly xLabel: string
  readonly yLabel: string
  readonly isLogarithmic: boolean
  readonly series: ReadonlyArray<Series>
}

const width = 760
const height = 380
const left = 66
const right = 30
const top = 88
const bottom = 46

const looks: Readonly<Record<string, string>> = {
  pg: "a",
  "postgres.js": "b",
  PgClient: "c",
  "PgClient, multiplexed": "c dashed",
  "effect-pg-pool": "d",
  "effect-pg-pool, multiplexed": "d dashed"
}

const style = `<style>
text { font: 11px Inter, Helvetica, Arial, sans-serif; fill: #57606a }
.page { fill: #fff } .title { font-weight: 600; font-size: 13px; fill: #1f2328 } .grid { stroke: #d0d7de; stroke-width: .7 }
.line { fill: none; stroke-width: 2 } .dashed { stroke-dasharray: 6 3 } .dot { stroke: none }
.a { stroke: #8c959f; fill: #8c959f } .b { stroke: #bc4c00; fill: #bc4c00 } .c { stroke: #1a7f37; fill: #1a7f37 } .d { stroke: #0969da; fill: #0969da; stroke-width: 3 }
.line { fill: none } .dot { stroke: none }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .page { fill: #0d1117 } .title { fill: #e6edf3 } .grid { stroke: #30363d }
.b { stroke: #f0883e; fill: #f0883e } .c { stroke: #3fb950; fill: #3fb950 } .d { stroke: #58a6ff; fill: #58a6ff } .line { fill: none } .dot { stroke: none } }
</style>`

const n = (value: number): string => String(Math.round(value * 10) / 10)
const escaped = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")
const text = (x: number, y: number, what: string, more = ""): string =>
  `<text x="${n(x)}" y="${n(y)}"${more}>${escaped(what)}</text>`
const line = (x1: number, y1: number, x2: number, y2: number): string =>
  `<path d="M${n(x1)} ${n(y1)}L${n(x2)} ${n(y2)}" class="grid"/>`

/** The powers of ten around these, and where they leave little to see, their halves and fifths. */
const decades = (from: number, to: number): ReadonlyArray<number> => {
  const steps: Array<number> = []
  for (let power = Math.floor(Math.log10(from)); power <= Math.ceil(Math.log10(to)); power++) {
    for (const part of to / from > 1000 ? [1] : [1, 2, 5]) steps.push(part * 10 ** power)
  }
  const first = steps.findLastIndex((step) => step <= from)
  const last = steps.findIndex((step) => step >= to)
  return steps.slice(Math.max(0, first), last === -1 ? undefined : last + 1)
}

/** From zero in steps of 1, 2 or 5. */
const evenly = (to: number): ReadonlyArray<number> => {
  const raw = to / 5
  const power = 10 ** Math.floor(Math.log10(raw))
  const step = power * ([1, 2, 5, 10].find((part) => part * power >= raw) ?? 10)
  return Array.from({ length: Math.ceil(to / step) + 1 }, (_, index) => index * step)
}

const label = (value: number): string => (value >= 1 || value === 0 ? whole(value) : String(value))

export const draw = ({ isLogarithmic, series, title, xLabel, yLabel }: Chart): string => {
  const points = series.flatMap((each) => each.points)
  const xs = Array.from(new Set(points.map(([x]) => x))).toSorted((one, other) => one - other)
  const values = points.map(([, y]) => y)
  const ys = isLogarithmic ? decades(Math.min(...values), Math.max(...values)) : evenly(Math.max(...values))
  const share = (value: number, from: number, to: number, logarithmic: boolean): number =>
    logarithmic ? Math.log(value / from) / Math.log(to / from) : (value - from) / (to - from)
  const x = (value: number) => left + share(value, xs[0]!, xs.at(-1)!, true) * (width - left - right)
  const y = (value: number) =>
    height - bottom - share(value, ys[0]!, ys.at(-1)!, isLogarithmic) * (height - top - bottom)
  const legend = series.flatMap(({ name }, index) => {
    const [across, down] = [left + (index % 3) * 225, 44 + Math.floor(index / 3) * 18]
    return [
      `<path d="M${across} ${down - 4}h26" class="line ${looks[name] ?? "a"}"/>`,
      text(across + 32, down, name)
    ]
  })
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}">`,
    style,
    `<title>${escaped(title)}</title>`,
    `<rect width="${width}" height="${height}" class="page"/>`,
    text(left, 20, title, " class=\"title\""),
    ...legend,
    text(left, top - 10, yLabel),
    ...ys.flatMap((value) => [
      line(left, y(value), width - right, y(value)),
      text(left - 6, y(value) + 4, label(value), " text-anchor=\"end\"")
    ]),
    ...xs.map((value) => text(x(value), height - bottom + 16, label(value), " text-anchor=\"middle\"")),
    text((left + width - right) / 2, height - 8, xLabel, " text-anchor=\"middle\""),
    ...series.flatMap(({ name, points }) => {
      const look = looks[name] ?? "a"
      return [
        `<path d="M${points.map(([px, py]) => `${n(x(px))} ${n(y(py))}`).join("L")}" class="line ${look}"/>`,
        ...points.map(([px, py]) => `<circle cx="${n(x(px))}" cy="${n(y(py))}" r="3" class="dot ${look}"/>`)
      ]
    }),
    "</svg>\n"
  ].join("\n")
}
