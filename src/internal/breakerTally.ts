/**
 * What a circuit has counted, and whether that opens it: failures in a row, or the share of failures among the last
 * calls. Values in, values out; a tally to which nothing was added is the same object.
 */

/** When a circuit opens. */
export type Trip =
  | {
    readonly _tag: "Consecutive"
    /** Failures in a row that open it. */
    readonly failures: number
    /** Milliseconds: a failure that comes later than this after the previous one begins a new streak. */
    readonly window: number
  }
  | {
    readonly _tag: "Rate"
    /** The share of failures that opens it, 0 to 1. */
    readonly threshold: number
    /** How many of the last outcomes are looked at. */
    readonly size: number
    /** How many there must be for their share to mean something. */
    readonly minimumCalls: number
    /** Milliseconds: outcomes older than this do not count. */
    readonly window: number
  }

/** Failures in a row. */
export interface Streak {
  readonly _tag: "Streak"
  readonly failures: number
  readonly lastFailureAt: number
  /** The sockets whose failure is already in the streak: a broken one fails all its statements, and counts once. */
  readonly sources: ReadonlyArray<number>
}

interface Entry {
  readonly at: number
  readonly failed: boolean
  readonly source: number | undefined
  readonly next: Entry | undefined
}

/**
 * The last outcomes, as a queue of two lists: the oldest end is taken from one, the newest put on the other, and when
 * the first is empty the second is turned round. Both ends cost the same for any size, and old values stay valid.
 */
export interface Recent {
  readonly _tag: "Recent"
  readonly oldest: Entry | undefined
  readonly newest: Entry | undefined
  readonly calls: number
  readonly failures: number
}

export type Tally = Streak | Recent

const noSources: ReadonlyArray<number> = []
const noStreak: Streak = { _tag: "Streak", failures: 0, lastFailureAt: -Infinity, sources: noSources }
const nothingRecent: Recent = { _tag: "Recent", oldest: undefined, newest: undefined, calls: 0, failures: 0 }

/** A tally that has counted nothing. */
export const empty = (trip: Trip): Tally => trip._tag === "Consecutive" ? noStreak : nothingRecent

/** A streak that began elsewhere: its sockets are not ours. */
export const streakOf = (failures: number, lastFailureAt: number): Streak =>
  failures === 0 ? noStreak : { _tag: "Streak", failures, lastFailureAt, sources: noSources }

const isStale = (at: number, now: number, window: number): boolean =>
  // A clock that went back by more than the window makes an outcome as old as one that went forth.
  Math.abs(now - at) > window

const reversed = (list: Entry | undefined): Entry | undefined => {
  let result: Entry | undefined
  for (let entry = list; entry !== undefined; entry = entry.next) result = { ...entry, next: result }
  return result
}

/** `tally` has at least one entry. */
const withoutOldest = (tally: Recent): Recent => {
  const oldest = (tally.oldest ?? reversed(tally.newest))!
  return {
    _tag: "Recent",
    oldest: oldest.next,
    newest: tally.oldest === undefined ? undefined : tally.newest,
    calls: tally.calls - 1,
    failures: tally.failures - (oldest.failed ? 1 : 0)
  }
}

const entriesOf = function*({ newest, oldest }: Recent): Generator<Entry> {
  for (let entry = oldest; entry !== undefined; entry = entry.next) yield entry
  for (let entry = newest; entry !== undefined; entry = entry.next) yield entry
}

const withoutStale = (tally: Recent, now: number, window: number): Recent => {
  let current = tally
  while (current.calls > 0) {
    // Turned round before it is looked at, so that looking costs nothing the next time.
    if (current.oldest === undefined) current = { ...current, oldest: reversed(current.newest), newest: undefined }
    if (!isStale(current.oldest!.at, now, window)) return current
    current = withoutOldest(current)
  }
  return current
}

const addToStreak = (
  tally: Streak,
  failed: boolean,
  source: number | undefined,
  now: number,
  window: number
): Streak => {
  if (!failed) return tally.failures === 0 ? tally : noStreak
  const isNew = now - tally.lastFailureAt > window
  const sources = isNew ? noSources : tally.sources
  if (source !== undefined && sources.includes(source)) return tally
  return {
    _tag: "Streak",
    failures: isNew ? 1 : tally.failures + 1,
    lastFailureAt: now,
    sources: source === undefined ? sources : [...sources, source]
  }
}

const addToRecent = (
  tally: Recent,
  failed: boolean,
  source: number | undefined,
  now: number,
  size: number,
  window: number
): Recent => {
  const fresh = withoutStale(tally, now, window)
  if (failed && source !== undefined) {
    for (const entry of entriesOf(fresh)) if (entry.source === source) return fresh
  }
  const added: Recent = {
    _tag: "Recent",
    oldest: fresh.oldest,
    newest: { at: now, failed, source: failed ? source : undefined, next: fresh.newest },
    calls: fresh.calls + 1,
    failures: fresh.failures + (failed ? 1 : 0)
  }
  return added.calls > size ? withoutOldest(added) : added
}

/** Counts an outcome. `source` names the socket, or the attempt to connect, that failed. */
export const add = (
  tally: Tally,
  failed: boolean,
  source: number | undefined,
  now: number,
  trip: Trip
): Tally =>
  tally._tag === "Streak"
    ? addToStreak(tally, failed, source, now, trip.window)
    : addToRecent(tally, failed, source, now, trip._tag === "Rate" ? trip.size : Infinity, trip.window)

/** Whether what was counted opens the circuit. */
export const trips = (tally: Tally, trip: Trip): boolean => {
  if (trip._tag === "Consecutive") return tally.failures >= trip.failures
  return tally._tag === "Recent" && tally.failures > 0 && tally.calls >= trip.minimumCalls &&
    tally.failures / tally.calls >= trip.threshold
}

/** The failures that still count at `now`. */
export const failures = (tally: Tally, now: number, trip: Trip): number => {
  if (tally._tag === "Streak") return now - tally.lastFailureAt > trip.window ? 0 : tally.failures
  return withoutStale(tally, now, trip.window).failures
}

/** True while a success would add nothing. */
export const isCalm = (tally: Tally): boolean => tally._tag === "Streak" && tally.failures === 0
