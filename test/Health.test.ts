import { assert, describe, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import { TestClock } from "effect/testing"
import * as prom from "prom-client"
import * as Breaker from "../src/Breaker.ts"
import * as Errors from "../src/Errors.ts"
import * as Health from "../src/Health.ts"
import * as Metrics from "../src/Metrics.ts"
import * as Pool from "../src/Pool.ts"

const quiet: Errors.PoolStats = {
  total: 3,
  idle: 3,
  active: 0,
  waiting: 0,
  connecting: 0,
  max: 10,
  min: 2,
  oldestLease: 0
}
const full: Errors.PoolStats = {
  total: 10,
  idle: 0,
  active: 10,
  waiting: 4,
  connecting: 0,
  max: 10,
  min: 2,
  oldestLease: 0
}

/** A database that can be put into every state by hand. */
const makeWorld = () => {
  const world = {
    stats: quiet,
    breaker: { _tag: "Closed", failures: 0 } as Breaker.State,
    closing: false,
    lastReplyAt: undefined as number | undefined,
    pings: 0,
    ping: Effect.void as Effect.Effect<unknown, unknown>
  }
  const sources: Health.Sources = {
    stats: Effect.sync(() => world.stats),
    breaker: Effect.sync(() => world.breaker),
    isClosing: () => world.closing,
    lastReplyAt: () => world.lastReplyAt,
    ping: Effect.suspend(() => {
      world.pings++
      return world.ping
    })
  }
  return { world, check: Effect.runSync(Health.make(sources)) }
}

const sqlError = (cause: object) => new SqlError({ reason: new UnknownError({ cause, message: "text of the server" }) })

describe("Health.make", () => {
  it.effect("a closing pool is down, whatever else is true", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      Object.assign(world, { closing: true, lastReplyAt: 0, stats: full })
      const report = yield* check
      assert.strictEqual(report.status, "down")
      assert.deepStrictEqual(report.reasons, ["The pool is closing and takes no new work."])
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("an open breaker is down without a query, even right after a success", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.breaker = { _tag: "Open", retryAfter: 12_345, lastFailure: { code: "ECONNREFUSED", message: "10.1.2.3" } }
      world.lastReplyAt = 0
      const report = yield* check
      assert.strictEqual(report.status, "down")
      assert.strictEqual(report.breaker, "Open")
      assert.strictEqual(report.retryAfter, 12_345)
      assert.deepStrictEqual(report.reasons, [
        "The circuit breaker is open after repeated failures; it lets a call through in 12.3 s."
      ])
      assert.strictEqual(world.pings, 0)
      assert.notInclude(JSON.stringify(report), "10.1.2.3")
    }))

  it.effect("an open breaker whose time is over asks, so that traffic comes back and can close it", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.breaker = { _tag: "Open", retryAfter: 0, lastFailure: null }
      const back = yield* check
      assert.strictEqual(back.status, "degraded")
      assert.strictEqual(world.pings, 1)
      assert.include(back.reasons[0], "answers again")
      world.ping = Effect.fail(sqlError({ code: "ECONNREFUSED" }))
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* check).status, "down")
    }))

  it.effect("an isolated breaker is down without a query, and says why", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.breaker = { _tag: "Isolated", reason: "moving to another host" }
      world.lastReplyAt = 0
      const report = yield* check
      assert.deepStrictEqual([report.status, report.breaker], ["down", "Isolated"])
      assert.deepStrictEqual(report.reasons, ["The circuit breaker was isolated by hand: moving to another host"])
      assert.isUndefined(report.retryAfter)
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("a disabled breaker says nothing about the database", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.breaker = { _tag: "Disabled", failures: 4 }
      world.lastReplyAt = 0
      assert.strictEqual((yield* check).status, "up")
    }))

  it.effect("a half-open breaker is degraded without a query", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.breaker = { _tag: "HalfOpen", retryAfter: 400 }
      assert.strictEqual((yield* check).status, "degraded")
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("a success within 5 seconds speaks for the database; after that it is asked", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.lastReplyAt = 0
      yield* TestClock.adjust("5 seconds")
      const report = yield* check
      assert.strictEqual(report.status, "up")
      assert.isUndefined(report.latencyMs)
      assert.strictEqual(DateTime.formatIso(report.checkedAt), "1970-01-01T00:00:05.000Z")
      assert.strictEqual(world.pings, 0)
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* check).status, "up")
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("a success that lies in the future, because the clock was set back, proves nothing", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.lastReplyAt = 60_000
      yield* check
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("a pool that is used up is degraded, not down, and is not asked", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.stats = full
      const report = yield* check
      assert.strictEqual(report.status, "degraded")
      assert.deepStrictEqual(report.pool, full)
      assert.deepStrictEqual(report.reasons, ["All 10 connections are in use and 4 callers wait; not asked."])
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("a quiet pool answers for itself, with the time that took", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.ping = Effect.sleep("40 millis")
      const fiber = yield* Effect.forkChild(check)
      yield* TestClock.adjust("40 millis")
      const report = yield* Fiber.join(fiber)
      assert.strictEqual(report.status, "up")
      assert.strictEqual(report.latencyMs, 40)
    }))

  it.effect("a silent database is down after 1 second, however long its query takes to be interrupted", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      let interrupted = false
      world.ping = Effect.never.pipe(
        Effect.onInterrupt(() => {
          interrupted = true
          return Effect.sleep("5 seconds")
        })
      )
      const fiber = yield* Effect.forkChild(check)
      yield* TestClock.adjust("999 millis")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const report = yield* Fiber.join(fiber)
      assert.strictEqual(report.status, "down")
      assert.deepStrictEqual(report.reasons, ["The database did not answer SELECT 1 within 1.0 s."])
      assert.isTrue(interrupted)
    }))

  it.effect("a probe that got stuck behind others is degraded, since busy is not down", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.ping = Effect.never
      const fiber = yield* Effect.forkChild(check)
      yield* TestClock.adjust("500 millis")
      world.stats = full
      yield* TestClock.adjust("500 millis")
      assert.strictEqual((yield* Fiber.join(fiber)).status, "degraded")

      const lastConnectFailure = null
      for (
        const [error, status] of [
          [new Errors.AcquireTimeout({ phase: "Queue", waited: 5, stats: full, lastConnectFailure }), "degraded"],
          [new Errors.PoolSaturated({ by: "Length", waiting: 4, waited: 0, maxWaiting: 4, stats: full }), "degraded"],
          [new Errors.AcquireTimeout({ phase: "Connect", waited: 5, stats: quiet, lastConnectFailure }), "down"]
        ] as const
      ) {
        const other = makeWorld()
        other.world.ping = Effect.fail(error)
        assert.strictEqual((yield* other.check).status, status)
      }
    }))

  it.effect("a failure is named by its kind and code; the server's text stays inside", () =>
    Effect.gen(function*() {
      const secret = "secret@db.internal"
      for (
        const [error, words] of [
          [sqlError({ code: "ECONNREFUSED", message: secret }), "Unreachable, ECONNREFUSED"],
          [sqlError({ code: "57P03", severity: "FATAL", message: secret }), "Unreachable, 57P03"],
          [sqlError({ code: "53300", severity: "FATAL", message: secret }), "Overloaded, 53300"],
          [sqlError({ code: "28P01", severity: "FATAL", message: secret }), "Denied, 28P01"],
          [new Errors.PoolClosed(), "PoolClosed"],
          [Errors.toSqlError(new Errors.PoolClosed()), "PoolClosed"]
        ] as const
      ) {
        const { check, world } = makeWorld()
        world.ping = Effect.fail(error)
        const report = yield* check
        assert.strictEqual(report.status, "down")
        assert.deepStrictEqual(report.reasons, [`SELECT 1 failed: ${words}.`])
        assert.notInclude(JSON.stringify(report), secret)
      }
      const { check, world } = makeWorld()
      world.ping = Effect.die(new Error(secret))
      assert.deepStrictEqual((yield* check).reasons, ["SELECT 1 was cut short."])
    }))

  it.effect("a hundred who ask at once share one query, and its answer is good for 1 second", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.ping = Effect.sleep("10 millis")
      const fiber = yield* Effect.forkChild(Effect.all(Array.from({ length: 100 }, () => check), {
        concurrency: "unbounded"
      }))
      yield* TestClock.adjust("10 millis")
      const reports = yield* Fiber.join(fiber)
      assert.isTrue(reports.every((report) => report.status === "up"))
      yield* TestClock.adjust("999 millis")
      yield* check
      assert.strictEqual(world.pings, 1)
      world.ping = Effect.fail(sqlError({ code: "ECONNREFUSED" }))
      yield* TestClock.adjust("1 millis")
      assert.strictEqual((yield* check).status, "down")
      assert.strictEqual((yield* check).status, "down")
      assert.strictEqual(world.pings, 2)
    }))

  it.effect("one who stops waiting does not take the answer from the others", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.ping = Effect.sleep("10 millis")
      const first = yield* Effect.forkChild(check)
      const second = yield* Effect.forkChild(check)
      yield* TestClock.adjust("5 millis")
      yield* Fiber.interrupt(first)
      yield* TestClock.adjust("5 millis")
      assert.strictEqual((yield* Fiber.join(second)).status, "up")
      assert.strictEqual(world.pings, 1)
    }))
})

/** A pool and a breaker of which only the parts that a check looks at exist. */
const services = (state: {
  stats?: Errors.PoolStats
  breaker?: Breaker.State
  lastReplyAt?: number
  ping?: Effect.Effect<never, Errors.PoolClosed>
}) =>
  Layer.mergeAll(
    Layer.mock(Pool.Pool, {
      name: "main",
      settings: {} as Pool.Pool["Service"]["settings"],
      stats: Effect.succeed(state.stats ?? quiet),
      statsUnsafe: () => state.stats ?? quiet,
      connectPauseUnsafe: () => 0,
      leavingUnsafe: () => 0,
      lastProofUnsafe: () => state.lastReplyAt,
      isClosing: () => false,
      evictUnsafe: () => {},
      use: () => state.ping ?? Effect.die("not to be asked")
    }),
    Layer.mock(Breaker.Breaker, {
      key: "default",
      state: Effect.sync((): Breaker.State => state.breaker ?? { _tag: "Closed", failures: 0 }),
      withPermit: () => assert.fail("not to be touched"),
      closedPermitUnsafe: () => assert.fail("not to be touched"),
      isCalmUnsafe: () => assert.fail("not to be touched"),
      settleUnsafe: () => assert.fail("not to be touched"),
      stateUnsafe: () => state.breaker ?? { _tag: "Closed", failures: 0 },
      probeTimeout: 2_000
    })
  )

const request = (routes: Layer.Layer<never, unknown, HttpRouter.HttpRouter>, path: string, method = "GET") =>
  Effect.acquireUseRelease(
    Effect.sync(() => HttpRouter.toWebHandler(routes, { disableLogger: true })),
    ({ handler }) =>
      Effect.promise(async () => {
        const response = await handler(new Request(`http://localhost${path}`, { method }))
        return { status: response.status, headers: response.headers, text: await response.text() }
      }),
    ({ dispose }) => Effect.promise(dispose)
  )

describe("Health.check", () => {
  it.effect("looks at the pool and the breaker of its context", () =>
    Effect.gen(function*() {
      const down = yield* Health.check.pipe(Effect.provide(services({ ping: Effect.fail(new Errors.PoolClosed()) })))
      assert.strictEqual(down.status, "down")
      const up = yield* Health.check.pipe(Effect.provide(services({ lastReplyAt: 0 })))
      assert.strictEqual(up.status, "up")
      assert.deepStrictEqual(up.pool, quiet)
    }))
})

describe("Health.layerRoutes", () => {
  it.effect("200 and the report when the database is up", () =>
    Effect.gen(function*() {
      const routes = Health.layerRoutes().pipe(Layer.provide(services({ lastReplyAt: Date.now() })))
      const response = yield* request(routes, "/health/database")
      assert.strictEqual(response.status, 200)
      assert.strictEqual(response.headers.get("content-type"), "application/health+json")
      assert.strictEqual(response.headers.get("cache-control"), "no-store")
      const { checkedAt, reasons, ...rest } = JSON.parse(response.text)
      assert.deepStrictEqual(rest, { status: "up", pool: quiet, breaker: "Closed" })
      assert.strictEqual(reasons.length, 1)
      assert.match(checkedAt, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/)
    }))

  it.effect("200 when it is degraded: busy is not down", () =>
    Effect.gen(function*() {
      const response = yield* request(
        Health.layerRoutes().pipe(Layer.provide(services({ stats: full }))),
        "/health/database"
      )
      assert.strictEqual(response.status, 200)
      assert.strictEqual(JSON.parse(response.text).status, "degraded")
    }))

  it.effect("503 when it is down, with the time to come back, and nothing about the server", () =>
    Effect.gen(function*() {
      const lastFailure = { code: "ECONNREFUSED", message: "connect ECONNREFUSED 10.1.2.3:5432 user shop" }
      const routes = Health.layerRoutes().pipe(
        Layer.provide(services({ breaker: { _tag: "Open", retryAfter: 12_345, lastFailure } }))
      )
      const response = yield* request(routes, "/health/database")
      assert.strictEqual(response.status, 503)
      assert.strictEqual(response.headers.get("retry-after"), "13")
      for (const word of ["10.1.2.3", "5432", "shop"]) assert.notInclude(response.text, word)
    }))

  it.effect("HEAD is answered like GET, without a body", () =>
    Effect.gen(function*() {
      const routes = Health.layerRoutes().pipe(Layer.provide(services({ stats: full })))
      const response = yield* request(routes, "/health/database", "HEAD")
      assert.deepStrictEqual([response.status, response.text], [200, ""])
    }))

  it.effect("/metrics serves the text of an Effect", () =>
    Effect.gen(function*() {
      const routes = Health.layerRoutes({ metrics: Metrics.render }).pipe(
        Layer.provide([services({}), Metrics.layer({ name: "main" })])
      )
      const response = yield* request(routes, "/metrics")
      assert.strictEqual(response.status, 200)
      assert.strictEqual(response.headers.get("content-type"), "text/plain; version=0.0.4; charset=utf-8")
      assert.include(response.text, "db_pool_size{pool=\"main\",state=\"total\"} 0")
    }))

  it.effect("/metrics serves a registry, under its own content type", () =>
    Effect.gen(function*() {
      const register = new prom.Registry()
      new prom.Counter({ name: "orders_total", help: "Orders", registers: [register] }).inc(3)
      const routes = Health.layerRoutes({ metrics: register }).pipe(
        Layer.merge(Metrics.layerPromClient({ register })),
        Layer.provide([services({}), Metrics.layer({ name: "main" })])
      )
      const response = yield* request(routes, "/metrics")
      assert.strictEqual(response.headers.get("content-type"), register.contentType)
      assert.include(response.text, "orders_total 3")
      assert.include(response.text, "db_pool_size{pool=\"main\",state=\"total\"} 0")
    }))

  it.effect("a registry that cannot be read is a 500 without its error, and the next route is unharmed", () =>
    Effect.gen(function*() {
      const register = new prom.Registry()
      new prom.Gauge({
        name: "bad",
        help: "Bad",
        registers: [register],
        collect() {
          throw new Error("secret of the host")
        }
      })
      const routes = Health.layerRoutes({ metrics: register }).pipe(
        Layer.provide([services({ stats: full }), Logger.layer([])])
      )
      const response = yield* request(routes, "/metrics")
      assert.strictEqual(response.status, 500)
      assert.notInclude(response.text, "secret")
      assert.strictEqual((yield* request(routes, "/health/database")).status, 200)
    }))

  it.effect("there is no /metrics unless asked for", () =>
    Effect.gen(function*() {
      const response = yield* request(Health.layerRoutes().pipe(Layer.provide(services({}))), "/metrics")
      assert.strictEqual(response.status, 404)
    }))
})
