import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as CircuitBreaker from "effect/persistence/CircuitBreaker"
import * as Stream from "effect/Stream"
import * as Breaker from "../../../../src/Breaker.ts"
import * as Errors from "../../../../src/Errors.ts"
import type { Circuit, Engine, Event, Settings } from "../engine.ts"
import { Failed, Rejected } from "../engine.ts"
import { faultyStore } from "./faultyStore.ts"
import { testTime } from "./testTime.ts"

type Service = Breaker.Breaker["Service"]

const eventOf = ({ from, to }: Breaker.Transition): Event => from === "Disabled" && to === from ? "WouldOpen" : to

const rejectionOf = (error: unknown): unknown => {
  if (error instanceof Errors.CircuitOpen) return new Rejected({ state: "Open", retryAfter: error.retryAfter })
  if (error instanceof Errors.CircuitHalfOpen) return new Rejected({ state: "HalfOpen", retryAfter: error.retryAfter })
  if (error instanceof Errors.CircuitIsolated) return new Rejected({ state: "Isolated" })
  return error
}

/** The standard configuration is the default, but for what all engines have: no jitter, no back-off and no ramp. */
const optionsOf = ({ backoff, failures, jitter, ramp, rate, snapshot }: Settings): Breaker.Options => ({
  failures,
  trip: rate && Breaker.rate(rate),
  jitter: jitter === true ? undefined : "none",
  maxOpenFor: backoff === true || jitter === true ? undefined : "30 seconds",
  ramp: ramp ?? false,
  snapshot
})

const asked = (breaker: Service, events: ReadonlyArray<Event>, { attemptTimeout }: Settings): Circuit => ({
  call: (effect, socket) => {
    const work = attemptTimeout === undefined ? effect : Effect.timeout(effect, attemptTimeout)
    const guarded = socket === undefined ? breaker.protect(work) : overSocket(breaker, work, socket)
    return Effect.mapError(guarded, rejectionOf)
  },
  state: Effect.map(breaker.state, ({ _tag, ...told }) => ({ tag: _tag, ...told })),
  events: Effect.sync(() => [...events]),
  observe: (observer) =>
    breaker.transitions.pipe(
      Stream.runForEach((transition) => observer(eventOf(transition))),
      Effect.forkScoped({ startImmediately: true }),
      Effect.asVoid
    ),
  isolate: breaker.isolate("maintenance"),
  disable: breaker.disable,
  snapshot: breaker.snapshot
})

/** As the pool does it: the failure names the socket that it came over. */
const overSocket = (breaker: Service, work: Effect.Effect<string, unknown>, source: number) =>
  breaker.withPermit((permit) =>
    Effect.onExit(work, (exit) =>
      Effect.map(Clock.currentTimeMillis, (now) =>
        breaker.settleUnsafe(
          permit,
          Breaker.classifyExit(exit),
          now,
          Exit.isFailure(exit) ? { code: "ECONNRESET", source } : undefined
        )))
  )

type Build = (
  options: Breaker.Options
) => Layer.Layer<Breaker.Breaker, Errors.InvalidOption, CircuitBreaker.CircuitBreakerStore>

/** A layer of ours, over a store that it may share its state through. `name` is that of the layer in its module. */
const ours = (
  engine: string,
  layer: Build,
  { isShared, name }: { readonly name: string; readonly isShared: boolean }
): Engine => ({
  name: engine,
  make: Effect.fnUntraced(
    function*(settings: Settings = {}) {
      const events: Array<Event> = []
      const onTransition = (transition: Breaker.Transition) => void events.push(eventOf(transition))
      const store = faultyStore()
      const context = yield* Layer.build(
        Layer.provide(layer({ ...optionsOf(settings), onTransition }), store.layer)
      )
      const circuit = asked(Context.get(context, Breaker.Breaker), events, settings)
      return isShared ? { ...circuit, store } : circuit
    },
    Effect.mapError((error) => new Failed({ message: error.message }))
  ),
  registry: Effect.map(Effect.orDie(Layer.build(Breaker.Breakers.layer())), (context) => {
    const breakers = Context.get(context, Breaker.Breakers)
    return (key, settings) =>
      breakers.get(key, optionsOf(settings)).pipe(
        Effect.map((breaker) => asked(breaker, [], settings)),
        Effect.mapError((error) => new Failed({ message: error.message }))
      )
  }),
  time: testTime,
  openAndIdle: `
    import * as Effect from "effect/Effect"
    import * as Layer from "effect/Layer"
    import * as CircuitBreaker from "effect/persistence/CircuitBreaker"
    import * as Breaker from ${JSON.stringify(new URL("../../../../src/Breaker.ts", import.meta.url).href)}
    const layer = Layer.provide(Breaker.${name}({ failures: 1 }), CircuitBreaker.layerStoreMemory())
    const program = Effect.andThen(
      Effect.exit(Breaker.protect(Effect.fail(new Error("down")))),
      Breaker.Breaker.use((breaker) => breaker.state)
    )
    const { _tag } = await Effect.runPromise(Effect.provide(program, layer))
    console.log(_tag === "Open" ? "open" : "not open")
  `
})

export const inProcess: Engine = ours("effect-pg-pool", Breaker.layer, { name: "layer", isShared: false })

/** The keys of `Breakers` are those of circuits of this process, so the shared one has no registry to ask. */
const { registry: _, ...withoutRegistry } = ours("effect-pg-pool, shared", Breaker.layerShared, {
  name: "layerShared",
  isShared: true
})

export const shared: Engine = withoutRegistry
