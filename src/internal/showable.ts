/** What of a text may be shown: to whom it was not said. */
import { pattern } from "./lazy.ts"
import { ruleOfRefusal } from "./refusal.ts"

const longestText = 300

/** More than this is not even looked at. */
const longestRead = 1_000

/** The beginning of a long text, without a URL that is cut in half: its credentials could not be told from its host. */
const beginning = (text: string): string =>
  text.length <= longestRead ? text : text.slice(0, longestRead).replace(/:\/\/\S*$/, "...")

// The one in our own advice has none.
const urlWithCredentials = /([a-z][a-z0-9+.-]*:\/\/)(?!user:password@host:port\/database)\S*@/gi

// The name of a SQLSTATE is followed by a colon and the reply.
const namedSecret =
  /(?<!28P01 invalid_)(password|passwd|pwd|secret|token|api[_-]?key)(["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\S*[^\s,;&]|\S+)/gi

/** One line, no credentials, not too long. */
export const discreet = (text: string, longest: number = longestText): string => {
  const line = beginning(text.replace(/\s+/g, " "))
    .replace(urlWithCredentials, "$1***@")
    .replace(namedSecret, "$1$2***")
    .trim()
  return line.length <= longest ? line : `${line.slice(0, longest - 3)}...`
}

/** Who has worded a reply, by the source file and the routine that the server names. */
export type Author = "Server" | "Function" | "Unknown"

/**
 * PostgreSQL's own messages come from its C, its scanner and its grammar. Those of procedural languages (`pl_exec.c`,
 * `plperl.c`, not `planner.c`), and those that `postgres_fdw` and `dblink` pass on, are a function's choice under
 * whichever SQLSTATE; servers in other languages quote what they like.
 */
export const authorOf = (file: string | undefined, routine: string | undefined): Author =>
  file === undefined
    ? "Unknown"
    : /\.[cyl]$/.test(file) && !/^pl(?!an)/.test(file) && !/^(pgfdw_report|dblink_res_error)/.test(routine ?? "")
    ? "Server"
    : "Function"

/** These speak about the server, the session or the transaction; poolers say them as well, and name no file. */
const ofSession = /^(03|08|0A|25|26|28|34|3D|40|53|55|57)/

/** These speak about the names and types in a schema or a statement. */
const ofSchema = /^(21|23|2B|3B|3F|42|44|54)/

// Quotes as escapes: one character beyond Latin-1 makes Node hold all of a bundle in twice the memory.

/**
 * A literal in a text. Whatever comes from a user stands in quotes, says PostgreSQL's Error Message Style Guide
 * (https://www.postgresql.org/docs/18/error-style-guide.html), in those of the server's language; numbers do not, but those
 * in parentheses are a type's.
 */
const hasValue = (text: string): boolean =>
  /["'\u00ab\u00bb\u2039\u203a\u201e\u201c\u201d\u2018\u2019\u300c\u300d]/.test(text) ||
  /\d/.test(text.replace(/\([\d,]+\)/g, ""))

/** A name or a sign in quotes. */
const pointedAt = pattern(
  String.raw`^.([\p{L}_][\p{L}\p{N}_$.]*|[^\p{L}\p{N}\s'"$]{1,3})["\u00bb\u201c\u201d]$`,
  "u"
)

/** What a syntax error points at is a piece of the statement: names and signs are shown, literals are not. */
const withoutLiteral = (text: string): string => {
  const start = text.search(/["\u00ab\u201e\u201c]/)
  if (start === -1) return text
  return pointedAt.test(text.slice(start)) ? text : `${text.slice(0, start)}...`
}

/** A server's or a socket's text as it may be shown, if it may. */
export const textOf = (
  sqlState: string | undefined,
  message: string | undefined,
  author: Author = "Server"
): string | undefined => {
  if (message === undefined || message === "") return undefined
  if (sqlState === undefined) return discreet(message)
  if (author === "Function") return undefined
  if (ofSession.test(sqlState) || ruleOfRefusal(sqlState, message) !== undefined) return discreet(message)
  if (author === "Unknown") return undefined
  if (sqlState === "42601") return discreet(withoutLiteral(message))
  const isShown = ofSchema.test(sqlState) || (sqlState.startsWith("22") && !hasValue(message))
  return isShown ? discreet(message) : undefined
}
