// Asks every circuit breaker the 48 cases of test/suites/breaker, and writes what each of them answers.
//   npm run bench:breakers              writes docs/breaker-comparison.md
//   npm run bench:breakers -- --check   fails if that file does not say what was found
import * as Effect from "effect/Effect"
import { readFileSync, writeFileSync } from "node:fs"
import { setTimeout as wait } from "node:timers/promises"
import type { Case } from "../test/suites/breaker/case.ts"
import { cases, casesOfPool } from "../test/suites/breaker/cases.ts"
import type { Engine } from "../test/suites/breaker/engine.ts"
import { cockatiel } from "../test/suites/breaker/engines/cockatiel.ts"
import { effect } from "../test/suites/breaker/engines/effect.ts"
import { opossum } from "../test/suites/breaker/engines/opossum.ts"
import { inProcess, shared } from "../test/suites/breaker/engines/ours.ts"
import type { Verdict } from "../test/suites/breaker/verdict.ts"
import { judge } from "../test/suites/breaker/verdict.ts"

const root = new URL("../", import.meta.url)
const page = new URL("docs/breaker-comparison.md", root)

/** Longer than any case takes on a busy machine: one that hangs is a failure, not the end of the comparison. */
const patience = 120_000

interface Competitor {
  readonly engine: Engine
  /** The package it comes in. Ours is this one. */
  readonly from?: string
  /** How it is configured, and what a reader should know of it before the reasons. */
  readonly notes: ReadonlyArray<string>
}

const competitors: ReadonlyArray<Competitor> = [
  {
    engine: inProcess,
    notes: [
      "Its own classification of errors, and its defaults but for jitter, back-off and ramp, which are on by default."
    ]
  },
  {
    engine: shared,
    notes: ["`Breaker.layerShared` over Effect's `layerStoreMemory`, otherwise the same."]
  },
  {
    engine: effect,
    from: "effect",
    notes: [
      "`CircuitBreaker.make` over `layerStoreMemory`, with `consecutive(5)`, an open time of 30 seconds, and a `classify` that knows the errors of the cases. Back-off is a capped `Schedule`, jitter `Schedule.jittered`."
    ]
  },
  {
    engine: cockatiel,
    from: "cockatiel",
    notes: [
      "`circuitBreaker` with `ConsecutiveBreaker(5)`, `halfOpenAfter` 30 seconds, and a `handleWhen` that knows the errors of the cases. Back-off is an `ExponentialBackoff` without jitter, jitter a `DelegateBackoff`, the attempt timeout a `timeout` policy inside.",
      "It does not tell when to come back. An error that `handleWhen` does not handle says nothing while closed, and closes when half-open."
    ]
  },
  {
    engine: opossum,
    from: "opossum",
    notes: [
      "It opens by a share of failures, so five in a row are approached: `errorThresholdPercentage` 99 and `volumeThreshold` 5 within a window of 60 seconds, the threshold with which it passes most. `resetTimeout` is 30 seconds, `errorFilter` knows the errors of the cases, `timeout` is off but for case 18.",
      "It does not tell when to come back. A success within the window keeps it closed. Calls in flight count as calls that did not fail, and errors that `errorFilter` lets pass as successes."
    ]
  }
]

// Thrown where nobody waits for it, which would end a process.
const strays: Array<unknown> = []
process.on("unhandledRejection", (error) => strays.push(error))
process.on("uncaughtException", (error) => strays.push(error))

const verdictOn = async (subject: Case, engine: Engine): Promise<Verdict> => {
  const bound = new AbortController()
  // Set before the case begins, which may replace the timers.
  const tooLate = wait(patience, { _tag: "Fail", reason: "the case does not end" } as const, { signal: bound.signal })
  const verdict = await Promise.race([tooLate, Effect.runPromise(judge(subject, engine), { signal: bound.signal })])
    .finally(() => bound.abort())
  await new Promise((resolve) => setImmediate(resolve))
  const [stray] = strays.splice(0)
  if (stray === undefined) return verdict
  const nobodyCaught = `nobody can catch "${stray instanceof Error ? stray.message : String(stray)}"`
  return { _tag: "Fail", reason: verdict._tag === "Fail" ? `${verdict.reason}; ${nobodyCaught}` : nobodyCaught }
}

/** Cases whose answer cannot depend on how errors are classified, and which take long. */
const indifferent = new Set([26, 27, 46])

interface Answers {
  readonly competitor: Competitor
  readonly verdicts: ReadonlyMap<number, Verdict>
  /** The answers that are others without a classification of the user's. */
  readonly byDefault: ReadonlyMap<number, Verdict>
}

const ask = async (competitor: Competitor): Promise<Answers> => {
  const verdicts = new Map<number, Verdict>()
  const byDefault = new Map<number, Verdict>()
  for (const one of cases) {
    const verdict = await verdictOn(one, competitor.engine)
    verdicts.set(one.number, verdict)
    if (competitor.engine.byDefault === undefined || indifferent.has(one.number)) continue
    const plain = await verdictOn(one, competitor.engine.byDefault)
    if (plain._tag !== verdict._tag) byDefault.set(one.number, plain)
  }
  return { competitor, verdicts, byDefault }
}

const versionOf = (from: string | undefined): string => {
  const manifest = from === undefined ? undefined : new URL(`node_modules/${from}/package.json`, root)
  return manifest === undefined ? "this one" : JSON.parse(readFileSync(manifest, "utf8")).version
}

const table = (rows: ReadonlyArray<ReadonlyArray<string>>, rightAligned: ReadonlySet<number>): string => {
  const widths = rows[0]!.map((_, column) => Math.max(2, ...rows.map((row) => row[column]!.length)))
  const line = (cells: ReadonlyArray<string>) =>
    `| ${
      cells.map((cell, column) =>
        rightAligned.has(column) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)
      ).join(" | ")
    } |`
  const rule = widths.map((width, column) => rightAligned.has(column) ? `${"-".repeat(width - 1)}:` : "-".repeat(width))
  return [line(rows[0]!), line(rule), ...rows.slice(1).map(line)].join("\n")
}

const marks = { Pass: "pass", Fail: "**fail**", Cannot: "cannot" } as const

const reasonOf = (verdict: Verdict): string => verdict._tag === "Pass" ? "passes" : verdict.reason

const reasonsOf = ({ byDefault, verdicts }: Answers): ReadonlyArray<string> =>
  cases.flatMap(({ number }) => {
    const verdict = verdicts.get(number)!
    const plain = byDefault.get(number)
    const remarks = [
      ...(verdict._tag === "Pass" ? [] : [verdict.reason]),
      ...(plain === undefined ? [] : [`without a classification of the user's: ${reasonOf(plain)}`])
    ]
    return remarks.length === 0 ? [] : [`- **${number}**: ${remarks.join("; ")}.`]
  })

const sectionOf = (answers: Answers): string => {
  const { engine, notes } = answers.competitor
  const reasons = reasonsOf(answers)
  return [`### ${engine.name}`, notes.join(" "), ...(reasons.length === 0 ? [] : [reasons.join("\n")])].join("\n\n")
}

const pageOf = (all: ReadonlyArray<Answers>): string => {
  const names = all.map(({ competitor }) => competitor.engine.name)
  const count = ({ verdicts }: Answers, tag: Verdict["_tag"]) =>
    String([...verdicts.values()].filter(({ _tag }) => _tag === tag).length)
  const totals = table([
    ["breaker", "version", "pass", "fail", "cannot"],
    ...all.map((answers) => [
      answers.competitor.engine.name,
      versionOf(answers.competitor.from),
      count(answers, "Pass"),
      count(answers, "Fail"),
      count(answers, "Cannot")
    ])
  ], new Set([2, 3, 4]))
  const rows = [
    ...cases.map((one) => ({ ...one, answers: all.map(({ verdicts }) => marks[verdicts.get(one.number)!._tag]) })),
    ...casesOfPool.map((one) => ({ ...one, answers: all.map(() => "–") }))
  ].toSorted((one, other) => one.number - other.number)
  const details = table([
    ["#", "case", "expected", ...names],
    ...rows.map(({ answers, expected, number, title }) => [String(number), title, expected, ...answers])
  ], new Set([0]))
  return `# Circuit breakers compared

${rows.length} cases of what a circuit breaker in front of a database meets, asked of this library's and of others. This page is
written by \`npm run bench:breakers\`; \`npm run bench:breakers -- --check\` fails when it is out of date.

The standard configuration: five failures in a row open the circuit, for 30 seconds; a probe has 5 seconds to answer;
failures more than 60 seconds apart make no streak; jitter, back-off and recovery ramp only where a case asks for them.

- **pass**: it does what is expected.
- **fail**: it does not, for the reason given below.
- **cannot**: it lacks the power that the case is about.
- **–**: the case concerns what surrounds a breaker, the executor and the pool, and is tested there.

${totals}

## Case by case

${details}

## How they were asked, and what they did

Time is simulated, and frozen or set back where a case says so: Effect's test clock, and Node's \`Date\` and timers for
the engines of promises. Nothing else is: each case runs the library itself. The cases are in
[\`test/suites/breaker/cases\`](../test/suites/breaker/cases), the engines beside them.

${all.map(sectionOf).join("\n\n")}
`
}

const main = async () => {
  const all: Array<Answers> = []
  for (const competitor of competitors) all.push(await ask(competitor))
  const found = pageOf(all)
  for (const answers of all) {
    const passed = [...answers.verdicts.values()].filter(({ _tag }) => _tag === "Pass").length
    console.log(`${answers.competitor.engine.name.padEnd(24)} passes ${passed} of ${cases.length}`)
  }
  if (!process.argv.includes("--check")) return writeFileSync(page, found)
  const written = readFileSync(page, "utf8")
  if (written === found) return
  const lines = written.split("\n")
  const [index, line] = [...found.split("\n").entries()].find(([index, line]) => lines[index] !== line) ??
    [lines.length, ""]
  console.error(`docs/breaker-comparison.md is out of date from line ${index + 1} on, which is now:\n${line}`)
  console.error("Write it anew with: npm run bench:breakers")
  process.exitCode = 1
}

await main()
