import * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { SchedulerDispatcher } from "effect/Scheduler"
import type * as Scope from "effect/Scope"
import * as Census from "./census.ts"
import type { Connector } from "./connector.ts"
import * as Errand from "./errand.ts"
import type { Restore } from "./held.ts"
import * as Liveness from "./liveness.ts"
import { millis } from "./millis.ts"
import * as PoolMachine from "./poolMachine.ts"
import type { SessionUsage } from "./poolSettings.ts"
import type { Phase, PoolSpans } from "./poolSpans.ts"
import type { PoolState } from "./poolState.ts"
import type { Retirement } from "./retirement.ts"
import type { CloseReason, Session } from "./session.ts"
import type * as Spans from "./spans.ts"
import * as Store from "./store.ts"
import type { Supply } from "./supply.ts"
import type { Claim } from "./turns.ts"

/** How a checkout differs from the usual one. */
export interface CheckoutOptions {
  /** Prove the session by a round trip before it is handed out. Default: only when it has been idle for long. */
  readonly prove?: boolean | undefined
  /**
   * A session that has answered so lately needs no `prove`. Where a pooler answers a connect by itself, that is no answer.
   * Default: 0, so each is proved.
   */
  readonly provedFor?: Duration.Input | undefined
  /** Bounds that round trip. Default: the pool's `validationTimeout`. */
  readonly proveWithin?: Duration.Input | undefined
  /**
   * Bounds this checkout. With next to no time only a session that is ready can be had; one that had to be proved first is
   * lost, and another one is there for those who come later. Default: the pool's `acquireTimeout`.
   */
  readonly timeout?: Duration.Input | undefined
}

/**
 * How a session comes into its borrower's hands: taken at once, or waited for in line, and looked at. Whoever has it gives
 * it back.
 */
export interface Checkout<E> {
  /** The whole way of a healthy borrower: the session that came back last, if nobody waits and nothing speaks against it. */
  readonly takeReady: (isExclusive: boolean) => Session | undefined
  /**
   * Everything that may take time before a session is in its borrower's hands, under one bound. Whoever asks must not be
   * interruptible: the session is theirs as soon as this succeeds.
   */
  readonly checkout: (
    options: CheckoutOptions | undefined,
    isExclusive: boolean,
    restore: Restore
  ) => Effect.Effect<Session, E>
  /** The same for somebody who has come to the head of the line, with what was handed out there. */
  readonly checkoutOf: (claim: Claim, restore: Restore) => Effect.Effect<Session, E>
  /** Why nobody may stand in line. */
  readonly obstacle: () => E | undefined
  /** To be called of each session that is lent. */
  readonly countUse: (session: Session) => Session
  /** Counts a wait that began at that monotonic millisecond. */
  readonly countAcquire: (exit: Exit.Exit<unknown, unknown>, since: number) => void
  /** Milliseconds. */
  readonly timeoutOf: (options: CheckoutOptions | undefined) => number
  /** Checkouts under way: in line, or with a session that is being looked at. */
  readonly attempts: () => number
}

/** One checkout that could not be served at once. */
interface Attempt<E> {
  readonly waiter: PoolMachine.Waiter<Session, E>
  /** What is at work on the session at hand. */
  spentOn: "Validate" | "Hook" | undefined
  /** New sessions that the hook did not want, or that died under it. */
  refused: number
  /** What it has had to wait for. */
  readonly phases: Set<Phase>
}

/** How many new sessions in a row `beforeAcquire` may refuse in a pool that is smaller. */
const fewestRefusals = 3

export const make = <E>(pool: {
  readonly state: PoolState<E>
  readonly retirement: Retirement
  readonly supply: Supply<E>
  readonly connector: Connector<E>
  readonly spans: PoolSpans<E>
  readonly store: Store.Store
  readonly dispatcher: SchedulerDispatcher
  readonly usage: (session: Session) => SessionUsage
  /** Keeps a session from being lent to anybody else until the scope closes. */
  readonly exclude: (session: Session) => Effect.Effect<void, never, Scope.Scope>
  readonly takeBack: (session: Session, isExclusive: boolean) => void
  /** Somebody is lent a session. */
  readonly lent: ((session: Session) => void) | undefined
  /** To be called when a checkout has ended. */
  readonly rest: () => void
  readonly closed: () => E
  /** What is said to whoever would be one too many in line. */
  readonly saturated: (by: "Length", waited: number) => E
  /** What is said to whoever has spent so many milliseconds on it in vain. */
  readonly timedOut: (waited: number, phase: Phase) => E
  readonly hookFailed: (hook: string, cause: unknown, text?: string) => E
}): Checkout<E> => {
  const { closed, connector, dispatcher, lent, retirement, spans, state, store, supply, takeBack } = pool
  const { changed, elapsed, isShared, machine, monotonic, now, secondsSince, settings } = state

  let attempts = 0

  const timeoutOf: Checkout<E>["timeoutOf"] = (options) =>
    options?.timeout === undefined ? settings.acquireTimeout : millis(options.timeout)

  const proofTimeoutOf = (options: CheckoutOptions | undefined): number =>
    options?.proveWithin === undefined ? settings.validationTimeout : millis(options.proveWithin)

  const hasAnswered = (
    { answeredSince, isAnswering, openedAt }: Session,
    at: number,
    { provedFor }: CheckoutOptions
  ): boolean => {
    if (provedFor === undefined || !isAnswering) return false
    if (answeredSince > 0n) return monotonic() - Number(answeredSince) / 1e6 <= millis(provedFor)
    // The last that it has answered is its connect.
    return !settings.behindPooler && at >= openedAt && at - openedAt <= millis(provedFor)
  }

  const countAcquire: Checkout<E>["countAcquire"] = (exit, since) =>
    Store.countAcquire(store, secondsSince(since), exit)

  const countUse: Checkout<E>["countUse"] = (session) => {
    if (++session.uses >= settings.maxUses && elapsed(session.openedAt) >= settings.minAgeForUses) {
      retirement.evict(session, "uses")
    }
    if (lent !== undefined) lent(session)
    return session
  }

  const takeReady: Checkout<E>["takeReady"] = (isExclusive) => {
    const { bottom, head, isSuspended } = machine
    if (head !== undefined || isSuspended || state.phase !== "Open" || settings.beforeAcquire !== undefined) {
      return undefined
    }
    if (machine.top === undefined && (isExclusive || !isShared)) return undefined
    const at = now()
    const top = machine.top ?? supply.deeper(at)
    if (top === undefined || (isExclusive && top.borrowers > 0)) return undefined
    if (retirement.standing(top, 0, at) !== "Ready") return undefined
    if (
      bottom !== undefined && bottom !== top && at - bottom.idleSince > settings.idleTimeout && retirement.isDue(at)
    ) {
      retirement.retireIdle(at)
      // One that nobody has used yet may have been idle for as long as the others.
      if (!top.isMember) return undefined
    }
    if (!isExclusive || !isShared) store.acquire.acquired.observe(0)
    supply.servedAtOnce(at)
    PoolMachine.lend(machine, top, at, isExclusive)
    return countUse(top)
  }

  const obstacle: Checkout<E>["obstacle"] = () => {
    if (state.phase !== "Open") return closed()
    return settings.maxWaiting < Infinity && supply.deeper(now()) === undefined &&
        PoolMachine.queueing(machine, state.max) >= settings.maxWaiting
      ? pool.saturated("Length", 0)
      : undefined
  }

  const checkout: Checkout<E>["checkout"] = (options, isExclusive, restore) =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<Session, E> => {
      const ready = options?.prove === true ? undefined : takeReady(isExclusive)
      if (ready !== undefined) return Effect.succeed(ready)
      const why = obstacle()
      if (why === undefined) {
        return search(PoolMachine.makeWaiter(machine, monotonic(), isExclusive), options, fiber, restore)
      }
      const refused = Exit.fail(why)
      Store.countAcquire(store, 0, refused)
      return refused
    })

  const checkoutOf: Checkout<E>["checkoutOf"] = (claim, restore) =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const waiter = PoolMachine.makeWaiter<Session, E>(machine, claim.since, claim.isExclusive, claim.ticket)
      return search(waiter, undefined, fiber, restore, claim)
    })

  const search = (
    waiter: PoolMachine.Waiter<Session, E>,
    options: CheckoutOptions | undefined,
    fiber: Fiber.Fiber<unknown, unknown>,
    restore: Restore,
    claim?: Claim
  ): Effect.Effect<Session, E> => {
    const { isExclusive, since } = waiter
    const attempt: Attempt<E> = { waiter, spentOn: undefined, refused: 0, phases: new Set() }
    const trace = spans.begin(fiber, waiter)
    const waited = () => Math.floor(monotonic() - since)
    const left = Math.max(0, timeoutOf(options) - waited())
    // From here on, its own end gives back what it has.
    attempts++
    waiter.session = claim?.take()
    const worthy = Effect.timeoutOrElse(firstWorthy(attempt, options), {
      duration: left,
      orElse: () => {
        const phase = attempt.spentOn ?? (attempt.refused > 0 ? "Hook" : Census.lineFor(state))
        attempt.phases.add(phase)
        return Effect.fail(pool.timedOut(waited(), phase))
      }
    })
    return Effect.onExitPrimitive(restore(worthy), (exit) => {
      let isOurs = true
      try {
        if (exit._tag === "Failure" || !isExclusive || !isShared) countAcquire(exit, since)
        if (trace !== undefined) tellOfWait(trace, attempt, waited(), exit)
        isOurs = exit._tag === "Failure"
      } finally {
        if (isOurs) abandon(waiter)
        attempts--
        pool.rest()
        if (state.phase !== "Open") changed.notify()
      }
      return undefined
    })
  }

  /** A hook that is content is no wait. */
  const tellOfWait = (
    since: Spans.Beginning,
    { phases }: Attempt<E>,
    waited: number,
    exit: Exit.Exit<unknown, E>
  ): void => {
    if (Exit.isFailure(exit) && phases.size === 0) phases.add(Census.lineFor(state))
    if (Exit.isFailure(exit) || phases.size > (phases.has("Hook") ? 1 : 0)) {
      spans.acquired(since, phases, waited, exit)
    }
  }

  const abandon = (waiter: PoolMachine.Waiter<Session, E>): void => {
    PoolMachine.dequeue(machine, waiter)
    const { session } = waiter
    waiter.session = undefined
    if (session === undefined) return
    retirement.unused(session)
    takeBack(session, waiter.isExclusive)
  }

  /** Stands in line until a session is there, in `waiter.session`, which is the waiter's from that moment on. */
  const stand = ({ phases, waiter }: Attempt<E>): Effect.Effect<Session, E> =>
    Effect.callback((resume) => {
      // Nobody is served, nor refused, any more.
      if (state.phase === "Closed") return resume(Effect.fail(closed()))
      let isArriving = true
      waiter.onServed = (refusal) => {
        const answer = refusal === undefined ? Effect.sync(() => waiter.session!) : Effect.fail(refusal)
        if (isArriving) return resume(answer)
        phases.add(
          waiter.session === undefined ? Census.lineFor(state) : waiter.session.uses === 0 ? "Connect" : "Queue"
        )
        dispatcher.scheduleTask(() => resume(answer), 0)
      }
      PoolMachine.enqueue(machine, waiter)
      retirement.retireIdle(now())
      supply.pump()
      store.peakWaiting = Math.max(store.peakWaiting, machine.waiting)
      isArriving = false
      return Effect.sync(() => PoolMachine.dequeue(machine, waiter))
    })

  /** Takes sessions until one is worth handing out. Whoever gets one that is not goes back to the head of the line. */
  const firstWorthy = (attempt: Attempt<E>, options: CheckoutOptions | undefined): Effect.Effect<Session, E> =>
    Effect.flatMap(
      attempt.waiter.session === undefined ? stand(attempt) : Effect.succeed(attempt.waiter.session),
      (session) => {
        const again = (reason: CloseReason) => {
          retirement.evict(session, reason)
          abandon(attempt.waiter)
          return firstWorthy(attempt, options)
        }
        const at = now()
        const verdict = retirement.standing(session, 1, at)
        if (verdict !== "Ready" && verdict !== "Unproven") return again(verdict)
        // One in use is watched by its statements. A new one may only have been proved by a pooler.
        const isProved = session.borrowers > 1 ||
          (verdict === "Ready" && (options?.prove !== true || hasAnswered(session, at, options)))
        if (isProved) return welcome(session, attempt, again)
        const isNew = session.uses === 0 && at - session.openedAt < settings.validateAfter
        attempt.spentOn = "Validate"
        attempt.phases.add("Validate")
        return Effect.flatMap(
          Effect.scoped(Effect.andThen(pool.exclude(session), Liveness.prove(session, proofTimeoutOf(options)))),
          (objection) => {
            attempt.spentOn = undefined
            session.isDoubted = settings.validateAlways
            if (objection === undefined) return welcome(session, attempt, again)
            retirement.evictOlderThan(session)
            // A pooler without a server opens sessions, and answers nothing.
            if (isNew) connector.disproved(objection)
            return again("invalid")
          }
        )
      }
    )

  const welcome = (
    session: Session,
    attempt: Attempt<E>,
    again: (reason: CloseReason) => Effect.Effect<Session, E>
  ): Effect.Effect<Session, E> => {
    const hook = settings.beforeAcquire
    if (hook === undefined) return Effect.succeed(countUse(session))
    const failed = (cause: unknown, text?: string) => {
      retirement.evict(session, "invalid")
      return Effect.fail(pool.hookFailed("beforeAcquire", cause, text))
    }
    // A hook that wants none must not have sessions opened and closed for as long as its borrower waits.
    const refuse = (reason: CloseReason) => {
      if (session.uses === 0) attempt.refused++
      if (attempt.refused <= Math.max(state.max, fewestRefusals)) return again(reason)
      const why = `${attempt.refused} new sessions in a row refused, or lost while it was at work`
      return failed(new Error(why), why)
    }
    const work = Effect.suspend(() => hook(session.connection, pool.usage(session)))
    attempt.spentOn = "Hook"
    attempt.phases.add("Hook")
    // A shared session is others' as well, so its socket stays.
    const welcomed = settings.concurrency === 1
      ? Errand.run(work, session.wire)
      : Effect.onInterrupt(work, () => Effect.sync(() => retirement.evict(session, "invalid")))
    // A hook that waits for something else would not hear that the pool has closed.
    const lost = Effect.flatMap(changed.until(session.wire.isDead), () => Effect.fail("the session is gone"))
    return Effect.matchCauseEffect(Effect.raceFirst(welcomed, lost), {
      onSuccess: (answer) => {
        attempt.spentOn = undefined
        return answer === false ? refuse("invalid") : Effect.succeed(countUse(session))
      },
      onFailure: (cause) => {
        attempt.spentOn = undefined
        // Its session has died under it, which says nothing of the hook.
        return session.wire.isDead() ? refuse("error") : failed(Cause.squash(cause))
      }
    })
  }

  return {
    takeReady,
    checkout,
    checkoutOf,
    obstacle,
    countUse,
    countAcquire,
    timeoutOf,
    attempts: () => attempts
  }
}
