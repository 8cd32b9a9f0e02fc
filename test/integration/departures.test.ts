/** When the place of a session that came to its end may be taken: not before the server has let go of it. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { spawn } from "node:child_process"
import * as Net from "node:net"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { isCancelRequest, makeProxy } from "./proxy.ts"
import { chance, eventually, makeWitness, soon } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

const services = Effect.gen(function*() {
  return {
    sql: yield* PgClient.PgClient,
    pool: yield* Pg.Pool.Pool,
    executor: yield* Pg.Executor.Executor
  }
})

/** A proxy whose server is counted on both sides: what it lists itself, and what went through. */
const makeGate = Effect.gen(function*() {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  const watch = yield* witness.watch
  const proxy = yield* makeProxy(url)
  return {
    proxy,
    url: proxy.url,
    witness,
    assertNeverAbove: (max: number) => {
      assert.isAtMost(proxy.mostSessions(), max, "sessions that went through the proxy")
      assert.isAtMost(watch.most(), max, "sessions in pg_stat_activity")
      assert.isAbove(watch.samples(), 20)
    }
  }
})

const sleepers = `SELECT count(*)::int FROM pg_stat_activity
  WHERE datname = current_database() AND wait_event = 'PgSleep'`

const alone = { max: 1, retry: false, breaker: false, closeTimeout: 100 } as const

describe("a session that is given up while the server works on", () => {
  it.live("keeps its place until it has ended there, when the driver's CancelRequest was lost", () =>
    Effect.gen(function*() {
      const { assertNeverAbove, proxy, url, witness } = yield* makeGate
      let requests = 0
      proxy.onRequest((bytes) => isCancelRequest(bytes) && ++requests === 1 ? "drop" : "pass")
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        const error = yield* Effect.flip(executor.run(sql`SELECT pg_sleep(20)`, { attemptTimeout: 200 }))
        assert.strictEqual(error._tag, "StatementTimeout")
        assert.strictEqual(yield* witness.value(sleepers), 1)
        // One more ends it there, long before the twenty seconds or statement_timeout.
        yield* soon("the next session", sql`SELECT 1`, 8)
        assert.strictEqual(yield* witness.value(sleepers), 0)
        assert.isAbove(requests, 1)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url })))
      assertNeverAbove(1)
    }))

  it.live("keeps its place while statement after statement of those who shared it comes to its end", () =>
    Effect.gen(function*() {
      const { assertNeverAbove, url, witness } = yield* makeGate
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        yield* sql`SELECT 1`
        const shared = yield* Effect.forEach(
          range(4),
          () => Effect.forkChild(Effect.exit(sql`SELECT pg_sleep(20)`), { startImmediately: true })
        )
        yield* eventually("the first of them runs", Effect.map(witness.value(sleepers), (count) => count === 1))
        // The driver sends no CancelRequest for what is shared.
        for (const fiber of shared) assert.strictEqual((yield* soon("its end", Fiber.join(fiber), 6))._tag, "Failure")
        yield* soon("the next session", sql`SELECT 1`, 10)
        assert.strictEqual(yield* witness.value(sleepers), 0)
      }).pipe(
        Effect.provide(Pg.layer({ ...alone, url, multiplex: true, queryTimeout: 200, statementTimeout: "20 seconds" }))
      )
      assertNeverAbove(1)
    }))

  it.live("keeps its place while a result that nobody reads any more is still on its way", () =>
    Effect.gen(function*() {
      const { assertNeverAbove, proxy, url } = yield* makeGate
      proxy.onRequest((bytes) => isCancelRequest(bytes) ? "drop" : "pass")
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        // Ten rows, each of them late, and no CancelRequest gets through.
        const slowly = sql`SELECT repeat('x', 10000), pg_sleep(0.2) FROM generate_series(1, 10)`
        yield* Effect.exit(executor.run(slowly, { attemptTimeout: 100 }))
        yield* soon("the next session", sql`SELECT 1`, 8)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url })))
      assertNeverAbove(1)
    }))

  // The process is this machine's only without a DATABASE_URL.
  it.live.skipIf(process.platform === "win32" || process.env.DATABASE_URL !== undefined)(
    "keeps its place while the server does not get to do anything for some time",
    () =>
      Effect.gen(function*() {
        const { assertNeverAbove, url, witness } = yield* makeGate
        yield* Effect.gen(function*() {
          const { executor, sql } = yield* services
          const [row] = yield* sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
          const stalled = row!.pid
          yield* Effect.acquireRelease(
            Effect.sync(() => process.kill(stalled, "SIGSTOP")),
            () => Effect.ignore(Effect.try(() => process.kill(stalled, "SIGCONT")))
          )
          yield* Effect.exit(executor.run(sql`SELECT 1`, { attemptTimeout: 50 }))
          const next = yield* Effect.forkChild(sql`SELECT 1`, { startImmediately: true })
          yield* Effect.sleep(700)
          assert.deepStrictEqual(yield* witness.sessions, [stalled])
          process.kill(stalled, "SIGCONT")
          yield* soon("the next session", Fiber.join(next), 5)
        }).pipe(Effect.scoped, Effect.provide(Pg.layer({ ...alone, url })))
        assertNeverAbove(1)
      })
  )
})

describe("a connect that is given up", () => {
  it.live(
    "keeps its place until the server has ended what came of it, at whichever step it was",
    () =>
      Effect.gen(function*() {
        const { assertNeverAbove, proxy, url, witness } = yield* makeGate
        for (const connectTimeout of [2, 10, 25, 35, 45, 55, 65, 75, 90, 110]) {
          // Startup message, password and the hook's statement come this late.
          proxy.lag(30)
          yield* Effect.gen(function*() {
            const { pool } = yield* services
            const first = yield* Effect.exit(Effect.scoped(pool.reserve()))
            assert.strictEqual(first._tag, "Failure", `within ${connectTimeout} ms`)
            yield* Effect.exit(Effect.scoped(pool.reserve()))
          }).pipe(Effect.provide(Pg.layer({
            ...alone,
            url,
            connectTimeout,
            acquireTimeout: 2000,
            afterConnect: (connection) => connection.query("SELECT pg_sleep(1)")
          })))
        }
        yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
        assertNeverAbove(1)
      }),
    60_000
  )

  it.live("keeps its place when the pool is asked again and again, each time with little patience", () =>
    Effect.gen(function*() {
      const { assertNeverAbove, proxy, url } = yield* makeGate
      yield* Effect.gen(function*() {
        const { pool } = yield* services
        proxy.lag(60)
        for (const turn of range(6)) {
          yield* Effect.exit(Effect.scoped(pool.reserve({ timeout: 20 + turn * 30 })))
          yield* pool.evictAll
        }
        proxy.lag(0)
        yield* eventually(
          "a session",
          Effect.map(Effect.exit(Effect.scoped(pool.reserve())), ({ _tag }) => _tag === "Success"),
          8
        )
      }).pipe(Effect.provide(Pg.layer({ ...alone, url, connectTimeout: 100 })))
      assertNeverAbove(1)
    }))

  it.live("is nothing to the server before the startup message, and costs nobody any time", () =>
    Effect.gen(function*() {
      const { url } = yield* makeGate
      let dialled = 0
      const [took] = yield* Effect.timed(
        Effect.gen(function*() {
          const { pool } = yield* services
          assert.strictEqual((yield* Effect.exit(Effect.scoped(pool.reserve())))._tag, "Failure")
          yield* eventually(
            "a free place",
            Effect.map(Effect.exit(Effect.scoped(pool.reserve())), ({ _tag }) => _tag === "Success"),
            3
          )
        }).pipe(Effect.provide(Pg.layer({
          ...alone,
          url,
          connectTimeout: 200,
          beforeConnect: Effect.suspend(() => ++dialled === 1 ? Effect.never : Effect.void)
        })))
      )
      assert.isBelow(Duration.toMillis(took), 3000)
    }))
})

describe("a session whose server cannot be reached any more", () => {
  const kinds = [
    ["while a statement runs", {}],
    ["while it is checked", { validate: "always", validationTimeout: 200 }]
  ] as const

  for (const [when, options] of kinds) {
    it.live(`gives its place away within a few seconds, since nobody will ever tell: ${when}`, () =>
      Effect.gen(function*() {
        const { proxy, url } = yield* makeGate
        yield* Effect.gen(function*() {
          const { executor, sql } = yield* services
          yield* sql`SELECT 1`
          // The link is lost without a word, as to a firewall that forgets it; new ones work.
          proxy.onRequest((_, link) => {
            if (link.id === 1) link.blackhole()
            return "pass"
          })
          const [took] = yield* Effect.timed(Effect.andThen(
            Effect.exit(executor.run(sql`SELECT 1`, { attemptTimeout: 200 })),
            soon("the next session", sql`SELECT 1`, 10)
          ))
          assert.isBelow(Duration.toMillis(took), 6000)
        }).pipe(Effect.provide(Pg.layer({ ...alone, ...options, url })))
      }))
  }

  it.live("gives its place away at once when its host refuses the CancelRequest", () =>
    Effect.gen(function*() {
      const { proxy, url } = yield* makeGate
      yield* Effect.gen(function*() {
        const { executor, sql } = yield* services
        yield* sql`SELECT 1`
        proxy.onRequest((_, link) => {
          if (link.id === 1) link.blackhole()
          // Everybody else is told that nobody is there.
          else link.strand()
          return "drop"
        })
        yield* Effect.exit(executor.run(sql`SELECT 1`, { attemptTimeout: 200 }))
        const failure = yield* Effect.timed(soon("a failed connect", Effect.exit(sql`SELECT 1`), 8))
        assert.strictEqual(failure[1]._tag, "Failure")
        assert.isBelow(Duration.toMillis(failure[0]), 3000)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url })))
    }))

  it.live("does not keep the pool from closing, and leaves no socket here", () =>
    Effect.gen(function*() {
      const { proxy, url } = yield* makeGate
      const { port } = new URL(Redacted.value(url))
      const sockets: Array<Net.Socket> = []
      const stream = () => {
        const socket = Net.connect({ host: "127.0.0.1", port: Number(port), noDelay: true })
        sockets.push(socket)
        return socket
      }
      const [took] = yield* Effect.timed(
        Effect.gen(function*() {
          const { executor, sql } = yield* services
          yield* sql`SELECT 1`
          proxy.onRequest((_, link) => {
            link.blackhole()
            return "drop"
          })
          yield* Effect.exit(executor.run(sql`SELECT 1`, { attemptTimeout: 200 }))
        }).pipe(Effect.provide(Pg.layer({ ...alone, url, stream })))
      )
      assert.isBelow(Duration.toMillis(took), 4000)
      // Those of CancelRequests, which nobody answers either, included.
      assert.isAbove(sockets.length, 1)
      assert.isTrue(sockets.every(({ destroyed }) => destroyed))
    }))
})

/** Processes that leave nobody else much of the machine, until the scope closes. */
const burners = (count: number) =>
  Effect.acquireRelease(
    Effect.sync(() =>
      range(count).map(() =>
        // They end by themselves, should nobody be left to end them.
        spawn(process.execPath, ["-e", "const end = Date.now() + 60000; while (Date.now() < end);"], {
          stdio: "ignore",
          env: { ...process.env, NODE_OPTIONS: "" }
        })
      )
    ),
    (children) => Effect.sync(() => children.forEach((child) => child.kill("SIGKILL")))
  )

describe("with everything at once, the server never sees more than max sessions", () => {
  for (const [seed, multiplex] of [[11, false], [12, true]] as const) {
    it.live(
      `on a machine that has no time${multiplex ? ", multiplexed" : ""} (seed ${seed})`,
      () =>
        Effect.scoped(Effect.gen(function*() {
          const { below, pick } = chance(seed)
          const max = 3
          const { assertNeverAbove, url, witness } = yield* makeGate
          yield* burners(6)
          yield* Effect.gen(function*() {
            const { executor, pool, sql } = yield* services
            const calls: ReadonlyArray<() => Effect.Effect<unknown, unknown>> = [
              () => executor.run(sql`SELECT pg_sleep(${below(20) / 1000})`, { deadline: 5 + below(20) }),
              () => executor.run(sql`SELECT pg_sleep(0.2)`, { attemptTimeout: 10 + below(30) }),
              () => Effect.timeout(sql`SELECT pg_sleep(0.05)`, 1 + below(40)),
              () => Effect.timeout(pool.use(() => Effect.void, { prove: true }), 1 + below(10)),
              () => Effect.timeout(Effect.scoped(pool.reserve()), 1 + below(30)),
              () => sql.withTransaction(Effect.timeout(sql`SELECT pg_sleep(0.02)`, 1 + below(30)))
            ]
            const trouble = yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
              yield* Effect.sleep(20 + below(60))
              const pids = yield* witness.sessions
              if (below(2) === 0) yield* pool.evictAll
              else if (pids.length > 0) yield* witness.terminate([pick(pids)])
            })))
            yield* Effect.forEach(range(12), () => Effect.forEach(range(20), () => Effect.exit(pick(calls)())), {
              concurrency: "unbounded"
            })
            yield* Fiber.interrupt(trouble)
            // The one at hand may be among those that were killed at last.
            yield* eventually("a session", Effect.map(Effect.exit(sql`SELECT 1`), ({ _tag }) => _tag === "Success"))
          }).pipe(Effect.provide(Pg.layer({ ...alone, url, max, multiplex })))
          assertNeverAbove(max)
          yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
        })),
      60_000
    )
  }
})
