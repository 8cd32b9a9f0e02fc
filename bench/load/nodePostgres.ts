// `pg` with named statements, which its documentation calls prepared ones.
// https://node-postgres.com/features/queries#prepared-statements
import { Pool } from "pg"
import { promiseCallers } from "./callers.ts"
import type { Contender, Setting, Work } from "./contender.ts"
import { makeIds, rows, type Suite, text } from "./workload.ts"

const query = (name: keyof typeof text, values: Array<unknown>) => ({ name, text: text[name], values })

export const open = async ({ max, url }: Setting): Promise<Contender> => {
  const pool = new Pool({ connectionString: url, max })
  const nextId = makeIds()
  const operations: Readonly<Record<Suite, (size: number) => () => Promise<unknown>>> = {
    read: () => () => pool.query(query("read", [nextId()])),
    range: (size) => {
      const nextFrom = makeIds(rows - size)
      return () => {
        const from = nextFrom()
        return pool.query(query("range", [from, from + size]))
      }
    },
    payload: (size) => () => pool.query(query("payload", [size])),
    insert: () => () => pool.query(query("insert", [nextId(), "seen"])),
    transaction: () => async () => {
      const id = nextId()
      const client = await pool.connect()
      try {
        await client.query("BEGIN")
        await client.query(query("read", [id]))
        await client.query(query("update", [id]))
        await client.query(query("insert", [id, "sold"]))
        await client.query("COMMIT")
      } catch (error) {
        await client.query("ROLLBACK")
        throw error
      } finally {
        client.release()
      }
    }
  }
  return {
    run: ({ size, suite }: Work, callers, tally) => promiseCallers(callers, operations[suite](size), tally),
    close: () => pool.end()
  }
}
