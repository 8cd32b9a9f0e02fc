import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { SchedulerDispatcher } from "effect/Scheduler"
import * as Scope from "effect/Scope"
import type { Checkout, CheckoutOptions } from "./checkout.ts"
import type { Connector } from "./connector.ts"
import type { Leaks } from "./leaks.ts"
import type { PoolState } from "./poolState.ts"
import type { Retirement } from "./retirement.ts"
import type { Session } from "./session.ts"
import * as StatementSpan from "./statementSpan.ts"
import * as Store from "./store.ts"
import type { Supply } from "./supply.ts"
import * as Turns from "./turns.ts"

/** How a session is lent to work, or to a scope, and comes back when that ends. */
export interface Lending<E> {
  /** Lends a session while an effect runs. */
  readonly use: <A, E2, R>(
    f: (session: Session) => Effect.Effect<A, E2, R>,
    options?: CheckoutOptions
  ) => Effect.Effect<A, E | E2, R>
  /** The healthy checkout by itself; it ends by `giveBackUnsafe`. */
  readonly takeUnsafe: () => Session | undefined
  readonly giveBackUnsafe: (session: Session, seconds?: number) => void
  /** A place in line for whoever is not traced; `undefined` where `use` has more to do. */
  readonly standUnsafe: (passenger: Turns.Passenger) => Turns.Place | undefined
  /** Lends what somebody in line was handed, once it has been looked at. */
  readonly examinedUnsafe: <A, E2, R>(
    claim: Turns.Claim,
    f: (session: Session) => Effect.Effect<A, E2, R>
  ) => Effect.Effect<A, E | E2, R>
  /** Lends a session until the scope closes. */
  readonly get: (options?: CheckoutOptions) => Effect.Effect<Session, E, Scope.Scope>
  readonly turns: Turns.Turns<E>
}

export const make = <E>(pool: {
  readonly state: PoolState<E>
  readonly checkouts: Checkout<E>
  readonly retirement: Retirement
  readonly supply: Supply<E>
  readonly connector: Connector<E>
  readonly store: Store.Store
  readonly dispatcher: SchedulerDispatcher
  readonly leaks: Leaks | undefined
  readonly takeBack: (session: Session, isExclusive: boolean) => void
  /** What is said to whoever has waited in line for so many milliseconds in vain. */
  readonly timedOut: (waited: number) => E
}): Lending<E> => {
  const { connector, leaks, retirement, state, store, supply, takeBack } = pool
  const { checkout, checkoutOf, countUse, obstacle, takeReady } = pool.checkouts
  const { elapsed, isShared, machine, monotonic, now, secondsSince, settings } = state

  /** A hook or a leak watch is no part of the line. */
  const needsMore = leaks !== undefined || settings.beforeAcquire !== undefined

  const takeUnsafe = (): Session | undefined => {
    if (leaks !== undefined) return undefined
    const session = takeReady(false)
    if (session !== undefined && !isShared) session.lastTook = 0
    return session
  }

  const giveBackUnsafe = (session: Session, seconds: number = lentFor(session)): void => {
    store.use.observe(seconds)
    takeBack(session, false)
  }

  /** One that nobody shares was lent for as long as its statement took, which has looked at the clock. */
  const lentFor = ({ lastTook, lentSince }: Session): number => lastTook > 0 ? lastTook : elapsed(lentSince) / 1000

  const hasNone = () => machine.top === undefined && (!isShared || machine.isCrammed)

  const use: Lending<E>["use"] = <A, E2, R>(
    f: (session: Session) => Effect.Effect<A, E2, R>,
    options?: CheckoutOptions
  ): Effect.Effect<A, E | E2, R> =>
    Effect.suspend(() => {
      // Whoever has to wait pays for nothing that the others need.
      if (options === undefined && (machine.head !== undefined || hasNone())) return useInTurn(f)
      let lent: Session | undefined
      let since: number | undefined
      // Whoever is interrupted between two steps must have the way back laid before the session is taken.
      return Effect.onExitPrimitive(
        Effect.suspend((): Effect.Effect<A, E | E2, R> => {
          if (options === undefined) lent = takeUnsafe()
          if (lent === undefined) return options === undefined ? useInTurn(f) : useAfterWait(f, options)
          if (isShared) since = monotonic()
          return f(lent)
        }),
        () => {
          if (lent === undefined) return undefined
          giveBackUnsafe(lent, since === undefined ? undefined : secondsSince(since))
          return undefined
        }
      )
    })

  /** The way of a borrower who has to wait, and of whom nothing else has to be known. */
  const useInTurn = <A, E2, R>(f: (session: Session) => Effect.Effect<A, E2, R>): Effect.Effect<A, E | E2, R> =>
    needsMore
      ? useAfterWait(f, undefined)
      : Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) =>
        StatementSpan.isTraced(fiber) ? useAfterWait(f, undefined) : turns.use(f)
      )

  const useAfterWait = <A, E2, R>(
    f: (session: Session) => Effect.Effect<A, E2, R>,
    options: CheckoutOptions | undefined
  ): Effect.Effect<A, E | E2, R> => Effect.scopedWith((scope) => Effect.flatMap(Scope.provide(get(options), scope), f))

  const get: Lending<E>["get"] = (options) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(Effect.scope, (scope) => lease(scope, checkout(options, false, restore)))
    )

  const examinedUnsafe: Lending<E>["examinedUnsafe"] = (claim, f) =>
    Effect.scopedWith((scope) => Effect.flatMap(Scope.provide(examined(claim), scope), f))

  const examined = (claim: Turns.Claim): Effect.Effect<Session, E, Scope.Scope> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(Effect.scope, (scope) => lease(scope, checkoutOf(claim, restore)))
    )

  /** From the end of the checkout on, the session belongs to the scope. */
  const lease = (scope: Scope.Scope, checkout: Effect.Effect<Session, E>): Effect.Effect<Session, E> =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) =>
      Effect.flatMap(checkout, (session) => {
        const hold = leaks?.begin(session, fiber)
        const since = monotonic()
        const giveBack = Effect.sync(() => {
          store.use.observe(secondsSince(since))
          if (hold !== undefined) leaks!.end(hold)
          takeBack(session, false)
        })
        return Effect.as(Scope.addFinalizer(scope, giveBack), session)
      })
    )

  /** Whoever comes to the line finds nothing to do there while all places are taken and all sessions lent. */
  const isExhausted = () => machine.top === undefined && connector.taken() >= state.max

  const turns = Turns.make<E>({
    state,
    dispatcher: pool.dispatcher,
    obstacle,
    arrived: () => {
      if (!isExhausted()) {
        retirement.retireIdle(now())
        supply.pump()
      }
      store.peakWaiting = Math.max(store.peakWaiting, machine.waiting)
    },
    timedOut: (waited) => pool.timedOut(Math.floor(waited)),
    isWorthy: (session) => {
      const verdict = retirement.standing(session, 1, now())
      return verdict === "Ready" || (verdict === "Unproven" && session.borrowers > 1)
    },
    examined: examinedUnsafe,
    exchanged: checkoutOf,
    waited: (millis, isExclusive, exit) => {
      if (exit !== undefined) Store.countAcquire(store, millis / 1000, exit)
      else if (!isExclusive || !isShared) store.acquire.acquired.observe(millis / 1000)
    },
    lent: (session) => {
      if (!isShared) session.lastTook = 0
      countUse(session)
    },
    returned: (session, since) => store.use.observe(isShared ? secondsSince(since) : lentFor(session)),
    unused: retirement.unused,
    takeBack
  })

  const standUnsafe: Lending<E>["standUnsafe"] = (passenger) => needsMore ? undefined : turns.stand(passenger)

  return { use, takeUnsafe, giveBackUnsafe, standUnsafe, examinedUnsafe, get, turns }
}
