import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Net from "node:net"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { isCancelRequest, makeProxy } from "./proxy.ts"
import { certificate, makeTlsServer } from "./tlsServer.ts"
import { eventually, makeTable, makeWitness, type Witness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** The process id of the session that serves the next statement. */
const pid = Effect.flatMap(
  SqlClient,
  (sql) => Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]!.pid)
)

/** Opens that many sessions and leaves them idle. */
const fill = (count: number) =>
  Effect.flatMap(
    Pg.Pool.Pool,
    (pool) => Effect.scoped(Effect.forEach(range(count), () => pool.reserve(), { concurrency: count, discard: true }))
  )

const closed = Effect.flatMap(
  Pg.Metrics.Metrics,
  (metrics) => Effect.map(metrics.snapshot, ({ connectionsClosed }) => connectionsClosed)
)

const has = (witness: Witness, count: number): Effect.Effect<void, SqlError> =>
  eventually(`${count} sessions on the server`, Effect.map(witness.count, (now) => now === count))

describe("a session that has been idle for longer than idleTimeout", () => {
  it.live("is closed when the next borrower comes, down to min", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        yield* fill(6)
        assert.strictEqual(yield* witness.count, 6)
        yield* Effect.sleep(250)
        // Nobody has asked, and no timer runs.
        assert.strictEqual(yield* witness.count, 6)
        yield* pid
        yield* has(witness, 2)
        yield* eventually("four sockets are gone here too", Effect.map(closed, ({ idle }) => idle === 4))
      }).pipe(Effect.provide(Pg.layer({ url, max: 6, min: 2, idleTimeout: 100 })))
    }))

  it.live("is closed without a borrower when reapEvery is set, down to min", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        yield* fill(6)
        yield* has(witness, 2)
        yield* Effect.sleep(200)
        assert.strictEqual(yield* witness.count, 2)
        assert.strictEqual((yield* closed).idle, 4)
        assert.strictEqual((yield* Effect.flatMap(Pg.Pool.Pool, (pool) => pool.stats)).total, 2)
      }).pipe(Effect.provide(Pg.layer({ url, max: 6, min: 2, idleTimeout: 100, reapEvery: 30 })))
    }))

  it.live("is closed to the last one when min is 0", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        yield* fill(3)
        yield* has(witness, 0)
        yield* pid
        assert.strictEqual(yield* witness.count, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 3, min: 0, idleTimeout: 50, reapEvery: 20 })))
    }))

  it.live("keeps its place while it is in use, however long that takes", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* pool.use(({ connection }) =>
          Effect.gen(function*() {
            yield* Effect.sleep(300)
            yield* connection.query("SELECT 1")
          })
        )
        assert.strictEqual((yield* closed).idle, 0)
      }).pipe(Effect.provide(Pg.layer({ url, max: 3, min: 0, idleTimeout: 50, reapEvery: 20 })))
    }))
})

describe("a session that is older than maxLifetime", () => {
  it.live("is replaced at the next checkout, and not in the middle of one", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const first = yield* sql.withTransaction(Effect.gen(function*() {
          const before = yield* pid
          yield* Effect.sleep(500)
          assert.strictEqual(yield* pid, before)
          return before
        }))
        assert.notStrictEqual(yield* pid, first)
        yield* has(witness, 1)
        assert.strictEqual((yield* closed).lifetime, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2, maxLifetime: 400 })))
    }))

  it.live("ends at a time of its own: lifetimes differ by up to the jitter, and are never longer", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const lifetimes = yield* Effect.scoped(
          Effect.forEach(
            range(12),
            () => Effect.map(pool.reserve(), ({ session }) => session.expiresAt - session.openedAt),
            { concurrency: 12 }
          )
        )
        for (const lifetime of lifetimes) {
          assert.isAtMost(lifetime, 1000 * 60)
          assert.isAtLeast(lifetime, 500 * 60)
        }
        assert.isAbove(new Set(lifetimes).size, 6)
        assert.isAbove(Math.max(...lifetimes) - Math.min(...lifetimes), 1000)
      }).pipe(Effect.provide(Pg.layer({ url, max: 12, maxLifetime: 60_000, maxLifetimeJitter: 0.5 })))
    }))
})

describe("a session that was lent maxUses times", () => {
  for (const multiplex of [false, true]) {
    it.live(`is replaced, and nobody notices${multiplex ? ", multiplexed" : ""}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        yield* Effect.gen(function*() {
          const uses = new Map<number, number>()
          for (let turn = 0; turn < 20; turn++) {
            const server = yield* pid
            uses.set(server, (uses.get(server) ?? 0) + 1)
          }
          assert.deepStrictEqual(Array.from(uses.values()), [5, 5, 5, 5])
          // Nobody waited for their goodbyes.
          yield* eventually("three closed sessions", Effect.map(closed, ({ uses }) => uses >= 3))
          yield* eventually("one session at most", Effect.map(witness.count, (count) => count <= 1))
        }).pipe(Effect.provide(Pg.layer({ url, max: 2, maxUses: 5, multiplex, retry: false })))
      }))
  }
})

describe("a session that comes back dirty", () => {
  /** Whether the next statement runs in a transaction that somebody else has begun, and on which session. */
  const next = Effect.flatMap(SqlClient, (sql) =>
    Effect.map(
      sql<{ pid: number; inside: boolean }>`SELECT pg_backend_pid() AS pid,
        EXISTS (SELECT 1 FROM pg_class WHERE relname = 'dirt') AS inside`,
      (rows) => rows[0]!
    ))

  for (const multiplex of [false, true]) {
    const how = multiplex ? ", multiplexed" : ""

    it.live(`inside a transaction is not lent again${how}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        yield* Effect.gen(function*() {
          const pool = yield* Pg.Pool.Pool
          const executor = yield* Pg.Executor.Executor
          const sql = yield* SqlClient
          const dirty = [
            Effect.scoped(Effect.flatMap(pool.reserve(), ({ connection }) =>
              Effect.andThen(connection.query("BEGIN"), connection.query("CREATE TABLE dirt ()")))),
            executor.use((connection) =>
              Effect.andThen(connection.query("BEGIN"), connection.query("CREATE TABLE dirt ()"))
            ),
            // A transaction that has failed is one as well.
            Effect.ignore(executor.use((connection) =>
              Effect.andThen(connection.query("BEGIN"), connection.query("SELECT 1/0"))
            )),
            Effect.scoped(Effect.flatMap(sql.reserve, (connection) =>
              Effect.andThen(
                connection.executeUnprepared("BEGIN", [], undefined),
                connection.executeUnprepared("CREATE TABLE dirt ()", [], undefined)
              )))
          ]
          for (const [index, work] of dirty.entries()) {
            const before = yield* next
            yield* work
            const after = yield* next
            assert.notStrictEqual(after.pid, before.pid, `case ${index}`)
            assert.isFalse(after.inside, `case ${index}`)
            yield* has(witness, 1)
          }
          assert.strictEqual((yield* closed).invalid, dirty.length)
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, multiplex, retry: false })))
      }))
  }

  it.live("because a plain statement was a BEGIN is not lent again", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const before = yield* next
        yield* sql`BEGIN`
        const after = yield* next
        assert.notStrictEqual(after.pid, before.pid)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, retry: false })))
    }))

  /** What the server says arrives in pieces that are shorter than any of its messages. */
  const inPieces = (url: Redacted.Redacted) => {
    const { hostname, port } = new URL(Redacted.value(url))
    return () => {
      const socket = Net.connect({ host: hostname, port: Number(port || 5432), noDelay: true })
      const push = socket.push.bind(socket)
      socket.push = (chunk: Buffer | null) => {
        if (chunk === null) return push(chunk)
        let wantsMore = true
        for (let at = 0; at < chunk.length; at += 4) wantsMore = push(chunk.subarray(at, at + 4))
        return wantsMore
      }
      return socket
    }
  }

  it.live("is found out whatever the pieces are in which the server's answers arrive", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const clean = yield* pid
        assert.strictEqual(yield* pid, clean)
        yield* Effect.scoped(
          Effect.flatMap(sql.reserve, (connection) => connection.executeUnprepared("BEGIN", [], undefined))
        )
        yield* sql`INSERT INTO t VALUES (1)`
        assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM t"), 1)
        const next = yield* pid
        assert.notStrictEqual(next, clean)
        assert.strictEqual(yield* pid, next)
        assert.strictEqual((yield* closed).invalid, 1)
      }).pipe(Effect.provide(Pg.layer({ url, stream: inPieces(url), max: 1, retry: false })))
    }))

  it.live("is found out over TLS as well: the next borrower's INSERT is there for all to see", () =>
    Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      const witness = yield* makeWitness(database.url)
      yield* witness.query("CREATE TABLE t (n int)")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const [row] = yield* sql<{ ssl: boolean }>`SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`
        assert.isTrue(row?.ssl)
        const dirty = [
          Effect.scoped(
            Effect.flatMap(sql.reserve, (connection) => connection.executeUnprepared("BEGIN", [], undefined))
          ),
          sql`BEGIN`
        ]
        for (const [index, work] of dirty.entries()) {
          const before = yield* pid
          yield* work
          yield* sql`INSERT INTO t VALUES (1)`
          assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM t"), index + 1)
          assert.notStrictEqual(yield* pid, before)
        }
        const clean = yield* pid
        yield* sql.withTransaction(sql`INSERT INTO t VALUES (1)`)
        assert.strictEqual(yield* pid, clean)
        assert.strictEqual((yield* closed).invalid, dirty.length)
      }).pipe(Effect.provide(Pg.layer({
        url: database.url,
        ssl: { ca: certificate, servername: "localhost" },
        max: 1,
        retry: false
      })))
    }))

  it.live("with a CancelRequest under way is not lent again: it would hit the next borrower's statement", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* makeProxy(url)
      const { hostname, port } = new URL(Redacted.value(url))
      let cancels = 0
      proxy.onRequest((request, link) => {
        if (!isCancelRequest(request)) return "pass"
        cancels++
        // The sender takes it for delivered. The server gets it later, when the statement has ended by itself.
        link.cut()
        setTimeout(() => Net.connect({ host: hostname, port: Number(port || 5432) }).end(request), 250)
        return "drop"
      })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        const fiber = yield* Effect.forkChild(sql`SELECT pg_sleep(0.15)`)
        yield* Effect.sleep(20)
        yield* Fiber.interrupt(fiber)
        assert.strictEqual(cancels, 1)
        assert.strictEqual((yield* sql`SELECT pg_sleep(0.6)`).length, 1)
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, retry: false })))
    }))
})

describe("evictAll", () => {
  it.live("closes idle sessions now, and lent ones when they come back", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* fill(4)
        const old = new Set(yield* witness.sessions)
        yield* Effect.scoped(Effect.gen(function*() {
          const { connection } = yield* pool.reserve()
          yield* pool.evictAll
          yield* has(witness, 1)
          // It is still its borrower's.
          assert.strictEqual((yield* connection.queryValues("SELECT pg_backend_pid()"))[0]?.[0], connection.processId)
          assert.isTrue(old.has(connection.processId))
        }))
        yield* has(witness, 0)
        assert.isFalse(old.has(yield* pid))
        assert.strictEqual((yield* closed).invalid, 4)
      }).pipe(Effect.provide(Pg.layer({ url, max: 4, min: 4, retry: false })))
    }))

  it.live("reaches connects under way as well: what was begun before is not used after", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const answer = yield* Effect.forkChild(pool.use(({ generation }) => Effect.succeed(generation)))
        yield* eventually("a connect under way", Effect.map(pool.stats, ({ connecting }) => connecting === 1))
        yield* pool.evictAll
        const { generation } = yield* pool.use(Effect.succeed)
        assert.strictEqual(generation, 1)
        assert.strictEqual(yield* Fiber.join(answer), 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, afterConnect: () => Effect.sleep(100) })))
    }))
})

describe("an idle session is checked before it is lent", () => {
  /** A pool whose statements are counted on their way to the server. */
  const counted = Effect.fnUntraced(function*() {
    const url = yield* freshDatabase
    const proxy = yield* makeProxy(url)
    return {
      url: proxy.url,
      /** How many statements an effect sends. */
      sent: <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        Effect.suspend(() => {
          const before = proxy.statements()
          return Effect.map(effect, () => proxy.statements() - before)
        })
    }
  })

  it.live("before every use with validate: \"always\"", () =>
    Effect.gen(function*() {
      const { sent, url } = yield* counted()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        assert.strictEqual(yield* sent(sql`SELECT 1`), 2)
        assert.strictEqual(yield* sent(sql`SELECT 1`), 2)
        assert.strictEqual(yield* sent(sql.withTransaction(sql`SELECT 1`)), 3)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, validate: "always" })))
    }))

  it.live("never by default while it was used a moment ago", () =>
    Effect.gen(function*() {
      const { sent, url } = yield* counted()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        assert.strictEqual(yield* sent(Effect.forEach(range(10), () => sql`SELECT 1`)), 10)
        // The statement with its BEGIN, and COMMIT.
        assert.strictEqual(yield* sent(sql.withTransaction(sql`SELECT 1`)), 2)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("once it has been idle for longer than validateAfter", () =>
    Effect.gen(function*() {
      const { sent, url } = yield* counted()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        yield* Effect.sleep(700)
        assert.strictEqual(yield* sent(sql`SELECT 1`), 2)
        assert.strictEqual(yield* sent(sql`SELECT 1`), 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, validateAfter: 600 })))
    }))

  it.live("and a new one too when proof is asked for: its connect may have been answered by a pooler", () =>
    Effect.gen(function*() {
      const { sent, url } = yield* counted()
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        assert.strictEqual(yield* sent(pool.use(() => Effect.void, { prove: true })), 1)
        assert.strictEqual(yield* sent(pool.use(() => Effect.void)), 0)
        assert.strictEqual(yield* sent(pool.use(() => Effect.void, { prove: true })), 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})

describe("hooks", () => {
  it.live("run around each session, in order, and see its connection", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* witness.query("CREATE TABLE goodbye (pid int)")
      const order: Array<string> = []
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const rows = yield* sql<{ zone: string }>`SELECT current_setting('TimeZone') AS zone`
        assert.strictEqual(rows[0]?.zone, "Asia/Tokyo")
        order.push("used")
        assert.deepStrictEqual(order, ["before connect", "after connect", "used"])
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 1,
        beforeConnect: Effect.sync(() => order.push("before connect")),
        afterConnect: (connection) =>
          Effect.andThen(
            Effect.sync(() => order.push("after connect")),
            connection.query("SET TimeZone = 'Asia/Tokyo'")
          ),
        beforeDisconnect: (connection) =>
          Effect.andThen(
            Effect.sync(() => order.push("before disconnect")),
            connection.query("INSERT INTO goodbye VALUES ($1)", [connection.processId])
          )
      })))
      assert.deepStrictEqual(order, ["before connect", "after connect", "used", "before disconnect"])
      assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM goodbye"), 1)
      assert.strictEqual(yield* witness.count, 0)
    }))

  const failing = [
    ["beforeConnect", { beforeConnect: Effect.fail("no") }],
    ["afterConnect", { afterConnect: () => Effect.fail("no") }]
  ] as const

  for (const [hook, options] of failing) {
    it.live(`a ${hook} that fails refuses the session, with HookFailed, and leaks none`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        yield* Effect.gen(function*() {
          const pool = yield* Pg.Pool.Pool
          const executor = yield* Pg.Executor.Executor
          const sql = yield* SqlClient
          const error = yield* Effect.flip(executor.run(sql`SELECT 1`))
          assert.strictEqual(error._tag, "HookFailed")
          if (error._tag === "HookFailed") {
            assert.strictEqual(error.hook, hook)
            assert.strictEqual(Redacted.value(error.cause), "no")
            assert.isFalse(error.isRetryable)
          }
          const errors = yield* Effect.forEach(range(50), () => Effect.flip(pool.use(() => Effect.void)), {
            concurrency: "unbounded"
          })
          for (const error of errors) assert.strictEqual(error._tag, "HookFailed")
          yield* has(witness, 0)
          const { active, connecting, total, waiting } = yield* pool.stats
          assert.deepStrictEqual([active, connecting, total, waiting], [0, 0, 0, 0])
        }).pipe(Effect.provide(Pg.layer({ url, max: 3, ...options })))
      }))
  }

  it.live("a hook that fails once does not stand in the way of the next borrower", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      let runs = 0
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        assert.strictEqual((yield* Effect.flip(pool.use(() => Effect.void)))._tag, "HookFailed")
        yield* eventually("a session", Effect.map(Effect.option(sql`SELECT 1`), ({ _tag }) => _tag === "Some"))
        assert.strictEqual(yield* witness.count, 1)
        assert.strictEqual(runs, 2)
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 1,
        afterConnect: () => Effect.suspend(() => ++runs === 1 ? Effect.fail("not yet") : Effect.void)
      })))
    }))

  it.live("whoever gives a worn-out session back does not wait for its beforeDisconnect", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const order: Array<string> = []
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        yield* sql`SELECT 1`
        order.push("statement over")
        yield* pool.use(() => Effect.void)
        order.push("lease over")
        yield* eventually("both goodbyes", Effect.sync(() => order.length === 4))
        assert.deepStrictEqual(order, ["statement over", "lease over", "goodbye over", "goodbye over"])
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 2,
        maxUses: 1,
        beforeDisconnect: () => Effect.delay(Effect.sync(() => order.push("goodbye over")), 700)
      })))
    }))

  it.live("a beforeDisconnect that fails, dies or never ends does not keep the session open", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const ends = [Effect.fail("no"), Effect.die("no"), Effect.never]
      let runs = 0
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* fill(3)
        yield* pool.evictAll
        yield* has(witness, 0)
        assert.strictEqual(runs, 3)
        yield* pid
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 3,
        beforeDisconnect: () => Effect.suspend((): Effect.Effect<unknown, unknown> => ends[runs++] ?? Effect.void)
      })))
      assert.strictEqual(runs, 4)
      assert.strictEqual(yield* witness.count, 0)
    }))
})

describe("session settings", () => {
  const settings = Effect.flatMap(
    SqlClient,
    (sql) =>
      sql<Record<string, string>>`SELECT current_setting('statement_timeout') AS statement,
      current_setting('lock_timeout') AS lock, current_setting('idle_in_transaction_session_timeout') AS idle,
      current_setting('application_name') AS name, current_setting('search_path') AS path`
  ).pipe(
    Effect.map((rows) => rows[0])
  )

  it.live("have sound defaults", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      assert.deepStrictEqual(yield* Effect.provide(settings, Pg.layer({ url })), {
        statement: "15s",
        lock: "10s",
        idle: "1min",
        name: "effect-pg-pool",
        path: "\"$user\", public"
      })
    }))

  it.live("arrive as they were given, without a statement of their own", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* makeProxy(url)
      assert.deepStrictEqual(
        yield* Effect.provide(
          settings,
          Pg.layer({
            url: proxy.url,
            statementTimeout: "3 seconds",
            lockTimeout: 250,
            idleInTransactionTimeout: "2 minutes",
            applicationName: "shop",
            startupParameters: { search_path: "pg_catalog" }
          })
        ),
        { statement: "3s", lock: "250ms", idle: "2min", name: "shop", path: "pg_catalog" }
      )
      assert.strictEqual(proxy.statements(), 1)
    }))

  it.live("can be turned off", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const found = yield* Effect.provide(
        settings,
        Pg.layer({
          url,
          statementTimeout: Infinity,
          lockTimeout: Infinity,
          idleInTransactionTimeout: Infinity
        })
      )
      assert.deepStrictEqual([found?.statement, found?.lock, found?.idle], ["0", "0", "0"])
    }))

  it.live("are not sent to a transaction pooler, which would refuse them: only the name is", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* makeProxy(url)
      const startup: Array<string> = []
      const parses: Array<string> = []
      proxy.onRequest((request) => {
        // The first packet of a session has no type byte: its length, then protocol 3.x.
        if (request.length > 8 && request.readUInt16BE(4) === 3 && request.readUInt32BE(0) === request.length) {
          startup.push(...request.subarray(8).toString("utf8").split("\0").filter((word) => word !== ""))
        }
        // BEGIN and what rides with it are one packet.
        for (let at = 0; at + 5 <= request.length; at += 1 + request.readUInt32BE(at + 1)) {
          if (request[at] === 0x50) parses.push(request.subarray(at + 5, request.indexOf(0, at + 5)).toString("utf8"))
        }
        return "pass"
      })
      yield* Effect.gen(function*() {
        const found = yield* settings
        assert.deepStrictEqual([found?.statement, found?.lock, found?.idle, found?.name], ["0", "0", "0", "shop"])
        yield* Effect.flatMap(SqlClient, (sql) => sql.withTransaction(sql`SELECT 1`))
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, pooler: "transaction", applicationName: "shop" })))
      assert.includeMembers(startup, ["application_name", "shop", "user", "database"])
      for (const name of ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "options"]) {
        assert.notInclude(startup, name)
      }
      // No statement got a name that the next server session would not know.
      assert.isAtLeast(parses.length, 4)
      assert.deepStrictEqual(parses.filter((name) => name !== ""), [])
    }))

  it.live("forbid LISTEN behind a transaction pooler, where nothing would ever be heard", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* Effect.gen(function*() {
        const sql = yield* PgClient.PgClient
        const error = yield* Effect.flip(Effect.scoped(sql.listen("news")))
        assert.match(error.message, /LISTEN.*transaction pooler/)
        assert.isFalse(error.isRetryable)
        // Nobody was asked, and everything else works.
        assert.strictEqual(yield* witness.count, 0)
        yield* sql.notify("news", "flash")
        assert.strictEqual((yield* sql.withTransaction(sql`SELECT 1`)).length, 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, pooler: "transaction" })))
    }))
})
