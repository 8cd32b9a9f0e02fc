/** One word for what a caller got: the name of the error, and the SQLSTATE or the socket's code that is in it. */

const sqlState = /^[0-9A-Z]{5}$/

const codesOf = (error: unknown, depth = 0): ReadonlyArray<string> => {
  if (typeof error !== "object" || error === null || depth > 8) return []
  const { cause, code, lastConnectFailure, lastFailure, last, reason, sqlState: state } = error as Record<
    string,
    unknown
  >
  const own = [state, code].filter((each): each is string => typeof each === "string" && each !== "")
  return [...own, ...[reason, cause, lastConnectFailure, lastFailure, last].flatMap((each) => codesOf(each, depth + 1))]
}

const tagOf = (error: unknown): string => {
  if (typeof error !== "object" || error === null) return String(error)
  const { _tag, cause, message, name, reason } = error as Record<string, unknown>
  // A drop-in client's errors are SqlError; what happened is inside.
  if (_tag === "SqlError") return tagOf(reason)
  if (typeof cause === "object" && cause !== null && "_tag" in cause && "isRetryable" in cause) return tagOf(cause)
  if (typeof _tag === "string") return _tag
  if (typeof message === "string" && (name === "Error" || name === "error")) return message.slice(0, 60)
  return String(name)
}

export const failureOf = (error: unknown): string => {
  const codes = codesOf(error)
  const code = codes.find((each) => sqlState.test(each)) ?? codes[0]
  const tag = tagOf(error)
  return code === undefined ? tag : `${code} ${tag}`
}

/** Whether the server was full, however it was told. */
export const isFull = (failure: string): boolean => failure.startsWith("53300")
