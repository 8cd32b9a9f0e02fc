/** The example server in a process of its own, with customers, and what is done to its database meanwhile. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { FaultProxy } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"

class ExampleFailed extends Schema.TaggedError<ExampleFailed>()("ExampleFailed", { message: Schema.String }) {}

const root = fileURLToPath(new URL("../..", import.meta.url))

/** Starts examples/http-server.ts on a database; answers the host and port on which it listens. */
export const startExample = (
  url: Redacted.Redacted,
  settings: Readonly<Record<string, string>>
): Effect.Effect<string, ExampleFailed, Scope.Scope> =>
  Effect.gen(function*() {
    let said = ""
    const child = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const started = spawn(process.execPath, [
          "--import",
          "./scripts/source.mjs",
          "examples/http-server.ts",
          "--serve"
        ], {
          cwd: root,
          env: { ...process.env, ...settings, DATABASE_URL: Redacted.value(url), NO_COLOR: "1" },
          stdio: ["ignore", "pipe", "pipe"]
        })
        // What it prints later, of each call that failed, is of no interest.
        const listen = (chunk: string) => void (said.length < 10_000 && (said += chunk))
        for (const stream of [started.stdout, started.stderr]) stream.setEncoding("utf8").on("data", listen)
        return started
      }),
      (started) =>
        Effect.promise(async () => {
          if (started.exitCode !== null) return
          const gone = once(started, "exit")
          started.kill("SIGKILL")
          await gone
        })
    )
    return yield* Effect.suspend(() => {
      const address = /Listening on http:\/\/(\S+):/.exec(said)?.[1]
      return address === undefined ? Effect.fail(new ExampleFailed({ message: said })) : Effect.succeed(address)
    }).pipe(
      Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 2000, while: () => child.exitCode === null })
    )
  })

/** Customers who look and buy, one call after another, until the scope closes. Failures do not put them off for long. */
const customers = (address: string, count: number) =>
  Effect.gen(function*() {
    const call = (path: string, method: string) =>
      Effect.tryPromise(async (signal) => {
        const response = await fetch(`http://${address}${path}`, { method, signal })
        await response.arrayBuffer()
        return response.ok
      }).pipe(Effect.orElseSucceed(() => false))
    yield* Effect.forEach(Array.from({ length: count }).keys(), (customer) =>
      (customer % 4 === 0 ? call("/orders", "POST") : call("/stock", "GET")).pipe(
        Effect.flatMap((served) =>
          Effect.sleep(served ? 20 : 60)
        ),
        Effect.forever,
        Effect.forkScoped
      ))
  })

const killSessions = (url: Redacted.Redacted) =>
  Effect.scoped(Effect.flatMap(
    PgConnection.make({ url, applicationName: "killer" }),
    (connection) =>
      connection.query(
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`,
        [],
        false
      )
  ))

export interface Act {
  readonly title: string
  /** How many times the length of a beat it lasts. */
  readonly beats: number
  /** Of its mark in the pictures. */
  readonly letter?: string
}

/** In this order; what is between two of them is ordinary traffic. */
export const acts = {
  calm: { title: "ordinary traffic", beats: 4 },
  kills: { title: "every session of the pool is killed, once per beat", beats: 3, letter: "A" },
  rush: { title: "ten times as many customers, and a network that takes 15 ms each way", beats: 4, letter: "B" },
  pause: { title: "ordinary traffic", beats: 3 },
  outage: { title: "nothing answers on the address of the database", beats: 3, letter: "C" },
  recovery: { title: "the database is back", beats: 5, letter: "D" }
} satisfies Record<string, Act>

/** Plays all acts, then goes on with ordinary traffic until the scope closes. A beat is in seconds. */
export const play = Effect.fnUntraced(function*(options: {
  readonly address: string
  readonly database: Redacted.Redacted
  readonly proxy: FaultProxy.FaultProxy
  readonly beat: number
}) {
  const { address, beat, database, proxy } = options
  const last = ({ beats }: Act) => Effect.sleep(beats * beat * 1000)
  const refused = FaultProxy.refuse()

  yield* customers(address, 8)
  yield* last(acts.calm)

  yield* Effect.repeat(
    Effect.andThen(killSessions(database), Effect.sleep(beat * 1000)),
    { times: acts.kills.beats - 1 }
  )

  yield* Effect.scoped(Effect.andThen(customers(address, 80), last(acts.rush))).pipe(
    proxy.during(FaultProxy.delay({ by: "15 millis" }))
  )
  yield* last(acts.pause)

  const outage = yield* Effect.forkChild(proxy.during(refused)(last(acts.outage)))
  yield* Effect.andThen(Effect.sleep(10), proxy.cut)
  yield* Fiber.join(outage)

  yield* last(acts.recovery)
})
