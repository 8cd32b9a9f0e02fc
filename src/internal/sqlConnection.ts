import type * as PgConnection from "@effect/sql-pg/PgConnection"
import type * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type { TransformRows } from "./statementForms.ts"
import type { TrackedConnection } from "./trackedConnection.ts"

const rowsOf = (result: PgConnection.Result): ReadonlyArray<PgConnection.Row> => result.rows

/** What `effect/sql` asks of a connection, said in the driver's words. */
export class SqlConnection<C extends Pick<TrackedConnection, "query" | "queryValues" | "stream">>
  implements Connection
{
  readonly tracked: C

  constructor(tracked: C) {
    this.tracked = tracked
  }

  private rows(
    sql: string,
    params: ReadonlyArray<unknown>,
    transform: TransformRows,
    prepare: boolean
  ): Effect.Effect<ReadonlyArray<PgConnection.Row>, SqlError> {
    const query = this.tracked.query(sql, params, prepare)
    return transform === undefined ? Effect.map(query, rowsOf) : Effect.map(query, (result) => transform(result.rows))
  }

  execute(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    return this.rows(sql, params, transform, true)
  }

  executeUnprepared(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    return this.rows(sql, params, transform, false)
  }

  executeRaw(sql: string, params: ReadonlyArray<unknown>) {
    return this.tracked.query(sql, params)
  }

  executeValues(sql: string, params: ReadonlyArray<unknown>) {
    return this.tracked.queryValues(sql, params)
  }

  executeValuesUnprepared(sql: string, params: ReadonlyArray<unknown>) {
    return this.tracked.queryValues(sql, params, false)
  }

  executeStream(sql: string, params: ReadonlyArray<unknown>, transform: TransformRows) {
    const rows = this.tracked.stream(sql, params)
    return transform === undefined
      ? rows
      : Stream.mapArray(rows, (chunk) => transform(chunk) as Arr.NonEmptyReadonlyArray<PgConnection.Row>)
  }
}
