/**
 * TLS from the first byte, without asking for it (PostgreSQL 17): one round trip less. Whether there is anybody at the other
 * end who understands that shows only in what comes back.
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
 */

/** By which both ends make sure that PostgreSQL's protocol is what follows: with direct TLS the server insists on it. */
export const protocolName = "postgresql"

export const failedDirect = "Server refused direct TLS"

const cure =
  "sslNegotiation \"direct\" needs PostgreSQL 17 with ssl turned on, or a proxy that begins with TLS: else use \"postgres\""

/** What a handshake ends with whose other end has not taken the first bytes for TLS. */
const unanswered: Readonly<Record<string, string>> = {
  ECONNRESET: "The server closed the connection instead of answering",
  EPIPE: "The server closed the connection instead of answering",
  ERR_SSL_WRONG_VERSION_NUMBER: "The server answered something that is not TLS",
  ERR_SSL_PACKET_LENGTH_TOO_LONG: "The server answered something that is not TLS",
  ERR_SSL_UNEXPECTED_MESSAGE: "The server answered something that is not TLS",
  ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL: `The server does not speak "${protocolName}" (ALPN)`,
  ERR_SSL_NO_APPLICATION_PROTOCOL: `The server does not speak "${protocolName}" (ALPN)`
}

/** The failure of a handshake, if it may be that of direct TLS alone. It keeps its code, and with it its meaning. */
export const refusalOf = (cause: unknown): Error | undefined => {
  const code: unknown = cause instanceof Error && "code" in cause ? cause.code : undefined
  if (typeof code !== "string" || !Object.hasOwn(unanswered, code)) return undefined
  return Object.assign(new Error(`${unanswered[code]}; ${cure}`, { cause }), { code })
}

/** The server has agreed to TLS, and not to what comes after it: whoever it is may pass the session on to somebody else. */
export const refusalOfProtocol = (agreed: string | false | null): Error | undefined =>
  agreed === protocolName
    ? undefined
    : new Error(`The server did not agree to speak "${protocolName}" (ALPN) after TLS; ${cure}`)
