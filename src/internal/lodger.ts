import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Connector } from "./connector.ts"
import * as PoolMachine from "./poolMachine.ts"
import type { PoolState } from "./poolState.ts"
import type { Retirement } from "./retirement.ts"
import * as Roster from "./roster.ts"
import type { Session } from "./session.ts"

/**
 * Milliseconds that the server of a session gets to answer a goodbye after a freeze. It is there or it is not, and whoever
 * is next waits: an answer takes one round trip, and the connect took four at least.
 */
const [leastPatience, mostPatience] = [20, 100]

const patienceOf = ({ connectTook }: Session): number =>
  Math.min(Math.max(connectTook / 2, leastPatience), mostPatience)

/** Enters a pool in the roster of the environment that it is made in, if it is made in one, until its scope has closed. */
export const enter = <E, E2>(pool: {
  readonly name: string
  readonly state: PoolState<E>
  readonly retirement: Retirement
  readonly connector: Connector<E2>
  readonly serverUtilisation: () => number | undefined
  readonly warm: Roster.Lodger["warm"]
}): Effect.Effect<void, never, Scope.Scope> =>
  Effect.flatMap(Roster.Current, (roster) => {
    if (roster === undefined) return Effect.void
    const leave = roster.add(make(pool))
    return Effect.addFinalizer(() => Effect.sync(leave))
  })

const make = <E, E2>({ connector, name, retirement, serverUtilisation, state, warm }: {
  readonly name: string
  readonly state: PoolState<E>
  readonly retirement: Retirement
  readonly connector: Connector<E2>
  readonly serverUtilisation: () => number | undefined
  readonly warm: Roster.Lodger["warm"]
}): Roster.Lodger => {
  const { changed, machine, now, settings } = state
  const { members } = machine

  const isIdle = ({ borrowers, exclusions }: Session): boolean => borrowers === 0 && exclusions === 0

  const idle = (): ReadonlyArray<Session> => Array.from(members).filter(isIdle)

  const closed = (sessions: ReadonlyArray<Session>): Effect.Effect<void> =>
    changed.until(() => sessions.every(({ wire }) => wire.isClosed()))

  return {
    name,
    thaw: (staleAfter) =>
      Effect.suspend(() => {
        const at = now()
        connector.abandonLeft(at - staleAfter)
        const stale = idle().filter(({ idleSince }) => at - idleSince > staleAfter)
        for (const session of stale) {
          session.condemned ??= "idle"
          PoolMachine.dismiss(machine, session)
          session.wire.dismiss({ by: "pool", message: "idle for too long across a freeze" }, patienceOf(session))
        }
        for (const session of idle()) session.isDoubted = true
        return closed(stale)
      }),
    destroyBusy: Effect.sync(() => {
      const busy = Array.from(members).filter(({ borrowers }) => borrowers > 0)
      for (const session of busy) {
        session.condemned ??= "error"
        session.wire.cutOff({ by: "pool", message: "the time of the invocation that used it was up" })
      }
      return busy.length
    }),
    closeIdle: (within) =>
      Effect.suspend(() => {
        const sessions = idle()
        for (const session of sessions) retirement.evict(session, "idle")
        // Whoever asked for it has left, and a session that comes now would be nobody's for as long as the freeze lasts.
        const left = machine.waiting === 0 ? connector.forsake : Effect.void
        return Effect.timeoutOrElse(Effect.andThen(left, closed(sessions)), {
          duration: within,
          orElse: () =>
            Effect.suspend(() => {
              for (const { wire } of sessions) wire.abandon()
              return closed(sessions)
            })
        })
      }),
    warm,
    active: () => members.size - idle().length,
    idle: () => idle().length,
    connecting: connector.connecting,
    idleTimeout: settings.idleTimeout,
    serverUtilisation
  }
}
