/** Draws the throughput of each client around a fault, one below the other, each in shares of what it was before. */
import { line, n, rect, text } from "../svg.ts"
import type { Row } from "./row.ts"
import { bin } from "./testimony.ts"

const width = 800
const left = 184
const right = 16
const height = 62
const gap = 14
const head = 48
/** What is drawn of the time before a fault, in milliseconds. */
const prelude = 800
/** The share of the throughput before at which a curve is cut off. */
const ceiling = 1.5

const style = `<style>
text { font: 11px Inter, Helvetica, Arial, sans-serif; fill: #57606a }
.page { fill: #fff } .name { font-weight: 600; font-size: 12px; fill: #1f2328 } .fault { fill: #ffebe9 }
.line { stroke: #d0d7de; fill: none } .usual { stroke: #8c959f; stroke-dasharray: 4 3; fill: none }
.done { fill: #54aeff; fill-opacity: .45; stroke: #0969da; stroke-width: 1.1 } .back { stroke: #1a7f37; stroke-width: 1.5; fill: none }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .page { fill: #0d1117 } .name { fill: #e6edf3 } .fault { fill: #3c1618 } .line { stroke: #30363d } .usual { stroke: #6e7681 }
.done { fill: #1f6feb; stroke: #58a6ff } .back { stroke: #3fb950 } }
</style>`

/** A bin together with its neighbours: one alone has few operations. */
const smooth = (curve: ReadonlyArray<number>, index: number): number => {
  const near = curve.slice(Math.max(0, index - 1), index + 2)
  return near.reduce((sum, each) => sum + each, 0) / near.length
}

/** All clients on the same scale of time, which begins when the fault does. */
export const draw = (title: string, rows: ReadonlyArray<Row>): string => {
  const longest = Math.max(...rows.map(({ curve, faultBins }) => (curve.length - faultBins[0]) * bin))
  const x = (at: number) => left + ((at + prelude) / (longest + prelude)) * (width - left - right)
  const total = head + rows.length * (height + gap) + 20
  const panel = (row: Row, index: number): string => {
    const { curve, faultBins: [began, ended], qps, recoveryMs } = row
    const top = head + index * (height + gap)
    const floor = top + height
    const y = (share: number) => floor - (Math.min(share, ceiling) / ceiling) * height
    const from = Math.max(0, began - prelude / bin)
    const points = curve.slice(from).map((_, index) =>
      `${n(x((from + index - began) * bin))} ${n(y(smooth(curve, from + index) / qps))}`
    )
    const end = (ended - began) * bin
    return [
      rect(x(0), top, Math.max(x(end) - x(0), 1.5), height, "fault"),
      line(left, y(1), width - right, y(1), "usual"),
      `<path d="M${n(left)} ${n(floor)}L${points.join("L")}L${n(x((curve.length - 1 - began) * bin))} ${
        n(floor)
      }Z" class="done"/>`,
      line(left, floor, width - right, floor, "line"),
      recoveryMs === null ? "" : line(x(end + recoveryMs), top, x(end + recoveryMs), floor, "back"),
      text(8, top + 16, row.contender, " class=\"name\""),
      text(8, top + 32, recoveryMs === null ? "not back" : `back after ${n(recoveryMs)} ms`),
      text(8, top + 47, row.errors === 1 ? "1 error" : `${row.errors} errors`)
    ].join("\n")
  }
  const step = longest > 4_000 ? 1_000 : 500
  const marks = Array.from({ length: Math.floor(longest / step) + 1 }, (_, index) => index * step)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${total}">`,
    style,
    `<title>${title}</title>`,
    rect(0, 0, width, total, "page"),
    text(8, 18, title, " class=\"name\""),
    text(
      8,
      35,
      "Operations that worked, in shares of the throughput before (dashed). Red: the fault. Green: 90 % are back."
    ),
    ...rows.map(panel),
    ...marks.map((at) => text(x(at), total - 6, `${at / 1000} s`, " text-anchor=\"middle\"")),
    "</svg>\n"
  ].join("\n")
}
