import * as Hosts from "./hosts.ts"
import type { PoolState } from "./poolState.ts"
import type { Session } from "./session.ts"

/** What a server says of itself when a session begins, and whenever it changes. */
export interface Server {
  /** Its own text, a distribution's name included: `18.1 (Debian 18.1-1.pgdg13+1)`. */
  readonly version?: string | undefined
  /** Told by PostgreSQL 14 and newer; poolers keep it to themselves. */
  readonly role?: "primary" | "read-only primary" | "standby" | undefined
}

/** What can be told of the database without asking it. Times are milliseconds of the wall clock. */
export interface VitalSigns {
  /** When a session that is open now has last had an answer. */
  readonly lastProofAt: number | undefined
  /** The same, of any session. */
  readonly lastAnswerAt: number | undefined
  readonly server: Server | undefined
  /** Whether somebody has stopped lending by hand. */
  readonly isSuspended: boolean
}

export interface Watch {
  readonly read: () => VitalSigns
  /** To be called with every session that is open, and with every one that has ended. */
  readonly met: (session: Session) => void
  readonly parted: (session: Session) => void
}

/** Looks at the sessions of a pool when it is asked to: nothing here is on the way of a query. */
export const make = <E>(state: PoolState<E>, monotonicNanos: () => bigint): Watch => {
  const { machine: { members }, settings } = state
  let latest: Session | undefined
  let lastAnswerAt: number | undefined

  const answeredAt = ({ answeredSince, borrowers, idleSince, isAnswering, uses }: Session): number | undefined => {
    // A pooler without a server opens sessions all the same.
    if (!isAnswering || (uses === 0 && settings.behindPooler)) return undefined
    if (borrowers === 0 || answeredSince === 0n) return idleSince
    // Whoever holds a session for long has answers all the same. That one came no earlier than its statement was sent.
    return Math.max(idleSince, state.now() - Number(monotonicNanos() - answeredSince) / 1e6)
  }

  const note = (at: number | undefined): void => {
    if (at !== undefined) lastAnswerAt = Math.max(lastAnswerAt ?? 0, at)
  }

  const isUsable = ({ condemned, wire }: Session): boolean => condemned === undefined && !wire.isDead()

  const serverOf = ({ wire }: Session): Server => {
    const role = Hosts.roleBy(wire.parameter)
    return { version: wire.parameter("server_version"), role: role && Hosts.nameOf(role) }
  }

  return {
    met: (session) => {
      latest = session
    },
    parted: (session) => note(answeredAt(session)),
    read: () => {
      let lastProofAt: number | undefined
      let live: Session | undefined
      for (const session of members) {
        const at = answeredAt(session)
        note(at)
        if (!isUsable(session)) continue
        live = session
        if (at !== undefined) lastProofAt = Math.max(lastProofAt ?? 0, at)
      }
      const spokesman = latest !== undefined && isUsable(latest) ? latest : live ?? latest
      return {
        lastProofAt,
        lastAnswerAt,
        server: spokesman && serverOf(spokesman),
        isSuspended: state.machine.isSuspended
      }
    }
  }
}
