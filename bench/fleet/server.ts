/** The PostgreSQL server of the bench, and what it sees: its sessions over time, and who knocks. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { EmbeddedPostgres } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { now } from "./order.ts"

/** How many sessions the fleet has. */
export interface Sample {
  readonly at: number
  readonly sessions: number
}

/** Moments are in milliseconds since 1970. */
export interface Witnessed {
  readonly samples: ReadonlyArray<Sample>
  /** Connects that reached the server, whatever became of them. */
  readonly connects: ReadonlyArray<number>
  /** Those that it refused with 53300. */
  readonly refusals: ReadonlyArray<number>
}

const user = "fleet"
const password = "fleet"
const sampleEvery = 100
const readEvery = 40

export const make = Effect.fnUntraced(function*(rows: number) {
  const server = yield* EmbeddedPostgres.make({
    useDatabaseUrl: false,
    settings: {
      max_connections: "100",
      // A thousand clients share the processors of this machine; on their own ones 4096 rounds would bother nobody.
      scram_iterations: "16",
      // One line for each connect, one for each that is refused; the time in seconds since 1970 and the SQLSTATE in front.
      log_connections: "receipt",
      log_line_prefix: "%n %e ",
      log_min_messages: "log",
      log_min_error_statement: "panic",
      log_checkpoints: "off"
    }
  })
  const connection = PgConnection.make({ url: server.url, applicationName: "witness" })
  const administer = (sql: string) =>
    Effect.scoped(Effect.flatMap(connection, (administrator) => administrator.query(sql, [], false)))
  for (
    const sql of [
      `CREATE ROLE ${user} LOGIN PASSWORD '${password}'`,
      "CREATE TABLE orders (id int PRIMARY KEY, total int NOT NULL) WITH (fillfactor = 50)",
      `INSERT INTO orders SELECT id, 0 FROM generate_series(1, ${rows}) AS id`,
      `GRANT SELECT, UPDATE ON orders TO ${user}`,
      "CHECKPOINT"
    ]
  ) yield* administer(sql)

  const url = new URL(Redacted.value(server.url))
  url.username = user
  url.password = password

  // What PgBouncer proves who it is with, and its clients, without deriving a key for each login.
  const secrets = yield* administer(`SELECT rolpassword AS secret FROM pg_authid WHERE rolname = '${user}'`)
  const behind = new URL(url)
  behind.password = encodeURIComponent((secrets.rows[0] as { readonly secret: string }).secret)

  const samples: Array<Sample> = []
  const connects: Array<number> = []
  const refusals: Array<number> = []
  let lost = 0

  // ---- the sessions: through a place that only a superuser has
  const count = `SELECT count(*)::int AS sessions FROM pg_stat_activity WHERE usename = '${user}'`
  yield* Effect.scoped(Effect.gen(function*() {
    const witness = yield* connection
    yield* Effect.gen(function*() {
      const result = yield* witness.query(count, [], false)
      samples.push({ at: now(), sessions: sessionsOf(result) })
    }).pipe(Effect.repeat(Schedule.spaced(sampleEvery)))
  })).pipe(Effect.retry(Schedule.spaced(sampleEvery)), Effect.forkScoped)

  // ---- the knocks: the log's new lines
  let tail = ""
  const read = Effect.map(server.log, (log) => {
    const seen = tail === "" ? 0 : log.lastIndexOf(tail)
    if (seen < 0) lost++
    const fresh = log.slice(seen < 0 ? 0 : seen + tail.length)
    const end = fresh.lastIndexOf("\n") + 1
    if (end === 0) return
    tail = (tail + fresh.slice(0, end)).slice(-400)
    for (const line of fresh.slice(0, end).split("\n")) {
      const [seconds, state] = line.split(" ", 2)
      if (line.includes("connection received")) connects.push(Number(seconds) * 1000)
      else if (state === "53300") refusals.push(Number(seconds) * 1000)
    }
  })
  yield* Effect.forkScoped(Effect.repeat(read, Schedule.spaced(readEvery)))

  /** Ends every second session of the fleet, in the order of their process ids. */
  const endHalf = administer(
    `SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid, row_number() OVER (ORDER BY pid) AS number
     FROM pg_stat_activity WHERE usename = '${user}') AS theirs WHERE number % 2 = 0`
  )
  /** Nobody of the fleet is left. */
  const clear = administer(
    `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '${user}'`
  ).pipe(
    Effect.andThen(Effect.delay(administer(count), 100)),
    Effect.repeat({ until: (result) => sessionsOf(result) === 0 })
  )
  /** What was witnessed from some moment on. */
  const since = (from: number): Witnessed => {
    const later = (list: ReadonlyArray<number>) => list.filter((at) => at >= from)
    return { samples: samples.filter(({ at }) => at >= from), connects: later(connects), refusals: later(refusals) }
  }
  return {
    url: Redacted.make(url.href),
    /** The same with the password's SCRAM secret in its place. */
    urlOfPooler: Redacted.make(behind.href),
    kill: server.kill,
    start: server.start,
    endHalf,
    clear,
    since,
    lost: () => lost
  }
})

const sessionsOf = (result: { readonly rows: ReadonlyArray<unknown> }): number =>
  Number((result.rows[0] as { readonly sessions: number }).sessions)

export type Server = Effect.Success<ReturnType<typeof make>>
