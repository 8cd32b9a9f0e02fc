import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Discretion from "./discretion.ts"
import type { Restore } from "./held.ts"
import type * as Leaks from "./leaks.ts"
import type { PoolState } from "./poolState.ts"
import type { Retirement } from "./retirement.ts"
import type { Session } from "./session.ts"

/** Sessions that somebody has for himself. */
export interface Exclusive<E> {
  /**
   * Makes a session that was lent exclusively its borrower's own, for which those who still share it have to be waited for.
   * For whoever cannot be interrupted: a session that is not his in the end has been taken back.
   */
  readonly own: (session: Session, borrower: Borrower) => Effect.Effect<Own, E>
  /** Ends what `own` has begun, and takes the session back. */
  readonly disown: (own: Own, takeBack: TakeBack) => Effect.Effect<void> | undefined
}

type TakeBack = (session: Session) => void

export interface Borrower {
  readonly fiber: Fiber.Fiber<unknown, unknown>
  /** Where he can be interrupted. */
  readonly restore: Restore
  /** Monotonic milliseconds at which he asked for a session. */
  readonly since: number
  /** Milliseconds from then on. */
  readonly timeout: number
  /** Whether the driver has to know of him even if nobody shares the session. */
  readonly isPinned: boolean
}

/** What the room is a part of. */
export interface Office<E> {
  readonly state: PoolState<E>
  readonly retirement: Retirement
  readonly leaks: Leaks.Leaks | undefined
  readonly treat: <A>(error: A) => A
  readonly timedOut: (waited: number) => E
  /** Counts the end of the wait for a session that may be shared. */
  readonly acquired: (exit: Exit.Exit<unknown, unknown>, since: number) => void
  /** Counts the end of a lease that began at that monotonic millisecond. */
  readonly returned: (since: number) => void
  readonly takeBack: TakeBack
}

/** A session in the hands of the only one who has it. */
export class Own {
  readonly session: Session
  /** The driver's connection as it is. */
  driver: PgConnection.PgConnection
  /** What the driver holds it for him by. */
  pin: Scope.Closeable | undefined
  readonly watch: Leaks.Lease | undefined
  readonly since: number
  private readonly treat: <A>(error: A) => A

  constructor(session: Session, since: number, watch: Leaks.Lease | undefined, treat: <A>(error: A) => A) {
    this.session = session
    this.driver = session.driver
    this.pin = undefined
    this.watch = watch
    this.since = since
    this.treat = treat
  }

  /** The same, with its errors as they may be seen. */
  get connection(): PgConnection.PgConnection {
    return Discretion.guard(this.driver, this.treat)
  }
}

/** With nothing of its borrower's context, which the driver would copy. */
const alone = Effect.runForkWith(Context.empty())

export const make = <E>(office: Office<E>): Exclusive<E> => {
  const { acquired, leaks, retirement, returned, state: { monotonic, settings }, takeBack, timedOut, treat } = office
  const isShared = settings.concurrency > 1

  /**
   * By a fiber of its own: the driver's wait for what others still have on the wire cannot be interrupted, so it goes on by
   * itself when its borrower gives up. Nobody needs to be told of this pin, which the driver itself counts.
   */
  const pin = (own: Own): Fiber.Fiber<PgConnection.PgConnection> => {
    own.pin = Scope.makeUnsafe()
    return Effect.runForkWith(Context.make(Scope.Scope, own.pin))(own.session.driver.base.pin)
  }

  const pinned = (own: Own, { restore, since, timeout }: Borrower): Effect.Effect<Own, E> =>
    Effect.suspend(() => {
      const fiber = pin(own)
      const exit = fiber.pollUnsafe()
      if (exit?._tag === "Success") {
        if (isShared) acquired(exit, since)
        own.driver = exit.value
        return Effect.succeed(own)
      }
      const waited = () => Math.floor(monotonic() - since)
      const inTime = Effect.timeoutOrElse(Fiber.join(fiber), {
        duration: Math.max(0, timeout - waited()),
        orElse: () => Effect.fail(timedOut(waited()))
      })
      const settled = Effect.onExitPrimitive(restore(inTime), (exit) => {
        if (isShared) acquired(exit, since)
        if (exit._tag === "Success") return undefined
        const left = Effect.suspend(() => disown(own, takeBack) ?? Effect.void)
        return Effect.forkDetach(Effect.andThen(Fiber.await(fiber), left))
      })
      return Effect.map(settled, (driver) => {
        own.driver = driver
        return own
      })
    })

  const disown: Exclusive<E>["disown"] = (own, takeBack) => {
    const { pin, session, since, watch } = own
    const ended = (): undefined => {
      returned(since)
      if (watch !== undefined) leaks!.end(watch)
      takeBack(session)
    }
    if (pin === undefined) return ended()
    // Statements of those who share the session may wait behind the pin, and would run in a transaction that was left open,
    // to be rolled back with it.
    if (isShared && !session.wire.isIdle()) {
      const expelled = Effect.andThen(retirement.expel(session, "invalid"), Scope.close(pin, Exit.void))
      return Effect.onExitPrimitive(expelled, ended)
    }
    const unpinned = Scope.closeUnsafe(pin, Exit.void)
    if (unpinned === undefined) return ended()
    const fiber = alone(unpinned)
    return fiber.pollUnsafe() === undefined ? Effect.onExitPrimitive(Fiber.await(fiber), ended) : ended()
  }

  return {
    own: (session, borrower) => {
      const own = new Own(session, monotonic(), leaks?.begin(session, borrower.fiber), treat)
      return isShared || borrower.isPinned ? pinned(own, borrower) : Effect.succeed(own)
    },
    disown
  }
}
