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

    it.live(`gives its session back once, wherever it is interrupted, in line too${mode}`, () =>
      Effect.gen(function*() {
        const { url } = yield* makeTable
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const pool = yield* Pg.Pool.Pool
          for (let steps = 3; steps < 150; steps++) {
            const work = Effect.provideService(
              sql.withTransaction(Effect.andThen(sql`SELECT 1`, sql.withTransaction(sql`SELECT 2`))),
              MaxOpsBeforeYield,
              steps
            )
            const unlucky = yield* Effect.replicateEffect(Effect.forkChild(work, { startImmediately: true }), 5)
            const lucky = yield* Effect.forkChild(work, { startImmediately: true })
            // So that some of them have got as far as to wait for an answer.
            yield* Effect.sleep(steps % 3)
            yield* soon(`the end after ${steps} steps`, Fiber.interruptAll(unlucky))
            yield* soon(`the turn of the last after ${steps} steps`, Fiber.join(lucky))
            const { active, waiting } = pool.statsUnsafe()
            assert.deepStrictEqual({ active, waiting }, { active: 0, waiting: 0 }, `after ${steps} steps`)
          }
        }).pipe(Effect.provide(Pg.layer({ url, max: 2, multiplex })))
      }))
  }
})

describe("a statement in line", () => {
  it.live("is served although others in line are interrupted between any two steps", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        for (let steps = 3; steps < 120; steps++) {
          const work = Effect.provideService(Effect.asVoid(sql`SELECT 1`), MaxOpsBeforeYield, steps)
          const fibers = yield* Effect.replicateEffect(Effect.forkChild(work, { startImmediately: true }), 8)
          const isUnlucky = (_: unknown, index: number) => index % 2 === 0
          yield* Effect.forEach(
            fibers.filter(isUnlucky),
            (fiber) => Effect.andThen(Effect.yieldNow, Fiber.interrupt(fiber))
          )
          const lucky = fibers.filter((fiber, index) => !isUnlucky(fiber, index))
          yield* soon(`the others after ${steps} steps`, Fiber.joinAll(lucky))
          const { active, waiting } = pool.statsUnsafe()
          assert.deepStrictEqual({ active, waiting }, { active: 0, waiting: 0 }, `after ${steps} steps`)
        }
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})
