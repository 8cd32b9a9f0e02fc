/** What Vercel is told of pools, and when their sessions go. The server is in this process, and time is the test's. */
import { assert, describe, it } from "@effect/vitest"
import { attachDatabasePool } from "@vercel/functions"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import { AsyncLocalStorage } from "node:async_hooks"
import * as Pg from "../src/index.ts"
import { makeMemoryServer } from "./memoryServer.ts"

const { Serverless } = Pg

const turn = Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void)))
const turns = Effect.repeat(turn, { times: 20 })

const query = Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`)

const makeWorld = Effect.fnUntraced(function*(options: Pg.Options = {}) {
  const server = makeMemoryServer()
  const layer = Pg.layer({
    stream: server.stream,
    host: "db1",
    database: "app",
    username: "nobody",
    password: Redacted.make("hunter2"),
    prepare: false,
    max: 2,
    idleTimeout: "5 seconds",
    ...options
  })
  const environment = yield* Serverless.environment(layer)
  const releases: Array<string> = []
  const pool = Serverless.vercel(environment)
  pool.on("release", () => releases.push("release"))
  return {
    environment,
    pool,
    releases,
    sessions: () => server.open().length,
    ask: Effect.promise(() => environment.run(query)),
    later: (millis: number) => Effect.andThen(TestClock.adjust(millis), turns)
  }
})

describe("Serverless.vercel", () => {
  it("is what attachDatabasePool takes", () => {
    const pool = Serverless.vercel(Serverless.make(Layer.empty))
    assert.doesNotThrow(() => attachDatabasePool(pool))
  })

  it("takes nothing but an environment", () => {
    const { dispose, ready, resume, run, runExit, suspend } = Serverless.make(Layer.empty)
    assert.throws(
      () => Serverless.vercel({ dispose, ready, resume, run, runExit, suspend }),
      /environment.*Serverless\.make/
    )
  })

  it.effect("says how long the pool's sessions idle, as soon as there is a pool", () =>
    Effect.gen(function*() {
      const { ask, pool } = yield* makeWorld({ idleTimeout: "7 seconds" })
      assert.strictEqual(pool.options.idleTimeoutMillis, 10_000)
      yield* ask
      assert.strictEqual(pool.options.idleTimeoutMillis, 7000)
    }))

  it.effect("says it of the pool whose sessions idle longest, where there are several", () =>
    Effect.gen(function*() {
      const server = makeMemoryServer()
      const options: Pg.Options = { stream: server.stream, host: "db1", username: "nobody", prepare: false }
      const environment = yield* Serverless.environment(Layer.mergeAll(
        Layer.fresh(Pg.layer({ ...options, idleTimeout: "1 seconds" })),
        Layer.fresh(Pg.layer({ ...options, idleTimeout: "3 seconds" })),
        Layer.fresh(Pg.layer({ ...options, idleTimeout: "2 seconds" }))
      ))
      yield* Effect.promise(() => environment.run(query))
      assert.strictEqual(Serverless.vercel(environment).options.idleTimeoutMillis, 3000)
    }))

  it.effect("tells of the end of every invocation, however it ends, and not of checkouts", () =>
    Effect.gen(function*() {
      const { environment, releases } = yield* makeWorld()
      yield* Effect.promise(() =>
        environment.run(Effect.andThen(Effect.andThen(query, query), Effect.sync(() => releases.push("work done"))))
      )
      yield* Effect.promise(() => environment.runExit(Effect.fail("no")))
      assert.deepStrictEqual(releases, ["work done", "release", "release"])
    }))

  it.effect("lets a listener that throws spoil neither the run nor what the others are told", () =>
    Effect.gen(function*() {
      const { environment, pool, releases } = yield* makeWorld()
      pool.on("release", () => {
        throw new Error("outside of a request")
      })
      pool.on("release", () => releases.push("another"))
      yield* Effect.promise(() => environment.run(query))
      assert.deepStrictEqual(releases, ["release", "another"])
    }))

  it.effect("keeps nothing awake where no session is open, or none is ever closed", () =>
    Effect.gen(function*() {
      const unused = yield* makeWorld()
      yield* Effect.promise(() => unused.environment.run(Effect.void))
      assert.deepStrictEqual(unused.releases, [])
      const endless = yield* makeWorld({ idleTimeout: Infinity })
      yield* endless.ask
      yield* endless.later(3_600_000)
      assert.deepStrictEqual([endless.releases, endless.sessions()], [[], 1])
    }))

  it.effect("closes what is idle when no invocation has come for the idleTimeout", () =>
    Effect.gen(function*() {
      const { ask, later, sessions } = yield* makeWorld()
      yield* ask
      yield* later(4999)
      assert.strictEqual(sessions(), 1)
      yield* later(1)
      assert.strictEqual(sessions(), 0)
      yield* ask
      assert.strictEqual(sessions(), 1)
    }))

  it.effect("begins anew with every invocation, and never closes below one that is under way", () =>
    Effect.gen(function*() {
      const { ask, environment, later, sessions } = yield* makeWorld()
      yield* ask
      yield* later(4000)
      yield* ask
      yield* later(4000)
      assert.strictEqual(sessions(), 1)
      const gate = yield* Deferred.make<void>()
      const long = yield* Effect.forkChild(
        Effect.promise(() => environment.run(Effect.andThen(query, Deferred.await(gate)))),
        { startImmediately: true }
      )
      yield* turns
      // One that comes and goes meanwhile is not the last.
      yield* ask
      yield* later(20_000)
      assert.strictEqual(sessions(), 1)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(long)
      yield* later(5000)
      assert.strictEqual(sessions(), 0)
    }))

  it.effect("leaves nothing to wake up for after the end of the environment", () =>
    Effect.gen(function*() {
      const { ask, environment, later, releases, sessions } = yield* makeWorld()
      yield* ask
      yield* Effect.promise(() => environment.dispose())
      assert.strictEqual(sessions(), 0)
      yield* Effect.promise(() => environment.runExit(query))
      yield* later(10_000)
      assert.deepStrictEqual(releases, ["release"])
    }))

  it.effect("tells in the asynchronous context of the request, whoever has woken its fiber", () =>
    Effect.gen(function*() {
      const { ask, environment, pool } = yield* makeWorld()
      yield* ask
      const requests = new AsyncLocalStorage<string>()
      const told: Array<string | undefined> = []
      pool.on("release", () => told.push(requests.getStore()))
      const gate = yield* Deferred.make<void>()
      const runs = ["first", "second"].map((name) => requests.run(name, () => environment.run(Deferred.await(gate))))
      yield* turns
      requests.run("somebody else", () => Deferred.doneUnsafe(gate, Exit.void))
      yield* Effect.promise(() => Promise.all(runs))
      assert.deepStrictEqual(told.sort(), ["first", "second"])
    }))
})
