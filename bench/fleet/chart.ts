/** Draws what the server saw of each client: its sessions over time, and below them the connects, refused ones in red. */
import { escaped, line, n, rect, text } from "../svg.ts"
import { room, type Setting } from "./contestants.ts"
import type { Life, PhaseName } from "./life.ts"

const width = 800
const left = 44
const right = 12
const sessionsHeight = 58
const connectsHeight = 30
const title = 30
const gap = 16
const rowHeight = title + sessionsHeight + 3 + connectsHeight + gap
const head = 44
/** Milliseconds for which connects are counted together. */
const bin = 250

const style = `<style>
text { font: 11px Inter, Helvetica, Arial, sans-serif; fill: #57606a }
.page { fill: #fff } .name { font-weight: 600; font-size: 12px; fill: #1f2328 }
.band { fill: #f3f5f8 } .line { stroke: #d0d7de } .room { stroke: #d1242f; stroke-dasharray: 4 3 } .mark { stroke: #8250df; stroke-dasharray: 2 3 }
.sessions { fill: #54aeff; fill-opacity: .45; stroke: #0969da; stroke-width: 1.2 } .connects { fill: #8c959f } .refused { fill: #d1242f } .full { fill: #d1242f }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 } .page { fill: #0d1117 } .name { fill: #e6edf3 } .band { fill: #161b22 } .line { stroke: #30363d } .room { stroke: #f85149 }
.mark { stroke: #ab7df8 } .sessions { fill: #1f6feb; stroke: #58a6ff } .connects { fill: #6e7681 } .refused { fill: #f85149 } .full { fill: #f85149 } }
</style>`

const letters: Record<PhaseName, string> = { "cold start": "A", steady: "B", freeze: "C", thaw: "D", restart: "E" }

const binned = (moments: ReadonlyArray<number>, from: number): ReadonlyMap<number, number> => {
  const counts = new Map<number, number>()
  for (const at of moments) {
    const index = Math.floor((at - from) / bin)
    counts.set(index, (counts.get(index) ?? 0) + 1)
  }
  return counts
}

/** The server is counted as empty while it was away. */
const sessionsOf = (
  { crash: { down, up }, from, samples, to }: Life
): ReadonlyArray<readonly [at: number, count: number]> =>
  [
    { at: from, sessions: 0 },
    ...samples.filter(({ at }) => (at < down || at >= up) && at <= to),
    { at: down, sessions: 0 },
    { at: up, sessions: 0 }
  ].toSorted((one, other) => one.at - other.at).map(({ at, sessions }) => [at, sessions] as const)

const row = (life: Life, top: number, longest: number, most: number): string => {
  const x = (at: number) => left + ((at - life.from) / longest) * (width - left - right)
  const ground = top + title + sessionsHeight
  const y = (count: number) => ground - (count / 100) * sessionsHeight
  const floor = ground + 3 + connectsHeight
  const bars = (moments: ReadonlyArray<number>, name: string) =>
    Array.from(binned(moments, life.from), ([index, count]) => {
      const high = (count / most) * connectsHeight
      return rect(x(life.from + index * bin), floor - high, x(bin) - x(0) - 0.5, high, name)
    }).join("")
  const bands = life.phases.map(({ from, name, to }, index) => {
    const end = life.phases[index + 1]?.from ?? to
    const shade = index % 2 === 0 ? rect(x(from), top + title, x(end) - x(from), floor - top - title, "band") : ""
    return shade + text((x(from) + x(end)) / 2, top + title - 3, letters[name], " text-anchor=\"middle\"")
  })
  const curve = sessionsOf(life).map(([at, count]) => `${n(x(at))} ${n(y(count))}`)
  return [
    text(left, top + 14, life.contestant.title, " class=\"name\""),
    ...bands,
    text(left - 5, y(100) + 4, "100", " text-anchor=\"end\""),
    text(left - 5, ground, "0", " text-anchor=\"end\""),
    line(left, ground, width - right, ground, "line"),
    `<path d="M${n(x(life.from))} ${n(ground)}L${curve.join("L")}L${n(x(life.to))} ${n(ground)}Z" class="sessions"/>`,
    line(left, y(room), width - right, y(room), "room"),
    ...[life.crash.down, life.crash.up].map((at) => line(x(at), top + title, x(at), floor, "mark")),
    text(left - 5, floor, `${Math.round((most * 1000) / bin)}/s`, " text-anchor=\"end\" font-size=\"9\""),
    bars(life.connects, "connects"),
    bars(life.refusals, "refused"),
    line(left, floor, width - right, floor, "line")
  ].join("\n")
}

/** All clients of a setting, one below the other, on the same scales. */
export const draw = (setting: Setting, lives: ReadonlyArray<Life>): string => {
  const longest = Math.max(...lives.map(({ from, to }) => to - from))
  const most = Math.max(...lives.flatMap(({ connects, from }) => Array.from(binned(connects, from).values())), 1)
  const height = head + lives.length * rowHeight + 24
  const step = longest > 12_000 ? 5 : 1
  const seconds = Array.from({ length: Math.floor(longest / 1000 / step) + 1 }, (_, index) => index * step)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}">`,
    style,
    `<title>${escaped(setting.title)}</title>`,
    rect(0, 0, width, height, "page"),
    text(left, 18, "Sessions on the server; below: connects per second, refused ones in red; dashed: its room."),
    text(
      left,
      34,
      "A cold start of all · B steady load · C frozen · D thaw of all · E load, and a crash of the server"
    ),
    ...lives.map((life, index) => row(life, head + index * rowHeight, longest, most)),
    ...seconds.map((second) =>
      text(
        left + ((second * 1000) / longest) * (width - left - right),
        height - 8,
        `${second} s`,
        " text-anchor=\"middle\""
      )
    ),
    "</svg>\n"
  ].join("\n")
}
