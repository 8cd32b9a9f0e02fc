import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"
import { freshDatabase } from "./database.ts"
import { ended, eventually, makeWitness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** How many connects fit into an outage when each one waits for the pause after the one before. */
const connectsWithin = (millis: number): number => {
  let [count, at, pause] = [1, 0, 100]
  while (at + pause <= millis) {
    at += pause
    pause = Math.min(pause * 1.5, 2000)
    count++
  }
  return count
}

/** Notes at the start of each connect how many are under way, and how many have worked. */
const makeCrowd = () => {
  const seen: Array<readonly [underWay: number, worked: number]> = []
  let look = (): readonly [number, number] => [1, 0]
  return {
    seen,
    beforeConnect: Effect.sync(() => {
      seen.push(look())
    }),
    watch: Effect.gen(function*() {
      const { statsUnsafe } = yield* Pg.Pool.Pool
      const { store } = yield* Pg.Metrics.Metrics
      look = () => [statsUnsafe().connecting, store.connectionsOpened]
    })
  }
}

describe("a server that is away for a while", () => {
  it.live(
    "is asked once per pause by a thousand borrowers, and after its return by 1, 2, 4, ... at a time",
    () =>
      Effect.gen(function*() {
        const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
        yield* server.stop
        const crowd = makeCrowd()
        yield* Effect.gen(function*() {
          yield* crowd.watch
          const sql = yield* SqlClient
          const startedAt = yield* Clock.currentTimeMillis
          const fibers = yield* Effect.forEach(range(1000), () => Effect.forkChild(sql`SELECT pg_sleep(0.005)`))
          yield* Effect.sleep(3000)
          const outage = (yield* Clock.currentTimeMillis) - startedAt
          assert.isAtMost(crowd.seen.length, connectsWithin(outage))
          assert.isAtLeast(crowd.seen.length, 3)
          yield* server.start
          for (const fiber of fibers) assert.isTrue(Exit.isSuccess(yield* ended(fiber, 40)))
        }).pipe(Effect.provide(Pg.layer({
          url: server.url,
          max: 16,
          breaker: false,
          retryBudget: false,
          retry: { attempts: 1000, base: 50, cap: 200 },
          beforeConnect: crowd.beforeConnect
        })))
        for (const [underWay, worked] of crowd.seen) assert.isAtMost(underWay, Math.min(worked + 1, 16))
        assert.isAbove(Math.max(...crowd.seen.map(([underWay]) => underWay)), 1)
      }),
    90_000
  )

  it.live("and a new pool, too, begins with one connect, and each that works makes room for one more beside it", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const crowd = makeCrowd()
      yield* Effect.gen(function*() {
        yield* crowd.watch
        const pool = yield* Pg.Pool.Pool
        yield* pool.warm(16)
        assert.strictEqual(yield* witness.count, 16)
      }).pipe(Effect.provide(Pg.layer({ url, max: 16, beforeConnect: crowd.beforeConnect })))
      assert.strictEqual(crowd.seen.length, 16)
      for (const [underWay, worked] of crowd.seen) assert.isAtMost(underWay, worked + 1)
    }))
})

describe("a server that takes no more sessions", () => {
  it.live("fails nobody who can be served by the sessions at hand", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* witness.query("CREATE ROLE crowded LOGIN SUPERUSER PASSWORD 'crowded' CONNECTION LIMIT 2")
      yield* Effect.addFinalizer(() => Effect.ignore(witness.query("DROP ROLE crowded")))
      // A superuser is not limited.
      yield* witness.query("ALTER ROLE crowded NOSUPERUSER")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        yield* pool.warm(2)
        const fibers = yield* Effect.forEach(range(50), () => Effect.forkChild(sql`SELECT pg_sleep(0.02)`))
        for (const fiber of fibers) {
          const exit = yield* ended(fiber)
          assert.isTrue(Exit.isSuccess(exit), String(exit))
        }
        const refused = yield* Effect.forkChild(Effect.flip(pool.warm(3)))
        assert.strictEqual((yield* Fiber.join(refused))._tag, "AcquireTimeout")
        yield* eventually("two sessions", Effect.map(pool.stats, ({ total }) => total === 2))
      }).pipe(Effect.provide(Pg.layer({
        url,
        username: "crowded",
        password: Redacted.make("crowded"),
        max: 10,
        retry: false,
        breaker: false,
        acquireTimeout: "4 seconds"
      })))
    }), 60_000)
})
