import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { randomUUID } from "node:crypto"
import * as Pg from "../../src/index.ts"
import { EmbeddedPostgres } from "../../src/testing/index.ts"
import { ended, eventually, makeWitness } from "./witness.ts"

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** A server that may be stopped: no other test uses it. */
const ownServer = EmbeddedPostgres.make({ useDatabaseUrl: false })

const typed = (error: SqlError): string => Pg.Errors.fromSqlError(error)?._tag ?? error.reason._tag

const ends = [
  ["stopped", "stop"],
  ["crashed", "kill"]
] as const

describe("a server that is gone for a while, under load", () => {
  for (const [name, end] of ends) {
    it.live(
      `${name}: the breaker opens, fails fast, probes and closes; nothing acknowledged is lost or doubled`,
      () =>
        Effect.gen(function*() {
          const server = yield* ownServer
          yield* Effect.scoped(Effect.flatMap(makeWitness(server.url), (witness) =>
            witness.query("CREATE TABLE ledger (id text NOT NULL, part int NOT NULL DEFAULT 0)")))

          const acknowledged: Array<string> = []
          const unknown: Array<string> = []
          const refused = new Map<string, string>()
          const transitions: Array<Pg.Breaker.Transition> = []
          let connects = 0
          let running = true

          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const pool = yield* Pg.Pool.Pool
            const breaker = yield* Pg.Breaker.Breaker
            const executor = yield* Pg.Executor.Executor

            const write = Effect.suspend(() => {
              const id = randomUUID()
              const insert = acknowledged.length % 2 === 0
                ? sql`INSERT INTO ledger (id) VALUES (${id})`
                : sql.withTransaction(Effect.andThen(
                  sql`INSERT INTO ledger VALUES (${id}, 1)`,
                  sql`INSERT INTO ledger VALUES (${id}, 2)`
                ))
              return Effect.match(insert, {
                onFailure: (error) => {
                  if (typed(error) === "OutcomeUnknown") {
                    unknown.push(id)
                  } else refused.set(id, typed(error))
                },
                onSuccess: () => {
                  acknowledged.push(id)
                }
              })
            })
            const writers = yield* Effect.forEach(range(16), () =>
              Effect.forkChild(Effect.whileLoop({
                while: () =>
                  running,
                body: () => Effect.andThen(write, Effect.sleep(5)),
                step: () => {}
              })))
            const state = Effect.map(breaker.state, ({ _tag }) => _tag)
            const progress = (what: string) =>
              Effect.suspend(() => {
                const before = acknowledged.length
                return eventually(what, Effect.sync(() => acknowledged.length > before + 200), 30)
              })

            yield* progress("writes")
            assert.strictEqual(yield* state, "Closed")
            yield* server[end]
            yield* eventually("an open circuit", Effect.map(state, (now) => now === "Open"), 30)

            // Many calls, all answered at once, and nobody knocks at the server's door for them.
            yield* eventually(
              "CircuitOpen for a while, without connects",
              Effect.gen(function*() {
                const before = connects
                const generation = transitions.length
                const answers = yield* Effect.forEach(range(500), () => Effect.flip(executor.run(sql`SELECT 1`)))
                if (transitions.length !== generation) return false
                for (const answer of answers) {
                  assert.strictEqual(answer._tag, "CircuitOpen")
                  if (answer._tag === "CircuitOpen") {
                    assert.isFalse(answer.isRetryable)
                    assert.isAtMost(answer.retryAfter, 5000)
                    assert.isNotNull(answer.lastFailure)
                  }
                }
                assert.strictEqual(connects, before)
                return true
              })
            )

            // While it is down, it is asked by probes only.
            const connectsBefore = connects
            const probesBefore = transitions.filter(({ to }) => to === "HalfOpen").length
            yield* eventually(
              "three probes in vain",
              Effect.sync(() => transitions.filter(({ to }) => to === "HalfOpen").length >= probesBefore + 3),
              30
            )
            const probes = transitions.filter(({ to }) => to === "HalfOpen").length - probesBefore
            assert.isAtMost(connects - connectsBefore, probes + 1)
            assert.notStrictEqual(yield* state, "Closed")

            yield* server.start
            yield* eventually("a closed circuit", Effect.map(state, (now) => now === "Closed"), 30)
            yield* progress("writes after the outage")
            running = false
            yield* Effect.forEach(writers, (writer) => ended(writer))
            const { active, total, waiting } = yield* pool.stats
            assert.deepStrictEqual([active, waiting], [0, 0])
            assert.isAtMost(total, 6)
          }).pipe(Effect.provide(Pg.layer({
            url: server.url,
            max: 6,
            beforeConnect: Effect.sync(() => connects++),
            breaker: {
              openFor: 300,
              maxOpenFor: 600,
              onTransition: (transition) => {
                transitions.push(transition)
              }
            }
          })))

          // Each step follows from the one before it.
          const steps = transitions.map(({ to }) => to)
          assert.deepStrictEqual(steps.slice(0, 2), ["Open", "HalfOpen"])
          assert.strictEqual(steps.at(-1), "Closed")
          for (let at = 1; at < transitions.length; at++) {
            assert.strictEqual(transitions[at]!.from, transitions[at - 1]!.to)
          }

          const witness = yield* makeWitness(server.url)
          const rows = yield* witness.query<{ id: string; count: number; parts: number; high: number }>(
            "SELECT id, count(*)::int AS count, count(DISTINCT part)::int AS parts, max(part) AS high FROM ledger GROUP BY id"
          )
          const found = new Map(rows.map((row) => [row.id, row]))
          const wrong: Array<string> = []
          const whole = (entry: (typeof rows)[number]) =>
            entry.count === entry.parts && (entry.high === 0 || entry.parts === 2)
          for (const id of acknowledged) {
            const entry = found.get(id)
            if (entry === undefined) wrong.push(`acknowledged ${id} is lost`)
            else if (!whole(entry)) wrong.push(`acknowledged ${id} is there ${entry.count} times`)
          }
          for (const id of unknown) {
            const entry = found.get(id)
            if (entry !== undefined && !whole(entry)) wrong.push(`unknown ${id} is there ${entry.count} times`)
          }
          for (const [id, why] of refused) {
            if (found.has(id)) wrong.push(`${id} is there although it failed with ${why}`)
          }
          assert.deepStrictEqual(wrong, [])
          assert.isAbove(refused.size, 0)
        }),
      90_000
    )
  }

  it.live("idempotent work that is patient enough survives a restart without an error", () =>
    Effect.gen(function*() {
      const server = yield* ownServer
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const failures: Array<string> = []
        let reads = 0
        let running = true
        const readers = yield* Effect.forEach(range(10), () =>
          Effect.forkChild(Effect.whileLoop({
            while: () => running,
            body: () =>
              Effect.match(Pg.Executor.idempotent(sql`SELECT pg_sleep(0.002)`), {
                onFailure: (error) => void failures.push(`${typed(error)}: ${error.message}`),
                onSuccess: () => void reads++
              }),
            step: () => {}
          })))
        yield* eventually("reads", Effect.sync(() => reads > 100))
        yield* server.stop
        yield* server.start
        const before = reads
        yield* eventually("reads after the restart", Effect.sync(() => reads > before + 100 || failures.length > 0), 30)
        running = false
        yield* Effect.forEach(readers, (reader) => Fiber.await(reader))
        assert.deepStrictEqual(failures, [])
      }).pipe(Effect.provide(Pg.layer({
        url: server.url,
        max: 5,
        breaker: false,
        retry: { attempts: 60, base: 100, cap: 500, jitter: "none" }
      })))
    }), 60_000)

  it.live("open transactions end with an error, and their sessions leave the pool", () =>
    Effect.gen(function*() {
      const server = yield* ownServer
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        let begun = false
        const transaction = yield* Effect.forkChild(sql.withTransaction(Effect.gen(function*() {
          yield* sql`SELECT 1`
          begun = true
          yield* Effect.sleep(300)
          yield* sql`SELECT 2`
        })))
        yield* eventually("an open transaction", Effect.sync(() => begun))
        yield* server.stop
        const exit = yield* ended(transaction)
        assert.strictEqual(exit._tag, "Failure")
        yield* eventually("an empty pool", Effect.map(pool.stats, ({ active, total }) => total === 0 && active === 0))
        yield* server.start
        assert.strictEqual((yield* sql`SELECT 1`).length, 1)
      }).pipe(Effect.provide(Pg.layer({ url: server.url, max: 2, breaker: false })))
    }))
})

describe("a server that falls silent", () => {
  it.live("is given up after queryTimeout, counted by the breaker, and used again when it speaks", () =>
    Effect.gen(function*() {
      const server = yield* ownServer
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const pool = yield* Pg.Pool.Pool
        const breaker = yield* Pg.Breaker.Breaker
        yield* sql`SELECT 1`
        yield* server.pause
        const error = yield* Effect.flip(sql`INSERT INTO nowhere VALUES (1)`)
        const known = Pg.Errors.fromSqlError(error)
        assert.strictEqual(known?._tag, "StatementTimeout")
        if (known?._tag === "StatementTimeout") {
          assert.strictEqual(known.by, "client")
          assert.isAtLeast(known.timeout, 200)
          assert.isFalse(known.isRetryable)
        }
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 1 })
        yield* eventually("an empty pool", Effect.map(pool.stats, ({ total }) => total === 0))
        yield* server.resume
        assert.strictEqual((yield* sql`SELECT 1`).length, 1)
        assert.deepStrictEqual(yield* breaker.state, { _tag: "Closed", failures: 0 })
      }).pipe(Effect.provide(Pg.layer({ url: server.url, max: 2, queryTimeout: 200, retry: false })))
    }))
})

describe("a server that is stopped for two seconds, under calls that wait for it", () => {
  it.live(
    "fails no read, tells the truth about writes, and is at work again long before the circuit's time is up",
    () =>
      Effect.gen(function*() {
        const server = yield* ownServer
        yield* Effect.scoped(
          Effect.flatMap(makeWitness(server.url), (witness) => witness.query("CREATE TABLE receipt (id text NOT NULL)"))
        )
        const acknowledged: Array<string> = []
        const notRun: Array<string> = []
        const failedReads: Array<string> = []
        let running = true
        yield* Effect.gen(function*() {
          const sql = yield* SqlClient
          const breaker = yield* Pg.Breaker.Breaker
          const executor = yield* Pg.Executor.Executor
          const read = executor.run(sql`SELECT count(*) FROM pg_class`, { idempotent: true, waitForCircuit: true })
            .pipe(
              Effect.catch((error) => Effect.sync(() => failedReads.push(error._tag)))
            )
          const write = Effect.suspend(() => {
            const id = randomUUID()
            return executor.run(sql`INSERT INTO receipt VALUES (${id})`, { waitForCircuit: true }).pipe(
              Effect.match({
                onSuccess: () => acknowledged.push(id),
                onFailure: (error) => error._tag === "OutcomeUnknown" ? 0 : notRun.push(id)
              })
            )
          })
          const callers = yield* Effect.forEach(range(20), (caller) =>
            Effect.forkChild(Effect.whileLoop({
              while: () => running,
              body: () => Effect.andThen(caller % 4 === 0 ? write : read, Effect.sleep(5)),
              step: () => {}
            })))
          yield* Effect.sleep(300)
          yield* server.stop
          yield* eventually("an open circuit", Effect.map(breaker.state, ({ _tag }) => _tag === "Open"))
          yield* Effect.sleep(1000)
          yield* server.start
          const before = acknowledged.length
          // Of the thirty seconds that it would be open, few have passed.
          yield* eventually("a closed circuit", Effect.map(breaker.state, ({ _tag }) => _tag === "Closed"))
          yield* eventually("writes", Effect.sync(() => acknowledged.length > before))
          running = false
          for (const caller of callers) yield* ended(caller, 20)
        }).pipe(Effect.provide(Pg.layer({ url: server.url, max: 4 })))
        assert.deepStrictEqual(failedReads, [])
        const present = yield* Effect.scoped(Effect.flatMap(
          makeWitness(server.url),
          (witness) => witness.query("SELECT id, count(*)::int AS times FROM receipt GROUP BY id")
        ))
        const times = new Map(
          (present as ReadonlyArray<{ id: string; times: number }>).map(({ id, times }) => [id, times])
        )
        assert.isTrue(acknowledged.every((id) => times.get(id) === 1))
        assert.isFalse(notRun.some((id) => times.has(id)))
      }),
    90_000
  )
})
