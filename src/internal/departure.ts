import type { Duplex } from "node:stream"

/** What is told how a CancelRequest has ended: `confirmed` when the server has closed its connection after reading it. */
export type OnCancelled = (confirmed: boolean) => void

interface Options {
  /** Closes the connection, whatever the server does. */
  readonly close: () => void
  /** Milliseconds that a server may stay silent. */
  readonly patience: number
  /** Asks the server to end what the session executes; `undefined` where that cannot be asked. */
  readonly cancel: ((onEnd: OnCancelled) => void) | undefined
  /** Asks at once: soon there may be nobody left to ask. */
  readonly isUrgent?: boolean | undefined
}

/** How often a server is looked after within its patience. Looks are counted, so a process that stood still takes none. */
const looks = 4
const firstCancel = looks / 2
/** A server that goes on talking, or a link that drips, is heard this many times the patience. */
const longest = 10 * looks

/**
 * Says goodbye on a connection that nobody uses any more, and waits for the server to end it: a server gives up a
 * session's place first and closes its connection last (`socket_close` in src/backend/libpq/pqcomm.c).
 *
 * A server that executes a statement reads nothing meanwhile, the goodbye neither. Its CancelRequest goes another way:
 * it ends the statement, and whether it is confirmed tells a busy host from one that is gone. A host that has
 * confirmed it gets as much time again as it took for that, four times over; whoever is silent then is given up.
 *
 * Hands back what ends the waiting.
 */
export const begin = (duplex: Duplex, { cancel, close, isUrgent = false, patience }: Options): () => void => {
  let isAsking = false
  let isConfirmed = false
  let looked = 0
  let heardAt = 0
  let allowed = looks
  const askToCancel = (): void => {
    const askedAt = looked
    isAsking = true
    cancel?.((confirmed) => {
      isAsking = false
      if (!confirmed && heardAt < askedAt) return close()
      if (!confirmed || isConfirmed) return
      isConfirmed = true
      heardAt = looked
      allowed = Math.max(looks, 4 * (looked - askedAt))
    })
  }
  const look = (): void => {
    looked++
    if (looked >= longest || (looked - heardAt >= allowed && !isAsking)) return close()
    if (cancel !== undefined && !isAsking && looked >= firstCancel) askToCancel()
  }
  if (isUrgent && cancel !== undefined) askToCancel()
  const timer = setInterval(look, patience / looks)
  // Nobody reads any more, and an unread answer would keep the end of the stream from being seen.
  duplex.removeAllListeners("data")
  duplex.on("data", () => {
    heardAt = looked
  })
  if (duplex.writable) duplex.end()
  duplex.resume()
  return () => clearInterval(timer)
}
