// The README's configuration. The calls say what they can bear: reads may be repeated, and both wait out an outage.
import * as Pg from "effect-pg-pool"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql"
import { isMultiplexed } from "../load/contender.ts"
import { type Contender, type Name, type Setting, type Trouble, troubleOf } from "./contender.ts"

const tag = (error: unknown): Trouble => {
  const typed = error as Pg.Errors.PoolError
  switch (typed._tag) {
    case "OutcomeUnknown":
      return { name: typed._tag, fate: "Unknown" }
    case "StatementTimeout":
    case "DeadlineExceeded":
      return { name: typed._tag, fate: typed.effect === "Unknown" ? "Unknown" : "NotRun" }
    case "RetriesExhausted":
      return {
        name: `${typed._tag} (${typed.stoppedBy})`,
        fate: typed.history.some(({ effect }) => effect === "Unknown") ? "Unknown" : "NotRun"
      }
    default:
      // Everything else says that the write was not made.
      return { name: typed._tag ?? troubleOf(error).name, fate: "NotRun" }
  }
}

export const open = async ({ max, url }: Setting, name: Name): Promise<Contender> => {
  const multiplex = isMultiplexed(name)
  const runtime = ManagedRuntime.make(Pg.layer({ url: Redacted.make(url), max, multiplex }))
  const sql = await runtime.runPromise(SqlClient.SqlClient)
  const patient = { waitForCircuit: true }
  const repeatable = { ...patient, idempotent: true }
  return {
    read: (id) =>
      runtime.runPromise(
        Pg.Executor.run(sql`SELECT id, name, price, note FROM item WHERE id = ${id}`, repeatable)
      ),
    write: (id) =>
      runtime.runPromise(
        Effect.asVoid(Pg.Executor.run(sql`INSERT INTO receipt (id, what) VALUES (${id}, 'seen')`, patient))
      ),
    trouble: tag,
    close: () => runtime.dispose()
  }
}
