import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { Connector } from "./connector.ts"
import type { PoolState } from "./poolState.ts"
import type { Retirement } from "./retirement.ts"
import type { Supply } from "./supply.ts"

/** How a pool comes to its end. */
export interface Shutdown {
  /**
   * New borrowers are turned away, those who wait are served, and what is idle goes; at the deadline the rest is cut off.
   * Succeeds with the number of borrowers that were left then.
   */
  readonly drain: (deadline: Duration.Input) => Effect.Effect<number>
  /** Turns everybody away who waits, gives work under way so many milliseconds, and cuts it off then. */
  readonly end: (grace: number) => Effect.Effect<void>
}

/** Milliseconds that cancelled work gets to end by itself. */
const cancelGrace = 250

export const make = <E>(pool: {
  readonly state: PoolState<E>
  readonly supply: Supply<E>
  readonly retirement: Retirement
  readonly connector: Connector<E>
  /** Checkouts under way. The line alone does not tell: whoever was handed a worthless session is not back in it at once. */
  readonly attempts: () => number
  readonly closed: () => E
}): Shutdown => {
  const { attempts, closed, connector, retirement, state, supply } = pool
  const { book, changed, machine, now, settings } = state
  const { members } = machine
  const { abandon, abort, allFree, hangUp, taken } = connector

  /** A server does not look at a dead socket while it executes: what is not cancelled would run on, and commit. */
  const cancelAll = Effect.suspend(() =>
    Effect.forEach(
      Array.from(members).filter(({ borrowers, wire }) => borrowers > 0 && !wire.isDead()),
      ({ connection }) => connection.interrupt,
      { concurrency: "unbounded", discard: true }
    )
  )

  const destroyAll = Effect.sync(() => {
    for (const session of Array.from(members)) {
      session.condemned ??= "shutdown"
      session.wire.destroy({ by: "pool", message: "the pool closed before the work was done" })
    }
  })

  const tellOfRest = (cutOff: number, waited: number): void => {
    if (cutOff === 0) return
    book.write("drainFailed", () => ({ "db.pool.cut_off": cutOff, "db.pool.waited_ms": Math.max(0, waited) }))
  }

  let isTold = false
  const tellOfEnd = Effect.sync(() => {
    if (isTold) return
    isTold = true
    book.write("closed", () => ({ "db.pool.left": taken(), suppressed: book.suppressed() || undefined }))
  })

  const end: Shutdown["end"] = (grace) =>
    Effect.gen(function*() {
      state.phase = "Closed"
      changed.notify()
      supply.refuseAll(closed())
      supply.close()
      retirement.retireUnused("shutdown")
      yield* Effect.timeoutOption(abort, settings.farewell)
      yield* Effect.timeoutOption(allFree, grace)
      // Without grace nobody was meant to come to an end.
      if (grace > 0) tellOfRest(machine.borrowed, grace)
      if (taken() > 0) yield* Effect.timeoutOption(Effect.andThen(cancelAll, allFree), cancelGrace)
      yield* destroyAll
      yield* Effect.timeoutOption(allFree, settings.farewell)
      // What is left is saying goodbye to somebody who does not answer.
      if (taken() > 0) yield* Effect.timeoutOption(Effect.andThen(abandon, allFree), settings.farewell)
      yield* hangUp
      yield* tellOfEnd
    })

  const isQuiet = changed.until(() => machine.borrowed === 0 && machine.waiting === 0 && attempts() === 0)

  const drain: Shutdown["drain"] = (deadline) =>
    Effect.suspend(() => {
      if (state.phase === "Open") state.phase = "Draining"
      machine.isSuspended = false
      supply.disappoint(closed())
      supply.pump()
      const startedAt = now()
      return Effect.timeoutOption(isQuiet, deadline).pipe(
        Effect.map(() => machine.borrowed + machine.waiting),
        Effect.tap((left) => {
          tellOfRest(left, now() - startedAt)
          return end(0)
        })
      )
    })

  return { drain, end }
}
