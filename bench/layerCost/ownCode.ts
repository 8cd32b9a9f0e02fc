/** What a healthy statement has done for each part, alone in a loop: the code itself, without the effects around it. */
import * as Pg from "effect-pg-pool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Pool from "effect/Pool"
import * as Scope from "effect/Scope"
import { makeStubServer } from "../../test/stubServer.ts"
import { max } from "./statements.ts"
import { fibers, type Subject, unchecked } from "./subject.ts"

/** From 0.1 milliseconds to 3 seconds. */
const durations = Float64Array.from({ length: 1024 }, (_, index) => 0.0001 * 1.01 ** index)

const looped = (step: (index: number) => void, faults: Subject["faults"] = () => []): Subject => ({
  run: (_callers, calls) => {
    for (let index = 0; index < calls; index++) step(index)
    return Promise.resolve()
  },
  faults,
  close: () => Promise.resolve()
})

const exit = Effect.runSync(Effect.exit(Effect.void))

const build = async () => {
  const scope = Scope.makeUnsafe()
  const { stream } = makeStubServer("at once")
  const layer = Pg.layer({ stream, username: "bench", max, maxUses: 1e9 })
  const context = await Effect.runPromise(Scope.provide(Layer.build(layer), scope))
  return { context, close: () => Effect.runPromise(Scope.close(scope, exit)) }
}

/** A checkout, a statement that has worked and a session that comes back. */
export const counting = async (): Promise<Subject> => {
  const { close, context } = await build()
  const { store } = Context.get(context, Pg.Metrics.Metrics)
  const faults = (calls: number) => {
    const { count } = store.queries.succeededInAll()
    return count === calls ? [] : [`${count} of ${calls} counted`]
  }
  const step = (index: number) => {
    const seconds = durations[index & 1023]!
    store.acquire.acquired.observe(0)
    store.queries.succeeded("SELECT id, name FROM item WHERE id = $1", seconds)
    store.use.observe(seconds)
  }
  return { ...looped(step, faults), close }
}

/** Leave to make the call, and the question whether its success has anything to tell. */
export const gate = async (): Promise<Subject> => {
  const { close, context } = await build()
  const breaker = Context.get(context, Pg.Breaker.Breaker)
  let admitted = 0
  const step = () => {
    if (breaker.closedPermitUnsafe() !== undefined && breaker.isCalmUnsafe()) admitted++
  }
  return { ...looped(step, (calls) => admitted === calls ? [] : [`${calls - admitted} rejected`]), close }
}

export const retryBudget = async (): Promise<Subject> => {
  const budget = await Effect.runPromise(Pg.Schedule.budget())
  return looped(() => budget.succeeded(), () => budget.tokens === budget.capacity ? [] : ["the budget is not full"])
}

/** When the session was lent and given back, and how long the statement took. */
export const clocks = async (): Promise<Subject> => {
  const clock = await Effect.runPromise(Effect.clockWith((clock) => Effect.succeed(clock)))
  let last = 0
  let took = 0
  const step = () => {
    last = clock.currentTimeMillisUnsafe()
    const since = clock.monotonicTimeNanosUnsafe()
    took += Number(clock.monotonicTimeNanosUnsafe() - since) / 1e9
    last = Math.max(last, clock.currentTimeMillisUnsafe())
  }
  return looped(step, () => last > 0 && took > 0 ? [] : ["the clocks stand still"])
}

/** With callers who come one at a time the work is nothing; else it lets others have their turn. */
const workOf = (callers: number) => callers === 1 ? Effect.void : Effect.yieldNow

const contended = (use: (work: Effect.Effect<void>) => Effect.Effect<unknown, unknown>): Subject["run"] =>
(
  callers,
  calls
) => fibers(Context.empty(), () => use(workOf(callers)), unchecked)(callers, calls)

/** A checkout and nothing else: no statement, and so no connection. */
export const effectPool = async (): Promise<Subject> => {
  const scope = Scope.makeUnsafe()
  const acquire = Effect.sync(() => ({}))
  const pool = await Effect.runPromise(
    Scope.provide(Pool.makeWithTTL({ acquire, min: 0, max, timeToLive: "1 minute" }), scope)
  )
  return {
    run: contended((work) => Pool.use(pool, () => work)),
    faults: () => [],
    close: () => Effect.runPromise(Scope.close(scope, exit))
  }
}

export const ourPool = async (): Promise<Subject> => {
  const { close, context } = await build()
  const pool = Context.get(context, Pg.Pool.Pool)
  const { store } = Context.get(context, Pg.Metrics.Metrics)
  return {
    run: contended((work) => pool.use(() => work)),
    faults: (calls) => {
      const { count } = store.use.snapshot()
      return count === calls ? [] : [`${count} of ${calls} uses counted`]
    },
    close
  }
}
