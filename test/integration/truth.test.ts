import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import { SqlError } from "effect/sql/SqlError"
import * as Pg from "../../src/index.ts"
import { farAway } from "./distance.ts"
import { makeProxy } from "./proxy.ts"
import { eventually, makeTable, type Witness } from "./witness.ts"

const services = Effect.gen(function*() {
  return {
    sql: yield* SqlClient,
    executor: yield* Pg.Executor.Executor,
    metrics: yield* Pg.Metrics.Metrics
  }
})

/** COMMIT takes this many seconds once something was inserted into `t`. */
const slowCommit = Effect.fnUntraced(function*(witness: Witness, seconds: number) {
  yield* witness.query(
    `CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(${seconds}); RETURN NULL; END'`
  )
  yield* witness.query(
    `CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
     FOR EACH ROW EXECUTE FUNCTION dawdle()`
  )
})

/** Inserts a row, commits it, and loses a race after that. */
const commitsThenFails = `BEGIN INSERT INTO t VALUES (1); COMMIT; RAISE EXCEPTION USING ERRCODE = '40001'; END`

const suicide = Effect.flatMap(SqlClient, (sql) => sql`SELECT pg_terminate_backend(pg_backend_pid())`)

const insertThenLose = Effect.gen(function*() {
  const sql = yield* SqlClient
  yield* sql`INSERT INTO t VALUES (1)`
  yield* suicide
})

const instantly = { retry: { base: 0, jitter: "none" } } as const

const noErrors = {
  Unreachable: 0,
  Overloaded: 0,
  StaleConnection: 0,
  Contention: 0,
  Rejected: 0,
  Denied: 0,
  ReadOnly: 0,
  Cancelled: 0,
  Local: 0
}

describe("work that goes through another client", () => {
  it.live("is not repeated when that client lost its session after an acknowledged INSERT", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const foreign = yield* Layer.build(PgClient.layer({ url }))
      yield* Effect.gen(function*() {
        const { executor, metrics } = yield* services
        let runs = 0
        const work = Effect.andThen(Effect.sync(() => runs++), Effect.provide(insertThenLose, foreign))
        const error = yield* Effect.flip(executor.run(work))
        assert.strictEqual(error._tag, "SqlError")
        assert.strictEqual(runs, 1)
        assert.strictEqual(yield* rows, 1)
        // It says nothing about the server of this pool.
        const { errors, retries } = yield* metrics.snapshot
        assert.deepStrictEqual(errors, noErrors)
        assert.deepStrictEqual(retries, noErrors)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 2 })))
    }))

  it.live("is not repeated when that client could not even connect, for all that is known of it", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, metrics } = yield* services
        let runs = 0
        const connect = Effect.scoped(PgConnection.make({ host: "127.0.0.1", port: 1, username: "nobody" }))
        const error = yield* Effect.flip(executor.run(Effect.andThen(Effect.sync(() => runs++), connect)))
        assert.strictEqual(error._tag, "SqlError")
        assert.strictEqual(runs, 1)
        assert.deepStrictEqual((yield* metrics.snapshot).errors, noErrors)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))

  it.live("of another pool is not repeated after an acknowledged INSERT either", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const other = yield* Layer.build(Layer.fresh(Pg.layer({ ...instantly, url, max: 1 })))
      yield* Effect.gen(function*() {
        const { executor, metrics } = yield* services
        let runs = 0
        const work = Effect.andThen(Effect.sync(() => runs++), Effect.provide(insertThenLose, other))
        yield* Effect.flip(executor.run(work))
        assert.strictEqual(runs, 1)
        assert.strictEqual(yield* rows, 1)
        assert.deepStrictEqual((yield* metrics.snapshot).errors, noErrors)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))

  it.live("of another pool may be repeated when its transaction was rolled back, on that pool's account", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const other = yield* Layer.build(Layer.fresh(Pg.layer({ ...instantly, url, max: 1 })))
      const theirs = yield* Effect.provide(Pg.Metrics.Metrics, other)
      yield* Effect.gen(function*() {
        const { executor, metrics } = yield* services
        let runs = 0
        const work = Effect.gen(function*() {
          runs++
          const sql = yield* SqlClient
          yield* sql.withTransaction(
            Effect.andThen(sql`INSERT INTO t VALUES (1)`, runs === 1 ? suicide : Effect.void)
          )
        })
        yield* executor.run(Effect.provide(work, other))
        assert.strictEqual(runs, 2)
        assert.strictEqual(yield* rows, 1)
        const { errors } = yield* metrics.snapshot
        assert.deepStrictEqual(errors, noErrors)
        assert.strictEqual((yield* theirs.snapshot).errors.Unreachable, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))
})

describe("a deadline", () => {
  it.live("that passes during COMMIT does not throw its success away", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeTable
      yield* slowCommit(witness, 0.5)
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        const answer = yield* executor.run(
          sql.withTransaction(Effect.as(sql`INSERT INTO t VALUES (1)`, "applied")),
          { deadline: 250 }
        )
        assert.strictEqual(answer, "applied")
        assert.strictEqual(yield* rows, 1)
        // A server that far away gets as much longer to be told that the time is up.
      }).pipe(Effect.provide(Pg.layer({ url, stream: farAway(url, 250), max: 1 })))
    }))

  it.live("that cuts a COMMIT off says that it may have been applied", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeTable
      yield* slowCommit(witness, 1.5)
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        const error = yield* Effect.flip(executor.run(
          sql.withTransaction(sql`INSERT INTO t VALUES (1)`),
          { deadline: 250 }
        ))
        assert.isTrue(error._tag === "DeadlineExceeded" || error._tag === "StatementTimeout", error._tag)
        if (error._tag === "DeadlineExceeded" || error._tag === "StatementTimeout") {
          assert.strictEqual(error.effect, "Unknown")
          assert.isFalse(error.isRetryable)
        }
        // As it was: a server does not look at its socket while it commits.
        yield* eventually("the row", Effect.map(rows, (count) => count === 1))
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("that passes in the queue says that nothing ran", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        const holder = yield* Effect.forkChild(sql`SELECT pg_sleep(20)`)
        yield* Effect.sleep(50)
        const error = yield* Effect.flip(executor.run(sql`INSERT INTO t VALUES (1)`, { deadline: 200 }))
        assert.strictEqual(error._tag, "DeadlineExceeded")
        if (error._tag === "DeadlineExceeded") assert.strictEqual(error.effect, "NotRun")
        assert.include(error.message, "Nothing")
        yield* Fiber.interrupt(holder)
        assert.strictEqual(yield* rows, 0)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("that passes inside a transaction says that nothing of it is left", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const error = yield* Effect.flip(executor.run(
          sql.withTransaction(Effect.andThen(sql`INSERT INTO t VALUES (1)`, sql`SELECT pg_sleep(20)`)),
          { deadline: 300 }
        ))
        assert.strictEqual(error._tag, "DeadlineExceeded")
        if (error._tag === "DeadlineExceeded") assert.notStrictEqual(error.effect, "Unknown")
        assert.strictEqual(yield* rows, 0)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("that passes after a statement took effect says that it may have been applied, nested or not", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const work = Effect.andThen(sql`INSERT INTO t VALUES (1)`, Effect.never)
        for (const each of [work, executor.run(work)]) {
          const error = yield* Effect.flip(executor.run(each, { deadline: 300 }))
          assert.strictEqual(error._tag, "DeadlineExceeded")
          if (error._tag === "DeadlineExceeded") assert.strictEqual(error.effect, "Unknown")
        }
        assert.strictEqual(yield* rows, 2)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("of an attempt says the same of the attempt", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const terms = { attemptTimeout: 200, retry: false } as const
        const write = Effect.andThen(sql`INSERT INTO t VALUES (1)`, Effect.never)
        const wrote = yield* Effect.flip(executor.run(write, terms))
        const holder = yield* Effect.forkChild(sql`SELECT pg_sleep(20)`)
        yield* Effect.sleep(50)
        const queued = yield* Effect.flip(executor.run(sql`INSERT INTO t VALUES (1)`, terms))
        assert.deepStrictEqual(
          [wrote, queued].map((error) => error._tag === "StatementTimeout" ? error.effect : error._tag),
          ["Unknown", "NotRun"]
        )
        yield* Fiber.interrupt(holder)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})

describe("idempotent work that may have been applied", () => {
  it.live("does not end with a refusal that says that nothing ran", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        let isCut = false
        proxy.onRequest((request, link) => {
          if (isCut) return "drop"
          if (!request.includes("INSERT")) return "pass"
          isCut = true
          link.mute()
          setTimeout(link.cut, 50)
          return "pass"
        })
        const error = yield* Effect.flip(executor.run(sql`INSERT INTO t VALUES (1)`, { idempotent: true }))
        assert.strictEqual(error._tag, "RetriesExhausted")
        if (error._tag === "RetriesExhausted") {
          assert.instanceOf(error.last, SqlError)
          assert.strictEqual(Pg.Errors.fromSqlError(error.last)?._tag, "AcquireTimeout")
          assert.strictEqual(error.history[0]?.effect, "Unknown")
          assert.isFalse(error.isRetryable)
        }
        assert.strictEqual(yield* rows, 1)
      }).pipe(
        Effect.provide(Pg.layer({ ...instantly, url: proxy.url, max: 1, acquireTimeout: 300, closeTimeout: 100 }))
      )
    }))
})

describe("a caller's own handler inside run", () => {
  /** Loses the next statement before it is sent on. */
  const cutOnce = Effect.fnUntraced(function*() {
    const { url } = yield* makeTable
    const proxy = yield* makeProxy(url)
    return {
      url: proxy.url,
      arm: Effect.sync(() => {
        let isArmed = true
        proxy.onRequest((_, link) => {
          if (!isArmed) return "pass"
          isArmed = false
          link.cut()
          return "drop"
        })
      })
    }
  })

  it.live("does not hear of a stale session, which the statement repairs by itself", () =>
    Effect.gen(function*() {
      const { arm, url } = yield* cutOnce()
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const begin = sql.withTransaction(sql<{ answer: number }>`SELECT 1 AS answer`).pipe(
          Effect.orElseSucceed(() => "fallback")
        )
        yield* sql`SELECT 1`
        for (const work of [begin, executor.run(begin), executor.run(executor.run(begin))]) {
          yield* arm
          assert.deepStrictEqual(yield* work, [{ answer: 1 }])
        }
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))

  it.live("does not hear of a race that the second attempt wins, and the attempts do not multiply", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* witness.query("CREATE SEQUENCE tries")
      yield* witness.query(
        `CREATE FUNCTION race(lost int) RETURNS bigint LANGUAGE plpgsql AS
         'BEGIN IF nextval(''tries'') <= lost THEN RAISE EXCEPTION USING ERRCODE = ''40001''; END IF;
          RETURN currval(''tries''); END'`
      )
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const race = (lost: number) =>
          Effect.andThen(sql`SELECT setval('tries', 1, false)`, sql`SELECT race(${lost}::int)`).pipe(
            Effect.as("won"),
            Effect.orElseSucceed(() => "lost")
          )
        const tries = witness.value<number>("SELECT last_value::int FROM tries")
        assert.strictEqual(yield* executor.run(race(1)), "won")
        assert.strictEqual(yield* tries, 2)
        assert.strictEqual(yield* executor.run(race(100)), "lost")
        assert.strictEqual(yield* tries, 3)
        const error = yield* Effect.flip(executor.run(executor.run(sql`SELECT race(100)`)))
        assert.strictEqual(error._tag, "RetriesExhausted")
        assert.strictEqual(yield* tries, 6)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, retry: { attempts: 3, base: 0, jitter: "none" } })))
    }))

  it.live("hears of what no repetition repairs, once", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const heard: Array<string | undefined> = []
        const work = Effect.match(sql`SELECT 1/0`, {
          onFailure: (error) => {
            heard.push(Pg.Errors.failureOf(error).sqlState)
            return "handled"
          },
          onSuccess: () => "answered"
        })
        assert.strictEqual(yield* executor.run(work), "handled")
        assert.deepStrictEqual(heard, ["22012"])
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))
})

describe("a statement that commits on its way", () => {
  const procedures = [
    ["a procedure", "CALL p()"],
    ["a procedure behind a comment", "/* nightly */ CALL p()"],
    ["a DO block", `DO $$ ${commitsThenFails} $$`]
  ] as const

  for (const [name, statement] of procedures) {
    it.live(`is not repeated because of its last error, and its outcome is unknown: ${name}`, () =>
      Effect.gen(function*() {
        const { rows, url, witness } = yield* makeTable
        yield* witness.query(`CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ ${commitsThenFails} $$`)
        yield* Effect.gen(function*() {
          const { executor, metrics, sql } = yield* services
          const alone = yield* Effect.flip(sql.unsafe(statement))
          assert.strictEqual(Pg.Errors.fromSqlError(alone)?._tag, "OutcomeUnknown")
          assert.isFalse(alone.isRetryable)
          assert.strictEqual(yield* rows, 1)
          const inRun = yield* Effect.flip(executor.run(sql.unsafe(statement)))
          assert.strictEqual(inRun._tag, "OutcomeUnknown")
          assert.strictEqual(yield* rows, 2)
          assert.deepStrictEqual((yield* metrics.snapshot).retries, noErrors)
        }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
      }))
  }

  it.live("is not called a success by the IF NOT EXISTS of a second run: a concurrent index that met a deadlock", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      const isSeen = (what: string) =>
        eventually(
          what,
          Effect.map(
            witness.value<number>(
              `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND ${what}`
            ),
            (count) => count === 1
          )
        )
      yield* witness.query("INSERT INTO t VALUES (1)")
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const rival = yield* Effect.forkChild(Effect.exit(sql.withTransaction(Effect.gen(function*() {
          yield* sql`INSERT INTO t VALUES (2)`
          // The build waits for this transaction, which then waits for the build.
          yield* isSeen("query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'")
          // The build waits longer, so it is the one that looks for a deadlock, and ends.
          yield* Effect.sleep(300)
          yield* sql`LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE`
        }))))
        yield* isSeen("state = 'idle in transaction' AND query LIKE 'INSERT%'")
        const build = yield* Effect.exit(sql`CREATE INDEX CONCURRENTLY IF NOT EXISTS t_n ON t (n)`)
        yield* Fiber.join(rival)
        const isValid = yield* witness.value<boolean | undefined>(
          "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('t_n')"
        )
        assert.isFalse(isValid, "the build has met its deadlock")
        assert.strictEqual(build._tag, "Failure")
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 4 })))
    }))
})

describe("a transaction that the caller ends by hand", () => {
  const endings = [
    ["COMMIT", 1],
    ["/* the ** end */ -- now\n COMMIT", 1],
    ["/* /* nested */ */ COMMIT", 1],
    ["COMMIT AND CHAIN", 1],
    ["ROLLBACK", 0]
  ] as const
  for (const [ending, left] of endings) {
    it.live(`with ${ending} is not run again when its session is lost after that`, () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        let isCut = false
        proxy.onRequest((request, link) => {
          if (isCut || !request.includes("SELECT 7")) return "pass"
          isCut = true
          link.cut()
          return "drop"
        })
        yield* Effect.gen(function*() {
          const { executor, sql } = yield* services
          let runs = 0
          const exit = yield* Effect.exit(executor.run(sql.withTransaction(Effect.gen(function*() {
            runs++
            yield* sql`INSERT INTO t VALUES (1)`
            yield* sql.unsafe(ending)
            yield* sql`SELECT 7`
          }))))
          assert.strictEqual(runs, 1)
          assert.strictEqual(exit._tag, "Failure")
          assert.strictEqual(yield* rows, left)
        }).pipe(Effect.provide(Pg.layer({ ...instantly, url: proxy.url, max: 2 })))
      }))
  }
})

describe("a COMMIT that the caller has written", () => {
  const losses = [
    ["is cut off", {}, { _tag: "OutcomeUnknown" }],
    ["is late", { attemptTimeout: 500 }, { _tag: "StatementTimeout", effect: "Unknown" }]
  ] as const
  for (const [loss, options, expected] of losses) {
    it.live(`is not repeated when its answer ${loss}`, () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        let isLost = false
        proxy.onRequest((request, link) => {
          if (!isLost && request.includes("/* by hand */")) {
            isLost = true
            link.mute()
            if (loss === "is cut off") setTimeout(link.cut, 200)
          }
          return "pass"
        })
        yield* Effect.gen(function*() {
          const { executor, sql } = yield* services
          let runs = 0
          const error = yield* Effect.flip(executor.run(
            sql.withTransaction(Effect.gen(function*() {
              runs++
              yield* sql`INSERT INTO t VALUES (1)`
              yield* sql`/* by hand */ COMMIT`
            })),
            options
          ))
          assert.strictEqual(runs, 1)
          const typed = error._tag === "SqlError" ? Pg.Errors.fromSqlError(error) : error
          assert.include(typed, expected)
          assert.strictEqual(yield* rows, 1)
        }).pipe(Effect.provide(Pg.layer({ ...instantly, url: proxy.url, max: 2 })))
      }))
  }
})

describe("a failure that passes through several layers", () => {
  it.live("is counted once", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, metrics, sql } = yield* services
        yield* sql`SELECT 1`
        const holder = yield* Effect.forkChild(sql`SELECT pg_sleep(20)`)
        yield* Effect.sleep(50)
        const use = executor.use((connection) => connection.query("SELECT 1"))
        const layers: ReadonlyArray<Effect.Effect<unknown, SqlError | Pg.Errors.PoolError>> = [
          use,
          executor.run(executor.run(use)),
          executor.run(executor.run(sql`SELECT 1`))
        ]
        for (const work of layers) {
          const before = (yield* metrics.snapshot).errors.Local
          assert.strictEqual((yield* Effect.flip(work))._tag, "AcquireTimeout")
          assert.strictEqual((yield* metrics.snapshot).errors.Local - before, 1)
        }
        yield* Fiber.interrupt(holder)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, acquireTimeout: 500, retry: false })))
    }))
})
