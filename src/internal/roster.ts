import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"

/** One pool as the environment that it lives in sees it. Milliseconds throughout. */
export interface Lodger {
  readonly name: string
  /**
   * The environment was frozen: ends the sessions that nobody uses and that have been idle for longer than `staleAfter`,
   * with a goodbye that nobody waits for. Succeeds when their sockets have closed here. What is younger is proved by its next
   * checkout, and what has failed to connect meanwhile is tried again at once.
   */
  readonly thaw: (staleAfter: number) => Effect.Effect<void>
  /** Destroys the sockets of all sessions that are lent; whoever waits for an answer fails at once. Succeeds with their number. */
  readonly destroyBusy: Effect.Effect<number>
  /**
   * Closes what nobody uses, and gives up the connects that nobody waits for; succeeds when the server has let go of it, or
   * when it was destroyed after `within`.
   */
  readonly closeIdle: (within: number) => Effect.Effect<void>
  /** Opens sessions until there are so many, as far as the pool may have them. */
  readonly warm: (count: number) => Effect.Effect<void, unknown>
  /** Sessions that are lent, and those that are not, or on their way to nobody. */
  readonly active: () => number
  readonly idle: () => number
  /** How long a session may idle before the pool closes it. */
  readonly idleTimeout: number
  /** How full the server was when it was asked last, from 0 to 1; `undefined` when it was not. */
  readonly serverUtilisation: () => number | undefined
}

/** The pools of an environment, whichever of its layers made them. */
export interface Roster {
  /** Returns what takes it off again. */
  readonly add: (lodger: Lodger) => () => void
  readonly lodgers: ReadonlySet<Lodger>
}

/** Where a pool that is being made enters itself. */
export const Current = Context.Reference<Roster | undefined>("effect-pg-pool/internal/Roster", {
  defaultValue: () => undefined
})

export const make = (): Roster => {
  const lodgers = new Set<Lodger>()
  return {
    lodgers,
    add: (lodger) => {
      lodgers.add(lodger)
      return () => lodgers.delete(lodger)
    }
  }
}
