import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as fc from "fast-check"
import * as CancelRequests from "../src/internal/cancelRequests.ts"

describe("a CancelRequest", () => {
  it("is no threat before there is one", () => {
    assert.strictEqual(CancelRequests.make(true).threat(), "None")
  })

  it("is pending when its statement was cancelled, and over when the server has closed its connection", () => {
    const cancels = CancelRequests.make(true)
    cancels.sent()
    cancels.answered()
    assert.strictEqual(cancels.threat(), "Pending")
    cancels.ended(true)
    assert.strictEqual(cancels.threat(), "None")
  })

  it("is stray while no statement was cancelled, though its connection is closed: a proxy may have it yet", () => {
    const cancels = CancelRequests.make(true)
    cancels.sent()
    assert.strictEqual(cancels.threat(), "Stray")
    cancels.ended(true)
    assert.strictEqual(cancels.threat(), "Stray")
  })

  it("is stray when others run statements where it goes", () => {
    const cancels = CancelRequests.make(false)
    cancels.sent()
    cancels.answered()
    cancels.ended(true)
    assert.strictEqual(cancels.threat(), "Stray")
  })

  it("is over only when each request was answered and its connection closed by the server, in any order", () => {
    const fates = fc.array(fc.record({ byServer: fc.boolean(), isAnswered: fc.boolean() }), { maxLength: 6 })
    fc.assert(fc.property(fates, fc.boolean(), (requests, answersFirst) => {
      const cancels = CancelRequests.make(true)
      const answer = () => {
        for (const { isAnswered } of requests) if (isAnswered) cancels.answered()
      }
      for (const _ of requests) cancels.sent()
      if (answersFirst) answer()
      for (const { byServer } of requests) cancels.ended(byServer)
      if (!answersFirst) answer()
      const isOver = requests.every(({ byServer, isAnswered }) => byServer && isAnswered)
      assert.strictEqual(cancels.threat(), isOver ? "None" : "Stray")
    }))
  })

  for (
    const [end, conclude] of [
      ["the server closes its connection", (cancels) => cancels.ended(true)],
      ["its connection is lost", (cancels) => cancels.ended(false)],
      ["the session ends", (cancels) => cancels.giveUp()]
    ] satisfies ReadonlyArray<readonly [string, (cancels: CancelRequests.CancelRequests) => void]>
  ) {
    it.effect(`is decided when ${end}, and not before`, () =>
      Effect.gen(function*() {
        const cancels = CancelRequests.make(true)
        cancels.sent()
        cancels.answered()
        const decided = yield* Effect.forkChild(cancels.decided, { startImmediately: true })
        yield* Effect.yieldNow
        assert.isUndefined(decided.pollUnsafe())
        conclude(cancels)
        yield* Fiber.join(decided)
        assert.notStrictEqual(cancels.threat(), "Pending")
      }))
  }
})
