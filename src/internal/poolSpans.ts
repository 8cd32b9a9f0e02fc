import type * as Exit from "effect/Exit"
import type { Fiber } from "effect/Fiber"
import type { HostAddress } from "./address.ts"
import type { Machine, Waiter } from "./poolMachine.ts"
import type { Session } from "./session.ts"
import * as Spans from "./spans.ts"
import * as Store from "./store.ts"

/** What a borrower may have to wait for. */
export type Phase = "Queue" | "Connect" | "Suspended" | "Validate" | "Hook"

/** Who wants to see what becomes of a connect. */
export type Onlooker = (exit: Exit.Exit<unknown, unknown>, server: HostAddress) => void

export interface PoolSpans<E> {
  /** Notes that a borrower begins to wait; `undefined` where nobody would see it. */
  readonly begin: (fiber: Fiber<unknown, unknown>, waiter: Waiter<Session, E>) => Spans.Beginning | undefined
  readonly acquired: (
    since: Spans.Beginning,
    phases: Iterable<Phase>,
    waited: number,
    exit: Exit.Exit<unknown, unknown>
  ) => void
  /** To be called before a connect is counted. */
  readonly connecting: () => Onlooker | undefined
}

/** The spans of a pool. `home` is who has made it, and stands for whoever wants a session without waiting for it. */
export const make = <E>(
  { connecting, database, home, machine, pool }: {
    readonly pool: string
    readonly database: string
    readonly home: Fiber<unknown, unknown>
    readonly machine: Machine<Session, E>
    readonly connecting: () => number
  }
): PoolSpans<E> => {
  const waiting = new WeakMap<Waiter<Session, E>, Spans.Beginning>()

  /** Each connect is made for the first in line for whom none is under way. */
  const causeOfConnect = (): Spans.Beginning | undefined => {
    let waiter = machine.head
    for (let left = connecting() * machine.concurrency; left > 0 && waiter?.next !== undefined; left--) {
      waiter = waiter.next
    }
    if (waiter !== undefined) {
      const cause = waiting.get(waiter)
      return cause === undefined ? undefined : Spans.again(cause)
    }
    const cause = Spans.begin(home)
    return cause === undefined ? undefined : { ...cause, parent: undefined }
  }

  return {
    begin: (fiber, waiter) => {
      const since = Spans.begin(fiber)
      if (since !== undefined) waiting.set(waiter, since)
      return since
    },
    acquired: (since, phases, waited, exit) =>
      Spans.end(since, {
        name: Spans.name.acquire,
        attributes: {
          [Spans.attribute.pool]: pool,
          [Spans.attribute.acquireOutcome]: Store.acquireOutcomeOf(exit),
          [Spans.attribute.phases]: Array.from(phases),
          [Spans.attribute.waited]: waited,
          ...Spans.failureOf(exit)
        },
        exit
      }),
    connecting: () => {
      const since = causeOfConnect()
      return since === undefined ? undefined : (exit, server) =>
        Spans.end(since, {
          name: Spans.name.connect,
          kind: "client",
          attributes: {
            "db.system.name": "postgresql",
            "db.namespace": database,
            [Spans.attribute.pool]: pool,
            ...Spans.serverOf(server),
            [Spans.attribute.connectOutcome]: exit._tag === "Success" ? "ok" : "error",
            ...Spans.failureOf(exit)
          },
          exit,
          // It outlives the borrower that it was begun for, and may serve another one.
          isApart: true
        })
    }
  }
}
