import * as Redacted from "effect/Redacted"
import * as Net from "node:net"

/** Sockets to a server that is this far away: each connect takes as long, CancelRequests included. */
export const farAway = (url: Redacted.Redacted, millis: number): () => Net.Socket => {
  const { hostname, port } = new URL(Redacted.value(url))
  return () =>
    Net.connect({
      host: "far.example",
      port: Number(port || 5432),
      noDelay: true,
      lookup: (_host, { all }, done) => {
        setTimeout(
          () => all === true ? done(null, [{ address: hostname, family: 4 }]) : done(null, hostname, 4),
          millis
        )
      }
    })
}
