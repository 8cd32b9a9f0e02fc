import type * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { MaxOpsBeforeYield } from "effect/Scheduler"
import type { Session } from "../src/internal/session.ts"
import { type Observer, TrackedConnection } from "../src/internal/trackedConnection.ts"

describe("statements that ride along with one that is interrupted", () => {
  it.effect("have left the session by the time that it has ended, wherever that is", () =>
    Effect.gen(function*() {
      let aboard = 0
      let most = 0
      const wire = {
        mark: () => 0,
        isDead: () => false,
        suspect: () => {},
        ride: () =>
          Effect.callback<never>(() => {
            most = Math.max(most, ++aboard)
            return Effect.sync(() => aboard--)
          })
      }
      const connection = new TrackedConnection(
        { wire, busy: 0 } as unknown as Session,
        { query: () => Effect.never } as unknown as PgConnection.PgConnection,
        { monotonicNanos: () => 0n, interrupted: () => {} } as unknown as Observer
      )
      for (let steps = 3; steps < 60; steps++) {
        let left = -1
        const ridden = Effect.onExit(connection.queryWithRider("BEGIN", ["SELECT 1"]), () =>
          Effect.sync(() => {
            left = aboard
          }))
        const fiber = yield* Effect.forkChild(Effect.provideService(ridden, MaxOpsBeforeYield, steps), {
          startImmediately: true
        })
        yield* Fiber.interrupt(fiber)
        assert.isAtMost(left, 0, `after ${steps} steps`)
      }
      assert.strictEqual(most, 1)
    }))
})
