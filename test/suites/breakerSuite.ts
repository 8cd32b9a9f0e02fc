import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { cases } from "./breaker/cases.ts"
import type { Engine } from "./breaker/engine.ts"
import { judge } from "./breaker/verdict.ts"

/**
 * Asks an engine every case that concerns a breaker alone. It must pass all of them but those of powers that it does
 * not claim to have (`without`), which it must say it lacks.
 */
export const breakerSuite = (engine: Engine, without: ReadonlyArray<number> = []): void => {
  describe("the cases", () => {
    for (const one of cases) {
      const lacks = without.includes(one.number)
      it.live(`${one.number}: ${one.title}: ${lacks ? "cannot be asked of it" : one.expected}`, () =>
        Effect.gen(function*() {
          const verdict = yield* judge(one, engine)
          if (lacks) assert.strictEqual(verdict._tag, "Cannot")
          else assert.deepStrictEqual(verdict, { _tag: "Pass" })
        }))
    }
  })
}
