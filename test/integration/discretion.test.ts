import * as PgTypes from "@effect/sql-pg/PgTypes"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { SqlClient } from "effect/sql/SqlClient"
import { isSqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { leaksOf, makeOutputs } from "./outputs.ts"
import { makeWitness } from "./witness.ts"

/** What must not be read anywhere. Letters and a digit, so that it fits into most types' texts. */
const canary = "Canary7Zx9Qw3Kv"

/** The same as a number, for what is too large. */
const number = "987654321987654"

const schema = [
  `CREATE TYPE mood AS ENUM ('calm')`,
  `CREATE DOMAIN handle AS text CONSTRAINT handle_is_short CHECK (length(value) < 5)`,
  `CREATE TABLE parents (name text PRIMARY KEY)`,
  `CREATE TABLE people (
    id int GENERATED ALWAYS AS IDENTITY,
    email text CONSTRAINT people_email_key UNIQUE,
    age int CONSTRAINT people_age_check CHECK (age > 0),
    note text NOT NULL DEFAULT '',
    code varchar(5),
    during int4range,
    parent text CONSTRAINT people_parent_fkey REFERENCES parents,
    CONSTRAINT people_during_excl EXCLUDE USING gist (during WITH &&)
  )`,
  `CREATE VIEW adults AS SELECT * FROM people WHERE age >= 18 WITH CHECK OPTION`,
  `CREATE FUNCTION complain(code text, said text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '%', said USING ERRCODE = code, DETAIL = 'the detail ' || said, HINT = 'the hint ' || said; END $$`,
  `CREATE FUNCTION compose(said text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN EXECUTE format('SELECT %L::int', said); END $$`,
  `CREATE FUNCTION misspell(said text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN EXECUTE format('SELECT %L FORM people', said); END $$`,
  `INSERT INTO people (email, age, during) VALUES ('${canary}@example.org', 20, '[1,5)')`
]

type Sql = SqlClient

interface Case {
  readonly what: string
  readonly work: (sql: Sql) => Effect.Effect<unknown, unknown, Pg.Services>
  /** What the message of the cause must be. */
  readonly said?: string | RegExp
  /** Whether the server quotes nothing, so that there is nothing to find in full texts either. */
  readonly isQuiet?: true
}

const email = `${canary}@example.org`

const insert = (sql: Sql) => sql`INSERT INTO people ${sql.insert({ email, age: 30 })}`

// dprint-ignore
const replies: ReadonlyArray<Case> = [
  { what: "a unique violation", work: insert, said: `23505 unique_violation, constraint "people_email_key", table "people" (text withheld)` },
  { what: "a unique violation of several rows", work: (sql) => sql`INSERT INTO people ${sql.insert([{ email: "one" }, { email }])}` },
  { what: "a unique violation in a transaction", work: (sql) => sql.withTransaction(insert(sql)) },
  { what: "a unique violation in a transaction of the executor", work: (sql) => Pg.Executor.transaction(insert(sql)) },
  { what: "a unique violation of an exclusive connection", work: (sql) => Effect.scoped(Effect.flatMap(sql.reserve, (connection) => connection.executeRaw("INSERT INTO people (email) VALUES ($1)", [email]))) },
  { what: "a unique violation of the executor's connection", work: () => Pg.Executor.use((connection) => connection.query("INSERT INTO people (email) VALUES ($1)", [email])) },
  { what: "a unique violation of a pinned connection", work: () => Pg.Executor.use((connection) => Effect.scoped(Effect.flatMap(connection.pin, (pinned) => pinned.query("INSERT INTO people (email) VALUES ($1)", [email])))) },
  { what: "a unique violation of the pool's session", work: () => Effect.flatMap(Pg.Pool.Pool, (pool) => pool.use(({ connection }) => connection.query("INSERT INTO people (email) VALUES ($1)", [email]))) },
  { what: "a unique violation of the pool's lease", work: () => Effect.scoped(Effect.flatMap(Effect.flatMap(Pg.Pool.Pool, (pool) => pool.reserve()), ({ connection }) => connection.query("INSERT INTO people (email) VALUES ($1)", [email]))) },
  { what: "a unique violation in a stream", work: (sql) => Stream.runDrain(sql`INSERT INTO people ${sql.insert({ email }).returning("id")}`.stream) },
  { what: "a stream that fails midway", work: (sql) => Stream.runDrain(sql`SELECT (CASE n WHEN 500 THEN ${canary} ELSE '1' END)::int FROM generate_series(1, 600) n`.stream), said: /^22P02 invalid_text_representation \(text withheld\)$/ },
  { what: "a check violation", work: (sql) => sql`INSERT INTO people ${sql.insert({ email: "two", age: -1, note: canary })}`, said: `23514 check_violation, constraint "people_age_check", table "people" (text withheld)` },
  { what: "a null", work: (sql) => sql`INSERT INTO people (email, note) VALUES (${canary}, NULL)`, said: `23502 not_null_violation, column "note", table "people" (text withheld)` },
  { what: "an exclusion violation", work: (sql) => sql`INSERT INTO people (during) VALUES (${"[2,987654)"}::int4range)`, said: `23P01 exclusion_violation, constraint "people_during_excl", table "people" (text withheld)`, isQuiet: true },
  { what: "a foreign key", work: (sql) => sql`INSERT INTO people (parent) VALUES (${canary})`, said: `23503 foreign_key_violation, constraint "people_parent_fkey", table "people" (text withheld)` },
  { what: "a view's check option", work: (sql) => sql`INSERT INTO adults (email, age, note) VALUES ('three', 3, ${canary})`, said: /^44000 with_check_option_violation: new row violates check option for view "adults"/ },
  { what: "a domain", work: (sql) => sql`SELECT ${canary}::text::handle`, said: `23514 check_violation, constraint "handle_is_short", type "handle" (text withheld)`, isQuiet: true },
  { what: "a text that is too long", work: (sql) => sql`INSERT INTO people (code) VALUES (${canary})`, said: /^22001 string_data_right_truncation/, isQuiet: true },
  { what: "a text that is no number", work: (sql) => sql`SELECT ${canary}::int4` },
  { what: "a number that is too large", work: (sql) => sql`SELECT ${number}::text::int4` },
  { what: "a text that is no time", work: (sql) => sql`SELECT ${canary}::text::timestamptz` },
  { what: "a text that is no uuid", work: (sql) => sql`SELECT ${canary}::text::uuid` },
  { what: "a text that is no JSON", work: (sql) => sql`SELECT ${`{"a": ${canary}}`}::text::jsonb` },
  { what: "a text that is no label", work: (sql) => sql`SELECT ${canary}::text::mood` },
  { what: "a unit that nobody knows", work: (sql) => sql`SELECT date_trunc(${canary}, now())` },
  { what: "a pattern that is none", work: (sql) => sql`SELECT 'x' ~ ${`(${canary}`}`, isQuiet: true },
  { what: "what a function raises", work: (sql) => sql`SELECT complain('P0001', ${canary})`, said: "P0001 raise_exception (text withheld)" },
  { what: "what a function raises in the name of a code that is shown otherwise", work: (sql) => sql`SELECT complain('42P01', ${canary})`, said: "42P01 undefined_table (text withheld)" },
  { what: "what a function raises with a code of its own", work: (sql) => sql`SELECT complain('Z0001', ${canary})` },
  { what: "what is left when every attempt has failed", work: (sql) => Pg.Executor.run(sql`SELECT complain('40001', ${canary})`, { deadline: "3 seconds" }) },
  { what: "what is left when every transaction has failed", work: (sql) => Pg.Executor.transaction(sql`SELECT complain('40P01', ${canary})`, { deadline: "3 seconds" }) },
  { what: "an unknown outcome", work: (sql) => sql`SELECT complain('40003', ${canary})` },
  { what: "a statement that a function has made", work: (sql) => sql`SELECT compose(${canary})` },
  { what: "a statement that a function has misspelt", work: (sql) => sql`SELECT misspell(${canary})` },
  { what: "a parameter that the driver cannot encode", work: (sql) => sql`SELECT ${PgTypes.uuid(canary) as unknown as string}` },
  { what: "a parameter of no type", work: (sql) => sql`SELECT ${new URL(`https://example.org/${canary}`) as unknown as string}` }
]

const ran = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.timeout(effect, "50 seconds")

describe("a value of a row or of a parameter", () => {
  it.live(
    "is printed, logged, traced or exported by no error, whatever the server says of it",
    () =>
      ran(Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        for (const statement of schema) yield* witness.query(statement)
        const outputs = yield* makeOutputs
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          for (const { said, what, work } of replies) {
            const exit = yield* outputs.observe(what, work(sql))
            if (Exit.isSuccess(exit)) return assert.fail(`${what} was no error`)
            const error = Cause.squash(exit.cause)
            if (said !== undefined) {
              const cause = isSqlError(error) ? error.reason.cause : undefined
              const message = cause instanceof Error ? cause.message : String(error)
              if (typeof said === "string") assert.strictEqual(message, said)
              else assert.match(message, said)
            }
          }
        }).pipe(Effect.provide(Pg.layer({ url, max: 2, retry: { attempts: 2 } })))
        assert.isAbove(outputs.all().length, 1_000)
        assert.deepStrictEqual([...leaksOf(outputs.all(), canary), ...leaksOf(outputs.all(), number)], [])
      })),
    60_000
  )

  it.live(
    "is shown by all of them with errorText \"full\": there is something to hide, and it would be found",
    () =>
      ran(Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        for (const statement of schema) yield* witness.query(statement)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          for (const { isQuiet, what, work } of replies) {
            const outputs = yield* makeOutputs
            yield* outputs.observe(what, work(sql))
            const leaks = [...leaksOf(outputs.all(), canary), ...leaksOf(outputs.all(), number)]
            if (isQuiet !== true) assert.isNotEmpty(leaks, what)
          }
        }).pipe(Effect.provide(Pg.layer({ url, max: 2, retry: { attempts: 2 }, errorText: "full" })))
      })),
    60_000
  )

  it.live("can be read by the program that asks for it", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      for (const statement of schema) yield* witness.query(statement)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const error = yield* Effect.flip(insert(sql))
        assert.strictEqual(error.reason._tag, "UniqueViolation")
        const cause = error.reason.cause as Record<string, unknown>
        assert.deepStrictEqual(
          [cause["code"], cause["constraint"], cause["table"], cause["detail"]],
          ["23505", "people_email_key", "people", `Key (email)=(${email}) already exists.`]
        )
        const reply = Pg.Errors.serverReply(error)
        assert.strictEqual(reply?.message, "duplicate key value violates unique constraint \"people_email_key\"")
        assert.strictEqual(reply?.detail, `Key (email)=(${email}) already exists.`)
        const exhausted = yield* Effect.flip(Pg.Executor.run(sql`SELECT complain('40001', ${canary})`))
        assert.strictEqual(exhausted._tag, "RetriesExhausted")
        assert.strictEqual(Pg.Errors.serverReply(exhausted)?.message, canary)
        assert.strictEqual(Pg.Errors.serverReply(exhausted)?.hint, `the hint ${canary}`)
        assert.isUndefined(Pg.Errors.serverReply(new Error("of somebody else")))
      }).pipe(Effect.provide(Pg.layer({ url, max: 1, retry: { attempts: 2 } })))
    }), 30_000)
})
