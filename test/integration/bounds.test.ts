import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { chance, ended, eventually, makeWitness, soon } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** Holds as many sessions at once as asked for, and answers their process ids. */
const pidsOf = (count: number) =>
  Effect.flatMap(
    Pg.Pool.Pool,
    (pool) =>
      Effect.scoped(
        Effect.forEach(range(count), () => Effect.map(pool.reserve(), ({ connection }) => connection.processId), {
          concurrency: count
        })
      )
  )

/** Has 200 fibers run a statement that many times each, and counts how often it worked. */
const flood = Effect.fnUntraced(function*<E>(
  times: number,
  statement: Effect.Effect<unknown, E>,
  onServed: (served: number) => void = () => {}
) {
  let served = 0
  yield* Effect.forEach(range(200), () =>
    Effect.forEach(range(times), () =>
      Effect.matchCause(statement, {
        onFailure: () => {},
        onSuccess: () => {
          onServed(++served)
        }
      })), { concurrency: "unbounded" })
  return served
})

describe("the server never sees more than max sessions", () => {
  it.live("under 200 concurrent borrowers", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const answers = yield* Effect.forEach(range(200), (borrower) =>
          Effect.forEach(range(10), () =>
            Effect.map(sql<{ me: number }>`SELECT ${borrower}::int AS me, pg_sleep(0.001)`, (rows) =>
              rows[0]?.me)), { concurrency: "unbounded" })
        assert.deepStrictEqual(
          answers,
          range(200).map((borrower) =>
            range(10).map(() =>
              borrower
            )
          )
        )
        assert.strictEqual(yield* witness.count, 8)
      }).pipe(Effect.provide(Pg.layer({ url, max: 8, min: 8 })))
      assert.strictEqual(watch.most(), 8)
      assert.isAbove(watch.samples(), 20)
    }))

  it.live("while sessions wear out, are evicted and are killed", () =>
    Effect.gen(function*() {
      const seed = 20260711
      const { below } = chance(seed)
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        // Measured in work and not in time: a machine that is slow to connect gets on all the same.
        let served = 0
        const after = (more: number) => {
          const enough = served + more
          return Effect.repeat(Effect.sleep(1), { until: () => served >= enough })
        }
        const trouble = yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
          yield* after(15)
          yield* pool.evictAll
          yield* after(15)
          const pids = yield* witness.sessions
          const unlucky = pids[below(pids.length)]
          if (unlucky !== undefined) yield* witness.terminate([unlucky])
        })))
        yield* flood(5, sql`SELECT pg_sleep(0.001)`, (count) => {
          served = count
        })
        yield* Fiber.interrupt(trouble)
        assert.isAbove(served, 500)
        assert.isAtMost(watch.most(), 8, `seed ${seed}`)
        const pids = yield* soon("all of the pool", pidsOf(8))
        assert.strictEqual(new Set(pids).size, 8)
        yield* eventually(
          "nobody has a session",
          Effect.map(pool.stats, ({ active, waiting }) => active === 0 && waiting === 0)
        )
      }).pipe(Effect.provide(Pg.layer({ url, max: 8, maxUses: 20, breaker: false })))
      assert.isAtMost(watch.most(), 8, `seed ${seed}`)
      assert.isAbove(watch.samples(), 20)
    }), 60_000)

  it.live("when all are replaced at once, since the old ones are gone before new ones come", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const seen = new Set<number>()
        for (let round = 0; round < 20; round++) {
          for (const pid of yield* pidsOf(6)) seen.add(pid)
          yield* pool.evictAll
        }
        assert.strictEqual(seen.size, 120)
        assert.strictEqual(yield* soon("a new session", Effect.map(pidsOf(1), (pids) => pids.length)), 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 6, breaker: false })))
      assert.isAtMost(watch.most(), 6)
    }))

  it.live("with sessions that say a slow goodbye", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.forEach(range(60), () => Effect.flatMap(SqlClient, (sql) => sql`SELECT pg_sleep(0.001)`), {
        concurrency: "unbounded"
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 4,
        maxUses: 2,
        beforeDisconnect: (connection) => connection.query("SELECT pg_sleep(0.05)")
      })))
      assert.isAtMost(watch.most(), 4)
      assert.isAbove(watch.most(), 0)
    }))
})

describe("a pool that is empty", () => {
  it.live("opens nothing until the first use, whatever min says, and then one session", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* Effect.sleep(100)
        assert.strictEqual(yield* witness.count, 0)
        yield* sql`SELECT 1`
        yield* sql`SELECT 1`
        assert.strictEqual(yield* witness.count, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 10, min: 5 })))
    }))
})

describe("borrowers who wait", () => {
  it.live("are served in the order in which they came, and nobody overtakes them", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const served: Array<number> = []
        const borrow = (name: number) =>
          pool.use(({ connection }) =>
            Effect.andThen(Effect.sync(() => served.push(name)), connection.query("SELECT pg_sleep(0.002)"))
          )
        const waiting = yield* pool.use(() =>
          Effect.gen(function*() {
            const fibers = []
            for (const name of range(30)) {
              fibers.push(yield* Effect.forkDetach(borrow(name), { startImmediately: true }))
            }
            assert.strictEqual((yield* pool.stats).waiting, 30)
            // One of them gives up; the others keep their places.
            yield* Fiber.interrupt(fibers[7]!)
            assert.strictEqual((yield* pool.stats).waiting, 29)
            return fibers
          })
        )
        const late = yield* Effect.forkDetach(borrow(30), { startImmediately: true })
        yield* Effect.forEach([...waiting, late], (fiber) => ended(fiber))
        assert.deepStrictEqual(served, range(31).filter((name) => name !== 7))
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("keep their order while the session they wait for is killed", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const served: Array<number> = []
        const fibers = yield* pool.use((session) =>
          Effect.gen(function*() {
            const fibers = []
            for (const name of range(10)) {
              fibers.push(
                yield* Effect.forkDetach(pool.use(() => Effect.sync(() => served.push(name))), {
                  startImmediately: true
                })
              )
            }
            yield* witness.terminate([session.connection.processId])
            yield* eventually("a closed socket", Effect.sync(() => session.wire.isDead()))
            return fibers
          })
        )
        yield* Effect.forEach(fibers, (fiber) => ended(fiber))
        assert.deepStrictEqual(served, range(10))
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})

describe("idle sessions", () => {
  it.live("are lent again last in, first out", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        assert.strictEqual(new Set(yield* pidsOf(4)).size, 4)
        const pid = Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]?.pid)
        const first = yield* pid
        for (let turn = 0; turn < 20; turn++) assert.strictEqual(yield* pid, first)
        // Two at a time use two sessions and no third.
        const pids = new Set<number | undefined>()
        for (let turn = 0; turn < 20; turn++) {
          for (const each of yield* Effect.all([pid, pid], { concurrency: 2 })) pids.add(each)
        }
        assert.strictEqual(pids.size, 2)
        // The one that came back last is the next to go.
        const order = yield* Effect.scoped(Effect.gen(function*() {
          const a = yield* pool.reserve()
          const b = yield* Effect.scoped(pool.reserve())
          return [a.connection.processId, b.connection.processId] as const
        }))
        assert.notStrictEqual(order[0], order[1])
        assert.strictEqual(yield* pid, order[0])
        assert.strictEqual((yield* pool.stats).total, 4)
      }).pipe(Effect.provide(Pg.layer({ url, max: 4, min: 4 })))
    }))

  it.live("are closed down to min and not below", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        yield* pidsOf(7)
        assert.strictEqual(yield* witness.count, 7)
        yield* Effect.sleep(200)
        for (let turn = 0; turn < 10; turn++) {
          yield* sql`SELECT 1`
          yield* Effect.sleep(20)
        }
        yield* eventually("three sessions on the server", Effect.map(witness.count, (count) => count === 3))
        assert.strictEqual((yield* pool.stats).total, 3)
        yield* Effect.sleep(300)
        yield* sql`SELECT 1`
        yield* Effect.sleep(100)
        assert.strictEqual(yield* witness.count, 3)
      }).pipe(Effect.provide(Pg.layer({ url, max: 8, min: 3, idleTimeout: 100 })))
    }))
})

describe("a multiplexed pool", () => {
  it.live("lets as many statements share a session as it was told, and makes the next one wait", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        // Nobody gets an answer before the gate opens.
        yield* witness.query("SELECT pg_advisory_lock(1)")
        const pid = Effect.map(
          sql<{ pid: number }>`SELECT pg_backend_pid() AS pid FROM pg_advisory_xact_lock_shared(1)`,
          (rows) => rows[0]?.pid
        )
        const fibers = yield* Effect.forEach(range(20), () => Effect.forkChild(pid, { startImmediately: true }))
        yield* eventually(
          "two sessions in use, four borrowers waiting",
          Effect.map(pool.stats, (stats) => stats.active === 2 && stats.waiting === 4)
        )
        assert.strictEqual(yield* witness.count, 2)
        yield* witness.query("SELECT pg_advisory_unlock(1)")
        const pids = yield* Effect.forEach(fibers, (fiber) => Fiber.join(fiber))
        assert.strictEqual(new Set(pids).size, 2)
        const { active, waiting } = yield* pool.stats
        assert.deepStrictEqual([active, waiting], [0, 0])
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex: true, multiplexConcurrency: 8 })))
      assert.strictEqual(watch.most(), 2)
    }))

  it.live("gives a transaction a session that nobody else uses meanwhile", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pid = Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]?.pid)
        const inside = new Set<number | undefined>()
        let begun = false
        const work = { done: false }
        const transaction = yield* Effect.forkChild(sql.withTransaction(Effect.gen(function*() {
          inside.add(yield* pid)
          begun = true
          for (let turn = 0; turn < 20; turn++) {
            inside.add(yield* pid)
            yield* Effect.sleep(2)
          }
          work.done = true
        })))
        yield* eventually("a transaction", Effect.sync(() => begun))
        const outside = new Set<number | undefined>()
        while (!work.done) {
          for (const each of yield* Effect.all(range(20).map(() => pid), { concurrency: "unbounded" })) {
            if (!work.done) outside.add(each)
          }
        }
        yield* Fiber.join(transaction)
        assert.strictEqual(inside.size, 1)
        assert.isAbove(outside.size, 0)
        for (const each of inside) assert.isFalse(outside.has(each))
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex: true })))
      assert.isAtMost(watch.most(), 2)
    }))

  it.live("stays within max while it serves 200 borrowers and loses sessions", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        const trouble = yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
          yield* Effect.sleep(15)
          yield* pool.evictAll
          yield* Effect.sleep(15)
          yield* witness.terminate((yield* witness.sessions).slice(0, 1))
        })))
        const served = yield* flood(10, sql`SELECT pg_sleep(0.0005)`)
        yield* Fiber.interrupt(trouble)
        assert.isAbove(served, 500)
        yield* eventually(
          "nobody has a session",
          Effect.map(pool.stats, ({ active, waiting }) => active === 0 && waiting === 0)
        )
        assert.strictEqual(new Set(yield* soon("all of the pool", pidsOf(3))).size, 3)
      }).pipe(Effect.provide(Pg.layer({ url, max: 3, multiplex: true, breaker: false })))
      assert.isAtMost(watch.most(), 3)
    }))
})
