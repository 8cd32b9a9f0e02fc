import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as Net from "node:net"
import { Duplex } from "node:stream"
import * as Tls from "node:tls"
import type { Address } from "./address.ts"
import * as DirectTls from "./directTls.ts"

/** Where to connect to, and what to say before the protocol begins. */
export interface Target {
  readonly address: Address
  /** Which of the servers that the host's name stands for. Default: whichever the name leads to now. */
  readonly ip?: string | undefined
  readonly tls: TlsMode
  /** Milliseconds of idleness before TCP keepalive. */
  readonly keepAlive: number | undefined
  readonly stream: (() => Duplex) | undefined
}

export type TlsMode =
  | { readonly _tag: "Off" }
  /**
   * `isOptional`: go on in plain text with a server that has no TLS. `isDirect`: begin with it, instead of asking the server
   * first whether it has any.
   */
  | {
    readonly _tag: "On"
    readonly isOptional: boolean
    readonly isDirect: boolean
    readonly options: Tls.ConnectionOptions
  }

const failed = "Failed to connect"

/** The option `stream`, or a callback among the TLS options. */
export const failedOwn = `${failed}: the program's own socket failed`

/** Node's errors have codes. */
const isOfNode = (cause: unknown): boolean =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" && /^[A-Z][A-Z0-9_]+$/.test(cause.code)

const failure = (cause: unknown, message: string): SqlError =>
  new SqlError({ reason: new ConnectionError({ cause, message: `PgConnection: ${message}`, operation: "connect" }) })

const open = ({ address, ip, keepAlive, stream }: Target): Duplex =>
  stream !== undefined
    ? stream()
    : address.path !== undefined
    ? Net.connect({ path: address.path })
    // A statement is one write and then a wait for its answer: Nagle's algorithm would only hold the write back.
    : Net.connect({
      host: ip ?? address.host,
      port: address.port,
      noDelay: true,
      ...(keepAlive === undefined ? {} : { keepAlive: true, keepAliveInitialDelay: keepAlive })
    })

const secure = (raw: Duplex, host: string, options: Tls.ConnectionOptions): Tls.TLSSocket =>
  Tls.connect({
    host,
    ...(Net.isIP(host) === 0 ? { servername: host } : {}),
    ...options,
    socket: raw as Net.Socket
  })

/**
 * Opens a socket that is ready for the startup message, TLS included. The driver could negotiate TLS by itself, but then
 * below a socket of its own, on which nothing can be seen: neither the words with which the server ends a session, nor
 * whether it is inside a transaction.
 *
 * `onOpen` gets each layer as soon as it exists, to be destroyed when the caller gives up.
 */
export const dial = (target: Target, onOpen: (socket: Duplex) => void): Effect.Effect<Duplex, SqlError> =>
  Effect.callback((resume) => {
    let socket: Duplex
    let isDirect = false
    const onError = (cause: unknown) => {
      const refusal = isDirect ? DirectTls.refusalOf(cause) : undefined
      resume(Effect.fail(
        refusal === undefined
          ? failure(cause, isOfNode(cause) ? failed : failedOwn)
          : failure(refusal, DirectTls.failedDirect)
      ))
    }
    const onClose = () => resume(Effect.fail(failure(new Error("Connection closed"), failed)))
    const watch = (next: Duplex): void => {
      socket = next
      onOpen(next)
      next.on("error", onError)
      next.on("close", onClose)
    }
    const succeed = (): void => {
      socket.off("error", onError)
      socket.off("close", onClose)
      resume(Effect.succeed(socket))
    }
    const encrypt = (
      raw: Duplex,
      options: Tls.ConnectionOptions,
      onSecure: (encrypted: Tls.TLSSocket) => void
    ): void => {
      raw.off("error", onError)
      raw.off("close", onClose)
      raw.on("error", () => {})
      try {
        const encrypted = secure(raw, target.address.host, options)
        watch(encrypted)
        encrypted.once("secureConnect", () => onSecure(encrypted))
      } catch (cause) {
        // A certificate that cannot be read is found out only here.
        onError(cause)
      }
    }
    const encryptAtOnce = (raw: Duplex, options: Tls.ConnectionOptions) => (): void => {
      isDirect = true
      encrypt(raw, { ...options, ALPNProtocols: [DirectTls.protocolName] }, ({ alpnProtocol }) => {
        const refusal = DirectTls.refusalOfProtocol(alpnProtocol)
        if (refusal === undefined) return succeed()
        // Node is inside of the handshake still: a socket that is destroyed now takes the process with it.
        setImmediate(() => resume(Effect.fail(failure(refusal, DirectTls.failedDirect))))
      })
    }
    const onSslAnswer = (raw: Duplex, options: Tls.ConnectionOptions, isOptional: boolean) => (chunk: Uint8Array) => {
      // More than the one byte would be somebody's plain text, to be taken for what TLS brought.
      const answer = chunk.length === 1 ? PgProtocol.decodeSslResponse(chunk[0]!) : undefined
      if (answer === undefined || Result.isFailure(answer)) {
        return resume(Effect.fail(failure(new Error("Unexpected answer to SSLRequest"), "Invalid SSLRequest response")))
      }
      if (answer.success === "N") {
        return isOptional
          ? succeed()
          : resume(Effect.fail(failure(new Error("The server does not support TLS"), "Server refused TLS")))
      }
      encrypt(raw, options, succeed)
    }
    try {
      const raw = open(target)
      watch(raw)
      // It would never say that it has closed.
      if (raw.destroyed) return onClose()
      if (target.tls._tag === "Off") return succeed()
      if (target.tls.isDirect) {
        const begin = encryptAtOnce(raw, target.tls.options)
        // Until then what goes wrong is about the way there, and not about TLS.
        return void (raw instanceof Net.Socket && raw.connecting ? raw.once("connect", begin) : begin())
      }
      raw.once("data", onSslAnswer(raw, target.tls.options, target.tls.isOptional))
      raw.write(PgProtocol.encodeSslRequest())
    } catch (cause) {
      onError(cause)
    }
  })

/** Milliseconds between a CancelRequest and its repetition. */
const firstPause = 10
const longestPause = 250

/** What ends the CancelRequests that are under way. */
export type Requests = Set<() => void>

/**
 * A socket that dials when it is first written to. The driver wants the socket of a CancelRequest at once, writes the
 * one message, and waits for the end. Nobody needs to wait that long: once destroyed, it closes for the driver, and the
 * message is given `farewell` milliseconds to reach the server, where the statement would run on without it. A server
 * that has been told gets as long to close the connection.
 *
 * `onEnd` hears once how the connection below has ended: `byServer` when the server has closed it after it was told.
 *
 * Whoever closes it `inVain` is told again, until the driver waits no longer: a pooler drops the request for a statement
 * that still waits for its server, which would then run although nobody wants it any more.
 *
 * While it is under way, what ends it is in `requests`.
 */
export const later = (
  target: Target,
  farewell: number,
  runFork: (effect: Effect.Effect<void>) => unknown,
  onEnd: (byServer: boolean) => void,
  inVain: () => boolean,
  requests: Requests
): Duplex => {
  const layers: Array<Duplex> = []
  let isDialled = false
  let isOver = false
  let isAwaited = true
  let timer: NodeJS.Timeout | undefined
  const end = (byServer: boolean, error?: Error): void => {
    if (isOver) return
    isOver = true
    requests.delete(giveUp)
    clearTimeout(timer)
    for (const layer of layers) layer.destroy()
    onEnd(byServer)
    front.destroy(error)
  }
  const giveUp = (): void => end(false)
  const endSoon = (): void => {
    if (isOver || timer !== undefined) return
    timer = setTimeout(() => end(false), farewell)
    timer.unref()
  }
  const send = (request: Uint8Array, pause: number): void => {
    let isTold = false
    const onTold = (): void => {
      isTold = true
      clearTimeout(timer)
      timer = setTimeout(
        () => isAwaited && inVain() ? send(request, Math.min(2 * pause, longestPause)) : end(true),
        pause
      )
      timer.unref()
    }
    timer = undefined
    runFork(Effect.matchEager(dial(target, (layer) => layers.push(layer)), {
      onFailure: (error) => end(false, error),
      onSuccess: (socket) => {
        socket.on("error", () => {})
        socket.once("close", () => isTold || end(false))
        socket.write(request, (error) => {
          if (error !== undefined && error !== null) return
          endSoon()
          socket.once("end", () => isAwaited && inVain() ? onTold() : end(true))
          // An end is seen by those alone who read.
          socket.resume()
        })
      }
    }))
  }
  const front: Duplex = new Duplex({
    read: () => {},
    write: (chunk: Uint8Array, _encoding, callback) => {
      isDialled = true
      requests.add(giveUp)
      send(chunk, firstPause)
      callback()
    },
    destroy: (error, callback) => {
      isAwaited = false
      if (isDialled) endSoon()
      else end(false)
      callback(error)
    }
  })
  return front
}
