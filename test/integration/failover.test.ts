import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import * as Net from "node:net"
import * as Pg from "../../src/index.ts"
import { makeCluster, type Node } from "./cluster.ts"
import { makeProxy } from "./proxy.ts"
import { ended, eventually } from "./witness.ts"

const range = (count: number) => Array.from({ length: count }, (_, index) => index)

const hostsOf = (...nodes: ReadonlyArray<{ readonly port: number }>) =>
  nodes.map(({ port }) => ({ host: "127.0.0.1", port }))

const someone = { username: "postgres", database: "postgres", applicationName: "failover-test" } as const

/** The port of the server that answers. */
const answering = Effect.flatMap(
  SqlClient,
  (sql) => Effect.map(sql<{ port: number }>`SELECT inet_server_port() AS port`, ([row]) => row!.port)
)

const ofOurs = "pg_stat_activity WHERE application_name = 'failover-test'"

const now = Clock.currentTimeMillis

/** What writers were told, each about the ids that it has put in, in their order. */
interface Book {
  readonly acknowledged: Array<
    { readonly id: number; readonly writer: number; readonly lsn: number; readonly at: number }
  >
  readonly unknown: Array<number>
  readonly refused: Array<number>
}

/** Writes under way until they are stopped. What goes wrong is noted, and the next write is tried. */
const writeAlong = Effect.fnUntraced(function*(writers: number) {
  const sql = yield* SqlClient
  const book: Book = { acknowledged: [], unknown: [], refused: [] }
  let lastId = 0
  let isRunning = true
  const write = (writer: number) =>
    Effect.suspend(() => {
      const id = ++lastId
      return Effect.matchEffect(
        sql<
          { lsn: number }
        >`INSERT INTO ledger VALUES (${id}) RETURNING (pg_current_wal_insert_lsn() - '0/0')::float8 AS lsn`,
        {
          onFailure: (error) =>
            Effect.sync(() => {
              const typed = Pg.Errors.fromSqlError(error)
              const last = typed?._tag === "RetriesExhausted" ? typed.last : typed
              const isUnknown = Pg.Errors.isPoolError(last) && last._tag === "OutcomeUnknown"
              ;(isUnknown ? book.unknown : book.refused).push(id)
            }),
          onSuccess: ([row]) => Effect.map(now, (at) => void book.acknowledged.push({ id, writer, lsn: row!.lsn, at }))
        }
      )
    })
  const fibers = yield* Effect.forEach(range(writers), (writer) =>
    Effect.forkChild(Effect.whileLoop({
      while: () => isRunning,
      body: () => Effect.andThen(write(writer), Effect.sleep(2)),
      step: () => {}
    })))
  return {
    book,
    progress: Effect.suspend(() => {
      const before = book.acknowledged.length
      return eventually("writes", Effect.sync(() => book.acknowledged.length > before + 100), 20)
    }),
    end: Effect.suspend(() => {
      isRunning = false
      return Effect.forEach(fibers, (fiber) => ended(fiber), { discard: true })
    })
  }
})

/** Reads under way until they are stopped. */
const readAlong = Effect.gen(function*() {
  const sql = yield* SqlClient
  const failures: Array<string> = []
  let reads = 0
  let isRunning = true
  const fibers = yield* Effect.forEach(range(4), () =>
    Effect.forkChild(Effect.whileLoop({
      while: () => isRunning,
      body: () =>
        Effect.andThen(
          Effect.match(sql`SELECT count(*) FROM ledger`, {
            onFailure: (error) => void failures.push(error.message),
            onSuccess: () => void reads++
          }),
          Effect.sleep(2)
        ),
      step: () => {}
    })))
  return {
    failures,
    progress: Effect.suspend(() => {
      const before = reads
      return eventually("reads", Effect.sync(() => reads > before + 50), 20)
    }),
    end: Effect.suspend(() => {
      isRunning = false
      return Effect.forEach(fibers, (fiber) => Fiber.await(fiber), { discard: true })
    })
  }
})

/** Milliseconds from then to the first write that began to be answered afterwards. */
const resumedAfter = ({ acknowledged }: Book, since: number): number =>
  Math.min(...acknowledged.filter(({ at }) => at >= since).map(({ at }) => at)) - since

const timesOf = (node: Node) =>
  Effect.map(
    node.ask<string>(
      "SELECT coalesce(json_object_agg(id, n), '{}')::text FROM (SELECT id, count(*) AS n FROM ledger GROUP BY id) AS t"
    ),
    (text) => new Map(Object.entries(JSON.parse(text) as Record<string, number>).map(([id, n]) => [Number(id), n]))
  )

const table = "CREATE TABLE ledger (id bigint NOT NULL)"

const replicated = (standby: Node) =>
  eventually(
    "replication",
    Effect.orElseSucceed(Effect.as(standby.ask("SELECT count(*) FROM ledger"), true), () => false)
  )

describe("a healthy cluster", () => {
  it.live(
    "is read and written where targetSessionAttrs says, whatever the order of its hosts",
    () =>
      Effect.gen(function*() {
        const { primary, standby } = yield* makeCluster
        const cases: ReadonlyArray<readonly [Pg.Pool.Options["targetSessionAttrs"], number]> = [
          ["any", standby.port],
          ["read-write", primary.port],
          ["primary", primary.port],
          ["read-only", standby.port],
          ["standby", standby.port],
          ["prefer-standby", standby.port]
        ]
        for (const [targetSessionAttrs, port] of cases) {
          const found = yield* Effect.provide(
            answering,
            Pg.layer({ ...someone, max: 2, hosts: hostsOf(standby, primary), targetSessionAttrs })
          )
          assert.strictEqual(found, port, targetSessionAttrs)
        }
        const url = `postgres://postgres@127.0.0.1:${standby.port},127.0.0.1:${primary.port}/postgres`
        const byUrl = Pg.layer({ url: Redacted.make(`${url}?target_session_attrs=primary`), max: 2 })
        assert.strictEqual(yield* Effect.provide(answering, byUrl), primary.port)
      }),
    60_000
  )

  it.live(
    "is searched in one place: the socket to the wrong host is gone before the next one is opened",
    () =>
      Effect.gen(function*() {
        const { primary, standby } = yield* makeCluster
        const first = yield* makeProxy(standby.url)
        const second = yield* makeProxy(primary.url)
        const open: Array<number> = []
        yield* Effect.gen(function*() {
          assert.strictEqual(yield* answering, primary.port)
          const pool = yield* Pg.Pool.Pool
          assert.strictEqual(pool.statsUnsafe().total, 1)
        }).pipe(Effect.provide(Pg.layer({
          ...someone,
          max: 1,
          hosts: [first, second].map(({ url }) => ({
            host: "127.0.0.1",
            port: Number(new URL(Redacted.value(url)).port)
          })),
          targetSessionAttrs: "read-write",
          beforeConnect: Effect.sync(() => open.push(first.open() + second.open()))
        })))
        assert.deepStrictEqual(open, [0, 0])
        assert.deepStrictEqual([first.accepted(), second.accepted()], [1, 1])
      }),
    60_000
  )

  it.live("is asked what it is where it does not say so by itself", () =>
    Effect.gen(function*() {
      const { primary, standby } = yield* makeCluster
      const mutes = yield* Effect.forEach([standby, primary], makeMute)
      const found = (targetSessionAttrs: Pg.Pool.Options["targetSessionAttrs"]) =>
        Effect.provide(answering, Pg.layer({ ...someone, max: 1, hosts: hostsOf(...mutes), targetSessionAttrs }))
      assert.strictEqual(yield* found("read-write"), primary.port)
      assert.strictEqual(yield* found("primary"), primary.port)
      assert.strictEqual(yield* found("standby"), standby.port)
    }), 60_000)

  it.live(
    "tells of each host why none would do, and leaves the circuit closed while one answers",
    () =>
      Effect.gen(function*() {
        const { primary, standby } = yield* makeCluster
        yield* primary.stop
        yield* Effect.gen(function*() {
          const executor = yield* Pg.Executor.Executor
          const breaker = yield* Pg.Breaker.Breaker
          for (let call = 0; call < 8; call++) {
            const error = yield* Effect.flip(executor.run(answering, { retry: false }))
            assert.strictEqual(error._tag, "NoSuitableHost")
            if (error._tag !== "NoSuitableHost") return
            const found = new Map(error.hosts.map((host) => [host.host, host]))
            assert.strictEqual(found.get(`127.0.0.1:${primary.port}`)?.failure?.code, "ECONNREFUSED")
            assert.strictEqual(found.get(`127.0.0.1:${standby.port}`)?.role, "standby")
            assert.isTrue(error.isRetryable)
            yield* Effect.sleep(60)
          }
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
        }).pipe(
          Effect.provide(
            Pg.layer({ ...someone, max: 2, hosts: hostsOf(primary, standby), targetSessionAttrs: "read-write" })
          )
        )
        // Where nobody answers, the database is down.
        yield* standby.stop
        yield* Effect.gen(function*() {
          const executor = yield* Pg.Executor.Executor
          const breaker = yield* Pg.Breaker.Breaker
          const error = yield* Effect.flip(executor.run(answering, { retry: false }))
          assert.strictEqual(error._tag, "NoSuitableHost")
          assert.strictEqual(Pg.Errors.failureOf(error).code, "ECONNREFUSED")
          assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 1 })
        }).pipe(Effect.provide(Pg.layer({ ...someone, max: 2, hosts: hostsOf(primary, standby) })))
      }),
    60_000
  )

  it.live("has its statements cancelled on the host where they run", () =>
    Effect.gen(function*() {
      const { primary, standby } = yield* makeCluster
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        const running = standby.ask<string>(`SELECT count(*) FROM ${ofOurs} AND state = 'active'`)
        const sleeper = yield* Effect.forkChild(sql`SELECT pg_sleep(20)`)
        yield* eventually("a running statement", Effect.map(running, (count) => Number(count) === 1))
        yield* Fiber.interrupt(sleeper)
        yield* eventually("its end", Effect.map(running, (count) => Number(count) === 0), 5)
        // A request that had gone to the other host would have cost the session.
        assert.strictEqual(pool.statsUnsafe().total, 1)
      }).pipe(
        Effect.provide(
          Pg.layer({ ...someone, max: 1, hosts: hostsOf(primary, standby), targetSessionAttrs: "standby" })
        )
      )
    }), 60_000)

  it.live("keeps a pool for reading as it is when somebody writes through it", () =>
    Effect.gen(function*() {
      const { primary, standby } = yield* makeCluster
      yield* primary.ask(table)
      yield* replicated(standby)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const { processId } = (yield* sql<{ processId: number }>`SELECT pg_backend_pid() AS "processId"`)[0]!
        const error = yield* Effect.flip(sql`INSERT INTO ledger VALUES (1)`)
        assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "25006")
        assert.isFalse(error.isRetryable)
        assert.deepStrictEqual(yield* sql`SELECT pg_backend_pid() AS "processId"`, [{ processId }])
      }).pipe(
        Effect.provide(
          Pg.layer({ ...someone, max: 1, hosts: hostsOf(primary, standby), targetSessionAttrs: "prefer-standby" })
        )
      )
    }), 60_000)
})

describe("a promotion under load", () => {
  it.live(
    "of a standby that has everything: writes resume, each is there once, and reads go on",
    () =>
      Effect.gen(function*() {
        const { primary, standby } = yield* makeCluster
        yield* primary.ask(table)
        yield* replicated(standby)
        const hosts = hostsOf(primary, standby)
        const readers = Pg.layer({ ...someone, max: 4, hosts, targetSessionAttrs: "prefer-standby" })
        const writers = Pg.layer({ ...someone, max: 4, hosts, targetSessionAttrs: "read-write" })
        yield* Effect.gen(function*() {
          const reading = yield* readAlong
          yield* reading.progress
          const { book, took } = yield* Effect.gen(function*() {
            const writing = yield* writeAlong(8)
            yield* writing.progress
            yield* primary.stop
            yield* Effect.sleep(1000)
            yield* reading.progress
            yield* standby.promote
            const promotedAt = yield* now
            yield* writing.progress
            yield* writing.end
            return { book: writing.book, took: resumedAfter(writing.book, promotedAt) }
          }).pipe(Effect.provide(writers))
          yield* reading.progress
          assert.deepStrictEqual(reading.failures, [])

          const times = yield* timesOf(standby)
          const wrong = [
            ...book.acknowledged.filter(({ id }) => times.get(id) !== 1).map(({ id }) => `acknowledged ${id}`),
            ...book.refused.filter((id) => times.has(id)).map((id) => `refused ${id}`),
            ...book.unknown.filter((id) => (times.get(id) ?? 0) > 1).map((id) => `unknown ${id}`)
          ]
          assert.deepStrictEqual(wrong, [])
          assert.isAtMost(took, 2000)
          yield* Effect.log(
            `writes resumed ${took} ms after the promotion; ${book.acknowledged.length} acknowledged, lost 0, doubled 0, ` +
              `${book.unknown.length} unknown, ${book.refused.length} refused`
          )

          // The old primary comes back as a standby: the next connects of those who prefer one go there.
          yield* primary.demoteTo(standby)
          yield* primary.start
          const pool = yield* Pg.Pool.Pool
          yield* eventually(
            "reads on the new standby",
            Effect.andThen(pool.evictAll, Effect.map(answering, (port) => port === primary.port)),
            20
          )
          yield* reading.end
          assert.deepStrictEqual(reading.failures, [])
        }).pipe(Effect.provide(readers))
      }),
    120_000
  )

  it.live(
    "after the primary was killed: what is lost is what had not been replicated, and nothing is doubled",
    () =>
      Effect.gen(function*() {
        const { primary, standby } = yield* makeCluster
        yield* primary.ask(table)
        yield* replicated(standby)
        const hosts = hostsOf(primary, standby)
        const { book, received, took } = yield* Effect.gen(function*() {
          const writing = yield* writeAlong(8)
          yield* writing.progress
          yield* primary.stallReplication
          yield* writing.progress
          yield* primary.kill
          const isStreaming = standby.ask<string>(
            "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'"
          )
          yield* eventually("the end of the stream", Effect.map(isStreaming, (count) => Number(count) === 0))
          const received = yield* standby.ask<number>("SELECT (pg_last_wal_receive_lsn() - '0/0')::float8")
          yield* standby.promote
          const promotedAt = yield* now
          yield* writing.progress
          yield* writing.end
          const { acknowledged, refused, unknown } = writing.book
          const before = acknowledged.filter(({ at }) => at < promotedAt)
          return {
            received,
            took: resumedAfter(writing.book, promotedAt),
            book: { acknowledged, before, refused, unknown }
          }
        }).pipe(Effect.provide(Pg.layer({ ...someone, max: 4, hosts, targetSessionAttrs: "read-write" })))

        const times = yield* timesOf(standby)
        yield* primary.start
        const old = yield* timesOf(primary)
        const lost = book.acknowledged.filter(({ id }) => !times.has(id))
        assert.isAbove(lost.length, 0)
        // Each was really committed on the primary, before it was acknowledged,
        assert.deepStrictEqual(lost.filter(({ id }) => old.get(id) !== 1), [])
        // and the next write of the same writer, which came later, tells where in the log its commit was at the latest.
        const early = lost.filter(({ id, writer }) =>
          book.before.some((next) => next.writer === writer && next.id > id && next.lsn <= received)
        )
        assert.deepStrictEqual(early, [])
        assert.deepStrictEqual(Array.from(times).filter(([, count]) => count > 1), [])
        assert.deepStrictEqual(book.refused.filter((id) => times.has(id) || old.has(id)), [])
        assert.isAtMost(took, 2000)
        yield* Effect.log(
          `writes resumed ${took} ms after the promotion; ${book.acknowledged.length} acknowledged, ${lost.length} lost by ` +
            `asynchronous replication, doubled 0, ${book.unknown.length} unknown, ${book.refused.length} refused`
        )
      }),
    120_000
  )
})

describe("a primary that takes no more writes", () => {
  /** As an operator does who moves the writes elsewhere while sessions are open. */
  const closeForWrites = (node: Node) =>
    Effect.andThen(
      node.ask("ALTER SYSTEM SET default_transaction_read_only = on"),
      Effect.andThen(
        node.ask("SELECT pg_reload_conf()"),
        eventually(
          "the new setting",
          Effect.map(node.ask<string>("SHOW default_transaction_read_only"), (value) => value === "on")
        )
      )
    )

  it.live(
    "has its refused write repeated on the new one, without an error and once, and keeps no session",
    () =>
      Effect.gen(function*() {
        const { primary, standby } = yield* makeCluster
        yield* primary.ask(table)
        yield* replicated(standby)
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          yield* Effect.forEach(range(3), () => sql`SELECT pg_sleep(0.05)`, { concurrency: "unbounded" })
          yield* closeForWrites(primary)
          yield* standby.promote
          yield* sql`INSERT INTO ledger VALUES (1)`
          assert.strictEqual(yield* answering, standby.port)
          assert.deepStrictEqual(Array.from(yield* timesOf(standby)), [[1, 1]])
          yield* eventually(
            "no session on the old one",
            Effect.map(primary.ask<string>(`SELECT count(*) FROM ${ofOurs}`), (count) => Number(count) === 0)
          )
          const { errors } = yield* Effect.flatMap(Pg.Metrics.Metrics, (metrics) => metrics.snapshot)
          assert.strictEqual(errors.ReadOnly, 1)
        }).pipe(
          Effect.provide(
            Pg.layer({ ...someone, max: 3, hosts: hostsOf(primary, standby), targetSessionAttrs: "read-write" })
          )
        )
      }),
    60_000
  )

  it.live(
    "is left by a session as soon as the server tells of it, before anybody has tried to write",
    () =>
      Effect.gen(function*() {
        const { primary, standby } = yield* makeCluster
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const pool = yield* Pg.Pool.Pool
          yield* Effect.forEach(range(3), () => sql`SELECT pg_sleep(0.2)`, { concurrency: "unbounded" })
          assert.strictEqual(pool.statsUnsafe().total, 3)
          yield* closeForWrites(primary)
          yield* standby.promote
          // The answer to this one brings the news along, and the next connect finds that the others are left behind.
          assert.strictEqual(yield* answering, primary.port)
          assert.strictEqual(pool.statsUnsafe().total, 2)
          yield* pool.warm(4)
          assert.strictEqual(yield* answering, standby.port)
          yield* eventually(
            "no session on the old one",
            Effect.map(primary.ask<string>(`SELECT count(*) FROM ${ofOurs}`), (count) => Number(count) === 0)
          )
          const { errors } = yield* Effect.flatMap(Pg.Metrics.Metrics, (metrics) => metrics.snapshot)
          assert.strictEqual(errors.ReadOnly, 0)
        }).pipe(
          Effect.provide(
            Pg.layer({ ...someone, max: 4, hosts: hostsOf(primary, standby), targetSessionAttrs: "read-write" })
          )
        )
      }),
    60_000
  )
})

/** What a server before PostgreSQL 14 does not say: it reports this setting under another name. */
const makeMute = (node: Node) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly port: number; readonly server: Net.Server }>((resume) => {
      const server = Net.createServer((client) => {
        const upstream = Net.connect({ host: "127.0.0.1", port: node.port })
        for (const socket of [client, upstream]) socket.on("error", () => {})
        client.pipe(upstream)
        upstream.on("data", (chunk: Buffer) => {
          const at = chunk.indexOf("in_hot_standby")
          if (at >= 0) chunk.write("no", at)
          client.write(chunk)
        })
        upstream.on("close", () => client.destroy())
      })
      server.listen(0, "127.0.0.1", () => {
        resume(Effect.succeed({ port: (server.address() as Net.AddressInfo).port, server }))
      })
    }),
    ({ server }) => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
  )
