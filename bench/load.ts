// Throughput, latency, CPU and memory of clients side by side, at some numbers of callers.
//   node bench/load.ts --suite read,transaction --callers 1,100,1000 --rounds 3 --lasts 800 --contender "PgClient,effect-pg-pool"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { EmbeddedPostgres } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { readFileSync } from "node:fs"
import { parseArgs } from "node:util"
import { contenders, type Name } from "./load/contender.ts"
import { measure, type Row } from "./load/measure.ts"
import { schema, type Suite, suites } from "./load/workload.ts"

const { values: given } = parseArgs({
  options: {
    suite: { type: "string", default: suites.join(",") },
    callers: { type: "string", default: "1,10,100,1000,10000" },
    contender: { type: "string", multiple: true, default: Object.keys(contenders) },
    rounds: { type: "string", default: "5" },
    lasts: { type: "string", default: "800" },
    max: { type: "string", default: "10" }
  }
})

const show = (row: Row): string =>
  [
    row.suite.padEnd(12),
    row.contender.padEnd(28),
    String(row.callers).padStart(6),
    row.qps.toFixed(0).padStart(7),
    (row.ratioToPgClient ?? 0).toFixed(2).padStart(6),
    row.p50Ms.toFixed(2).padStart(9),
    row.p99Ms.toFixed(2).padStart(9),
    row.clientCpuUs.toFixed(1).padStart(7),
    (row.serverCpuUs ?? 0).toFixed(1).padStart(7),
    row.rssMb.toFixed(0).padStart(5),
    String(row.errors).padStart(4)
  ].join(" ")

const program = Effect.gen(function*() {
  const server = yield* EmbeddedPostgres.make({
    useDatabaseUrl: false,
    settings: { max_connections: "300", fsync: "off", synchronous_commit: "off", full_page_writes: "off" }
  })
  const administrator = yield* PgConnection.make({ url: server.url })
  for (const statement of schema) yield* administrator.query(statement, [], false)
  const stat = readFileSync(`/proc/${administrator.processId}/stat`, "utf8").replace(/^.*\) /, "").split(" ")
  const postmaster = Number(stat[1])
  console.log(
    "suite        contender                    callers    q/s  ratio       p50       p99  client  server   rss errors"
  )
  for (const suite of given.suite.split(",")) {
    for (const callers of given.callers.split(",")) {
      const rows = yield* Effect.promise(() =>
        measure(
          {
            suite: suite as Suite,
            callers: Number(callers),
            max: Number(given.max),
            contenders: given.contender as Array<Name>,
            rounds: Number(given.rounds),
            warmUp: 300,
            lasts: Number(given.lasts)
          },
          Redacted.value(server.url),
          postmaster
        )
      )
      for (const row of rows) console.log(show(row))
    }
  }
})

await Effect.runPromise(Effect.scoped(program))
