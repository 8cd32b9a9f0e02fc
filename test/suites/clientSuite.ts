import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { commits } from "./client/commits.ts"
import { deviate, type Deviations } from "./client/deviations.ts"
import type { Engine } from "./client/engine.ts"
import { database, live } from "./client/engine.ts"
import { errors } from "./client/errors.ts"
import { sessions } from "./client/sessions.ts"
import { statements } from "./client/statements.ts"
import { toolkit } from "./client/toolkit.ts"
import { tracing } from "./client/tracing.ts"
import { transactions } from "./client/transactions.ts"
import { types } from "./client/types.ts"

/**
 * What a program may rely on from a `PgClient`, whatever layer provides it. Where that cannot be so, the deviations say
 * why, and what is instead.
 */
export const clientSuite = (name: string, engine: Engine, deviations: Deviations = {}): void => {
  layer(database, live)(name, (it) => {
    const { room: deviating, unused } = deviate(it, deviations)
    for (const room of [statements, types, transactions, commits, sessions, errors, toolkit, tracing]) {
      room(deviating, engine)
    }
    it.effect("each deviation is one from a test of the suite", () =>
      Effect.sync(() => assert.deepStrictEqual(unused(), [])))
  })
}
