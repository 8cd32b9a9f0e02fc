/** The server that contenders are measured on. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { EmbeddedPostgres } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { readFileSync } from "node:fs"
import { schema } from "./workload.ts"

export interface Server {
  readonly url: string
  readonly version: string
  readonly run: (statements: ReadonlyArray<string>) => Promise<void>
  /** Clock ticks that all of its processes have used; `undefined` where there is no /proc. */
  readonly cpuTicks: () => number | undefined
  readonly microsPerTick: number
}

/** Nothing waits for the disk, and nothing cleans up in the turn of somebody else. */
const settings: Readonly<Record<string, string>> = {
  max_connections: "800",
  shared_buffers: "256MB",
  fsync: "off",
  synchronous_commit: "off",
  full_page_writes: "off",
  autovacuum: "off",
  checkpoint_timeout: "1h",
  max_wal_size: "8GB"
}

const stat = (pid: number): ReadonlyArray<number> | undefined => {
  try {
    return readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /, "").split(" ").map(Number)
  } catch {
    return undefined
  }
}

const ticksOf = (postmaster: number): number | undefined => {
  const own = stat(postmaster)
  if (own === undefined) return undefined
  // Those that have ended are in the parent's account.
  let ticks = own[11]! + own[12]! + own[13]! + own[14]!
  for (const pid of readFileSync(`/proc/${postmaster}/task/${postmaster}/children`, "utf8").trim().split(" ")) {
    const fields = stat(Number(pid))
    if (fields !== undefined) ticks += fields[11]! + fields[12]!
  }
  return ticks
}

/** An embedded server with the tables. */
export const make = Effect.gen(function*() {
  const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false, settings })
  const administrator = yield* PgConnection.make({ url: server.url })
  const run = (statements: ReadonlyArray<string>) =>
    Effect.forEach(statements, (statement) => administrator.query(statement, [], false), { discard: true })
  yield* run(schema)
  const [version] = yield* administrator.query("SHOW server_version", [], false).pipe(
    Effect.map(({ rows }) => rows as ReadonlyArray<{ readonly server_version: string }>)
  )
  const postmaster = stat(administrator.processId)?.[1]
  return {
    url: Redacted.value(server.url),
    version: version!.server_version,
    run: (statements) => Effect.runPromise(run(statements)),
    cpuTicks: () => (postmaster === undefined ? undefined : ticksOf(postmaster)),
    // Linux' USER_HZ is 100 everywhere.
    microsPerTick: 10_000
  } satisfies Server
})
