import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { isSqlError } from "effect/sql/SqlError"
import { readFileSync } from "node:fs"
import * as prom from "prom-client"
import * as Pg from "../../src/index.ts"
import { FaultProxy } from "../../src/testing/index.ts"
import { complaintsAbout } from "../promtool.ts"
import { freshDatabase } from "./database.ts"
import { chance, ended, eventually, makeWitness } from "./witness.ts"

/** The samples of a page, by their name and labels. */
const samplesOf = (page: string): ReadonlyMap<string, number> =>
  new Map(
    page.split("\n").filter((line) => line !== "" && !line.startsWith("#")).map((line) => {
      const space = line.lastIndexOf(" ")
      return [line.slice(0, space).replace(/pool="[^"]*",?/, ""), Number(line.slice(space + 1))] as const
    })
  )

const scrape = Effect.map(Pg.Metrics.render, (page) => {
  const samples = samplesOf(page)
  return (name: string): number => samples.get(name) ?? assert.fail(`there is no ${name}`)
})

describe("utilisation", () => {
  it.live("of a lazily grown pool is 100 % over all connections, and the truth over the most it may have", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* Effect.scoped(Effect.gen(function*() {
          yield* pool.get()
          const value = yield* scrape
          assert.strictEqual(yield* witness.count, 1)
          assert.strictEqual(value("db_pool_size{state=\"active\"}") / value("db_pool_size{state=\"total\"}"), 1)
          assert.strictEqual(value("db_pool_connections{state=\"used\"}") / value("db_pool_connections_max{}"), 0.1)
        }))
      }).pipe(Effect.provide(Pg.layer({ url, max: 10 })))
    }))
})

/** Everything but how long things took, which is never the same: sums, and which bucket. */
const timeless = (page: string): ReadonlyMap<string, number> =>
  new Map(Array.from(samplesOf(page)).filter(([name]) => !/_sum\{|_bucket\{/.test(name)))

describe("the page of metrics", () => {
  it.live(
    "is word for word this one before anything happened, and differs from it by what has happened since",
    () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const proxy = yield* FaultProxy.make(url)
        const scope = yield* Scope.make()
        const layer = Pg.layer({
          url: proxy.url,
          name: "states",
          applicationName: "states",
          max: 2,
          min: 0,
          idleTimeout: "10 minutes",
          validateAfter: "10 minutes",
          connectTimeout: "30 seconds",
          retry: false,
          breaker: {
            trip: Pg.Breaker.consecutive(2),
            openFor: "5 seconds",
            jitter: "none",
            probeTimeout: "5 seconds",
            probeLease: "5 seconds"
          }
        })
        const context = yield* Layer.buildWithScope(Layer.fresh(layer), scope)
        yield* Effect.gen(function*() {
          const pool = yield* Pg.Pool.Pool
          const breaker = yield* Pg.Breaker.Breaker
          const sql = yield* SqlClient
          const statement = sql`SELECT 1`

          let last = yield* Pg.Metrics.render
          const pages = [last]
          assert.strictEqual(last, readFileSync(new URL("fixtures/metrics.txt", import.meta.url), "utf8"))
          /** What has changed since this was asked last. */
          const changes = Effect.gen(function*() {
            const page = yield* Pg.Metrics.render
            pages.push(page)
            const before = timeless(last)
            last = page
            return Array.from(timeless(page)).flatMap(([name, value]) =>
              before.get(name) === value ? [] : [`${name} ${before.get(name) ?? "-"} -> ${value}`]
            )
          })
          /** The sessions that the server has, and those that the page says there are. */
          const sessions = Effect.gen(function*() {
            const value = yield* scrape
            const ours = value("db_pool_connections{state=\"idle\"}") + value("db_pool_connections{state=\"used\"}")
            yield* eventually(
              `${ours} sessions`,
              Effect.map(
                witness.value<number>("SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'states'"),
                (count) => count === ours
              )
            )
            return ours
          })
          const waiting = (count: number) =>
            eventually(`${count} waiting`, Effect.map(pool.stats, (stats) => stats.waiting === count))

          // idle
          yield* statement
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"total\"} 0 -> 1",
            "db_pool_size{state=\"idle\"} 0 -> 1",
            "db_pool_connections{state=\"idle\"} 0 -> 1",
            "db_pool_acquire_duration_seconds_count{outcome=\"acquired\"} 0 -> 1",
            "db_pool_use_duration_seconds_count{} 0 -> 1",
            "db_pool_connect_duration_seconds_count{outcome=\"ok\"} 0 -> 1",
            "db_pool_connections_opened_total{} 0 -> 1",
            "db_query_duration_seconds_count{operation=\"SELECT\",outcome=\"ok\"} - -> 1"
          ])
          assert.strictEqual(yield* sessions, 1)

          // in use
          const leases = yield* Scope.make()
          yield* Scope.provide(pool.get(), leases)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"idle\"} 1 -> 0",
            "db_pool_size{state=\"active\"} 0 -> 1",
            "db_pool_connections{state=\"idle\"} 1 -> 0",
            "db_pool_connections{state=\"used\"} 0 -> 1",
            "db_pool_acquire_duration_seconds_count{outcome=\"acquired\"} 1 -> 2"
          ])
          assert.strictEqual(yield* sessions, 1)

          // connecting
          const hold = FaultProxy.hold()
          yield* proxy.set(hold)
          const second = yield* Effect.forkChild(Scope.provide(pool.get(), leases), { startImmediately: true })
          yield* waiting(1)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"waiting\"} 0 -> 1",
            "db_pool_connections{state=\"connecting\"} 0 -> 1",
            "db_pool_pending_requests{} 0 -> 1"
          ])
          assert.strictEqual(yield* sessions, 1)
          yield* proxy.lift(hold)
          yield* Fiber.join(second)

          // with waiters
          const waiters = yield* Effect.forEach([1, 2], () => Effect.forkChild(statement, { startImmediately: true }))
          yield* waiting(2)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"total\"} 1 -> 2",
            "db_pool_size{state=\"active\"} 1 -> 2",
            "db_pool_size{state=\"waiting\"} 1 -> 2",
            "db_pool_connections{state=\"used\"} 1 -> 2",
            "db_pool_connections{state=\"connecting\"} 1 -> 0",
            "db_pool_pending_requests{} 1 -> 2",
            "db_pool_acquire_duration_seconds_count{outcome=\"acquired\"} 2 -> 3",
            "db_pool_connect_duration_seconds_count{outcome=\"ok\"} 1 -> 2",
            "db_pool_connections_opened_total{} 1 -> 2"
          ])
          assert.strictEqual(yield* sessions, 2)
          yield* Fiber.interrupt(waiters[1]!)
          yield* Scope.close(leases, Exit.void)
          yield* Fiber.join(waiters[0]!)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"idle\"} 0 -> 2",
            "db_pool_size{state=\"active\"} 2 -> 0",
            "db_pool_size{state=\"waiting\"} 2 -> 0",
            "db_pool_connections{state=\"idle\"} 0 -> 2",
            "db_pool_connections{state=\"used\"} 2 -> 0",
            "db_pool_pending_requests{} 2 -> 0",
            "db_pool_acquire_duration_seconds_count{outcome=\"acquired\"} 3 -> 4",
            "db_pool_acquire_duration_seconds_count{outcome=\"interrupted\"} 0 -> 1",
            "db_pool_use_duration_seconds_count{} 1 -> 4",
            "db_query_duration_seconds_count{operation=\"SELECT\",outcome=\"ok\"} 1 -> 2"
          ])

          // suspended
          yield* pool.suspend
          const patient = yield* Effect.forkChild(statement, { startImmediately: true })
          yield* waiting(1)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"waiting\"} 0 -> 1",
            "db_pool_pending_requests{} 0 -> 1"
          ])
          assert.strictEqual(yield* sessions, 2)
          yield* pool.resume
          yield* Fiber.join(patient)
          yield* changes

          // isolated
          yield* Effect.scoped(Effect.gen(function*() {
            yield* breaker.isolate("moving")
            yield* Effect.flip(statement)
            assert.deepStrictEqual(yield* changes, [
              "db_query_errors_total{operation=\"CHECKOUT\",error_type=\"Local\"} 0 -> 1",
              "db_circuit_breaker_state{state=\"closed\"} 1 -> 0",
              "db_circuit_breaker_state{state=\"isolated\"} 0 -> 1",
              "db_circuit_breaker_transitions_total{to=\"isolated\"} 0 -> 1",
              "db_circuit_breaker_rejections_total{reason=\"isolated\"} 0 -> 1",
              "db_up{} 1 -> 0"
            ])
          }))
          yield* changes

          // after a failed connect
          yield* pool.evictAll
          assert.strictEqual(yield* sessions, 0)
          const { snapshot } = yield* Pg.Metrics.Metrics
          yield* eventually(
            "both sockets are gone here too",
            Effect.map(snapshot, ({ connectionsClosed }) => connectionsClosed.invalid === 2)
          )
          const refuse = FaultProxy.refuse()
          yield* proxy.set(refuse)
          yield* Effect.flip(statement)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"total\"} 2 -> 0",
            "db_pool_size{state=\"idle\"} 2 -> 0",
            "db_pool_connections{state=\"idle\"} 2 -> 0",
            "db_pool_acquire_duration_seconds_count{outcome=\"failed\"} 0 -> 1",
            "db_pool_connect_duration_seconds_count{outcome=\"error\"} 0 -> 1",
            "db_pool_acquire_errors_total{error_type=\"ConnectFailed\"} 0 -> 1",
            "db_pool_connections_closed_total{reason=\"invalid\"} 0 -> 2",
            "db_query_errors_total{operation=\"CHECKOUT\",error_type=\"Unreachable\"} 0 -> 1",
            "db_up{} 1 -> 0"
          ])

          // with an open circuit
          yield* Effect.sleep(pool.connectPauseUnsafe() + 1)
          yield* Effect.flip(statement)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_acquire_duration_seconds_count{outcome=\"failed\"} 1 -> 2",
            "db_pool_connect_duration_seconds_count{outcome=\"error\"} 1 -> 2",
            "db_pool_acquire_errors_total{error_type=\"ConnectFailed\"} 1 -> 2",
            "db_query_errors_total{operation=\"CHECKOUT\",error_type=\"Unreachable\"} 1 -> 2",
            "db_circuit_breaker_state{state=\"closed\"} 1 -> 0",
            "db_circuit_breaker_state{state=\"open\"} 0 -> 1",
            "db_circuit_breaker_transitions_total{to=\"open\"} 0 -> 1"
          ])

          // with a probe under way
          yield* proxy.lift(refuse)
          yield* proxy.set(hold)
          yield* eventually(
            "the end of the open time",
            Effect.map(breaker.state, (state) => state._tag === "Open" && state.retryAfter === 0)
          )
          yield* Effect.sleep(pool.connectPauseUnsafe() + 1)
          const probe = yield* Effect.forkChild(statement, { startImmediately: true })
          yield* waiting(1)
          yield* Effect.flip(statement)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"waiting\"} 0 -> 1",
            "db_pool_connections{state=\"connecting\"} 0 -> 1",
            "db_pool_pending_requests{} 0 -> 1",
            "db_query_errors_total{operation=\"CHECKOUT\",error_type=\"Local\"} 1 -> 2",
            "db_circuit_breaker_state{state=\"open\"} 1 -> 0",
            "db_circuit_breaker_state{state=\"half_open\"} 0 -> 1",
            "db_circuit_breaker_transitions_total{to=\"half_open\"} 0 -> 1",
            "db_circuit_breaker_rejections_total{reason=\"half_open\"} 0 -> 1"
          ])
          yield* proxy.lift(hold)
          yield* Fiber.join(probe)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"total\"} 0 -> 1",
            "db_pool_size{state=\"idle\"} 0 -> 1",
            "db_pool_size{state=\"waiting\"} 1 -> 0",
            "db_pool_connections{state=\"idle\"} 0 -> 1",
            "db_pool_connections{state=\"connecting\"} 1 -> 0",
            "db_pool_pending_requests{} 1 -> 0",
            "db_pool_acquire_duration_seconds_count{outcome=\"acquired\"} 5 -> 6",
            "db_pool_use_duration_seconds_count{} 5 -> 6",
            "db_pool_connect_duration_seconds_count{outcome=\"ok\"} 2 -> 3",
            "db_pool_connections_opened_total{} 2 -> 3",
            "db_query_duration_seconds_count{operation=\"SELECT\",outcome=\"ok\"} 3 -> 4",
            "db_circuit_breaker_state{state=\"closed\"} 0 -> 1",
            "db_circuit_breaker_state{state=\"half_open\"} 1 -> 0",
            "db_circuit_breaker_transitions_total{to=\"closed\"} 1 -> 2",
            "db_up{} 0 -> 1"
          ])
          assert.strictEqual(yield* sessions, 1)

          // draining
          const lease = yield* Scope.make()
          yield* Scope.provide(pool.get(), lease)
          const drain = yield* Effect.forkChild(pool.drain("1 minute"), { startImmediately: true })
          yield* Effect.flip(statement)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"idle\"} 1 -> 0",
            "db_pool_size{state=\"active\"} 0 -> 1",
            "db_pool_connections{state=\"idle\"} 1 -> 0",
            "db_pool_connections{state=\"used\"} 0 -> 1",
            "db_pool_acquire_duration_seconds_count{outcome=\"acquired\"} 6 -> 7",
            "db_pool_acquire_duration_seconds_count{outcome=\"failed\"} 2 -> 3",
            "db_pool_acquire_errors_total{error_type=\"PoolClosed\"} 0 -> 1",
            "db_query_errors_total{operation=\"CHECKOUT\",error_type=\"Local\"} 2 -> 3"
          ])
          assert.strictEqual(yield* sessions, 1)
          yield* Scope.close(lease, Exit.void)
          yield* ended(drain)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_size{state=\"total\"} 1 -> 0",
            "db_pool_size{state=\"active\"} 1 -> 0",
            "db_pool_connections{state=\"used\"} 1 -> 0",
            "db_pool_use_duration_seconds_count{} 6 -> 7",
            "db_pool_connections_closed_total{reason=\"shutdown\"} 0 -> 1"
          ])
          assert.strictEqual(yield* sessions, 0)

          // closed
          yield* Scope.close(scope, Exit.void)
          assert.deepStrictEqual(yield* changes, [
            "db_pool_connections_max{} 2 -> 0"
          ])

          for (const page of pages) assert.strictEqual(complaintsAbout(page), "")
        }).pipe(Effect.provide(context))
      }),
    90_000
  )
})

/** What became of a call, as its caller was told. */
type Told = "ok" | "rejected by the server" | "not served" | "lost" | "interrupted"

const toldBy = (exit: Exit.Exit<unknown, unknown>): Told => {
  if (Exit.isSuccess(exit)) return "ok"
  if (Cause.hasInterrupts(exit.cause)) return "interrupted"
  const error = Cause.squash(exit.cause)
  const typed = isSqlError(error) ? Pg.Errors.fromSqlError(error) : Pg.Errors.isPoolError(error) ? error : undefined
  if (typed !== undefined && typed._tag !== "OutcomeUnknown" && typed._tag !== "StatementTimeout") return "not served"
  return /^(22|23|42)/.test(Pg.Errors.failureOf(error).sqlState ?? "") ? "rejected by the server" : "lost"
}

const total = (counts: Readonly<Record<string, number>>): number =>
  Object.values(counts).reduce((sum, count) => sum + count, 0)

describe("under random load with faults", () => {
  const seed = 20_261_123

  /** Links are cut, swallowed and refused, until the scope closes. */
  const faults = (proxy: FaultProxy.FaultProxy, random: ReturnType<typeof chance>) => {
    const refuse = FaultProxy.refuse("reset")
    const cut = FaultProxy.cutAfter(40, { direction: "to the client" })
    const delay = FaultProxy.delay({ by: 20 })
    return Effect.forkScoped(Effect.forever(
      Effect.suspend(() => proxy.during(random.pick([refuse, cut, delay]))(Effect.sleep(5 + random.below(40)))).pipe(
        Effect.andThen(random.below(3) === 0 ? proxy.cut : Effect.void),
        Effect.andThen(Effect.sleep(20 + random.below(60)))
      )
    ))
  }

  it.live("counters add up to what the callers were told", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* witness.query("CREATE TABLE t (n int PRIMARY KEY)")
      yield* witness.query("INSERT INTO t VALUES (1)")
      const proxy = yield* FaultProxy.make(url).pipe(Random.withSeed(`${seed}`))
      const register = new prom.Registry()
      const house = (options: Pg.Options) =>
        Layer.build(Layer.fresh(
          Pg.Metrics.layerPromClient({ register }).pipe(
            Layer.provideMerge(Pg.layer({
              url: proxy.url,
              max: 3,
              acquireTimeout: 300,
              connectTimeout: 1000,
              queryTimeout: 2000,
              breaker: {
                trip: Pg.Breaker.consecutive(4),
                openFor: 100,
                jitter: "none",
                probeTimeout: 100,
                probeLease: 100
              },
              ...options
            }))
          )
        ))

      // Each call is one attempt here, so that its end is the end of one checkout and of one statement at most.
      const once = yield* house({ name: "once", retry: false })
      // And here nobody is interrupted, so that each attempt but the last of a call is followed by a retry.
      const again = yield* house({ name: "again", retry: { base: 5, attempts: 4 }, retryBudget: false })

      const told: Record<Told, number> = {
        ok: 0,
        "rejected by the server": 0,
        "not served": 0,
        lost: 0,
        interrupted: 0
      }
      const toldAgain = { ...told }
      let calls = 0
      let circuit = 0
      const call = (random: ReturnType<typeof chance>) =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          const statement = random.pick([
            sql`SELECT 1`,
            sql`SELECT 1`,
            sql`INSERT INTO t VALUES (1)`,
            sql`SELECT nonsense`,
            sql`UPDATE t SET n = n`,
            sql`SELECT pg_sleep(0.02)`
          ])
          return statement as Effect.Effect<unknown, unknown>
        })
      const caller = (random: ReturnType<typeof chance>) =>
        Effect.gen(function*() {
          for (let times = 0; times < 60; times++) {
            const statement = yield* call(random)
            const impatient = random.below(5) === 0
            const fiber = yield* Effect.forkChild(statement, { startImmediately: true })
            if (impatient) yield* Effect.andThen(Effect.sleep(random.below(15)), Fiber.interrupt(fiber))
            const exit = yield* ended(fiber)
            calls++
            told[toldBy(exit)]++
            const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
            if (isSqlError(error) && Pg.Errors.fromSqlError(error)?._tag.startsWith("Circuit") === true) circuit++
            yield* Effect.sleep(random.below(10))
          }
        })
      const patient = (random: ReturnType<typeof chance>) =>
        Effect.gen(function*() {
          for (let times = 0; times < 40; times++) {
            toldAgain[toldBy(yield* Effect.exit(yield* call(random)))]++
            yield* Effect.sleep(random.below(10))
          }
        })

      // Of what chance may leave out there is one of each, whatever the machine is busy with.
      const one = (statement: (sql: SqlClient) => Effect.Effect<unknown, unknown>) =>
        Effect.exit(Effect.flatMap(SqlClient, statement))
      yield* Effect.gen(function*() {
        const note = (exit: Exit.Exit<unknown, unknown>) => {
          calls++
          told[toldBy(exit)]++
        }
        note(yield* one((sql) => sql`SELECT 1`))
        const sleeping = yield* Effect.forkChild(one((sql) => sql`SELECT pg_sleep(60)`), { startImmediately: true })
        yield* Effect.sleep(20)
        yield* Fiber.interrupt(sleeping)
        note(yield* Fiber.await(sleeping))
        note(yield* proxy.during(FaultProxy.cutAfter(0))(one((sql) => sql`SELECT 1`)))
      }).pipe(Effect.provide(once))
      yield* Effect.gen(function*() {
        const refuse = FaultProxy.refuse()
        yield* proxy.set(refuse)
        const trying = yield* Effect.forkChild(one((sql) => sql`SELECT 1`), { startImmediately: true })
        const seen = (yield* Pg.Metrics.Metrics).snapshotUnsafe
        yield* eventually("a retry", Effect.sync(() => total(seen().retries) > 0))
        yield* proxy.lift(refuse)
        toldAgain[toldBy(yield* Fiber.join(trying))]++
      }).pipe(Effect.provide(again))

      yield* Effect.scoped(Effect.gen(function*() {
        yield* faults(proxy, chance(seed))
        yield* Effect.all([
          Effect.provide(
            Effect.forEach([1, 2, 3, 4, 5, 6, 7, 8], (n) => caller(chance(seed + n)), { concurrency: "unbounded" }),
            once
          ),
          Effect.provide(
            Effect.forEach([1, 2, 3, 4], (n) => patient(chance(seed - n)), { concurrency: "unbounded" }),
            again
          )
        ], { concurrency: 2 })
      }))
      yield* proxy.liftAll

      const context = `seed ${seed}, told ${JSON.stringify(told)}, and with retries ${JSON.stringify(toldAgain)}`
      const metricsOf = (services: typeof once) => Context.get(services, Pg.Metrics.Metrics)
      // What was interrupted goes on until the server has been told.
      const settled = Effect.sync(() =>
        [once, again].every((services) => {
          const { acquire, stats, use } = metricsOf(services).snapshotUnsafe()
          return stats?.active === 0 && stats.waiting === 0 && use.count === acquire.acquired.count
        })
      )
      yield* eventually(`everything has been given back (${context})`, settled)
      assert.isAbove(told.ok, 0, context)
      assert.isAbove(told.lost, 0, context)
      assert.isAbove(told.interrupted, 0, context)

      const seen = metricsOf(once).snapshotUnsafe()
      const { acquire, errorsByOperation: { CHECKOUT, ...statements }, query } = seen
      // Calls: each was answered, refused, lost or interrupted.
      assert.strictEqual(total(told), calls, context)
      assert.strictEqual(query.ok.count, told.ok, context)
      assert.strictEqual(seen.errors.Rejected, told["rejected by the server"], context)
      assert.strictEqual(seen.errors.Local, told["not served"], context)
      assert.strictEqual(total(seen.errors), calls - told.ok - told.interrupted, context)
      // Checkouts: whoever was not rejected by the circuit has asked for a session once.
      assert.strictEqual(total(seen.breakerRejections), circuit, context)
      const checkouts = acquire.acquired.count + acquire.timeout.count + acquire.interrupted.count +
        acquire.failed.count
      assert.isAtMost(checkouts, calls - circuit, context)
      // Some were interrupted before they asked.
      assert.isAtLeast(checkouts, calls - circuit - told.interrupted, context)
      assert.strictEqual(total(seen.acquireErrors), acquire.timeout.count + acquire.failed.count, context)
      assert.strictEqual(total(CHECKOUT), acquire.timeout.count + acquire.failed.count + circuit, context)
      // Statements: whoever had a session has sent one.
      assert.strictEqual(
        query.ok.count + query.error.count + query.interrupted.count,
        acquire.acquired.count,
        context
      )
      assert.strictEqual(
        Object.values(statements).reduce((sum, kinds) => sum + total(kinds), 0),
        query.error.count,
        context
      )

      // With retries: each failed attempt was followed by a retry, or was the last.
      const retried = metricsOf(again).snapshotUnsafe()
      const failed = total(toldAgain) - toldAgain.ok
      assert.strictEqual(retried.query.ok.count, toldAgain.ok, context)
      assert.strictEqual(total(retried.errors), total(retried.retries) + failed, context)
      assert.isAbove(total(retried.retries), 0, context)

      // Sessions: what was opened and not closed is there, and the server has no more of them.
      for (const services of [once, again]) {
        const { connectionsClosed, connectionsOpened, stats } = metricsOf(services).snapshotUnsafe()
        assert.strictEqual(connectionsOpened - total(connectionsClosed), stats?.total, context)
      }

      // Both are on one page, each with its own numbers.
      const page = yield* Effect.promise(() => register.metrics())
      assert.strictEqual(complaintsAbout(page), "")
      for (const services of [once, again]) {
        const { acquire, pool } = metricsOf(services).snapshotUnsafe()
        const line =
          `db_pool_acquire_duration_seconds_count{pool="${pool}",outcome="acquired"} ${acquire.acquired.count}`
        assert.include(page.split("\n"), line)
      }
    }), 90_000)
})
