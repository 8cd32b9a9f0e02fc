import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import * as Reactivity from "effect/reactivity/Reactivity"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import type { Engine, It, Room } from "./engine.ts"
import { eventually, look, over } from "./engine.ts"

/** What happens after a commit, and only after a commit. */
export const commits = (it: Room, engine: Engine): void => {
  it.layer(over(engine))("callbacks after a commit", callbacks)
  it.layer(over(engine))("reactive queries", reactive)
}

/** A list that callbacks write to, and a way to write to it. */
const makeLog = () => {
  const entries: Array<string> = []
  return { entries, write: (entry: string) => Effect.sync(() => void entries.push(entry)) }
}

const callbacks = (it: It): void => {
  it.effect("a callback runs after the commit and before the transaction returns, in order", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const log = makeLog()
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql.afterCommit(log.write("first"))
        yield* sql`SELECT 1`
        yield* sql.afterCommit(log.write("second"))
        assert.deepStrictEqual(log.entries, [])
      }))
      assert.deepStrictEqual(log.entries, ["first", "second"])
    }))

  it.effect("outside of a transaction a callback runs at once", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const log = makeLog()
      yield* sql.afterCommit(log.write("now"))
      assert.deepStrictEqual(log.entries, ["now"])
    }))

  it.effect("a callback is discarded when the transaction fails, dies, is interrupted or cannot commit", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const log = makeLog()
      const registered = yield* Deferred.make<void>()
      const register = sql.afterCommit(log.write("never"))
      yield* Effect.exit(sql.withTransaction(Effect.andThen(register, Effect.fail("no"))))
      yield* Effect.exit(sql.withTransaction(Effect.andThen(register, Effect.die("bug"))))
      yield* Effect.exit(sql.withTransaction(Effect.andThen(register, Effect.ignore(sql`SELECT 1 / 0`))))
      const fiber = yield* Effect.forkScoped(sql.withTransaction(
        Effect.andThen(Effect.andThen(register, Deferred.succeed(registered, undefined)), Effect.never)
      ))
      yield* Deferred.await(registered)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(log.entries, [])
    }))

  it.effect("callbacks of inner transactions wait for the outer one, and go with those that are rolled back", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const log = makeLog()
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql.afterCommit(log.write("outer"))
        yield* sql.withTransaction(sql.withTransaction(sql.afterCommit(log.write("innermost"))))
        yield* Effect.exit(sql.withTransaction(
          Effect.andThen(sql.afterCommit(log.write("rolled back")), Effect.fail("no"))
        ))
        yield* sql.afterCommit(log.write("last"))
        assert.deepStrictEqual(log.entries, [])
      }))
      assert.deepStrictEqual(log.entries, ["outer", "innermost", "last"])
    }))

  it.effect("a callback sees what was committed, on a session outside of the transaction", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE seen_after (n int4)`
      const seen: Array<unknown> = []
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql`INSERT INTO seen_after VALUES (1)`
        yield* sql.afterCommit(
          Effect.gen(function*() {
            seen.push(...(yield* look("SELECT n FROM seen_after")))
            seen.push(...(yield* sql`SELECT pg_current_xact_id_if_assigned() IS NULL AS alone, n FROM seen_after`))
            yield* Effect.exit(sql.withTransaction(
              Effect.andThen(sql`INSERT INTO seen_after VALUES (2)`, Effect.fail("no"))
            ))
          }).pipe(Effect.orDie)
        )
      }))
      assert.deepStrictEqual(seen, [{ n: 1 }, { alone: true, n: 1 }])
      assert.deepStrictEqual(yield* sql`SELECT n FROM seen_after`, [{ n: 1 }])
    }))

  it.effect("a callback of a pool's only session has the session", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const done = yield* Effect.replicateEffect(
        sql.withTransaction(Effect.andThen(sql`SELECT 1`, sql.afterCommit(Effect.orDie(Effect.asVoid(sql`SELECT 2`))))),
        20,
        { concurrency: "unbounded" }
      )
      assert.lengthOf(done, 20)
    }))

  it.effect("a callback that dies neither fails the transaction nor keeps the others from running", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const log = makeLog()
      const said: Array<Cause.Cause<unknown>> = []
      const value = yield* sql.withTransaction(Effect.gen(function*() {
        yield* sql.afterCommit(Effect.die("a bug of the callback"))
        yield* sql.afterCommit(log.write("after all"))
        return "committed"
      })).pipe(Effect.provide(Logger.layer([Logger.make(({ cause }) => void said.push(cause))])))
      assert.deepStrictEqual(said.map(Cause.squash), ["a bug of the callback"])
      assert.strictEqual(value, "committed")
      assert.deepStrictEqual(log.entries, ["after all"])
    }))

  it.effect("to register once the transaction has ended is a defect", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const ended = yield* Deferred.make<void>()
      const straggler = yield* sql.withTransaction(
        Effect.forkDetach(Effect.andThen(Deferred.await(ended), sql.afterCommit(Effect.void)))
      )
      yield* Deferred.succeed(ended, undefined)
      const exit = yield* Fiber.await(straggler)
      assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
    }))
}

const reactive = (it: It): void => {
  it.effect("a reactive query runs again when its keys are invalidated", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const reactivity = yield* Reactivity.Reactivity
      yield* sql`CREATE TABLE watched (n int4)`
      const counts = yield* Queue.unbounded<number>()
      yield* sql.reactive(["watched"], sql<{ n: number }>`SELECT count(*)::int4 AS n FROM watched`).pipe(
        Stream.runForEach(([row]) => Queue.offer(counts, row!.n)),
        Effect.forkScoped
      )
      assert.strictEqual(yield* Queue.take(counts), 0)
      yield* reactivity.mutation(["watched"], sql`INSERT INTO watched VALUES (1)`)
      assert.strictEqual(yield* Queue.take(counts), 1)
      yield* sql`INSERT INTO watched VALUES (2)`
      yield* reactivity.invalidate({ other: [1] })
      yield* reactivity.invalidate(["watched"])
      assert.strictEqual(yield* Queue.take(counts), 2)
    }))

  it.effect("a reactive query may be read from a mailbox", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const reactivity = yield* Reactivity.Reactivity
      yield* sql`CREATE TABLE mailed (n int4)`
      const mailbox = yield* sql.reactiveMailbox(
        { mailed: [7] },
        sql<{ n: number }>`SELECT count(*)::int4 AS n FROM mailed`
      )
      assert.deepStrictEqual(yield* Queue.take(mailbox), [{ n: 0 }])
      yield* sql`INSERT INTO mailed VALUES (1)`
      yield* reactivity.invalidate({ mailed: [7] })
      assert.deepStrictEqual(yield* Queue.take(mailbox), [{ n: 1 }])
    }))

  it.effect("a reactive query fails with its statement", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const error = yield* Effect.flip(Stream.runDrain(sql.reactive(["bad"], sql`SELECT 1 / 0`)))
      assert.strictEqual(error._tag, "SqlError")
    }))

  it.effect("inside a transaction an invalidation waits for the commit", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE deferred (n int4)`
      let runs = 0
      const query = Effect.suspend(() => {
        runs++
        return look("SELECT count(*)::int4 AS n FROM deferred")
      })
      const mailbox = yield* sql.reactiveMailbox(["deferred"], query)
      assert.deepStrictEqual(yield* Queue.take(mailbox), [{ n: 0 }])
      yield* sql.withTransaction(Effect.gen(function*() {
        const reactivity = yield* Reactivity.Reactivity
        yield* reactivity.mutation(["deferred"], sql`INSERT INTO deferred VALUES (1)`)
        yield* sql.withTransaction(reactivity.invalidate(["deferred"]))
        yield* Effect.sleep(20)
        assert.strictEqual(runs, 1)
      }))
      yield* eventually(Effect.map(Queue.take(mailbox), ([row]) => row?.n === 1))
    }))

  it.effect("an invalidation goes with the transaction that is rolled back", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      let runs = 0
      const mailbox = yield* sql.reactiveMailbox(["undone"], Effect.sync(() => ++runs))
      assert.strictEqual(yield* Queue.take(mailbox), 1)
      yield* Effect.exit(sql.withTransaction(Effect.gen(function*() {
        const reactivity = yield* Reactivity.Reactivity
        yield* reactivity.invalidate(["undone"])
        return yield* Effect.fail("no")
      })))
      yield* Effect.sleep(20)
      assert.strictEqual(runs, 1)
    }))
}
