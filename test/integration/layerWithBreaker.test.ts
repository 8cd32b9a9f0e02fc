import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { eventually } from "./witness.ts"

describe("Pg.layerWithBreaker", () => {
  it.live("asks the breaker of the context, goes on from what it has loaded, and counts what it does", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const saved: Array<unknown> = []
      const hydrated = (load: unknown) =>
        Pg.Breaker.layerHydrated({
          key: "kept",
          load: Effect.succeed(load),
          save: (snapshot) => Effect.sync(() => saved.push(snapshot)),
          openFor: "1 hour",
          jitter: "none"
        })
      const pool = (load: unknown) => Pg.layerWithBreaker({ url, max: 1 }).pipe(Layer.provideMerge(hydrated(load)))

      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const breaker = yield* Pg.Breaker.Breaker
        const metrics = yield* Pg.Metrics.Metrics
        assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
        for (let times = 0; times < 5; times++) {
          yield* Effect.ignore(breaker.protect(Effect.fail(Object.assign(new Error("down"), { code: "ECONNREFUSED" }))))
        }
        const rejected = yield* Effect.flip(sql`SELECT 1`)
        assert.strictEqual(Pg.Errors.fromSqlError(rejected)?._tag, "CircuitOpen")
        // Somebody else's breaker is followed from outside.
        yield* eventually(
          "the metrics have heard of it",
          Effect.map(metrics.snapshot, ({ breakerState }) => breakerState === "Open")
        )
        assert.strictEqual((yield* metrics.snapshot).breakerTransitions.Open, 1)
      }).pipe(Effect.provide(Layer.fresh(pool(undefined))))

      // The next process.
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const metrics = yield* Pg.Metrics.Metrics
        const rejected = Pg.Errors.fromSqlError(yield* Effect.flip(sql`SELECT 1`))
        assert(rejected instanceof Pg.Errors.CircuitOpen)
        assert.strictEqual(rejected.key, "kept")
        assert.strictEqual((yield* metrics.snapshot).breakerState, "Open")
      }).pipe(Effect.provide(Layer.fresh(pool(saved.at(-1)))))
    }))
})
