import type * as PgProtocol from "@effect/sql-pg/PgProtocol"

/** The transaction state of a session: idle, in a transaction, or in a failed one. */
export type TransactionStatus = "I" | "T" | "E"

/** What a scanner remembers of the messages it has seen go by. */
export interface Scanner {
  readonly scan: (chunk: Uint8Array) => void
  /** The state in the last ReadyForQuery, `undefined` when another message came after it or none has come. */
  readonly transactionStatus: () => TransactionStatus | undefined
  /** Whether the last thing the server said is that it is ready and outside of a transaction. */
  readonly isIdle: () => boolean
  /** The last ErrorResponse, once it is complete; the same object for as long as it is the last one. */
  readonly lastError: () => PgProtocol.ErrorFields | undefined
  /** The last ErrorResponse as it came. */
  readonly errorBytes: () => Uint8Array
  /** What a CancelRequest for this session has to name, once the server has told it. */
  readonly cancelKey: () => { readonly pid: number; readonly secret: number } | undefined
  /** The last ErrorResponse that ended the session, if one has. */
  readonly fatal: () => { readonly sqlState: string | undefined; readonly message: string } | undefined
  /** What the server has last reported of one of its settings, in a ParameterStatus. */
  readonly parameter: (name: string) => string | undefined
  /** Takes note of such a report that was not among the messages. */
  readonly learn: (name: string, value: string) => void
}

const backendKeyData = 0x4b
const errorResponse = 0x45
const readyForQuery = 0x5a
const parameterStatus = 0x53
const idle = 0x49
const headerLength = 5

/** What no server would say must not lead back: the driver complains about it when it gets to see it. */
const bodyLength = (bytes: Uint8Array, lengthAt: number): number =>
  Math.max(
    0,
    (bytes[lengthAt]! << 24 | bytes[lengthAt + 1]! << 16 | bytes[lengthAt + 2]! << 8 | bytes[lengthAt + 3]!) - 4
  )

/** The fields by which a failure is known. Texts may be in any encoding, and be cut: nothing may be thrown over that. */
const fieldsOf = (body: Buffer): PgProtocol.ErrorFields => {
  const fields = new Map(body.toString("utf8").split("\0").map((field) => [field[0], field.slice(1)]))
  return {
    severity: fields.get("S"),
    severityUnlocalized: fields.get("V"),
    code: fields.get("C"),
    message: fields.get("M")
  }
}

/** Finds where the next ReadyForQuery ends, wherever chunks cut it. */
export const makeFinder = () => {
  const header = new Uint8Array(headerLength)
  let fill = 0
  let bodyLeft = 0
  return (chunk: Uint8Array, from: number): number | undefined => {
    let offset = from
    while (offset < chunk.length) {
      if (fill < headerLength) {
        header[fill++] = chunk[offset++]!
        if (fill < headerLength) continue
        bodyLeft = bodyLength(header, 1)
      } else {
        const step = Math.min(bodyLeft, chunk.length - offset)
        bodyLeft -= step
        offset += step
      }
      if (fill === headerLength && bodyLeft === 0) {
        fill = 0
        if (header[0] === readyForQuery) return offset
      }
    }
    return undefined
  }
}

const isLookedInto = (type: number): boolean =>
  type === readyForQuery || type === errorResponse || type === parameterStatus || type === backendKeyData

/**
 * Follows the frames of the server's messages, wherever chunks cut them, and looks into those few that tell about the
 * session. It reads a type and a length per message, so a query costs it tens of nanoseconds. `onParameter` hears of each
 * ParameterStatus once it is complete.
 *
 * https://www.postgresql.org/docs/18/protocol-message-formats.html
 */
export const makeScanner = (onParameter: (name: string, value: string) => void = () => {}): Scanner => {
  const header = new Uint8Array(headerLength)
  let headerFill = 0
  let type = 0
  let bodyLeft = 0
  let status = 0
  let isReady = false
  let error: Array<Uint8Array> = []
  let readError: PgProtocol.ErrorFields | undefined
  let key = Buffer.alloc(0)
  let report: Array<Uint8Array> = []
  const parameters = new Map<string, string>()

  const learn = (name: string, value: string): void => {
    parameters.set(name, value)
    onParameter(name, value)
  }

  const onReport = (): void => {
    const [name, value] = Buffer.concat(report).toString("utf8").split("\0")
    if (name === undefined || value === undefined) return
    learn(name, value)
  }

  const onBody = (chunk: Uint8Array, start: number, end: number): void => {
    if (type === readyForQuery) {
      status = chunk[start]!
      isReady = true
    } else if (type === errorResponse) error.push(new Uint8Array(chunk.subarray(start, end)))
    else if (type === backendKeyData) key = Buffer.concat([key, chunk.subarray(start, end)])
    else {
      report.push(chunk.slice(start, end))
      if (end - start === bodyLeft) onReport()
    }
  }

  const onHeader = (bytes: Uint8Array, offset: number): void => {
    type = bytes[offset]!
    bodyLeft = bodyLength(bytes, offset + 1)
    isReady = false
    if (type === errorResponse) {
      error = [new Uint8Array(bytes.subarray(offset, offset + headerLength))]
      readError = undefined
    } else if (type === parameterStatus) report = []
  }

  /** Past whole messages of which at most a byte is kept: rows above all, and all that there is of most answers. */
  const pass = (chunk: Uint8Array, from: number): number => {
    const length = chunk.length
    let offset = from
    let last = type
    let statusAt = -1
    while (length - offset >= headerLength) {
      const next = chunk[offset]!
      const isStatus = next === readyForQuery
      if (!isStatus && isLookedInto(next)) break
      const body = offset + headerLength
      const end = body + bodyLength(chunk, offset + 1)
      if (end > length || (isStatus && end === body)) break
      statusAt = isStatus ? body : -1
      last = next
      offset = end
    }
    if (offset > from) {
      type = last
      isReady = statusAt >= 0
      if (isReady) status = chunk[statusAt]!
    }
    return offset
  }

  const lastError = (): PgProtocol.ErrorFields | undefined => {
    if (readError !== undefined) return readError
    if (error.length === 0 || (type === errorResponse && bodyLeft > 0)) return undefined
    readError = fieldsOf(Buffer.concat(error).subarray(headerLength))
    return readError
  }

  return {
    scan: (chunk) => {
      const length = chunk.length
      let offset = 0
      while (offset < length) {
        if (bodyLeft > 0) {
          const end = Math.min(offset + bodyLeft, length)
          if (isLookedInto(type)) onBody(chunk, offset, end)
          bodyLeft -= end - offset
          offset = end
        } else if (headerFill === 0 && length - offset >= headerLength) {
          offset = pass(chunk, offset)
          if (length - offset < headerLength) continue
          onHeader(chunk, offset)
          offset += headerLength
        } else {
          header[headerFill++] = chunk[offset++]!
          if (headerFill === headerLength) {
            headerFill = 0
            onHeader(header, 0)
          }
        }
      }
    },
    transactionStatus: () => {
      if (!isReady || bodyLeft > 0 || headerFill > 0) return undefined
      const letter = String.fromCharCode(status)
      return letter === "I" || letter === "T" || letter === "E" ? letter : undefined
    },
    isIdle: () => isReady && status === idle && bodyLeft === 0 && headerFill === 0,
    lastError,
    errorBytes: () => Buffer.concat(error),
    cancelKey: () => key.length === 8 ? { pid: key.readInt32BE(0), secret: key.readInt32BE(4) } : undefined,
    fatal: () => {
      const last = lastError()
      // `severity` speaks the language of the server's `lc_messages`.
      const severity = last?.severityUnlocalized ?? last?.severity
      return severity === "FATAL" || severity === "PANIC"
        ? { sqlState: last?.code, message: last?.message ?? "the server ended the session" }
        : undefined
    },
    parameter: (name) => parameters.get(name),
    learn
  }
}
