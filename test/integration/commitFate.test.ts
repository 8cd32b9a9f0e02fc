import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as CommitFate from "../../src/internal/commitFate.ts"
import { freshDatabase } from "./database.ts"
import { eventually } from "./witness.ts"

const session = Effect.flatMap(freshDatabase, (url) => PgConnection.make({ url }))

const identify = (connection: PgConnection.PgConnection) =>
  Effect.map(
    connection.queryValues(`SELECT ${CommitFate.identity.join(", ")}`, [], false),
    ([row]) => CommitFate.ticketOf(row as ReadonlyArray<string | null>) ?? assert.fail("no ticket")
  )

const ask = (connection: PgConnection.PgConnection, ticket: CommitFate.Ticket) => {
  const { params, sql } = CommitFate.question(ticket)
  return Effect.map(
    connection.query(sql, params, false),
    ({ rows }) => CommitFate.fateOf(ticket, rows[0] as CommitFate.Answer | undefined)
  )
}

describe("the question what became of a transaction", () => {
  it.live("is answered whatever bytes the next transaction id has: some were read as text, and refused", () =>
    Effect.gen(function*() {
      const connection = yield* session
      const ticket = yield* identify(connection)
      // Each question takes an id itself, so the lowest byte has all its values.
      for (let times = 0; times < 256; times++) {
        assert.deepStrictEqual(yield* ask(connection, ticket), { _tag: "Committed" })
      }
    }))

  it.live("is answered alike in every time zone and date style: a crash was read out of a change of either", () =>
    Effect.gen(function*() {
      const connection = yield* session
      const ticket = yield* identify(connection)
      yield* connection.query("SET TimeZone = 'Asia/Kathmandu'", [], false)
      yield* connection.query("SET DateStyle = 'German'", [], false)
      assert.deepStrictEqual(yield* ask(connection, ticket), { _tag: "Committed" })
    }))

  it.live("tells a rollback, a transaction in progress and one that is idle from each other", () =>
    Effect.gen(function*() {
      const asker = yield* session
      const worker = yield* session
      yield* worker.query("BEGIN", [], false)
      const undone = yield* identify(worker)
      assert.deepStrictEqual(yield* ask(asker, undone), { _tag: "InProgress", isIdle: true })
      const { params, sql } = CommitFate.fence(undone)
      yield* asker.query(sql, params, false)
      yield* Effect.flip(worker.query("COMMIT", [], false))
      // The server says goodbye first, and rolls back then.
      yield* eventually("a rollback", Effect.map(ask(asker, undone), ({ _tag }) => _tag === "Aborted"))
    }))
})
