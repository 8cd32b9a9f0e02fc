import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { eventually } from "./witness.ts"

interface Line {
  readonly text: string
  readonly about: Readonly<Record<string, unknown>>
}

describe("with leakThreshold", () => {
  it.live("a transaction that takes too long is told of with the function that began it, and a short one is not", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const lines: Array<Line> = []
      const logger = Logger.make(({ fiber, message }) => {
        lines.push({ text: String(message), about: fiber.getRef(References.CurrentLogAnnotations) })
      })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        const reindex = Effect.fn("reindex")(function*() {
          yield* sql.withTransaction(
            eventually("a line in the log", Effect.sync(() => lines.length > 0))
          )
        })
        for (let turn = 0; turn < 10; turn++) yield* sql`SELECT 1`
        yield* sql.withTransaction(sql`SELECT 1`)
        assert.deepStrictEqual(lines, [])
        yield* reindex()
        yield* eventually("its return", Effect.sync(() => lines.length > 1))
        assert.match(lines[0]!.text, /held for longer than leakThreshold/)
        assert.match(lines[1]!.text, /come back/)
        for (const { about } of lines) {
          assert.strictEqual(about["db.client.connection.pool.name"], "jobs")
          assert.isAtLeast(Number(about["db.connection.held_ms"]), 3000)
          assert.include(String(about["db.connection.holder.at"]), "reindex")
          assert.include(String(about["db.connection.holder.at"]), "leaks.test.ts")
        }
        assert.strictEqual(lines.length, 2)
        assert.deepInclude(yield* pool.stats, { active: 0, oldestLease: 0 })
      }).pipe(
        Effect.provide(Pg.layer({ url, max: 2, applicationName: "jobs", leakThreshold: "3 seconds" })),
        Effect.provide(Logger.layer([logger]))
      )
    }))
})
