import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { chance, ended, eventually, makeWitness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

const rounds = 40
const callers = 12

describe("interrupting a statement", () => {
  for (const multiplex of [false, true]) {
    for (const seed of [3, 20261123]) {
      it.live(
        `cancels that one and no other: what the others wrote is there once${
          multiplex ? ", multiplexed" : ""
        } (seed ${seed})`,
        () =>
          Effect.gen(function*() {
            const { below, next } = chance(seed)
            const url = yield* freshDatabase
            const witness = yield* makeWitness(url)
            yield* witness.query("CREATE TABLE written (id int NOT NULL)")
            yield* Effect.gen(function*() {
              const sql = yield* SqlClient
              let id = 0
              const kept: Array<number> = []
              const given: Array<number> = []
              let interrupted = 0
              for (const round of range(rounds)) {
                const calls = range(callers).map(() => ({
                  id: ++id,
                  isUnwanted: next() < 0.4,
                  sleep: below(8) / 1000,
                  patience: below(8)
                }))
                const fibers = yield* Effect.forEach(calls, (call) =>
                  Effect.forkChild(
                    sql`INSERT INTO written SELECT ${call.id} FROM (SELECT pg_sleep(${call.sleep})) AS slept`
                  ))
                yield* Effect.forEach(calls, (call, index) =>
                  call.isUnwanted
                    ? Effect.delay(Fiber.interrupt(fibers[index]!), call.patience)
                    : Effect.void, { concurrency: "unbounded" })
                for (const [index, call] of calls.entries()) {
                  const exit = yield* ended(fibers[index]!)
                  if (Exit.isSuccess(exit)) kept.push(call.id)
                  else {
                    assert.isTrue(call.isUnwanted, `seed ${seed}, round ${round}: ${String(exit.cause)}`)
                    interrupted++
                    given.push(call.id)
                  }
                }
              }
              assert.isAbove(interrupted, rounds)
              yield* eventually(
                "nobody at work",
                Effect.map(
                  witness.value<number>(
                    "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()"
                  ),
                  (active) => active === 0
                )
              )
              const written = yield* witness.query<{ id: number }>("SELECT id FROM written ORDER BY id")
              const ids = written.map((row) => row.id)
              assert.strictEqual(new Set(ids).size, ids.length, `seed ${seed}: something was written twice`)
              const there = new Set(ids)
              assert.deepStrictEqual(
                kept.filter((id) => !there.has(id)),
                [],
                `seed ${seed}: acknowledged and not there`
              )
              const known = new Set([...kept, ...given])
              assert.deepStrictEqual(ids.filter((id) => !known.has(id)), [])
            }).pipe(Effect.provide(Pg.layer({ url, max: 4, multiplex, retry: false, breaker: false })))
          })
      )
    }
  }

  it.live("that nobody shares ends it on the server, whose side effects are not there", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* witness.query("CREATE TABLE written (id int NOT NULL)")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const slow = yield* Effect.forkChild(sql`INSERT INTO written SELECT 1 FROM (SELECT pg_sleep(30)) AS slept`)
        const neighbour = yield* Effect.forkChild(sql`INSERT INTO written SELECT 2 FROM (SELECT pg_sleep(1)) AS slept`)
        const active = witness.value<number>(
          "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        )
        yield* eventually("two at work", Effect.map(active, (count) => count === 2))
        yield* Fiber.interrupt(slow)
        yield* eventually("one at work, or none", Effect.map(active, (count) => count <= 1), 10)
        assert.isTrue(Exit.isSuccess(yield* ended(neighbour)))
        assert.deepStrictEqual(yield* witness.query("SELECT id FROM written"), [{ id: 2 }])
      }).pipe(Effect.provide(Pg.layer({ url, max: 2 })))
    }))
})
