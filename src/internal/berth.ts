import * as Effect from "effect/Effect"
import * as Bell from "./bell.ts"
import type * as Socket from "./socket.ts"

/**
 * One place on the server and the socket that is in it: a login that is repeated takes another socket, and no second
 * place.
 */
export interface Berth {
  readonly wire: () => Socket.Wire
  /** Puts another socket in, as soon as the one before has closed. */
  readonly change: Effect.Effect<void>
  /** From now on the place is free when its socket has closed. */
  readonly leave: () => void
}

export const make = (options: {
  readonly open: (onClose: () => void) => Socket.Wire
  /** Called once. */
  readonly onFree: () => void
}): Berth => {
  const closed = Bell.make()
  let isTaken = false
  let isKept = true
  let isFree = false

  const freeIfLeft = (): void => {
    if (isTaken || isKept || isFree) return
    isFree = true
    options.onFree()
  }

  const enter = (): Socket.Wire => {
    isTaken = true
    let isOpen = true
    return options.open(() => {
      // A socket that is destroyed before it was dialled may say so twice.
      if (!isOpen) return
      isOpen = false
      isTaken = false
      closed.notify()
      freeIfLeft()
    })
  }

  let wire = enter()

  return {
    wire: () => wire,
    change: Effect.andThen(
      closed.until(() => !isTaken),
      Effect.sync(() => {
        wire = enter()
      })
    ),
    leave: () => {
      isKept = false
      freeIfLeft()
    }
  }
}
