/** What a contender's process is asked, and what it has to tell in the end. */
import type { Fate } from "./contender.ts"

/** Milliseconds over which what callers saw is counted together. */
export const bin = 20

/** What callers saw in one bin. */
export interface Bin {
  successes: number
  readErrors: number
  writeErrors: number
}

/** All that one trial has to tell; times in milliseconds of the wall clock. */
export interface Testimony {
  readonly from: number
  readonly bins: ReadonlyArray<Bin>
  /** How many times each kind of failure was seen. */
  readonly failures: Readonly<Record<string, number>>
  readonly acknowledged: ReadonlyArray<number>
  readonly failed: ReadonlyArray<readonly [id: number, fate: Fate]>
  /** Beginning and length of each operation that took longer than a bin. */
  readonly slow: ReadonlyArray<readonly [at: number, took: number]>
}

export interface Task {
  readonly callers: number
  /** The first of the numbers of its writes. */
  readonly firstId: number
}
