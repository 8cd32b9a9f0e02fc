/** Compares what the clients were told with what is in the database, read over a plain connection and not by the pool. */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Ledger from "./ledger.ts"
import { count, heading, line, type Span, type Terminal } from "./terminal.ts"

export interface Ledgers {
  readonly payments: Ledger.Ledger
  readonly orders: Ledger.Ledger
}

/** One kind of write: how often each word was given, and what the database has to say to it. */
interface Findings {
  acknowledged: number
  acknowledgedOnce: number
  lost: number
  failed: number
  failedButPresent: number
  unknown: number
  unknownApplied: number
  twice: number
  strangers: number
}

/** Prints the table, and returns what does not hold: nothing, if all is well. */
export const check = Effect.fnUntraced(function*(
  connection: PgConnection.PgConnection,
  ledgers: Ledgers,
  firstOrder: number
) {
  const read = <Row>(sql: string, parameters: ReadonlyArray<unknown> = []) =>
    Effect.map(connection.query(sql, parameters), ({ rows }) => rows as unknown as ReadonlyArray<Row>)
  const one = (sql: string) => Effect.map(read<{ n: number }>(sql), ([row]) => row?.n ?? -1)

  const present = (table: string, from: number) =>
    Effect.map(
      read<{ id: number; times: number }>(
        `SELECT id, count(*)::int AS times FROM ${table} WHERE id >= $1 GROUP BY id`,
        [from]
      ),
      (rows) => new Map(rows.map(({ id, times }) => [id, times]))
    )

  const payments = compare(ledgers.payments, yield* present("payments", 1))
  const orders = compare(ledgers.orders, yield* present("orders", firstOrder))
  const problems: Array<string> = []

  yield* heading("Proof, read from the database over a plain connection, not through the pool")
  yield* line(["dim", `  ${"".padEnd(44)}${"payments".padStart(10)}${"orders".padStart(10)}`])

  const row = (label: string, of: (findings: Findings) => number, mustBeZero: boolean) => {
    const values = [of(payments), of(orders)]
    const holds = values.every((value) => value === 0)
    if (mustBeZero && !holds) problems.push(`${label.trim()}: ${values.join(" payments and ")} orders`)
    const verdict: ReadonlyArray<Span> = mustBeZero ? [holds ? ["green", "  ✔"] : ["red", "  ✘"]] : []
    return line(`  ${label.padEnd(44)}${values.map((value) => count(value).padStart(10)).join("")}`, ...verdict)
  }
  yield* row("acknowledged", (found) => found.acknowledged, false)
  yield* row("  in the database exactly once", (found) => found.acknowledgedOnce, false)
  yield* row("  acknowledged, but lost", (found) => found.lost, true)
  yield* row("failed, and said so: nothing was done", (found) => found.failed, false)
  yield* row("  in the database all the same", (found) => found.failedButPresent, true)
  yield* row("unknown, and said so: the answer was lost", (found) => found.unknown, false)
  yield* row("  turned out to be done", (found) => found.unknownApplied, false)
  yield* row("  turned out not to be done", (found) => found.unknown - found.unknownApplied, false)
  yield* row("applied twice", (found) => found.twice, true)
  yield* row("in the database, but never sent", (found) => found.strangers, true)
  yield* line()

  const invariant = (text: string, violations: number) => {
    const holds = violations === 0
    if (!holds) problems.push(`it does not hold that ${text} (${count(violations)} exceptions)`)
    return line(holds ? ["green", "  ✔ "] : ["red", "  ✘ "], text)
  }
  const sold = `SELECT product_id, sum(quantity) AS units FROM order_items WHERE order_id >= ${firstOrder} GROUP BY 1`
  yield* invariant(
    `stock left + units sold = initial stock, for each of ${
      count(yield* one("SELECT count(*)::int AS n FROM products"))
    } products`,
    yield* one(`SELECT count(*)::int AS n FROM products LEFT JOIN (${sold}) AS sold ON product_id = id
                WHERE stock + coalesce(units, 0) <> initial_stock`)
  )
  yield* invariant(
    `the total of each of ${count(yield* one("SELECT count(*)::int AS n FROM orders"))} orders is the sum of its items`,
    yield* one(`SELECT count(*)::int AS n FROM orders
                FULL JOIN (SELECT order_id, sum(quantity * price) AS total FROM order_items GROUP BY 1) AS items
                  ON order_id = id
                WHERE orders.total IS DISTINCT FROM items.total`)
  )
  if (payments.acknowledged === 0 || orders.acknowledged === 0) {
    problems.push("nothing was acknowledged, so nothing is proved")
  }
  return { problems, acknowledged: payments.acknowledged + orders.acknowledged } as const
}) satisfies (...args: never) => Effect.Effect<unknown, unknown, Terminal>

const compare = (ledger: Ledger.Ledger, present: ReadonlyMap<number, number>): Findings => {
  const found: Findings = {
    acknowledged: 0,
    acknowledgedOnce: 0,
    lost: 0,
    failed: 0,
    failedButPresent: 0,
    unknown: 0,
    unknownApplied: 0,
    twice: 0,
    strangers: 0
  }
  for (const [id, word] of ledger.words) {
    const times = present.get(id) ?? 0
    found[word]++
    if (times > 1) found.twice++
    if (word === "acknowledged" && times === 1) found.acknowledgedOnce++
    if (word === "acknowledged" && times === 0) found.lost++
    if (word === "failed" && times > 0) found.failedButPresent++
    if (word === "unknown" && times > 0) found.unknownApplied++
  }
  for (const id of present.keys()) if (!ledger.words.has(id)) found.strangers++
  return found
}
