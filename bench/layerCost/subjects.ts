import * as Effect from "effect/Effect"
import * as Elsewhere from "./elsewhere.ts"
import { aroundEffect, aroundPromise, makeBreaker, unguarded } from "./guards.ts"
import * as OwnCode from "./ownCode.ts"
import { driverPool, ours, pgClient, pgClientPromised, type Setting, steps } from "./statements.ts"
import type { Subject } from "./subject.ts"

type Open = (setting: Setting) => Promise<Subject>

const ownMetrics = Effect.succeed(Elsewhere.effectMetrics)
const ownRetry = Effect.succeed(Elsewhere.effectRetry)
const ownBreaker = Elsewhere.makeEffectBreaker
const ownAll = Effect.map(
  ownBreaker,
  (breaker): Elsewhere.Combinator => (work) => Elsewhere.effectMetrics(Elsewhere.effectRetry(breaker(work)))
)

const cockatielAll = Elsewhere.nested(Elsewhere.counted, Elsewhere.cockatiel)
const cockatielTimedAll = Elsewhere.nested(Elsewhere.counted, Elsewhere.cockatielTimed)
const opossumAll = Elsewhere.nested(Elsewhere.counted, Elsewhere.retried, Elsewhere.opossum)
const opossumTimedAll = Elsewhere.nested(Elsewhere.counted, Elsewhere.retried, Elsewhere.opossumTimed)

/** Everything that is measured, by the name that it has in the tables. */
export const subjects = {
  // A statement, from its caller to the stub and back.
  PgClient: (setting) => pgClient(setting),
  "effect-pg-pool": (setting) => ours(setting),
  "effect-pg-pool without breaker": (setting) => ours(setting, { options: { breaker: false } }),
  "effect-pg-pool without retry": (setting) => ours(setting, { options: { retry: false, retryBudget: false } }),
  "effect-pg-pool without metrics": (setting) => ours(setting, { isCounted: false }),
  "effect-pg-pool without all three": (setting) =>
    ours(setting, { options: { breaker: false, retry: false, retryBudget: false }, isCounted: false }),
  "PgPool, no client": (setting) => driverPool(setting),
  "our checkout": steps.checkout,
  "our checkout, breaker, retry, deadline": steps["checkout, breaker, retry, deadline"],
  "our checkout, breaker, retry, deadline, watching": steps["checkout, breaker, retry, deadline, watching"],
  "PgClient, Effect.retry, CircuitBreaker, Metric": (setting) => pgClient(setting, ownAll),
  "PgClient, a promise each": (setting) => pgClientPromised(setting),
  "effect-pg-pool, a promise each": (setting) => ours(setting, { isPromised: true }),
  "PgClient, cockatiel, prom-client": (setting) => pgClientPromised(setting, cockatielAll),
  "PgClient, cockatiel with timeout, prom-client": (setting) => pgClientPromised(setting, cockatielTimedAll),
  "PgClient, p-retry, opossum, prom-client": (setting) => pgClientPromised(setting, opossumAll),
  "PgClient, p-retry, opossum with timeout, prom-client": (setting) => pgClientPromised(setting, opossumTimedAll),
  // A checkout without a statement.
  "effect/Pool.use": () => OwnCode.effectPool(),
  "Pool.use": () => OwnCode.ourPool(),
  // The code of a part, alone in a loop.
  "counting: two histograms of the pool, one of the statement": () => OwnCode.counting(),
  "breaker: the permit, and whether a success matters": () => OwnCode.gate(),
  "retry budget: a success": () => OwnCode.retryBudget(),
  "clocks: two looks at each": () => OwnCode.clocks(),
  // A guard around a function that answers at once.
  "async function": () => aroundPromise((work) => work),
  "cockatiel, retry": () => aroundPromise(Elsewhere.cockatielRetry),
  "cockatiel, breaker": () => aroundPromise(Elsewhere.cockatielBreaker),
  "cockatiel, retry and breaker": () => aroundPromise(Elsewhere.cockatiel),
  "cockatiel, retry, breaker, timeout": () => aroundPromise(Elsewhere.cockatielTimed),
  "opossum at its cheapest": () => aroundPromise(Elsewhere.opossum),
  opossum: () => aroundPromise(Elsewhere.opossumTimed),
  "p-retry": () => aroundPromise(Elsewhere.retried),
  "prom-client, counter and histogram": () => aroundPromise(Elsewhere.counted),
  "prom-client, cockatiel (retry, breaker)": () => aroundPromise(cockatielAll),
  "prom-client, cockatiel (retry, breaker, timeout)": () => aroundPromise(cockatielTimedAll),
  "prom-client, p-retry, opossum at its cheapest": () => aroundPromise(opossumAll),
  "prom-client, p-retry, opossum": () => aroundPromise(opossumTimedAll),
  effect: () => aroundEffect(Effect.succeed(unguarded)),
  "Effect.retry": () => aroundEffect(ownRetry),
  "CircuitBreaker.execute": () => aroundEffect(ownBreaker),
  "Effect.trackDuration, trackSuccesses": () => aroundEffect(ownMetrics),
  "Metric, Effect.retry, CircuitBreaker": () => aroundEffect(ownAll),
  "our Breaker.protect": () => aroundEffect(makeBreaker)
} as const satisfies Readonly<Record<string, Open>>

export type Name = keyof typeof subjects
