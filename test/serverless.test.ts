/** An environment whose layer, pools and time are the test's. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as Errors from "../src/Errors.ts"
import * as Executor from "../src/Executor.ts"
import * as Roster from "../src/internal/roster.ts"
import * as Serverless from "../src/Serverless.ts"

class Db extends Context.Service<Db, { readonly build: number }>()("test/Db") {}

/** A pool of which nothing is real. */
const makeLodger = () => {
  const asked: Array<string> = []
  const lodger = {
    name: "scripted",
    thaw: (staleAfter: number): Effect.Effect<void> => Effect.sync(() => void asked.push(`thaw ${staleAfter}`)),
    destroyBusy: Effect.sync(() => asked.push("destroyBusy")),
    closeIdle: (within: number): Effect.Effect<void> => Effect.sync(() => void asked.push(`closeIdle ${within}`)),
    warm: (count: number): Effect.Effect<void, unknown> => Effect.sync(() => void asked.push(`warm ${count}`)),
    active: () => 0,
    idle: () => 1,
    idleTimeout: 10_000,
    serverUtilisation: (): number | undefined => undefined
  }
  return { asked, lodger }
}

interface Script {
  /** What happens while the layer is built. */
  building: Effect.Effect<unknown, string>
  /** What happens while it is closed. */
  closing: Effect.Effect<unknown>
  builds: number
  closes: number
}

const makeWorld = Effect.fnUntraced(function*(options?: Serverless.EnvironmentOptions) {
  const script: Script = { building: Effect.void, closing: Effect.void, builds: 0, closes: 0 }
  const { asked, lodger } = makeLodger()
  const layer = Layer.effect(
    Db,
    Effect.gen(function*() {
      const build = ++script.builds
      const roster = yield* Roster.Current
      const leave = roster?.add(lodger)
      yield* Effect.addFinalizer(() =>
        Effect.suspend(() => script.closing).pipe(
          Effect.andThen(Effect.sync(() => {
            leave?.()
            script.closes++
          }))
        )
      )
      yield* script.building
      return { build }
    })
  )
  const environment = yield* Serverless.environment(layer, options)
  return { asked, environment, layer, lodger, script }
})

/** A promise that is waited for by a fiber, so that time can go on meanwhile. */
const waited = <A>(promise: () => Promise<A>) =>
  Effect.map(Effect.forkChild(Effect.promise(promise), { startImmediately: true }), (fiber) => ({
    fiber,
    /** Whether the promise has settled by now. */
    isOver: Effect.as(turns, fiber).pipe(Effect.map((fiber) => fiber.pollUnsafe() !== undefined)),
    value: Fiber.join(fiber)
  }))

const turn = Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void)))
const turns = Effect.repeat(turn, { times: 5 })

/** What a run failed with. */
const failureOf = <A, E>(exit: Exit.Exit<A, E>): unknown =>
  Exit.isFailure(exit) ? Cause.squash(exit.cause) : assert.fail("it has succeeded")

const recorder = () => {
  const lines: Array<string> = []
  const logger = Logger.map(Logger.formatJson, (json) => void lines.push(json))
  return { lines, recorded: Effect.provide(Logger.layer([logger])) }
}

describe("Serverless.make", () => {
  it("needs no Effect around it", async () => {
    const environment = Serverless.make(Layer.succeed(Db, { build: 7 }))
    assert.deepStrictEqual(await environment.run(Db), { build: 7 })
    const error = new Errors.PoolClosed()
    await environment.run(Effect.fail(error)).then(() => assert.fail("it has succeeded"), (rejected) => {
      assert.strictEqual(rejected, error)
    })
    await environment.dispose()
  })

  it("refuses impossible options by name", () => {
    const refused = (options: Serverless.EnvironmentOptions) => {
      try {
        Serverless.make(Layer.empty, options)
      } catch (error) {
        return error instanceof Errors.InvalidOption ? error.option : error
      }
      return undefined
    }
    assert.strictEqual(refused({ margin: -1 }), "margin")
    assert.strictEqual(refused({ staleAfter: "soon" as never }), "staleAfter")
    assert.strictEqual(refused({ shutdown: { within: NaN } }), "shutdown.within")
    assert.strictEqual(refused({ release: "sometimes" as never }), "release")
  })

  it("takes no deadline that is no duration", async () => {
    const environment = Serverless.make(Layer.empty)
    const exit = await environment.runExit(Effect.void, { deadline: "tomorrow" as never })
    assert.propertyVal(failureOf(exit), "option", "deadline")
    const error = await environment.dispose(NaN).then(() => assert.fail("it has succeeded"), (error: unknown) => error)
    assert.propertyVal(error, "option", "within")
  })

  it.effect("lends a layer the references of its own context: the clock, for one", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      const environment = yield* Serverless.environment(Layer.effect(
        Db,
        Effect.gen(function*() {
          assert.strictEqual(yield* Clock.Clock, clock)
          return { build: 1 }
        })
      ))
      assert.strictEqual(yield* Effect.promise(() => environment.run(Clock.Clock)), clock)
    }))

  it.effect("ends with the scope that it was made in, and interrupts what still runs", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { environment, script } = yield* Scope.provide(makeWorld(), scope)
      const run = yield* waited(() => environment.runExit(Effect.never))
      yield* Scope.close(scope, Exit.void)
      assert.instanceOf(failureOf(yield* run.value), Errors.PoolClosed)
      assert.strictEqual(script.closes, 1)
    }))

  it.effect("has pools that are made while something runs on its roster", () =>
    Effect.gen(function*() {
      const { environment, lodger } = yield* makeWorld()
      const roster = yield* Effect.promise(() => environment.run(Roster.Current))
      assert.isTrue(roster?.lodgers.has(lodger))
    }))
})

describe("the layer of an environment", () => {
  it.effect("is built once, by whoever comes first, for all who come meanwhile", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      script.building = Effect.sleep("1 second")
      const [first, second] = yield* Effect.all([
        waited(() => environment.run(Db)),
        waited(() => environment.run(Db))
      ])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual([yield* first.value, yield* second.value], [{ build: 1 }, { build: 1 }])
      assert.deepStrictEqual(yield* Effect.promise(() => environment.run(Db)), { build: 1 })
      assert.strictEqual(script.builds, 1)
    }))

  it.effect("is built again after a failed build, of which nothing is left", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      script.building = Effect.andThen(Effect.sleep("1 second"), Effect.fail("no secret to be had"))
      const [first, second] = yield* Effect.all([
        waited(() => environment.runExit(Db)),
        waited(() => environment.runExit(Db))
      ])
      yield* TestClock.adjust("1 second")
      assert.strictEqual(failureOf(yield* first.value), "no secret to be had")
      assert.strictEqual(script.closes, 1)
      assert.strictEqual(failureOf(yield* second.value), "no secret to be had")
      assert.strictEqual(script.builds, 1)
      script.building = Effect.void
      assert.deepStrictEqual(yield* Effect.promise(() => environment.run(Db)), { build: 2 })
    }))

  it.effect("is built again after a build that died", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      script.building = Effect.die(new RangeError("boom"))
      assert.instanceOf(failureOf(yield* Effect.promise(() => environment.runExit(Db))), RangeError)
      script.building = Effect.void
      assert.deepStrictEqual(yield* Effect.promise(() => environment.run(Db)), { build: 2 })
    }))

  it.effect("is given up when the last who waits for it has left, and built anew for the next", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      script.building = Effect.never
      const [first, second] = yield* Effect.all([
        waited(() => environment.runExit(Db, { deadline: "4 seconds", invocation: { id: "first" } })),
        waited(() => environment.runExit(Db, { deadline: "8 seconds" }))
      ])
      yield* TestClock.adjust("4 seconds")
      assert.instanceOf(failureOf(yield* first.value), Errors.InvocationTimeout)
      assert.strictEqual(script.closes, 0, "the other one still waits")
      yield* TestClock.adjust("4 seconds")
      const error = failureOf(yield* second.value)
      assert.instanceOf(error, Errors.InvocationTimeout)
      assert.include((error as Errors.InvocationTimeout).message, "Nothing was sent to the database.")
      assert.strictEqual(script.closes, 1)
      script.building = Effect.void
      assert.deepStrictEqual(yield* Effect.promise(() => environment.run(Db)), { build: 2 })
    }))

  it.effect("that comes to its end although it was given up is closed", () =>
    Effect.gen(function*() {
      const closed: Array<number> = []
      let builds = 0
      const slow = Effect.acquireRelease(
        Effect.as(Effect.sleep("5 seconds"), { build: ++builds }),
        ({ build }) => Effect.sync(() => closed.push(build))
      )
      const layer = Layer.effect(Db, Effect.uninterruptible(slow))
      const environment = yield* Serverless.environment(Layer.fresh(layer))
      const run = yield* waited(() => environment.runExit(Db, { deadline: "4 seconds" }))
      yield* TestClock.adjust("4 seconds")
      assert.instanceOf(failureOf(yield* run.value), Errors.InvocationTimeout)
      yield* TestClock.adjust("1 second")
      yield* turns
      assert.deepStrictEqual(closed, [1])
    }))

  it.effect("does not hold up the next invocation when a build ignores that it is given up", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      script.building = Effect.uninterruptible(Effect.sleep("1 hour"))
      const first = yield* waited(() => environment.runExit(Db, { deadline: "4 seconds" }))
      yield* TestClock.adjust("4 seconds")
      assert.instanceOf(failureOf(yield* first.value), Errors.InvocationTimeout)
      script.building = Effect.void
      assert.deepStrictEqual(yield* Effect.promise(() => environment.run(Db)), { build: 2 })
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(script.closes, 1, "what came too late is closed")
      assert.deepStrictEqual(yield* Effect.promise(() => environment.run(Db)), { build: 2 })
    }))
})

describe("an invocation", () => {
  it.effect("has a scope of its own, which is closed before its answer", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      const closed: Array<string> = []
      const work = Effect.gen(function*() {
        yield* Effect.addFinalizer((exit) => Effect.delay(Effect.sync(() => closed.push(exit._tag)), "1 second"))
        return yield* Effect.scope
      })
      const first = yield* waited(() => environment.run(work))
      assert.isFalse(yield* first.isOver)
      yield* TestClock.adjust("1 second")
      const scope = yield* first.value
      assert.deepStrictEqual(closed, ["Success"])
      const second = yield* waited(() => environment.runExit(Effect.andThen(work, Effect.fail("no"))))
      yield* TestClock.adjust("1 second")
      assert.strictEqual(failureOf(yield* second.value), "no")
      assert.deepStrictEqual(closed, ["Success", "Failure"])
      const third = yield* waited(() => environment.run(work))
      yield* TestClock.adjust("1 second")
      assert.notStrictEqual(yield* third.value, scope)
    }))

  it.effect("leaves nothing running that it has forked", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      const ended: Array<string> = []
      const lasting = (name: string) => Effect.onInterrupt(Effect.never, () => Effect.sync(() => ended.push(name)))
      yield* Effect.promise(() =>
        environment.run(Effect.gen(function*() {
          yield* Effect.forkScoped(lasting("scoped"), { startImmediately: true })
          yield* Effect.forkChild(lasting("child"), { startImmediately: true })
        }))
      )
      assert.sameMembers(ended, ["scoped", "child"])
    }))

  it.effect("knows what it is", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(1_000_000)
      const { environment } = yield* makeWorld()
      const invocation = { id: "8476a536", event: { a: 1 }, context: { awsRequestId: "8476a536" } }
      const [first, second] = [
        yield* Effect.promise(() => environment.run(Serverless.Invocation, { deadline: "3 seconds", invocation })),
        yield* Effect.promise(() => environment.run(Serverless.Invocation))
      ]
      assert.deepStrictEqual({ ...first }, { ...invocation, deadlineAt: 1_002_750, isCold: true })
      assert.strictEqual(second.id, "2")
      assert.strictEqual(second.deadlineAt, Infinity)
      assert.isFalse(second.isCold)
    }))

  it.effect("has a deadline that keeps the margin, but never more than a quarter of what is left", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld({ margin: "2 seconds" })
      const deadline = (left: number | undefined) =>
        Effect.promise(() => environment.run(Executor.Deadline, { deadline: left }))
      assert.strictEqual(yield* deadline(10_000), 8000)
      assert.strictEqual(yield* deadline(4000), 3000)
      assert.strictEqual(yield* deadline(undefined), Infinity)
    }))
})

describe("at the deadline of an invocation", () => {
  it.effect("its work is interrupted, and it is told so by name", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld()
      let isInterrupted = false
      const run = yield* waited(() =>
        environment.runExit(
          Effect.onInterrupt(Effect.sleep("1 minute"), () =>
            Effect.sync(() => {
              isInterrupted = true
            })),
          { deadline: "3 seconds" }
        )
      )
      yield* TestClock.adjust(2749)
      assert.isFalse(yield* run.isOver)
      yield* TestClock.adjust(1)
      const error = failureOf(yield* run.value)
      assert.instanceOf(error, Errors.InvocationTimeout)
      assert.strictEqual((error as Errors.InvocationTimeout).allowed, 2750)
      assert.isFalse((error as Errors.InvocationTimeout).isRetryable)
      assert.isTrue(isInterrupted)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(asked, [], "no socket was busy")
    }))

  it.effect("what fails on the way out does not hide that time was up", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      const work = Effect.acquireRelease(Effect.void, () => Effect.die(new Error("ROLLBACK failed")))
      const run = yield* waited(() =>
        environment.runExit(Effect.andThen(work, Effect.never), { deadline: "3 seconds" })
      )
      yield* TestClock.adjust("3 seconds")
      assert.instanceOf(failureOf(yield* run.value), Errors.InvocationTimeout)
    }))

  it.effect("work that cannot be interrupted loses its sockets first, and is then not waited for", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      yield* Effect.gen(function*() {
        const { asked, environment } = yield* makeWorld()
        const run = yield* waited(() =>
          environment.runExit(Effect.uninterruptible(Effect.sleep("1 hour")), {
            deadline: "4 seconds",
            invocation: { id: "8476a536" }
          })
        )
        yield* TestClock.adjust(3874)
        assert.deepStrictEqual(asked, [])
        yield* TestClock.adjust(1)
        yield* turns
        assert.deepStrictEqual(asked, ["destroyBusy"])
        assert.isFalse(yield* run.isOver)
        yield* TestClock.adjust(62.5)
        assert.instanceOf(failureOf(yield* run.value), Errors.InvocationTimeout)
        assert.strictEqual(lines.length, 1)
        assert.include(lines[0], "db.invocation.overran")
        assert.include(lines[0], "8476a536")
        // It comes to its end in another invocation, which is none the wiser.
        const next = yield* waited(() => environment.run(Effect.as(Effect.sleep("2 hours"), "next")))
        yield* TestClock.adjust("2 hours")
        assert.strictEqual(yield* next.value, "next")
      }).pipe(recorded)
    }))

  it.effect("the sockets of those that run beside it stay", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld()
      const late = yield* waited(() =>
        environment.runExit(Effect.uninterruptible(Effect.sleep("1 hour")), { deadline: "4 seconds" })
      )
      const other = yield* waited(() => environment.run(Effect.as(Effect.sleep("10 seconds"), "well")))
      yield* TestClock.adjust("4 seconds")
      assert.instanceOf(failureOf(yield* late.value), Errors.InvocationTimeout)
      assert.deepStrictEqual(asked, [])
      yield* TestClock.adjust("6 seconds")
      assert.strictEqual(yield* other.value, "well")
    }))

  it.effect("a finalizer that hangs does not take an answer back that was there before", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      const work = Effect.as(Effect.addFinalizer(() => Effect.never), "done")
      const run = yield* waited(() => environment.run(work, { deadline: "4 seconds" }))
      yield* TestClock.adjust(3937)
      assert.isFalse(yield* run.isOver)
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* run.value, "done")
    }))

  it.effect("a finalizer that hangs after the interruption is not waited for", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      const work = Effect.andThen(Effect.addFinalizer(() => Effect.never), Effect.never)
      const run = yield* waited(() => environment.runExit(work, { deadline: "4 seconds" }))
      yield* TestClock.adjust("4 seconds")
      assert.instanceOf(failureOf(yield* run.value), Errors.InvocationTimeout)
    }))

  it.effect("that has passed before it began, nothing is begun", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      for (const deadline of [0, -5000]) {
        let hasBegun = false
        const work = Effect.sync(() => {
          hasBegun = true
        })
        const error = failureOf(yield* Effect.promise(() => environment.runExit(work, { deadline })))
        assert.instanceOf(error, Errors.InvocationTimeout)
        assert.include((error as Error).message, "no time")
        assert.isFalse(hasBegun)
      }
      assert.strictEqual(script.builds, 0)
    }))
})

describe("a signal", () => {
  it.effect("that was given before lets nothing begin", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      const exit = yield* Effect.promise(() => environment.runExit(Db, { signal: AbortSignal.abort() }))
      assert.isTrue(Exit.hasInterrupts(exit))
      assert.strictEqual(script.builds, 0)
    }))

  it.effect("interrupts the work, whose scope is closed", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      const controller = new AbortController()
      let isClosed = false
      const work = Effect.andThen(
        Effect.addFinalizer(() =>
          Effect.sync(() => {
            isClosed = true
          })
        ),
        Effect.never
      )
      const run = yield* waited(() => environment.runExit(work, { signal: controller.signal, deadline: "3 seconds" }))
      controller.abort()
      assert.isTrue(Exit.hasInterrupts(yield* run.value))
      assert.isTrue(isClosed)
    }))

  it.effect("that the work itself gives is heard", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      for (const deadline of [Infinity, 3000]) {
        const controller = new AbortController()
        const work = Effect.andThen(Effect.sync(() => controller.abort()), Effect.never)
        const run = yield* waited(() => environment.runExit(work, { signal: controller.signal, deadline }))
        assert.isTrue(yield* run.isOver)
        assert.isTrue(Exit.hasInterrupts(yield* run.value))
      }
    }))

  it.effect("does not make an invocation last longer that cannot be interrupted", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      const controller = new AbortController()
      const run = yield* waited(() =>
        environment.runExit(Effect.uninterruptible(Effect.sleep("1 hour")), {
          signal: controller.signal,
          deadline: "4 seconds"
        })
      )
      controller.abort()
      assert.isFalse(yield* run.isOver)
      yield* TestClock.adjust("4 seconds")
      assert.isTrue(Exit.isFailure(yield* run.value))
    }))
})

describe("an answer", () => {
  it.effect("leaves no timer behind that waits for the deadline", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      let sleeping = 0
      const counted: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
        sleep: (duration: Duration.Duration) =>
          Effect.suspend(() => {
            sleeping++
            return Effect.ensuring(clock.sleep(duration), Effect.sync(() => sleeping--))
          })
      })
      const { environment } = yield* Effect.provideService(makeWorld(), Clock.Clock, counted)
      const controller = new AbortController()
      const left = yield* waited(() =>
        environment.runExit(Effect.never, { signal: controller.signal, deadline: "15 minutes" })
      )
      controller.abort()
      yield* left.value
      yield* turns
      assert.strictEqual(sleeping, 0, "whose caller has left")
      const late = yield* waited(() => environment.runExit(Effect.never, { deadline: "4 seconds" }))
      yield* TestClock.adjust("4 seconds")
      yield* late.value
      yield* turns
      assert.strictEqual(sleeping, 0, "that came late")
    }))
})

describe("after a freeze", () => {
  const answered = Effect.succeed("answered")

  it.effect("sessions are looked at before anything runs, when more than a second has gone by", () =>
    Effect.gen(function*() {
      const { asked, environment, lodger } = yield* makeWorld({ staleAfter: "2 minutes" })
      yield* Effect.promise(() => environment.run(answered))
      yield* TestClock.adjust("1 second")
      yield* Effect.promise(() => environment.run(answered))
      assert.deepStrictEqual(asked, [])
      yield* TestClock.adjust(1001)
      lodger.thaw = () => Effect.delay(Effect.sync(() => asked.push("thawed")), 20)
      const run = yield* waited(() => environment.run(Effect.sync(() => asked.push("ran"))))
      yield* TestClock.adjust(20)
      yield* run.value
      assert.deepStrictEqual(asked, ["thawed", "ran"])
      lodger.thaw = (staleAfter) => Effect.sync(() => asked.push(`thaw ${staleAfter}`))
      yield* TestClock.adjust("1 hour")
      yield* Effect.promise(() => environment.run(answered))
      assert.deepStrictEqual(asked, ["thawed", "ran", "thaw 120000"])
    }))

  it.effect("all who come at once wait for one look", () =>
    Effect.gen(function*() {
      const { asked, environment, lodger } = yield* makeWorld()
      yield* Effect.promise(() => environment.run(answered))
      yield* TestClock.adjust("1 hour")
      lodger.thaw = () => Effect.delay(Effect.sync(() => asked.push("thawed")), 20)
      const ran = Effect.sync(() => asked.push("ran"))
      const runs = yield* Effect.all([
        waited(() => environment.run(ran)),
        waited(() => environment.run(ran)),
        waited(() => environment.resume())
      ])
      yield* TestClock.adjust(20)
      yield* Effect.forEach(runs, ({ value }) => value as Effect.Effect<unknown>)
      assert.deepStrictEqual(asked, ["thawed", "ran", "ran"])
    }))

  it.effect("nobody looks while something runs: what runs is not frozen", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld()
      yield* Effect.promise(() => environment.run(answered))
      const long = yield* waited(() => environment.run(Effect.sleep("1 hour")))
      yield* TestClock.adjust("30 minutes")
      yield* Effect.promise(() => environment.run(answered))
      assert.deepStrictEqual(asked, [])
      yield* TestClock.adjust("30 minutes")
      yield* long.value
      yield* Effect.promise(() => environment.run(answered))
      assert.deepStrictEqual(asked, [])
    }))

  it.effect("nor while sessions are being closed: the invocation before has only just ended", () =>
    Effect.gen(function*() {
      const { asked, environment, lodger } = yield* makeWorld({ release: "close" })
      lodger.closeIdle = () => Effect.delay(Effect.void, 30)
      const long = yield* waited(() => environment.run(Effect.sleep("1 minute")))
      yield* TestClock.adjust("1 minute")
      const next = yield* waited(() => environment.run(answered))
      assert.deepStrictEqual(asked, [])
      yield* TestClock.adjust(60)
      yield* long.value
      yield* next.value
    }))

  it.effect("an invocation without time leaves the look to the next", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld()
      yield* Effect.promise(() => environment.run(answered))
      yield* TestClock.adjust("1 hour")
      yield* Effect.promise(() => environment.runExit(answered, { deadline: 0 }))
      assert.deepStrictEqual(asked, [])
      yield* Effect.promise(() => environment.run(answered))
      assert.deepStrictEqual(asked, ["thaw 300000"])
    }))

  it.effect("a clock that was set back is no freeze", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(10_000_000)
      const { asked, environment } = yield* makeWorld()
      yield* Effect.promise(() => environment.run(answered))
      yield* TestClock.setTime(1_000_000)
      yield* Effect.promise(() => environment.run(answered))
      assert.deepStrictEqual(asked, [])
    }))

  it.effect("between a warm start and the first invocation, too", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld({ warm: true })
      yield* Effect.promise(() => environment.ready)
      yield* TestClock.adjust("1 hour")
      yield* Effect.promise(() => environment.run(answered))
      assert.deepStrictEqual(asked, ["warm 1", "thaw 300000"])
    }))

  it.effect("a warm start that took its time is none", () =>
    Effect.gen(function*() {
      const { asked, layer, lodger } = yield* makeWorld()
      lodger.warm = () => Effect.sleep("3 seconds")
      const environment = yield* Serverless.environment(layer, { warm: true })
      const ready = yield* waited(() => environment.ready)
      yield* TestClock.adjust("3 seconds")
      yield* ready.value
      yield* Effect.promise(() => environment.run(answered))
      assert.deepStrictEqual(asked, [])
    }))

  it.effect("it can be asked for by hand", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld()
      yield* Effect.promise(() => environment.resume())
      assert.deepStrictEqual(asked, [])
      yield* Effect.promise(() => environment.run(answered))
      yield* Effect.promise(() => environment.resume())
      yield* Effect.promise(() => environment.suspend())
      assert.deepStrictEqual(asked, ["thaw 300000", "closeIdle 200"])
    }))
})

describe("at the end of an invocation", () => {
  const closings = (asked: ReadonlyArray<string>) => asked.filter((what) => what.startsWith("closeIdle")).length

  it.effect("idle sessions are kept by default", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld()
      yield* Effect.promise(() => environment.run(Effect.void))
      assert.deepStrictEqual(asked, [])
    }))

  it.effect("with close they are gone before the answer, as soon as nothing runs any more", () =>
    Effect.gen(function*() {
      const { asked, environment, lodger } = yield* makeWorld({ release: "close" })
      const short = yield* waited(() => environment.run(Effect.sleep("1 second")))
      const long = yield* waited(() => environment.run(Effect.sleep("2 seconds")))
      yield* TestClock.adjust("1 second")
      yield* short.value
      assert.strictEqual(closings(asked), 0)
      lodger.closeIdle = () => Effect.delay(Effect.sync(() => asked.push("closeIdle")), 30)
      yield* TestClock.adjust("1 second")
      assert.isFalse(yield* long.isOver)
      yield* TestClock.adjust(30)
      yield* long.value
      assert.strictEqual(closings(asked), 1)
      lodger.idle = () => 0
      yield* Effect.promise(() => environment.run(Effect.void))
      assert.strictEqual(closings(asked), 1, "there is nothing to close")
    }))

  it.effect("closing takes no longer than is left", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld({ release: "close" })
      const run = yield* waited(() => environment.runExit(Effect.never, { deadline: "4 seconds" }))
      yield* TestClock.adjust("4 seconds")
      yield* run.value
      assert.deepStrictEqual(asked, ["closeIdle 125"])
    }))

  it.effect("adaptive closes when the server is nearly full", () =>
    Effect.gen(function*() {
      const { asked, environment, lodger } = yield* makeWorld({ release: "adaptive" })
      for (const [utilisation, closed] of [[undefined, 0], [0.8, 0], [0.81, 1]] as const) {
        lodger.serverUtilisation = () => utilisation
        yield* Effect.promise(() => environment.run(Effect.void))
        assert.strictEqual(closings(asked), closed, `at ${utilisation}`)
      }
    }))

  it.effect("adaptive closes when invocations are rare, and stops when they are not any more", () =>
    Effect.gen(function*() {
      const { asked, environment } = yield* makeWorld({ release: "adaptive" })
      const after = (gap: Parameters<typeof TestClock.adjust>[0]) =>
        Effect.gen(function*() {
          yield* TestClock.adjust(gap)
          const before = closings(asked)
          yield* Effect.promise(() => environment.run(Effect.void))
          return closings(asked) > before
        })
      assert.isFalse(yield* after("1 hour"), "how long it took until the first tells nothing")
      assert.isFalse(yield* after("4 minutes"))
      assert.isTrue(yield* after("8 minutes"))
      yield* Effect.forEach(Array.from({ length: 30 }), () => after("10 minutes"))
      const busy = yield* Effect.forEach(Array.from({ length: 20 }), () => after("1 second"))
      assert.isFalse(busy.at(-1))
    }))
})

describe("an environment that is disposed of", () => {
  it.effect("closes its layer, once, and runs nothing more", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      yield* Effect.promise(() => environment.run(Db))
      yield* Effect.promise(() => Promise.all([environment.dispose(), environment.dispose()]))
      assert.strictEqual(script.closes, 1)
      assert.instanceOf(failureOf(yield* Effect.promise(() => environment.runExit(Db))), Errors.PoolClosed)
      assert.strictEqual(script.builds, 1)
    }))

  it.effect("gives what runs three quarters of the time, and interrupts it then", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      const [short, long] = yield* Effect.all([
        waited(() => environment.run(Effect.as(Effect.sleep("5 seconds"), "done"))),
        waited(() => environment.runExit(Effect.never))
      ])
      const disposed = yield* waited(() => environment.dispose("8 seconds"))
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(yield* short.value, "done")
      assert.isFalse(yield* long.isOver)
      yield* TestClock.adjust("1 second")
      assert.instanceOf(failureOf(yield* long.value), Errors.PoolClosed)
      yield* disposed.value
      assert.strictEqual(script.closes, 1)
    }))

  it.effect("is done as soon as the last has left", () =>
    Effect.gen(function*() {
      const { environment } = yield* makeWorld()
      const run = yield* waited(() => environment.run(Effect.sleep("1 second")))
      const disposed = yield* waited(() => environment.dispose("8 seconds"))
      yield* TestClock.adjust("1 second")
      yield* run.value
      yield* disposed.value
    }))

  it.effect("destroys the sockets of a layer that does not close in time, and is done in time", () =>
    Effect.gen(function*() {
      const { asked, environment, script } = yield* makeWorld()
      yield* Effect.promise(() => environment.run(Db))
      script.closing = Effect.never
      const disposed = yield* waited(() => environment.dispose())
      yield* TestClock.adjust(174)
      yield* turns
      assert.deepStrictEqual(asked, [])
      yield* TestClock.adjust(1)
      yield* turns
      assert.deepStrictEqual(asked, ["destroyBusy", "closeIdle 0"])
      assert.isFalse(yield* disposed.isOver)
      yield* TestClock.adjust(25)
      yield* disposed.value
    }))

  it.effect("gives up the build that is under way", () =>
    Effect.gen(function*() {
      const { environment, script } = yield* makeWorld()
      script.building = Effect.never
      const run = yield* waited(() => environment.runExit(Db))
      const disposed = yield* waited(() => environment.dispose())
      yield* TestClock.adjust(150)
      assert.instanceOf(failureOf(yield* run.value), Errors.PoolClosed)
      yield* disposed.value
      assert.strictEqual(script.closes, 1)
    }))
})

describe("a warm start", () => {
  it.effect("that fails is told of, and the first invocation tries again", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      yield* Effect.gen(function*() {
        const { asked, layer, script } = yield* makeWorld()
        script.building = Effect.fail("unused")
        const environment = yield* Serverless.environment(layer, { warm: true })
        yield* Effect.promise(() => environment.ready)
        assert.strictEqual(script.closes, 1)
        assert.include(lines.join(), "db.environment.not_warmed")
        script.building = Effect.void
        assert.deepStrictEqual(yield* Effect.promise(() => environment.run(Db)), { build: 2 })
        assert.deepStrictEqual(asked, [])
      }).pipe(recorded)
    }))

  it.effect("does not go on for longer than init may", () =>
    Effect.gen(function*() {
      const { lines, recorded } = recorder()
      yield* Effect.gen(function*() {
        const { layer, lodger } = yield* makeWorld()
        lodger.warm = () => Effect.never
        const environment = yield* Serverless.environment(layer, { warm: true })
        const ready = yield* waited(() => environment.ready)
        yield* TestClock.adjust(7999)
        assert.isFalse(yield* ready.isOver)
        yield* TestClock.adjust(1)
        yield* ready.value
        assert.include(lines.join(), "TimeoutError")
      }).pipe(recorded)
    }))

  it.effect("shares its build with an invocation that does not wait for it", () =>
    Effect.gen(function*() {
      const { layer, script } = yield* makeWorld()
      script.building = Effect.sleep("1 second")
      const environment = yield* Serverless.environment(layer, { warm: true })
      const run = yield* waited(() => environment.run(Db))
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* run.value, { build: 1 })
    }))
})
