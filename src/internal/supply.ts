import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Classify from "./classify.ts"
import * as Codel from "./codel.ts"
import type { Connector } from "./connector.ts"
import { digFailure } from "./failure.ts"
import { isFull } from "./fullServer.ts"
import * as LogFields from "./logFields.ts"
import * as PoolMachine from "./poolMachine.ts"
import type { PoolState } from "./poolState.ts"
import type { Retirement } from "./retirement.ts"
import type { Session } from "./session.ts"
import type { Kind } from "./verdict.ts"

/** Serves the line from the shelf, and opens what is missing. */
export interface Supply<E> {
  /** To be called whenever something has changed: hands out what there is, and opens what the line needs. */
  readonly pump: (at?: number) => void
  /** A session that has its share of borrowers, for one more, if no other is to be had. */
  readonly deeper: (at: number) => Session | undefined
  /** A session has arrived. */
  readonly arrived: (session: Session) => void
  /** A connect has failed. */
  readonly failed: (error: E) => void
  /** Turns everybody away who waits. */
  readonly refuseAll: (error: E) => void
  /** Turns those away who warm the pool. */
  readonly disappoint: (error: E) => void
  /** Waits until there are so many sessions, or as many as there may be. */
  readonly warm: (count: number) => Effect.Effect<void, E>
  /** Counts somebody who was served without having waited. */
  readonly servedAtOnce: (at: number) => void
  /** Ends what waits for the next connect to be tried. */
  readonly close: () => void
}

/** Somebody who waits until there are so many sessions. */
interface Wish<E> {
  readonly count: number
  readonly settle: (outcome: Effect.Effect<void, E>) => void
}

export const make = <E extends { readonly _tag: string }>(
  state: PoolState<E>,
  retirement: Retirement,
  connector: () => Connector<E>,
  tooLate: (waited: number) => E
): Supply<E> => {
  const { machine, monotonic, now, runFork, settings } = state
  const { members } = machine
  const codel = settings.shedding === undefined ? undefined : Codel.make(settings.shedding)
  const wishes = new Set<Wish<E>>()
  let retry: Fiber.Fiber<void> | undefined

  const isWorthy = (session: Session, at: number): boolean => {
    const verdict = retirement.standing(session, 0, at)
    if (verdict === "Ready" || verdict === "Unproven") return true
    retirement.evict(session, verdict)
    return false
  }

  const isAtMax = () => members.size >= state.max

  /** For one more than its share, if there is nothing else to be had, nor will be. */
  const deeper = (at: number): Session | undefined =>
    isAtMax() && machine.top === undefined ? PoolMachine.deeper(machine, at, isWorthy) : undefined

  const refusal = ({ since }: PoolMachine.Waiter<Session, E>, at: number): E | undefined => {
    if (codel === undefined) return undefined
    const waited = Math.round(monotonic() - since)
    return Codel.isLate(codel, waited, at) ? tooLate(waited) : undefined
  }

  /**
   * A server that answers, but takes no more sessions, goes on serving those it has; so does one whose new sessions our
   * own side does not want.
   */
  const isRefusal = (error: E): boolean => {
    if (error._tag === "HookFailed" || error._tag === "CredentialsFailed" || error._tag === "FleetTooLarge") return true
    const kind = kindOf(error)
    return kind === "Overloaded" || kind === "Denied"
  }

  const kindOf = (error: E): Kind =>
    Classify.classify(digFailure(error), { phase: "Connect", reused: false, replied: false }).kind

  const report = (error: E): void => {
    // What the end of the pool has cut off has not failed.
    if (state.phase === "Closed") return
    state.book.write(
      "connectionFailed",
      () => LogFields.ofConnect(error, kindOf(error), settings.errorText, connector().pause())
    )
  }

  /**
   * New connections may fail where old ones work: a firewall, a name or a certificate that has expired, no file left to
   * open. A session that has answered within the time that a connect may take tells that from a server that is gone.
   */
  const serverAnswers = (at: number): boolean => {
    for (const { condemned, idleSince, isAnswering, wire } of members) {
      const since = at - idleSince
      if (since >= 0 && since < settings.connectTimeout && isAnswering && condemned === undefined && !wire.isDead()) {
        return true
      }
    }
    return false
  }

  /** Whether those who wait may be served whatever has become of the connect. */
  const isWorthWaiting = (error: E): boolean =>
    connector().connecting() > 0 || (members.size > 0 && (isRefusal(error) || serverAnswers(now()))) ||
    (settings.waitsForRoom && isFull(error))

  const disappoint = (error: E): void => {
    for (const wish of wishes) wish.settle(Effect.fail(error))
  }

  const refuseAll = (error: E): void => {
    PoolMachine.refuseAll(machine, error)
    disappoint(error)
  }

  const missing = (connecting: number): number => {
    let most = PoolMachine.shortfall(machine, connecting)
    for (const { count } of wishes) most = Math.max(most, Math.min(count, state.max) - members.size - connecting)
    return most
  }

  const openMore = (): void => {
    const { connect, connecting, decide, taken } = connector()
    while (state.phase !== "Closed" && taken() < state.max && missing(connecting()) > 0) {
      const decision = decide()
      if (decision === "Go") {
        connect()
        continue
      }
      if (decision === "Wait") return
      if (!isWorthWaiting(decision.cause)) return refuseAll(decision.cause)
      retry ??= runFork(Effect.map(Effect.sleep(decision.retryAfter), () => {
        retry = undefined
        openMore()
      }))
      return
    }
  }

  const pump = (at: number = now()): void => {
    PoolMachine.serve(machine, at, isWorthy, refusal, isAtMax)
    for (const wish of wishes) if (members.size >= Math.min(wish.count, state.max)) wish.settle(Effect.void)
    openMore()
    if (state.phase === "Draining" && machine.waiting === 0) retirement.retireUnused("shutdown")
    state.changed.notify()
  }

  return {
    pump,
    deeper,
    refuseAll,
    disappoint,
    arrived: (session) => {
      PoolMachine.admit(machine, session, now())
      retirement.arrived(session)
      if (state.phase === "Closed") retirement.evict(session, "shutdown")
      else if (members.size > state.max) retirement.evict(session, "resize")
      pump()
    },
    failed: (error) => {
      if (!isWorthWaiting(error)) refuseAll(error)
      // Who wants more sessions is not served by those that come back.
      else if (connector().connecting() === 0 && !isRefusal(error)) disappoint(error)
      pump()
      report(error)
    },
    warm: (count) =>
      Effect.callback((settle) => {
        const wish: Wish<E> = {
          count,
          settle: (outcome) => {
            wishes.delete(wish)
            settle(outcome)
          }
        }
        wishes.add(wish)
        pump()
        return Effect.sync(() => wishes.delete(wish))
      }),
    servedAtOnce: (at) => {
      if (codel !== undefined) Codel.isLate(codel, 0, at)
    },
    close: () => retry?.interruptUnsafe()
  }
}
