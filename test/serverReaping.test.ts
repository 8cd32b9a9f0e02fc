/** What a pool asks the server to look after, and servers that do not know what it speaks of. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import { ScriptedServer } from "effect-pg-pool/testing"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Pg from "../src/index.ts"

const all = {
  idleSession: "6 minutes",
  keepaliveIdle: "1 minute",
  keepaliveInterval: "10 seconds",
  keepaliveCount: 3,
  connectionCheck: "10 seconds"
} as const

const names = [
  "idle_session_timeout",
  "tcp_keepalives_idle",
  "tcp_keepalives_interval",
  "tcp_keepalives_count",
  "client_connection_check_interval"
]

type Refuse = (name: string) => ReturnType<typeof ScriptedServer.error> | undefined

/** A server that takes the settings it likes, and what each of its clients has asked for. */
const makeServer = Effect.fnUntraced(function*(refuse: Refuse = () => undefined) {
  const asked: Array<Record<string, string>> = []
  const server = yield* ScriptedServer.make({
    onStartup: ({ startup }) => {
      const those = Object.entries(startup).filter(([name]) => names.includes(name))
      asked.push(Object.fromEntries(those))
      for (const [name] of those) {
        const refusal = refuse(name)
        if (refusal !== undefined) return refusal
      }
      return undefined
    },
    onQuery: () => ScriptedServer.rows([{ one: 1 }])
  })
  return { asked, url: server.url }
})

const clientOf = (options: Pg.Options) =>
  Effect.map(
    Layer.build(Pg.layer({ retry: false, breaker: false, max: 3, ...options })),
    (context) => ({ sql: Context.get(context, PgClient.PgClient), pool: Context.get(context, Pg.Pool.Pool) })
  )

const unknown = (name: string) =>
  ScriptedServer.error("42704", `unrecognized configuration parameter "${name}"`, { severity: "FATAL" })

describe("serverReaping", () => {
  it.live("is sent with the startup packet, in the units of the server", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer()
      const { sql } = yield* clientOf({ url, serverReaping: all })
      yield* sql`SELECT 1`
      assert.deepStrictEqual(asked, [{
        idle_session_timeout: "360000",
        tcp_keepalives_idle: "60",
        tcp_keepalives_interval: "10",
        tcp_keepalives_count: "3",
        client_connection_check_interval: "10000"
      }])
    }))

  it.live("says nothing about what it leaves out, and turns a limit off by infinity", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer()
      yield* (yield* clientOf({ url })).sql`SELECT 1`
      yield* (yield* clientOf({ url, serverReaping: { idleSession: Infinity } })).sql`SELECT 1`
      assert.deepStrictEqual(asked, [{}, { idle_session_timeout: "0" }])
    }))

  it.live("gives way to what startupParameters say by name", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer()
      const startupParameters = { idle_session_timeout: "1h" }
      yield* (yield* clientOf({ url, serverReaping: { idleSession: "6 minutes" }, startupParameters })).sql`SELECT 1`
      assert.deepStrictEqual(asked, [{ idle_session_timeout: "1h" }])
    }))

  it.live("is not sent behind a transaction pooler", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer()
      yield* (yield* clientOf({ url, serverReaping: all, pooler: "transaction" })).sql`SELECT 1`
      assert.deepStrictEqual(asked, [{}])
    }))

  it.live("must leave the pool the time to close an idle session by itself", () =>
    Effect.gen(function*() {
      const options = { username: "somebody", idleTimeout: "5 minutes" } as const
      const error = yield* Effect.flip(clientOf({ ...options, serverReaping: { idleSession: "5 minutes" } }))
      assert.instanceOf(error, Pg.Errors.InvalidOption)
      assert.strictEqual(error.option, "serverReaping.idleSession")
      assert.strictEqual(
        error.message,
        "serverReaping.idleSession is \"5 minutes\", but must be above idleTimeout, which is 300000 ms: the pool must close an idle session before the server does."
      )
    }))

  const impossible: ReadonlyArray<NonNullable<Pg.Options["serverReaping"]>> = [
    { idleSession: 0 },
    { idleSession: "25 days" },
    { keepaliveIdle: "500 millis" },
    { keepaliveIdle: Infinity },
    { keepaliveInterval: "10 hours" },
    { keepaliveCount: 0 },
    { keepaliveCount: 1.5 },
    { connectionCheck: -1 }
  ]
  for (const serverReaping of impossible) {
    it.live(`cannot be ${JSON.stringify(serverReaping)}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(clientOf({ username: "somebody", idleTimeout: 0, serverReaping }))
        assert.instanceOf(error, Pg.Errors.InvalidOption)
        assert.strictEqual(error.option, `serverReaping.${Object.keys(serverReaping)[0]}`)
      }))
  }
})

describe("the preset of a serverless environment", () => {
  it.live("is possible, wants two sessions at most, and has the server reap what is left of them", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer()
      const { pool, sql } = yield* clientOf({ url, ...Pg.Serverless.preset() })
      yield* sql`SELECT 1`
      assert.strictEqual(asked[0]!["idle_session_timeout"], "360000")
      assert.strictEqual(Object.keys(asked[0]!).length, 5)
      const { closeTimeout, idleTimeout, max, min, waitsForRoom } = pool.settings
      assert.deepStrictEqual([max, min, idleTimeout, closeTimeout, waitsForRoom], [2, 0, 300_000, 200, true])
    }))
})

describe("a server before PostgreSQL 14", () => {
  it.live("is met again without what it does not know, at once, and is not asked for it twice", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer((name) =>
        name === "idle_session_timeout" || name === "client_connection_check_interval" ? unknown(name) : undefined
      )
      let connects = 0
      const { pool, sql } = yield* clientOf({
        url,
        serverReaping: all,
        beforeConnect: Effect.sync(() => void connects++)
      })
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
      const rest = { tcp_keepalives_idle: "60", tcp_keepalives_interval: "10", tcp_keepalives_count: "3" }
      assert.deepStrictEqual(asked.slice(1), [rest])
      yield* pool.warm(2)
      assert.deepStrictEqual(asked.slice(2), [rest])
      // It was one connect all the same: nobody has heard of a failure, and nothing has paused.
      assert.strictEqual(connects, 2)
      assert.isUndefined(pool.lastConnectFailureUnsafe())
    }))
})

describe("a server whose platform cannot do it", () => {
  it.live("is met again without it", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer((name) =>
        name === "client_connection_check_interval"
          ? ScriptedServer.error("22023", `invalid value for parameter "${name}": 10000`, { severity: "FATAL" })
          : undefined
      )
      const { sql } = yield* clientOf({ url, serverReaping: all })
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
      assert.deepStrictEqual(asked.map((each) => Object.keys(each).length), [5, 4])
      assert.notProperty(asked[1], "client_connection_check_interval")
    }))
})

describe("a pooler that nobody has spoken of", () => {
  it.live("is met again without each of what it refuses in turn", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer((name) =>
        ScriptedServer.error("08P01", `unsupported startup parameter: ${name}`, { severity: "FATAL" })
      )
      const { sql } = yield* clientOf({ url, serverReaping: all })
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
      assert.deepStrictEqual(asked.map((each) => Object.keys(each).length), [5, 4, 3, 2, 1, 0])
    }))
})

describe("a refusal that is about something else", () => {
  it.live("is told, and what was asked for stays asked for", () =>
    Effect.gen(function*() {
      const { asked, url } = yield* makeServer(() =>
        ScriptedServer.error("42704", "unrecognized configuration parameter \"search_pth\"", { severity: "FATAL" })
      )
      const { sql } = yield* clientOf({ url, serverReaping: all })
      const error = yield* Effect.flip(sql`SELECT 1`)
      assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "42704")
      yield* Effect.sleep(150)
      yield* Effect.exit(sql`SELECT 1`)
      assert.deepStrictEqual(asked.map((each) => Object.keys(each).length), [5, 5])
    }))
})
