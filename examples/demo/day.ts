/** A day in the life of one Lambda: what the platform does to it, what the function notices, and what the server counts. */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import { LocalLambda } from "effect-pg-pool/testing"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import type { Event, Seen } from "./function.ts"
import * as Sessions from "./sessions.ts"
import { line, plural, seconds, type Span } from "./terminal.ts"

/** When the day begins, on its own clock. */
const morning = 8 * 3_600_000

const columns = [10, 43] as const

const explanation = [
  "The function counts orders, by Pg.Serverless.lambda on a real PostgreSQL. It runs in a process",
  "that is treated as on Lambda: stopped between two calls, and ended when nobody calls it. Hours",
  "are skipped: only its clock sees them. ✔ means that what happened is what should."
]

const inTheMorning = (millis: number): string => new Date(morning + millis).toISOString().slice(11, 19)

/** A file stands for a store of secrets, which is down where there is none. */
const makeSecretStore = Effect.fnUntraced(function*(url: Redacted.Redacted) {
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "effect-pg-pool-demo-"))),
    (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true, force: true }))
  )
  const file = Path.join(folder, "url")
  return {
    file,
    start: Effect.sync(() => Fs.writeFileSync(file, Redacted.value(url), { mode: 0o600 })),
    stop: Effect.sync(() => Fs.rmSync(file))
  }
})

/** What the server has of the function. */
interface Count {
  readonly sessions: number
  /** Sessions with a statement under way or a transaction open. */
  readonly busy: number
  readonly orders: number
}

const makeWitness = (options: Sessions.Options) => {
  const ask = (sql: string, ...values: ReadonlyArray<unknown>) =>
    Sessions.direct(options, (connection: PgConnection.PgConnection) => connection.query(sql, values, false))
  const count = Effect.map(
    ask(
      `SELECT count(*)::int AS sessions, count(*) FILTER (WHERE state <> 'idle')::int AS busy,
         (SELECT count(*)::int FROM orders) AS orders FROM pg_stat_activity WHERE application_name = $1`,
      options.name
    ),
    ({ rows }) => rows[0] as unknown as Count
  )
  return {
    open: Effect.andThen(
      ask("CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY, item text NOT NULL)"),
      ask("INSERT INTO orders (item) VALUES ('a lamp'), ('a chair'), ('a table')")
    ),
    end: (session: number) => ask("SELECT pg_terminate_backend($1::int)", session),
    /** PostgreSQL takes a moment to notice that a client has said goodbye. */
    settled: (holds: (count: Count) => boolean) =>
      Effect.repeat(count, { schedule: Schedule.spaced(50), until: holds, times: 40 })
  }
}

/** Plays the day, and returns what was not as it should be. */
export const play = Effect.fnUntraced(function*(options: Sessions.Options) {
  const store = yield* makeSecretStore(options.url)
  yield* store.start
  const server = makeWitness(options)
  yield* server.open
  const lambda = yield* LocalLambda.make({
    handler: fileURLToPath(new URL("function.ts", import.meta.url)),
    name: options.name,
    env: { SECRET: store.file }
  })

  const problems: Array<string> = []
  const startedAt = yield* Clock.currentTimeMillis
  let skipped = 0
  const say = (platform: string, ...noticed: ReadonlyArray<Span>) =>
    Effect.flatMap(Clock.currentTimeMillis, (now) =>
      line(
        ["dim", `  ${inTheMorning(now - startedAt + skipped).padEnd(columns[0])}`],
        noticed.length === 0 ? platform : platform.padEnd(columns[1]),
        ...noticed
      ))
  const remark = (...spans: ReadonlyArray<Span>) => line("".padEnd(2 + columns[0]), ...spans)
  const check = (holds: boolean, ...noticed: ReadonlyArray<Span>): ReadonlyArray<Span> => {
    if (!holds) problems.push(noticed.map((span) => (typeof span === "string" ? span : span[1])).join(""))
    return [holds ? ["green", "✔ "] : ["red", "✘ "], ...noticed]
  }

  const sleep = (minutes: number) =>
    Effect.suspend(() => {
      skipped += minutes * 60_000
      return lambda.advance(`${minutes} minutes`)
    })
  const invoke = (event: Event, how?: LocalLambda.InvokeOptions) => Effect.result(lambda.invoke(event, how))

  /** What a call told, or an answer that no other one equals. */
  const answered = (outcome: Result.Result<LocalLambda.Result, { readonly message: string }>) => {
    if (Result.isSuccess(outcome)) {
      const { initMillis, millis, payload, start } = outcome.success
      return { ...(payload as Seen), start, initMillis, took: millis }
    }
    problems.push(outcome.failure.message)
    return undefined
  }
  const told = (seen: Seen | undefined): string =>
    seen === undefined
      ? "no answer"
      : `${plural(seen.orders, "order")} in ${seen.millis.toFixed(0)} ms, session ${seen.session}`

  yield* line()
  for (const text of explanation) yield* line(["dim", `  ${text}`])
  yield* line()
  yield* line(["bold", `  ${"time".padEnd(columns[0])}${"the platform".padEnd(columns[1])}what the function saw`])

  const cold = answered(yield* invoke({ what: "count" }))
  yield* say(`starts it in ${cold?.initMillis.toFixed(0)} ms, and invokes it`, ...check(cold?.orders === 3, told(cold)))
  const warm = answered(yield* invoke({ what: "count" }))
  yield* say("invokes it again", ...check(warm?.session === cold?.session, told(warm), ": the same"))

  yield* say("freezes it")
  yield* sleep(10)
  yield* server.end(warm?.session ?? 0)
  yield* remark(["dim", `ten minutes pass; meanwhile the server ends session ${warm?.session}`])
  const thawed = answered(yield* invoke({ what: "count" }))
  const isNew = thawed !== undefined && thawed.session !== warm?.session
  yield* say("thaws and invokes it", ...check(isNew, told(thawed), ": a new one, and no error"))

  const [took, late] = yield* Effect.timed(invoke({ what: "tooLong" }, { timeout: 3000 }))
  // One that is not answered within its 3 s is killed, and has no error of the function.
  const type = Result.isFailure(late) && late.failure._tag === "FunctionError" ? late.failure.errorType : "no error"
  yield* say(
    "gives it 3 s for an order that takes 60",
    ...check(type === "InvocationTimeout", `${type} after ${seconds(Duration.toMillis(took), 2)}`)
  )
  const after = yield* server.settled(({ busy }) => busy === 0)
  yield* remark(
    ...check(
      after.busy === 0 && after.orders === 3,
      `the server: ${plural(after.busy, "statement")} under way, ${plural(after.orders, "order")}: rolled back`
    )
  )
  const next = answered(yield* invoke({ what: "count" }))
  yield* say("invokes it again", ...check(next?.start === "warm" && next.orders === 3, told(next)))

  const end = Effect.gen(function*() {
    yield* sleep(40)
    yield* remark(["dim", "forty minutes pass in which nobody calls it"])
    const [shutdown] = yield* lambda.shutdown()
    const { sessions } = yield* server.settled(({ sessions }) => sessions === 0)
    const isClean = shutdown?.signal === "SIGTERM" && !shutdown.isForced && sessions === 0
    yield* say(
      `ends it by ${shutdown?.signal}`,
      ...check(isClean, `gone in ${shutdown?.millis.toFixed(0)} ms, with all of its sessions`)
    )
    return sessions
  })
  yield* end

  yield* store.stop
  yield* sleep(60)
  yield* remark(["dim", "an hour later, the store of secrets is down that knows the password"])
  const refused = yield* invoke({ what: "count" })
  const why = Result.isFailure(refused) && refused.failure._tag === "FunctionError" ? refused.failure : undefined
  yield* say(
    "starts another one, and invokes it",
    ...check(why?.errorType === "SecretUnavailable", `${why?.errorType}: ${why?.errorMessage}`)
  )
  yield* store.start
  const healed = answered(yield* invoke({ what: "count" }))
  yield* say(
    "invokes it again, with the store back",
    ...check(healed?.start === "warm", told(healed), ": healed")
  )

  const left = yield* end

  yield* line()
  yield* line("  ", ...check(left === 0, `the function is gone and left ${plural(left, "session")} on the server`))
  yield* line()
  return problems
}, Effect.scoped)
