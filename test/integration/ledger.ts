import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { isSqlError, type SqlError } from "effect/sql/SqlError"
import * as Pg from "../../src/index.ts"
import { eventually, makeWitness, type Witness } from "./witness.ts"

/** What became of a write, as its caller was told. */
export type Told = "acknowledged" | "failed" | "unknown"

/** A write, and the story of it for whoever has to find out what went wrong. */
interface Entry {
  readonly id: string
  readonly told: Told
  readonly mayBeUnknown: boolean
  readonly story: string
}

/**
 * A table that takes the same id twice, so that a doubled write shows, and tills that count what was written to each,
 * so that half of a transaction shows. It keeps what the callers were told, and compares.
 */
export interface Ledger {
  readonly witness: Witness
  readonly tills: number
  /** Runs a write that puts in `id`, and notes what its caller was told of it. */
  readonly note: <A, E>(
    id: string,
    work: Effect.Effect<A, E, SqlClient | Pg.Executor.Executor>,
    options: { readonly mayBeUnknown: boolean; readonly story: string | (() => string) }
  ) => Effect.Effect<Told, never, SqlClient | Pg.Executor.Executor>
  readonly told: (which: Told) => number
  /** How often it is there now. */
  readonly times: (id: string) => Effect.Effect<number, SqlError>
  /** Everything that is not as its callers were told, once nobody but the witness is connected. */
  readonly contradictions: Effect.Effect<ReadonlyArray<string>, SqlError>
}

/** Puts in the id, with no regard to the tills. */
export const putIn = (id: string) => Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO ledger (id) VALUES (${id})`)

/** Puts in the id and counts it in a till: both or neither. */
export const putInAndCount = (id: string, till: number) =>
  Effect.flatMap(SqlClient, (sql) =>
    Effect.andThen(
      sql`INSERT INTO ledger (id, till) VALUES (${id}, ${till})`,
      sql`UPDATE till SET count = count + 1 WHERE id = ${till}`
    ))

const knows = (error: unknown): "failed" | "unknown" => {
  const typed = isSqlError(error) ? Pg.Errors.fromSqlError(error) : error
  if (!Pg.Errors.isPoolError(typed)) return "failed"
  if (typed._tag === "OutcomeUnknown") return "unknown"
  if ("effect" in typed && typed.effect === "Unknown") return "unknown"
  return typed._tag === "RetriesExhausted" ? knows(typed.last) : "failed"
}

const toldBy = (exit: Exit.Exit<unknown, unknown>): readonly [Told, why: string] => {
  if (Exit.isSuccess(exit)) return ["acknowledged", ""]
  const error = Cause.findErrorOption(exit.cause)
  // A defect makes no promise, and is a contradiction by itself.
  return error._tag === "None"
    ? ["failed", `DEFECT ${Cause.pretty(exit.cause)}`]
    : [knows(error.value), `${error.value}`]
}

export const makeLedger = Effect.fnUntraced(function*(
  url: Redacted.Redacted
): Effect.fn.Return<Ledger, SqlError, Scope.Scope> {
  const tills = 4
  const witness = yield* makeWitness(url)
  yield* witness.query("CREATE TABLE ledger (id text NOT NULL, till int)")
  yield* witness.query("CREATE TABLE till (id int PRIMARY KEY, count int NOT NULL)")
  yield* witness.query(`INSERT INTO till SELECT id, 0 FROM generate_series(0, ${tills - 1}) AS id`)
  const entries: Array<Entry> = []

  const contradiction = ({ id, mayBeUnknown, story, told }: Entry, times: number): string | undefined => {
    const wrong = story.includes("DEFECT")
      ? "ended with a defect"
      : told === "acknowledged" && times !== 1
      ? `was acknowledged, and is there ${times} times`
      : told === "failed" && times !== 0
      ? `failed, and is there ${times} times`
      : told === "unknown" && times > 1
      ? `is unknown, and is there ${times} times`
      : told === "unknown" && !mayBeUnknown
      ? "is unknown, which it must not be"
      : undefined
    return wrong === undefined ? undefined : `${id} ${wrong}: ${story}`
  }

  return {
    witness,
    tills,
    note: (id, work, { mayBeUnknown, story }) =>
      Effect.map(Effect.exit(work), (exit) => {
        const [told, why] = toldBy(exit)
        entries.push({ id, told, mayBeUnknown, story: `${typeof story === "string" ? story : story()} ${why}` })
        return told
      }),
    told: (which) => entries.filter(({ told }) => told === which).length,
    times: (id) => witness.value<number>("SELECT count(*)::int FROM ledger WHERE id = $1", [id]),
    contradictions: Effect.gen(function*() {
      yield* eventually("nobody else is connected", Effect.map(witness.count, (count) => count === 0))
      const rows = yield* witness.query<{ id: string; count: number }>(
        "SELECT id, count(*)::int AS count FROM ledger GROUP BY id"
      )
      const times = new Map(rows.map(({ count, id }) => [id, count]))
      const halves = yield* witness.query<{ id: number; count: number; entries: number }>(
        `SELECT id, count, (SELECT count(*)::int FROM ledger WHERE till = till.id) AS entries FROM till ORDER BY id`
      )
      const known = new Set(entries.map(({ id }) => id))
      return [
        ...entries.flatMap((entry) => contradiction(entry, times.get(entry.id) ?? 0) ?? []),
        ...halves.flatMap(({ count, entries, id }) =>
          count === entries ? [] : [`till ${id} has counted ${count}, and ${entries} are there`]
        ),
        ...rows.flatMap(({ id }) => known.has(id) ? [] : [`${id} is there, and nobody knows of it`])
      ]
    })
  }
})
