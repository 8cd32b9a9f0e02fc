import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { eventually } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

const withPool = <A, E>(
  options: Omit<Pg.Pool.Options, "url">,
  test: (pool: Pg.Pool.Pool["Service"]) => Effect.Effect<A, E>
) =>
  Effect.flatMap(freshDatabase, (url) =>
    Effect.flatMap(Pg.Pool.Pool, test).pipe(
      Effect.provide(Layer.provideMerge(Pg.Pool.layer({ url, ...options }), Pg.Metrics.layer()))
    ))

const work = (pool: Pg.Pool.Pool["Service"], millis: number) =>
  pool.use(({ connection }) => connection.query(`SELECT pg_sleep(${millis / 1000})`))

describe("shedding", () => {
  const shedding = { target: 20, interval: 100 } as const

  it.live("under a load that is too much turns away those who are late, typed, and serves the others", () =>
    withPool({ max: 2, shedding }, (pool) =>
      Effect.gen(function*() {
        let served = 0
        let atOnce = 0
        const shed: Array<Pg.Errors.PoolSaturated> = []
        // Ten times as many as there is room for, and more of them all the time.
        yield* Effect.forEach(range(600), (index) =>
          Effect.delay(work(pool, 20), 2 * index).pipe(
            Effect.map(() => served++),
            Effect.catch((error) =>
              Effect.sync(() => {
                if (error._tag !== "PoolSaturated") assert.fail(`unexpected ${error._tag}: ${error.message}`)
                shed.push(error)
              })
            )
          ), { concurrency: "unbounded", discard: true })
        assert.strictEqual(served + shed.length, 600)
        assert.isAbove(served, 10)
        assert.isAbove(shed.length, 50)
        for (const { by, isRetryable, waited } of shed) {
          assert.strictEqual(by, "Lateness")
          assert.isTrue(isRetryable)
          assert.isAbove(waited, 2 * shedding.target)
        }
        assert.deepInclude(yield* pool.stats, { active: 0, waiting: 0 })
        // When it is over, nobody is turned away any more.
        yield* Effect.forEach(range(20), () => Effect.map(work(pool, 1), () => atOnce++), { concurrency: 2 })
        assert.strictEqual(atOnce, 20)
      })))

  it.live("under a load that there is room for turns nobody away", () =>
    withPool({ max: 4, shedding: true }, (pool) =>
      Effect.gen(function*() {
        yield* Effect.forEach(range(400), () => work(pool, 1), { concurrency: 4, discard: true })
      })))

  it.live("lets a burst pass that is over soon", () =>
    withPool({ max: 4, shedding: { target: "1 second", interval: "3 seconds" } }, (pool) =>
      Effect.gen(function*() {
        for (let burst = 0; burst < 3; burst++) {
          yield* Effect.forEach(range(100), () => work(pool, 2), { concurrency: "unbounded", discard: true })
          yield* Effect.sleep(50)
        }
      })))

  it.live("is off by default: late as they are, all are served", () =>
    withPool({ max: 2 }, (pool) =>
      Effect.gen(function*() {
        yield* Effect.forEach(range(100), () => work(pool, 10), { concurrency: "unbounded", discard: true })
        yield* eventually("an end", Effect.map(pool.stats, ({ active }) => active === 0))
      })))
})
