/** A pool as the serverless environment around it sees it: what is left of it after a freeze, and what goes before one. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Net from "node:net"
import * as Pg from "../../src/index.ts"
import * as Roster from "../../src/internal/roster.ts"
import { freshDatabase } from "./database.ts"
import { isCancelRequest, makeProxy } from "./proxy.ts"
import { ended, eventually, makeWitness, soon } from "./witness.ts"

/** A database behind a proxy, and somebody who looks into it past the proxy. */
const makeGate = Effect.gen(function*() {
  const url = yield* freshDatabase
  return { proxy: yield* makeProxy(url), witness: yield* makeWitness(url) }
})

/** A layer built in an environment, and the one pool that it has made there. */
const lodge = Effect.fnUntraced(function*(options: Pg.Pool.Options, scope?: Scope.Scope) {
  const roster = Roster.make()
  const layer = Pg.layer({ retry: false, breaker: false, idleTimeout: "1 hour", ...options })
  const building = Layer.buildWithScope(layer, scope ?? (yield* Effect.scope))
  const context = yield* Effect.provideService(building, Roster.Current, roster)
  const [lodger] = roster.lodgers
  assert.isDefined(lodger)
  return {
    roster,
    lodger,
    pool: Context.get(context, Pg.Pool.Pool),
    sql: Context.get(context, PgClient.PgClient),
    executor: Context.get(context, Pg.Executor.Executor)
  }
})

const pidOf = (sql: PgClient.PgClient) =>
  Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, ([row]) => row!.pid)

/** Milliseconds. */
/**
 * Whether it has ended before the second that the end of a session gets otherwise: that one begins later than this one, so
 * whatever waits for it comes second on a slow computer, too.
 */
const endsEarly = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.raceFirst(Effect.as(Effect.sleep("1 second"), false), Effect.as(effect, true))

/** A pool whose one session has been used, and whose link has lost everything since without a word. */
const silenced = Effect.gen(function*() {
  const { proxy } = yield* makeGate
  let first: (() => void) | undefined
  proxy.onRequest((_, link) => {
    first ??= link.blackhole
    return "pass"
  })
  const lodging = yield* lodge({ url: proxy.url, max: 1 })
  yield* lodging.sql`SELECT 1`
  first!()
  return lodging
})

describe("a pool made in an environment", () => {
  it.live("stands in its roster until its scope has closed, and no longer", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const scope = yield* Scope.make()
      const { lodger, roster, sql } = yield* lodge({ url, applicationName: "orders", idleTimeout: 5000 }, scope)
      assert.strictEqual(lodger.name, "orders")
      assert.strictEqual(lodger.idleTimeout, 5000)
      assert.isUndefined(lodger.serverUtilisation())
      assert.deepStrictEqual([lodger.active(), lodger.idle()], [0, 0])
      yield* sql.withTransaction(Effect.sync(() => assert.deepStrictEqual([lodger.active(), lodger.idle()], [1, 0])))
      assert.deepStrictEqual([lodger.active(), lodger.idle()], [0, 1])
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(roster.lodgers.size, 0)
    }))

  it.live("is there for what cuts its work off while it closes", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const scope = yield* Scope.make()
      const { lodger, sql } = yield* lodge({ url, closeTimeout: "20 seconds" }, scope)
      const work = yield* Effect.forkChild(Effect.exit(sql`SELECT pg_sleep(20)`))
      yield* eventually("it runs", Effect.map(witness.count, (count) => count === 1))
      yield* eventually("it is lent", Effect.sync(() => lodger.active() === 1))
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      assert.strictEqual(yield* lodger.destroyBusy, 1)
      assert.strictEqual((yield* soon("its end", Fiber.join(work), 5))._tag, "Failure")
      yield* ended(closing, 8)
    }))
})

describe("after a freeze, a session that had been idle for longer than staleAfter", () => {
  it.live("is let go of by a server that is there, before another one is opened", () =>
    Effect.gen(function*() {
      const { proxy, witness } = yield* makeGate
      const watch = yield* witness.watch
      const { lodger, sql } = yield* lodge({ url: proxy.url, max: 1 })
      const before = yield* pidOf(sql)
      yield* Effect.sleep(20)
      yield* lodger.thaw(1)
      assert.strictEqual(lodger.idle(), 0)
      assert.strictEqual(proxy.open(), 1 - 1)
      assert.notStrictEqual(yield* pidOf(sql), before)
      assert.isAtMost(proxy.mostSessions(), 1)
      assert.isAtMost(watch.most(), 1)
    }))

  it.live("does not keep its place from the next one when the server had ended it meanwhile", () =>
    Effect.gen(function*() {
      const { proxy, witness } = yield* makeGate
      const { lodger, sql } = yield* lodge({ url: proxy.url, max: 1 })
      yield* sql`SELECT 1`
      yield* witness.terminate(yield* witness.sessions)
      yield* lodger.thaw(0)
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.live("does not keep its place from the next one when its link was lost without a word", () =>
    Effect.gen(function*() {
      const { lodger, pool, sql } = yield* silenced
      yield* Effect.sleep(2)
      assert.isTrue(yield* endsEarly(lodger.thaw(1)))
      assert.strictEqual(pool.leavingUnsafe(), 0)
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.live("waits for no hook, which could only ask a server that may be gone", () =>
    Effect.gen(function*() {
      const { proxy } = yield* makeGate
      let asked = 0
      const { lodger, sql } = yield* lodge({
        url: proxy.url,
        max: 1,
        beforeDisconnect: (connection) => Effect.suspend(() => (asked++, connection.query("SELECT 1")))
      })
      yield* sql`SELECT 1`
      yield* Effect.sleep(2)
      yield* lodger.thaw(1)
      assert.strictEqual(asked, 0)
    }))
})

describe("after a freeze, a session that had been idle for less than staleAfter", () => {
  it.live("is proved before it is lent, once, however recently it was used", () =>
    Effect.gen(function*() {
      const { proxy } = yield* makeGate
      const { lodger, sql } = yield* lodge({ url: proxy.url, max: 1 })
      const pid = yield* pidOf(sql)
      yield* lodger.thaw(60_000)
      const before = proxy.statements()
      assert.strictEqual(yield* pidOf(sql), pid)
      assert.strictEqual(proxy.statements() - before, 2)
      assert.strictEqual(yield* pidOf(sql), pid)
      assert.strictEqual(proxy.statements() - before, 3)
    }))

  it.live("is replaced without anybody noticing when its link was lost without a word", () =>
    Effect.gen(function*() {
      const { proxy } = yield* makeGate
      let first: (() => void) | undefined
      proxy.onRequest((_, link) => {
        first ??= link.blackhole
        return "pass"
      })
      const { lodger, sql } = yield* lodge({ url: proxy.url, max: 2, validationTimeout: 100 })
      const pid = yield* pidOf(sql)
      first!()
      yield* lodger.thaw(60_000)
      assert.notStrictEqual(yield* soon("an answer", pidOf(sql), 8), pid)
    }))

  it.live("and one that is lent is left alone", () =>
    Effect.gen(function*() {
      const { proxy } = yield* makeGate
      const { lodger, sql } = yield* lodge({ url: proxy.url, max: 1 })
      yield* sql.withTransaction(Effect.gen(function*() {
        const pid = yield* pidOf(sql)
        yield* Effect.sleep(5)
        yield* lodger.thaw(0)
        assert.strictEqual(yield* pidOf(sql), pid)
      }))
      // BEGIN with the first statement, the second one, and COMMIT.
      assert.strictEqual(proxy.statements(), 3)
    }))
})

describe("destroyBusy", () => {
  it.live("fails whoever waits for an answer at once, and the server ends what it executes for them", () =>
    Effect.gen(function*() {
      const { proxy, witness } = yield* makeGate
      let cancels = 0
      proxy.onRequest((bytes) => {
        if (isCancelRequest(bytes)) cancels++
        return "pass"
      })
      const { lodger, sql } = yield* lodge({ url: proxy.url, max: 3 })
      yield* sql`SELECT 1`
      const sleepers = `SELECT count(*)::int FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'PgSleep'`
      const work = yield* Effect.forEach([1, 2], () => Effect.forkChild(Effect.exit(sql`SELECT pg_sleep(20)`)))
      yield* eventually("they run", Effect.map(witness.value<number>(sleepers), (count) => count === 2))
      assert.strictEqual(yield* lodger.destroyBusy, 2)
      for (const fiber of work) {
        assert.strictEqual((yield* soon("its end", Fiber.join(fiber), 2))._tag, "Failure")
      }
      yield* eventually("nobody sleeps", Effect.map(witness.value<number>(sleepers), (count) => count === 0), 5)
      assert.strictEqual(cancels, 2)
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.live("leaves what is idle alone, and rolls an open transaction back", () =>
    Effect.gen(function*() {
      const { proxy, witness } = yield* makeGate
      yield* witness.query("CREATE TABLE t (n int)")
      const { lodger, pool, sql } = yield* lodge({ url: proxy.url, max: 2 })
      yield* pool.warm(2)
      const exit = yield* Effect.exit(sql.withTransaction(Effect.gen(function*() {
        yield* sql`INSERT INTO t VALUES (1)`
        assert.strictEqual(yield* lodger.destroyBusy, 1)
        assert.strictEqual(lodger.idle(), 1)
        yield* sql`SELECT 1`
      })))
      assert.strictEqual(exit._tag, "Failure")
      assert.strictEqual(yield* witness.value("SELECT count(*)::int FROM t"), 0)
      assert.strictEqual(yield* lodger.destroyBusy, 0)
    }))

  it.live("asks for that at once: this process may be stopped the next moment", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { hostname, port } = new URL(Redacted.value(url))
      let sockets = 0
      const stream = () => {
        sockets++
        return Net.connect({ host: hostname, port: Number(port) })
      }
      const { lodger, sql } = yield* lodge({ url, stream, max: 1 })
      const work = yield* Effect.forkChild(Effect.exit(sql`SELECT pg_sleep(20)`))
      yield* eventually("it is lent", Effect.sync(() => lodger.active() === 1))
      const before = sockets
      yield* lodger.destroyBusy
      // The first CancelRequest of an ordinary end comes half a second later.
      yield* Effect.sleep(0)
      assert.strictEqual(sockets, before + 1)
      yield* ended(work)
    }))
})

describe("closeIdle", () => {
  it.live("has succeeded when the server lists nobody any more; what is lent goes on", () =>
    Effect.gen(function*() {
      const { proxy, witness } = yield* makeGate
      const { lodger, pool, sql } = yield* lodge({ url: proxy.url, max: 3 })
      yield* pool.warm(3)
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* lodger.closeIdle(10_000)
        assert.strictEqual(yield* witness.count, 1)
        assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
      }))
      yield* lodger.closeIdle(10_000)
      assert.strictEqual(yield* witness.count, 0)
      assert.strictEqual(pool.leavingUnsafe(), 0)
    }))

  it.live("destroys what has not gone in time", () =>
    Effect.gen(function*() {
      const { lodger, pool } = yield* silenced
      assert.isTrue(yield* endsEarly(lodger.closeIdle(100)))
      assert.strictEqual(pool.leavingUnsafe(), 0)
    }))
})
