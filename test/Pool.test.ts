import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Metrics from "../src/Metrics.ts"
import * as Pool from "../src/Pool.ts"

describe("sizing", () => {
  it.each([
    [1, { max: 6, min: 5 }],
    [2, { max: 8, min: 5 }],
    [4, { max: 12, min: 5 }],
    [8, { max: 20, min: 5 }],
    [64, { max: 100, min: 25 }]
  ])("%i CPUs", (cpus, size) => {
    assert.deepStrictEqual(Pool.sizeFromCpus(cpus), size)
  })

  it("asks the operating system when no number is given", () => {
    const { max, min } = Pool.sizeFromCpus()
    assert.isAtLeast(max, 6)
    assert.isAtMost(min, max)
  })

  it("of a serverless environment is two at most, none kept", () => {
    assert.deepStrictEqual(Pool.sizeServerless(), { max: 2, min: 0 })
  })
})

const settled = (options: Pool.Options) =>
  Effect.scoped(Effect.map(Layer.build(Layer.provide(Pool.layer(options), Metrics.layer())), (context) => context))

const refused = (options: Pool.Options) => Effect.flip(settled(options))

describe("an impossible option", () => {
  const cases: ReadonlyArray<readonly [title: string, options: Pool.Options, option: string, value: string]> = [
    ["max 0", { max: 0 }, "max", "0"],
    ["max 1.5", { max: 1.5 }, "max", "1.5"],
    ["min above max", { max: 3, min: 4 }, "min", "4"],
    ["a negative min", { min: -1 }, "min", "-1"],
    ["port 70000", { port: 70_000 }, "port", "70000"],
    ["acquireTimeout 0", { acquireTimeout: 0 }, "acquireTimeout", "0"],
    ["a negative idleTimeout", { idleTimeout: -1 }, "idleTimeout", "-1"],
    ["a duration that is none", { queryTimeout: "soon" as never }, "queryTimeout", "soon"],
    ["jitter 1", { maxLifetimeJitter: 1 }, "maxLifetimeJitter", "1"],
    ["maxUses 0", { maxUses: 0 }, "maxUses", "0"],
    ["NaN", { maxWaiting: NaN }, "maxWaiting", "NaN"],
    ["a validate that is none", { validate: "never" as never }, "validate", "never"],
    ["a pooler that is none", { pooler: "session" as never }, "pooler", "session"],
    ["a reset that is none", { reset: "all" as never }, "reset", "all"],
    ["reset of what borrowers share", { reset: "clean", multiplex: true }, "reset", "clean"],
    ["reset of a pooler's sessions", { reset: "discard-all", pooler: "transaction" }, "reset", "discard-all"],
    ["prepared statements that a reset discards", { reset: "discard-all", prepare: true }, "prepare", "true"],
    ["a password that everybody can read", { password: "hunter2" as never }, "password", "<redacted>"],
    ["no host", { hosts: [] }, "hosts", "empty"],
    ["hosts beside a host", { hosts: [{ host: "a" }], host: "b" }, "host", "b"],
    ["hosts beside a path", { hosts: [{ host: "a" }], path: "/run/pg/.s" }, "path", "/run/pg/.s"],
    ["a host that is a text", { hosts: ["db1" as never] }, "hosts[0]", "db1"],
    ["a URL for a host", { host: "postgres://me:hunter2@db" }, "host", "<redacted>"],
    ["a URL for one of the hosts", { hosts: [{ host: "me:hunter2@db" }] }, "hosts[0].host", "<redacted>"],
    ["a URL for a database", { database: "postgres://me:hunter2@db" }, "database", "<redacted>"],
    ["TLS options that are a text", { ssl: "-----BEGIN PRIVATE KEY-----" as never }, "ssl", "<redacted>"],
    ["a text of errors that is none", { errorText: "some" as never }, "errorText", "some"],
    ["a URL that is a text", { url: "postgres://localhost" as never }, "url", "<redacted>"],
    ["a shedding that is none", { shedding: "yes" as never }, "shedding", "yes"],
    ["a hook that is no function", { afterRelease: Effect.void as never }, "afterRelease", String(Effect.void)],
    ["two hosts in one", { hosts: [{ host: "a,b" }] }, "hosts[0].host", "a,b"],
    ["the port of a host", { hosts: [{ host: "a" }, { host: "b", port: 0 }] }, "hosts[1].port", "0"],
    ["targetSessionAttrs that are none", { targetSessionAttrs: "master" as never }, "targetSessionAttrs", "master"],
    ["the driver's name for max", { maxConnections: 3 } as never, "maxConnections", "3"]
  ]
  it.effect.each(cases)("is refused when the pool is made: %s", ([, options, option, value]) =>
    Effect.gen(function*() {
      const error = yield* refused(options)
      assert.strictEqual(error._tag, "InvalidOption")
      assert.strictEqual(error.option, option)
      assert.strictEqual(error.value, value)
      assert.include(error.message, option)
    }))

  it.effect("does not show the secret of a URL that cannot be read", () =>
    Effect.gen(function*() {
      const error = yield* refused({ url: Redacted.make("mysql://me:hunter2@host/db") })
      assert.strictEqual(error.option, "url")
      assert.notInclude(JSON.stringify(error) + error.message, "hunter2")
    }))
})

describe("building a pool", () => {
  it.effect("opens nothing and does not fail for a database that is not there", () =>
    Effect.gen(function*() {
      yield* settled({ host: "127.0.0.1", port: 1, max: 2 })
    }))

  it.effect("keeps its floor within its bound", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(Layer.provide(Pool.layer({ max: 2 }), Metrics.layer()))
      const pool = yield* Effect.provide(Pool.Pool, context)
      assert.deepStrictEqual(yield* pool.stats, {
        total: 0,
        idle: 0,
        active: 0,
        waiting: 0,
        connecting: 0,
        max: 2,
        min: 2,
        oldestLease: 0
      })
    }))
})

describe("resize", () => {
  it.effect("starts from the bounds of the moment when it is run, and not of when it was written down", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(Layer.provide(Pool.layer({ max: 4, min: 0 }), Metrics.layer()))
      const pool = yield* Effect.provide(Pool.Pool, context)
      const grow = pool.resize({ max: 8 })
      yield* pool.resize({ min: 3 })
      yield* grow
      const { max, min } = yield* pool.stats
      assert.deepStrictEqual({ max, min }, { max: 8, min: 3 })
    }))
})
