/** Who did what when, and how the calls fared meanwhile. Times are milliseconds since the workload began. */
import * as Pg from "effect-pg-pool"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { bar, count, heading, line, seconds, type Span, sparkline, tally, type Terminal, wrap } from "./terminal.ts"

export type Actor = "workload" | "server" | "breaker" | "pool"

/** The time from one thing that is done to the server until the next, and how the calls fared in it. */
export interface Act {
  readonly name: string
  readonly from: number
  firstSuccess: number | undefined
  firstError: number | undefined
  /** The longest time in which no call succeeded. */
  pause: number
  /** Failed calls, by what the callers were told. */
  readonly errors: Map<string, number>
  readonly before: Pg.Metrics.Snapshot
}

interface Entry {
  readonly at: number
  readonly actor: Actor
  readonly spans: ReadonlyArray<Span>
  readonly act: Act | undefined
}

export interface Timeline {
  readonly now: () => number
  readonly note: (actor: Actor, ...spans: ReadonlyArray<Span>) => Effect.Effect<void>
  /** Begins an act. */
  readonly begin: (name: string, actor: Actor, ...spans: ReadonlyArray<Span>) => Effect.Effect<Act>
  readonly succeeded: () => void
  readonly failed: (name: string) => void
  /** Calls that succeeded in the last second. */
  readonly rate: () => number
  /** Calls that failed in the last second, by what the callers were told. */
  readonly recentErrors: () => ReadonlyMap<string, number>
  /** Prints what happened. Times end now. */
  readonly report: Effect.Effect<void, never, Terminal>
}

/** Successes are counted in slots of this many milliseconds. */
const slot = 50

/** `announce` is told of each entry as it happens. */
export const make = Effect.fnUntraced(function*(
  announce: (at: number, actor: Actor, spans: ReadonlyArray<Span>) => Effect.Effect<void>
) {
  const clock = yield* Clock.Clock
  const metrics = yield* Pg.Metrics.Metrics
  const breaker = yield* Pg.Breaker.Breaker
  const zero = clock.currentTimeMillisUnsafe()
  const now = () => clock.currentTimeMillisUnsafe() - zero
  const entries: Array<Entry> = []
  const acts: Array<Act> = []
  const slots: Array<number> = []
  let recent: Array<readonly [at: number, name: string]> = []
  let lastSuccess = 0

  const add = (entry: Entry) =>
    Effect.suspend(() => {
      entries.push(entry)
      return announce(entry.at, entry.actor, entry.spans)
    })

  const note: Timeline["note"] = (actor, ...spans) => add({ at: now(), actor, spans, act: undefined })

  const endAct = (at: number): void => {
    const act = acts.at(-1)
    if (act !== undefined) act.pause = Math.max(act.pause, at - Math.max(lastSuccess, act.from))
  }

  const begin: Timeline["begin"] = (name, actor, ...spans) =>
    Effect.suspend(() => {
      const from = now()
      endAct(from)
      const act: Act = {
        name,
        from,
        firstSuccess: undefined,
        firstError: undefined,
        pause: 0,
        errors: new Map(),
        before: metrics.snapshotUnsafe()
      }
      acts.push(act)
      return Effect.as(add({ at: from, actor, spans, act }), act)
    })

  const succeeded = (): void => {
    const at = now()
    const index = Math.floor(at / slot)
    slots[index] = (slots[index] ?? 0) + 1
    endAct(at)
    lastSuccess = at
    const act = acts.at(-1)
    if (act !== undefined) act.firstSuccess ??= at
  }

  const failed = (name: string): void => {
    const at = now()
    recent.push([at, name])
    const act = acts.at(-1)
    if (act === undefined) return
    act.firstError ??= at
    increment(act.errors, name)
  }

  const recentErrors = () => {
    const since = now() - 1000
    recent = recent.filter(([at]) => at > since)
    const counts = new Map<string, number>()
    for (const [, name] of recent) increment(counts, name)
    return counts
  }

  /** Per second, from whole slots only. */
  const rateBetween = (from: number, to: number): number => {
    const [first, last] = [Math.ceil(from / slot), Math.floor(to / slot)]
    let sum = 0
    for (let index = first; index < last; index++) sum += slots[index] ?? 0
    return last <= first ? 0 : Math.round((sum * 1000) / ((last - first) * slot))
  }

  yield* breaker.transitions.pipe(
    Stream.runForEach((transition) =>
      add({ at: transition.at - zero, actor: "breaker", spans: transitionSpans(transition), act: undefined })
    ),
    Effect.forkScoped({ startImmediately: true })
  )

  const report: Timeline["report"] = Effect.gen(function*() {
    const end = now()
    endAct(end)
    const final = metrics.snapshotUnsafe()
    const after = (act: Act) => acts[acts.indexOf(act) + 1]

    yield* heading("What happened, in seconds since the workload began")
    for (const { act, actor, at, spans } of entries.sort((a, b) => a.at - b.at)) {
      yield* line(...entrySpans(at, actor, spans))
      if (act === undefined) continue
      for (const detail of detailsOf(act, after(act)?.before ?? final)) {
        for (const text of wrap(detail, 58)) yield* line(" ".repeat(21), ["dim", text])
      }
    }

    yield* heading("Calls that succeeded, per second")
    // The way back counts as recovery, not as throughput.
    const rates = acts.map((act) => rateBetween(Math.max(act.from, act.firstSuccess ?? 0), after(act)?.from ?? end))
    const highest = Math.max(...rates)
    for (const [index, { name }] of acts.entries()) {
      const rate = rates[index] ?? 0
      yield* line(`  ${name.padEnd(26)}${count(rate).padStart(7)}  `, ["cyan", bar(rate, highest, 32)])
    }
    // Half a second, or less where the run is short.
    const width = end > 15_000 ? 500 : 250
    const columns = Array.from(
      { length: Math.floor(end / width) },
      (_, column) => rateBetween(column * width, (column + 1) * width)
    )
    const marks = new Set(acts.slice(1).map(({ from }) => Math.floor(from / width)))
    yield* line()
    yield* line("  ", ["cyan", sparkline(columns)], ["dim", `  one column is ${seconds(width, width === 500 ? 1 : 2)}`])
    yield* line("  ", ["yellow", columns.map((_, column) => (marks.has(column) ? "▲" : " ")).join("").trimEnd()])
  })

  return {
    now,
    note,
    begin,
    succeeded,
    failed,
    rate: () => rateBetween(now() - 1000, now()),
    recentErrors,
    report
  } as Timeline
})

const increment = (counts: Map<string, number>, name: string): void => {
  counts.set(name, (counts.get(name) ?? 0) + 1)
}

export const entrySpans = (at: number, actor: Actor, spans: ReadonlyArray<Span>): ReadonlyArray<Span> => [
  `${seconds(at).padStart(8)}   `,
  [actor === "server" ? "bold" : "dim", actor.padEnd(10)],
  ...spans
]

const transitionSpans = (transition: Pg.Breaker.Transition): ReadonlyArray<Span> => {
  const from = `${transition.from} → `
  switch (transition.to) {
    case "Open": {
      const failure = codeOf(transition.failure)
      const why = transition.from === "Closed" ? `5 failures, the last ${failure}` : `the probe met ${failure}`
      return [from, ["red", "Open"], ` for ${seconds(transition.retryAfter)} (${why})`]
    }
    case "HalfOpen":
      return [from, ["yellow", "HalfOpen"], "; one call may try"]
    case "Closed":
      return [from, ["green", "Closed"], transition.from === "HalfOpen" ? "; the probe succeeded" : ""]
    case "Isolated":
    case "Disabled":
      return [from, ["yellow", transition.to]]
  }
}

const codeOf = (failure: Pg.Errors.Failure | undefined): string =>
  failure?.sqlState ?? failure?.code ?? failure?.message ?? "unknown"

const detailsOf = (act: Act, after: Pg.Metrics.Snapshot): ReadonlyArray<string> => {
  const grown = (counters: "errors" | "retries") =>
    tally(
      Object.entries(after[counters])
        // `Local` is what was refused here, without an attempt.
        .filter(([kind]) => kind !== "Local")
        .map(([kind, n]) => [kind, n - act.before[counters][kind as Pg.Errors.Kind]] as const)
    )
  const [saw, repeated, told] = [grown("errors"), grown("retries"), tally(act.errors)]
  if (saw === "" && told === "") return []
  const details: Array<string> = []
  if (saw !== "") details.push(`failures, those that many calls shared counted once: ${saw}`)
  if (repeated !== "") details.push(`calls repeated, since that was safe: ${repeated}`)
  details.push(`told to callers: ${told === "" ? "nothing" : told}`)
  const error = act.firstError === undefined ? "" : `first error after ${seconds(act.firstError - act.from, 2)}; `
  details.push(`${error}at most ${seconds(act.pause, 2)} without a success`)
  return details
}
