/**
 * Finds the line of the tables that a failure belongs to. The few codes that mean different things at different times
 * are told apart here.
 */
import { ruleOfRefusal } from "./refusal.ts"
import { ruleOfCode, ruleOfText, unheard } from "./socketCode.ts"
import { lost, refused, rejected, ruleOfSqlState, soiled } from "./sqlState.ts"
import type { Failure, Phase, Rule } from "./verdict.ts"

/** PostgreSQL's own complaints about a message that it could read to its end (`src/backend/tcop/postgres.c`, `pqformat.c`). */
const aboutMessage = /^bind message|message (format|type|subtype)|in message$/i

/**
 * 08P01: PostgreSQL's own is an ERROR about one message, or the end of a session whose messages it could not follow. At
 * the door it is a pooler's, and then most are passing; in flight, a pooler may have cut a running statement.
 */
const protocolViolation = ({ message, severity }: Failure, phase: Phase): Rule => {
  switch (phase) {
    case "Connect":
      return refused
    case "BeforeWrite":
      return lost
    default:
      return severity === "ERROR" && message !== undefined && aboutMessage.test(message)
        ? rejected
        : { ...lost, retry: "Never" }
  }
}

/**
 * What a server behind our server did not answer: `postgres_fdw` (`connection.c`) and `dblink` say so with an ERROR, and
 * the session that said it is sound. Neither its socket nor its database failed.
 */
const ofForeignServer = /^could not (connect to server "|establish connection)/

const ruleOfReply = (sqlState: string, failure: Failure, phase: Phase): Rule => {
  const { message } = failure
  const refusal = ruleOfRefusal(sqlState, message)
  if (refusal !== undefined) return refusal
  switch (sqlState) {
    case "08001":
      return failure.severity === "ERROR" && message !== undefined && ofForeignServer.test(message)
        ? rejected
        : ruleOfSqlState(sqlState)
    case "08P01":
      return protocolViolation(failure, phase)
    case "0A000":
      return message !== undefined && /cached plan/i.test(message) ? soiled : rejected
    case "25P02":
      return phase === "Transaction" || phase === "Commit" ? rejected : soiled
    case "57P01":
      return phase === "Connect" ? lost : ruleOfSqlState(sqlState)
    default:
      return ruleOfSqlState(sqlState)
  }
}

/**
 * The rule for any failure. A failure to connect that is in no table is a failure to connect all the same; anything
 * else that is unheard of is not repeated.
 */
export const ruleOfFailure = (failure: Failure, phase: Phase): Rule => {
  if (failure.sqlState !== undefined) {
    const rule = ruleOfReply(failure.sqlState, failure, phase)
    // There is no session yet that could have gone stale.
    return phase === "Connect" && rule.kind === "StaleConnection" ? refused : rule
  }
  return (failure.code === undefined ? undefined : ruleOfCode(failure.code)) ??
    (failure.message === undefined ? undefined : ruleOfText(failure.message)) ??
    (phase === "Connect" ? lost : unheard)
}
