// The set of benchmarks: load, scaling, layer-cost and recovery. Writes bench/results/*.json and docs/performance.md.
//   npm run bench                            all of it, about 35 minutes
//   npm run bench -- --quick --json FILE     in five minutes, and nothing but FILE is written
//   npm run bench -- --only layer-cost       one part; --no-write leaves the files alone
//   npm run bench -- --only load --smoke     a few seconds, for its correctness
//   npm run bench -- --page                  writes the page of the results that are there
//   npm run bench -- --only breaker          not of the set; cold neither
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { dirname, resolve } from "node:path"
import { parseArgs } from "node:util"
import * as Load from "./load/part.ts"
import * as Server from "./load/server.ts"
import { refuse, understood } from "./performance/arguments.ts"
import { byHandOf, chartsOf, type Everything, pageOf } from "./performance/page.ts"
import { format, keep, originOf, type Part, parts, recall, type Results } from "./performance/results.ts"
import { flawsOf, type LoadRow, type Row } from "./performance/row.ts"
import { type CostRow, type FaultRow, judge, type Measured, ours, verdictOf } from "./performance/targets.ts"
import * as Scaling from "./scaling/part.ts"

/** Benchmarks with pages of their own, or none. */
const others: Readonly<Record<string, () => Promise<unknown>>> = {
  breaker: () => import("./breaker.ts"),
  cold: () => import("./cold.ts")
}

const given = understood(() =>
  parseArgs({
    options: {
      only: { type: "string" },
      quick: { type: "boolean", default: false },
      smoke: { type: "boolean", default: false },
      page: { type: "boolean", default: false },
      write: { type: "boolean", default: true },
      json: { type: "string" }
    },
    allowNegative: true
  }).values
)

const docs = new URL("../docs/", import.meta.url)
const pageFile = new URL("performance.md", docs)

const writePage = (): void => {
  const everything: Everything = {
    load: recall("load"),
    scaling: recall("scaling"),
    "layer-cost": recall("layer-cost"),
    recovery: recall("recovery")
  }
  let before = ""
  try {
    before = readFileSync(pageFile, "utf8")
  } catch {
    // The first one.
  }
  mkdirSync(new URL("performance/", docs), { recursive: true })
  for (const [name, svg] of chartsOf(everything)) writeFileSync(new URL(`performance/${name}`, docs), svg)
  writeFileSync(pageFile, pageOf(everything, byHandOf(before)))
  console.log("wrote docs/performance.md")
}

const measure = async (
  chosen: ReadonlyArray<Part>,
  thoroughness: Load.Thoroughness
): Promise<ReadonlyArray<Results>> => {
  const isQuick = thoroughness !== "full"
  const scope = Scope.makeUnsafe()
  let server: Promise<Server.Server> | undefined
  const serve = () => server ??= Effect.runPromise(Scope.provide(Server.make, scope))
  const runs: Readonly<Record<Part, () => Promise<ReadonlyArray<Row>>>> = {
    load: async () => Load.run(thoroughness, await serve()),
    scaling: async () => Scaling.run(thoroughness, await serve()),
    "layer-cost": async () => (await import("./layerCost.ts")).run({ quick: isQuick }),
    recovery: async () => (await import("./recovery.ts")).run({ quick: isQuick })
  }
  try {
    const found: Array<Results> = []
    for (const part of chosen) {
      console.log(`\n# ${part}`)
      const startedAt = new Date()
      const rows = await runs[part]()
      const origin = originOf(startedAt, isQuick)
      const versions = server === undefined
        ? origin.versions
        : { PostgreSQL: (await server).version, ...origin.versions }
      console.log(`(${origin.seconds} s)`)
      const results = { ...origin, versions, rows }
      found.push(results)
      if (!isQuick && given.write) keep(part, results)
    }
    return found
  } finally {
    await Effect.runPromise(Scope.close(scope, Exit.void))
  }
}

if (given.only !== undefined && others[given.only] !== undefined) {
  console.log(`# ${given.only}`)
  await others[given.only]!()
} else if (given.page) {
  writePage()
} else {
  const chosen = given.only === undefined ? parts : parts.filter((part) => part === given.only)
  if (chosen.length === 0) {
    refuse(`There is no benchmark "${given.only}", but there are: ${[...parts, ...Object.keys(others)].join(", ")}`)
  }
  // Not after half an hour.
  if (given.json !== undefined && !existsSync(dirname(resolve(given.json)))) {
    refuse(`--json ${given.json}: there is no folder ${dirname(resolve(given.json))}`)
  }
  const found = await measure(chosen, given.smoke ? "smoke" : given.quick ? "quick" : "full")
  if (given.json !== undefined) {
    const { rows: _, ...origin } = found[0]!
    const versions = Object.assign({}, ...found.map(({ versions }) => versions)) as Results["versions"]
    const seconds = found.reduce((sum, each) => sum + each.seconds, 0)
    const rows = found.flatMap(({ rows }) => rows)
    writeFileSync(given.json, format({ ...origin, versions, seconds, rows }))
  }
  if (!given.quick && !given.smoke && given.write) writePage()

  const rowsOf = <R extends Row>(part: Part) => found[chosen.indexOf(part)]?.rows as ReadonlyArray<R> | undefined
  const measured: Measured = {
    load: rowsOf<LoadRow>("load"),
    scaling: rowsOf<LoadRow>("scaling"),
    "layer-cost": rowsOf<CostRow>("layer-cost"),
    recovery: rowsOf<FaultRow>("recovery")
  }
  if (!given.smoke) console.log("\n# targets")
  for (const verdict of given.smoke ? [] : judge(measured)) {
    if (verdict.isHeld !== undefined) {
      console.log(`${verdictOf(verdict).padEnd(7)} ${verdict.target}: ${verdict.measured}`)
    }
  }
  // Errors are what the faults of the recovery are about, and what others do with fifty thousand callers is their affair.
  const mayFail = ({ contender, suite }: Row) =>
    suite.startsWith("recovery/") || (suite === "scaling/callers" && !contender.startsWith(ours))
  const failed = found.flatMap(({ rows }) => rows.filter((row) => (row.errors ?? 0) > 0 && !mayFail(row)))
  for (const { callers, contender, errors, suite } of failed) {
    console.error(`${errors} errors where none may be: ${suite}, ${contender}, ${callers} callers`)
  }
  const flawed = found.flatMap(({ rows }) => rows).flatMap((row) =>
    flawsOf(row).map((flaw) => `${row.suite}, ${row.contender}: ${flaw}`)
  )
  for (const flaw of flawed) console.error(flaw)
  if (failed.length > 0 || flawed.length > 0) process.exitCode = 1
}
