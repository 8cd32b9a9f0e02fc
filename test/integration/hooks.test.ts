import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { ended, eventually, makeWitness, soon } from "./witness.ts"

type Usage = Parameters<NonNullable<Pg.Pool.Options["beforeAcquire"]>>[1]

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** What a hook comes to. */
const ends: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown>]> = [
  ["fails", Effect.fail("no")],
  ["dies", Effect.die("no")],
  ["interrupts itself", Effect.interrupt]
]

const withPool = <A, E>(
  options: Omit<Pg.Pool.Options, "url">,
  test: (
    pool: Pg.Pool.Pool["Service"],
    server: {
      readonly count: Effect.Effect<number, unknown>
      readonly has: (count: number) => Effect.Effect<void, unknown>
      readonly sessions: Effect.Effect<ReadonlyArray<number>, unknown>
      readonly terminate: (pids: ReadonlyArray<number>) => Effect.Effect<number, unknown>
    }
  ) => Effect.Effect<A, E, Scope.Scope>
) =>
  Effect.gen(function*() {
    const url = yield* freshDatabase
    const witness = yield* makeWitness(url)
    const has = (count: number) =>
      eventually(`${count} sessions on the server`, Effect.map(witness.count, (now) => now === count))
    yield* Effect.flatMap(Pg.Pool.Pool, (pool) => Effect.scoped(test(pool, { ...witness, has }))).pipe(
      Effect.provide(Layer.provideMerge(Pg.Pool.layer({ url, ...options }), Pg.Metrics.layer()))
    )
    yield* has(0)
  }).pipe(Effect.provide(Logger.layer([])))

const ask = (pool: Pg.Pool.Pool["Service"], options?: Pg.Pool.CheckoutOptions) =>
  pool.use(
    ({ connection }) => Effect.map(connection.queryValues("SELECT pg_backend_pid()"), (rows) => rows[0]?.[0]),
    options
  )

const isQuiet = (pool: Pg.Pool.Pool["Service"]) =>
  eventually(
    "nobody lends and nobody waits",
    Effect.map(pool.stats, ({ active, connecting, waiting }) => active + connecting + waiting === 0)
  )

describe("beforeAcquire and afterRelease", () => {
  it.live("hear how old the session is, how long it was idle, and how often it was lent", () => {
    const acquired: Array<Usage> = []
    const released: Array<Usage> = []
    return withPool({
      max: 1,
      beforeAcquire: (_, usage) => Effect.sync(() => acquired.push(usage)),
      afterRelease: (_, usage) => Effect.sync(() => released.push(usage))
    }, (pool) =>
      Effect.gen(function*() {
        yield* ask(pool)
        yield* Effect.sleep(60)
        yield* pool.use(() => Effect.sleep(80))
        yield* Effect.scoped(pool.reserve())
        assert.deepStrictEqual(acquired.map(({ uses }) => uses), [0, 1, 2])
        assert.deepStrictEqual(released.map(({ uses }) => uses), [1, 2, 3])
        assert.isAtLeast(acquired[1]!.idleFor, 55)
        assert.isAtLeast(acquired[1]!.age, acquired[1]!.idleFor)
        // Whoever had it had it for long; it was not idle meanwhile.
        assert.isBelow(acquired[2]!.idleFor, released[1]!.age)
        assert.deepStrictEqual(released.map(({ idleFor }) => idleFor), [0, 0, 0])
        assert.isAtLeast(released[1]!.age, acquired[1]!.age + 75)
      }))
  })

  it.live("run on the session itself, before and after its borrower", () => {
    const order: Array<string> = []
    const say = (word: string) => (connection: { readonly processId: number }) =>
      Effect.sync(() => order.push(`${word} ${connection.processId}`))
    return withPool(
      { max: 2, beforeAcquire: say("before"), afterRelease: say("after") },
      (pool) =>
        Effect.gen(function*() {
          const first = yield* ask(pool)
          const second = yield* ask(pool, { prove: true })
          assert.strictEqual(second, first)
          assert.deepStrictEqual(order, [`before ${first}`, `after ${first}`, `before ${first}`, `after ${first}`])
        })
    )
  })
})

describe("a beforeAcquire that answers false", () => {
  it.live("has the session closed and another one tried, and its borrower keeps the place in line", () => {
    const refused = new Set<number>()
    const order: Array<number> = []
    return withPool({
      max: 1,
      beforeAcquire: ({ processId }, { uses }) => Effect.sync(() => uses < 7 || !refused.add(processId))
    }, (pool, server) =>
      Effect.gen(function*() {
        const fibers = yield* Effect.forEach(range(50), (name) =>
          Effect.forkChild(pool.use(() => Effect.sync(() => order.push(name))), { startImmediately: true }))
        for (const fiber of fibers) {
          assert.isTrue(Exit.isSuccess(yield* ended(fiber)))
        }
        assert.deepStrictEqual(order, range(50))
        assert.strictEqual(refused.size, 7)
        assert.isTrue((yield* server.sessions).every((pid) =>
          !refused.has(pid)
        ))
      }))
  })

  it.live("always, fails its borrowers with HookFailed after max sessions, instead of opening ever more of them", () => {
    let opened = 0
    return withPool({
      max: 3,
      afterConnect: () => Effect.sync(() => opened++),
      beforeAcquire: () => Effect.succeed(false)
    }, (pool) =>
      Effect.gen(function*() {
        const error = yield* soon("an answer", Effect.flip(ask(pool)))
        assert.strictEqual(error._tag, "HookFailed")
        if (error._tag === "HookFailed") {
          assert.strictEqual(error.hook, "beforeAcquire")
          assert.match(error.message, /in a row/)
        }
        assert.isAtMost(opened, 4)
        yield* isQuiet(pool)
      }))
  })

  it.live("on a shared session leaves those alone who have a share of it", () => {
    let runs = 0
    return withPool({
      max: 2,
      multiplex: true,
      beforeAcquire: () => Effect.sync(() => ++runs !== 2)
    }, (pool) =>
      Effect.gen(function*() {
        const slow = yield* Effect.forkChild(
          pool.use(({ connection }) => connection.queryValues("SELECT pg_backend_pid(), pg_sleep(0.3)"))
        )
        yield* eventually("a borrower", Effect.map(pool.stats, ({ active }) => active === 1))
        const other = yield* ask(pool)
        const rows = yield* Fiber.join(slow)
        assert.notStrictEqual(other, rows[0]?.[0])
        yield* eventually("one session", Effect.map(pool.stats, ({ total }) => total === 1))
      }))
  })
})

describe("a beforeAcquire that", () => {
  for (const multiplex of [false, true]) {
    const how = multiplex ? ", multiplexed" : ""
    for (const [what, end] of ends) {
      it.live(`${what} is told as HookFailed, and its session is closed${how}`, () => {
        let isArmed = true
        return withPool({
          max: 1,
          multiplex,
          beforeAcquire: () => Effect.suspend(() => isArmed ? end : Effect.void)
        }, (pool, server) =>
          Effect.gen(function*() {
            for (const checkout of [ask(pool), Effect.scoped(pool.get()), Effect.scoped(pool.reserve())]) {
              const error = yield* soon("an answer", Effect.flip(checkout as Effect.Effect<unknown, Error>))
              assert.instanceOf(error, Pg.Errors.HookFailed)
              yield* isQuiet(pool)
              yield* server.has(0)
            }
            isArmed = false
            yield* ask(pool)
            assert.strictEqual(yield* server.count, 1)
          }))
      })
    }
  }

  it.live("never ends costs its borrower acquireTimeout, and the session", () => {
    let isArmed = true
    return withPool({
      max: 1,
      acquireTimeout: 200,
      beforeAcquire: () => Effect.suspend(() => isArmed ? Effect.never : Effect.void)
    }, (pool) =>
      Effect.gen(function*() {
        const error = yield* soon("an answer", Effect.flip(ask(pool)))
        assert.strictEqual(error._tag, "AcquireTimeout")
        if (error._tag === "AcquireTimeout") assert.strictEqual(error.phase, "Hook")
        yield* isQuiet(pool)
        isArmed = false
        yield* ask(pool, { timeout: 20_000 })
      }))
  })

  it.live("waits for a server that has fallen silent costs its borrower no more than acquireTimeout", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      let isSilent = false
      proxy.onRequest((_, link) => {
        if (isSilent) link.mute()
        return "pass"
      })
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* ask(pool)
        isSilent = true
        // The driver alone would wait five seconds more for the answer.
        const [took, error] = yield* Effect.timed(Effect.flip(ask(pool, { timeout: 200 })))
        assert.strictEqual(error._tag, "AcquireTimeout")
        assert.isBelow(Duration.toMillis(took), 4000)
        isSilent = false
        yield* ask(pool)
      }).pipe(Effect.provide(Layer.provideMerge(
        Pg.Pool.layer({
          url: proxy.url,
          max: 1,
          beforeAcquire: (connection) => connection.query("SET work_mem = '1MB'")
        }),
        Pg.Metrics.layer()
      )))
    }))

  it.live("is interrupted with its borrower leaves no session behind on which something is half done", () =>
    withPool({
      max: 1,
      beforeAcquire: (connection) => Effect.andThen(connection.query("SET work_mem = '1MB'"), Effect.never)
    }, (pool) =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(ask(pool))
        yield* eventually("a hook at work", Effect.map(pool.stats, ({ active }) => active === 1))
        yield* soon("an end", Fiber.interrupt(fiber))
        yield* isQuiet(pool)
        assert.strictEqual((yield* pool.stats).total, 0)
      })))

  it.live("loses its session has another one tried: that says nothing of the hook", () => {
    let runs = 0
    return Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        assert.isNumber(yield* ask(pool))
        assert.strictEqual(runs, 2)
      }).pipe(Effect.provide(Layer.provideMerge(
        Pg.Pool.layer({
          url,
          max: 1,
          beforeAcquire: (connection) =>
            Effect.suspend(() =>
              ++runs > 1
                ? Effect.void
                : Effect.andThen(witness.terminate([connection.processId]), connection.query("SELECT pg_sleep(10)"))
            )
        }),
        Pg.Metrics.layer()
      )))
    })
  })

  it.live("is at work while the pool closes hears of it when its session goes: PoolClosed", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const scope = yield* Scope.make()
      const context = yield* Layer.build(Layer.provideMerge(
        Pg.Pool.layer({ url, max: 1, closeTimeout: 100, beforeAcquire: () => Effect.never }),
        Pg.Metrics.layer()
      )).pipe(Scope.provide(scope))
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const fiber = yield* Effect.forkChild(Effect.flip(ask(pool)))
        yield* eventually("a hook at work", Effect.map(pool.stats, ({ active }) => active === 1))
        yield* soon("the end of the pool", Scope.close(scope, Exit.void))
        assert.strictEqual((yield* soon("an answer", Fiber.join(fiber)))._tag, "PoolClosed")
      }).pipe(Effect.provide(context))
    }))
})

describe("an afterRelease that", () => {
  const unwanted = [["answers false", Effect.succeed(false)], ...ends] as const

  for (const [what, end] of unwanted) {
    it.live(`${what} has the session closed, and nobody waits for that`, () => {
      let isArmed = true
      return withPool({
        max: 1,
        afterRelease: () => Effect.suspend((): Effect.Effect<unknown, unknown> => isArmed ? end : Effect.void)
      }, (pool, server) =>
        Effect.gen(function*() {
          const first = yield* ask(pool)
          yield* server.has(0)
          isArmed = false
          const second = yield* ask(pool)
          assert.notStrictEqual(second, first)
          assert.strictEqual(yield* ask(pool), second)
        }))
    })
  }

  it.live("takes its time keeps the session from the next borrower, and its last one does not wait for it", () => {
    const order: Array<string> = []
    return withPool({
      max: 1,
      afterRelease: () => Effect.delay(Effect.sync(() => order.push("hook")), 150)
    }, (pool) =>
      Effect.gen(function*() {
        yield* ask(pool)
        order.push("given back")
        yield* pool.use(() => Effect.sync(() => order.push("next")))
        assert.deepStrictEqual(order, ["given back", "hook", "next"])
      }))
  })

  const endless: ReadonlyArray<readonly [string, Effect.Effect<unknown>]> = [
    ["never ends", Effect.never],
    ["never ends and cannot be interrupted", Effect.uninterruptible(Effect.never)]
  ]
  for (const [what, end] of endless) {
    it.live(`${what} is given up after a second, and its session closed`, () => {
      let runs = 0
      return withPool({
        max: 1,
        afterRelease: () => Effect.suspend(() => ++runs === 1 ? end : Effect.void)
      }, (pool) =>
        Effect.gen(function*() {
          const first = yield* ask(pool)
          assert.notStrictEqual(yield* soon("the next one", ask(pool), 6), first)
          yield* isQuiet(pool)
        }))
    })
  }

  it.live("waits for a server that has fallen silent is given up after a second as well", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      let runs = 0
      let isMuted = false
      proxy.onRequest((_, link) => {
        if (runs === 1 && !isMuted) {
          isMuted = true
          link.mute()
        }
        return "pass"
      })
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* pool.use(() => Effect.void)
        yield* eventually("a hook that waits", Effect.sync(() => isMuted))
        const [took] = yield* Effect.timed(ask(pool))
        // Five seconds more are what the driver alone would wait.
        assert.isBelow(Duration.toMillis(took), 4500)
        assert.strictEqual(runs, 2)
      }).pipe(
        Effect.provide(Layer.provideMerge(
          Pg.Pool.layer({
            url: proxy.url,
            max: 1,
            afterRelease: (connection) => Effect.andThen(Effect.sync(() => runs++), connection.query("SELECT 1"))
          }),
          Pg.Metrics.layer()
        )),
        Effect.provide(Logger.layer([]))
      )
    }))

  it.live("runs once for all who share a session, when the last one has left", () => {
    let runs = 0
    return withPool({
      max: 1,
      multiplex: true,
      afterRelease: () => Effect.sync(() => runs++)
    }, (pool) =>
      Effect.gen(function*() {
        yield* ask(pool)
        assert.strictEqual(runs, 1)
        const first = yield* Scope.make()
        const second = yield* Scope.make()
        yield* Scope.provide(pool.get(), first)
        yield* Scope.provide(pool.get(), second)
        yield* Scope.close(first, Exit.void)
        assert.strictEqual(runs, 1)
        yield* Scope.close(second, Exit.void)
        assert.strictEqual(runs, 2)
        yield* Effect.scoped(pool.reserve())
        assert.strictEqual(runs, 3)
      }))
  })

  it.live("begins a transaction and leaves it open has the session closed", () => {
    let isArmed = true
    return withPool({
      max: 1,
      afterRelease: (connection) => Effect.suspend(() => isArmed ? connection.query("BEGIN") : Effect.void)
    }, (pool) =>
      Effect.gen(function*() {
        const first = yield* ask(pool)
        isArmed = false
        assert.notStrictEqual(yield* ask(pool), first)
      }))
  })
})

describe("a hook around the connect that", () => {
  const both = ["beforeConnect", "afterConnect"] as const
  for (const hook of both) {
    for (const [what, end] of ends) {
      it.live(`${what} is told as HookFailed, with a pause before it is run again: ${hook}`, () => {
        let runs = 0
        const effect = Effect.suspend(() => {
          runs++
          return end
        })
        return withPool({
          max: 3,
          ...(hook === "beforeConnect" ? { beforeConnect: effect } : { afterConnect: () => effect })
        }, (pool) =>
          Effect.gen(function*() {
            const errors = yield* soon(
              "all answers",
              Effect.forEach(range(200), () => Effect.flip(ask(pool)), { concurrency: "unbounded" })
            )
            for (const error of errors) assert.strictEqual(error._tag, "HookFailed")
            assert.isAtMost(runs, 5)
            yield* isQuiet(pool)
          }))
      })
    }

    it.live(`never ends is given up after connectTimeout, and named: ${hook}`, () => {
      const options = hook === "beforeConnect" ? { beforeConnect: Effect.never } : { afterConnect: () => Effect.never }
      return withPool({ max: 1, connectTimeout: 400, ...options }, (pool) =>
        Effect.gen(function*() {
          const error = yield* soon("an answer", Effect.flip(ask(pool)))
          assert.strictEqual(error._tag, "SqlError")
          assert.include(error.message, hook)
          yield* isQuiet(pool)
        }))
    })
  }

  it.live("fails fails nobody who can have a session that is there", () => {
    let runs = 0
    return withPool({
      max: 2,
      afterConnect: () => Effect.suspend(() => ++runs > 1 ? Effect.fail("no more") : Effect.void)
    }, (pool) =>
      Effect.gen(function*() {
        const holder = yield* Scope.make()
        yield* Scope.provide(pool.reserve(), holder)
        const fibers = yield* Effect.forEach(range(50), () => Effect.forkChild(ask(pool), { startImmediately: true }))
        yield* eventually("a failed hook", Effect.sync(() => runs > 1))
        yield* Scope.close(holder, Exit.void)
        for (const fiber of fibers) {
          const exit = yield* ended(fiber)
          if (Exit.isFailure(exit)) assert.fail(Cause.pretty(exit.cause))
        }
      }))
  })

  it.live("loses its session has that told as a failed connect, and strands nobody", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      let runs = 0
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = yield* soon("an answer", Effect.flip(ask(pool)))
        assert.strictEqual(error._tag, "SqlError")
        yield* isQuiet(pool)
        yield* eventually("a session", Effect.map(Effect.option(ask(pool)), ({ _tag }) => _tag === "Some"))
        assert.strictEqual(runs, 2)
      }).pipe(Effect.provide(Layer.provideMerge(
        Pg.Pool.layer({
          url,
          max: 2,
          // It does not notice by itself.
          afterConnect: ({ processId }) =>
            Effect.suspend(() =>
              ++runs > 1 ? Effect.void : Effect.andThen(witness.terminate([processId]), Effect.sleep(300))
            )
        }),
        Pg.Metrics.layer()
      )))
    }))
})
