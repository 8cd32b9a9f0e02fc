import * as PgConnection from "@effect/sql-pg/PgConnection"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"

/**
 * A connection that stands for another one, and is no heir of it: an object that others inherit from has a hidden class of
 * its own, and with one per session whatever the driver does with its sessions is slow.
 */
export class Delegate implements PgConnection.PgConnection {
  readonly [PgConnection.TypeId]: PgConnection.TypeId = PgConnection.TypeId
  readonly base: PgConnection.PgConnection

  constructor(base: PgConnection.PgConnection) {
    this.base = base
  }

  get config(): PgConnection.Config {
    return this.base.config
  }

  get processId(): number {
    return this.base.processId
  }

  get interrupt(): Effect.Effect<void> {
    return this.base.interrupt
  }

  get pin(): Effect.Effect<PgConnection.PgConnection, never, Scope.Scope> {
    return this.base.pin
  }

  query(
    ...args: Parameters<PgConnection.PgConnection["query"]>
  ): Effect.Effect<PgConnection.Result, SqlError> {
    return this.base.query(...args)
  }

  queryValues(
    ...args: Parameters<PgConnection.PgConnection["queryValues"]>
  ): Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, SqlError> {
    return this.base.queryValues(...args)
  }

  stream(...args: Parameters<PgConnection.PgConnection["stream"]>): ReturnType<PgConnection.PgConnection["stream"]> {
    return this.base.stream(...args)
  }

  listen(channel: string): ReturnType<PgConnection.PgConnection["listen"]> {
    return this.base.listen(channel)
  }
}
