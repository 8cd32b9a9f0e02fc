import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type * as Tracer from "effect/Tracer"
import type { Logbook } from "./logbook.ts"
import type { Session } from "./session.ts"

/** One lease, and where it was taken. */
export interface Lease {
  readonly sessionId: number
  /** Wall-clock milliseconds. */
  readonly since: number
  readonly fiber: number
  readonly span: Tracer.AnySpan | undefined
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

const describe = ({ at, fiber, sessionId, span }: Lease, heldFor: number) => ({
  "db.connection.id": sessionId,
  "db.connection.held_ms": heldFor,
  "db.connection.holder.fiber": fiber,
  "db.connection.holder.span": span?._tag === "Span" ? span.name : undefined,
  "db.connection.holder.at": at.length === 0 ? undefined : at.join(" < ")
})

/**
 * Watches for sessions that do not come back. There is one timer while anything is lent, and none when nothing is.
 * A lease is told of once when it is late, and once more when it ends after all.
 */
export const make = (options: {
  /** Milliseconds. */
  readonly threshold: number
  readonly book: Logbook
  readonly now: () => number
  readonly runFork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
}): Leaks => {
  const { book, now, runFork, threshold } = options
  const leases = new Set<Lease>()
  let watching: Fiber.Fiber<void> | undefined
  let isClosed = false

  const tell = (what: "leak" | "leakOver", lease: Lease): void =>
    book.write(what, () => describe(lease, now() - lease.since), lease.span)

  /** Milliseconds until the next lease is late; undefined when none can be any more. */
  const nextIn = (): number | undefined => {
    // In the order in which they were taken.
    for (const { isReported, since } of leases) if (!isReported) return Math.max(0, since + threshold - now())
    return undefined
  }

  const report = Effect.sync(() => {
    for (const lease of leases) {
      if (lease.isReported || now() - lease.since < threshold) continue
      lease.isReported = true
      tell("leak", lease)
    }
  })

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
        span: fiber.cache.span,
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
      if (lease.isReported) tell("leakOver", lease)
    },
    close: () => {
      isClosed = true
      rest()
    }
  }
}
