/** This library's handler life: `Serverless.make` over `layer`, sized for the fleet. */
import * as Pg from "effect-pg-pool"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import { type Environment, handler } from "./environment.ts"
import type { House } from "./order.ts"

export const make = (
  { deadline, fleet, isPooled, url }: House,
  index: number,
  release: "keep" | "close" | "adaptive"
): Environment => {
  const environment = Pg.Serverless.make(
    Pg.layer({
      url: Redacted.make(url),
      // Pools of one process need names of their own; on a platform each has a process of its own.
      name: `environment ${index}`,
      applicationName: "fleet",
      ...Pg.Serverless.preset(),
      // Nothing is deployed here, so there is no second version beside this one.
      ...Pg.Pool.sizeForFleet({ environments: fleet, overlap: 1 }),
      ...(isPooled ? { pooler: "transaction" } : {})
    }).pipe(Layer.provideMerge(Logger.layer([]))),
    { release }
  )
  return {
    invoke: (order) => environment.run(handler(order), { deadline }),
    dispose: () => environment.dispose()
  }
}
