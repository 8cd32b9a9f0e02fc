/** What the callers were told about each operation, and whether the database agrees. */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Pg from "effect-pg-pool"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import { isSqlError } from "effect/sql/SqlError"

/** An answer that belongs to another question. */
export class WrongAnswer extends Schema.TaggedError<WrongAnswer>("soak/WrongAnswer")("WrongAnswer", {
  expected: Schema.String,
  got: Schema.String
}) {}

/** What the caller gave up on purpose, so that nothing of it may be left. */
export class Abandoned extends Schema.TaggedError<Abandoned>("soak/Abandoned")("Abandoned", {}) {}

/**
 * - `acknowledged`: it succeeded.
 * - `failed`: the error says that nothing of it is in the database.
 * - `unknown`: the error says that it cannot be known, or the caller left before there was an answer.
 */
export type Fate = "acknowledged" | "failed" | "unknown"

/** What an operation leaves in the database when it is done: a row, two rows or none, a row under a unique key, nothing. */
export type Trace = "row" | "pair" | "key" | "none"

export interface Entry {
  readonly id: number
  readonly pool: string
  readonly operation: string
  readonly trace: Trace
  /** How it was made harder: a deadline, an interruption. */
  readonly terms: string
  /** Milliseconds since the beginning. */
  readonly from: number
  until: number | undefined
  fate: Fate
  why: string
}

export interface Findings {
  readonly acknowledged: number
  /** What does not hold, by its name: each with the stories of those it does not hold for. */
  readonly wrong: Record<Wrong, Array<string>>
  /** Rows that were found. */
  readonly rows: number
}

export const wrongs = {
  lost: "acknowledged, and not in the database",
  doubled: "applied twice",
  ghost: "said to have left no trace, and there all the same",
  torn: "half of a transaction",
  stranger: "in the database, and nobody has sent it",
  mixed: "an answer to somebody else's question",
  defect: "ended with a defect",
  stranded: "did not come to an end",
  above: "more sessions than the pool may have",
  leaked: "leases, sockets or sessions that are left",
  stuck: "nothing succeeded although nothing was wrong",
  missed: "a notification that never came",
  slow: "a pool took too long to close"
} as const

export type Wrong = keyof typeof wrongs

export interface Ledger {
  readonly entries: Map<number, Entry>
  readonly errors: Map<string, number>
  readonly problems: Array<readonly [Wrong, string]>
  readonly open: (operation: Pick<Entry, "pool" | "operation" | "trace" | "terms">) => Entry
  readonly settle: (entry: Entry, exit: Exit.Exit<unknown, unknown>) => void
  /** Operations that have not come to an end. */
  readonly pending: () => ReadonlyArray<Entry>
  readonly story: (entry: Entry) => string
}

const typedOf = (error: unknown): Pg.Errors.PoolError | undefined =>
  Pg.Errors.isPoolError(error) ? error : isSqlError(error) ? Pg.Errors.fromSqlError(error) : undefined

const isUnknown = (error: unknown): boolean => {
  const typed = typedOf(error)
  if (typed === undefined) return Pg.Errors.historyOf(error).some(({ effect }) => effect === "Unknown")
  if (typed._tag === "OutcomeUnknown" || ("effect" in typed && typed.effect === "Unknown")) return true
  if (Pg.Errors.historyOf(typed).some(({ effect }) => effect === "Unknown")) return true
  return typed._tag === "RetriesExhausted" && isUnknown(typed.last)
}

const nameOf = (error: unknown): string => {
  if (error instanceof Abandoned) return "given up on purpose"
  const typed = typedOf(error)
  if (typed?._tag === "RetriesExhausted") return `RetriesExhausted (${typed.stoppedBy}) ${nameOf(typed.last)}`
  if (typed?._tag === "AcquireTimeout") return `AcquireTimeout (${typed.phase})`
  if (typed !== undefined) return typed._tag
  const { code, message, sqlState } = Pg.Errors.failureOf(error)
  return `SqlError ${sqlState ?? code ?? message?.slice(0, 60) ?? "without a word"}`
}

export const make = (now: () => number): Ledger => {
  const entries = new Map<number, Entry>()
  const errors = new Map<string, number>()
  const problems: Array<readonly [Wrong, string]> = []
  const running = new Map<number, Entry>()

  const story = ({ fate, from, id, operation, pool, terms, until, why }: Entry): string =>
    `#${id} ${operation} on ${pool}${terms}: from ${from.toFixed(0)} ms `
    + (until === undefined
      ? "and still under way"
      : `to ${until.toFixed(0)} ms, ${fate}${why === "" ? "" : `, ${why}`}`)

  const settle = (entry: Entry, exit: Exit.Exit<unknown, unknown>): void => {
    entry.until = now()
    running.delete(entry.id)
    if (Exit.isSuccess(exit)) {
      entry.fate = "acknowledged"
      return
    }
    const { cause } = exit
    const error = Cause.findErrorOption(cause)
    if (Cause.hasDies(cause)) {
      entry.why = `DEFECT ${Cause.pretty(cause)}`
      problems.push(["defect", story(entry)])
    } else if (error._tag === "Some") {
      entry.fate = isUnknown(error.value) ? "unknown" : "failed"
      entry.why = `${nameOf(error.value)}: ${error.value}`
      if (error.value instanceof WrongAnswer) {
        entry.fate = "unknown"
        entry.why = `expected ${error.value.expected}, got ${error.value.got}`
        problems.push(["mixed", story(entry)])
      }
      errors.set(nameOf(error.value), (errors.get(nameOf(error.value)) ?? 0) + 1)
    } else {
      entry.why = "interrupted"
      errors.set("interrupted", (errors.get("interrupted") ?? 0) + 1)
    }
  }

  return {
    entries,
    errors,
    problems,
    open: (operation) => {
      const id = entries.size + 1
      const entry: Entry = { ...operation, id, from: now(), until: undefined, fate: "unknown", why: "" }
      entries.set(id, entry)
      running.set(id, entry)
      return entry
    },
    settle,
    pending: () => [...running.values()],
    story
  }
}

export const tables = [
  // No key on purpose: what is written twice is to be seen.
  "CREATE TABLE ledger (id int NOT NULL, part int NOT NULL)",
  "CREATE TABLE keyed (id int PRIMARY KEY, n int NOT NULL)",
  "CREATE TABLE hot (id int PRIMARY KEY, n int NOT NULL)",
  "INSERT INTO hot SELECT n, 0 FROM generate_series(0, 2) AS n"
]

/** How often each part of an operation is there. */
type Parts = [row: number, first: number, second: number, key: number]

const judge = ({ fate, trace }: Entry, [row, first, second, key]: Parts): Wrong | undefined => {
  const isThere = row + first + second + key > 0
  if (row > 1 || first > 1 || second > 1) return "doubled"
  if (first !== second) return "torn"
  if (trace === "none") return isThere ? "ghost" : undefined
  if (fate === "failed") return isThere ? "ghost" : undefined
  if (fate !== "acknowledged") return undefined
  const isWhole = trace === "row" ? row === 1 : trace === "pair" ? first === 1 : key === 1
  return isWhole ? undefined : "lost"
}

/** Compares, once nobody writes any more. */
export const reconcile = Effect.fnUntraced(function*(ledger: Ledger, connection: PgConnection.PgConnection) {
  const found = new Map<number, Parts>()
  const partsOf = (id: number): Parts => {
    const parts = found.get(id) ?? [0, 0, 0, 0]
    found.set(id, parts)
    return parts
  }
  let rows = 0
  const read = (sql: string, note: (parts: Parts, part: number, times: number) => void) =>
    Effect.map(connection.queryValues(sql, [], false), (values) => {
      rows += values.length
      for (const [id, part, times] of values as ReadonlyArray<[number, number, number]>) note(partsOf(id), part, times)
    })
  yield* read("SELECT id, part, count(*)::int FROM ledger GROUP BY id, part", (parts, part, times) => {
    parts[part] = times
  })
  yield* read("SELECT id, 3, 1 FROM keyed", (parts) => {
    parts[3] = 1
  })

  const wrong = Object.fromEntries(
    Object.keys(wrongs).map((name): [string, Array<string>] => [name, []])
  ) as Record<Wrong, Array<string>>
  for (const [name, what] of ledger.problems) wrong[name].push(what)
  let acknowledged = 0
  for (const entry of ledger.entries.values()) {
    if (entry.fate === "acknowledged") acknowledged++
    const parts = found.get(entry.id) ?? [0, 0, 0, 0]
    const verdict = judge(entry, parts)
    if (verdict !== undefined) wrong[verdict].push(`${ledger.story(entry)}; found: ${parts.join(", ")}`)
  }
  for (const id of found.keys()) if (!ledger.entries.has(id)) wrong.stranger.push(`#${id}`)
  return { acknowledged, rows, wrong } satisfies Findings
})
