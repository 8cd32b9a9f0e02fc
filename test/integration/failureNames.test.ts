/** What failures without a code of their own are called: the same, wherever they are told of. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import type { AddressInfo, Socket } from "node:net"
import { createServer } from "node:net"
import * as Pg from "../../src/index.ts"
import { FaultProxy } from "../../src/testing/index.ts"
import { attributesOf, make as makeSpanRecorder } from "../spanRecorder.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { eventually, makeTable } from "./witness.ts"

interface Line {
  readonly message: string
  readonly annotations: Readonly<Record<string, unknown>>
}

const makeLog = () => {
  const lines: Array<Line> = []
  const logger = Logger.map(Logger.formatJson, (json) => void lines.push(JSON.parse(json)))
  const named = (event: string) => lines.filter(({ annotations }) => annotations["event.name"] === event)
  return { lines, named, layer: Logger.layer([logger]) }
}

/** Somebody who is not PostgreSQL. */
const peer = (onSocket: (socket: Socket) => void) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly port: number; readonly close: () => void }>((resume) => {
      const sockets = new Set<Socket>()
      const server = createServer((socket) => {
        sockets.add(socket)
        socket.on("error", () => {})
        onSocket(socket)
      })
      const close = () => {
        for (const socket of sockets) socket.destroy()
        server.close()
      }
      server.listen(0, "127.0.0.1", () => {
        resume(Effect.succeed({ port: (server.address() as AddressInfo).port, close }))
      })
    }),
    ({ close }) => Effect.sync(close)
  ).pipe(Effect.map(({ port }) => Redacted.make(`postgres://someone@127.0.0.1:${port}/app`)))

const behindBlackhole = Effect.gen(function*() {
  const proxy = yield* FaultProxy.make(yield* freshDatabase)
  yield* proxy.set(FaultProxy.blackhole())
  return proxy.url
})

describe("a server that cannot be reached", () => {
  const peers: Record<string, readonly [url: Effect.Effect<Redacted.Redacted, unknown, Scope.Scope>, code: string]> = {
    "says nothing": [peer(() => {}), "ETIMEDOUT"],
    "is behind a firewall that drops all": [behindBlackhole, "ETIMEDOUT"],
    "closes at the door": [peer((socket) => void socket.once("data", () => socket.end())), "ECONNRESET"],
    "does not speak the protocol": [
      peer((socket) => void socket.once("data", () => socket.write("HTTP/1.1 400 Bad Request\r\n\r\n"))),
      "EPROTO"
    ],
    "is not there": [Effect.succeed(Redacted.make("postgres://someone@127.0.0.1:1/app")), "ECONNREFUSED"]
  }

  for (const [name, [url, code]] of Object.entries(peers)) {
    it.live(`because it ${name} is called ${code} everywhere`, () =>
      Effect.gen(function*() {
        const log = makeLog()
        const recorder = makeSpanRecorder()
        const layer = Pg.layer({ url: yield* url, connectTimeout: 300, retry: false, breaker: { failures: 1 } })
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const error = yield* Effect.flip(recorder.record(sql`SELECT 1`))
          assert.strictEqual(Pg.Errors.failureOf(error).code, code)

          const [line] = log.named("db.connection.failed")
          assert.strictEqual(line?.annotations["error.type"], code)
          assert.include(line?.message, `No session could be opened: ${code}.`)
          const [opened] = log.named("db.breaker.transition")
          assert.strictEqual(opened?.annotations["error.type"], code)
          assert.include(opened?.message, `is open: ${code}.`)

          const [connect] = recorder.named("db.pool.connect")
          assert.strictEqual(attributesOf(connect)["error.type"], code)
          const statement = recorder.spans.find((span) => attributesOf(span)["db.query.text"] !== undefined)
          assert.strictEqual(attributesOf(statement)["error.type"], code)

          const { lastFailure } = (yield* Pg.Metrics.Metrics).snapshotUnsafe()
          assert.strictEqual(lastFailure?.code, code)
          const state = (yield* Pg.Breaker.Breaker).stateUnsafe(yield* Clock.currentTimeMillis)
          assert(state._tag === "Open")
          assert.strictEqual(state.lastFailure?.code, code)
          const report = yield* Pg.Health.check
          assert.strictEqual(report.lastFailure?.code, code)
        }).pipe(Effect.provide(layer), Effect.provide(log.layer))
      }))
  }
})

describe("a connect that takes too long", () => {
  it.live("names the hook that was at work", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const url = yield* freshDatabase
      yield* Effect.flip(Effect.flatMap(SqlClient, (sql) => sql`SELECT 1`)).pipe(
        Effect.provide(Pg.layer({ url, connectTimeout: 500, retry: false, afterConnect: () => Effect.never })),
        Effect.provide(log.layer)
      )
      const [line] = log.named("db.connection.failed")
      assert.include(line?.message, "No session could be opened: ETIMEDOUT in the hook afterConnect.")
      assert.strictEqual(line?.annotations["db.hook"], "afterConnect")
    }))
})

/** Cuts the connection of the first statement with this text, which the server does not get to see. */
const cutAt = (proxy: Effect.Success<ReturnType<typeof makeProxy>>, text: string) => {
  let isDone = false
  proxy.onRequest((request, link) => {
    if (isDone || !request.includes(text)) return "pass"
    isDone = true
    link.cut()
    return "drop"
  })
}

describe("an answer that is lost", () => {
  const insert = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO t VALUES (1)`)
  const transacted = Effect.flatMap(SqlClient, (sql) => sql.withTransaction(insert))

  const fates: Record<
    string,
    readonly [
      work: Effect.Effect<unknown, unknown, SqlClient | Pg.Executor.Executor>,
      cut: string,
      told: ReadonlyArray<readonly [event: string, operation: unknown]>
    ]
  > = {
    "of a statement is told of": [insert, "INSERT", [["db.query.outcome_unknown", "INSERT"]]],
    "of a statement in a run is told of once": [
      Pg.Executor.run(insert),
      "INSERT",
      [["db.query.outcome_unknown", "INSERT"]]
    ],
    "of a statement that may be repeated is no more than a retry": [
      Pg.Executor.idempotent(insert),
      "INSERT",
      [["db.query.retry", undefined]]
    ],
    "in a run that may be repeated is no more than a retry": [
      Pg.Executor.run(insert, { idempotent: true }),
      "INSERT",
      [["db.query.retry", undefined]]
    ],
    "to a COMMIT is told of": [transacted, "COMMIT", [["db.query.outcome_unknown", "COMMIT"]]],
    "to a COMMIT of the executor's is told of once": [
      Pg.Executor.transaction(insert),
      "COMMIT",
      [["db.query.outcome_unknown", "COMMIT"]]
    ],
    "to a COMMIT that is looked up is no more than a retry": [
      Pg.Executor.transaction(insert, { resolveCommit: true }),
      "COMMIT",
      [["db.query.retry", undefined]]
    ],
    "inside of a transaction is no more than a retry": [
      Pg.Executor.transaction(insert),
      "INSERT",
      [["db.query.retry", undefined]]
    ]
  }

  for (const [name, [work, cut, told]] of Object.entries(fates)) {
    it.live(`${name}, and called ECONNRESET`, () =>
      Effect.gen(function*() {
        const { url } = yield* makeTable
        const proxy = yield* makeProxy(url)
        const log = makeLog()
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* sql`SELECT 1`
          cutAt(proxy, cut)
          yield* Effect.result(work)
          const found = log.lines.filter(({ annotations }) => String(annotations["event.name"]).startsWith("db.query."))
          assert.deepStrictEqual(
            found.map(({ annotations }) => [annotations["event.name"], annotations["db.operation.name"]]),
            told.map((each) => Array.from(each))
          )
          for (const { annotations, message } of found) {
            assert.strictEqual(annotations["error.type"], "ECONNRESET", message)
            assert.include(message, "ECONNRESET")
          }
        }).pipe(
          Effect.provide(Pg.layer({ url: proxy.url, max: 1, prepare: false, retry: { base: 10 } })),
          Effect.provide(log.layer)
        )
      }))
  }

  it.live("to a COMMIT, and to all questions about it, is one call of which nobody knows", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const proxy = yield* FaultProxy.make(url)
      yield* proxy.onRequest((request, link) => {
        if (!request.includes("COMMIT")) return "pass"
        Effect.runSync(proxy.set(FaultProxy.blackhole()))
        link.cut()
        return "drop"
      })
      const log = makeLog()
      yield* Effect.gen(function*() {
        yield* Effect.flip(Pg.Executor.transaction(insert, { resolveCommit: true }))
        const calls = log.lines.filter(({ annotations }) => String(annotations["event.name"]).startsWith("db.query."))
        assert.deepStrictEqual(
          calls.map(({ annotations }) => [annotations["event.name"], annotations["db.operation.name"]]),
          [["db.query.outcome_unknown", "COMMIT"]]
        )
        const { errorsByOperation } = (yield* Pg.Metrics.Metrics).snapshotUnsafe()
        assert.strictEqual(errorsByOperation.COMMIT.Unreachable, 1)
        assert.strictEqual(errorsByOperation.CHECKOUT.Local, 0)
      }).pipe(
        Effect.provide(Pg.layer({ url: proxy.url, max: 1, prepare: false, acquireTimeout: 1000, breaker: false })),
        Effect.provide(log.layer)
      )
    }))

  it.live("because nothing comes any more is called ETIMEDOUT", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const proxy = yield* FaultProxy.make(url)
      const log = makeLog()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        yield* proxy.set(FaultProxy.blackhole())
        yield* Effect.flip(insert)
        const [line] = log.named("db.query.outcome_unknown")
        assert.strictEqual(line?.annotations["error.type"], "ETIMEDOUT")
        const { lastFailure } = (yield* Pg.Metrics.Metrics).snapshotUnsafe()
        assert.strictEqual(lastFailure?.code, "ETIMEDOUT")
      }).pipe(
        Effect.provide(Pg.layer({ url: proxy.url, max: 1, queryTimeout: 1000, statementTimeout: 900 })),
        Effect.provide(log.layer)
      )
    }))

  it.live("with an idle lease opens the circuit under the same name", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const proxy = yield* FaultProxy.make(url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* Effect.scoped(Effect.gen(function*() {
          yield* sql.reserve
          yield* proxy.cut
          const pool = yield* Pg.Pool.Pool
          yield* eventually("the end of the session", Effect.map(pool.stats, ({ total }) => total === 0))
        }))
        const breaker = yield* Pg.Breaker.Breaker
        const state = breaker.stateUnsafe(yield* Clock.currentTimeMillis)
        assert(state._tag === "Open")
        assert.deepStrictEqual(state.lastFailure?.code, "ECONNRESET")
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, breaker: { failures: 1 } })))
    }))
})
