import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { spawn } from "node:child_process"
import * as Readline from "node:readline"
import { fileURLToPath } from "node:url"
import * as Pg from "../../src/index.ts"
import { makeMemoryServer } from "../memoryServer.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { eventually, makeWitness, soon } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** A pool over a server in this process, in the time of the test's clock. */
const setUp = Effect.fnUntraced(function*(options: Omit<Pg.Pool.Options, "url" | "stream">) {
  const server = makeMemoryServer()
  const context = yield* Layer.build(Layer.provideMerge(
    Pg.Pool.layer({
      stream: server.stream,
      username: "nobody",
      prepare: false,
      idleTimeout: Infinity,
      maxLifetime: Infinity,
      ...options
    }),
    Pg.Metrics.layer()
  ))
  const pool = yield* Effect.provide(Pg.Pool.Pool, context)
  /** The server's name for the session that is lent. */
  const next = pool.use(({ connection }) => Effect.succeed(connection.processId))
  return { server, pool, next }
})

/** Lends sessions one after another so that the last of them is on top. */
const openInTurn = Effect.fnUntraced(function*(pool: Pg.Pool.Pool["Service"], count: number, between: Duration.Input) {
  const scopes = []
  for (let index = 0; index < count; index++) {
    const scope = yield* Scope.make()
    yield* Scope.provide(pool.reserve(), scope)
    scopes.push(scope)
    yield* TestClock.adjust(between)
  }
  return scopes
})

describe("a session that was used in the last half second", () => {
  it.effect("is lent without a check, whatever validateAfter says, and is checked from then on", () =>
    Effect.gen(function*() {
      const { next, pool, server } = yield* setUp({ max: 1, validateAfter: 0 })
      yield* pool.warm(1)
      const pid = yield* next
      const [peer] = server.peers
      peer!.mute()
      yield* TestClock.adjust(500)
      assert.strictEqual(yield* next, pid)
      assert.isFalse(peer!.isAsked())
      yield* TestClock.adjust(501)
      const fiber = yield* Effect.forkChild(next, { startImmediately: true })
      assert.isTrue(peer!.isAsked())
      yield* TestClock.adjust("1 second")
      assert.notStrictEqual(yield* Fiber.join(fiber), pid)
    }))
})

describe("a check", () => {
  it.effect("costs its caller validationTimeout at most, and then no more than a connect", () =>
    Effect.gen(function*() {
      const { next, pool, server } = yield* setUp({ max: 1, validationTimeout: 700 })
      yield* pool.warm(1)
      const pid = yield* next
      server.peers[0]!.mute()
      yield* TestClock.adjust("31 seconds")
      const fiber = yield* Effect.forkChild(next, { startImmediately: true })
      yield* TestClock.adjust(699)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.notStrictEqual(yield* Fiber.join(fiber), pid)
      assert.strictEqual(server.open().length, 1)
    }))

  it.effect("is due when the wall clock has leapt, as in a process that was frozen", () =>
    Effect.gen(function*() {
      const { next, pool, server } = yield* setUp({ max: 1 })
      yield* pool.warm(1)
      const pid = yield* next
      server.peers[0]!.mute()
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      const fiber = yield* Effect.forkChild(next, { startImmediately: true })
      assert.isTrue(server.peers[0]!.isAsked())
      yield* TestClock.adjust("1 second")
      assert.notStrictEqual(yield* Fiber.join(fiber), pid)
    }))

  it.effect("is due when the wall clock was set back: nobody knows for how long the session has been idle", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      const { next, pool, server } = yield* setUp({ max: 1 })
      yield* pool.warm(1)
      const pid = yield* next
      server.peers[0]!.mute()
      yield* TestClock.setTime(Date.UTC(2029, 11, 31))
      const fiber = yield* Effect.forkChild(next, { startImmediately: true })
      assert.isTrue(server.peers[0]!.isAsked())
      yield* TestClock.adjust("1 second")
      assert.notStrictEqual(yield* Fiber.join(fiber), pid)
    }))

  it.effect("that fails evicts every session that is as old or older, and none that is younger", () =>
    Effect.gen(function*() {
      const { next, pool, server } = yield* setUp({ max: 4, min: 4 })
      const scopes = yield* openInTurn(pool, 4, "1 second")
      // The third is the last to come back, so it is the next to be lent.
      for (const index of [3, 0, 1, 2]) yield* Scope.close(scopes[index]!, Exit.void)
      const [first, second, third, fourth] = server.peers
      third!.mute()
      yield* TestClock.adjust("31 seconds")
      const fiber = yield* Effect.forkChild(next, { startImmediately: true })
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* Fiber.join(fiber), fourth!.pid)
      assert.strictEqual((yield* pool.stats).total, 1)
      yield* TestClock.withLive(eventually(
        "three closed sockets",
        Effect.sync(() => server.open().length === 1 && fourth!.isOpen())
      ))
      assert.isFalse(first!.isOpen() || second!.isOpen())
    }))

  it.effect("that fails on a session in other hands has it closed when it comes back", () =>
    Effect.gen(function*() {
      const { next, pool, server } = yield* setUp({ max: 2, min: 2 })
      const [older, younger] = yield* openInTurn(pool, 2, "1 second")
      yield* Scope.close(younger!, Exit.void)
      server.peers[1]!.mute()
      yield* TestClock.adjust("31 seconds")
      const fiber = yield* Effect.forkChild(next, { startImmediately: true })
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* Fiber.join(fiber), 3)
      assert.isTrue(server.peers[0]!.isOpen())
      yield* Scope.close(older!, Exit.void)
      yield* TestClock.adjust("1 second")
      assert.isFalse(server.peers[0]!.isOpen())
      assert.deepInclude(yield* pool.stats, { active: 0, total: 1 })
    }))

  it.effect("of a session that answers nothing from the start is a failed connect, with its pause", () =>
    Effect.gen(function*() {
      let opened = 0
      let isBroken = true
      // As a pooler does whose server is gone.
      const server = makeMemoryServer(() => {
        opened++
        if (isBroken) server.peers.at(-1)!.mute()
      })
      const context = yield* Layer.build(Layer.provideMerge(
        Pg.Pool.layer({ stream: server.stream, username: "nobody", prepare: false, max: 3, validationTimeout: 100 }),
        Pg.Metrics.layer()
      ))
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const proved = pool.use(() => Effect.void, { prove: true })
        const fibers = yield* Effect.forEach(
          range(100),
          () => Effect.forkChild(Effect.flip(proved), { startImmediately: true })
        )
        yield* TestClock.adjust(100)
        for (const fiber of fibers) assert.strictEqual((yield* Fiber.join(fiber))._tag, "SqlError")
        assert.isAtMost(opened, 3)
        const pause = pool.connectPauseUnsafe()
        assert.isAbove(pause, 0)
        isBroken = false
        yield* TestClock.adjust(pause)
        yield* proved
      }).pipe(Effect.provide(context))
    }))

  it.live("on a link that swallows every byte costs its caller the check and a connect, not the driver's patience", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(yield* freshDatabase)
      const swallowed = new Set<number>()
      let isHalfOpen = false
      proxy.onRequest((_, { id }) => {
        if (isHalfOpen && id <= 3) swallowed.add(id)
        return swallowed.has(id) ? "drop" : "pass"
      })
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* Effect.scoped(Effect.forEach(range(3), () => pool.reserve(), { concurrency: 3 }))
        yield* Effect.sleep(600)
        isHalfOpen = true
        const [took, rows] = yield* Effect.timed(
          pool.use(({ connection }) => connection.queryValues("SELECT 'alive'"))
        )
        assert.deepStrictEqual(rows, [["alive"]])
        // The other two were idle behind the same link: they are not tried one after another.
        assert.strictEqual(swallowed.size, 3)
        assert.isBelow(Duration.toMillis(took), 4500)
      }).pipe(Effect.provide(Layer.provideMerge(
        Pg.Pool.layer({ url: proxy.url, max: 3, min: 3, validateAfter: 500, validationTimeout: 300 }),
        Pg.Metrics.layer()
      )))
    }))
})

describe("a process that was stopped for longer than validateAfter, whose sessions the server has ended meanwhile", () => {
  const fixture = fileURLToPath(new URL("./fixtures/frozen.ts", import.meta.url))

  const launch = (url: Redacted.Redacted) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const child = spawn(process.execPath, [fixture], {
          env: { ...process.env, NODE_OPTIONS: "", DATABASE_URL: Redacted.value(url) },
          stdio: ["pipe", "pipe", "inherit"]
        })
        const lines: Array<string> = []
        Readline.createInterface({ input: child.stdout }).on("line", (line) => lines.push(line))
        return { child, lines }
      }),
      ({ child }) => Effect.sync(() => child.kill("SIGKILL"))
    )

  it.live("has its first statements answered, and no error reaches the program", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const { child, lines } = yield* launch(url)
      const answer = (count: number) =>
        Effect.as(
          eventually(`answer ${count}`, Effect.sync(() => lines.length === count)),
          Effect.sync(() => lines.at(-1)!)
        ).pipe(Effect.flatten)
      child.stdin.write("ask\n")
      const before = yield* answer(1)
      assert.match(before, /^\d+ \d+ \d+$/)
      for (const round of [2, 3]) {
        child.kill("SIGSTOP")
        yield* Effect.sleep(1200)
        assert.strictEqual(yield* witness.terminate(yield* witness.sessions), 3)
        // All it will know of the time in between waits for it when it goes on.
        child.stdin.write("ask\n")
        yield* Effect.sleep(100)
        child.kill("SIGCONT")
        const after = yield* answer(round)
        assert.match(after, /^\d+ \d+ \d+$/)
        for (const pid of before.split(" ")) assert.notInclude(after.split(" "), pid)
        assert.strictEqual(yield* witness.count, 3)
      }
      child.stdin.end("end\n")
      yield* soon(
        "the end of the process",
        Effect.callback<void>((resume) => void child.once("exit", () => resume(Effect.void)))
      )
      yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
    }).pipe(Effect.scoped))
})
