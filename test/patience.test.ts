/** What a call that waits for the circuit does for itself, on a server in this process. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import * as Pg from "../src/index.ts"
import { message } from "../src/testing/backendEncoder.ts"
import { makeMemoryServer } from "./memoryServer.ts"

const setUpWith = Effect.fnUntraced(function*(options: Partial<Pg.Options> = {}) {
  const server = makeMemoryServer()
  const connects: Array<number> = []
  const clock = yield* Clock.Clock
  let refusal: Uint8Array | undefined
  const stream = () => {
    connects.push(clock.currentTimeMillisUnsafe())
    const socket = server.stream()
    if (refusal !== undefined) {
      socket.push(refusal)
      socket.push(null)
    }
    return socket
  }
  /** What the server refuses everybody with from now on. */
  const say = (sqlState: string, text: string) => {
    server.manner = "is silent"
    refusal = message("E", Buffer.from(`SFATAL\0VFATAL\0C${sqlState}\0M${text}\0\0`))
  }
  const context = yield* Layer.build(
    Layer.fresh(Pg.layer({ username: "somebody", stream, prepare: false, max: 4, ...options }))
  )
  const executor = Context.get(context, Pg.Executor.Executor)
  const sql = Context.get(context, SqlClient)
  const read = sql`SELECT 1 AS one`
  return {
    server,
    connects,
    say,
    executor,
    sql,
    read,
    breaker: Context.get(context, Pg.Breaker.Breaker),
    pool: Context.get(context, Pg.Pool.Pool)
  }
})

const setUp = setUpWith()

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

  it.effect("does not sleep through the return of a server that was away for too short a time to open the circuit", () =>
    Effect.gen(function*() {
      const { breaker, executor, read, server } = yield* setUp
      server.manner = "refuses"
      const calls = yield* Effect.forEach(
        Array.from({ length: 20 }),
        () => start(executor.run(read, patient("10 seconds")))
      )
      // Its next attempt is due 812 ms after the first.
      yield* pass(500)
      assert.deepInclude(yield* breaker.state, { _tag: "Closed" })
      server.manner = "accepts"
      yield* pass(100)
      for (const call of calls) {
        assert.isDefined(call.pollUnsafe())
        yield* Fiber.join(call)
      }
    }))

  it.effect("finds sessions for all who wait, although the circuit lets in one at first", () =>
    Effect.gen(function*() {
      const { breaker, executor, server, sql } = yield* setUp
      const held = sql`SELECT 1 AS hold`
      server.manner = "refuses"
      const calls = yield* Effect.forEach(
        Array.from({ length: 20 }),
        () => start(executor.run(held, patient("1 minute")))
      )
      yield* pass(1_500)
      server.manner = "accepts"
      yield* pass(100)
      assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0, limit: 1 })
      assert.strictEqual(server.open().filter((peer) => peer.isGreeted()).length, 4)
      yield* Fiber.interruptAll(calls)
    }))

  it.effect("opens no more sessions than there are callers who wait", () =>
    Effect.gen(function*() {
      const { executor, server, sql } = yield* setUp
      const held = sql`SELECT 1 AS hold`
      server.manner = "refuses"
      const calls = yield* Effect.forEach(
        Array.from({ length: 2 }),
        () => start(executor.run(held, patient("1 minute")))
      )
      yield* pass(1_500)
      server.manner = "accepts"
      yield* pass(100)
      assert.strictEqual(server.open().length, 2)
      yield* Fiber.interruptAll(calls)
    }))

  it.effect("costs the server that is back one question, not another one for each call that is let in", () =>
    Effect.gen(function*() {
      const { breaker, executor, read, server } = yield* setUp
      server.manner = "refuses"
      const calls = yield* Effect.forEach(
        Array.from({ length: 10 }),
        () => start(executor.run(read, patient("1 minute")))
      )
      yield* pass(1_500)
      assert.strictEqual((yield* breaker.state)._tag, "Open")
      server.manner = "accepts"
      yield* pass(200)
      for (const call of calls) yield* Fiber.join(call)
      assert.strictEqual(server.statements(), 1 + calls.length)
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

describe("the connects of those who wait for the circuit", () => {
  const countedIn = (connects: ReadonlyArray<number>, millis: number) =>
    Effect.suspend(() => {
      const before = connects.length
      return Effect.map(pass(millis), () => connects.length - before)
    })

  it.effect("get rarer with the outage, although another session goes on", () =>
    Effect.gen(function*() {
      const { connects, executor, server, sql } = yield* setUpWith({ max: 2, connectTimeout: "300 millis" })
      const held = yield* start(sql`SELECT 1 AS hold`)
      // A server that has answered a moment ago is not believed to be away.
      yield* pass(400)
      server.manner = "refuses"
      const call = yield* start(executor.use(() => Effect.never, patient("1 minute")))
      const early = yield* countedIn(connects, 1_000)
      yield* pass(8_000)
      const late = yield* countedIn(connects, 1_000)
      assert.isBelow(late, early / 2)
      yield* Fiber.interruptAll([held, call])
    }))

  it.effect("get rarer where a server answers that it is full", () =>
    Effect.gen(function*() {
      const { connects, executor, read, server } = yield* setUp
      server.manner = "refuses"
      const call = yield* start(executor.run(read, patient("1 minute")))
      yield* pass(1_500)
      server.manner = "is full"
      yield* pass(6_000)
      assert.isAtMost(yield* countedIn(connects, 2_000), 4)
      yield* Fiber.interrupt(call)
    }))

  it.effect("are many at first where nobody listens", () =>
    Effect.gen(function*() {
      const { connects, executor, read, server } = yield* setUp
      server.manner = "refuses"
      const call = yield* start(executor.run(read, patient("1 minute")))
      // Every 50 milliseconds would be 13 at the most.
      assert.isAbove(yield* countedIn(connects, 500), 14)
      yield* Fiber.interrupt(call)
    }))

  it.effect("are some more when a server says after a while that it starts", () =>
    Effect.gen(function*() {
      const { connects, executor, read, say, server } = yield* setUp
      server.manner = "refuses"
      const call = yield* start(executor.run(read, patient("1 minute")))
      yield* pass(10_000)
      say("57P03", "the database system is starting up")
      const before = connects.length
      while (connects.length === before) yield* pass(10)
      // By the length of the outage the next one would be due in 75 milliseconds at the earliest.
      assert.isAtLeast(yield* countedIn(connects, 70), 2)
      yield* Fiber.interrupt(call)
    }))

  /** The longest pause that somebody who asks every ten milliseconds is told of. */
  const longestPause = (pool: Pg.Pool.Pool["Service"], millis: number) =>
    Effect.gen(function*() {
      let longest = 0
      for (let passed = 0; passed < millis; passed += 10) {
        longest = Math.max(longest, pool.connectPauseUnsafe())
        yield* pass(10)
      }
      return longest
    })

  it.effect("are nobody else's failures", () =>
    Effect.gen(function*() {
      const { connects, executor, pool, read, server } = yield* setUp
      server.manner = "refuses"
      const call = yield* start(executor.run(read, patient("1 minute")))
      // What five attempts of its own come to.
      assert.isAtMost(yield* longestPause(pool, 3_000), 510)
      assert.isAbove(connects.length, 40)
      yield* Fiber.interrupt(call)
    }))

  it.effect("are none any more when there are as many sessions as there may be", () =>
    Effect.gen(function*() {
      const { connects, executor, pool, server, sql } = yield* setUpWith({ max: 2, connectTimeout: "300 millis" })
      const held = yield* start(sql`SELECT 1 AS hold`)
      yield* pass(400)
      server.manner = "refuses"
      const call = yield* start(executor.use(() => Effect.never, patient("1 minute")))
      yield* pass(1_500)
      yield* pool.resize({ max: 1 })
      assert.strictEqual(yield* countedIn(connects, 1_000), 0)
      assert.isUndefined(call.pollUnsafe())
      yield* Fiber.interruptAll([held, call])
    }))

  it.effect("are for all who wait also when another call is the probe", () =>
    Effect.gen(function*() {
      const { breaker, executor, server, sql } = yield* setUpWith({ breaker: { openFor: "300 millis" } })
      server.manner = "refuses"
      const calls = yield* Effect.forEach(
        Array.from({ length: 4 }),
        () => start(executor.run(sql`SELECT 1 AS hold`, patient("1 minute")))
      )
      for (let passed = 0; passed < 3_000 && (yield* breaker.state)._tag !== "Open"; passed += 10) yield* pass(10)
      server.manner = "accepts when told"
      for (let passed = 0; passed < 1_500 && (yield* breaker.state)._tag !== "HalfOpen"; passed += 10) yield* pass(10)
      yield* pass(50)
      for (const peer of server.open()) peer.mute()
      server.greet()
      yield* pass(50)
      assert.strictEqual((yield* breaker.state)._tag, "HalfOpen")
      assert.strictEqual(server.open().length, 3)
      yield* Fiber.interruptAll(calls)
    }))

  it.effect("that are for all who wait end with the time of a probe, when a server falls silent after it", () =>
    Effect.gen(function*() {
      const { breaker, executor, server, sql } = yield* setUp
      server.manner = "refuses"
      const calls = yield* Effect.forEach(
        Array.from({ length: 4 }),
        () => start(executor.run(sql`SELECT 1 AS hold`, patient("1 minute")))
      )
      yield* pass(1_500)
      server.manner = "accepts when told"
      yield* pass(200)
      server.greet()
      yield* pass(30)
      yield* Fiber.interruptAll(calls)
      assert.strictEqual(server.open().length, 3)
      yield* pass(breaker.probeTimeout)
      server.greet()
      yield* pass(100)
      assert.strictEqual(server.open().length, 3)
    }))
})

describe("a statement whose session the server has ended", () => {
  it.effect("is repeated at once, by the one connect that tells whether the server lets anybody in", () =>
    Effect.gen(function*() {
      const { executor, server, sql } = yield* setUp
      const call = yield* start(executor.run(sql`SELECT 1 AS hold`, { idempotent: true }))
      yield* settle
      server.peers[0]!.close("administrator")
      yield* settle
      server.peers[1]!.answer()
      yield* settle
      assert.isDefined(call.pollUnsafe())
      yield* Fiber.join(call)
    }))

  it.effect("waits like any other when that happens to it again", () =>
    Effect.gen(function*() {
      const { executor, server, sql } = yield* setUp
      const call = yield* start(executor.run(sql`SELECT 1 AS hold`, { idempotent: true }))
      for (const session of [0, 1]) {
        yield* settle
        server.peers[session]!.close("administrator")
      }
      yield* settle
      assert.strictEqual(server.peers.length, 2)
      yield* pass(200)
      server.peers[2]!.answer()
      yield* settle
      yield* Fiber.join(call)
    }))
})
