/** A real server, or a real pooler, that takes no more sessions, and borrowers who would rather wait. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { randomUUID } from "node:crypto"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makePgBouncer } from "./pgbouncer.ts"
import { ended, eventually, makeWitness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** A role of which the server takes so many sessions, and somebody who looks on. */
const makeCrowdedRole = Effect.fnUntraced(function*(limit: number) {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  const username = `crowded_${randomUUID().replaceAll("-", "")}`
  yield* witness.query(`CREATE ROLE ${username} LOGIN PASSWORD 'crowded' CONNECTION LIMIT ${limit}`)
  yield* Effect.addFinalizer(() => Effect.ignore(witness.query(`DROP ROLE ${username}`)))
  return { url, username, password: Redacted.make("crowded"), witness }
})

const patient = { retry: false, whenServerFull: "wait", min: 0, max: 1 } as const

/** A pool of its own, as a process of its own would have it. */
const open = (options: Pg.Options, scope: Scope.Scope) =>
  Effect.map(Layer.buildWithScope(Pg.layer({ ...patient, ...options }), scope), (context) => ({
    sql: Context.get(context, PgClient.PgClient),
    executor: Context.get(context, Pg.Executor.Executor),
    breaker: Context.get(context, Pg.Breaker.Breaker),
    pool: Context.get(context, Pg.Pool.Pool)
  }))

const makeCounter = () => {
  let count = 0
  return { connects: () => count, beforeConnect: Effect.sync(() => void count++) }
}

describe("a role that has as many sessions as it may have", () => {
  it.live("lets who waits for one have it as soon as there is one, and the breaker sees nothing of it", () =>
    Effect.gen(function*() {
      const { password, url, username } = yield* makeCrowdedRole(1)
      const holder = yield* Scope.make()
      const scope = yield* Effect.scope
      const one = yield* open({ url, username, password }, holder)
      yield* one.sql`SELECT 1`
      const { beforeConnect, connects } = makeCounter()
      const other = yield* open({ url, username, password, breaker: { failures: 1 }, beforeConnect }, scope)
      const waiter = yield* Effect.forkChild(other.sql`SELECT 1 AS one`)
      yield* eventually("several refusals", Effect.sync(() => connects() > 3))
      assert.strictEqual((yield* other.breaker.state)._tag, "Closed")
      yield* Scope.close(holder, Exit.void)
      const exit = yield* ended(waiter)
      assert.deepStrictEqual(exit, Exit.succeed([{ one: 1 }]))
      assert.strictEqual((yield* other.breaker.state)._tag, "Closed")
    }))

  it.live("lets nobody wait past the deadline of their work, or acquireTimeout", () =>
    Effect.gen(function*() {
      const { password, url, username } = yield* makeCrowdedRole(1)
      const scope = yield* Effect.scope
      const holder = yield* open({ url, username, password }, scope)
      yield* holder.sql`SELECT 1`
      const { executor, sql } = yield* open(
        { url, username, password, acquireTimeout: "600 millis", breaker: false },
        scope
      )
      const late = yield* Effect.flip(executor.run(sql`SELECT 1`, { deadline: "300 millis" }))
      assert.strictEqual(late._tag, "DeadlineExceeded")
      const error = yield* Effect.flip(executor.run(sql`SELECT 1`))
      assert.instanceOf(error, Pg.Errors.AcquireTimeout)
      assert.strictEqual(error.lastConnectFailure?.sqlState, "53300")
    }))

  it.live(
    "never shows the refusal to sixty pools that want one of its four sessions for a moment",
    () =>
      Effect.gen(function*() {
        const { password, url, username, witness } = yield* makeCrowdedRole(4)
        const watch = yield* witness.watch
        const exits = yield* Effect.forEach(
          range(60),
          () =>
            Effect.scoped(Effect.gen(function*() {
              const { sql } = yield* open({ url, username, password, breaker: false }, yield* Effect.scope)
              return yield* Effect.exit(sql`SELECT pg_sleep(0.02)`)
            })),
          { concurrency: "unbounded" }
        )
        for (const exit of exits) assert.isTrue(Exit.isSuccess(exit), String(exit))
        assert.isAtMost(watch.most(), 4)
      }),
    60_000
  )
})

describe("a pooler that takes no more clients", () => {
  it.live("lets who waits for one have it as soon as there is room", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      // It turns away the one that would make it so many.
      const bouncer = yield* makePgBouncer({ settings: { max_client_conn: 3 } })
      const options = { url: bouncer.through(url), pooler: "transaction" } as const
      const holder = yield* Scope.make()
      const scope = yield* Effect.scope
      const one = yield* open({ ...options, max: 2 }, holder)
      yield* one.pool.warm(2)
      const { beforeConnect, connects } = makeCounter()
      const { sql } = yield* open({ ...options, beforeConnect }, scope)
      const waiter = yield* Effect.forkChild(sql`SELECT 1 AS one`)
      yield* eventually("a refusal", Effect.sync(() => connects() > 2))
      yield* Scope.close(holder, Exit.void)
      assert.deepStrictEqual(yield* ended(waiter), Exit.succeed([{ one: 1 }]))
    }))
})
