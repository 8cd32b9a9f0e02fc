import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import { randomUUID } from "node:crypto"
import * as Net from "node:net"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"
import { makeCluster } from "./cluster.ts"
import type { Witness } from "./witness.ts"
import { ended, eventually, makeWitness, soon } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** 25 places for anybody: 30 less 3 for superusers and 2 for who may use reserved ones. */
const Server = EmbeddedPostgres.layer({
  useDatabaseUrl: false,
  settings: { max_connections: "30", superuser_reserved_connections: "3", reserved_connections: "2" }
})

/** A plain user and a database of its own, dropped with the scope, and a superuser who looks on. */
const makeTenant = Effect.fnUntraced(function*(limits: { readonly role?: number; readonly database?: number } = {}) {
  const server = yield* EmbeddedPostgres
  const name = `t${randomUUID().replaceAll("-", "")}`
  const witness = yield* makeWitness(server.url)
  yield* witness.query(`CREATE ROLE ${name} LOGIN PASSWORD 'word' CONNECTION LIMIT ${limits.role ?? -1}`)
  yield* Effect.addFinalizer(() => Effect.orDie(witness.query(`DROP ROLE ${name}`)))
  yield* witness.query(`CREATE DATABASE ${name} CONNECTION LIMIT ${limits.database ?? -1}`)
  yield* Effect.addFinalizer(() => Effect.orDie(witness.query(`DROP DATABASE ${name} WITH (FORCE)`)))
  const url = Redacted.make(`postgres://${name}:word@${server.host}:${server.port}/${name}`)
  const count = witness.value<number>(
    "SELECT count(*)::int FROM pg_stat_activity WHERE usename = $1 AND application_name = 'orders'",
    [name]
  )
  return { name, url, witness, count }
})

/** One environment of the fleet `orders`. */
const makeEnvironment = Effect.fnUntraced(function*(url: Redacted.Redacted, options: Pg.Options) {
  const scope = yield* Scope.fork(yield* Effect.scope)
  const context = yield* Scope.provide(
    Layer.build(Pg.layer({ url, applicationName: "orders", retry: false, breaker: false, ...options })),
    scope
  )
  const pool = Context.get(context, Pg.Pool.Pool)
  const sql = Context.get(context, SqlClient)
  return {
    pool,
    sql,
    report: Effect.map(pool.fleet, Option.getOrThrow),
    close: Scope.close(scope, Exit.void)
  }
})

/** Sessions that others than the fleet have on the server, as somebody sees it who is told everything. */
const strangers = (witness: Witness) =>
  witness.value<number>(
    "SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> 'orders'"
  )

/** All that is left, for as many environments, as if they were never deployed anew. */
const wholeOf = (environments: number, more: Partial<Pg.Pool.FleetOptions> & { readonly ceiling?: number } = {}) =>
  Pg.Pool.sizeForFleet({ environments, overlap: 1, share: 1, ceiling: 20, ...more })

/** A session that the pool knows nothing of. */
const stranger = (url: Redacted.Redacted) => PgConnection.make({ url, applicationName: "stranger" })

layer(Server, { timeout: 60_000, excludeTestServices: true })("a fleet on a server", (it) => {
  it.effect("is told the server's limits, and has what others leave of them", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTenant()
      yield* stranger(url)
      const { pool, report, sql } = yield* makeEnvironment(url, wholeOf(2))
      assert.strictEqual(pool.statsUnsafe().max, 1)
      yield* sql`SELECT 1`
      const others = yield* strangers(witness)
      assert.isAtLeast(others, 2)
      const found = yield* report
      assert.deepInclude(found, {
        maxConnections: 30,
        superuserReserved: 3,
        reserved: 2,
        mayUseReserved: false,
        roleLimit: null,
        databaseLimit: null,
        usedByRole: 2,
        usedByDatabase: 2,
        usedByFleet: 1,
        isStandby: false,
        bound: "server",
        limit: 25,
        others,
        budget: 25 - others,
        size: Math.floor((25 - others) / 2)
      })
      assert.strictEqual(pool.statsUnsafe().max, found.size)
      assert.strictEqual(found.utilisation, (others + 1) / 25)
    }))

  it.effect("keeps to the connection limit of its role, of which other programs of the role take", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTenant({ role: 9 })
      yield* Effect.all([stranger(url), stranger(url)])
      const { report, sql } = yield* makeEnvironment(url, wholeOf(2))
      yield* sql`SELECT 1`
      assert.deepInclude(yield* report, { roleLimit: 9, bound: "role", limit: 9, others: 2, budget: 7, size: 3 })
    }))

  it.effect("keeps to the connection limit of its database, whoever uses it", () =>
    Effect.gen(function*() {
      const { name, url } = yield* makeTenant({ database: 9 })
      const other = yield* makeTenant()
      yield* stranger(Redacted.make(Redacted.value(other.url).replace(/[^/]*$/, name)))
      const { report, sql } = yield* makeEnvironment(url, wholeOf(2))
      yield* sql`SELECT 1`
      assert.deepInclude(yield* report, {
        databaseLimit: 9,
        bound: "database",
        limit: 9,
        others: 1,
        budget: 8,
        size: 4
      })
    }))

  it.effect("may fill reserved places if its role may, by way of another one too", () =>
    Effect.gen(function*() {
      const { name, url, witness } = yield* makeTenant()
      const group = yield* makeTenant()
      yield* witness.query(`GRANT pg_use_reserved_connections TO ${group.name}`)
      yield* witness.query(`GRANT ${group.name} TO ${name}`)
      const { report, sql } = yield* makeEnvironment(url, wholeOf(1))
      yield* sql`SELECT 1`
      assert.deepInclude(yield* report, { mayUseReserved: true, limit: 27 })
    }))

  it.effect("leaves the superusers' places alone, and is held by no other limit, when it is a superuser", () =>
    Effect.gen(function*() {
      const { name, url, witness } = yield* makeTenant({ role: 2, database: 2 })
      yield* witness.query(`ALTER ROLE ${name} SUPERUSER`)
      const { report, sql } = yield* makeEnvironment(url, wholeOf(1))
      yield* sql`SELECT 1`
      assert.deepInclude(yield* report, { mayUseReserved: true, roleLimit: null, databaseLimit: null, limit: 27 })
    }))

  it.effect("counts as its own only sessions of its name, role and database", () =>
    Effect.gen(function*() {
      const one = yield* makeTenant()
      const other = yield* makeTenant()
      const cousin = yield* makeEnvironment(other.url, wholeOf(1))
      yield* cousin.sql`SELECT 1`
      const sibling = yield* makeEnvironment(one.url, wholeOf(1))
      yield* sibling.sql`SELECT 1`
      const { report, sql } = yield* makeEnvironment(one.url, wholeOf(1))
      yield* sql`SELECT 1`
      assert.deepInclude(yield* report, { usedByFleet: 2, usedByRole: 2, usedByDatabase: 2 })
    }))

  it.effect("asks without a round trip: the first statement is on its way before the answer comes", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTenant()
      const { hostname, port } = new URL(Redacted.value(url))
      const heldBack: Array<string> = []
      const stream = () => {
        const socket = Net.connect(Number(port), hostname)
        const write = socket.write.bind(socket) as (chunk: Uint8Array) => boolean
        socket.write = ((chunk: Uint8Array) => {
          const text = Buffer.from(chunk).toString("latin1")
          const isSent = write(chunk)
          // Nothing comes in from the question on until something else is sent.
          if (text.includes("superuser_reserved")) socket.pause()
          else if (socket.isPaused()) {
            heldBack.push(text)
            socket.resume()
          }
          return isSent
        }) as typeof socket.write
        return socket
      }
      const { report, sql } = yield* makeEnvironment(url, { stream, ...wholeOf(1) })
      assert.deepStrictEqual(yield* soon("the first answer", sql`SELECT 41 + 1 AS answer`), [{ answer: 42 }])
      assert.lengthOf(heldBack, 1)
      assert.include(heldBack[0], "41 + 1")
      assert.strictEqual((yield* report).limit, 25)
    }))

  it.effect("grows to its size at once for those who wait already", () =>
    Effect.gen(function*() {
      const { count, url } = yield* makeTenant({ role: 8 })
      const { pool } = yield* makeEnvironment(url, wholeOf(2))
      yield* Effect.scoped(Effect.gen(function*() {
        yield* soon(
          "four sessions",
          Effect.forEach(range(4), () => pool.reserve(), { concurrency: 4 })
        )
        assert.strictEqual(yield* count, 4)
      }))
    }))

  it.effect("stays within its share of the server, however many environments of it are busy", () =>
    Effect.gen(function*() {
      const { count, url } = yield* makeTenant()
      const environments = yield* Effect.forEach(range(6), () => makeEnvironment(url, wholeOf(6, { share: 0.8 })))
      let most = 0
      const watch = yield* Effect.forkChild(Effect.forever(Effect.tap(count, (now) =>
        Effect.sync(() => {
          most = Math.max(most, now)
        }))))
      yield* soon(
        "the end of all statements",
        Effect.forEach(
          environments,
          ({ sql }) => Effect.forEach(range(40), () => sql`SELECT pg_sleep(0.005)`, { concurrency: 8 }),
          {
            concurrency: "unbounded"
          }
        ),
        40
      )
      yield* Fiber.interrupt(watch)
      const reports = yield* Effect.forEach(environments, ({ report }) => report)
      const budget = Math.max(...reports.map((found) => found.budget))
      assert.isAtLeast(budget, 15)
      assert.isAtLeast(most, 6)
      assert.isAtMost(most, Math.floor(0.8 * budget))
      for (const { isSafe, size } of reports) assert.deepStrictEqual([isSafe, size >= 2], [true, true])
    }))

  it.effect("meets no refusal where it just fits in, though all environments start at once", () =>
    Effect.gen(function*() {
      const { count, url } = yield* makeTenant({ role: 12 })
      const environments = yield* Effect.forEach(range(12), () => makeEnvironment(url, wholeOf(12)))
      const served = yield* soon(
        "the end of all statements",
        Effect.forEach(
          environments,
          ({ sql }) => Effect.forEach(range(5), () => sql`SELECT pg_sleep(0.002)`, { concurrency: "unbounded" }),
          {
            concurrency: "unbounded"
          }
        ),
        40
      )
      assert.lengthOf(served.flat(), 60)
      assert.strictEqual(yield* count, 12)
      for (const { pool, report } of environments) {
        assert.deepInclude(yield* report, { size: 1, isSafe: true })
        assert.isUndefined(pool.lastConnectFailureUnsafe())
      }
    }))

  it.effect("opens nothing for a fleet that is too large, if that is asked for, until there is room", () =>
    Effect.gen(function*() {
      const { count, name, url, witness } = yield* makeTenant({ role: 3 })
      const { pool, sql } = yield* makeEnvironment(url, wholeOf(4, { whenUnsafe: "fail" }))
      const error = Pg.Errors.fromSqlError(yield* Effect.flip(sql`SELECT 1`))
      assert.deepInclude(error, { _tag: "FleetTooLarge", bound: "role", limit: 3, others: 0, safeEnvironments: 3 })
      yield* eventually("the end of the session", Effect.map(count, (left) => left === 0))
      yield* witness.query(`ALTER ROLE ${name} CONNECTION LIMIT 8`)
      yield* eventually("a session", Effect.map(Effect.exit(sql`SELECT 1`), Exit.isSuccess))
      assert.strictEqual(pool.statsUnsafe().max, 2)
    }))

  it.effect("goes on with one session where the server does not let it ask", () =>
    Effect.gen(function*() {
      const { name, url } = yield* makeTenant()
      const administration = yield* PgConnection.make({
        url: Redacted.make((yield* EmbeddedPostgres).url.pipe(Redacted.value).replace(/[^/]*$/, name))
      })
      yield* administration.query("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_stat_get_activity FROM PUBLIC")
      const { pool, sql } = yield* makeEnvironment(url, wholeOf(2))
      yield* Effect.forEach(range(3), () => sql`SELECT 1`, { concurrency: 3 })
      assert.deepInclude(pool.statsUnsafe(), { max: 1, total: 1 })
      assert.isTrue(Option.isNone(yield* pool.fleet))
      yield* administration.query("GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_get_activity TO PUBLIC")
      yield* pool.evictAll
      yield* sql`SELECT 1`
      assert.isAbove(pool.statsUnsafe().max, 1)
    }))

  it.effect("lets a borrower wait where others have taken what was left, and nobody hears of it", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTenant({ role: 5 })
      const environments = yield* Effect.forEach(range(3), () => makeEnvironment(url, wholeOf(3)))
      yield* Effect.forEach(environments.slice(0, 2), ({ sql }) => sql`SELECT 1`)
      const others = yield* Scope.make()
      yield* Scope.provide(Effect.forEach(range(3), () => stranger(url)), others)
      const waiter = yield* Effect.forkChild(environments[2]!.sql`SELECT 1 AS one`)
      yield* eventually("a refusal", Effect.sync(() => environments[2]!.pool.lastConnectFailureUnsafe() !== undefined))
      yield* Scope.close(others, Exit.void)
      assert.deepStrictEqual(yield* ended(waiter), Exit.succeed([{ one: 1 }]))
    }))

  it.effect("closes what an environment leaves idle, with release \"adaptive\", while the server is nearly full", () =>
    Effect.gen(function*() {
      const { count, name, url, witness } = yield* makeTenant({ role: 10 })
      const others = yield* Scope.make()
      yield* Scope.provide(Effect.forEach(range(8), () => stranger(url)), others)
      const environment = yield* Pg.Serverless.environment(
        Pg.layer({
          url,
          applicationName: "orders",
          idleTimeout: "1 hour",
          ...wholeOf(1, { ceiling: 2 })
        }),
        { release: "adaptive" }
      )
      const run = Effect.promise(() =>
        environment.run(Effect.gen(function*() {
          const sql = yield* SqlClient
          const pool = yield* Pg.Pool.Pool
          yield* sql`SELECT 1`
          return Option.getOrThrow(yield* pool.fleet).utilisation
        }))
      )
      assert.strictEqual(yield* run, 0.9)
      yield* TestClock.withLive(eventually("the end of the session", Effect.map(count, (left) => left === 0)))
      yield* Scope.close(others, Exit.void)
      const sessions = witness.value<number>("SELECT count(*)::int FROM pg_stat_activity WHERE usename = $1", [name])
      yield* TestClock.withLive(eventually("the end of the others", Effect.map(sessions, (left) => left === 0)))
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* run, 0.1)
      assert.strictEqual(yield* count, 1)
      // Asked anew by the session that it has kept.
      yield* Effect.forEach(range(8), () => stranger(url))
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* run, 0.9)
      yield* TestClock.withLive(eventually("the end of the session", Effect.map(count, (left) => left === 0)))
    }).pipe(Effect.provide(TestClock.layer())))

  it.effect("leaves no trace on the session: neither its setting nor a transaction", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTenant()
      const { sql } = yield* makeEnvironment(url, { statementTimeout: "7 seconds", ...wholeOf(1) })
      const look = sql<{ limit: string; begun: string }>`
        SELECT current_setting('statement_timeout') AS limit, now()::text AS begun`
      const [[first], [second]] = [yield* look, yield* look]
      assert.strictEqual(first?.limit, "7s")
      assert.notStrictEqual(first?.begun, second?.begun)
    }))

  it.effect("reads the same with a session that is reset between borrowers, or shared by them", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTenant({ role: 8 })
      for (const options of [{ reset: "clean" }, { multiplex: true }, { pooler: "none", prepare: false }] as const) {
        const { close, report, sql } = yield* makeEnvironment(url, { ...options, ...wholeOf(2) })
        yield* Effect.forEach(range(6), (n) => sql`SELECT ${n}::int`, { concurrency: 3 })
        yield* sql.withTransaction(sql`SELECT 1`)
        assert.deepInclude(yield* report, { limit: 8, size: 4 })
        yield* close
      }
    }))
})

describe("a fleet that reads from a standby", () => {
  it.live("is told the standby's places", () =>
    Effect.gen(function*() {
      const { primary, standby } = yield* makeCluster
      const { report, sql } = yield* makeEnvironment(primary.url, {
        url: undefined,
        hosts: [{ host: "127.0.0.1", port: primary.port }, { host: "127.0.0.1", port: standby.port }],
        username: "postgres",
        database: "postgres",
        targetSessionAttrs: "standby",
        ...wholeOf(1)
      })
      yield* sql`SELECT 1`
      assert.deepInclude(yield* report, { isStandby: true, maxConnections: 60, limit: 57, usedByFleet: 1 })
    }), 60_000)
})
