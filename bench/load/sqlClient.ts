/** What both clients for Effect are asked to do: the same program, with another layer. */
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { SqlClient } from "effect/sql"
import { effectCallers } from "./callers.ts"
import type { Contender, Work } from "./contender.ts"
import { makeIds, rows, type Suite } from "./workload.ts"

export const contend = async <E>(layer: Layer.Layer<SqlClient.SqlClient, E>): Promise<Contender> => {
  const runtime = ManagedRuntime.make(layer)
  const sql = await runtime.runPromise(SqlClient.SqlClient)
  const nextId = makeIds()
  const operations: Readonly<Record<Suite, (size: number) => () => Effect.Effect<unknown, unknown>>> = {
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
      return sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT id, name, price, note FROM item WHERE id = ${id}`
        yield* sql`UPDATE stock SET amount = amount + 1 WHERE id = ${id}`
        yield* sql`INSERT INTO event (item, what) VALUES (${id}, ${"sold"})`
      }))
    }
  }
  return {
    run: ({ size, suite }: Work, callers, tally) =>
      runtime.runPromise(effectCallers(callers, operations[suite](size), tally)),
    close: () => runtime.dispose()
  }
}
