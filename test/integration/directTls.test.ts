import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import { readFileSync } from "node:fs"
import * as Net from "node:net"
import * as Tls from "node:tls"
import * as Pg from "../../src/index.ts"
import { FaultProxy } from "../../src/testing/index.ts"
import { makeDebianServer } from "./cluster.ts"
import { certificate, makeTlsServer } from "./tlsServer.ts"
import { eventually } from "./witness.ts"

/** The pool alone: what it says reaches the test without a retry or a breaker in between. */
const alone = { retry: false, breaker: false, max: 1 } as const

const ssl = { ca: certificate, servername: "localhost" }

const handshake = 0x16

const isEncrypted = Effect.flatMap(
  SqlClient,
  (sql) =>
    Effect.map(
      sql<{ ssl: boolean }>`SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`,
      ([row]) => row!.ssl
    )
)

/** How often the client speaks again after the server has spoken, and how each connection begins. */
const makeCounter = Effect.fnUntraced(function*(url: Redacted.Redacted) {
  const proxy = yield* FaultProxy.make(url)
  const firstBytes = new Map<number, number>()
  const hasReplied = new Map<number, boolean>()
  let roundTrips = 0
  yield* proxy.onRequest((bytes, { id }) => {
    if (!firstBytes.has(id)) firstBytes.set(id, bytes[0]!)
    if (hasReplied.get(id) !== false) roundTrips++
    hasReplied.set(id, false)
    return "pass"
  })
  yield* proxy.onReply((_, { id }) => {
    hasReplied.set(id, true)
    return "pass"
  })
  return { proxy, roundTrips: () => roundTrips, firstBytes: () => Array.from(firstBytes.values()) }
})

/** What a connect fails with. */
const refusalOf = (options: Pg.Options) =>
  Effect.map(Effect.flip(Effect.provide(isEncrypted, Pg.layer({ ...alone, username: "me", ...options }))), (error) => ({
    error,
    failure: Pg.Errors.failureOf(error),
    verdict: Pg.Errors.classify(Pg.Errors.failureOf(error), { phase: "Connect", reused: false, replied: false })
  }))

const listening = (server: Net.Server) =>
  Effect.acquireRelease(
    Effect.callback<number>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed((server.address() as Net.AddressInfo).port)))
    }),
    () => Effect.sync(() => server.close())
  )

describe("direct TLS", () => {
  it.live("takes one round trip less to the first row than to ask for TLS first", () =>
    Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      const counted = Effect.fnUntraced(function*(sslNegotiation: Pg.Pool.Options["sslNegotiation"]) {
        const counter = yield* makeCounter(database.url)
        const layer = Pg.layer({ ...alone, url: counter.proxy.url, ssl, sslNegotiation })
        assert.isTrue(
          yield* Effect.provide(Effect.tap(isEncrypted, () => Effect.sync(() => (told = counter.roundTrips()))), layer)
        )
        return told
      }, Effect.scoped)
      let told = 0
      // SSLRequest, ClientHello, startup message, two messages of SCRAM, the statement.
      assert.deepStrictEqual([yield* counted(undefined), yield* counted("postgres"), yield* counted("direct")], [
        6,
        6,
        5
      ])
    }))

  it.live("is how a statement is cancelled, too", () =>
    Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      const { firstBytes, proxy } = yield* makeCounter(database.url)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pid = (yield* sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`)[0]!.pid
        yield* Effect.timeoutOption(sql`SELECT pg_sleep(60)`, "200 millis")
        assert.strictEqual((yield* sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`)[0]!.pid, pid)
        assert.deepStrictEqual(firstBytes(), [handshake, handshake])
      }).pipe(Effect.provide(Pg.layer({ ...alone, url: proxy.url, ssl, sslNegotiation: "direct" })))
    }))

  it.live("is asked for by a URL and by the environment", () =>
    Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      const { firstBytes, proxy } = yield* makeCounter(database.url)
      const byUrl = Redacted.make(`${Redacted.value(proxy.url)}?sslmode=verify-full&sslnegotiation=direct`)
      assert.isTrue(yield* Effect.provide(isEncrypted, Pg.layer({ ...alone, url: byUrl, ssl })))
      const byVariable = Pg.layerConfig(Pg.withEnvironment({ ...alone, url: proxy.url, ssl })).pipe(
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ PGSSLNEGOTIATION: "direct" })))
      )
      assert.isTrue(yield* Effect.provide(isEncrypted, byVariable))
      assert.deepStrictEqual(firstBytes(), [handshake, handshake])
    }))

  const weak: ReadonlyArray<readonly [string, Pg.Options]> = [
    ["is off", {}],
    ["is turned off", { ssl: false }],
    ["is optional", { url: Redacted.make("postgres://me@localhost/?sslmode=prefer") }]
  ]
  it.effect.each(weak)("is refused as an option where TLS %s", ([, options]) =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Layer.build(Pg.layer({ ...options, sslNegotiation: "direct" })))
      assert.strictEqual(error._tag, "InvalidOption")
      assert.include(error.message, "sslNegotiation")
      assert.include(error.message, "sslmode=require")
    }))

  it.live("says of a server before PostgreSQL 17 what is the matter, and what to do", () =>
    Effect.gen(function*() {
      const { ask, port } = yield* makeDebianServer
      const version = Number(yield* ask<string>("SHOW server_version_num"))
      assert.isBelow(version, 170_000, "the Debian package postgresql is too new for this test")
      const { error, failure, verdict } = yield* refusalOf({ host: "127.0.0.1", port, ssl, sslNegotiation: "direct" })
      assert.strictEqual(error._tag, "SqlError")
      assert.include(error.message, "Server refused direct TLS")
      assert.match(failure.message ?? "", /closed the connection.*PostgreSQL 17.*"postgres"/)
      // It might as well have been a restart of a newer one.
      assert.strictEqual(verdict.kind, "Unreachable")
    }), 60_000)

  it.live("says of an answer that is not TLS what is the matter, and does not try again", () =>
    Effect.gen(function*() {
      const port = yield* listening(
        Net.createServer((socket) => socket.on("error", () => {}).end("HTTP/1.1 400\r\n\r\n"))
      )
      const { failure, verdict } = yield* refusalOf({ host: "127.0.0.1", port, ssl, sslNegotiation: "direct" })
      assert.match(failure.message ?? "", /not TLS.*PostgreSQL 17/)
      assert.deepStrictEqual([verdict.kind, verdict.retry], ["Denied", "Never"])
    }))

  const strangers: ReadonlyArray<readonly [string, Tls.TlsOptions]> = [
    ["knows no ALPN", {}],
    ["knows another protocol only", { ALPNProtocols: ["h2"] }]
  ]
  it.live.each(strangers)("tells nothing to a peer that %s", ([, options]) =>
    Effect.gen(function*() {
      const key = readFileSync(new URL("fixtures/tls/server.key", import.meta.url))
      let heard = 0
      let ended = 0
      const server = Tls.createServer({ ...options, key, cert: certificate }, (socket) => {
        socket.on("error", () => {}).on("data", ({ length }: Buffer) => (heard += length))
      })
      server.on("connection", (socket) => socket.on("close", () => ended++))
      const port = yield* listening(server)
      const { failure, verdict } = yield* refusalOf({ host: "127.0.0.1", port, ssl, sslNegotiation: "direct" })
      assert.match(failure.message ?? "", /"postgresql" \(ALPN\)/)
      assert.deepStrictEqual([verdict.kind, verdict.retry], ["Denied", "Never"])
      yield* eventually("the end of the connection", Effect.sync(() => ended === 1))
      assert.strictEqual(heard, 0)
    }))

  it.live("tells a certificate that is not trusted, and a server that is not there, as ever", () =>
    Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      const untrusted = yield* refusalOf({ url: database.url, ssl: true, sslNegotiation: "direct" })
      assert.strictEqual(untrusted.failure.code, "DEPTH_ZERO_SELF_SIGNED_CERT")
      const absent = yield* refusalOf({ host: "127.0.0.1", port: 1, ssl, sslNegotiation: "direct" })
      assert.strictEqual(absent.failure.code, "ECONNREFUSED")
      for (const { error } of [untrusted, absent]) assert.notInclude(error.message, "direct TLS")
    }))
})
