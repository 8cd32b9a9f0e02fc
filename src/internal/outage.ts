/** How long a circuit has kept calls out, and how many: from the change that shut it to the one that lets all in again. */
import type { Transition } from "./breakerView.ts"

export interface Outage {
  /** Milliseconds, its probes included. */
  readonly took: number
  /** Calls turned away. */
  readonly rejected: number
}

/**
 * Is told of each change of a circuit, and answers with the outage that it ends. `rejections` counts the calls that were
 * ever turned away. Of a circuit that was shut from the start nothing is known.
 */
export const watch = (rejections: () => number): (transition: Transition) => Outage | undefined => {
  let began: { readonly at: number; readonly rejections: number } | undefined
  return ({ at, to }) => {
    switch (to) {
      case "Open":
      case "Isolated":
        began ??= { at, rejections: rejections() }
        return undefined
      case "HalfOpen":
        return undefined
      case "Closed":
      case "Disabled": {
        const over = began
        began = undefined
        // The wall clock may have been set back.
        return over && { took: Math.max(0, at - over.at), rejected: rejections() - over.rejections }
      }
    }
  }
}
