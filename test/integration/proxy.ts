import { FaultProxy, ScriptedServer } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"

export const isCancelRequest = FaultProxy.isCancelRequest

/** One connection through the proxy, and what the tests do to it. */
export interface Link {
  readonly id: number
  /** Resets the client's end, and ends the server's. */
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

const held = {
  fromServer: FaultProxy.hold({ direction: "to the server" }),
  fromClient: FaultProxy.hold({ direction: "to the client" })
}

const asLink = (link: FaultProxy.Link): Link => ({
  id: link.id,
  cut: () => link.cut(),
  mute: () => link.set(FaultProxy.drop({ direction: "to the client" })),
  strand: () => {
    link.set(held.fromServer)
    link.cut("client")
  },
  hangUp: () => {
    link.set(held.fromServer)
    link.set(FaultProxy.halfClose("to the client"))
  },
  holdOpen: () => link.set(held.fromClient),
  blackhole: () => link.set(FaultProxy.blackhole()),
  deliver: (request) => link.deliver(request)
})

/** A fault proxy as plain functions, for tests that look at requests and count. */
interface Proxy {
  readonly url: Redacted.Redacted
  readonly accepted: () => number
  readonly open: () => number
  /** Most sessions that the server has had through here at a time. */
  readonly mostSessions: () => number
  /** Milliseconds that it takes on the next connections for what a client says to reach the server, its end included. */
  readonly lag: (millis: number) => void
  /** How many statements were sent over all connections. */
  readonly statements: () => number
  readonly onRequest: (look: (request: Buffer, link: Link) => "pass" | "drop") => void
}

export const makeProxy = (url: Redacted.Redacted): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.map(Effect.orDie(FaultProxy.make(url)), (proxy) => {
    const counts = () => Effect.runSync(proxy.counts)
    const known = new Set<number>()
    let lag = 0
    let look: Parameters<Proxy["onRequest"]>[0] = () => "pass"
    Effect.runSync(proxy.onRequest((request, link) => {
      if (!known.has(link.id) && lag > 0) link.set(FaultProxy.delay({ by: lag, direction: "to the server" }))
      known.add(link.id)
      return look(request, asLink(link))
    }))
    return {
      url: proxy.url,
      accepted: () => counts().accepted,
      open: () => counts().open,
      mostSessions: () => counts().mostSessions,
      statements: () => counts().statements,
      lag: (millis) => {
        lag = millis
      },
      onRequest: (next) => {
        look = next
      }
    }
  })

/** A server that is none: it accepts, and then either closes as soon as it is spoken to or never says a word. */
export const makeImpostor = (
  behaviour: "closes" | "is silent"
): Effect.Effect<{ readonly url: Redacted.Redacted; readonly accepted: () => number }, never, Scope.Scope> => {
  const reply = behaviour === "closes" ? ScriptedServer.close : ScriptedServer.silence
  return Effect.map(
    Effect.orDie(ScriptedServer.make({ onStartup: () => reply, onSslRequest: () => reply })),
    (server) => ({ url: server.url, accepted: () => Effect.runSync(server.counts).accepted })
  )
}
