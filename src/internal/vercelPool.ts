/** What Vercel's platform has to know of pools, so that it does not suspend them with sessions open. */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Lodger } from "./roster.ts"

/** What `attachDatabasePool` of `@vercel/functions` takes for a pool of `pg`. */
export interface VercelPool {
  readonly options: { readonly idleTimeoutMillis: number }
  readonly on: (event: "release", listener: () => void) => void
}

interface Life {
  /** Calls back at the beginning of each invocation, and what that has returned at its end, within its asynchronous context. */
  readonly onInvocation: (listener: () => () => void) => () => void
  readonly lodgers: ReadonlySet<Lodger>
  readonly home: Context.Context<never>
}

/** `attachDatabasePool` keeps the process awake for 100 milliseconds longer than the sessions idle. */
const within = 75

/** What a pool says before there is one: the default of our `idleTimeout`, and of `pg`. */
const defaultIdleTimeout = 10_000

const isReaped = ({ idleTimeout }: Lodger): boolean => idleTimeout < Infinity

const hasSessions = (lodger: Lodger): boolean => lodger.idle() + lodger.active() > 0

/**
 * A release is the end of an invocation rather than that of a checkout: it is then that the platform may suspend. The
 * process is kept awake only where there is something to close, and what keeps it awake is what closes it.
 */
export const make = ({ home, lodgers, onInvocation }: Life): VercelPool => {
  const runFork = Effect.runForkWith(home)
  const listeners = new Set<() => void>()
  let running = 0
  let reaper: Fiber.Fiber<void> | undefined

  const reap = Effect.suspend(() =>
    Effect.forEach(
      Array.from(lodgers).filter(isReaped),
      (lodger) => Effect.andThen(Effect.sleep(lodger.idleTimeout), lodger.closeIdle(within)),
      { concurrency: "unbounded", discard: true }
    )
  )

  const begun = () => {
    running++
    reaper?.interruptUnsafe()
    reaper = undefined
    return () => {
      running--
      if (!Array.from(lodgers).some((lodger) => isReaped(lodger) && hasSessions(lodger))) return
      if (running === 0) reaper = runFork(reap)
      for (const listener of listeners) listener()
    }
  }

  return {
    options: {
      get idleTimeoutMillis() {
        const timeouts = Array.from(lodgers).filter(isReaped).map(({ idleTimeout }) => idleTimeout)
        return timeouts.length === 0 ? defaultIdleTimeout : Math.max(...timeouts)
      }
    },
    on: (_, listener) => {
      if (listeners.size === 0) onInvocation(begun)
      listeners.add(listener)
    }
  }
}
