import { PgClient } from "@effect/sql-pg/PgClient"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Metric from "effect/Metric"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import { isSqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as CloudWatch from "../../src/CloudWatch.ts"
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
  `CREATE FUNCTION blame(said text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '23505', CONSTRAINT = said, COLUMN = said, TABLE = 'people', SCHEMA = said; END $$`,
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
  { what: "a unique violation", work: insert, said: `duplicate key value violates unique constraint "people_email_key"` },
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
  { what: "a check violation", work: (sql) => sql`INSERT INTO people ${sql.insert({ email: "two", age: -1, note: canary })}`, said: `new row for relation "people" violates check constraint "people_age_check"` },
  { what: "a null", work: (sql) => sql`INSERT INTO people (email, note) VALUES (${canary}, NULL)`, said: `null value in column "note" of relation "people" violates not-null constraint` },
  { what: "an exclusion violation", work: (sql) => sql`INSERT INTO people (during) VALUES (${"[2,987654)"}::int4range)`, said: `conflicting key value violates exclusion constraint "people_during_excl"`, isQuiet: true },
  { what: "a foreign key", work: (sql) => sql`INSERT INTO people (parent) VALUES (${canary})`, said: `insert or update on table "people" violates foreign key constraint "people_parent_fkey"` },
  { what: "a view's check option", work: (sql) => sql`INSERT INTO adults (email, age, note) VALUES ('three', 3, ${canary})`, said: `new row violates check option for view "adults"` },
  { what: "a domain", work: (sql) => sql`SELECT ${canary}::text::handle`, said: `value for domain handle violates check constraint "handle_is_short"`, isQuiet: true },
  { what: "a text that is too long", work: (sql) => sql`INSERT INTO people (code) VALUES (${canary})`, said: "value too long for type character varying(5)", isQuiet: true },
  { what: "a text that is no number", work: (sql) => sql`SELECT ${canary}::int4` },
  { what: "a number that is too large", work: (sql) => sql`SELECT ${number}::text::int4` },
  { what: "a text that is no time", work: (sql) => sql`SELECT ${canary}::text::timestamptz` },
  { what: "a text that is no uuid", work: (sql) => sql`SELECT ${canary}::text::uuid` },
  { what: "a text that is no JSON", work: (sql) => sql`SELECT ${`{"a": ${canary}}`}::text::jsonb` },
  { what: "a text that is no label", work: (sql) => sql`SELECT ${canary}::text::mood` },
  { what: "a unit that nobody knows", work: (sql) => sql`SELECT date_trunc(${canary}, now())` },
  { what: "a pattern that is none", work: (sql) => sql`SELECT 'x' ~ ${`(${canary}`}`, said: "invalid regular expression: parentheses () not balanced", isQuiet: true },
  { what: "a division by zero", work: (sql) => sql`SELECT 1 / 0`, said: "division by zero", isQuiet: true },
  { what: "a name that is none", work: (sql) => sql`SELECT nothing FROM people`, said: `column "nothing" does not exist`, isQuiet: true },
  { what: "a literal in the wrong place", work: () => Pg.Executor.use((connection) => connection.query(`SELECT 1 '${canary}'`)), said: "syntax error at or near ..." },
  { what: "a literal without an end", work: () => Pg.Executor.use((connection) => connection.query(`SELECT '${canary}`)), said: "unterminated quoted string at or near ..." },
  { what: "a word in the wrong place", work: (sql) => sql`SELEKT 1`, said: `syntax error at or near "SELEKT"`, isQuiet: true },
  { what: "what a function raises", work: (sql) => sql`SELECT complain('P0001', ${canary})`, said: "P0001 raise_exception (text withheld)" },
  { what: "what a function raises in the name of a code that is shown otherwise", work: (sql) => sql`SELECT complain('42P01', ${canary})`, said: "42P01 undefined_table (text withheld)" },
  { what: "what a function raises in the name of a constraint", work: (sql) => sql`SELECT complain('23505', ${canary})`, said: "23505 unique_violation (text withheld)" },
  { what: "what a function calls a constraint", work: (sql) => sql`SELECT blame(${email})`, said: `23505 unique_violation, table "people" (text withheld)` },
  { what: "what a function raises with a code of its own", work: (sql) => sql`SELECT complain('Z0001', ${canary})` },
  { what: "what is left when every attempt has failed", work: (sql) => Pg.Executor.run(sql`SELECT complain('40001', ${canary})`, { deadline: "3 seconds" }) },
  { what: "what is left when every transaction has failed", work: (sql) => Pg.Executor.transaction(sql`SELECT complain('40P01', ${canary})`, { deadline: "3 seconds" }) },
  { what: "an unknown outcome", work: (sql) => sql`SELECT complain('40003', ${canary})` },
  { what: "a statement that a function has made", work: (sql) => sql`SELECT compose(${canary})` },
  { what: "a statement that a function has misspelt", work: (sql) => sql`SELECT misspell(${canary})`, said: `syntax error at or near "people"` },
  { what: "a parameter that the driver cannot encode", work: (sql) => sql`SELECT ${PgTypes.uuid(canary) as unknown as string}`, said: "Expected a UUID" },
  { what: "a parameter of no type", work: (sql) => sql`SELECT ${new URL(`https://example.org/${canary}`) as unknown as string}`, said: "Cannot infer a PostgreSQL type" }
]

const preparedDatabase = Effect.gen(function*() {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  for (const statement of schema) yield* witness.query(statement)
  return url
})

const ran = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.timeout(effect, "50 seconds")

describe("a value of a row or of a parameter", () => {
  it.live(
    "is printed, logged, traced or exported by no error, whatever the server says of it",
    () =>
      ran(Effect.gen(function*() {
        const url = yield* preparedDatabase
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
        const url = yield* preparedDatabase
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

  for (const errorText of ["discreet", "full"] as const) {
    it.live(
      `leaves the SQLSTATE, the constraint and the table to be found in what is printed, errorText "${errorText}"`,
      () =>
        Effect.gen(function*() {
          const url = yield* freshDatabase
          const witness = yield* makeWitness(url)
          for (const statement of schema) yield* witness.query(statement)
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const head =
              "PgConnection: Query failed (23505 unique_violation, constraint \"people_email_key\", table \"people\")"
            for (const work of [insert(sql), sql.withTransaction(insert(sql)), Pg.Executor.transaction(insert(sql))]) {
              const error = yield* Effect.flip(work)
              if (!isSqlError(error)) return assert.fail(String(error))
              assert.strictEqual(error.message, head)
              for (const printed of [String(error), error.stack ?? "", Cause.pretty(Cause.fail(error))]) {
                assert.strictEqual(printed.split("\n")[0], `effect/sql/SqlError: ${head}`)
              }
              // What programs go by is as the driver has it.
              assert.strictEqual(error.reason.message, "PgConnection: Query failed")
              assert.include((error.reason.cause as Error).message, "duplicate key value")
            }
            // What a function calls a constraint may be anything.
            const blamed = yield* Effect.flip(sql`SELECT blame(${email})`)
            assert.strictEqual(blamed.message, `PgConnection: Query failed (23505 unique_violation, table "people")`)
          }).pipe(Effect.provide(Pg.layer({ url, max: 1, errorText })))
        }),
      30_000
    )
  }

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

/** What a password may be made of. In a URL it is encoded. */
const password = "hunter2/S3cr%t:w0rd@x"
const secret = Redacted.make(password)

/** What is left of it where a text is cut at one of its signs. */
const pieces = ["hunter2", "w0rd@x"]

/** What a program's own code may throw: the whole of what it knows. */
class VaultError extends Error {
  override readonly name = "VaultError"
  readonly config = { password, url: `postgres://app:${encodeURIComponent(password)}@db/app` }
  constructor() {
    super(`no lease for ${password}`)
  }
}

const failing = Effect.suspend(() => Effect.fail(new VaultError()))
const dying = Effect.suspend(() => Effect.die(new VaultError()))

/** An address with the secret in it. */
const withSecret = (url: Redacted.Redacted, change: (url: URL) => void = () => {}): Redacted.Redacted => {
  const own = new URL(Redacted.value(url))
  own.password = encodeURIComponent(password)
  change(own)
  return Redacted.make(own.href)
}

const encoded = encodeURIComponent(password)

// dprint-ignore
const impossible: ReadonlyArray<readonly [what: string, options: Pg.Options]> = [
  ["a URL that is none", { url: Redacted.make(`postgres://app:${encoded}@db:port/app`) }],
  ["a URL whose password is not encoded", { url: Redacted.make(`postgres://app:${password}@db/app`) }],
  ["a URL of another database", { url: Redacted.make(`mysql://app:${encoded}@db/app`) }],
  ["a URL without a scheme", { url: Redacted.make(`app:${encoded}@db/app`) }],
  ["a URL with a bad mode", { url: Redacted.make(`postgres://app:${encoded}@db/app?sslmode=${encoded}`) }],
  ["a URL with a bad time", { url: Redacted.make(`postgres://app:${encoded}@db/app?connect_timeout=${encoded}`) }],
  ["a URL with a bad kind of server", { url: Redacted.make(`postgres://app:${encoded}@db/app?target_session_attrs=${encoded}`) }],
  ["a URL with a bad port", { url: Redacted.make(`postgres://app:${encoded}@db:99999/app`) }],
  ["a URL with too many ports", { url: Redacted.make(`postgres://app:${encoded}@a,b/app?port=1,2,3`) }],
  ["a URL in the clear", { url: `postgres://app:${encoded}@db/app` as never }],
  ["a direct URL that is none", { directUrl: Redacted.make(`postgres://app:${encoded}@db:port/app`) }],
  ["a direct URL in the clear", { directUrl: `postgres://app:${encoded}@db/app` as never }],
  ["a password in the clear", { password: password as never }],
  ["a password of a wrong type", { password: { value: password } as never }],
  ["a bad option beside the password", { password: secret, max: 0 }],
  ["bad TLS options", { ssl: password as never }],
  ["a URL as the host", { host: `postgres://app:${encoded}@db/app` }],
  ["a user in the host", { host: `app:${encoded}@db` }],
  ["a URL as one of the hosts", { hosts: [{ host: `postgres://app:${encoded}@db/app` }] }],
  ["a URL in place of one of the hosts", { hosts: [`postgres://app:${encoded}@db/app` as never] }],
  ["a URL as the database", { database: `postgres://app:${encoded}@db/app` }]
]

// dprint-ignore
const typos: ReadonlyArray<readonly [what: string, variables: Record<string, string>]> = [
  ["a DATABASE_URL that is none", { DATABASE_URL: `postgres://app:${encoded}@db:port/app` }],
  ["a DATABASE_URL whose password is not encoded", { DATABASE_URL: `postgres://app:${password}@db/app` }],
  ["a DATABASE_URL of another database", { DATABASE_URL: `mysql://app:${encoded}@db/app` }],
  ["a DATABASE_URL in quotes", { DATABASE_URL: `"postgres://app:${encoded}@db/app"` }],
  ["a DATABASE_URL with its name in it", { DATABASE_URL: `DATABASE_URL=postgres://app:${encoded}@db/app` }],
  ["a URL in a wrong variable", { DB_POOL_MAX: `postgres://app:${encoded}@db/app` }],
  ["a URL in PGHOST", { PGHOST: `postgres://app:${encoded}@db/app` }],
  ["a URL in PGDATABASE", { PGDATABASE: `postgres://app:${encoded}@db/app` }],
  ["a bad variable beside PGPASSWORD", { PGPASSWORD: password, DB_POOL_MAX: "many" }],
  ["a bad port beside PGPASSWORD", { PGPASSWORD: password, PGPORT: "many" }],
  ["a bad variable beside DATABASE_URL", { DATABASE_URL: `postgres://app:${encoded}@db/app`, PGSSLMODE: "maybe", DB_ERROR_TEXT: "much" }]
]

describe("a password", () => {
  /** Options under which nothing is left to wait for. */
  const quick = {
    max: 1,
    retry: false,
    breaker: false,
    connectTimeout: "2 seconds",
    acquireTimeout: "3 seconds"
  } as const

  const ask = Effect.gen(function*() {
    const sql = yield* SqlClient
    return yield* sql`SELECT 1`
  })

  it.live("is printed by no impossible option and no bad variable", () =>
    Effect.gen(function*() {
      const outputs = yield* makeOutputs
      for (const [what, options] of impossible) {
        const exit = yield* outputs.observe(what, Effect.provide(ask, Layer.fresh(Pg.layer({ ...quick, ...options }))))
        assert.isTrue(Exit.isFailure(exit), what)
      }
      for (const [what, variables] of typos) {
        const config = ConfigProvider.layer(ConfigProvider.fromUnknown(variables))
        const exit = yield* outputs.observe(
          what,
          Effect.provide(ask, Layer.fresh(Pg.layerConfig()).pipe(Layer.provide(config)))
        )
        assert.isTrue(Exit.isFailure(exit), what)
      }
      assert.deepStrictEqual([password, ...pieces].flatMap((text) => leaksOf(outputs.all(), text)), [])
    }), 60_000)

  it.live(
    "is printed by no failure to connect, and by no error of the program's own code",
    () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const outputs = yield* makeOutputs
        const unreachable = withSecret(url, (own) => {
          own.port = "1"
        })
        const here = new URL(Redacted.value(url))
        const role = `role_${here.pathname.slice(-12)}`
        const witness = yield* makeWitness(url)
        yield* witness.query(`CREATE ROLE ${role} LOGIN PASSWORD 'another'`)
        yield* Effect.addFinalizer(() => Effect.orDie(witness.query(`DROP ROLE ${role}`)))
        const refused = withSecret(url, (own) => {
          own.username = role
        })
        // dprint-ignore
        const doors: ReadonlyArray<readonly [what: string, options: Pg.Options]> = [
        ["nobody there", { url: unreachable }],
        ["no such name", { url: withSecret(url, (own) => { own.hostname = "nowhere.invalid" }) }],
        ["several hosts", { url: unreachable, hosts: [{ host: "127.0.0.1", port: 1 }, { host: "nowhere.invalid" }] }],
        ["a password that is wrong", { url: refused }],
        ["a password that is wrong, in pieces", { host: here.hostname, port: Number(here.port), username: role, password: secret }],
        ["a password that is wrong, from an effect", { url, username: role, password: Effect.succeed(secret) }],
        ["a password that is wrong, from a cache", { url, username: role, password: Pg.Credentials.cached(Effect.succeed(secret)) }],
        ["no such database", { url: withSecret(url, (own) => { own.pathname = "/none" }) }],
        ["no TLS there", { url: withSecret(url, (own) => { own.searchParams.set("sslmode", "require") }) }],
        ["a password effect that fails", { url, password: failing }],
        ["a password effect that dies", { url, password: dying }],
        ["a password effect that fails with a text", { url, password: Effect.fail(`no lease for ${password}`) }],
        ["a password effect that yields it in the clear", { url, password: Effect.succeed(password as never) }],
        ["a cache whose source fails", { url, password: Pg.Credentials.cached(failing) }],
        ["a hook before the connect", { url, beforeConnect: failing }],
        ["a hook after the connect", { url, afterConnect: () => failing }],
        ["a hook after the connect that dies", { url, afterConnect: () => dying }],
        ["a hook before each use", { url, beforeAcquire: () => failing }],
        ["a hook before each use that fails with a text", { url, beforeAcquire: () => Effect.fail(password) }],
        ["a hook after each use", { url, afterRelease: () => failing }],
        ["a hook before the end", { url, beforeDisconnect: () => failing }],
        ["a classifier that throws", { url: unreachable, classify: () => { throw new VaultError() } }],
        ["a socket of its own that throws", { url, stream: () => { throw new VaultError() } }],
        ["retries that are exhausted", { url: unreachable, retry: { attempts: 2 } }],
        ["retries of a hook", { url, afterConnect: () => failing, retry: { attempts: 2 } }],
        ["a circuit that opens", { url: unreachable, breaker: { failures: 1, onTransition: () => { throw new VaultError() } } }]
      ]
        const harmless = ["a hook after each use", "a hook before the end"]
        for (const [what, options] of doors) {
          const work = Effect.gen(function*() {
            const executor = yield* Pg.Executor.Executor
            const pool = yield* Pg.Pool.Pool
            const sql = yield* PgClient
            const breaker = yield* Pg.Breaker.Breaker
            const metrics = yield* Pg.Metrics.Metrics
            const first = yield* outputs.observe(`${what}, a statement`, ask)
            yield* outputs.observe(`${what}, the executor`, executor.run(sql.withTransaction(sql`SELECT 1`)))
            yield* outputs.observe(`${what}, the pool`, pool.use(({ connection }) => connection.query("SELECT 1")))
            outputs.print(`${what}, the pool`, pool)
            outputs.print(`${what}, the settings`, pool.settings)
            outputs.print(`${what}, the configuration`, sql.config)
            outputs.print(`${what}, the figures`, [yield* pool.stats, yield* metrics.snapshot, yield* breaker.state])
            outputs.add(`${what}, the page`, yield* Pg.Metrics.render)
            outputs.print(`${what}, the health`, yield* Pg.Health.check)
            return yield* first
          })
          const exit = yield* outputs.observe(
            what,
            Effect.provide(work, Layer.fresh(Pg.layer({ ...quick, ...options })))
          )
          assert.strictEqual(Exit.isSuccess(exit), harmless.includes(what), what)
        }
        for (const text of [password, ...pieces, "no lease for"]) {
          assert.deepStrictEqual(leaksOf(outputs.all(), text), [])
        }
      }),
    120_000
  )

  it.live("and what else the program's own errors hold can be read by the program", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      for (const options of [{ password: failing }, { afterConnect: () => failing }]) {
        const exit = yield* Effect.exit(
          Effect.provide(
            Effect.flatMap(Pg.Pool.Pool, (pool) => pool.use(() => Effect.void)),
            Pg.layer({ ...quick, url, ...options })
          )
        )
        const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
        if (!(error instanceof Pg.Errors.CredentialsFailed || error instanceof Pg.Errors.HookFailed)) {
          return assert.fail(String(error))
        }
        assert.instanceOf(Redacted.value(error.cause), VaultError)
        assert.include(error.message, "failed with VaultError")
      }
    }))

  it.live("is shown by a hook's error with errorText \"full\", as anything that it says", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const outputs = yield* makeOutputs
      yield* outputs.observe(
        "a hook",
        Effect.provide(ask, Layer.fresh(Pg.layer({ ...quick, url, errorText: "full", afterConnect: () => failing })))
      )
      assert.isNotEmpty(leaksOf(outputs.all(), "no lease for"))
    }))

  it.live(
    "is on no page that strangers can see, nor are hosts, users or the server's words",
    () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const here = new URL(Redacted.value(url))
        const role = `role_${here.pathname.slice(-12)}`
        const doors = [
          ["a server that answers", { url }],
          ["a password that is wrong", {
            url: withSecret(url, (own) => {
              own.username = role
            })
          }],
          ["nobody there", {
            url: withSecret(url, (own) => {
              own.port = "1"
            })
          }],
          ["a hook that fails", { url, afterConnect: () => failing }]
        ] as const
        for (const [what, options] of doors) {
          const outputs = yield* makeOutputs
          const runtime = ManagedRuntime.make(
            Layer.mergeAll(CloudWatch.layer(), Pg.Metrics.layerOpenTelemetry()).pipe(
              Layer.provideMerge(Pg.layer({ ...quick, ...options, name: "strangers" }))
            )
          )
          yield* Effect.promise(() => runtime.runPromiseExit(ask))
          yield* Effect.promise(() => runtime.runPromise(outputs.heard(`${what}, CloudWatch`, CloudWatch.emit())))
          outputs.add(`${what}, OpenTelemetry`, yield* Effect.promise(() => runtime.runPromise(Metric.dump)))
          const answer = Pg.Health.toWebHandler(runtime, { metrics: Pg.Metrics.render })
          for (const path of ["/health/database", "/livez", "/readyz", "/metrics"]) {
            const response = yield* Effect.promise(() => answer(new Request(`http://stranger${path}`)))
            const body = yield* Effect.promise(() => response.text())
            outputs.add(`${what}, ${path}`, JSON.stringify([...response.headers]) + body)
          }
          yield* Effect.promise(() => runtime.dispose())
          const secrets = [password, ...pieces, role, "connect ECONNREFUSED", "no lease for"]
          assert.deepStrictEqual(secrets.flatMap((text) => leaksOf(outputs.all(), text)), [], what)
          // OpenTelemetry's conventions name the server, to whoever runs the collector.
          const strangers = outputs.all().filter(({ by }) => !by.includes("OpenTelemetry"))
          const places = [here.hostname, here.pathname.slice(1)]
          assert.deepStrictEqual(places.flatMap((text) => leaksOf(strangers, text)), [], what)
          for (const by of ["/health/database", "/metrics", "CloudWatch", "OpenTelemetry"]) {
            const texts = outputs.all().filter((output) => output.by === `${what}, ${by}`)
            assert.isTrue(texts.some(({ text }) => text.includes("strangers")), `${what}, ${by}`)
          }
        }
      }),
    60_000
  )
})
