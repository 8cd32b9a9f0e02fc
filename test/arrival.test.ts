/** What becomes of a session, of its place and of everybody else when somebody comes to the line and something goes wrong. */
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

/** A pool whose clock fails once: when it is looked at for so many more times, and while nobody has a session if not told otherwise. */
const poolOn = (options: Pool.Options) =>
  Effect.gen(function*() {
    const clock = yield* Clock.Clock
    const fault = { looksLeft: Infinity, hasHappened: false, isSpared: () => pool.statsUnsafe().active > 0 }
    const look = () => {
      if (--fault.looksLeft > 0) return clock
      fault.looksLeft = Infinity
      if (fault.isSpared()) return clock
      fault.hasHappened = true
      throw new Error("the clock is broken")
    }
    const faulty: Clock.Clock = Object.assign(Object.create(clock), {
      currentTimeMillisUnsafe: () => look().currentTimeMillisUnsafe(),
      monotonicTimeNanosUnsafe: () => look().monotonicTimeNanosUnsafe()
    })
    const server = makeMemoryServer()
    const layer = Pool.layer({ username: "somebody", stream: server.stream, ...options })
    const context = yield* Layer.build(Layer.provideMerge(layer, Metrics.layer())).pipe(
      Effect.provideService(Clock.Clock, faulty)
    )
    const pool = Context.get(context, Pool.Pool)
    return { fault, pool, server }
  })

type Service = Pool.Pool["Service"]

/** Has a session for himself while the work runs, as a transaction does. */
const alone = <A>(pool: Service, work: Effect.Effect<A>) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      pool.exclusiveUnsafe.take(restore),
      (lease) =>
        Effect.onExit(restore(work), () => Effect.suspend(() => pool.exclusiveUnsafe.giveBack(lease) ?? Effect.void))
    )
  )

const nextTurn = Effect.promise(() => new Promise<void>((resolve) => setImmediate(resolve)))
const settle = Effect.replicateEffect(nextTurn, 6, { discard: true })

const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })
const visit = (pool: Service) => pool.use(() => Effect.void)

/** What there is when somebody comes. Those who are there already are returned. */
const situations: Record<
  string,
  (
    world: Effect.Success<ReturnType<typeof poolOn>>,
    come: Effect.Effect<string, unknown>
  ) => Effect.Effect<ReadonlyArray<Fiber.Fiber<string, unknown>>, unknown>
> = {
  "a connect under way for somebody else": ({ server }, come) =>
    Effect.suspend(() => {
      server.manner = "accepts when told"
      return Effect.map(start(come), (other) => [other])
    }),
  "a session that has to be proved": ({ pool }) => Effect.as(Effect.andThen(visit(pool), TestClock.adjust(2000)), []),
  "sessions that have idled for too long": ({ pool }) =>
    Effect.as(Effect.andThen(pool.warm(2), TestClock.adjust(12_000)), []),
  "somebody else in line before a suspended pool": ({ pool }, come) =>
    Effect.map(Effect.andThen(Effect.andThen(visit(pool), pool.suspend), start(come)), (other) => [other])
}

describe.each(Object.keys(situations))("a borrower for whom a look at the clock fails, with %s", (situation) => {
  for (const isExclusive of [false, true]) {
    it.effect(`takes nothing along, and strands nobody${isExclusive ? ", if the session is to be its own" : ""}`, () =>
      Effect.gen(function*() {
        const trial = (looksLeft: number) =>
          Effect.gen(function*() {
            const world = yield* poolOn({
              max: 2,
              min: 0,
              validateAfter: 1000,
              idleTimeout: 10_000,
              acquireTimeout: 20_000
            })
            const { fault, pool, server } = world
            const work = Effect.as(Effect.yieldNow, "served")
            const come = isExclusive ? alone(pool, work) : pool.use(() => work)
            const others = yield* situations[situation]!(world, come)
            fault.looksLeft = looksLeft
            const borrower = yield* start(come)
            fault.looksLeft = Infinity

            server.manner = "accepts"
            server.greet()
            yield* pool.resume
            yield* settle
            assert.isDefined(borrower.pollUnsafe(), `look ${looksLeft}`)
            for (const other of others) assert.strictEqual(yield* Fiber.join(other), "served", `look ${looksLeft}`)
            const all = yield* start(Effect.scoped(Effect.andThen(pool.get(), pool.get())))
            yield* settle
            assert.isDefined(all.pollUnsafe(), `look ${looksLeft}: all places are still there`)
            const { active, connecting, waiting } = pool.statsUnsafe()
            assert.deepStrictEqual({ active, connecting, waiting }, { active: 0, connecting: 0, waiting: 0 })
            const cut = yield* start(pool.drain(60_000))
            yield* settle
            assert.isDefined(cut.pollUnsafe(), `look ${looksLeft}: a drain does not wait for it`)
            return fault.hasHappened
          })
        let looks = 0
        while (yield* Effect.scoped(trial(looks + 1))) looks++
        assert.isAtLeast(looks, 3)
      }))
  }
})

/** What there is when the session is handed over. Whoever has it lets go of it by what is returned. */
const handovers: Record<string, (pool: Service) => Effect.Effect<Effect.Effect<void>, unknown, Scope.Scope>> = {
  "at once": (pool) => Effect.as(visit(pool), Effect.void),
  "after a proof": (pool) => Effect.as(Effect.andThen(visit(pool), TestClock.adjust(2000)), Effect.void),
  "in line": (pool) =>
    Effect.gen(function*() {
      const scope = Scope.forkUnsafe(yield* Effect.scope)
      yield* Scope.provide(pool.reserve(), scope)
      return Scope.close(scope, Exit.void)
    })
}

describe.each(Object.keys(handovers))(
  "a borrower who is handed a session of its own %s, and then fails",
  (handover) => {
    const pools: ReadonlyArray<readonly [name: string, options: Pool.Options]> = [
      ["a plain pool", {}],
      ["a pool that watches for leaks", { leakThreshold: "1 minute" }],
      ["a multiplexed pool", { multiplex: true }]
    ]
    for (const [name, options] of pools) {
      for (const by of ["a transaction", "a scope"]) {
        it.effect(`does not keep it: ${name}, ${by}`, () =>
          Effect.gen(function*() {
            const trial = (looksLeft: number) =>
              Effect.gen(function*() {
                const { fault, pool } = yield* poolOn({
                  max: 1,
                  validateAfter: 1000,
                  acquireTimeout: 20_000,
                  ...options
                })
                fault.isSpared = () => false
                const work = Effect.sync(() => {
                  fault.looksLeft = Infinity
                })
                const come = by === "a transaction"
                  ? alone(pool, work)
                  : Effect.scoped(Effect.andThen(pool.reserve(), work))
                const letGo = yield* handovers[handover]!(pool)
                if (handover !== "in line") fault.looksLeft = looksLeft
                const borrower = yield* start(come)
                yield* letGo
                // Whoever is served by this hears of it a turn of the scheduler later.
                if (handover === "in line") fault.looksLeft = looksLeft
                yield* settle
                fault.looksLeft = Infinity
                assert.isDefined(borrower.pollUnsafe(), `look ${looksLeft}`)
                const { active, waiting } = pool.statsUnsafe()
                assert.deepStrictEqual({ active, waiting }, { active: 0, waiting: 0 }, `look ${looksLeft}`)
                const next = yield* start(Effect.scoped(pool.reserve()))
                yield* settle
                assert.isTrue(next.pollUnsafe()?._tag === "Success", `look ${looksLeft}`)
                return fault.hasHappened
              })
            let looks = 0
            while (yield* Effect.scoped(trial(looks + 1))) looks++
            assert.isAtLeast(looks, 2)
          }))
      }
    }
  }
)

describe("a borrower with less time than the pool needs", () => {
  it.live("has a session opened all the same, for whoever comes after it", () =>
    Effect.gen(function*() {
      const { pool, server } = yield* poolOn({ max: 1, acquireTimeout: "1 nanos" })
      const late = yield* Effect.flip(visit(pool))
      assert.isTrue(late._tag === "AcquireTimeout" && late.phase === "Connect")
      while (pool.statsUnsafe().idle === 0) yield* nextTurn
      assert.strictEqual(yield* pool.use(() => Effect.succeed("served")), "served")
      assert.strictEqual(server.peers.length, 1)
    }))

  for (const by of ["a statement", "a transaction"]) {
    it.live(`loses a session that does not prove itself in that time, but not its place: ${by}`, () =>
      Effect.gen(function*() {
        const { pool, server } = yield* poolOn({ max: 1, validate: "always", acquireTimeout: "1 nanos" })
        yield* Effect.exit(visit(pool))
        while (pool.statsUnsafe().idle === 0) yield* nextTurn
        server.peers[0]!.mute()
        const error = yield* Effect.flip(by === "a statement" ? visit(pool) : alone(pool, Effect.void))
        assert.isTrue(error._tag === "AcquireTimeout" && error.phase === "Validate")
        assert.strictEqual(pool.statsUnsafe().total, 0)
        // Its place is free when its socket has closed.
        assert.strictEqual(yield* pool.use(() => Effect.succeed("served"), { timeout: 30_000 }), "served")
        assert.strictEqual(server.peers.length, 2)
      }))
  }
})

describe("a session that was handed to somebody who was interrupted in that moment", () => {
  const cases = ["a statement", "a transaction", "a statement with a bound of its own"].flatMap((by) =>
    [undefined, 10_000].map((idleTimeout) => ({ by, idleTimeout }))
  )
  for (const { by, idleTimeout } of cases) {
    it.effect(`is as unproved as it was: ${by}${idleTimeout === undefined ? "" : ", after idleTimeout"}`, () =>
      Effect.gen(function*() {
        const { pool, server } = yield* poolOn({
          max: 1,
          min: 0,
          validateAfter: 1000,
          idleTimeout,
          acquireTimeout: "1 hour"
        })
        yield* visit(pool)
        yield* pool.suspend
        const borrower = yield* start(
          by === "a transaction"
            ? alone(pool, Effect.void)
            : pool.use(() => Effect.void, by === "a statement" ? undefined : { timeout: "1 hour" })
        )
        yield* TestClock.adjust(60_000)
        // Whoever is served by this hears of it a turn of the scheduler later.
        yield* pool.resume
        yield* Fiber.interrupt(borrower)
        const before = server.activity()
        yield* visit(pool)
        assert.isAbove(server.activity(), before)
        const proved = server.activity()
        yield* visit(pool)
        assert.strictEqual(server.activity(), proved)
      }))
  }
})

describe("whoever observes a borrower whose time is up", () => {
  it.effect("and fails, does not make the others wait for ever", () =>
    Effect.gen(function*() {
      const { pool } = yield* poolOn({ max: 1, acquireTimeout: 1000 })
      const scope = Scope.forkUnsafe(yield* Effect.scope)
      yield* Scope.provide(pool.get(), scope)
      const borrowers: Array<Fiber.Fiber<unknown, unknown>> = []
      for (let index = 0; index < 3; index++) {
        borrowers.push(yield* start(Effect.flip(visit(pool))))
        yield* TestClock.adjust(100)
      }
      borrowers[0]!.addObserver(() => {
        throw new Error("the observer fails")
      })
      for (const [index, ms] of [[0, 700], [1, 100], [2, 100]] as const) {
        assert.isUndefined(borrowers[index]!.pollUnsafe())
        yield* TestClock.adjust(ms)
        assert.isDefined(borrowers[index]!.pollUnsafe(), `borrower ${index}`)
      }
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(pool.statsUnsafe().waiting, 0)
    }))

  it.effect("and fails, with another one of that kind at once, does not make the third wait for ever", () =>
    Effect.gen(function*() {
      const { pool } = yield* poolOn({ max: 1, acquireTimeout: 1000 })
      yield* pool.get()
      for (let index = 0; index < 2; index++) {
        const late = yield* start(Effect.flip(visit(pool)))
        late.addObserver(() => {
          throw new Error("the observer fails")
        })
      }
      yield* TestClock.adjust(100)
      const third = yield* start(Effect.flip(visit(pool)))
      yield* TestClock.adjust(900)
      assert.strictEqual(pool.statsUnsafe().waiting, 1)
      yield* TestClock.adjust(100)
      assert.isDefined(third.pollUnsafe())
    }))
})
