/** What a real server makes of `serverReaping`, and what becomes of the sessions of a process that was killed. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import { FaultProxy } from "effect-pg-pool/testing"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makePgBouncer } from "./pgbouncer.ts"
import { eventually, makeWitness, soon, type Witness } from "./witness.ts"

const open = (options: Pg.Options) =>
  Effect.map(Layer.build(Pg.layer({ retry: false, breaker: false, max: 1, ...options })), (context) => ({
    sql: Context.get(context, PgClient.PgClient),
    pool: Context.get(context, Pg.Pool.Pool)
  }))

describe("serverReaping", () => {
  it.live("is what the session is set to", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { sql } = yield* open({
        url,
        serverReaping: {
          idleSession: "6 minutes",
          keepaliveIdle: "61 seconds",
          keepaliveInterval: "11 seconds",
          keepaliveCount: 4,
          connectionCheck: "12 seconds"
        }
      })
      const rows = yield* sql<{ name: string; setting: string; unit: string | null }>`
        SELECT name, setting, unit FROM pg_settings
        WHERE source = 'client' AND (name LIKE 'tcp_%' OR name LIKE '%idle_session%' OR name LIKE '%check_interval')
        ORDER BY name`
      assert.deepStrictEqual(rows, [
        { name: "client_connection_check_interval", setting: "12000", unit: "ms" },
        { name: "idle_session_timeout", setting: "360000", unit: "ms" },
        { name: "tcp_keepalives_count", setting: "4", unit: null },
        { name: "tcp_keepalives_idle", setting: "61", unit: "s" },
        { name: "tcp_keepalives_interval", setting: "11", unit: "s" }
      ])
    }))

  it.live("comes back with a reset", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { sql } = yield* open({ url, reset: "clean", serverReaping: { idleSession: "6 minutes" } })
      yield* sql`SET idle_session_timeout = 0`
      const [row] = yield* sql<{ limit: string }>`SELECT current_setting('idle_session_timeout') AS limit`
      assert.strictEqual(row!.limit, "6min")
    }))

  it.live("is not in the way of a pooler that was not told of as one, but ignores the other settings", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const ignored = "statement_timeout, lock_timeout, idle_in_transaction_session_timeout"
      const bouncer = yield* makePgBouncer({
        settings: { pool_mode: "session", ignore_startup_parameters: ignored.replaceAll(" ", "") }
      })
      const { sql } = yield* open({
        url: bouncer.through(url),
        serverReaping: { idleSession: "6 minutes", keepaliveCount: 3 }
      })
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.live("ends nobody who listens, and holds for the session again afterwards", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const { sql } = yield* open({ url, max: 2, idleTimeout: 100, serverReaping: { idleSession: "400 millis" } })
      const heard = yield* Effect.forkChild(Effect.scoped(Effect.gen(function*() {
        const queue = yield* sql.listen("news")
        const [row] = yield* witness.query<{ pid: number }>(
          "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )
        yield* Effect.sleep(1200)
        assert.deepStrictEqual(yield* witness.sessions, [row!.pid])
        yield* sql.notify("news", "of today")
        return (yield* Queue.take(queue)).payload
      })))
      assert.strictEqual(yield* Fiber.join(heard), "of today")
      yield* eventually("its session has been ended, too", Effect.map(witness.count, (count) => count === 0), 10)
    }))
})

const fixture = fileURLToPath(new URL("./fixtures/reaped.ts", import.meta.url))

/** An environment with three sessions, in a process of its own that is killed without a word. */
const makeEnvironment = Effect.fnUntraced(function*(url: Redacted.Redacted, reaping: "on" | "off") {
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [fixture], {
        stdio: ["ignore", "pipe", "inherit"],
        env: { ...process.env, NODE_OPTIONS: "", DATABASE_URL: Redacted.value(url), REAPING: reaping }
      })
    ),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )
  const gone = once(child, "exit")
  yield* soon("three sessions", Effect.promise(() => once(child.stdout, "data")))
  return {
    kill: Effect.promise(() => {
      child.kill("SIGKILL")
      return gone
    })
  }
})

/** What the sessions that are left do, and since when. */
const leftOver = (witness: Witness) =>
  Effect.map(
    witness.query<{ state: string }>(
      "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY state"
    ),
    (rows) => rows.map(({ state }) => state)
  )

const amounts = (witness: Witness, states: ReadonlyArray<string>) =>
  Effect.map(leftOver(witness), (left) => left.join() === states.join())

const everything = ["active", "idle", "idle in transaction"]

describe("an environment that is gone without its network having said so", () => {
  it.live(
    "leaves an idle session, and one that is idle in a transaction, to the time limits of the server",
    () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const proxy = yield* FaultProxy.make(url)
        const environment = yield* makeEnvironment(proxy.url, "on")
        yield* eventually("all three", amounts(witness, everything))
        yield* proxy.set(FaultProxy.blackhole())
        yield* environment.kill
        yield* eventually("the one that executes is left", amounts(witness, ["active"]))
      }),
    60_000
  )

  it.live("leaves an idle session there for good when the server was not asked to look", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const proxy = yield* FaultProxy.make(url)
      const environment = yield* makeEnvironment(proxy.url, "off")
      yield* eventually("all three", amounts(witness, everything))
      yield* proxy.set(FaultProxy.blackhole())
      yield* environment.kill
      yield* eventually("no transaction", amounts(witness, ["active", "idle"]))
      yield* Effect.sleep(1000)
      assert.deepStrictEqual(yield* leftOver(witness), ["active", "idle"])
    }), 60_000)
})

describe("an environment whose process was killed", () => {
  it.live("leaves nothing, the statement that it waited for neither", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const environment = yield* makeEnvironment(url, "on")
      yield* eventually("all three", amounts(witness, everything))
      yield* environment.kill
      yield* eventually("nothing", amounts(witness, []))
    }), 60_000)

  it.live("leaves that statement running when the server was not asked to look", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const environment = yield* makeEnvironment(url, "off")
      yield* eventually("all three", amounts(witness, everything))
      yield* environment.kill
      yield* eventually("the others have gone", amounts(witness, ["active"]))
      yield* Effect.sleep(1000)
      assert.deepStrictEqual(yield* leftOver(witness), ["active"])
    }), 60_000)
})
