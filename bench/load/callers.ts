/** Callers in a closed loop: each has one operation under way, and begins the next when it has ended. */
import * as Effect from "effect/Effect"

/** Durations in buckets that are half a percent wide, from a microsecond on. */
export interface Latencies {
  readonly record: (millis: number) => void
  readonly clear: () => void
  readonly count: () => number
  /** Milliseconds below which this share of them lies. */
  readonly quantile: (share: number) => number
}

const width = Math.log(1.005)

const makeLatencies = (): Latencies => {
  // Up to five minutes.
  const buckets = new Uint32Array(4000)
  let total = 0
  return {
    record: (millis) => {
      const bucket = millis <= 0.001 ? 0 : Math.min(buckets.length - 1, Math.ceil(Math.log(millis * 1000) / width))
      buckets[bucket] = buckets[bucket]! + 1
      total++
    },
    clear: () => {
      buckets.fill(0)
      total = 0
    },
    count: () => total,
    quantile: (share) => {
      let below = 0
      for (let bucket = 0; bucket < buckets.length; bucket++) {
        below += buckets[bucket]!
        if (total > 0 && below >= share * total) return Math.exp((bucket - 0.5) * width) / 1000
      }
      return 0
    }
  }
}

/** What callers report to. */
export interface Tally {
  readonly latencies: Latencies
  errors: number
  firstError: string | undefined
  isOver: boolean
}

export const makeTally = (): Tally => ({ latencies: makeLatencies(), errors: 0, firstError: undefined, isOver: false })

const noteError = (tally: Tally, error: unknown): void => {
  tally.errors++
  tally.firstError ??= String(error)
}

/** An answer that is an error at once must not keep the timers, which end the loop, from their turn. */
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

export const promiseCallers = (
  count: number,
  operation: () => Promise<unknown>,
  tally: Tally
): Promise<unknown> => {
  const caller = async () => {
    while (!tally.isOver) {
      const startedAt = performance.now()
      try {
        await operation()
        tally.latencies.record(performance.now() - startedAt)
      } catch (error) {
        noteError(tally, error)
        await nextTurn()
      }
    }
  }
  return Promise.all(Array.from({ length: count }, caller))
}

export const effectCallers = <E, R>(
  count: number,
  operation: () => Effect.Effect<unknown, E, R>,
  tally: Tally
): Effect.Effect<void, never, R> => {
  const caller = Effect.suspend(() => {
    let startedAt = 0
    let hasFailed = false
    return Effect.whileLoop({
      while: () => !tally.isOver,
      body: () => {
        hasFailed = false
        startedAt = performance.now()
        return Effect.catchCause(operation(), (cause) => {
          hasFailed = true
          noteError(tally, cause.reasons[0])
          return Effect.promise(nextTurn)
        })
      },
      step: () => {
        if (!hasFailed) tally.latencies.record(performance.now() - startedAt)
      }
    })
  })
  return Effect.forEach(Array.from({ length: count }), () => caller, { concurrency: "unbounded", discard: true })
}
