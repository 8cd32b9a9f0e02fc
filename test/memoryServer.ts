import { Duplex } from "node:stream"
import { int16, int32, message } from "../src/testing/backendEncoder.ts"

/** What becomes of a connect. */
export type Manner = "accepts" | "accepts when told" | "refuses" | "is full" | "closes" | "is silent"

/** One connection to the server, as the server sees it. */
export interface Peer {
  readonly pid: number
  /** Until the socket has closed. */
  readonly isOpen: () => boolean
  /** Whether the server has let it in. */
  readonly isGreeted: () => boolean
  /** Whether the client has said goodbye. */
  readonly isParting: () => boolean
  readonly isMute: () => boolean
  /** Whether a liveness check waits for its answer. */
  readonly isAsked: () => boolean
  readonly close: (how: "reset" | "end" | "administrator") => void
  /** Answers nothing from now on. */
  readonly mute: () => void
  /** Answers a statement that was held. */
  readonly answer: () => void
}

export interface MemoryServer {
  readonly stream: () => Duplex
  manner: Manner
  /** Everybody who has ever asked for a session; a CancelRequest is none. */
  readonly peers: ReadonlyArray<Peer>
  /** Sessions that are open, connects and goodbyes under way included. */
  readonly open: () => ReadonlyArray<Peer>
  /** Sockets of any kind that are open. */
  readonly sockets: () => number
  /** Statements it was sent, liveness checks included. */
  readonly statements: () => number
  /** Grows with whatever happens. */
  readonly activity: () => number
  /** Lets those in who wait for it. */
  readonly greet: () => void
}

const errorResponse = (severity: string, code: string, text: string) =>
  message("E", Buffer.from(`S${severity}\0V${severity}\0C${code}\0M${text}\0\0`))

const ready = message("Z", Buffer.from("I"))
const column = Buffer.concat([Buffer.from("one\0"), int32(0), int16(0), int32(23), int16(4), int32(-1), int16(1)])
const answer = Buffer.concat([
  message("1"),
  message("2"),
  message("T", int16(1), column),
  message("D", int16(1), int32(4), int32(1)),
  message("C", Buffer.from("SELECT 1\0")),
  ready
])
const cancelled = Buffer.concat([
  errorResponse("ERROR", "57014", "canceling statement due to user request"),
  ready
])

const cancelRequestCode = 80_877_102
const terminate = 0x58

const refusal = () => Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" })
const reset = () => Object.assign(new Error("read ECONNRESET"), { code: "ECONNRESET" })

/**
 * A PostgreSQL server in this process that speaks just enough of the protocol, without prepared names, and does as it is
 * told. A statement with `hold` in it is answered when told, or when it is cancelled. `onPeer` hears of each new session
 * while it is asked for.
 */
export const makeMemoryServer = (onPeer: () => void = () => {}): MemoryServer => {
  const peers: Array<Peer> = []
  const sockets = new Set<Duplex>()
  const holds = new Map<number, () => void>()
  const waitingRoom: Array<() => void> = []
  let activity = 0
  let statements = 0

  const stream = (): Duplex => {
    activity++
    let peer: Peer | undefined
    let isOpen = true
    let isGreeted = false
    let isParting = false
    let isMute = false
    let isAsked = false
    let isHolding = false

    const destroy = (error?: Error) => void Duplex.prototype.destroy.call(socket, error)
    const say = (...bytes: ReadonlyArray<Uint8Array>) => {
      activity++
      if (!isOpen) return
      for (const one of bytes) socket.push(one)
    }
    const hangUp = (...lastWords: ReadonlyArray<Uint8Array>) => {
      say(...lastWords)
      if (isOpen) socket.push(null)
    }

    const welcome = (pid: number) => {
      isGreeted = true
      say(message("R", int32(0)), message("K", int32(pid), int32(pid)), ready)
    }

    const onStartup = () => {
      const pid = peers.length + 1
      peer = {
        pid,
        isOpen: () => isOpen,
        isGreeted: () => isGreeted,
        isParting: () => isParting,
        isMute: () => isMute,
        isAsked: () => isAsked,
        close: (how) => {
          if (how === "reset") destroy(reset())
          else if (how === "end") hangUp()
          else hangUp(errorResponse("FATAL", "57P01", "terminating connection due to administrator command"))
        },
        mute: () => {
          isMute = true
        },
        answer: () => {
          if (!isHolding || isMute) return
          isHolding = false
          say(answer)
        }
      }
      peers.push(peer)
      onPeer()
      holds.set(pid, () => {
        if (!isHolding || isMute) return
        isHolding = false
        say(cancelled)
      })
      switch (server.manner) {
        case "accepts":
          return welcome(pid)
        case "accepts when told":
          return waitingRoom.push(() => welcome(pid))
        case "is full":
          return hangUp(errorResponse("FATAL", "53300", "sorry, too many clients already"))
        case "closes":
          return hangUp()
        default:
          return
      }
    }

    const onCancelRequest = (pid: number) => {
      if (server.manner === "is silent") return
      holds.get(pid)?.()
      hangUp()
    }

    const onMessage = (chunk: Buffer) => {
      if (chunk[0] === terminate) {
        isParting = true
        if (!isMute) destroy()
        return
      }
      statements++
      if (chunk.includes("hold")) isHolding = true
      else if (isMute) isAsked = true
      else say(answer)
    }

    const socket = new Duplex({
      allowHalfOpen: false,
      read() {},
      write(chunk: Buffer, _encoding, callback) {
        activity++
        callback()
        if (peer !== undefined) onMessage(chunk)
        else if (chunk.length === 16 && chunk.readInt32BE(4) === cancelRequestCode) {
          onCancelRequest(chunk.readInt32BE(8))
        } else onStartup()
      },
      // A server that executes something, or is stopped, does not look at what comes in.
      final(callback) {
        activity++
        callback()
        isParting = true
        if (!isMute && !isHolding) destroy()
      }
    })
    sockets.add(socket)
    socket.once("close", () => {
      activity++
      isOpen = false
      isAsked = false
      sockets.delete(socket)
    })
    if (server.manner === "refuses") process.nextTick(() => destroy(refusal()))
    return socket
  }

  const server: MemoryServer = {
    stream,
    manner: "accepts",
    peers,
    open: () => peers.filter((peer) => peer.isOpen()),
    sockets: () => sockets.size,
    statements: () => statements,
    activity: () => activity,
    greet: () => {
      for (const welcome of waitingRoom.splice(0)) welcome()
    }
  }
  return server
}
