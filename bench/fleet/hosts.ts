/** The processes that host the environments, from the side of the one that tells them what to do. */
import * as Effect from "effect/Effect"
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"
import type { Answer, Arrival, House, Order, Outcome } from "./order.ts"

const program = fileURLToPath(new URL("host.ts", import.meta.url))

export interface Hosts {
  readonly build: (house: Omit<House, "environments">) => Effect.Effect<void>
  readonly run: (from: number, arrivals: ReadonlyArray<Arrival>) => Effect.Effect<ReadonlyArray<Outcome>>
  readonly age: (by: number) => Effect.Effect<void>
  /** Nothing runs any more; the sockets stay. */
  readonly freeze: Effect.Effect<void>
  readonly thaw: Effect.Effect<void>
  readonly dispose: Effect.Effect<void>
}

const tell = async (child: ChildProcess, order: Order): Promise<ReadonlyArray<Outcome>> => {
  const ended = new AbortController()
  const end = (code: number | null, signal: string | null) => ended.abort(new Error(`a host ended: ${code ?? signal}`))
  child.once("exit", end)
  try {
    child.send(order)
    const [answer] = await once(child, "message", { signal: ended.signal }) as [Answer]
    return answer.outcomes
  } finally {
    child.off("exit", end)
  }
}

export const make = Effect.fnUntraced(function*(processes: number) {
  const children = yield* Effect.acquireRelease(
    Effect.sync(() => Array.from({ length: processes }, () => fork(program))),
    (all) => Effect.sync(() => all.forEach((child) => child.kill("SIGKILL")))
  )
  const all = (order: (index: number) => Order) =>
    Effect.promise(() => Promise.all(children.map((child, index) => tell(child, order(index)))))
  const signal = (name: NodeJS.Signals) => Effect.sync(() => children.forEach((child) => child.kill(name)))
  const hosts: Hosts = {
    build: (house) =>
      Effect.asVoid(all((index) => {
        const environments = Array.from({ length: house.fleet }, (_, each) => each)
        return { kind: "build", ...house, environments: environments.filter((each) => each % processes === index) }
      })),
    run: (from, arrivals) =>
      Effect.map(
        all((index) => ({
          kind: "run",
          from,
          arrivals: arrivals.filter(([, environment]) => environment % processes === index)
        })),
        (outcomes) => outcomes.flat()
      ),
    age: (by) => Effect.asVoid(all(() => ({ kind: "age", by }))),
    freeze: signal("SIGSTOP"),
    thaw: signal("SIGCONT"),
    dispose: Effect.asVoid(all(() => ({ kind: "dispose" })))
  }
  return hosts
})
