import * as Cockatiel from "cockatiel"
import * as Effect from "effect/Effect"
import type { Circuit, Engine, Event, Settings, State } from "../engine.ts"
import { Failed, Rejected } from "../engine.ts"
import { calling, draw, fakeTimers, isFailure, listening } from "./promises.ts"

// As the readme recommends: `ConsecutiveBreaker`, `handleWhen` for the errors that count, a timeout policy inside the
// breaker, `toJSON` and `initialState` across processes, `CountBreaker` for a rate. A back-off is an
// `ExponentialBackoff` with its jitter off; jitter alone is a `DelegateBackoff` with a dice of our own. There is no
// setting for a streak's window, a probe's lease or a ramp.

const tags: { readonly [state in Cockatiel.CircuitState]: State["tag"] } = {
  [Cockatiel.CircuitState.Closed]: "Closed",
  [Cockatiel.CircuitState.Open]: "Open",
  [Cockatiel.CircuitState.HalfOpen]: "HalfOpen",
  [Cockatiel.CircuitState.Isolated]: "Isolated"
}

const rejectionOf = (error: unknown): Rejected | undefined =>
  error instanceof Cockatiel.IsolatedCircuitError
    ? new Rejected({ state: "Isolated" })
    : error instanceof Cockatiel.BrokenCircuitError
    ? new Rejected({})
    : undefined

const halfOpenAfter = ({ backoff, jitter }: Settings) =>
  backoff === true
    ? new Cockatiel.ExponentialBackoff({
      initialDelay: 30_000,
      maxDelay: 300_000,
      generator: Cockatiel.noJitterGenerator
    })
    : jitter === true
    ? new Cockatiel.DelegateBackoff(() => 30_000 * (1 + 0.2 * draw()))
    : 30_000

const breakerOf = ({ failures, rate }: Settings) =>
  rate === undefined ? new Cockatiel.ConsecutiveBreaker(failures ?? 5) : new Cockatiel.CountBreaker(rate)

const engineWith = (handled: Cockatiel.Policy): Engine => ({
  name: "cockatiel",
  make: (settings = {}) =>
    Effect.try({
      try: (): Circuit => {
        const breaker = Cockatiel.circuitBreaker(handled, {
          halfOpenAfter: halfOpenAfter(settings),
          breaker: breakerOf(settings),
          ...(settings.snapshot === undefined ? {} : { initialState: settings.snapshot })
        })
        const policy = settings.attemptTimeout === undefined
          ? breaker
          : Cockatiel.wrap(breaker, Cockatiel.timeout(settings.attemptTimeout, Cockatiel.TimeoutStrategy.Aggressive))
        const events: Array<Event> = []
        breaker.onStateChange((state) => void events.push(tags[state]))
        return {
          call: calling((work, signal) => policy.execute(work, signal), rejectionOf),
          state: Effect.sync(() => ({ tag: tags[breaker.state] })),
          events: Effect.sync(() => [...events]),
          observe: (observer) => {
            const listener = listening(observer)
            return Effect.asVoid(Effect.acquireRelease(
              Effect.sync(() => breaker.onStateChange((state) => listener(tags[state]))),
              (handle) => Effect.sync(() => handle.dispose())
            ))
          },
          isolate: Effect.asVoid(
            Effect.acquireRelease(
              Effect.sync(() => breaker.isolate()),
              (handle) => Effect.sync(() => handle.dispose())
            )
          ),
          snapshot: Effect.sync(() => breaker.toJSON())
        }
      },
      catch: (error) => new Failed({ message: `it cannot be made: ${String(error)}` })
    }),
  time: fakeTimers,
  openAndIdle: `
    import { CircuitState, circuitBreaker, ConsecutiveBreaker, handleAll } from "cockatiel"
    const breaker = circuitBreaker(handleAll, { halfOpenAfter: 30_000, breaker: new ConsecutiveBreaker(1) })
    await breaker.execute(() => Promise.reject(new Error("down"))).catch(() => {})
    console.log(breaker.state === CircuitState.Open ? "open" : "not open")
  `
})

export const cockatiel: Engine = {
  ...engineWith(Cockatiel.handleWhen(isFailure)),
  byDefault: engineWith(Cockatiel.handleAll)
}
