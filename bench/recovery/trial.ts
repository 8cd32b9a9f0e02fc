/** One client goes through one fault. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"
import type { EmbeddedPostgres } from "../../src/testing/EmbeddedPostgres.ts"
import type { Name } from "./contender.ts"
import { type Figures, figuresOf } from "./figures.ts"
import type { Task, Testimony } from "./testimony.ts"

export type FaultName = "terminate" | "restart" | "freeze"

/** Milliseconds. */
export interface Timing {
  readonly warmUp: number
  readonly before: number
  /** How long a stop or a freeze lasts. */
  readonly stop: number
  readonly freeze: number
  readonly after: number
}

export interface Plan {
  readonly callers: number
  readonly max: number
  readonly timing: Timing
}

type Server = EmbeddedPostgres["Service"]

const now = (): number => performance.timeOrigin + performance.now()

const query = (server: Server, sql: string) =>
  Effect.scoped(Effect.flatMap(
    PgConnection.make({ url: server.url }),
    (connection) => connection.queryValues(sql, [], false)
  ))

/** What is done to the server, and how long it is until that is over. */
const strike = (server: Server, fault: FaultName, { freeze, stop }: Timing) => {
  switch (fault) {
    case "terminate":
      return query(
        server,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
      )
    case "restart":
      return Effect.gen(function*() {
        const began = now()
        yield* server.stop
        yield* Effect.sleep(Math.max(0, stop - (now() - began)))
        yield* server.start
      })
    case "freeze":
      return Effect.gen(function*() {
        yield* server.pause
        yield* Effect.sleep(freeze)
        yield* server.resume
      })
  }
}

const start = async (name: Name, server: Server, max: number): Promise<ChildProcess> => {
  const child = fork(fileURLToPath(new URL("host.ts", import.meta.url)), [
    name,
    Redacted.value(server.url),
    String(max)
  ], {
    // What a client logs of an outage is not what is looked at here.
    stdio: ["ignore", "ignore", "inherit", "ipc"]
  })
  await once(child, "message")
  return child
}

let firstId = 1

export const trial = (server: Server, fault: FaultName, name: Name, { callers, max, timing }: Plan) =>
  Effect.gen(function*() {
    const child = yield* Effect.acquireRelease(
      Effect.promise(() => start(name, server, max)),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    )
    const task: Task = { callers, firstId }
    firstId += 10_000_000
    child.send(task)
    yield* Effect.sleep(timing.warmUp + timing.before)
    const began = now()
    yield* strike(server, fault, timing)
    const ended = now()
    yield* Effect.sleep(timing.after)
    const until = now()
    const testimony = yield* Effect.promise(async () => {
      child.send("end")
      return (await once(child, "message"))[0] as Testimony
    })
    const rows = yield* query(
      server,
      `SELECT id, count(*)::int FROM receipt WHERE id >= ${task.firstId} AND id < ${firstId} GROUP BY id`
    )
    const present = new Map(rows.map(([id, times]) => [Number(id), Number(times)]))
    return figuresOf(testimony, { began, ended, until }, present) satisfies Figures
  }).pipe(Effect.scoped)
