/** This library's handler life: `Serverless.make` over `layer`, sized for the fleet. */
import * as Pg from "effect-pg-pool"
import * as Serverless from "effect-pg-pool/Serverless"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import { type Environment, handler } from "./environment.ts"
import type { House } from "./order.ts"

export const make = (
  { deadline, isPooled, url }: House,
  index: number,
  release: "keep" | "close" | "adaptive"
): Environment => {
  const environment = Serverless.make(
    Pg.layer({
      url: Redacted.make(url),
      // Pools of one process need names of their own; on a platform each has a process of its own.
      name: `environment ${index}`,
      applicationName: "fleet",
      max: isPooled ? 2 : 1,
      min: 0,
      acquireTimeout: "10 seconds",
      whenServerFull: "wait",
      ...(isPooled ? { pooler: "transaction" } : {})
    }).pipe(Layer.provideMerge(Logger.layer([]))),
    { release }
  )
  return {
    invoke: (order) => environment.run(handler(order), { deadline }),
    dispose: () => environment.dispose()
  }
}
