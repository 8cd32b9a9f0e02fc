import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { SqlClient } from "effect/sql/SqlClient"
import * as Net from "node:net"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"
import { freshDatabase } from "./database.ts"
import { makeImpostor, makeProxy } from "./proxy.ts"
import { ended, eventually, makeTable, makeWitness, type Witness } from "./witness.ts"

/** Everything that a test asks for, over one pool. */
const services = Effect.gen(function*() {
  return {
    sql: yield* SqlClient,
    pool: yield* Pg.Pool.Pool,
    executor: yield* Pg.Executor.Executor,
    breaker: yield* Pg.Breaker.Breaker,
    metrics: yield* Pg.Metrics.Metrics
  }
})

/** A sequence never forgets: it says how often something ran, whatever became of it. */
const counter = Effect.fnUntraced(function*(witness: Witness, name: string) {
  yield* witness.query(`CREATE SEQUENCE ${name}`)
  return {
    tick: `nextval('${name}')`,
    ticks: witness.value<number>(`SELECT CASE WHEN is_called THEN last_value ELSE 0 END::int FROM ${name}`)
  }
})

/** Ends the session that runs the effect's own statement. */
const suicide = Effect.flatMap(SqlClient, (sql) => sql`SELECT pg_terminate_backend(pg_backend_pid())`)

const instantly = { retry: { base: 0, jitter: "none" } } as const

/** Opens the circuit as enough failures do. */
const openCircuit = Effect.flatMap(
  Pg.Breaker.Breaker,
  (breaker) =>
    Effect.flatMap(Clock.currentTimeMillis, (now) =>
      Effect.sync(() => {
        for (let source = 1; source <= 5; source++) {
          const permit = breaker.closedPermitUnsafe()
          if (permit === undefined) return assert.fail("the circuit was not closed")
          breaker.settleUnsafe(permit, "Failure", now, { code: "ECONNRESET", source: 1_000_000 + source })
        }
        assert.strictEqual(breaker.stateUnsafe(now)._tag, "Open")
      }))
)

const sum = (numbers: Readonly<Record<string, number>>) => Object.values(numbers).reduce((all, one) => all + one, 0)

/** Lets a number of connects fail before they have reached the server: as if it refused them. */
const makeDoor = () => {
  let shut = 0
  return {
    shutFor: (connects: number) => {
      shut = connects
    },
    isOpen: () => shut <= 0,
    stream: (url: Redacted.Redacted) => () => {
      const { hostname, port } = new URL(Redacted.value(url))
      return Net.connect({ host: hostname, port: shut-- > 0 ? 1 : Number(port || 5432) })
    }
  }
}

describe("what run and use fail with", () => {
  it.live("is the typed error itself, and the server's reply as SqlError", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const reply = yield* Effect.flip(executor.run(sql`SELECT 1/0`))
        assert.strictEqual(reply._tag, "SqlError")
        assert.strictEqual(Pg.Errors.failureOf(reply).sqlState, "22012")
        const lost = yield* Effect.flip(executor.run(suicide))
        assert.strictEqual(lost._tag, "OutcomeUnknown")
        const replyToUse = yield* Effect.flip(executor.use((connection) => connection.query("SELECT 1/0")))
        assert.strictEqual(replyToUse._tag, "SqlError")
        const lostInUse = yield* Effect.flip(
          executor.use((connection) => connection.query("SELECT pg_terminate_backend(pg_backend_pid())"))
        )
        assert.strictEqual(lostInUse._tag, "OutcomeUnknown")
        // The caller's own errors pass through untouched, and do not repeat anything.
        let tries = 0
        const own = yield* Effect.flip(executor.run(Effect.suspend(() => {
          tries++
          return Effect.fail("mine" as const)
        })))
        assert.strictEqual(own, "mine")
        assert.strictEqual(tries, 1)
        assert.strictEqual((yield* executor.use((connection) => connection.query("SELECT 1"))).rowCount, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, breaker: false })))
    }))

  it.live("says that retries are over, with their history", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const { executor, metrics, sql } = yield* services
        const error = yield* Effect.flip(executor.run(sql`SELECT 1`))
        assert.strictEqual(error._tag, "RetriesExhausted")
        if (error._tag === "RetriesExhausted") {
          assert.strictEqual(error.attempts, 3)
          assert.deepStrictEqual(error.history.map(({ attempt, kind }) => [attempt, kind]), [
            [1, "Unreachable"],
            [2, "Unreachable"],
            [3, "Unreachable"]
          ])
        }
        const { errors, retries } = yield* metrics.snapshot
        assert.strictEqual(retries.Unreachable, 2)
        assert.strictEqual(sum(retries), 2)
        assert.strictEqual(errors.Unreachable, 3)
      }).pipe(Effect.provide(Pg.layer({
        url: impostor.url,
        retry: { attempts: 3, base: 1, jitter: "none" },
        breaker: false
      })))
    }))
})

describe("run repeats all of its work", () => {
  it.live("when a killed session rolled its transaction back", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      const { tick, ticks } = yield* counter(witness, "runs")
      yield* Effect.gen(function*() {
        const { executor, metrics, sql } = yield* services
        let tries = 0
        const answer = yield* executor.run(sql.withTransaction(Effect.gen(function*() {
          tries++
          yield* sql`INSERT INTO t SELECT ${sql.literal(tick)}`
          if (tries < 3) yield* suicide
          yield* sql`INSERT INTO t VALUES (0)`
          return "done"
        })))
        assert.strictEqual(answer, "done")
        assert.strictEqual(tries, 3)
        assert.strictEqual(yield* ticks, 3)
        assert.deepStrictEqual(yield* witness.query("SELECT n FROM t ORDER BY n"), [{ n: 0 }, { n: 3 }])
        assert.strictEqual(sum((yield* metrics.snapshot).retries), 2)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 2 })))
    }))

  it.live("when two transactions ran into each other (40001), and the second run sees what the other one did", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* witness.query("CREATE TABLE account (balance int)")
      yield* witness.query("INSERT INTO account VALUES (0)")
      yield* Effect.gen(function*() {
        const { breaker, executor, metrics, sql } = yield* services
        let readers = 0
        const allHaveRead = yield* Deferred.make<void>()
        const deposit = executor.run(sql.withTransaction(Effect.gen(function*() {
          yield* sql`SET TRANSACTION ISOLATION LEVEL SERIALIZABLE`
          const [row] = yield* sql<{ balance: number }>`SELECT balance FROM account`
          if (++readers === 4) yield* Deferred.succeed(allHaveRead, undefined)
          yield* Deferred.await(allHaveRead)
          yield* sql`UPDATE account SET balance = ${row!.balance + 1}`
        })))
        yield* Effect.all([deposit, deposit, deposit, deposit], { concurrency: 4 })
        assert.strictEqual(yield* witness.value<number>("SELECT balance FROM account"), 4)
        assert.isAbove((yield* metrics.snapshot).retries.Contention, 0)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }).pipe(Effect.provide(Pg.layer({ url, max: 4, retry: { attempts: 50, base: 5 } })))
    }))

  it.live("when it was declared idempotent, whatever took effect", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const { tick, ticks } = yield* counter(witness, "runs")
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        let tries = 0
        yield* executor.run(
          Effect.suspend(() => {
            tries++
            return Effect.andThen(sql`SELECT ${sql.literal(tick)}`, tries < 3 ? suicide : sql`SELECT 1`)
          }),
          { idempotent: true }
        )
        assert.strictEqual(tries, 3)
        assert.strictEqual(yield* ticks, 3)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 2 })))
    }))
})

describe("run does not repeat its work", () => {
  it.live("whose statement found no session: that statement is tried again by itself", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      const door = makeDoor()
      door.shutFor(2)
      yield* Effect.gen(function*() {
        const { executor, metrics, sql } = yield* services
        let tries = 0
        yield* executor.run(Effect.suspend(() => {
          tries++
          return Effect.andThen(sql`INSERT INTO t VALUES (1)`, sql`INSERT INTO t VALUES (2)`)
        }))
        assert.strictEqual(tries, 1)
        assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM t"), 2)
        assert.strictEqual(sum((yield* metrics.snapshot).retries), 2)
      }).pipe(Effect.provide(Pg.layer({
        ...instantly,
        url,
        max: 1,
        stream: door.stream(url),
        breaker: false
      })))
    }))

  it.live("when its second statement fails after the first took effect: only that statement is tried again", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      const door = makeDoor()
      yield* Effect.gen(function*() {
        const { executor, pool, sql } = yield* services
        let tries = 0
        yield* executor.run(Effect.gen(function*() {
          tries++
          yield* sql`INSERT INTO t VALUES (1)`
          yield* pool.evictAll
          door.shutFor(2)
          yield* sql`INSERT INTO t VALUES (2)`
        }))
        assert.strictEqual(tries, 1)
        assert.isTrue(door.isOpen())
        assert.deepStrictEqual(yield* witness.query("SELECT n FROM t ORDER BY n"), [{ n: 1 }, { n: 2 }])
      }).pipe(Effect.provide(Pg.layer({
        ...instantly,
        url,
        max: 1,
        stream: door.stream(url),
        breaker: false
      })))
    }))

  it.live("when a transaction fails for good after a statement of its own took effect", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        let tries = 0
        const error = yield* Effect.flip(executor.run(Effect.gen(function*() {
          tries++
          yield* sql`INSERT INTO t VALUES (1)`
          yield* sql.withTransaction(Effect.andThen(sql`INSERT INTO t VALUES (2)`, suicide))
        })))
        assert.strictEqual(tries, 1)
        assert.strictEqual(error._tag, "SqlError")
        assert.deepStrictEqual(yield* witness.query("SELECT n FROM t"), [{ n: 1 }])
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 2 })))
    }))

  it.live("when its outcome is unknown", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const { tick, ticks } = yield* counter(witness, "runs")
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const error = yield* Effect.flip(
          executor.run(sql`SELECT ${sql.literal(tick)}, pg_terminate_backend(pg_backend_pid()), pg_sleep(1)`)
        )
        assert.strictEqual(error._tag, "OutcomeUnknown")
        assert.strictEqual(yield* ticks, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 2 })))
    }))

  it.live("when it was told not to", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const error = yield* Effect.flip(executor.run(sql`SELECT 1`, { retry: false }))
        assert.strictEqual(error._tag, "SqlError")
        assert.strictEqual(impostor.accepted(), 1)
      }).pipe(Effect.provide(Pg.layer({ url: impostor.url, breaker: false })))
    }))
})

describe("the order of the rules", () => {
  it.live("the deadline is over everything: it ends the waits between retries", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const { executor, pool, sql } = yield* services
        const run = executor.run(sql`SELECT 1`, { deadline: 150, retry: Schedule.spaced(60) })
        const exit = yield* ended(yield* Effect.forkChild(run))
        assert.isTrue(Exit.isFailure(exit))
        // It may also stop before a wait that the deadline would cut short: after several attempts, or after the first
        // when connects pause for longer than the deadline by then.
        const error = yield* Effect.flip(run)
        assert.include(["DeadlineExceeded", "RetriesExhausted", "SqlError"], error._tag)
        const { active, waiting } = yield* pool.stats
        assert.deepStrictEqual([active, waiting], [0, 0])
      }).pipe(Effect.provide(Pg.layer({ url: impostor.url, breaker: false })))
    }))

  it.live("the deadline ends a wait for a session", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const { executor, pool, sql } = yield* services
        yield* Effect.scoped(Effect.gen(function*() {
          yield* pool.reserve()
          const error = yield* Effect.flip(executor.run(sql`SELECT 1`, { deadline: 50 }))
          assert.strictEqual(error._tag, "DeadlineExceeded")
          if (error._tag === "DeadlineExceeded") assert.strictEqual(error.deadline, 50)
          assert.strictEqual((yield* pool.stats).waiting, 0)
        }))
        assert.strictEqual((yield* sql`SELECT 1`).length, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("the deadline ends a statement, and the server is told", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const { executor, pool, sql } = yield* services
        const error = yield* Effect.flip(executor.run(sql`SELECT pg_sleep(14)`, { deadline: 100 }))
        assert.strictEqual(error._tag, "DeadlineExceeded")
        yield* eventually(
          "no sleeping statement",
          Effect.map(
            witness.value<number>(
              "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                + " AND datname = current_database()"
            ),
            (count) => count === 0
          ),
          8
        )
        yield* eventually("no lease", Effect.map(pool.stats, ({ active }) => active === 0))
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("retries are outside of the breaker: they stop as soon as the circuit is open", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const { breaker, executor, sql } = yield* services
        const error = yield* Effect.flip(executor.run(sql`SELECT 1`))
        // The fifth attempt is the last for the breaker, although the schedule has 20.
        assert.strictEqual(error._tag, "CircuitOpen")
        assert.strictEqual((yield* breaker.state)._tag, "Open")
        assert.strictEqual(impostor.accepted(), 5)
      }).pipe(Effect.provide(Pg.layer({ url: impostor.url, retry: { attempts: 20, base: 1, jitter: "none" } })))
    }))

  it.live("the breaker is outside of the checkout: an open circuit is not waited for in the queue", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const { executor, pool, sql } = yield* services
        yield* Effect.scoped(Effect.gen(function*() {
          yield* pool.reserve()
          yield* openCircuit
          const error = yield* Effect.flip(executor.run(sql`SELECT 1`))
          assert.strictEqual(error._tag, "CircuitOpen")
          assert.strictEqual((yield* pool.stats).waiting, 0)
        }))
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("the attempt timeout is inside of the retries: each attempt gets its own", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const { tick, ticks } = yield* counter(witness, "runs")
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const slow = executor.run(
          sql`SELECT CASE WHEN ${sql.literal(tick)} < 3 THEN pg_sleep(14) END`,
          { attemptTimeout: 200, idempotent: true }
        )
        yield* slow
        assert.strictEqual(yield* ticks, 3)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 3, breaker: { failures: 10 } })))
    }))
})

describe("an attempt that ran out of time", () => {
  it.live("is not repeated when it may have taken effect", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const { tick, ticks } = yield* counter(witness, "runs")
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        const error = yield* Effect.flip(
          executor.run(sql`SELECT ${sql.literal(tick)}, pg_sleep(14)`, { attemptTimeout: 100 })
        )
        assert.strictEqual(error._tag, "StatementTimeout")
        if (error._tag === "StatementTimeout") {
          assert.strictEqual(error.by, "client")
          assert.strictEqual(error.timeout, 100)
        }
        assert.strictEqual(yield* ticks, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 2 })))
    }))

  it.live("costs nobody else the session", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      for (const multiplex of [false, true]) {
        yield* Effect.gen(function*() {
          const { executor, metrics, sql } = yield* services
          for (let round = 0; round < 5; round++) {
            // It ends by itself soon after its time is up, and its session is sound.
            const impatient = Effect.exit(
              executor.run(sql`SELECT pg_sleep(0.006)`, { attemptTimeout: 3, retry: false })
            )
            yield* Effect.all([impatient, sql`SELECT pg_sleep(0.3)`], { concurrency: 2 })
          }
          assert.strictEqual((yield* metrics.snapshot).query.error.count, 0)
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex, retry: false })))
      }
    }))

  it.live("on a server that does not answer at all ends all the same, and is evidence for the breaker", () =>
    Effect.gen(function*() {
      const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
      yield* Effect.gen(function*() {
        const { breaker, executor, pool, sql } = yield* services
        yield* sql`SELECT 1`
        yield* server.pause
        const before = yield* Clock.currentTimeMillis
        const error = yield* Effect.flip(executor.run(sql`SELECT 1`, { attemptTimeout: 200, retry: false }))
        const took = (yield* Clock.currentTimeMillis) - before
        assert.strictEqual(error._tag, "StatementTimeout")
        // The driver alone would wait for five seconds.
        assert.isBelow(took, 3000)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 1 })
        yield* eventually("no session in use", Effect.map(pool.stats, ({ active }) => active === 0))
        for (let turn = 0; turn < 4; turn++) {
          yield* Effect.exit(executor.run(sql`SELECT 1`, { attemptTimeout: 100, retry: false }))
        }
        assert.strictEqual((yield* breaker.state)._tag, "Open")
        yield* server.resume
      }).pipe(Effect.provide(Pg.layer({ url: server.url, max: 1, retry: false })))
    }))
})

describe("a transaction under way while the circuit opens", () => {
  for (const multiplex of [false, true]) {
    it.live(`commits: the breaker guards the way in, not the way out${multiplex ? ", multiplexed" : ""}`, () =>
      Effect.gen(function*() {
        const { url, witness } = yield* makeTable
        yield* Effect.gen(function*() {
          const { executor, sql } = yield* services
          yield* executor.run(sql.withTransaction(Effect.gen(function*() {
            yield* sql`INSERT INTO t VALUES (1)`
            yield* openCircuit
            // Somebody else is rejected, this one goes on.
            const other = yield* Effect.flip(executor.use((connection) => connection.query("SELECT 1")))
            assert.strictEqual(other._tag, "CircuitOpen")
            yield* sql`INSERT INTO t VALUES (2)`
            yield* sql.withTransaction(sql`INSERT INTO t VALUES (3)`)
          })))
          assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM t"), 3)
        }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex })))
      }))
  }

  it.live("rolls back, when it fails", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const { pool, sql } = yield* services
        const error = yield* Effect.flip(sql.withTransaction(Effect.gen(function*() {
          yield* sql`INSERT INTO t VALUES (1)`
          yield* openCircuit
          return yield* Effect.fail("no" as const)
        })))
        assert.strictEqual(error, "no")
        assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM t"), 0)
        const { active, total } = yield* pool.stats
        assert.deepStrictEqual([active, total], [0, 1])
      }).pipe(Effect.provide(Pg.layer({ url, max: 2 })))
    }))
})

describe("an open circuit", () => {
  it.live("is closed by one probe, which other callers do not join", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* makeProxy(url)
      yield* Effect.gen(function*() {
        const { breaker, executor, pool, sql } = yield* services
        // Sessions that were good before prove nothing now: the probe asks the server.
        yield* Effect.scoped(Effect.all([pool.reserve(), pool.reserve()], { concurrency: 2 }))
        yield* openCircuit
        yield* eventually(
          "a circuit that may be probed",
          Effect.map(breaker.state, (state) => state._tag === "Open" && state.retryAfter === 0)
        )
        const before = proxy.statements()
        const exits = yield* Effect.all(
          Array.from({ length: 20 }, () => Effect.exit(executor.run(sql`SELECT pg_sleep(0.01)`))),
          { concurrency: "unbounded" }
        )
        const rejected = exits.filter(Exit.isFailure).map(({ cause }) => {
          const reason = cause.reasons[0]
          return reason?._tag === "Fail" ? reason.error._tag : "?"
        })
        assert.deepStrictEqual(rejected, Array.from({ length: 19 }, () => "CircuitHalfOpen"))
        // The probe's own question, and its work.
        assert.strictEqual(proxy.statements() - before, 2)
        assert.strictEqual((yield* breaker.state)._tag, "Closed")
        assert.strictEqual((yield* sql`SELECT 1`).length, 1)
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 4, breaker: { openFor: 100, jitter: "none" } })))
    }))
})
