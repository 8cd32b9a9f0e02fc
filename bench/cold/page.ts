/** What `docs/cold-start.md` says. */
import { builds, type Size } from "./builds.ts"
import { type Subject, subjects } from "./subjects.ts"

interface Moment {
  /** Milliseconds since the process began. */
  readonly at: number
  /** Milliseconds of CPU. */
  readonly cpu: number
}

export interface Run {
  readonly began: Moment
  readonly loaded: Moment
  readonly answered: Moment
}

/** By build, then by subject. */
type Found<A> = ReadonlyMap<string, ReadonlyMap<string, A>>

export interface Findings {
  readonly runs: Found<ReadonlyArray<Run>>
  readonly sizes: Found<Size>
  /** Minified bytes of each package, by subject. */
  readonly contents: Found<number>
  readonly rounds: number
}

const quantile = (values: ReadonlyArray<number>, share: number): number => {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!
}

const median = (values: ReadonlyArray<number>): number => quantile(values, 0.5)

const spread = (values: ReadonlyArray<number>): string =>
  `${median(values).toFixed(0)} (${quantile(values, 0.25).toFixed(0)}-${quantile(values, 0.75).toFixed(0)})`

const table = (head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = head.map((cell, column) => Math.max(cell.length, 2, ...rows.map((row) => row[column]!.length)))
  const line = (cells: ReadonlyArray<string>) =>
    `| ${
      cells.map((cell, column) => column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)).join(
        " | "
      )
    } |`
  const rule = widths.map((width, column) => column === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`)
  return [line(head), line(rule), ...rows.map(line)].join("\n")
}

const bySubject = (cells: (subject: Subject) => ReadonlyArray<string>) =>
  subjects.map((subject) => [subject.title, ...cells(subject)])

const times = ({ runs }: Findings, cell: (runs: ReadonlyArray<Run>, ofPg: ReadonlyArray<Run>) => string): string =>
  table(
    ["milliseconds", ...builds.map(({ name }) => name)],
    bySubject(({ name }) =>
      builds.map((build) => cell(runs.get(build.name)!.get(name)!, runs.get(build.name)!.get("pg")!))
    )
  )

const sizeColumns = ["min", "gzip -9", "brotli"]

const sizesTable = ({ sizes }: Findings, build: string): string => {
  const found = sizes.get(build)!
  const { gzip: least } = found.get("plain")!
  return table(
    [`${build}, bytes`, ...sizeColumns, "gzip above the plain driver"],
    bySubject(({ name }) => {
      const { brotli, gzip, min } = found.get(name)!
      return [String(min), String(gzip), String(brotli), gzip > least ? `+${gzip - least}` : ""]
    })
  )
}

const contentsTable = ({ contents }: Findings): string => {
  const packages = ["effect", "@effect/sql-pg", "effect-pg-pool"]
  return table(
    ["minified bytes of", ...packages.map((name) => `\`${name}\``), "others"],
    bySubject(({ name }) => {
      const found = contents.get(name)!
      const others = [...found].filter(([from]) => !packages.includes(from)).reduce((sum, [, bytes]) => sum + bytes, 0)
      return [...packages.map((from) => String(found.get(from) ?? 0)), String(others)]
    })
  )
}

/** The gzip sizes that a page has, by build and subject. */
export const sizesOn = (page: string): ReadonlyMap<string, number> => {
  const found = new Map<string, number>()
  let build: string | undefined
  for (const line of page.split("\n")) {
    const [title, , gzip] = line.split("|").slice(1).map((cell) => cell.trim())
    build = title === undefined ? undefined : /^(\w+), bytes$/.exec(title)?.[1] ?? build
    const subject = subjects.find((subject) => subject.title === title)
    if (build !== undefined && subject !== undefined) found.set(`${build} ${subject.name}`, Number(gzip))
  }
  return found
}

const firstRow = (findings: Findings) => times(findings, (runs) => spread(runs.map(({ answered }) => answered.at)))
const imports = (findings: Findings) =>
  times(findings, (runs) => spread(runs.map(({ began, loaded }) => loaded.at - began.at)))
const cpu = (findings: Findings) => times(findings, (runs) => spread(runs.map(({ answered }) => answered.cpu)))
/** Within each round, so that a slow moment of the machine meets both. */
const ratios = (findings: Findings) =>
  times(
    findings,
    (runs, ofPg) => median(runs.map(({ answered }, round) => answered.at / ofPg[round]!.answered.at)).toFixed(2)
  )

export const tablesOf = (findings: Findings): string =>
  [
    sizesTable(findings, "esbuild"),
    sizesTable(findings, "rolldown"),
    `To the first row:\n${firstRow(findings)}`,
    `The same by that of pg:\n${ratios(findings)}`,
    `Import:\n${imports(findings)}`,
    `CPU to the first row:\n${cpu(findings)}`
  ].join("\n\n")

export const pageOf = (findings: Findings, machine: string): string =>
  `# Cold start

What a new process pays before it has the first row, beside the plain driver and beside \`pg\` and \`postgres\`. This page is
written by \`npm run bench:cold -- --write\`. Figures of time are those of one machine
(${machine}, a server on the same machine, TCP, SCRAM, no TLS); compare them
with each other, not with yours. ${findings.rounds} rounds in turns, median and
quartiles.

Each handler asks \`SELECT 1\` of a pool of two. The ways in which it comes to the process:

${builds.map(({ name, says }) => `- **${name}**: ${says}.`).join("\n")}

## Until the first row

From the start of the process, in which Node itself is ready after ${
    median([...findings.runs.values()].flatMap((found) => [...found.values()].flat()).map(({ began }) => began.at))
      .toFixed(0)
  } milliseconds, to the row in hand:

${firstRow(findings)}

The same as a multiple of what \`pg\` takes in the same round:

${ratios(findings)}

Importing the handler alone:

${imports(findings)}

CPU until the first row, all threads. A Lambda of less than 1,769 MB has less than one processor, and takes as much longer:

${cpu(findings)}

## Size

${sizesTable(findings, "esbuild")}

${sizesTable(findings, "rolldown")}

What esbuild's file consists of:

${contentsTable(findings)}

Exporters, HTTP routes, the registries of \`prom-client\` and OpenTelemetry, the circuit shared through Redis and the adapters
for other platforms are not in it unless the handler names them: \`test/bundle.test.ts\` sees to that, and to the size. From
the barrel the same is true with rolldown. esbuild keeps all of a room of which one thing is used as
\`Pg.Serverless.lambda\`, \`Pg.Pool.sizeFromCpus\` and so on; \`import * as Serverless from "effect-pg-pool/Serverless"\` is
taken apart by both.

## Why it costs more than a driver, and what helps

Part of it is V8 reading code: the queue, the circuit, the verdict about every SQLSTATE and socket code, the recovery, and the
words of its errors and log lines are all in the file before the first query asks whether they are needed. The other part is
that what is needed runs for the first time, in V8's interpreter. Either is paid once for each process. So, in this order:

1. **Bundle.** Unbundled, hundreds of files are looked up and read.
2. **Ship the compile cache.** Node keeps the code that a run has compiled, functions and all, and takes it up in the next
   process. Make it where the package is made, by the Node version, the processor type and the path of the file that it will
   have there, and point to it:

   \`\`\`sh
   # In the image that the function runs in, with the bundle where it will be:
   NODE_COMPILE_CACHE=/var/task/cache node -e 'import("/var/task/index.mjs").then(() => process.exit())'
   # In the function's environment:
   NODE_COMPILE_CACHE=/var/task/cache
   \`\`\`

   A cache of another version is not used, and does no harm. Call the handler once in that run, if a database can be reached
   there: then what the first query needs is in the cache as well.
3. **ESM or CommonJS** makes little difference for one file; take what the rest of the function needs.
4. **Memory is processor.** All of this is the work of one thread. Build the runtime outside of the handler, so that it is
   done before the first invocation.
`
