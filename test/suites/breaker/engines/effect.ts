import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as CircuitBreaker from "effect/persistence/CircuitBreaker"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Circuit, Engine, Event, Settings } from "../engine.ts"
import { outcomeOf, Rejected } from "../engine.ts"
import { settle } from "../trial.ts"
import { faultyStore } from "./faultyStore.ts"
import { testTime } from "./testTime.ts"

// As the module's documentation recommends: a back-off capped by `Schedule.min` and `spaced`, a timeout inside the
// breaker, jitter by `Schedule.jittered`. There is no setting for a streak's window, a probe's lease or a ramp.

const constant = Schedule.spaced("30 seconds")
const growing = Schedule.min([Schedule.exponential("30 seconds"), Schedule.spaced("5 minutes")])

const policyOf = ({ backoff, failures, jitter, rate }: Settings): Parameters<typeof CircuitBreaker.make>[0] => {
  const openDuration: Schedule.Schedule<unknown> = backoff === true ? growing : constant
  return {
    tripPolicy: rate === undefined ? CircuitBreaker.consecutive(failures ?? 5) : CircuitBreaker.rate(rate),
    openDuration: jitter === true ? Schedule.jittered(openDuration) : openDuration
  }
}

const classify = (exit: Exit.Exit<string, unknown>): CircuitBreaker.Outcome => {
  if (Exit.isSuccess(exit)) return CircuitBreaker.success
  switch (outcomeOf(Cause.squash(exit.cause))) {
    case "Success":
      return CircuitBreaker.success
    case "Failure":
      return CircuitBreaker.failure()
    case "Ignored":
      return CircuitBreaker.ignored
  }
}

const rejectionOf = (error: unknown): unknown => {
  if (!(error instanceof CircuitBreaker.CircuitBreakerError)) return error
  const { reason } = error
  if (reason._tag === "CircuitOpen") {
    return new Rejected({ state: "Open", retryAfter: Duration.toMillis(reason.retryAfter) })
  }
  return reason._tag === "CircuitHalfOpen" ? new Rejected({ state: "HalfOpen" }) : error
}

const stateOf = (state: CircuitBreaker.State) =>
  state._tag === "Open" ? { tag: state._tag, retryAfter: Duration.toMillis(state.retryAfter) } : { tag: state._tag }

const attach = (breaker: CircuitBreaker.CircuitBreaker, observer: (event: Event) => Effect.Effect<void>) =>
  breaker.transitions.pipe(
    Stream.runForEach(({ to }) => observer(to)),
    Effect.forkScoped({ startImmediately: true }),
    Effect.asVoid
  )

const engineWith = (options: { readonly classify?: typeof classify }): Engine => {
  const circuitOf = Effect.fnUntraced(function*(key: string, settings: Settings) {
    const breaker = yield* CircuitBreaker.make(policyOf(settings))
    const events: Array<Event> = []
    yield* attach(breaker, (event) => Effect.sync(() => void events.push(event)))
    const circuit: Circuit = {
      call: (effect) =>
        (settings.attemptTimeout === undefined ? effect : Effect.timeout(effect, settings.attemptTimeout)).pipe(
          breaker.execute({ key, ...options }),
          Effect.mapError(rejectionOf)
        ),
      state: Effect.map(Effect.orDie(breaker.state(key)), stateOf),
      events: Effect.andThen(settle, Effect.sync(() => [...events])),
      observe: (observer) => attach(breaker, observer)
    }
    return circuit
  })
  return {
    name: "effect/persistence",
    make: Effect.fnUntraced(function*(settings: Settings = {}) {
      const { layer, ...store } = faultyStore()
      const circuit = yield* Effect.provide(circuitOf("db", settings), yield* Layer.build(layer))
      return { ...circuit, store }
    }),
    registry: Effect.gen(function*() {
      const scope = yield* Effect.scope
      const context = yield* Layer.build(CircuitBreaker.layerStoreMemory())
      return (key, settings) =>
        Effect.provideContext(circuitOf(key, settings), Context.add(context, Scope.Scope, scope))
    }),
    time: testTime,
    openAndIdle: `
      import * as Effect from "effect/Effect"
      import * as CircuitBreaker from "effect/persistence/CircuitBreaker"
      const program = Effect.gen(function*() {
        const breaker = yield* CircuitBreaker.make({
          tripPolicy: CircuitBreaker.consecutive(1),
          openDuration: "30 seconds"
        })
        yield* Effect.exit(breaker.execute(Effect.fail(new Error("down")), { key: "db" }))
        return yield* breaker.state("db")
      }).pipe(Effect.scoped, Effect.provide(CircuitBreaker.layerStoreMemory()))
      console.log((await Effect.runPromise(program))._tag === "Open" ? "open" : "not open")
    `
  }
}

export const effect: Engine = { ...engineWith({ classify }), byDefault: engineWith({}) }
