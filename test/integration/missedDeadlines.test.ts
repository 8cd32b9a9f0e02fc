/** What is seen of work that was not done in time: one failure for each call, wherever it was at the time. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { attributesOf, make as makeSpanRecorder } from "../spanRecorder.ts"
import { freshDatabase } from "./database.ts"
import { eventually } from "./witness.ts"

const { Deadline, idempotent, run, transaction, withDeadline } = Pg.Executor

/** A deadline as a platform would give it: a time, and nobody who enforces it. */
const inMillis = (left: number) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.provideService(effect, Deadline, now + left))

interface Line {
  readonly level: string
  readonly message: string
  readonly annotations: Readonly<Record<string, unknown>>
}

const makeLog = () => {
  const lines: Array<Line> = []
  const logger = Logger.map(Logger.formatJson, (json) => void lines.push(JSON.parse(json)))
  return { lines, layer: Logger.layer([logger]) }
}

/** The errors that were counted, by operation and kind. */
const errors = Effect.map(Pg.Metrics.Metrics, ({ snapshotUnsafe }) => {
  const found: Record<string, number> = {}
  for (const [operation, kinds] of Object.entries(snapshotUnsafe().errorsByOperation)) {
    for (const [kind, count] of Object.entries(kinds)) if (count > 0) found[`${operation} ${kind}`] = count
  }
  return found
})

const interruptedSelects = Effect.map(Pg.Metrics.render, (page) => {
  const [, count] =
    /^db_query_duration_seconds_count\{.*operation="SELECT",outcome="interrupted".*\} (\d+)$/m.exec(page) ?? []
  return Number(count ?? 0)
})

const sleep = Effect.flatMap(SqlClient, (sql) => sql`SELECT pg_sleep(20)`)
const streamed = Effect.flatMap(SqlClient, (sql) => Stream.runDrain(sql`SELECT pg_sleep(20)`.stream))
const transacted = Effect.flatMap(SqlClient, (sql) => sql.withTransaction(sleep))
const soon = { deadline: 300 }

/** With a session at hand, so that it is the statement that takes the time. */
const warmed = <A, E, R>(work: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    yield* sql`SELECT 1`
    return yield* work
  })

describe("a deadline that was missed", () => {
  const ways = {
    "of a run": run(sleep, soon),
    "of a run that may be repeated": run(sleep, { ...soon, idempotent: true }),
    "of a statement that may be repeated": run(idempotent(sleep), soon),
    "of a run in a run": run(run(sleep, soon), { deadline: "20 seconds" }),
    "of a run around a run": run(run(sleep, { deadline: "20 seconds" }), soon),
    "of a run with a stream in it": run(streamed, soon),
    "of a transaction": transaction(sleep, soon),
    "of a transaction inside of a run": run(transaction(sleep), soon),
    "set around a statement": withDeadline(sleep, 300),
    "set around a run": withDeadline(run(sleep), 300),
    "set around a transaction": withDeadline(transacted, 300),
    "set twice": withDeadline(withDeadline(sleep, 300), "20 seconds"),
    "of the context": inMillis(300)(sleep),
    "of the context, for a run": inMillis(300)(run(sleep)),
    "of the context, for a stream": inMillis(300)(streamed),
    "of the context, for a transaction": inMillis(300)(transacted)
  }

  for (const [name, work] of Object.entries(ways)) {
    it.live(`${name} counts once, with the statement that was under way, and is told of once`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const log = makeLog()
        const recorder = makeSpanRecorder()
        yield* Effect.gen(function*() {
          yield* warmed(Effect.flip(recorder.record(work)))
          assert.deepStrictEqual(yield* errors, { "SELECT Local": 1 }, name)
          assert.strictEqual(yield* interruptedSelects, 1)
          const statement = recorder.spans.find((span) => attributesOf(span)["db.operation.name"] === "SELECT")
          assert.strictEqual(attributesOf(statement)["error.type"], "DeadlineExceeded")
          assert(statement?.status._tag === "Ended" && statement.status.exit._tag === "Failure")
          assert.include(String(statement.status.exit.cause), "DeadlineExceeded")
          for (const transaction of recorder.named("sql.transaction")) {
            assert.strictEqual(attributesOf(transaction)["error.type"], "DeadlineExceeded")
          }
          assert.deepStrictEqual(
            log.lines.map(({ annotations, level }) => [
              level,
              annotations["event.name"],
              annotations["db.operation.name"]
            ]),
            [["WARN", "db.query.deadline_exceeded", "SELECT"]]
          )
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, name: "shop" })), Effect.provide(log.layer))
      }))
  }

  const withoutStatement = {
    "of a run that waits for a session": run(sleep, soon),
    "set around a statement that waits for a session": withDeadline(sleep, 300),
    "of the context, while a session is waited for": inMillis(300)(sleep)
  }

  for (const [name, work] of Object.entries(withoutStatement)) {
    it.live(`${name} counts as a checkout, and its statement's span has failed`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const recorder = makeSpanRecorder()
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const holder = yield* Effect.forkChild(Effect.scoped(Effect.andThen(sql.reserve, Effect.never)))
          const pool = yield* Pg.Pool.Pool
          yield* eventually("a lease", Effect.map(pool.stats, ({ active }) => active === 1))
          yield* Effect.flip(recorder.record(work))
          assert.deepStrictEqual(yield* errors, { "CHECKOUT Local": 1 })
          const statement = recorder.spans.find((span) => attributesOf(span)["db.query.text"] !== undefined)
          assert.strictEqual(attributesOf(statement)["error.type"], "DeadlineExceeded")
          assert.strictEqual(attributesOf(statement)["db.operation.name"], "SELECT")
          yield* Fiber.interrupt(holder)
        }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
      }))
  }

  it.live("while the program was at something else counts as a checkout", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const log = makeLog()
      yield* Effect.gen(function*() {
        yield* warmed(Effect.flip(run(Effect.never, { deadline: 50 })))
        assert.deepStrictEqual(yield* errors, { "CHECKOUT Local": 1 })
        const [line] = log.lines
        assert.include(line?.message, "no statement of it was under way. Nothing was run.")
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })), Effect.provide(log.layer))
    }))

  it.live("before the work began counts, too", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        yield* Effect.flip(run(sleep, { deadline: 0 }))
        yield* Effect.flip(inMillis(-1)(sleep))
        assert.deepStrictEqual(yield* errors, { "CHECKOUT Local": 2 })
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("is not what a caller has given up, nor what the program has cut short itself before", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const log = makeLog()
      const recorder = makeSpanRecorder()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const given = Effect.timeoutOption(sql`SELECT pg_sleep(20)`, 100)
        yield* recorder.record(run(given, { deadline: "20 seconds" }))
        assert.deepStrictEqual(yield* errors, {})
        assert.deepStrictEqual(log.lines, [])
        assert.notProperty(attributesOf(recorder.spans.find(({ kind }) => kind === "client")), "error.type")
        yield* Effect.flip(run(Effect.andThen(given, Effect.never), { deadline: 300 }))
        assert.deepStrictEqual(yield* errors, { "CHECKOUT Local": 1 })
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })), Effect.provide(log.layer))
    }))

  it.live("counts for the pool that was asked", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const one = yield* Layer.build(Layer.fresh(Pg.layer({ url, max: 1, name: "one" })))
      const other = yield* Layer.build(Layer.fresh(Pg.layer({ url, max: 1, name: "other" })))
      const onOther = Effect.provide(sleep, other)
      yield* Effect.provide(Effect.flip(withDeadline(onOther, 300)), one)
      assert.deepStrictEqual(yield* Effect.provide(errors, one), {})
      assert.deepStrictEqual(yield* Effect.provide(errors, other), { "SELECT Local": 1 })
    }))

  it.live("by many calls is told of in few lines", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const log = makeLog()
      yield* Effect.gen(function*() {
        const call = Effect.flip(run(sleep, { deadline: 50 }))
        yield* Effect.forEach(Array.from({ length: 20 }), () => call, { concurrency: 4, discard: true })
        assert.deepStrictEqual((yield* errors)["SELECT Local"] ?? 0, 20 - ((yield* errors)["CHECKOUT Local"] ?? 0))
        assert.isAtMost(log.lines.length, 10)
      }).pipe(Effect.provide(Pg.layer({ url, max: 4 })), Effect.provide(log.layer))
    }))
})

describe("an attempt that takes too long", () => {
  it.live("counts with the statement that was under way", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = makeSpanRecorder()
      yield* Effect.gen(function*() {
        yield* warmed(Effect.flip(recorder.record(run(sleep, { attemptTimeout: 200, retry: false }))))
        assert.deepStrictEqual(yield* errors, { "SELECT Unreachable": 1 })
        const statement = recorder.spans.find(({ kind }) => kind === "client")
        assert.strictEqual(attributesOf(statement)["error.type"], "StatementTimeout")
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})
