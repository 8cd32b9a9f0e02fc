// The words that the cases are written in.
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Circuit, Engine, Settings, State } from "./engine.ts"
import { Failed, Rejected, Time, Trouble, Unsupported } from "./engine.ts"

export const seconds = (n: number): number => n * 1_000
export const minutes = (n: number): number => n * 60_000

export const down = new Trouble({ code: "ECONNREFUSED" })
/** What the server answers to a statement. */
export const reply = (code: string): Trouble => new Trouble({ code, severity: "ERROR" })
/** What the server says before it ends a session, or begins none. */
export const fatal = (code: string): Trouble => new Trouble({ code, severity: "FATAL" })

export const demand = (holds: boolean, message: string): Effect.Effect<void, Failed> =>
  holds ? Effect.void : Effect.fail(new Failed({ message }))

/** The power of that name, or the answer that the engine lacks it. */
export const power = <A>(what: string, held: A | undefined): Effect.Effect<A, Unsupported> =>
  held === undefined ? Effect.fail(new Unsupported({ message: `it has no ${what}` })) : Effect.succeed(held)

// Engines of promises settle in later turns of the event loop, with no time passing on anybody's clock.
const turn = Effect.callback<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})
const turns = 20

/** Lets everything happen that needs no time. */
export const settle = Effect.repeat(turn, { times: 5 })

export const pass = (ms: number) => Effect.andThen(Time.use((time) => time.pass(ms)), settle)
export const freeze = (ms: number) => Time.use((time) => time.freeze(ms))
export const turnBack = (ms: number) => Time.use((time) => time.turnBack(ms))

/** Lets it happen until something is true, or nothing more is to be expected. */
const until = (isSo: () => boolean): Effect.Effect<boolean> =>
  Effect.gen(function*() {
    for (let left = turns; left > 0 && !isSo(); left--) yield* turn
    return isSo()
  })

type CallExit = Exit.Exit<string, unknown>

/** A call that has been started, and ends when the case says so. */
export interface InFlight {
  /** `Running`: let in. `Ended`: rejected, or answered. `Waiting`: neither. */
  readonly status: () => "Running" | "Ended" | "Waiting"
  /** How it ended. Fails when it has not. */
  readonly exit: Effect.Effect<CallExit, Failed>
  readonly rejection: Effect.Effect<Rejected, Failed>
  /** Ends the work, which must then be what its caller gets. */
  readonly succeed: Effect.Effect<void, Failed>
  readonly fail: Effect.Effect<void, Failed>
  readonly failWith: (error: unknown) => Effect.Effect<void, Failed>
  readonly interrupt: Effect.Effect<void>
}

export const rejectionIn = (exit: CallExit): Rejected | undefined => {
  if (Exit.isSuccess(exit)) return undefined
  const error = Cause.findErrorOption(exit.cause)
  return Option.isSome(error) && error.value instanceof Rejected ? error.value : undefined
}

const described = (exit: CallExit): string => {
  const rejection = rejectionIn(exit)
  if (rejection !== undefined) return "was rejected"
  if (Exit.isSuccess(exit)) return `succeeded with ${JSON.stringify(exit.value)}`
  const error = Cause.squash(exit.cause)
  return `ended with ${error instanceof Trouble ? error.code : String(error)}`
}

/** Starts a call that does this work. */
const launch = Effect.fnUntraced(
  function*(circuit: Circuit, work: Effect.Effect<string, unknown>, socket?: number | undefined) {
    let isRunning = false
    const body = Effect.suspend(() => {
      isRunning = true
      return work
    })
    const fiber = yield* Effect.forkChild(circuit.call(body, socket), { startImmediately: true })
    yield* until(() => isRunning || fiber.pollUnsafe() !== undefined)
    return { fiber, isRunning: () => isRunning }
  }
)

const ended = (fiber: Fiber.Fiber<string, unknown>): Effect.Effect<CallExit, Failed> =>
  Effect.flatMap(until(() => fiber.pollUnsafe() !== undefined), () => {
    const exit = fiber.pollUnsafe()
    return exit === undefined
      ? Effect.fail(new Failed({ message: "a call neither ran, nor was rejected, nor ended: it waits" }))
      : Effect.succeed(exit)
  })

/** Starts a call that stays in flight until the case ends it. */
export const start = Effect.fnUntraced(function*(circuit: Circuit, socket?: number) {
  const ending = yield* Deferred.make<string, unknown>()
  const { fiber, isRunning } = yield* launch(circuit, Deferred.await(ending), socket)
  const endAs = (wanted: CallExit): Effect.Effect<void, Failed> =>
    Effect.gen(function*() {
      yield* demand(isRunning(), "a call that should run did not: " + (yield* describeUnstarted))
      yield* Deferred.done(ending, wanted)
      const exit = yield* ended(fiber)
      yield* demand(isSame(exit, wanted), `a call ${described(exit)} where its work ${described(wanted)}`)
    })
  const describeUnstarted = Effect.sync(() => {
    const exit = fiber.pollUnsafe()
    return exit === undefined ? "it waits" : `it ${described(exit)}`
  })
  const call: InFlight = {
    status: () => fiber.pollUnsafe() !== undefined ? "Ended" : isRunning() ? "Running" : "Waiting",
    exit: ended(fiber),
    rejection: Effect.flatMap(ended(fiber), (exit) => {
      const rejection = rejectionIn(exit)
      return rejection === undefined
        ? Effect.fail(new Failed({ message: `a call ${described(exit)}, where it had to be rejected` }))
        : Effect.succeed(rejection)
    }),
    succeed: endAs(Exit.succeed("row")),
    fail: endAs(Exit.fail(down)),
    failWith: (error) => endAs(Exit.fail(error)),
    interrupt: Effect.andThen(Fiber.interrupt(fiber), settle)
  }
  return call
})

const isSame = (one: CallExit, other: CallExit): boolean =>
  Exit.isSuccess(one)
    ? Exit.isSuccess(other) && one.value === other.value
    : Exit.isFailure(other) && Cause.squash(one.cause) === Cause.squash(other.cause)

/** A call that ends at once. Answers how its caller saw it end. */
export const attempt = (circuit: Circuit, work: Effect.Effect<string, unknown>, socket?: number) =>
  Effect.flatMap(launch(circuit, work, socket), ({ fiber }) => ended(fiber))

/** A call that ends at once in this way, which its caller must see. */
const callsAs = Effect.fnUntraced(function*(circuit: Circuit, wanted: CallExit, socket?: number) {
  const exit = yield* attempt(circuit, wanted, socket)
  yield* demand(rejectionIn(exit) === undefined, "it rejected a call that it had to let in")
  yield* demand(isSame(exit, wanted), `a call ${described(exit)} where its work ${described(wanted)}`)
})

/** So many calls, each let in, that fail with this error, which each caller gets. */
export const fail = Effect.fnUntraced(function*(circuit: Circuit, times: number, error: Trouble = down) {
  for (let i = 0; i < times; i++) yield* callsAs(circuit, Exit.fail(error))
})

/** A call that is let in and succeeds. */
export const succeed = (circuit: Circuit) => callsAs(circuit, Exit.succeed("row"))

/** A call that is let in and dies. */
export const die = (circuit: Circuit, defect: unknown) => callsAs(circuit, Exit.die(defect))

/**
 * A call that is not let in. The breaker must say when to come back if a `retryAfter` is demanded, and must be right if
 * it says it, or which state rejects, at all.
 */
export const rejects = Effect.fnUntraced(function*(
  circuit: Circuit,
  expected: { readonly state?: State["tag"]; readonly retryAfter?: number; readonly told?: "when to come back" } = {}
) {
  const exit = yield* attempt(circuit, Effect.die("a call that had to be rejected ran"))
  const rejection = rejectionIn(exit)
  if (rejection === undefined) return yield* Effect.fail(new Failed({ message: "it let a call in" }))
  if (expected.told !== undefined) {
    yield* demand(rejection.retryAfter !== undefined, "the rejection does not say when to come back")
  }
  if (expected.state !== undefined && rejection.state !== undefined) {
    yield* demand(rejection.state === expected.state, `the rejection says ${rejection.state}, not ${expected.state}`)
  }
  if (expected.retryAfter !== undefined && rejection.retryAfter !== undefined) {
    yield* demand(
      rejection.retryAfter === expected.retryAfter,
      `the rejection says to come back in ${rejection.retryAfter} ms, not ${expected.retryAfter}`
    )
  }
  return rejection
})

/** Says which part of a case it is about. */
export const when = (what: string) => <A, E, R>(part: Effect.Effect<A, E, R>) =>
  Effect.mapError(
    part,
    (error) => error instanceof Failed ? new Failed({ message: `${what}: ${error.message}` }) : error
  )

/** The circuit says that it is in this state. What it tells besides must be right. */
export const is = Effect.fnUntraced(function*(
  circuit: Circuit,
  tag: State["tag"],
  expected: { readonly retryAfter?: number; readonly failures?: number } = {}
) {
  const state = yield* circuit.state
  yield* demand(state.tag === tag, `it is ${state.tag}, not ${tag}`)
  for (const what of ["retryAfter", "failures"] as const) {
    const [wanted, told] = [expected[what], state[what]]
    if (wanted === undefined || told === undefined) continue
    yield* demand(told === wanted, `${tag}, it says ${what} ${told}, not ${wanted}`)
  }
})

/** The circuit rejects for so long from now, to the last millisecond. The next call has to be let in as a probe. */
export const staysOpenFor = Effect.fnUntraced(function*(circuit: Circuit, ms: number) {
  yield* pass(ms - 1)
  yield* when(`${ms / 1_000} s less a millisecond after it opened`)(rejects(circuit))
  yield* pass(1)
})

/** A circuit that has just opened. */
export const opened = Effect.fnUntraced(function*(engine: Engine, settings?: Settings) {
  const circuit = yield* engine.make(settings)
  yield* fail(circuit, settings?.failures ?? 5)
  return circuit
})

/** A circuit whose open time has just ended: the next call is the probe. */
export const halfOpened = Effect.fnUntraced(function*(engine: Engine, settings?: Settings) {
  const circuit = yield* opened(engine, settings)
  yield* pass(seconds(30))
  return circuit
})
