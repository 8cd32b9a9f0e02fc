/** Sessions that were opened together, over half an hour of the test's clock. The server is in this process. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import * as Pg from "../src/index.ts"
import { makeMemoryServer } from "./memoryServer.ts"

describe("a thousand sessions that were opened in one moment", () => {
  it.effect(
    "do not end in one: no second sees more than 5 % of them go, and none outlives maxLifetime",
    () =>
      Effect.gen(function*() {
        const server = makeMemoryServer()
        const count = 1000
        const closed: Array<number> = []
        yield* Effect.gen(function*() {
          const pool = yield* Pg.Pool.Pool
          const metrics = yield* Pg.Metrics.Metrics
          const gone = Effect.map(metrics.snapshot, ({ connectionsClosed }) => connectionsClosed.lifetime)
          yield* pool.warm(count)
          assert.strictEqual((yield* pool.stats).idle, count)
          yield* TestClock.adjust("27 minutes")
          assert.strictEqual(yield* gone, 0)
          for (let second = 1; second <= 180; second++) {
            const before = (yield* pool.stats).total
            yield* TestClock.adjust("1 second")
            closed.push(before - (yield* pool.stats).total)
          }
          assert.strictEqual((yield* pool.stats).total, 0)
        }).pipe(Effect.provide(Layer.provideMerge(
          Pg.Pool.layer({
            stream: server.stream,
            username: "nobody",
            max: count,
            min: count,
            reapEvery: "1 second",
            acquireTimeout: "1 hour"
          }),
          Pg.Metrics.layer()
        )))
        assert.strictEqual(closed.reduce((sum, one) => sum + one, 0), count)
        assert.isAtMost(Math.max(...closed), count * 0.05)
        assert.isAbove(closed.filter((one) => one > 0).length, 100)
      }),
    60_000
  )
})
