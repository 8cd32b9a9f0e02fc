import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { type Link, makeProxy } from "./proxy.ts"
import { eventually, makeTable } from "./witness.ts"

const { CurrentAttempt, transaction } = Pg.Executor

const instantly = { retry: { base: 0, jitter: "none" } } as const

const insert = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO t VALUES (1)`)

const value = (query: string) =>
  Effect.flatMap(SqlClient, (sql) => Effect.map(sql.unsafe(query).values, (rows) => rows[0]?.[0]))

const suicide = value("SELECT pg_terminate_backend(pg_backend_pid())")

const raise = (sqlState: string) =>
  Effect.flatMap(SqlClient, (sql) => sql.unsafe(`DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '${sqlState}'; END $$`))

const isCommit = (request: Buffer): boolean => request.includes("COMMIT")

/** Named statements send their text only once. */
const unnamed = { prepare: false } as const

describe("Executor.transaction", () => {
  it.live("begins with the isolation, the access mode and the deferral that it is given", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      yield* Effect.gen(function*() {
        const modes = Effect.all([
          value("SHOW transaction_isolation"),
          value("SHOW transaction_read_only"),
          value("SHOW transaction_deferrable")
        ])
        assert.deepStrictEqual(yield* transaction(modes), ["read committed", "off", "off"])
        assert.deepStrictEqual(
          yield* transaction(modes, { isolation: "repeatable read" }),
          ["repeatable read", "off", "off"]
        )
        assert.deepStrictEqual(
          yield* modes.pipe(transaction({ isolation: "serializable", accessMode: "read only", deferrable: true })),
          ["serializable", "on", "on"]
        )
        const error = yield* Effect.flip(transaction(insert, { accessMode: "read only" }))
        assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "25006")
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  for (const sqlState of ["40001", "40P01"]) {
    it.live(`runs all of it again after ${sqlState}, and its body sees which attempt it is`, () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        yield* Effect.gen(function*() {
          const seen: Array<number> = []
          yield* transaction(Effect.gen(function*() {
            const attempt = yield* CurrentAttempt
            seen.push(attempt)
            yield* insert
            if (attempt < 3) yield* raise(sqlState)
          }))
          assert.deepStrictEqual(seen, [1, 2, 3])
          assert.strictEqual(yield* rows, 1)
        }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
      }))
  }

  it.live("lets two that cannot be serialized both succeed, one of them at its second attempt", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* witness.query("INSERT INTO t VALUES (1), (2)")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        let attempts = 0
        let reads = 0
        const writeSkew = transaction(
          Effect.gen(function*() {
            attempts++
            const before = yield* value("SELECT sum(n)::int FROM t")
            // Neither writes before both have read.
            reads++
            yield* eventually("both reads", Effect.sync(() => reads >= 2))
            yield* sql`INSERT INTO t VALUES (${before as number})`
          }),
          { isolation: "serializable" }
        )
        yield* Effect.all([writeSkew, writeSkew], { concurrency: 2 })
        assert.isAtLeast(attempts, 3)
        // One after the other: 1 + 2 = 3, then 1 + 2 + 3 = 6.
        assert.strictEqual(yield* value("SELECT sum(n)::int FROM t"), 12)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2 })))
    }))

  it.live("runs all of it again when the connection is lost before COMMIT", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        let attempts = 0
        yield* transaction(Effect.gen(function*() {
          yield* insert
          if (++attempts === 1) yield* suicide
        }))
        assert.strictEqual(attempts, 2)
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))

  it.live("does not run again what its caller raised, what the server rejected, or what was told not to", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        let runs = 0
        const counted = Effect.sync(() => runs++)
        const own = yield* Effect.flip(transaction(Effect.andThen(counted, Effect.fail("mine"))))
        assert.strictEqual(own, "mine")
        const rejected = yield* Effect.flip(transaction(Effect.andThen(counted, raise("23505"))))
        assert.strictEqual(Pg.Errors.failureOf(rejected).sqlState, "23505")
        const once = yield* Effect.flip(transaction(Effect.andThen(counted, raise("40001")), { retry: false }))
        assert.strictEqual(Pg.Errors.failureOf(once).sqlState, "40001")
        assert.strictEqual(runs, 3)
        assert.strictEqual(yield* rows, 0)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))

  it.live("inside another one is a savepoint: rolled back alone, repeated only with the whole", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        let outer = 0
        let inner = 0
        yield* transaction(Effect.gen(function*() {
          outer++
          yield* insert
          yield* Effect.ignore(transaction(Effect.andThen(insert, Effect.fail("inner"))))
          yield* transaction(Effect.gen(function*() {
            inner++
            yield* insert
            if (outer === 1) yield* raise("40001")
          }))
        }))
        assert.deepStrictEqual([outer, inner], [2, 2])
        assert.strictEqual(yield* rows, 2)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1 })))
    }))

  it.live("refuses modes that it could not keep as mistakes in the program", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const defectOf = (exit: Exit.Exit<unknown, unknown>) =>
          Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
        const nested = defectOf(yield* Effect.exit(transaction(transaction(insert, { isolation: "serializable" }))))
        assert(nested instanceof Pg.Errors.InvalidOption)
        assert.strictEqual(nested.option, "isolation")
        const vain = defectOf(yield* Effect.exit(transaction(insert, { deferrable: true })))
        assert(vain instanceof Pg.Errors.InvalidOption)
        assert.strictEqual(vain.option, "deferrable")
        const never = defectOf(yield* Effect.exit(transaction(insert, { attemptTimeout: -1 })))
        assert(never instanceof Pg.Errors.InvalidOption)
        assert.strictEqual(never.message, "attemptTimeout is -1, but must be a duration above 0.")
        assert.strictEqual(yield* rows, 0)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})

describe("the deadline of a transaction", () => {
  it.live("is told to the server with BEGIN, in case that nobody comes to end it", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      let requests = 0
      proxy.onRequest(() => {
        requests++
        return "pass"
      })
      yield* Effect.gen(function*() {
        const millis = (setting: string) =>
          value(`SELECT (extract(epoch FROM current_setting('${setting}')::interval) * 1000)::int`)
        const limits = Effect.all([millis("statement_timeout"), millis("idle_in_transaction_session_timeout")])
        const count = Effect.fnUntraced(function*(deadline: number | undefined) {
          const before = requests
          const found = yield* transaction(limits, { deadline })
          return { found, requests: requests - before }
        })
        yield* count(undefined)
        const free = yield* count(undefined)
        assert.deepStrictEqual(free.found, [15_000, 60_000])
        const bound = yield* count(5_000)
        for (const found of bound.found as Array<number>) {
          assert.isAtMost(found, 6_000)
          assert.isAbove(found, 1_000)
        }
        // It goes with BEGIN and the first statement.
        assert.strictEqual(bound.requests, free.requests)
        // The session's own limits stay where they are tighter, and come back.
        assert.deepStrictEqual((yield* count(30_000)).found[0], 15_000)
        assert.deepStrictEqual((yield* count(undefined)).found, [15_000, 60_000])
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1 })))
    }))

  it.live("ends it on the server when the client is frozen", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeTable
      const proxy = yield* makeProxy(url)
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(transaction(
          Effect.gen(function*() {
            yield* insert
            // From here on neither side hears of the other.
            proxy.onRequest((_, link) => {
              link.mute()
              return "drop"
            })
            yield* value("SELECT 1")
          }),
          { deadline: 500, retry: false }
        ))
        assert.strictEqual(error._tag, "DeadlineExceeded")
        yield* eventually(
          "the end of the transaction",
          Effect.map(
            witness.value<number>(
              "SELECT count(*)::int FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND datname = current_database()"
            ),
            (count) => count === 0
          )
        )
        assert.strictEqual(yield* rows, 0)
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1 })))
    }))
})

describe("a COMMIT whose answer is lost", () => {
  /** Cuts the connection at the first COMMIT: before the server gets it, or after. */
  const cutAtCommit = Effect.fnUntraced(function*(when: "before" | "after", url: Redacted.Redacted) {
    const proxy = yield* makeProxy(url)
    let cuts = 0
    const cut = (link: Link) => {
      cuts++
      link.cut()
    }
    proxy.onRequest((request, link) => {
      if (!isCommit(request) || cuts > 0) return "pass"
      if (when === "before") {
        cut(link)
        return "drop"
      }
      link.mute()
      // The server has it before it learns that nobody waits for the answer.
      setTimeout(() => cut(link), 50)
      return "pass"
    })
    return { url: proxy.url, cuts: () => cuts }
  })

  for (const when of ["before", "after"] as const) {
    it.live(`${when} the server had it is an OutcomeUnknown`, () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* cutAtCommit(when, url)
        yield* Effect.gen(function*() {
          const error = yield* Effect.flip(transaction(insert))
          assert.strictEqual(error._tag, "OutcomeUnknown")
          assert.strictEqual(proxy.cuts(), 1)
          assert.strictEqual(yield* rows, when === "before" ? 0 : 1)
        }).pipe(Effect.provide(Pg.layer({ ...instantly, ...unnamed, url: proxy.url, max: 1 })))
      }))

    it.live(`${when} the server had it is resolved: applied once, and a success`, () =>
      Effect.gen(function*() {
        const { rows, url } = yield* makeTable
        const proxy = yield* cutAtCommit(when, url)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          let attempts = 0
          let invalidated = 0
          const answer = yield* transaction(
            Effect.gen(function*() {
              attempts++
              yield* insert
              yield* sql.afterCommit(Effect.sync(() => invalidated++))
              return "applied"
            }),
            { resolveCommit: true }
          )
          assert.strictEqual(answer, "applied")
          assert.strictEqual(proxy.cuts(), 1)
          assert.strictEqual(attempts, when === "before" ? 2 : 1)
          assert.strictEqual(yield* rows, 1)
          assert.strictEqual(invalidated, 1)
        }).pipe(Effect.provide(Pg.layer({ ...instantly, ...unnamed, url: proxy.url, max: 1 })))
      }))
  }

  it.live("is waited for while the server is still committing", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeTable
      yield* witness.query(
        `CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'`
      )
      yield* witness.query(
        `CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION dawdle()`
      )
      const proxy = yield* cutAtCommit("after", url)
      yield* Effect.gen(function*() {
        yield* transaction(insert, { resolveCommit: true })
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, ...unnamed, url: proxy.url, max: 1 })))
    }))

  it.live("is waited for no longer than the deadline", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* witness.query(
        `CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(5); RETURN NULL; END'`
      )
      yield* witness.query(
        `CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION dawdle()`
      )
      const proxy = yield* cutAtCommit("after", url)
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(transaction(insert, { resolveCommit: true, deadline: 700 }))
        assert.isTrue(error._tag === "OutcomeUnknown" || error._tag === "DeadlineExceeded", error._tag)
        if (error._tag === "OutcomeUnknown") assert.match(error.unresolved ?? "", /in progress|in time/)
        if (error._tag === "DeadlineExceeded") assert.strictEqual(error.effect, "Unknown")
      }).pipe(Effect.provide(Pg.layer({ ...instantly, ...unnamed, url: proxy.url, max: 1 })))
    }))

  it.live("that never reached the server is fenced, when a proxy keeps the session open", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      let stalled = 0
      proxy.onRequest((request, link) => {
        if (!isCommit(request) || stalled > 0) return "pass"
        stalled++
        link.strand()
        return "drop"
      })
      yield* Effect.gen(function*() {
        let attempts = 0
        yield* transaction(Effect.andThen(Effect.sync(() => attempts++), insert), {
          resolveCommit: true,
          deadline: "10 seconds"
        })
        assert.strictEqual(stalled, 1)
        assert.strictEqual(attempts, 2)
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, ...unnamed, url: proxy.url, max: 1 })))
    }))

  it.live("of a single statement can be resolved too", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      const proxy = yield* cutAtCommit("after", url)
      yield* Effect.gen(function*() {
        yield* insert.pipe(transaction({ resolveCommit: true }))
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, ...unnamed, url: proxy.url, max: 1 })))
    }))
})

describe("resolveCommit", () => {
  it.live("costs no round trip", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const proxy = yield* makeProxy(url)
      let requests = 0
      proxy.onRequest(() => {
        requests++
        return "pass"
      })
      yield* Effect.gen(function*() {
        const count = Effect.fnUntraced(function*(resolveCommit: boolean) {
          const before = requests
          yield* transaction(insert, { resolveCommit })
          return requests - before
        })
        yield* count(false)
        assert.strictEqual(yield* count(true), yield* count(false))
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1 })))
    }))

  it.live("leaves the session as it was: no answer is mixed up over many transactions", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeTable
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* Effect.forEach(Array.from({ length: 200 }, (_, index) => index), (index) =>
          Effect.gen(function*() {
            const [row] = yield* transaction(sql<{ n: number }>`INSERT INTO t VALUES (${index}) RETURNING n`, {
              resolveCommit: true
            })
            assert.strictEqual(row?.n, index)
            assert.strictEqual(yield* value(`SELECT ${index}`), index)
          }), { concurrency: 4, discard: true })
        assert.strictEqual(yield* rows, 200)
      }).pipe(Effect.provide(Pg.layer({ url, max: 2 })))
    }))

  it.live("on a server that keeps the id to itself works as without, and says so when it matters", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeTable
      const role = `discreet_${Math.floor(performance.now() * 1e6)}`
      yield* witness.query(`CREATE ROLE ${role} LOGIN PASSWORD 'x'`)
      yield* witness.query(`GRANT INSERT, SELECT ON t TO ${role}`)
      // Of this database alone.
      yield* witness.query("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
      yield* Effect.addFinalizer(() =>
        Effect.ignore(Effect.andThen(
          witness.query(`DROP OWNED BY ${role}`),
          witness.query(`DROP ROLE ${role}`)
        ))
      )
      const asRole = new URL(Redacted.value(url))
      asRole.username = role
      asRole.password = "x"
      const proxy = yield* makeProxy(Redacted.make(asRole.href))
      let cuts = 0
      yield* Effect.gen(function*() {
        yield* transaction(insert, { resolveCommit: true })
        yield* transaction(insert, { resolveCommit: true })
        assert.strictEqual(yield* rows, 2)
        proxy.onRequest((request, link) => {
          if (!isCommit(request) || cuts > 0) return "pass"
          cuts++
          link.cut()
          return "drop"
        })
        const error = yield* Effect.flip(transaction(insert, { resolveCommit: true }))
        assert.strictEqual(error._tag, "OutcomeUnknown")
        if (error._tag === "OutcomeUnknown") assert.include(error.unresolved, "would not say")
      }).pipe(Effect.provide(Pg.layer({ ...instantly, ...unnamed, url: proxy.url, max: 1 })))
    }))

  it.live("needs no more than an ordinary role", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeTable
      const role = `ordinary_${Math.floor(performance.now() * 1e6)}`
      yield* witness.query(`CREATE ROLE ${role} LOGIN PASSWORD 'x'`)
      yield* witness.query(`GRANT INSERT ON t TO ${role}`)
      yield* Effect.addFinalizer(() =>
        Effect.ignore(Effect.andThen(
          witness.query(`DROP OWNED BY ${role}`),
          witness.query(`DROP ROLE ${role}`)
        ))
      )
      const asRole = new URL(Redacted.value(url))
      asRole.username = role
      asRole.password = "x"
      const proxy = yield* cutOnceAtCommit(Redacted.make(asRole.href))
      yield* Effect.gen(function*() {
        yield* transaction(insert, { resolveCommit: true })
        assert.strictEqual(yield* rows, 1)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, ...unnamed, url: proxy.url, max: 1 })))
    }))
})

/** Cuts the first connection that commits, once the server has had the time to do so. */
const cutOnceAtCommit = Effect.fnUntraced(function*(url: Redacted.Redacted) {
  const proxy = yield* makeProxy(url)
  let cuts = 0
  proxy.onRequest((request, link) => {
    if (!isCommit(request) || cuts++ > 0) return "pass"
    link.mute()
    setTimeout(link.cut, 50)
    return "pass"
  })
  return proxy
})
