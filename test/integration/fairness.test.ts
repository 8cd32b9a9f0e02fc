import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { ended, makeWitness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

describe("two hundred borrowers who wait for one session", () => {
  it.live("are served in the order in which they came, whatever becomes of the session", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const sessions = new Set<number>()
      const served: Array<number> = []
      let looks = 0
      let vetoes = 0
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const trouble = (name: number, pid: number) =>
          name % 10 === 3
            // It is dead when it comes back, or its next borrower finds out.
            ? Effect.asVoid(witness.terminate([pid]))
            : name % 10 === 6
            ? pool.evictAll
            : Effect.void
        const borrow = (name: number) =>
          pool.use(
            ({ connection }) =>
              Effect.suspend(() => {
                served.push(name)
                sessions.add(connection.processId)
                return Effect.andThen(Effect.exit(connection.query("SELECT 1")), trouble(name, connection.processId))
              }),
            // Those who come after a killed session find out by a check that fails.
            { prove: name % 20 === 4 }
          )
        const waiting = yield* Effect.scoped(Effect.gen(function*() {
          yield* pool.reserve()
          return yield* Effect.forEach(
            range(200),
            (name) => Effect.forkDetach(borrow(name), { startImmediately: true })
          )
        }))
        yield* Effect.forEach(waiting, (fiber) => ended(fiber, 60))
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 1,
        retry: false,
        breaker: false,
        beforeAcquire: () =>
          Effect.sync(() => {
            if (++looks % 7 !== 0) return true
            vetoes++
            return false
          })
      })))
      assert.deepStrictEqual(served, range(200))
      assert.isAbove(vetoes, 20)
      assert.isAtLeast(sessions.size, 60)
    }), 90_000)
})
