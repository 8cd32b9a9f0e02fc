import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { randomInt } from "node:crypto"
import * as Net from "node:net"

/** A TCP server on 127.0.0.1 that can give its port up and take it again. */
export interface Listener {
  readonly port: number
  /** New connections are refused from now on; those that are open stay. No-op while it does not listen. */
  readonly stop: Effect.Effect<void>
  /** Listens on the same port again. No-op while it does. Fails when somebody else has taken the port. */
  readonly start: Effect.Effect<void, Error>
}

export const host = "127.0.0.1"

const attempts = 50

/**
 * Listens until the scope closes, and has then let go of every connection. The port lies below the kernel's ephemeral
 * range (from 32768 on Linux): while nobody listens, no outgoing connection takes it.
 */
export const make = (onConnection: (socket: Net.Socket) => void): Effect.Effect<Listener, Error, Scope.Scope> =>
  Effect.gen(function*() {
    const sockets = new Set<Net.Socket>()
    let server: Net.Server | undefined

    const listen = (port: number) =>
      Effect.callback<void, Error>((resume) => {
        // Each end of a connection is passed on by hand, so it must not answer one by itself.
        const next = Net.createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
          sockets.add(socket)
          socket.on("error", () => {})
          socket.once("close", () => sockets.delete(socket))
          onConnection(socket)
        })
        next.once("error", (error) => resume(Effect.fail(error)))
        next.listen({ port, host, exclusive: true }, () => {
          server = next
          resume(Effect.void)
        })
      })

    const stop = Effect.sync(() => {
      server?.close()
      server = undefined
    })

    yield* Effect.addFinalizer(() =>
      Effect.callback<void>((resume) => {
        for (const socket of sockets) socket.destroy()
        if (server === undefined) return resume(Effect.void)
        server.close(() => resume(Effect.void))
      })
    )
    const port = yield* Effect.suspend(() => {
      const candidate = 20_000 + randomInt(12_000)
      return Effect.as(listen(candidate), candidate)
    }).pipe(Effect.retry({ times: attempts }))
    return { port, stop, start: Effect.suspend(() => server === undefined ? listen(port) : Effect.void) }
  })
