/** What real trouble leaves in the log: how much of it, and nothing that is nobody's business. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import type * as LogLevel from "effect/LogLevel"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import { SqlClient } from "effect/sql/SqlClient"
import { inspect } from "node:util"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres, FaultProxy } from "../../src/testing/index.ts"
import { freshDatabase } from "./database.ts"
import { ended, eventually, makeWitness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

interface Line {
  readonly level: string
  readonly message: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/** Whatever a logger gets to see: as lines of JSON, and with all that hangs on it. */
const recorder = (level: LogLevel.LogLevel) => {
  const lines: Array<Line> = []
  const everything: Array<string> = []
  const json = Logger.map(Logger.formatJson, (text) => void lines.push(JSON.parse(text)))
  const all = Logger.make(({ cause, fiber, message }) => {
    everything.push(inspect([message, cause, fiber.getRef(References.CurrentLogAnnotations)], { depth: 20 }))
  })
  const recorded = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    effect.pipe(
      Effect.provide(Logger.layer([json, all])),
      Effect.provideService(References.MinimumLogLevel, level)
    )
  return { lines, everything, recorded }
}

const eventOf = ({ annotations, level }: Line): string => `${level} ${String(annotations["event.name"])}`

/** How many lines there are of each event. */
const tally = (lines: ReadonlyArray<Line>): Readonly<Record<string, number>> => {
  const counts: Record<string, number> = {}
  for (const line of lines) counts[eventOf(line)] = (counts[eventOf(line)] ?? 0) + 1
  return counts
}

/** Ends all connections, and accepts no more. */
const goAway = (proxy: FaultProxy.FaultProxy) => Effect.andThen(proxy.set(FaultProxy.refuse()), proxy.cut)

describe("a server that is stopped for some seconds, under 200 borrowers", () => {
  it.live("is told of in tens of lines, however many calls fail, and its end is among them", ({ annotate }) => {
    const { lines, recorded } = recorder("Info")
    return Effect.gen(function*() {
      const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
      yield* recorded(
        Effect.gen(function*() {
          const sql = yield* SqlClient
          const breaker = yield* Pg.Breaker.Breaker
          let served = 0
          let failed = 0
          let running = true
          const call = Effect.match(sql`SELECT pg_sleep(0.001)`, {
            onFailure: () => {
              failed++
            },
            onSuccess: () => {
              served++
            }
          })
          const borrower = Effect.whileLoop({
            while: () => running,
            body: () => Effect.andThen(call, Effect.sleep(10)),
            step: () => {}
          })
          const borrowers = yield* Effect.forEach(range(200), () => Effect.forkChild(borrower))
          const more = Effect.suspend(() => {
            const goal = served + 1000
            return eventually("a thousand more rows", Effect.sync(() => served > goal), 30)
          })
          yield* more
          assert.deepStrictEqual(lines, [], "a healthy pool has nothing to say")
          yield* server.stop
          yield* Effect.sleep("5 seconds")
          yield* eventually("thousands of failures", Effect.sync(() => failed > 3000), 30)
          yield* server.start
          yield* eventually("a closed circuit", Effect.map(breaker.state, ({ _tag }) => _tag === "Closed"), 30)
          yield* more
          running = false
          for (const fiber of borrowers) yield* ended(fiber)

          const found = `${lines.length} lines of ${failed} failed calls: ${inspect(tally(lines))}`
          yield* Effect.promise(() => annotate(found))
          assert.isBelow(lines.length, 100, found)
          assert.isAbove(lines.length, 3, found)
          const transitions = lines.filter(({ annotations }) => annotations["event.name"] === "db.breaker.transition")
          assert.strictEqual(transitions[0]?.level, "WARN", found)
          assert.strictEqual(transitions[0]?.annotations["db.breaker.to"], "Open", found)
          assert.strictEqual(transitions.at(-1)?.annotations["db.breaker.to"], "Closed", found)
          for (const line of lines) {
            assert.strictEqual(line.annotations["db.client.connection.pool.name"], "orders", inspect(line))
          }
        }).pipe(
          Effect.provide(Pg.layer({ url: server.url, max: 20, name: "orders", breaker: { openFor: "1 second" } }))
        )
      )
    })
  }, 120_000)

  it.live("without a breaker, too: each call gives up by itself", ({ annotate }) => {
    const { lines, recorded } = recorder("Info")
    return Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* FaultProxy.make(url)
      yield* recorded(
        Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* sql`SELECT 1`
          yield* goAway(proxy)
          let failed = 0
          let running = true
          const borrower = Effect.whileLoop({
            while: () => running,
            body: () => Effect.exit(sql`SELECT 1`),
            step: () => {
              failed++
            }
          })
          const borrowers = yield* Effect.forEach(range(200), () => Effect.forkChild(borrower))
          yield* eventually("a thousand calls that have given up", Effect.sync(() => failed > 1000), 60)
          running = false
          for (const fiber of borrowers) yield* ended(fiber, 60)
          const found = `${lines.length} lines of ${failed} failed calls: ${inspect(tally(lines))}`
          yield* Effect.promise(() => annotate(found))
          assert.isBelow(lines.length, 60, found)
          assert.isAbove(tally(lines)["ERROR db.query.gave_up"] ?? 0, 0, found)
          assert.isAbove(tally(lines)["WARN db.connection.failed"] ?? 0, 0, found)
          // Not one is lost: what is not written is counted.
          const gaveUp = lines.filter(({ annotations }) => annotations["event.name"] === "db.query.gave_up")
          const told = gaveUp.reduce((sum, { annotations }) => sum + 1 + Number(annotations["suppressed"] ?? 0), 0)
          assert.isAtMost(told, failed, found)
        }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 20, name: "orders", breaker: false })))
      )
    })
  }, 120_000)
})

describe("the log at level Trace", () => {
  it.live("has no password, user, value, statement or text of the server's in it, whatever goes wrong", () => {
    const { everything, lines, recorded } = recorder("Trace")
    const secret = "Tr0ub4dor&3 /hunter2"
    const user = "kate_canary"
    const value = "kate@canary.example"
    const canaries = [
      "hunter2",
      secret,
      encodeURIComponent(secret),
      encodeURI(secret),
      Buffer.from(secret).toString("base64"),
      user,
      value,
      "canary",
      "duplicate key value",
      "invalid input syntax",
      "SELECT $",
      "SELECT '",
      "pg_sleep",
      "INSERT INTO",
      "password authentication failed"
    ]
    const rowError = Object.assign(new Error(`duplicate key value: ${value}`), {
      code: "23505",
      severity: "ERROR",
      detail: `Key (email)=(${value}) already exists.`
    })
    return Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const role = `${user}_${new URL(Redacted.value(url)).pathname.slice(-8)}`
      yield* witness.query(`CREATE ROLE ${role} LOGIN PASSWORD '${secret}'`)
      yield* Effect.addFinalizer(() =>
        Effect.orDie(Effect.andThen(witness.query(`DROP OWNED BY ${role}`), witness.query(`DROP ROLE ${role}`)))
      )
      yield* witness.query("CREATE TABLE people (email text UNIQUE, age int)")
      yield* witness.query(`GRANT ALL ON people TO ${role}`)
      const proxy = yield* FaultProxy.make(url)
      const own = new URL(Redacted.value(proxy.url))
      own.username = role
      own.password = encodeURIComponent(secret)
      const wrong = new URL(own)
      wrong.password = encodeURIComponent(`${secret}!`)
      const logged = { name: "orders", max: 2, acquireTimeout: "1 second", leakThreshold: "50 millis" } as const

      yield* recorded(
        Effect.gen(function*() {
          const sql = yield* SqlClient
          const pool = yield* Pg.Pool.Pool
          const executor = yield* Pg.Executor.Executor
          const insert = sql`INSERT INTO people (email) VALUES (${value})`
          yield* insert
          const failures = [
            insert,
            sql`SELECT ${value}::int`,
            sql.unsafe(`SELECT '${value}'::int`),
            sql`SELECT ${value}::text, 1 / 0`,
            sql`SELECT '${value} FROM nowhere`,
            Effect.scoped(Effect.andThen(Effect.forEach(range(3), () => pool.get()), Effect.never)),
            executor.run(Effect.andThen(insert, Effect.die(rowError)), { idempotent: true })
          ]
          for (const failure of failures) yield* Effect.exit(failure)
          yield* Effect.scoped(Effect.andThen(pool.get(), Effect.sleep(100)))
          const long = yield* Effect.forkChild(Effect.exit(sql`SELECT pg_sleep(10), ${value}::text`))
          yield* eventually("a statement under way", Effect.map(pool.stats, ({ active }) => active > 0))
          yield* proxy.cut
          yield* ended(long)
          yield* goAway(proxy)
          for (const _ of range(3)) yield* Effect.exit(executor.run(insert, { idempotent: true }))
          yield* proxy.liftAll
          yield* pool.evictAll
        }).pipe(
          Effect.provide(Pg.layer({
            ...logged,
            url: Redacted.make(own.href),
            retry: { attempts: 3 },
            breaker: { failures: 2 },
            afterRelease: () => Effect.fail(rowError),
            beforeDisconnect: () => Effect.die(rowError),
            classify: () => {
              throw rowError
            }
          }))
        )
      )
      yield* recorded(
        Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* Effect.exit(sql`SELECT 1`)
        }).pipe(Effect.provide(Pg.layer({ ...logged, url: Redacted.make(wrong.href) })))
      )
      yield* recorded(
        Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* Effect.exit(sql`SELECT 1`)
        }).pipe(Effect.provide(
          Pg.layer({ ...logged, url: Redacted.make(own.href), password: Effect.fail(rowError) as never })
        ))
      )
      const seen = Object.keys(tally(lines))
      for (
        const event of [
          "DEBUG db.connection.opened",
          "DEBUG db.connection.closed",
          "WARN db.connection.failed",
          "WARN db.connection.hook_failed",
          "WARN db.acquire.timeout",
          "WARN db.pool.leak",
          "WARN db.classifier.failed",
          "WARN db.breaker.transition",
          "INFO db.query.retry",
          "ERROR db.query.gave_up"
        ]
      ) assert.include(seen, event, inspect(tally(lines)))
      for (const text of [...everything, ...lines.map((line) => JSON.stringify(line))]) {
        for (const canary of canaries) assert.notInclude(text, canary)
      }
    })
  }, 60_000)
})
