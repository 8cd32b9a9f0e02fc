/**
 * Everything that can go wrong at each step of a session's life, in every combination, with the borrower interrupted or
 * the pool closed at each of them. The server is in this process, so that it can be made to fail to the letter.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Duplex } from "node:stream"
import * as Pg from "../../src/index.ts"
import { int16, int32, message } from "../../src/testing/backendEncoder.ts"

const outcomes = ["Ok", "Err", "Slow", "Never"] as const
type Outcome = typeof outcomes[number]

const hooks = ["beforeConnect", "afterConnect", "beforeAcquire", "beforeDisconnect"] as const
type Hook = typeof hooks[number]

const steps = ["connect", "validate", "hook", "work", "release", "close"] as const
type Step = typeof steps[number]

/** What happens when the step is reached. */
type Event = readonly ["cancel" | "close", Step] | undefined

interface Scenario {
  readonly hook: Hook
  /** Whether the first borrower meets a session that was used before. */
  readonly isWarm: boolean
  readonly outcome: Readonly<Record<Step, Outcome>>
  readonly event: Event
}

const goesOn = (outcome: Outcome): boolean => outcome === "Ok" || outcome === "Slow"

/** The steps that the first borrower gets to, in order. */
const reached = ({ hook, isWarm, outcome }: Omit<Scenario, "event">): ReadonlyArray<Step> => {
  const connecting: ReadonlyArray<Step> = hook === "beforeConnect"
    ? ["hook", "connect"]
    : hook === "afterConnect"
    ? ["connect", "hook"]
    : ["connect"]
  const lending: ReadonlyArray<Step> = hook === "beforeAcquire" ? ["hook", "work", "release"] : ["work", "release"]
  const leaving: ReadonlyArray<Step> = hook === "beforeDisconnect" ? ["hook", "close"] : ["close"]
  // A session that was used before and fails its check is replaced; a new one that does is a failed connect.
  const way: ReadonlyArray<Step> = !isWarm
    ? [...connecting, "validate", ...lending]
    : goesOn(outcome.validate)
    ? ["validate", ...lending]
    : ["validate", ...connecting, ...lending]
  const found: Array<Step> = []
  for (const step of way) {
    found.push(step)
    const isReplaced = isWarm && step === "validate"
    if (!goesOn(outcome[step]) && !isReplaced) break
  }
  return [...found, ...leaving]
}

/** Every combination of outcomes that makes a difference: a step that is not reached has none. */
const combinations = (hook: Hook): ReadonlyArray<Omit<Scenario, "event">> => {
  const found = new Map<string, Omit<Scenario, "event">>()
  for (let index = 0; index < 2 * outcomes.length ** steps.length; index++) {
    const isWarm = index % 2 === 1
    let rest = index >> 1
    const outcome = {} as Record<Step, Outcome>
    for (const step of steps) {
      outcome[step] = outcomes[rest % outcomes.length]!
      rest = Math.floor(rest / outcomes.length)
    }
    const way = reached({ hook, isWarm, outcome })
    const told = { ...outcome }
    for (const step of steps) if (!way.includes(step)) told[step] = "Ok"
    found.set(JSON.stringify([isWarm, told]), { hook, isWarm, outcome: told })
  }
  return Array.from(found.values())
}

/** All of them as they are, and those in which at most two steps go wrong with somebody meddling at each step. */
const scenarios = (hook: Hook): ReadonlyArray<Scenario> =>
  combinations(hook).flatMap((combination): ReadonlyArray<Scenario> => {
    const undisturbed = { ...combination, event: undefined }
    if (steps.filter((step) => combination.outcome[step] !== "Ok").length > 2) return [undisturbed]
    const lastStep = hook === "beforeDisconnect" ? "hook" : "close"
    const way = reached(combination).filter((step) => step !== "close" && step !== lastStep)
    return [
      undisturbed,
      ...way.flatMap((step): ReadonlyArray<Scenario> => [
        { ...combination, event: ["cancel", step] },
        { ...combination, event: ["close", step] }
      ])
    ]
  })

const describeScenario = ({ event, hook, isWarm, outcome }: Scenario): string =>
  `${isWarm ? "warm" : "cold"}, ${steps.map((step) => `${step === "hook" ? hook : step} ${outcome[step]}`).join(", ")}${
    event === undefined ? "" : `, ${event[0]} at ${event[1]}`
  }`

// -------------------------------------------------------------------------------------------------------------------
// the server
// -------------------------------------------------------------------------------------------------------------------

const text = (value: string) => Buffer.from(`${value}\0`)

const ready = message("Z", Buffer.from("I"))
const greeting = (processId: number) =>
  Buffer.concat([message("R", int32(0)), message("K", int32(processId), int32(1)), ready])
const refusal = (severity: string, sqlState: string) =>
  message("E", text(`S${severity}`), text(`V${severity}`), text(`C${sqlState}`), text(`Mrefused`), Buffer.from([0]))
const row = Buffer.concat([
  message("1"),
  message("2"),
  message("T", int16(1), text("n"), int32(0), int16(0), int32(23), int16(4), int32(-1), int16(1)),
  message("D", int16(1), int32(4), int32(1)),
  message("C", text("SELECT 1")),
  ready
])
const rejected = (sqlState: string) => Buffer.concat([refusal("ERROR", sqlState), ready])

const parse = 0x50
const cancelRequestCode = 80_877_102
const slowly = 200

interface Server {
  readonly stream: () => Duplex
  /** Sockets of sessions, and of CancelRequests, that are open. */
  readonly open: () => readonly [sessions: number, cancels: number]
  readonly mostOpen: () => number
}

/** `enter` is asked at each step what the server shall do. */
const makeServer = (enter: (step: Step) => Outcome, after: (millis: number, act: () => void) => void): Server => {
  /** Those that execute a statement: a CancelRequest says nothing to any other. */
  const busy = new Map<number, Duplex>()
  const sockets = new Set<Duplex>()
  const cancels = new Set<Duplex>()
  let lastProcessId = 0
  let most = 0

  const cancel = (processId: number): void => {
    busy.get(processId)?.push(rejected("57014"))
    busy.delete(processId)
  }

  const answer = (socket: Duplex, step: Step, good: () => void, bad: () => void): void => {
    const outcome = enter(step)
    const act = outcome === "Err" ? bad : good
    if (outcome === "Never") return
    if (outcome === "Slow") after(slowly, () => socket.destroyed ? undefined : act())
    else act()
  }

  const stream = (): Duplex => {
    const processId = ++lastProcessId
    let isGreeted = false
    const socket: Duplex = new Duplex({
      read() {},
      write(chunk: Buffer, _encoding, callback) {
        callback()
        if (!isGreeted && chunk.readInt32BE(4) === cancelRequestCode) {
          sockets.delete(socket)
          cancels.add(socket)
          cancel(chunk.readInt32BE(8))
          socket.push(null)
        } else if (!isGreeted) {
          isGreeted = true
          most = Math.max(most, sockets.size)
          answer(socket, "connect", () => socket.push(greeting(processId)), () => {
            socket.push(refusal("FATAL", "57P03"))
            socket.push(null)
          })
        } else if (chunk[0] === parse) {
          const isWork = chunk.includes("SELECT work")
          const reply = (bytes: Uint8Array) => () => busy.delete(processId) ? socket.push(bytes) : undefined
          busy.set(processId, socket)
          answer(socket, isWork ? "work" : "validate", reply(row), reply(rejected(isWork ? "22012" : "58000")))
        }
      },
      final(callback) {
        callback()
        if (cancels.has(socket)) return
        answer(socket, "close", () => socket.push(null), () => socket.destroy(new Error("read ECONNRESET")))
      }
    })
    sockets.add(socket)
    socket.on("error", () => {})
    socket.once("close", () => {
      busy.delete(processId)
      sockets.delete(socket)
      cancels.delete(socket)
    })
    return socket
  }
  return { stream, open: () => [sockets.size, cancels.size], mostOpen: () => most }
}

// -------------------------------------------------------------------------------------------------------------------
// one scenario
// -------------------------------------------------------------------------------------------------------------------

/** What became of a borrower, in one word. */
const wordOf = (exit: Exit.Exit<string, { readonly _tag: string }>): string => {
  if (Exit.isSuccess(exit)) return exit.value
  if (Cause.hasInterruptsOnly(exit.cause)) return "Interrupted"
  const error = Cause.findErrorOption(exit.cause)
  return error._tag === "Some" ? error.value._tag : Cause.pretty(exit.cause)
}

/** What the first borrower must hear when nobody meddles. */
const expected = (scenario: Scenario): string => {
  const { hook, isWarm, outcome } = scenario
  for (const step of reached(scenario)) {
    if (goesOn(outcome[step]) || (isWarm && step === "validate")) continue
    if (step === "hook" && hook === "beforeDisconnect") continue
    if (step === "release" || step === "close") continue
    if (step === "work") return outcome.work === "Err" ? "SqlError" : "Impatient"
    if (step !== "hook") return "SqlError"
    if (outcome.hook === "Err") return "HookFailed"
    return hook === "beforeAcquire" ? "AcquireTimeout" : "SqlError"
  }
  return "Served"
}

const play = Effect.fnUntraced(function*(scenario: Scenario) {
  const { event, hook, isWarm, outcome } = scenario
  const runFork = Effect.runForkWith(yield* Effect.context<never>())
  const scope = yield* Scope.make()
  const rest = new Set<Step>(steps)
  let isArmed = false
  let isTriggered = false
  let meddle = () => {}

  const enter = (step: Step): Outcome => {
    if (!isArmed || !rest.delete(step)) return "Ok"
    if (event?.[1] === step) {
      isTriggered = true
      meddle()
    }
    return outcome[step]
  }
  const asEffect = (step: Step): Effect.Effect<unknown, string> =>
    Effect.suspend((): Effect.Effect<unknown, string> => {
      switch (enter(step)) {
        case "Ok":
          return Effect.void
        case "Err":
          return Effect.fail("no")
        case "Slow":
          return Effect.sleep(slowly)
        case "Never":
          return Effect.never
      }
    })

  const server = makeServer(enter, (millis, act) => void runFork(Effect.delay(Effect.sync(act), millis)))
  const during = (name: Hook) => name === hook ? asEffect("hook") : Effect.void
  const context = yield* Layer.build(Layer.provideMerge(
    Pg.Pool.layer({
      stream: server.stream,
      username: "nobody",
      max: 1,
      prepare: false,
      validate: "always",
      connectTimeout: "5 seconds",
      closeTimeout: "2 seconds",
      beforeConnect: during("beforeConnect"),
      afterConnect: () => during("afterConnect"),
      beforeAcquire: () => during("beforeAcquire"),
      afterRelease: () => asEffect("release"),
      beforeDisconnect: () => during("beforeDisconnect")
    }),
    Pg.Metrics.layer()
  )).pipe(Scope.provide(scope))

  yield* Effect.gen(function*() {
    const pool = yield* Pg.Pool.Pool
    const metrics = yield* Pg.Metrics.Metrics
    const work = (options?: Pg.Pool.CheckoutOptions) =>
      pool.use(({ connection }) =>
        Effect.timeoutOrElse(Effect.as(connection.query("SELECT work"), "Served"), {
          duration: "5 seconds",
          orElse: () => Effect.fail({ _tag: "Impatient" })
        }), options)
    if (isWarm) assert.strictEqual(yield* work(), "Served")

    isArmed = true
    // Whoever leaves may hold the only place for a while; a hook that never ends is waited for no longer than must be.
    const isEndless = hook === "beforeAcquire" && outcome.hook === "Never"
    const first = yield* Effect.forkChild(work({ timeout: isEndless ? 20_000 : 180_000 }))
    let closing: Fiber.Fiber<void> | undefined
    meddle = () => {
      if (event?.[0] === "cancel") first.interruptUnsafe()
      else closing = runFork(Scope.close(scope, Exit.void))
    }
    const second = yield* Effect.forkChild(work({ timeout: isEndless ? 180_000 : 600_000 }))
    const firstWord = wordOf(yield* Fiber.await(first))
    const secondWord = wordOf(yield* Fiber.await(second))

    // A session that fails its check and takes its time to leave may be replaced only after the pause of a failed connect.
    const mayBeServed = !isWarm && !goesOn(outcome.validate)
    const wanted = mayBeServed ? ["Served", expected(scenario)] : [expected(scenario)]
    if (event === undefined) assert.include(wanted, firstWord)
    else assert.isTrue(isTriggered, "the step was reached")
    if (event?.[0] === "cancel") {
      // Whoever has what they wanted when they are told to go may keep it.
      const isOver = event[1] === "release"
      assert.include(isOver ? ["Interrupted", ...wanted] : ["Interrupted"], firstWord)
    }
    if (closing === undefined) {
      // A failed connect is everybody's answer, and what does not hit the one who was interrupted hits the next one.
      const mayFail = event !== undefined || !goesOn(outcome.connect) || (!isWarm && !goesOn(outcome.validate)) ||
        (hook.endsWith("Connect") && !goesOn(outcome.hook))
      const isSound = steps.filter((step) =>
        step !== "release" && step !== "close" && !(step === "hook" && hook === "beforeDisconnect")
      )
        .every((step) => goesOn(outcome[step]))
      if (!mayFail || isSound) assert.strictEqual(secondWord, "Served", "the next borrower")
      else assert.include(["Served", "SqlError", "HookFailed", "AcquireTimeout", "Impatient"], secondWord)
      yield* Effect.sleep("3 seconds")
      assert.strictEqual(yield* work({ timeout: 600_000 }), "Served", "the one after that")
      yield* Effect.sleep("3 seconds")
      const { active, connecting, idle, total, waiting } = yield* pool.stats
      assert.deepStrictEqual({ active, connecting, idle, total, waiting }, {
        active: 0,
        connecting: 0,
        idle: 1,
        total: 1,
        waiting: 0
      })
      assert.deepStrictEqual(server.open(), [1, 0])
    } else {
      assert.include(["Served", "PoolClosed", "SqlError", "HookFailed", "Interrupted"], firstWord)
      assert.include(["Served", "PoolClosed", "SqlError", "HookFailed"], secondWord)
    }

    yield* closing === undefined ? Scope.close(scope, Exit.void) : Fiber.join(closing)
    const [sessions, cancels] = server.open()
    assert.strictEqual(sessions, 0, "open sockets")
    // A CancelRequest may take a moment longer to be told than the one who sent it waits.
    if (cancels > 0) yield* Effect.sleep("1 minute")
    assert.deepStrictEqual(server.open(), [0, 0], "open sockets")
    assert.isAtMost(server.mostOpen(), 1)
    assert.strictEqual(wordOf(yield* Effect.exit(work())), "PoolClosed")
    const { active, connecting, total, waiting } = yield* pool.stats
    assert.deepStrictEqual([active, connecting, total, waiting], [0, 0, 0, 0])
    const { connectionsClosed, connectionsOpened } = yield* metrics.snapshot
    const closed = Object.values(connectionsClosed).reduce((sum, count) => sum + count, 0)
    assert.strictEqual(closed, connectionsOpened, "each session that was opened was closed once")
  }).pipe(Effect.provide(context))
})

/** What has been set off in this process comes to its end: data and fibers take turns of the event loop. */
const settle = Effect.callback<void>((resume) => {
  let turns = 25
  const turn = (): void => {
    if (turns-- > 0) setImmediate(turn)
    else resume(Effect.void)
  }
  turn()
})

/**
 * Lets virtual time pass twenty times as fast as the real one at most: the driver and the socket have timers of Node's
 * own, of a second or two.
 */
const letTimePass = Effect.forever(
  Effect.andThen(TestClock.withLive(Effect.sleep(5)), Effect.andThen(settle, TestClock.adjust(100)))
)

describe("one borrower after another is served, or told why not, and nothing is left behind", () => {
  for (const hook of hooks) {
    const all = scenarios(hook)
    it.effect(
      `whatever becomes of connect, check, ${hook}, work, release and close: ${all.length} combinations`,
      () =>
        Effect.gen(function*() {
          yield* Effect.forkChild(letTimePass)
          const failures: Array<string> = []
          yield* Effect.forEach(
            all,
            (scenario) =>
              play(scenario).pipe(
                Effect.timeoutOption("1 hour"),
                Effect.exit,
                Effect.map((exit) => {
                  if (Exit.isFailure(exit)) failures.push(`${describeScenario(scenario)}: ${Cause.pretty(exit.cause)}`)
                  else if (exit.value._tag === "None") {
                    failures.push(`${describeScenario(scenario)}: somebody is stranded`)
                  }
                })
              ),
            { concurrency: "unbounded", discard: true }
          )
          assert.strictEqual(failures.length, 0, failures.slice(0, 5).join("\n"))
        }).pipe(Effect.provide(Logger.layer([]))),
      120_000
    )
  }
})
