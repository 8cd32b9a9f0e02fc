import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { EmbeddedPostgres } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { createServer } from "node:http"
import * as Pg from "../../src/index.ts"
import { makeCluster } from "./cluster.ts"
import { databaseUrl, freshDatabase } from "./database.ts"
import { makePgBouncer } from "./pgbouncer.ts"
import { makeImpostor, makeProxy } from "./proxy.ts"
import { eventually, makeWitness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  /** Parsed when it is JSON. */
  readonly body: { readonly [key: string]: unknown }
}

const fetched = (url: string) =>
  Effect.promise(async (): Promise<Answer> => {
    const response = await fetch(url)
    const text = await response.text()
    const isJson = response.headers.get("content-type")?.includes("json") === true
    return { status: response.status, headers: response.headers, text, body: isJson ? JSON.parse(text) : {} }
  })

/** An application with a pool, which tells of its health over HTTP. */
const serve = Effect.fnUntraced(function*(
  options: Pg.Options,
  routes: Omit<Pg.Health.RoutesOptions<never, Pg.Errors.InvalidOption>, "pools"> & {
    readonly monitor?: Pg.Health.Options
  } = {}
) {
  const context = yield* Layer.build(
    HttpRouter.serve(
      Pg.Health.layerRoutes(
        routes.monitor === undefined ? routes : { ...routes, pools: Pg.Health.monitor(routes.monitor) }
      ),
      { disableLogger: true, disableListenLog: true }
    ).pipe(
      Layer.provideMerge(Pg.layer({ closeTimeout: 100, retry: false, ...options })),
      Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
    )
  )
  return yield* Effect.gen(function*() {
    const address = yield* HttpServer.addressFormattedWith(Effect.succeed)
    const get = (path: string) => fetched(address + path)
    return {
      get,
      health: get("/health/database"),
      state: Effect.map(get("/health/database"), ({ body, status }) => [status, body["state"]]),
      sql: yield* SqlClient,
      pool: yield* Pg.Pool.Pool,
      breaker: yield* Pg.Breaker.Breaker
    }
  }).pipe(Effect.provideContext(context))
})

/** A machine that is busy with other tests must not be taken for a database that is down. */
const patient = { monitor: { deadline: "10 seconds" } } as const

const unreachable = { code: "ECONNREFUSED", message: "connect ECONNREFUSED 10.1.2.3:5432" }

const openCircuit = (breaker: Pg.Breaker.Breaker["Service"]) =>
  Effect.sync(() => {
    const permit = breaker.closedPermitUnsafe()
    if (permit === undefined) return assert.fail("the circuit was not closed")
    for (const source of range(5)) breaker.settleUnsafe(permit, "Failure", Date.now(), { ...unreachable, source })
  })

describe("a pool that nobody uses", () => {
  it.live("is asked once by a hundred who want to know, opened for it or not, and tells what it has found", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { get, health, pool } = yield* serve({ url: proxy.url, name: "main", max: 4 }, patient)
      const answers = yield* Effect.all(range(100).map(() => health), { concurrency: "unbounded" })
      for (const { body, status } of answers) assert.deepStrictEqual([status, body["state"]], [200, "up"])
      assert.strictEqual(proxy.statements(), 1)
      assert.strictEqual((yield* pool.stats).total, 1)
      assert.strictEqual(proxy.mostSessions(), 1)

      // Its answer is traffic like any other from now on.
      const { body } = yield* health
      assert.strictEqual(proxy.statements(), 1)
      assert.include((body["reasons"] as Array<string>)[0], "The database answered")
      assert.deepStrictEqual(body["server"], { role: "primary" })
      assert.isString(body["lastSuccessAt"])
      for (const path of ["/livez", "/readyz", "/metrics"]) yield* get(path)
      assert.strictEqual(proxy.statements(), 1)
    }))

  it.live("has a connection that has fallen silent replaced by the question, and is up", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { get, sql } = yield* serve({ url: proxy.url, max: 4 }, patient)
      yield* sql`SELECT 1`
      let isFirst = true
      proxy.onRequest((_, link) => {
        // The session that is open goes silent; what is opened next works.
        if (isFirst) link.mute()
        isFirst = false
        return "pass"
      })
      const { body, status } = yield* get("/health/database?probe=1")
      assert.deepStrictEqual([status, body["state"]], [200, "up"])
      assert.strictEqual(proxy.accepted(), 2)
    }))

  it.live("is left alone with probe: false, and opens nothing", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { get, state } = yield* serve({ url: proxy.url, max: 4 }, {
        monitor: { ...patient.monitor, probe: false }
      })
      assert.deepStrictEqual(yield* state, [200, "up"])
      assert.strictEqual((yield* get("/readyz")).status, 200)
      assert.strictEqual(proxy.accepted(), 0)
      assert.strictEqual((yield* get("/health/database?probe=1")).body["state"], "up")
      assert.strictEqual(proxy.accepted(), 1)
    }))

  it.live("can be asked although it has one connection at most", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { state } = yield* serve({ url: proxy.url, max: 1 }, patient)
      assert.deepStrictEqual(yield* state, [200, "up"])
      assert.strictEqual(proxy.statements(), 1)
      assert.strictEqual(proxy.mostSessions(), 1)
    }))
})

describe("a pool that is used", () => {
  it.live("is not asked", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { get, health, sql } = yield* serve({ url: proxy.url, max: 4 })
      yield* sql`SELECT 1`
      const before = proxy.statements()
      assert.deepInclude((yield* health).body, { state: "up", status: "pass" })
      assert.strictEqual((yield* get("/readyz")).status, 200)
      assert.strictEqual(proxy.statements(), before)
      yield* sql`SELECT 1`
      assert.isNumber((yield* health).body["trafficLatencyMs"])
    }))

  it.live("is up by what a long transaction is answered, though no connection has come back for long", () =>
    Effect.gen(function*() {
      const { pool, sql, state } = yield* serve(
        { url: yield* freshDatabase, max: 1 },
        { monitor: { freshFor: "2 seconds" } }
      )
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT 1`
        yield* Effect.sleep("2500 millis")
        assert.strictEqual((yield* pool.stats).active, 1)
        assert.deepStrictEqual(yield* state, [200, "degraded"])
        yield* sql`SELECT 1`
        assert.deepStrictEqual(yield* state, [200, "up"])
      }))
    }))

  it.live("keeps its last free connection for borrowers, even from those who insist", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { get, pool } = yield* serve({ url: proxy.url, max: 3 })
      const lent = yield* Scope.fork(yield* Effect.scope)
      yield* Scope.provide(pool.reserve(), lent)
      yield* Scope.provide(pool.reserve(), lent)
      const before = proxy.statements()
      const kept = yield* get("/health/database?probe=1")
      assert.deepInclude(kept.body, { state: "degraded" })
      assert.include(
        kept.body["reasons"],
        "The last free connection is kept for borrowers; the database was not asked."
      )
      assert.strictEqual(proxy.statements(), before)
      assert.strictEqual(proxy.open(), 2)
      yield* pool.use(() => Effect.void, { timeout: "5 seconds" })
    }))

  it.live("and used up while callers wait, is degraded and not down, and is not asked", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { get, pool, sql } = yield* serve({ url: proxy.url, max: 2 })
      const lent = yield* Scope.fork(yield* Effect.scope)
      yield* Scope.provide(pool.reserve(), lent)
      yield* Scope.provide(pool.reserve(), lent)
      const waiter = yield* Effect.forkChild(sql`SELECT 1`)
      yield* eventually("somebody who waits", Effect.map(pool.stats, ({ waiting }) => waiting === 1))
      const before = proxy.statements()
      for (const path of ["/health/database", "/health/database?probe=1", "/readyz"]) {
        const { body, status } = yield* get(path)
        assert.deepStrictEqual([status, body["status"], body["state"]], [200, "warn", "degraded"])
      }
      assert.strictEqual(proxy.statements(), before)
      yield* Scope.close(lent, yield* Effect.exit(Effect.void))
      yield* Fiber.join(waiter)
    }))
})

describe("a database that is gone", () => {
  it.live("is down when it is stopped or frozen, and up when it is back", () =>
    Effect.gen(function*() {
      const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
      const { breaker, get, sql } = yield* serve({ url: server.url, max: 4, connectTimeout: "2 seconds" })
      const probe = Effect.map(get("/health/database?probe=1"), ({ body, status }) => [status, body["state"]])
      yield* sql`SELECT 1`
      const before = yield* breaker.snapshot
      yield* server.stop
      yield* eventually("the end", Effect.map(probe, ([status]) => status === 503))
      const down = yield* get("/health/database?probe=1")
      assert.strictEqual(down.body["status"], "fail")
      assert.isNotNull(down.headers.get("retry-after"))
      assert.deepInclude(down.body["lastFailure"], { kind: "Unreachable" })
      assert.isString(down.body["lastSuccessAt"])
      assert.strictEqual((yield* get("/readyz")).status, 503)
      assert.strictEqual((yield* get("/livez")).status, 200)

      yield* server.start
      yield* eventually("its return", Effect.map(probe, ([status]) => status === 200))

      yield* server.pause
      yield* eventually("silence", Effect.map(probe, ([, state]) => state === "down"))
      yield* server.resume
      yield* eventually("its return", Effect.map(probe, ([status]) => status === 200))

      // All of that has neither opened nor closed anything.
      assert.deepStrictEqual((yield* breaker.snapshot).circuit, before.circuit)
    }))

  it.live("is down when a pooler in front of it takes connections and answers nothing", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("is silent")
      const { health } = yield* serve({ url: impostor.url, max: 4, connectTimeout: "5 seconds" })
      const { body, status } = yield* health
      assert.deepStrictEqual([status, body["state"]], [503, "down"])
      assert.include(body["reasons"], "The database did not answer SELECT 1 within 1.0 s.")
    }))

  it.live("is down when a pooler goes on opening sessions that nobody answers, and up when it answers again", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer()
      // To be told what the server is, a pooler must have seen it once.
      const before = yield* serve({ url: bouncer.through(databaseUrl), max: 4, pooler: "transaction" })
      yield* before.sql`SELECT 1`
      const { get, health, pool } = yield* serve({ url: bouncer.through(databaseUrl), max: 4, pooler: "transaction" })
      yield* bouncer.say("PAUSE")
      yield* pool.warm(1)
      const { body, status } = yield* health
      assert.deepStrictEqual([status, body["state"]], [503, "down"])
      assert.notProperty(body, "lastSuccessAt")
      yield* bouncer.say("RESUME")
      yield* eventually("an answer", Effect.map(get("/health/database?probe=1"), ({ status }) => status === 200))
    }))

  it.live("is told of without host, user, database or password, but to those who may know", () =>
    Effect.gen(function*() {
      const witness = yield* makeWitness(databaseUrl)
      const suffix = Math.floor(Math.random() * 1e9).toString(36)
      const [user, database, password] = [`clerk_${suffix}`, `shop_${suffix}`, `hunter2_${suffix}`]
      yield* Effect.acquireRelease(
        witness.query(`CREATE ROLE ${user} LOGIN PASSWORD '${password}'`),
        () => Effect.orDie(witness.query(`DROP ROLE ${user}`))
      )
      const url = new URL(Redacted.value(databaseUrl))
      Object.assign(url, { username: user, password, pathname: `/${database}` })
      const { port } = url
      const options = { url: Redacted.make(url.href), name: "main" }
      const secrets = [user, database, password, "127.0.0.1", port, "does not exist"]

      const closed = yield* serve(options)
      for (const path of ["/health/database", "/health/database/main", "/readyz", "/livez"]) {
        const { headers, status, text } = yield* closed.get(path)
        assert.strictEqual(status, path === "/livez" ? 200 : 503)
        const all = `${text} ${JSON.stringify(Object.fromEntries(headers))}`
        for (const secret of secrets) assert.notInclude(all, secret)
      }
      const { body } = yield* closed.health
      assert.deepInclude(body["lastFailure"], { kind: "Denied", code: "3D000" })

      const open = yield* (yield* serve(options, { details: true })).health
      assert.deepInclude(open.body["details"], { hosts: [`127.0.0.1:${port}`], database, username: user })
      assert.include(open.text, "does not exist")
      assert.notInclude(open.text, password)
    }))
})

describe("a circuit breaker", () => {
  it.live("that is open is down without a query, and asked when its time is over: then it is degraded until a call closes it", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { breaker, get, health, sql, state } = yield* serve({
        url: proxy.url,
        max: 4,
        breaker: { openFor: "3 seconds", jitter: "none" }
      }, patient)
      yield* openCircuit(breaker)
      const { body, headers, status, text } = yield* get("/health/database?probe=1")
      assert.deepStrictEqual([status, body["breaker"]], [503, "Open"])
      assert.match(headers.get("retry-after") ?? "", /^[123]$/)
      assert.notInclude(text, "10.1.2.3")
      assert.strictEqual(proxy.accepted(), 0)

      yield* eventually("a question", Effect.map(state, ([status]) => status === 200))
      const due = yield* health
      assert.deepStrictEqual([due.body["state"], due.body["breaker"]], ["degraded", "Open"])
      assert.include(due.body["reasons"], "The database answers again; the circuit breaker closes with the next call.")
      assert.strictEqual((yield* breaker.state)._tag, "Open")
      yield* sql`SELECT 1`
      assert.deepStrictEqual(yield* state, [200, "up"])
    }))

  it.live("that is half open is degraded without a query", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { breaker, get } = yield* serve({
        url: proxy.url,
        max: 4,
        breaker: { openFor: "50 millis", jitter: "none" }
      })
      yield* openCircuit(breaker)
      yield* Effect.sleep(100)
      const probing = yield* Effect.forkChild(breaker.withPermit(() => Effect.never), { startImmediately: true })
      assert.strictEqual((yield* breaker.state)._tag, "HalfOpen")
      const { body, status } = yield* get("/health/database?probe=1")
      assert.deepStrictEqual([status, body["state"], body["breaker"]], [200, "degraded", "HalfOpen"])
      assert.strictEqual(proxy.accepted(), 0)
      yield* Fiber.interrupt(probing)
    }))

  it.live("keeps counting as if nobody had asked: a probe neither ends a streak of failures nor adds to it", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const { breaker, get } = yield* serve({ url: proxy.url, max: 4 }, patient)
      const permit = breaker.closedPermitUnsafe()
      if (permit === undefined) return assert.fail("the circuit was not closed")
      for (const source of range(4)) breaker.settleUnsafe(permit, "Failure", Date.now(), { ...unreachable, source })
      assert.strictEqual((yield* get("/health/database?probe=1")).status, 200)
      assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 4 })
      proxy.onRequest((_, link) => {
        link.cut()
        return "drop"
      })
      yield* eventually("a failure", Effect.map(get("/health/database?probe=1"), ({ status }) => status === 503))
      assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 4 })
    }))
})

describe("a pool that drains", () => {
  it.live("is not ready from that moment on, while its work goes on and the process lives", () =>
    Effect.gen(function*() {
      const { get, health, pool, sql } = yield* serve({ url: yield* freshDatabase, max: 4 })
      const work = yield* Effect.forkChild(sql`SELECT pg_sleep(0.7), 'done' AS work`)
      yield* eventually("work", Effect.map(pool.stats, ({ active }) => active === 1))
      assert.strictEqual((yield* get("/readyz")).status, 200)
      const draining = yield* Effect.forkChild(pool.drain("10 seconds"), { startImmediately: true })
      const ready = yield* get("/readyz")
      assert.deepStrictEqual([ready.status, ready.body["status"]], [503, "fail"])
      assert.include((yield* health).body["reasons"], "The pool is closing and takes no new work.")
      assert.strictEqual((yield* get("/livez")).status, 200)
      assert.strictEqual((yield* Fiber.join(work))[0]?.["work"], "done")
      assert.strictEqual(yield* Fiber.join(draining), 0)
    }))
})

describe("a standby", () => {
  it.live("says so, and so does the primary; what is promoted is the primary from then on", () =>
    Effect.gen(function*() {
      const { primary, standby } = yield* makeCluster
      const role = (url: Redacted.Redacted) =>
        Effect.map(serve({ url, max: 2 }, { ...patient, details: true }), ({ get }) => ({
          get,
          role: Effect.map(
            get("/health/database?probe=1"),
            ({ body }) => (body["server"] as Pg.Health.Report["server"])?.role
          )
        }))
      const [first, second] = yield* Effect.all([role(primary.url), role(standby.url)])
      assert.deepStrictEqual(yield* Effect.all([first.role, second.role]), ["primary", "standby"])
      const { body } = yield* first.get("/health/database")
      assert.match((body["server"] as { version: string }).version, /^\d+/)
      yield* standby.promote
      yield* eventually("the primary", Effect.map(second.role, (role) => role === "primary"))
    }))
})

describe("a plain handler behind node:http", () => {
  it.live("answers over a socket of its own, and is not ready once the runtime has ended", () =>
    Effect.gen(function*() {
      const runtime = ManagedRuntime.make(Pg.layer({ url: yield* freshDatabase, name: "main", max: 4 }))
      const health = Pg.Health.toWebHandler(runtime, {
        metrics: Pg.Metrics.render,
        pools: Pg.Health.monitor(patient.monitor)
      })
      const server = createServer(async ({ headers, method = "GET", url = "/" }, outgoing) => {
        const { authorization = "" } = headers
        const request = new Request(new URL(url, "http://localhost"), { method, headers: { authorization } })
        const response = await health(request)
        outgoing.writeHead(response.status, Object.fromEntries(response.headers))
        outgoing.end(await response.text())
      })
      const port = yield* Effect.acquireRelease(
        Effect.callback<number>((resume) => {
          server.listen(0, "127.0.0.1", () => resume(Effect.succeed((server.address() as { port: number }).port)))
        }),
        () =>
          Effect.sync(() => {
            server.close()
            server.closeAllConnections()
          })
      )
      const get = (path: string) => fetched(`http://127.0.0.1:${port}${path}`)
      for (const path of ["/health/database", "/health/database/main", "/readyz", "/livez", "/metrics"]) {
        assert.strictEqual((yield* get(path)).status, 200, path)
      }
      assert.include((yield* get("/metrics")).text, "db_pool_size{pool=\"main\",state=\"total\"} 1")
      assert.strictEqual((yield* get("/elsewhere")).status, 404)
      yield* runtime.disposeEffect
      assert.strictEqual((yield* get("/readyz")).status, 503)
      assert.strictEqual((yield* get("/livez")).status, 200)
    }))
})
