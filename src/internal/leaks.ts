import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Session } from "./session.ts"

/** One lease, and where it was taken. */
export interface Lease {
  readonly sessionId: number
  /** Wall-clock milliseconds. */
  readonly since: number
  readonly fiber: number
  readonly span: string | undefined
  /** The functions and spans around the checkout, innermost first, as far as Effect knows them. */
  readonly at: ReadonlyArray<string>
  isReported: boolean
}

export interface Leaks {
  readonly begin: (session: Session, fiber: Fiber.Fiber<unknown, unknown>) => Lease
  readonly end: (lease: Lease) => void
  /** Ends the watch: whoever holds a lease of a closed pool holds nothing. */
  readonly close: () => void
}

const callSite = (fiber: Fiber.Fiber<unknown, unknown>): ReadonlyArray<string> => {
  const at: Array<string> = []
  for (let frame = fiber.cache.stackFrame; frame !== undefined && at.length < 10; frame = frame.parent) {
    const line = frame.stack()?.trim()
    at.push(line === undefined ? frame.name : `${frame.name} (${line})`)
  }
  return at
}

const describe = (lease: Lease, heldFor: number) => ({
  session: lease.sessionId,
  heldForMillis: heldFor,
  fiber: lease.fiber,
  span: lease.span ?? "none",
  at: lease.at.length === 0 ? "unknown: run the work inside Effect.fn or Effect.withSpan" : lease.at.join(" < ")
})

/**
 * Watches for sessions that do not come back. There is one timer while anything is lent, and none when nothing is.
 * A lease is told of once when it is late, and once more when it ends after all.
 */
export const make = (options: {
  /** Milliseconds. */
  readonly threshold: number
  readonly pool: string
  readonly now: () => number
  readonly runFork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
}): Leaks => {
  const { now, pool, runFork, threshold } = options
  const leases = new Set<Lease>()
  let watching: Fiber.Fiber<void> | undefined
  let isClosed = false

  const tell = (log: Effect.Effect<void>, lease: Lease) =>
    Effect.annotateLogs(log, { pool, ...describe(lease, now() - lease.since) })

  /** Milliseconds until the next lease is late; undefined when none can be any more. */
  const nextIn = (): number | undefined => {
    // In the order in which they were taken.
    for (const { isReported, since } of leases) if (!isReported) return Math.max(0, since + threshold - now())
    return undefined
  }

  const report = Effect.suspend(() =>
    Effect.forEach(
      Array.from(leases).filter((lease) => !lease.isReported && now() - lease.since >= threshold),
      (lease) => {
        lease.isReported = true
        return tell(Effect.logWarning("A session has been held for longer than leakThreshold"), lease)
      },
      { discard: true }
    )
  )

  const watch: Effect.Effect<void> = Effect.suspend(() => {
    const wait = nextIn()
    if (wait === undefined) {
      watching = undefined
      return Effect.void
    }
    return Effect.sleep(wait).pipe(Effect.andThen(report), Effect.andThen(watch))
  })

  const rest = (): void => {
    watching?.interruptUnsafe()
    watching = undefined
  }

  return {
    begin: (session, fiber) => {
      const lease: Lease = {
        sessionId: session.id,
        since: now(),
        fiber: fiber.id,
        span: fiber.cache.span?._tag === "Span" ? fiber.cache.span.name : undefined,
        at: callSite(fiber),
        isReported: false
      }
      leases.add(lease)
      if (watching === undefined && !isClosed) watching = runFork(watch)
      return lease
    },
    end: (lease) => {
      leases.delete(lease)
      if (leases.size === 0) rest()
      if (lease.isReported) runFork(tell(Effect.logInfo("A session that was held for long has come back"), lease))
    },
    close: () => {
      isClosed = true
      rest()
    }
  }
}
