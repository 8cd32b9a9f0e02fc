import * as Effect from "effect/Effect"
import Opossum from "opossum"
import type { Circuit, Engine, Event, Settings, State } from "../engine.ts"
import { Rejected, Unsupported } from "../engine.ts"
import { calling, draw, fakeTimers, isFailure, listening } from "./promises.ts"

// It opens by a share of failures in a rolling window of time, so "five in a row" is approached: a window as long as
// the streak's, five calls at least, and more than 99 % of them failures: with less it passes fewer cases. `errorFilter` has the errors that do not count.
// Its `timeout` stays off but for the case that asks for one: it would end the slow calls of the others. Jitter is a
// `resetTimeout` drawn anew for each breaker. There is no setting for a back-off, a probe's lease or a ramp.

const events = { open: "Open", halfOpen: "HalfOpen", close: "Closed" } as const

const rejectionOf = (error: unknown): Rejected | undefined =>
  error instanceof Error && "code" in error && error.code === "EOPENBREAKER" ? new Rejected({}) : undefined

const stateOf = (breaker: Opossum): State["tag"] => breaker.halfOpen ? "HalfOpen" : breaker.opened ? "Open" : "Closed"

const engineWith = (options: Opossum.Options): Engine => ({
  name: "opossum",
  make: (settings: Settings = {}) => {
    if (settings.backoff === true) return Effect.fail(new Unsupported({ message: "it has no back-off" }))
    return Effect.map(
      // Its buckets rotate by an interval, until it is shut down.
      Effect.acquireRelease(
        Effect.sync(() =>
          new Opossum((work: () => Promise<string>) => work(), {
            ...options,
            timeout: settings.attemptTimeout ?? false,
            resetTimeout: settings.jitter === true ? 30_000 * (1 + 0.2 * draw()) : 30_000,
            rollingCountTimeout: 60_000,
            rollingCountBuckets: 60,
            volumeThreshold: settings.rate?.size ?? settings.failures ?? 5,
            errorThresholdPercentage: settings.rate === undefined ? 99 : settings.rate.threshold * 100,
            ...(settings.snapshot === undefined ? {} : settings.snapshot as { readonly state: Opossum.State })
          })
        ),
        (breaker) => Effect.sync(() => breaker.shutdown())
      ),
      (breaker): Circuit => {
        const seen: Array<Event> = []
        const on = (listener: (event: Event) => void) => {
          breaker.on("open", () => listener(events.open))
          breaker.on("halfOpen", () => listener(events.halfOpen))
          breaker.on("close", () => listener(events.close))
        }
        on((event) => void seen.push(event))
        return {
          call: calling((work) => breaker.fire(work), rejectionOf),
          state: Effect.sync(() => ({ tag: stateOf(breaker) })),
          events: Effect.sync(() => [...seen]),
          observe: (observer) => Effect.sync(() => on(listening(observer))),
          disable: Effect.asVoid(Effect.acquireRelease(
            Effect.sync(() => breaker.disable()),
            () => Effect.sync(() => breaker.enable())
          )),
          snapshot: Effect.sync(() => breaker.toJSON())
        }
      }
    )
  },
  time: fakeTimers,
  openAndIdle: `
    import CircuitBreaker from "opossum"
    const breaker = new CircuitBreaker(() => Promise.reject(new Error("down")), { resetTimeout: 30_000 })
    await breaker.fire().catch(() => {})
    console.log(breaker.opened ? "open" : "not open")
  `
})

export const opossum: Engine = {
  ...engineWith({ errorFilter: (error) => !isFailure(error) }),
  byDefault: engineWith({})
}
