/** This library's handler life: `Serverless.make` over `layer`, sized for the fleet. */
import * as Pg from "effect-pg-pool"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import { type Environment, handler } from "./environment.ts"
import type { House } from "./order.ts"

export const make = (
  { deadline, isPooled, url }: House,
  index: number,
  _release: "keep" | "close" | "adaptive"
): Environment => {
  const runtime = ManagedRuntime.make(
    Pg.layer({
      url: Redacted.make(url),
      name: `environment ${index}`,
      applicationName: "fleet",
      max: isPooled ? 2 : 1,
      min: 0,
      acquireTimeout: "10 seconds",
      ...(isPooled ? { pooler: "transaction" } : {})
    }).pipe(Layer.provideMerge(Logger.layer([])))
  )
  return {
    invoke: (order) => runtime.runPromise(handler(order), { signal: AbortSignal.timeout(deadline) }),
    dispose: () => runtime.dispose()
  }
}
