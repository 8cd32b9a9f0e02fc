// What callers see of a fault, and how long it lasts for them: all sessions terminated, the server stopped and started, the
// server frozen, under load, with this library and with others. Each client is in a process of its own.
//   node --import ./scripts/source.mjs bench/recovery.ts [--quick] [--rounds 3] [--fault restart] [--contender pg] [--json FILE] [--charts DIRECTORY]
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import { writeFileSync } from "node:fs"
import { parseArgs } from "node:util"
import { EmbeddedPostgres } from "../src/testing/EmbeddedPostgres.ts"
import { type Name, names } from "./recovery/contender.ts"
import type { Figures } from "./recovery/figures.ts"
import { charts } from "./recovery/page.ts"
import { type Row, rowOf } from "./recovery/row.ts"
import { type FaultName, type Plan, trial } from "./recovery/trial.ts"

export interface Options {
  /** One round of short faults, in less than a minute. */
  readonly quick?: boolean | undefined
  readonly rounds?: number | undefined
  readonly faults?: ReadonlyArray<FaultName> | undefined
  readonly contenders?: ReadonlyArray<Name> | undefined
  readonly callers?: number | undefined
  readonly max?: number | undefined
}

const schema = [
  "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, price int NOT NULL, note text)",
  "INSERT INTO item SELECT id, 'item ' || id, id % 1000, repeat('x', 20) FROM generate_series(1, 100000) AS id",
  // Without a primary key, so that a write that was made twice can be seen.
  "CREATE TABLE receipt (id bigint NOT NULL, what text NOT NULL)",
  "CREATE INDEX ON receipt (id)",
  "VACUUM ANALYZE"
]

const faults: ReadonlyArray<FaultName> = ["terminate", "restart", "freeze"]

const show = (row: Row): string =>
  [
    row.suite.padEnd(20),
    row.contender.padEnd(28),
    row.qps.toFixed(0).padStart(7),
    String(row.readErrors).padStart(7),
    String(row.writeErrors).padStart(7),
    String(row.unknownWrites).padStart(7),
    String(row.untruthful).padStart(7),
    (row.recoveryMs?.toFixed(0) ?? "never").padStart(7),
    row.longestGapMs.toFixed(0).padStart(7),
    row.peakMs.toFixed(0).padStart(7),
    ` ${Object.entries(row.failures).map(([name, times]) => `${times} × ${name}`).join(", ").slice(0, 220)}`
  ].join(" ")

/** Measures, prints as it goes, and gives a row for each fault and client. */
export const run = (options: Options = {}): Promise<ReadonlyArray<Row>> => {
  const { callers = 100, max = 10, quick = false } = options
  const contenders = options.contenders ?? names
  const rounds = options.rounds ?? (quick ? 1 : 3)
  const program = Effect.gen(function*() {
    const server = yield* EmbeddedPostgres.make({
      useDatabaseUrl: false,
      settings: { fsync: "off", synchronous_commit: "off", full_page_writes: "off" }
    })
    yield* Effect.scoped(Effect.flatMap(
      PgConnection.make({ url: server.url }),
      (connection) => Effect.forEach(schema, (statement) => connection.query(statement, [], false))
    ))
    const rows: Array<Row> = []
    console.log(
      "suite                contender                        q/s   reads  writes unknown untrue   back ms  gap ms peak ms  failures"
    )
    for (const fault of options.faults ?? faults) {
      const seen = new Map<Name, Array<Figures>>(contenders.map((name) => [name, []]))
      const plan: Plan = {
        callers,
        max,
        timing: quick
          ? { warmUp: 300, before: 1000, stop: 1000, freeze: 1000, after: 1500 }
          : { warmUp: 2500, before: 1200, stop: 3000, freeze: 5000, after: fault === "restart" ? 4000 : 2000 }
      }
      for (let round = 0; round < rounds; round++) {
        for (let turn = 0; turn < contenders.length; turn++) {
          const name = contenders[(turn + round) % contenders.length]!
          seen.get(name)!.push(yield* trial(server, fault, name, plan))
        }
      }
      for (const name of contenders) {
        const row = rowOf(fault, name, plan, seen.get(name)!)
        rows.push(row)
        console.log(show(row))
      }
    }
    return rows
  })
  return Effect.runPromise(Effect.scoped(program))
}

if (import.meta.main) {
  const { values: given } = parseArgs({
    options: {
      quick: { type: "boolean", default: false },
      rounds: { type: "string" },
      fault: { type: "string", multiple: true },
      contender: { type: "string", multiple: true },
      json: { type: "string" },
      charts: { type: "string" }
    }
  })
  const isKnown = (given.fault ?? []).every((fault) => faults.includes(fault as FaultName)) &&
    (given.contender ?? []).every((name) => names.includes(name as Name)) &&
    (given.rounds === undefined || Number(given.rounds) >= 1)
  if (!isKnown) {
    console.error(`--fault is one of ${faults.join(", ")}; --contender one of ${names.join(", ")}; --rounds 1 or more`)
    process.exit(2)
  }
  const rows = await run({
    quick: given.quick,
    rounds: given.rounds === undefined ? undefined : Number(given.rounds),
    faults: given.fault as Array<FaultName> | undefined,
    contenders: given.contender as Array<Name> | undefined
  })
  if (given.json !== undefined) writeFileSync(given.json, `${JSON.stringify(rows)}\n`)
  for (const [file, svg] of Object.entries(charts(rows))) {
    if (given.charts !== undefined) writeFileSync(`${given.charts}/${file}`, svg)
  }
  const own = rows.filter(({ contender }) => contender.startsWith("effect-pg-pool"))
  process.exit(own.every(({ readErrors, untruthful }) => readErrors === 0 && untruthful === 0) ? 0 : 1)
}
