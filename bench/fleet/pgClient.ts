/** The driver's own client and pool: one layer for each environment, as its README shows, in a `ManagedRuntime`. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import { type Environment, handler, killed } from "./environment.ts"
import type { House } from "./order.ts"

export const make = ({ deadline, isPooled, url }: House, maxConnections: number | undefined): Environment => {
  const open = () =>
    ManagedRuntime.make(
      PgClient.layer({
        url: Redacted.make(url),
        ...(maxConnections === undefined ? {} : { maxConnections }),
        // Its documentation: for poolers that cannot preserve named statements between queries.
        ...(isPooled ? { prepare: false } : {})
      }).pipe(Layer.provideMerge(Logger.layer([])))
    )
  let current: ReturnType<typeof open> | undefined
  const end = async () => {
    const ended = current
    current = undefined
    await ended?.dispose()
  }
  return {
    invoke: (order) => {
      current ??= open()
      const stop = new AbortController()
      return killed(current.runPromise(handler(order), { signal: stop.signal }), deadline, () => {
        stop.abort()
        end().catch(() => {})
      })
    },
    dispose: end
  }
}
