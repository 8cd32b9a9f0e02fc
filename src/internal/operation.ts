/**
 * What a statement is, by its first word: few names, whatever the program sends. Read for every statement, so it is done
 * without a regular expression and without a look-up.
 */

export const operations = [
  "SELECT",
  "INSERT",
  "UPDATE",
  "DELETE",
  "MERGE",
  "WITH",
  "BEGIN",
  "COMMIT",
  "ROLLBACK",
  "OTHER"
] as const

export type Operation = typeof operations[number]

const other = operations.length - 1

/** The place in {@link operations}. */
export const indexOf = (sql: string): number => {
  const at = startOf(sql)
  switch (lowerAt(sql, at)) {
    case 0x73:
      return spells(sql, at, "select") ? 0 : other
    case 0x69:
      return spells(sql, at, "insert") ? 1 : other
    case 0x75:
      return spells(sql, at, "update") ? 2 : other
    case 0x64:
      return spells(sql, at, "delete") ? 3 : other
    case 0x6d:
      return spells(sql, at, "merge") ? 4 : other
    case 0x77:
      return spells(sql, at, "with") ? 5 : other
    case 0x62:
      return spells(sql, at, "begin") ? 6 : other
    case 0x63:
      return spells(sql, at, "commit") ? 7 : other
    case 0x72:
      return spells(sql, at, "rollback") ? 8 : other
    default:
      return other
  }
}

/** The first word of a statement, as far as it is one of {@link operations}. */
export const of = (sql: string): Operation => operations[indexOf(sql)]!

/** The first word of a statement in capitals, whatever it is; `undefined` where there is none. For the few that are traced. */
export const wordOf = (sql: string): string | undefined => {
  const from = startOf(sql)
  let to = from
  while (isLetter(lowerAt(sql, to))) to++
  return to === from ? undefined : sql.slice(from, to).toUpperCase()
}

/** The bit that tells small ASCII letters from capital ones. */
const lowerAt = (sql: string, at: number): number => sql.charCodeAt(at) | 0x20

const spells = (sql: string, at: number, word: string): boolean => {
  for (let index = 1; index < word.length; index++) {
    if (lowerAt(sql, at + index) !== word.charCodeAt(index)) return false
  }
  return !isInWord(sql.charCodeAt(at + word.length))
}

const isLetter = (code: number): boolean => code >= 0x61 && code <= 0x7a

const isInWord = (code: number): boolean =>
  (code >= 0x61 && code <= 0x7a) || (code >= 0x41 && code <= 0x5a) || (code >= 0x30 && code <= 0x39) ||
  code === 0x5f || code === 0x24 || code > 0x7f

const isBlank = (code: number): boolean => code === 0x20 || (code >= 0x09 && code <= 0x0d)

/** Where the first word begins: after blanks, comments and opening brackets. */
const startOf = (sql: string): number => {
  let at = 0
  for (;;) {
    const code = sql.charCodeAt(at)
    if (code > 0x2f) return at
    if (isBlank(code) || code === 0x28) at++
    else if (code === 0x2d && sql.charCodeAt(at + 1) === 0x2d) at = endOfLine(sql, at + 2)
    else if (code === 0x2f && sql.charCodeAt(at + 1) === 0x2a) at = endOfComment(sql, at + 2)
    else return at
  }
}

const endOfLine = (sql: string, from: number): number => {
  const end = sql.indexOf("\n", from)
  return end < 0 ? sql.length : end
}

/** Comments of this form nest in PostgreSQL. */
const endOfComment = (sql: string, from: number): number => {
  let depth = 1
  let at = from
  while (depth > 0 && at < sql.length) {
    const pair = sql.slice(at, at + 2)
    if (pair === "*/") depth--
    else if (pair === "/*") depth++
    at += pair === "*/" || pair === "/*" ? 2 : 1
  }
  return at
}
