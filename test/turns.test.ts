import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as Metrics from "../src/Metrics.ts"
import * as Pool from "../src/Pool.ts"
import { makeMemoryServer } from "./memoryServer.ts"

/** A pool whose sleeps are counted. */
const setUp = (options: Pool.Options) =>
  Effect.gen(function*() {
    const clock = yield* Clock.Clock
    const sleeps = { now: 0, most: 0 }
    const counting: Clock.Clock = Object.assign(Object.create(clock), {
      sleep: (duration: Parameters<Clock.Clock["sleep"]>[0]) =>
        Effect.suspend(() => {
          sleeps.most = Math.max(sleeps.most, ++sleeps.now)
          return Effect.ensuring(clock.sleep(duration), Effect.sync(() => sleeps.now--))
        })
    })
    const layer = Pool.layer({ username: "somebody", stream: makeMemoryServer().stream, ...options })
    const context = yield* Effect.provideService(
      Layer.build(Layer.provideMerge(layer, Metrics.layer())),
      Clock.Clock,
      counting
    )
    const pool = Context.get(context, Pool.Pool)
    const { store } = Context.get(context, Metrics.Metrics)
    yield* pool.use(() => Effect.void)
    sleeps.most = sleeps.now
    return { pool, store, sleeps, counting }
  })

/** Holds the only session until it is told to let go. */
const hold = (pool: Pool.Pool["Service"], checkout: Effect.Effect<unknown, unknown, Scope.Scope> = pool.get()) =>
  Effect.gen(function*() {
    const scope = Scope.forkUnsafe(yield* Effect.scope)
    yield* Scope.provide(checkout, scope)
    return Scope.close(scope, Exit.void)
  })

const forkAll = <A, E>(count: number, work: (index: number) => Effect.Effect<A, E>) =>
  Effect.forEach(
    Array.from({ length: count }, (_, index) => index),
    (index) => Effect.forkChild(work(index), { startImmediately: true })
  )

/** Has a session for himself while the work runs, as a transaction does. */
const alone = <A, E, R>(pool: Pool.Pool["Service"], work: (session: Pool.PoolSession) => Effect.Effect<A, E, R>) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      pool.exclusiveUnsafe.take(restore),
      (lease) =>
        Effect.onExit(
          restore(work(lease.session)),
          () => Effect.suspend(() => pool.exclusiveUnsafe.giveBack(lease) ?? Effect.void)
        )
    )
  )

describe("a thousand borrowers in line", () => {
  it.effect("wait by one timer, which ends when all of them have been served", () =>
    Effect.gen(function*() {
      const { counting, pool, sleeps } = yield* setUp({ max: 1 })
      const letGo = yield* hold(pool)
      const before = sleeps.now
      const fibers = yield* Effect.provideService(
        forkAll(1000, () => pool.use(() => Effect.void)),
        Clock.Clock,
        counting
      )
      assert.strictEqual(pool.statsUnsafe().waiting, 1000)
      assert.strictEqual(sleeps.now - before, 1)
      yield* letGo
      yield* Fiber.awaitAll(fibers)
      assert.strictEqual(sleeps.now, before)
    }))

  it.effect("are served in the order in which they came", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ max: 1 })
      const letGo = yield* hold(pool)
      const served: Array<number> = []
      const fibers = yield* forkAll(1000, (index) => pool.use(() => Effect.sync(() => served.push(index))))
      yield* letGo
      yield* Fiber.awaitAll(fibers)
      assert.deepStrictEqual(served, Array.from({ length: 1000 }, (_, index) => index))
    }))

  it.effect("may all be done at once without running out of stack", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ max: 1 })
      const letGo = yield* hold(pool)
      const fibers = yield* forkAll(20_000, () => pool.use(() => Effect.void))
      yield* letGo
      const exits = yield* Fiber.awaitAll(fibers)
      assert.isTrue(exits.every(Exit.isSuccess))
    }))
})

describe("borrowers whose time is up", () => {
  it.effect("give up one by one, each after acquireTimeout, and say what they waited for", () =>
    Effect.gen(function*() {
      const { pool, sleeps, store } = yield* setUp({ max: 1, acquireTimeout: 1000 })
      yield* hold(pool)
      const before = sleeps.now
      const late: Array<string> = []
      for (let index = 0; index < 5; index++) {
        yield* Effect.forkChild(
          Effect.catchTag(
            pool.use(() => Effect.void),
            "AcquireTimeout",
            ({ phase, stats, waited }) =>
              Effect.sync(() => late.push(`${index} ${phase} ${waited} of ${stats.waiting} others`))
          ),
          { startImmediately: true }
        )
        yield* TestClock.adjust(100)
      }
      yield* TestClock.adjust(499)
      assert.deepStrictEqual(late, [])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(late, ["0 Queue 1000 of 4 others"])
      yield* TestClock.adjust(300)
      assert.deepStrictEqual(late.slice(1), [
        "1 Queue 1000 of 3 others",
        "2 Queue 1000 of 2 others",
        "3 Queue 1000 of 1 others"
      ])
      assert.strictEqual(pool.statsUnsafe().waiting, 1)
      assert.strictEqual(store.acquireErrors.AcquireTimeout, 4)
      assert.strictEqual(sleeps.most - before, 1)
    }))

  it.effect("do not keep those waiting who have a bound of their own", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ max: 1, acquireTimeout: 1000 })
      yield* hold(pool)
      const patient = yield* Effect.forkChild(Effect.flip(pool.use(() => Effect.void, { timeout: 5000 })), {
        startImmediately: true
      })
      const usual = yield* Effect.forkChild(Effect.flip(pool.use(() => Effect.void)), { startImmediately: true })
      yield* TestClock.adjust(1000)
      assert.strictEqual((yield* Fiber.join(usual))._tag, "AcquireTimeout")
      assert.isUndefined(patient.pollUnsafe())
      yield* TestClock.adjust(4000)
      assert.strictEqual((yield* Fiber.join(patient))._tag, "AcquireTimeout")
    }))

  it.effect("may come back, and have as long again", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ max: 1, acquireTimeout: 1000 })
      yield* hold(pool)
      const fiber = yield* Effect.forkChild(
        Effect.flip(Effect.catchTag(pool.use(() => Effect.void), "AcquireTimeout", () => pool.use(() => Effect.void))),
        { startImmediately: true }
      )
      yield* TestClock.adjust(1999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "AcquireTimeout")
    }))
})

describe("a borrower who is interrupted", () => {
  it.effect("in the line leaves it, and the timer goes with the last one", () =>
    Effect.gen(function*() {
      const { pool, sleeps, store } = yield* setUp({ max: 1 })
      const letGo = yield* hold(pool)
      const before = sleeps.now
      const fibers = yield* forkAll(3, () => pool.use(() => Effect.void))
      yield* Fiber.interruptAll(fibers)
      assert.strictEqual(pool.statsUnsafe().waiting, 0)
      assert.strictEqual(store.acquire.interrupted.snapshot().count, 3)
      yield* letGo
      assert.strictEqual(sleeps.now, before)
      assert.strictEqual(pool.statsUnsafe().active, 0)
    }))

  it.effect("in the moment of being served hands the session on", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ max: 1 })
      yield* pool.suspend
      const [first, second] = yield* forkAll(2, () => pool.use(() => Effect.succeed("served")))
      // Whoever is served by this hears of it a turn of the scheduler later.
      yield* pool.resume
      assert.strictEqual(pool.statsUnsafe().active, 1)
      first!.interruptUnsafe()
      assert.strictEqual(yield* Fiber.join(second!), "served")
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(first!)))
      assert.strictEqual(pool.statsUnsafe().active, 0)
    }))

  it.effect("by the borrower before it leaves the session to the one behind", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ max: 1 })
      const letGo = yield* hold(pool)
      const fibers: Array<Fiber.Fiber<number, unknown>> = []
      for (const index of [0, 1, 2]) {
        const work = Effect.sync(() => {
          if (index === 0) fibers[1]!.interruptUnsafe()
          return index
        })
        fibers.push(yield* Effect.forkChild(pool.use(() => work), { startImmediately: true }))
      }
      yield* letGo
      assert.strictEqual(yield* Fiber.join(fibers[0]!), 0)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fibers[1]!)))
      assert.strictEqual(yield* Fiber.join(fibers[2]!), 2)
      assert.strictEqual(pool.statsUnsafe().active, 0)
    }))
})

describe.each([
  { of: "a pool", multiplex: false },
  { of: "a multiplexed pool", multiplex: true }
])("borrowers who want a session of $of for themselves", ({ multiplex }) => {
  it.effect("wait by the same timer as statements, and are served in turn with them", () =>
    Effect.gen(function*() {
      const { counting, pool, sleeps, store } = yield* setUp({ multiplex, max: 1 })
      const letGo = yield* hold(pool, pool.reserve())
      const before = sleeps.now
      const counted = store.acquire.acquired.snapshot().count
      const served: Array<number> = []
      const fibers = yield* Effect.provideService(
        forkAll(1000, (index) => {
          const work = () => Effect.sync(() => served.push(index))
          return index % 3 === 0 ? pool.use(work) : alone(pool, work)
        }),
        Clock.Clock,
        counting
      )
      assert.strictEqual(pool.statsUnsafe().waiting, 1000)
      assert.strictEqual(sleeps.now - before, 1)
      yield* letGo
      const exits = yield* Fiber.awaitAll(fibers)
      assert.isTrue(exits.every(Exit.isSuccess))
      assert.deepStrictEqual(served, Array.from({ length: 1000 }, (_, index) => index))
      assert.strictEqual(store.acquire.acquired.snapshot().count - counted, 1000)
      assert.strictEqual(sleeps.now, before)
      assert.strictEqual(pool.statsUnsafe().active, 0)
    }))

  it.effect("give up after acquireTimeout, and say what they waited for", () =>
    Effect.gen(function*() {
      const { pool, store } = yield* setUp({ multiplex, max: 1, acquireTimeout: 1000 })
      yield* hold(pool, pool.reserve())
      const fiber = yield* Effect.forkChild(Effect.flip(alone(pool, () => Effect.void)), { startImmediately: true })
      yield* TestClock.adjust(999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = yield* Fiber.join(fiber)
      assert.isTrue(error._tag === "AcquireTimeout" && error.phase === "Queue" && error.waited === 1000)
      assert.strictEqual(pool.statsUnsafe().waiting, 0)
      assert.strictEqual(store.acquireErrors.AcquireTimeout, 1)
    }))

  it.effect("are refused where the line is full, or the pool is closed", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ multiplex, max: 1, maxWaiting: 1 })
      const letGo = yield* hold(pool, pool.reserve())
      yield* Effect.forkChild(alone(pool, () => Effect.void), { startImmediately: true })
      assert.strictEqual((yield* Effect.flip(alone(pool, () => Effect.void)))._tag, "PoolSaturated")
      yield* letGo
      yield* pool.drain(0)
      assert.strictEqual((yield* Effect.flip(alone(pool, () => Effect.void)))._tag, "PoolClosed")
    }))

  it.effect("hand the session on when they are interrupted in the moment of being served", () =>
    Effect.gen(function*() {
      const { pool, store } = yield* setUp({ multiplex, max: 1 })
      yield* pool.suspend
      let isLent = false
      const first = yield* Effect.forkChild(
        alone(pool, () => Effect.sync(() => isLent = true)),
        { startImmediately: true }
      )
      const second = yield* Effect.forkChild(alone(pool, () => Effect.succeed("served")), { startImmediately: true })
      // Whoever is served by this hears of it a turn of the scheduler later.
      yield* pool.resume
      assert.strictEqual(pool.statsUnsafe().active, 1)
      first.interruptUnsafe()
      assert.strictEqual(yield* Fiber.join(second), "served")
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(first)))
      assert.isFalse(isLent)
      assert.strictEqual(store.acquire.interrupted.snapshot().count, 1)
      assert.strictEqual(pool.statsUnsafe().active, 0)
      // Nobody keeps it from being lent.
      assert.strictEqual(yield* pool.use(({ exclusions }) => Effect.succeed(exclusions)), 0)
    }))

  it.effect("leave the session to the one behind when whoever was before them interrupts them", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ multiplex, max: 1 })
      const letGo = yield* hold(pool, pool.reserve())
      const fibers: Array<Fiber.Fiber<number, unknown>> = []
      for (const index of [0, 1, 2]) {
        const work = Effect.sync(() => {
          if (index === 0) fibers[1]!.interruptUnsafe()
          return index
        })
        fibers.push(yield* Effect.forkChild(alone(pool, () => work), { startImmediately: true }))
      }
      yield* letGo
      assert.strictEqual(yield* Fiber.join(fibers[0]!), 0)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fibers[1]!)))
      assert.strictEqual(yield* Fiber.join(fibers[2]!), 2)
      assert.strictEqual(pool.statsUnsafe().active, 0)
    }))

  it.effect("have a session proved that has to be, and get it as their own", () =>
    Effect.gen(function*() {
      const { pool, store } = yield* setUp({ multiplex, max: 1, validate: "always" })
      const letGo = yield* hold(pool, pool.reserve())
      const counted = store.acquire.acquired.snapshot().count
      const fiber = yield* Effect.forkChild(alone(pool, ({ exclusions }) => Effect.succeed(exclusions)), {
        startImmediately: true
      })
      yield* letGo
      assert.strictEqual(yield* Fiber.join(fiber), 1)
      assert.strictEqual(store.acquire.acquired.snapshot().count - counted, 1)
      assert.strictEqual(pool.statsUnsafe().active, 0)
      assert.strictEqual(yield* alone(pool, ({ exclusions }) => Effect.succeed(exclusions)), 1)
    }))
})

describe("a statement that is asked for by hand", () => {
  it.live("has the session at once or not at all, and serves who waits when it gives it back", () =>
    Effect.gen(function*() {
      const { pool, store } = yield* setUp({ max: 1 })
      // The first use has been woken up, and whoever it wakes up waits until it pauses.
      yield* Effect.yieldNow
      const session = pool.takeUnsafe()
      assert.isDefined(session)
      assert.isUndefined(pool.takeUnsafe())
      let isServed = false
      const next = yield* Effect.forkChild(
        pool.use(() => Effect.sync(() => isServed = true)),
        { startImmediately: true }
      )
      assert.strictEqual(pool.statsUnsafe().waiting, 1)
      const before = store.use.snapshot().count
      pool.giveBackUnsafe(session!)
      assert.isTrue(isServed, "before giveBackUnsafe returns")
      yield* Fiber.join(next)
      assert.strictEqual(store.use.snapshot().count - before, 2)
    }))
})
