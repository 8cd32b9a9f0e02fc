/** How long statements take at present, read off counters that only go up, by whoever looks at them now and then. */
export interface Traffic {
  /** Of the statements of the last one to two windows; `undefined` when there was none. */
  readonly meanMillis: (now: number) => number | undefined
}

interface Reading {
  readonly count: number
  /** Seconds. */
  readonly sum: number
}

/** Milliseconds. */
const window = 10_000

export const make = (read: () => Reading): Traffic => {
  let older: Reading & { readonly at: number } | undefined
  let newer = older
  return {
    meanMillis: (now) => {
      const reading = { ...read(), at: now }
      if (newer === undefined || now - newer.at >= window || now < newer.at) {
        older = newer
        newer = reading
      }
      const from = older ?? newer
      const count = reading.count - from.count
      return count > 0 ? (reading.sum - from.sum) / count * 1_000 : undefined
    }
  }
}
