/**
 * How often one kind of line is written: the first few at once, then with growing pauses, so that an outage of any length
 * is told of in tens of lines. Nothing waits: time is looked at when there is something to write.
 */

/** Lines that are written however quickly they come. */
const burst = 5

/** Milliseconds: the pause after the burst, which doubles up to the longest one. */
const firstPause = 5_000
const longestPause = 300_000

/** After so many milliseconds without any the trouble is over, and what comes next is something new. */
const quiet = 60_000

export interface Limit {
  written: number
  pause: number
  /** Wall-clock milliseconds. */
  nextAt: number
  lastAt: number
  /** Lines that were left out since the last one that was written. */
  suppressed: number
}

export const make = (): Limit => ({ written: 0, pause: firstPause, nextAt: 0, lastAt: -Infinity, suppressed: 0 })

/** What comes with the longest pause between two of it must not look like something new each time. */
const isOver = ({ lastAt, pause }: Limit, at: number): boolean => at - lastAt >= Math.max(quiet, 2 * pause)

/** Says whether a line is to be written at `at`, and if so how many were left out before it. */
export const admit = (limit: Limit, at: number): number | undefined => {
  // The wall clock may be set back, and must not silence anybody for that long.
  if (at < limit.lastAt || isOver(limit, at)) {
    limit.written = 0
    limit.pause = firstPause
    limit.nextAt = at
  }
  limit.lastAt = at
  if (at < limit.nextAt) {
    limit.suppressed++
    return undefined
  }
  if (++limit.written >= burst) {
    limit.nextAt = at + limit.pause
    limit.pause = Math.min(longestPause, limit.pause * 2)
  }
  const { suppressed } = limit
  limit.suppressed = 0
  return suppressed
}
