import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/testing/TestClock"
import * as Credentials from "../src/Credentials.ts"
import { InvalidOption } from "../src/Errors.ts"

const minute = 60_000

/** Issues "1", "2", "3", ..., each good for as long as is said, after doing what it is told to do. */
const makeIssuer = (life?: number) => {
  let calls = 0
  let before: Effect.Effect<unknown, string> = Effect.void
  const fetch: Effect.Effect<Credentials.Credential, string> = Effect.gen(function*() {
    const number = ++calls
    const { epochMilliseconds } = yield* DateTime.now
    yield* before
    return {
      password: Redacted.make(String(number)),
      expiresAt: life === undefined ? undefined : epochMilliseconds + life
    }
  })
  return {
    fetch,
    calls: () => calls,
    first: (effect: Effect.Effect<unknown, string>) => {
      before = effect
    }
  }
}

const read = <E>(cached: Effect.Effect<Redacted.Redacted, E>) => Effect.map(cached, Redacted.value)

/** What the pool does when the server has refused a password. */
const readAfterRefusal = <E>(cached: Effect.Effect<Redacted.Redacted, E>, refused: string) =>
  Effect.provideService(read(cached), Credentials.Refused, Redacted.make(refused))

const started = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })

describe("a cached password", () => {
  it.effect("is not asked for before it is needed, and then once", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const cached = Credentials.cached(issuer.fetch)
      assert.strictEqual(issuer.calls(), 0)
      assert.strictEqual(yield* read(cached), "1")
      assert.strictEqual(yield* read(cached), "1")
      assert.strictEqual(issuer.calls(), 1)
    }))

  it.effect("is asked for once by a thousand connects, before and after it has expired", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      issuer.first(Effect.sleep(100))
      const cached = Credentials.cached(issuer.fetch)
      for (const number of ["1", "2"]) {
        const fibers = yield* Effect.forEach(Array.from({ length: 1000 }), () => started(read(cached)))
        yield* TestClock.adjust(100)
        for (const fiber of fibers) assert.strictEqual(yield* Fiber.join(fiber), number)
        yield* TestClock.adjust(15 * minute)
      }
      assert.strictEqual(issuer.calls(), 2)
    }))

  it.effect("is shared as a failure, too, by those who waited for it, and asked for again by who comes next", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer()
      issuer.first(Effect.delay(Effect.fail("throttled"), 100))
      const cached = Credentials.cached(issuer.fetch)
      const fibers = yield* Effect.forEach(Array.from({ length: 1000 }), () => started(Effect.flip(cached)))
      yield* TestClock.adjust(100)
      for (const fiber of fibers) assert.strictEqual(yield* Fiber.join(fiber), "throttled")
      assert.strictEqual(issuer.calls(), 1)
      issuer.first(Effect.void)
      assert.strictEqual(yield* read(cached), "2")
    }))

  it.effect("is asked for by another one of those who wait when the one who asks is interrupted", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer()
      issuer.first(Effect.sleep(100))
      const cached = Credentials.cached(issuer.fetch)
      const [asking, ...waiting] = yield* Effect.forEach(Array.from({ length: 10 }), () => started(read(cached)))
      yield* TestClock.adjust(50)
      yield* Fiber.interrupt(asking!)
      assert.strictEqual(issuer.calls(), 2)
      yield* TestClock.adjust(100)
      for (const fiber of waiting) assert.strictEqual(yield* Fiber.join(fiber), "2")
      assert.strictEqual(issuer.calls(), 2)
    }))

  it.effect("is not asked for by anybody when all are interrupted", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer()
      let ended = 0
      issuer.first(Effect.onInterrupt(Effect.never, () => Effect.sync(() => ended++)))
      const cached = Credentials.cached(issuer.fetch)
      const fibers = yield* Effect.forEach(Array.from({ length: 10 }), () => started(cached))
      yield* Fiber.interruptAll(fibers)
      assert.strictEqual(issuer.calls(), ended)
      issuer.first(Effect.void)
      assert.strictEqual(yield* read(cached), String(ended + 1))
    }))

  it.effect("is forgotten by invalidate, also while it is asked for", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer()
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      yield* cached.invalidate
      const gate = yield* Deferred.make<void>()
      issuer.first(Deferred.await(gate))
      const asking = yield* started(read(cached))
      yield* cached.invalidate
      issuer.first(Effect.void)
      assert.strictEqual(yield* read(cached), "3")
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual(yield* Fiber.join(asking), "2")
      assert.strictEqual(yield* read(cached), "3")
    }))
})

describe("a cached password that expires", () => {
  it.effect("is renewed when four fifths of its life are over, by the first who needs it then", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      yield* TestClock.adjust(12 * minute - 1)
      assert.strictEqual(yield* read(cached), "1")
      yield* TestClock.adjust(1)
      assert.strictEqual(issuer.calls(), 1, "nothing happens in the background")
      assert.strictEqual(yield* read(cached), "2")
    }))

  it.effect("is renewed as long before as is said, but serves for half of its life", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const early = Credentials.cached(issuer.fetch, { renewBefore: "1 hour" })
      assert.strictEqual(yield* read(early), "1")
      yield* TestClock.adjust(7.5 * minute - 1)
      assert.strictEqual(yield* read(early), "1")
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* read(early), "2")
      const late = Credentials.cached(issuer.fetch, { renewBefore: 0 })
      assert.strictEqual(yield* read(late), "3")
      yield* TestClock.adjust(15 * minute - 1)
      assert.strictEqual(yield* read(late), "3")
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* read(late), "4")
    }))

  it.effect("goes on to be used by the others while one renews it", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      yield* TestClock.adjust(14 * minute)
      issuer.first(Effect.sleep(1000))
      const renewing = yield* started(read(cached))
      assert.strictEqual(yield* read(cached), "1")
      yield* TestClock.adjust(1000)
      assert.strictEqual(yield* Fiber.join(renewing), "2")
      assert.strictEqual(yield* read(cached), "2")
      assert.strictEqual(issuer.calls(), 2)
    }))

  it.effect("is waited for by all once it has expired, whoever renews it", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      yield* TestClock.adjust(15 * minute - 500)
      issuer.first(Effect.sleep(1000))
      const renewing = yield* started(read(cached))
      yield* TestClock.adjust(500)
      const waiting = yield* started(read(cached))
      yield* TestClock.adjust(500)
      assert.strictEqual(yield* Fiber.join(renewing), "2")
      assert.strictEqual(yield* Fiber.join(waiting), "2")
      assert.strictEqual(issuer.calls(), 2)
    }))

  const failures: ReadonlyArray<readonly [title: string, failure: Effect.Effect<unknown, string>, warning: string]> = [
    ["fails", Effect.fail("hunter2"), "an error without a name"],
    ["dies", Effect.die(new TypeError("hunter2")), "TypeError"],
    ["takes longer than 2 seconds", Effect.never, "TimeoutError"]
  ]
  it.effect.each(failures)("stays in use when its renewal %s, which is tried a few times until it ends", (
    [, failure, warning]
  ) =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      yield* TestClock.adjust(12 * minute)
      issuer.first(failure)
      const warnings: Array<string> = []
      const logger = Logger.make<unknown, void>(({ message }) => void warnings.push(String(message)))
      // A connect a second for three minutes: each gets the one at hand, some after waiting for the renewal.
      const asking = []
      for (let second = 0; second < 180; second++) {
        asking.push(yield* started(Effect.provide(read(cached), Logger.layer([logger]))))
        yield* TestClock.adjust(1000)
      }
      yield* TestClock.adjust(2000)
      for (const fiber of asking) assert.strictEqual(yield* Fiber.join(fiber), "1")
      assert.isAtLeast(issuer.calls() - 1, 5)
      assert.isAtMost(issuer.calls() - 1, 9)
      assert.strictEqual(warnings.length, issuer.calls() - 1)
      for (const each of warnings) {
        assert.include(each, warning)
        assert.include(each, "good until 1970-01-01T00:15:00")
        assert.notInclude(each, "hunter2")
      }
      // Now it is not good any more, and what is wrong is told.
      issuer.first(Effect.fail("down"))
      assert.strictEqual(yield* Effect.flip(cached), "down")
    }))

  it.effect("leaves the failure of its renewal behind it when the issuer is back", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      yield* TestClock.adjust(12 * minute)
      issuer.first(Effect.fail("throttled"))
      assert.strictEqual(yield* Effect.provide(read(cached), Logger.layer([])), "1")
      issuer.first(Effect.void)
      yield* TestClock.adjust(1.5 * minute - 1)
      assert.strictEqual(yield* read(cached), "1", "half of the time that is left is not over yet")
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* read(cached), "3")
    }))

  it.effect("does not count against whoever is interrupted while renewing it", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      yield* TestClock.adjust(12 * minute)
      issuer.first(Effect.never)
      const renewing = yield* started(cached)
      yield* Fiber.interrupt(renewing)
      const exit = yield* Fiber.await(renewing)
      assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
      assert.strictEqual(yield* read(cached), "1")
    }))

  const forms: ReadonlyArray<readonly [title: string, expiresAt: (at: number) => Credentials.Credential["expiresAt"]]> =
    [
      ["milliseconds since 1970", (at) => at],
      ["a Date", (at) => new Date(at)],
      ["a DateTime", (at) => DateTime.makeUnsafe(at)]
    ]
  it.effect.each(forms)("says when as %s", ([, form]) =>
    Effect.gen(function*() {
      let calls = 0
      const cached = Credentials.cached(Effect.map(DateTime.now, ({ epochMilliseconds }) => ({
        password: Redacted.make(String(++calls)),
        expiresAt: form(epochMilliseconds + 10 * minute)
      })))
      assert.strictEqual(yield* read(cached), "1")
      yield* TestClock.adjust(8 * minute - 1)
      assert.strictEqual(yield* read(cached), "1")
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* read(cached), "2")
    }))

  it.effect("does so after timeToLive where the issuer says nothing, or something later", () =>
    Effect.gen(function*() {
      let calls = 0
      const plain = Credentials.cached(Effect.sync(() => Redacted.make(String(++calls))), { timeToLive: "10 minutes" })
      const issuer = makeIssuer(60 * minute)
      const both = Credentials.cached(issuer.fetch, { timeToLive: "10 minutes" })
      assert.deepStrictEqual([yield* read(plain), yield* read(both)], ["1", "1"])
      yield* TestClock.adjust(8 * minute - 1)
      assert.deepStrictEqual([yield* read(plain), yield* read(both)], ["1", "1"])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual([yield* read(plain), yield* read(both)], ["2", "2"])
    }))

  it.effect("is used once when it has expired already, by a clock that goes wrong", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(-minute)
      const cached = Credentials.cached(issuer.fetch)
      assert.strictEqual(yield* read(cached), "1")
      assert.strictEqual(yield* read(cached), "2")
    }))
})

describe("a cached password that was refused", () => {
  it.effect("is asked for again, once, whoever has been refused with it", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer()
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      issuer.first(Effect.sleep(100))
      const fibers = yield* Effect.forEach(Array.from({ length: 50 }), () => started(readAfterRefusal(cached, "1")))
      yield* TestClock.adjust(100)
      for (const fiber of fibers) assert.strictEqual(yield* Fiber.join(fiber), "2")
      assert.strictEqual(yield* readAfterRefusal(cached, "1"), "2", "who comes late finds the new one")
      assert.strictEqual(issuer.calls(), 2)
      assert.strictEqual(yield* read(cached), "2")
    }))

  it.effect("is not used for want of another one, however long it is still good", () =>
    Effect.gen(function*() {
      const issuer = makeIssuer(15 * minute)
      const cached = Credentials.cached(issuer.fetch)
      yield* cached
      issuer.first(Effect.fail("throttled"))
      assert.strictEqual(yield* Effect.flip(readAfterRefusal(cached, "1")), "throttled")
      assert.strictEqual(yield* Effect.flip(cached), "throttled")
    }))

  it.effect("is asked for again when a call that was under way has only brought the same", () =>
    Effect.gen(function*() {
      let secret = "old"
      let calls = 0
      const cached = Credentials.cached(Effect.suspend(() => {
        calls++
        return Effect.delay(Effect.succeed(Redacted.make(secret)), 100)
      }))
      const early = yield* started(read(cached))
      const refused = yield* started(readAfterRefusal(cached, "old"))
      yield* TestClock.adjust(100)
      assert.strictEqual(yield* Fiber.join(early), "old")
      secret = "new"
      yield* TestClock.adjust(100)
      assert.strictEqual(calls, 2)
      // The second call had read it before it was changed: that is the answer, and no reason to go on asking.
      assert.strictEqual(yield* Fiber.join(refused), "old")
      const again = yield* started(readAfterRefusal(cached, "old"))
      yield* TestClock.adjust(100)
      assert.strictEqual(yield* Fiber.join(again), "new")
    }))
})

describe("a cache that cannot work", () => {
  const options: ReadonlyArray<readonly [option: string, options: Credentials.CacheOptions]> = [
    ["timeToLive", { timeToLive: 0 }],
    ["timeToLive", { timeToLive: "soon" as never }],
    ["renewBefore", { renewBefore: -1 }]
  ]
  it.each(options)("is refused where it is made: %s", (option, options) => {
    try {
      Credentials.cached(makeIssuer().fetch, options)
    } catch (error) {
      return assert.strictEqual(error instanceof InvalidOption && error.option, option)
    }
    assert.fail("it was made")
  })

  it.effect("says what is wrong with an expiry or a password that is none", () =>
    Effect.gen(function*() {
      const squashed = <E>(cached: Effect.Effect<Redacted.Redacted, E>) =>
        Effect.map(Effect.sandbox(cached).pipe(Effect.flip), Cause.squash)
      const date = yield* squashed(Credentials.cached(Effect.succeed({
        password: Redacted.make("hunter2"),
        expiresAt: new Date("soon")
      })))
      assert.isTrue(date instanceof InvalidOption && date.option === "expiresAt")
      for (const password of [Redacted.make(undefined as never), "hunter2" as never]) {
        const error = yield* squashed(Credentials.cached(Effect.succeed({ password })))
        assert.include(String(error), "Redacted.make")
        assert.notInclude(String(error), "hunter2")
      }
    }))
})
