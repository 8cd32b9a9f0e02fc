import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Fiber } from "effect/Fiber"
import * as Begin from "../src/internal/begin.ts"
import { Deadline } from "../src/internal/deadline.ts"
import type { TrackedConnection } from "../src/internal/trackedConnection.ts"
import { ResolveCommit } from "../src/internal/unitOfWork.ts"

const setting = "SET LOCAL lock_timeout = 10000"

/** A session of a server that refuses whatever rides along and contains one of the texts. */
const sessionOf = (refused: ReadonlyArray<readonly [text: string, sqlState: string]>) => {
  const sent: Array<string> = []
  const session = {
    transaction: "None",
    query: (sql: string) =>
      Effect.sync(() => {
        if (sql === "ROLLBACK") session.transaction = "None"
        sent.push(sql)
      }),
    queryWithRider: (sql: string, rider: ReadonlyArray<string>) =>
      Effect.sync(() => {
        sent.push([sql, ...rider.map((each) => each.startsWith("SELECT") ? "SELECT" : each)].join("; "))
        const refusal = refused.find(([text]) => rider.some((each) => each.includes(text)))
        return { row: refusal === undefined ? ["7", "c", "t", "e"] : undefined, refusedBy: refusal?.[1] }
      })
  }
  return { session: session as unknown as TrackedConnection, sent }
}

/** By itself, as the context wants it. */
const beginner = ({ orderOf }: Begin.Begin) => (session: TrackedConnection) =>
  Effect.withFiber((fiber: Fiber<unknown, unknown>) => orderOf(fiber).alone(session))

describe("the limits of a deadline", () => {
  const bound = Effect.provideService(Deadline, 5_000)

  it.effect("are done without on a server that refuses to set any, which is asked once", () =>
    Effect.gen(function*() {
      const { sent, session } = sessionOf([["set_config", "42501"]])
      const begin = beginner(Begin.make([]))
      yield* begin(session)
      yield* begin(session)
      assert.deepStrictEqual(sent, ["BEGIN; SELECT", "ROLLBACK", "BEGIN", "BEGIN"])
    }).pipe(bound))

  it.effect("stay for the next transaction after a refusal that may pass", () =>
    Effect.gen(function*() {
      const { sent, session } = sessionOf([["set_config", "53200"]])
      const begin = beginner(Begin.make([]))
      yield* begin(session)
      yield* begin(session)
      const each = ["BEGIN; SELECT", "ROLLBACK", "BEGIN"]
      assert.deepStrictEqual(sent, [...each, ...each])
    }).pipe(bound))
})

describe("a transaction that is begun again after a refusal", () => {
  it.effect("is open: what is lost in it has been rolled back", () =>
    Effect.gen(function*() {
      const { sent, session } = sessionOf([["pg_current_xact_id", "42501"]])
      yield* beginner(Begin.make([]))(session)
      assert.deepStrictEqual(sent, ["BEGIN; SELECT", "ROLLBACK", "BEGIN"])
      assert.strictEqual(session.transaction, "Open")
    }).pipe(Effect.provideService(ResolveCommit, true)))
})

describe("settings that belong to each transaction", () => {
  it.effect("are sent with BEGIN", () =>
    Effect.gen(function*() {
      const { sent, session } = sessionOf([])
      const begin = beginner(Begin.make([setting]))
      yield* begin(session)
      assert.deepStrictEqual(sent, [`BEGIN; ${setting}`])
    }))

  it.effect("are done without on a server that does not know them, which is asked once", () =>
    Effect.gen(function*() {
      const { sent, session } = sessionOf([["lock_timeout", "42704"]])
      const begin = beginner(Begin.make([setting]))
      yield* begin(session)
      yield* begin(session)
      assert.deepStrictEqual(sent, [`BEGIN; ${setting}`, "ROLLBACK", "BEGIN", "BEGIN"])
    }))

  it.effect("stay when it is the number of the transaction that the server refuses", () =>
    Effect.gen(function*() {
      const { sent, session } = sessionOf([["pg_current_xact_id", "42883"]])
      const begin = beginner(Begin.make([setting]))
      yield* begin(session)
      yield* begin(session)
      assert.deepStrictEqual(sent, [
        `BEGIN; ${setting}; SELECT`,
        "ROLLBACK",
        `BEGIN; ${setting}`,
        `BEGIN; ${setting}`
      ])
    }).pipe(Effect.provideService(ResolveCommit, true)))

  it.effect("do not cost the number of the transaction when it is they that are refused", () =>
    Effect.gen(function*() {
      const { sent, session } = sessionOf([["lock_timeout", "42704"]])
      const made = Begin.make([setting])
      const { inquiryOf } = made
      yield* beginner(made)(session)
      assert.deepStrictEqual(sent, [`BEGIN; ${setting}; SELECT`, "ROLLBACK", "BEGIN; SELECT"])
      assert.strictEqual(inquiryOf(session)?.ticket?.xid, "7")
    }).pipe(Effect.provideService(ResolveCommit, true)))
})
