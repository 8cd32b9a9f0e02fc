import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Fiber } from "effect/Fiber"

/** One who wants to be told when their time is up. */
export interface Alarm {
  /** To be called when they are done in time. */
  readonly stop: () => void
}

/** Milliseconds by which sums of times may be wrong. */
const tolerance = 1e-3

class Entry implements Alarm {
  private readonly alarms: Alarms
  /** Monotonic milliseconds. */
  readonly at: number
  readonly ring: () => void
  /** In the heap; -1 outside of it. */
  index = -1

  constructor(alarms: Alarms, at: number, ring: () => void) {
    this.alarms = alarms
    this.at = at
    this.ring = ring
  }

  stop(): void {
    this.alarms.stop(this)
  }
}

/**
 * Many who want to be told when their time is up, and one fiber that sleeps for all of them, as long as there is one. Most
 * are done in time, and a fiber and a timer of its own would cost each of them more than all else that bounds it.
 */
class Alarms {
  private readonly clock: Clock.Clock
  /** A heap: each is due before those at twice its index and one, and two. */
  private readonly heap: Array<Entry> = []
  /** While it sleeps. */
  private watch: Fiber<unknown, unknown> | undefined
  private wakesAt = Infinity

  constructor(clock: Clock.Clock) {
    this.clock = clock
  }

  set(millis: number, ring: () => void): Entry {
    const entry = new Entry(this, this.now() + millis, ring)
    this.raise(entry, this.heap.length)
    if (entry.at < this.wakesAt) this.keepWatch()
    return entry
  }

  stop(entry: Entry): void {
    this.remove(entry)
    if (this.heap.length > 0 || this.watch === undefined) return
    this.watch.interruptUnsafe()
    this.watch = undefined
    this.wakesAt = Infinity
  }

  private now(): number {
    return Number(this.clock.monotonicTimeNanosUnsafe()) / 1e6
  }

  private keepWatch(): void {
    this.watch?.interruptUnsafe()
    Effect.runForkWith(Context.make(Clock.Clock, this.clock))(this.watching)
  }

  private readonly watching: Effect.Effect<void> = Effect.withFiber((fiber: Fiber<unknown, unknown>) => {
    this.watch = undefined
    // Whoever is set while others are told is looked at below.
    this.wakesAt = -Infinity
    let haveRung = false
    try {
      this.ringDue()
      haveRung = true
    } finally {
      this.wakesAt = this.heap[0]?.at ?? Infinity
      // Whatever one of them has thrown, the others are told by another fiber.
      if (!haveRung && this.wakesAt < Infinity) this.keepWatch()
    }
    if (this.wakesAt === Infinity) return Effect.void
    this.watch = fiber
    return Effect.flatMap(Effect.sleep(Math.ceil(this.wakesAt - this.now() - tolerance)), () => this.watching)
  })

  private ringDue(): void {
    let next = this.heap[0]
    while (next !== undefined && next.at - this.now() < tolerance) {
      this.remove(next)
      next.ring()
      next = this.heap[0]
    }
  }

  private remove(entry: Entry): void {
    const { heap } = this
    const { index } = entry
    if (index < 0) return
    entry.index = -1
    const last = heap.pop()!
    if (last === entry) return
    this.raise(last, index)
    this.lower(last, last.index)
  }

  private raise(entry: Entry, from: number): void {
    const { heap } = this
    let index = from
    while (index > 0) {
      const parent = heap[(index - 1) >> 1]!
      if (parent.at <= entry.at) break
      this.put(parent, index)
      index = (index - 1) >> 1
    }
    this.put(entry, index)
  }

  private lower(entry: Entry, from: number): void {
    const { heap } = this
    let index = from
    for (;;) {
      const left = heap[2 * index + 1]
      const right = heap[2 * index + 2]
      const first = right !== undefined && right.at < left!.at ? right : left
      if (first === undefined || first.at >= entry.at) break
      const next = first.index
      this.put(first, index)
      index = next
    }
    this.put(entry, index)
  }

  private put(entry: Entry, index: number): void {
    this.heap[index] = entry
    entry.index = index
  }
}

const ofClocks = new WeakMap<Clock.Clock, Alarms>()

/** Calls `ring` after so many milliseconds, more than 0. */
export const set = (clock: Clock.Clock, millis: number, ring: () => void): Alarm => {
  let alarms = ofClocks.get(clock)
  if (alarms === undefined) {
    alarms = new Alarms(clock)
    ofClocks.set(clock, alarms)
  }
  return alarms.set(millis, ring)
}
