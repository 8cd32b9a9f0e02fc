import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as TestClock from "effect/testing/TestClock"
import * as CommitFate from "../src/internal/commitFate.ts"

const ticket: CommitFate.Ticket = { xid: "700", cluster: "7", timeline: "00000001", epoch: "1000" }

const answer = (known: Partial<CommitFate.Answer>): CommitFate.Answer => ({
  cluster: ticket.cluster,
  timeline: ticket.timeline,
  epoch: ticket.epoch,
  status: null,
  isAhead: false,
  state: null,
  ...known
})

const fate = (known: Partial<CommitFate.Answer>) => CommitFate.fateOf(ticket, answer(known))

const reasonOf = (fate: CommitFate.Fate): string => fate._tag === "Unknown" ? fate.reason : assert.fail(fate._tag)

const afterCrash = { epoch: "2000" }

describe("the fate of a transaction", () => {
  it("is what the server says while it is the same server", () => {
    assert.deepStrictEqual(fate({ status: "committed" }), { _tag: "Committed" })
    assert.deepStrictEqual(fate({ status: "aborted" }), { _tag: "Aborted" })
  })

  it("is open while its session is at work, and while it waits for a statement", () => {
    const idle = { _tag: "InProgress", isIdle: true } as const
    const busy = { _tag: "InProgress", isIdle: false } as const
    assert.deepStrictEqual(fate({ status: "in progress", state: "active" }), busy)
    assert.deepStrictEqual(fate({ status: "in progress", state: null }), busy)
    assert.deepStrictEqual(fate({ status: "in progress", state: "idle in transaction" }), idle)
    assert.deepStrictEqual(fate({ status: "in progress", state: "idle in transaction (aborted)" }), idle)
  })

  it("is not asked of another server or another timeline, whatever they say", () => {
    for (const status of ["committed", "aborted", "in progress", null]) {
      for (const isAhead of [true, false, null]) {
        assert.include(reasonOf(fate({ cluster: "8", status, isAhead })), "another server")
        assert.include(reasonOf(fate({ timeline: "00000002", status, isAhead })), "another timeline")
        assert.include(reasonOf(fate({ timeline: "standby", status, isAhead })), "another timeline")
      }
    }
  })

  it("is a rollback when the server has not given the number yet: it was never written down", () => {
    assert.deepStrictEqual(fate({ isAhead: true }), { _tag: "Aborted" })
    assert.deepStrictEqual(fate({ isAhead: true, ...afterCrash }), { _tag: "Aborted" })
  })

  it("is not believed to be a commit after a crash: another transaction may have the number now", () => {
    assert.include(reasonOf(fate({ status: "committed", ...afterCrash })), "recovered from a crash")
    assert.include(reasonOf(fate({ status: "in progress", ...afterCrash })), "recovered from a crash")
    assert.include(reasonOf(fate({ status: "committed", epoch: null })), "recovered from a crash")
  })

  it("is a rollback after a crash if the number was rolled back, whoever had it last", () => {
    assert.deepStrictEqual(fate({ status: "aborted", ...afterCrash }), { _tag: "Aborted" })
  })

  it("is forgotten when it is too old, and not told when there is no answer", () => {
    assert.include(reasonOf(fate({ status: null })), "so old")
    assert.include(reasonOf(CommitFate.fateOf(ticket, undefined)), "did not answer")
  })
})

describe("the ticket", () => {
  it("is read from the columns, and there is none where one of them is missing", () => {
    assert.deepStrictEqual(CommitFate.ticketOf(["700", "7", "00000001", "1000"]), ticket)
    assert.deepStrictEqual(CommitFate.ticketOf([null, "7", "standby", null]), {
      xid: undefined,
      cluster: "7",
      timeline: "standby",
      epoch: ""
    })
    assert.isUndefined(CommitFate.ticketOf(undefined))
    assert.isUndefined(CommitFate.ticketOf([]))
    assert.isUndefined(CommitFate.ticketOf(["700", null, "00000001", "1000"]))
    assert.isUndefined(CommitFate.ticketOf(["700", "7", null, "1000"]))
  })
})

describe("finding out", () => {
  const lost = new SqlError({ reason: new ConnectionError({ cause: new Error("down"), message: "down" }) })
  const inProgress = (isIdle: boolean): CommitFate.Fate => ({ _tag: "InProgress", isIdle })

  /** Asks a server whose answers are given, the last one for ever; `undefined`: it cannot be reached. */
  const finding = Effect.fnUntraced(function*(answers: ReadonlyArray<CommitFate.Fate | undefined>, allowed = 10_000) {
    const seen = { asked: 0, fenced: 0 }
    const clock = yield* TestClock.testClockWith(Effect.succeed)
    const until = clock.currentTimeMillisUnsafe() + allowed
    const ended = yield* Deferred.make<CommitFate.Fate>()
    const ask = Effect.suspend(() => {
      const answer = answers[Math.min(seen.asked++, answers.length - 1)]
      return answer === undefined ? Effect.fail(lost) : Effect.succeed(answer)
    })
    const fence = Effect.suspend(() => {
      seen.fenced++
      return Effect.fail(lost)
    })
    const fiber = yield* Effect.forkChild(Effect.flatMap(
      CommitFate.resolve({ isRefusal: () => false, ask, fence, until, now: () => clock.currentTimeMillisUnsafe() }),
      (fate) => Deferred.succeed(ended, fate)
    ))
    yield* TestClock.adjust(allowed + 1000)
    yield* Fiber.join(fiber)
    return { ...seen, fate: yield* Deferred.await(ended) }
  })

  it.effect("asks until the answer is final, also while the server cannot be reached", () =>
    Effect.gen(function*() {
      const { asked, fate, fenced } = yield* finding([undefined, inProgress(false), undefined, { _tag: "Committed" }])
      assert.deepStrictEqual({ asked, fate, fenced }, { asked: 4, fate: { _tag: "Committed" }, fenced: 0 })
    }))

  it.effect("ends a session that waits for a statement twice in a row, and only that", () =>
    Effect.gen(function*() {
      const idleOnce = [inProgress(true), inProgress(false), inProgress(true), { _tag: "Aborted" } as const]
      assert.strictEqual((yield* finding(idleOnce)).fenced, 0)
      const idleTwice = [inProgress(true), inProgress(true), { _tag: "Aborted" } as const]
      const { fate, fenced } = yield* finding(idleTwice)
      assert.deepStrictEqual({ fate, fenced }, { fate: { _tag: "Aborted" }, fenced: 1 })
    }))

  it.effect("gives up when the time is over, with the reason, and asks every half second at most by then", () =>
    Effect.gen(function*() {
      const working = yield* finding([inProgress(false)])
      assert.include(reasonOf(working.fate), "in progress")
      assert.isAtLeast(working.asked, 20)
      assert.isAtMost(working.asked, 40)
      assert.include(reasonOf((yield* finding([undefined])).fate), "could not be asked")
      assert.include(reasonOf((yield* finding([{ _tag: "Committed" }], 0)).fate), "no time left")
    }))
})
