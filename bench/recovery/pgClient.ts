// The driver's own pool.
import * as PgClient from "@effect/sql-pg/PgClient"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql"
import { type Contender, type Setting, troubleOf } from "./contender.ts"

export const open = async ({ max, url }: Setting): Promise<Contender> => {
  const runtime = ManagedRuntime.make(PgClient.layer({ url: Redacted.make(url), maxConnections: max }))
  const sql = await runtime.runPromise(SqlClient.SqlClient)
  return {
    read: (id) => runtime.runPromise(sql`SELECT id, name, price, note FROM item WHERE id = ${id}`),
    write: (id) => runtime.runPromise(sql`INSERT INTO receipt (id, what) VALUES (${id}, 'seen')`),
    trouble: troubleOf,
    close: () => runtime.dispose()
  }
}
