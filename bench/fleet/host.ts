/** A process that hosts many environments: one pool each, which know nothing of one another. Told what to do over IPC. */
import type { Environment } from "./environment.ts"
import { failureOf } from "./failure.ts"
import * as NodePostgres from "./nodePostgres.ts"
import { type Answer, type Arrival, type House, now, type Order, type Outcome } from "./order.ts"
import * as Ours from "./ours.ts"
import * as PgClient from "./pgClient.ts"

const make = (house: House, index: number): Environment => {
  switch (house.client) {
    case "ours, keep":
      return Ours.make(house, index, "keep")
    case "ours, close":
      return Ours.make(house, index, "close")
    case "ours, adaptive":
      return Ours.make(house, index, "adaptive")
    case "PgClient, 10":
      return PgClient.make(house, undefined)
    case "PgClient, 1":
      return PgClient.make(house, 1)
    case "pg, 2":
      return NodePostgres.make(house, { max: 2, keeps: true })
    case "pg, 1":
      return NodePostgres.make(house, { max: 1, keeps: true })
    case "pg, 1, not kept":
      return NodePostgres.make(house, { max: 1, keeps: false })
  }
}

let environments = new Map<number, Environment>()
/** The last invocation of each, for the next one to wait for. */
const last = new Map<number, Promise<unknown>>()

const invoke = async (index: number, at: number): Promise<Outcome> => {
  let failure = ""
  try {
    await environments.get(index)!.invoke(1 + 2 * index)
  } catch (error) {
    failure = failureOf(error)
  }
  return [at, now() - at, failure]
}

const at = (moment: number) => new Promise<void>((resolve) => setTimeout(resolve, Math.max(0, moment - now())))

const serve = async (from: number, [after, index]: Arrival): Promise<Outcome> => {
  await at(from + after)
  const outcome = (last.get(index) ?? Promise.resolve()).then(() => invoke(index, from + after))
  last.set(index, outcome)
  return outcome
}

const obey = async (order: Order): Promise<ReadonlyArray<Outcome>> => {
  switch (order.kind) {
    case "build":
      environments = new Map(order.environments.map((index) => [index, make(order, index)]))
      return []
    case "run":
      return Promise.all(order.arrivals.map((arrival) => serve(order.from, arrival)))
    case "age": {
      const clock = Date.now
      Date.now = () => clock() + order.by
      return []
    }
    case "dispose":
      await Promise.all(Array.from(environments.values(), (each) => each.dispose()))
      return []
  }
}

process.on("message", async (order: Order) => {
  const answer: Answer = { kind: "done", outcomes: await obey(order) }
  process.send!(answer)
})
// Whoever told it what to do has ended.
process.on("disconnect", () => process.exit())
