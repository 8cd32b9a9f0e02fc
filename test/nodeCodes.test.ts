import { assert, describe, it } from "@effect/vitest"
import * as Dns from "node:dns"
import * as Util from "node:util"
import { classify } from "../src/Errors.ts"
import { listed } from "../src/internal/socketCode.ts"

/** Names of libuv's map that no TCP or Unix socket, resolver or TLS session gives, and why. */
const elsewhere: Readonly<Record<string, ReadonlyArray<string>>> = {
  "of files and folders": [
    "EEXIST",
    "EFBIG",
    "EFTYPE",
    "EISDIR",
    "EMLINK",
    "ENOSPC",
    "ENOTEMPTY",
    "EROFS",
    "ESPIPE",
    "ETXTBSY",
    "EXDEV"
  ],
  "of processes and terminals": ["E2BIG", "EBUSY", "ENOEXEC", "ENOTTY", "ESRCH"],
  "of datagrams": ["EDESTADDRREQ", "EMSGSIZE"],
  "of character sets and numbers": ["EILSEQ", "EOVERFLOW", "ERANGE"],
  "mistakes inside libuv or Node, which a caller of theirs cannot make": ["EALREADY", "EFAULT", "EISCONN"],
  "dealt with inside libuv": ["EINTR"],
  "of platforms without sockets": ["ENOSYS", "EUNATCH"],
  "no name at all: what an errno without one is called": ["UNKNOWN"]
}

/** Codes of Node's own for sockets, streams and TLS that the socket of a client does not give, and why. */
const ofOthers: Readonly<Record<string, ReadonlyArray<string>>> = {
  "of datagrams": [
    "ERR_SOCKET_ALREADY_BOUND",
    "ERR_SOCKET_BAD_BUFFER_SIZE",
    "ERR_SOCKET_BAD_TYPE",
    "ERR_SOCKET_BUFFER_SIZE",
    "ERR_SOCKET_DGRAM_IS_CONNECTED",
    "ERR_SOCKET_DGRAM_NOT_CONNECTED",
    "ERR_SOCKET_DGRAM_NOT_RUNNING"
  ],
  "of TLS servers": ["ERR_TLS_REQUIRED_SERVER_NAME", "ERR_TLS_SESSION_ATTACK", "ERR_TLS_SNI_FROM_SERVER"],
  "of Node's options for TLS that the driver does not set": ["ERR_TLS_ALPN_CALLBACK_WITH_PROTOCOLS"],
  "of TLS 1.2 renegotiation, which nobody here asks for": ["ERR_TLS_RENEGOTIATION_UNSUPPORTED"],
  "mistakes of who implements or pipes a stream": [
    "ERR_SOCKET_HANDLE_ADOPTED",
    "ERR_STREAM_CANNOT_PIPE",
    "ERR_STREAM_NULL_VALUES",
    "ERR_STREAM_PUSH_AFTER_EOF",
    "ERR_STREAM_UNABLE_TO_PIPE",
    "ERR_STREAM_UNSHIFT_AFTER_END_EVENT",
    "ERR_STREAM_WRAP"
  ]
}

const known = new Set(listed)
const unknownTo = (others: Readonly<Record<string, ReadonlyArray<string>>>, codes: Iterable<string>) => {
  const excused = new Set(Object.values(others).flat())
  return [...codes].filter((code) => !known.has(code) && !excused.has(code))
}

describe("every code of this Node has a verdict, or a reason why it cannot come", () => {
  it("libuv's, as util.getSystemErrorMap names them", () => {
    const codes = [...Util.getSystemErrorMap().values()].map(([name]) => name)
    assert.isAbove(codes.length, 60)
    assert.deepStrictEqual(unknownTo(elsewhere, codes), [])
  })

  it("the resolver's, as the constants of node:dns name them", () => {
    const constants: ReadonlyArray<readonly [string, unknown]> = [
      ...Object.entries(Dns),
      ...Object.entries(Dns.promises)
    ]
    const codes = constants.flatMap(([name, code]) => /^[A-Z]+$/.test(name) && typeof code === "string" ? [code] : [])
    assert.isAbove(codes.length, 20)
    assert.deepStrictEqual(unknownTo({}, codes), [])
  })

  it("certificates', as https://nodejs.org/api/tls.html#x509-certificate-error-codes names them", () => {
    const codes = `UNABLE_TO_GET_ISSUER_CERT UNABLE_TO_GET_CRL UNABLE_TO_DECRYPT_CERT_SIGNATURE
      UNABLE_TO_DECRYPT_CRL_SIGNATURE UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY CERT_SIGNATURE_FAILURE CRL_SIGNATURE_FAILURE
      CERT_NOT_YET_VALID CERT_HAS_EXPIRED CRL_NOT_YET_VALID CRL_HAS_EXPIRED ERROR_IN_CERT_NOT_BEFORE_FIELD
      ERROR_IN_CERT_NOT_AFTER_FIELD ERROR_IN_CRL_LAST_UPDATE_FIELD ERROR_IN_CRL_NEXT_UPDATE_FIELD OUT_OF_MEM
      DEPTH_ZERO_SELF_SIGNED_CERT SELF_SIGNED_CERT_IN_CHAIN UNABLE_TO_GET_ISSUER_CERT_LOCALLY
      UNABLE_TO_VERIFY_LEAF_SIGNATURE CERT_CHAIN_TOO_LONG CERT_REVOKED INVALID_CA PATH_LENGTH_EXCEEDED INVALID_PURPOSE
      CERT_UNTRUSTED CERT_REJECTED HOSTNAME_MISMATCH`.split(/\s+/)
    assert.deepStrictEqual(unknownTo({}, codes), [])
  })

  it("Node's own for sockets, streams and TLS, as https://nodejs.org/api/errors.html names them", () => {
    const codes = `ABORT_ERR ERR_INVALID_ADDRESS_FAMILY ERR_INVALID_IP_ADDRESS ERR_IP_BLOCKED ERR_SOCKET_ALREADY_BOUND
      ERR_SOCKET_BAD_BUFFER_SIZE ERR_SOCKET_BAD_PORT ERR_SOCKET_BAD_TYPE ERR_SOCKET_BUFFER_SIZE ERR_SOCKET_CLOSED
      ERR_SOCKET_CLOSED_BEFORE_CONNECTION ERR_SOCKET_CONNECTION_TIMEOUT ERR_SOCKET_DGRAM_IS_CONNECTED
      ERR_SOCKET_DGRAM_NOT_CONNECTED ERR_SOCKET_DGRAM_NOT_RUNNING ERR_SOCKET_HANDLE_ADOPTED ERR_STREAM_ALREADY_FINISHED
      ERR_STREAM_CANNOT_PIPE ERR_STREAM_DESTROYED ERR_STREAM_NULL_VALUES ERR_STREAM_PREMATURE_CLOSE
      ERR_STREAM_PUSH_AFTER_EOF ERR_STREAM_UNABLE_TO_PIPE ERR_STREAM_UNSHIFT_AFTER_END_EVENT ERR_STREAM_WRAP
      ERR_STREAM_WRITE_AFTER_END ERR_TLS_ALPN_CALLBACK_INVALID_RESULT ERR_TLS_ALPN_CALLBACK_WITH_PROTOCOLS
      ERR_TLS_CERT_ALTNAME_FORMAT ERR_TLS_CERT_ALTNAME_INVALID ERR_TLS_DH_PARAM_SIZE ERR_TLS_HANDSHAKE_TIMEOUT
      ERR_TLS_INVALID_CONTEXT ERR_TLS_INVALID_PROTOCOL_VERSION ERR_TLS_INVALID_STATE ERR_TLS_PROTOCOL_VERSION_CONFLICT
      ERR_TLS_RENEGOTIATION_DISABLED ERR_TLS_RENEGOTIATION_UNSUPPORTED ERR_TLS_REQUIRED_SERVER_NAME
      ERR_TLS_SESSION_ATTACK ERR_TLS_SNI_FROM_SERVER`.split(/\s+/)
    assert.deepStrictEqual(unknownTo(ofOthers, codes), [])
  })

  it("and no excuse is made for a code that has a verdict", () => {
    assert.deepStrictEqual(
      [...Object.values(elsewhere), ...Object.values(ofOthers)].flat().filter((code) => known.has(code)),
      []
    )
  })

  it("OpenSSL's hundreds of reasons fall to one rule: what a handshake disagrees on stays disagreed on", () => {
    const { kind, retry } = classify({ code: "ERR_SSL_TLSV1_ALERT_NO_RENEGOTIATION" }, {
      phase: "Connect",
      reused: false,
      replied: false
    })
    assert.deepStrictEqual([kind, retry], ["Denied", "Never"])
  })
})
