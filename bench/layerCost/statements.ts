/** One statement, from the caller to the stub and back: through the driver's own client, ours, and ours less one part. */
import { PgClient } from "@effect/sql-pg"
import * as PgPool from "@effect/sql-pg/PgPool"
import * as Pg from "effect-pg-pool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import { type Answers, makeStubServer, type StubServer } from "../../test/stubServer.ts"
import type { Combinator, Guard } from "./elsewhere.ts"
import { fibers, promises, type Subject, Wrong } from "./subject.ts"

export const max = 10

export interface Setting {
  readonly answers: Answers
  readonly multiplex: boolean
}

const text = "SELECT id, name FROM item WHERE id = $1"
const statement = (sql: SqlClient.SqlClient, id: number) => sql`SELECT id, name FROM item WHERE id = ${id}`

const configOf = ({ stream }: StubServer, { multiplex }: Setting) => ({ stream, username: "bench", multiplex })

// No session wears out meanwhile: opening one is not what is measured here.
const lasting = { maxUses: 1e9 }

const unguarded: Effect.Effect<Combinator, never, Scope.Scope> = Effect.succeed((work) => work)

const open = async <R, E>(layer: Layer.Layer<R, E>) => {
  const runtime = ManagedRuntime.make(layer)
  return { context: await runtime.runPromise(Effect.context<R>()), close: () => runtime.dispose() }
}

const answeredAll = (server: StubServer, calls: number): ReadonlyArray<string> =>
  server.answered() === calls ? [] : [`the server has answered ${server.answered()} of ${calls} statements`]

export const pgClient = async (setting: Setting, makeGuard = unguarded): Promise<Subject> => {
  const server = makeStubServer(setting.answers)
  const { close, context } = await open(PgClient.layer({ ...configOf(server, setting), maxConnections: max }))
  const sql = Context.get(context, SqlClient.SqlClient)
  // The guard lives as long as its process.
  const guard = await Effect.runPromise(Scope.provide(makeGuard, Scope.makeUnsafe()))
  const wrong = new Wrong()
  return {
    run: fibers(context, (id) => guard(statement(sql, id)), (id, answer) => wrong.note(id, answer)),
    faults: (calls) => [...wrong.faults(), ...answeredAll(server, calls)],
    close
  }
}

const promised = <R>(context: Context.Context<R>, call: (id: number) => Effect.Effect<unknown, unknown, R>) => {
  const run = Effect.runPromiseWith(context)
  return (id: number) => run(call(id))
}

/** For programs that are not Effect's: each statement is run by itself. */
export const pgClientPromised = async (
  setting: Setting,
  wrap: Guard = (one) => one
): Promise<Subject> => {
  const server = makeStubServer(setting.answers)
  const { close, context } = await open(PgClient.layer({ ...configOf(server, setting), maxConnections: max }))
  const wrong = new Wrong()
  const sql = Context.get(context, SqlClient.SqlClient)
  return {
    run: promises(wrap(promised(context, (id) => statement(sql, id))), (id, answer) => wrong.note(id, answer)),
    faults: (calls) => [...wrong.faults(), ...answeredAll(server, calls)],
    close
  }
}

interface House {
  readonly sql: SqlClient.SqlClient
  readonly pool: Pg.Pool.Pool["Service"]
  readonly executor: Pg.Executor.Executor["Service"]
}

const nothing = (): void => {}

/** From now on nothing is counted of healthy statements. There is no option for that. */
const silence = ({ acquire, queries, use }: Pg.Metrics.Store): void => {
  acquire.acquired.observe = nothing
  queries.succeeded = nothing
  use.observe = nothing
}

const disagreement = (what: string, count: number, calls: number): ReadonlyArray<string> =>
  count === calls ? [] : [`${what}: ${count} of ${calls}`]

/** What the layer itself says of what has happened, which has to be the truth. */
const accountOf = (
  { acquire, errors, queries, retries, use }: Pg.Metrics.Store,
  calls: number,
  isWatched: boolean
): ReadonlyArray<string> => [
  ...disagreement("statements counted", queries.succeededInAll().count, isWatched ? calls : 0),
  ...disagreement("checkouts counted", acquire.acquired.snapshot().count, calls),
  ...disagreement("uses counted", use.snapshot().count, calls),
  ...[acquire.timeout, acquire.interrupted, acquire.failed].flatMap((histogram) =>
    disagreement("failed checkouts counted", histogram.snapshot().count, 0)
  ),
  ...Object.values(errors).flatMap((kinds) => Object.values(kinds)).filter((count) => count > 0).map((count) =>
    `${count} errors counted`
  ),
  ...Object.values(retries).filter((count) => count > 0).map((count) => `${count} retries counted`)
]

interface Variant {
  readonly options?: Pg.Options
  readonly isCounted?: boolean
  /** Whether its statements go through the connection that watches them. */
  readonly isWatched?: boolean
  readonly call?: (house: House) => (id: number) => Effect.Effect<unknown, unknown>
  readonly isPromised?: boolean
}

export const ours = async (
  setting: Setting,
  { call = ({ sql }) => (id) => statement(sql, id), isCounted = true, isPromised = false, isWatched = true, options }:
    Variant = {}
): Promise<Subject> => {
  const server = makeStubServer(setting.answers)
  const { close, context } = await open(Pg.layer({ ...configOf(server, setting), max, ...lasting, ...options }))
  const { store } = Context.get(context, Pg.Metrics.Metrics)
  const breaker = Context.get(context, Pg.Breaker.Breaker)
  const pool = Context.get(context, Pg.Pool.Pool)
  if (!isCounted) silence(store)
  const wrong = new Wrong()
  const one = call({
    sql: Context.get(context, SqlClient.SqlClient),
    pool,
    executor: Context.get(context, Pg.Executor.Executor)
  })
  const check = (id: number, answer: unknown) => wrong.note(id, answer)
  const expected = options?.breaker === false ? "Disabled" : "Closed"
  return {
    run: isPromised ? promises(promised(context, one), check) : fibers(context, one, check),
    faults: (calls) => {
      const { _tag } = breaker.stateUnsafe(Date.now())
      const { active, total, waiting } = pool.statsUnsafe()
      return [
        ...wrong.faults(),
        ...answeredAll(server, calls),
        ...(isCounted ? accountOf(store, calls, isWatched) : []),
        ...(_tag === expected || _tag === "Closed" ? [] : [`the breaker is ${_tag}`]),
        ...(active === 0 && waiting === 0 && total <= max
          ? []
          : [`${active} active, ${waiting} waiting, ${total} open`])
      ]
    },
    close
  }
}

const rowsOf = <A extends { readonly rows: unknown }, E, R>(result: Effect.Effect<A, E, R>) =>
  Effect.map(result, ({ rows }) => rows)

/** The way of a statement through the layer, step by step; each has all that the one before it has. */
export const steps = {
  checkout: (setting: Setting) =>
    ours(setting, {
      isWatched: false,
      call: ({ pool }) => (id) => rowsOf(pool.use(({ driver }) => driver.query(text, [id])))
    }),
  "checkout, breaker, retry, deadline": (setting: Setting) =>
    ours(setting, {
      isWatched: false,
      call: ({ executor }) => (id) => rowsOf(executor.borrow(({ base }) => base.query(text, [id])))
    }),
  "checkout, breaker, retry, deadline, watching": (setting: Setting) =>
    ours(setting, {
      call: ({ executor }) => (id) => rowsOf(executor.borrow((connection) => connection.query(text, [id])))
    })
}

/** The same without any of it: a session of the driver's own pool. */
export const driverPool = async (setting: Setting): Promise<Subject> => {
  const server = makeStubServer(setting.answers)
  const scope = Scope.makeUnsafe()
  const pool = await Effect.runPromise(
    Scope.provide(PgPool.make({ ...configOf(server, setting), maxConnections: max }), scope)
  )
  const wrong = new Wrong()
  return {
    run: fibers(
      Context.empty(),
      (id) => rowsOf(pool.use((connection) => connection.query(text, [id]))),
      (id, answer) => wrong.note(id, answer)
    ),
    faults: (calls) => [...wrong.faults(), ...answeredAll(server, calls)],
    close: () => Effect.runPromise(Scope.close(scope, Effect.runSync(Effect.exit(Effect.void))))
  }
}
