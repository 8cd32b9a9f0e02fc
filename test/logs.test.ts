/** What whoever reads the log sees of each event: a line of JSON. The server is in this process, and time is the test's. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as LogLevel from "effect/LogLevel"
import * as CircuitBreaker from "effect/persistence/CircuitBreaker"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import { readFileSync } from "node:fs"
import * as Net from "node:net"
import * as Pg from "../src/index.ts"
import * as HealthEndpoint from "../src/internal/healthEndpoint.ts"
import * as Logbook from "../src/internal/logbook.ts"
import * as LogFields from "../src/internal/logFields.ts"
import { lines as table } from "../src/internal/logLines.ts"
import * as Otlp from "../src/Otlp.ts"
import { ScriptedServer } from "../src/testing/index.ts"
import type { MemoryServer } from "./memoryServer.ts"
import { makeMemoryServer } from "./memoryServer.ts"

interface Line {
  readonly level: string
  readonly message: string
  readonly cause?: unknown
  readonly annotations: Readonly<Record<string, unknown>>
}

const parse = (json: string): Line => JSON.parse(json)

/** The lines that are written, as `Logger.consoleJson` would print them. */
const recorder = (level: LogLevel.LogLevel = "Trace") => {
  const lines: Array<Line> = []
  const logger = Logger.map(Logger.formatJson, (json) => void lines.push(parse(json)))
  const recorded = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    effect.pipe(Effect.provide(Logger.layer([logger])), Effect.provideService(References.MinimumLogLevel, level))
  return { lines, recorded }
}

interface World {
  readonly server: MemoryServer
  readonly pool: Pg.Pool.Pool["Service"]
  readonly breaker: Pg.Breaker.Breaker["Service"]
  /** A statement of the client's. */
  readonly ask: Effect.Effect<unknown, unknown>
  readonly sql: SqlClient
  readonly run: Pg.Executor.Executor["Service"]["run"]
  readonly close: Effect.Effect<void>
}

const makeWorld = Effect.fnUntraced(function*(
  options: Pg.Options = {},
  prepare: (server: MemoryServer) => void = () => {}
): Effect.fn.Return<World, Pg.Errors.InvalidOption, Scope.Scope> {
  const server = makeMemoryServer()
  prepare(server)
  const scope = yield* Scope.fork(yield* Effect.scope)
  const context = yield* Scope.provide(
    Layer.build(Pg.layer({
      name: "shop",
      stream: server.stream,
      host: "db1",
      database: "app",
      username: "nobody",
      password: Redacted.make("hunter2"),
      prepare: false,
      max: 2,
      retry: { jitter: "none" },
      breaker: { jitter: "none" },
      ...options
    })),
    scope
  )
  const sql = Context.get(context, SqlClient)
  return {
    server,
    pool: Context.get(context, Pg.Pool.Pool),
    breaker: Context.get(context, Pg.Breaker.Breaker),
    sql,
    ask: sql`SELECT 1`,
    run: Context.get(context, Pg.Executor.Executor).run,
    close: Scope.close(scope, Exit.void)
  }
})

/** A turn of the event loop, in which sockets do what they have to. */
const turn = Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void)))

const turns = Effect.repeat(turn, { times: 20 })

/** Lets time go on until the effect has ended. */
const played = Effect.fnUntraced(function*<A, E, R>(effect: Effect.Effect<A, E, R>, step = 25) {
  const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
  for (let steps = 0; fiber.pollUnsafe() === undefined; steps++) {
    assert.isBelow(steps, 4000, "it does not end")
    yield* turns
    if (fiber.pollUnsafe() === undefined) yield* TestClock.adjust(step)
  }
  return yield* Fiber.await(fiber)
})

const refuses = (server: MemoryServer): void => {
  server.manner = "refuses"
}

const pooled = { "db.client.connection.pool.name": "shop" }
const onServer = { "server.address": "db1", "server.port": 5432 }
const refused = { "error.type": "ECONNREFUSED" }
const unavailable = Effect.fail(
  new CircuitBreaker.CircuitBreakerError({
    reason: new CircuitBreaker.CircuitBreakerStoreError({ message: "hunter2", cause: new Error("hunter2") })
  })
)

/** What makes a line, and what it looks like then. */
interface Scenario {
  readonly provoke: Effect.Effect<unknown, unknown, Scope.Scope>
  readonly level: "DEBUG" | "INFO" | "WARN" | "ERROR"
  readonly message: string
  readonly annotations: Readonly<Record<string, unknown>>
}

const invalid = new Pg.Errors.InvalidOption({ option: "max", value: 0, allowed: "a whole number above 0" })

/** Asks where all that the program has given fails. */
const askHealth = (route: HealthEndpoint.Route) =>
  Effect.gen(function*() {
    const endpoint = yield* HealthEndpoint.make({
      pools: [],
      checks: {},
      isTrusted: () => {
        throw new RangeError("hunter2")
      },
      metrics: Effect.fail(new TypeError("hunter2"))
    })
    yield* endpoint.answer(route, undefined, { url: "/", headers: new Headers() })
  })

/** A fleet of 20, and what the server says to its question. */
const askFleet = (answer: ScriptedServer.Reply) =>
  Effect.gen(function*() {
    const server = yield* ScriptedServer.make({
      onQuery: (sql) => sql.includes("max_connections") ? answer : undefined
    })
    const { ask } = yield* makeWorld({
      stream: () => Net.connect(server.port, server.host),
      ...Pg.Pool.sizeForFleet({ environments: 20 })
    })
    yield* ask
  })

const breakerOptions = { jitter: "none", key: "db1:5432/app" } as const

const scenarios: { readonly [N in Exclude<Logbook.Name, "resetFailed">]: Scenario } = {
  connectionOpened: {
    provoke: Effect.flatMap(makeWorld(), ({ pool }) => pool.warm(1)),
    level: "DEBUG",
    message: "Session 1 is open: the server's process 1, after 0 ms.",
    annotations: {
      ...pooled,
      ...onServer,
      "db.connection.id": 1,
      "db.connection.pid": 1,
      "db.connection.connect_ms": 0
    }
  },
  connectionClosed: {
    provoke: Effect.gen(function*() {
      const { ask, pool } = yield* makeWorld()
      yield* ask
      yield* TestClock.adjust("3 seconds")
      yield* pool.evictAll
      yield* turns
    }),
    level: "DEBUG",
    message: "Session 1 is closed (invalid) after 3000 ms and 1 checkout.",
    annotations: {
      ...pooled,
      ...onServer,
      "db.connection.id": 1,
      "db.connection.pid": 1,
      "db.connection.close_reason": "invalid",
      "db.connection.age_ms": 3000,
      "db.connection.uses": 1
    }
  },
  connectionFailed: {
    provoke: Effect.gen(function*() {
      const { ask } = yield* makeWorld({ retry: false }, (server) => {
        server.manner = "is full"
      })
      yield* played(ask)
    }),
    level: "WARN",
    message: "No session could be opened: 53300 too_many_connections. The next connect is tried within 100 ms.",
    annotations: {
      ...pooled,
      "error.type": "53300",
      "db.response.status_code": "53300",
      "db.error.kind": "Overloaded",
      "db.connection.retry_after_ms": 100
    }
  },
  hookFailed: {
    provoke: Effect.gen(function*() {
      const quota = Object.assign(new Error("hunter2 has none"), {
        severity: "ERROR",
        code: "23514",
        constraint: "quota_positive",
        table: "quota",
        detail: "Failing row contains (hunter2)."
      })
      const { ask } = yield* makeWorld({ afterRelease: () => Effect.fail(quota) })
      yield* ask
      yield* turns
    }),
    level: "WARN",
    message: "The afterRelease hook failed: 23514 check_violation. Its session is closed.",
    annotations: {
      ...pooled,
      "db.hook": "afterRelease",
      "error.type": "23514",
      "db.response.status_code": "23514",
      "db.error.constraint": "quota_positive",
      "db.collection.name": "quota"
    }
  },
  acquireTimeout: {
    provoke: Effect.gen(function*() {
      const { ask, pool } = yield* makeWorld({ max: 1, acquireTimeout: "2 seconds" })
      yield* pool.get()
      yield* played(ask)
    }),
    level: "WARN",
    message: "No session could be had within 2000 ms: 1 of 1 are in use, 0 others wait (phase Queue).",
    annotations: {
      ...pooled,
      "db.acquire.phase": "Queue",
      "db.acquire.waited_ms": 2000,
      "db.pool.total": 1,
      "db.pool.idle": 0,
      "db.pool.active": 1,
      "db.pool.waiting": 0,
      "db.pool.connecting": 0,
      "db.pool.max": 1
    }
  },
  fleetTooLarge: {
    provoke: askFleet(ScriptedServer.rows([{
      max: "23",
      su: "3",
      reserved: "0",
      may: "f",
      role: "-1",
      db: "-1",
      used: "6",
      byRole: "1",
      byDatabase: "1",
      byFleet: "1",
      standby: "f"
    }])),
    level: "WARN",
    message:
      "No pool size is safe: limit the concurrency to 6 environments, put a transaction pooler in between, or raise the " +
      "limit. 20 environments, 2 times over while a deployment replaces them, need 40 sessions, but the server's " +
      "max_connections less what is reserved allows 20, others have 5 of them, and the fleet may fill 80 % of the rest.",
    annotations: {
      ...pooled,
      "db.fleet.environments": 20,
      "db.fleet.workers": 1,
      "db.fleet.overlap": 2,
      "db.fleet.share": 0.8,
      "db.fleet.bound": "server",
      "db.fleet.limit": 20,
      "db.fleet.others": 5,
      "db.fleet.safe_environments": 6
    }
  },
  fleetUnknown: {
    provoke: askFleet(ScriptedServer.error("42501", "permission denied for hunter2")),
    level: "WARN",
    message:
      "The server has not said how many sessions it allows (42501 insufficient_privilege): the pool keeps to 1 and asks " +
      "again with its next session. Give max instead of Pool.sizeForFleet if it never does.",
    annotations: {
      ...pooled,
      "error.type": "42501",
      "db.response.status_code": "42501",
      "db.pool.max": 1
    }
  },
  fleetOff: {
    provoke: makeWorld({ host: "db1-pooler.example.com", ...Pg.Pool.sizeForFleet({ environments: 20 }) }),
    level: "INFO",
    message:
      "db1-pooler.example.com looks like a pooler, whose places are not the server's: the pool is not sized for its " +
      "fleet, and may have 2 sessions. If it is one for transactions, set pooler: \"transaction\".",
    annotations: { ...pooled, "server.address": "db1-pooler.example.com", "db.pool.max": 2 }
  },
  queryRetry: {
    provoke: Effect.flatMap(makeWorld({}, refuses), ({ ask }) => played(ask)),
    level: "INFO",
    message: "Attempt 2 begins, 100 ms after the last one failed: ECONNREFUSED.",
    annotations: {
      ...pooled,
      ...refused,
      "db.error.kind": "Unreachable",
      "db.error.effect": "NotRun",
      "db.retry.attempt": 2,
      "db.retry.delay_ms": 100
    }
  },
  queryGaveUp: {
    provoke: Effect.flatMap(makeWorld({ breaker: false }, refuses), ({ ask }) => played(ask)),
    level: "ERROR",
    message: "Given up after 5 attempts, as many as retry allows: ECONNREFUSED.",
    annotations: {
      ...pooled,
      ...refused,
      "db.error.kind": "Unreachable",
      "db.error.effect": "NotRun",
      "db.retry.attempts": 5,
      "db.retry.stopped_by": "attempts"
    }
  },
  deadlineExceeded: {
    provoke: Effect.gen(function*() {
      const { run, sql } = yield* makeWorld()
      yield* played(run(sql.unsafe("SELECT 'hold'"), { deadline: "200 millis" }))
    }),
    level: "WARN",
    message:
      "A call was not done within its deadline of 200 ms: its SELECT was cut off. Nobody knows what it has done.",
    annotations: {
      ...pooled,
      "db.deadline_ms": 200,
      "db.operation.name": "SELECT",
      "db.error.effect": "Unknown",
      "error.type": "DeadlineExceeded"
    }
  },
  outcomeUnknown: {
    provoke: Effect.gen(function*() {
      const { server, sql } = yield* makeWorld({ retry: false })
      yield* Effect.forkChild(sql.unsafe("INSERT 'hold'"), { startImmediately: true })
      yield* turns
      server.peers[0]!.close("end")
      yield* turns
    }),
    level: "ERROR",
    message:
      "Nobody knows whether a statement (INSERT) took effect: its answer was lost (ECONNRESET). It is not repeated; " +
      "declare idempotent what may be.",
    annotations: {
      ...pooled,
      "db.operation.name": "INSERT",
      "error.type": "ECONNRESET",
      "db.error.kind": "Unreachable"
    }
  },
  classifierFailed: {
    provoke: Effect.gen(function*() {
      const classify = () => {
        throw new RangeError("hunter2")
      }
      const { ask } = yield* makeWorld({ classify, retry: false }, refuses)
      yield* played(ask)
    }),
    level: "WARN",
    message:
      "A classifier failed; the default verdict stands (RangeError). It is not told of again: it has to return a verdict.",
    annotations: { ...pooled, "error.type": "RangeError" }
  },
  leak: {
    provoke: Effect.gen(function*() {
      const { pool } = yield* makeWorld({ leakThreshold: "1 minute" })
      yield* pool.get()
      yield* TestClock.adjust("1 minute")
    }),
    level: "WARN",
    message:
      "Session 1 has been held for longer than leakThreshold, 60000 ms so far, by fiber 0 (run the work inside " +
      "Effect.fn or Effect.withSpan to learn where).",
    annotations: {
      ...pooled,
      "db.connection.id": 1,
      "db.connection.held_ms": 60_000,
      "db.connection.holder.fiber": 0
    }
  },
  leakOver: {
    provoke: Effect.gen(function*() {
      const { pool } = yield* makeWorld({ leakThreshold: "1 minute" })
      yield* Effect.scoped(Effect.andThen(pool.get(), TestClock.adjust("90 seconds")))
    }),
    level: "INFO",
    message:
      "Session 1, which was held for longer than leakThreshold, has come back after 90000 ms, from fiber 0 (run " +
      "the work inside Effect.fn or Effect.withSpan to learn where).",
    annotations: {
      ...pooled,
      "db.connection.id": 1,
      "db.connection.held_ms": 90_000,
      "db.connection.holder.fiber": 0
    }
  },
  evictAll: {
    provoke: Effect.gen(function*() {
      const { pool } = yield* makeWorld()
      yield* pool.warm(2)
      yield* pool.evictAll
    }),
    level: "WARN",
    message:
      "All sessions are given up, 2 of them: idle ones now, lent ones when they come back. Somebody has asked for " +
      "it, or the server is not what it was.",
    annotations: { ...pooled, "db.pool.evicted": 2 }
  },
  drainFailed: {
    provoke: Effect.gen(function*() {
      const { pool } = yield* makeWorld()
      yield* pool.get()
      yield* played(pool.drain("2 seconds"))
    }),
    level: "ERROR",
    message: "The pool closes, and after 2000 ms 1 borrower is not done: their work is cancelled. Stop the work " +
      "first, or allow more time (closeTimeout, or the deadline of drain).",
    annotations: { ...pooled, "db.pool.cut_off": 1, "db.pool.waited_ms": 2000 }
  },
  closed: {
    provoke: Effect.flatMap(makeWorld(), ({ close }) => close),
    level: "DEBUG",
    message: "The pool is closed, and no session is left.",
    annotations: { ...pooled, "db.pool.left": 0 }
  },
  breakerOpened: {
    provoke: Effect.gen(function*() {
      const { ask } = yield* makeWorld({ breaker: { jitter: "none", failures: 1 }, retry: false }, refuses)
      yield* played(ask)
    }),
    level: "WARN",
    message: "The circuit db1:5432/app is open: ECONNREFUSED. Calls fail at once; the database is asked again in " +
      "30000 ms.",
    annotations: {
      ...pooled,
      ...refused,
      "db.breaker.key": "db1:5432/app",
      "db.breaker.from": "Closed",
      "db.breaker.to": "Open",
      "db.breaker.openings": 1,
      "db.breaker.retry_after_ms": 30_000
    }
  },
  breakerMoved: {
    provoke: Effect.gen(function*() {
      const { ask, server } = yield* makeWorld({ breaker: { jitter: "none", failures: 1 }, retry: false }, refuses)
      yield* played(ask)
      server.manner = "accepts"
      yield* TestClock.adjust("31 seconds")
      yield* played(ask)
    }),
    level: "INFO",
    message: "The circuit db1:5432/app is half open: one call finds out whether the database is back.",
    annotations: {
      ...pooled,
      "db.breaker.key": "db1:5432/app",
      "db.breaker.from": "Open",
      "db.breaker.to": "HalfOpen"
    }
  },
  breakerObserverFailed: {
    provoke: Effect.gen(function*() {
      const onTransition = () => {
        throw new TypeError("hunter2")
      }
      const breaker = yield* Pg.Breaker.make({ ...breakerOptions, onTransition })
      yield* Effect.scoped(breaker.isolate("moving"))
    }),
    level: "WARN",
    message: "The onTransition of the circuit db1:5432/app threw: TypeError.",
    annotations: { "db.breaker.key": "db1:5432/app", "error.type": "TypeError" }
  },
  breakerSnapshotFailed: {
    provoke: Layer.build(Pg.Breaker.layerHydrated({
      ...breakerOptions,
      load: Effect.fail(new Error("hunter2")),
      save: () => Effect.void
    })),
    level: "WARN",
    message:
      "The snapshot of the circuit db1:5432/app could not be loaded, so it begins closed (an error without a name).",
    annotations: { "db.breaker.key": "db1:5432/app", "db.breaker.step": "load", "error.type": "_OTHER" }
  },
  breakerStoreLost: {
    provoke: sharedWith(unavailable),
    level: "WARN",
    message:
      "The store of the circuit db1:5432/app gives no answer that can be used: until it does, this process goes " +
      "by its own (CircuitBreakerError).",
    annotations: { "db.breaker.key": "db1:5432/app", "error.type": "CircuitBreakerError" }
  },
  breakerStoreBack: {
    provoke: sharedWith(unavailable),
    level: "INFO",
    message: "The store of the circuit db1:5432/app answers again, and the circuit is shared again.",
    annotations: { "db.breaker.key": "db1:5432/app" }
  },
  credentialsNotRenewed: {
    provoke: Effect.gen(function*() {
      let calls = 0
      const password = Pg.Credentials.cached(
        Effect.suspend(() =>
          calls++ === 0 ? Effect.succeed(Redacted.make("hunter2")) : Effect.fail(new TypeError("hunter2"))
        ),
        { timeToLive: "10 minutes" }
      )
      const { pool } = yield* makeWorld({ password })
      yield* pool.warm(1)
      yield* TestClock.adjust("9 minutes")
      yield* pool.warm(2)
    }),
    level: "WARN",
    message: "The password could not be renewed: TypeError. The one at hand is good until 1970-01-01T00:10:00.000Z.",
    annotations: {
      ...pooled,
      "error.type": "TypeError",
      "db.credentials.expires_at": "1970-01-01T00:10:00.000Z"
    }
  },
  healthOptionFailed: {
    provoke: askHealth("readyz"),
    level: "WARN",
    message: "The option details of the health routes threw, so nobody is shown any: RangeError.",
    annotations: { "error.type": "RangeError" }
  },
  healthUnavailable: {
    // The loggers are among the services that are not there, so it goes to the console.
    provoke: Logbook.write("healthUnavailable", LogFields.ofBuild(invalid)),
    level: "ERROR",
    message: "The services that health is asked of could not be built, and every question is answered with 503: " +
      invalid.message,
    annotations: { "error.type": "InvalidOption", "exception.message": invalid.message }
  },
  healthEnded: {
    provoke: Effect.map(HealthEndpoint.make({ pools: [], checks: {}, isTrusted: () => false, metrics: undefined }), (
      { outlived }
    ) => outlived()),
    level: "DEBUG",
    message: "The services that health is asked of have ended, and every question is answered with 503.",
    annotations: {}
  },
  metricsUnreadable: {
    provoke: askHealth("metrics"),
    level: "ERROR",
    message:
      "The metrics could not be read: TypeError. A collector in the registry fails, or two pools have one name; whoever " +
      "scrapes is answered with 500.",
    annotations: { "error.type": "TypeError" }
  },
  otlpRefused: {
    provoke: flushTo(() => Promise.resolve(new Response(null, { status: 401 }))),
    level: "WARN",
    message:
      "The collector has not taken metrics (status 401). What it refuses is not sent for a minute: spans and log records of "
      + "that time are lost, metrics are made up for.",
    annotations: { "db.otlp.reasons": "metrics (status 401)" }
  },
  otlpLate: {
    provoke: Effect.suspend(() => {
      let answer: () => void
      const answered = new Promise<Response>((resolve) => answer = () => resolve(new Response(null, { status: 200 })))
      return Effect.andThen(
        flushTo(() => answered),
        // The last flush needs its answer: the clock stands still then.
        Effect.addFinalizer(() => Effect.sync(() => answer()))
      )
    }),
    level: "WARN",
    message: "The collector has not answered within 300 ms. The next flush waits for it once more.",
    annotations: { "db.otlp.waited_ms": 300 }
  },
  invocationFailed: {
    provoke: Effect.gen(function*() {
      const environment = yield* Pg.Serverless.environment(Layer.empty)
      const denied = Object.assign(new Error("hunter2"), { name: "AccessDeniedException", stack: "" })
      const handler = Pg.Serverless.lambda(
        () => Effect.fail({ _tag: "SecretsDown", cause: denied }),
        { layer: environment }
      )
      const context = { awsRequestId: "8476a536", getRemainingTimeInMillis: () => 3000 }
      yield* Effect.promise(() => handler({}, context).catch(() => {}))
    }),
    level: "ERROR",
    message: "The invocation 8476a536 has failed: SecretsDown: caused by AccessDeniedException",
    annotations: {
      "faas.invocation_id": "8476a536",
      "error.type": "SecretsDown",
      "exception.type": "SecretsDown: caused by AccessDeniedException",
      "exception.message": "SecretsDown: caused by AccessDeniedException",
      "exception.stacktrace": "SecretsDown: SecretsDown: caused by AccessDeniedException"
    }
  },
  invocationOverran: {
    provoke: Effect.gen(function*() {
      const environment = yield* Pg.Serverless.environment(Layer.empty)
      const invocation = { id: "8476a536" }
      const stubborn = Effect.uninterruptible(Effect.sleep("1 hour"))
      yield* played(Effect.promise(() => environment.runExit(stubborn, { deadline: "2 seconds", invocation })))
    }),
    level: "ERROR",
    message:
      "The invocation 8476a536 was allowed 1750 ms, and is answered although its work goes on: something in it cannot be " +
      "interrupted, or a finalizer hangs. It may run on in the next invocation.",
    annotations: { "faas.invocation_id": "8476a536", "db.deadline_ms": 1750 }
  },
  environmentNotWarmed: {
    provoke: Effect.gen(function*() {
      const environment = yield* Pg.Serverless.environment(
        Layer.effectDiscard(Effect.fail({ _tag: "NoSecret", password: "hunter2" })),
        { warm: true }
      )
      yield* Effect.promise(() => environment.ready)
    }),
    level: "WARN",
    message: "Nothing could be made ready before the first invocation, which tries again: NoSecret",
    annotations: { "error.type": "NoSecret" }
  },
  releaseListenerFailed: {
    provoke: Effect.gen(function*() {
      const { stream } = makeMemoryServer()
      const environment = yield* Pg.Serverless.environment(Pg.layer({ stream, host: "db1", username: "nobody" }))
      Pg.Serverless.vercel(environment).on("release", () => {
        throw new TypeError("hunter2")
      })
      yield* Effect.promise(() => environment.run(Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`)))
    }),
    level: "WARN",
    message:
      "A listener for the release of Serverless.vercel threw: TypeError. The platform may suspend this process " +
      "while its sessions are open.",
    annotations: { "error.type": "TypeError" }
  },
  extensionNotRegistered: {
    provoke: Effect.gen(function*() {
      const environment = yield* Pg.Serverless.environment(Layer.empty)
      yield* Effect.promise(() =>
        environment.run(Logbook.write("extensionNotRegistered", { "error.type": "ECONNREFUSED" }))
      )
    }),
    level: "WARN",
    message:
      "The internal extension could not be registered (ECONNREFUSED), so Lambda kills this process without a SIGTERM. Await " +
      "the handler's ready at the top level of its module.",
    annotations: { "error.type": "ECONNREFUSED" }
  }
}

/** Pushes metrics, at the end of an invocation that had 300 milliseconds for it. */
function flushTo(fetch: typeof globalThis.fetch) {
  return Effect.gen(function*() {
    const layer = Otlp.layer({ signals: ["metrics"], resource: { serviceName: "orders" } })
    const context = yield* Layer.build(layer)
    const flush = yield* Effect.forkScoped(Effect.provide(Otlp.flush(), context), { startImmediately: true })
    yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
    yield* TestClock.adjust("300 millis")
    yield* Fiber.join(flush)
  }).pipe(Effect.provideService(FetchHttpClient.Fetch, fetch))
}

/** A store that answers first with this, and then as it should. */
function sharedWith(trouble: Effect.Effect<never, CircuitBreaker.CircuitBreakerError>) {
  return Effect.gen(function*() {
    let isDown = true
    const memory = yield* Layer.build(Layer.fresh(CircuitBreaker.layerStoreMemory()))
    const healthy = Context.get(memory, CircuitBreaker.CircuitBreakerStore)
    const store = CircuitBreaker.CircuitBreakerStore.of({
      ...healthy,
      state: (key) => Effect.suspend(() => isDown ? trouble : healthy.state(key))
    })
    const context = yield* Effect.provideService(
      Layer.build(Pg.Breaker.layerShared(breakerOptions)),
      CircuitBreaker.CircuitBreakerStore,
      store
    )
    const breaker = Context.get(context, Pg.Breaker.Breaker)
    const fail = Effect.exit(breaker.protect(Effect.fail(Object.assign(new Error("gone"), { code: "ECONNRESET" }))))
    yield* fail
    yield* turns
    isDown = false
    yield* TestClock.adjust("2 seconds")
    yield* fail
    yield* turns
  })
}

/** Numbers of fibers and of the connect's pauses are not the same each time. */
const comparable = ({ annotations, level, message }: Line): Line => {
  const { "db.connection.holder.fiber": fiber, ...rest } = annotations
  return {
    level,
    message: fiber === undefined ? message : message.replace(`fiber ${fiber}`, "fiber 0"),
    annotations: { ...rest, ...(fiber !== undefined && { "db.connection.holder.fiber": 0 }) }
  }
}

const scenarioNames = Object.keys(scenarios) as Array<keyof typeof scenarios>

describe("a line of the log", () => {
  it.effect.each(scenarioNames)("is JSON that can be understood alone: %s", (name) =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      const { annotations, level, message, provoke } = scenarios[name]
      yield* recorded(Effect.scoped(provoke))
      const { event } = table[name]
      const found = lines.filter((line) => line.annotations["event.name"] === event && line.level === level)
      assert.isAbove(found.length, 0, `only ${JSON.stringify(lines)}`)
      assert.deepStrictEqual(comparable(found[0]!), {
        level,
        message,
        annotations: { "event.name": event, ...annotations }
      })
      for (const line of lines) {
        assert.notProperty(line, "cause")
        assert.notInclude(JSON.stringify(line), "hunter2")
      }
    }))

  class QuotaExceeded extends Error {
    override readonly name = "QuotaExceeded"
  }
  const unnamed = "an error without a name"
  const spoken: ReadonlyArray<
    readonly [what: string, hook: Effect.Effect<never, unknown>, type: string, words: string]
  > = [
    ["its class", Effect.fail(new QuotaExceeded("hunter2")), "QuotaExceeded", "QuotaExceeded"],
    ["its class, if it is a defect", Effect.die(new QuotaExceeded("hunter2")), "QuotaExceeded", "QuotaExceeded"],
    ["its tag", Effect.fail({ _tag: "OverQuota", quota: "hunter2" }), "OverQuota", "OverQuota"],
    ["nothing, if it has no name", Effect.fail(new Error("hunter2")), "_OTHER", unnamed],
    ["nothing, if it is a text", Effect.fail("hunter2"), "_OTHER", unnamed],
    ["nothing, if it is its own class that would tell", Effect.fail({ _tag: "hunter2 has none" }), "_OTHER", unnamed]
  ]
  it.effect.each(spoken)("calls an error of the program's by %s", ([, hook, type, words]) =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder("Warn")
      yield* recorded(Effect.scoped(Effect.gen(function*() {
        const { ask } = yield* makeWorld({ afterRelease: () => hook })
        yield* ask
        yield* turns
      })))
      assert.strictEqual(lines[0]?.message, `The afterRelease hook failed: ${words}. Its session is closed.`)
      assert.strictEqual(lines[0]?.annotations["error.type"], type)
      assert.notInclude(JSON.stringify(lines), "hunter2")
    }))

  it.effect("has what was said in a field of its own, and not in its words, where the option errorText asks for it", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder("Info")
      yield* recorded(Effect.scoped(Effect.gen(function*() {
        const hook = Effect.fail(new Error("quota of kate is used up"))
        const { ask, server } = yield* makeWorld({ errorText: "full", breaker: false, afterRelease: () => hook })
        yield* ask
        yield* turns
        server.manner = "refuses"
        yield* played(ask)
      })))
      const texts = lines.map(({ annotations }) => [annotations["event.name"], annotations["exception.message"]])
      assert.deepInclude(texts, ["db.connection.hook_failed", "quota of kate is used up"])
      assert.deepInclude(texts, ["db.connection.failed", "connect ECONNREFUSED"])
      assert.deepInclude(texts, ["db.query.retry", "connect ECONNREFUSED"])
      assert.deepInclude(texts, ["db.query.gave_up", "connect ECONNREFUSED"])
      for (const { message } of lines) assert.notMatch(message, /kate|connect E/)
    }))

  it.effect("has no fields but those of its table", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      for (const name of scenarioNames) yield* recorded(Effect.scoped(scenarios[name].provoke))
      const allowed = new Map<unknown, Set<string>>()
      for (const { event, fields } of Object.values(table)) {
        allowed.set(event, new Set([...allowed.get(event) ?? [], ...fields]))
      }
      for (const { annotations } of lines) {
        const { "db.client.connection.pool.name": _pool, "event.name": event, suppressed: _, ...rest } = annotations
        for (const field of Object.keys(rest)) assert.include([...allowed.get(event) ?? []], field, String(event))
      }
    }))
})

describe("who reads the log", () => {
  const provokeAll = Effect.forEach(scenarioNames, (name) => Effect.scoped(scenarios[name].provoke))

  it.effect("reads nothing with the level None", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder("None")
      yield* recorded(provokeAll)
      assert.deepStrictEqual(lines, [])
    }))

  it.effect("reads nothing without a logger, and nobody else does", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      yield* recorded(Effect.provide(provokeAll, Logger.layer([])))
      assert.deepStrictEqual(lines, [])
    }))

  it.effect("reads nothing of a layer that is silenced, whatever the level of its callers", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      yield* recorded(Effect.scoped(Effect.gen(function*() {
        const { ask } = yield* Effect.provideService(
          makeWorld({ breaker: false }, refuses),
          References.MinimumLogLevel,
          "None"
        )
        assert.isTrue(Exit.isFailure(yield* played(ask)))
      })))
      assert.deepStrictEqual(lines, [])
    }))

  it.effect("reads no more than the level asks for", () =>
    Effect.gen(function*() {
      for (
        const [level, expected] of [["Info", ["ERROR", "INFO", "WARN"]], ["Warn", ["ERROR", "WARN"]], ["Error", [
          "ERROR"
        ]]] as const
      ) {
        const { lines, recorded } = recorder(level)
        yield* recorded(provokeAll)
        assert.deepStrictEqual([...new Set(lines.map(({ level }) => level))].sort(), [...expected])
      }
    }))

  it.effect("finds the trace and the annotations of the call that a line is about", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      yield* recorded(
        Effect.gen(function*() {
          const { ask } = yield* Effect.withSpan(makeWorld({}, refuses), "start")
          const call = ask.pipe(Effect.withSpan("checkout"), Effect.annotateLogs("order", 7))
          yield* Effect.withSpan(
            Effect.gen(function*() {
              const { traceId } = yield* Effect.currentSpan
              yield* played(call)
              const retries = lines.filter(({ annotations }) => annotations["event.name"] === "db.query.retry")
              assert.isAbove(retries.length, 0)
              for (const { annotations } of retries) {
                assert.strictEqual(annotations["trace_id"], traceId)
                assert.match(String(annotations["span_id"]), /^[0-9a-f]{16}$/)
                assert.strictEqual(annotations["order"], 7)
              }
              // What the pool does for all is nobody's.
              const failed = lines.find(({ annotations }) => annotations["event.name"] === "db.connection.failed")
              assert.isDefined(failed)
              assert.notProperty(failed!.annotations, "trace_id")
              assert.notProperty(failed!.annotations, "order")
            }),
            "request"
          )
        }).pipe(Effect.scoped)
      )
    }))

  it.effect("finds the trace of a call that has waited in vain", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder("Info")
      yield* recorded(Effect.scoped(Effect.gen(function*() {
        const { ask, pool } = yield* makeWorld({ max: 1, acquireTimeout: "1 second" })
        yield* pool.get()
        yield* Effect.withSpan(Effect.andThen(Effect.annotateLogs(played(ask), "order", 7), Effect.void), "request")
      })))
      const [line] = lines
      assert.strictEqual(line?.annotations["event.name"], "db.acquire.timeout")
      assert.match(String(line?.annotations["trace_id"]), /^[0-9a-f]{32}$/)
      assert.strictEqual(line?.annotations["order"], 7)
    }))

  it.effect("reads once that a unit of work was given up, however deep its statements are", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder("Error")
      yield* recorded(Effect.scoped(Effect.gen(function*() {
        const { ask, run } = yield* makeWorld({ breaker: false }, refuses)
        yield* played(run(run(ask), { idempotent: true }))
      })))
      assert.deepStrictEqual(lines.map(({ annotations }) => annotations["event.name"]), ["db.query.gave_up"])
    }))

  it.effect("learns from which pool a hook's own lines come", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      yield* recorded(Effect.scoped(Effect.gen(function*() {
        const { pool } = yield* makeWorld({ afterConnect: () => Effect.logInfo("mine") })
        yield* pool.warm(1)
      })))
      const mine = lines.find(({ message }) => message === "mine")
      assert.deepStrictEqual(mine?.annotations, pooled)
    }))

  it.effect("is not shown what ends in the pool's logger by a defect of it", () =>
    Effect.gen(function*() {
      const broken = Logger.make(() => {
        throw new Error("disk full")
      })
      yield* Effect.scoped(Effect.gen(function*() {
        const { ask, pool } = yield* makeWorld()
        yield* ask
        yield* pool.evictAll
        yield* ask
      })).pipe(Effect.provide(Logger.layer([broken])), Effect.provideService(References.MinimumLogLevel, "Trace"))
    }))
})

describe("a logger that writes into the pool it reads of", () => {
  it.effect("does not feed on itself while the database is down", () =>
    Effect.gen(function*() {
      let written = 0
      let write: Effect.Effect<unknown, unknown> = Effect.void
      const toDatabase = Logger.make(({ fiber }) => {
        written++
        Effect.runForkWith(fiber.context)(write)
      })
      yield* Effect.scoped(Effect.gen(function*() {
        const { ask } = yield* makeWorld({ breaker: false }, refuses)
        write = ask
        yield* played(ask)
        for (let second = 0; second < 60; second++) {
          yield* TestClock.adjust("1 second")
          yield* turns
        }
      })).pipe(Effect.provide(Logger.layer([toDatabase])), Effect.provideService(References.MinimumLogLevel, "Trace"))
      assert.isAbove(written, 3)
      assert.isBelow(written, 50)
    }))
})

describe("a healthy pool", () => {
  it.effect("writes a line when a session is opened, and none for what is done with it", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      yield* recorded(Effect.scoped(Effect.gen(function*() {
        const { ask, run } = yield* makeWorld()
        for (let time = 0; time < 100; time++) yield* run(ask)
        assert.deepStrictEqual(lines.map(({ annotations }) => annotations["event.name"]), ["db.connection.opened"])
      })))
    }))
})

describe("an outage of an hour", () => {
  it.effect(
    "under ten callers that never give in is told of in tens of lines, and is over in the log when it is over",
    () =>
      Effect.gen(function*() {
        const { lines, recorded } = recorder("Info")
        yield* recorded(Effect.scoped(Effect.gen(function*() {
          const { ask, breaker, pool, server } = yield* makeWorld({
            max: 4,
            breaker: { jitter: "none", openFor: "1 second", maxOpenFor: "10 seconds" }
          })
          yield* ask
          server.manner = "refuses"
          for (const peer of server.peers) peer.close("reset")
          yield* turns
          let calls = 0
          let running = true
          const caller = Effect.whileLoop({
            while: () => running,
            body: () => Effect.andThen(Effect.exit(ask), Effect.sleep("1 second")),
            step: () => {
              calls++
            }
          })
          const callers = yield* Effect.forEach(Array.from({ length: 10 }), () => Effect.forkChild(caller))
          for (let second = 0; second < 3600; second++) {
            yield* TestClock.adjust("1 second")
            yield* turn
          }
          const during = lines.length
          assert.isAbove(calls, 30_000)
          assert.isBelow(during, 100, `${during} lines of ${calls} calls`)
          assert.isAbove(during, 10)
          const alarms = lines.filter(({ annotations }) => annotations["db.breaker.to"] === "Open")
          assert.isAbove(alarms.length, 3)
          server.manner = "accepts"
          for (let second = 0; second < 400; second++) {
            yield* TestClock.adjust("1 second")
            yield* turns
          }
          running = false
          yield* played(Fiber.joinAll(callers))
          assert.strictEqual((yield* breaker.state)._tag, "Closed")
          assert.isAbove((yield* pool.stats).total, 0)
          const { annotations, message } = lines.at(-1)!
          assert.strictEqual(annotations["db.breaker.to"], "Closed")
          const { "db.breaker.outage_ms": outage, "db.breaker.rejected": rejected } = annotations
          assert.isAtLeast(Number(outage), 3_590_000)
          assert.isAbove(Number(rejected), 30_000)
          assert.include(
            message,
            `It has kept calls out for ${String(outage)} ms and turned ${String(rejected)} calls away.`
          )
        })))
      }),
    60_000
  )
})

describe("docs/logs.md", () => {
  const levels: Record<string, string> = { Debug: "debug", Info: "info", Warn: "warning", Error: "error" }

  it("lists the events, levels and fields as the code has them", () => {
    const written = readFileSync(new URL("../docs/logs.md", import.meta.url), "utf8")
    const events = written.slice(written.indexOf("## Events"), written.indexOf("## Fields"))
    const rows = events.split("\n").filter((line) => line.startsWith("| `db.")).map((line) =>
      line.split("|").map((cell) => cell.trim())
    )
    const failure =
      "`error.type`, `db.response.status_code`, `db.error.kind`, `db.error.constraint`, `db.collection.name`, " +
      "`exception.message`"
    const documented = rows.map(([, event, level, , fields]) => [
      event!.replaceAll("`", ""),
      {
        level,
        fields: [...fields!.replace(/[*_]the failure[*_]/, failure).matchAll(/`([^`]+)`/g)].map(([, field]) => field)
      }
    ])
    const coded = new Map<string, { level: string; fields: Array<keyof LogFields.Fields> }>()
    for (const { event, fields, level } of Object.values(table)) {
      const known = coded.get(event)
      coded.set(event, {
        level: known === undefined ? levels[level]! : `${levels[level]}, ${known.level}`,
        fields: [...fields]
      })
    }
    assert.deepStrictEqual(documented, Array.from(coded) as never)
  })
})
