/** What the bench tells a process that hosts environments, and what it gets back. */
import type { ClientName } from "./contestants.ts"

/** One request: when it comes, in milliseconds from the beginning of its phase, and to which environment. */
export type Arrival = readonly [at: number, environment: number]

/** What became of it: when it came (milliseconds since 1970), how long it took, and what it failed with (empty: nothing). */
export type Outcome = readonly [at: number, took: number, failure: string]

export interface House {
  readonly client: ClientName
  /** The server, or the pooler in front of it. */
  readonly url: string
  readonly isPooled: boolean
  /** The environments of this process. */
  readonly environments: ReadonlyArray<number>
  /** Those of all processes together. */
  readonly fleet: number
  /** Milliseconds that the platform gives an invocation. */
  readonly deadline: number
}

export type Order =
  | ({ readonly kind: "build" } & House)
  /** Requests come as told; the answer is sent when the last one has its outcome. `from` is in milliseconds since 1970. */
  | { readonly kind: "run"; readonly from: number; readonly arrivals: ReadonlyArray<Arrival> }
  /** The wall clock shows that much more from now on: what a freeze is to the frozen. */
  | { readonly kind: "age"; readonly by: number }
  | { readonly kind: "dispose" }

export type Answer = { readonly kind: "done"; readonly outcomes: ReadonlyArray<Outcome> }

/** Milliseconds since 1970 that no freeze and no setting of the wall clock moves, the same in all processes. */
export const now = (): number => performance.timeOrigin + performance.now()
