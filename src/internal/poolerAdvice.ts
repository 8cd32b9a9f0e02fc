/** What helps whoever talks to a transaction pooler as if it were the server: what such poolers say is a riddle else. */
import type { Failure } from "./verdict.ts"

const settings =
  `A transaction pooler takes no session settings: set pooler: "transaction", and leave out startupParameters ` +
  `and startupOptions.`

const names =
  `The statement was prepared on another server session, as happens behind a transaction pooler: set pooler: ` +
  `"transaction", and leave out prepare: true unless the pooler keeps track of prepared statements.`

const texts: ReadonlyArray<readonly [sqlStates: RegExp, text: RegExp, advice: string]> = [
  [/^(08P01|XX000)$/, /unsupported (options )?startup parameter/i, settings],
  // The driver's own names alone: what a caller prepares by hand is the caller's.
  [/^(26000|42P05)$/, /^prepared statement "effect_\w+" /, names]
]

/** What was said, and what to do about it where there is something; once. */
export const withAdvice = (said: string, { message, sqlState }: Failure): string => {
  if (sqlState === undefined || message === undefined) return said
  const advice = texts.find(([sqlStates, text]) => sqlStates.test(sqlState) && text.test(message))?.[2]
  return advice === undefined || said.includes(advice) ? said : `${said}: ${message}. ${advice}`
}

/** Whether it is the pooler that has not let the user in: it says so through a code that the driver does not know. */
export const isBadLogin = ({ message, sqlState }: Failure): boolean =>
  sqlState !== undefined && /^(08P01|XX000)$/.test(sqlState) && message !== undefined
  && /^((password|SASL|certificate) authentication failed|no such user|login rejected|(\(\w+\) )?user not found)/i
    .test(message)
