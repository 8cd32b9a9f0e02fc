import * as Effect from "effect/Effect"

/** Effects that wait until something holds. */
export interface Bell {
  /** Lets everybody who waits look again. */
  readonly notify: () => void
  /** Waits until `isDone` holds, asked at once and after each notification. */
  readonly until: (isDone: () => boolean) => Effect.Effect<void>
}

export const make = (): Bell => {
  const listeners = new Set<() => void>()
  return {
    notify: () => {
      if (listeners.size === 0) return
      for (const listener of Array.from(listeners)) listener()
    },
    until: (isDone) =>
      Effect.callback((resume) => {
        const listener = () => {
          if (!isDone()) return
          listeners.delete(listener)
          resume(Effect.void)
        }
        listeners.add(listener)
        listener()
        return Effect.sync(() => listeners.delete(listener))
      })
  }
}
