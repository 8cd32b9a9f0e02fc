import type * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Bell from "./bell.ts"
import type { Logbook } from "./logbook.ts"
import * as PoolMachine from "./poolMachine.ts"
import type { Settings } from "./poolSettings.ts"
import type { Session } from "./session.ts"

/** What the rooms of one pool have in common. */
export interface PoolState<E> {
  readonly settings: Settings
  /** Whether others may have a share of a session. Whoever wants it alone has it when they have let go of it. */
  readonly isShared: boolean
  readonly machine: PoolMachine.Machine<Session, E>
  /** Wall-clock milliseconds. */
  readonly now: () => number
  /** Milliseconds that never go back. */
  readonly monotonic: () => number
  /** Milliseconds since a time of the wall clock, which may have been set back. */
  readonly elapsed: (since: number) => number
  /** Seconds since a time of {@link monotonic}. */
  readonly secondsSince: (since: number) => number
  readonly runFork: <A, E2>(effect: Effect.Effect<A, E2>) => Fiber.Fiber<A, E2>
  readonly book: Logbook
  /** Rings when sessions or borrowers have come or gone. */
  readonly changed: Bell.Bell
  max: number
  min: number
  /** Sessions of an older one are not lent any more. */
  generation: number
  /** `Draining`: those who wait are served, and nobody else. */
  phase: "Open" | "Draining" | "Closed"
}

export const make = <E>(
  settings: Settings,
  now: PoolState<E>["now"],
  monotonic: PoolState<E>["monotonic"],
  runFork: PoolState<E>["runFork"],
  book: Logbook
): PoolState<E> => ({
  settings,
  isShared: settings.concurrency > 1,
  machine: PoolMachine.make(settings.concurrency, settings.depth),
  now,
  monotonic,
  elapsed: (since) => Math.max(0, now() - since),
  secondsSince: (since) => (monotonic() - since) / 1000,
  runFork,
  book,
  changed: Bell.make(),
  // How many are safe is known when the first session has asked.
  max: settings.fleet === undefined ? settings.max : 1,
  min: settings.fleet === undefined ? settings.min : Math.min(settings.min, 1),
  generation: 0,
  phase: "Open"
})
