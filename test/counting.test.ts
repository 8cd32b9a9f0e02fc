/** What is counted of the ways in which a checkout, a call and a connect can end, on a server in this process. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as TestClock from "effect/testing/TestClock"
import * as Pg from "../src/index.ts"
import { makeMemoryServer, type MemoryServer } from "./memoryServer.ts"

const alone = { retry: false, breaker: false } as const

const setUp = (options: Pg.Options = {}, server: MemoryServer = makeMemoryServer()) =>
  Effect.map(
    Layer.build(
      Layer.fresh(Pg.layer({ username: "somebody", stream: server.stream, prepare: false, ...alone, ...options }))
    ),
    (context) => {
      const metrics = Context.get(context, Pg.Metrics.Metrics)
      return {
        server,
        context,
        pool: Context.get(context, Pg.Pool.Pool),
        breaker: Context.get(context, Pg.Breaker.Breaker),
        executor: Context.get(context, Pg.Executor.Executor),
        sql: Context.get(context, SqlClient),
        metrics,
        seen: metrics.snapshotUnsafe,
        page: Effect.provideService(Pg.Metrics.render, Pg.Metrics.Metrics, metrics)
      }
    }
  )

type Seen = () => Pg.Metrics.Snapshot

const acquired = (seen: Seen) => {
  const { acquired, failed, interrupted, timeout } = seen().acquire
  return { acquired: acquired.count, timeout: timeout.count, interrupted: interrupted.count, failed: failed.count }
}

/** The errors that there were. */
const acquireErrors = (seen: Seen) => Object.fromEntries(Object.entries(seen().acquireErrors).filter(([, n]) => n > 0))

const checkoutErrors = (seen: Seen) =>
  Object.fromEntries(Object.entries(seen().errorsByOperation.CHECKOUT).filter(([, n]) => n > 0))

const start = <A, E, R>(work: Effect.Effect<A, E, R>) => Effect.forkChild(work, { startImmediately: true })

/** What the server has said needs some turns of the event loop to arrive. */
const settle = Effect.promise(async () => {
  for (let turns = 0; turns < 10; turns++) await new Promise((resolve) => setImmediate(resolve))
})

const pass = (duration: Duration.Input) =>
  settle.pipe(Effect.andThen(TestClock.adjust(duration)), Effect.andThen(settle))

/** Lets as much time pass as the fiber needs. */
const end = <A, E>(fiber: Fiber.Fiber<A, E>): Effect.Effect<A, E> =>
  Effect.suspend(() =>
    fiber.pollUnsafe() === undefined ? Effect.andThen(pass("100 millis"), end(fiber)) : Fiber.join(fiber)
  )

const nobody = { acquired: 0, timeout: 0, interrupted: 0, failed: 0 }

describe("a pool that closes", () => {
  it.effect("is told of until its last borrower is done", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { pool, seen } = yield* Scope.provide(setUp({ max: 3, closeTimeout: "10 seconds" }), scope)
      const work = yield* start(pool.use(() => Effect.sleep("5 seconds")))
      yield* pass("1 second")
      const closing = yield* start(Scope.close(scope, Exit.void))
      yield* pass("1 second")
      const { active, max, total } = seen().stats!
      assert.deepStrictEqual({ active, max, total }, { active: 1, max: 3, total: 1 })
      yield* end(work)
      yield* end(closing)
      assert.strictEqual(seen().stats?.max, 0)
    }))
})

describe("a checkout is counted once", () => {
  it.effect("as acquired, with the time that it took", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      server.manner = "accepts when told"
      const { pool, seen } = yield* setUp({ max: 1 }, server)
      const first = yield* start(pool.use(() => Effect.void))
      yield* pass("2 seconds")
      server.greet()
      yield* Fiber.join(first)
      yield* pool.use(() => Effect.void)
      assert.deepStrictEqual(acquired(seen), { ...nobody, acquired: 2 })
      assert.strictEqual(seen().acquire.acquired.sum, 2)
    }))

  it.effect("as timeout, and the error is AcquireTimeout", () =>
    Effect.gen(function*() {
      const { pool, seen } = yield* setUp({ max: 1, acquireTimeout: "1 second" })
      yield* pool.get()
      const late = yield* start(Effect.flip(pool.use(() => Effect.void)))
      yield* pass("1 second")
      assert.strictEqual((yield* Fiber.join(late))._tag, "AcquireTimeout")
      assert.deepStrictEqual(acquired(seen), { ...nobody, acquired: 1, timeout: 1 })
      assert.deepStrictEqual(acquireErrors(seen), { AcquireTimeout: 1 })
      assert.strictEqual(seen().acquireTimeouts, 1)
      assert.strictEqual(seen().acquire.timeout.sum, 1)
    }).pipe(Effect.scoped))

  it.effect("as interrupted, which is no error", () =>
    Effect.gen(function*() {
      const { pool, seen } = yield* setUp({ max: 1 })
      yield* pool.get()
      const fiber = yield* start(pool.use(() => Effect.void))
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(acquired(seen), { ...nobody, acquired: 1, interrupted: 1 })
      assert.deepStrictEqual(acquireErrors(seen), {})
    }).pipe(Effect.scoped))

  it.effect("as failed when as many wait as may, and the error is PoolSaturated", () =>
    Effect.gen(function*() {
      const { pool, seen } = yield* setUp({ max: 1, maxWaiting: 0 })
      yield* pool.get()
      assert.strictEqual((yield* Effect.flip(pool.use(() => Effect.void)))._tag, "PoolSaturated")
      assert.deepStrictEqual(acquired(seen), { ...nobody, acquired: 1, failed: 1 })
      assert.deepStrictEqual(acquireErrors(seen), { PoolSaturated: 1 })
    }).pipe(Effect.scoped))

  it.live("as failed when the pool has been drained or closed, before it was asked or while somebody waited", () =>
    Effect.gen(function*() {
      const { pool, seen } = yield* setUp({ max: 1, closeTimeout: 10 })
      const lease = yield* Scope.make()
      yield* Scope.provide(pool.get(), lease)
      const waiter = yield* start(Effect.flip(pool.use(() => Effect.void)))
      yield* pool.drain(10)
      assert.strictEqual((yield* Fiber.join(waiter))._tag, "PoolClosed")
      yield* Scope.close(lease, Exit.void)
      for (let times = 0; times < 3; times++) {
        assert.strictEqual((yield* Effect.flip(pool.use(() => Effect.void)))._tag, "PoolClosed")
      }
      assert.deepStrictEqual(acquired(seen), { ...nobody, acquired: 1, failed: 4 })
      assert.deepStrictEqual(acquireErrors(seen), { PoolClosed: 4 })
    }))

  it.live("for each of those who wait for one connect that fails, which itself is one", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      server.manner = "refuses"
      const { seen, sql } = yield* setUp({ max: 1 }, server)
      yield* Effect.forEach([1, 2, 3], () => Effect.flip(sql`SELECT 1`), { concurrency: "unbounded" })
      assert.deepStrictEqual(acquired(seen), { ...nobody, failed: 3 })
      assert.deepStrictEqual(acquireErrors(seen), { ConnectFailed: 3 })
      assert.deepStrictEqual(checkoutErrors(seen), { Unreachable: 3 })
      assert.deepStrictEqual([seen().connect.ok.count, seen().connect.error.count], [0, 1])
      assert.strictEqual(seen().connectionsOpened, 0)
    }))

  it.live("by the name of what refused it: a hook, a password that is not to be had, the server", () =>
    Effect.gen(function*() {
      const failing = (options: Pg.Options, server?: MemoryServer) =>
        Effect.gen(function*() {
          const { seen, sql } = yield* setUp({ max: 1, ...options }, server)
          yield* Effect.flip(sql`SELECT 1`)
          assert.deepStrictEqual(acquired(seen), { ...nobody, failed: 1 })
          return acquireErrors(seen)
        })
      const full = makeMemoryServer()
      full.manner = "is full"
      const no = Effect.fail(new Error("no"))
      assert.deepStrictEqual(yield* failing({ afterConnect: () => no }), { HookFailed: 1 })
      assert.deepStrictEqual(yield* failing({ beforeAcquire: () => no }), { HookFailed: 1 })
      assert.deepStrictEqual(yield* failing({ password: no }), { CredentialsFailed: 1 })
      assert.deepStrictEqual(yield* failing({}, full), { ConnectFailed: 1 })
    }))

  it.effect("also where the session is there, and those who share it do not let go of it", () =>
    Effect.gen(function*() {
      const { pool, seen } = yield* setUp({ max: 1, multiplex: true, acquireTimeout: "1 second" })
      const busy = yield* start(pool.use(({ connection }) => connection.query("hold", [], false)))
      yield* settle
      const late = yield* start(Effect.flip(Effect.scoped(pool.reserve())))
      yield* pass("1 second")
      assert.strictEqual((yield* Fiber.join(late))._tag, "AcquireTimeout")
      assert.deepStrictEqual(acquired(seen), { ...nobody, acquired: 1, timeout: 1 })
      assert.deepStrictEqual(acquireErrors(seen), { AcquireTimeout: 1 })
      yield* Fiber.interrupt(busy)
    }))

  it.effect("and warming a pool is none", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      server.manner = "accepts when told"
      const { pool, seen } = yield* setUp({ max: 2, acquireTimeout: "1 second", connectTimeout: "1 minute" }, server)
      const warm = yield* start(Effect.flip(pool.warm(2)))
      yield* pass("1 second")
      assert.strictEqual((yield* Fiber.join(warm))._tag, "AcquireTimeout")
      assert.deepStrictEqual(acquired(seen), nobody)
      assert.deepStrictEqual(acquireErrors(seen), {})
    }))

  it.live("and takes as long as it took, however the wall clock is set meanwhile", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      let off = 0
      const jumping: Clock.Clock = {
        ...clock,
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + off,
        monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
        sleep: (duration) => clock.sleep(duration)
      }
      const server = makeMemoryServer()
      server.manner = "accepts when told"
      yield* Effect.gen(function*() {
        const { pool, seen } = yield* setUp({ max: 1 }, server)
        for (const jump of [3_600_000, -3_600_000]) {
          const fiber = yield* start(pool.use(() => Effect.void))
          yield* Effect.sleep(1)
          off += jump
          server.greet()
          yield* Fiber.join(fiber)
          yield* pool.evictAll
        }
        const { acquired: { count, sum } } = seen().acquire
        assert.strictEqual(count, 2)
        assert.isBelow(sum, 600)
        assert.isAbove(sum, 0)
      }).pipe(Effect.provideService(Clock.Clock, jumping))
    }))
})

describe("the use of connections", () => {
  it.effect("is the time of a lease, and each lease that was given back is there", () =>
    Effect.gen(function*() {
      const { pool, seen } = yield* setUp({ max: 2 })
      const hold = (lease: Effect.Effect<unknown, Pg.Pool.AcquireError, Scope.Scope>, seconds: number) =>
        Effect.scoped(Effect.andThen(lease, Effect.sleep(seconds * 1000)))
      const both = yield* start(Effect.all([hold(pool.get(), 2), hold(pool.reserve(), 3)], { concurrency: 2 }))
      yield* pass("3 seconds")
      yield* Fiber.join(both)
      assert.deepStrictEqual([seen().use.count, seen().use.sum], [2, 5])
    }))

  it.effect("is the time of the statement where there is one, and of the work where there is none", () =>
    Effect.gen(function*() {
      const { pool, seen, server, sql } = yield* setUp({ max: 1 })
      yield* sql`SELECT 1`
      yield* sql`SELECT 1`
      assert.deepStrictEqual([seen().use.count, seen().acquire.acquired.count], [2, 2])
      const slow = yield* start(sql`SELECT 'hold'`)
      yield* pass("2 seconds")
      server.peers[0]!.answer()
      yield* Fiber.join(slow)
      assert.deepStrictEqual([seen().use.count, seen().use.sum], [3, 2])
      const idle = yield* start(pool.use(() => Effect.sleep("4 seconds")))
      yield* pass("4 seconds")
      yield* Fiber.join(idle)
      assert.deepStrictEqual([seen().use.count, seen().use.sum], [4, 6])
    }))

  it.effect("is each borrower's own where they share a connection", () =>
    Effect.gen(function*() {
      const { pool, seen } = yield* setUp({ max: 1, multiplex: true })
      yield* pool.use(() => Effect.void)
      const both = yield* start(Effect.all([
        pool.use(() => Effect.sleep("5 seconds")),
        Effect.delay(pool.use(() => Effect.sleep("1 second")), "1 second")
      ], { concurrency: 2 }))
      yield* pass("5 seconds")
      yield* Fiber.join(both)
      assert.deepStrictEqual([seen().use.count, seen().use.sum], [3, 6])
    }))
})

describe("connects", () => {
  it.effect("are timed with their hooks, and those given up with the pool are not counted", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      const scope = yield* Scope.make()
      const { pool, seen } = yield* Scope.provide(
        setUp({ max: 2, afterConnect: () => Effect.sleep("2 seconds"), closeTimeout: 0 }, server),
        scope
      )
      const first = yield* start(pool.use(() => Effect.void))
      yield* pass("2 seconds")
      yield* Fiber.join(first)
      assert.deepStrictEqual([seen().connect.ok.count, seen().connect.ok.sum], [1, 2])
      yield* start(Effect.ignore(pool.warm(2)))
      yield* pass("1 second")
      const closing = yield* start(Scope.close(scope, Exit.void))
      yield* pass("1 minute")
      yield* Fiber.join(closing)
      const { connect, connectionsClosed, connectionsOpened } = seen()
      assert.deepStrictEqual([connect.ok.count, connect.error.count], [1, 0])
      assert.deepStrictEqual([connectionsOpened, connectionsClosed.shutdown], [2, 2])
    }))
})

describe("rejections", () => {
  const threshold = { trip: Pg.Breaker.consecutive(1), openFor: "1 minute", jitter: "none" } as const

  it.effect("by an open circuit are counted once per call, however much is wrapped around it", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      server.manner = "refuses"
      const { executor, seen, sql } = yield* setUp({ max: 1, breaker: threshold }, server)
      yield* Effect.flip(sql`SELECT 1`)
      assert.strictEqual(seen().breakerState, "Open")
      assert.strictEqual(seen().breakerRejections.open, 0)
      yield* Effect.flip(sql`SELECT 1`)
      yield* Effect.flip(executor.run(executor.run(sql`SELECT 1`)))
      yield* Effect.flip(sql.withTransaction(sql`SELECT 1`))
      assert.deepStrictEqual(seen().breakerRejections, { open: 3, half_open: 0, isolated: 0 })
      assert.deepStrictEqual(checkoutErrors(seen), { Unreachable: 1, Local: 3 })
      // They never came to the pool.
      assert.deepStrictEqual(acquired(seen), { ...nobody, failed: 1 })
    }))

  it.effect("are none while the call waits for the circuit, and one when it waits no longer", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      server.manner = "refuses"
      const { executor, seen, sql } = yield* setUp({ max: 1, breaker: threshold }, server)
      yield* Effect.flip(sql`SELECT 1`)
      const patient = yield* start(executor.run(sql`SELECT 1`, { waitForCircuit: true, deadline: "2 minutes" }))
      yield* pass("10 seconds")
      assert.strictEqual(seen().breakerRejections.open, 0)
      const hasty = yield* start(
        Effect.flip(executor.run(sql`SELECT 1`, { waitForCircuit: true, deadline: "5 seconds" }))
      )
      assert.strictEqual((yield* end(hasty))._tag, "CircuitOpen")
      assert.strictEqual(seen().breakerRejections.open, 1)
      server.manner = "accepts"
      assert.strictEqual((yield* end(patient)).length, 1)
      assert.deepStrictEqual(seen().breakerRejections, { open: 1, half_open: 0, isolated: 0 })
    }))

  it.effect("by a half-open and by an isolated circuit have their own reason", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      server.manner = "refuses"
      const { breaker, seen, sql } = yield* setUp({ max: 1, breaker: threshold }, server)
      yield* Effect.flip(sql`SELECT 1`)
      yield* pass("1 minute")
      server.manner = "accepts when told"
      const probe = yield* start(sql`SELECT 1`)
      yield* Effect.flip(sql`SELECT 1`)
      server.greet()
      yield* Fiber.join(probe)
      yield* Effect.scoped(Effect.andThen(breaker.isolate("moving"), Effect.flip(sql`SELECT 1`)))
      assert.deepStrictEqual(seen().breakerRejections, { open: 0, half_open: 1, isolated: 1 })
    }))

  it.effect("are each pool's own where pools have a circuit in common, and there are none without one", () =>
    Effect.gen(function*() {
      const breaker = yield* Layer.build(Pg.Breaker.layer({ key: "common" }))
      const pool = (name: string) =>
        Effect.map(
          Layer.build(
            Layer.fresh(
              Pg.layerWithBreaker({ name, username: "somebody", prepare: false, stream: makeMemoryServer().stream })
            )
          ),
          (context) => ({
            sql: Context.get(context, SqlClient),
            seen: Context.get(context, Pg.Metrics.Metrics).snapshotUnsafe
          })
        ).pipe(Effect.provide(breaker))
      const [one, other] = [yield* pool("one"), yield* pool("other")]
      const free = yield* setUp({ breaker: false })
      yield* Context.get(breaker, Pg.Breaker.Breaker).isolate("moving")
      for (let times = 0; times < 2; times++) yield* Effect.flip(one.sql`SELECT 1`)
      yield* Effect.flip(other.sql`SELECT 1`)
      yield* free.sql`SELECT 1`
      assert.deepStrictEqual(
        [one, other, free].map(({ seen }) => seen().breakerRejections.isolated),
        [2, 1, 0]
      )
    }))
})

describe("db_up", () => {
  const up = (seen: Seen) => seen().isUp

  it.live("is 1 before anything happened, and 0 when the last connect failed and no connection is left", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      const { page, pool, seen, sql } = yield* setUp({ max: 2 }, server)
      assert.isTrue(up(seen))
      server.manner = "refuses"
      yield* Effect.flip(sql`SELECT 1`)
      assert.isFalse(up(seen))
      assert.include((yield* page).split("\n"), "db_up{pool=\"default\"} 0")
      server.manner = "accepts"
      yield* Effect.sleep(pool.connectPauseUnsafe() + 1)
      yield* sql`SELECT 1`
      assert.isTrue(up(seen))
      // One that works is evidence enough, whatever has become of the next.
      server.manner = "refuses"
      yield* Effect.scoped(Effect.gen(function*() {
        yield* pool.get()
        yield* Effect.exit(pool.warm(2))
        assert.strictEqual(seen().connect.error.count, 2)
        assert.isTrue(up(seen))
      }))
    }))

  it.live("is 1 again when the database has answered since the circuit opened, also if nobody has called", () =>
    Effect.gen(function*() {
      const { breaker, pool, seen } = yield* setUp({ max: 1, breaker: { failures: 1 } }, makeMemoryServer())
      yield* pool.warm(1)
      yield* Effect.flip(breaker.protect(Effect.fail(Object.assign(new Error("down"), { code: "ECONNREFUSED" }))))
      assert.isFalse(up(seen))
      // The clock has milliseconds: the answer must not come in the one in which the circuit opened.
      yield* Effect.sleep(2)
      yield* pool.use(() => Effect.void, { prove: true })
      assert.strictEqual((yield* breaker.state)._tag, "Open")
      assert.isTrue(up(seen))
      yield* Effect.scoped(Effect.andThen(breaker.isolate("moving"), Effect.sync(() => assert.isFalse(up(seen)))))
    }))

  it.effect("is 0 while the circuit is open or isolated, and 1 while it is disabled", () =>
    Effect.gen(function*() {
      const { breaker, seen } = yield* setUp({ breaker: { trip: Pg.Breaker.consecutive(1) } })
      yield* Effect.scoped(Effect.andThen(breaker.isolate("moving"), Effect.sync(() => assert.isFalse(up(seen)))))
      assert.isTrue(up(seen))
      yield* Effect.scoped(Effect.andThen(breaker.disable, Effect.sync(() => assert.isTrue(up(seen)))))
      yield* Effect.flip(breaker.protect(Effect.fail(Object.assign(new Error("down"), { code: "ECONNREFUSED" }))))
      assert.isFalse(up(seen))
    }))
})

describe("the last failure", () => {
  it.effect("is the last that said something of the database, and when", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      const { pool, seen, sql } = yield* setUp({ max: 1, acquireTimeout: "1 second" }, server)
      assert.isUndefined(seen().lastFailure)
      yield* sql`SELECT 1`
      assert.isUndefined(seen().lastFailure)
      yield* pool.evictAll
      server.manner = "is full"
      yield* pass("5 seconds")
      yield* Effect.flip(sql`SELECT 1`)
      const first: Pg.Metrics.LastFailure = { kind: "Overloaded", code: "53300", at: 5000 }
      assert.deepStrictEqual(seen().lastFailure, first)
      server.manner = "accepts"
      yield* pass("1 minute")
      // The queue says nothing of it.
      yield* Effect.scoped(Effect.gen(function*() {
        yield* pool.get()
        const late = yield* start(Effect.flip(sql`SELECT 1`))
        yield* pass("1 second")
        yield* Fiber.join(late)
      }))
      assert.deepStrictEqual(seen().lastFailure, first)
    }))
})

describe("the retry budget", () => {
  it.effect("is read when it is asked for, and is not there without one", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      server.manner = "refuses"
      const { page, seen, sql } = yield* setUp({ max: 1, retry: { jitter: "none" } }, server)
      assert.strictEqual(seen().retryBudgetTokens, 10)
      yield* end(yield* start(Effect.flip(sql`SELECT 1`)))
      assert.strictEqual(seen().retryBudgetTokens, 6)
      assert.include((yield* page).split("\n"), "db_retry_budget_tokens{pool=\"default\"} 6")
      assert.strictEqual(seen().retries.Unreachable, 4)
      assert.notInclude(yield* (yield* setUp({ retryBudget: false })).page, "db_retry_budget_tokens{")
    }))
})

describe("an attempt that runs out of time", () => {
  it.effect("is a failed checkout if it had no connection, else its statement is interrupted", () =>
    Effect.gen(function*() {
      const { executor, pool, seen, sql } = yield* setUp({ max: 1 })
      const run = (work: Effect.Effect<unknown, unknown>) =>
        Effect.gen(function*() {
          const fiber = yield* start(Effect.flip(executor.run(work, { attemptTimeout: "1 second" })))
          yield* end(fiber)
        })
      yield* run(sql`SELECT 'hold'`)
      assert.strictEqual(seen().errorsByOperation.SELECT.Unreachable, 1)
      assert.strictEqual(seen().query.interrupted.count, 1)
      yield* Effect.scoped(Effect.andThen(pool.get(), run(sql`SELECT 1`)))
      assert.deepStrictEqual(checkoutErrors(seen), { Unreachable: 1 })
      assert.strictEqual(acquired(seen).interrupted, 1)
    }))
})
