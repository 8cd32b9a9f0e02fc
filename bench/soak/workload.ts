/** What the callers of a pool do, all at once and for as long as it runs. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Pg from "effect-pg-pool"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Semaphore from "effect/Semaphore"
import * as SqlClient from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type { Chance } from "./chance.ts"
import { Abandoned, type Ledger, type Trace, WrongAnswer } from "./ledger.ts"

interface Operation {
  readonly name: string
  /** How often it is done, beside the others. */
  readonly weight: number
  readonly trace: Trace
  readonly run: (id: number) => Effect.Effect<unknown, unknown>
}

const expect = (expected: unknown, got: unknown): Effect.Effect<void, WrongAnswer> =>
  String(got) === String(expected)
    ? Effect.void
    : Effect.fail(new WrongAnswer({ expected: String(expected), got: String(got) }))

/** A listener holds a session, so there is one at a time, and it is not waited for longer than any fault takes. */
const notificationTime = 20_000

const operationsOf = (
  services: Context.Context<Pg.Services>,
  name: string,
  chance: Chance,
  ledger: Ledger
): ReadonlyArray<Operation> => {
  const get = <A>(effect: Effect.Effect<A, never, Pg.Services>): A => Effect.runSync(Effect.provide(effect, services))
  const sql = get(SqlClient.SqlClient)
  const client = get(PgClient.PgClient)
  const pool = get(Pg.Pool.Pool)
  const executor = get(Pg.Executor.Executor)
  const listening = Semaphore.makeUnsafe(1).withPermit

  const insert = (id: number, part = 0) =>
    Effect.flatMap(
      sql<{ id: number }>`INSERT INTO ledger (id, part) VALUES (${id}, ${part}) RETURNING id`,
      ([row]) => expect(id, row?.id)
    )
  const nap = Effect.suspend((): Effect.Effect<unknown, SqlError> =>
    chance.isIt(0.5) ? Effect.void : sql`SELECT pg_sleep(${chance.between(0, 0.02)})`
  )
  const pair = (id: number) => Effect.andThen(insert(id, 1), Effect.andThen(nap, insert(id, 2)))
  const provided = Effect.provide(services)
  const isReset = pool.settings.resetFrame !== undefined
  const current = (connection: Pg.Executor.Connection) =>
    Effect.map(connection.queryValues("SELECT current_setting('soak.id', true)"), (rows) => rows[0]?.[0])

  return [
    { name: "insert", weight: 8, trace: "row", run: (id) => insert(id) },
    { name: "insert, retried by run", weight: 4, trace: "row", run: (id) => executor.run(insert(id)) },
    { name: "pair, withTransaction", weight: 4, trace: "pair", run: (id) => sql.withTransaction(pair(id)) },
    { name: "pair, run", weight: 3, trace: "pair", run: (id) => executor.run(sql.withTransaction(pair(id))) },
    {
      name: "pair, resolveCommit",
      weight: 4,
      trace: "pair",
      run: (id) => provided(Pg.Executor.transaction(pair(id), { resolveCommit: true }))
    },
    {
      name: "pair over a hot row, serializable",
      weight: 2,
      trace: "pair",
      run: (id) =>
        provided(Pg.Executor.transaction(
          Effect.andThen(sql`UPDATE hot SET n = n + 1 WHERE id = ${id % 3}`, pair(id)),
          { isolation: "serializable", resolveCommit: true }
        ))
    },
    {
      name: "pair with a savepoint",
      weight: 1,
      trace: "pair",
      run: (id) =>
        sql.withTransaction(Effect.andThen(
          Effect.ignore(sql.withTransaction(Effect.andThen(insert(id), Effect.fail(new Abandoned())))),
          pair(id)
        ))
    },
    {
      name: "transaction that is given up",
      weight: 2,
      trace: "none",
      run: (id) => sql.withTransaction(Effect.andThen(insert(id), Effect.fail(new Abandoned())))
    },
    {
      name: "BEGIN that is left open",
      weight: 1,
      trace: "none",
      run: (id) =>
        Effect.scoped(Effect.gen(function*() {
          const { connection } = yield* pool.reserve()
          yield* connection.query("BEGIN")
          yield* connection.query("INSERT INTO ledger (id, part) VALUES ($1, 0)", [id])
        }))
    },
    {
      name: "upsert, idempotent",
      weight: 3,
      trace: "key",
      run: (id) =>
        executor.run(
          sql`INSERT INTO keyed (id, n) VALUES (${id}, ${id}) ON CONFLICT (id) DO UPDATE SET n = excluded.n`,
          { idempotent: true }
        )
    },
    {
      name: "read",
      weight: 10,
      trace: "none",
      run: (id) =>
        executor.run(
          Effect.flatMap(sql<{ n: number }>`SELECT ${id}::int AS n`, ([row]) => expect(id, row?.n)),
          { idempotent: true }
        )
    },
    {
      name: "read, slow",
      weight: 3,
      trace: "none",
      run: (id) =>
        Effect.flatMap(
          sql<{ n: number }>`SELECT ${id}::int AS n, pg_sleep(${chance.between(0, 0.05)})`,
          ([row]) => expect(id, row?.n)
        )
    },
    {
      name: "read, impatient",
      weight: 2,
      trace: "none",
      run: (id) =>
        executor.run(
          Effect.flatMap(sql<{ n: number }>`SELECT ${id}::int AS n, pg_sleep(0.02)`, ([row]) => expect(id, row?.n)),
          { idempotent: true, attemptTimeout: chance.between(5, 100), deadline: 2000 }
        )
    },
    {
      name: "stream",
      weight: 2,
      trace: "none",
      run: (id) =>
        sql<{ n: number }>`SELECT (${id} + n)::int AS n FROM generate_series(1, 400) AS n`.stream.pipe(
          Stream.take(chance.isIt(0.5) ? 400 : 100),
          Stream.runFold(() => id, (last, { n }) => n === last + 1 ? n : Number.NaN),
          Effect.flatMap((last) => Number.isNaN(last) ? expect("numbers in their order", last) : Effect.void)
        )
    },
    {
      name: "lent session",
      weight: 2,
      trace: "row",
      run: (id) =>
        executor.use((connection) =>
          Effect.gen(function*() {
            if (isReset) yield* expect("", (yield* current(connection)) ?? "")
            yield* connection.query(`SET soak.id = '${id}'`)
            yield* connection.query("INSERT INTO ledger (id, part) VALUES ($1, 0)", [id])
            const own = yield* current(connection)
            if (!isReset) yield* connection.query("RESET soak.id")
            yield* expect(id, own)
          })
        )
    },
    {
      name: "session that is held idle",
      weight: 1,
      trace: "none",
      run: () => Effect.scoped(Effect.andThen(pool.reserve(), Effect.sleep(chance.between(0, 50))))
    },
    {
      name: "notification",
      weight: 1,
      trace: "none",
      run: (id) =>
        listening(Effect.scoped(Effect.gen(function*() {
          const channel = `soak_${name.replaceAll(" ", "_")}`
          const heard = yield* client.listen(channel)
          yield* client.notify(channel, String(id))
          const payload = Effect.repeat(Queue.take(heard), { until: ({ payload }) => payload === String(id) })
          yield* Effect.timeoutOrElse(payload, {
            duration: notificationTime,
            orElse: () => Effect.sync(() => ledger.problems.push(["missed", `${name}: of #${id}`]))
          })
        })))
    }
  ]
}

export interface Workload {
  /** Nobody begins anything new until `resume`. */
  readonly pause: () => void
  readonly resume: () => void
  readonly end: () => void
}

export interface Options {
  readonly name: string
  readonly callers: number
  readonly services: Context.Context<Pg.Services>
  readonly chance: Chance
  readonly ledger: Ledger
  readonly succeeded: () => void
}

/** Starts the callers, which go on until `end`; one whose operation never ends stays behind. */
export const start = Effect.fnUntraced(function*({ callers, chance, ledger, name, services, succeeded }: Options) {
  const operations = operationsOf(services, name, chance, ledger)
  const weights = operations.reduce((sum, { weight }) => sum + weight, 0)
  const any = (): Operation => {
    let at = chance.next() * weights
    return operations.find(({ weight }) => (at -= weight) < 0) ?? operations[0]!
  }
  const hours = { areOver: false, isBreak: false }

  /** Some have a deadline, and some callers go away before they have an answer. */
  const once = Effect.suspend(() => {
    const { name: operation, run, trace } = any()
    const dice = chance.next()
    const deadline = dice < 0.12 ? Math.ceil(chance.between(1, chance.isIt(0.5) ? 30 : 600)) : undefined
    const patience = dice > 0.85 ? Math.floor(chance.between(0, chance.isIt(0.7) ? 30 : 800)) : undefined
    const terms = deadline !== undefined
      ? ` with a deadline of ${deadline} ms`
      : patience !== undefined
      ? ` interrupted after ${patience} ms`
      : ""
    const entry = ledger.open({ pool: name, operation, trace, terms })
    const work = deadline === undefined ? run(entry.id) : Pg.Executor.withDeadline(run(entry.id), deadline)
    const settled = patience === undefined ? Effect.exit(work) : Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(work, { startImmediately: chance.isIt(0.5) })
      if (patience > 0) yield* Effect.sleep(patience)
      yield* Fiber.interrupt(fiber)
      return yield* Fiber.await(fiber)
    })
    return Effect.map(settled, (exit) => {
      ledger.settle(entry, exit)
      if (exit._tag === "Success") succeeded()
      return exit._tag === "Success"
    })
  })

  const caller = Effect.gen(function*() {
    while (!hours.areOver) {
      if (hours.isBreak) yield* Effect.sleep(20)
      else {
        const isDone = yield* once
        // Who was shown an error does not come back at once.
        yield* Effect.sleep(isDone ? chance.between(0, 10) : chance.between(20, 200))
      }
    }
  })
  yield* Effect.forEach(Array.from({ length: callers }), () => Effect.forkDetach(caller))
  return {
    pause: () => {
      hours.isBreak = true
    },
    resume: () => {
      hours.isBreak = false
    },
    end: () => {
      hours.areOver = true
    }
  } satisfies Workload
})
