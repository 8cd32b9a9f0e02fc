/** What the log is told of an invocation that has failed: the names of all that went wrong, and what its caller is told. */
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { digFailure, namesOf } from "./failure.ts"
import * as LambdaAnswer from "./lambdaAnswer.ts"
import * as Logbook from "./logbook.ts"
import * as LogLimit from "./logLimit.ts"

export const line = (cause: Cause.Cause<unknown>, id: string | undefined): Effect.Effect<void> => {
  const error = LambdaAnswer.subjectOf(cause)
  const { message, name, stack } = LambdaAnswer.encode(cause)
  const { code, sqlState } = digFailure(error)
  return Logbook.write("invocationFailed", {
    "faas.invocation_id": id,
    "error.type": sqlState ?? code ?? name,
    "db.response.status_code": sqlState,
    "exception.type": namesOf(error),
    "exception.message": message,
    "exception.stacktrace": stack
  })
}

/** The same for a server, which may fail many requests at once: an outage is told of in tens of lines for each kind of failure. */
export const limited = (): (cause: Cause.Cause<unknown>) => Effect.Effect<void> => {
  const limits = new Map<string, LogLimit.Limit>()
  const limitOf = (kind: string): LogLimit.Limit => {
    const limit = limits.get(kind) ?? LogLimit.make()
    limits.set(kind, limit)
    return limit
  }
  return (cause) =>
    Effect.flatMap(Clock.currentTimeMillis, (at) => {
      const suppressed = LogLimit.admit(limitOf(namesOf(LambdaAnswer.subjectOf(cause))), at)
      if (suppressed === undefined) return Effect.void
      const written = line(cause, undefined)
      return suppressed === 0 ? written : Effect.annotateLogs(written, { suppressed })
    })
}
