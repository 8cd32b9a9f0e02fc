import type { Lodger } from "./roster.ts"

export const policies = ["keep", "close", "adaptive"] as const

/** What becomes of idle sessions at the end of an invocation. */
export type Policy = (typeof policies)[number]

/** A server that is fuller than this has no room for sessions that nobody uses. */
const nearlyFull = 0.8

/** The mean follows the last gaps, about this many. */
const memory = 8

export interface Release {
  /** Notes how long nothing ran before an invocation, in milliseconds. */
  readonly rested: (gap: number) => void
  /** The pools whose idle sessions are to be closed now. */
  readonly due: (lodgers: Iterable<Lodger>) => ReadonlyArray<Lodger>
}

export const make = (policy: Policy, staleAfter: number): Release => {
  let gaps = 0
  let mean = 0
  return {
    rested: (gap) => {
      if (policy !== "adaptive") return
      gaps = Math.min(gaps + 1, memory)
      mean += (gap - mean) / gaps
    },
    due: (lodgers) => {
      if (policy === "keep") return []
      // Sessions that would be given up as stale before they are needed again are worth nothing.
      const all = policy === "close" || mean > staleAfter
      return Array.from(lodgers).filter((lodger) =>
        lodger.idle() > 0 && (all || (lodger.serverUtilisation() ?? 0) > nearlyFull)
      )
    }
  }
}
