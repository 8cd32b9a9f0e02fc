import * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import { freshDatabase } from "./database.ts"

/** Somebody who stands beside the pool and asks the server itself, over a session that is not the pool's. */
export interface Witness {
  readonly query: <Row>(sql: string, params?: ReadonlyArray<unknown>) => Effect.Effect<ReadonlyArray<Row>, SqlError>
  /** The first column of the first row. */
  readonly value: <A>(sql: string, params?: ReadonlyArray<unknown>) => Effect.Effect<A, SqlError>
  /** Process ids of everybody else's sessions in this database. */
  readonly sessions: Effect.Effect<ReadonlyArray<number>, SqlError>
  /** How many of them there are. */
  readonly count: Effect.Effect<number, SqlError>
  /** Ends the sessions with these process ids; answers how many there were. */
  readonly terminate: (pids: ReadonlyArray<number>) => Effect.Effect<number, SqlError>
  /**
   * Counts the sessions over and over until the scope closes. The server reads its list entry by entry, and may show one
   * that has ended beside its replacement; who is in two lists in a row was there at the time between them.
   */
  readonly watch: Effect.Effect<Watch, never, Scope.Scope>
}

interface Watch {
  readonly most: () => number
  readonly samples: () => number
}

const others = `datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`

export const makeWitness = Effect.fnUntraced(function*(
  url: Redacted.Redacted
): Effect.fn.Return<Witness, SqlError, Scope.Scope> {
  const connection = yield* PgConnection.make({ url, applicationName: "witness", multiplex: true })
  const query = <Row>(sql: string, params: ReadonlyArray<unknown> = []) =>
    Effect.map(connection.query(sql, params), (result) => result.rows as ReadonlyArray<unknown> as ReadonlyArray<Row>)
  const value = <A>(sql: string, params: ReadonlyArray<unknown> = []) =>
    Effect.map(connection.queryValues(sql, params), (rows) => rows[0]?.[0] as A)
  const count = value<number>(`SELECT count(*)::int FROM pg_stat_activity WHERE ${others}`)
  const sessions = Effect.map(
    query<{ pid: number }>(`SELECT pid FROM pg_stat_activity WHERE ${others} ORDER BY backend_start`),
    (rows) => rows.map(({ pid }) => pid)
  )
  return {
    query,
    value,
    count,
    sessions,
    terminate: (pids) =>
      value<number>(
        `SELECT count(pg_terminate_backend(pid))::int FROM pg_stat_activity WHERE ${others} AND pid = ANY($1)`,
        [`{${pids.join(",")}}`]
      ),
    watch: Effect.gen(function*() {
      let most = 0
      let samples = 0
      let before: ReadonlySet<number> = new Set()
      yield* Effect.forkScoped(Effect.forever(Effect.tap(sessions, (pids) =>
        Effect.sync(() => {
          samples++
          most = Math.max(most, pids.filter((pid) => before.has(pid)).length)
          before = new Set(pids)
        }))))
      return { most: () => most, samples: () => samples }
    })
  }
})

/** Asks again and again until the answer is yes; fails when it stays no for long. */
export const eventually = <E, R>(
  what: string,
  check: Effect.Effect<boolean, E, R>,
  seconds = 15
): Effect.Effect<void, E, R> =>
  Effect.gen(function*() {
    const until = (yield* Clock.currentTimeMillis) + seconds * 1000
    while (!(yield* check)) {
      if ((yield* Clock.currentTimeMillis) > until) assert.fail(`not within ${seconds} s: ${what}`)
      yield* Effect.sleep(5)
    }
  })

/** Waits for something that must happen at some time, and says so when it does not. */
export const soon = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>, seconds = 15): Effect.Effect<A, E, R> =>
  Effect.timeoutOrElse(effect, {
    duration: seconds * 1000,
    orElse: () => Effect.sync(() => assert.fail(`not within ${seconds} s: ${what}`))
  })

/** The fiber's end, which must come at some time. */
export const ended = <A, E>(fiber: Fiber.Fiber<A, E>, seconds = 15) =>
  soon("the end of a fiber", Fiber.await(fiber), seconds)

/** A reproducible source of chance; its seed goes into what a failing test says. */
export const chance = (seed: number) => {
  let state = seed >>> 0
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
  return {
    next,
    below: (bound: number): number => Math.floor(next() * bound),
    pick: <A>(list: ReadonlyArray<A>): A => list[Math.floor(next() * list.length)] as A
  }
}

/** A database with a table `t`, and somebody who looks into it. */
export const makeTable = Effect.gen(function*() {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  yield* witness.query("CREATE TABLE t (n int)")
  return { url, witness, rows: witness.value<number>("SELECT count(*)::int FROM t") }
})
