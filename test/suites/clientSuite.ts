import { describe } from "@effect/vitest"
import type { Engine } from "./client/engine.ts"
import { statements } from "./client/statements.ts"
import { transactions } from "./client/transactions.ts"
import { types } from "./client/types.ts"

/** What a program may rely on from a `PgClient`, whoever provides it. */
export const clientSuite = (name: string, engine: Engine): void => {
  describe(name, () => {
    statements(engine)
    types(engine)
    transactions(engine)
  })
}
