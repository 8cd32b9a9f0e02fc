// `pg` with named statements, and the listener without which an idle session that ends takes the process with it.
// https://node-postgres.com/apis/pool#error
import { Pool } from "pg"
import { type Contender, type Setting, text, troubleOf } from "./contender.ts"

export const open = async ({ max, url }: Setting): Promise<Contender> => {
  const pool = new Pool({ connectionString: url, max })
  pool.on("error", () => {})
  return {
    read: (id) => pool.query({ name: "read", text: text.read, values: [id] }),
    write: (id) => pool.query({ name: "write", text: text.write, values: [id] }),
    trouble: troubleOf,
    close: () => pool.end()
  }
}
