/** Looks at the pools from outside while they run: their sockets, their sessions on the server, and when they stood still. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { subscribe, unsubscribe } from "node:diagnostics_channel"
import type { Socket } from "node:net"
import type { Ledger } from "./ledger.ts"

/** Milliseconds since the beginning. */
export interface Span {
  readonly from: number
  readonly until: number
}

export const lengthOf = ({ from, until }: Span): number => until - from

const longer = (one: Span, other: Span): Span => lengthOf(other) > lengthOf(one) ? other : one

/** One pool, as it is seen from outside. */
export interface Watched {
  readonly name: string
  readonly max: number
  /** Faults that are active, and when the last one ended: milliseconds since the beginning. */
  faults: number
  lastFault: number
  /** The same for faults after which the server cannot know how many clients are left. */
  blinding: number
  lastBlinding: number
  lastSuccess: number
  longestStall: Span
  slowestRecovery: Span
  isStuck: boolean
  mostSockets: number
  mostSessions: number
  sessions: number
  tooManySince: number | undefined
}

export const make = (name: string, max: number, now: number): Watched => ({
  name,
  max,
  faults: 0,
  lastFault: now,
  blinding: 0,
  lastBlinding: -Infinity,
  lastSuccess: now,
  longestStall: { from: 0, until: 0 },
  slowestRecovery: { from: 0, until: 0 },
  isStuck: false,
  mostSockets: 0,
  mostSessions: 0,
  sessions: 0,
  tooManySince: undefined
})

/** How long a pool may stand still with nothing wrong, on a slow machine that does other things as well. */
const patience = 30_000
/** How long the server may take to let go of sessions whose clients have left. */
const settling = 6000
const excess = 3000

export const succeeded = (watched: Watched, now: number): void => {
  if (watched.faults === 0) {
    const { lastFault, lastSuccess } = watched
    if (lastSuccess > lastFault) {
      watched.longestStall = longer(watched.longestStall, { from: lastSuccess, until: now })
    } else watched.slowestRecovery = longer(watched.slowestRecovery, { from: lastFault, until: now })
  }
  watched.lastSuccess = now
}

/** A fault that strikes the pool while an effect runs. */
export const during =
  (watched: ReadonlyArray<Watched>, isBlinding: boolean, now: () => number) =>
  <A, E, R>(fault: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        for (const one of watched) {
          one.faults++
          if (isBlinding) one.blinding++
        }
      }),
      () => fault,
      () =>
        Effect.sync(() => {
          for (const one of watched) {
            one.faults--
            one.lastFault = now()
            if (!isBlinding) continue
            one.blinding--
            one.lastBlinding = now()
          }
        })
    )

/** Notes a pool in which nothing succeeds although it has been left in peace for long. */
export const lookForStuck = (watched: ReadonlyArray<Watched>, ledger: Ledger, now: () => number) =>
  Effect.sync(() => {
    for (const one of watched) {
      if (one.isStuck || one.faults > 0) continue
      const since = Math.max(one.lastFault, one.lastSuccess)
      if (now() - since < patience) continue
      one.isStuck = true
      const pending = ledger.pending().filter(({ pool }) => pool === one.name).map(ledger.story)
      ledger.problems.push([
        "stuck",
        `${one.name}: nothing has succeeded since ${since.toFixed(0)} ms\n  ${pending.join("\n  ")}`
      ])
    }
  }).pipe(Effect.schedule(Schedule.spaced(1000)))

/** The length of a CancelRequest, which is all that its connection ever carries. */
const cancelLength = 16

export interface Sockets {
  /** Sockets to a port that are sessions, or about to become one, as the client's side has them. */
  readonly count: (port: number) => number
  /** All of them, those of CancelRequests included: what each has sent, and whether it has been given up. */
  readonly left: (port: number) => ReadonlyArray<string>
}

/** Counts the sockets of this process by where they lead to, from their beginning until they have closed. */
export const sockets = Effect.acquireRelease(
  Effect.sync(() => {
    const open = new Map<Socket, number>()
    const meet = (message: unknown): void => {
      const { socket } = message as { readonly socket: Socket }
      socket.once("connect", () => {
        const port = socket.remotePort
        if (port === undefined) return
        open.set(socket, port)
        socket.once("close", () => open.delete(socket))
      })
    }
    subscribe("net.client.socket", meet)
    const to = (port: number) => [...open].filter(([, to]) => to === port).map(([socket]) => socket)
    return {
      meet,
      count: (port: number) =>
        to(port).filter(({ bytesWritten }) => bytesWritten > 0 && bytesWritten !== cancelLength).length,
      left: (port: number) =>
        to(port).map(({ bytesWritten, destroyed }) => `${bytesWritten} bytes${destroyed ? ", destroyed" : ""}`)
    }
  }),
  ({ meet }) => Effect.sync(() => unsubscribe("net.client.socket", meet))
)

/** To be called when a session has been opened, and now and then. */
export const countSockets = (watched: Watched, port: number, sockets: Sockets, ledger: Ledger): void => {
  const count = sockets.count(port)
  if (count > watched.max && count > watched.mostSockets) {
    ledger.problems.push(["above", `${watched.name}: ${count} sockets, and ${watched.max} sessions are allowed`])
  }
  watched.mostSockets = Math.max(watched.mostSockets, count)
}

/** What the server counts over and over, as long as it can be asked. */
export const sessions = (
  url: Redacted.Redacted,
  watched: ReadonlyArray<Watched>,
  ledger: Ledger,
  now: () => number
): Effect.Effect<never> => {
  const byName = `SELECT application_name, count(*)::int FROM pg_stat_activity
                  WHERE application_name LIKE 'soak %' GROUP BY application_name`
  const note = (one: Watched, count: number): void => {
    one.sessions = count
    const isBlind = one.blinding > 0 || now() - one.lastBlinding < settling
    if (isBlind || count <= one.max) {
      if (!isBlind) one.mostSessions = Math.max(one.mostSessions, count)
      one.tooManySince = undefined
      return
    }
    one.mostSessions = Math.max(one.mostSessions, count)
    one.tooManySince ??= now()
    // One that is leaving while its place is taken already is not worth a word on a busy machine.
    if (now() - one.tooManySince < excess) return
    one.tooManySince = Infinity
    ledger.problems.push(["above", `${one.name}: the server counts ${count} sessions at ${now().toFixed(0)} ms`])
  }
  const ask = (connection: PgConnection.PgConnection) =>
    Effect.map(connection.queryValues(byName, [], false), (rows) => {
      const counts = new Map(rows as ReadonlyArray<[string, number]>)
      for (const one of watched) note(one, counts.get(`soak ${one.name}`) ?? 0)
    }).pipe(Effect.andThen(Effect.sleep(50)), Effect.forever)
  return Effect.scoped(Effect.flatMap(PgConnection.make({ url, applicationName: "witness of the soak" }), ask)).pipe(
    Effect.ignore,
    Effect.andThen(Effect.sleep(100)),
    Effect.forever
  )
}
