/** What a transaction pooler does that nobody would expect of a server, against a real PgBouncer. */
import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { BeginTransaction, SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Net from "node:net"
import * as Pg from "../../src/index.ts"
import { databaseUrl, freshDatabase } from "./database.ts"
import { makeLedger, putIn, putInAndCount } from "./ledger.ts"
import { makePgBouncer } from "./pgbouncer.ts"
import { makeProxy } from "./proxy.ts"
import { chance, eventually, makeTable, makeWitness, soon } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

const pooled = (url: Redacted.Redacted, options: Pg.Options = {}) =>
  Pg.layer({ url, pooler: "transaction", ...options })

/** One statement through a layer of its own, which is not retried. */
const refusal = (options: Pg.Options): Effect.Effect<SqlError, unknown> =>
  Effect.flip(Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`)).pipe(
    Effect.provide(Pg.layer({ pooler: "transaction", retry: false, ...options }))
  ) as Effect.Effect<SqlError, unknown>

const verdictOn = (error: SqlError) =>
  Pg.Errors.classify(Pg.Errors.failureOf(error), { phase: "Connect", reused: false, replied: false })

const limits = Effect.flatMap(SqlClient, (sql) =>
  Effect.map(
    sql<{ all: string }>`SELECT concat_ws(' ', current_setting('statement_timeout'), current_setting('lock_timeout'),
      current_setting('idle_in_transaction_session_timeout')) AS "all"`,
    ([row]) => row!.all
  ))

describe("the pool's time limits, which the start of a pooled session cannot set", () => {
  it.live("hold in each transaction, and stay with no session of the server", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer({ settings: { default_pool_size: 1 } })
      const url = bouncer.through(yield* freshDatabase)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pid = Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, ([row]) => row!.pid)
        const inside = yield* sql.withTransaction(Effect.all([limits, pid]))
        const undone = yield* Effect.exit(sql.withTransaction(Effect.andThen(limits, Effect.fail("no"))))
        const outside = yield* Effect.all([limits, pid])
        assert.deepStrictEqual(inside, ["15s 3s 1min", outside[1]])
        assert.deepStrictEqual(undone, Exit.fail("no"))
        assert.strictEqual(outside[0], "0 0 0")
      }).pipe(Effect.provide(pooled(url, { max: 1, lockTimeout: "3 seconds" })))
    }), 60_000)

  it.live(
    "are not sent where they are turned off, so that a proxy finds no SET: those of the database hold",
    () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const database = new URL(Redacted.value(url)).pathname.slice(1)
        yield* witness.query(`ALTER DATABASE ${database} SET lock_timeout = '7s'`)
        const bouncer = yield* makePgBouncer()
        const proxy = yield* makeProxy(bouncer.through(url))
        const none = Duration.infinity
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const said: Array<string> = []
          proxy.onRequest((request) => {
            said.push(request.toString("latin1"))
            return "pass"
          })
          assert.strictEqual(yield* sql.withTransaction(limits), "0 7s 0")
          assert.notMatch(said.join(), /\bSET\b/)
        }).pipe(Effect.provide(
          pooled(proxy.url, { max: 1, statementTimeout: none, lockTimeout: none, idleInTransactionTimeout: none })
        ))
      }),
    60_000
  )

  it.live("cost no statement of their own on the way", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer()
      const proxy = yield* makeProxy(bouncer.through(databaseUrl))
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        let writes = 0
        proxy.onRequest(() => {
          writes++
          return "pass"
        })
        yield* sql.withTransaction(sql`SELECT 1`)
        // BEGIN, the limits and the statement; COMMIT.
        assert.strictEqual(writes, 2)
      }).pipe(Effect.provide(pooled(proxy.url, { max: 1 })))
    }), 60_000)

  it.live("end a statement and a wait for a lock inside of a transaction", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer()
      const { url, witness } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const late = yield* Effect.flip(sql.withTransaction(sql`SELECT pg_sleep(60)`))
        assert.strictEqual(Pg.Errors.failureOf(late).sqlState, "57014")
        yield* witness.query("BEGIN")
        yield* witness.query("LOCK TABLE t")
        const locked = yield* Effect.flip(sql.withTransaction(sql`INSERT INTO t VALUES (1)`))
        yield* witness.query("ROLLBACK")
        assert.strictEqual(Pg.Errors.failureOf(locked).sqlState, "55P03")
      }).pipe(
        Effect.provide(
          pooled(bouncer.through(url), { statementTimeout: "1 second", lockTimeout: 300, retry: false })
        )
      )
    }), 60_000)

  it.live("leave it to the transaction to set its isolation by hand", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const [row] = yield* sql.withTransaction(Effect.andThen(
          sql`SET TRANSACTION ISOLATION LEVEL SERIALIZABLE`,
          sql`SELECT current_setting('transaction_isolation') AS isolation`
        ))
        assert.deepStrictEqual(row, { isolation: "serializable" })
        yield* sql.withTransaction(Effect.gen(function*() {
          assert.strictEqual(yield* limits, "15s 10s 1min")
        })).pipe(Effect.provideService(BeginTransaction, "BEGIN READ ONLY"))
      }).pipe(Effect.provide(pooled(bouncer.through(databaseUrl))))
    }), 60_000)

  /** PostgreSQL says round ones in seconds. */
  const inMillis = (setting: string): number =>
    setting.endsWith("ms") ? Number(setting.slice(0, -2)) : Number(setting.replace("s", "")) * 1000

  it.live("are off where they are off, and tighter under a deadline", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer()
      const off = {
        statementTimeout: "Infinity",
        lockTimeout: "Infinity",
        idleInTransactionTimeout: "Infinity"
      } as const
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        assert.strictEqual(yield* sql.withTransaction(limits), "0 0 0")
        const bounded = yield* Pg.Executor.withDeadline(sql.withTransaction(limits), "5 seconds")
        const [statement, lock, idle] = bounded.split(" ").map(inMillis)
        assert.strictEqual(lock, 0)
        for (const each of [statement, idle]) assert.isTrue(each! > 0 && each! <= 6000, bounded)
      }).pipe(Effect.provide(pooled(bouncer.through(databaseUrl), off)))
    }), 60_000)

  it.live("leave queryTimeout to watch over single statements", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const error = yield* soon("the end of a statement", Effect.flip(sql`SELECT pg_sleep(60)`))
        assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "StatementTimeout")
        assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
      }).pipe(Effect.provide(pooled(bouncer.through(databaseUrl), { queryTimeout: 300 })))
    }), 60_000)
})

describe("sessions behind a pooler", () => {
  it.live(
    "bring their name and nothing else, and leave no prepared statement on the server",
    () =>
      Effect.gen(function*() {
        const bouncer = yield* makePgBouncer({ settings: { default_pool_size: 1 } })
        const url = yield* freshDatabase
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          for (const n of range(3)) yield* sql.withTransaction(sql`SELECT ${n}::int4 AS n`)
          assert.deepStrictEqual(
            yield* sql`SELECT current_setting('application_name') AS name,
            (SELECT count(*)::int4 FROM pg_prepared_statements) AS prepared`,
            [{ name: "shop", prepared: 0 }]
          )
        }).pipe(Effect.provide(pooled(bouncer.through(url), { applicationName: "shop" })))
      }),
    60_000
  )

  it.live("are more than those of the server, which they share", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer({ settings: { default_pool_size: 2 } })
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const watch = yield* witness.watch
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const rows = yield* Effect.forEach(range(200), (n) => sql`SELECT ${n}::int4 AS n, pg_sleep(0.002)`, {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(rows.map(([row]) => row!.n), [...range(200)])
      }).pipe(Effect.provide(pooled(bouncer.through(url), { max: 20 })))
      assert.isAtMost(watch.most(), 2)
    }), 60_000)

  it.live(
    "cancel the statement that was given up, and nobody else's on the same sessions of the server",
    () =>
      Effect.gen(function*() {
        const bouncer = yield* makePgBouncer({ settings: { default_pool_size: 2 } })
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const dice = chance(7)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const victim = Effect.gen(function*() {
            const fiber = yield* Effect.forkChild(sql`SELECT pg_sleep(100), 'victim'`)
            yield* Effect.sleep(dice.below(20))
            yield* Fiber.interrupt(fiber)
          })
          const bystander = sql`SELECT pg_sleep(0.003)`
          yield* Effect.all([
            Effect.replicateEffect(victim, 60, { concurrency: 2 }),
            Effect.replicateEffect(bystander, 300, { concurrency: 4 })
          ], { concurrency: "unbounded" })
          yield* eventually(
            "no victim runs",
            Effect.map(
              witness.value<number>(
                "SELECT count(*)::int FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%''victim''%' AND pid <> pg_backend_pid()"
              ),
              (count) => count === 0
            )
          )
        }).pipe(Effect.provide(pooled(bouncer.through(url), { max: 6, retry: false })))
      }),
    60_000
  )

  it.live("are not noticed when the server's are replaced under them", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer({ settings: { server_lifetime: 0.2, default_pool_size: 3 } })
      const url = yield* freshDatabase
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pids = new Set<number>()
        const one = Effect.gen(function*() {
          const [row] = yield* sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, pg_sleep(0.005)`
          yield* sql.withTransaction(sql`SELECT pg_sleep(0.005)`)
          pids.add(row!.pid)
        })
        yield* Effect.replicateEffect(one, 400, { concurrency: 5 })
        assert.isAbove(pids.size, 3)
      }).pipe(Effect.provide(pooled(bouncer.through(url), { max: 5, retry: false })))
    }), 60_000)
})

describe("LISTEN behind a pooler", () => {
  const direct = Effect.gen(function*() {
    const bouncer = yield* makePgBouncer()
    const url = yield* freshDatabase
    return { url, through: bouncer.through(url), witness: yield* makeWitness(url) }
  })
  const listening =
    "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"

  it.live("is refused where there is no directUrl, by an error that says so", () =>
    Effect.gen(function*() {
      const { through } = yield* direct
      yield* Effect.gen(function*() {
        const sql = yield* PgClient
        const error = yield* Effect.flip(Effect.scoped(sql.listen("news")))
        const typed = Pg.Errors.fromSqlError(error)
        assert.strictEqual(typed?._tag, "InvalidOption")
        assert.match(error.message, /^directUrl is undefined.*LISTEN/)
        yield* sql.notify("news", "nobody hears it")
      }).pipe(Effect.provide(pooled(through)))
    }), 60_000)

  it.live("hears through a session of its own, which is closed with the listener", () =>
    Effect.gen(function*() {
      const { through, url, witness } = yield* direct
      yield* Effect.gen(function*() {
        const sql = yield* PgClient
        yield* Effect.scoped(Effect.gen(function*() {
          const news = yield* sql.listen("news")
          yield* sql.listen("other")
          assert.strictEqual(yield* witness.value<number>(listening), 2)
          yield* sql.withTransaction(sql.notify("news", "hello"))
          assert.strictEqual((yield* soon("a notification", Queue.take(news))).payload, "hello")
        }))
        yield* eventually("no listener", Effect.map(witness.value<number>(listening), (count) => count === 0))
        assert.isTrue(
          (yield* Pg.Pool.Pool).statsUnsafe().total <= 2
        )
      }).pipe(Effect.provide(pooled(through, { directUrl: url, max: 2, applicationName: "radio" })))
      yield* eventually(
        "nobody of ours",
        Effect.map(
          witness.value<number>(
            "SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'radio' AND query LIKE '%LISTEN%'"
          ),
          (count) => count === 0
        )
      )
    }), 60_000)

  it.live(
    "has max listeners at most, and the next one waits no longer than acquireTimeout",
    () =>
      Effect.gen(function*() {
        const { through, url, witness } = yield* direct
        yield* Effect.gen(function*() {
          const sql = yield* PgClient
          yield* Effect.scoped(Effect.gen(function*() {
            yield* sql.listen("a")
            yield* sql.listen("b")
            const error = yield* Effect.flip(sql.listen("c"))
            assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "AcquireTimeout")
            assert.strictEqual(yield* witness.value<number>(listening), 2)
            // The pool's own sessions are others.
            assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
          }))
          yield* Effect.scoped(sql.listen("c"))
        }).pipe(Effect.provide(pooled(through, { directUrl: url, max: 2, acquireTimeout: 500 })))
      }),
    60_000
  )

  it.live("ends at once when the pool closes, whoever still listens", () =>
    Effect.gen(function*() {
      const { through, url, witness } = yield* direct
      const outer = yield* Scope.make()
      yield* Effect.gen(function*() {
        const sql = yield* PgClient
        yield* Scope.provide(sql.listen("late"), outer)
        assert.strictEqual(yield* witness.value<number>(listening), 1)
      }).pipe(Effect.provide(pooled(through, { directUrl: url, closeTimeout: "1 minute" })), (closed) =>
        soon("the end", closed, 20))
      yield* eventually(
        "no listener",
        Effect.map(witness.value<number>(listening), (count) =>
          count === 0)
      )
      yield* Scope.close(outer, Exit.void)
    }), 60_000)

  it.live("takes user, password and database from url where directUrl has none", () =>
    Effect.gen(function*() {
      const { through, url } = yield* direct
      const whole = new URL(Redacted.value(url))
      yield* Effect.scoped(Effect.flatMap(PgClient, (sql) => sql.listen("news"))).pipe(
        Effect.provide(pooled(through, { directUrl: Redacted.make(`postgres://${whole.host}`), acquireTimeout: 5000 }))
      )
    }), 60_000)

  it.effect("has no use for a directUrl that is none", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        Effect.provide(Effect.void, pooled(databaseUrl, { directUrl: Redacted.make("nowhere") }))
      )
      assert.deepStrictEqual([error.option, error.value], ["directUrl", "<redacted>"])
    }))
})

describe("a COMMIT whose answer is lost on the way to the pooler", () => {
  for (const [name, arrives] of [["arrives", true], ["does not arrive", false]] as const) {
    it.live(`and that ${name} is looked up on another session`, () =>
      Effect.gen(function*() {
        const bouncer = yield* makePgBouncer()
        const { rows, url, witness } = yield* makeTable
        const proxy = yield* makeProxy(bouncer.through(url))
        let cuts = 0
        proxy.onRequest((request, link) => {
          if (!request.includes("COMMIT") || cuts++ > 0) return "pass"
          if (!arrives) {
            link.cut()
            return "drop"
          }
          link.mute()
          setTimeout(link.cut, 200)
          return "pass"
        })
        let runs = 0
        const insert = Effect.flatMap(SqlClient, (sql) =>
          Effect.suspend(() => {
            runs++
            return sql`INSERT INTO t VALUES (1)`
          })).pipe(Pg.Executor.transaction({ resolveCommit: true }))
        yield* Effect.provide(insert, pooled(proxy.url))
        assert.strictEqual(yield* rows, 1)
        assert.deepStrictEqual([cuts > 0, runs], [true, arrives ? 1 : 2])
        assert.strictEqual(
          yield* witness.value<number>("SELECT count(*)::int FROM pg_locks WHERE relation = 't'::regclass"),
          0
        )
      }), 60_000)
  }
})

describe("a pooler that has no room", () => {
  it.live("for another client is Overloaded", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer({ settings: { max_client_conn: 3 } })
      const client = Effect.gen(function*() {
        const services = yield* Layer.build(pooled(bouncer.through(databaseUrl), { max: 1, retry: false }))
        yield* Context.get(services, SqlClient).reserve
      })
      const error = (yield* Effect.scoped(Effect.flip(Effect.replicateEffect(client, 5)))) as SqlError
      assert.match(String(Pg.Errors.failureOf(error).message), /max_client_conn/)
      assert.strictEqual(verdictOn(error).kind, "Overloaded")
      assert.isTrue(error.isRetryable)
    }), 60_000)

  it.live("for another statement is Overloaded: it has not run, and is asked again", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer({ settings: { default_pool_size: 1, query_wait_timeout: 0.3 } })
      const { rows, url } = yield* makeTable
      const through = bouncer.through(url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const holder = yield* Effect.forkChild(sql.withTransaction(sql`SELECT pg_sleep(2)`))
        yield* Effect.sleep(200)
        const once = yield* Effect.flip(Effect.provide(putIntoT, pooled(through, { retry: false })))
        assert.match(String(Pg.Errors.failureOf(once as SqlError).message), /query_wait_timeout/)
        assert.strictEqual(verdictOn(once as SqlError).kind, "Overloaded")
        assert.isTrue((once as SqlError).isRetryable)
        assert.strictEqual((yield* Pg.Metrics.Metrics).snapshotUnsafe().errors.Overloaded, 0)
        yield* putIntoT
        assert.isAbove((yield* Pg.Metrics.Metrics).snapshotUnsafe().errors.Overloaded, 0)
        yield* Fiber.join(holder)
      }).pipe(Effect.provide(pooled(through, { max: 3 })))
      assert.strictEqual(yield* rows, 1)
    }), 60_000)
})

const putIntoT = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO t VALUES (1)`)

describe("a pooler whose server is away", () => {
  it.live("is Unreachable: it lets its clients wait, and the connect's own time is up", () =>
    Effect.gen(function*() {
      const port = yield* closedPort
      const bouncer = yield* makePgBouncer({ server: Redacted.make(`postgres://app:secret@127.0.0.1:${port}`) })
      const error = yield* refusal({
        url: bouncer.through(Redacted.make("postgres://app:secret@127.0.0.1/shop")),
        connectTimeout: 700
      })
      assert.strictEqual(verdictOn(error).kind, "Unreachable", error.message)
      assert.isTrue(error.isRetryable)
    }), 60_000)

  it.live(
    "is Unreachable by its last words, and whoever is kept waiting then too: the circuit opens",
    () =>
      Effect.gen(function*() {
        const port = yield* serverThatStarts
        const bouncer = yield* makePgBouncer({
          server: Redacted.make(`postgres://app:secret@127.0.0.1:${port}`),
          settings: { server_login_retry: 10 }
        })
        const url = bouncer.through(Redacted.make("postgres://app:secret@127.0.0.1/shop"))
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const breaker = yield* Pg.Breaker.Breaker
          const said: Array<string | undefined> = []
          for (const _ of range(2)) {
            const error = yield* soon("a refusal", Effect.flip(sql`SELECT 1`), 30)
            said.push(Pg.Errors.failureOf(error).message)
            assert.strictEqual(verdictOn(error).kind, "Unreachable")
            assert.isTrue(error.isRetryable)
            // The next connect is tried after its pause.
            yield* Effect.sleep((yield* Pg.Pool.Pool).connectPauseUnsafe())
          }
          assert.match(String(said[0]), /the database system is starting up/)
          assert.strictEqual((yield* breaker.state)._tag, "Open")
        }).pipe(Effect.provide(pooled(url, { retry: false, connectTimeout: 1000, breaker: { failures: 2 } })))
      }),
    60_000
  )

  it.live("is not asked for ever when it does not know user or password", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer()
      for (const part of ["username", "password"] as const) {
        const url = new URL(Redacted.value(bouncer.through(databaseUrl)))
        url[part] = "wrong"
        const error = yield* refusal({ url: Redacted.make(url.href) })
        assert.deepStrictEqual([verdictOn(error).kind, error.reason._tag], ["Denied", "AuthenticationError"])
        assert.isFalse(error.isRetryable)
      }
    }), 60_000)
})

const listen = (server: Net.Server) =>
  Effect.callback<number>((resume) => {
    server.listen(0, "127.0.0.1", () => resume(Effect.succeed((server.address() as Net.AddressInfo).port)))
  })

const close = (server: Net.Server) => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))

const closedPort = Effect.suspend(() => {
  const server = Net.createServer()
  return Effect.tap(listen(server), () => close(server))
})

/** A server that is always only starting. */
const serverThatStarts = Effect.suspend(() => {
  const words = Buffer.from("SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0")
  const header = Buffer.from("E\0\0\0\0")
  header.writeInt32BE(words.length + 4, 1)
  const server = Net.createServer((socket) => {
    socket.on("error", () => {})
    socket.on("data", (message) => {
      const isSslRequest = message.length === 8
      if (isSslRequest) socket.write("N")
      else socket.end(Buffer.concat([header, words]))
    })
  })
  return Effect.acquireRelease(listen(server), () => close(server))
})

describe("faults of a pooler under load", () => {
  it.live("lose no acknowledged write, double none, and are retried where that is safe", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer({ settings: { default_pool_size: 4 } })
      const url = yield* freshDatabase
      const name = new URL(Redacted.value(url)).pathname.slice(1)
      const ledger = yield* makeLedger(url)
      const say = (command: string) => Effect.orDie(bouncer.say(command))
      let running = true
      let writes = 0
      const put = Effect.gen(function*() {
        const id = `w${writes++}`
        const kind = writes % 3
        const till = writes % ledger.tills
        const story = ["statement", "transaction", "resolved transaction"][kind]!
        yield* kind === 0
          ? ledger.note(id, putIn(id), { story, mayBeUnknown: true })
          : ledger.note(id, Pg.Executor.transaction(putInAndCount(id, till), { resolveCommit: kind === 2 }), {
            story,
            mayBeUnknown: kind === 1
          })
        yield* Effect.sleep(2)
      })
      const undo = (fault: Effect.Effect<unknown>, cure: Effect.Effect<unknown>) =>
        Effect.andThen(fault, Effect.andThen(Effect.sleep(200), cure))
      const faults: ReadonlyArray<readonly [name: string, fault: Effect.Effect<unknown>]> = [
        ["RECONNECT", say("RECONNECT")],
        ["PAUSE", undo(say(`PAUSE ${name}`), say(`RESUME ${name}`))],
        ["KILL", undo(say(`KILL ${name}`), say(`RESUME ${name}`))],
        ["a crash", undo(bouncer.kill, Effect.orDie(bouncer.start))],
        ["killed servers", Effect.orDie(Effect.flatMap(ledger.witness.sessions, ledger.witness.terminate))]
      ]
      yield* Effect.gen(function*() {
        const writers = yield* Effect.forEach(range(8), () =>
          Effect.forkChild(Effect.whileLoop({ while: () => running, body: () => put, step: () => {} })))
        for (const [fault, happens] of [...faults, ...faults]) {
          const before = ledger.told("acknowledged")
          yield* happens
          yield* eventually(
            `writes after ${fault}`,
            Effect.sync(() =>
              ledger.told("acknowledged") > before + 60
            ),
            30
          )
        }
        running = false
        for (const writer of writers) yield* soon("the end of a writer", Fiber.join(writer), 30)
        assert.isAbove((yield* Pg.Metrics.Metrics).snapshotUnsafe().retries.Unreachable, 0)
      }).pipe(Effect.provide(pooled(bouncer.through(url), {
        max: 6,
        breaker: false,
        retry: { attempts: 12 },
        retryBudget: false
      })))
      // What it keeps open to the server would be taken for work.
      yield* bouncer.kill
      assert.deepStrictEqual(yield* ledger.contradictions, [])
    }), 120_000)
})

describe("somebody who takes a transaction pooler for the server", () => {
  it.live("is told of `pooler` when it refuses the session's settings", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer()
      const error = yield* refusal({ url: bouncer.through(databaseUrl), pooler: "none" })
      assert.strictEqual(
        error.message,
        "PgConnection: Failed to connect: unsupported startup parameter: statement_timeout. A transaction pooler takes no "
          + "session settings: set pooler: \"transaction\", and leave out startupParameters and startupOptions."
      )
      assert.isFalse(error.isRetryable)
    }), 60_000)

  it.live(
    "is told of `pooler` when a prepared statement is looked for on another session of the server",
    () =>
      Effect.gen(function*() {
        const bouncer = yield* makePgBouncer({
          settings: {
            default_pool_size: 2,
            ignore_startup_parameters: "statement_timeout,lock_timeout,idle_in_transaction_session_timeout"
          }
        })
        const url = bouncer.through(yield* freshDatabase)
        const other = yield* makeWitness(url)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const again = sql.withTransaction(sql`SELECT ${1}::int4 AS n`)
          yield* again
          // Whoever comes next has the session of the server that was used last.
          yield* other.query("BEGIN")
          const error = yield* Effect.flip(again)
          assert.match(error.message, /: prepared statement "effect_\w+" does not exist\. .*set pooler: "transaction"/)
          assert.strictEqual(error.message.split("set pooler").length, 2)
        }).pipe(Effect.provide(Pg.layer({ url, max: 1, retry: false })))
      }),
    60_000
  )

  it.live("may insist on prepared statements, where the pooler keeps track of them", () =>
    Effect.gen(function*() {
      const bouncer = yield* makePgBouncer({ settings: { default_pool_size: 1 } })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 'kept'`
        assert.deepStrictEqual(
          yield* sql`SELECT count(*)::int4 AS n FROM pg_prepared_statements WHERE statement LIKE 'SELECT ''kept%'`,
          [{ n: 1 }]
        )
      }).pipe(Effect.provide(pooled(bouncer.through(yield* freshDatabase), { max: 1, prepare: true })))
    }), 60_000)
})
