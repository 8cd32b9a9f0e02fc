/** A statement with which all is well takes a shorter way, and nobody can tell from what it does. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Scheduler from "effect/Scheduler"
import { SqlClient } from "effect/sql/SqlClient"
import * as Statement from "effect/sql/Statement"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { eventually, makeWitness } from "./witness.ts"

/** A transformer that changes nothing takes every statement the long way. */
const theLongWay = Effect.provideService(Statement.CurrentTransformer, (statement) => Effect.succeed(statement))

const modes = [["plain", false], ["multiplexed", true]] as const

type Witness = Effect.Success<ReturnType<typeof makeWitness>>

/** Until the server is at work on a statement that sleeps. */
const asleep = (witness: Witness) =>
  eventually(
    "a statement sleeps",
    Effect.map(
      witness.value<string>(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
      ),
      (count) => Number(count) === 1
    )
  )

/** How a statement that sleeps ends when all sessions are cut off meanwhile. */
const losing = <A, E, R>(witness: Witness, statement: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(statement, { startImmediately: true })
    yield* asleep(witness)
    yield* Effect.flatMap(witness.sessions, witness.terminate)
    return yield* Fiber.await(fiber)
  })

/** It has no session afterwards, and waits for none. */
const interruptedAfter = <A, E, R>(steps: number, work: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const pool = yield* Pg.Pool.Pool
    const fiber = yield* Effect.forkChild(
      // Yields after each step or two, the fewest that there can be, so that each can be the one.
      Effect.provideService(work, Scheduler.MaxOpsBeforeYield, 3),
      { startImmediately: steps % 2 === 0 }
    )
    for (let step = 0; step < steps; step++) yield* Effect.yieldNow
    yield* Fiber.interrupt(fiber)
    const { active, waiting } = pool.statsUnsafe()
    assert.deepStrictEqual({ active, waiting }, { active: 0, waiting: 0 }, `after ${steps} steps`)
  })

/** What was counted, but for how long things took. */
const counted = Effect.map(
  Pg.Metrics.render,
  (page) =>
    page.split("\n").filter((line) => !line.startsWith("#") && !/_sum\{|_bucket\{|since|age|seconds\{/.test(line))
)

/** One session open, and used once. */
const warm = Effect.gen(function*() {
  const sql = yield* SqlClient
  yield* sql`SELECT 1`
  return sql
})

const failureOf = (exit: Exit.Exit<unknown, unknown>) =>
  Exit.isSuccess(exit) ? "none" : Cause.hasInterruptsOnly(exit.cause) ? "interrupted" : String(Cause.squash(exit.cause))

describe.each(modes)("a healthy statement on a %s pool", (_name, multiplex) => {
  it.live("is counted as one that goes the long way, however it ends", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const program = Effect.gen(function*() {
        const sql = yield* warm
        yield* sql`SELECT ${1}::int AS one`
        const ends = [
          yield* Effect.exit(sql`SELECT 1 / 0`),
          yield* Effect.exit(sql`SELECT 'seven'::text AS text, ${"seven"}::int`),
          yield* Effect.exit(sql.unsafe("SELEC 1"))
        ]
        const slow = yield* Effect.forkChild(sql`SELECT pg_sleep(0.5)`, { startImmediately: true })
        yield* asleep(witness)
        yield* Fiber.interrupt(slow)
        ends.push(yield* Fiber.await(slow))
        yield* sql`SELECT 1`
        const pool = yield* Pg.Pool.Pool
        return { ends: ends.map(failureOf), counted: yield* counted, stats: { ...pool.statsUnsafe(), oldestLease: 0 } }
      })
      const on = (work: typeof program) => Effect.scoped(Effect.provide(work, Pg.layer({ url, max: 1, multiplex })))
      const short = yield* on(program)
      const long = yield* on(theLongWay(program))
      assert.include(short.ends[0]!, "22012")
      assert.deepStrictEqual(short, long)
      assert.strictEqual(short.stats.active, 0)
    }))

  it.live("gives its session back at whatever step it is interrupted, and the session is as good as before", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* warm
        const pool = yield* Pg.Pool.Pool
        for (let steps = 0; steps < 14; steps++) {
          yield* interruptedAfter(steps, sql`SELECT ${steps}::int AS steps`)
        }
        assert.deepStrictEqual(yield* sql`SELECT 7 AS seven`, [{ seven: 7 }])
        assert.strictEqual(pool.statsUnsafe().total, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
    }))

  it.live("in a transaction never leaves it, in whatever form it is asked", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* warm
        const pid = sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
        const others = yield* Effect.forEach([1, 2], () => sql`SELECT pg_sleep(0.02)`, { concurrency: 2 })
        assert.lengthOf(others, 2)
        const pids = yield* sql.withTransaction(Effect.gen(function*() {
          const [own] = yield* pid
          const [first] = yield* pid.withoutTransform
          const [second] = yield* pid.unprepared
          const [third] = yield* sql.unsafe<{ pid: number }>("SELECT pg_backend_pid() AS pid")
          const [[fourth]] = (yield* pid.values) as [[number]]
          const [[fifth]] = (yield* pid.valuesUnprepared) as [[number]]
          const raw = (yield* pid.raw) as { readonly rows: ReadonlyArray<{ readonly pid: number }> }
          const [nested] = yield* sql.withTransaction(pid)
          yield* sql`SET LOCAL application_name TO 'inside'`
          const [name] = yield* sql<{ name: string }>`SELECT current_setting('application_name') AS name`
          assert.strictEqual(name!.name, "inside")
          return [own, first, second, third, raw.rows[0], nested].map((row) => row!.pid).concat(fourth, fifth)
        }))
        assert.strictEqual(new Set(pids).size, 1)
        const [after] = yield* sql<{ name: string }>`SELECT current_setting('application_name') AS name`
        assert.notStrictEqual(after!.name, "inside")
      }).pipe(Effect.provide(Pg.layer({ url, max: 3, multiplex })))
    }))

  it.live("whose session is lost is repeated if that was declared harmless, and doubtful otherwise", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const sql = yield* warm
        const slow = sql`SELECT pg_sleep(0.3), 1 AS one`
        assert.isTrue(Exit.isSuccess(yield* losing(witness, Pg.Executor.idempotent(slow))))
        const doubtful = yield* losing(witness, slow)
        assert.include(failureOf(doubtful), "may have been applied")
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex })))
    }))

  it.live("is under the deadline of its caller", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* warm
        const late = yield* Effect.exit(Pg.Executor.withDeadline(sql`SELECT pg_sleep(20)`, "50 millis"))
        assert.include(failureOf(late), "deadline")
        const until = (yield* Clock.currentTimeMillis) + 50
        const later = yield* Effect.exit(Effect.provideService(sql`SELECT pg_sleep(20)`, Pg.Executor.Deadline, until))
        assert.include(failureOf(later), "deadline")
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex })))
    }))
})

describe("the text of a healthy statement", () => {
  it.live("is what Effect makes of its template, whatever is put in, and in whatever order", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const at = new Date(0)
        // One place in the program, as a function has it that is called with a value now and with a fragment then.
        const one = (what: unknown) => sql`SELECT ${what as string} AS "theAnswer"`
        const statements = () => [
          one(sql.literal("7")),
          one("seven"),
          one(sql.literal("8")),
          one(null),
          one(at),
          one(sql`lower(${"SEVEN"})`),
          sql`SELECT 1 AS "theOne" WHERE 1 IN ${sql.in([1, 2])}`,
          sql`SELECT 1 AS "theOne" WHERE 1 IN ${sql.in([3, 4, 5])}`,
          sql`SELECT ${sql("theName")} FROM (SELECT 1 AS "theName", 2 AS the_name) AS x`,
          sql`SELECT * FROM (VALUES ${sql.csv([sql`(1)`, sql`(${2}::int)`])}) AS x (n)`,
          sql`SELECT ${[1, 2]}::int[] AS "aList"`,
          sql.unsafe("SELECT $1::int AS \"aNumber\"", [5]),
          sql.unsafe("SELECT 6 AS \"aNumber\"")
        ]
        const answers = Effect.forEach(
          [...statements(), ...statements().toReversed()],
          (statement) =>
            Effect.all([
              statement,
              statement.withoutTransform,
              statement.values,
              statement.unprepared,
              statement.valuesUnprepared
            ])
        )
        const short = yield* answers
        assert.deepStrictEqual(short, yield* theLongWay(answers))
        assert.deepStrictEqual(short[1]![0], [{ THEANSWER: "seven" } as never])
        const without = sql.withoutTransforms()
        const plain = without`SELECT ${"seven"} AS "theAnswer"`
        assert.deepStrictEqual(yield* plain, [{ theAnswer: "seven" }])
        assert.deepStrictEqual(yield* theLongWay(plain), [{ theAnswer: "seven" }])
      }).pipe(
        Effect.provide(Pg.layer({
          url,
          transformQueryNames: (name) => name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
          transformResultNames: (name) => name.toUpperCase()
        }))
      )
    }))

  it.live("is the transformer's where the program has set one", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* warm
        const statement = sql`SELECT 1 AS one`
        const instead = Effect.provideService(
          statement,
          Statement.CurrentTransformer,
          (_statement, sql) => Effect.succeed(sql`SELECT 2 AS two`)
        )
        assert.deepStrictEqual(yield* statement, [{ one: 1 }])
        assert.deepStrictEqual(yield* instead, [{ two: 2 } as never])
        assert.deepStrictEqual(yield* statement, [{ one: 1 }])
      }).pipe(Effect.provide(Pg.layer({ url })))
    }))
})

/** How work ended: what its caller is told, and of which effect. */
const endOf = <A, E, R>(work: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.exit(work), (exit) => {
    const error: unknown = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
    const { effect, history } = { effect: "none", history: [], ...error as Partial<Pg.Errors.RetriesExhausted> }
    return [
      failureOf(exit).replace(/within \d+ ms/, "in time"),
      effect,
      history.map(({ attempt, kind }) => `${attempt}: ${kind}`)
    ]
  })

/** What was counted of statements, and of calls that failed: how many sessions a cut has cost is chance. */
const countedOfStatements = Effect.map(
  counted,
  (lines) => lines.filter((line) => /^db_(?:query|pool_(?:errors|retries))/.test(line))
)

describe.each(modes)("a healthy statement inside of a run, on a %s pool,", (_name, multiplex) => {
  const { run } = Pg.Executor

  /** Somebody else has the only session for as long as the work runs. */
  const inLine = <A, E, R>(work: Effect.Effect<A, E, R>) =>
    Effect.flatMap(SqlClient, (sql) => Effect.scoped(Effect.andThen(sql.reserve, work)))

  const terms = {
    "": {},
    "that may be repeated": { idempotent: true },
    "that waits for the circuit": { waitForCircuit: true },
    "that is not repeated": { retry: false },
    "with a bound for waits": { acquireTimeout: "5 seconds" },
    "under a deadline": { deadline: "20 seconds" },
    "whose attempts are bounded": { attemptTimeout: "20 seconds" }
  } as const satisfies Record<string, Pg.Executor.RunOptions>

  it.live.each(Object.entries(terms))(
    "ends and is counted as one that goes the long way: one %s",
    ([, options]) =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const program = Effect.gen(function*() {
          const sql = yield* warm
          // Whoever comes next to a shared session waits for it.
          const slow = sql`SELECT pg_sleep(${multiplex ? 1.5 : 20})`
          const soon = { ...options, retry: false as const }
          const ends = [
            yield* endOf(run(sql`SELECT ${1}::int AS one`, options)),
            yield* endOf(run(sql`SELECT 1 / 0`, options)),
            yield* endOf(run(sql`SELECT ${"seven"}::int`, options)),
            yield* endOf(run(slow, { ...soon, deadline: 300 })),
            yield* endOf(run(slow, { ...soon, attemptTimeout: 300 })),
            yield* endOf(run(Effect.andThen(sql`SELECT 1`, slow), { ...soon, deadline: 300 })),
            yield* endOf(inLine(run(sql`SELECT 1`, { ...soon, deadline: 100 }))),
            yield* endOf(inLine(run(sql`SELECT 1`, { ...soon, attemptTimeout: 100 }))),
            yield* endOf(inLine(run(sql`SELECT 1`, { ...soon, acquireTimeout: 100 }))),
            yield* endOf(Effect.flatten(losing(witness, run(sql`SELECT pg_sleep(0.3)`, options))))
          ]
          yield* sql`SELECT 1`
          return { ends, counted: yield* countedOfStatements }
        })
        const on = (work: typeof program) => Effect.scoped(Effect.provide(work, Pg.layer({ url, max: 1, multiplex })))
        const short = yield* on(program)
        const long = yield* on(theLongWay(program))
        assert.deepStrictEqual(short, long)
        assert.include(short.ends[1]![0], "22012")
        assert.deepStrictEqual(short.ends.map(([, effect]) => effect).slice(3, 8), [
          "Unknown",
          "Unknown",
          "Unknown",
          "NotRun",
          "NotRun"
        ])
      })
  )

  it.live("owes its unit nothing when it is interrupted, at whatever step", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* warm
        const pid = sql`SELECT pg_backend_pid() AS pid`
        const before = yield* pid
        for (let steps = 0; steps < 14; steps++) {
          const cutShort = Effect.gen(function*() {
            yield* interruptedAfter(steps, sql`SELECT ${steps}::int AS steps`)
            // A session that still owed it an answer would lose its socket when its time is up.
            return yield* Effect.never
          })
          const [ended] = yield* endOf(run(cutShort, { deadline: 30 }))
          assert.include(ended, "deadline")
        }
        yield* Effect.sleep(150)
        assert.deepStrictEqual(yield* pid, before)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
    }))

  it.live("leaves nothing behind when its run is interrupted, at whatever step", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* warm
        for (const options of Object.values(terms)) {
          for (let steps = 0; steps < 20; steps++) {
            yield* interruptedAfter(steps, run(sql`SELECT ${steps}::int AS steps`, options))
          }
        }
        // Units are still seen by their statements.
        const [, effect] = yield* endOf(run(sql`SELECT pg_sleep(1)`, { deadline: 100 }))
        assert.strictEqual(effect, "Unknown")
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
    }))

  it.live("whose session is lost is repeated once, and none that has been answered with it", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* witness.query("CREATE TABLE seen (times int)")
      yield* Effect.gen(function*() {
        const sql = yield* warm
        let runs = 0
        const work = Effect.gen(function*() {
          runs++
          yield* sql`INSERT INTO seen VALUES (${runs})`
          yield* Pg.Executor.idempotent(sql`SELECT pg_sleep(0.3)`)
        })
        assert.isTrue(Exit.isSuccess(yield* losing(witness, run(work))))
        assert.strictEqual(runs, 1)
        assert.strictEqual(yield* witness.value("SELECT count(*)::int FROM seen"), 1)
        const { snapshotUnsafe } = yield* Pg.Metrics.Metrics
        const retries = Object.values(snapshotUnsafe().retries).reduce((sum, count) => sum + count, 0)
        assert.strictEqual(retries, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex })))
    }))

  it.live("that has failed without a trace lets its unit be repeated, and one that has been answered does not", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* warm
        const runsOf = (before: Effect.Effect<unknown, unknown>) =>
          Effect.gen(function*() {
            let runs = 0
            const transient = sql.withTransaction(sql.unsafe("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"))
            const work = Effect.suspend(() => {
              runs++
              return Effect.andThen(Effect.exit(before), transient)
            })
            yield* Effect.exit(run(work, { retry: Schedule.recurs(1) }))
            return runs
          })
        assert.strictEqual(yield* runsOf(Effect.void), 2)
        assert.strictEqual(yield* runsOf(sql`SELECT 1 / 0`), 2)
        assert.strictEqual(yield* runsOf(sql`SELECT 1`), 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex })))
    }))
})
