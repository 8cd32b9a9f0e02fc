import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Engine, Failed, Reports, Time, Unsupported } from "./engine.ts"

/** One of the 48 cases, which can be asked of any breaker. */
export interface Case {
  readonly number: number
  readonly title: string
  readonly expected: string
  /** Fails with what is wrong, or with the power that the engine would need to be asked. */
  readonly run: (engine: Engine) => Effect.Effect<unknown, Failed | Unsupported, Scope.Scope | Time | Reports>
}

/** One that concerns what surrounds a breaker: the executor and the pool. */
export interface CaseOfPool {
  readonly number: number
  readonly title: string
  readonly expected: string
}
