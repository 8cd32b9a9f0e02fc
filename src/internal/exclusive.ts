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
  readonly reserve: (options?: CheckoutOptions) => Effect.Effect<ExclusiveLease, E, Scope.Scope>
  /**
   * The same for whoever cannot be interrupted but where `restore` allows it: the session is his as soon as this succeeds. One
   * that nobody could share is not pinned.
   */
  readonly take: (restore: Restore) => Effect.Effect<ExclusiveLease, E>
  /** Of what `take` has lent, which is an {@link Own}. */
  giveBack(lease: ExclusiveLease): Effect.Effect<void> | undefined
}

/** What its borrower may see of it. */
export interface ExclusiveLease {
  readonly session: Session
  readonly connection: PgConnection.PgConnection
  readonly driver: PgConnection.PgConnection
  readonly isPinned: boolean
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

/** A session in the hands of the only one who has it. */
class Own implements ExclusiveLease {
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

  get isPinned(): boolean {
    return this.pin !== undefined
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
  const { checkouts, leaks, retirement, state, store, takeBack, timedOut, treat, turns } = pool
  const { checkout, countAcquire, takeReady, timeoutOf } = checkouts
  const { isShared, monotonic, secondsSince, settings } = state

  /**
   * By a fiber of its own: the driver's wait for what others still have on the wire cannot be interrupted, so it goes on by
   * itself when its borrower gives up. Such a pin ends with the lease, so nobody has to count it.
   */
  const pin = (own: Own): Fiber.Fiber<PgConnection.PgConnection> => {
    own.pin = Scope.makeUnsafe()
    return Effect.runForkWith(Context.make(Scope.Scope, own.pin))(own.session.driver.base.pin)
  }

  const pinned = (own: Own, { restore, since, timeout }: Borrower): Effect.Effect<Own, E> => {
    const inHand = Effect.suspend((): Effect.Effect<PgConnection.PgConnection, E> => {
      const fiber = pin(own)
      const exit = fiber.pollUnsafe()
      if (exit?._tag === "Success") return exit
      const waited = () => Math.floor(monotonic() - since)
      const inTime = Effect.timeoutOrElse(Fiber.join(fiber), {
        duration: Math.max(0, timeout - waited()),
        orElse: () => Effect.fail(timedOut(waited(), "Queue"))
      })
      return restore(inTime)
    })
    const counted = isShared
      ? Effect.onExitPrimitive(inHand, (exit) => {
        countAcquire(exit, since)
        return undefined
      })
      : inHand
    const settled = Effect.onExitPrimitive(
      counted,
      (exit) => exit._tag === "Success" ? undefined : own.pin === undefined ? end(own) : unpin(own, own.pin)
    )
    return Effect.map(settled, (driver) => {
      own.driver = driver
      return own
    })
  }

  const end = ({ session, since, watch }: Own): undefined => {
    store.use.observe(secondsSince(since))
    if (watch !== undefined) leaks!.end(watch)
    takeBack(session, true)
  }

  /** A pin that has not come about yet ends as soon as it does. */
  const unpin = (own: Own, pin: Scope.Closeable): Effect.Effect<void> | undefined => {
    const unpinned = Scope.closeUnsafe(pin, Exit.void)
    if (unpinned === undefined) return end(own)
    const fiber = alone(unpinned)
    return fiber.pollUnsafe() === undefined
      ? Effect.onExitPrimitive(Effect.asVoid(Fiber.await(fiber)), () => end(own))
      : end(own)
  }

  /** Ends what `own` has begun, and takes the session back. */
  const disown = (own: Own): Effect.Effect<void> | undefined => {
    const { pin, session } = own
    if (pin === undefined) return end(own)
    if (!isShared || session.wire.isIdle()) return unpin(own, pin)
    // Statements of those who share the session may wait behind the pin, and would run in a transaction that was left open,
    // to be rolled back with it.
    const expelled = Effect.andThen(retirement.expel(session, "invalid"), Scope.close(pin, Exit.void))
    return Effect.onExitPrimitive(expelled, () => end(own))
  }

  /**
   * Makes a session that was lent exclusively its borrower's own, for which those who still share it have to be waited for.
   * One that is not his in the end has been taken back.
   */
  const own = (session: Session, borrower: Borrower): Effect.Effect<Own, E> => {
    let own: Own
    try {
      own = new Own(session, monotonic(), leaks?.begin(session, borrower.fiber), treat)
    } catch (error) {
      takeBack(session, true)
      throw error
    }
    return isShared || borrower.isPinned ? pinned(own, borrower) : Effect.succeed(own)
  }

  return {
    reserve: (options) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
          const borrower = { fiber, restore, since: monotonic(), timeout: timeoutOf(options), isPinned: true }
          return Effect.acquireRelease(
            Effect.flatMap(checkout(options, true, restore), (session) => own(session, borrower)),
            (own) => disown(own) ?? Effect.void
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
    giveBack: disown
  }
}
