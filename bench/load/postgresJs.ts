// postgres.js as it is by default: it prepares statements by itself, and pipelines them.
// https://github.com/porsager/postgres#connection-details
import postgres from "postgres"
import { promiseCallers } from "./callers.ts"
import type { Contender, Setting, Work } from "./contender.ts"
import { makeIds, rows, type Suite } from "./workload.ts"

export const open = async ({ max, url }: Setting): Promise<Contender> => {
  const sql = postgres(url, { max })
  const nextId = makeIds()
  const operations: Readonly<Record<Suite, (size: number) => () => Promise<unknown>>> = {
    read: () => () => sql`SELECT id, name, price, note FROM item WHERE id = ${nextId()}`,
    range: (size) => {
      const nextFrom = makeIds(rows - size)
      return () => {
        const from = nextFrom()
        return sql`SELECT id, name, price, note FROM item WHERE id >= ${from} AND id < ${from + size}`
      }
    },
    payload: (size) => () => sql`SELECT repeat('x', ${size}::int) AS payload`,
    insert: () => () => sql`INSERT INTO event (item, what) VALUES (${nextId()}, ${"seen"})`,
    transaction: () => () => {
      const id = nextId()
      return sql.begin(async (sql) => {
        await sql`SELECT id, name, price, note FROM item WHERE id = ${id}`
        await sql`UPDATE stock SET amount = amount + 1 WHERE id = ${id}`
        await sql`INSERT INTO event (item, what) VALUES (${id}, ${"sold"})`
      })
    }
  }
  return {
    run: ({ size, suite }: Work, callers, tally) => promiseCallers(callers, operations[suite](size), tally),
    close: () => sql.end({ timeout: 1 })
  }
}
