import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as PoolMachine from "./poolMachine.ts"
import type { PoolState } from "./poolState.ts"
import type { CloseReason, Session } from "./session.ts"

/** What a session is worth to its next borrower: all, as much as it proves, or why it must go. */
export type Standing = "Ready" | "Unproven" | CloseReason

/** Which sessions leave the pool, when and why. */
export interface Retirement {
  /** Of a session with so many `borrowers`, whoever asks being one of them; any more share it, so it is not idle. */
  readonly standing: (session: Session, borrowers: number, at: number) => Standing
  /** Milliseconds. Others may share a session, so it is idle only without a borrower, whoever asks being one of them. */
  readonly idleFor: (session: Session, borrowers: number, at: number) => number
  /** To be called of a session that goes back as it was lent: what it had to prove, it has to prove to the next one. */
  readonly unused: (session: Session) => void
  /** Takes a session out of circulation: now when it is idle, when it comes back otherwise. */
  readonly evict: (session: Session, reason: CloseReason) => void
  /** Closes a session whoever still shares it; succeeds when none of them can reach the server by it any more. */
  readonly expel: (session: Session, reason: CloseReason) => Effect.Effect<void>
  readonly evictAll: () => void
  /** What cannot be told from a session that has just failed its check. */
  readonly evictOlderThan: (session: Session) => void
  /** Lets the sessions go that nobody has needed for long, or must not get any more. */
  readonly retireIdle: (at: number) => void
  /** To be called of each session that arrives. */
  readonly arrived: (session: Session) => void
  /**
   * Whether `retireIdle` could find anything since its last look: not before the first session is too old, and not before
   * one can have idled for too long, among more than those that are kept.
   */
  readonly isDue: (at: number) => boolean
  /** Lets all go that nobody uses. */
  readonly retireUnused: (reason: CloseReason) => void
  /** Lets those go that are too many, as far as nobody uses them. */
  readonly retireSurplus: () => void
  /** Sessions that are not on their way out. */
  readonly staying: () => number
  /** Lets those stay that were to go because there were too many, now that others have gone or there may be more. */
  readonly spare: () => void
}

export const make = <E>(state: PoolState<E>): Retirement => {
  const { book, machine, now, runFork, settings } = state
  const { members } = machine

  const idleFor: Retirement["idleFor"] = (session, borrowers, at) =>
    session.borrowers > borrowers ? 0 : at - session.idleSince

  const standing: Retirement["standing"] = (session, borrowers, at) => {
    const idle = idleFor(session, borrowers, at)
    if (session.condemned !== undefined) return session.condemned
    if (session.wire.isDead()) return "error"
    if (session.generation !== state.generation) return "invalid"
    if (at >= session.expiresAt) return "lifetime"
    // A new one is not idle: somebody has waited for it.
    if (idle > settings.idleTimeout && members.size > state.min && session.uses > 0) return "idle"
    // Waiting for it may take as long as opening another one, and longer.
    if (idle > settings.validationTimeout && session.wire.isResetting()) return "invalid"
    // Nobody knows for how long it has been idle if the wall clock was set back.
    if (session.isDoubted || idle > settings.validateAfter || idle < 0) return "Unproven"
    return "Ready"
  }

  /** Its place is free when its goodbye has been said and its socket has closed. */
  const expel: Retirement["expel"] = (session, reason) => {
    session.condemned ??= reason
    PoolMachine.dismiss(machine, session)
    return Scope.close(session.scope, Exit.void)
  }

  const retire = (session: Session, reason: CloseReason): void => {
    runFork(expel(session, reason))
  }

  const evict = (session: Session, reason: CloseReason): void => {
    // To be one too many may pass; any other reason stays.
    if (session.condemned === undefined || session.condemned === "resize") session.condemned = reason
    if (session.borrowers === 0) retire(session, reason)
    else PoolMachine.unshelve(machine, session)
  }

  const staying = (): number => {
    let count = 0
    for (const { condemned } of members) if (condemned === undefined) count++
    return count
  }

  /** When the first of those grows too old that the last look has left, or that have come since. */
  let oldAt = Infinity
  /** Since when those may have idled that the last look has left. Whoever was lent, or has come since, has not for longer. */
  let coldSince = -Infinity

  return {
    staying,
    spare: () => {
      for (const session of members) {
        if (session.condemned !== "resize" || staying() >= state.max) continue
        session.condemned = undefined
        PoolMachine.shelve(machine, session)
      }
    },
    standing,
    idleFor,
    unused: (session) => {
      if (standing(session, 1, now()) !== "Ready") session.isDoubted = true
    },
    evict,
    expel,
    evictAll: () => {
      const evicted = staying()
      state.generation++
      for (const session of Array.from(members)) evict(session, "invalid")
      // Each of many statements that fail together asks for it.
      if (evicted > 0) book.write("evictAll", () => ({ "db.pool.evicted": evicted }))
    },
    evictOlderThan: ({ openedAt }) => {
      for (const session of Array.from(members)) if (session.openedAt <= openedAt) evict(session, "invalid")
    },
    retireIdle: (at) => {
      // What nobody uses lies on the shelf.
      if (machine.top === undefined) return
      for (const session of Array.from(members)) {
        if (session.borrowers > 0 || session.exclusions > 0 || !session.isMember) continue
        const idle = at - session.idleSince
        const verdict = idle > settings.idleTimeout && members.size > state.min ? "idle" : standing(session, 0, at)
        if (verdict !== "Ready" && verdict !== "Unproven") retire(session, verdict)
      }
      oldAt = Infinity
      coldSince = at
      for (const { borrowers, expiresAt, idleSince } of members) {
        oldAt = Math.min(oldAt, expiresAt)
        if (borrowers === 0) coldSince = Math.min(coldSince, idleSince)
      }
    },
    arrived: ({ expiresAt }) => {
      oldAt = Math.min(oldAt, expiresAt)
    },
    // The wall clock may have been set back since the last look.
    isDue: (at) =>
      at >= oldAt || ((at < coldSince || at - coldSince > settings.idleTimeout) && members.size > state.min),
    retireUnused: (reason) => {
      for (const session of Array.from(members)) if (session.borrowers === 0) retire(session, reason)
    },
    retireSurplus: () => {
      let session = machine.bottom
      while (session !== undefined && members.size > state.max) {
        const { above } = session
        // With `multiplex` one that is shared may lie below.
        if (session.borrowers === 0) retire(session, "resize")
        session = above
      }
    }
  }
}
