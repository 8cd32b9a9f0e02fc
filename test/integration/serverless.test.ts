/** What an environment does to the real server: at the deadline, at the end of an invocation, across a freeze, at its end. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import { isSqlError } from "effect/sql/SqlError"
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { inspect } from "node:util"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { eventually, makeWitness, soon } from "./witness.ts"

const { Serverless } = Pg

const usual = { max: 2, min: 0, idleTimeout: "1 hour", closeTimeout: 200, retry: false, breaker: false } as const

/** A database, who looks into it, and an environment around it that ends with the test. */
const makeWorld = Effect.fnUntraced(function*(
  options: Pg.Options = {},
  environmentOptions: Pg.Serverless.EnvironmentOptions = {}
) {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  yield* witness.query("CREATE TABLE orders (id int)")
  const environment = yield* Serverless.environment(Pg.layer({ url, ...usual, ...options }), environmentOptions)
  return { environment, url, witness }
})

type Sql = Effect.Success<typeof SqlClient>

const withSql = <A, E, R>(f: (sql: Sql) => Effect.Effect<A, E, R>) => Effect.flatMap(SqlClient, f)

const pid = withSql((sql) => Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, ([row]) => row!.pid))

const timeoutOf = (exit: Exit.Exit<unknown, unknown>): Pg.Errors.InvocationTimeout => {
  const error = Exit.findErrorOption(exit)
  if (error._tag === "Some" && error.value instanceof Pg.Errors.InvocationTimeout) return error.value
  return assert.fail(`not a timeout: ${inspect(exit, { depth: 5 })}`)
}

/** Milliseconds. */
const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.timed(effect), ([took, value]) => ({ took: Duration.toMillis(took), value }))

/** Time for a busy machine to end what has run out of it: a margin of 750 ms, half of which is over before sockets are destroyed. */
const unhurried = [{}, { margin: "1 second" }] as const
const threeSeconds = { deadline: "3 seconds" } as const

/** Whatever sessions of ours are at work, or in a transaction. */
const busy = "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() " +
  "AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'"

describe("at the deadline", () => {
  it.live("a statement is cancelled on the server, and its session serves the next invocation", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld(...unhurried)
      const before = yield* Effect.promise(() => environment.run(pid))
      const { took, value } = yield* timed(
        Effect.promise(() => environment.runExit(withSql((sql) => sql`SELECT pg_sleep(60)`), threeSeconds))
      )
      assert.strictEqual(timeoutOf(value).allowed, 2250)
      assert.isBelow(took, 3000, "the answer is there before the platform's deadline")
      assert.isAtLeast(took, 2245)
      yield* eventually("no orphan", Effect.map(witness.value<number>(busy), (count) => count === 0), 1)
      assert.strictEqual(yield* Effect.promise(() => environment.run(pid)), before)
    }))

  it.live("a transaction is rolled back, which the error knows", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld(...unhurried)
      yield* Effect.promise(() => environment.run(pid))
      const work = withSql((sql) =>
        sql.withTransaction(Effect.gen(function*() {
          yield* sql`INSERT INTO orders VALUES (1)`
          yield* sql`SELECT pg_sleep(60)`
        }))
      )
      const exit = yield* Effect.promise(() => environment.runExit(work, threeSeconds))
      assert.strictEqual(timeoutOf(exit).effect, "RolledBack")
      assert.strictEqual(yield* witness.value<number>(busy), 0)
      assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM orders"), 0)
    }))

  it.live("a transaction that does something else is rolled back as well", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld(...unhurried)
      const work = withSql((sql) =>
        sql.withTransaction(Effect.andThen(sql`INSERT INTO orders VALUES (1)`, Effect.sleep("1 minute")))
      )
      const exit = yield* Effect.promise(() => environment.runExit(work, threeSeconds))
      assert.strictEqual(timeoutOf(exit).effect, "RolledBack")
      assert.strictEqual(yield* witness.value<number>(busy), 0)
      assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM orders"), 0)
    }))

  it.live("what was applied before may have been applied", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld()
      const work = withSql((sql) => Effect.andThen(sql`INSERT INTO orders VALUES (1)`, Effect.never))
      const exit = yield* Effect.promise(() => environment.runExit(work, { deadline: "1 second" }))
      assert.strictEqual(timeoutOf(exit).effect, "Unknown")
      assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM orders"), 1)
    }))

  it.live("whoever waits for a session has run nothing, and whoever has it goes on", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld({ max: 1 })
      const holder = yield* Effect.forkChild(
        Effect.promise(() => environment.run(withSql((sql) => sql`SELECT pg_sleep(1.5)`))),
        { startImmediately: true }
      )
      yield* Effect.sleep(100)
      const exit = yield* Effect.promise(() => environment.runExit(pid, { deadline: "600 millis" }))
      assert.strictEqual(timeoutOf(exit).effect, "NotRun")
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(holder)))
    }))

  it.live("a session whose holder cannot be interrupted is taken away, and nothing of its work stays", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld()
      const stubborn = withSql((sql) =>
        Effect.uninterruptible(
          sql.withTransaction(Effect.andThen(sql`INSERT INTO orders VALUES (1)`, Effect.sleep("3 seconds")))
        )
      )
      const { took, value } = yield* timed(
        Effect.promise(() => environment.runExit(stubborn, { deadline: "1 second" }))
      )
      assert.strictEqual(timeoutOf(value).effect, "Unknown")
      assert.isBelow(took, 2500, "nobody waits for the end of its sleep")
      yield* eventually("the server has let go", Effect.map(witness.count, (count) => count === 0), 1)
      assert.isNumber(yield* Effect.promise(() => environment.run(pid)))
      yield* Effect.sleep("2500 millis")
      assert.strictEqual(yield* witness.value<number>("SELECT count(*)::int FROM orders"), 0)
    }))

  it.live("a statement that cannot be interrupted is cancelled on the server all the same", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld()
      const stubborn = withSql((sql) => Effect.uninterruptible(sql`SELECT pg_sleep(60)`))
      const exit = yield* Effect.promise(() => environment.runExit(stubborn, { deadline: "1 second" }))
      assert.isTrue(Exit.isFailure(exit))
      yield* eventually("no orphan", Effect.map(witness.value<number>(busy), (count) => count === 0), 1)
    }))

  it.live("a server that has fallen silent is not waited for", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const proxy = yield* makeProxy(url)
      const environment = yield* Serverless.environment(
        Pg.layer({ url: proxy.url, ...usual, retry: {}, connectTimeout: "1 second" })
      )
      yield* Effect.promise(() => environment.run(pid))
      proxy.onRequest((_, link) => {
        link.blackhole()
        return "drop"
      })
      for (const work of [Effect.asVoid(pid), withSql((sql) => Effect.asVoid(sql.withTransaction(sql`SELECT 1`)))]) {
        const { took, value } = yield* timed(
          Effect.promise(() => environment.runExit(work, { deadline: "1200 millis" }))
        )
        assert.isTrue(Exit.isFailure(value))
        assert.isBelow(took, 4000, "the driver itself waits for five seconds")
      }
      proxy.onRequest(() => "pass")
      const { took } = yield* timed(Effect.promise(() => environment.run(pid, { deadline: "3 seconds" })))
      assert.isBelow(took, 3000)
    }))
})

describe("an invocation", () => {
  it.live("has given its sessions back before it is answered", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld({ max: 1 })
      const borrow = Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const { connection } = yield* pool.reserve()
        yield* connection.query("BEGIN", [])
        return pool.statsUnsafe
      })
      const stats = yield* Effect.promise(() => environment.run(borrow))
      assert.strictEqual(stats().active, 0)
      yield* Effect.promise(() => environment.run(borrow))
    }))

  it.live("finds the layer healed that could not be built before", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      let asked = 0
      const secret = Effect.suspend(() =>
        ++asked === 1 ? Effect.fail("the secrets are not to be had") : Effect.succeed(url)
      )
      const layer = Layer.unwrap(Effect.map(secret, (url) => Pg.layer({ url, ...usual })))
      const environment = yield* Serverless.environment(layer)
      const first = yield* Effect.promise(() => environment.runExit(pid))
      assert.deepStrictEqual(first, Exit.fail("the secrets are not to be had"))
      assert.isNumber(yield* Effect.promise(() => environment.run(pid)))
      yield* Effect.promise(() => environment.run(pid))
      assert.strictEqual(asked, 2)
    }))

  it.live("shares its session with those of another function of the same environment", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld()
      const context = { awsRequestId: "1", getRemainingTimeInMillis: () => 10_000 }
      const who = Serverless.lambda((_: unknown) => pid, { layer: environment })
      const count = Serverless.lambda((_: unknown) => withSql((sql) => sql`SELECT count(*) FROM orders`), {
        layer: environment
      })
      const first = yield* Effect.promise(() => who({}, context))
      yield* Effect.promise(() => count({}, context))
      assert.strictEqual(yield* Effect.promise(() => who({}, context)), first)
      assert.strictEqual(yield* witness.count, 1)
    }))

  it.live("that fails on the server is answered with its SQLSTATE, and without its row", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld()
      yield* witness.query("CREATE TABLE users (email text UNIQUE)")
      const handler = Serverless.lambda(
        (email: string) => withSql((sql) => sql`INSERT INTO users VALUES (${email})`),
        { layer: environment }
      )
      const context = { awsRequestId: "1", getRemainingTimeInMillis: () => 10_000 }
      yield* Effect.promise(() => handler("ann@example.org", context))
      const error = yield* Effect.promise(() =>
        handler("ann@example.org", context).then(() => assert.fail("it has succeeded"), (error: Error) => error)
      )
      assert.propertyVal(error, "sqlState", "23505")
      assert.include(error.message, "users_email_key")
      assert.notInclude(inspect(error, { showHidden: true, depth: 9 }), "ann@example.org")
    }))

  it.live("that cannot log in is answered without the password", () =>
    Effect.gen(function*() {
      const url = new URL(Redacted.value(yield* freshDatabase))
      url.username = "nobody_here"
      url.password = "hunter2"
      const environment = yield* Serverless.environment(Pg.layer({ url: Redacted.make(url.href), ...usual }))
      const handler = Serverless.lambda((_: unknown) => pid, { layer: environment })
      const error = yield* Effect.promise(() =>
        handler({}, { awsRequestId: "1", getRemainingTimeInMillis: () => 10_000 }).then(
          () => assert.fail("it has succeeded"),
          (error: Error) => error
        )
      )
      assert.match(String(Reflect.get(error, "sqlState")), /^28/)
      assert.notInclude(inspect(error, { showHidden: true, depth: 9 }), "hunter2")
    }))
})

describe("the release policy", () => {
  it.live("keep leaves the session for the next invocation", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld()
      const first = yield* Effect.promise(() => environment.run(pid))
      assert.deepStrictEqual(yield* witness.sessions, [first])
    }))

  it.live("close leaves none when the answer is there", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld({}, { release: "close" })
      for (let i = 0; i < 3; i++) {
        yield* Effect.promise(() => environment.run(pid))
        assert.strictEqual(yield* witness.count, 0)
      }
    }))

  it.live("close waits for the last of those that run beside each other", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld({}, { release: "close" })
      const long = yield* Effect.forkChild(
        Effect.promise(() => environment.run(withSql((sql) => sql`SELECT pg_sleep(0.5)`))),
        { startImmediately: true }
      )
      yield* Effect.promise(() => environment.run(pid))
      assert.isAtLeast(yield* witness.count, 1)
      yield* Fiber.join(long)
      assert.strictEqual(yield* witness.count, 0)
    }))

  it.live("close gives up a connect that nobody waits for any more, and takes that for no failure", () =>
    Effect.gen(function*() {
      let opened = 0
      const { environment, witness } = yield* makeWorld({
        afterConnect: () => Effect.suspend(() => ++opened === 2 ? Effect.never : Effect.void)
      }, { release: "close" })
      const query = withSql((sql) => sql`SELECT pg_sleep(0.5)`)
      yield* Effect.promise(() => environment.run(Effect.all([query, query], { concurrency: 2 })))
      assert.strictEqual(opened, 2)
      assert.strictEqual(yield* witness.count, 0)
      const failure = Effect.map(Pg.Pool.Pool, (pool) => pool.lastConnectFailureUnsafe())
      assert.isUndefined(yield* Effect.promise(() => environment.run(failure)))
      yield* Effect.promise(() => environment.run(query))
    }))

  it.live("adaptive leaves none once invocations have become rare", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld({}, { release: "adaptive", staleAfter: 50 })
      yield* Effect.promise(() => environment.run(pid))
      assert.strictEqual(yield* witness.count, 1)
      yield* Effect.sleep(200)
      yield* Effect.promise(() => environment.run(pid))
      assert.strictEqual(yield* witness.count, 0)
    }))

  it.live("suspend does it by hand", () =>
    Effect.gen(function*() {
      const { environment, witness } = yield* makeWorld()
      yield* Effect.promise(() => environment.run(pid))
      yield* Effect.promise(() => environment.suspend())
      assert.strictEqual(yield* witness.count, 0)
      assert.isNumber(yield* Effect.promise(() => environment.run(pid)))
    }))
})

describe("across a freeze", () => {
  /** The clock of a machine whose time has gone on without it. */
  const shifted = Effect.map(Clock.Clock, (clock) => {
    let offset = 0
    const shift = Object.assign(Object.create(clock) as Clock.Clock, {
      currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + offset,
      currentTimeMillis: Effect.sync(() => clock.currentTimeMillisUnsafe() + offset)
    })
    return {
      clock: shift,
      freeze: (millis: number) => {
        offset += millis
      }
    }
  })

  const frozen = Effect.gen(function*() {
    const { clock, freeze } = yield* shifted
    const world = yield* makeWorld().pipe(Effect.provideService(Clock.Clock, clock))
    return { ...world, freeze, first: yield* Effect.promise(() => world.environment.run(pid)) }
  })

  it.live("of minutes the session is replaced before anything is asked of it", () =>
    Effect.gen(function*() {
      const { environment, first, freeze, witness } = yield* frozen
      freeze(10 * 60_000)
      const second = yield* Effect.promise(() => environment.run(pid, { deadline: "3 seconds" }))
      assert.notStrictEqual(second, first)
      yield* eventually("the old one is gone", Effect.map(witness.count, (count) => count === 1))
    }))

  it.live("of seconds, a session that was ended meanwhile costs nobody an error", () =>
    Effect.gen(function*() {
      const { environment, first, freeze, witness } = yield* frozen
      freeze(20_000)
      yield* witness.terminate([first])
      assert.notStrictEqual(yield* Effect.promise(() => environment.run(pid, { deadline: "3 seconds" })), first)
    }))
})

describe("a connect that a freeze has cut off", () => {
  /** Nothing of this process runs meanwhile, timers are late afterwards. */
  const freeze = Effect.sync(() => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1500)).pipe(
    Effect.andThen(Effect.sleep(1))
  )

  it.live("is no reason to turn the next invocation away", () =>
    Effect.gen(function*() {
      let opened = 0
      const { environment } = yield* makeWorld({
        max: 1,
        connectTimeout: "1 second",
        afterConnect: () => Effect.suspend(() => ++opened === 1 ? Effect.never : Effect.void)
      })
      timeoutOf(yield* Effect.promise(() => environment.runExit(pid, { deadline: 400 })))
      yield* freeze
      assert.isNumber(yield* Effect.promise(() => environment.run(pid)))
    }))
})

describe("the end of an environment", () => {
  it.live("leaves no session, and is done within its time when the server has fallen silent", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const proxy = yield* makeProxy(url)
      for (const silent of [false, true]) {
        const environment = yield* Serverless.environment(Pg.layer({ url: proxy.url, ...usual, max: 3 }))
        const idle = Effect.all([pid, pid], { concurrency: 2 })
        yield* Effect.promise(() => environment.run(idle))
        const work = yield* Effect.forkChild(
          Effect.promise(() => environment.runExit(withSql((sql) => sql`SELECT pg_sleep(60)`))),
          { startImmediately: true }
        )
        yield* Effect.sleep(100)
        if (silent) {
          proxy.onRequest((_, link) => {
            link.blackhole()
            return "drop"
          })
        }
        const { took } = yield* timed(Effect.promise(() => environment.dispose()))
        assert.isBelow(took, 2000, "the driver itself waits for five seconds")
        assert.isTrue(Exit.isFailure(yield* soon("the end of the work", Fiber.join(work))))
        if (!silent) yield* eventually("no session is left", Effect.map(witness.count, (count) => count === 0), 1)
      }
    }))
})

describe("SIGTERM", () => {
  const fixture = fileURLToPath(new URL("./fixtures/serverlessHandler.ts", import.meta.url))

  const launch = (url: Redacted.Redacted) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const child = spawn(process.execPath, [fixture], {
          env: { ...process.env, NODE_OPTIONS: "", DATABASE_URL: Redacted.value(url) },
          stdio: ["pipe", "pipe", "inherit"]
        })
        let output = ""
        child.stdout.setEncoding("utf8").on("data", (text) => output += text)
        const closed = new Promise<number | null>((resolve) => child.once("close", resolve))
        return { child, closed, output: () => output, call: (event: string) => child.stdin.write(`${event}\n`) }
      }),
      ({ child, closed }) =>
        Effect.promise(() => {
          child.kill("SIGKILL")
          return closed
        })
    )

  for (const [how, event] of [["that idles", "hello"], ["in the midst of an invocation", "stay"]] as const) {
    it.live(`ends a function ${how} in order and in time, and leaves no session`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const { call, child, closed, output } = yield* launch(url)
        call(event)
        yield* eventually("it has a session", Effect.map(witness.count, (count) => count === 1))
        if (event === "hello") yield* eventually("the answer", Effect.sync(() => output().includes("said hello")))
        else yield* eventually("it runs", Effect.map(witness.value<number>(busy), (count) => count === 1))
        child.kill("SIGTERM")
        const { took, value } = yield* timed(soon("the end of the process", Effect.promise(() => closed)))
        assert.strictEqual(value, 0)
        // Whether that fits into what Lambda gives is seen on a LocalLambda; who waited would wait for a minute.
        assert.isBelow(took, 5000)
        if (event === "stay") assert.include(output(), "end of stay")
        yield* eventually("no session is left", Effect.map(witness.count, (count) => count === 0), 1)
      }))
  }
})

describe("the preset", () => {
  it.live(
    "has the circuit of an outage that is over let an invocation through within seconds",
    () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const proxy = yield* makeProxy(url)
        const environment = yield* Serverless.environment(
          Pg.layer({ ...Serverless.preset(), url: proxy.url, retry: false })
        )
        const tagOf = Effect.map(Effect.promise(() => environment.runExit(pid)), (exit) => {
          const error = Exit.findErrorOption(exit)
          const typed = error._tag === "Some" && isSqlError(error.value)
            ? Pg.Errors.fromSqlError(error.value)
            : undefined
          return Exit.isSuccess(exit) ? "Success" : typed?._tag
        })
        proxy.onRequest((_, link) => {
          link.cut()
          return "drop"
        })
        yield* eventually("the circuit opens", Effect.map(tagOf, (tag) => tag === "CircuitOpen"))
        proxy.onRequest(() => "pass")
        const { took } = yield* timed(
          eventually("an invocation is let through", Effect.map(tagOf, (tag) => tag === "Success"))
        )
        // By default it would be open for 30 seconds at least.
        assert.isBelow(took, 15_000)
      }),
    60_000
  )
})
