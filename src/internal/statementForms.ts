import type * as PgConnection from "@effect/sql-pg/PgConnection"
import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import type * as Flight from "./flight.ts"

export type TransformRows = (<A extends object>(row: ReadonlyArray<A>) => ReadonlyArray<A>) | undefined

/** A way to ask a statement: of the driver, or of a connection that somebody holds already. */
export interface Form extends Flight.Form<any> {
  readonly askOn: (
    connection: Connection,
    sql: string,
    params: ReadonlyArray<unknown>
  ) => Effect.Effect<any, SqlError>
}

const rowsOf = ({ rows }: PgConnection.Result) => Exit.succeed(rows)

/** What a statement can be asked for, said once for each client. */
export const make = (transform: TransformRows) => {
  const takeRows = transform === undefined
    ? rowsOf
    : ({ rows }: PgConnection.Result) => Exit.succeed(transform(rows))
  const rows: Form = {
    ask: (connection, sql, params) => connection.query(sql, params, true),
    take: takeRows,
    askOn: (connection, sql, params) => connection.execute(sql, params, transform)
  }
  const untransformed: Form = {
    ask: rows.ask,
    take: rowsOf,
    askOn: (connection, sql, params) => connection.execute(sql, params, undefined)
  }
  const unprepared: Form = {
    ask: (connection, sql, params) => connection.query(sql, params, false),
    take: takeRows,
    askOn: (connection, sql, params) => connection.executeUnprepared(sql, params, transform)
  }
  const raw: Form = {
    ask: rows.ask,
    take: Exit.succeed,
    askOn: (connection, sql, params) => connection.executeRaw(sql, params)
  }
  const values: Form = {
    ask: (connection, sql, params) => connection.queryValues(sql, params, true),
    take: Exit.succeed,
    askOn: (connection, sql, params) => connection.executeValues(sql, params)
  }
  const valuesUnprepared: Form = {
    ask: (connection, sql, params) => connection.queryValues(sql, params, false),
    take: Exit.succeed,
    askOn: (connection, sql, params) => connection.executeValuesUnprepared(sql, params)
  }
  return { rows, untransformed, unprepared, raw, values, valuesUnprepared }
}

export type Forms = ReturnType<typeof make>
