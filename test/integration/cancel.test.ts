/** What becomes of a session, and of its next borrower, when the statement of the last one had to be cancelled. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"
import { freshDatabase } from "./database.ts"
import { farAway } from "./distance.ts"
import { isCancelRequest, type Link, makeProxy } from "./proxy.ts"
import { certificate, makeTlsServer } from "./tlsServer.ts"
import { chance, eventually, makeWitness, soon, type Witness } from "./witness.ts"

const services = Effect.gen(function*() {
  return {
    sql: yield* PgClient.PgClient,
    pool: yield* Pg.Pool.Pool,
    executor: yield* Pg.Executor.Executor,
    metrics: yield* Pg.Metrics.Metrics
  }
})

const pid = Effect.flatMap(
  PgClient.PgClient,
  (sql) => Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]!.pid)
)

const interruptAfter = <A, E, R>(work: Effect.Effect<A, E, R>, millis: number) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(work, { startImmediately: true })
    yield* Effect.sleep(millis)
    yield* Fiber.interrupt(fiber)
    return yield* Fiber.await(fiber)
  })

const isRunning = (witness: Witness) =>
  Effect.map(
    witness.value<number>(
      `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'`
    ),
    (count) => count > 0
  )

const noSecondThoughts = { max: 1, min: 1, closeTimeout: 100, retry: false, breaker: false } as const

/** A proxy that hands each CancelRequest to the test. */
const makeCustoms = Effect.gen(function*() {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  const proxy = yield* makeProxy(url)
  const requests: Array<{ readonly bytes: Buffer; readonly link: Link }> = []
  let onCancel = (_link: Link): "pass" | "drop" => "drop"
  proxy.onRequest((bytes, link) => {
    if (!isCancelRequest(bytes)) return "pass"
    requests.push({ bytes, link })
    return onCancel(link)
  })
  return {
    url: proxy.url,
    witness,
    requests,
    whenCancelling: (next: typeof onCancel) => {
      onCancel = next
    },
    deliver: Effect.sync(() => {
      for (const { bytes, link } of requests) link.deliver(bytes)
    })
  }
})

describe("a session whose statement was cancelled", () => {
  const ways: ReadonlyArray<
    readonly [
      string,
      (
        sql: PgClient.PgClient,
        executor: Pg.Executor.Executor["Service"]
      ) => Effect.Effect<unknown, unknown>
    ]
  > = [
    ["its borrower is interrupted", (sql) => interruptAfter(sql`SELECT pg_sleep(30)`, 15)],
    ["its reader goes away", (sql) => interruptAfter(Stream.runDrain(sql`SELECT pg_sleep(30)`.stream), 15)],
    ["its time is up", (sql) => Effect.timeoutOption(sql`SELECT pg_sleep(30)`, 15)],
    ["its transaction is interrupted", (sql) => interruptAfter(sql.withTransaction(sql`SELECT pg_sleep(30)`), 15)]
  ]

  for (const [name, work] of ways) {
    it.live(`is lent again, fifty times in a row: ${name}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        yield* Effect.gen(function*() {
          const { executor, metrics, sql } = yield* services
          const first = yield* pid
          for (let turn = 0; turn < 50; turn++) {
            yield* work(sql, executor)
            assert.strictEqual(yield* pid, first, `turn ${turn}`)
          }
          assert.strictEqual((yield* metrics.snapshot).connectionsOpened, 1)
        }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, url })))
      }), 60_000)
  }

  for (const bound of ["attemptTimeout", "deadline"] as const) {
    it.live(`is lent again when ${bound} ends a statement on a server that is far away, but live`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        yield* Effect.gen(function*() {
          const { executor, sql } = yield* services
          const first = yield* pid
          for (let turn = 0; turn < 5; turn++) {
            const [took, error] = yield* Effect.timed(
              Effect.flip(executor.run(sql`SELECT pg_sleep(30)`, { [bound]: 300, retry: false }))
            )
            assert.strictEqual(error._tag, bound === "deadline" ? "DeadlineExceeded" : "StatementTimeout")
            assert.isAtLeast(Duration.toMillis(took), 299)
            assert.isBelow(Duration.toMillis(took), 1300)
            assert.strictEqual(yield* pid, first, `turn ${turn}`)
          }
        }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, url, stream: farAway(url, 150) })))
      }))
  }

  it.live("is lent again over TLS", () =>
    Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const first = yield* pid
        for (let turn = 0; turn < 10; turn++) {
          yield* interruptAfter(sql`SELECT pg_sleep(30)`, 15)
          assert.strictEqual(yield* pid, first, `turn ${turn}`)
        }
      }).pipe(Effect.provide(Pg.layer({
        ...noSecondThoughts,
        url: database.url,
        ssl: { ca: certificate, servername: "localhost" }
      })))
    }))

  for (const options of [{ multiplex: true }, { pooler: "transaction" }] as const) {
    it.live(`is not lent again when it is not its borrower's alone: ${Object.keys(options)[0]!}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        yield* Effect.gen(function*() {
          const { sql } = yield* services
          const first = yield* pid
          yield* interruptAfter(sql.withTransaction(sql`SELECT pg_sleep(30)`), 15)
          assert.notStrictEqual(yield* pid, first)
        }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, ...options, url })))
      }))
  }
})

describe("interrupts around the end of a statement", () => {
  const rounds = 150

  /** Each round: a statement that is interrupted when it is about to end, and one that must not be hit. */
  const hitAndMiss = Effect.fnUntraced(function*(seed: number, url: Pg.Options["url"]) {
    const { below, next } = chance(seed)
    return yield* Effect.gen(function*() {
      const { sql } = yield* services
      const pids = new Set<number>()
      let cancelled = 0
      for (let round = 0; round < rounds; round++) {
        // The driver gives a statement ten milliseconds to end by itself before it sends the request.
        const length = 10 + below(12)
        const patience = Math.max(0, length - 10 + below(7) - 3)
        const what = `seed ${seed}, round ${round}: ${length} ms, interrupted after ${patience} ms`
        const exit = yield* soon(what, interruptAfter(sql`SELECT pg_sleep(${length / 1000})`, patience))
        if (Exit.hasInterrupts(exit)) cancelled++
        const after = yield* Effect.exit(
          next() < 0.5
            ? sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, pg_sleep(${below(15) / 1000})`
            : sql.withTransaction(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, pg_sleep(0.01)`)
        )
        if (Exit.isFailure(after)) return assert.fail(`${what}: ${String(after.cause)}`)
        pids.add(after.value[0]!.pid)
      }
      return { cancelled, pids: pids.size }
    }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, url })))
  })

  for (const seed of [3, 20261123]) {
    it.live(`never hit the next statement (seed ${seed}, ${rounds} rounds)`, () =>
      Effect.gen(function*() {
        const { cancelled, pids } = yield* hitAndMiss(seed, yield* freshDatabase)
        assert.isAbove(cancelled, rounds / 4)
        // Most of them are told in time, or end in time; each of the others costs a session.
        assert.isBelow(pids, rounds / 2)
      }), 60_000)

    it.live(
      `nor do they when requests take their time on the way (seed ${seed}, ${rounds} rounds)`,
      () =>
        Effect.gen(function*() {
          const { below, pick } = chance(seed + 1)
          const customs = yield* makeCustoms
          customs.whenCancelling((link) => {
            const { bytes } = customs.requests.at(-1)!
            const fate = pick(["in time", "said goodbye early", "held open", "forestalled"])
            const arrive = () => setTimeout(() => link.deliver(bytes), below(12))
            if (fate === "said goodbye early") link.hangUp()
            if (fate === "held open") {
              link.holdOpen()
              setTimeout(() => link.cut(), below(40))
            }
            if (fate === "forestalled") {
              // Somebody else cancels the same statement first.
              const target = bytes.readInt32BE(8)
              const byOther = customs.witness.value("SELECT pg_cancel_backend($1)", [target])
              Effect.runCallback(byOther, { onExit: arrive })
            } else {
              arrive()
            }
            return "drop"
          })
          const { cancelled } = yield* hitAndMiss(seed, customs.url)
          assert.isAbove(cancelled, rounds / 4)
          assert.isAbove(customs.requests.length, rounds / 8)
        }),
      60_000
    )
  }
})

describe("a CancelRequest on its way", () => {
  it.live("keeps its session from being lent, whoever has cancelled the statement; then it is lent", () =>
    Effect.gen(function*() {
      const { deliver, requests, url, witness } = yield* makeCustoms
      yield* Effect.gen(function*() {
        const { pool, sql } = yield* services
        const first = yield* pid
        const cancelled = yield* Effect.forkChild(sql`SELECT pg_sleep(30)`)
        yield* eventually("it runs", isRunning(witness))
        const interruption = yield* Effect.forkChild(Fiber.interrupt(cancelled), { startImmediately: true })
        yield* eventually("the request is held up", Effect.sync(() => requests.length === 1))
        yield* witness.value("SELECT pg_cancel_backend($1)", [first])
        // The borrower does not wait for it.
        yield* soon("the end of the borrower", Fiber.join(interruption), 1)
        const next = yield* Effect.forkChild(
          sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, pg_sleep(0.3)`,
          { startImmediately: true }
        )
        yield* Effect.sleep(100)
        assert.strictEqual((yield* pool.stats).waiting, 1)
        assert.isFalse(yield* isRunning(witness))
        yield* deliver
        assert.strictEqual((yield* soon("the next one's answer", Fiber.join(next)))[0]!.pid, first)
      }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, url })))
    }))

  it.live("costs the session when nobody tells that it has arrived; the next borrower gets another one", () =>
    Effect.gen(function*() {
      const { url, whenCancelling, witness } = yield* makeCustoms
      const watch = yield* witness.watch
      whenCancelling((link) => {
        link.holdOpen()
        return "pass"
      })
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const first = yield* pid
        const [left] = yield* Effect.timed(interruptAfter(sql`SELECT pg_sleep(30)`, 30))
        const [waited, next] = yield* Effect.timed(pid)
        assert.notStrictEqual(next, first)
        // The farewell is one second, and the borrower has left before its end.
        assert.isBelow(Duration.toMillis(left), 900)
        assert.isAbove(Duration.toMillis(waited) + Duration.toMillis(left), 900)
        assert.isBelow(Duration.toMillis(waited), 5000)
      }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, url })))
      assert.isAtMost(watch.most(), 1)
    }))

  it.live("costs the session when it is swallowed and the statement ends by itself", () =>
    Effect.gen(function*() {
      const { requests, url } = yield* makeCustoms
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const first = yield* pid
        yield* interruptAfter(sql`SELECT pg_sleep(0.2)`, 20)
        assert.lengthOf(requests, 1)
        assert.notStrictEqual(yield* pid, first)
      }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, url })))
    }))

  it.live("hits nobody when a proxy passes it on late, and has closed its connection before", () =>
    Effect.gen(function*() {
      const { deliver, requests, url, whenCancelling } = yield* makeCustoms
      whenCancelling((link) => {
        link.hangUp()
        return "drop"
      })
      yield* Effect.gen(function*() {
        const { sql } = yield* services
        const first = yield* pid
        yield* interruptAfter(sql`SELECT pg_sleep(0.15)`, 20)
        const next = yield* Effect.forkChild(sql`SELECT pg_sleep(0.6)`, { startImmediately: true })
        yield* Effect.sleep(100)
        assert.lengthOf(requests, 1)
        yield* deliver
        assert.lengthOf(yield* Fiber.join(next), 1)
        assert.notStrictEqual(yield* pid, first)
      }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, url })))
    }))

  it.live("does not keep the pool from closing", () =>
    Effect.gen(function*() {
      const { url, whenCancelling, witness } = yield* makeCustoms
      whenCancelling((link) => {
        link.holdOpen()
        return "pass"
      })
      const [took] = yield* Effect.timed(
        Effect.gen(function*() {
          const { sql } = yield* services
          yield* pid
          yield* interruptAfter(sql`SELECT pg_sleep(30)`, 30)
        }).pipe(Effect.provide(Pg.layer({ ...noSecondThoughts, url })))
      )
      assert.isBelow(Duration.toMillis(took), 2500)
      yield* eventually("no session", Effect.map(witness.count, (count) => count === 0), 3)
    }))
})

describe("a server that has stalled", () => {
  /** A process that is stopped holds its session and its locks, while the rest of the server answers. */
  it.live.skipIf(process.platform === "win32")(
    "loses the socket when the time is up, and the session does not come back to life",
    () =>
      Effect.gen(function*() {
        const database = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
        yield* Effect.gen(function*() {
          const { executor, sql } = yield* services
          const stopped = yield* pid
          let isStopped = false
          const goOn = Effect.sync(() => isStopped && process.kill(stopped, "SIGCONT"))
          yield* Effect.acquireRelease(
            Effect.sync(() => {
              isStopped = process.kill(stopped, "SIGSTOP")
            }),
            () => goOn
          )
          const [took, error] = yield* Effect.timed(
            Effect.flip(executor.run(sql`SELECT 1`, { attemptTimeout: 300, retry: false }))
          )
          assert.strictEqual(error._tag, "StatementTimeout")
          assert.isBelow(Duration.toMillis(took), 1300)
          assert.notStrictEqual(yield* pid, stopped)
          yield* goOn
          isStopped = false
          assert.notStrictEqual(yield* pid, stopped)
        }).pipe(
          Effect.scoped,
          Effect.provide(Layer.fresh(Pg.layer({ ...noSecondThoughts, url: database.url })))
        )
      })
  )
})
