import { assert, describe, it } from "@effect/vitest"
import { ScriptedServer } from "effect-pg-pool/testing"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as References from "effect/References"
import { SqlClient } from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import * as fc from "fast-check"
import * as Pg from "../src/index.ts"
import * as Fleet from "../src/internal/fleet.ts"

const census: Fleet.Census = {
  maxConnections: 100,
  superuserReserved: 3,
  reserved: 0,
  mayUseReserved: false,
  roleLimit: null,
  databaseLimit: null,
  used: 8,
  usedByRole: 5,
  usedByDatabase: 6,
  usedByFleet: 1,
  isStandby: false
}

const sized = (options: Fleet.FleetOptions, found: Partial<Fleet.Census> = {}, ceiling = 100) =>
  Fleet.sizeOf(Fleet.planOf(options), { ...census, ...found }, ceiling)

describe("the size of a pool in a fleet", () => {
  // dprint-ignore
  const rows: ReadonlyArray<readonly [
    title: string, options: Fleet.FleetOptions, found: Partial<Fleet.Census>, expected: Partial<Fleet.Sizing>
  ]> = [
    ["is the fleet's share of what others leave, for each environment and twice over", { environments: 4 }, {}, { bound: "server", limit: 97, others: 7, budget: 90, size: 9, isSafe: true }],
    ["is smaller with several pools in each environment", { environments: 4, workers: 3 }, {}, { size: 3 }],
    ["is larger where a deployment does not double the fleet", { environments: 4, overlap: 1 }, {}, { size: 18 }],
    ["is of all that is left, if all may be filled", { environments: 1, overlap: 1, share: 1 }, {}, { size: 90 }],
    ["does not lose one to binary fractions", { environments: 1, overlap: 1, share: 0.29 }, { superuserReserved: 0, used: 1 }, { budget: 100, size: 29 }],
    ["leaves reserved places to those who may use them", { environments: 1, overlap: 1, share: 1 }, { reserved: 10 }, { limit: 87, size: 80 }],
    ["counts reserved places for those who may use them", { environments: 1, overlap: 1, share: 1 }, { reserved: 10, mayUseReserved: true }, { limit: 97, size: 90 }],
    ["keeps to the limit of the role, of which only its own sessions take", { environments: 1, overlap: 1, share: 1 }, { roleLimit: 20, used: 60 }, { bound: "role", limit: 20, others: 4, budget: 16, size: 16 }],
    ["keeps to the limit of the database in the same way", { environments: 1, overlap: 1, share: 1 }, { databaseLimit: 12, roleLimit: 20 }, { bound: "database", limit: 12, others: 5, budget: 7, size: 7 }],
    ["is one session where not even that is safe, and says how many environments would be", { environments: 200 }, {}, { size: 1, isSafe: false, safeEnvironments: 36 }],
    ["is one session where others have it all", { environments: 1 }, { used: 97, usedByFleet: 1 }, { budget: 1, size: 1, isSafe: false, safeEnvironments: 0 }],
    ["is one session where the limit is smaller than what is used already", { environments: 1 }, { roleLimit: 0, usedByRole: 3 }, { budget: 0, size: 1, isSafe: false, utilisation: 1 }]
  ]
  for (const [title, options, found, expected] of rows) {
    it(`${title}`, () => {
      assert.deepInclude(sized(options, found), expected)
    })
  }

  it("is never above the ceiling", () => {
    assert.deepInclude(sized({ environments: 1 }, {}, 2), { size: 2, isSafe: true })
  })

  it("comes with how full the fullest limit is", () => {
    assert.strictEqual(sized({ environments: 1 }, { maxConnections: 103, used: 50 }).utilisation, 0.5)
    assert.strictEqual(sized({ environments: 1 }, { roleLimit: 10, usedByRole: 9 }).utilisation, 0.9)
    assert.strictEqual(sized({ environments: 1 }, { databaseLimit: 5, usedByDatabase: 8 }).utilisation, 1)
  })

  const limit = fc.option(fc.nat(500))
  const anyCensus: fc.Arbitrary<Fleet.Census> = fc.record({
    maxConnections: fc.integer({ min: 1, max: 5000 }),
    superuserReserved: fc.nat(20),
    reserved: fc.nat(50),
    mayUseReserved: fc.boolean(),
    roleLimit: limit,
    databaseLimit: limit,
    used: fc.nat(5000),
    usedByRole: fc.nat(500),
    usedByDatabase: fc.nat(500),
    usedByFleet: fc.nat(500),
    isStandby: fc.boolean()
  })
  const anyPlan: fc.Arbitrary<Fleet.Plan> = fc.record({
    environments: fc.integer({ min: 1, max: 2000 }),
    workers: fc.integer({ min: 1, max: 64 }),
    overlap: fc.double({ min: 1, max: 4, noNaN: true }),
    share: fc.double({ min: 0.01, max: 1, noNaN: true }),
    whenUnsafe: fc.constantFrom("warn", "fail")
  })
  const ceiling = fc.integer({ min: 1, max: 100 })
  const pools = ({ environments, overlap, workers }: Fleet.Plan) => environments * workers * overlap

  it("lets the whole fleet fit into its share whenever it is called safe", () => {
    fc.assert(fc.property(anyPlan, anyCensus, ceiling, (plan, census, ceiling) => {
      const { budget, isSafe, size } = Fleet.sizeOf(plan, census, ceiling)
      assert.isTrue(Number.isInteger(size) && size >= 1 && size <= ceiling)
      if (isSafe) assert.isAtMost(size * pools(plan), plan.share * budget + 1e-6 * pools(plan))
    }))
  })

  it("is as large as it can be", () => {
    fc.assert(fc.property(anyPlan, anyCensus, ceiling, (plan, census, ceiling) => {
      const { budget, size } = Fleet.sizeOf(plan, census, ceiling)
      assert.isTrue(size === ceiling || (size + 1) * pools(plan) > plan.share * budget)
    }))
  })

  it("is safe for as many environments as it says, and for no more", () => {
    fc.assert(fc.property(anyPlan, anyCensus, ceiling, (plan, census, ceiling) => {
      const { isSafe, safeEnvironments } = Fleet.sizeOf(plan, census, ceiling)
      const isSafeFor = (environments: number) => Fleet.sizeOf({ ...plan, environments }, census, ceiling).isSafe
      assert.strictEqual(isSafe, plan.environments <= safeEnvironments)
      if (safeEnvironments > 0) assert.isTrue(isSafeFor(safeEnvironments))
      assert.isFalse(isSafeFor(safeEnvironments + 1))
    }))
  })

  it("never grows because others take more", () => {
    fc.assert(fc.property(anyPlan, anyCensus, ceiling, fc.nat(100), (plan, census, ceiling, more) => {
      const later = {
        ...census,
        used: census.used + more,
        usedByRole: census.usedByRole + more,
        usedByDatabase: census.usedByDatabase + more
      }
      assert.isAtMost(Fleet.sizeOf(plan, later, ceiling).size, Fleet.sizeOf(plan, census, ceiling).size)
    }))
  })

  it("does not depend on how many sessions the fleet itself has open", () => {
    fc.assert(fc.property(anyPlan, anyCensus, ceiling, fc.nat(100), (plan, found, ceiling, more) => {
      // What the fleet has is among what each limit counts.
      const census = {
        ...found,
        used: found.used + found.usedByFleet,
        usedByRole: found.usedByRole + found.usedByFleet,
        usedByDatabase: found.usedByDatabase + found.usedByFleet
      }
      const later = {
        ...census,
        used: census.used + more,
        usedByRole: census.usedByRole + more,
        usedByDatabase: census.usedByDatabase + more,
        usedByFleet: census.usedByFleet + more
      }
      assert.strictEqual(Fleet.sizeOf(plan, later, ceiling).size, Fleet.sizeOf(plan, census, ceiling).size)
    }))
  })
})

describe("a fleet that cannot be", () => {
  const refused = (options: Parameters<typeof Pg.Pool.sizeForFleet>[0]) =>
    Effect.flip(
      Effect.asVoid(Layer.build(Pg.layer({ host: "db1", username: "app", ...Pg.Pool.sizeForFleet(options) })))
    )

  // dprint-ignore
  const rows: ReadonlyArray<readonly [options: Parameters<typeof Pg.Pool.sizeForFleet>[0], message: string]> = [
    [{ environments: 0 }, 'fleet.environments is "0", but must be a whole number of at least 1.'],
    [{ environments: Number.NaN }, 'fleet.environments is "NaN", but must be a whole number of at least 1.'],
    [{ environments: 1, workers: 1.5 }, 'fleet.workers is "1.5", but must be a whole number of at least 1.'],
    [{ environments: 1, overlap: 0.5 }, 'fleet.overlap is "0.5", but must be a number of at least 1.'],
    [{ environments: 1, share: 80 }, 'fleet.share is "80", but must be above 0 and at most 1.'],
    [{ environments: 1, ceiling: 0 }, 'max is "0", but must be a whole number of at least 1.'],
    [{ environments: 1, whenUnsafe: "panic" as "warn" }, 'fleet.whenUnsafe is "panic", but must be one of warn, fail.']
  ]
  for (const [options, message] of rows) {
    it.effect(`is one impossible option: ${message}`, () =>
      Effect.gen(function*() {
        assert.strictEqual((yield* refused(options)).message, message)
      }))
  }

  it.effect("is an impossible option when it does not come from sizeForFleet", () =>
    Effect.gen(function*() {
      const fleet = { environments: 4 } as unknown as Pg.Pool.Fleet
      const error = yield* Effect.flip(Effect.asVoid(Layer.build(Pg.layer({ host: "db1", username: "app", fleet }))))
      assert.strictEqual(error._tag, "InvalidOption")
      assert.include(error.message, "must be what Pool.sizeForFleet returns as fleet")
    }))
})

/** The lines of the pool, by their events. */
const recorder = () => {
  const lines: Array<string> = []
  const logger = Logger.map(Logger.formatStructured, (line) => void lines.push(String(line.message)))
  const recorded = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    effect.pipe(Effect.provide(Logger.layer([logger])), Effect.provideService(References.MinimumLogLevel, "Info"))
  return { lines, recorded }
}

/** Turns of the event loop, in which sockets do what they have to. */
const turns = Effect.repeat(Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void))), {
  times: 50
})

const makePool = Effect.fnUntraced(function*(options: Pg.Options) {
  const context = yield* Layer.build(Pg.layer({ prepare: false, retry: false, breaker: false, ...options }))
  return { pool: Context.get(context, Pg.Pool.Pool), sql: Context.get(context, SqlClient) }
})

const isQuestion = (sql: string): boolean => sql.includes("max_connections")

const places = (max: number, used = 1) =>
  ScriptedServer.rows([{
    max: String(max),
    su: "3",
    reserved: "0",
    may: "f",
    role: "-1",
    db: "-1",
    used: String(used),
    byRole: "1",
    byDatabase: "1",
    byFleet: "1",
    standby: "f"
  }])

const fleet = Pg.Pool.sizeForFleet({ environments: 2, overlap: 1, share: 1, ceiling: 20 })

describe("a pool of a fleet", () => {
  it.effect("has one session until the server has answered, and then as many as are safe", () =>
    Effect.gen(function*() {
      const asked = yield* Deferred.make<void>()
      const answered = yield* Deferred.make<void>()
      const server = yield* ScriptedServer.make({
        onQuery: (sql) =>
          isQuestion(sql)
            ? Effect.as(Effect.andThen(Deferred.succeed(asked, undefined), Deferred.await(answered)), places(23))
            : undefined
      })
      const { pool, sql } = yield* makePool({ url: server.url, ...fleet })
      assert.strictEqual(pool.statsUnsafe().max, 1)
      const fibers = yield* Effect.forEach([1, 2, 3], () => Effect.forkChild(sql`SELECT 1`))
      yield* Deferred.await(asked)
      assert.strictEqual((yield* server.counts).accepted, 1)
      assert.deepInclude(pool.statsUnsafe(), { max: 1, connecting: 0 })
      assert.isTrue(Option.isNone(yield* pool.fleet))
      yield* Deferred.succeed(answered, undefined)
      yield* Effect.forEach(fibers, Fiber.join)
      assert.strictEqual(pool.statsUnsafe().max, 10)
      assert.deepInclude(Option.getOrThrow(yield* pool.fleet), { budget: 20, size: 10, isSafe: true, environments: 2 })
    }))

  it.effect("asks again when a minute has gone by, and after all sessions were given up", () =>
    Effect.gen(function*() {
      let max = 23
      const server = yield* ScriptedServer.make({ onQuery: (sql) => isQuestion(sql) ? places(max) : undefined })
      const { pool, sql } = yield* makePool({ url: server.url, idleTimeout: "1 hour", ...fleet })
      const questions = Effect.map(server.statements, (all) => all.filter(isQuestion).length)
      yield* sql`SELECT 1`
      max = 13
      yield* TestClock.adjust("59 seconds")
      yield* sql`SELECT 1`
      assert.deepStrictEqual([yield* questions, pool.statsUnsafe().max], [1, 10])
      yield* TestClock.adjust("1 second")
      yield* sql`SELECT 1`
      assert.deepStrictEqual([yield* questions, pool.statsUnsafe().max], [2, 5])
      max = 8
      yield* pool.evictAll
      yield* sql`SELECT 1`
      assert.deepStrictEqual([yield* questions, pool.statsUnsafe().max], [3, 2])
    }))

  it.effect("leaves a size that was given by hand, and goes on telling what it finds", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make({ onQuery: (sql) => isQuestion(sql) ? places(23) : undefined })
      const { pool, sql } = yield* makePool({ url: server.url, ...fleet })
      yield* pool.resize({ max: 4 })
      yield* sql`SELECT 1`
      assert.strictEqual(pool.statsUnsafe().max, 4)
      assert.strictEqual(Option.getOrThrow(yield* pool.fleet).size, 10)
    }))

  it.effect("leaves a min that was given by hand, too", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make({ onQuery: (sql) => isQuestion(sql) ? places(23) : undefined })
      const { pool, sql } = yield* makePool({ url: server.url, ...fleet })
      yield* pool.resize({ min: 1 })
      yield* sql`SELECT 1`
      assert.deepInclude(pool.statsUnsafe(), { max: 10, min: 1 })
    }))

  it.effect("serves its borrowers where the server refuses the question, and says so", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      const server = yield* ScriptedServer.make({
        onQuery: (sql) => isQuestion(sql) ? ScriptedServer.error("42501", "permission denied") : undefined
      })
      const { pool, sql } = yield* recorded(makePool({ url: server.url, ...fleet }))
      yield* Effect.forEach([1, 2, 3], () => sql`SELECT 1`, { concurrency: 3 })
      assert.deepInclude(pool.statsUnsafe(), { max: 1, total: 1 })
      assert.deepStrictEqual(lines, [
        "The server has not said how many sessions it allows (42501 insufficient_privilege): the pool keeps to 1 and asks again with its next session. Give max instead of Pool.sizeForFleet if it never does."
      ])
    }))

  it.effect("serves its borrowers where the answer is of another kind", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make({
        onQuery: (sql) => isQuestion(sql) ? ScriptedServer.rows([{ version: "CockroachDB" }]) : undefined
      })
      const { pool, sql } = yield* makePool({ url: server.url, ...fleet })
      yield* sql`SELECT 1`
      assert.deepInclude(pool.statsUnsafe(), { max: 1, total: 1 })
    }))

  it.effect("has another session when the one that asked has died", () =>
    Effect.gen(function*() {
      let sessions = 0
      const server = yield* ScriptedServer.make({
        onQuery: (sql) =>
          !isQuestion(sql) ? undefined : ++sessions === 1
            ? ScriptedServer.fatal("57P01", "terminating connection due to administrator command")
            : places(23)
      })
      const { pool, sql } = yield* makePool({ url: server.url, ...fleet, retry: { attempts: 3 } })
      const fiber = yield* Effect.forkChild(Effect.exit(sql`SELECT 1`))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(fiber)
      yield* sql`SELECT 1`
      assert.strictEqual(pool.statsUnsafe().max, 10)
    }))

  it.effect("cancels the statement of the borrower and not its own question", () =>
    Effect.gen(function*() {
      const answered = yield* Deferred.make<void>()
      const asked = yield* Deferred.make<void>()
      const server = yield* ScriptedServer.make({
        onQuery: (sql) => {
          if (isQuestion(sql)) {
            return Effect.as(Effect.andThen(Deferred.succeed(asked, undefined), Deferred.await(answered)), places(23))
          }
          return sql.includes("slow") ? Effect.never : undefined
        }
      })
      const { pool, sql } = yield* makePool({ url: server.url, ...fleet })
      const fiber = yield* Effect.forkChild(sql`SELECT slow`)
      yield* Deferred.await(asked)
      yield* turns
      const interrupted = yield* Effect.forkChild(Fiber.interrupt(fiber))
      // Long enough for one that is sent at once to arrive.
      yield* TestClock.withLive(Effect.sleep(300))
      assert.strictEqual((yield* server.counts).cancelRequests, 0)
      yield* Deferred.succeed(answered, undefined)
      yield* Fiber.join(interrupted)
      assert.strictEqual((yield* server.counts).cancelRequests, 1)
      assert.strictEqual(pool.statsUnsafe().max, 10)
      assert.deepStrictEqual((yield* sql`SELECT 1`).length, 0)
    }))
})

describe("a pool of a fleet for which no size is safe", () => {
  const crowd = (whenUnsafe: "fail" | "warn") => Pg.Pool.sizeForFleet({ environments: 20, whenUnsafe })

  const message =
    "No pool size is safe: limit the concurrency to 6 environments, put a transaction pooler in between, or raise the " +
    "limit. 20 environments, 2 times over while a deployment replaces them, need 40 sessions, but the server's " +
    "max_connections less what is reserved allows 20, others have 5 of them, and the fleet may fill 80 % of the rest."

  it.effect("has one session, and a line in the log with the numbers and the cure", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      const server = yield* ScriptedServer.make({ onQuery: (sql) => isQuestion(sql) ? places(23, 6) : undefined })
      const { pool, sql } = yield* recorded(makePool({ url: server.url, ...crowd("warn") }))
      for (let minutes = 0; minutes < 3; minutes++) {
        yield* sql`SELECT 1`
        yield* TestClock.adjust("1 minute")
      }
      assert.strictEqual(pool.statsUnsafe().max, 1)
      assert.deepStrictEqual(lines, [message])
    }))

  it.effect("fails with FleetTooLarge if that is asked for, and leaves no session on the server", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make({ onQuery: (sql) => isQuestion(sql) ? places(23, 6) : undefined })
      const { sql } = yield* makePool({ url: server.url, ...crowd("fail") })
      const error = Pg.Errors.fromSqlError(yield* Effect.flip(sql`SELECT 1`))
      assert.deepInclude(error, { _tag: "FleetTooLarge", isRetryable: false, message })
      assert.deepInclude(error, { bound: "server", limit: 20, others: 5, safeEnvironments: 6 })
      assert.deepStrictEqual((yield* server.statements).filter((statement) => !isQuestion(statement)), [])
    }))

  it.effect("leaves those who have a session their turn when it has become too large", () =>
    Effect.gen(function*() {
      let max = 203
      const server = yield* ScriptedServer.make({ onQuery: (sql) => isQuestion(sql) ? places(max) : undefined })
      const { pool, sql } = yield* makePool({ url: server.url, idleTimeout: "1 hour", ...crowd("fail") })
      yield* sql`SELECT 1`
      max = 23
      yield* TestClock.adjust("1 minute")
      const one = yield* Effect.scoped(Effect.gen(function*() {
        // Asks, since a minute has gone by, and again by the session that the second borrower would have had.
        yield* pool.reserve()
        const second = yield* Effect.forkChild(sql`SELECT 2`)
        yield* turns
        return second
      }))
      yield* Fiber.join(one)
      assert.deepInclude(pool.statsUnsafe(), { max: 1, total: 1 })
    }))

  it.effect("works as soon as there is room", () =>
    Effect.gen(function*() {
      let max = 23
      const server = yield* ScriptedServer.make({ onQuery: (sql) => isQuestion(sql) ? places(max) : undefined })
      const { pool, sql } = yield* makePool({ url: server.url, ...crowd("fail") })
      assert.strictEqual(Pg.Errors.fromSqlError(yield* Effect.flip(sql`SELECT 1`))?._tag, "FleetTooLarge")
      max = 103
      yield* TestClock.adjust("10 seconds")
      yield* sql`SELECT 1`
      assert.strictEqual(pool.statsUnsafe().max, 2)
    }))

  it.effect("serves its borrowers where the server refuses the question", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make({
        onQuery: (sql) => isQuestion(sql) ? ScriptedServer.error("42501", "permission denied") : undefined
      })
      const { sql } = yield* makePool({ url: server.url, ...crowd("fail") })
      yield* sql`SELECT 1`
    }))
})

describe("a pool of a fleet behind a pooler", () => {
  // dprint-ignore
  const hosts: ReadonlyArray<readonly [host: string, port: number, isPooler: boolean]> = [
    ["ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech", 5432, true],
    ["aws-0-eu-central-1.pooler.supabase.com", 5432, true],
    ["db.abcdefgh.supabase.co", 6543, true],
    ["orders.proxy-cdefghijklmn.eu-west-1.rds.amazonaws.com", 5432, true],
    ["ep-cool-darkness-123456.us-east-2.aws.neon.tech", 5432, false],
    ["orders.cdefghijklmn.eu-west-1.rds.amazonaws.com", 5432, false],
    ["carpooler.example.com", 5432, false]
  ]
  for (const [host, port, isPooler] of hosts) {
    it.effect(`${isPooler ? "is not" : "is"} sized by the server ${host}:${port}`, () =>
      Effect.gen(function*() {
        const { lines, recorded } = recorder()
        const { pool } = yield* recorded(makePool({ host, port, username: "app", ...fleet }))
        assert.strictEqual(pool.statsUnsafe().max, isPooler ? 20 : 1)
        assert.deepStrictEqual(
          lines,
          isPooler
            ? [
              `${host} looks like a pooler, whose places are not the server's: the pool is not sized for its fleet, and may have 20 sessions. If it is one for transactions, set pooler: "transaction".`
            ]
            : []
        )
      }))
  }

  it.effect("asks nothing, and has its ceiling", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make()
      const { pool, sql } = yield* makePool({ url: server.url, pooler: "transaction", ...fleet })
      yield* sql`SELECT 1`
      assert.strictEqual(pool.statsUnsafe().max, 20)
      assert.isTrue(Option.isNone(yield* pool.fleet))
      assert.deepStrictEqual(yield* server.statements, ["SELECT 1"])
    }))
})
