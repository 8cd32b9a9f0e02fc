import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { MaxOpsBeforeYield } from "effect/Scheduler"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { makeTable, soon } from "./witness.ts"

describe("a transaction whose BEGIN goes along with its first statement", () => {
  for (const multiplex of [false, true]) {
    const mode = !multiplex ? "" : " (multiplexed)"

    it.live(`ends, and leaves nothing to the next borrower, wherever its first statement is interrupted${mode}`, () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          let written = 0
          for (let steps = 3; steps < 120; steps++) {
            const fiber = yield* Effect.forkChild(
              sql.withTransaction(
                Effect.provideService(Effect.asVoid(sql`SELECT ${steps}::int`), MaxOpsBeforeYield, steps)
              ),
              { startImmediately: true }
            )
            yield* soon(`the end after ${steps} steps`, Fiber.interrupt(fiber))
            yield* sql`INSERT INTO t VALUES (1)`
            assert.strictEqual(yield* rows, ++written, `interrupted after ${steps} steps`)
          }
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
      }))

    it.live(`takes nothing along into the work of whoever has its session next${mode}`, () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          let written = 0
          for (let steps = 3; steps < 80; steps++) {
            const isOver = yield* Deferred.make<void>()
            // Left behind by a transaction that asks nothing.
            const late = yield* sql.withTransaction(
              Effect.forkDetach(
                Effect.andThen(
                  Deferred.await(isOver),
                  Effect.provideService(Effect.exit(sql`SELECT 1`), MaxOpsBeforeYield, steps)
                ),
                { startImmediately: true }
              )
            )
            yield* Deferred.succeed(isOver, undefined)
            yield* sql`INSERT INTO t VALUES (1)`
            const exit = yield* soon("the late one", Fiber.join(late))
            assert.strictEqual(exit._tag, "Failure")
            assert.strictEqual(yield* rows, ++written, `after ${steps} steps`)
          }
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex })))
      }))
  }
})
