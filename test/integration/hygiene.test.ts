import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { ended, eventually, makeTable, soon, type Witness } from "./witness.ts"

const pid = Effect.flatMap(
  SqlClient,
  (sql) => Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]!.pid)
)

/** Runs statements on one session, which then goes back to the pool. */
const lease = (...statements: ReadonlyArray<string>) =>
  Effect.flatMap(
    Pg.Pool.Pool,
    (pool) =>
      Effect.scoped(Effect.flatMap(pool.reserve(), ({ connection }) =>
        Effect.forEach(statements, (statement) =>
          connection.query(statement, [], false), { discard: true })))
  )

/** The first column of the first row. */
const ask = (statement: string) =>
  Effect.flatMap(
    Pg.Pool.Pool,
    (pool) =>
      pool.use(({ connection }) => Effect.map(connection.queryValues(statement, [], false), (rows) => rows[0]?.[0]))
  )

const fails = (statement: string) =>
  Effect.map(Effect.flip(ask(statement)), (error) => Pg.Errors.failureOf(error).sqlState)

/** What one borrower leaves, how the next one finds out, and what it shall find. */
const remains: ReadonlyArray<
  readonly [what: string, leave: ReadonlyArray<string>, look: string, clean: unknown, leaked: unknown]
> = [
  ["a setting", ["SET work_mem = '7MB'"], "SHOW work_mem", "4MB", "7MB"],
  ["a setting of the startup packet", ["SET statement_timeout = 0"], "SHOW statement_timeout", "12345ms", "0"],
  ["a setting of the program's own", ["SET app.tenant = '7'"], "SELECT current_setting('app.tenant')", "", "7"],
  ["a search path", ["SET search_path = pg_temp"], "SHOW search_path", `"$user", public`, "pg_temp"],
  [
    "an isolation level",
    [
      "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE"
    ],
    "SELECT current_setting('transaction_isolation') || current_setting('transaction_read_only')",
    "read committedoff",
    "serializableon"
  ],
  ["a role", ["SET ROLE pg_monitor"], "SELECT current_user::text = session_user::text", true, false],
  ["another user", ["SET SESSION AUTHORIZATION pg_monitor"], "SELECT session_user = 'pg_monitor'", false, true],
  [
    "another user in another role",
    ["SET SESSION AUTHORIZATION pg_monitor", "SET ROLE pg_read_all_stats"],
    "SELECT current_user = 'pg_read_all_stats'",
    false,
    true
  ],
  [
    "a temporary table",
    ["CREATE TEMP TABLE left_over AS SELECT 1"],
    "SELECT to_regclass('left_over') IS NULL",
    true,
    false
  ],
  [
    "a temporary table that hides a real one",
    ["CREATE TEMP TABLE t (n int)"],
    "SELECT relpersistence FROM pg_class WHERE oid = 't'::regclass",
    "p",
    "t"
  ],
  [
    "a cursor",
    ["DECLARE c CURSOR WITH HOLD FOR SELECT 1"],
    "SELECT count(*)::int FROM pg_cursors WHERE is_holdable",
    0,
    1
  ],
  ["a listener", ["LISTEN left_over"], "SELECT count(*)::int FROM pg_listening_channels()", 0, 1],
  ["cached values of a sequence", ["SELECT nextval('s')"], "SELECT nextval('s')::int", 11, 2],
  [
    "session locks",
    ["SELECT pg_advisory_lock(7), pg_advisory_lock_shared(8)"],
    "SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    0,
    2
  ]
]

const makeDatabase = Effect.gen(function*() {
  const { url, witness } = yield* makeTable
  yield* witness.query("CREATE SEQUENCE s CACHE 10")
  return { url, witness }
})

const startup = { statementTimeout: 12_345, max: 1, retry: false } as const

describe("what a borrower leaves on a session", () => {
  for (const reset of ["clean", "discard-all"] as const) {
    it.live(`does not reach the next one with reset "${reset}"`, () =>
      Effect.gen(function*() {
        const { url } = yield* makeDatabase
        yield* Effect.gen(function*() {
          const first = yield* pid
          for (const [what, leave, look, clean] of remains) {
            yield* lease(...leave)
            assert.strictEqual(yield* ask(look), clean, what)
            assert.strictEqual(yield* pid, first, `${what}: on the same session`)
          }
          yield* lease("SELECT nextval('s')")
          assert.strictEqual(yield* fails("SELECT currval('s')"), "55000")
          assert.strictEqual(yield* pid, first)
        }).pipe(Effect.provide(Pg.layer({ ...startup, url, reset })))
      }))
  }

  it.live("reaches the next one by default", () =>
    Effect.gen(function*() {
      for (const [what, leave, look, , leaked] of remains) {
        const { url } = yield* makeDatabase
        yield* Effect.gen(function*() {
          const first = yield* pid
          yield* lease(...leave)
          // By role and user the session has lost the right to be asked for anything else.
          assert.strictEqual(yield* ask(look), leaked, what)
          assert.strictEqual(yield* pid, first, `${what}: on the same session`)
        }).pipe(Effect.provide(Pg.layer({ ...startup, url })))
      }
    }))

  it.live("keeps the startup parameters of the caller, and undoes what a hook has set", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        assert.strictEqual(yield* ask("SELECT current_setting('work_mem') || current_setting('app.hook')"), "9MBset")
        assert.strictEqual(yield* ask("SELECT current_setting('work_mem') || current_setting('app.hook')"), "9MB")
        assert.strictEqual(yield* ask("SHOW application_name"), "mine")
        assert.strictEqual(yield* ask("SHOW idle_in_transaction_session_timeout"), "1min")
        assert.strictEqual(yield* ask("SHOW lock_timeout"), "10s")
      }).pipe(Effect.provide(Pg.layer({
        url,
        max: 1,
        reset: "clean",
        applicationName: "mine",
        startupParameters: { work_mem: "9MB" },
        afterConnect: (connection) => connection.query("SET app.hook = 'set'")
      })))
    }))

  it.live("is gone at once, though nobody asks for the session: a lock is free for others, a table dropped", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeDatabase
      yield* Effect.gen(function*() {
        yield* lease("SELECT pg_advisory_lock(7)", "CREATE TEMP TABLE left_over (n int)")
        yield* eventually("the lock is free", witness.value<boolean>("SELECT pg_try_advisory_lock(7)"))
        assert.strictEqual(yield* witness.value("SELECT count(*)::int FROM pg_class WHERE relname = 'left_over'"), 0)
        yield* witness.query("SELECT pg_advisory_unlock_all()")
      }).pipe(Effect.provide(Pg.layer({ ...startup, url, reset: "clean" })))
    }))

  it.live("and what the server has told of its settings is up to date again", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const zone = pool.use(({ connection, wire }) =>
          Effect.map(connection.query("SELECT 1"), () => wire.parameter("TimeZone"))
        )
        const before = yield* zone
        yield* lease("SET TimeZone = 'Asia/Tokyo'")
        assert.strictEqual(yield* zone, before)
        assert.notStrictEqual(before, "Asia/Tokyo")
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, reset: "clean", retry: false })))
    }))

  it.live("goes with a statement of its own as well as with a lease", () =>
    Effect.gen(function*() {
      const { url } = yield* makeDatabase
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SET work_mem = '7MB'`
        assert.deepStrictEqual(yield* sql`SHOW work_mem`, [{ work_mem: "4MB" }])
        yield* sql.withTransaction(sql`SET work_mem = '7MB'`)
        assert.deepStrictEqual(yield* sql`SHOW work_mem`, [{ work_mem: "4MB" }])
      }).pipe(Effect.provide(Pg.layer({ ...startup, url, reset: "clean" })))
    }))
})

describe("prepared statements", () => {
  const parse = 0x50

  /** A pool whose Parse messages and statements are counted on their way to the server. */
  const counted = Effect.gen(function*() {
    const url = yield* freshDatabase
    const proxy = yield* makeProxy(url)
    let parses = 0
    proxy.onRequest((request) => {
      for (let at = 0; at + 5 <= request.length; at += request.readInt32BE(at + 1) + 1) {
        if (request[at] === 0) break
        if (request[at] === parse) parses++
      }
      return "pass"
    })
    return { url: proxy.url, proxy, parses: () => parses }
  })

  it.live("of the driver's stay with \"clean\": one Parse for ten uses", () =>
    Effect.gen(function*() {
      const { parses, proxy, url } = yield* counted
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        for (let use = 0; use < 10; use++) assert.deepStrictEqual(yield* sql`SELECT ${use}::int AS n`, [{ n: use }])
        assert.strictEqual(parses(), 1)
        assert.strictEqual(proxy.accepted(), 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, reset: "clean", retry: false })))
    }))

  it.live("go with \"discard-all\", those of SQL as well, and the driver knows", () =>
    Effect.gen(function*() {
      const { parses, proxy, url } = yield* counted
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        for (let use = 0; use < 10; use++) assert.deepStrictEqual(yield* sql`SELECT ${use}::int AS n`, [{ n: use }])
        assert.strictEqual(parses(), 10)
        yield* lease("PREPARE mine AS SELECT 1")
        assert.strictEqual(yield* ask("SELECT count(*)::int FROM pg_prepared_statements"), 0)
        assert.strictEqual(proxy.accepted(), 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, reset: "discard-all", retry: false })))
    }))
})

describe("a reset costs no round trip", () => {
  /**
   * A pool whose server says nothing until it is let to: what is sent meanwhile, in which order, was sent without
   * waiting.
   */
  it.live("the next statement is on its way before the answer has come", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* makeProxy(url)
      const requests: Array<string> = []
      let held: Array<() => void> | undefined
      proxy.onRequest((request, link) => {
        requests.push(request.toString("latin1"))
        if (held === undefined) return "pass"
        held.push(() => link.deliver(request))
        return "drop"
      })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        held = []
        requests.length = 0
        yield* sql`SELECT 1`.pipe(
          Effect.forkChild({ startImmediately: true }),
          Effect.tap(() =>
            Effect.gen(function*() {
              yield* eventually("the statement has arrived", Effect.sync(() => requests.length === 1))
              // The server has not even seen it. Neither does it see the reset, nor the statement after.
              held?.shift()?.()
            })
          ),
          Effect.flatMap(Fiber.join)
        )
        const next = yield* Effect.forkChild(sql<{ n: number }>`SELECT 2 AS n`)
        yield* eventually("reset and statement have arrived", Effect.sync(() => requests.join().includes("SELECT 2")))
        assert.match(requests.slice(1).join(""), /^Q[^]*RESET ALL[^]*SELECT 2/)
        for (const deliver of held.splice(0)) deliver()
        held = undefined
        assert.deepStrictEqual(yield* soon("the answer", Fiber.join(next)), [{ n: 2 }])
        assert.strictEqual(proxy.accepted(), 1)
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, reset: "clean", retry: false })))
    }))

  it.live("and nothing is sent for a lease that has sent nothing", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* makeProxy(url)
      let resets = 0
      proxy.onRequest((request) => {
        if (request.includes("RESET ALL")) resets++
        return "pass"
      })
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        for (let use = 0; use < 3; use++) yield* pool.use(() => Effect.void)
        assert.strictEqual(resets, 0)
        yield* ask("SELECT 1")
        for (let use = 0; use < 3; use++) yield* Effect.scoped(pool.reserve())
        yield* ask("SELECT 1")
        yield* eventually("the second reset has arrived", Effect.sync(() => resets === 2))
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, reset: "clean", retry: false })))
    }))

  it.live("nor does it make a statement look sent", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const sent = yield* pool.use(({ connection, wire }) =>
          Effect.map(connection.query("SELECT 1"), () => wire.mark())
        )
        assert.strictEqual(yield* pool.use(({ wire }) => Effect.sync(wire.mark)), sent)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, reset: "clean", retry: false })))
    }))
})

describe("a session that cannot be reset", () => {
  /** Somebody else holds on to a temporary table, so that the reset waits for `lock_timeout` before it fails. */
  const leaveStuck = Effect.fnUntraced(function*(url: Redacted.Redacted, witness: Witness) {
    const other = yield* PgConnection.make({ url, applicationName: "witness" })
    const pool = yield* Pg.Pool.Pool
    yield* Effect.scoped(Effect.gen(function*() {
      const { connection } = yield* pool.reserve()
      yield* connection.query("CREATE TEMP TABLE held (n int)", [], false)
      const name = yield* witness.value<string>(
        "SELECT format('%I.held', relnamespace::regnamespace) FROM pg_class WHERE relname = 'held'"
      )
      yield* other.query("BEGIN", [], false)
      yield* other.query(`LOCK TABLE ${name} IN ACCESS SHARE MODE`, [], false)
    }))
    return { letGo: Effect.orDie(other.query("ROLLBACK", [], false)) }
  })

  /** A table, a pool whose requests are seen on their way, and which of its sessions has been sent a text. */
  const observed = Effect.gen(function*() {
    const { rows, url, witness } = yield* makeTable
    const proxy = yield* makeProxy(url)
    const requests: Array<readonly [link: number, text: string]> = []
    proxy.onRequest((request, { id }) => {
      requests.push([id, request.toString("latin1")])
      return "pass"
    })
    /** The connections of CancelRequests do not count. */
    const sentTo = (text: string) => {
      const sessions = Array.from(
        new Set(requests.filter(([, request]) => request.includes("user\0")).map(([link]) => link))
      )
      return requests.filter(([, request]) => request.includes(text)).map(([link]) => sessions.indexOf(link) + 1)
    }
    return { url, witness, rows, proxy, sentTo }
  })

  const quick = { max: 2, reset: "clean", lockTimeout: 300 } as const

  it.live("is closed, and a statement behind the reset runs once, on another one", () =>
    Effect.gen(function*() {
      const { proxy, rows, sentTo, url, witness } = yield* observed
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* leaveStuck(url, witness)
        yield* sql`INSERT INTO t VALUES (1)`
        assert.deepStrictEqual(sentTo("INSERT INTO t"), [1, 2])
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ ...quick, url: proxy.url })))
    }))

  for (const deadline of [undefined, 20_000]) {
    const how = deadline === undefined ? "" : ", something that rides along with its BEGIN included"
    it.live(`and so does a transaction${how}`, () =>
      Effect.gen(function*() {
        const { proxy, rows, sentTo, url, witness } = yield* observed
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* leaveStuck(url, witness)
          const work = sql.withTransaction(sql`INSERT INTO t VALUES (1)`)
          yield* deadline === undefined ? work : Pg.Executor.withDeadline(work, deadline)
          assert.deepStrictEqual(sentTo("BEGIN\0"), [1, 2])
          // BEGIN goes with the statement.
          assert.deepStrictEqual(sentTo("INSERT INTO t"), [1, 2])
          assert.strictEqual(yield* rows, 1)
        }).pipe(Effect.provide(Pg.layer({ ...quick, url: proxy.url })))
      }))
  }

  it.live("is closed when nobody wants it meanwhile, and a warning says why", () =>
    Effect.gen(function*() {
      const { proxy, url, witness } = yield* observed
      const warnings: Array<unknown> = []
      const logger = Logger.make(({ message }) => void warnings.push(message))
      yield* Effect.gen(function*() {
        const first = yield* pid
        const { letGo } = yield* leaveStuck(url, witness)
        yield* eventually("a warning", Effect.sync(() => warnings.length > 0))
        yield* letGo
        yield* eventually("the session is closed", Effect.sync(() => proxy.open() === 0))
        assert.notStrictEqual(yield* pid, first)
        assert.include(String(warnings), "SQLSTATE 55P03")
      }).pipe(Effect.provide(Pg.layer({ ...quick, url: proxy.url })), Effect.provide(Logger.layer([logger])))
    }))

  it.live("is not waited for when it takes long: the next borrower gets another session", () =>
    Effect.gen(function*() {
      const { proxy, rows, sentTo, url, witness } = yield* observed
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* leaveStuck(url, witness)
        yield* Effect.sleep(200)
        yield* soon("the INSERT", sql`INSERT INTO t VALUES (1)`, 8)
        assert.deepStrictEqual(sentTo("INSERT INTO t"), [2])
        assert.strictEqual(yield* rows, 1)
      }).pipe(
        Effect.provide(Pg.layer({ ...quick, url: proxy.url, lockTimeout: "20 seconds", validationTimeout: 100 }))
      )
    }))

  it.live("because the statement behind it was interrupted is closed: the CancelRequest has met the reset", () =>
    Effect.gen(function*() {
      const { proxy, rows, sentTo, url, witness } = yield* observed
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* leaveStuck(url, witness)
        const fiber = yield* Effect.forkChild(sql`INSERT INTO t VALUES (1)`)
        yield* eventually("the INSERT is on its way", Effect.sync(() => sentTo("INSERT INTO t").length === 1))
        yield* soon("the interruption", Fiber.interrupt(fiber), 8)
        yield* soon("the next statement", sql`INSERT INTO t VALUES (2)`, 8)
        assert.deepStrictEqual(yield* witness.query("SELECT n FROM t"), [{ n: 2 }])
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ ...quick, url: proxy.url, lockTimeout: "20 seconds" })))
    }))

  it.live("because the server ended it leaves the caller with the truth: what was sent behind may have run", () =>
    Effect.gen(function*() {
      const { proxy, rows, sentTo, url, witness } = yield* observed
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const { letGo } = yield* leaveStuck(url, witness)
        const fiber = yield* Effect.forkChild(sql`INSERT INTO t VALUES (1)`)
        yield* eventually("the INSERT is on its way", Effect.sync(() => sentTo("INSERT INTO t").length === 1))
        yield* eventually(
          "the session is ended in its reset",
          Effect.map(
            witness.value<number>(
              "SELECT count(pg_terminate_backend(pid))::int FROM pg_stat_activity WHERE query LIKE 'BEGIN%RESET ALL%' AND wait_event = 'relation'"
            ),
            (count) => count === 1
          )
        )
        // A session that ends drops its temporary tables first.
        yield* letGo
        const exit = yield* ended(fiber)
        const count = yield* rows
        assert.strictEqual(Exit.isSuccess(exit) ? 1 : 0, count)
        yield* sql`SELECT 1`
      }).pipe(Effect.provide(Pg.layer({ ...quick, url: proxy.url, lockTimeout: "20 seconds" })))
    }))

  it.live("because the peer has fallen silent costs a caller no more than silence does without a reset", () =>
    Effect.gen(function*() {
      const { proxy } = yield* observed
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        proxy.onRequest((_, link) => {
          if (link.id === 1) link.mute()
          return "pass"
        })
        yield* sql`SELECT 2`.pipe(
          Effect.ignore,
          Effect.forkChild,
          Effect.flatMap(Fiber.join),
          (work) => soon("silence is noticed", work, 8)
        )
        assert.deepStrictEqual(yield* sql`SELECT 3 AS n`, [{ n: 3 }])
        assert.strictEqual(proxy.accepted(), 2)
      }).pipe(Effect.provide(Pg.layer({ max: 1, reset: "clean", url: proxy.url, queryTimeout: 300, retry: false })))
    }))
})

describe("a session that comes back with something at work", () => {
  const working = { max: 1, retry: false } as const

  const cases: ReadonlyArray<
    readonly [
      what: string,
      leave: (
        connection: PgConnection.PgConnection,
        longer: Scope.Scope
      ) => Effect.Effect<unknown, unknown>
    ]
  > = [
    [
      "a statement",
      (connection) => Effect.forkDetach(connection.query("SELECT pg_sleep(5)"), { startImmediately: true })
    ],
    ["a stream", (connection, longer) =>
      Effect.flatMap(
        Scope.provide(Stream.toPull(connection.stream("SELECT n FROM generate_series(1, 100000) AS n")), longer),
        (pull) => pull
      )],
    ["a listener", (connection, longer) => Scope.provide(connection.listen("news"), longer)],
    ["a pin", (connection, longer) => Scope.provide(connection.pin, longer)]
  ]

  for (const [what, leave] of cases) {
    it.live(`is closed and not lent again: ${what}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const longer = yield* Effect.scope
        yield* Effect.gen(function*() {
          const pool = yield* Pg.Pool.Pool
          const executor = yield* Pg.Executor.Executor
          const borrowings = [
            (f: (typeof cases)[number][1]) => pool.use(({ connection }) => f(connection, longer)),
            (f: (typeof cases)[number][1]) => executor.use((connection) => f(connection, longer)),
            (f: (typeof cases)[number][1]) =>
              Effect.scoped(Effect.flatMap(pool.reserve(), ({ connection }) => f(connection, longer)))
          ]
          // The pins of a lease end with it, whatever their scope.
          const open = what === "a pin" ? borrowings.slice(0, 1) : borrowings
          for (const [index, borrow] of open.entries()) {
            const before = yield* pid
            yield* borrow(leave)
            const after = yield* soon(`a session for the next borrower, case ${index}`, pid, 4)
            assert.notStrictEqual(after, before, `case ${index}`)
          }
        }).pipe(Effect.provide(Pg.layer({ ...working, url })))
      }))
  }
})
