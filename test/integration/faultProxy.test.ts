import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Pg from "effect-pg-pool"
import { FaultProxy } from "effect-pg-pool/testing"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Net from "node:net"
import { certificate, makeTlsServer } from "./tlsServer.ts"
import { ended, eventually, makeTable, soon } from "./witness.ts"

const setUp = Effect.gen(function*() {
  const table = yield* makeTable
  const proxy = yield* FaultProxy.make(table.url)
  return { ...table, proxy, connect: PgConnection.make({ url: proxy.url }) }
})

const insert = (connection: PgConnection.PgConnection) => connection.query("INSERT INTO t VALUES (1)", [], false)

const one = (connection: PgConnection.PgConnection) =>
  Effect.map(connection.queryValues("SELECT 1", [], false), (rows) => rows[0]?.[0])

/** What a socket of our own has read until its end, and how it ended. */
const readAll = (port: number, send: Uint8Array) =>
  Effect.callback<{ readonly bytes: number; readonly end: string }>((resume) => {
    let bytes = 0
    let end = "FIN"
    const socket = Net.connect({ host: "127.0.0.1", port })
    socket.on("data", (chunk: Buffer) => (bytes += chunk.length))
    socket.on("error", (error: NodeJS.ErrnoException) => (end = error.code ?? error.message))
    socket.once("close", () => resume(Effect.succeed({ bytes, end })))
    socket.write(send)
    return Effect.sync(() => socket.destroy())
  })

const sslRequest = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47])

const bytesOf = (proxy: FaultProxy.FaultProxy) => Effect.map(proxy.counts, ({ bytes }) => bytes)

describe("a fault proxy", () => {
  it.live("passes everything on, and counts it", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* setUp
      yield* Effect.scoped(Effect.gen(function*() {
        const connection = yield* connect
        const [[text]] = (yield* connection.queryValues("SELECT repeat('x', 3000000)")) as [[string]]
        assert.lengthOf(text, 3_000_000)
        yield* one(connection)
        const counts = yield* proxy.counts
        assert.deepInclude(counts, { accepted: 1, open: 1, refused: 0, cuts: 0, cancelRequests: 0, statements: 2 })
        assert.isAbove(counts.bytes["to the client"], 3_000_000)
        assert.isAbove(counts.bytes["to the server"], 100)
      }))
      yield* eventually("no link", Effect.map(proxy.links, (links) => links.length === 0))
      assert.strictEqual((yield* proxy.counts).open, 0)
    }))

  it.live("tells CancelRequests from connections of sessions", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* setUp
      const connection = yield* connect
      const fiber = yield* Effect.forkChild(connection.query("SELECT pg_sleep(30)"), { startImmediately: true })
      yield* eventually("it is sent", Effect.map(proxy.counts, ({ statements }) => statements === 1))
      yield* Fiber.interrupt(fiber)
      assert.deepInclude(yield* proxy.counts, { accepted: 2, cancelRequests: 1, statements: 1 })
      assert.strictEqual(yield* one(connection), 1)
    }))

  it.live("shows requests to a hook, which may drop them", () =>
    Effect.gen(function*() {
      const { connect, proxy, rows } = yield* setUp
      const connection = yield* connect
      const seen: Array<number> = []
      yield* proxy.onRequest((request, link) => {
        seen.push(link.id)
        return request.includes("INSERT") ? "drop" : "pass"
      })
      assert.strictEqual(yield* one(connection), 1)
      const lost = yield* Effect.forkChild(insert(connection), { startImmediately: true })
      yield* eventually("it is seen", Effect.sync(() => seen.length === 2))
      const [link] = yield* proxy.links
      link!.cut()
      assert.isTrue(Exit.isFailure(yield* ended(lost)))
      assert.deepStrictEqual(seen, [1, 1])
      assert.strictEqual(yield* rows, 0)
    }))

  it.live("lets the server feel that a client reads slowly", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* setUp
      const connection = yield* connect
      const gate = yield* Deferred.make<void>()
      const size = 100_000_000
      let rows = 0
      const reading = yield* connection.stream("SELECT repeat('x', 10000) FROM generate_series(1, 10000)").pipe(
        Stream.runForEach(() => rows++ === 0 ? Deferred.await(gate) : Effect.void),
        Effect.forkChild({ startImmediately: true })
      )
      yield* eventually("a row", Effect.sync(() => rows > 0))
      const arrived = Effect.map(bytesOf(proxy), (bytes) => bytes["to the client"])
      yield* eventually(
        "nothing more comes",
        Effect.gen(function*() {
          const before = yield* arrived
          yield* Effect.sleep(200)
          return (yield* arrived) === before
        })
      )
      assert.isBelow(yield* arrived, size / 2)
      yield* Deferred.succeed(gate, undefined)
      assert.isTrue(Exit.isSuccess(yield* ended(reading)))
      assert.strictEqual(rows, 10_000)
    }))

  it.live("does not read what is encrypted, and passes it on", () =>
    Effect.gen(function*() {
      const { database } = yield* makeTlsServer
      const proxy = yield* FaultProxy.make(database.url)
      const connection = yield* PgConnection.make({
        url: proxy.url,
        ssl: { ca: certificate, servername: "localhost" }
      })
      const ssl = yield* connection.queryValues("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
      assert.deepStrictEqual(ssl, [[true]])
      assert.deepInclude(yield* proxy.counts, { accepted: 1, open: 1, statements: 0 })
    }), 60_000)

  it.live("resets its client when there is no server", () =>
    Effect.gen(function*() {
      const nobody = yield* Effect.scoped(FaultProxy.make(Redacted.make("postgres://u:p@127.0.0.1/d")))
      const proxy = yield* FaultProxy.make(nobody.url)
      assert.deepStrictEqual(yield* soon("the end", readAll(proxy.port, sslRequest)), { bytes: 0, end: "ECONNRESET" })
    }))

  it.live("is gone with its scope, and so are its links", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* setUp
      const scope = yield* Scope.make()
      const proxy = yield* Scope.provide(FaultProxy.make(url), scope)
      yield* proxy.set(FaultProxy.delay({ by: "1 hour" }))
      yield* Effect.forkChild(Effect.scoped(PgConnection.make({ url: proxy.url })), { startImmediately: true })
      yield* eventually("a link", Effect.map(proxy.counts, ({ open }) => open === 1))
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* soon("an answer", readAll(proxy.port, sslRequest))).end, "ECONNREFUSED")
      assert.strictEqual((yield* proxy.counts).open, 0)
      yield* eventually("no session", Effect.map(witness.count, (count) => count === 0))
    }))

  it.effect("wants the URL of a server", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Effect.scoped(FaultProxy.make(Redacted.make("somewhere"))))
      assert.strictEqual(error._tag, "FaultProxyFailed")
      assert.include(error.message, "postgres://user:password@host:port/database")
    }))

  it("takes no fault that cannot be", () => {
    assert.throws(() => FaultProxy.cutAfter(-1), /cutAfter\.bytes is -1, and must be at least 0/)
    assert.throws(() => FaultProxy.drip({ bytes: 0, every: 1 }), /drip\.bytes is 0, and must be at least 1/)
    assert.throws(() => FaultProxy.drip({ bytes: NaN, every: 1 }), /drip\.bytes/)
    assert.throws(() => FaultProxy.delay({ by: "1 second", jitter: -1 }), /delay\.jitter/)
  })
})

describe("a fault", () => {
  it.live("delay: the answer comes later, and in order", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* setUp
      const connection = yield* connect
      const delay = FaultProxy.delay({ by: "40 millis", direction: "to the client" })
      const [took, answer] = yield* Effect.timed(proxy.during(delay)(one(connection)))
      assert.isAtLeast(Duration.toMillis(took), 39)
      assert.strictEqual(answer, 1)
      const text = connection.queryValues("SELECT string_agg(n::text, ',') FROM generate_series(1, 50000) AS n")
      const [[before]] = (yield* text) as [[string]]
      const jitter = FaultProxy.delay({ by: 0, jitter: "5 millis" })
      const [[after]] = (yield* proxy.during(jitter)(text)) as [[string]]
      assert.strictEqual(after, before)
    }))

  it.live("delay: jitter is drawn from Random", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* Effect.provideService(setUp, Random.Random, {
        nextDoubleUnsafe: () => 0.5,
        nextIntUnsafe: () => 0
      })
      const connection = yield* connect
      const jitter = FaultProxy.delay({ by: 0, jitter: "100 millis", direction: "to the server" })
      const [took] = yield* Effect.timed(proxy.during(jitter)(one(connection)))
      assert.isAtLeast(Duration.toMillis(took), 49)
    }))

  it.live("delay, lifted: what is on its way arrives at once", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* setUp
      const connection = yield* connect
      const delay = FaultProxy.delay({ by: "1 hour" })
      yield* proxy.set(delay)
      const answer = yield* Effect.forkChild(one(connection), { startImmediately: true })
      yield* eventually("it is sent", Effect.map(proxy.counts, ({ statements }) => statements === 1))
      yield* proxy.lift(delay)
      assert.strictEqual(yield* soon("the answer", Fiber.join(answer)), 1)
    }))

  it.live("drip: a few bytes at a time, and all of them", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* setUp
      const connection = yield* connect
      const drip = FaultProxy.drip({ bytes: 100, every: "5 millis", direction: "to the client" })
      const [took, [row]] = yield* Effect.timed(
        proxy.during(drip)(connection.queryValues("SELECT repeat('x', 1000)"))
      )
      assert.strictEqual(row?.[0], "x".repeat(1000))
      assert.isAtLeast(Duration.toMillis(took), 10 * 4)
    }))

  it.live("hold: nothing is lost, whether bytes or the end of the connection", () =>
    Effect.gen(function*() {
      const { connect, proxy, rows, witness } = yield* setUp
      const scope = yield* Scope.make()
      const connection = yield* Scope.provide(connect, scope)
      const hold = FaultProxy.hold({ direction: "to the server" })
      yield* proxy.set(hold)
      const late = yield* Effect.forkChild(insert(connection), { startImmediately: true })
      yield* eventually("it is sent", Effect.map(proxy.counts, ({ statements }) => statements === 1))
      yield* Effect.sleep(50)
      assert.strictEqual(yield* rows, 0)
      yield* proxy.lift(hold)
      yield* soon("its answer", Fiber.join(late))
      assert.strictEqual(yield* rows, 1)
      yield* proxy.set(hold)
      yield* Scope.close(scope, Exit.void)
      yield* Effect.sleep(50)
      assert.strictEqual(yield* witness.count, 1)
      yield* proxy.lift(hold)
      yield* eventually("the server learns of it", Effect.map(witness.count, (count) => count === 0))
    }))

  for (const direction of ["to the server", "to the client"] as const) {
    it.live(`drop ${direction}: the bytes are lost, and lifted, so is the link`, () =>
      Effect.gen(function*() {
        const { connect, proxy, rows } = yield* setUp
        const [struck, idle] = [yield* connect, yield* connect]
        const drop = FaultProxy.drop({ direction })
        yield* proxy.set(drop)
        const lost = yield* Effect.forkChild(insert(struck), { startImmediately: true })
        const expected = direction === "to the server" ? 0 : 1
        yield* eventually("the fate of it", Effect.map(rows, (count) => count === expected))
        yield* Effect.sleep(50)
        assert.isUndefined(lost.pollUnsafe())
        yield* proxy.lift(drop)
        assert.isTrue(Exit.isFailure(yield* ended(lost)))
        assert.strictEqual(yield* rows, expected)
        assert.strictEqual(yield* one(idle), 1)
        assert.strictEqual((yield* proxy.counts).cuts, 1)
      }))
  }

  it.live("cutAfter: exactly so many bytes arrive", () =>
    Effect.gen(function*() {
      const { proxy } = yield* setUp
      // The server answers a byte that says whether it speaks TLS, and 54 bytes or so to the introduction.
      const introduction = Buffer.concat([
        sslRequest,
        Buffer.from("\0\0\0\x10\0\x03\0\0user\0u\0\0", "latin1")
      ])
      for (const bytes of [0, 1, 2, 7]) {
        const cut = FaultProxy.cutAfter(bytes, { direction: "to the client" })
        const read = proxy.during(cut)(readAll(proxy.port, introduction))
        assert.deepStrictEqual(yield* soon("the cut", read), { bytes, end: "ECONNRESET" })
      }
      // With the last of them, not with the one after it.
      const answer = FaultProxy.cutAfter(1, { direction: "to the client" })
      const read = proxy.during(answer)(readAll(proxy.port, sslRequest))
      assert.deepStrictEqual(yield* soon("the cut", read), { bytes: 1, end: "ECONNRESET" })
      assert.strictEqual((yield* proxy.counts).cuts, 5)
    }))

  it.live("cutAfter: the server has the statement, and its answer is lost", () =>
    Effect.gen(function*() {
      const { connect, proxy, rows, witness } = yield* setUp
      const connection = yield* connect
      const cut = FaultProxy.cutAfter(0, { direction: "to the client" })
      yield* Effect.flip(proxy.during(cut)(insert(connection)))
      assert.strictEqual(yield* rows, 1)
      yield* eventually("the server learns of it", Effect.map(witness.count, (count) => count === 0))
    }))

  it.live("cutAfter: half of a statement is none", () =>
    Effect.gen(function*() {
      const { connect, proxy, rows, witness } = yield* setUp
      const connection = yield* connect
      const cut = FaultProxy.cutAfter(60, { direction: "to the server" })
      yield* Effect.flip(proxy.during(cut)(insert(connection)))
      yield* eventually("the server learns of it", Effect.map(witness.count, (count) => count === 0))
      assert.strictEqual(yield* rows, 0)
    }))

  it.live("blackhole: no byte and no end gets through; links that have lost nothing survive it", () =>
    Effect.gen(function*() {
      const { connect, proxy, rows, witness } = yield* setUp
      const [struck, idle] = [yield* connect, yield* connect]
      const scope = yield* Scope.make()
      const leaving = yield* Scope.provide(connect, scope)
      assert.strictEqual(yield* one(leaving), 1)
      const hole = FaultProxy.blackhole()
      yield* proxy.set(hole)
      const lost = yield* Effect.forkChild(insert(struck), { startImmediately: true })
      const newcomer = yield* Effect.forkChild(Effect.exit(Effect.scoped(connect)), { startImmediately: true })
      yield* eventually("it is accepted", Effect.map(proxy.counts, ({ accepted }) => accepted === 4))
      yield* Scope.close(scope, Exit.void)
      yield* Effect.sleep(100)
      assert.isUndefined(lost.pollUnsafe())
      assert.isUndefined(newcomer.pollUnsafe())
      assert.strictEqual(yield* rows, 0)
      assert.strictEqual(yield* witness.count, 3)
      assert.strictEqual((yield* proxy.counts).sessions, 3)
      yield* proxy.lift(hole)
      assert.isTrue(Exit.isFailure(yield* ended(lost)))
      assert.isTrue(Exit.isFailure(yield* soon("the end of the newcomer", Fiber.join(newcomer))))
      assert.strictEqual(yield* one(idle), 1)
      yield* eventually("the server learns of it", Effect.map(witness.count, (count) => count === 1))
      yield* eventually("the proxy sees its sockets close", Effect.map(proxy.counts, ({ sessions }) => sessions === 1))
      assert.strictEqual((yield* proxy.counts).mostSessions, 3)
    }))

  it.live("halfClose to the client: it sees an end in good order, and can still speak", () =>
    Effect.gen(function*() {
      const { proxy } = yield* setUp
      const half = FaultProxy.halfClose("to the client")
      yield* proxy.set(half)
      const closed = yield* soon("the end", readAll(proxy.port, sslRequest))
      assert.deepStrictEqual(closed, { bytes: 0, end: "FIN" })
      assert.strictEqual((yield* bytesOf(proxy))["to the server"], sslRequest.length)
    }))

  it.live("halfClose to the server: it ends the session, as it would for a client that has left", () =>
    Effect.gen(function*() {
      const { connect, proxy, witness } = yield* setUp
      const connection = yield* connect
      assert.strictEqual(yield* witness.count, 1)
      yield* proxy.set(FaultProxy.halfClose("to the server"))
      yield* eventually("the server learns of it", Effect.map(witness.count, (count) => count === 0))
      yield* eventually("the client too", Effect.map(Effect.exit(one(connection)), Exit.isFailure))
      assert.strictEqual((yield* proxy.counts).cuts, 0)
    }))

  for (const [how, code] of [["closed", "ECONNREFUSED"], ["reset", "ECONNRESET"]] as const) {
    it.live(`refuse (${how}): no new link, until it is lifted`, () =>
      Effect.gen(function*() {
        const { connect, proxy } = yield* setUp
        const connection = yield* connect
        const refuse = FaultProxy.refuse(how)
        yield* proxy.set(refuse)
        assert.strictEqual((yield* soon("an answer", readAll(proxy.port, sslRequest))).end, code)
        assert.strictEqual(yield* one(connection), 1)
        assert.deepInclude(yield* proxy.counts, { accepted: 1, open: 1, refused: how === "reset" ? 1 : 0 })
        yield* proxy.lift(refuse)
        assert.strictEqual(yield* one(yield* connect), 1)
      }))
  }

  it.live("refuse: a pool recovers from it by itself", () =>
    Effect.gen(function*() {
      const { proxy } = yield* setUp
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* proxy.set(FaultProxy.refuse())
        assert.strictEqual((yield* Effect.flip(sql`SELECT 1`))._tag, "SqlError")
        yield* proxy.liftAll
        yield* eventually("an answer", Effect.map(Effect.exit(sql`SELECT 1`), Exit.isSuccess))
      }).pipe(Effect.provide(Pg.layer({ url: proxy.url, max: 1, retry: false, breaker: false })))
    }))

  it.live("for one link leaves the others alone", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* setUp
      const [first, second] = [yield* connect, yield* connect]
      const [link] = yield* proxy.links
      const hold = FaultProxy.hold()
      link!.set(hold)
      const waiting = yield* Effect.forkChild(one(first), { startImmediately: true })
      assert.strictEqual(yield* one(second), 1)
      assert.isUndefined(waiting.pollUnsafe())
      yield* proxy.liftAll
      assert.strictEqual(yield* soon("its answer", Fiber.join(waiting)), 1)
    }))

  it.live("set for the time of an effect is lifted when that is interrupted", () =>
    Effect.gen(function*() {
      const { connect, proxy } = yield* setUp
      const hold = FaultProxy.hold()
      const fiber = yield* Effect.forkChild(proxy.during(hold)(Effect.never), { startImmediately: true })
      const connection = yield* Effect.forkChild(connect, { startImmediately: true })
      yield* eventually("it waits", Effect.map(proxy.counts, ({ accepted }) => accepted === 1))
      assert.isUndefined(connection.pollUnsafe())
      yield* Fiber.interrupt(fiber)
      yield* soon("a session", Fiber.join(connection))
    }))
})

describe("a link", () => {
  it.live("can be cut at the client's end alone: the server keeps its session", () =>
    Effect.gen(function*() {
      const { connect, proxy, rows, witness } = yield* setUp
      const connection = yield* connect
      yield* connection.query("BEGIN")
      const [link] = yield* proxy.links
      link!.set(FaultProxy.hold({ direction: "to the server" }))
      link!.cut("client")
      yield* eventually("the client learns of it", Effect.map(Effect.exit(one(connection)), Exit.isFailure))
      assert.isFalse(link!.isOpen())
      assert.strictEqual(yield* witness.count, 1)
      // Somebody else can still speak in its name.
      const query = Buffer.from("INSERT INTO t VALUES (1); COMMIT\0")
      const header = Buffer.from([0x51, 0, 0, 0, query.length + 4])
      link!.deliver(Buffer.concat([header, query]))
      yield* eventually("the row", Effect.map(rows, (count) => count === 1))
      link!.cut("server")
      yield* eventually("the server learns of it", Effect.map(witness.count, (count) => count === 0))
    }))

  it.live("is cut with all the others", () =>
    Effect.gen(function*() {
      const { connect, proxy, witness } = yield* setUp
      const connections = [yield* connect, yield* connect, yield* connect]
      yield* proxy.cut
      for (const connection of connections) {
        yield* eventually("it is cut", Effect.map(Effect.exit(one(connection)), Exit.isFailure))
      }
      assert.deepInclude(yield* proxy.counts, { cuts: 3, open: 0 })
      yield* eventually("the server learns of it", Effect.map(witness.count, (count) => count === 0))
      assert.strictEqual(yield* one(yield* connect), 1)
    }))
})
