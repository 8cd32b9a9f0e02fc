import { FaultProxy } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"

export type Direction = FaultProxy.Direction

/**
 * What happens to the message at the boundary, and with it to the connection. All messages before it arrive.
 *
 * - `lose`: it is lost, and the connection is cut.
 * - `split`: half of it arrives, and the connection is cut.
 * - `deliver`: it arrives, and the connection is cut.
 * - `pause`: half of it arrives, the rest of it later, and nothing is lost.
 */
export type Fate = "lose" | "split" | "deliver" | "pause"

export interface Fault {
  readonly direction: Direction
  /** The number of the message, from 0, in its direction and its piece of work. */
  readonly boundary: number
  readonly fate: Fate
  /** Milliseconds of silence before the client learns of the cut, or between the halves of a pause. Default: 0. */
  readonly stall?: number | undefined
  /** Milliseconds after the fault before the server learns of the cut. Default: as the client. */
  readonly lag?: number | undefined
}

/** What a session does from the moment when it leaves its idle state until it is idle again, in messages. */
export type Work = Record<Direction, number>

/** A proxy in front of a PostgreSQL server that understands where messages begin and end. */
interface MessageProxy {
  readonly url: Redacted.Redacted
  /** Is asked once for each piece of work, at its first message. */
  readonly plan: (next: () => Fault | undefined) => void
  /** The faults that have come to pass. */
  readonly faults: () => ReadonlyArray<Fault>
  /** Lets the clients that still wait in a stall learn of their cuts now. */
  readonly endStalls: () => void
  /** The pieces of work that came to their end. */
  readonly done: () => ReadonlyArray<Work>
}

/** https://www.postgresql.org/docs/18/protocol-message-formats.html */
const ready = 0x5a
const sync = 0x53
const query = 0x51
const terminate = 0x58
const idle = 0x49

/** Puts the messages together again. The first message of a client has no type. */
const makeReader = (isTyped: boolean) => {
  let rest: Buffer = Buffer.alloc(0)
  let lengthAt = isTyped ? 1 : 0
  return (chunk: Buffer): ReadonlyArray<Buffer> => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
    const messages: Array<Buffer> = []
    while (rest.length >= lengthAt + 4) {
      const end = lengthAt + rest.readUInt32BE(lengthAt)
      if (rest.length < end) break
      messages.push(rest.subarray(0, end))
      rest = rest.subarray(end)
      lengthAt = 1
    }
    return messages
  }
}

interface Observer {
  readonly next: () => Fault | undefined
  readonly happened: (fault: Fault) => void
  readonly ended: (work: Work) => void
  /** Runs `f` after so many milliseconds, or when the stalls are ended. */
  readonly after: (millis: number | undefined, f: () => void) => void
}

/** Keeps both ends from learning of each other, until each is told by hand. */
const apart = FaultProxy.hold()

const follow = (link: FaultProxy.Link, observer: Observer): Record<Direction, (chunk: Buffer) => void> => {
  let isCut = false
  /** Answers that the server owes; the first one is to the startup message. */
  let owed = 1
  let isStarting = true
  let work: (Work & { readonly fault: Fault | undefined }) | undefined
  const held: Array<readonly [Direction, Buffer]> = []
  let isPaused = false

  const send = (direction: Direction, bytes: Buffer, onSent?: () => void): void => {
    if (isPaused) held.push([direction, bytes])
    else link.deliver(bytes, direction, onSent)
  }

  const cut = ({ direction, lag, stall }: Fault, lastBytes: Buffer): void => {
    isCut = true
    link.set(apart)
    const end = (): void => {
      observer.after(stall, () => link.cut("client"))
      // The server gets to read what it was sent before it learns that the client is gone.
      observer.after(lag ?? stall, () => link.cut("server"))
    }
    if (lastBytes.length === 0) end()
    else send(direction, lastBytes, end)
  }

  const pause = ({ direction, stall }: Fault, message: Buffer): void => {
    const middle = message.length >> 1
    send(direction, message.subarray(0, middle))
    isPaused = true
    held.push([direction, message.subarray(middle)])
    setTimeout(() => {
      isPaused = false
      for (const [to, bytes] of held.splice(0)) send(to, bytes)
    }, stall ?? 0)
  }

  /** What is to be sent at once of a message, after what came before it. */
  const pass = (direction: Direction, message: Buffer, before: Array<Buffer>): void => {
    const fault = work?.fault
    const isAtBoundary = work !== undefined && work[direction]++ === fault?.boundary && fault.direction === direction
    if (!isAtBoundary || fault === undefined) {
      before.push(message)
      return
    }
    observer.happened(fault)
    const earlier = Buffer.concat(before.splice(0))
    if (fault.fate === "pause") {
      if (earlier.length > 0) send(direction, earlier)
      return pause(fault, message)
    }
    const part = { lose: 0, split: message.length >> 1, deliver: message.length }[fault.fate]
    cut(fault, Buffer.concat([earlier, message.subarray(0, part)]))
  }

  const relay = (direction: Direction, look: (message: Buffer) => void, isTyped: boolean) => {
    const read = makeReader(isTyped)
    const end = direction === "to the client" ? endOfWork : () => {}
    return (chunk: Buffer): void => {
      const bytes: Array<Buffer> = []
      for (const message of read(chunk)) {
        if (isCut) return
        look(message)
        pass(direction, message, bytes)
        end(message)
      }
      if (bytes.length > 0 && !isCut) send(direction, Buffer.concat(bytes))
    }
  }

  const lookAtRequest = (message: Buffer): void => {
    if (isStarting) return
    if (message[0] === terminate) return
    work ??= { "to the server": 0, "to the client": 0, fault: observer.next() }
    if (message[0] === sync || message[0] === query) owed++
  }

  const lookAtReply = (message: Buffer): void => {
    if (message[0] === ready) owed--
  }

  const endOfWork = (message: Buffer): void => {
    if (message[0] !== ready || owed > 0 || message[5] !== idle) return
    isStarting = false
    if (work !== undefined) observer.ended(work)
    work = undefined
  }

  return {
    "to the server": relay("to the server", lookAtRequest, false),
    "to the client": relay("to the client", lookAtReply, true)
  }
}

export const makeMessageProxy = Effect.fnUntraced(function*(
  url: Redacted.Redacted
): Effect.fn.Return<MessageProxy, never, Scope.Scope> {
  const faults: Array<Fault> = []
  const done: Array<Work> = []
  let next: () => Fault | undefined = () => undefined
  const stalls = new Map<NodeJS.Timeout, () => void>()
  const observer: Observer = {
    after: (millis, f) => {
      if (millis === undefined) return f()
      const timer = setTimeout(() => {
        stalls.delete(timer)
        f()
      }, millis)
      stalls.set(timer, f)
    },
    next: () => next(),
    happened: (fault) => faults.push(fault),
    ended: (work) => done.push(work)
  }
  const proxy = yield* Effect.orDie(FaultProxy.make(url))
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const timer of stalls.keys()) clearTimeout(timer)
    })
  )
  const followers = new WeakMap<FaultProxy.Link, Record<Direction, (chunk: Buffer) => void>>()
  // What gets through is sent from here, message by message.
  const look = (direction: Direction): FaultProxy.Look => (bytes, link) => {
    const follower = followers.get(link) ?? follow(link, observer)
    followers.set(link, follower)
    follower[direction](bytes)
    return "drop"
  }
  yield* proxy.onRequest(look("to the server"))
  yield* proxy.onReply(look("to the client"))
  return {
    url: proxy.url,
    plan: (f) => {
      next = f
    },
    faults: () => faults,
    endStalls: () => {
      for (const [timer, f] of stalls) {
        clearTimeout(timer)
        f()
      }
      stalls.clear()
    },
    done: () => done
  }
})
