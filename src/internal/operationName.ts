const isBlankOrBracket = (code: number): boolean => code === 0x20 || (code >= 0x09 && code <= 0x0d) || code === 0x28

const isLetter = (code: number): boolean => (code | 0x20) >= 0x61 && (code | 0x20) <= 0x7a

/** Comments of this form nest in PostgreSQL. */
const endOfComment = (sql: string, from: number): number => {
  let depth = 1
  let at = from
  while (depth > 0 && at < sql.length) {
    const isEnd = sql.startsWith("*/", at)
    const isStart = sql.startsWith("/*", at)
    depth += isStart ? 1 : isEnd ? -1 : 0
    at += isStart || isEnd ? 2 : 1
  }
  return at
}

const endOfLine = (sql: string, from: number): number => {
  const end = sql.indexOf("\n", from)
  return end < 0 ? sql.length : end
}

/** The first word of a statement in capitals, after blanks, comments and opening brackets; `undefined` if there is none. */
export const of = (sql: string): string | undefined => {
  let from = 0
  while (from < sql.length) {
    if (sql.startsWith("--", from)) from = endOfLine(sql, from)
    else if (sql.startsWith("/*", from)) from = endOfComment(sql, from + 2)
    else if (isBlankOrBracket(sql.charCodeAt(from))) from++
    else break
  }
  let to = from
  while (to < sql.length && isLetter(sql.charCodeAt(to))) to++
  return to === from ? undefined : sql.slice(from, to).toUpperCase()
}
