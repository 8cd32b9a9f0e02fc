// slonik with its default retries (three connects, five runs of a query).
import { createPool, sql } from "slonik"
import { type Contender, type Setting, troubleOf } from "./contender.ts"

export const open = async ({ max, url }: Setting): Promise<Contender> => {
  const pool = await createPool(url, { maximumPoolSize: max })
  return {
    read: (id) => pool.any(sql.unsafe`SELECT id, name, price, note FROM item WHERE id = ${id}`),
    write: (id) => pool.query(sql.unsafe`INSERT INTO receipt (id, what) VALUES (${id}, 'seen')`),
    trouble: troubleOf,
    close: () => pool.end()
  }
}
