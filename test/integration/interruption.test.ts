import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { chance, eventually, makeWitness, soon } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

const max = 4
const runs = 320
const batch = 8

/** What can be interrupted, by name. Each holds a session for some milliseconds, if it gets one. */
const activities = (client: SqlClient, pool: Pg.Pool.Pool["Service"], executor: Pg.Executor.Executor["Service"]) => ({
  statement: client`SELECT pg_sleep(0.004)`,
  "short statement": client`SELECT 1`,
  write: client`INSERT INTO ledger VALUES ('write')`,
  transaction: client.withTransaction(Effect.andThen(
    client`INSERT INTO ledger VALUES ('half')`,
    Effect.andThen(client`SELECT pg_sleep(0.003)`, client`INSERT INTO ledger VALUES ('half')`)
  )),
  savepoint: client.withTransaction(Effect.andThen(
    client`INSERT INTO ledger VALUES ('half')`,
    client.withTransaction(Effect.andThen(client`SELECT pg_sleep(0.002)`, client`INSERT INTO ledger VALUES ('half')`))
  )),
  stream: Stream.runForEach(
    Stream.take(client`SELECT n FROM generate_series(1, 5000) AS n`.stream, 4000),
    () => Effect.void
  ),
  "lent connection": Effect.scoped(
    Effect.flatMap(
      client.reserve,
      (connection) => connection.executeUnprepared("SELECT pg_sleep(0.003)", [], undefined)
    )
  ),
  "idle lease": Effect.scoped(Effect.andThen(pool.reserve(), Effect.sleep(4))),
  use: pool.use(({ connection }) => connection.query("SELECT pg_sleep(0.002)")),
  "use with a proof": pool.use(() => Effect.sleep(1), { prove: true }),
  run: executor.run(client`SELECT pg_sleep(0.002)`, { deadline: 20 }),
  "impatient run": executor.run(client`SELECT pg_sleep(0.006)`, { attemptTimeout: 3, idempotent: true }),
  "exclusive run": executor.use((connection) => connection.query("SELECT pg_sleep(0.003)"))
})

const interruptAtRandom = Effect.fnUntraced(function*(seed: number, options: Omit<Pg.Options, "url">) {
  const { below, next, pick } = chance(seed)
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  yield* witness.query("CREATE TABLE ledger (id text NOT NULL)")
  const watch = yield* witness.watch
  yield* Effect.gen(function*() {
    const pool = yield* Pg.Pool.Pool
    const all = Object.entries(activities(yield* SqlClient, pool, yield* Pg.Executor.Executor))
    let interrupted = 0
    for (let run = 0; run < runs; run += batch) {
      const names: Array<string> = []
      // Twice as many as there are sessions: half of them wait.
      const fibers = yield* Effect.forEach(range(batch), () => {
        const [name, activity] = pick(all)
        const [first, again] = next() < 0.5 ? [below(40), 0] : [0, below(14)]
        names.push(`${name} after ${first} steps, ${again} ms`)
        return Effect.forkChild(Effect.gen(function*() {
          const fiber = yield* Effect.forkChild(activity as Effect.Effect<unknown, unknown>, {
            startImmediately: next() < 0.5
          })
          for (let step = 0; step < first; step++) yield* Effect.yieldNow
          if (again > 0) yield* Effect.sleep(again)
          yield* Fiber.interrupt(fiber)
          const exit = yield* Fiber.await(fiber)
          if (Exit.hasInterrupts(exit)) interrupted++
        }))
      })
      const what = `seed ${seed}, run ${run}: ${names.join("; ")}`
      yield* Effect.forEach(fibers, (fiber) => soon(`an end: ${what}`, Fiber.join(fiber)))
      yield* eventually(
        `no lease and no waiter: ${what}`,
        Effect.map(pool.stats, ({ active, waiting }) => active === 0 && waiting === 0)
      )
    }
    assert.isAbove(interrupted, runs / 8, `seed ${seed}`)
    // All of the pool is there, and all of it works.
    yield* soon(
      `all sessions, seed ${seed}`,
      Effect.scoped(Effect.gen(function*() {
        const leases = yield* Effect.forEach(range(max), () => pool.reserve(), { concurrency: max })
        const pids = yield* Effect.forEach(
          leases,
          ({ connection }) => Effect.map(connection.queryValues("SELECT pg_backend_pid()"), (rows) => rows[0]?.[0])
        )
        assert.strictEqual(new Set(pids).size, max)
        const { active, idle } = yield* pool.stats
        assert.deepStrictEqual([active, idle], [max, 0])
        assert.strictEqual(yield* witness.count, max)
      }))
    )
    // A transaction is whole or not at all: two rows each.
    const halves = yield* witness.value<number>("SELECT count(*)::int FROM ledger WHERE id = 'half'")
    assert.strictEqual(halves % 2, 0, `seed ${seed}`)
    assert.strictEqual(
      yield* witness.value<number>(
        "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
      ),
      0
    )
    assert.deepStrictEqual(
      yield* Effect.map(Pg.Breaker.Breaker.use((breaker) => breaker.state), ({ _tag }) => _tag),
      "Closed"
    )
    // The impatient ones are evidence against the server, and would open the circuit for the others in time.
  }).pipe(Effect.provide(Pg.layer({ ...options, url, max, min: max, breaker: { failures: 10_000 } })))
  assert.isAtMost(watch.most(), max, `seed ${seed}`)
  yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
})

describe(`interruption at random moments, ${runs} runs`, () => {
  for (const seed of [1, 20260801]) {
    for (const multiplex of [false, true]) {
      it.live(
        `leaks no session and no lease${multiplex ? ", multiplexed" : ""} (seed ${seed})`,
        () => interruptAtRandom(seed, { multiplex }),
        60_000
      )
    }
  }

  it.live(
    "leaks nothing while sessions wear out and are checked before every use",
    () => interruptAtRandom(77, { validate: "always", maxUses: 3 }),
    60_000
  )

  it.live("leaks nothing while the hooks take their time", () =>
    interruptAtRandom(99, {
      maxUses: 2,
      beforeConnect: Effect.sleep(1),
      afterConnect: (connection) => connection.query("SELECT pg_sleep(0.001)"),
      beforeDisconnect: (connection) => connection.query("SELECT 1")
    }), 60_000)
})

describe("the connect that a borrower asked for", () => {
  it.live("goes on when the borrower is interrupted, and its session is there for the next one", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      let connects = 0
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const sql = yield* SqlClient
        for (let round = 0; round < 20; round++) {
          const fiber = yield* Effect.forkChild(sql`SELECT 1`, { startImmediately: true })
          yield* Effect.sleep(round % 5)
          yield* Fiber.interrupt(fiber)
        }
        yield* eventually(
          "one idle session",
          Effect.map(pool.stats, ({ active, connecting, idle }) => active === 0 && connecting === 0 && idle === 1)
        )
        assert.strictEqual(connects, 1)
        yield* sql`SELECT 1`
        assert.strictEqual(yield* witness.count, 1)
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 2,
        beforeConnect: Effect.andThen(Effect.sync(() => connects++), Effect.sleep(200))
      })))
    }))
})
