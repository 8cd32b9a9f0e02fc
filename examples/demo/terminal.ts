/** What a stranger sees: lines that stay, and one status line that is redrawn in place where the terminal can do that. */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { styleText } from "node:util"

export type Style = "bold" | "dim" | "red" | "green" | "yellow" | "cyan"
/** Text, or text with a style; styles are left out where NO_COLOR or the terminal says so. */
export type Span = string | readonly [style: Style, text: string]

export class Terminal extends Context.Service<Terminal, {
  /** Whether the status line is redrawn in place. When it is not, each status is a line of its own. */
  readonly live: boolean
  readonly line: (...spans: ReadonlyArray<Span>) => Effect.Effect<void>
  readonly status: (...spans: ReadonlyArray<Span>) => Effect.Effect<void>
  /** Takes the status line away. Nothing to do where it is not redrawn. */
  readonly endStatus: Effect.Effect<void>
  /** Succeeds when nobody reads the output any more (`npm run demo | head`). */
  readonly abandoned: Effect.Effect<void>
}>()("demo/Terminal") {
  static readonly layer = Layer.effect(
    Terminal,
    Effect.gen(function*() {
      const { stdout } = process
      const live = stdout.isTTY === true && process.env.TERM !== "dumb"
      const abandoned = yield* Deferred.make<void>()
      const onError = () => Deferred.doneUnsafe(abandoned, Effect.void)
      yield* Effect.acquireRelease(
        Effect.sync(() => stdout.on("error", onError)),
        // The listener stays: what is still printed on the way out must not throw either.
        () => Effect.sync(() => live && stdout.write(clear))
      )

      let current = ""
      const write = (text: string) => Effect.sync(() => void stdout.write(text))
      return {
        live,
        line: (...spans) => write(live ? `${clear}${paint(spans)}\n${current}` : `${paint(spans).trimEnd()}\n`),
        status: (...spans) =>
          Effect.suspend(() => {
            if (!live) return write(`${paint(spans)}\n`)
            current = paint(cut(spans, (stdout.columns || 80) - 1))
            return write(clear + current)
          }),
        endStatus: Effect.suspend(() => {
          current = ""
          return live ? write(clear) : Effect.void
        }),
        abandoned: Deferred.await(abandoned)
      }
    })
  )
}

const clear = "\r\u001b[2K"

const paint = (spans: ReadonlyArray<Span>): string =>
  spans.map((span) => (typeof span === "string" ? span : styleText(span[0], span[1]))).join("")

/** A status line that wraps could not be redrawn. */
const cut = (spans: ReadonlyArray<Span>, columns: number): ReadonlyArray<Span> => {
  const kept: Array<Span> = []
  let room = columns
  for (const span of spans) {
    const text = (typeof span === "string" ? span : span[1]).slice(0, Math.max(0, room))
    room -= text.length
    kept.push(typeof span === "string" ? text : [span[0], text])
  }
  return kept
}

export const line = (...spans: ReadonlyArray<Span>): Effect.Effect<void, never, Terminal> =>
  Effect.flatMap(Terminal, (terminal) => terminal.line(...spans))

export const heading = (title: string): Effect.Effect<void, never, Terminal> =>
  Effect.andThen(line(), line(["bold", title]))

export const count = (value: number): string => value.toLocaleString("en-US")

/** `1 session`, `2 sessions`. */
export const plural = (value: number, noun: string): string => `${count(value)} ${noun}${value === 1 ? "" : "s"}`

export const seconds = (milliseconds: number, digits = 1): string => `${(milliseconds / 1000).toFixed(digits)} s`

/** `OutcomeUnknown 3, CircuitOpen 12`, the most frequent first. */
export const tally = (counts: Iterable<readonly [name: string, count: number]>): string =>
  Array.from(counts)
    .filter(([, n]) => n > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([name, n]) => `${name} ${count(n)}`)
    .join(", ")

const levels = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"] as const

/** One character for each value; a gap where there was nothing. */
export const sparkline = (values: ReadonlyArray<number>, highest = Math.max(...values, 1)): string =>
  values.map((value) => (value <= 0 ? " " : levels[Math.min(7, Math.floor((value / highest) * 7.99))] ?? "█")).join("")

export const bar = (value: number, highest: number, width: number): string =>
  "█".repeat(Math.round((value / Math.max(highest, 1)) * width))

/** Lines of at most so many characters, the later ones indented. */
export const wrap = (text: string, columns: number): ReadonlyArray<string> => {
  const lines: Array<string> = []
  for (const word of text.split(" ")) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + 1 + word.length <= columns) lines[lines.length - 1] = `${last} ${word}`
    else lines.push(last === undefined ? word : `  ${word}`)
  }
  return lines
}
