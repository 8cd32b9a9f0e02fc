/**
 * A TCP proxy in front of a PostgreSQL server, in this process, that does to connections what networks do: delays them,
 * loses bytes, cuts in the middle of an answer, falls silent, refuses. Faults are set and lifted while it runs, for all
 * links or for one.
 *
 * ```ts run
 * import * as PgConnection from "@effect/sql-pg/PgConnection"
 * import { Effect } from "effect"
 * import { FaultProxy, ScriptedServer } from "effect-pg-pool/testing"
 * import assert from "node:assert/strict"
 *
 * const test = Effect.gen(function*() {
 *   const server = yield* ScriptedServer.make() // or an EmbeddedPostgres
 *   const proxy = yield* FaultProxy.make(server.url)
 *   const connection = yield* PgConnection.make({ url: proxy.url })
 *   yield* connection.query("COMMIT").pipe(
 *     proxy.during(FaultProxy.cutAfter(0, { direction: "to the client" })), // the server has it, its answer is lost
 *     Effect.flip
 *   )
 *   assert.equal((yield* proxy.counts).statements, 1)
 *   assert.equal((yield* proxy.counts).open, 0)
 * })
 * await Effect.runPromise(Effect.scoped(test))
 * ```
 *
 * Delays are real time, also under a `TestClock`: both ends are real sockets. What is counted is what a client says in
 * plain text: of a link that is encrypted, only its connections and bytes are.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"
import type { Direction, Fault, LinkFault, Refuse } from "./fault.ts"
import * as FrontendMessages from "./frontendMessages.ts"
import * as Lane from "./lane.ts"
import * as Listener from "./listener.ts"

export * from "./fault.ts"

/**
 * The proxy could not be made, or could not take its port again after it had been closed.
 *
 * @category errors
 * @since 0.1.0
 */
export class FaultProxyFailed extends Schema.TaggedError<FaultProxyFailed>("effect-pg-pool/testing/FaultProxyFailed")(
  "FaultProxyFailed",
  { operation: Schema.String, detail: Schema.String }
) {
  override get message(): string {
    return `The fault proxy could not ${this.operation}: ${this.detail}`
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * What has gone through the proxy so far, and through all of its links together.
 *
 * @category models
 * @since 0.1.0
 */
export interface Counts {
  /** Connections that were accepted, those of CancelRequests and into a black hole included. */
  readonly accepted: number
  /** Connections whose client's end is open now. */
  readonly open: number
  /** Connections that were reset by `refuse("reset")`. What `refuse("closed")` turns away is not seen. */
  readonly refused: number
  /** Links that were cut: by `cutAfter`, by `cut`, or for the hole that a lifted fault has left. */
  readonly cuts: number
  /** CancelRequests that clients have sent. */
  readonly cancelRequests: number
  /** Sessions that the server has through here now: from the startup message to the server's own end of the connection. */
  readonly sessions: number
  /** Most of them at a time so far. */
  readonly mostSessions: number
  /** Statements that clients have sent, whether they got through or not: Sync and Query messages. */
  readonly statements: number
  /** Bytes that came in, whether they got through or not. */
  readonly bytes: Readonly<Record<Direction, number>>
}

/**
 * One connection through the proxy. Its functions act at once, so that a hook can call them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Link {
  /** Counts from 1, in the order in which connections were accepted. */
  readonly id: number
  /** Whether the client's end is open. */
  readonly isOpen: () => boolean
  /** Sets a fault for this link alone, on top of those that are set for all. */
  readonly set: (fault: LinkFault) => void
  /** Lifts a fault that was set for this link. */
  readonly lift: (fault: LinkFault) => void
  /**
   * Cuts it, whatever is held up: the client's end is reset, and the server's end is closed after what it was sent, so
   * that the server gets to read it. With `end`, that end alone; the other one is not told while a `hold` keeps it.
   */
  readonly cut: (end?: "client" | "server") => void
  /** Says something in somebody's name, past all faults. Nothing happens when that end is closed. */
  readonly deliver: (bytes: Uint8Array, direction?: Direction, onSent?: () => void) => void
}

/**
 * What becomes of the bytes that a hook has seen.
 *
 * @category models
 * @since 0.1.0
 */
export type Look = (bytes: Buffer, link: Link) => "pass" | "drop"

/**
 * A proxy that runs.
 *
 * @category models
 * @since 0.1.0
 */
export interface FaultProxy {
  /** The server's URL with the proxy's host and port: to connect through. */
  readonly url: Redacted.Redacted
  readonly host: string
  readonly port: number
  readonly counts: Effect.Effect<Counts>
  /** The links of which an end is open, oldest first. */
  readonly links: Effect.Effect<ReadonlyArray<Link>>
  /** Sets a fault for all links, those to come included. Several at once add up. No-op when it is set. */
  readonly set: (fault: Fault) => Effect.Effect<void>
  /** Lifts a fault that was set for all links: the same value, not its like. No-op when it is not set. */
  readonly lift: (fault: Fault) => Effect.Effect<void, FaultProxyFailed>
  /** Lifts all faults that were set for all links, and those that were set for one. */
  readonly liftAll: Effect.Effect<void, FaultProxyFailed>
  /** Sets the fault while an effect runs. */
  readonly during: (
    fault: Fault
  ) => <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | FaultProxyFailed, R>
  /** Cuts all links that are open now. */
  readonly cut: Effect.Effect<void>
  /**
   * Sees what clients send before any fault does, as it comes off the socket: mostly one write of the client, which is a
   * whole statement with the usual drivers. The last `look` counts.
   */
  readonly onRequest: (look: Look) => Effect.Effect<void>
  /** The same for what the server sends, in pieces of any size. */
  readonly onReply: (look: Look) => Effect.Effect<void>
}

const pass: Look = () => "pass"

/** What all links of a proxy share. */
interface Shared {
  readonly counts:
    & {
      -readonly [Key in keyof Omit<Counts, "bytes">]: Counts[Key]
    }
    & { readonly bytes: Record<Direction, number> }
  readonly faults: Set<LinkFault>
  readonly random: Random.Random
  readonly look: Record<Direction, Look>
}

interface OwnLink extends Link {
  /** Call when one of the faults for all links has been set or lifted. */
  readonly onSet: (fault: LinkFault) => void
  readonly onLift: (fault: LinkFault) => void
  readonly liftOwn: () => void
}

const losesBytes = ({ _tag }: LinkFault): boolean => _tag === "Drop" || _tag === "Blackhole"

const join = (shared: Shared, client: Net.Socket, upstream: Net.Socket | undefined): OwnLink => {
  const { counts, look } = shared
  const id = ++counts.accepted
  const own = new Set<LinkFault>()
  let isOpen = true
  let isCut = false
  let isSession = false

  const faults = (direction: Direction) => () =>
    [...shared.faults, ...own].filter(({ directions }) => directions.includes(direction))
  const laneOf = (direction: Direction, source: Net.Socket, sink: Net.Socket | undefined) =>
    Lane.make({ source, sink, faults: faults(direction), random: shared.random, onCut: () => cut() })
  const lanes: Record<Direction, Lane.Lane> = {
    "to the server": laneOf("to the server", client, upstream),
    "to the client": laneOf("to the client", upstream ?? client, upstream && client)
  }

  const leave = (): void => {
    if (isOpen) counts.open--
    isOpen = false
  }

  const enter = (): void => {
    isSession = true
    counts.mostSessions = Math.max(counts.mostSessions, ++counts.sessions)
  }

  const exit = (): void => {
    if (isSession) counts.sessions--
    isSession = false
  }

  const cut = (end?: "client" | "server"): void => {
    if (!isCut && isOpen) counts.cuts++
    isCut = true
    if (end !== "server") {
      leave()
      client.resetAndDestroy()
    }
    // The server gets to read what it was sent before it learns that the client is gone.
    if (end !== "client") upstream?.end()
  }

  const onSet = (fault: LinkFault): void => {
    if (fault._tag === "HalfClose") { for (const direction of fault.directions) lanes[direction].end("FIN") }
    for (const direction of fault.directions) lanes[direction].refresh()
  }

  const onLift = (fault: LinkFault): void => {
    if (fault._tag === "Blackhole" && upstream === undefined) return cut()
    for (const direction of fault.directions) {
      const lane = lanes[direction]
      lane.forget(fault)
      if (losesBytes(fault) && lane.hasHole() && !faults(direction)().some(losesBytes)) return cut()
      lane.refresh()
    }
  }

  const link: OwnLink = {
    id,
    isOpen: () => isOpen,
    set: (fault) => {
      if (own.has(fault)) return
      own.add(fault)
      onSet(fault)
    },
    lift: (fault) => {
      if (own.delete(fault)) onLift(fault)
    },
    liftOwn: () => {
      for (const fault of own) link.lift(fault)
    },
    cut,
    deliver: (bytes, direction = "to the server", onSent) => {
      const receiver = direction === "to the server" ? upstream : client
      if (receiver?.writable === true) receiver.write(bytes, () => onSent?.())
      else onSent?.()
    },
    onSet,
    onLift
  }

  const pour = (direction: Direction, bytes: Buffer): void => {
    counts.bytes[direction] += bytes.length
    if (look[direction](bytes, link) === "pass") lanes[direction].arrive(bytes)
  }

  const reader = FrontendMessages.makeReader()
  let isEncryptionAsked = false
  client.on("data", (request: Buffer) => {
    for (const { type } of reader.push(request)) {
      if (type === "S" || type === "Q") counts.statements++
      if (type === "CancelRequest") counts.cancelRequests++
      if (type === "startup" && upstream !== undefined) enter()
      isEncryptionAsked = type === "SSLRequest" || type === "GSSENCRequest"
    }
    pour("to the server", request)
  })
  client.once("end", () => lanes["to the server"].end("FIN"))
  client.once("close", () => {
    leave()
    lanes["to the client"].close()
    lanes["to the server"].end("FIN")
  })
  let upstreamError = false
  upstream?.on("error", () => {
    upstreamError = true
  })
  upstream?.on("data", (reply: Buffer) => {
    // "N": the client goes on in plain text.
    if (isEncryptionAsked && reply[0] !== 0x4e) reader.stop()
    isEncryptionAsked = false
    pour("to the client", reply)
  })
  upstream?.once("end", () => {
    exit()
    lanes["to the client"].end("FIN")
  })
  upstream?.once("close", () => {
    exit()
    lanes["to the server"].close()
    lanes["to the client"].end(upstreamError ? "RST" : "FIN")
  })
  counts.open++
  for (const fault of shared.faults) if (fault._tag === "HalfClose") onSet(fault)
  return link
}

/** `throughPort` keeps everything of the URL but where it leads. */
const throughPort = (target: URL, port: number): Redacted.Redacted => {
  const through = new URL(target)
  through.hostname = Listener.host
  through.port = String(port)
  return Redacted.make(through.href)
}

/**
 * Puts a proxy in front of the server of a URL, for as long as the scope is open. It listens on a free port of 127.0.0.1;
 * the server need not run. When the scope closes, all links are gone.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (url: Redacted.Redacted) => Effect.Effect<FaultProxy, FaultProxyFailed, Scope.Scope> = Effect
  .fnUntraced(function*(url: Redacted.Redacted) {
    const target = URL.parse(Redacted.value(url))
    if (target === null || target.hostname === "") {
      return yield* new FaultProxyFailed({
        operation: "find the server",
        detail: "what it was given is no URL with a host. Allowed: postgres://user:password@host:port/database"
      })
    }
    const shared: Shared = {
      counts: {
        accepted: 0,
        open: 0,
        refused: 0,
        cuts: 0,
        cancelRequests: 0,
        sessions: 0,
        mostSessions: 0,
        statements: 0,
        bytes: { "to the server": 0, "to the client": 0 }
      },
      faults: new Set(),
      random: yield* Random.Random,
      look: { "to the server": pass, "to the client": pass }
    }
    const refusals = new Set<Refuse>()
    const links = new Set<OwnLink>()
    const upstreams = new Set<Net.Socket>()

    const dial = (): Net.Socket => {
      const upstream = Net.connect({
        // The brackets of an IPv6 address belong to the URL.
        host: target.hostname.replace(/^\[|\]$/g, ""),
        port: Number(target.port || 5432),
        noDelay: true,
        allowHalfOpen: true
      })
      upstreams.add(upstream)
      upstream.once("close", () => upstreams.delete(upstream))
      return upstream
    }

    const accept = (client: Net.Socket): void => {
      if (refusals.size > 0) {
        shared.counts.refused++
        client.resetAndDestroy()
        return
      }
      const isLost = [...shared.faults].some(({ _tag }) => _tag === "Blackhole")
      const upstream = isLost ? undefined : dial()
      const link = join(shared, client, upstream)
      links.add(link)
      let open = upstream === undefined ? 1 : 2
      const onClose = (): void => {
        if (--open === 0) links.delete(link)
      }
      client.once("close", onClose)
      upstream?.once("close", onClose)
    }

    yield* Effect.addFinalizer(() =>
      Effect.forEach([...upstreams], (upstream) =>
        Effect.callback<void>((resume) => {
          upstream.once("close", () => resume(Effect.void))
          upstream.destroy()
        }), { concurrency: "unbounded", discard: true })
    )
    const fail = (operation: string) => (error: Error) => new FaultProxyFailed({ operation, detail: error.message })
    const listener = yield* Listener.make(accept).pipe(Effect.mapError(fail("listen")))

    const isClosed = (): boolean => [...refusals].some(({ how }) => how === "closed")
    const listen = Effect.suspend(() => isClosed() ? Effect.void : listener.start).pipe(
      Effect.mapError(fail("listen on its port again"))
    )

    const set = (fault: Fault): Effect.Effect<void> =>
      Effect.suspend(() => {
        if (fault._tag === "Refuse") {
          refusals.add(fault)
          return isClosed() ? listener.stop : Effect.void
        }
        if (!shared.faults.has(fault)) {
          shared.faults.add(fault)
          for (const link of links) link.onSet(fault)
        }
        return Effect.void
      })

    const lift = (fault: Fault): Effect.Effect<void, FaultProxyFailed> =>
      Effect.suspend(() => {
        if (fault._tag === "Refuse") return refusals.delete(fault) ? listen : Effect.void
        if (shared.faults.delete(fault)) { for (const link of links) link.onLift(fault) }
        return Effect.void
      })

    return {
      url: throughPort(target, listener.port),
      host: Listener.host,
      port: listener.port,
      counts: Effect.sync(() => ({ ...shared.counts, bytes: { ...shared.counts.bytes } })),
      links: Effect.sync(() => [...links]),
      set,
      lift,
      liftAll: Effect.suspend(() => {
        for (const link of links) link.liftOwn()
        return Effect.forEach([...shared.faults, ...refusals], lift, { discard: true })
      }),
      during: (fault) => (self) => Effect.acquireUseRelease(set(fault), () => self, () => lift(fault)),
      cut: Effect.sync(() => {
        for (const link of links) if (link.isOpen()) link.cut()
      }),
      onRequest: (look) =>
        Effect.sync(() => {
          shared.look["to the server"] = look
        }),
      onReply: (look) =>
        Effect.sync(() => {
          shared.look["to the client"] = look
        })
    } satisfies FaultProxy
  })

const cancelRequestCode = 80_877_102

/**
 * Whether what a hook sees is a CancelRequest, which is the first and only message of a connection of its own.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCancelRequest = (request: Uint8Array): boolean =>
  request.length === 16 && Buffer.from(request.buffer, request.byteOffset, request.length).readUInt32BE(4)
    === cancelRequestCode
