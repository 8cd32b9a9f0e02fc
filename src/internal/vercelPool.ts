/** What Vercel's platform has to know of pools, so that it does not suspend them with sessions open. */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Attendant, Life as EnvironmentLife } from "./environmentLife.ts"
import * as Logbook from "./logbook.ts"
import * as LogFields from "./logFields.ts"
import type { Lodger } from "./roster.ts"

/** What `attachDatabasePool` of `@vercel/functions` takes for a pool of `pg`. */
export interface VercelPool {
  readonly options: { readonly idleTimeoutMillis: number }
  readonly on: (event: "release", listener: () => void) => void
}

interface Life
  extends Pick<EnvironmentLife<never, unknown, never, object, unknown>, "attend" | "lodgers" | "home" | "tell">
{}

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
export const make = ({ attend, home, lodgers, tell }: Life): VercelPool => {
  const runFork = Effect.runForkWith(home)
  const listeners = new Set<() => void>()
  let running = 0
  let isClosed = false
  let reaper: Fiber.Fiber<void> | undefined

  const reap = Effect.suspend(() =>
    Effect.forEach(
      Array.from(lodgers).filter(isReaped),
      (lodger) => Effect.andThen(Effect.sleep(lodger.idleTimeout), lodger.closeIdle(within)),
      { concurrency: "unbounded", discard: true }
    )
  )

  const rouse = (): void => {
    reaper?.interruptUnsafe()
    reaper = undefined
  }

  /** What somebody else's code throws is not the invocation's failure. */
  const announce = (listener: () => void): void => {
    try {
      listener()
    } catch (error) {
      void tell(Logbook.write("releaseListenerFailed", LogFields.ofDefect(error)))
    }
  }

  const attendant: Attendant = {
    begins: () => {
      running++
      rouse()
    },
    ends: () => {
      running--
      if (isClosed || !Array.from(lodgers).some((lodger) => isReaped(lodger) && hasSessions(lodger))) return
      if (running === 0) reaper = runFork(reap)
      for (const listener of listeners) announce(listener)
    },
    closes: () => {
      isClosed = true
      rouse()
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
      if (listeners.size === 0) attend(attendant)
      listeners.add(listener)
    }
  }
}
