/** What becomes of borrowers while the server takes no more sessions. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as TestClock from "effect/testing/TestClock"
import * as Errors from "../src/Errors.ts"
import { isFull } from "../src/internal/fullServer.ts"
import * as Metrics from "../src/Metrics.ts"
import * as Pool from "../src/Pool.ts"
import { makeMemoryServer } from "./memoryServer.ts"

/** Chance that always says the same. */
const rigged = (share: number): typeof Random.Random.Service => ({
  nextDoubleUnsafe: () => share,
  nextIntUnsafe: () => 0
})

const setUp = Effect.fnUntraced(function*(options: Pool.Options = {}, share = 1) {
  const server = makeMemoryServer()
  server.manner = "is full"
  const connects: Array<number> = []
  const layer = Pool.layer({
    username: "somebody",
    stream: server.stream,
    max: 10,
    beforeConnect: Effect.map(Clock.currentTimeMillis, (at) => connects.push(at)),
    whenServerFull: "wait",
    ...options
  })
  const context = yield* Effect.provideService(
    Layer.build(Layer.provideMerge(layer, Metrics.layer())),
    Random.Random,
    rigged(share)
  )
  const pool = Context.get(context, Pool.Pool)
  const ask = Effect.exit(pool.use(() => Effect.succeed("served")))
  return { ask, connects, pool, server }
})

/** Lets sockets and fibers do what they can do without time. */
const turns = Effect.promise(async () => {
  for (let turn = 0; turn < 20; turn++) await new Promise<void>((resolve) => setImmediate(resolve))
})

/** Time that passes as it does: in small steps, between which sockets have their say. */
const pass = (duration: Duration.Input, step = 50) =>
  Effect.gen(function*() {
    yield* turns
    for (let left = Duration.toMillis(Duration.fromInputUnsafe(duration)); left > 0; left -= step) {
      yield* TestClock.adjust(Math.min(step, left))
      yield* turns
    }
  })

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

const failureOf = <A, E>(exit: Exit.Exit<A, E>) => {
  assert.isTrue(Exit.isFailure(exit), "it was served")
  return Exit.findErrorOption(exit).pipe((error) => {
    assert.strictEqual(error._tag, "Some")
    return (error as { readonly value: E }).value
  })
}

describe("a server that takes no more sessions, with whenServerFull \"wait\"", () => {
  it.effect("is asked once per pause by a thousand borrowers, who are served as soon as it has room", () =>
    Effect.gen(function*() {
      const { ask, connects, server } = yield* setUp()
      const fibers = yield* Effect.forEach(range(1000), () => Effect.forkChild(ask, { startImmediately: true }))
      yield* pass(3400)
      assert.deepStrictEqual(connects, [0, 100, 300, 700, 1500, 3100])
      server.manner = "accepts"
      yield* pass(2000)
      for (const fiber of fibers) assert.deepStrictEqual(yield* Fiber.join(fiber), Exit.succeed("served"))
      assert.deepStrictEqual(connects.slice(0, 7), [0, 100, 300, 700, 1500, 3100, 5100])
    }))

  it.effect("is asked again at a time that chance says, so that many processes do not come at once", () =>
    Effect.gen(function*() {
      const { ask, connects } = yield* setUp({}, 0.5)
      yield* Effect.forkChild(ask, { startImmediately: true })
      yield* pass(1600)
      assert.deepStrictEqual(connects, [0, 50, 150, 350, 750, 1550])
    }))

  it.effect("leaves nobody waiting for longer than acquireTimeout, and tells them what it has said", () =>
    Effect.gen(function*() {
      const { ask } = yield* setUp({ acquireTimeout: "2 seconds" })
      const fiber = yield* Effect.forkChild(ask, { startImmediately: true })
      yield* pass(1950)
      assert.isUndefined(fiber.pollUnsafe())
      yield* pass(50)
      const error = failureOf(yield* Fiber.join(fiber))
      assert.instanceOf(error, Errors.AcquireTimeout)
      assert.strictEqual(error.phase, "Connect")
      assert.strictEqual(error.waited, 2000)
      assert.strictEqual(error.lastConnectFailure?.sqlState, "53300")
      assert.match(error.message, /too_many_connections.*max_connections\.$/)
    }))

  it.effect("is left alone when nobody waits any more", () =>
    Effect.gen(function*() {
      const { ask, connects } = yield* setUp()
      const fiber = yield* Effect.forkChild(ask, { startImmediately: true })
      yield* pass(400)
      yield* Fiber.interrupt(fiber)
      const before = connects.length
      yield* pass("1 minute", 1000)
      assert.strictEqual(connects.length, before)
    }))

  it.effect("and then is away: who waits is told so at once", () =>
    Effect.gen(function*() {
      const { ask, server } = yield* setUp()
      const fiber = yield* Effect.forkChild(ask, { startImmediately: true })
      yield* pass(150)
      server.manner = "refuses"
      yield* pass(150)
      assert.strictEqual(failureOf(yield* Fiber.join(fiber))._tag, "SqlError")
    }))

  it.effect("lets who warms the pool wait as well", () =>
    Effect.gen(function*() {
      const { pool, server } = yield* setUp()
      const fiber = yield* Effect.forkChild(Effect.exit(pool.warm(2)), { startImmediately: true })
      yield* pass(200)
      server.manner = "accepts"
      yield* pass(200)
      assert.deepStrictEqual(yield* Fiber.join(fiber), Exit.void)
      assert.strictEqual(pool.statsUnsafe().total, 2)
    }))

  it.effect("does not keep the pool from closing", () =>
    Effect.gen(function*() {
      const { ask, connects, pool } = yield* setUp()
      const fiber = yield* Effect.forkChild(ask, { startImmediately: true })
      yield* pass(150)
      const draining = yield* Effect.forkChild(pool.drain("1 second"), { startImmediately: true })
      yield* pass(1000)
      assert.strictEqual(failureOf(yield* Fiber.join(fiber))._tag, "PoolClosed")
      yield* pass(1000)
      assert.strictEqual(yield* Fiber.join(draining), 1)
      const before = connects.length
      yield* pass("10 seconds", 1000)
      assert.strictEqual(connects.length, before)
    }))
})

describe("a server that takes no more sessions", () => {
  it.effect("is told of at once unless the pool was told to wait", () =>
    Effect.gen(function*() {
      const { ask, connects } = yield* setUp({ whenServerFull: undefined })
      const fiber = yield* Effect.forkChild(ask, { startImmediately: true })
      yield* pass(1)
      assert.strictEqual(failureOf(yield* Fiber.join(fiber))._tag, "SqlError")
      assert.strictEqual(connects.length, 1)
    }))

  const said = (code: string, message: string) =>
    new SqlError({
      reason: new ConnectionError({
        cause: Object.assign(new Error(message), { code, severity: "FATAL" }),
        message: "PgConnection: Failed to connect",
        operation: "connect"
      })
    })

  const full: ReadonlyArray<readonly [code: string, message: string]> = [
    ["53300", "sorry, too many clients already"],
    ["53300", "too many connections for role \"orders\""],
    ["53300", "remaining connection slots are reserved for roles with the SUPERUSER attribute"],
    ["08P01", "no more connections allowed (max_client_conn)"],
    ["XX000", "MaxClientsInSessionMode: max clients reached"]
  ]
  for (const [code, message] of full) {
    it(`says so by ${code} ${message}`, () => assert.isTrue(isFull(said(code, message))))
  }

  const other: ReadonlyArray<readonly [code: string, message: string]> = [
    ["57P03", "the database system is starting up"],
    ["53100", "could not write init file: No space left on device"],
    ["53200", "out of memory"],
    ["28P01", "password authentication failed for user \"orders\""],
    ["08P01", "server login has been failing, try again later (server_login_retry)"]
  ]
  for (const [code, message] of other) {
    it(`says something else by ${code} ${message}`, () => assert.isFalse(isFull(said(code, message))))
  }

  const host = (role: "standby" | null, sqlState: string | undefined) => ({
    host: "a:5432",
    role,
    failure: sqlState === undefined ? null : { sqlState }
  })
  it("may be one of several, the others being away or not what is looked for", () => {
    const hosts = [host("standby", undefined), host(null, "57P03"), host(null, "53300")]
    assert.isTrue(isFull(new Errors.NoSuitableHost({ targetSessionAttrs: "primary", hosts })))
    assert.isFalse(isFull(new Errors.NoSuitableHost({ targetSessionAttrs: "primary", hosts: hosts.slice(0, 2) })))
  })

  it("is not meant by what a hook has heard elsewhere", () =>
    assert.isFalse(
      isFull(new Errors.HookFailed({ hook: "afterConnect", cause: Redacted.make(said("53300", "full")), text: "full" }))
    ))
})
