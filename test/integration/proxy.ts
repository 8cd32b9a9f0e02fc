import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"

/** One connection through the proxy. */
export interface Link {
  readonly id: number
  /** Resets both ends. */
  readonly cut: () => void
  /** From now on, nothing of what the server says gets through. */
  readonly mute: () => void
  /** Resets the client's end only: the server keeps its session, waiting for a statement. */
  readonly strand: () => void
  /** Closes the client's end in good order, as if the server had. */
  readonly hangUp: () => void
  /** From now on, the client does not learn that the server has closed its end. */
  readonly holdOpen: () => void
  /** From now on, neither side learns anything of the other, its end neither. */
  readonly blackhole: () => void
  /** Tells the server something, late. */
  readonly deliver: (request: Buffer) => void
}

const cancelRequestCode = 80_877_102

export const isCancelRequest = (request: Buffer): boolean =>
  request.length >= 8 && request.readUInt32BE(4) === cancelRequestCode

const isStartup = (request: Buffer): boolean => request.length >= 8 && request.readUInt16BE(4) === 3

/** A TCP proxy in front of a server: it sees every byte, and can lose them. */
interface Proxy {
  readonly url: Redacted.Redacted
  /** Connections accepted so far. */
  readonly accepted: () => number
  /** Connections that are open now. */
  readonly open: () => number
  /** Most sessions that the server has had through here at a time: from the startup message to its own end. */
  readonly mostSessions: () => number
  /** Milliseconds that it takes on the next connections for what a client says to reach the server, its end included. */
  readonly lag: (millis: number) => void
  /** Sync messages seen so far: how many statements were sent over all connections. */
  readonly statements: () => number
  /**
   * Sees what a client sends before it is passed on. `"pass"` passes it on, `"drop"` does not.
   */
  readonly onRequest: (look: (request: Buffer, link: Link) => "pass" | "drop") => void
}

const sync = Buffer.from([0x53, 0, 0, 0, 4])

const syncsIn = (request: Buffer): number => {
  let count = 0
  for (let at = request.indexOf(sync); at >= 0; at = request.indexOf(sync, at + sync.length)) count++
  return count
}

const listen = (server: Net.Server): Effect.Effect<number, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<number>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed((server.address() as Net.AddressInfo).port)))
    }),
    () => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
  )

const throughPort = (url: Redacted.Redacted, port: number): Redacted.Redacted => {
  const through = new URL(Redacted.value(url))
  through.hostname = "127.0.0.1"
  through.port = String(port)
  return Redacted.make(through.href)
}

export const makeProxy = Effect.fnUntraced(function*(
  url: Redacted.Redacted
): Effect.fn.Return<Proxy, never, Scope.Scope> {
  const target = new URL(Redacted.value(url))
  const sockets = new Set<Net.Socket>()
  let accepted = 0
  let open = 0
  let statements = 0
  let sessions = 0
  let mostSessions = 0
  let lag = 0
  let look: (request: Buffer, link: Link) => "pass" | "drop" = () => "pass"
  // A client that says goodbye may still be told something.
  const server = Net.createServer({ noDelay: true, allowHalfOpen: true }, (client) => {
    const upstream = Net.connect({ host: target.hostname, port: Number(target.port || 5432), noDelay: true })
    let muted = false
    let stranded = false
    let held = false
    let lost = false
    let isFirst = true
    let isSession = false
    const own = lag
    const late = (what: () => void): void => {
      if (own > 0) setTimeout(what, own)
      else what()
    }
    const pass = (request: Buffer): void => {
      if (isFirst && isStartup(request)) {
        isSession = true
        mostSessions = Math.max(mostSessions, ++sessions)
      }
      isFirst = false
      upstream.write(request)
    }
    const link: Link = {
      id: ++accepted,
      cut: () => {
        client.resetAndDestroy()
        // The server gets to read what it was sent before it learns that the client is gone.
        upstream.end()
      },
      mute: () => {
        muted = true
      },
      strand: () => {
        stranded = true
        client.resetAndDestroy()
      },
      hangUp: () => {
        stranded = true
        client.end()
      },
      holdOpen: () => {
        held = true
      },
      blackhole: () => {
        lost = true
      },
      deliver: (request) => upstream.write(request)
    }
    open++
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on("error", () => {})
      socket.once("close", () => sockets.delete(socket))
    }
    client.on("data", (request: Buffer) => {
      statements += syncsIn(request)
      if (look(request, link) === "pass" && !lost) late(() => pass(request))
    })
    upstream.on("data", (reply: Buffer) => {
      if (!muted && !lost && !client.destroyed) client.write(reply)
    })
    client.on("end", () => {
      if (!stranded && !lost) late(() => upstream.end())
    })
    upstream.on("end", () => {
      if (isSession) sessions--
      isSession = false
      if (!held && !lost) client.end()
    })
    client.once("close", () => {
      open--
      if (!stranded && !lost) late(() => upstream.end())
    })
    upstream.once("close", () => {
      if (isSession) sessions--
      isSession = false
      if (!held && !lost) client.destroy()
    })
  })
  const port = yield* listen(server)
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const socket of sockets) socket.destroy()
    })
  )
  return {
    url: throughPort(url, port),
    accepted: () => accepted,
    open: () => open,
    mostSessions: () => mostSessions,
    lag: (millis) => {
      lag = millis
    },
    statements: () => statements,
    onRequest: (next) => {
      look = next
    }
  }
})

/** A server that is none: it accepts, and then either closes at once or never says a word. */
export const makeImpostor = Effect.fnUntraced(function*(
  behaviour: "closes" | "is silent"
): Effect.fn.Return<{ readonly url: Redacted.Redacted; readonly accepted: () => number }, never, Scope.Scope> {
  const sockets = new Set<Net.Socket>()
  let accepted = 0
  const server = Net.createServer((client) => {
    accepted++
    client.on("error", () => {})
    if (behaviour === "closes") return void client.destroy()
    sockets.add(client)
    client.once("close", () => sockets.delete(client))
    client.resume()
  })
  const port = yield* listen(server)
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const socket of sockets) socket.destroy()
    })
  )
  return { url: throughPort(Redacted.make("postgres://nobody:nothing@localhost/none"), port), accepted: () => accepted }
})
