import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeWitness } from "./witness.ts"

/** The samples of a page, by their name and labels. */
const samplesOf = (page: string): ReadonlyMap<string, number> =>
  new Map(
    page.split("\n").filter((line) => line !== "" && !line.startsWith("#")).map((line) => {
      const space = line.lastIndexOf(" ")
      return [line.slice(0, space).replace(/pool="[^"]*",?/, ""), Number(line.slice(space + 1))] as const
    })
  )

const scrape = Effect.map(Pg.Metrics.render, (page) => {
  const samples = samplesOf(page)
  return (name: string): number => samples.get(name) ?? assert.fail(`there is no ${name}`)
})

describe("utilisation", () => {
  it.live("of a lazily grown pool is 100 % over all connections, and the truth over the most it may have", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* Effect.scoped(Effect.gen(function*() {
          yield* pool.get()
          const value = yield* scrape
          assert.strictEqual(yield* witness.count, 1)
          assert.strictEqual(value("db_pool_size{state=\"active\"}") / value("db_pool_size{state=\"total\"}"), 1)
          assert.strictEqual(value("db_pool_connections{state=\"used\"}") / value("db_pool_connections_max{}"), 0.1)
        }))
      }).pipe(Effect.provide(Pg.layer({ url, max: 10 })))
    }))
})
