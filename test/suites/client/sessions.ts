import { PgClient } from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import type { Engine, It, Room } from "./engine.ts"
import { assertReason, eventually, isRunning, look, over } from "./engine.ts"

export const sessions = (it: Room, engine: Engine): void => {
  it.layer(over(engine, { applicationName: "reserved" }))("reserved connections", reserved)
  it.layer(over(engine))("streams", streams)
  it.layer(over(engine, { max: 2, applicationName: "interrupted" }))("interrupted statements", interruption)
  it.layer(over(engine, { max: 3 }))("notifications", notifications)
  it.layer(over(engine, { max: 1 }))("prepared statements", prepared)
  it.layer(over(engine, { max: 1, preparedStatementCacheSize: 3 }))("a small cache of prepared statements", evicting)
  it.layer(over(engine, { max: 1, prepare: false }))("statements that are never prepared", unprepared)
  it.layer(
    over(engine, {
      max: 1,
      applicationName: "suite",
      startupParameters: { statement_timeout: "17s", search_path: "\"a schema\", public" },
      startupOptions: "-c random_page_cost=2.5"
    })
  )("session settings", settings)
}

const sessionsOf = (applicationName: string) =>
  Effect.map(
    look(
      "SELECT count(*)::int4 AS n FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1",
      [
        applicationName
      ]
    ),
    (rows) => rows[0]?.n as number
  )

const reserved = (it: It): void => {
  it.effect("a reserved connection is one session until its scope closes", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* sql.reserve
        yield* connection.execute("CREATE TEMP TABLE private (n int4)", [], undefined)
        yield* connection.execute("INSERT INTO private VALUES ($1)", [1], undefined)
        assert.deepStrictEqual(yield* connection.execute("SELECT n FROM private", [], undefined), [{ n: 1 }])
        assert.deepStrictEqual(yield* connection.executeUnprepared("SELECT n FROM private", [], undefined), [{ n: 1 }])
        assert.deepStrictEqual(yield* connection.executeValues("SELECT n FROM private", []), [[1]])
        assert.deepStrictEqual(yield* connection.executeValuesUnprepared("SELECT n FROM private", []), [[1]])
        assert.deepStrictEqual(
          yield* Stream.runCollect(connection.executeStream("SELECT n FROM private", [], undefined)),
          [{ n: 1 }]
        )
        const raw = (yield* connection.executeRaw("SELECT n FROM private", [])) as { readonly command: string }
        assert.strictEqual(raw.command, "SELECT")
        const shout = <A extends object>(rows: ReadonlyArray<A>) => rows.map((row) => ({ ...row, loud: true }))
        assert.deepStrictEqual(yield* connection.execute("SELECT n FROM private", [], shout), [{ n: 1, loud: true }])
        yield* connection.execute("DROP TABLE private", [], undefined)
      }))
    }))

  it.effect("nobody else is given a reserved connection", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* sql.reserve
        const [[own]] = (yield* connection.executeValues("SELECT pg_backend_pid()", [])) as [[number]]
        const others = yield* Effect.replicateEffect(
          sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, pg_sleep(0.005)`,
          30,
          { concurrency: "unbounded" }
        )
        assert.isTrue(others.every(([row]) => row!.pid !== own))
        const second = yield* sql.reserve
        const [[other]] = (yield* second.executeValues("SELECT pg_backend_pid()", [])) as [[number]]
        assert.notStrictEqual(other, own)
      }))
    }))

  it.effect("a failed statement leaves the reserved connection usable", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* sql.reserve
        assertReason(
          yield* Effect.flip(connection.execute("SELECT * FROM nowhere", [], undefined)),
          "SqlSyntaxError",
          "42P01"
        )
        assert.deepStrictEqual(yield* connection.executeValues("SELECT 1", []), [[1]])
      }))
    }))

  it.effect("an interrupted statement leaves the reserved connection usable", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* sql.reserve
        const [[pid]] = (yield* connection.executeValues("SELECT pg_backend_pid()", [])) as [[number]]
        const slept = yield* Effect.timeoutOption(connection.executeRaw("SELECT pg_sleep(100)", []), "50 millis")
        assert.isTrue(Option.isNone(slept))
        assert.deepStrictEqual(yield* connection.executeValues("SELECT pg_backend_pid()", []), [[pid]])
      }))
    }))

  it.effect("a reserved connection goes back to the pool", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.forEach(
        Array.from({ length: 40 }),
        () => Effect.scoped(Effect.flatMap(sql.reserve, (connection) => connection.executeValues("SELECT 1", []))),
        { concurrency: "unbounded" }
      )
      assert.isAtMost(yield* sessionsOf("reserved"), 8)
    }))
}

const streams = (it: It): void => {
  it.effect("a stream gives all rows in order, in pieces", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const stream =
        sql<{ n: number }>`SELECT n, repeat('x', 50) AS x FROM generate_series(1, ${50_000}::int4) AS n`.stream
      let pieces = 0
      let last = 0
      yield* Stream.runForEachArray(stream, (rows) =>
        Effect.sync(() => {
          pieces++
          for (const row of rows) {
            assert.strictEqual(row.n, last + 1)
            last = row.n
          }
        }))
      assert.strictEqual(last, 50_000)
      assert.isAbove(pieces, 1)
    }))

  it.effect("a stream does not read ahead without bound", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const first = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const fiber = yield* Effect.forkScoped(Stream.runCount(Stream.tap(
        // Some 100 MB: far more than sockets and buffers hold.
        sql`SELECT repeat('backpressure', 100) AS x FROM generate_series(1, 100000) AS n`.stream,
        () => Effect.andThen(Deferred.succeed(first, undefined), Deferred.await(go))
      )))
      yield* Deferred.await(first)
      // The server waits for somebody to read what it has sent.
      yield* eventually(Effect.map(
        look(`SELECT count(*)::int4 AS n FROM pg_stat_activity
          WHERE datname = current_database() AND wait_event = 'ClientWrite' AND query LIKE '%backpressure%'`),
        (rows) => rows[0]?.n === 1
      ))
      yield* Deferred.succeed(go, undefined)
      assert.strictEqual(yield* Fiber.join(fiber), 100_000)
    }))

  it.effect("statements run while a stream is open", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const doubled = yield* sql<{ n: number }>`SELECT n FROM generate_series(1, 5) AS n`.stream.pipe(
        Stream.mapEffect((row) => sql<{ d: number }>`SELECT ${row.n}::int4 * 2 AS d`),
        Stream.map(([row]) => row!.d),
        Stream.runCollect
      )
      assert.deepStrictEqual(doubled, [2, 4, 6, 8, 10])
    }))

  it.effect("a stream given up early is cancelled on the server, and its session serves again", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      for (let round = 0; round < 20; round++) {
        const some = yield* Stream.runCollect(
          Stream.take(sql<{ n: number }>`SELECT generate_series(1, 10000000) AS n, 'given up' AS x`.stream, 5)
        )
        assert.deepStrictEqual(some.map((row) => row.n), [1, 2, 3, 4, 5])
      }
      assert.isFalse(yield* isRunning("given up"))
      const ones = yield* Effect.replicateEffect(sql`SELECT 1 AS one`, 32, { concurrency: "unbounded" })
      assert.isTrue(ones.every(([row]) => row?.one === 1))
    }))

  it.effect("an interrupted stream is cancelled on the server", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const fiber = yield* Effect.forkScoped(Stream.runDrain(sql`SELECT pg_sleep(100), 'interrupted stream'`.stream))
      yield* eventually(isRunning("interrupted stream"))
      yield* Fiber.interrupt(fiber)
      assert.isFalse(yield* isRunning("interrupted stream"))
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.effect("a stream that fails midway gives the rows before the failure", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const seen: Array<number> = []
      const error = yield* Effect.flip(Stream.runForEach(
        sql<{ n: number }>`SELECT n, repeat('x', 20000), 1 / (10 - n) FROM generate_series(1, 20) AS n`.stream,
        (row) => Effect.sync(() => seen.push(row.n))
      ))
      assertReason(error, "UnknownError", "22012")
      assert.deepStrictEqual(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9])
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.effect("a stream that its consumer fails gives its session back", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const one = Effect.exit(Stream.runForEach(
        sql`SELECT generate_series(1, 10000000) AS n`.stream,
        () => Effect.fail("enough")
      ))
      const exits = yield* Effect.replicateEffect(one, 24, { concurrency: "unbounded" })
      for (const exit of exits) assert.deepStrictEqual(exit, Exit.fail("enough"))
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.effect("more streams than sessions take turns", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const counts = yield* Effect.replicateEffect(
        Stream.runCount(sql`SELECT n FROM generate_series(1, 500) AS n`.stream),
        30,
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(new Set(counts), new Set([500]))
    }))

  it.effect("a write may be streamed", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE poured (n int4)`
      const rows = yield* Stream.runCollect(sql`INSERT INTO poured SELECT generate_series(1, 3) RETURNING n`.stream)
      assert.deepStrictEqual(rows, [{ n: 1 }, { n: 2 }, { n: 3 }])
      assert.deepStrictEqual(yield* sql`SELECT count(*)::int4 AS n FROM poured`, [{ n: 3 }])
    }))
}

const interruption = (it: It): void => {
  it.effect("an interrupted statement is cancelled on the server", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      // On a session of its own: statements that share one are left to finish, for the sake of their neighbours.
      const fiber = yield* Effect.forkScoped(
        Effect.scoped(Effect.flatMap(sql.reserve, (c) => c.executeRaw("SELECT pg_sleep(100), 'to be cancelled'", [])))
      )
      yield* eventually(isRunning("to be cancelled"))
      yield* Fiber.interrupt(fiber)
      assert.isFalse(yield* isRunning("to be cancelled"))
    }))

  it.effect("however many statements are interrupted, the pool keeps serving", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.forEach(
        Array.from({ length: 60 }, (_, n) => n),
        (n) => Effect.timeoutOption(sql`SELECT pg_sleep(0.05)`, 1 + (n % 9)),
        { concurrency: 10 }
      )
      const answers = yield* Effect.forEach([1, 2, 3, 4], (n) => sql`SELECT ${n}::int4 AS n`, {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(answers, [[{ n: 1 }], [{ n: 2 }], [{ n: 3 }], [{ n: 4 }]])
      // A pooler opens the next session before the server has noticed that it has hung up on the last.
      yield* eventually(Effect.map(sessionsOf("interrupted"), (count) => count <= 2))
    }))

  it.effect("an interrupted statement does not disturb its neighbours", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const slow = yield* Effect.forkScoped(sql`SELECT pg_sleep(0.1), 'slow neighbour'`)
      yield* eventually(isRunning("slow neighbour"))
      const quick = yield* Effect.forkScoped(Effect.replicateEffect(sql`SELECT 2 AS two`, 8, {
        concurrency: "unbounded"
      }))
      yield* Fiber.interrupt(slow)
      assert.isTrue((yield* Fiber.join(quick)).every(([row]) => row?.two === 2))
    }))

  it.effect("an error of one statement is no other's", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const exits = yield* Effect.forEach(
        Array.from({ length: 60 }, (_, n) => n),
        (n) => Effect.exit(n % 3 === 0 ? sql`SELECT missing_column` : sql`SELECT ${n}::int4 AS n`),
        { concurrency: "unbounded" }
      )
      exits.forEach((exit, n) => {
        if (n % 3 === 0) {
          assertReason(Option.getOrThrow(Exit.findErrorOption(exit)), "SqlSyntaxError", "42703")
        } else {
          assert.deepStrictEqual(exit, Exit.succeed([{ n }]))
        }
      })
    }))
}

const notifications = (it: It): void => {
  it.effect("a notification arrives with its channel, payload and sender", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* Effect.scoped(Effect.gen(function*() {
        const queue = yield* sql.listen("news")
        yield* sql.notify("news", "hello 世界")
        const notification = yield* Queue.take(queue)
        assert.strictEqual(notification.channel, "news")
        assert.strictEqual(notification.payload, "hello 世界")
        assert.isAbove(notification.processId, 0)
      }))
    }))

  it.effect("statements and transactions run while a listener waits", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* Effect.scoped(Effect.gen(function*() {
        const queue = yield* sql.listen("busy")
        assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
        yield* sql.withTransaction(sql.notify("busy", "from a transaction"))
        assert.strictEqual((yield* Queue.take(queue)).payload, "from a transaction")
      }))
    }))

  it.effect("a notification of a transaction is sent when it is committed, and not when it is rolled back", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* Effect.scoped(Effect.gen(function*() {
        const queue = yield* sql.listen("transactional")
        yield* Effect.exit(sql.withTransaction(
          Effect.andThen(sql`SELECT pg_notify('transactional', 'rolled back')`, Effect.fail("no"))
        ))
        yield* sql.withTransaction(sql`SELECT pg_notify('transactional', 'committed')`)
        assert.strictEqual((yield* Queue.take(queue)).payload, "committed")
        assert.strictEqual(yield* Queue.size(queue), 0)
      }))
    }))

  it.effect("several channels are heard apart, whatever their names", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* Effect.scoped(Effect.gen(function*() {
        const odd = "Odd \"name\"; --"
        const a = yield* sql.listen("channel_a")
        const b = yield* sql.listen(odd)
        yield* sql.notify(odd, "for b")
        yield* sql.notify("channel_a", "for a")
        assert.strictEqual((yield* Queue.take(a)).payload, "for a")
        assert.strictEqual((yield* Queue.take(b)).payload, "for b")
        assert.strictEqual(yield* Queue.size(a), 0)
        assert.strictEqual(yield* Queue.size(b), 0)
      }))
    }))

  it.effect("many notifications arrive in order", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* Effect.scoped(Effect.gen(function*() {
        const queue = yield* sql.listen("many")
        yield* sql`SELECT pg_notify('many', n::text) FROM generate_series(1, 1000) AS n`
        const payloads = yield* Stream.runCollect(Stream.take(Stream.fromQueue(queue), 1000))
        assert.deepStrictEqual(
          payloads.map(({ payload }) => payload),
          Array.from({ length: 1000 }, (_, n) => `${n + 1}`)
        )
      }))
    }))

  it.effect("the session of a listener hears nothing more once the scope has closed", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const scope = yield* Scope.make()
      const queue = yield* Scope.provide(sql.listen("closing"), scope)
      const consumer = yield* Effect.forkScoped(Queue.take(queue))
      yield* Scope.close(scope, Exit.void)
      const exit = yield* Fiber.await(consumer)
      assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
      const listening = yield* Effect.replicateEffect(
        Effect.scoped(Effect.flatMap(sql.reserve, (c) => c.executeValues("SELECT pg_listening_channels()", []))),
        6,
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(listening.flat(), [])
    }))

  it.effect("a listener's queue fails when its session dies", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* Effect.scoped(Effect.gen(function*() {
        const queue = yield* sql.listen("doomed")
        const consumer = yield* Effect.forkScoped(Queue.take(queue))
        yield* terminateListener("doomed")
        const error = yield* Effect.flip(Fiber.join(consumer))
        if (Cause.isDone(error)) return assert.fail("the queue ended without a word")
        assert.strictEqual(error._tag, "SqlError")
        assert.strictEqual((error.reason.cause as { code?: unknown }).code, "57P01")
      }))
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.effect("a listener that is started again hears again", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const registered = yield* Queue.unbounded<void>()
      const head = yield* Stream.unwrap(Effect.gen(function*() {
        const queue = yield* sql.listen("again")
        yield* Queue.offer(registered, undefined)
        return Stream.fromQueue(queue)
      })).pipe(Stream.retry(Schedule.recurs(3)), Stream.runHead, Effect.forkScoped)
      yield* Queue.take(registered)
      yield* terminateListener("again")
      yield* Queue.take(registered)
      yield* sql.notify("again", "after all")
      assert.strictEqual(Option.getOrThrow(yield* Fiber.join(head)).payload, "after all")
    }))

  it.effect("a channel's name has at most 63 bytes", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const message = "PostgreSQL channel names must not exceed 63 UTF-8 bytes"
      const listening = yield* Effect.flip(Effect.scoped(sql.listen("é".repeat(32))))
      assert.deepStrictEqual([listening.message, listening.reason.operation], [message, "listen"])
      const notifying = yield* Effect.flip(sql.notify("é".repeat(32), "payload"))
      assert.deepStrictEqual([notifying.message, notifying.reason.operation], [message, "notify"])
      yield* Effect.scoped(sql.listen("é".repeat(31)))
      yield* sql.notify("é".repeat(31), "payload")
    }))

  it.effect("a payload that is too long is refused by the server", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      assertReason(yield* Effect.flip(sql.notify("news", "x".repeat(8000))), "UnknownError", "22023")
    }))
}

/** Kills the session that listens to a channel. */
const terminateListener = (channel: string) =>
  Effect.map(
    look(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query = $1`,
      [`LISTEN "${channel}"`]
    ),
    (rows) => assert.lengthOf(rows, 1)
  )

/** Texts of the statements that the one session keeps prepared. */
const kept = (pattern: string) =>
  Effect.flatMap(SqlClient, (sql) =>
    Effect.map(
      sql<{ statement: string }>`
        SELECT statement FROM pg_prepared_statements WHERE statement LIKE ${pattern} ORDER BY statement`.unprepared,
      (rows) => rows.map((row) => row.statement)
    ))

const prepared = (it: It): void => {
  it.effect("only statements that are not run unprepared are kept prepared", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const rows = sql`SELECT ${1}::int4 AS told_apart_rows`
      const values = sql`SELECT ${2}::int4 AS told_apart_values`
      assert.deepStrictEqual(yield* rows.unprepared, [{ told_apart_rows: 1 }])
      assert.deepStrictEqual(yield* values.valuesUnprepared, [[2]])
      assert.deepStrictEqual(yield* kept("SELECT $1::int4 AS told_apart%"), [])
      yield* rows
      yield* values.values
      yield* rows
      assert.deepStrictEqual(yield* kept("SELECT $1::int4 AS told_apart%"), [
        "SELECT $1::int4 AS told_apart_rows",
        "SELECT $1::int4 AS told_apart_values"
      ])
    }))

  it.effect("one text is prepared once per parameter types", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(yield* sql`SELECT ${1} AS by_type`, [{ by_type: 1 }])
      assert.deepStrictEqual(yield* sql`SELECT ${2} AS by_type`, [{ by_type: 2 }])
      assert.deepStrictEqual(yield* sql`SELECT ${3n} AS by_type`, [{ by_type: 3n }])
      assert.lengthOf(yield* kept("SELECT $1 AS by_type"), 2)
    }))

  it.effect("a statement follows its table when the columns change", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE shifting (a int4)`
      yield* sql`INSERT INTO shifting VALUES (1)`
      const all = sql`SELECT * FROM shifting`
      assert.deepStrictEqual(yield* all, [{ a: 1 }])
      for (let round = 0; round < 3; round++) {
        yield* sql`ALTER TABLE shifting ADD COLUMN ${sql(`b${round}`)} text DEFAULT 'added'`
        const [row] = yield* all
        assert.strictEqual(row?.[`b${round}`], "added")
      }
      assert.deepStrictEqual(yield* all.values, [[1, "added", "added", "added"]])
      assert.lengthOf(yield* kept("SELECT * FROM shifting"), 1)
    }))

  it.effect("a statement is prepared again when the server has forgotten it", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(yield* sql`SELECT ${7}::int4 AS n`, [{ n: 7 }])
      yield* sql`DEALLOCATE ALL`.unprepared
      assert.deepStrictEqual(yield* sql`SELECT ${8}::int4 AS n`, [{ n: 8 }])
    }))

  it.effect("a statement first prepared in a transaction that is rolled back works afterwards", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE rolled_back (n int4)`
      const add = (n: number) => sql`INSERT INTO rolled_back VALUES (${n}::int4)`
      yield* Effect.exit(sql.withTransaction(Effect.andThen(add(1), Effect.fail("no"))))
      yield* add(2)
      yield* add(3)
      assert.deepStrictEqual(yield* sql`SELECT n FROM rolled_back ORDER BY n`, [{ n: 2 }, { n: 3 }])
    }))

  it.effect("a statement whose first run failed is run anew", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const find = sql`SELECT ${"to_be_created"}::regclass::text AS name`
      assertReason(yield* Effect.flip(find), "SqlSyntaxError", "42P01")
      yield* sql`CREATE TABLE to_be_created (n int4)`
      assert.deepStrictEqual(yield* find, [{ name: "to_be_created" }])
    }))

  it.effect("transactions prepare their savepoints and COMMIT", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql.withTransaction(sql.withTransaction(sql`SELECT 1`))
      assert.includeMembers(yield* kept("%"), ["COMMIT", "SAVEPOINT effect_sql_1"])
    }))
}

const evicting = (it: It): void => {
  it.effect("statements beyond the cache are closed on the server, and work when they come again", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      for (let round = 0; round < 2; round++) {
        for (let index = 0; index < 8; index++) {
          const rows = yield* sql`SELECT ${sql.literal(String(index))}::int4 AS n, ${"v"}::text AS evicted`
          assert.deepStrictEqual(rows, [{ n: index, evicted: "v" }])
        }
      }
      assert.isAtMost((yield* kept("%")).length, 3)
    }))

  it.effect("statements of many fibers do not overfill the cache", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const answers = yield* Effect.forEach(
        Array.from({ length: 20 }, (_, n) => n),
        (n) => sql`SELECT ${sql.literal(String(n))}::int4 AS crowd`,
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(answers, Array.from({ length: 20 }, (_, crowd) => [{ crowd }]))
      // Names given up by a pipeline are closed along with the next statement.
      yield* sql`SELECT 1 AS one`
      assert.isAtMost((yield* kept("%")).length, 3)
    }))
}

const unprepared = (it: It): void => {
  it.effect("nothing is kept prepared", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      for (let n = 0; n < 3; n++) assert.deepStrictEqual(yield* sql`SELECT ${n}::int4 AS n`, [{ n }])
      yield* sql.withTransaction(sql`SELECT 1`)
      assert.deepStrictEqual(yield* kept("%"), [])
    }))
}

const settings = (it: It): void => {
  it.effect("settings are the session's defaults, which RESET brings back", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const read = sql`SELECT current_setting('statement_timeout') AS timeout, current_setting('search_path') AS path,
        current_setting('random_page_cost') AS cost, current_setting('application_name') AS name`
      const expected = [{ timeout: "17s", path: "\"a schema\", public", cost: "2.5", name: "suite" }]
      assert.deepStrictEqual(yield* read, expected)
      yield* sql`SET statement_timeout = '5s'`
      yield* sql`SET random_page_cost = 3`
      assert.strictEqual((yield* read)[0]?.timeout, "5s")
      yield* sql`RESET ALL`
      assert.deepStrictEqual(yield* read, expected)
    }))

  it.effect("the encoding is UTF-8", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(
        yield* sql`SELECT current_setting('client_encoding') AS encoding, ${"héllo 世界"} AS text`,
        [
          { encoding: "UTF8", text: "héllo 世界" }
        ]
      )
    }))

  it.effect("a session that was killed is replaced, with the same settings", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const [before] = yield* sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
      yield* look("SELECT pg_terminate_backend($1, 5000)", [before!.pid])
      // The news of the death may arrive after the next statement has been sent.
      const ask = sql<{ pid: number; timeout: string }>`
        SELECT pg_backend_pid() AS pid, current_setting('statement_timeout') AS timeout`
      const [after] = yield* Effect.retry(ask, { schedule: Schedule.spaced(20), times: 100 })
      assert.notStrictEqual(after!.pid, before!.pid)
      assert.strictEqual(after!.timeout, "17s")
    }))
}
