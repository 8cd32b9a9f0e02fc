import { assert, describe, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import { TestClock } from "effect/testing"
import * as Errors from "../src/Errors.ts"
import * as Health from "../src/Health.ts"
import { exitWithin } from "../src/internal/patience.ts"
import { full, makeWorld, quiet, sqlError } from "./healthWorld.ts"

describe("Health.make", () => {
  it.effect("a closing pool is down, whatever else is true, and all of that is told", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      Object.assign(world, { isClosing: true, lastReplyAt: 0, stats: full })
      const report = yield* check
      assert.strictEqual(report.state, "down")
      assert.deepStrictEqual(report.reasons, [
        "The pool is closing and takes no new work.",
        "All 10 connections are in use and 4 callers wait."
      ])
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("an open breaker is down without a query, even right after a success", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.breaker = { _tag: "Open", retryAfter: 12_345, lastFailure: { code: "ECONNREFUSED", message: "10.1.2.3" } }
      world.lastReplyAt = 0
      const report = yield* check
      assert.strictEqual(report.state, "down")
      assert.strictEqual(report.breaker, "Open")
      assert.strictEqual(report.retryAfter, 12_345)
      assert.deepStrictEqual(report.reasons, [
        "The circuit breaker is open after repeated failures; it lets a call through in 12.3 s."
      ])
      assert.strictEqual(world.pings, 0)
      assert.notInclude(JSON.stringify(report), "10.1.2.3")
    }))

  it.effect("an open breaker whose time is over asks, so that traffic comes back and can close it", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.breaker = { _tag: "Open", retryAfter: 0, lastFailure: null }
      const back = yield* check
      assert.strictEqual(back.state, "degraded")
      assert.strictEqual(world.pings, 1)
      assert.include(back.reasons[0], "answers again")
      world.ping = Effect.fail(sqlError({ code: "ECONNREFUSED" }))
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* check).state, "down")
    }))

  it.effect("an isolated breaker is down without a query; why is only in the details", () =>
    Effect.gen(function*() {
      const { check, details, world } = makeWorld()
      world.breaker = { _tag: "Isolated", reason: "moving to another host" }
      world.lastReplyAt = 0
      const report = yield* check
      assert.deepStrictEqual([report.state, report.breaker], ["down", "Isolated"])
      assert.deepStrictEqual(report.reasons, ["The circuit breaker was isolated by hand."])
      assert.strictEqual((yield* details).isolation, "moving to another host")
      assert.isUndefined(report.retryAfter)
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("a breaker that is disabled, or has just closed, says nothing against the database", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.lastReplyAt = 0
      for (
        const [breaker, remark] of [
          [{ _tag: "Disabled", failures: 4 }, "The circuit breaker was disabled by hand."],
          [
            { _tag: "Closed", failures: 0, limit: 2 },
            "The circuit breaker has just closed and lets 2 calls in at a time."
          ],
          [
            { _tag: "Closed", failures: 0, limit: 1 },
            "The circuit breaker has just closed and lets 1 call in at a time."
          ]
        ] as const
      ) {
        world.breaker = breaker
        const { reasons, state } = yield* check
        assert.deepStrictEqual([state, reasons], ["up", ["The database answered 0.0 s ago.", remark]])
      }
    }))

  it.effect("a half-open breaker is degraded without a query", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.breaker = { _tag: "HalfOpen", retryAfter: 400 }
      assert.strictEqual((yield* check).state, "degraded")
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("a success within 5 seconds speaks for the database; after that it is asked", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.lastReplyAt = 0
      yield* TestClock.adjust("5 seconds")
      const report = yield* check
      assert.strictEqual(report.state, "up")
      assert.isUndefined(report.latencyMs)
      assert.strictEqual(DateTime.formatIso(report.checkedAt), "1970-01-01T00:00:05.000Z")
      assert.strictEqual(world.pings, 0)
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* check).state, "up")
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("a later failure of the database's takes the word from the last success; any other does not", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.lastReplyAt = 1_000
      yield* TestClock.adjust("2 seconds")
      for (const kind of ["Rejected", "Contention", "Cancelled", "Denied", "Local"] as const) {
        world.lastFailure = { kind, code: undefined, at: 1_500 }
        assert.strictEqual((yield* check).state, "up")
      }
      world.lastFailure = { kind: "Unreachable", code: "57P01", at: 900 }
      assert.strictEqual((yield* check).state, "up")
      assert.strictEqual(world.pings, 0)
      world.lastFailure = { kind: "Unreachable", code: "57P01", at: 1_500 }
      const report = yield* check
      assert.strictEqual(world.pings, 1)
      assert.deepStrictEqual([report.state, report.lastFailure?.kind, report.lastFailure?.code], [
        "up",
        "Unreachable",
        "57P01"
      ])
      assert.strictEqual(report.lastFailure && DateTime.toEpochMillis(report.lastFailure.at), 1_500)
      assert.strictEqual(report.lastSuccessAt && DateTime.toEpochMillis(report.lastSuccessAt), 1_000)
    }))

  it.effect("a success that comes while the state of the breaker is fetched is not taken for one of the future", () =>
    Effect.gen(function*() {
      const { sources, world } = makeWorld()
      const { check } = yield* Health.make({
        ...sources,
        breaker: Effect.as(Effect.sleep("20 millis"), world.breaker)
      })
      const fiber = yield* Effect.forkChild(check)
      yield* TestClock.adjust("10 millis")
      world.lastReplyAt = 10
      yield* TestClock.adjust("10 millis")
      assert.deepStrictEqual((yield* Fiber.join(fiber)).reasons, ["The database answered 0.0 s ago."])
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("a success that lies in the future, because the clock was set back, proves nothing", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.lastReplyAt = 60_000
      yield* check
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("a pool that is used up while callers wait is degraded, however well it answers, and is not asked", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.stats = full
      world.lastReplyAt = 0
      const answering = yield* check
      assert.strictEqual(answering.state, "degraded")
      assert.deepStrictEqual(answering.pool, full)
      assert.deepStrictEqual(answering.reasons, [
        "The database answered 0.0 s ago.",
        "All 10 connections are in use and 4 callers wait."
      ])
      world.lastReplyAt = undefined
      const report = yield* check
      assert.strictEqual(report.state, "degraded")
      assert.deepStrictEqual(report.reasons, [
        "No connection is free to ask the database by.",
        "All 10 connections are in use and 4 callers wait."
      ])
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("a pool that is used up is up while it answers and nobody waits", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.stats = { ...full, waiting: 0 }
      world.lastReplyAt = 0
      assert.strictEqual((yield* check).state, "up")
      world.lastReplyAt = undefined
      assert.strictEqual((yield* check).state, "degraded")
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("the last free connection is kept for borrowers", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      for (
        const [stats, leaving] of [
          [{ active: 9 }, 0],
          [{ active: 6, connecting: 3 }, 0],
          [{ active: 6 }, 3]
        ] as const
      ) {
        world.stats = { ...quiet, ...stats }
        world.leaving = leaving
        const { reasons, state } = yield* check
        assert.deepStrictEqual([state, reasons], [
          "degraded",
          ["The last free connection is kept for borrowers; the database was not asked."]
        ])
      }
      assert.strictEqual(world.pings, 0)
      world.stats = { ...quiet, active: 8 }
      world.leaving = 0
      assert.strictEqual((yield* check).state, "up")
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("a pool of one is asked by its only connection, while nobody has or wants it", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      const one = { ...quiet, total: 1, idle: 1, max: 1, min: 0 }
      for (const busy of [{ active: 1, idle: 0 }, { connecting: 1, total: 0, idle: 0 }, { waiting: 1 }]) {
        world.stats = { ...one, ...busy }
        assert.strictEqual((yield* check).state, "degraded")
      }
      assert.strictEqual(world.pings, 0)
      world.stats = one
      assert.strictEqual((yield* check).state, "up")
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("a pool that was suspended by hand is degraded, and is not asked", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.isSuspended = true
      assert.deepStrictEqual((yield* check).reasons, [
        "The pool was suspended by hand: whoever asks for a connection waits."
      ])
      world.lastReplyAt = 0
      assert.strictEqual((yield* check).state, "degraded")
      assert.strictEqual(world.pings, 0)
    }))

  it.effect("connects that fail make a database that answers a degraded one", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.connectPause = 400
      world.lastReplyAt = 0
      const answering = yield* check
      assert.deepStrictEqual([answering.state, answering.reasons], [
        "degraded",
        ["The database answered 0.0 s ago.", "The last connect failed; the next one is tried in 0.4 s."]
      ])
      world.lastReplyAt = undefined
      assert.strictEqual((yield* check).state, "degraded")
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("a pool that has opened nothing yet is asked", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.stats = { ...quiet, total: 0, idle: 0 }
      assert.strictEqual((yield* check).state, "up")
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("with probe: false only what real traffic has shown counts, and nothing keeps traffic away for good", () =>
    Effect.gen(function*() {
      const { ask, check, world } = makeWorld({ probe: false })
      const told = Effect.map(check, ({ reasons, state }) => [state, reasons[0]])
      yield* TestClock.adjust("60 seconds")
      assert.deepStrictEqual(yield* told, ["up", "The database has not been used yet; not asked."])
      world.lastReplyAt = 30_000
      assert.deepStrictEqual(yield* told, ["up", "The database answered 30.0 s ago; not asked since."])
      world.lastFailure = { kind: "Unreachable", code: undefined, at: 40_000 }
      assert.deepStrictEqual(yield* told, ["degraded", "The last use failed 20.0 s ago; not asked."])
      world.breaker = { _tag: "Open", retryAfter: 0, lastFailure: null }
      assert.deepStrictEqual(yield* told, [
        "degraded",
        "The circuit breaker waits for a call to let through; not asked."
      ])
      assert.strictEqual(world.pings, 0)
      world.breaker = { _tag: "Closed", failures: 0 }
      assert.strictEqual((yield* ask).state, "up")
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("whoever insists is not content with real traffic, but takes no connection from borrowers", () =>
    Effect.gen(function*() {
      const { ask, world } = makeWorld()
      world.lastReplyAt = 0
      assert.deepStrictEqual((yield* ask).reasons, ["The database answered SELECT 1."])
      assert.strictEqual(world.pings, 1)
      yield* TestClock.adjust("2 seconds")
      world.stats = full
      yield* ask
      world.stats = quiet
      world.breaker = { _tag: "Open", retryAfter: 1, lastFailure: null }
      yield* ask
      assert.strictEqual(world.pings, 1)
    }))

  it.effect("tells what statements take of late, as far as counters show it", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      const mean = Effect.map(check, ({ trafficLatencyMs }) => trafficLatencyMs)
      const go = (seconds: number, count: number, millis: number) => {
        world.traffic = { count: world.traffic.count + count, sum: world.traffic.sum + count * millis / 1_000 }
        world.lastReplyAt = 0
        return TestClock.adjust(seconds * 1_000)
      }
      assert.isUndefined(yield* mean)
      yield* go(10, 4, 2)
      assert.closeTo((yield* mean)!, 2, 1e-9)
      yield* go(10, 4, 4)
      assert.closeTo((yield* mean)!, 4, 1e-9)
      yield* go(5, 12, 8)
      assert.closeTo((yield* mean)!, 7, 1e-9)
      yield* go(30, 0, 0)
      yield* mean
      yield* go(10, 0, 0)
      assert.isUndefined(yield* mean)
    }))

  it.effect("tells what the server is, and who asks for details where it is and why it cannot be reached", () =>
    Effect.gen(function*() {
      const { check, details, world } = makeWorld()
      world.server = { version: "18.1", role: "standby" }
      assert.deepStrictEqual((yield* check).server, { version: "18.1", role: "standby" })
      const address = { hosts: ["db.internal:5432"], database: "shop", username: "clerk" }
      assert.deepInclude(yield* details, { ...address, failure: undefined })
      world.breaker = { _tag: "Open", retryAfter: 1, lastFailure: { message: "the server went away" } }
      assert.strictEqual((yield* details).failure, "the server went away")
      world.connectFailure = sqlError({ code: "28P01", severity: "FATAL", message: "no such clerk" })
      assert.include((yield* details).failure, "no such clerk")
      const report = JSON.stringify(yield* check)
      for (const word of ["db.internal", "shop", "clerk", "went away"]) assert.notInclude(report, word)
    }))

  it.effect("remembers the last failure when the database is back, but not why it could not be reached", () =>
    Effect.gen(function*() {
      const { check, details, world } = makeWorld()
      world.ping = Effect.fail(sqlError({ code: "57P03", severity: "FATAL", message: "starting up" }))
      assert.strictEqual((yield* check).state, "down")
      assert.include((yield* details).failure, "starting up")
      world.ping = Effect.void
      yield* TestClock.adjust("2 seconds")
      const { lastFailure, state } = yield* check
      assert.deepStrictEqual([state, lastFailure?.code], ["up", "57P03"])
      assert.isUndefined((yield* details).failure)
    }))

  it.effect("refuses impossible options by name", () =>
    Effect.gen(function*() {
      const { sources } = makeWorld()
      for (
        const [options, option] of [
          [{ deadline: 0 }, "health.deadline"],
          [{ deadline: Infinity }, "health.deadline"],
          [{ freshFor: -1 }, "health.freshFor"]
        ] as const
      ) {
        const error = yield* Effect.flip(Health.make(sources, options))
        assert.deepInclude(error, { _tag: "InvalidOption", option })
      }
    }))

  it.effect("a quiet pool answers for itself, with the time that took", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.ping = Effect.sleep("40 millis")
      const fiber = yield* Effect.forkChild(check)
      yield* TestClock.adjust("40 millis")
      const report = yield* Fiber.join(fiber)
      assert.strictEqual(report.state, "up")
      assert.strictEqual(report.latencyMs, 40)
    }))

  it.effect("a silent database is down after 1 second, however long its query takes to be interrupted", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      let interrupted = false
      world.ping = Effect.never.pipe(
        Effect.onInterrupt(() => {
          interrupted = true
          return Effect.sleep("5 seconds")
        })
      )
      const fiber = yield* Effect.forkChild(check)
      yield* TestClock.adjust("999 millis")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const report = yield* Fiber.join(fiber)
      assert.strictEqual(report.state, "down")
      assert.deepStrictEqual(report.reasons, ["The database did not answer SELECT 1 within 1.0 s."])
      assert.deepInclude(report.lastFailure, { kind: "Unreachable", code: undefined })
      assert.isTrue(interrupted)
    }))

  it.effect("a probe that got stuck behind others is degraded, since busy is not down", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.ping = Effect.never
      const fiber = yield* Effect.forkChild(check)
      yield* TestClock.adjust("500 millis")
      world.stats = full
      yield* TestClock.adjust("500 millis")
      assert.strictEqual((yield* Fiber.join(fiber)).state, "degraded")

      const lastConnectFailure = null
      for (
        const [error, status] of [
          [new Errors.AcquireTimeout({ phase: "Queue", waited: 5, stats: full, lastConnectFailure }), "degraded"],
          [new Errors.PoolSaturated({ by: "Length", waiting: 4, waited: 0, maxWaiting: 4, stats: full }), "degraded"],
          [new Errors.AcquireTimeout({ phase: "Connect", waited: 5, stats: quiet, lastConnectFailure }), "down"]
        ] as const
      ) {
        const other = makeWorld()
        other.world.ping = Effect.fail(error)
        assert.strictEqual((yield* other.check).state, status)
      }
    }))

  it.effect("a failure is named by its kind and code; the server's text stays inside", () =>
    Effect.gen(function*() {
      const secret = "secret@db.internal"
      for (
        const [error, words] of [
          [sqlError({ code: "ECONNREFUSED", message: secret }), "Unreachable, ECONNREFUSED"],
          [sqlError({ code: "57P03", severity: "FATAL", message: secret }), "Unreachable, 57P03"],
          [sqlError({ code: "53300", severity: "FATAL", message: secret }), "Overloaded, 53300"],
          [sqlError({ code: "28P01", severity: "FATAL", message: secret }), "Denied, 28P01"],
          [new Errors.PoolClosed(), "PoolClosed"],
          [Errors.toSqlError(new Errors.PoolClosed()), "PoolClosed"]
        ] as const
      ) {
        const { check, world } = makeWorld()
        world.ping = Effect.fail(error)
        const report = yield* check
        assert.strictEqual(report.state, "down")
        assert.deepStrictEqual(report.reasons, [`SELECT 1 failed: ${words}.`])
        const [kind, code] = words.split(", ")
        assert.deepStrictEqual([report.lastFailure?.kind, report.lastFailure?.code], [
          kind === "PoolClosed" ? "Local" : kind,
          code
        ])
        assert.notInclude(JSON.stringify(report), secret)
      }
      const { check, world } = makeWorld()
      world.ping = Effect.die(new Error(secret))
      assert.deepStrictEqual((yield* check).reasons, ["SELECT 1 was cut short."])
    }))

  it.effect("a hundred who ask at once share one query, and its answer is good for 1 second", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.ping = Effect.sleep("10 millis")
      const fiber = yield* Effect.forkChild(Effect.all(Array.from({ length: 100 }, () => check), {
        concurrency: "unbounded"
      }))
      yield* TestClock.adjust("10 millis")
      const reports = yield* Fiber.join(fiber)
      assert.isTrue(reports.every((report) => report.state === "up"))
      yield* TestClock.adjust("999 millis")
      yield* check
      assert.strictEqual(world.pings, 1)
      world.ping = Effect.fail(sqlError({ code: "ECONNREFUSED" }))
      yield* TestClock.adjust("1 millis")
      assert.strictEqual((yield* check).state, "down")
      assert.strictEqual((yield* check).state, "down")
      assert.strictEqual(world.pings, 2)
    }))

  it.effect("an answer does not live longer when the clock is set back", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      yield* TestClock.setTime(7_200_000)
      world.ping = Effect.fail(sqlError({ code: "ECONNREFUSED" }))
      assert.strictEqual((yield* check).state, "down")
      yield* TestClock.setTime(3_600_000)
      world.ping = Effect.void
      assert.strictEqual((yield* check).state, "up")
    }))

  it.effect("no question goes on when whoever asked is interrupted between any two steps", () =>
    Effect.gen(function*() {
      let begun = 0
      let ended = 0
      const question = Effect.ensuring(
        Effect.andThen(Effect.sync(() => begun++), Effect.never),
        Effect.sync(() => ended++)
      )
      for (let ops = 3; ops < 40; ops++) {
        const asking = yield* Effect.forkChild(
          Effect.provideService(exitWithin(question, 1_000), Scheduler.MaxOpsBeforeYield, ops),
          { startImmediately: true }
        )
        yield* Fiber.interrupt(asking)
        yield* TestClock.adjust(0)
        assert.strictEqual(ended, begun, `interrupted after ${ops} operations`)
      }
      assert.isAbove(begun, 0)
    }))

  it.effect("one who stops waiting does not take the answer from the others", () =>
    Effect.gen(function*() {
      const { check, world } = makeWorld()
      world.ping = Effect.sleep("10 millis")
      const first = yield* Effect.forkChild(check)
      const second = yield* Effect.forkChild(check)
      yield* TestClock.adjust("5 millis")
      yield* Fiber.interrupt(first)
      yield* TestClock.adjust("5 millis")
      assert.strictEqual((yield* Fiber.join(second)).state, "up")
      assert.strictEqual(world.pings, 1)
    }))
})
