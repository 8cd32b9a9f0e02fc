import type { Tally } from "./callers.ts"
import type { Suite } from "./workload.ts"

/** What a number of callers do, over and over. */
export interface Work {
  readonly suite: Suite
  /** Rows of a range, bytes of a payload. */
  readonly size: number
}

/** One client, connected. */
export interface Contender {
  /** Sets callers to work until the tally says that it is over. */
  readonly run: (work: Work, callers: number, tally: Tally) => Promise<unknown>
  readonly close: () => Promise<unknown>
}

export interface Setting {
  readonly url: string
  readonly max: number
}

/** How each is called in tables, and what opens it. */
export const contenders = {
  pg: () => import("./nodePostgres.ts"),
  "postgres.js": () => import("./postgresJs.ts"),
  PgClient: () => import("./pgClient.ts"),
  "PgClient, multiplexed": () => import("./pgClient.ts"),
  "effect-pg-pool": () => import("./ours.ts"),
  "effect-pg-pool, multiplexed": () => import("./ours.ts")
} as const

export type Name = keyof typeof contenders

export const names = Object.keys(contenders) as ReadonlyArray<Name>

export const isMultiplexed = (name: string): boolean => name.endsWith(", multiplexed")
