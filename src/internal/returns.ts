import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Errand from "./errand.ts"
import * as LogFields from "./logFields.ts"
import * as PoolMachine from "./poolMachine.ts"
import type { SessionUsage } from "./poolSettings.ts"
import type { PoolState } from "./poolState.ts"
import type { Retirement } from "./retirement.ts"
import type { CloseReason, Session } from "./session.ts"

/** What happens to a session when its lease ends. */
export interface Returns {
  /**
   * The end of every lease, on every exit. A session that must go leaves before anybody else can get it, and whoever gives
   * it back never waits.
   */
  readonly takeBack: (session: Session, isExclusive: boolean) => void
}

export const make = <E>(
  state: PoolState<E>,
  retirement: Retirement,
  usage: (session: Session) => SessionUsage,
  pump: (at?: number) => void,
  quiet: () => void
): Returns => {
  const { book, changed, machine, now, runFork, settings } = state
  const { members } = machine

  /**
   * Whether the session has to go because there are too many. One that nobody uses goes at once; one that is shared goes
   * with the last who has it, so it is told in time, if others that are on their way out do not suffice.
   */
  const isSurplus = (session: Session): boolean =>
    members.size > state.max && (session.borrowers === 1 || retirement.staying() > state.max)

  /**
   * Somebody's BEGIN is open, a statement or listener still at work, or something unasked for came last: the next
   * borrower must not find out. On a shared session, what others have at work there is in nobody's way.
   */
  const isLeftUnfinished = ({ busy, pins, wire }: Session): boolean =>
    settings.concurrency === 1
      ? busy > 0 || pins > 0 || wire.isOwed() || !wire.isIdle()
      : busy === 0 && !wire.isIdle()

  /** Why the session must not be lent again. */
  const objection = (session: Session, at: number): CloseReason | undefined => {
    if (session.wire.isDead()) return "error"
    // It would hit the next borrower's statement.
    if (session.wire.cancelThreat() !== "None") return "invalid"
    if (session.borrowers === 1 && isLeftUnfinished(session)) return "invalid"
    if (isSurplus(session)) return "resize"
    if (machine.waiting > 0) {
      // Those who wait must not wait for the next checkout to find out, and then for a connect.
      return at >= session.expiresAt ? "lifetime" : undefined
    }
    return state.phase === "Open" ? undefined : "shutdown"
  }

  const putBack = (session: Session, isExclusive: boolean, at: number): void => {
    if (settings.resetFrame !== undefined && session.isMember && session.condemned === undefined) {
      session.wire.reset(settings.resetFrame)
    }
    if (isExclusive) PoolMachine.include(machine, session)
    PoolMachine.giveBack(machine, session, at)
    if (session.isMember && session.condemned !== undefined) retirement.evict(session, session.condemned)
    if (session.condemned === "resize") retirement.spare()
    if (machine.waiting > 0) return pump(at)
    if (machine.borrowed === 0) quiet()
    if (state.phase !== "Open") changed.notify()
  }

  /** Whoever wants the session next waits for the end of the CancelRequest. */
  const afterCancel = (session: Session, isExclusive: boolean): void => {
    const tooLate = Effect.sync(() => {
      session.condemned ??= "invalid"
    })
    runFork(
      Effect.timeoutOrElse(session.wire.cancelsDecided, { duration: settings.farewell, orElse: () => tooLate }).pipe(
        Effect.andThen(Effect.sync(() => takeBack(session, isExclusive)))
      )
    )
  }

  const afterRelease = (
    session: Session,
    isExclusive: boolean,
    hook: NonNullable<typeof settings.afterRelease>
  ): void => {
    PoolMachine.exclude(machine, session)
    const work = Effect.suspend(() => hook(session.connection, { ...usage(session), idleFor: 0 }))
    const bound = {
      millis: settings.farewell,
      onTimeUp: () => new Error(`it took longer than ${settings.farewell} ms`)
    }
    runFork(
      Errand.run(work, session.wire, bound).pipe(
        Effect.catchCause((cause) =>
          Effect.sync(() => {
            book.write("hookFailed", () => LogFields.ofHook("afterRelease", Cause.squash(cause), settings.errorText))
            return false
          })
        ),
        Effect.map((answer) => {
          const at = now()
          session.condemned ??= answer === false ? "invalid" : objection(session, at)
          PoolMachine.include(machine, session)
          putBack(session, isExclusive, at)
        })
      )
    )
  }

  const takeBack: Returns["takeBack"] = (session, isExclusive) => {
    const at = now()
    if (session.isMember && session.condemned === undefined) {
      if (session.wire.cancelThreat() === "Pending" && !session.wire.isDead()) return afterCancel(session, isExclusive)
      session.condemned = objection(session, at)
      if (session.condemned === undefined && session.borrowers === 1 && settings.afterRelease !== undefined) {
        return afterRelease(session, isExclusive, settings.afterRelease)
      }
    }
    putBack(session, isExclusive, at)
  }

  return { takeBack }
}
