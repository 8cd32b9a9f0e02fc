/** What both clients for Effect are asked to do: the same program, with another layer. */
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { SqlClient } from "effect/sql"
import { effectCallers } from "./callers.ts"
import type { Contender } from "./contender.ts"
import { makeIds, rangeOf, type Suite } from "./workload.ts"

export const contend = async <E>(layer: Layer.Layer<SqlClient.SqlClient, E>): Promise<Contender> => {
  const runtime = ManagedRuntime.make(layer)
  const sql = await runtime.runPromise(SqlClient.SqlClient)
  const nextId = makeIds(1)
  const operations: Readonly<Record<Suite, () => Effect.Effect<unknown, unknown>>> = {
    read: () => sql`SELECT id, name, price, note FROM item WHERE id = ${nextId()}`,
    range: () => {
      const from = nextId()
      return sql`SELECT id, name, price, note FROM item WHERE id >= ${from} AND id < ${from + rangeOf}`
    },
    insert: () => sql`INSERT INTO event (item, what) VALUES (${nextId()}, ${"seen"})`,
    transaction: () => {
      const id = nextId()
      return sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT id, name, price, note FROM item WHERE id = ${id}`
        yield* sql`UPDATE stock SET amount = amount + 1 WHERE id = ${id}`
        yield* sql`INSERT INTO event (item, what) VALUES (${id}, ${"sold"})`
      }))
    }
  }
  return {
    run: (suite, callers, tally) => runtime.runPromise(effectCallers(callers, operations[suite], tally)),
    close: () => runtime.dispose()
  }
}
