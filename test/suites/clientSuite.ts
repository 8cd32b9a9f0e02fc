import { layer } from "@effect/vitest"
import { commits } from "./client/commits.ts"
import type { Engine } from "./client/engine.ts"
import { database, live } from "./client/engine.ts"
import { errors } from "./client/errors.ts"
import { sessions } from "./client/sessions.ts"
import { statements } from "./client/statements.ts"
import { toolkit } from "./client/toolkit.ts"
import { tracing } from "./client/tracing.ts"
import { transactions } from "./client/transactions.ts"
import { types } from "./client/types.ts"

/** What a program may rely on from a `PgClient`, whatever layer provides it. */
export const clientSuite = (name: string, engine: Engine): void => {
  layer(database, live)(name, (it) => {
    for (const room of [statements, types, transactions, commits, sessions, errors, toolkit, tracing]) {
      room(it, engine)
    }
  })
}
