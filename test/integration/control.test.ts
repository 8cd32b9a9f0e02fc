import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeImpostor } from "./proxy.ts"
import { ended, eventually, makeWitness, soon } from "./witness.ts"

const crowd = 2000
const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** A pool of its own, which may be closed before the test ends, and somebody who looks at the server. */
const setUp = Effect.fnUntraced(function*(options: Omit<Pg.Pool.Options, "url">) {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  const scope = yield* Scope.fork(yield* Effect.scope)
  const context = yield* Layer.build(Layer.provideMerge(Pg.Pool.layer({ url, ...options }), Pg.Metrics.layer())).pipe(
    Scope.provide(scope)
  )
  const { pool, metrics } = yield* Effect.provide(
    Effect.gen(function*() {
      return { pool: yield* Pg.Pool.Pool, metrics: yield* Pg.Metrics.Metrics }
    }),
    context
  )
  return {
    witness,
    pool,
    close: Scope.close(scope, Exit.void),
    closed: Effect.map(metrics.snapshot, ({ connectionsClosed }) => connectionsClosed),
    has: (count: number) =>
      eventually(`${count} sessions on the server`, Effect.map(witness.count, (now) => now === count))
  }
})

type Pool = Pg.Pool.Pool["Service"]

const waiting = (pool: Pool, count: number) =>
  eventually(`${count} who wait`, Effect.map(pool.stats, (stats) => stats.waiting === count))

/** Borrowers who each want to ask the server one thing, in the order in which they came. */
const queue = (pool: Pool, count: number) => {
  const order: Array<number> = []
  const ask = (name: number) =>
    pool.use(({ connection }) =>
      Effect.andThen(Effect.sync(() => order.push(name)), connection.queryValues("SELECT pg_backend_pid()"))
    )
  return Effect.map(
    Effect.forEach(range(count), (name) => Effect.forkChild(ask(name), { startImmediately: true })),
    (fibers) => ({ fibers, order })
  )
}

const allServed = Effect.fnUntraced(function*<A, E>(fibers: ReadonlyArray<Fiber.Fiber<A, E>>) {
  for (const fiber of fibers) {
    const exit = yield* ended(fiber)
    if (Exit.isFailure(exit)) assert.fail(Cause.pretty(exit.cause))
  }
})

/** How many ended with which error. */
const tally = Effect.fnUntraced(function*<A, E extends { readonly _tag: string }>(
  fibers: ReadonlyArray<Fiber.Fiber<A, E>>
) {
  const counts: Record<string, number> = {}
  for (const fiber of fibers) {
    const exit = yield* ended(fiber)
    const error = Exit.isFailure(exit) ? Cause.findErrorOption(exit.cause) : undefined
    const word = error === undefined ? "Served" : error._tag === "Some" ? error.value._tag : "a defect"
    counts[word] = (counts[word] ?? 0) + 1
  }
  return counts
})

/** Holds that many sessions until the scope closes. */
const hold = (pool: Pool, count: number) =>
  Effect.forEach(range(count), () => pool.reserve(), { concurrency: "unbounded" })

describe("resize", () => {
  it.live(
    "to a larger size serves those who wait, thousands of them, and in their order",
    () =>
      Effect.gen(function*() {
        const { has, pool, witness } = yield* setUp({ max: 1, min: 0 })
        const watch = yield* witness.watch
        const holder = yield* Scope.make()
        yield* Scope.provide(hold(pool, 1), holder)
        const { fibers, order } = yield* queue(pool, crowd)
        assert.strictEqual((yield* pool.stats).waiting, crowd)
        yield* pool.resize({ max: 6 })
        yield* allServed(fibers)
        // The one who had the only session still has it.
        assert.deepStrictEqual(order, range(crowd))
        const { active, max, total } = yield* pool.stats
        assert.deepStrictEqual([active, max], [1, 6])
        yield* Scope.close(holder, Exit.void)
        yield* has(total)
        assert.isAtLeast(total, 2)
        assert.isAtMost(watch.most(), 6)
      }).pipe(Effect.scoped),
    60_000
  )

  it.live(
    "to a smaller size closes what is idle now, and what is lent when it comes back",
    () =>
      Effect.gen(function*() {
        const { closed, has, pool } = yield* setUp({ max: 6, min: 6 })
        const holder = yield* Scope.make()
        yield* Effect.scoped(hold(pool, 6))
        const leases = yield* Scope.provide(hold(pool, 4), holder)
        yield* pool.resize({ max: 2 })
        yield* has(4)
        assert.strictEqual((yield* pool.stats).min, 2)
        // Work goes on.
        for (const { connection } of leases) {
          assert.strictEqual((yield* connection.queryValues("SELECT pg_backend_pid()"))[0]?.[0], connection.processId)
        }
        const { fibers } = yield* queue(pool, crowd)
        assert.strictEqual((yield* pool.stats).waiting, crowd)
        yield* Scope.close(holder, Exit.void)
        yield* allServed(fibers)
        yield* has(2)
        yield* eventually("four sockets are gone here too", Effect.map(closed, ({ resize }) => resize >= 4))
        assert.strictEqual((yield* closed).resize, 4)
        const { active, idle, total } = yield* pool.stats
        assert.deepStrictEqual([active, idle, total], [0, 2, 2])
      }).pipe(Effect.scoped),
    60_000
  )

  it.live("to a smaller size closes as many shared sessions as are too many, and no more", () =>
    Effect.gen(function*() {
      const { closed, has, pool } = yield* setUp({ max: 4, min: 4, multiplex: true, multiplexConcurrency: 2 })
      const shares = yield* Effect.forEach(range(8), () =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          return { scope, session: yield* Scope.provide(pool.get(), scope) }
        }), { concurrency: "unbounded" })
      yield* has(4)
      assert.strictEqual((yield* pool.stats).active, 4)
      yield* pool.resize({ max: 3 })
      // One share of each comes back while the other is still in use.
      const seen = new Set<number>()
      const isFirst = ({ session }: typeof shares[number]) => !seen.has(session.id) && seen.add(session.id)
      const [first, second] = [shares.filter(isFirst), shares].map((list) => list.map(({ scope }) => scope))
      assert.strictEqual(first!.length, 4)
      for (const scope of [...first!, ...second!]) yield* Scope.close(scope, Exit.void)
      yield* has(3)
      yield* eventually("one socket is gone here too", Effect.map(closed, ({ resize }) => resize > 0))
      assert.strictEqual((yield* closed).resize, 1)
    }).pipe(Effect.scoped))

  it.live("to a smaller size closes the session that is idle first, and not the shared one that was to go", () =>
    Effect.gen(function*() {
      const { closed, has, pool } = yield* setUp({ max: 2, min: 2, multiplex: true, multiplexConcurrency: 2 })
      const shares = yield* Effect.forEach(range(4), () =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          return { scope, session: yield* Scope.provide(pool.get(), scope) }
        }), { concurrency: "unbounded" })
      yield* has(2)
      yield* pool.resize({ max: 1 })
      const of = (id: number) => shares.filter(({ session }) => session.id === id).map(({ scope }) => scope)
      const [one, other] = Array.from(new Set(shares.map(({ session }) => session.id)), of)
      // It is the first to be too many, and then the last to be given back.
      yield* Scope.close(one![0]!, Exit.void)
      yield* Effect.forEach(other!, (scope) => Scope.close(scope, Exit.void))
      yield* has(1)
      assert.deepInclude(yield* pool.stats, { active: 1, idle: 0, total: 1 })
      yield* Scope.close(one![1]!, Exit.void)
      assert.strictEqual(
        yield* pool.use(({ id }) => Effect.succeed(id)),
        shares.find(({ scope }) => scope === one![1])!.session.id
      )
      yield* eventually("one socket is gone here too", Effect.map(closed, ({ resize }) => resize > 0))
      assert.strictEqual((yield* closed).resize, 1)
    }).pipe(Effect.scoped))

  it.live("to a smaller size closes what is idle though a session that has been idle for longer is shared", () =>
    Effect.gen(function*() {
      const { has, pool } = yield* setUp({ max: 3, min: 3, multiplex: true, multiplexConcurrency: 2 })
      yield* Effect.scoped(Effect.forEach(range(3), () => pool.reserve(), { concurrency: 3 }))
      yield* has(3)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* pool.get()
        // What comes back is above the shared one, which is at the bottom now.
        yield* Effect.scoped(hold(pool, 2))
        yield* pool.resize({ max: 1 })
        yield* has(1)
        assert.strictEqual((yield* pool.stats).active, 1)
      }))
    }).pipe(Effect.scoped))

  it.live(
    "back and forth while thousands wait strands nobody, and never goes above the larger size",
    () =>
      Effect.gen(function*() {
        const { has, pool, witness } = yield* setUp({ max: 2, min: 0 })
        const watch = yield* witness.watch
        const { fibers, order } = yield* queue(pool, crowd)
        const resizing = yield* Effect.forkChild(
          Effect.forever(Effect.forEach([5, 1, 3, 2], (max) => Effect.andThen(pool.resize({ max }), Effect.sleep(3))))
        )
        yield* allServed(fibers)
        yield* Fiber.interrupt(resizing)
        assert.deepStrictEqual(order, range(crowd))
        yield* pool.resize({ max: 1 })
        yield* has(1)
        assert.isAtMost(watch.most(), 5)
      }).pipe(Effect.scoped),
    60_000
  )

  const impossible = [
    [{ max: 0 }, "max"],
    [{ max: 1.5 }, "max"],
    [{ max: Number.NaN }, "max"],
    [{ min: -1 }, "min"],
    [{ min: 5 }, "min"],
    [{ max: 2, min: 3 }, "min"]
  ] as const

  it.live("to an impossible size is refused by name, and changes nothing", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ max: 4, min: 1 })
      for (const [size, option] of impossible) {
        const error = yield* Effect.flip(pool.resize(size))
        assert.strictEqual(error._tag, "InvalidOption")
        assert.strictEqual(error.option, option)
      }
      const { max, min } = yield* pool.stats
      assert.deepStrictEqual([max, min], [4, 1])
    }).pipe(Effect.scoped))
})

describe("evictAll", () => {
  it.live("while thousands wait gives each of them a session that was opened afterwards", () =>
    Effect.gen(function*() {
      const { has, pool, witness } = yield* setUp({ max: 3, min: 3 })
      const holder = yield* Scope.make()
      yield* Scope.provide(hold(pool, 3), holder)
      const old = new Set(yield* witness.sessions)
      const { fibers, order } = yield* queue(pool, crowd)
      yield* pool.evictAll
      yield* Scope.close(holder, Exit.void)
      for (const fiber of fibers) {
        const exit = yield* ended(fiber)
        if (Exit.isFailure(exit)) assert.fail(Cause.pretty(exit.cause))
        assert.isFalse(old.has(exit.value[0]?.[0] as number))
      }
      assert.deepStrictEqual(order, range(crowd))
      yield* has(3)
    }).pipe(Effect.scoped), 60_000)
})

describe("suspend", () => {
  it.live(
    "lends nothing until resume: thousands wait, work under way goes on, and no session is opened",
    () =>
      Effect.gen(function*() {
        const { pool, witness } = yield* setUp({ max: 3, min: 3 })
        yield* Effect.scoped(Effect.gen(function*() {
          const { connection } = yield* pool.reserve()
          yield* pool.suspend
          const { fibers, order } = yield* queue(pool, crowd)
          assert.strictEqual((yield* pool.stats).waiting, crowd)
          assert.strictEqual((yield* connection.queryValues("SELECT 1")).length, 1)
          yield* Effect.sleep(50)
          assert.deepStrictEqual(order, [])
          assert.strictEqual(yield* witness.count, 1)
          yield* pool.resume
          yield* allServed(fibers)
          assert.deepStrictEqual(order, range(crowd))
        }))
        // Twice is as good as once, and a pool that is not suspended may be resumed.
        yield* pool.resume
        yield* Effect.andThen(pool.suspend, pool.suspend)
        const late = yield* Effect.forkChild(pool.use(() => Effect.void), { startImmediately: true })
        yield* waiting(pool, 1)
        yield* pool.resume
        assert.isTrue(Exit.isSuccess(yield* ended(late)))
      }).pipe(Effect.scoped),
    60_000
  )

  it.live("does not stretch acquireTimeout, which then says what it waited for", () =>
    Effect.gen(function*() {
      const { pool } = yield* setUp({ max: 3, acquireTimeout: 100 })
      yield* pool.suspend
      const error = yield* Effect.flip(pool.use(() => Effect.void))
      assert.strictEqual(error._tag, "AcquireTimeout")
      if (error._tag === "AcquireTimeout") assert.strictEqual(error.phase, "Suspended")
      assert.strictEqual((yield* pool.stats).waiting, 0)
    }).pipe(Effect.scoped))

  it.live(
    "keeps back sessions that come back, and those who wait get PoolClosed when the pool closes",
    () =>
      Effect.gen(function*() {
        const { close, has, pool } = yield* setUp({ max: 2, min: 2 })
        yield* Effect.scoped(Effect.andThen(hold(pool, 2), pool.suspend))
        const { fibers } = yield* queue(pool, crowd)
        assert.deepInclude(yield* pool.stats, { active: 0, idle: 2, waiting: crowd })
        yield* soon("the end of the pool", close)
        assert.deepStrictEqual(yield* tally(fibers), { PoolClosed: crowd })
        yield* has(0)
      }).pipe(Effect.scoped),
    60_000
  )
})

describe("warm", () => {
  it.live("opens as many sessions as it is told, max at most, and none when they are there", () =>
    Effect.gen(function*() {
      const { pool, witness } = yield* setUp({ max: 5, min: 0 })
      yield* pool.warm(0)
      assert.strictEqual(yield* witness.count, 0)
      yield* pool.warm(3)
      assert.strictEqual(yield* witness.count, 3)
      assert.deepInclude(yield* pool.stats, { idle: 3, total: 3, connecting: 0 })
      const before = yield* witness.sessions
      yield* pool.warm(2)
      assert.deepStrictEqual(yield* witness.sessions, before)
      yield* pool.warm(100)
      assert.strictEqual(yield* witness.count, 5)
    }).pipe(Effect.scoped))

  it.live(
    "serves those who wait with what it opens, and opens while the pool is suspended",
    () =>
      Effect.gen(function*() {
        const { pool, witness } = yield* setUp({ max: 4, min: 0 })
        yield* pool.suspend
        const { fibers, order } = yield* queue(pool, crowd)
        yield* pool.warm(4)
        assert.strictEqual(yield* witness.count, 4)
        assert.deepStrictEqual(order, [])
        yield* pool.resume
        yield* allServed(fibers)
        assert.deepStrictEqual(order, range(crowd))
      }).pipe(Effect.scoped),
    60_000
  )

  it.live("can be interrupted: what was under way is there for whoever comes next", () =>
    Effect.gen(function*() {
      const { pool, witness } = yield* setUp({ max: 3, min: 0, afterConnect: () => Effect.sleep(100) })
      const warming = yield* Effect.forkChild(pool.warm(3), { startImmediately: true })
      yield* eventually("a connect under way", Effect.map(pool.stats, ({ connecting }) => connecting > 0))
      yield* soon("the end of warm", Fiber.interrupt(warming))
      yield* eventually("an end of connecting", Effect.map(pool.stats, ({ connecting }) => connecting === 0))
      const { idle } = yield* pool.stats
      assert.isAtLeast(idle, 1)
      assert.isBelow(idle, 3)
      assert.strictEqual(yield* witness.count, idle)
    }).pipe(Effect.scoped))

  it.live("fails with what the connect failed with, on a server that is dead", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("closes")
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = yield* soon("the end of warm", Effect.flip(pool.warm(3)))
        assert.strictEqual(error._tag, "SqlError")
        assert.deepInclude(yield* pool.stats, { total: 0, connecting: 0 })
        assert.isAtMost(impostor.accepted(), 3)
      }).pipe(Effect.provide(Layer.provideMerge(Pg.Pool.layer({ url: impostor.url, max: 3 }), Pg.Metrics.layer())))
    }))

  it.live("says what the last connect failed with, when there are sessions and there will be no more of them", () =>
    Effect.gen(function*() {
      let runs = 0
      const { pool, witness } = yield* setUp({
        max: 3,
        acquireTimeout: 2000,
        afterConnect: () => Effect.suspend(() => ++runs > 1 ? Effect.fail("no more") : Effect.void)
      })
      const error = yield* soon("the end of warm", Effect.flip(pool.warm(3)))
      assert.strictEqual(error._tag, "AcquireTimeout")
      assert.include(error.message, "afterConnect")
      // There was a pause between them.
      assert.isAtMost(runs, 12)
      yield* eventually("one session", Effect.map(witness.count, (count) => count === 1))
      yield* pool.use(() => Effect.void)
    }).pipe(Effect.scoped))

  it.live("fails with AcquireTimeout when nobody answers, and with PoolClosed when the pool closes", () =>
    Effect.gen(function*() {
      const impostor = yield* makeImpostor("is silent")
      const scope = yield* Scope.make()
      const context = yield* Layer.build(
        Layer.provideMerge(Pg.Pool.layer({ url: impostor.url, max: 2, acquireTimeout: 200 }), Pg.Metrics.layer())
      ).pipe(Scope.provide(scope))
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = yield* soon("the end of warm", Effect.flip(pool.warm(2)))
        assert.strictEqual(error._tag, "AcquireTimeout")
        const warming = yield* Effect.forkChild(Effect.flip(pool.warm(2)), { startImmediately: true })
        yield* soon("the end of the pool", Scope.close(scope, Exit.void))
        assert.strictEqual((yield* Fiber.join(warming))._tag, "PoolClosed")
        assert.strictEqual((yield* Effect.flip(pool.warm(1)))._tag, "PoolClosed")
      }).pipe(Effect.provide(context))
    }))

  it.live("leaves sessions that grow old unused like any other, and lends none of those that it closes", () =>
    Effect.gen(function*() {
      const { closed, has, pool } = yield* setUp({ max: 3, min: 0, idleTimeout: 100 })
      yield* pool.warm(3)
      yield* Effect.sleep(200)
      const answers = yield* Effect.forEach(
        range(2),
        () => pool.use(({ connection }) => connection.queryValues("SELECT 1"))
      )
      assert.strictEqual(answers.length, 2)
      yield* has(1)
      yield* eventually("three sockets are gone here too", Effect.map(closed, ({ idle }) => idle >= 3))
      assert.strictEqual((yield* closed).idle, 3)
      assert.deepInclude(yield* pool.stats, { active: 0, idle: 1, total: 1 })
    }).pipe(Effect.scoped))
})

describe("drain", () => {
  it.live(
    "serves those who wait, thousands of them, turns away those who come, and cuts nobody off",
    () =>
      Effect.gen(function*() {
        const { close, has, pool } = yield* setUp({ max: 3, min: 3 })
        const holder = yield* Scope.make()
        yield* Scope.provide(hold(pool, 3), holder)
        const { fibers, order } = yield* queue(pool, crowd)
        const draining = yield* Effect.forkChild(pool.drain("1 minute"), { startImmediately: true })
        assert.strictEqual((yield* Effect.flip(pool.use(() => Effect.void)))._tag, "PoolClosed")
        assert.isTrue(pool.isClosing())
        yield* Scope.close(holder, Exit.void)
        yield* allServed(fibers)
        assert.deepStrictEqual(order, range(crowd))
        assert.strictEqual(yield* soon("the end of drain", Fiber.join(draining)), 0)
        yield* has(0)
        assert.deepInclude(yield* pool.stats, { active: 0, connecting: 0, total: 0, waiting: 0 })
        assert.strictEqual(yield* soon("a second drain", pool.drain(0)), 0)
        yield* soon("the end of the pool", close)
      }).pipe(Effect.scoped),
    60_000
  )

  it.live("closes what is idle at once, and what is left when its borrower is done", () =>
    Effect.gen(function*() {
      const { has, pool } = yield* setUp({ max: 4, min: 4 })
      yield* Effect.scoped(hold(pool, 4))
      const holder = yield* Scope.make()
      yield* Scope.provide(hold(pool, 1), holder)
      const draining = yield* Effect.forkChild(pool.drain("1 minute"), { startImmediately: true })
      yield* has(1)
      assert.isUndefined(draining.pollUnsafe())
      yield* Scope.close(holder, Exit.void)
      assert.strictEqual(yield* soon("the end of drain", Fiber.join(draining)), 0)
      yield* has(0)
    }).pipe(Effect.scoped))

  it.live("cuts off the rest at its deadline, and says how many that were", () =>
    Effect.gen(function*() {
      const { close, has, pool } = yield* setUp({ max: 2, min: 2 })
      const asleep = yield* Effect.forEach(range(2), () =>
        Effect.forkChild(pool.use(({ connection }) => connection.query("SELECT pg_sleep(60)"))))
      yield* eventually(
        "two at work",
        Effect.map(pool.stats, ({ active }) =>
          active === 2)
      )
      const { fibers, order } = yield* queue(pool, crowd)
      assert.strictEqual(yield* soon("the end of drain", pool.drain(100)), crowd + 2)
      assert.deepStrictEqual(yield* tally(fibers), { PoolClosed: crowd })
      assert.deepStrictEqual(order, [])
      assert.deepStrictEqual(yield* tally(asleep), { SqlError: 2 })
      yield* has(0)
      yield* soon("the end of the pool", close)
    }).pipe(Effect.scoped), 60_000)

  it.live("ends a suspension, for those who wait to be served", () =>
    Effect.gen(function*() {
      const { has, pool } = yield* setUp({ max: 2 })
      yield* pool.suspend
      const { fibers, order } = yield* queue(pool, crowd)
      assert.strictEqual(yield* soon("the end of drain", pool.drain("1 minute")), 0)
      yield* allServed(fibers)
      assert.deepStrictEqual(order, range(crowd))
      yield* has(0)
    }).pipe(Effect.scoped), 60_000)

  it.live("twice at a time ends both at the nearer deadline", () =>
    Effect.gen(function*() {
      const { has, pool } = yield* setUp({ max: 1 })
      yield* Effect.scoped(Effect.gen(function*() {
        yield* pool.reserve()
        const patient = yield* Effect.forkChild(pool.drain("1 minute"), { startImmediately: true })
        assert.strictEqual(yield* soon("the end of drain", pool.drain(50)), 1)
        assert.strictEqual(yield* soon("the end of the other", Fiber.join(patient)), 0)
        yield* has(0)
      }))
    }).pipe(Effect.scoped))

  it.live("gives those who warm the pool PoolClosed at once, and opens nothing more for them", () =>
    Effect.gen(function*() {
      const { has, pool, witness } = yield* setUp({ max: 5, afterConnect: () => Effect.sleep(100) })
      const holder = yield* Scope.make()
      yield* Scope.provide(hold(pool, 1), holder)
      const warming = yield* Effect.forkChild(Effect.flip(pool.warm(5)), { startImmediately: true })
      const draining = yield* Effect.forkChild(pool.drain("1 minute"), { startImmediately: true })
      assert.strictEqual((yield* soon("an answer", Fiber.join(warming)))._tag, "PoolClosed")
      assert.isUndefined(draining.pollUnsafe())
      yield* eventually("no more connects", Effect.map(pool.stats, ({ connecting }) => connecting === 0))
      yield* has(1)
      assert.strictEqual(yield* witness.count, 1)
      yield* Scope.close(holder, Exit.void)
      assert.strictEqual(yield* soon("the end of drain", Fiber.join(draining)), 0)
      yield* has(0)
    }).pipe(Effect.scoped))

  it.live("still serves one whose session turns out to be dead while the pool is drained", () =>
    Effect.gen(function*() {
      let isFirst = true
      const { pool } = yield* setUp({
        max: 1,
        // Refuses the session of the last one in line.
        beforeAcquire: () => Effect.sync(() => isFirst || !(isFirst = true))
      })
      const holder = yield* Scope.make()
      yield* Scope.provide(hold(pool, 1), holder)
      isFirst = false
      const { fibers } = yield* queue(pool, 1)
      const draining = yield* Effect.forkChild(pool.drain("1 minute"), { startImmediately: true })
      yield* Scope.close(holder, Exit.void)
      yield* allServed(fibers)
      assert.strictEqual(yield* soon("the end of drain", Fiber.join(draining)), 0)
    }).pipe(Effect.scoped))
})
