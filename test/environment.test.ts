import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Pg from "../src/index.ts"

const read = (env: Record<string, string>) => Pg.fromEnvironment.parse(ConfigProvider.fromUnknown(env))

const complaint = (env: Record<string, string>) => Effect.map(Effect.flip(read(env)), (error) => error.message)

describe("the environment", () => {
  it.effect("sets nothing when it is empty, so that every default holds", () =>
    Effect.gen(function*() {
      const options = yield* read({})
      assert.deepStrictEqual(options, {})
    }))

  it.effect("sets every option that has a variable", () =>
    Effect.gen(function*() {
      const options = yield* read({
        PGHOST: "db.example",
        PGPORT: "6543",
        PGUSER: "me",
        PGPASSWORD: "hunter2",
        PGDATABASE: "shop",
        PGSSLMODE: "require",
        PGSSLNEGOTIATION: "direct",
        DB_POOL_MAX: "7",
        DB_POOL_MIN: "0",
        DB_MAX_WAITING: "100",
        DB_ACQUIRE_TIMEOUT: "1500",
        DB_IDLE_TIMEOUT: "0",
        DB_IDLE_SESSION_TIMEOUT: "6 minutes",
        DB_STATEMENT_TIMEOUT: "15 seconds",
        DB_QUERY_TIMEOUT: "16 seconds",
        DB_LOCK_TIMEOUT: "2000",
        DB_IDLE_IN_TRANSACTION_TIMEOUT: "30 seconds",
        DB_CONNECT_TIMEOUT: "3 seconds",
        DB_MAX_LIFETIME: "20 minutes",
        DB_MAX_USES: "12",
        DB_ERROR_TEXT: "full",
        DB_VALIDATE: "always",
        DB_SHEDDING: "on",
        DB_POOLER: "transaction",
        DB_PREPARE: "off",
        DB_MULTIPLEX: "off",
        DB_RETRY_ATTEMPTS: "2",
        DB_BREAKER: "on",
        DB_BREAKER_FAILURES: "9",
        DB_BREAKER_OPEN: "1 minute"
      })
      assert.strictEqual(options.host, "db.example")
      assert.strictEqual(options.port, 6543)
      assert.strictEqual(options.username, "me")
      assert.isTrue(Redacted.isRedacted(options.password))
      assert.strictEqual(Redacted.value(options.password as Redacted.Redacted), "hunter2")
      assert.strictEqual(options.database, "shop")
      assert.strictEqual(options.ssl, true)
      assert.strictEqual(options.sslNegotiation, "direct")
      assert.strictEqual(options.max, 7)
      assert.strictEqual(options.min, 0)
      assert.strictEqual(options.maxWaiting, 100)
      assert.strictEqual(options.validate, "always")
      assert.strictEqual(options.shedding, true)
      assert.strictEqual(options.pooler, "transaction")
      assert.strictEqual(options.prepare, false)
      assert.strictEqual(options.multiplex, false)
      assert.deepStrictEqual(options.retry, { attempts: 2 })
      const millis = (input: Duration.Input | undefined) => Duration.toMillis(input!)
      assert.strictEqual(millis(options.acquireTimeout), 1500)
      assert.strictEqual(millis(options.idleTimeout), 0)
      assert.strictEqual(millis(options.serverReaping?.idleSession), 360_000)
      assert.strictEqual(millis(options.statementTimeout), 15_000)
      assert.strictEqual(millis(options.queryTimeout), 16_000)
      assert.strictEqual(millis(options.lockTimeout), 2000)
      assert.strictEqual(millis(options.idleInTransactionTimeout), 30_000)
      assert.strictEqual(millis(options.connectTimeout), 3000)
      assert.strictEqual(millis(options.maxLifetime), 1_200_000)
      assert.strictEqual(options.maxUses, 12)
      assert.strictEqual(options.errorText, "full")
      const breaker = options.breaker as Pg.Breaker.Options
      assert.strictEqual(breaker.failures, 9)
      assert.strictEqual(millis(breaker.openFor), 60_000)
    }))

  it.effect("prefers a whole address to its parts", () =>
    Effect.gen(function*() {
      const options = yield* read({ DATABASE_URL: "postgres://a@b/c", PGHOST: "elsewhere", PGSSLMODE: "require" })
      assert.strictEqual(Redacted.value(options.url!), "postgres://a@b/c")
      assert.isUndefined(options.host)
      assert.isUndefined(options.ssl)
    }))

  it.effect("takes lists of hosts and ports, as libpq does", () =>
    Effect.gen(function*() {
      const several = yield* read({ PGHOST: "one,two", PGPORT: "1,2", PGTARGETSESSIONATTRS: "prefer-standby" })
      assert.deepStrictEqual(several.hosts, [{ host: "one", port: 1 }, { host: "two", port: 2 }])
      assert.strictEqual(several.targetSessionAttrs, "prefer-standby")
      assert.isUndefined(several.host)
      const onePort = yield* read({ PGHOST: "one,two", PGPORT: "7" })
      assert.deepStrictEqual(onePort.hosts, [{ host: "one", port: 7 }, { host: "two", port: 7 }])
      assert.include(yield* complaint({ PGHOST: "one,two", PGPORT: "1,2,3" }), "PGPORT has 3 ports")
    }))

  it.effect("can say that TLS is welcome but not required", () =>
    Effect.gen(function*() {
      const options = yield* read({ PGHOST: "db", PGSSLMODE: "prefer" })
      assert.strictEqual(Redacted.value(options.url!), "postgres:///?sslmode=prefer")
      assert.strictEqual(options.host, "db")
    }))

  it.effect("does not begin with TLS where it is welcome but not required", () =>
    Effect.gen(function*() {
      for (const PGSSLMODE of ["disable", "allow", "prefer"]) {
        const message = yield* complaint({ PGSSLMODE, PGSSLNEGOTIATION: "direct" })
        assert.include(
          message,
          `PGSSLNEGOTIATION is "direct", but must be "postgres" where PGSSLMODE is "${PGSSLMODE}"`
        )
      }
      // The program, or a platform's URL, may say that TLS is required.
      assert.strictEqual((yield* read({ PGSSLNEGOTIATION: "direct" })).sslNegotiation, "direct")
      const whole = yield* read({ PGSSLNEGOTIATION: "direct", DATABASE_URL: "postgres://a@b/c" })
      assert.isUndefined(whole.sslNegotiation)
    }))

  it.effect("counts an empty variable as absent", () =>
    Effect.gen(function*() {
      const options = yield* read({ DB_POOL_MAX: "", DATABASE_URL: "" })
      assert.isUndefined(options.max)
      assert.isUndefined(options.url)
    }))

  const wrong: ReadonlyArray<readonly [name: string, value: string, allowed: string]> = [
    ["PGPORT", "0", "from 1 to 65535"],
    ["PGPORT", "1,x", "one for each host of PGHOST"],
    ["PGTARGETSESSIONATTRS", "master", "any, read-write, read-only, primary, standby, prefer-standby"],
    ["PGSSLMODE", "maybe", "disable, allow, prefer, require"],
    ["PGSSLNEGOTIATION", "never", "one of postgres, direct"],
    ["DB_POOL_MAX", "many", "a whole number, 1 or more"],
    ["DB_POOL_MAX", "0", "a whole number, 1 or more"],
    ["DB_POOL_MIN", "-1", "a whole number, 0 or more"],
    ["DB_ACQUIRE_TIMEOUT", "0", "milliseconds, 1 or more"],
    ["DB_IDLE_TIMEOUT", "soon", "\"15 seconds\""],
    ["DB_IDLE_SESSION_TIMEOUT", "0", "milliseconds, 1 or more"],
    ["DB_STATEMENT_TIMEOUT", "-5 seconds", "\"15 seconds\""],
    ["DB_QUERY_TIMEOUT", "1.5.2", "\"15 seconds\""],
    ["DB_LOCK_TIMEOUT", "x", "\"15 seconds\""],
    ["DB_CONNECT_TIMEOUT", "0", "milliseconds, 1 or more"],
    ["DB_MAX_LIFETIME", "never", "\"15 seconds\""],
    ["DB_MAX_USES", "0", "a whole number, 1 or more"],
    ["DB_MAX_WAITING", "-1", "a whole number, 0 or more"],
    ["DB_IDLE_IN_TRANSACTION_TIMEOUT", "0", "milliseconds, 1 or more"],
    ["DB_VALIDATE", "never", "one of always, idle"],
    ["DB_SHEDDING", "true", "one of on, off"],
    ["DB_POOLER", "session", "one of none, transaction"],
    ["DB_PREPARE", "1", "one of on, off"],
    ["DB_MULTIPLEX", "no", "one of on, off"],
    ["DB_BREAKER", "0", "one of on, off"],
    ["DB_RETRY_ATTEMPTS", "0", "a whole number, 1 or more"],
    ["DB_BREAKER_FAILURES", "2.5", "a whole number, 1 or more"],
    ["DB_BREAKER_OPEN", "later", "\"15 seconds\""],
    ["DB_ERROR_TEXT", "some", "discreet, full"]
  ]
  it.effect.each(wrong)(
    "names the variable, the value and what is allowed: %s=%s",
    ([name, value, allowed]) =>
      Effect.gen(function*() {
        const message = yield* complaint({ [name]: value })
        assert.include(message, name)
        assert.include(message, value)
        assert.include(message, allowed)
      })
  )

  it.effect("takes infinity for no time limit", () =>
    Effect.gen(function*() {
      const options = yield* read({ DB_STATEMENT_TIMEOUT: "infinity", DB_LOCK_TIMEOUT: "Infinity" })
      assert.isFalse(Duration.isFinite(options.statementTimeout as Duration.Duration))
      assert.isFalse(Duration.isFinite(options.lockTimeout as Duration.Duration))
    }))

  it.effect("turns the breaker off, whatever else is said of it", () =>
    Effect.gen(function*() {
      const options = yield* read({ DB_BREAKER: "off", DB_BREAKER_FAILURES: "9" })
      assert.strictEqual(options.breaker, false)
    }))

  it.effect("means no retry at all by one attempt", () =>
    Effect.gen(function*() {
      const options = yield* read({ DB_RETRY_ATTEMPTS: "1" })
      assert.strictEqual(options.retry, false)
    }))

  it.effect("names DATABASE_URL and the cure, but not its secret", () =>
    Effect.gen(function*() {
      const message = yield* complaint({ DATABASE_URL: "postgres://me:hunter#2@host/db" })
      assert.include(message, "DATABASE_URL")
      assert.include(message, "percent-encoded")
      assert.notInclude(message, "hunter")
    }))

  it.effect("names both variables of a floor above the bound", () =>
    Effect.gen(function*() {
      const message = yield* complaint({ DB_POOL_MIN: "5", DB_POOL_MAX: "3" })
      assert.include(message, "DB_POOL_MIN is \"5\", but must be at most DB_POOL_MAX, which is 3")
    }))

  it.effect("names both variables of a server that would close an idle session before the pool does", () =>
    Effect.gen(function*() {
      const message = yield* complaint({ DB_IDLE_SESSION_TIMEOUT: "5 seconds", DB_IDLE_TIMEOUT: "5000" })
      assert.include(message, "DB_IDLE_SESSION_TIMEOUT must be above DB_IDLE_TIMEOUT, which is 5000 ms")
    }))

  it.effect("builds the layer", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(Pg.layerConfig()).pipe(
        Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ DB_POOL_MAX: "3", DB_POOL_MIN: "1" })))
      )
      const pool = yield* Effect.provide(Pg.Pool.Pool, context)
      assert.strictEqual(pool.settings.max, 3)
      assert.strictEqual(pool.settings.min, 1)
    }))

  it.effect("fails the layer with the same words", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Layer.build(Pg.layerConfig())).pipe(
        Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ DB_POOL_MAX: "many" })))
      )
      assert.include(error.message, "DB_POOL_MAX is \"many\"")
    }))
})

describe("the environment over a program's options", () => {
  const laidOver = (options: Pg.Options, env: Record<string, string>) =>
    Pg.withEnvironment(options).parse(ConfigProvider.fromUnknown(env))

  it.effect("changes nothing when it is empty", () =>
    Effect.gen(function*() {
      const options: Pg.Options = { max: 20, min: 5, retry: false, breaker: { failures: 3 } }
      assert.deepStrictEqual(yield* laidOver(options, {}), options)
    }))

  it.effect("wins", () =>
    Effect.gen(function*() {
      const options = yield* laidOver({ max: 20, lockTimeout: 50, name: "orders" }, { DB_POOL_MAX: "30" })
      assert.deepStrictEqual(options, { max: 30, lockTimeout: 50, name: "orders" })
    }))

  it.effect("leaves alone what it does not mention of the retries and the breaker", () =>
    Effect.gen(function*() {
      const options = yield* laidOver(
        { retry: { jitter: "none" }, breaker: { openFor: 10, ramp: 4 } },
        { DB_RETRY_ATTEMPTS: "3", DB_BREAKER_FAILURES: "9" }
      )
      assert.deepStrictEqual(options.retry, { jitter: "none", attempts: 3 })
      assert.deepStrictEqual(options.breaker, { openFor: 10, ramp: 4, trip: undefined, failures: 9 })
    }))

  it.effect("turns off, and on again, what the program has", () =>
    Effect.gen(function*() {
      const off = yield* laidOver(
        { retry: { attempts: 9 }, breaker: { failures: 3 }, shedding: true, multiplex: true },
        { DB_RETRY_ATTEMPTS: "1", DB_BREAKER: "off", DB_SHEDDING: "off", DB_MULTIPLEX: "off" }
      )
      assert.deepStrictEqual(off, { retry: false, breaker: false, shedding: false, multiplex: false })
      const on = yield* laidOver({ retry: false, breaker: false }, { DB_RETRY_ATTEMPTS: "2", DB_BREAKER: "on" })
      assert.deepStrictEqual(on, { retry: { attempts: 2 }, breaker: {} })
      const kept = yield* laidOver({ breaker: { failures: 3 } }, { DB_BREAKER: "on" })
      assert.deepStrictEqual(kept, { breaker: { failures: 3 } })
    }))

  it.effect("lets the pool close an idle session before the server does, whichever of the two an operator sets", () =>
    Effect.gen(function*() {
      const timesOf = (program: Pg.Options, env: Record<string, string>) =>
        Effect.scoped(Effect.gen(function*() {
          const options = yield* laidOver({ username: "me", ...program }, env)
          const context = yield* Layer.build(Pg.layer(options))
          const { settings } = yield* Effect.provide(Pg.Pool.Pool, context)
          return [settings.idleTimeout, Number(settings.reaping["idle_session_timeout"])]
        }))
      const session = { DB_IDLE_SESSION_TIMEOUT: "8 seconds" }
      assert.deepStrictEqual(yield* timesOf({}, session), [6000, 8000])
      assert.deepStrictEqual(yield* timesOf({ idleTimeout: 2000 }, session), [2000, 8000])
      assert.deepStrictEqual(
        yield* timesOf({ idleTimeout: "5 minutes", serverReaping: { idleSession: "6 minutes" } }, session),
        [6000, 8000]
      )
      const idle = { DB_IDLE_TIMEOUT: "9 minutes" }
      const preset: Pg.Options = { idleTimeout: "5 minutes", serverReaping: { idleSession: "6 minutes" } }
      assert.deepStrictEqual(yield* timesOf(preset, idle), [540_000, 720_000])
      assert.deepStrictEqual(yield* timesOf(preset, { DB_IDLE_TIMEOUT: "1000" }), [1000, 360_000])
      assert.deepStrictEqual(yield* timesOf(preset, { DB_IDLE_SESSION_TIMEOUT: "infinity" }), [300_000, 0])
    }))

  it.effect("keeps what else the program asks the server to look after", () =>
    Effect.gen(function*() {
      const options = yield* laidOver({ serverReaping: { keepaliveCount: 3 } }, { DB_IDLE_SESSION_TIMEOUT: "60000" })
      assert.deepStrictEqual(options.serverReaping, { keepaliveCount: 3, idleSession: Duration.minutes(1) })
    }))

  /** Where the options lead to, as the pool understands them. */
  const leadsTo = (options: Pg.Options) =>
    Effect.scoped(Effect.gen(function*() {
      const context = yield* Layer.build(Pg.layer(options))
      const { target, targets } = (yield* Effect.provide(Pg.Pool.Pool, context)).settings
      const { database, hosts, sslMode, username } = target.address
      const servers = hosts.map(({ host, path, port }) => path ?? `${host}:${port}`).join(",")
      return { to: `${username}@${servers}/${database}`, sslMode, tls: targets[0]?.tls }
    }))

  const own = Redacted.make("postgres://me:old@own.example:6543/shop?sslmode=disable")

  it.effect("leads to the server of its URL, whatever address the program has", () =>
    Effect.gen(function*() {
      const env = { DATABASE_URL: "postgres://you:new@env.example/orders" }
      const programs: ReadonlyArray<Pg.Options> = [
        { host: "own.example", port: 6543, username: "me", database: "shop", password: Redacted.make("old") },
        { hosts: [{ host: "one.example" }, { host: "two.example" }] },
        { path: "/run/postgresql/.s.PGSQL.5432" },
        { url: own }
      ]
      for (const program of programs) {
        const options = yield* laidOver(program, env)
        assert.strictEqual((yield* leadsTo(options)).to, "you@env.example:5432/orders")
        assert.isUndefined(options.password)
      }
      const partly = yield* laidOver({ host: "own.example", username: "me", database: "shop" }, {
        DATABASE_URL: "postgres://env.example"
      })
      assert.strictEqual((yield* leadsTo(partly)).to, "me@env.example:5432/shop")
    }))

  it.effect("leads to the hosts of its parts, whatever address the program has", () =>
    Effect.gen(function*() {
      const hosts = [{ host: "one.example" }, { host: "two.example", port: 1 }]
      const at = (program: Pg.Options, env: Record<string, string>) =>
        Effect.map(Effect.flatMap(laidOver({ ...program, username: "me" }, env), leadsTo), ({ to }) => to)
      assert.strictEqual(yield* at({ hosts }, { PGHOST: "env.example" }), "me@env.example:5432/me")
      assert.strictEqual(yield* at({ path: "/run/s" }, { PGHOST: "env.example" }), "me@env.example:5432/me")
      assert.strictEqual(yield* at({ url: own }, { PGHOST: "env.example" }), "me@env.example:6543/shop")
      assert.strictEqual(yield* at({ host: "a", port: 9 }, { PGHOST: "b,c" }), "me@b:5432,c:5432/me")
      assert.strictEqual(yield* at({ hosts }, { PGPORT: "7" }), "me@one.example:7,two.example:7/me")
    }))

  it.effect("says by PGSSLMODE how, and not where to", () =>
    Effect.gen(function*() {
      const preferred = yield* Effect.flatMap(laidOver({ url: own }, { PGSSLMODE: "prefer" }), leadsTo)
      assert.strictEqual(preferred.to, "me@own.example:6543/shop")
      assert.strictEqual(preferred.sslMode, "prefer")
      const list = Redacted.make("postgres://me:old@one.example,two.example:7/shop")
      const ofList = yield* Effect.flatMap(laidOver({ url: list, ssl: true }, { PGSSLMODE: "prefer" }), leadsTo)
      assert.strictEqual(ofList.to, "me@one.example:5432,two.example:7/shop")
      assert.strictEqual(ofList.sslMode, "prefer")
      // Its certificates are the program's.
      const ssl = { ca: "ours" }
      assert.deepStrictEqual((yield* laidOver({ ssl }, { PGSSLMODE: "verify-full" })).ssl, ssl)
      assert.isFalse((yield* laidOver({ ssl }, { PGSSLMODE: "disable" })).ssl)
      const url = "postgres://env.example?target_session_attrs=primary&sslmode="
      const program: Pg.Options = { ssl, targetSessionAttrs: "standby" }
      const off = yield* laidOver(program, { DATABASE_URL: `${url}disable` })
      assert.deepStrictEqual([off.ssl, off.targetSessionAttrs], [undefined, undefined])
      assert.deepStrictEqual((yield* laidOver(program, { DATABASE_URL: `${url}require` })).ssl, ssl)
    }))

  it.effect("turns TLS off, or makes it optional, for a program that begins with it", () =>
    Effect.gen(function*() {
      const direct = Redacted.make("postgres://me@own.example/shop?sslmode=require&sslnegotiation=direct")
      const programs: ReadonlyArray<Pg.Options> = [
        { username: "me", ssl: true, sslNegotiation: "direct" },
        { url: Redacted.make("postgres://me@own.example/shop?sslmode=require"), sslNegotiation: "direct" },
        { url: direct }
      ]
      const isDirect = (program: Pg.Options, env: Record<string, string>) =>
        Effect.map(
          Effect.flatMap(laidOver(program, env), leadsTo),
          ({ tls }) => tls?._tag === "On" && tls.isDirect
        )
      const url = "postgres://you@env.example/orders"
      for (const program of programs) {
        assert.isTrue(yield* isDirect(program, { PGSSLMODE: "verify-full" }))
        for (const PGSSLMODE of ["disable", "allow", "prefer"]) assert.isFalse(yield* isDirect(program, { PGSSLMODE }))
        assert.isFalse(yield* isDirect(program, { DATABASE_URL: `${url}?sslmode=disable` }))
        assert.isFalse(yield* isDirect(program, { DATABASE_URL: `${url}?sslmode=require&sslnegotiation=postgres` }))
        assert.isTrue(yield* isDirect(program, { DATABASE_URL: `${url}?sslmode=require&sslnegotiation=direct` }))
      }
      const refused = yield* Effect.flip(
        Effect.flatMap(laidOver({}, { DATABASE_URL: `${url}?sslnegotiation=direct` }), leadsTo)
      )
      assert.include(refused.message, "sslNegotiation")
    }))

  it.effect("brings the floor down with the bound, and takes the place of another way to trip", () =>
    Effect.gen(function*() {
      const options = yield* laidOver(
        { max: 20, min: 5, breaker: { trip: Pg.Breaker.rate({ threshold: 0.5 }) } },
        { DB_POOL_MAX: "3", DB_BREAKER_FAILURES: "9" }
      )
      assert.strictEqual(options.min, 3)
      // Neither is refused for the other's sake.
      yield* Effect.scoped(Layer.build(Pg.layer(options)))
    }))
})
