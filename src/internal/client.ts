import * as PgClient from "@effect/sql-pg/PgClient"
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type * as Queue from "effect/Queue"
import type * as Reactivity from "effect/reactivity/Reactivity"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import * as Statement from "effect/sql/Statement"
import * as Begin from "./begin.ts"
import type * as CommitFate from "./commitFate.ts"
import * as Deadline from "./deadline.ts"
import type * as Flight from "./flight.ts"
import * as Held from "./held.ts"
import * as Opening from "./opening.ts"
import * as ServerReaping from "./serverReaping.ts"
import { SqlConnection } from "./sqlConnection.ts"
import * as TracedStatement from "./tracedStatement.ts"
import type { TrackedConnection } from "./trackedConnection.ts"
import * as Transactions from "./transactions.ts"
import * as TransactionSpan from "./transactionSpan.ts"
import * as UnitOfWork from "./unitOfWork.ts"

/** Where the client gets its connections. */
export interface Source {
  readonly borrow: <A, R>(
    f: (connection: TrackedConnection) => Effect.Effect<A, SqlError, R>
  ) => Effect.Effect<A, SqlError, R>
  /** One statement by its text, for the fiber that asks. */
  readonly sendUnsafe: Flight.Send
  readonly lease: Effect.Effect<TrackedConnection, SqlError, Scope.Scope>
  readonly reserve: (
    prepare?: (connection: TrackedConnection) => Effect.Effect<unknown, SqlError, Scope.Scope>
  ) => Effect.Effect<TrackedConnection, SqlError, Scope.Scope>
  readonly hold: (restore: Held.Restore) => Effect.Effect<Held.Held, SqlError>
  /** Another one for a session that was lost before it had done anything: `cause` is the first of the failures. */
  readonly renew: (
    cause: Cause.Cause<SqlError>,
    prepare: (connection: TrackedConnection) => Effect.Effect<unknown, SqlError, Scope.Scope>
  ) => Effect.Effect<TrackedConnection, SqlError, Scope.Scope>
  /** Closes the session when its lease is over. */
  readonly evict: (connection: TrackedConnection) => void
  /** Ends work at a deadline, in wall-clock milliseconds. */
  readonly enforce: <A, E, R>(work: Effect.Effect<A, E, R>, deadlineAt: number) => Effect.Effect<A, E | SqlError, R>
  /** Finds out what has become of a COMMIT whose answer was lost: succeeds when it was applied. */
  readonly resolve: (error: SqlError, ticket: CommitFate.Ticket | undefined) => Effect.Effect<void, SqlError>
}

export interface ClientOptions {
  /** The name of the pool. */
  readonly pool: string
  readonly config: PgClient.PgClientConfig
  readonly spanAttributes: ReadonlyArray<readonly [string, unknown]>
  /** Where a listener gets its session, or why it gets none. */
  readonly listenOn: Source["reserve"] | SqlError
  /** Whether the server ends sessions that say nothing, as listeners do. */
  readonly endsIdle: boolean
  /** Statements that belong to each transaction. */
  readonly transactionSettings: ReadonlyArray<string>
}

/** The fragment that the driver's compiler knows as `json`. */
const json = Statement.custom<Statement.Custom<"PgJson", unknown, undefined, undefined>>("PgJson")

/** What runs the statements of a transaction. */
type InTransaction = SqlConnection<Opening.Opening>

const sqlConnections = new WeakMap<TrackedConnection, SqlConnection<TrackedConnection>>()

const asSqlConnection = (tracked: TrackedConnection): SqlConnection<TrackedConnection> => {
  let connection = sqlConnections.get(tracked)
  if (connection === undefined) {
    connection = new SqlConnection(tracked)
    sqlConnections.set(tracked, connection)
  }
  return connection
}

const failure = (message: string, operation: string) =>
  new SqlError({ reason: new UnknownError({ cause: new Error(message), message, operation }) })

/** PostgreSQL answers ROLLBACK to the COMMIT of a transaction that has already failed. */
const commitOnce = (
  tracked: TrackedConnection,
  unit: UnitOfWork.UnitOfWork | undefined
): Effect.Effect<void, SqlError> =>
  Effect.suspend(() => {
    tracked.transaction = "Committing"
    if (unit !== undefined) UnitOfWork.addCommitting(unit, 1)
    return Effect.onExitPrimitive(
      Effect.flatMap(tracked.query("COMMIT"), (result) =>
        result.command === "ROLLBACK"
          ? Effect.fail(failure("PgClient: COMMIT rolled back an aborted transaction", "commit"))
          : Effect.void),
      () => {
        if (unit !== undefined) UnitOfWork.addCommitting(unit, -1)
        return undefined
      }
    )
  })

/** Builds the `PgClient` whose sessions come from a guarded source, and which is otherwise the driver's own. */
export const make = (
  source: Source,
  options: ClientOptions
): Effect.Effect<PgClient.PgClient, never, Reactivity.Reactivity> =>
  Effect.gen(function*() {
    const { config, endsIdle, listenOn, spanAttributes } = options
    const transformRows = config.transformResultNames === undefined
      ? undefined
      : Statement.defaultTransforms(config.transformResultNames, config.transformJson).array

    const plain = yield* SqlClient.make({
      acquirer: Effect.map(source.lease, asSqlConnection),
      borrower: (f) => source.borrow((tracked) => f(asSqlConnection(tracked)) as Effect.Effect<any, SqlError, any>),
      transactionAcquirer: Effect.map(source.reserve(), asSqlConnection),
      driver: "pg",
      compiler: PgClient.makeCompiler(config.transformQueryNames, config.transformJson),
      spanAttributes,
      transformRows
    })
    const client = TracedStatement.client(plain, { pool: options.pool, sendUnsafe: source.sendUnsafe, transformRows })

    // A statement that fails because its session is gone must not turn the rollback into a defect: with the session
    // gone, the server has rolled back.
    const rollBack =
      (sql: string) => ({ tracked: opening }: InTransaction, isOpen = opening.isOpen): Effect.Effect<void> =>
        Effect.matchEffect(isOpen, {
          onFailure: () => Effect.void,
          onSuccess: (isOpen) => {
            const { tracked } = opening
            return !isOpen || tracked.session.wire.isDead()
              ? Effect.void
              : Effect.catchCause(Effect.asVoid(tracked.query(sql)), () => Effect.sync(() => source.evict(tracked)))
          }
        })

    const transactions = Begin.make(options.transactionSettings)
    const commit = ({ tracked: opening }: InTransaction): Effect.Effect<void, SqlError> =>
      Effect.flatMap(opening.end, (isOpen) => {
        if (!isOpen) return Effect.void
        const { tracked } = opening
        return Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
          const once = commitOnce(tracked, UnitOfWork.of(fiber))
          const inquiry = transactions.inquiryOf(tracked)
          return inquiry === undefined
            ? once
            : Effect.catchTag(once, "SqlError", (error) => source.resolve(error, inquiry.ticket))
        })
      })

    const lease = (
      opening: Opening.Opening,
      release: Held.Held["release"]
    ): Transactions.Lease<InTransaction> => ({ connection: new SqlConnection(opening), release })

    /** Until BEGIN has succeeded, another session will do. */
    const begin = (restore: Held.Restore, order: Begin.Order) =>
      Effect.map(
        Held.hold(source.reserve(order.alone), restore),
        ({ release, tracked }) => lease(Opening.Opening.begun(tracked), release)
      )

    /** The same, where BEGIN goes along with the first statement. */
    const beginLater = (restore: Held.Restore, order: Begin.Order, isInside: boolean) =>
      Effect.map(source.hold(restore), (first) => {
        let held: Held.Held | undefined = first
        const letGo: Held.Held["release"] = (exit) => {
          const last = held
          held = undefined
          return last?.release(exit)
        }
        const renew: Opening.Renew = (cause) =>
          Effect.uninterruptibleMask((restore) =>
            Effect.andThen(
              letGo(Exit.failCause(cause)) ?? Effect.void,
              Effect.map(
                // The whole of it is begun anew, not a part.
                Held.hold(
                  Effect.provideService(
                    source.renew(cause, order.alone),
                    UnitOfWork.InTransaction,
                    isInside
                  ),
                  restore
                ),
                (next) => (held = next).tracked
              )
            )
          )
        return lease(new Opening.Opening(first.tracked, order, renew), letGo)
      })

    // BEGIN belongs to the checkout.
    const acquire = (restore: Held.Restore): Effect.Effect<Transactions.Lease<InTransaction>, SqlError> =>
      TransactionSpan.edge(
        Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
          const order = transactions.orderOf(fiber)
          return order.luggage === undefined
            ? begin(restore, order)
            : beginLater(restore, order, fiber.getRef(UnitOfWork.InTransaction))
        })
      )

    const { afterCommit, withTransaction: inTransaction } = Transactions.make<InTransaction>({
      service: client.transactionService,
      spanAttributes,
      acquire,
      savepoint: ({ tracked }, id) => Effect.asVoid(tracked.query(`SAVEPOINT effect_sql_${id}`)),
      releaseSavepoint: (connection, id) => rollBack(`RELEASE SAVEPOINT effect_sql_${id}`)(connection),
      commit: (connection) => TransactionSpan.edge(commit(connection)),
      rollback: (connection) => rollBack("ROLLBACK")(connection, connection.tracked.rollback),
      rollbackSavepoint: (connection, id) => rollBack(`ROLLBACK TO SAVEPOINT effect_sql_${id}`)(connection)
    })

    /** For as long as the scope is open. */
    const exempt = (tracked: TrackedConnection) =>
      Effect.acquireRelease(
        tracked.query(ServerReaping.exempt),
        () =>
          tracked.session.wire.isDead()
            ? Effect.void
            : Effect.catchCause(tracked.query(ServerReaping.include), () => Effect.sync(() => source.evict(tracked)))
      )

    // LISTEN leaves no trace, so it is part of the checkout like BEGIN.
    const listen = (channel: string) =>
      Effect.suspend(() => {
        if (typeof listenOn !== "function") return Effect.fail(listenOn)
        let queue: Queue.Dequeue<PgConnection.Notification, SqlError> | undefined
        return Effect.map(
          listenOn((tracked) =>
            Effect.map(
              endsIdle ? Effect.andThen(exempt(tracked), tracked.listen(channel)) : tracked.listen(channel),
              (opened) => {
                queue = opened
              }
            )
          ),
          () => queue!
        )
      })

    return Object.assign(client, {
      [PgClient.TypeId]: PgClient.TypeId,
      config,
      afterCommit,
      withTransaction: <R, E, A>(self: Effect.Effect<A, E, R>) => {
        const transaction = TransactionSpan.transact(self, inTransaction)
        return Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
          const deadlineAt = Deadline.unenforced(fiber, UnitOfWork.of(fiber))
          return deadlineAt === Infinity ? transaction : source.enforce(transaction, deadlineAt)
        })
      },
      json: (value: unknown) => Statement.fragment([json(value, undefined, undefined)]),
      listen,
      notify: (channel: string, payload: string) =>
        new TextEncoder().encode(channel).byteLength > 63
          ? Effect.fail(failure("PostgreSQL channel names must not exceed 63 UTF-8 bytes", "notify"))
          : source.borrow((tracked) => Effect.asVoid(tracked.query("SELECT pg_notify($1, $2)", [channel, payload])))
    }) as PgClient.PgClient
  })
