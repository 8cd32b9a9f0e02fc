import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import type { Checkout, CheckoutOptions } from "./checkout.ts"
import * as Discretion from "./discretion.ts"
import type { Restore } from "./held.ts"
import type * as Leaks from "./leaks.ts"
import type { PoolState } from "./poolState.ts"
import type { Retirement } from "./retirement.ts"
import type { Session } from "./session.ts"
import * as StatementSpan from "./statementSpan.ts"
import type { Store } from "./store.ts"
import type { Turns } from "./turns.ts"

/** Sessions that somebody has for himself. */
export interface Exclusive<E> {
  /** Lends one until the scope closes. */
  readonly reserve: (options?: CheckoutOptions) => Effect.Effect<Own, E, Scope.Scope>
  /**
   * The same for whoever cannot be interrupted but where `restore` allows it: the session is his as soon as this succeeds. One
   * that nobody could share is not pinned.
   */
  readonly take: (restore: Restore) => Effect.Effect<Own, E>
  readonly giveBack: (own: Own) => Effect.Effect<void> | undefined
}

/** Somebody who cannot be interrupted but where `restore` allows it. */
interface Borrower {
  readonly fiber: Fiber.Fiber<unknown, unknown>
  readonly restore: Restore
  /** Monotonic milliseconds at which he asked for a session. */
  readonly since: number
  /** Milliseconds from then on. */
  readonly timeout: number
  /** Whether the driver has to keep others from the session even if the pool lends it to nobody else. */
  readonly isPinned: boolean
}

type TakeBack = (session: Session) => void

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

export const make = <E>(pool: {
  readonly state: PoolState<E>
  readonly checkouts: Checkout<E>
  readonly retirement: Retirement
  readonly turns: Turns<E>
  readonly leaks: Leaks.Leaks | undefined
  readonly store: Store
  readonly treat: <A>(error: A) => A
  readonly takeBack: (session: Session, isExclusive: boolean) => void
  readonly timedOut: (waited: number, phase: "Queue") => E
}): Exclusive<E> => {
  const { checkouts, leaks, retirement, state, store, timedOut, treat, turns } = pool
  const { checkout, countAcquire, takeReady, timeoutOf } = checkouts
  const { monotonic, secondsSince, settings } = state

  /** Whoever wants a session that others share has it when they have let go of it. */
  const isShared = settings.concurrency > 1

  const takeBack = (session: Session) => pool.takeBack(session, true)
  const giveBackInTurn = (session: Session) => turns.giveBack(session, true)

  /**
   * By a fiber of its own: the driver's wait for what others still have on the wire cannot be interrupted, so it goes on by
   * itself when its borrower gives up. Such a pin ends with the lease, so nobody has to count it.
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
        if (isShared) countAcquire(exit, since)
        own.driver = exit.value
        return Effect.succeed(own)
      }
      const waited = () => Math.floor(monotonic() - since)
      const inTime = Effect.timeoutOrElse(Fiber.join(fiber), {
        duration: Math.max(0, timeout - waited()),
        orElse: () => Effect.fail(timedOut(waited(), "Queue"))
      })
      const settled = Effect.onExitPrimitive(restore(inTime), (exit) => {
        if (isShared) countAcquire(exit, since)
        return exit._tag === "Success" ? undefined : unpin(own, own.pin!, takeBack)
      })
      return Effect.map(settled, (driver) => {
        own.driver = driver
        return own
      })
    })

  const end = ({ session, since, watch }: Own, takeBack: TakeBack): undefined => {
    store.use.observe(secondsSince(since))
    if (watch !== undefined) leaks!.end(watch)
    takeBack(session)
  }

  /** A pin that has not come about yet ends as soon as it does. */
  const unpin = (own: Own, pin: Scope.Closeable, takeBack: TakeBack): Effect.Effect<void> | undefined => {
    const unpinned = Scope.closeUnsafe(pin, Exit.void)
    if (unpinned === undefined) return end(own, takeBack)
    const fiber = alone(unpinned)
    return fiber.pollUnsafe() === undefined
      ? Effect.onExitPrimitive(Effect.asVoid(Fiber.await(fiber)), () => end(own, takeBack))
      : end(own, takeBack)
  }

  /** Ends what `own` has begun, and takes the session back. */
  const disown = (own: Own, takeBack: TakeBack): Effect.Effect<void> | undefined => {
    const { pin, session } = own
    if (pin === undefined) return end(own, takeBack)
    if (!isShared || session.wire.isIdle()) return unpin(own, pin, takeBack)
    // Statements of those who share the session may wait behind the pin, and would run in a transaction that was left open,
    // to be rolled back with it.
    const expelled = Effect.andThen(retirement.expel(session, "invalid"), Scope.close(pin, Exit.void))
    return Effect.onExitPrimitive(expelled, () => end(own, takeBack))
  }

  /**
   * Makes a session that was lent exclusively its borrower's own, for which those who still share it have to be waited for.
   * One that is not his in the end has been taken back.
   */
  const own = (session: Session, borrower: Borrower): Effect.Effect<Own, E> => {
    const own = new Own(session, monotonic(), leaks?.begin(session, borrower.fiber), treat)
    return isShared || borrower.isPinned ? pinned(own, borrower) : Effect.succeed(own)
  }

  return {
    reserve: (options) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
          const borrower = { fiber, restore, since: monotonic(), timeout: timeoutOf(options), isPinned: true }
          return Effect.acquireRelease(
            Effect.flatMap(checkout(options, true, restore), (session) => own(session, borrower)),
            (own) => disown(own, takeBack) ?? Effect.void
          )
        })
      ),
    take: (restore) =>
      Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<Own, E> => {
        const since = isShared ? monotonic() : 0
        const borrower = { fiber, restore, since, timeout: settings.acquireTimeout, isPinned: false }
        const ready = takeReady(true)
        if (ready !== undefined) return own(ready, borrower)
        return Effect.flatMap(
          settings.beforeAcquire !== undefined || StatementSpan.isTraced(fiber)
            ? checkout(undefined, true, restore)
            : turns.take(restore),
          (session) => own(session, borrower)
        )
      }),
    giveBack: (own) => disown(own, giveBackInTurn)
  }
}
