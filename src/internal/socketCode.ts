/**
 * Codes and texts that come without a SQLSTATE: Node's sockets, DNS and TLS, the driver's own sentences, and the tags
 * of our own errors.
 *
 * Sources: `man 7 ip`, `man 2 connect`; libuv's error map; https://nodejs.org/api/dns.html#error-codes;
 * https://nodejs.org/api/tls.html#x509-certificate-error-codes; `@effect/sql-pg`, `PgConnection.ts`.
 */
import { lazy } from "./lazy.ts"
import { denied, lost, rejected } from "./sqlState.ts"
import type { Rule } from "./verdict.ts"

/** The peer is not who it should be, or does not let us in. No repetition changes that. */
const distrusted: Rule = { ...denied, proof: "Lost", connection: "Evict" }

/** This process refused or ran short. It says nothing about the server. */
const local: Rule = { kind: "Local", proof: "Lost", retry: "Never", breaker: "Ignored", connection: "Keep" }

/** This process refused before anything was sent. */
const withheld: Rule = { ...local, proof: "Refused" }

/** What was asked of the socket makes no sense: a mistake in the options. */
const misused: Rule = { ...local, kind: "Rejected", connection: "Evict" }

/** The driver refused to send it. */
const unsent: Rule = { ...misused, proof: "Refused", connection: "Keep" }

/** Nothing is known: not repeated, not counted, and the session is not trusted. */
export const unheard: Rule = { ...rejected, proof: "Lost", connection: "Evict" }

const codes = lazy((): Readonly<Record<string, Rule>> => ({
  // Nobody there, or no way there
  ECONNREFUSED: lost,
  EHOSTDOWN: lost,
  EHOSTUNREACH: lost,
  ENETDOWN: lost,
  ENETUNREACH: lost,
  ENONET: lost,
  ENOENT: lost, // no Unix socket: the server is not running
  EAGAIN: lost, // connect(2) to a Unix socket: its queue of waiting connections is full
  // The connection broke
  ECONNABORTED: lost,
  ECONNRESET: lost,
  EBADF: lost, // the descriptor was closed under the socket
  EIO: lost,
  ENETRESET: lost,
  ENODEV: lost,
  ENXIO: lost,
  EREMOTEIO: lost,
  ENOTCONN: lost,
  EOF: lost,
  EPIPE: lost,
  ERR_SOCKET_CLOSED: lost,
  ERR_SOCKET_CLOSED_BEFORE_CONNECTION: lost,
  ERR_STREAM_ALREADY_FINISHED: lost,
  ERR_STREAM_DESTROYED: lost,
  ERR_STREAM_PREMATURE_CLOSE: lost,
  ERR_STREAM_WRITE_AFTER_END: lost,
  ESHUTDOWN: lost,
  // Time ran out
  ERR_SOCKET_CONNECTION_TIMEOUT: lost,
  ETIME: lost,
  ETIMEDOUT: lost,
  ETIMEOUT: lost, // c-ares
  // DNS. ENOTFOUND is usually a wrong name, but also a resolver that restarts, or a record during failover.
  EAI_AGAIN: lost,
  EAI_FAIL: lost,
  EAI_NODATA: lost,
  EAI_NONAME: lost,
  ENODATA: lost,
  ENOTFOUND: lost,
  ENONAME: lost,
  ESERVFAIL: lost,
  EREFUSED: lost,
  EBADRESP: lost,
  EFORMERR: lost,
  ENOTIMP: lost,
  EAI_PROTOCOL: lost,
  EDESTRUCTION: lost,
  // TLS broke off: like a broken connection, the record layer cannot go on
  EPROTO: lost,
  ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC: lost,
  ERR_SSL_BAD_RECORD_MAC: lost,
  ERR_SSL_UNEXPECTED_EOF_WHILE_READING: lost,
  ERR_TLS_HANDSHAKE_TIMEOUT: lost,
  ERR_TLS_INVALID_STATE: lost,
  ERR_TLS_RENEGOTIATION_DISABLED: lost,
  // TLS that cannot be agreed on
  ERR_SSL_WRONG_VERSION_NUMBER: distrusted,
  ERR_SSL_UNSUPPORTED_PROTOCOL: distrusted,
  ERR_SSL_NO_SHARED_CIPHER: distrusted,
  ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION: distrusted,
  ERR_SSL_TLSV1_ALERT_UNKNOWN_CA: distrusted,
  ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED: distrusted,
  ERR_SSL_SSLV3_ALERT_HANDSHAKE_FAILURE: distrusted,
  ERR_SSL_SSLV3_ALERT_BAD_CERTIFICATE: distrusted,
  ERR_SSL_SSLV3_ALERT_CERTIFICATE_EXPIRED: distrusted,
  ERR_TLS_ALPN_CALLBACK_INVALID_RESULT: distrusted,
  ERR_TLS_DH_PARAM_SIZE: distrusted,
  // Certificates
  ERR_TLS_CERT_ALTNAME_INVALID: distrusted,
  ERR_TLS_CERT_ALTNAME_FORMAT: distrusted,
  CERT_CHAIN_TOO_LONG: distrusted,
  CERT_HAS_EXPIRED: distrusted,
  CERT_NOT_YET_VALID: distrusted,
  CERT_REJECTED: distrusted,
  CERT_REVOKED: distrusted,
  CERT_SIGNATURE_FAILURE: distrusted,
  CERT_UNTRUSTED: distrusted,
  CRL_HAS_EXPIRED: distrusted,
  CRL_NOT_YET_VALID: distrusted,
  CRL_SIGNATURE_FAILURE: distrusted,
  DEPTH_ZERO_SELF_SIGNED_CERT: distrusted,
  ERROR_IN_CERT_NOT_AFTER_FIELD: distrusted,
  ERROR_IN_CERT_NOT_BEFORE_FIELD: distrusted,
  ERROR_IN_CRL_LAST_UPDATE_FIELD: distrusted,
  ERROR_IN_CRL_NEXT_UPDATE_FIELD: distrusted,
  HOSTNAME_MISMATCH: distrusted,
  INVALID_CA: distrusted,
  INVALID_PURPOSE: distrusted,
  OUT_OF_MEM: local,
  PATH_LENGTH_EXCEEDED: distrusted,
  SELF_SIGNED_CERT_IN_CHAIN: distrusted,
  UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY: distrusted,
  UNABLE_TO_DECRYPT_CERT_SIGNATURE: distrusted,
  UNABLE_TO_DECRYPT_CRL_SIGNATURE: distrusted,
  UNABLE_TO_GET_CRL: distrusted,
  UNABLE_TO_GET_ISSUER_CERT: distrusted,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: distrusted,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: distrusted,
  UNSPECIFIED: distrusted, // what Node calls an OpenSSL verification error that it has no name for
  // Permissions: of a Unix socket, a firewall or a sandbox
  EACCES: distrusted,
  EPERM: distrusted,
  ERR_IP_BLOCKED: distrusted,
  // This machine ran short of descriptors, ports or buffers
  EADDRINUSE: local,
  EADDRNOTAVAIL: local,
  EMFILE: local,
  ENFILE: local,
  ENOBUFS: local,
  ENOMEM: local,
  EAI_MEMORY: local,
  // The resolver of this machine does not work
  EADDRGETNETWORKPARAMS: local,
  EFILE: local, // its configuration cannot be read
  ELOADIPHLPAPI: local,
  ENOTINITIALIZED: local,
  // Called off by this side
  ABORT_ERR: { ...local, kind: "Cancelled", connection: "Evict" },
  EAI_CANCELED: { ...local, kind: "Cancelled", connection: "Evict" },
  ECANCELED: { ...local, kind: "Cancelled", connection: "Evict" },
  ECANCELLED: { ...local, kind: "Cancelled", connection: "Evict" },
  // Nonsense: an address or option that no socket of this machine takes
  EAFNOSUPPORT: misused,
  EAI_ADDRFAMILY: misused,
  EAI_BADFLAGS: misused,
  EAI_BADHINTS: misused,
  EAI_FAMILY: misused,
  EAI_OVERFLOW: misused,
  EAI_SERVICE: misused,
  EAI_SOCKTYPE: misused,
  EBADFAMILY: misused,
  EBADFLAGS: misused,
  EBADHINTS: misused,
  EBADNAME: misused,
  EBADQUERY: misused,
  EBADSTR: misused,
  ECHARSET: misused,
  ELOOP: misused,
  ENOPROTOOPT: misused,
  ENOTDIR: misused,
  ENOTSUP: misused,
  EPROTOTYPE: misused,
  ESOCKTNOSUPPORT: misused,
  EINVAL: misused,
  ENAMETOOLONG: misused,
  ENOTSOCK: misused,
  EPROTONOSUPPORT: misused,
  ERR_INVALID_ADDRESS_FAMILY: misused,
  ERR_INVALID_ARG_TYPE: misused,
  ERR_INVALID_ARG_VALUE: misused,
  ERR_INVALID_IP_ADDRESS: misused,
  ERR_INVALID_URL: misused,
  ERR_SOCKET_BAD_PORT: misused,
  ERR_TLS_INVALID_CONTEXT: misused,
  ERR_TLS_INVALID_PROTOCOL_VERSION: misused,
  ERR_TLS_PROTOCOL_VERSION_CONFLICT: misused,
  // Our own errors, by tag. A closing pool and a deadline can strike while work is in flight.
  AcquireTimeout: withheld,
  PoolSaturated: withheld,
  PoolClosed: local,
  CircuitOpen: withheld,
  CircuitHalfOpen: withheld,
  CircuitIsolated: withheld,
  DeadlineExceeded: local,
  RetriesExhausted: local,
  HookFailed: local,
  FleetTooLarge: local,
  // Who issues passwords may be busy, or down for a moment. It says nothing about the server.
  CredentialsFailed: { ...denied, retry: "Backoff" },
  // Some host has answered: the search for the right one must be able to go on, as after 25006.
  NoSuitableHost: { ...lost, proof: "Refused", breaker: "Ignored" },
  InvalidOption: withheld
}))

/** The driver's sentences, most telling first. Its errors of this kind carry nothing but text. */
const sentences: ReadonlyArray<readonly [text: RegExp, rule: Rule]> = [
  // COMMIT answered by ROLLBACK: the transaction had failed before.
  [/COMMIT rolled back an aborted transaction/i, rejected],
  [/Failed to encode query|channel names must not exceed/i, unsent],
  [
    /requested password authentication|No password configured|SASL|SCRAM|MD5 authentication failed|Authentication method|Unsupported authentication|Server refused (direct )?TLS|does not support TLS/i,
    distrusted
  ],
  [
    /No username configured|keepAlive must be|startup parameter|in URL|connection URL/i,
    misused
  ],
  [
    /connection (is |was )?(closed|terminated|ended|lost|timed out|timeout|reset)|closed unexpectedly|(query|stream) cancellation timed out|socket (error|hang up|closed)|network socket disconnected|Failed to (write|connect|parse server|parse SSLRequest|negotiate)|Protocol desync|^PgConnection: (Unexpected|A pipelined)|Invalid SSLRequest|released with work outstanding|timed out/i,
    lost
  ]
]

/** What sockets call the same trouble that these sentences tell of. */
const codesOfSentences: ReadonlyArray<readonly [text: RegExp, code: string]> = [
  [/timed out|timeout/i, "ETIMEDOUT"],
  [/Failed to parse|Protocol desync|^PgConnection: (Unexpected|A pipelined)|Invalid SSLRequest/i, "EPROTO"],
  [
    /connection (is |was )?(closed|terminated|ended|lost|reset)|closed unexpectedly|hang up|socket (closed|disconnected)/i,
    "ECONNRESET"
  ]
]

/** The code of a text without any, where the text says what there is a code for. */
export const codeOfText = (text: string): string | undefined =>
  ruleOfText(text) === lost ? codesOfSentences.find(([pattern]) => pattern.test(text))?.[1] : undefined

/** The rule of a code, if it is known. */
export const ruleOfCode = (code: string): Rule | undefined => {
  if (Object.hasOwn(codes(), code)) return codes()[code]
  // OpenSSL has hundreds of reasons; what a handshake disagrees on stays disagreed on.
  return code.startsWith("ERR_SSL_") || code.startsWith("ERR_TLS_CERT") ? distrusted : undefined
}

/** The rule of a text without any code, if it is known. */
export const ruleOfText = (text: string): Rule | undefined => sentences.find(([pattern]) => pattern.test(text))?.[1]

/** Every code with a rule. */
export const listed: ReadonlyArray<string> = /* @__PURE__ */ Object.keys(/* @__PURE__ */ codes())
