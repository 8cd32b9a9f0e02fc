/** What the contenders are asked to do, said once for all of them. */

export const rows = 100_000

/**
 * `read` is one row by its primary key, `range` some rows in a row of them, `payload` one text of some bytes, `insert` one
 * row, `transaction` a read, an update and an insert between BEGIN and COMMIT, each sent when the one before is answered.
 */
export const suites = ["read", "range", "insert", "transaction"] as const
export type Suite = typeof suites[number] | "payload"

/** How many rows a range has, and how many bytes a payload, where nothing else is said. */
export const usualSize = 100

export const schema: ReadonlyArray<string> = [
  "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, price int NOT NULL, note text)",
  `INSERT INTO item SELECT id, 'item ' || id, id % 1000, repeat('x', 20) FROM generate_series(1, ${rows}) AS id`,
  "CREATE TABLE event (id bigserial PRIMARY KEY, item int NOT NULL, what text NOT NULL)",
  "CREATE TABLE stock (id int PRIMARY KEY, amount int NOT NULL) WITH (fillfactor = 50)",
  `INSERT INTO stock SELECT id, 0 FROM generate_series(1, ${rows}) AS id`,
  "VACUUM ANALYZE",
  "CHECKPOINT"
]

/** Before each comparison: what others have inserted and updated is nobody's burden. */
export const cleanup: ReadonlyArray<string> = ["TRUNCATE event RESTART IDENTITY", "VACUUM stock"]

/** The statements, with `$1`, `$2`. A client that makes its own texts of a template makes the same of them. */
export const text = {
  read: "SELECT id, name, price, note FROM item WHERE id = $1",
  range: "SELECT id, name, price, note FROM item WHERE id >= $1 AND id < $2",
  payload: "SELECT repeat('x', $1::int) AS payload",
  insert: "INSERT INTO event (item, what) VALUES ($1, $2)",
  update: "UPDATE stock SET amount = amount + 1 WHERE id = $1"
} as const

/** The next of a row of numbers from 1 to `upTo` that looks like chance, and is the same for everybody. */
export const makeIds = (upTo: number = rows): () => number => {
  let state = 1
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return 1 + (state % upTo)
  }
}
