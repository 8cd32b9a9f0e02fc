// postgres.js as it is by default: it connects again by itself.
import postgres from "postgres"
import { type Contender, type Setting, troubleOf } from "./contender.ts"

export const open = async ({ max, url }: Setting): Promise<Contender> => {
  const sql = postgres(url, { max })
  return {
    read: (id) => sql`SELECT id, name, price, note FROM item WHERE id = ${id}`,
    write: (id) => sql`INSERT INTO receipt (id, what) VALUES (${id}, 'seen')`,
    trouble: troubleOf,
    close: () => sql.end({ timeout: 1 })
  }
}
