/** A message of a client's. Those before the session have no type of their own, so they get a name. */
export interface FrontendMessage {
  readonly type: "startup" | "SSLRequest" | "GSSENCRequest" | "CancelRequest" | (string & {})
  /** What comes after the length. */
  readonly body: Buffer
}

/** Puts the messages of a client together again, wherever chunks cut them. */
export interface Reader {
  readonly push: (chunk: Buffer) => ReadonlyArray<FrontendMessage>
  /** What comes from now on is not readable: the client speaks TLS, or no PostgreSQL at all. */
  readonly stop: () => void
}

const lengthSize = 4

/** https://www.postgresql.org/docs/18/protocol-message-formats.html */
const codes: Readonly<Record<number, FrontendMessage["type"]>> = {
  80_877_102: "CancelRequest",
  80_877_103: "SSLRequest",
  80_877_104: "GSSENCRequest"
}

/** The longest message that PostgreSQL takes, in bytes. */
const longest = 2 ** 30

export const makeReader = (): Reader => {
  let parts: Array<Buffer> = []
  let size = 0
  let needed = lengthSize
  let isStarting = true
  let isStopped = false

  const read = (message: Buffer): FrontendMessage => {
    if (!isStarting) return { type: String.fromCharCode(message[0]!), body: message.subarray(1 + lengthSize) }
    const body = message.subarray(lengthSize)
    const type = body.length >= 4 ? codes[body.readInt32BE(0)] ?? "startup" : "startup"
    // Encryption is asked for before the startup message, which then is the next one.
    isStarting = type === "SSLRequest" || type === "GSSENCRequest"
    return { type, body }
  }

  return {
    push: (chunk) => {
      const messages: Array<FrontendMessage> = []
      if (isStopped) return messages
      parts.push(chunk)
      size += chunk.length
      while (size >= needed) {
        const bytes = parts.length === 1 ? parts[0]! : Buffer.concat(parts)
        parts = [bytes]
        const lengthAt = isStarting ? 0 : 1
        if (size < lengthAt + lengthSize) {
          needed = lengthAt + lengthSize
          continue
        }
        const length = bytes.readInt32BE(lengthAt)
        if (length < lengthSize || length > longest) {
          isStopped = true
          parts = []
          return messages
        }
        needed = lengthAt + length
        if (size < needed) continue
        messages.push(read(bytes.subarray(0, needed)))
        parts = [bytes.subarray(needed)]
        size -= needed
        needed = lengthSize
      }
      return messages
    },
    stop: () => {
      isStopped = true
      parts = []
    }
  }
}

/** Reads the fields of one message, one after the other; throws beyond its end. */
export const fieldsOf = (body: Buffer) => {
  let at = 0
  const text = (): string => {
    const end = body.indexOf(0, at)
    if (end < 0) throw new RangeError("a text without an end")
    const value = body.toString("utf8", at, end)
    at = end + 1
    return value
  }
  const int16 = (): number => body.readInt16BE((at += 2) - 2)
  const int32 = (): number => body.readInt32BE((at += 4) - 4)
  const bytes = (): Uint8Array | null => {
    const length = int32()
    if (length < 0) return null
    if (at + length > body.length) throw new RangeError("a value beyond the end")
    return body.subarray(at, at += length)
  }
  const list = <A>(read: () => A): ReadonlyArray<A> => Array.from({ length: int16() }, read)
  return {
    text,
    int16,
    int32,
    bytes,
    list,
    letter: () => String.fromCharCode(body[at++]!),
    isAtEnd: () => at >= body.length || body[at] === 0
  }
}

export type Fields = ReturnType<typeof fieldsOf>
