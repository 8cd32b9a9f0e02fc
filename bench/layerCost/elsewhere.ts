/** The same protection from elsewhere, each configured as its own documentation has it. */
import {
  circuitBreaker,
  ConsecutiveBreaker,
  ExponentialBackoff,
  handleAll,
  retry,
  timeout,
  TimeoutStrategy,
  wrap
} from "cockatiel"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { CircuitBreaker } from "effect/persistence"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import Opossum from "opossum"
import pRetry from "p-retry"
import { Counter, Histogram, Registry } from "prom-client"

/** What makes a guarded function of an async one. Whatever can be made once is. */
export type Guard = (work: (id: number) => Promise<unknown>) => (id: number) => Promise<unknown>

const retrying = () => retry(handleAll, { maxAttempts: 3, backoff: new ExponentialBackoff() })
const breaking = () => circuitBreaker(handleAll, { halfOpenAfter: 10_000, breaker: new ConsecutiveBreaker(5) })
const limiting = () => timeout(2_000, TimeoutStrategy.Cooperative)

export const cockatielRetry: Guard = (work) => {
  const policy = retrying()
  return (id) => policy.execute(() => work(id))
}

export const cockatielBreaker: Guard = (work) => {
  const policy = breaking()
  return (id) => policy.execute(() => work(id))
}

export const cockatiel: Guard = (work) => {
  const policy = wrap(retrying(), breaking())
  return (id) => policy.execute(() => work(id))
}

export const cockatielTimed: Guard = (work) => {
  const policy = wrap(retrying(), breaking(), limiting())
  return (id) => policy.execute(() => work(id))
}

const opossumOptions = { timeout: 3_000, errorThresholdPercentage: 50, resetTimeout: 30_000 }

const fired = (options: Opossum.Options): Guard => (work) => {
  const breaker = new Opossum(work, options)
  return (id) => breaker.fire(id)
}

export const opossumTimed = fired(opossumOptions)

/** Its cheapest: no timeout of its own, no latencies kept, no snapshots. */
export const opossum = fired({
  ...opossumOptions,
  timeout: false,
  rollingPercentilesEnabled: false,
  enableSnapshots: false
})

export const retried: Guard = (work) => (id) => pRetry(() => work(id), { retries: 5 })

/** A counter and a histogram whose labels are bound once, which is cheaper than `labels` for each call. */
export const counted: Guard = (work) => {
  const registers = [new Registry()]
  const labelNames = ["operation", "status"]
  const counter = new Counter({ name: "queries_total", help: "Statements.", labelNames, registers })
  const histogram = new Histogram({ name: "query_seconds", help: "Their durations.", labelNames, registers })
  const of = (status: string) => ({
    counter: counter.labels("SELECT", status),
    histogram: histogram.labels("SELECT", status)
  })
  const ok = of("ok")
  const error = of("error")
  return async (id) => {
    const startedAt = performance.now()
    let end = error
    try {
      const answer = await work(id)
      end = ok
      return answer
    } finally {
      end.counter.inc()
      end.histogram.observe((performance.now() - startedAt) / 1000)
    }
  }
}

/** The first is the outermost. */
export const nested = (...guards: ReadonlyArray<Guard>): Guard => (work) =>
  guards.reduceRight((inner, guard) => guard(inner), work)

/** An effect around an effect. */
export type Combinator = <A, E, R>(work: Effect.Effect<A, E, R>) => Effect.Effect<A, unknown, R>

const backoff = Schedule.exponential("100 millis")

export const effectRetry: Combinator = (work) => Effect.retry(work, { schedule: backoff, times: 3 })

export const makeEffectBreaker: Effect.Effect<Combinator, never, Scope.Scope> = Effect.map(
  Effect.provide(
    CircuitBreaker.make({ tripPolicy: CircuitBreaker.consecutive(5), openDuration: "30 seconds" }),
    CircuitBreaker.layerStoreMemory()
  ),
  (breaker): Combinator => (work) => breaker.execute(work, { key: "db" })
)

const duration = Metric.timer("query_duration")
const count = Metric.counter("queries")

export const effectMetrics: Combinator = (work) =>
  Effect.trackDuration(Effect.trackSuccesses(work, Metric.mapInput(count, () => 1)), duration)
