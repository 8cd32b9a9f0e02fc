/** What does not hold for some engine, why, and what holds instead. */
import type { PgClient } from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Errors from "effect-pg-pool/Errors"
import * as Effect from "effect/Effect"
import type * as Reactivity from "effect/reactivity/Reactivity"
import type * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import type { Database, It, Onlooker, Room } from "./engine.ts"

type Services = PgClient | SqlClient | Database | Onlooker | Reactivity.Reactivity | Scope.Scope

interface Deviation {
  readonly because: string
  /** Asserts what holds instead, with the services that the test of this name has. */
  readonly instead: Effect.Effect<void, unknown, Services>
}

/** By the name of the test that does not hold. */
export type Deviations = Readonly<Record<string, Deviation>>

/** Of our client with its usual `errorText`. */
export const discreet: Deviations = {
  "an exception of the database's own is told with its code, detail and hint": {
    because: "what a function raises may be a row's, and is told to who asks for it",
    instead: Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE FUNCTION complain() RETURNS void LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no thanks' USING ERRCODE = 'Z0001', DETAIL = 'the detail', HINT = 'the hint'; END $$`
      const error = yield* Effect.flip(sql`SELECT complain()`)
      const cause = error.reason.cause as Error & { readonly detail?: string; readonly hint?: string }
      assert.deepStrictEqual(
        [cause.message, cause.detail, cause.hint],
        ["Z0001 (text withheld)", "the detail", "the hint"]
      )
      assert.strictEqual(Errors.serverReply(error)?.message, "no thanks")
    })
  }
}

/** The room with its deviating tests replaced. */
export const deviate = (room: Room, deviations: Deviations) => {
  const used = new Set<string>()
  const effectOf = (it: It): It["effect"] => {
    const register = (name: string, test: (...args: Array<never>) => unknown, options?: unknown): void => {
      const deviation = deviations[name]
      const effect = it.effect as (name: string, test: unknown, options?: unknown) => void
      if (deviation === undefined) return effect(name, test, options)
      used.add(name)
      effect(`not that ${name}: ${deviation.because}`, () => deviation.instead, options)
    }
    return Object.assign(register, it.effect) as It["effect"]
  }
  const wrap = <R extends Room | It>(it: R): R => {
    const layer = (...given: Parameters<Room["layer"]>) => {
      const nest = (it as Room).layer(...given) as (...args: ReadonlyArray<unknown>) => void
      return (...args: ReadonlyArray<string | ((inner: It) => void)>) =>
        nest(...args.map((arg) => typeof arg === "string" ? arg : (inner: It) => arg(wrap(inner))))
    }
    return Object.assign(Object.create(it), { effect: effectOf(it as It), layer })
  }
  return {
    room: wrap(room),
    /** The names of tests that are not there. */
    unused: () => Object.keys(deviations).filter((name) => !used.has(name))
  }
}
