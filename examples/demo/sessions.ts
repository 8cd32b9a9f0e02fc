/** The demo's own view of the server, over connections that are not the pool's. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"

export interface Options {
  readonly url: Redacted.Redacted
  /** The `application_name` of the pool's sessions, and the schema that the demo keeps its tables in. */
  readonly name: string
}

/** A connection of its own, closed afterwards. */
export const direct = <A, E, R>(
  { name, url }: Options,
  f: (connection: PgConnection.PgConnection) => Effect.Effect<A, E, R>
) =>
  Effect.scopedWith((scope) =>
    Effect.flatMap(
      PgConnection.make({ url, applicationName: `${name} itself`, startupParameters: { search_path: name } }).pipe(
        Effect.provideService(Scope.Scope, scope)
      ),
      f
    )
  )

/** How many sessions the pool has on the server. */
export const count = (connection: PgConnection.PgConnection, { name }: Options) =>
  Effect.map(
    connection.query("SELECT count(*)::int AS n FROM pg_stat_activity WHERE application_name = $1", [name]),
    ({ rows }) => rows[0]?.n as number
  )

/** Ends that many of the pool's sessions, busy ones first. */
export const end = (connection: PgConnection.PgConnection, { name }: Options, howMany: number) =>
  connection.query(
    `SELECT pg_terminate_backend(pid) FROM (
       SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY state = 'idle', pid LIMIT $2
     ) AS chosen`,
    [name, howMany]
  )
