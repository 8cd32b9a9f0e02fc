import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { Delegate } from "./delegate.ts"
import * as Discretion from "./discretion.ts"
import * as PoolMachine from "./poolMachine.ts"
import type * as Socket from "./socket.ts"

/** Why a session is closed; the words are those of the metrics. */
export type CloseReason = "idle" | "lifetime" | "uses" | "resize" | "invalid" | "error" | "shutdown"

/** One physical session: the driver's connection, its socket, and what the pool remembers of it. */
export interface Session extends PoolMachine.Member<Session> {
  readonly id: number
  /** Closing it ends the session. */
  readonly scope: Scope.Closeable
  /** The place of its server in the list of hosts. */
  readonly host: number
  /** The driver's connection, with its errors as they may be seen. */
  readonly connection: PgConnection.PgConnection
  /** The driver's connection as it is, for whoever treats its errors. */
  readonly driver: Delegate
  readonly wire: Socket.Wire
  /** Wall-clock milliseconds. */
  readonly openedAt: number
  /** Milliseconds the connect took: what another connection to the server, for a CancelRequest, will take. */
  readonly connectTook: number
  readonly expiresAt: number
  readonly generation: number
  /** Checkouts so far. */
  uses: number
  /** Whether it is to be proved before it is lent, however recently it was used. */
  isDoubted: boolean
  /** Whether the last statement that ended had an answer. */
  isAnswering: boolean
  /** Seconds from the start to the end of the last statement that ended; 0 before there is one. */
  lastTook: number
  /** Monotonic nanoseconds at which the last statement that had an answer was sent; 0 when there was none. */
  answeredSince: bigint
  /** Statements that wait for an answer. */
  busy: number
  /** Pins, streams and listeners of the driver's that are open: it lets nobody else at the session until they end. */
  pins: number
  /** COMMITs among them. */
  committing: number
  /** Set when the session must not be lent again. */
  condemned: CloseReason | undefined
}

export interface OpenOptions {
  readonly id: number
  readonly scope: Scope.Closeable
  readonly host: number
  readonly generation: number
  readonly wire: Socket.Wire
  readonly config: PgConnection.Config
  readonly now: () => number
  readonly errorText: Discretion.ErrorText
  readonly isDoubted: boolean
  /** Milliseconds; Infinity for none. */
  readonly lifetime: number
  /** Milliseconds of silence with a statement in flight after which the peer is taken for dead. */
  readonly silence: number
}

/** The same connection, counting what it is pinned by. */
class Counted extends Delegate {
  private readonly pinned: Effect.Effect<void, never, Scope.Scope>

  constructor(connection: PgConnection.PgConnection, add: (count: 1 | -1) => void) {
    super(connection)
    this.pinned = Effect.acquireRelease(Effect.sync(() => add(1)), () => Effect.sync(() => add(-1)))
  }

  override get pin() {
    return Effect.andThen(this.pinned, this.base.pin)
  }

  override listen(channel: string) {
    return Effect.andThen(this.pinned, this.base.listen(channel))
  }

  override stream(...args: Parameters<PgConnection.PgConnection["stream"]>) {
    return Stream.unwrap(Effect.as(this.pinned, this.base.stream(...args)))
  }
}

/**
 * Opens a session on a wire. When the scope closes, it says goodbye and leaves the socket to the server's answer, so
 * that a closed socket means that the server has let go of the session too.
 */
export const open = (options: OpenOptions): Effect.Effect<Session, SqlError, Scope.Scope> => {
  const { id, scope, host, wire, generation, lifetime, silence } = options
  const startedAt = options.now()
  const treat = Discretion.treatmentOf(options.errorText)
  return Effect.acquireRelease(
    Effect.void,
    () => Effect.sync(wire.expectClose)
  ).pipe(
    Effect.andThen(wire.dial),
    Effect.andThen(Effect.suspend(() => PgConnection.make({ ...options.config, stream: wire.stream }))),
    Effect.map((connection): Session => {
      const openedAt = options.now()
      const driver = new Counted(connection, (count) => {
        session.pins += count
      })
      const session: Session = {
        ...PoolMachine.unlisted,
        id,
        scope,
        host,
        connection: Discretion.guard(driver, treat),
        driver,
        wire,
        openedAt,
        connectTook: Math.max(0, openedAt - startedAt),
        expiresAt: openedAt + lifetime,
        generation,
        uses: 0,
        isDoubted: options.isDoubted,
        isAnswering: true,
        lastTook: 0,
        answeredSince: 0n,
        busy: 0,
        pins: 0,
        committing: 0,
        condemned: undefined
      }
      wire.watchSilence(silence, () => session.busy > 0, () => session.committing > 0)
      return session
    }),
    Effect.mapError(treat)
  )
}
