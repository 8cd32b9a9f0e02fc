import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import { assert, describe, it } from "@effect/vitest"
import * as Pg from "effect-pg-pool"
import { ScriptedServer } from "effect-pg-pool/testing"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as Net from "node:net"

const { command, error, fatal, make, notice, parameterStatus, raw, reset, rows, silence } = ScriptedServer

const connect = (server: ScriptedServer.ScriptedServer, options: Partial<PgConnection.Config> = {}) =>
  PgConnection.make({ url: server.url, ...options })

/** A session with a server that answers every statement like this. */
const answering = (answer: ScriptedServer.Answer) => Effect.flatMap(make({ onQuery: () => answer }), connect)

/** The SQLSTATE that the driver has read, and what the error said. */
const codeOf = (error: SqlError): string | undefined => {
  const cause = error.reason.cause
  return typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : undefined
}

const failing = <A>(effect: Effect.Effect<A, SqlError>) =>
  Effect.map(
    Effect.flip(effect),
    (error) => ({ tag: error.reason._tag, code: codeOf(error), text: error.reason.message })
  )

/** Everything that a server says to these bytes until it closes, in messages: type and body. */
const talk = (port: number, ...requests: ReadonlyArray<Buffer>) =>
  Effect.callback<ReadonlyArray<readonly [string, string]>>((resume) => {
    const socket = Net.connect({ host: "127.0.0.1", port })
    const chunks: Array<Buffer> = []
    socket.on("data", (chunk: Buffer) => chunks.push(chunk))
    socket.on("error", () => {})
    socket.once("close", () => {
      const bytes = Buffer.concat(chunks)
      const messages: Array<readonly [string, string]> = []
      for (let at = 0; at < bytes.length;) {
        const end = at + 1 + bytes.readInt32BE(at + 1)
        messages.push([bytes.toString("latin1", at, at + 1), bytes.toString("latin1", at + 5, end)])
        at = end
      }
      resume(Effect.succeed(messages))
    })
    for (const request of requests) socket.write(request)
  })

const startup = Buffer.from("\0\0\0\x10\0\x03\0\0user\0u\0\0", "latin1")
const terminate = Buffer.from("X\0\0\0\x04", "latin1")
const simple = (sql: string) => {
  const text = Buffer.from(`${sql}\0`)
  return Buffer.concat([Buffer.from([0x51, 0, 0, 0, text.length + 4]), text])
}

describe("a scripted server", () => {
  it.effect("welcomes everybody, and answers with command tags, when it has no script", () =>
    Effect.gen(function*() {
      const server = yield* make()
      const connection = yield* connect(server)
      const tags: Array<string> = []
      for (const sql of ["SELECT 1", "BEGIN", "INSERT INTO t VALUES (1)", "SAVEPOINT s", "COMMIT", "SET a = 1"]) {
        tags.push((yield* connection.query(sql)).command)
      }
      assert.deepStrictEqual(tags, ["SELECT", "BEGIN", "INSERT", "SAVEPOINT", "COMMIT", "SET"])
      assert.deepStrictEqual(yield* server.counts, { accepted: 1, open: 1, cancelRequests: 0 })
      assert.deepStrictEqual((yield* server.statements).slice(0, 2), ["SELECT 1", "BEGIN"])
    }))

  it.effect("answers with rows of every type", () =>
    Effect.gen(function*() {
      const row = {
        yes: true,
        small: 1,
        real: 1.5,
        large: 2n ** 40n,
        text: "käse",
        at: new Date(0),
        bytes: Uint8Array.of(0, 255),
        json: { a: [1] },
        nothing: null
      }
      const connection = yield* answering(rows([row, { ...row, small: null }]))
      const result = yield* connection.query("SELECT")
      assert.deepStrictEqual(result.rows.map((row) => ({ ...row })), [row, { ...row, small: null }])
      assert.strictEqual(result.rowCount, 2)
      assert.deepStrictEqual(result.fields.map(({ dataTypeId }) => dataTypeId), [
        16,
        23,
        701,
        20,
        25,
        1184,
        17,
        3802,
        25
      ])
    }))

  it.effect("answers no rows of given types, and another tag", () =>
    Effect.gen(function*() {
      const connection = yield* answering(
        rows([], { types: { id: PgTypes.OID.uuid }, command: "INSERT 0 3" })
      )
      const result = yield* connection.query("INSERT")
      assert.deepInclude(result, { command: "INSERT", rowCount: 3, rows: [] })
      assert.deepStrictEqual(result.fields, [{ name: "id", dataTypeId: PgTypes.OID.uuid }])
    }))

  it.effect("asks the script once for each execution, prepared or not, and shows it the parameters", () =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      const server = yield* make({
        onQuery: (sql, { id }, parameters) => {
          asked.push(`${id}: ${sql} ${parameters.map((bytes) => bytes === null ? "null" : bytes.length)}`)
          return rows([{ n: asked.length }])
        }
      })
      const connection = yield* connect(server)
      for (const prepare of [true, true, false]) {
        yield* connection.query("SELECT $1, $2", ["abc", null], prepare)
      }
      assert.deepStrictEqual(asked, Array.from({ length: 3 }, () => "1: SELECT $1, $2 3,null"))
      assert.deepStrictEqual(yield* connection.queryValues("SELECT 1"), [[4]])
    }))

  it.effect("keeps the order of a pipeline", () =>
    Effect.gen(function*() {
      const server = yield* make({
        onQuery: (sql) => sql.endsWith("1") ? Effect.as(Effect.yieldNow, rows([{ sql }])) : rows([{ sql }])
      })
      const connection = yield* connect(server, { multiplex: true })
      const statements = Array.from({ length: 20 }, (_, n) => `SELECT ${n}`)
      const answers = yield* Effect.forEach(statements, (sql) => connection.queryValues(sql), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(answers.map(([row]) => row?.[0]), statements)
    }))

  it.effect("answers errors, and is ready for the next statement", () =>
    Effect.gen(function*() {
      const server = yield* make({
        onQuery: (sql) =>
          sql === "bad" ? error("23505", "duplicate key", { constraint: "t_pkey", detail: "it is there" }) : undefined
      })
      const connection = yield* connect(server)
      const failure = yield* Effect.flip(connection.query("bad"))
      assert.strictEqual(failure.reason._tag, "UniqueViolation")
      if (failure.reason._tag === "UniqueViolation") assert.strictEqual(failure.reason.constraint, "t_pkey")
      assert.strictEqual((yield* connection.query("SELECT 1")).command, "SELECT")
    }))

  it.effect("follows transactions as the server does", () =>
    Effect.gen(function*() {
      const server = yield* make({ onQuery: (sql) => sql === "bad" ? error("22012", "division by zero") : undefined })
      const connection = yield* connect(server)
      const [session] = yield* server.sessions
      const seen: Array<string> = []
      for (const sql of ["BEGIN", "bad", "ROLLBACK TO s", "bad", "COMMIT", "BEGIN", "ROLLBACK", "bad"]) {
        const { command } = yield* Effect.orElseSucceed(connection.query(sql), () => ({ command: "-" }))
        seen.push(`${command} ${session!.transactionStatus()}`)
      }
      assert.deepStrictEqual(
        seen,
        ["BEGIN T", "- E", "ROLLBACK T", "- E", "ROLLBACK I", "BEGIN T", "ROLLBACK I", "- I"]
      )
    }))

  it.effect("says several things in a row: a notice, rows, and an error after them", () =>
    Effect.gen(function*() {
      const connection = yield* answering([
        notice("look out"),
        parameterStatus("TimeZone", "CET"),
        rows([{ n: 1 }, { n: 2 }], { command: null }),
        error("57014", "canceling statement due to statement timeout")
      ])
      assert.strictEqual((yield* failing(connection.query("SELECT"))).tag, "StatementTimeoutError")
      const seen: Array<unknown> = []
      yield* connection.stream("SELECT").pipe(
        Stream.runForEach((row) => Effect.sync(() => seen.push(row.n))),
        Effect.flip
      )
      assert.deepStrictEqual(seen, [1, 2])
    }))

  it.effect("ends a session with a FATAL, after it has said so", () =>
    Effect.gen(function*() {
      const server = yield* make({ onQuery: () => fatal("57P01", "terminating connection") })
      const said = yield* talk(server.port, startup, simple("SELECT 1"))
      assert.deepStrictEqual(said.at(-1), ["E", "SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"])
      const connection = yield* connect(server)
      assert.strictEqual((yield* failing(connection.query("SELECT 1"))).tag, "ConnectionError")
    }))

  for (const [name, answer] of [["closes", ScriptedServer.close], ["resets", reset]] as const) {
    it.effect(`${name} the connection instead of an answer`, () =>
      Effect.gen(function*() {
        const connection = yield* answering(answer)
        assert.strictEqual((yield* failing(connection.query("SELECT 1"))).tag, "ConnectionError")
      }))
  }

  it.effect("says raw bytes, and is cut short by silence", () =>
    Effect.gen(function*() {
      const broken = yield* answering(raw(Buffer.from("nonsense that is long enough")))
      assert.strictEqual((yield* failing(broken.query("SELECT 1"))).tag, "ConnectionError")
      const half = yield* answering([raw(Buffer.from("D\0\0\0\xff", "latin1")), silence])
      const fiber = yield* Effect.forkChild(half.query("SELECT 1"), { startImmediately: true })
      yield* Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 50)))
      assert.isUndefined(fiber.pollUnsafe())
    }))

  it.effect("lets an Effect answer, in the time of the test", () =>
    Effect.gen(function*() {
      const asked = yield* Deferred.make<void>()
      const connection = yield* answering(
        Deferred.succeed(asked, undefined).pipe(Effect.andThen(Effect.sleep("1 hour")), Effect.as(command("LATE")))
      )
      const fiber = yield* Effect.forkChild(connection.query("SELECT 1"), { startImmediately: true })
      yield* Deferred.await(asked)
      yield* TestClock.adjust("59 minutes")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust("1 minute")
      assert.strictEqual((yield* Fiber.join(fiber)).command, "LATE")
    }))

  it.effect("obeys a CancelRequest: the answer is interrupted, and the session goes on", () =>
    Effect.gen(function*() {
      const asked = yield* Deferred.make<void>()
      let interrupted = 0
      const server = yield* make({
        onQuery: (sql) =>
          sql === "slow"
            ? Deferred.succeed(asked, undefined).pipe(
              Effect.andThen(Effect.never),
              Effect.onInterrupt(() => Effect.sync(() => interrupted++))
            )
            : undefined
      })
      const connection = yield* connect(server)
      const fiber = yield* Effect.forkChild(connection.query("slow"), { startImmediately: true })
      yield* Deferred.await(asked)
      yield* connection.interrupt
      const exit = yield* Fiber.await(fiber)
      assert.strictEqual(interrupted, 1)
      assert.isTrue(Exit.isFailure(exit))
      assert.strictEqual((yield* connection.query("SELECT 1")).command, "SELECT")
      assert.deepStrictEqual(yield* server.counts, { accepted: 2, open: 1, cancelRequests: 1 })
    }))

  it.effect("tells what went wrong in its script", () =>
    Effect.gen(function*() {
      const server = yield* make({
        onQuery: (sql) => {
          if (sql === "throw") throw new Error("a mistake")
          return sql === "die" ? Effect.die(new Error("another one")) : rows([{ n: "no number" }], { types: { n: 23 } })
        }
      })
      const connection = yield* connect(server)
      for (const [sql, text] of [["throw", "a mistake"], ["die", "another one"], ["type", "column \"n\""]] as const) {
        const { cause } = (yield* Effect.flip(connection.query(sql))).reason
        assert.include(String((cause as { message?: unknown }).message), text)
      }
    }))

  it.effect("speaks unasked: a notification, and the end of an idle session", () =>
    Effect.gen(function*() {
      const server = yield* make()
      const connection = yield* connect(server)
      const [session] = yield* server.sessions
      const queue = yield* connection.listen("news")
      session!.send(ScriptedServer.notification("news", "hello"))
      assert.deepStrictEqual(yield* Queue.take(queue), {
        processId: session!.processId,
        channel: "news",
        payload: "hello"
      })
      session!.send(fatal("57P01", "terminating connection due to administrator command"))
      const ending = yield* Effect.exit(Queue.take(queue))
      assert.isTrue(Exit.isFailure(ending))
    }))

  it.effect("speaks the simple protocol too, in text", () =>
    Effect.gen(function*() {
      const server = yield* make({
        onQuery: (sql) => sql === "" ? undefined : rows([{ n: 7, yes: true, bytes: Uint8Array.of(1, 2), none: null }])
      })
      const said = yield* talk(server.port, startup, simple("SELECT"), simple(""), terminate)
      const answer = said.slice(said.findIndex(([type]) => type === "Z") + 1)
      assert.deepStrictEqual(answer.map(([type]) => type), ["T", "D", "C", "Z", "I", "Z"])
      assert.strictEqual(answer[1]![1], "\0\x04\0\0\0\x017\0\0\0\x01t\0\0\0\x06\\x0102\xff\xff\xff\xff")
    }))

  it.effect("refuses messages that cannot be read, and those it does not know", () =>
    Effect.gen(function*() {
      const server = yield* make()
      const bind = Buffer.from("B\0\0\0\x06\0\0", "latin1")
      const copy = Buffer.from("d\0\0\0\x04S\0\0\0\x04", "latin1")
      const unreadable = yield* talk(server.port, startup, Buffer.from("P\0\0\0\x05a", "latin1"))
      const unknown = yield* talk(server.port, startup, copy, bind, terminate)
      assert.include(unreadable.at(-1)![1], "C08P01")
      assert.include(unknown.find(([type]) => type === "E")![1], "C0A000")
    }))
})

describe("an error in the extended protocol", () => {
  it.effect("is said once: what comes before the client's Sync is skipped", () =>
    Effect.gen(function*() {
      const server = yield* make()
      const execute = Buffer.from("E\0\0\0\x09\0\0\0\0\0", "latin1")
      const sync = Buffer.from("S\0\0\0\x04", "latin1")
      const said = yield* talk(server.port, startup, execute, execute, sync, sync, terminate)
      const answer = said.slice(said.findIndex(([type]) => type === "Z") + 1)
      assert.deepStrictEqual(answer.map(([type]) => type), ["E", "Z", "Z"])
      assert.include(answer[0]![1], "C34000")
    }))
})

describe("the start of a session", () => {
  it.effect("tells the parameters that the script gives, and knows those of the client", () =>
    Effect.gen(function*() {
      const server = yield* make({ parameters: { server_version: "9.6", in_hot_standby: "on" } })
      yield* connect(server, { applicationName: "somebody", startupParameters: { statement_timeout: "5" } })
      const [session] = yield* server.sessions
      assert.deepInclude(session!.startup, {
        user: "scripted",
        database: "scripted",
        application_name: "somebody",
        statement_timeout: "5"
      })
      const said = yield* talk(server.port, startup, terminate)
      assert.includeDeepMembers([...said], [["S", "server_version\x009.6\0"], ["S", "in_hot_standby\0on\0"]])
    }))

  for (const code of ["53300", "57P03", "28000"]) {
    it.effect(`may be refused with ${code}, and granted later`, () =>
      Effect.gen(function*() {
        const server = yield* make({ onStartup: ({ id }) => id === 1 ? error(code, "not now") : undefined })
        assert.strictEqual((yield* failing(Effect.scoped(connect(server)))).code, code)
        assert.strictEqual((yield* (yield* connect(server)).query("SELECT 1")).command, "SELECT")
      }))
  }

  it.effect("may ask for a password that changes", () =>
    Effect.gen(function*() {
      let password = "old"
      const server = yield* make({
        onPassword: (given) => given === password ? undefined : error("28P01", "password authentication failed")
      })
      const withPassword = (text: string) => Effect.scoped(connect(server, { password: Redacted.make(text) }))
      yield* withPassword("old")
      password = "new"
      assert.deepInclude(yield* failing(withPassword("old")), { tag: "AuthenticationError", code: "28P01" })
      yield* withPassword("new")
    }))

  it.effect("may ask for a proof that the client cannot give", () =>
    Effect.gen(function*() {
      const server = yield* make({ onStartup: () => ScriptedServer.authentication(9) })
      assert.strictEqual((yield* failing(Effect.scoped(connect(server)))).tag, "AuthenticationError")
    }))

  it.effect("may be met with silence, or with the end of the connection", () =>
    Effect.gen(function*() {
      const mute = yield* make({ onStartup: () => silence })
      const fiber = yield* Effect.forkChild(Effect.flip(Effect.scoped(connect(mute, { connectTimeout: 1000 }))), {
        startImmediately: true
      })
      yield* TestClock.adjust(1000)
      assert.include((yield* Fiber.join(fiber)).reason.message, "timed out")
      const closing = yield* make({ onStartup: () => ScriptedServer.close })
      assert.strictEqual((yield* failing(Effect.scoped(connect(closing)))).tag, "ConnectionError")
    }))

  it.effect("may go wrong at the question for TLS", () =>
    Effect.gen(function*() {
      const plain = yield* make()
      assert.include((yield* failing(Effect.scoped(connect(plain, { ssl: true })))).text, "refused TLS")
      const old = yield* make({ onSslRequest: () => error("0A000", "unsupported frontend protocol") })
      assert.strictEqual((yield* failing(Effect.scoped(connect(old, { ssl: true })))).code, "0A000")
    }))
})

describe("a pool on a scripted server", () => {
  it.live("runs statements and transactions, and leaves nothing behind", () =>
    Effect.gen(function*() {
      const server = yield* make({ onQuery: (sql) => sql.startsWith("SELECT") ? rows([{ n: 1 }]) : undefined })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        assert.deepStrictEqual(yield* sql.withTransaction(sql`SELECT 1 AS n`), [{ n: 1 }])
        const [, , end] = yield* server.statements
        assert.strictEqual(end, "COMMIT")
      }).pipe(Effect.provide(Pg.layer({ url: server.url, max: 1 })))
      yield* Effect.repeat(Effect.delay(server.counts, 5), { until: ({ open }) => open === 0 })
    }))
})
