import { assert, describe } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { databaseUrl, freshDatabase } from "../../integration/database.ts"
import type { Engine, It, Room } from "./engine.ts"
import { assertReason, over, reasonOf } from "./engine.ts"

export const errors = (it: Room, engine: Engine): void => {
  it.layer(over(engine))("errors", replies)
  describe("errors of the connection", () => {
    refusals(it, engine)
  })
}

const replies = (it: It): void => {
  it.effect("a violated unique constraint is told by name", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE unique_table (n int4 CONSTRAINT one_of_each UNIQUE)`
      yield* sql`INSERT INTO unique_table VALUES (1)`
      const error = yield* Effect.flip(sql`INSERT INTO unique_table VALUES (1)`)
      assertReason(error, "UniqueViolation", "23505")
      assert.strictEqual(error.reason._tag === "UniqueViolation" && error.reason.constraint, "one_of_each")
      assert.isFalse(error.isRetryable)
    }))

  it.effect("other violated constraints are constraint errors", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE parents (id int4 PRIMARY KEY)`
      yield* sql`CREATE TABLE children (id int4 NOT NULL, parent int4 REFERENCES parents, age int4 CHECK (age > 0))`
      const violations = [
        [{ id: null, parent: null, age: 1 }, "23502"],
        [{ id: 1, parent: 7, age: 1 }, "23503"],
        [{ id: 1, parent: null, age: 0 }, "23514"]
      ] as const
      for (const [record, sqlState] of violations) {
        assertReason(yield* Effect.flip(sql`INSERT INTO children ${sql.insert(record)}`), "ConstraintError", sqlState)
      }
    }))

  it.effect("what is no SQL, and what names nothing, are syntax errors", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assertReason(yield* Effect.flip(sql`SELEKT 1`), "SqlSyntaxError", "42601")
      assertReason(yield* Effect.flip(sql`SELECT * FROM nowhere`), "SqlSyntaxError", "42P01")
      assertReason(yield* Effect.flip(sql`SELECT nothing`), "SqlSyntaxError", "42703")
      assertReason(yield* Effect.flip(sql`SELECT nothing()`), "SqlSyntaxError", "42883")
      assert.deepStrictEqual(yield* sql`SELECT 42 AS answer`, [{ answer: 42 }])
    }))

  it.effect("two statements in one are refused", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assertReason(yield* Effect.flip(sql`CREATE TABLE twice (n int4); SELECT 1`), "SqlSyntaxError", "42601")
      assertReason(yield* Effect.flip(sql`SELECT 1; SELECT 2`.unprepared), "SqlSyntaxError", "42601")
    }))

  it.effect("what a role may not do is an authorization error", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const error: SqlError = yield* Effect.flip(Effect.asVoid(sql.withTransaction(Effect.gen(function*() {
        yield* sql`SET LOCAL ROLE pg_monitor`
        yield* sql`CREATE TABLE forbidden (n int4)`
      }))))
      assertReason(error, "AuthorizationError", "42501")
    }))

  it.effect("other refusals are unknown errors with the server's words as their cause", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const error = yield* Effect.flip(sql`SELECT 1 / 0`)
      assertReason(error, "UnknownError", "22012")
      assert.strictEqual((error.reason.cause as Error).message, "division by zero")
      assert.strictEqual(error.reason.operation, "query")
      assert.isFalse(error.isRetryable)
      assert.strictEqual(error._tag, "SqlError")
      assertReason(yield* Effect.flip(sql`SELECT ${"many"}::int4`), "UnknownError", "22P02")
    }))

  it.effect("every form of a statement fails with the same reason", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const bad = sql`SELECT 1 / 0 AS n`
      const forms = [bad, bad.raw, bad.values, bad.unprepared, bad.valuesUnprepared, bad.withoutTransform]
      for (const form of forms) assertReason(yield* Effect.flip(Effect.asVoid(form)), "UnknownError", "22012")
      assertReason(yield* Effect.flip(Stream.runDrain(bad.stream)), "UnknownError", "22012")
    }))

  it.effect("an exception of the database's own is told with its code, detail and hint", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE FUNCTION complain() RETURNS void LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no thanks' USING ERRCODE = 'Z0001', DETAIL = 'the detail', HINT = 'the hint'; END $$`
      const error = yield* Effect.flip(sql`SELECT complain()`)
      assertReason(error, "UnknownError", "Z0001")
      const cause = error.reason.cause as Error & { readonly detail?: string; readonly hint?: string }
      assert.deepStrictEqual([cause.message, cause.detail, cause.hint], ["no thanks", "the detail", "the hint"])
    }))

  it.effect("a lock that is not to be waited for is a lock timeout", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE locked (n int4)`
      yield* sql`INSERT INTO locked VALUES (1)`
      const held = yield* Deferred.make<void>()
      const release = yield* Deferred.make<void>()
      const holder = yield* Effect.forkScoped(sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT * FROM locked FOR UPDATE`
        yield* Deferred.succeed(held, undefined)
        yield* Deferred.await(release)
      })))
      yield* Deferred.await(held)
      const inTransaction = yield* Effect.flip(sql.withTransaction(sql`SELECT * FROM locked FOR UPDATE NOWAIT`))
      assertReason(inTransaction, "LockTimeoutError", "55P03")
      assert.isTrue(inTransaction.isRetryable)
      assertReason(yield* Effect.flip(sql`SELECT * FROM locked FOR UPDATE NOWAIT`), "LockTimeoutError", "55P03")
      const waited: SqlError = yield* Effect.flip(Effect.asVoid(sql.withTransaction(Effect.gen(function*() {
        yield* sql`SET LOCAL lock_timeout = '30ms'`
        yield* sql`SELECT * FROM locked FOR UPDATE`
      }))))
      assertReason(waited, "LockTimeoutError", "55P03")
      yield* Deferred.succeed(release, undefined)
      yield* Fiber.join(holder)
      assert.deepStrictEqual(yield* sql`SELECT * FROM locked FOR UPDATE NOWAIT`, [{ n: 1 }])
    }))

  it.effect("a statement that outlasts its timeout is a statement timeout", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const error: SqlError = yield* Effect.flip(Effect.asVoid(sql.withTransaction(Effect.gen(function*() {
        yield* sql`SET LOCAL statement_timeout = '30ms'`
        yield* sql`SELECT pg_sleep(100)`
      }))))
      assertReason(error, "StatementTimeoutError", "57014")
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.effect("errors leave the pool as it was", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const exits = yield* Effect.replicateEffect(Effect.exit(sql`SELECT 1 / 0`), 50, { concurrency: "unbounded" })
      for (const exit of exits) assertReason(Option.getOrThrow(Exit.findErrorOption(exit)), "UnknownError", "22012")
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))
}

const refusals = (it: Room, engine: Engine): void => {
  /** The layer is built, or the first statement run: whichever tells first. */
  const reached = (url: Redacted.Redacted) =>
    Effect.flatMap(SqlClient, (sql) => sql`SELECT 1 AS one`).pipe(
      Effect.provide(engine({ url, max: 2 })),
      Effect.mapError((error) => error as SqlError)
    )

  const changed = (change: (url: URL) => void): Redacted.Redacted => {
    const url = new URL(Redacted.value(databaseUrl))
    change(url)
    return Redacted.make(url.href)
  }

  it.effect("a wrong password is an authentication error", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(reached(changed((url) => {
        url.password = "wrong"
      })))
      assertReason(error, "AuthenticationError", "28P01")
      assert.isFalse(error.isRetryable)
    }))

  it.effect("an unknown role is an authentication error", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(reached(changed((url) => {
        url.username = "nobody_at_all"
      })))
      assert.strictEqual(error.reason._tag, "AuthenticationError")
    }))

  it.effect("an unknown database is told with the server's code", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(reached(changed((url) => {
        url.pathname = "/no_such_database"
      })))
      assertReason(error, "UnknownError", "3D000")
    }))

  it.effect("TLS that the server refuses is told as such", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`).pipe(
          Effect.provide(engine({ url: databaseUrl, ssl: true })),
          Effect.mapError((error) => error as SqlError)
        )
      )
      assert.include(error.message, "refused TLS")
    }))

  it.effect("after its layer is gone, no session is left on the server", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      yield* Effect.flatMap(SqlClient, (sql) =>
        Effect.replicateEffect(sql`SELECT pg_sleep(0.01)`, 20, { concurrency: "unbounded" })).pipe(
          Effect.provide(engine({ url, max: 4, applicationName: "gone" }))
        )
      const [row] = yield* Effect.flatMap(SqlClient, (sql) =>
        sql`SELECT count(*)::int4 AS n FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'gone'`)
        .pipe(Effect.provide(engine({ url, max: 1 })))
      assert.strictEqual(row?.n, 0)
      assert.deepStrictEqual(
        reasonOf(
          yield* Effect.flip(reached(changed((url) => {
            url.pathname = "/no_such_database"
          })))
        ),
        ["UnknownError", "3D000"]
      )
    }))
}
