import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as CircuitBreaker from "effect/persistence/CircuitBreaker"

const outage = Effect.fail(
  new CircuitBreaker.CircuitBreakerError({
    reason: new CircuitBreaker.CircuitBreakerStoreError({ message: "the store is down" })
  })
)

/** Effect's store in memory, which can be taken down. */
export const faultyStore = () => {
  let isDown = false
  const unlessDown = <A, R>(
    effect: Effect.Effect<A, CircuitBreaker.CircuitBreakerError, R>
  ): Effect.Effect<A, CircuitBreaker.CircuitBreakerError, R> => Effect.suspend(() => isDown ? outage : effect)
  const layer = Layer.effect(
    CircuitBreaker.CircuitBreakerStore,
    Effect.map(CircuitBreaker.CircuitBreakerStore, (store) => ({
      admit: (key) => unlessDown(store.admit(key)),
      record: (options) => unlessDown(store.record(options)),
      state: (key) => unlessDown(store.state(key))
    }))
  ).pipe(Layer.provide(CircuitBreaker.layerStoreMemory()))
  const power = (down: boolean) =>
    Effect.sync(() => {
      isDown = down
    })
  return { layer, down: power(true), up: power(false) }
}
