/** What a call that waits for the circuit does for itself, on a server in this process. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import * as Pg from "../src/index.ts"
import { makeMemoryServer } from "./memoryServer.ts"

const setUp = Effect.gen(function*() {
  const server = makeMemoryServer()
  const context = yield* Layer.build(
    Layer.fresh(Pg.layer({ username: "somebody", stream: server.stream, prepare: false, max: 4 }))
  )
  const executor = Context.get(context, Pg.Executor.Executor)
  const sql = Context.get(context, SqlClient)
  const read = sql`SELECT 1 AS one`
  return { server, executor, read, breaker: Context.get(context, Pg.Breaker.Breaker) }
})

/** What the server has said needs some turns of the event loop to arrive. */
const settle = Effect.promise(async () => {
  for (let turns = 0; turns < 10; turns++) await new Promise((resolve) => setImmediate(resolve))
})

/** In small steps, since what happens in one moves the next. */
const pass = (millis: number): Effect.Effect<void> =>
  millis <= 0
    ? settle
    : settle.pipe(Effect.andThen(TestClock.adjust(10)), Effect.andThen(Effect.suspend(() => pass(millis - 10))))

const start = <A, E, R>(work: Effect.Effect<A, E, R>) => Effect.forkChild(work, { startImmediately: true })

const outage = (server: ReturnType<typeof makeMemoryServer>, millis: number) =>
  Effect.gen(function*() {
    server.manner = "refuses"
    for (const peer of server.open()) peer.close("administrator")
    yield* pass(millis)
    server.manner = "accepts"
  })

const patient = (deadline: Duration.Input) => ({ idempotent: true, waitForCircuit: true, deadline }) as const

describe("a call that waits for the circuit", () => {
  it.effect("is answered a moment after the server is back, and the circuit is closed again", () =>
    Effect.gen(function*() {
      const { breaker, executor, read, server } = yield* setUp
      yield* read
      const early = yield* start(executor.run(read, patient("10 seconds")))
      server.manner = "refuses"
      for (const peer of server.open()) peer.close("administrator")
      const calls = yield* Effect.forEach(
        Array.from({ length: 20 }),
        () => start(executor.run(read, patient("10 seconds")))
      )
      yield* pass(1_500)
      assert.strictEqual((yield* breaker.state)._tag, "Open")
      const late = yield* start(executor.run(read, patient("10 seconds")))
      yield* pass(1_500)
      assert.isTrue(calls.every((call) => call.pollUnsafe() === undefined))
      server.manner = "accepts"
      yield* pass(200)
      for (const call of [early, ...calls, late]) {
        assert.isDefined(call.pollUnsafe())
        yield* Fiber.join(call)
      }
      assert.strictEqual((yield* breaker.state)._tag, "Closed")
    }))

  it.effect("keeps nobody else waiting: who does not wait is rejected at once, and asks the server nothing", () =>
    Effect.gen(function*() {
      const { executor, read, server } = yield* setUp
      server.manner = "refuses"
      yield* Effect.exit(start(read).pipe(Effect.flatMap((fiber) => Effect.andThen(pass(2_000), Fiber.await(fiber)))))
      yield* pass(2_000)
      const before = server.activity()
      for (let call = 0; call < 10; call++) {
        assert.strictEqual((yield* Effect.flip(executor.run(read)))._tag, "CircuitOpen")
        yield* pass(200)
      }
      assert.strictEqual(server.activity(), before)
    }))

  it.effect("says what it waited for when the server does not come back in time", () =>
    Effect.gen(function*() {
      const { executor, read, server } = yield* setUp
      server.manner = "refuses"
      const call = yield* start(Effect.flip(executor.run(read, patient("3 seconds"))))
      yield* outage(server, 3_100)
      const error = yield* Fiber.join(call)
      assert.include(["CircuitOpen", "RetriesExhausted"], error._tag)
    }))

  it.effect("waits no longer than its circuit when that was opened by something else", () =>
    Effect.gen(function*() {
      const { breaker, executor, read, server } = yield* setUp
      yield* read
      const down = Effect.fail(Object.assign(new Error("down"), { code: "ECONNREFUSED" }))
      yield* Effect.forEach(Array.from({ length: 5 }), () => Effect.ignore(breaker.protect(down)))
      const call = yield* start(executor.run(read, patient("1 minute")))
      yield* pass(5_000)
      assert.isUndefined(call.pollUnsafe())
      assert.strictEqual(server.peers.length, 1)
      yield* TestClock.adjust("36 seconds")
      yield* pass(100)
      yield* Fiber.join(call)
    }))
})
