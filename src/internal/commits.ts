/** What may stand before a statement's first word. Written so that it cannot backtrack. */
const lead = String.raw`^(?:\s|--[^\n]*\n|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)*`

const byHand = new RegExp(String.raw`${lead}(?:commit|end|prepare\s+transaction)\b`, "i")

const rollback = new RegExp(`${lead}(?:rollback|abort)\\b`, "i")

const toSavepoint = new RegExp(`${lead}rollback(?:\\s+(?:work|transaction))?\\s+to\\b`, "i")

const onItsWay = new RegExp(
  `${lead}(?:call|do|vacuum|analyze|cluster|reindex)\\b|\\bconcurrently\\b`,
  "i"
)

/** Most statements begin with a word that ends nothing, which is seen at a glance. */
const mayBegin = (sql: string, letters: string): boolean => {
  const first = sql.charCodeAt(0) | 0x20
  return first < 0x61 || first > 0x7a || letters.includes(String.fromCharCode(first))
}

/** Whether the statement makes permanent what the open transaction has done. */
export const isByHand = (sql: string): boolean => mayBegin(sql, "cep") && byHand.test(sql)

export const isRollback = (sql: string): boolean => mayBegin(sql, "ra") && rollback.test(sql)

/** Whether the statement ends the transaction, and does not only go back to a savepoint. */
export const endsInRollback = (sql: string): boolean => isRollback(sql) && !toSavepoint.test(sql)

/**
 * Whether the statement may commit on its way, so that its ERROR does not undo what it had done by then: procedures and
 * DO blocks may, utilities that work in several transactions do. PostgreSQL: "Transaction Management" in PL/pgSQL, and
 * the notes on CONCURRENTLY, VACUUM, CLUSTER and REINDEX.
 */
export const isOnItsWay = (sql: string): boolean => onItsWay.test(sql)
