import * as Net from "node:net"
import type { Duplex } from "node:stream"

/** Whether a peer that owes an answer has fallen silent. */
export interface Watch {
  /** Call when rows are asked for: the peer has all the time again from now on. */
  readonly expectAnswer: () => void
  /** Call when what comes next would hide that nothing is read any more: only what is heard counts from now on. */
  readonly suspect: () => void
  readonly stop: () => void
}

export const none: Watch = { expectAnswer: () => {}, suspect: () => {}, stop: () => {} }

/** The longest time that a timer of Node's can hold, in milliseconds. */
const longestTimer = 2 ** 31 - 1

/**
 * Node refreshes a socket's own timer on every read and write for some 30 ns, and does not keep the process alive for
 * it: a timer of ours per statement would cost a hundred times that. A stream that is no socket gets one interval.
 */
const onQuiet = (duplex: Duplex, millis: number, activity: () => number, listener: () => void): void => {
  if (duplex instanceof Net.Socket) {
    // A listener given to setTimeout would hear of the first time alone.
    duplex.on("timeout", listener)
    duplex.setTimeout(millis)
    return
  }
  let seen = activity()
  const interval = setInterval(() => {
    const now = activity()
    if (now === seen) listener()
    seen = now
  }, millis)
  interval.unref()
  duplex.once("close", () => clearInterval(interval))
}

/** Watches a stream until it closes. An infinite time is not watched for. */
export const watch = (duplex: Duplex, options: {
  readonly millis: number
  /** Both grow with each read or write. */
  readonly received: () => number
  readonly written: () => number
  /** Whether an answer is waited for. */
  readonly isBusy: () => boolean
  readonly onSilence: (millis: number) => void
}): Watch => {
  const { isBusy, onSilence, received, written } = options
  if (!Number.isFinite(options.millis)) return none
  const millis = Math.min(options.millis, longestTimer)
  let asks = 0
  let suspicion: NodeJS.Timeout | undefined
  onQuiet(duplex, millis, () => written() + received() + asks, () => {
    if (isBusy()) onSilence(millis)
  })
  return {
    expectAnswer: () => {
      asks++
      // A timer that has fired while nothing was asked for does not start again by itself.
      if (duplex instanceof Net.Socket) duplex.setTimeout(millis)
    },
    suspect: () => {
      if (suspicion !== undefined) return
      const heard = received()
      suspicion = setTimeout(() => {
        suspicion = undefined
        if (received() === heard) onSilence(millis)
      }, millis)
      suspicion.unref()
    },
    stop: () => clearTimeout(suspicion)
  }
}
