/** What somebody who waits holds on to: bytes of the heap after a collection, which hardly differ from run to run. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import * as Pg from "../src/index.ts"
import { makeStubServer } from "./stubServer.ts"

const callers = 10_000

setFlagsFromString("--expose-gc")
const collect = runInNewContext("gc") as () => void

/** What those who were there before have left is gone a few turns of the event loop later. */
const heapUsed = Effect.map(Effect.sleep(10), () => {
  collect()
  return process.memoryUsage().heapUsed
})

/** Bytes for each of many who do the same, and wait. Some 400 of them are the fiber, which is their own. */
const bytesOf = <A, E>(wait: Effect.Effect<A, E>, whileWaiting: Effect.Effect<void>) =>
  Effect.gen(function*() {
    const fibers = Array.from<Fiber.Fiber<A, E>>({ length: callers })
    const before = yield* heapUsed
    for (let index = 0; index < callers; index++) {
      fibers[index] = yield* Effect.forkDetach(wait, { startImmediately: true })
    }
    const after = yield* heapUsed
    yield* whileWaiting
    yield* Fiber.interruptAll(fibers)
    return (after - before) / callers
  })

describe("each of 10,000 who wait in line", () => {
  const cases: ReadonlyArray<
    readonly [who: string, bound: number, wait: (own: Context.Context<Layer.Success<typeof layer>>) => Waiting]
  > = [
    ["whoever uses a session", 1200, (own) => Context.get(own, Pg.Pool.Pool).use(() => Effect.void)],
    ["a statement", 1100, (own) => statement(Context.get(own, SqlClient))],
    ["whoever wants a session for themselves", 2250, (own) => {
      const { hold } = Context.get(own, Pg.Executor.Executor)
      return Effect.uninterruptibleMask((restore) => hold(restore))
    }],
    ["a transaction", 2700, (own) => {
      const sql = Context.get(own, SqlClient)
      return sql.withTransaction(statement(sql))
    }]
  ]

  for (const [who, bound, wait] of cases) {
    it.live(`holds on to ${bound} bytes at most: ${who}`, () =>
      Effect.gen(function*() {
        const own = yield* Layer.build(layer)
        const pool = Context.get(own, Pg.Pool.Pool)
        yield* statement(Context.get(own, SqlClient))
        yield* pool.get()
        const allWait = Effect.sync(() => assert.strictEqual(pool.statsUnsafe().waiting, callers))
        const bytes = yield* bytesOf(wait(own), allWait)
        assert.isAtMost(bytes, bound)
      }))
  }
})

type Waiting = Effect.Effect<unknown, unknown>

const layer = Pg.layer({ username: "somebody", stream: makeStubServer("next turn").stream, max: 1 })

const statement = (sql: SqlClient): Waiting => sql`SELECT id, name FROM item WHERE id = ${1}`
