import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpEffect from "effect/http/HttpEffect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { eventually, makeWitness, type Witness } from "./witness.ts"

const { Serverless } = Pg

const ndjson = <E, R>(rows: Stream.Stream<unknown, E, R>) =>
  Stream.encodeText(Stream.map(rows, (row) => `${JSON.stringify(row)}\n`))

/** The query says what is asked, and the path how it is answered. */
const answer = (request: Request) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    const { pathname, searchParams } = new URL(request.url)
    const statement = sql.unsafe<object>(searchParams.get("sql") ?? "SELECT 1 AS one")
    if (pathname === "/rows") return Response.json(yield* statement)
    return new Response(yield* Stream.toReadableStreamEffect(ndjson(statement.stream)))
  })

/** Waits until a statement runs in so many sessions. */
const running = (witness: Witness) => (count: number) =>
  eventually(
    `${count} statements under way`,
    Effect.map(
      witness.value<number>(
        `SELECT count(*)::int FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
           AND backend_type = 'client backend'`
      ),
      (active) => active === count
    )
  )

const makeWorld = Effect.fnUntraced(function*(options: Pg.Options = {}, deadline = 60_000) {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  const environment = yield* Serverless.environment(Pg.layer({ url, max: 2, ...options }))
  const handler = Serverless.web(answer, { layer: environment, deadline: () => deadline })
  const request = (path: string, sql: string) => `https://app.example/${path}?${new URLSearchParams({ sql })}`
  return {
    witness,
    environment,
    ask: (path: string, sql: string, init?: RequestInit) =>
      Effect.promise(() => handler(new Request(request(path, sql), init))),
    start: (path: string, sql: string, init?: RequestInit) => handler(new Request(request(path, sql), init)),
    isRunning: running(witness)
  }
})

const json = (response: Response) => Effect.promise(() => response.json() as Promise<unknown>)
const text = (response: Response) => Effect.promise(() => response.text())
const brokenWith = (response: Response) =>
  Effect.promise(() => response.text().then((whole) => `nothing, but: ${whole}`, (error: Error) => error.name))

/** It begins at once. */
const endless = `SELECT n, CASE WHEN n > 5000 THEN pg_sleep(0.01)::text END AS slept
                 FROM generate_series(1, 1000000) AS n`

describe("a handler of requests that asks a database", () => {
  it.live("answers with rows, and with a stream of more rows than are at hand at once", () =>
    Effect.gen(function*() {
      const { ask, witness } = yield* makeWorld()
      assert.deepStrictEqual(yield* json(yield* ask("rows", "SELECT 7 AS n")), [{ n: 7 }])
      const body = yield* text(yield* ask("stream", "SELECT n FROM generate_series(1, 20000) AS n"))
      const lines = body.trim().split("\n")
      assert.strictEqual(lines.length, 20_000)
      assert.strictEqual(lines.at(-1), "{\"n\":20000}")
      // All with the same session, which has come back each time.
      assert.strictEqual(yield* witness.count, 1)
    }))

  it.live("ends the statement on the server when the client leaves in the middle, and goes on with the same pool", () =>
    Effect.gen(function*() {
      const { ask, isRunning } = yield* makeWorld({ max: 1 })
      const answer = yield* ask("stream", endless)
      const reader = answer.body!.getReader()
      yield* Effect.promise(() => reader.read())
      yield* isRunning(1)
      yield* Effect.promise(() => reader.cancel())
      yield* isRunning(0)
      assert.deepStrictEqual(yield* json(yield* ask("rows", "SELECT 1 AS n")), [{ n: 1 }])
    }))

  it.live("ends it when the request is aborted: before the answer, and in the middle of it", () =>
    Effect.gen(function*() {
      const { ask, isRunning, start } = yield* makeWorld({ max: 1 })
      const before = new AbortController()
      const pending = start("rows", "SELECT pg_sleep(60)", { signal: before.signal })
      yield* isRunning(1)
      before.abort()
      assert.strictEqual((yield* Effect.promise(() => pending)).status, 499)
      yield* isRunning(0)

      const middle = new AbortController()
      const answer = yield* ask("stream", endless, { signal: middle.signal })
      yield* isRunning(1)
      middle.abort()
      yield* isRunning(0)
      assert.notMatch(yield* brokenWith(answer), /^nothing/)
      assert.deepStrictEqual(yield* json(yield* ask("rows", "SELECT 1 AS n")), [{ n: 1 }])
    }))

  it.live("ends it at the deadline, in the middle of an answer too", () =>
    Effect.gen(function*() {
      const { ask, isRunning } = yield* makeWorld({ max: 1 }, 1000)
      const late = yield* ask("rows", "SELECT pg_sleep(60)")
      assert.strictEqual(late.status, 504)
      yield* isRunning(0)
      const answer = yield* ask("stream", endless)
      assert.strictEqual(answer.status, 200)
      assert.match(yield* brokenWith(answer), /^(InvocationTimeout|DeadlineExceeded)$/)
      yield* isRunning(0)
      assert.deepStrictEqual(yield* json(yield* ask("rows", "SELECT 1 AS n")), [{ n: 1 }])
    }))

  it.live("says what went wrong by a status and a SQLSTATE, a stream's first read included", () =>
    Effect.gen(function*() {
      const { ask, witness } = yield* makeWorld({ retry: false })
      yield* witness.query("CREATE TABLE users (email text PRIMARY KEY)")
      yield* witness.query("INSERT INTO users VALUES ('a@example')")
      for (const path of ["rows", "stream"]) {
        const answer = yield* ask(path, "INSERT INTO users VALUES ('a@example') RETURNING email")
        assert.strictEqual(answer.status, 500)
        assert.deepStrictEqual(yield* json(answer), { error: "SqlError", sqlState: "23505" })
      }
    }))

  it.live("says 503 while all sessions are taken, and when to come back while the circuit is open", () =>
    Effect.gen(function*() {
      const { ask, environment, isRunning, start } = yield* makeWorld({
        max: 1,
        acquireTimeout: 100,
        retry: false
      })
      const busy = start("rows", "SELECT pg_sleep(1)::text AS n")
      yield* isRunning(1)
      const turnedAway = yield* ask("rows", "SELECT 1")
      assert.strictEqual(turnedAway.status, 503)
      assert.deepStrictEqual(yield* json(turnedAway), { error: "AcquireTimeout" })
      assert.strictEqual((yield* Effect.promise(() => busy)).status, 200)

      yield* Effect.promise(() =>
        environment.run(Effect.flatMap(Pg.Breaker.Breaker, ({ isolate }) =>
          Effect.andThen(
            isolate("for the test"),
            Effect.gen(function*() {
              const isolated = yield* ask("rows", "SELECT 1")
              assert.deepStrictEqual([isolated.status, isolated.headers.get("retry-after")], [503, null])
              assert.deepStrictEqual(yield* json(isolated), { error: "CircuitIsolated" })
            })
          )))
      )
    }))
})

describe("an app of effect/http inside", () => {
  const Routes = Layer.mergeAll(
    HttpRouter.add(
      "GET",
      "/rows",
      Effect.gen(function*() {
        const sql = yield* SqlClient
        return yield* HttpServerResponse.json(yield* sql`SELECT 7 AS n`)
      })
    ),
    HttpRouter.add(
      "GET",
      "/stream",
      Effect.gen(function*() {
        const sql = yield* SqlClient
        return HttpServerResponse.stream(ndjson(sql.unsafe<object>(endless).stream))
      })
    ),
    HttpRouter.add("GET", "/sleep", Effect.andThen(Effect.sleep("1 hour"), HttpServerResponse.json("late")))
  )
  const routes = HttpRouter.toHttpEffect(Routes)
  class App extends Context.Service<App, Effect.Success<typeof routes>>()("test/App") {}

  const makeApp = Effect.gen(function*() {
    const url = yield* freshDatabase
    const witness = yield* makeWitness(url)
    const handler = Serverless.web(
      (request) =>
        Effect.gen(function*() {
          const app = yield* App
          const context = yield* Effect.context<never>()
          let answer = new Response(null, { status: 500 })
          yield* HttpEffect.toHandled(app, (_, response) =>
            Effect.sync(() => {
              answer = HttpServerResponse.toWeb(HttpEffect.scopeTransferToStream(response), { context })
            })).pipe(
              Effect.provideService(HttpServerRequest.HttpServerRequest, HttpServerRequest.fromWeb(request)),
              Effect.ignoreCause
            )
          return answer
        }),
      {
        layer: yield* Serverless.environment(
          Layer.effect(App, routes).pipe(Layer.provideMerge(Pg.layer({ url, max: 1 })))
        ),
        deadline: 1000
      }
    )
    return {
      ask: (path: string) => Effect.promise(() => handler(new Request(`https://app.example${path}`))),
      isRunning: running(witness)
    }
  })

  it.live("has its routes, its own statuses, and the deadline of the request", () =>
    Effect.gen(function*() {
      const { ask } = yield* makeApp
      assert.deepStrictEqual(yield* json(yield* ask("/rows")), [{ n: 7 }])
      assert.strictEqual((yield* ask("/nowhere")).status, 404)
      assert.strictEqual((yield* ask("/sleep")).status, 504)
    }))

  it.live("has its streams ended on the server when the client leaves, and at the deadline", () =>
    Effect.gen(function*() {
      const { ask, isRunning } = yield* makeApp
      const left = yield* ask("/stream")
      const reader = left.body!.getReader()
      yield* Effect.promise(() => reader.read())
      yield* Effect.promise(() => reader.cancel())
      yield* isRunning(0)
      const late = yield* ask("/stream")
      assert.notMatch(yield* brokenWith(late), /^nothing/)
      yield* isRunning(0)
      assert.deepStrictEqual(yield* json(yield* ask("/rows")), [{ n: 7 }])
    }))
})
