import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import * as CommitFate from "../../src/internal/commitFate.ts"
import { EmbeddedPostgres, type Server } from "../../src/testing/index.ts"
import { type Fault, makeMessageProxy } from "./messageProxy.ts"
import { ended, eventually, makeWitness } from "./witness.ts"

const { transaction } = Pg.Executor

/** Nothing but the tests takes transaction ids, and nothing is written to disk that nobody waits for. */
const ownServer = EmbeddedPostgres.make({
  useDatabaseUrl: false,
  settings: { autovacuum: "off", wal_writer_delay: "10s" }
})

const patient = {
  breaker: false,
  retryBudget: false,
  retry: { base: 50, cap: 200, attempts: 100, jitter: "none" },
  max: 1
} as const satisfies Pg.Options

/** One session for one question: a crash would end any longer one. */
const asking = <A, E>(url: Redacted.Redacted, f: (connection: PgConnection.PgConnection) => Effect.Effect<A, E>) =>
  Effect.scoped(Effect.flatMap(PgConnection.make({ url }), f))

const identify = (connection: PgConnection.PgConnection) =>
  Effect.map(
    connection.queryValues(`SELECT ${CommitFate.identity.join(", ")}`, [], false),
    ([row]) => CommitFate.ticketOf(row as ReadonlyArray<string | null>) ?? assert.fail("no ticket")
  )

const fateOf = (url: Redacted.Redacted, ticket: CommitFate.Ticket) => {
  const { params, sql } = CommitFate.question(ticket)
  return asking(url, (connection) =>
    Effect.map(
      connection.query(sql, params, false),
      ({ rows }) => CommitFate.fateOf(ticket, rows[0] as CommitFate.Answer | undefined)
    ))
}

const answers = (url: Redacted.Redacted) =>
  eventually(
    "an answer",
    Effect.map(Effect.exit(asking(url, (connection) => connection.query("SELECT 1"))), Exit.isSuccess),
    60
  )

interface Crash {
  readonly name: string
  readonly of: (server: Server) => Effect.Effect<void, unknown>
}

const crashes: ReadonlyArray<Crash> = [
  {
    name: "a backend is killed, and the server starts over",
    of: ({ log, url }) =>
      Effect.gen(function*() {
        const recoveries = Effect.map(log, (text) => text.split("automatic recovery in progress").length)
        const before = yield* recoveries
        yield* Effect.exit(asking(url, (connection) =>
          Effect.andThen(
            Effect.sync(() => process.kill(connection.processId, "SIGKILL")),
            connection.query("SELECT pg_sleep(60)")
          )))
        yield* eventually("a recovery", Effect.map(recoveries, (count) => count > before), 60)
        yield* answers(url)
      })
  },
  {
    name: "all of it is killed, and started again",
    of: ({ kill, start, url }) => Effect.andThen(Effect.andThen(kill, start), answers(url))
  }
]

describe("the time at which the statistics were reset", () => {
  it.live("stays over an orderly restart, so that a COMMIT before it is still known", () =>
    Effect.gen(function*() {
      const { start, stop, url } = yield* ownServer
      const ticket = yield* asking(url, identify)
      yield* Effect.andThen(stop, start)
      assert.strictEqual((yield* asking(url, identify)).epoch, ticket.epoch)
      assert.deepStrictEqual(yield* fateOf(url, ticket), { _tag: "Committed" })
    }), 90_000)

  for (const { name, of } of crashes) {
    it.live(
      `changes when ${name}, and a transaction id given twice is not taken for the first one`,
      () =>
        Effect.gen(function*() {
          const server = yield* ownServer
          const { url } = server
          // An open transaction has its id in memory alone.
          const ticket = yield* Effect.scoped(Effect.gen(function*() {
            const connection = yield* PgConnection.make({ url })
            yield* connection.query("BEGIN", [], false)
            const ticket = yield* identify(connection)
            yield* of(server)
            return ticket
          }))
          const numberOf = ({ xid }: CommitFate.Ticket) => Number(xid)
          let latest = yield* asking(url, identify)
          assert.notStrictEqual(latest.epoch, ticket.epoch)
          assert.isAtMost(numberOf(latest), numberOf(ticket))
          while (latest.xid !== ticket.xid) {
            latest = yield* asking(url, identify)
            assert.isAtMost(numberOf(latest), numberOf(ticket))
          }
          const status = yield* asking(
            url,
            (connection) => connection.queryValues("SELECT pg_xact_status($1::text::xid8)", [ticket.xid])
          )
          assert.deepStrictEqual(status, [["committed"]])
          const fate = yield* fateOf(url, ticket)
          assert.strictEqual(fate._tag, "Unknown")
          if (fate._tag === "Unknown") assert.include(fate.reason, "recovered from a crash")
        }),
      90_000
    )
  }
})

describe("a server that crashes between a COMMIT and its answer", () => {
  const insert = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO t VALUES (1)`)
  const rows = (url: Redacted.Redacted) =>
    asking(url, (connection) => Effect.map(connection.queryValues("SELECT count(*)::int FROM t"), ([row]) => row?.[0]))

  for (const { name, of } of crashes) {
    it.live(`before it was applied, it is repeated, and there once: ${name}`, () =>
      Effect.gen(function*() {
        const server = yield* ownServer
        const { url } = server
        yield* Effect.gen(function*() {
          let attempts = 0
          const fiber = yield* Effect.scoped(Effect.gen(function*() {
            const witness = yield* makeWitness(url)
            yield* witness.query("CREATE TABLE t (n int)")
            // The COMMIT waits for the witness, of whom the crash frees it.
            yield* witness.query(
              `CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'`
            )
            yield* witness.query(
              `CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION wait()`
            )
            yield* witness.query("SELECT pg_advisory_lock(1)")
            const fiber = yield* Effect.forkDetach(
              transaction(Effect.andThen(Effect.sync(() => attempts++), insert), { resolveCommit: true })
            )
            yield* eventually(
              "a COMMIT that waits",
              witness.value<boolean>("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'advisory'")
            )
            yield* of(server)
            return fiber
          }))
          const exit = yield* ended(fiber, 60)
          assert.isTrue(Exit.isSuccess(exit), `${exit}`)
          assert.strictEqual(attempts, 2)
          assert.strictEqual(yield* rows(url), 1)
        }).pipe(Effect.provide(Pg.layer({ ...patient, url })))
      }), 120_000)

    it.live(
      `after it was applied, it is unknown because of the crash, and there once: ${name}`,
      () =>
        Effect.gen(function*() {
          const server = yield* ownServer
          const { url } = server
          const proxy = yield* makeMessageProxy(url)
          yield* asking(url, (connection) => connection.query("CREATE TABLE t (n int)"))
          yield* Effect.gen(function*() {
            const write = transaction(insert, { resolveCommit: true })
            yield* write
            yield* write
            const whole = proxy.done().at(-1) ?? assert.fail("no transaction has come to its end")
            const fault: Fault = {
              direction: "to the client",
              boundary: whole["to the client"] - 1,
              fate: "lose",
              // Longer than the crash takes: until then, the client waits.
              stall: 60_000
            }
            const faults = [fault]
            proxy.plan(() => faults.shift())
            const fiber = yield* Effect.forkChild(write)
            yield* eventually("an answer that was lost", Effect.sync(() => proxy.faults().length === 1))
            yield* of(server)
            proxy.endStalls()
            const exit = yield* ended(fiber, 60)
            const error = yield* Effect.flip(exit)
            assert.strictEqual(error._tag, "OutcomeUnknown")
            if (error._tag === "OutcomeUnknown") assert.include(error.unresolved, "recovered from a crash")
            assert.strictEqual(yield* rows(url), 3)
          }).pipe(Effect.provide(Pg.layer({ ...patient, url: proxy.url })))
        }),
      120_000
    )
  }
})
