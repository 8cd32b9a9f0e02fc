/**
 * A circuit breaker for a database: after some failures in a row it stops calls for a while, then lets one through to
 * see whether the database is back.
 *
 * - **Closed**: calls run. Failures of the infrastructure in a row are counted; the server's own replies (a unique
 *   violation, a syntax error) prove that it is there, and end the streak.
 * - **Open**: calls fail at once with `CircuitOpen`, which says when to come back.
 * - **HalfOpen**: one call is the probe, the others fail with `CircuitHalfOpen`. A probe that succeeds closes the
 *   circuit, one that fails opens it again for longer, one that is interrupted leaves its place to the next call, and
 *   one that does not answer loses it when its lease ends.
 *
 * Nothing runs in the background: the state is computed from the clock when a call asks. The vocabulary is that of
 * `effect/persistence/CircuitBreaker`.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import * as Errors from "./Errors.ts"
import * as Machine from "./internal/breakerMachine.ts"
import { millis } from "./internal/millis.ts"

/**
 * What a call says about the database. `Success`: it answered, be it with an error. `Failure`: it could not be
 * reached. `Ignored`: the call says nothing about it.
 *
 * @category models
 * @since 0.1.0
 */
export type Outcome = Machine.Outcome

/**
 * Leave to make one call, given by `withPermit` and `closedPermitUnsafe`.
 *
 * - `probe`: the call finds out whether the database is back. Keep it short: prove the connection, tell the outcome with
 *   `settleUnsafe`, then do the work.
 * - `ramp`: the call is one of the few that are let in at a time while a circuit that has just closed recovers. Its
 *   outcome decides whether more are let in.
 *
 * @category models
 * @since 0.1.0
 */
export type Permit = Machine.Permit

/**
 * What failed, and over which socket. Failures with the same `source` (a number that names a socket, or an attempt to
 * connect) count once: a broken socket fails all its statements.
 *
 * @category models
 * @since 0.1.0
 */
export interface FailureSummary extends Errors.Failure {
  readonly source?: number | undefined
}

/**
 * The state of the circuit at one moment. `retryAfter` is in milliseconds, and 0 when the next call will be let in as
 * the probe; an open circuit stays `Open` until that call comes.
 *
 * @category models
 * @since 0.1.0
 */
export type State =
  | { readonly _tag: "Closed"; readonly failures: number }
  | { readonly _tag: "Open"; readonly retryAfter: number; readonly lastFailure: Errors.Failure | null }
  | { readonly _tag: "HalfOpen"; readonly retryAfter: number }

/**
 * A change of state of the circuit `key`. `at` is the time on the clock, in milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export type Transition =
  | {
    readonly key: string
    readonly from: "Closed" | "HalfOpen"
    readonly to: "Open"
    readonly at: number
    /** How long the circuit stays open, in milliseconds. */
    readonly retryAfter: number
    /** Openings without a quiet time between them, this one included. */
    readonly consecutiveOpenings: number
    /** The failure that opened it. */
    readonly failure?: Errors.Failure | undefined
  }
  | { readonly key: string; readonly from: "Open"; readonly to: "HalfOpen"; readonly at: number }
  | { readonly key: string; readonly from: "HalfOpen"; readonly to: "Closed"; readonly at: number }

/**
 * How to judge the exit of a protected effect.
 *
 * @category options
 * @since 0.1.0
 */
export interface ProtectOptions<A, E> {
  /**
   * What an exit says about the database. Not asked about an exit that is an interruption only: that is `Ignored`. If
   * it throws, the call is `Ignored` and dies with what it threw. Default: `classifyExit`.
   */
  readonly classify?: ((exit: Exit.Exit<A, E>) => Outcome) | undefined
}

/**
 * The breaker that guards the checkouts of a pool.
 *
 * @category services
 * @since 0.1.0
 */
export class Breaker extends Context.Service<Breaker, {
  /** The name of the circuit. */
  readonly key: string

  /**
   * Runs the effect if the circuit lets it in, and takes its exit as evidence. A rejected effect does not run: it fails
   * with a `CircuitError`, which is not retryable. The caller of an effect that opens the circuit gets its own error.
   *
   * Retry outside of it, put a timeout inside: a timeout outside is an interruption, which proves nothing.
   */
  readonly protect: <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options?: ProtectOptions<A, E> | undefined
  ) => Effect.Effect<A, E | Errors.CircuitError, R>

  /**
   * Asks for leave to make one call and runs `use` with it; fails with a `CircuitError`, and does not run it, when there
   * is none. The caller may have to wait while a circuit that has just closed recovers. What the call says about the
   * database is told with `settleUnsafe`; telling it twice changes nothing for a probe or a ramp permit. One of these
   * that nobody has settled is given back as `Ignored` when `use` ends, in whatever way.
   */
  readonly withPermit: <A, E, R>(
    use: (permit: Permit) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | Errors.CircuitError, R>

  /**
   * The permit of a circuit that lets every call in, which is the one that `withPermit` would pass, without reading a
   * clock; `undefined` in any other state. It needs no finalizer: an interrupted call of a closed circuit says nothing.
   */
  readonly closedPermitUnsafe: () => Permit | undefined

  /** True while the circuit is closed and no streak is running: then a success has nothing to tell it. */
  readonly isCalmUnsafe: () => boolean

  /**
   * Tells the outcome of the call that a permit was for, at `now` (milliseconds of the wall clock). One that comes too
   * late to matter changes nothing.
   */
  readonly settleUnsafe: (permit: Permit, outcome: Outcome, now: number, failure?: FailureSummary | undefined) => void

  /** The state of the circuit now. Reading it changes nothing. */
  readonly state: Effect.Effect<State>

  /** The state of the circuit at `now` (milliseconds of the wall clock). */
  readonly stateUnsafe: (now: number) => State

  /**
   * The changes of state from now on, until the scope of the breaker closes. An observer that is slow, or fails, never
   * delays a call; one that is more than 128 transitions behind loses the oldest.
   */
  readonly transitions: Stream.Stream<Transition>

  /** How long connecting may take when the call is the probe, in milliseconds. */
  readonly probeTimeout: number
}>()("effect-pg-pool/Breaker") {}

/**
 * The settings of a breaker.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Names the circuit in errors, transitions and snapshots. Default: `"default"`. */
  readonly key?: string | undefined
  /** Failures in a row that open the circuit: 1 or more. Default: 5. */
  readonly failures?: number | undefined
  /** How long the first opening lasts; each one after it lasts twice the previous. Default: 30 seconds. */
  readonly openFor?: Duration.Input | undefined
  /**
   * An opening lasts a random number between these two times its base, so that many instances do not probe at the same
   * moment. At least 1, so that it is never shorter than `openFor`. Default: `[1, 1.2]`.
   */
  readonly jitter?: readonly [min: number, max: number] | "none" | undefined
  /** No opening lasts longer, jitter included. Default: 5 minutes, or `openFor` when that is longer. */
  readonly maxOpenFor?: Duration.Input | undefined
  /**
   * A failure that comes later than this after the previous one begins a new streak: four failures before the
   * environment was frozen and one after it do not open the circuit. Default: 60 seconds.
   */
  readonly streakWindow?: Duration.Input | undefined
  /**
   * A probe that has not answered by then loses its place to the next call. At most `openFor`. Default: 5 seconds, or
   * `openFor` when that is shorter.
   */
  readonly probeLease?: Duration.Input | undefined
  /**
   * How long connecting may take when the call is the probe. While the database is down, this is what the breaker still
   * costs. At most `probeLease`. Default: 2 seconds, or `probeLease` when that is shorter.
   */
  readonly probeTimeout?: Duration.Input | undefined
  /**
   * Called with every change of state, at once and in the fiber that caused it: keep it short. What it throws is logged
   * and changes nothing.
   */
  readonly onTransition?: ((transition: Transition) => void) | undefined
}

interface Settings extends Machine.Config {
  readonly key: string
  readonly probeTimeout: number
}

const optional = (input: Duration.Input | undefined, byDefault: number): number =>
  input === undefined ? byDefault : millis(input)

const settingsOf = (options: Options): Effect.Effect<Settings, Errors.InvalidOption> => {
  const failures = options.failures ?? 5
  const openFor = optional(options.openFor, 30_000)
  const [jitterMin, jitterMax] = options.jitter === "none" ? [1, 1] : options.jitter ?? [1, 1.2]
  const maxOpenFor = optional(options.maxOpenFor, Math.max(300_000, openFor))
  const streakWindow = optional(options.streakWindow, 60_000)
  const probeLease = optional(options.probeLease, Math.min(5_000, openFor))
  const probeTimeout = optional(options.probeTimeout, Math.min(2_000, probeLease))
  const rules: ReadonlyArray<readonly [option: keyof Options, allowed: string, holds: boolean]> = [
    ["failures", "a whole number, 1 or more", Number.isSafeInteger(failures) && failures >= 1],
    ["openFor", "a finite duration, 1 millisecond or more", openFor >= 1 && openFor < Infinity],
    [
      "jitter",
      "\"none\", or two finite numbers [min, max] with 1 <= min <= max",
      jitterMin >= 1 && jitterMax >= jitterMin && jitterMax < Infinity
    ],
    ["maxOpenFor", "a finite duration, openFor or more", maxOpenFor >= openFor && maxOpenFor < Infinity],
    ["streakWindow", "a duration, 1 millisecond or more", streakWindow >= 1],
    ["probeLease", "a duration from 1 millisecond to openFor", probeLease >= 1 && probeLease <= openFor],
    ["probeTimeout", "a duration from 1 millisecond to probeLease", probeTimeout >= 1 && probeTimeout <= probeLease]
  ]
  const broken = rules.find(([, , holds]) => !holds)
  return broken === undefined
    ? Effect.succeed({
      key: options.key ?? "default",
      failures,
      openFor,
      jitterMin,
      jitterMax,
      maxOpenFor,
      streakWindow,
      probeLease,
      probeTimeout
    })
    : Effect.fail(
      new Errors.InvalidOption({ option: `breaker.${broken[0]}`, value: options[broken[0]], allowed: broken[1] })
    )
}

/**
 * What an exit says about the database, as far as that can be told without knowing how far the call got: a success is
 * a `Success`; an error with a SQLSTATE or a socket code is what `Errors.classify` says; another error is a `Failure`;
 * an error that this library made without asking the database, a defect and an interruption are `Ignored`.
 *
 * @category classification
 * @since 0.1.0
 */
export const classifyExit = (exit: Exit.Exit<unknown, unknown>): Outcome => {
  if (Exit.isSuccess(exit)) return "Success"
  const error = Cause.findErrorOption(exit.cause)
  return Option.isNone(error) ? "Ignored" : outcomeOf(error.value)
}

const outcomeOf = (error: unknown): Outcome => {
  const failure = Errors.failureOf(error)
  if (failure.sqlState === undefined && failure.code === undefined) return "Failure"
  return Errors.classify(failure, { phase: "InFlight", reused: false, replied: false }).breaker
}

/**
 * Makes a breaker, closed. Its `transitions` end with the scope; nothing else needs it.
 *
 * Fails with `InvalidOption` when a setting is impossible.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (
  options?: Options | undefined
) => Effect.Effect<Breaker["Service"], Errors.InvalidOption, Scope.Scope> = Effect.fnUntraced(
  function*(options: Options = {}) {
    const settings = yield* settingsOf(options)
    const onTransition = options.onTransition
    const random = yield* Random.Random
    const runFork = Effect.runForkWith(yield* Effect.context())
    const pubsub = yield* PubSub.sliding<Take.Take<Transition>>(128)
    yield* Scope.addFinalizer(yield* Effect.scope, PubSub.end(pubsub, Exit.void))

    let circuit: Machine.Circuit = Machine.initial
    let lastFailure: Errors.Failure | null = null

    const advance = (next: Machine.Circuit, now: number): void => {
      const previous = circuit
      circuit = next
      if (next._tag !== previous._tag) announce(transitionOf(settings.key, previous, next, now, lastFailure))
    }

    const announce = (transition: Transition): void => {
      // Sliding, so it neither suspends nor fails: there is no fiber to wait in.
      Effect.runSync(PubSub.publish(pubsub, [transition]))
      if (onTransition === undefined) return
      try {
        onTransition(transition)
      } catch (defect) {
        runFork(Effect.logWarning("The breaker's onTransition threw", Cause.die(defect)))
      }
    }

    const ask = (now: number): Permit | Errors.CircuitError => {
      const admission = Machine.admit(circuit, now, settings)
      if (admission.circuit !== undefined) advance(admission.circuit, now)
      if (admission.permit !== undefined) return admission.permit
      const { key } = settings
      const { retryAfter } = admission
      return circuit._tag === "HalfOpen"
        ? new Errors.CircuitHalfOpen({ key, retryAfter })
        : new Errors.CircuitOpen({ key, retryAfter, lastFailure })
    }

    const closedPermitUnsafe = () => circuit._tag === "Closed" ? circuit.admission.permit : undefined

    const withPermit: Breaker["Service"]["withPermit"] = (use) =>
      Effect.suspend(() => {
        const permit = closedPermitUnsafe()
        return permit === undefined ? withAskedPermit(use) : use(permit)
      })

    const withAskedPermit = <A, E, R>(use: (permit: Permit) => Effect.Effect<A, E, R>) => {
      let clock: Clock.Clock
      let permit: Permit | undefined
      // The finalizer is in place before leave is asked for: a fiber can be interrupted between any two steps.
      return Effect.onExitPrimitive(
        Effect.withFiber((fiber): Effect.Effect<A, E | Errors.CircuitError, R> => {
          clock = fiber.getRef(Clock.Clock)
          const answer = ask(clock.currentTimeMillisUnsafe())
          if (answer._tag !== "Permit") return Effect.fail(answer)
          permit = answer
          return use(permit)
        }),
        () => {
          if (permit?.probe === true) settleUnsafe(permit, "Ignored", clock.currentTimeMillisUnsafe())
          return undefined
        }
      )
    }

    const settleUnsafe = (permit: Permit, outcome: Outcome, now: number, failure?: FailureSummary): void => {
      const draw = outcome === "Failure" ? random.nextDoubleUnsafe() : 0
      const next = Machine.settle(circuit, permit, outcome, now, settings, failure?.source, draw)
      if (next === circuit) return
      if (outcome === "Failure") lastFailure = failure === undefined ? null : withoutSource(failure)
      advance(next, now)
    }

    const stateUnsafe = (now: number): State => {
      switch (circuit._tag) {
        case "Closed":
          return { _tag: "Closed", failures: Machine.streak(circuit, now, settings) }
        case "Open":
          return { _tag: "Open", retryAfter: Machine.retryAfter(circuit, now, settings), lastFailure }
        case "HalfOpen":
          return { _tag: "HalfOpen", retryAfter: Machine.retryAfter(circuit, now, settings) }
      }
    }

    return Breaker.of({
      key: settings.key,
      protect: protectWith(withPermit, settleUnsafe),
      withPermit,
      closedPermitUnsafe,
      isCalmUnsafe: () => circuit._tag === "Closed" && circuit.streak === 0,
      settleUnsafe,
      state: Effect.map(Clock.currentTimeMillis, stateUnsafe),
      stateUnsafe,
      transitions: Stream.fromPubSubTake(pubsub),
      probeTimeout: settings.probeTimeout
    })
  }
)

const withoutSource = ({ source: _, ...failure }: FailureSummary): Errors.Failure => failure

const transitionOf = (
  key: string,
  from: Machine.Circuit,
  to: Machine.Circuit,
  at: number,
  failure: Errors.Failure | null
): Transition =>
  to._tag === "Open"
    ? {
      key,
      from: from._tag as "Closed" | "HalfOpen",
      to: "Open",
      at,
      retryAfter: to.openFor,
      consecutiveOpenings: to.openings,
      failure: failure ?? undefined
    }
    : to._tag === "HalfOpen"
    ? { key, from: "Open", to: "HalfOpen", at }
    : { key, from: "HalfOpen", to: "Closed", at }

const protectWith = (
  withPermit: Breaker["Service"]["withPermit"],
  settleUnsafe: Breaker["Service"]["settleUnsafe"]
): Breaker["Service"]["protect"] =>
<A, E, R>(self: Effect.Effect<A, E, R>, options?: ProtectOptions<A, E>) =>
  withPermit((permit) =>
    Effect.withFiber((fiber) =>
      Effect.onExitPrimitive(self, (exit) => {
        judge(permit, exit, options?.classify ?? classifyExit, fiber.getRef(Clock.Clock), settleUnsafe)
        return undefined
      })
    )
  )

const judge = <A, E>(
  permit: Permit,
  exit: Exit.Exit<A, E>,
  classify: (exit: Exit.Exit<A, E>) => Outcome,
  clock: Clock.Clock,
  settleUnsafe: Breaker["Service"]["settleUnsafe"]
): void => {
  let outcome: Outcome = "Ignored"
  try {
    if (Exit.isSuccess(exit) || !Cause.hasInterruptsOnly(exit.cause)) outcome = classify(exit)
  } finally {
    settleUnsafe(
      permit,
      outcome,
      clock.currentTimeMillisUnsafe(),
      outcome === "Failure" && Exit.isFailure(exit) ? Errors.failureOf(Cause.squash(exit.cause)) : undefined
    )
  }
}

/**
 * Runs the effect through the `Breaker` of the context: see its `protect`.
 *
 * **Example** (Failing fast while the database is down)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Breaker from "effect-pg-pool/Breaker"
 *
 * declare const orders: Effect.Effect<ReadonlyArray<string>, Error>
 *
 * const program = orders.pipe(
 *   Breaker.protect(),
 *   Effect.catchTag("CircuitOpen", (error) => Effect.succeed([`come back in ${error.retryAfter} ms`]))
 * )
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const protect: {
  <A, E>(
    options?: ProtectOptions<A, E> | undefined
  ): <R>(
    self: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | Errors.CircuitError, R | Breaker>
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options?: ProtectOptions<A, E> | undefined
  ): Effect.Effect<A, E | Errors.CircuitError, R | Breaker>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: ProtectOptions<A, E>) =>
    Breaker.use((breaker) => breaker.protect(self, options))
)

/**
 * A breaker for this process. Building it asks nothing of the database; it fails with `InvalidOption` when a setting is
 * impossible.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options?: Options | undefined): Layer.Layer<Breaker, Errors.InvalidOption> =>
  Layer.effect(Breaker, make(options))

/**
 * A breaker that lets every call in and never opens.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNoop: Layer.Layer<Breaker> = Layer.sync(Breaker, () => {
  const permit: Permit = { _tag: "Permit", generation: 0, probe: false, ramp: false }
  const state: State = { _tag: "Closed", failures: 0 }
  return {
    key: "default",
    protect: (self) => self,
    withPermit: (use) => Effect.suspend(() => use(permit)),
    closedPermitUnsafe: () => permit,
    isCalmUnsafe: () => true,
    settleUnsafe: () => {},
    state: Effect.succeed(state),
    stateUnsafe: () => state,
    transitions: Stream.empty,
    probeTimeout: Infinity
  }
})
