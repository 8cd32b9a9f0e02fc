import type * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import type { Vitest } from "@effect/vitest"
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import type * as Redacted from "effect/Redacted"
import type * as SqlClient from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { freshDatabase } from "../../integration/database.ts"

/** The options that every engine understands, in the driver's words. */
export interface Options extends PgClient.PgClientConfig {
  /** Most sessions. */
  readonly max?: number | undefined
}

/** Whatever provides the client that a suite asks questions of. */
export type Engine = (options: Options) => Layer.Layer<PgClient.PgClient | SqlClient.SqlClient, unknown>

/** Where the database of a run is. */
export class Database extends Context.Service<Database, Redacted.Redacted>()("test/Database") {}

/** A connection beside the engine's own, to look at the server and to kill sessions. */
export class Onlooker extends Context.Service<Onlooker, PgConnection.PgConnection>()("test/Onlooker") {}

/** An empty database, and somebody to look at it. Each test makes tables of its own in it. */
export const database: Layer.Layer<Database | Onlooker, SqlError> = Layer.effectContext(Effect.gen(function*() {
  const url = yield* freshDatabase
  const onlooker = yield* PgConnection.make({ url, applicationName: "onlooker" })
  return Context.make(Database, url).pipe(Context.add(Onlooker, onlooker))
}))

export type Services = PgClient.PgClient | SqlClient.SqlClient | Database | Onlooker | Reactivity.Reactivity

/** The engine over the database, with the instance of `Reactivity` that it uses. */
export const over = (engine: Engine, options: Options = {}) =>
  Layer.unwrap(Effect.map(Database, (url) => Layer.merge(engine({ max: 8, ...options, url }), Reactivity.layer)))

/** Sessions, sockets and sleeping statements live in real time. */
export const live = { excludeTestServices: true, timeout: "60 seconds" } as const

/** What a room of the suite is given. */
export type Room = Vitest.MethodsNonLive<Database | Onlooker>

export type It = Vitest.MethodsNonLive<Services>

/** Rows as the onlooker sees them. */
export const look = (text: string, params: ReadonlyArray<unknown> = []) =>
  Effect.flatMap(Onlooker, (onlooker) => Effect.map(onlooker.query(text, params), ({ rows }) => rows))

/** Waits until a condition on the server holds; a defect when it never does. */
export const eventually = <R>(condition: Effect.Effect<boolean, SqlError, R>): Effect.Effect<void, SqlError, R> =>
  Effect.gen(function*() {
    while (!(yield* condition)) yield* Effect.sleep(10)
  }).pipe(Effect.timeoutOrElse({
    duration: "20 seconds",
    orElse: () => Effect.die(new Error("the condition never held"))
  }))

/** Whether a statement that contains the text is running on some other session of this database. */
export const isRunning = (text: string) =>
  Effect.map(
    look(
      `SELECT count(*)::int4 AS n FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active' AND query LIKE $1`,
      [`%${text}%`]
    ),
    (rows) => (rows[0]?.n as number) > 0
  )

/** The reason's tag and the SQLSTATE behind it. */
export const reasonOf = (error: SqlError): readonly [tag: string, sqlState: unknown] => [
  error.reason._tag,
  (error.reason.cause as { readonly code?: unknown } | undefined)?.code
]

export const assertReason = (error: SqlError, tag: SqlError["reason"]["_tag"], sqlState: string): void =>
  assert.deepStrictEqual(reasonOf(error), [tag, sqlState])
