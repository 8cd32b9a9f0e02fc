import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { randomUUID } from "node:crypto"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { chance, ended, eventually, makeTable, makeWitness, soon, type Witness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** A table that takes the same id twice, so that a doubled write shows. */
const ledger = Effect.fnUntraced(function*(witness: Witness) {
  yield* witness.query("CREATE TABLE ledger (id text NOT NULL, part int NOT NULL DEFAULT 0)")
  yield* witness.query("CREATE SEQUENCE runs")
})

/** How often each id is in the ledger. */
const entries = (witness: Witness) =>
  Effect.map(
    witness.query<{ id: string; count: number; parts: number }>(
      "SELECT id, count(*)::int AS count, count(DISTINCT part)::int AS parts FROM ledger GROUP BY id"
    ),
    (rows) => new Map(rows.map((row) => [row.id, row]))
  )

/** How often a function that counts its runs, and never forgets one, has run. */
const runs = (witness: Witness) =>
  witness.value<number>("SELECT CASE WHEN is_called THEN last_value ELSE 0 END::int FROM runs")

const typed = (error: SqlError): string => Pg.Errors.fromSqlError(error)?._tag ?? error.reason._tag

type Mode = "a random session" | "all sessions"

const killer = (witness: Witness, mode: Mode, seed: number) => {
  const { below, pick } = chance(seed)
  return Effect.forever(Effect.gen(function*() {
    yield* Effect.sleep(mode === "all sessions" ? 250 + below(150) : 20 + below(20))
    const pids = yield* witness.sessions
    // The last borrowers have one session between them: to kill that one each time would prove nothing.
    if (pids.length > 3) yield* witness.terminate(mode === "all sessions" ? pids : [pick(pids)])
  }))
}

const modes: ReadonlyArray<Mode> = ["a random session", "all sessions"]
const styles = [{ multiplex: false }, { multiplex: true }] as const

describe("while sessions are killed again and again", () => {
  for (const mode of modes) {
    for (const { multiplex } of styles) {
      const where = `${mode} at a time${multiplex ? ", multiplexed" : ""}`

      it.live(`no idempotent read fails: ${where}`, () =>
        Effect.gen(function*() {
          const seed = 4711
          const url = yield* freshDatabase
          const witness = yield* makeWitness(url)
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const metrics = yield* Pg.Metrics.Metrics
            const killing = yield* Effect.forkChild(killer(witness, mode, seed))
            const failures: Array<string> = []
            yield* Effect.forEach(range(24), (reader) =>
              Effect.forEach(range(150), (turn) =>
                Pg.Executor.idempotent(sql<{ n: number }>`SELECT ${turn}::int AS n, pg_sleep(0.002)`).pipe(
                  Effect.match({
                    onFailure: (error) => {
                      failures.push(`reader ${reader}, turn ${turn}: ${typed(error)}: ${error.message}`)
                    },
                    onSuccess: (rows) =>
                      assert.strictEqual(rows[0]?.n, turn)
                  })
                )), { concurrency: "unbounded" })
            yield* Fiber.interrupt(killing)
            assert.deepStrictEqual(failures, [], `seed ${seed}`)
            const { connectionsClosed, retries } = yield* metrics.snapshot
            assert.isAbove(connectionsClosed.error, 5)
            assert.isAbove(
              Object.values(retries).reduce((sum, count) =>
                sum + count, 0),
              0
            )
          }).pipe(Effect.provide(Pg.layer({ url, max: 8, multiplex, multiplexConcurrency: 4 })))
        }), 60_000)

      it.live(
        `every acknowledged write is there exactly once, and every unknown one at most once: ${where}`,
        () =>
          Effect.gen(function*() {
            const seed = 1848
            const url = yield* freshDatabase
            const witness = yield* makeWitness(url)
            yield* ledger(witness)
            const acknowledged: Array<string> = []
            const unknown: Array<string> = []
            const refused: Array<readonly [id: string, why: string]> = []
            yield* Effect.gen(function*() {
              const sql = yield* SqlClient
              const killing = yield* Effect.forkChild(killer(witness, mode, seed))
              const note = (id: string) =>
                Effect.match({
                  onFailure: (error: SqlError) => {
                    if (typed(error) === "OutcomeUnknown") unknown.push(id)
                    else refused.push([id, `${typed(error)}: ${error.message}`])
                  },
                  onSuccess: () => {
                    acknowledged.push(id)
                  }
                })
              yield* Effect.forEach(range(24), (writer) =>
                Effect.forEach(range(80), (turn) => {
                  const id = randomUUID()
                  const write = (writer + turn) % 2 === 0
                    ? sql`INSERT INTO ledger (id) SELECT ${id} FROM pg_sleep(0.002)`
                    : sql.withTransaction(
                      Effect.andThen(
                        sql`INSERT INTO ledger (id, part) VALUES (${id}, 1)`,
                        sql`INSERT INTO ledger (id, part) SELECT ${id}, 2 FROM pg_sleep(0.001)`
                      )
                    )
                  return note(id)(write)
                }), { concurrency: "unbounded" })
              yield* Fiber.interrupt(killing)
              const { active, waiting } = yield* Effect.flatMap(Pg.Pool.Pool, (pool) => pool.stats)
              assert.deepStrictEqual([active, waiting], [0, 0])
            }).pipe(Effect.provide(Pg.layer({ url, max: 8, multiplex, multiplexConcurrency: 4 })))
            const found = yield* entries(witness)
            const wrong: Array<string> = []
            for (const id of acknowledged) {
              const entry = found.get(id)
              if (entry === undefined) wrong.push(`acknowledged ${id} is lost`)
              else if (entry.count !== entry.parts) wrong.push(`acknowledged ${id} is there ${entry.count} times`)
            }
            for (const id of unknown) {
              const entry = found.get(id)
              if (entry !== undefined && entry.count !== entry.parts) {
                wrong.push(`unknown ${id} ran ${entry.count} times`)
              }
            }
            for (const [id, why] of refused) {
              if (found.has(id)) wrong.push(`${id} is there although it failed with ${why}`)
            }
            assert.deepStrictEqual(wrong, [], `seed ${seed}`)
            assert.strictEqual(acknowledged.length + unknown.length + refused.length, 24 * 80)
            assert.isAbove(acknowledged.length, 24 * 40)
            assert.isAbove(unknown.length + refused.length, 0)
          }),
        60_000
      )
    }
  }
})

/** Runs a statement and cuts its session off while the server sleeps in it. */
const cutWhileItSleeps = <A, E, R>(witness: Witness, work: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(work, { startImmediately: true })
    let pid: number | undefined
    yield* eventually(
      "a sleeping statement",
      Effect.map(
        witness.query<{ pid: number }>(
          "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            + " AND datname = current_database()"
        ),
        (rows) => (pid = rows[0]?.pid) !== undefined
      )
    )
    assert.strictEqual(yield* witness.terminate([pid!]), 1)
    return yield* ended(fiber)
  })

const slowInsert = Effect.fnUntraced(function*(witness: Witness) {
  yield* ledger(witness)
  yield* witness.query(`
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM nextval('runs');
      PERFORM pg_sleep(3);
      RETURN new;
    END $$`)
  yield* witness.query("CREATE TRIGGER slow BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION slow()")
})

const failureIn = <A>(exit: Exit.Exit<A, SqlError>): Pg.Errors.PoolError | undefined =>
  Exit.isFailure(exit) && exit.cause.reasons[0]?._tag === "Fail"
    ? Pg.Errors.fromSqlError(exit.cause.reasons[0].error)
    : assert.fail(`expected one error, got ${JSON.stringify(exit)}`)

describe("a write whose session is killed while the server works on it", () => {
  for (const { multiplex } of styles) {
    it.live(`is not run again, and says that its outcome is unknown${multiplex ? ", multiplexed" : ""}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        yield* slowInsert(witness)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const error = failureIn(yield* cutWhileItSleeps(witness, sql`INSERT INTO ledger (id) VALUES ('cut')`))
          assert.strictEqual(error?._tag, "OutcomeUnknown")
          if (error?._tag === "OutcomeUnknown") {
            assert.strictEqual(error.operation, "statement")
            assert.strictEqual(error.failure.sqlState, "57P01")
            assert.isFalse(error.isRetryable)
          }
          assert.strictEqual(yield* runs(witness), 1)
          assert.strictEqual((yield* entries(witness)).size, 0)
          assert.strictEqual((yield* sql`SELECT 1`).length, 1)
        }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex })))
      }))
  }

  it.live("is run again when it was declared idempotent", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* slowInsert(witness)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const exit = yield* cutWhileItSleeps(
          witness,
          Pg.Executor.idempotent(sql`INSERT INTO ledger (id) VALUES ('twice')`)
        )
        assert.isTrue(Exit.isSuccess(exit))
        assert.strictEqual(yield* runs(witness), 2)
        assert.strictEqual((yield* entries(witness)).get("twice")?.count, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2 })))
    }))

  it.live("inside a transaction is known to be rolled back, and is not repeated on its own", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* slowInsert(witness)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const error = failureIn(
          yield* cutWhileItSleeps(witness, sql.withTransaction(sql`INSERT INTO ledger (id) VALUES ('cut')`))
        )
        assert.isUndefined(error)
        assert.strictEqual(yield* runs(witness), 1)
        assert.strictEqual((yield* entries(witness)).size, 0)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2 })))
    }))
})

describe("a request whose answer the network loses", () => {
  /** What has to be in a request for the proxy to cut the connection, before or after it was passed on. */
  const cutOn = Effect.fnUntraced(function*(
    needle: string,
    fate: "reaches the server" | "is lost too"
  ): Effect.fn.Return<
    { readonly witness: Witness; readonly url: Pg.Options["url"]; readonly cuts: () => number },
    SqlError,
    Scope.Scope
  > {
    const direct = yield* freshDatabase
    const witness = yield* makeWitness(direct)
    yield* ledger(witness)
    const proxy = yield* makeProxy(direct)
    let cuts = 0
    proxy.onRequest((request, link) => {
      if (cuts > 0 || !request.includes(needle)) return "pass"
      cuts++
      link.mute()
      // The server has some time to run it: the proxy closes its side politely, after what it has passed on.
      setTimeout(link.cut, 50)
      return fate === "reaches the server" ? "pass" : "drop"
    })
    return { witness, url: proxy.url, cuts: () => cuts }
  })

  const insert = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO ledger (id) SELECT 'one' FROM nextval('runs')`)

  for (const fate of ["reaches the server", "is lost too"] as const) {
    for (const { multiplex } of styles) {
      const name = `is not sent again when the request ${fate}${multiplex ? ", multiplexed" : ""}`
      it.live(name, () =>
        Effect.gen(function*() {
          const { cuts, url, witness } = yield* cutOn("INSERT INTO ledger", fate)
          const error = yield* Effect.flip(insert).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex })))
          const known = Pg.Errors.fromSqlError(error)
          assert.strictEqual(known?._tag, "OutcomeUnknown")
          assert.strictEqual(cuts(), 1)
          yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
          assert.strictEqual(yield* runs(witness), fate === "reaches the server" ? 1 : 0)
          assert.strictEqual((yield* entries(witness)).size, fate === "reaches the server" ? 1 : 0)
        }))
    }

    it.live(`is an unknown commit when it was the COMMIT and ${fate}`, () =>
      Effect.gen(function*() {
        const { url, witness } = yield* cutOn("COMMIT", fate)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const executor = yield* Pg.Executor.Executor
          const error = yield* Effect.flip(executor.run(sql.withTransaction(insert)))
          assert.strictEqual(error._tag, "OutcomeUnknown")
          if (error._tag === "OutcomeUnknown") assert.strictEqual(error.operation, "commit")
        }).pipe(Effect.provide(Pg.layer({ url, max: 2 })))
        yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
        assert.strictEqual(yield* runs(witness), 1)
        assert.strictEqual((yield* entries(witness)).get("one")?.count ?? 0, fate === "reaches the server" ? 1 : 0)
      }))
  }

  it.live("is sent again when the work is idempotent", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* cutOn("INSERT INTO ledger", "reaches the server")
      yield* Pg.Executor.idempotent(insert).pipe(Effect.provide(Pg.layer({ url, max: 2 })))
      assert.strictEqual(yield* runs(witness), 2)
      assert.strictEqual((yield* entries(witness)).get("one")?.count, 2)
    }))

  it.live("is tried elsewhere when it was the BEGIN, which leaves nothing behind", () =>
    Effect.gen(function*() {
      for (const fate of ["reaches the server", "is lost too"] as const) {
        const { cuts, url, witness } = yield* cutOn("BEGIN", fate)
        yield* Effect.flatMap(SqlClient, (sql) => sql.withTransaction(insert)).pipe(
          Effect.provide(Pg.layer({ url, max: 2 }))
        )
        assert.strictEqual(cuts(), 1)
        // The first statement goes with it, and was rolled back with it.
        assert.strictEqual(yield* runs(witness), fate === "reaches the server" ? 2 : 1)
        assert.strictEqual((yield* entries(witness)).get("one")?.count, 1)
      }
    }))
})

describe("sessions that are killed while they idle", () => {
  for (const { multiplex } of styles) {
    it.live(`are replaced without an error and without a retry${multiplex ? ", multiplexed" : ""}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        yield* ledger(witness)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const pool = yield* Pg.Pool.Pool
          const breaker = yield* Pg.Breaker.Breaker
          yield* Effect.scoped(Effect.forEach(range(5), () => pool.reserve(), { concurrency: 5 }))
          for (let round = 0; round < 3; round++) {
            yield* eventually("no connect under way", Effect.map(pool.stats, ({ connecting }) => connecting === 0))
            const pids = yield* witness.sessions
            assert.isAbove(pids.length, 0)
            assert.strictEqual(yield* witness.terminate(pids), pids.length)
            yield* eventually("no session", Effect.map(pool.stats, ({ total }) => total === 0))
            yield* Effect.forEach(range(10), (part) => sql`INSERT INTO ledger VALUES (${`round ${round}`}, ${part})`, {
              concurrency: 10
            })
          }
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        }).pipe(Effect.provide(Pg.layer({ url, max: 5, min: 5, retry: false, multiplex })))
        const found = yield* entries(witness)
        for (let round = 0; round < 3; round++) assert.strictEqual(found.get(`round ${round}`)?.count, 10)
      }))
  }

  it.live("are replaced even when the next write comes before the news", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* ledger(witness)
      const outcomes: Array<readonly [id: string, outcome: string]> = []
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        for (let round = 0; round < 40; round++) {
          yield* Pg.Executor.idempotent(sql`SELECT 1`)
          const write = Effect.match(sql`INSERT INTO ledger VALUES (${`${round}`})`, {
            onFailure: (error) => void outcomes.push([`${round}`, typed(error)]),
            onSuccess: () => void outcomes.push([`${round}`, "done"])
          })
          yield* Effect.all([Effect.flatMap(witness.sessions, witness.terminate), write], { concurrency: 2 })
        }
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, breaker: false })))
      const found = yield* entries(witness)
      for (const [id, outcome] of outcomes) {
        assert.include(["done", "OutcomeUnknown"], outcome)
        const count = found.get(id)?.count ?? 0
        if (outcome === "done") assert.strictEqual(count, 1)
        else assert.isAtMost(count, 1)
      }
    }))
})

describe("a session that dies while it is lent", () => {
  it.live("does not keep its place from those who come before it is given back", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const sql = yield* SqlClient
        yield* Effect.scoped(Effect.gen(function*() {
          const { session } = yield* pool.reserve()
          yield* witness.terminate(yield* witness.sessions)
          yield* eventually("the death", Effect.sync(() => session.wire.isDead()))
          // The lease goes on, and has nothing any more.
          assert.deepStrictEqual(yield* soon("another session", sql`SELECT 1 AS one`), [{ one: 1 }])
        }))
        assert.strictEqual(yield* witness.count, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})
