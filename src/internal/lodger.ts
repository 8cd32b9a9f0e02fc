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

  const evictIdle = (): ReadonlyArray<Session> => {
    const sessions = idle()
    for (const session of sessions) retirement.evict(session, "idle")
    return sessions
  }

  /** Connects that whoever wanted them has left. */
  const unwanted = (): number => machine.waiting === 0 ? connector.connecting() : 0

  const left = changed.until(() => connector.taken() - connector.connecting() <= members.size)

  const closed = (sessions: ReadonlyArray<Session>): Effect.Effect<void> =>
    changed.until(() => sessions.every(({ wire }) => wire.isClosed()))

  return {
    name,
    thaw: (staleAfter) =>
      Effect.suspend(() => {
        const at = now()
        connector.abandonLeft(at - staleAfter)
        // Timers are the first to notice a thaw: the time of a connect was over before it could go on.
        connector.reopen()
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
        const sessions = new Set(evictIdle())
        const recalled = unwanted() === 0 ? Effect.void : Effect.andThen(
          connector.recall,
          // One of them may have come to its end meanwhile.
          Effect.sync(() => {
            for (const session of evictIdle()) sessions.add(session)
          })
        )
        return Effect.timeoutOrElse(Effect.andThen(recalled, left), {
          duration: within,
          orElse: () =>
            Effect.suspend(() => {
              for (const { wire } of sessions) wire.abandon()
              connector.abandonLeft(Infinity)
              return closed(Array.from(sessions))
            })
        })
      }),
    warm,
    active: () => members.size - idle().length,
    idle: () => idle().length + unwanted(),
    idleTimeout: settings.idleTimeout,
    serverUtilisation
  }
}
