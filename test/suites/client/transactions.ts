import { PgClient } from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { BeginTransaction, SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type { Engine, It, Room } from "./engine.ts"
import { assertReason, eventually, isRunning, look, over } from "./engine.ts"

export const transactions = (it: Room, engine: Engine): void => {
  it.layer(over(engine))("transactions", whole)
  it.layer(over(engine))("transactions inside of transactions", nested)
  it.layer(over(engine))("the isolation of transactions", isolation)
  it.layer(over(engine, { max: 2 }))("transactions on a small pool", crowded)
}

/** An empty table of texts. */
const makeTable = Effect.fnUntraced(function*(name: string) {
  const sql = yield* SqlClient
  const table = sql(name)
  yield* sql`CREATE TABLE ${table} (value text)`
  return {
    add: (value: string) => sql`INSERT INTO ${table} VALUES (${value})`,
    /** What everybody else sees. */
    seen: Effect.map(look(`SELECT value FROM ${name} ORDER BY value`), (rows) => rows.map((row) => row.value)),
    /** What the running fiber sees. */
    own: Effect.map(
      sql<{ value: string }>`SELECT value FROM ${table} ORDER BY value`,
      (rows) => rows.map((row) => row.value)
    )
  }
})

const backend = Effect.flatMap(
  SqlClient,
  (sql) => Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]!.pid)
)

/** The error of what must fail. */
const sqlErrorOf = <R>(effect: Effect.Effect<void, SqlError, R>): Effect.Effect<SqlError, never, R> =>
  Effect.orDie(Effect.flip(effect))

/** Sessions of this database that are inside a transaction. */
const openTransactions = Effect.map(
  look(`SELECT count(*)::int4 AS n FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'`),
  (rows) => rows[0]?.n as number
)

const whole = (it: It): void => {
  it.effect("a transaction that succeeds is committed and gives its value", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("committed")
      const value = yield* sql.withTransaction(Effect.gen(function*() {
        yield* table.add("a")
        yield* table.add("b")
        assert.deepStrictEqual(yield* table.own, ["a", "b"])
        assert.deepStrictEqual(yield* table.seen, [])
        return "done"
      }))
      assert.strictEqual(value, "done")
      assert.deepStrictEqual(yield* table.seen, ["a", "b"])
    }))

  it.effect("a transaction that fails is rolled back and fails with its own error", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("failed")
      const exit = yield* Effect.exit(sql.withTransaction(Effect.andThen(table.add("a"), Effect.fail("no" as const))))
      assert.deepStrictEqual(exit, Exit.fail("no" as const))
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("a transaction that dies is rolled back and dies", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("died")
      const defect = new Error("bug")
      const exit = yield* Effect.exit(sql.withTransaction(Effect.andThen(table.add("a"), Effect.die(defect))))
      assert.deepStrictEqual(exit, Exit.die(defect))
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("a transaction that is interrupted is rolled back before the interruption returns", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("interrupted")
      const added = yield* Deferred.make<void>()
      const fiber = yield* Effect.forkScoped(sql.withTransaction(
        Effect.andThen(Effect.andThen(table.add("a"), Deferred.succeed(added, undefined)), Effect.never)
      ))
      yield* Deferred.await(added)
      assert.strictEqual(yield* openTransactions, 1)
      yield* Fiber.interrupt(fiber)
      yield* eventually(Effect.map(openTransactions, (n) => n === 0))
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("a transaction interrupted inside a statement is cancelled and rolled back", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("cancelled")
      const fiber = yield* Effect.forkScoped(sql.withTransaction(
        Effect.andThen(table.add("a"), sql`SELECT pg_sleep(100), 'cancelled transaction'`)
      ))
      yield* eventually(isRunning("cancelled transaction"))
      yield* Fiber.interrupt(fiber)
      assert.isFalse(yield* isRunning("cancelled transaction"))
      yield* eventually(Effect.map(openTransactions, (n) => n === 0))
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("a failed statement fails the transaction with the server's reason", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("rejected")
      const error = yield* sqlErrorOf(sql.withTransaction(
        Effect.andThen(table.add("a"), Effect.asVoid(sql`SELECT * FROM nowhere`))
      ))
      assertReason(error, "SqlSyntaxError", "42P01")
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("after a failed statement the transaction takes no more, and its COMMIT fails", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("aborted")
      const error = yield* sqlErrorOf(sql.withTransaction(
        Effect.gen(function*() {
          yield* table.add("a")
          yield* Effect.ignore(sql`SELECT 1 / 0`)
          assertReason(yield* sqlErrorOf(Effect.asVoid(table.add("b"))), "UnknownError", "25P02")
        }).pipe(Effect.orDie)
      ))
      assert.strictEqual(error._tag, "SqlError")
      assert.strictEqual(error.message, "PgClient: COMMIT rolled back an aborted transaction")
      assert.strictEqual(error.reason.operation, "commit")
      assert.isFalse(error.isRetryable)
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("a constraint that is checked at COMMIT fails the transaction there", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE deferred_unique (n int4 UNIQUE DEFERRABLE INITIALLY DEFERRED)`
      const exit = yield* Effect.exit(sql.withTransaction(Effect.andThen(
        sql`INSERT INTO deferred_unique VALUES (1)`,
        sql`INSERT INTO deferred_unique VALUES (1)`
      )))
      assert.isTrue(Exit.isFailure(exit) && !Cause.hasDies(exit.cause))
      const error = Option.getOrThrow(Exit.findErrorOption(exit))
      assertReason(error, "UniqueViolation", "23505")
      assert.deepStrictEqual(yield* sql`SELECT * FROM deferred_unique`, [])
    }))

  it.effect("all statements of a transaction run on one session, whatever their form and fiber", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql.withTransaction(Effect.gen(function*() {
        const own = sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
        const pid = yield* backend
        assert.deepStrictEqual(yield* own.values, [[pid]])
        assert.deepStrictEqual(yield* own.unprepared, [{ pid }])
        assert.deepStrictEqual(yield* own.valuesUnprepared, [[pid]])
        assert.deepStrictEqual(yield* own.withoutTransform, [{ pid }])
        assert.deepStrictEqual(yield* Stream.runCollect(own.stream), [{ pid }])
        const pids = yield* Effect.replicateEffect(backend, 20, { concurrency: "unbounded" })
        assert.deepStrictEqual(new Set(pids), new Set([pid]))
        const forked = yield* Effect.forkChild(backend)
        assert.strictEqual(yield* Fiber.join(forked), pid)
      }))
    }))

  it.effect("transactions of several fibers run on sessions of their own", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const gate = yield* Deferred.make<void>()
      const pids: Array<number> = []
      const one = sql.withTransaction(Effect.gen(function*() {
        pids.push(yield* backend)
        if (pids.length === 4) yield* Deferred.succeed(gate, undefined)
        yield* Deferred.await(gate)
      }))
      yield* Effect.all([one, one, one, one], { concurrency: "unbounded" })
      assert.strictEqual(new Set(pids).size, 4)
    }))

  it.effect("what runs beside a transaction does not see it", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("beside")
      const added = yield* Deferred.make<void>()
      const looked = yield* Deferred.make<void>()
      const writer = yield* Effect.forkScoped(sql.withTransaction(Effect.gen(function*() {
        yield* table.add("a")
        yield* Deferred.succeed(added, undefined)
        yield* Deferred.await(looked)
      })))
      yield* Deferred.await(added)
      assert.deepStrictEqual(yield* table.own, [])
      yield* Deferred.succeed(looked, undefined)
      yield* Fiber.join(writer)
      assert.deepStrictEqual(yield* table.own, ["a"])
    }))

  it.effect("a reserved connection is not that of the transaction around it", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql.withTransaction(Effect.gen(function*() {
        const pid = yield* backend
        const other = yield* Effect.scoped(
          Effect.flatMap(sql.reserve, (connection) => connection.executeValues("SELECT pg_backend_pid()", []))
        )
        assert.notStrictEqual(other[0]?.[0], pid)
      }))
    }))

  it.effect("a stream reads inside its transaction", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("streamed")
      const seen = yield* sql.withTransaction(Effect.gen(function*() {
        yield* table.add("a")
        yield* table.add("b")
        return yield* Stream.runCollect(
          sql<{ value: string; pid: number }>`SELECT value, pg_backend_pid() AS pid FROM streamed ORDER BY value`.stream
        ).pipe(Effect.map((rows) => rows.map((row) => row.value)))
      }))
      assert.deepStrictEqual(seen, ["a", "b"])
    }))

  it.effect("a stream whose rows have all been sent may be given up early", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("given_up")
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* table.add("before")
        const some = yield* Stream.runCollect(
          Stream.take(sql<{ n: number }>`SELECT n FROM generate_series(1, 10) AS n`.stream, 3)
        )
        assert.deepStrictEqual(some.map((row) => row.n), [1, 2, 3])
        yield* table.add("after")
      }))
      assert.deepStrictEqual(yield* table.seen, ["after", "before"])
    }))

  it.effect("a stream that must be cancelled to be given up takes its transaction with it", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("torn_off")
      const error = yield* sqlErrorOf(sql.withTransaction(Effect.gen(function*() {
        yield* table.add("before")
        // Rows wide enough to be sent at once, and a tail that never comes.
        yield* Stream.runDrain(
          Stream.take(
            sql`SELECT repeat('x', 20000) AS x, pg_sleep(CASE WHEN n > 5 THEN 100 ELSE 0 END)
              FROM generate_series(1, 10) AS n`.stream,
            3
          )
        )
      })))
      assert.strictEqual(error.message, "PgClient: COMMIT rolled back an aborted transaction")
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("a transaction is one for both of the client's services", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const pg = yield* PgClient
      yield* sql.withTransaction(Effect.gen(function*() {
        const pid = yield* backend
        assert.deepStrictEqual(yield* pg`SELECT pg_backend_pid() AS pid`, [{ pid }])
        const depth = Effect.map(Effect.serviceOption(sql.transactionService), Option.map(([, depth]) => depth))
        assert.deepStrictEqual(yield* depth, Option.some(0))
        assert.deepStrictEqual(yield* pg.withTransaction(depth), Option.some(1))
      }))
      assert.isTrue(Option.isNone(yield* Effect.serviceOption(sql.transactionService)))
    }))

  it.effect("a hundred transactions add up", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE account (id int4 PRIMARY KEY, balance int4)`
      yield* sql`INSERT INTO account VALUES (1, 0)`
      yield* Effect.forEach(
        Array.from({ length: 100 }, (_, n) => n),
        (n) =>
          Effect.exit(sql.withTransaction(Effect.gen(function*() {
            yield* sql`UPDATE account SET balance = balance + 1 WHERE id = 1`
            if (n % 4 === 0) return yield* Effect.fail("changed my mind")
          }))),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(yield* sql`SELECT balance FROM account`, [{ balance: 75 }])
    }))

  it.effect("a session comes back from a transaction as clean as it went", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const timeout = sql<{ t: string }>`SELECT current_setting('work_mem') AS t`
      const before = yield* timeout
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`SET LOCAL work_mem = '1234kB'`
        assert.deepStrictEqual(yield* timeout, [{ t: "1234kB" }])
      }))
      const after = yield* Effect.replicateEffect(timeout, 16, { concurrency: "unbounded" })
      assert.isTrue(after.every(([row]) => row!.t === before[0]!.t))
      assert.strictEqual(yield* openTransactions, 0)
    }))
}

const nested = (it: It): void => {
  it.effect("a transaction inside a transaction is committed with it", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("inner_committed")
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* table.add("outer")
        const pid = yield* backend
        assert.strictEqual(yield* sql.withTransaction(Effect.andThen(table.add("inner"), backend)), pid)
        assert.deepStrictEqual(yield* table.seen, [])
      }))
      assert.deepStrictEqual(yield* table.seen, ["inner", "outer"])
    }))

  it.effect("only the inner transaction is rolled back when only that fails", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("inner_failed")
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* table.add("before")
        const exit = yield* Effect.exit(sql.withTransaction(Effect.andThen(table.add("lost"), Effect.fail("no"))))
        assert.deepStrictEqual(exit, Exit.fail("no"))
        assert.deepStrictEqual(yield* table.own, ["before"])
        yield* table.add("after")
      }))
      assert.deepStrictEqual(yield* table.seen, ["after", "before"])
    }))

  it.effect("a failed statement is undone by the inner transaction around it", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("inner_rejected")
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* table.add("before")
        assertReason(yield* Effect.flip(sql.withTransaction(sql`SELECT 1 / 0`)), "UnknownError", "22012")
        yield* table.add("after")
      }))
      assert.deepStrictEqual(yield* table.seen, ["after", "before"])
    }))

  it.effect("an inner transaction that dies or is interrupted is rolled back alone", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("inner_died")
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* Effect.exit(sql.withTransaction(Effect.andThen(table.add("died"), Effect.die("bug"))))
        const added = yield* Deferred.make<void>()
        const fiber = yield* Effect.forkChild(sql.withTransaction(
          Effect.andThen(Effect.andThen(table.add("cut"), Deferred.succeed(added, undefined)), Effect.never)
        ))
        yield* Deferred.await(added)
        yield* Fiber.interrupt(fiber)
        yield* table.add("kept")
      }))
      assert.deepStrictEqual(yield* table.seen, ["kept"])
    }))

  it.effect("the inner transaction goes with the outer one", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("outer_failed")
      yield* Effect.exit(sql.withTransaction(
        Effect.andThen(sql.withTransaction(table.add("inner")), Effect.fail("no"))
      ))
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("transactions nest to any depth", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("deep")
      const level = (depth: number): Effect.Effect<void, unknown> =>
        sql.withTransaction(Effect.gen(function*() {
          yield* table.add(`level ${depth}`)
          if (depth === 5) return
          yield* Effect.ignore(level(depth + 1))
          if (depth === 3) return yield* Effect.fail("from here down")
        }))
      yield* level(0)
      assert.deepStrictEqual(yield* table.seen, ["level 0", "level 1", "level 2"])
    }))

  it.effect("savepoints are released, whether kept or rolled back", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("released")
      const gone = Effect.map(
        Effect.flip(sql`ROLLBACK TO SAVEPOINT effect_sql_1`.unprepared),
        (error) => assertReason(error, "UnknownError", "3B001")
      )
      yield* Effect.flip(sql.withTransaction(Effect.andThen(sql.withTransaction(table.add("kept")), gone)))
      yield* Effect.flip(sql.withTransaction(
        Effect.andThen(Effect.exit(sql.withTransaction(Effect.fail("rolled back"))), gone)
      ))
      assert.deepStrictEqual(yield* table.seen, [])
    }))

  it.effect("inner transactions of several fibers take turns, and do not undo each other", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("turns")
      const started = yield* Deferred.make<void>()
      yield* sql.withTransaction(Effect.gen(function*() {
        const keep = sql.withTransaction(Effect.gen(function*() {
          yield* Deferred.succeed(started, undefined)
          yield* Effect.sleep(50)
          yield* table.add("kept")
        }))
        const drop = Effect.andThen(
          Deferred.await(started),
          Effect.exit(sql.withTransaction(Effect.andThen(table.add("dropped"), Effect.fail("no"))))
        )
        yield* Effect.all([keep, drop, drop], { concurrency: "unbounded" })
      }))
      assert.deepStrictEqual(yield* table.seen, ["kept"])
    }))

  it.effect("an inner transaction does not begin anew", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const level = sql<{ level: string }>`SELECT current_setting('transaction_isolation') AS level`
      yield* sql.withTransaction(Effect.gen(function*() {
        assert.deepStrictEqual(yield* sql.withTransaction(level), [{ level: "serializable" }])
      })).pipe(Effect.provideService(BeginTransaction, "BEGIN ISOLATION LEVEL SERIALIZABLE"))
    }))
}

const isolation = (it: It): void => {
  const level = Effect.flatMap(SqlClient, (sql) =>
    Effect.map(
      sql<{ level: string }>`SELECT current_setting('transaction_isolation') AS level`,
      (rows) => rows[0]!.level
    ))

  it.effect("a transaction begins as it is told to", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      for (const name of ["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"]) {
        const seen = yield* Effect.provideService(
          sql.withTransaction(level),
          BeginTransaction,
          `BEGIN ISOLATION LEVEL ${name}`
        )
        assert.strictEqual(seen, name.toLowerCase())
      }
      assert.strictEqual(yield* sql.withTransaction(level), "read committed")
    }))

  it.effect("a read-only transaction refuses to write", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("read_only")
      const error = yield* Effect.flip(
        Effect.provideService(sql.withTransaction(table.add("a")), BeginTransaction, "BEGIN READ ONLY")
      )
      assertReason(error, "UnknownError", "25006")
      yield* table.add("b")
      assert.deepStrictEqual(yield* table.seen, ["b"])
    }))

  it.effect("a BEGIN that is refused is a typed failure, and nothing runs", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      let ran = false
      const exit = yield* Effect.exit(Effect.provideService(
        sql.withTransaction(Effect.sync(() => {
          ran = true
        })),
        BeginTransaction,
        "BEGIN NONSENSE"
      ))
      assert.isFalse(ran)
      assert.isTrue(Exit.isFailure(exit) && !Cause.hasDies(exit.cause))
      assertReason(Option.getOrThrow(Exit.findErrorOption(exit)), "SqlSyntaxError", "42601")
      assert.strictEqual(yield* sql.withTransaction(Effect.succeed("fine")), "fine")
    }))

  it.effect("of two transactions that read and write across, one fails to serialize", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE crossing (id int4 PRIMARY KEY, n int4)`
      yield* sql`INSERT INTO crossing VALUES (1, 0)`
      const read = yield* Deferred.make<void>()
      const written = yield* Deferred.make<void>()
      const increment = sql`UPDATE crossing SET n = n + 1 WHERE id = 1`
      const slow = sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT n FROM crossing`
        yield* Deferred.succeed(read, undefined)
        yield* Deferred.await(written)
        yield* increment
      })).pipe(Effect.provideService(BeginTransaction, "BEGIN ISOLATION LEVEL REPEATABLE READ"))
      const quick = Effect.andThen(
        Deferred.await(read),
        Effect.andThen(sql.withTransaction(increment), Deferred.succeed(written, undefined))
      )
      const [error] = yield* Effect.all([Effect.flip(slow), quick], { concurrency: "unbounded" })
      assertReason(error, "SerializationError", "40001")
      assert.isTrue(error.isRetryable)
      assert.deepStrictEqual(yield* sql`SELECT n FROM crossing`, [{ n: 1 }])
    }))

  it.effect("of two transactions that wait for each other, one is a deadlock's victim", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE crossed (id int4 PRIMARY KEY, n int4)`
      yield* sql`INSERT INTO crossed VALUES (1, 0), (2, 0)`
      const locked = yield* Effect.all([Deferred.make<void>(), Deferred.make<void>()])
      const touch = (id: number) => sql`UPDATE crossed SET n = n + 1 WHERE id = ${id}`
      const one = (own: 0 | 1, other: 0 | 1) =>
        Effect.exit(sql.withTransaction(Effect.gen(function*() {
          yield* sql`SET LOCAL deadlock_timeout = '50ms'`
          yield* touch(own + 1)
          yield* Deferred.succeed(locked[own], undefined)
          yield* Deferred.await(locked[other])
          yield* touch(other + 1)
        })))
      const exits = yield* Effect.all([one(0, 1), one(1, 0)], { concurrency: "unbounded" })
      const errors = exits.flatMap((exit) => Option.toArray(Exit.findErrorOption(exit)))
      assert.lengthOf(errors, 1)
      assertReason(errors[0]!, "DeadlockError", "40P01")
      assert.isTrue(errors[0]!.isRetryable)
      assert.deepStrictEqual(yield* sql`SELECT n FROM crossed`, [{ n: 1 }, { n: 1 }])
    }))
}

const crowded = (it: It): void => {
  it.effect("transactions beyond the pool's size wait their turn", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const table = yield* makeTable("queued")
      let running = 0
      let most = 0
      yield* Effect.forEach(
        Array.from({ length: 40 }, (_, n) => n),
        (n) =>
          sql.withTransaction(Effect.gen(function*() {
            most = Math.max(most, ++running)
            yield* table.add(String(n))
            yield* sql.withTransaction(table.add(`${n} again`))
            running--
          })),
        { concurrency: "unbounded" }
      )
      assert.isAtMost(most, 2)
      assert.lengthOf(yield* table.seen, 80)
    }))

  it.effect("a transaction interrupted while it waits for a session never begins", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const release = yield* Deferred.make<void>()
      // One without a statement need not be open on the server.
      const hold = sql.withTransaction(Effect.andThen(sql`SELECT 1`, Deferred.await(release)))
      const holding = yield* Effect.forkScoped(Effect.all([hold, hold], { concurrency: "unbounded" }))
      yield* eventually(Effect.map(openTransactions, (n) => n === 2))
      let ran = false
      const waiting = yield* Effect.forkScoped(sql.withTransaction(Effect.sync(() => {
        ran = true
      })))
      yield* Effect.sleep(20)
      yield* Fiber.interrupt(waiting)
      yield* Deferred.succeed(release, undefined)
      yield* Fiber.join(holding)
      assert.isFalse(ran)
      assert.strictEqual(yield* sql.withTransaction(Effect.succeed("next")), "next")
    }))

  it.effect("a nested transaction needs no session of its own", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const inner = sql.withTransaction(sql.withTransaction(sql`SELECT 1 AS one`))
      const both = yield* Effect.all([sql.withTransaction(inner), sql.withTransaction(inner)], {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(both, [[{ one: 1 }], [{ one: 1 }]])
    }))
}
