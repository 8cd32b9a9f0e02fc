/**
 * Sheds load by how long it has waited (folly's `Codel.cpp`, after Nichols and Jacobson's CoDel): a line that does not
 * get empty for a whole interval only makes everybody late. Then whoever has waited for twice the target is turned away,
 * so that those behind are served in time. No timer: the line is judged when somebody leaves it.
 */
export interface Codel {
  /** Milliseconds that a wait may take while all is well. */
  readonly target: number
  /** Milliseconds for which every wait must have been longer before anybody is turned away. */
  readonly interval: number
  shortest: number
  intervalEndsAt: number
  isOverloaded: boolean
}

export const make = ({ interval, target }: Pick<Codel, "interval" | "target">): Codel => ({
  target,
  interval,
  shortest: 0,
  intervalEndsAt: -Infinity,
  isOverloaded: false
})

/** Notes that somebody leaves the line after `waited` milliseconds; true when it should be empty-handed. */
export const isLate = (codel: Codel, waited: number, now: number): boolean => {
  // A wall clock that was set back must not stretch the interval.
  if (now >= codel.intervalEndsAt || codel.intervalEndsAt - now > codel.interval) {
    // Whoever came after that interval has not waited with those whom it was hard on.
    codel.isOverloaded = codel.shortest > codel.target && now - waited < codel.intervalEndsAt
    codel.shortest = waited
    codel.intervalEndsAt = now + codel.interval
  } else if (waited < codel.shortest) {
    codel.shortest = waited
    if (waited <= codel.target) codel.isOverloaded = false
  }
  return codel.isOverloaded && waited > 2 * codel.target
}
