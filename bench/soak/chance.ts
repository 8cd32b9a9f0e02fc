/** Chance that can be drawn again: the same seed and name give the same numbers. */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"

export interface Chance {
  /** From 0 to below 1. */
  readonly next: () => number
  readonly isIt: (probability: number) => boolean
  readonly between: (least: number, below: number) => number
  readonly whole: (least: number, most: number) => number
  readonly pick: <A>(list: readonly [A, ...ReadonlyArray<A>]) => A
  /** As many as chance will have it, at least one if there is one. */
  readonly some: <A>(list: ReadonlyArray<A>) => ReadonlyArray<A>
}

export const make = (seed: number, name: string): Effect.Effect<Chance> =>
  Effect.gen(function*() {
    const random = yield* Random.Random
    const next = () => random.nextDoubleUnsafe()
    const between = (least: number, below: number) => least + next() * (below - least)
    const whole = (least: number, most: number) => Math.floor(between(least, most + 1))
    return {
      next,
      between,
      whole,
      isIt: (probability: number) => next() < probability,
      pick: <A>(list: readonly [A, ...ReadonlyArray<A>]) => list[whole(0, list.length - 1)] ?? list[0],
      some: <A>(list: ReadonlyArray<A>) => {
        const order = list.map((item) => [next(), item] as const).toSorted(([one], [other]) => one - other)
        return order.slice(0, whole(1, list.length)).map(([, item]) => item)
      }
    }
  }).pipe(Random.withSeed(`${seed}/${name}`))
