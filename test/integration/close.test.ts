import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { spawn } from "node:child_process"
import * as Net from "node:net"
import { fileURLToPath } from "node:url"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { ended, eventually, makeTable, makeWitness, soon } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** A pool in a scope that the test closes, and every socket it ever opened. */
const openPool = Effect.fnUntraced(function*(options: Pg.Options & { readonly url: Redacted.Redacted }) {
  const scope = yield* Scope.make()
  const sockets: Array<Net.Socket> = []
  const { hostname, port } = new URL(Redacted.value(options.url))
  const services = yield* Layer.buildWithScope(
    Pg.layer({
      ...options,
      stream: () => {
        const socket = Net.connect({ host: hostname, port: Number(port || 5432), noDelay: true })
        sockets.push(socket)
        return socket
      }
    }),
    scope
  )
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  return {
    sql: Context.get(services, SqlClient),
    pool: Context.get(services, Pg.Pool.Pool),
    executor: Context.get(services, Pg.Executor.Executor),
    breaker: Context.get(services, Pg.Breaker.Breaker),
    sockets,
    openSockets: () => sockets.filter((socket) => !socket.destroyed).length,
    close: soon("the end of the pool", Scope.close(scope, Exit.void), 20)
  }
})

describe("closing the pool", () => {
  for (const multiplex of [false, true]) {
    const how = multiplex ? ", multiplexed" : ""

    it.live(`leaves no session on the server and no socket here${how}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const { close, openSockets, pool, sockets, sql } = yield* openPool({ url, max: 6, multiplex })
        yield* Effect.scoped(Effect.forEach(range(6), () => pool.reserve(), { concurrency: 6 }))
        yield* Effect.forEach(range(100), () => sql`SELECT 1`, { concurrency: "unbounded" })
        assert.strictEqual(yield* witness.count, 6)
        yield* close
        assert.strictEqual(openSockets(), 0)
        assert.strictEqual(yield* witness.count, 0)
        assert.isAtLeast(sockets.length, 6)
        const { active, idle, total, waiting } = yield* pool.stats
        assert.deepStrictEqual({ active, idle, total, waiting }, { active: 0, idle: 0, total: 0, waiting: 0 })
        for (const socket of sockets) {
          // A farewell to the server, not a reset.
          assert.isNull(socket.errored)
        }
      }))

    it.live(`answers those who wait, and those who come later, with PoolClosed${how}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const { breaker, close, executor, pool, sql } = yield* openPool({ url, max: 1, multiplex })
        const holder = yield* Effect.forkChild(Effect.scoped(Effect.andThen(pool.reserve(), Effect.sleep(200))))
        yield* eventually("a lent session", Effect.map(pool.stats, ({ active }) => active === 1))
        const waiters = yield* Effect.forEach([
          pool.use(() => Effect.void),
          Effect.scoped(pool.reserve()),
          executor.run(sql`SELECT 1`),
          executor.run(sql.withTransaction(sql`SELECT 1`)),
          Effect.mapError(sql`SELECT 1`, (error) => Pg.Errors.fromSqlError(error) ?? assert.fail(error.message))
        ], (work: Effect.Effect<unknown, { readonly _tag: string }>) => Effect.forkChild(Effect.flip(work)))
        yield* eventually("five waiters", Effect.map(pool.stats, ({ waiting }) => waiting === 5))
        const closing = yield* Effect.forkChild(close)
        for (const waiter of waiters) {
          const error = yield* Fiber.join(waiter)
          assert.strictEqual(error._tag, "PoolClosed")
        }
        // The holder keeps its session: the pool waits for it.
        assert.strictEqual((yield* pool.stats).active, 1)
        assert.isTrue(pool.isClosing())
        assert.isTrue(Exit.isSuccess(yield* ended(holder)))
        yield* ended(closing)
        assert.strictEqual((yield* Effect.flip(pool.use(() => Effect.void)))._tag, "PoolClosed")
        const error = yield* Effect.flip(executor.run(sql`SELECT 1`))
        assert.strictEqual(error._tag, "PoolClosed")
        if (error._tag === "PoolClosed") assert.isFalse(error.isRetryable)
        // The database has nothing to do with it.
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }))
  }

  it.live("lets work in flight come to its end within the grace period", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      const { close, openSockets, pool, sql } = yield* openPool({ url, max: 3, closeTimeout: "10 seconds" })
      const work = yield* Effect.all([
        Effect.forkChild(sql`INSERT INTO t SELECT 1 FROM pg_sleep(0.4)`),
        // Its COMMIT is sent while the pool closes.
        Effect.forkChild(sql.withTransaction(Effect.andThen(
          sql`INSERT INTO t SELECT 2 FROM pg_sleep(0.2)`,
          sql`INSERT INTO t SELECT 3 FROM pg_sleep(0.2)`
        )))
      ])
      yield* eventually(
        "two at work",
        Effect.map(
          witness.value<number>(
            "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
              + " AND datname = current_database()"
          ),
          (count) => count === 2
        )
      )
      yield* close
      for (const fiber of work) assert.isTrue(Exit.isSuccess(yield* ended(fiber)))
      assert.strictEqual(openSockets(), 0)
      assert.strictEqual(yield* witness.count, 0)
      assert.strictEqual((yield* pool.stats).total, 0)
      assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM t"), 3)
    }))

  it.live("destroys what has not ended by then, also when the server sleeps in it", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      const { close, executor, openSockets, pool, sql } = yield* openPool({ url, max: 4, closeTimeout: 200 })
      const statement = yield* Effect.forkChild(executor.run(sql`INSERT INTO t SELECT 1 FROM pg_sleep(20)`))
      const transaction = yield* Effect.forkChild(executor.run(sql.withTransaction(Effect.andThen(
        sql`INSERT INTO t VALUES (2)`,
        Effect.never
      ))))
      const holder = yield* Effect.forkChild(Effect.scoped(Effect.andThen(pool.reserve(), Effect.never)))
      yield* eventually("three at work", Effect.map(pool.stats, ({ active }) => active === 3))
      yield* eventually(
        "a sleeping statement",
        Effect.map(
          witness.value<number>(
            "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
              + " AND datname = current_database()"
          ),
          (count) => count === 1
        )
      )
      yield* close
      assert.strictEqual(openSockets(), 0)
      const error = yield* Effect.flip(Fiber.join(statement))
      // Cut off, or cancelled first: it may not have been applied either way, and is not called so.
      assert.include(["OutcomeUnknown", "SqlError"], error._tag)
      yield* Fiber.interrupt(transaction)
      yield* Fiber.interrupt(holder)
      yield* eventually("no session on the server", Effect.map(witness.count, (count) => count === 0), 5)
      assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM t"), 0)
    }))

  it.live("while sessions are being opened leaves none behind", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      for (let round = 0; round < 20; round++) {
        const { close, openSockets, sql } = yield* openPool({ url, max: 8 })
        const fibers = yield* Effect.forEach(range(12), () => Effect.forkChild(Effect.exit(sql`SELECT 1`)))
        yield* Effect.sleep(round)
        yield* close
        assert.strictEqual(openSockets(), 0, `round ${round}`)
        yield* eventually("no session on the server", Effect.map(witness.count, (count) => count === 0), 5)
        for (const fiber of fibers) yield* ended(fiber)
      }
    }))

  it.live("an unused pool is closed at once, and a closed one stays closed", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { close, pool, sockets } = yield* openPool({ url })
      yield* close
      yield* close
      assert.strictEqual(sockets.length, 0)
      assert.strictEqual((yield* Effect.flip(pool.use(() => Effect.void)))._tag, "PoolClosed")
    }))

  it.live("ends listeners", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const { close, openSockets, pool } = yield* openPool({ url, max: 4, closeTimeout: 100 })
      const listening = yield* Effect.forkChild(Effect.scoped(Effect.gen(function*() {
        const { connection } = yield* pool.reserve()
        yield* connection.listen("news")
        return yield* Effect.never
      })))
      yield* eventually(
        "a listener",
        Effect.map(
          witness.value<number>(
            "SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
              + " AND datname = current_database()"
          ),
          (count) => count === 1
        )
      )
      yield* close
      assert.strictEqual(openSockets(), 0)
      yield* eventually("no session on the server", Effect.map(witness.count, (count) => count === 0), 5)
      yield* Fiber.interrupt(listening)
    }))
})

describe("a process that uses the pool", () => {
  const fixture = fileURLToPath(new URL("./fixtures/program.ts", import.meta.url))

  const launch = (how: string, url: Redacted.Redacted) =>
    soon(
      "the end of the process",
      Effect.callback<{ readonly code: number | null; readonly output: string }>((resume) => {
        const child = spawn(process.execPath, [fixture, how], {
          env: { ...process.env, NODE_OPTIONS: "", DATABASE_URL: Redacted.value(url) },
          stdio: ["ignore", "pipe", "pipe"]
        })
        let output = ""
        for (const stream of [child.stdout, child.stderr]) {
          stream.setEncoding("utf8").on("data", (text) => output += text)
        }
        child.once("close", (code) => resume(Effect.succeed({ code, output })))
        return Effect.sync(() => child.kill("SIGKILL"))
      })
    )

  for (const how of ["provide", "runtime", "reap", "after an outage", "interrupted", "busy"]) {
    it.live(`exits by itself when the layer has been closed: ${how}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const { code, output } = yield* launch(how, url)
        const [last, ...before] = output.trim().split("\n").reverse()
        assert.strictEqual(last, "done")
        // Where there was trouble the log tells of it.
        if (how !== "after an outage" && how !== "busy") assert.deepStrictEqual(before, [])
        assert.strictEqual(code, 0)
        yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
      }))
  }
})
