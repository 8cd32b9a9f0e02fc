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
  deliver: (request) => link.deliver(request)
})

/** A fault proxy as plain functions, for tests that look at requests and count. */
interface Proxy {
  readonly url: Redacted.Redacted
  readonly accepted: () => number
  readonly open: () => number
  /** How many statements were sent over all connections. */
  readonly statements: () => number
  readonly onRequest: (look: (request: Buffer, link: Link) => "pass" | "drop") => void
}

export const makeProxy = (url: Redacted.Redacted): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.map(Effect.orDie(FaultProxy.make(url)), (proxy) => ({
    url: proxy.url,
    accepted: () => Effect.runSync(proxy.counts).accepted,
    open: () => Effect.runSync(proxy.counts).open,
    statements: () => Effect.runSync(proxy.counts).statements,
    onRequest: (look) => Effect.runSync(proxy.onRequest((request, link) => look(request, asLink(link))))
  }))

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
