/** What the log is told of an invocation that has failed: the names of all that went wrong, and what its caller is told. */
import type * as Cause from "effect/Cause"
import type * as Effect from "effect/Effect"
import { digFailure, namesOf } from "./failure.ts"
import * as LambdaAnswer from "./lambdaAnswer.ts"
import * as Logbook from "./logbook.ts"

export const line = (cause: Cause.Cause<unknown>, id: string | undefined): Effect.Effect<void> => {
  const error = LambdaAnswer.subjectOf(cause)
  const { message, name, stack } = LambdaAnswer.encode(cause)
  const { code, sqlState } = digFailure(error)
  return Logbook.write("invocationFailed", {
    "faas.invocation_id": id,
    "error.type": sqlState ?? code ?? name,
    "db.response.status_code": sqlState,
    "exception.type": namesOf(error) ?? name,
    "exception.message": message,
    "exception.stacktrace": stack
  })
}
