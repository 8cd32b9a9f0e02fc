// `pg` with named statements, which its documentation calls prepared ones.
// https://node-postgres.com/features/queries#prepared-statements
import { Pool } from "pg"
import { promiseCallers } from "./callers.ts"
import type { Contender, Setting } from "./contender.ts"
import { makeIds, rangeOf, type Suite, text } from "./workload.ts"

export const open = async ({ max, url }: Setting): Promise<Contender> => {
  const pool = new Pool({ connectionString: url, max })
  const nextId = makeIds(1)
  const query = (name: keyof typeof text, values: ReadonlyArray<unknown>) => ({
    name,
    text: text[name],
    values: [...values]
  })
  const operations: Readonly<Record<Suite, () => Promise<unknown>>> = {
    read: () => pool.query(query("read", [nextId()])),
    range: () => {
      const from = nextId()
      return pool.query(query("range", [from, from + rangeOf]))
    },
    insert: () => pool.query(query("insert", [nextId(), "seen"])),
    transaction: async () => {
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
    run: (suite, callers, tally) => promiseCallers(callers, operations[suite], tally),
    close: () => pool.end()
  }
}
