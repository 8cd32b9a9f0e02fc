import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { existsSync, readFileSync } from "node:fs"
import * as Pg from "../src/index.ts"
import { page, rowsWith, spansOf, tables } from "./integration/migratingPage.ts"

const none: ReadonlyArray<unknown> = []
const source = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8")

/** All names there are: the compiler complains of one that is missing here, and of one that is too many. */
const options = {
  url: true,
  host: true,
  port: true,
  path: true,
  hosts: true,
  targetSessionAttrs: true,
  database: true,
  username: true,
  password: true,
  ssl: true,
  sslNegotiation: true,
  stream: true,
  keepAlive: true,
  types: true,
  maxMessageSize: true,
  maxConnections: true,
  minConnections: true,
  connectionTTL: true,
  max: true,
  min: true,
  acquireTimeout: true,
  maxWaiting: true,
  whenServerFull: true,
  shedding: true,
  leakThreshold: true,
  connectTimeout: true,
  idleTimeout: true,
  reapEvery: true,
  validateAfter: true,
  validate: true,
  validationTimeout: true,
  maxLifetime: true,
  maxLifetimeJitter: true,
  maxUses: true,
  closeTimeout: true,
  statementTimeout: true,
  lockTimeout: true,
  idleInTransactionTimeout: true,
  queryTimeout: true,
  applicationName: true,
  startupParameters: true,
  startupOptions: true,
  pooler: true,
  directUrl: true,
  reset: true,
  errorText: true,
  serverReaping: true,
  multiplex: true,
  multiplexConcurrency: true,
  prepare: true,
  preparedStatementCacheSize: true,
  fleet: true,
  beforeConnect: true,
  afterConnect: true,
  beforeAcquire: true,
  afterRelease: true,
  beforeDisconnect: true,
  name: true,
  breaker: true,
  retry: true,
  retryBudget: true,
  classify: true,
  spanAttributes: true,
  transformResultNames: true,
  transformQueryNames: true,
  transformJson: true
} satisfies Record<keyof Pg.Options, true>

const retryOptions = { attempts: true, base: true, factor: true, cap: true, jitter: true } satisfies Record<
  keyof Pg.Schedule.RetryOptions,
  true
>

const breakerOptions = {
  key: true,
  trip: true,
  failures: true,
  openFor: true,
  jitter: true,
  maxOpenFor: true,
  streakWindow: true,
  probeLease: true,
  probeTimeout: true,
  ramp: true,
  snapshot: true,
  onTransition: true
} satisfies Record<keyof Pg.Breaker.Options, true>

const isOption = (name: string): boolean => {
  const [option, nested] = name.split(".")
  if (nested === undefined) return Object.hasOwn(options, name)
  return option === "retry"
    ? Object.hasOwn(retryOptions, nested)
    : option === "breaker" && Object.hasOwn(breakerOptions, nested)
}

const settings = rowsWith("Here", "Default here", "What differs")

const build = Effect.gen(function*() {
  const context = yield* Layer.build(Pg.layer())
  return {
    text: yield* Effect.provide(Pg.Metrics.render, context),
    services: {
      pool: yield* Effect.provide(Pg.Pool.Pool, context),
      breaker: yield* Effect.provide(Pg.Breaker.Breaker, context)
    }
  }
})

describe("docs/migrating.md", () => {
  it("has its tables", () => {
    assert.isAbove(tables.length, 10)
    assert.isAbove(settings.length, 60)
  })

  it("names options that are there", () => {
    const named = settings.flatMap(({ Here }) => spansOf(Here!)).filter((name) => !/^(Executor)\./.test(name))
    assert.isAbove(named.length, 60)
    assert.deepStrictEqual(named.filter((name) => !isOption(name)), none)
  })

  it.effect("says the defaults that hold", () =>
    Effect.gen(function*() {
      const { settings: defaults } = (yield* build).services.pool
      const values: Readonly<Record<string, unknown>> = { ...defaults, keepAlive: defaults.target.keepAlive }
      const units: Readonly<Record<string, number>> = { ms: 1, s: 1000, min: 60_000 }
      let compared = 0
      for (const row of settings) {
        const names = spansOf(row["Here"]!)
        const said = row["Default here"]!.split(", ")
        if (names.length !== said.length) continue
        for (const [index, name] of names.entries()) {
          const amount = /^(?:after )?([\d.]+)(?: (ms|s|min))?$/.exec(said[index]!)
          if (amount === null || values[name] === undefined) continue
          assert.strictEqual(values[name], Number(amount[1]) * (units[amount[2] ?? ""] ?? 1), name)
          compared++
        }
      }
      assert.isAbove(compared, 20)
      assert.deepStrictEqual(Pg.Schedule.delays(), [100, 150, 225, 337.5])
    }))

  it("names functions that are there", () => {
    const rooms: Record<string, object> = { Pg, ...Pg }
    const named = Array.from(page.matchAll(/\b(Pg|Pool|Executor|Breaker|Health|Metrics|Errors|Schedule)\.(\w+)/g))
      .map(([, room, name]) => [room!, name!] as const)
      .filter(([, name]) => !/^(Options|Services)$/.test(name))
    assert.isAbove(named.length, 10)
    assert.deepStrictEqual(named.filter(([room, name]) => !(name in rooms[room]!)), none)
  })

  it.effect("names what a pool and a breaker can do, and metrics that are there", () =>
    Effect.gen(function*() {
      const { services, text } = yield* build
      const named = spansOf(page).flatMap((span) => Array.from(span.matchAll(/^(pool|breaker)\.(\w+)(?=$|\()/g)))
      // Whatever is said of the pools of others, and of our options of the same name.
      const theirs = /^pool\.(max|min|acquire|idle|evict|maxUses|validate|query|connect|on|end|totalCount)$/
      const ours = named.map(([all]) => all).filter((name) => !theirs.test(name) && !isOption(name))
      assert.isAbove(ours.length, 5)
      assert.deepStrictEqual(
        ours.filter((name) => {
          const [service, member] = name.split(".") as ["pool" | "breaker", string]
          return !(member in services[service])
        }),
        none
      )
      const metrics = new Set(Array.from(page.matchAll(/\bdb_\w+/g), ([name]) => name))
      assert.isAbove(metrics.size, 8)
      assert.deepStrictEqual(
        [...metrics].filter((name) => !text.includes(`# TYPE ${name.replace(/_bucket$/, "")} `)),
        none
      )
    }))

  it.effect("has the names and states of the old metrics", () =>
    Effect.gen(function*() {
      const { text } = yield* build
      for (const state of ["total", "idle", "active", "waiting"]) {
        assert.match(text, new RegExp(`^db_pool_size\\{.*state="${state}".*\\} \\d`, "m"))
      }
      assert.match(text, /^db_pool_connections\{.*state="used".*\} \d/m)
      assert.include(text, "# TYPE db_query_duration_seconds histogram")
      assert.match(text, /^db_pool_connections_closed_total\{.*reason="error".*\} 0$/m)
    }))

  it("names all variables of the environment, and no others", () => {
    const read = new Set(
      Array.from(
        source("src/internal/environment.ts").matchAll(/"((?:DB|PG|DATABASE)_?[A-Z_]+)"/g),
        ([, name]) => name!
      )
    )
    const named = new Set(Array.from(page.matchAll(/\b(?:DB_|PG(?=[A-Z])|DATABASE_URL)[A-Z_]*/g), ([name]) => name))
    assert.isAbove(read.size, 25)
    assert.deepStrictEqual([...named].filter((name) => !read.has(name)), none)
    assert.deepStrictEqual([...read].filter((name) => !named.has(name)), none)
    const readme = source("README.md")
    assert.deepStrictEqual([...read].filter((name) => !readme.includes(`\`${name}\``)), none)
  })

  const repeated = (code: string, phase: Pg.Errors.Phase): string => {
    const circumstances = { phase, reused: false, replied: true }
    const failure = /^[0-9A-Z]{5}$/.test(code) && /\d/.test(code) ? { sqlState: code } : { code }
    const verdict = Pg.Errors.classify(failure, circumstances)
    const how = verdict.retry === "BackoffSlow" ? ", slower" : verdict.retry === "Now" ? ", at once" : ""
    return Pg.Errors.isSafeToRepeat(verdict, false)
      ? `yes${how}`
      : Pg.Errors.isSafeToRepeat(verdict, true)
      ? "if idempotent"
      : "no"
  }

  it.each(rowsWith("Pattern", "Code").map((row) => [row["Code"]!, row] as const))(
    "judges %s as its row says",
    (code, row) => {
      const failure = /^[0-9A-Z]{5}$/.test(code) && /\d/.test(code) ? { sqlState: code } : { code }
      const { breaker, kind } = Pg.Errors.classify(failure, { phase: "InFlight", reused: false, replied: true })
      assert.deepStrictEqual(
        {
          kind: row["Kind"],
          notSent: row["Not sent yet"],
          lost: row["Answer lost"],
          breaker: row["Counted by the breaker"]
        },
        {
          kind,
          notSent: repeated(code, "BeforeWrite"),
          lost: repeated(code, "InFlight"),
          breaker: breaker === "Failure" ? "yes" : "no"
        }
      )
    }
  )

  it("links to files and headings that are there", () => {
    const anchors = (text: string) =>
      new Set(
        Array.from(text.matchAll(/^#+ (.*)$/gm), ([, heading]) =>
          heading!.toLowerCase().replace(/[^\w\- ]/g, "").replaceAll(" ", "-"))
      )
    const broken = Array.from(page.matchAll(/\]\(([^)#\s]*)(?:#([^)]*))?\)/g)).filter(([, file, anchor]) => {
      const address = new URL(file === "" ? "../docs/migrating.md" : `../docs/${file}`, import.meta.url)
      return !existsSync(address) || (anchor !== undefined && !anchors(readFileSync(address, "utf8")).has(anchor))
    })
    assert.deepStrictEqual(broken.map(([link]) => link), none)
  })
})
