/** What a session's socket does where no real server, and no socket of Node's, can be made to show it. */
import { assert, describe, it } from "@effect/vitest"
import { ScriptedServer } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import Dns from "node:dns"
import * as Net from "node:net"
import { Duplex } from "node:stream"
import * as Pg from "../src/index.ts"

const alone = { max: 1, retry: false, breaker: false, closeTimeout: 100 } as const

/** An ErrorResponse with this body. */
const errorResponse = (body: Buffer): Buffer => {
  const header = Buffer.alloc(5)
  header.write("E", "latin1")
  header.writeInt32BE(body.length + 4, 1)
  return Buffer.concat([header, body])
}

const tagOf = (error: SqlError) => Pg.Errors.fromSqlError(error)?._tag

describe("a session that was given up", () => {
  it.live("sends nothing any more, and keeps its place until the server has gone", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make()
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const sent = yield* pool.use(({ connection, wire }) =>
          Effect.gen(function*() {
            yield* connection.query("SELECT 1")
            // It does not end its side by itself from now on.
            for (const session of yield* server.sessions) session.send(ScriptedServer.silence)
            const before = wire.mark()
            // In the same step, before the driver can have heard of it.
            yield* Effect.suspend(() => {
              wire.destroy({ by: "pool", message: "given up" })
              return Effect.flip(connection.query("SELECT 2"))
            })
            return wire.mark() - before
          })
        )
        assert.strictEqual(sent, 0)
        // Time enough for an error of the socket's to have done its work.
        yield* Effect.sleep(20)
        assert.strictEqual(pool.leavingUnsafe(), 1)
        assert.notInclude(yield* server.statements, "SELECT 2")
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: server.url })))
    }))
})

describe("an error that the driver cannot read", () => {
  const bodies: ReadonlyArray<readonly [what: string, body: Buffer]> = [
    ["in another encoding", Buffer.from("SFEHLER\0VERROR\0C22012\0MDivision durch Null: ung\xfcltig\0\0", "latin1")],
    ["without an end", Buffer.from("SERROR\0C42601")],
    ["without anything", Buffer.alloc(0)]
  ]
  for (const [what, body] of bodies) {
    it.live(`fails its statement and ends its session, and nothing else: ${what}`, () =>
      Effect.gen(function*() {
        const server = yield* ScriptedServer.make({
          onQuery: (sql) => sql === "SELECT 1" ? undefined : ScriptedServer.raw(errorResponse(body))
        })
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* sql`SELECT 1`
          assert.strictEqual(tagOf(yield* Effect.flip(sql`SELECT 2`)), "OutcomeUnknown")
          yield* sql`SELECT 1`
          assert.strictEqual((yield* server.counts).accepted, 2)
        }).pipe(Effect.provide(Pg.layer({ ...alone, url: server.url })))
      }))
  }
})

describe("a stream of the caller's", () => {
  it.live("that stays half open when the server ends it is closed, and its statement fails at once", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make({
        onQuery: (sql) => sql === "SELECT 1" ? undefined : ScriptedServer.close
      })
      const stream = () => Net.connect({ host: server.host, port: server.port, allowHalfOpen: true })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        assert.strictEqual(tagOf(yield* Effect.timeout(Effect.flip(sql`SELECT 2`), 10_000)), "OutcomeUnknown")
        yield* sql`SELECT 1`
        assert.strictEqual((yield* server.counts).open, 1)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: server.url, stream })))
    }))

  it.live("that was closed before it was handed over costs no place", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make()
      const closed = new Duplex()
      closed.destroy()
      yield* Effect.promise(() => new Promise((resolve) => closed.once("close", resolve)))
      let asked = 0
      const stream = () => asked++ === 0 ? closed : Net.connect({ host: server.host, port: server.port })
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const sql = yield* SqlClient
        assert.strictEqual((yield* Effect.exit(sql`SELECT 1`))._tag, "Failure")
        assert.strictEqual(pool.leavingUnsafe(), 0)
        yield* Effect.retry(sql`SELECT 1`, Schedule.spaced(50))
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: server.url, stream, acquireTimeout: 2000 })))
    }))
})

describe("a CancelRequest", () => {
  it.live("goes to the server of its session, wherever the name leads by now", () =>
    Effect.gen(function*() {
      const server = yield* ScriptedServer.make({
        onQuery: (sql) => sql === "SELECT 1" ? undefined : Effect.never
      })
      const url = new URL(Redacted.value(server.url))
      url.hostname = "rotating.test"
      // As the endpoint of several readers does: each question has another answer, and nobody listens at the second.
      const { lookup } = Dns
      let asked = 0
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          Dns.lookup = ((...[name, , answer]: Parameters<Net.LookupFunction>) => {
            assert.strictEqual(name, "rotating.test")
            const address = ++asked === 1 ? server.host : "127.0.0.2"
            answer(null, [{ address, family: 4 }])
          }) as typeof Dns.lookup
        }),
        () =>
          Effect.sync(() => {
            Dns.lookup = lookup
          })
      )
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        yield* Effect.timeoutOption(sql`SELECT 2`, 50)
        assert.strictEqual((yield* server.counts).cancelRequests, 1)
        yield* sql`SELECT 1`
        assert.strictEqual(asked, 1)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: Redacted.make(url.href) })))
    }))
})
