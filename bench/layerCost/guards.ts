/** What a guard costs at its best: around a function that answers at once. */
import * as Pg from "effect-pg-pool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import type { Combinator, Guard } from "./elsewhere.ts"
import { fibers, promises, type Subject, unchecked } from "./subject.ts"

const miscount = (made: number, calls: number): ReadonlyArray<string> =>
  made === calls ? [] : [`${made} of ${calls} calls were made`]

export const aroundPromise = async (guard: Guard): Promise<Subject> => {
  let made = 0
  const guarded = guard(async (id) => {
    made++
    return id
  })
  return { run: promises(guarded, unchecked), faults: (calls) => miscount(made, calls), close: () => Promise.resolve() }
}

export const aroundEffect = async (makeCombinator: Effect.Effect<Combinator, never, Scope.Scope>): Promise<Subject> => {
  const scope = Scope.makeUnsafe()
  const combinator = await Effect.runPromise(Scope.provide(makeCombinator, scope))
  let made = 0
  const work = Effect.suspend(() => {
    made++
    return Effect.succeed(made)
  })
  return {
    run: fibers(Context.empty(), () => combinator(work), unchecked),
    faults: (calls) => miscount(made, calls),
    close: () => Effect.runPromise(Scope.close(scope, Effect.runSync(Effect.exit(Effect.void))))
  }
}

export const unguarded: Combinator = (work) => work

/** Our breaker by itself, for any work. */
export const makeBreaker: Effect.Effect<Combinator, never, Scope.Scope> = Effect.map(
  Effect.orDie(Pg.Breaker.make()),
  (breaker): Combinator => (work) => breaker.protect(work)
)
