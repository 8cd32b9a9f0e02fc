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
 * - **Isolated** and **Disabled**: somebody rejects all calls, or lets all in, by hand.
 *
 * A circuit that has just closed lets a few calls in at a time, and more as they succeed (`ramp`), so that a server
 * which is barely back is not met by everybody at once.
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
import * as CircuitBreaker from "effect/persistence/CircuitBreaker"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import * as Errors from "./Errors.ts"
import * as Line from "./internal/breakerLine.ts"
import * as Machine from "./internal/breakerMachine.ts"
import * as Settings from "./internal/breakerSettings.ts"
import * as Memory from "./internal/breakerSnapshot.ts"
import * as Tally from "./internal/breakerTally.ts"
import * as View from "./internal/breakerView.ts"
import * as Broadcast from "./internal/broadcast.ts"
import * as Latest from "./internal/latest.ts"
import * as Logbook from "./internal/logbook.ts"
import * as LogFields from "./internal/logFields.ts"
import { millis } from "./internal/millis.ts"
import * as Shared from "./internal/sharedCircuit.ts"

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
 * The state of the circuit at one moment.
 *
 * - `retryAfter` is in milliseconds, and 0 when the next call will be let in as the probe; an open circuit stays `Open`
 *   until that call comes.
 * - `failures` are those that count towards opening now.
 * - `limit`, while the circuit recovers, is how many calls it lets in at a time.
 *
 * @category models
 * @since 0.1.0
 */
export type State = View.State

/**
 * A change of state of the circuit `key`. `at` is the time on the clock, in milliseconds.
 *
 * One from `Disabled` to `Disabled` changes nothing: it tells that the circuit would have opened, if it were not
 * disabled.
 *
 * @category models
 * @since 0.1.0
 */
export type Transition = View.Transition

/**
 * When a circuit opens: see {@link consecutive} and {@link rate}.
 *
 * @category options
 * @since 0.1.0
 */
export type Trip = Settings.Trip

// Made when a snapshot is read, which few programs do.
const makeSnapshotSchema = () => {
  const count = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
  const duration = Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0))
  return Schema.Struct({
    version: Schema.Literal(1),
    key: Schema.String,
    takenAt: Schema.Finite,
    lastFailure: Schema.NullOr(Errors.Failure),
    circuit: Schema.Union([
      Schema.TaggedStruct("Closed", {
        failures: count,
        lastFailureAt: Schema.NullOr(Schema.Finite),
        openings: count,
        closedAt: Schema.NullOr(Schema.Finite),
        lastOpenFor: duration,
        limit: Schema.NullOr(Schema.Int.check(Schema.isGreaterThanOrEqualTo(1)))
      }),
      Schema.TaggedStruct("Open", { openedAt: Schema.Finite, openFor: duration, openings: count }),
      Schema.TaggedStruct("HalfOpen", { openFor: duration, openings: count })
    ])
  })
}

/**
 * Schema of what a circuit can tell its successor in another process. It is plain JSON without row data: `lastFailure`
 * has codes, and texts about the server. Calls in flight, isolation and disabling are not part of it, and of the counts
 * only a streak is.
 *
 * - `takenAt` and all other times are milliseconds of the wall clock, `null` is "never".
 * - `version` changes with the shape; a snapshot of a version that is not known is not used.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Snapshot = /* @__PURE__ */ makeSnapshotSchema()

/**
 * What {@link Snapshot} describes.
 *
 * @category models
 * @since 0.1.0
 */
export type Snapshot = typeof Snapshot.Type

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

  /** True while a success has nothing to tell the circuit: it lets every call in, and counts failures in a row. */
  readonly isCalmUnsafe: () => boolean

  /**
   * Tells the outcome of the call that a permit was for, at `now` (milliseconds of the wall clock). One that comes too
   * late to matter changes nothing.
   */
  readonly settleUnsafe: (permit: Permit, outcome: Outcome, now: number, failure?: FailureSummary | undefined) => void

  /**
   * Tells, at `now` (milliseconds of the wall clock), that the database can be reached again: an open circuit has waited
   * long enough, and lets the next call in as the probe. In any other state it changes nothing.
   */
  readonly reachedUnsafe: (now: number) => void

  /** The state of the circuit now. Reading it changes nothing. */
  readonly state: Effect.Effect<State>

  /** The state of the circuit at `now` (milliseconds of the wall clock). */
  readonly stateUnsafe: (now: number) => State

  /**
   * Rejects every call with `CircuitIsolated`, which names the reason, until the scope closes: to keep away from a
   * database that is being moved, say. Neither time nor a probe ends it. Whoever isolates a circuit that is isolated
   * keeps it so for as long as his own scope is open. The last one leaves it closed, with all that was counted forgotten.
   */
  readonly isolate: (reason: string) => Effect.Effect<void, never, Scope.Scope>

  /**
   * Lets every call in until the scope closes. Outcomes are counted all the same, and `transitions` tells, by one from
   * `Disabled` to `Disabled`, when the circuit would have opened; as long as it would then be open it counts nothing.
   * Isolation wins over it. The last scope that closes leaves the circuit closed, with all that was counted forgotten.
   */
  readonly disable: Effect.Effect<void, never, Scope.Scope>

  /** Closes the circuit, with all that was counted and all openings forgotten. Ends neither isolation nor disabling. */
  readonly reset: Effect.Effect<void>

  /** What the option `snapshot` of a breaker elsewhere, or later, goes on from. */
  readonly snapshot: Effect.Effect<Snapshot>

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
export interface Options extends Settings.BreakerOptions {
  /**
   * A {@link Snapshot} to go on from. One that is not of this circuit, or cannot be read, is logged as a warning and not
   * used. Default: the circuit begins closed.
   */
  readonly snapshot?: unknown
  /**
   * Called with every change of state, at once and in the fiber that caused it: keep it short. What it throws is logged
   * and changes nothing.
   */
  readonly onTransition?: ((transition: Transition) => void) | undefined
}

/**
 * Opens after so many failures in a row. The default, with 5.
 *
 * A database that answers now and then is never left alone by it: four failures and a success, over and over, keep the
 * circuit closed. See {@link rate}.
 *
 * @category options
 * @since 0.1.0
 */
export const consecutive = (failures: number): Trip => ({ _tag: "Consecutive", failures })

/**
 * Opens when the share of failures among the last `size` outcomes reaches `threshold`, once there are `minimumCalls`
 * of them, one failure at least. Outcomes older than `window` do not count. Every outcome is counted, which costs a
 * healthy call more than {@link consecutive} does.
 *
 * - `threshold`: from 0 to 1. Default: 0.5.
 * - `size`: Default: 100.
 * - `minimumCalls`: at most `size`. Default: `size`.
 * - `window`: Default: the breaker's `streakWindow`, 60 seconds.
 *
 * @category options
 * @since 0.1.0
 */
export const rate = (
  options: {
    readonly threshold?: number | undefined
    readonly size?: number | undefined
    readonly minimumCalls?: number | undefined
    readonly window?: Duration.Input | undefined
  } = {}
): Trip => {
  const size = options.size ?? 100
  return {
    _tag: "Rate",
    threshold: options.threshold ?? 0.5,
    size,
    minimumCalls: options.minimumCalls ?? size,
    window: options.window
  }
}

const settingsOf = (options: Options): Effect.Effect<Settings.Settings, Errors.InvalidOption> => {
  const settings = Settings.resolve(options)
  return "allowed" in settings
    ? Effect.fail(new Errors.InvalidOption({ ...settings, option: `breaker.${settings.option}` }))
    : Effect.succeed(settings)
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
export const make = (
  options?: Options | undefined
): Effect.Effect<Breaker["Service"], Errors.InvalidOption, Scope.Scope> => makeIn(undefined, options)

/** A breaker, alone or in a fleet. */
const makeIn = Effect.fnUntraced(
  function*(
    join:
      | ((
        local: Shared.Local<Errors.CircuitError>
      ) => Effect.Effect<Shared.Fleet<Errors.CircuitError>, Errors.InvalidOption, Scope.Scope>)
      | undefined,
    options: Options = {}
  ): Effect.fn.Return<Breaker["Service"], Errors.InvalidOption, Scope.Scope> {
    const settings = yield* settingsOf(options)
    const onTransition = options.onTransition
    const random = yield* Random.Random
    const book = yield* Logbook.make(undefined)
    const broadcast = yield* Broadcast.make<Transition>(128)

    const restored = options.snapshot === undefined ? undefined : yield* readSnapshot(options.snapshot, settings)
    let circuit: Machine.Circuit = restored?.circuit ?? Machine.initial(settings)
    let lastFailure: Errors.Failure | null = restored?.lastFailure ?? null
    let holds: Machine.Holds = { isolations: [], disablings: 0 }

    const advance = (next: Machine.Circuit, now: number): void => {
      const previous = circuit
      circuit = next
      const transition = View.transitionOf(settings.key, previous, next, now, lastFailure)
      if (transition !== undefined) announce(transition)
      line.serve(now)
    }

    const announce = (transition: Transition): void => {
      broadcast.tellUnsafe(transition)
      if (onTransition === undefined) return
      try {
        onTransition(transition)
      } catch (defect) {
        book.write("breakerObserverFailed", () => ({ "db.breaker.key": settings.key, ...LogFields.ofDefect(defect) }))
      }
    }

    /** A permit, a rejection, or `undefined`: a circuit that recovers has no room now. */
    const ask = (now: number): Permit | Errors.CircuitError | undefined => {
      const admission = Machine.admit(circuit, now, settings)
      if (admission.circuit !== undefined) advance(admission.circuit, now)
      if (admission.permit !== undefined) return admission.permit
      const { key } = settings
      const { retryAfter } = admission
      switch (circuit._tag) {
        case "HalfOpen":
          return new Errors.CircuitHalfOpen({ key, retryAfter })
        case "Isolated":
          return new Errors.CircuitIsolated({ key, reason: circuit.reason })
        case "Open":
          return new Errors.CircuitOpen({ key, retryAfter, lastFailure })
        default:
          return undefined
      }
    }

    /** Who waits for room in a circuit that recovers. */
    const line = Line.make(ask)

    const fleet = join === undefined ? undefined : yield* join({
      settings,
      circuit: () => circuit,
      advance,
      ask,
      reject: (retryAfter) => new Errors.CircuitHalfOpen({ key: settings.key, retryAfter })
    })

    const closedPermitUnsafe = () =>
      circuit._tag === "Closed" || circuit._tag === "Disabled" ? circuit.admission.permit : undefined

    const withPermit: Breaker["Service"]["withPermit"] = (use) =>
      Effect.suspend(() => {
        const permit = closedPermitUnsafe()
        return permit === undefined ? withAskedPermit(use) : use(permit)
      })

    const withAskedPermit = <A, E, R>(use: (permit: Permit) => Effect.Effect<A, E, R>) => {
      let clock: Clock.Clock
      let permit: Permit | undefined
      const proceed = (answer: Permit | Errors.CircuitError): Effect.Effect<A, E | Errors.CircuitError, R> => {
        if (answer._tag !== "Permit") return Effect.fail(answer)
        permit = answer
        return use(answer)
      }
      // Noted when it is given: from then on it has to be given back, however the waiting ends.
      const note = (answer: Permit | Errors.CircuitError | undefined): void => {
        if (answer?._tag === "Permit") permit = answer
      }
      const waitForRoom = line.stand(() => clock.currentTimeMillisUnsafe(), note).pipe(
        Effect.timeoutOrElse({
          duration: settings.probeLease,
          // First in line by now, and who held it up may have lost his place just as well.
          orElse: () =>
            Effect.sync(() => {
              const now = clock.currentTimeMillisUnsafe()
              const retryAfter = () => Machine.retryAfter(circuit, now, settings)
              return permit ?? ask(now) ?? new Errors.CircuitHalfOpen({ key: settings.key, retryAfter: retryAfter() })
            })
        })
      )
      // The finalizer is in place before leave is asked for: a fiber can be interrupted between any two steps.
      return Effect.onExitPrimitive(
        Effect.withFiber((fiber): Effect.Effect<A, E | Errors.CircuitError, R> => {
          clock = fiber.getRef(Clock.Clock)
          const now = clock.currentTimeMillisUnsafe()
          line.serve(now)
          const enter = (answer: Permit | Errors.CircuitError | undefined) =>
            answer === undefined ? Effect.flatMap(waitForRoom, proceed) : proceed(answer)
          if (!line.isEmpty()) return enter(undefined)
          const leave = fleet?.leave(now, note)
          return leave === undefined ? enter(ask(now)) : Effect.flatMap(leave, enter)
        }),
        () => {
          if (permit !== undefined && (permit.probe || permit.ramp)) {
            settleUnsafe(permit, "Ignored", clock.currentTimeMillisUnsafe())
          }
          return undefined
        }
      )
    }

    const settleUnsafe = (permit: Permit, outcome: Outcome, now: number, failure?: FailureSummary): void => {
      // A success, too, can open a circuit that goes by a rate: it may be the call that was missing.
      const mayOpen = outcome === "Failure" || (outcome === "Success" && settings.trip._tag === "Rate")
      const draw = mayOpen ? random.nextDoubleUnsafe() : 0
      const previous = circuit
      const next = Machine.settle(previous, permit, outcome, now, settings, failure?.source, draw)
      if (next !== previous) {
        if (outcome === "Failure") lastFailure = failure === undefined ? null : withoutSource(failure)
        advance(next, now)
      }
      fleet?.settled(permit, outcome, previous, next, now)
    }

    const isCalmUnsafe = () => (circuit._tag === "Closed" || circuit._tag === "Disabled") && Tally.isCalm(circuit.tally)

    const stateUnsafe = (now: number): State => View.stateOf(circuit, now, settings, lastFailure)

    const hold = (change: (current: Machine.Holds) => Machine.Holds): Effect.Effect<void> =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        holds = change(holds)
        advance(Machine.hold(circuit, holds, settings), now)
      })

    const isolate = (reason: string) =>
      Effect.suspend(() => {
        const isolation = { reason }
        return Effect.acquireRelease(
          hold(({ disablings, isolations }) => ({ disablings, isolations: [...isolations, isolation] })),
          () =>
            hold(({ disablings, isolations }) => ({
              disablings,
              isolations: isolations.filter((other) => other !== isolation)
            }))
        )
      })

    const disable = Effect.acquireRelease(
      hold(({ disablings, isolations }) => ({ disablings: disablings + 1, isolations })),
      () => hold(({ disablings, isolations }) => ({ disablings: disablings - 1, isolations }))
    )

    return Breaker.of({
      key: settings.key,
      protect: protectWith(closedPermitUnsafe, withPermit, settleUnsafe, isCalmUnsafe),
      withPermit,
      closedPermitUnsafe,
      isCalmUnsafe,
      settleUnsafe,
      reachedUnsafe: (now) => {
        const next = Machine.endWait(circuit)
        if (next !== circuit) advance(next, now)
      },
      state: Effect.map(Clock.currentTimeMillis, stateUnsafe),
      stateUnsafe,
      isolate,
      disable,
      reset: Effect.map(Clock.currentTimeMillis, (now) => {
        lastFailure = null
        advance(Machine.reset(circuit, settings), now)
      }),
      snapshot: Effect.map(Clock.currentTimeMillis, (takenAt) => ({
        version: 1,
        key: settings.key,
        takenAt,
        lastFailure,
        circuit: Memory.remember(circuit)
      })),
      transitions: broadcast.stream,
      probeTimeout: settings.probeTimeout
    })
  }
)

const withoutSource = ({ source: _, ...failure }: FailureSummary): Errors.Failure => failure

const readSnapshot = (
  snapshot: unknown,
  settings: Settings.Settings
): Effect.Effect<{ readonly circuit: Machine.Circuit; readonly lastFailure: Errors.Failure | null } | undefined> =>
  Schema.decodeUnknownEffect(makeSnapshotSchema())(snapshot).pipe(
    Effect.flatMap((known) =>
      known.key === settings.key ? Effect.succeed(known) : Effect.fail({ _tag: "AnotherCircuit" })
    ),
    Effect.flatMap(({ circuit, lastFailure }) =>
      Effect.map(Clock.currentTimeMillis, (now) => ({ circuit: Memory.recall(circuit, now, settings), lastFailure }))
    ),
    Effect.catch((problem) =>
      Effect.as(
        Logbook.write("breakerSnapshotFailed", {
          "db.breaker.key": settings.key,
          "db.breaker.step": "read",
          ...LogFields.ofDefect(problem)
        }),
        undefined
      )
    )
  )

const protectWith = (
  closedPermitUnsafe: Breaker["Service"]["closedPermitUnsafe"],
  withPermit: Breaker["Service"]["withPermit"],
  settleUnsafe: Breaker["Service"]["settleUnsafe"],
  isCalmUnsafe: Breaker["Service"]["isCalmUnsafe"]
): Breaker["Service"]["protect"] =>
<A, E, R>(self: Effect.Effect<A, E, R>, options?: ProtectOptions<A, E>) =>
  Effect.withFiber((fiber): Effect.Effect<A, E | Errors.CircuitError, R> => {
    const judged = (permit: Permit) =>
      Effect.onExitPrimitive(self, (exit) => {
        if (options?.classify === undefined && exit._tag === "Success" && isCalmUnsafe()) return undefined
        judge(permit, exit, options?.classify ?? classifyExit, fiber.getRef(Clock.Clock), settleUnsafe)
        return undefined
      })
    // Through `withPermit` a healthy call would take one step of the fiber more.
    const permit = closedPermitUnsafe()
    return permit === undefined ? withPermit(judged) : judged(permit)
  })

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
} = /* @__PURE__ */ dual(
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
 * A breaker whose circuit a fleet of processes shares through a `CircuitBreakerStore` of
 * `effect/persistence/CircuitBreaker`, as its `layerStoreRedis` provides it. All who use the same store and `key` are one
 * fleet: give them the same options, and share only between processes that reach the database on the same way, for the
 * circuit that one of them opens is open for all.
 *
 * - As long as calls succeed the store is asked nothing, and neither is it by building the layer.
 * - A failure that counts asks, in the background and at most once a second, whether the fleet's circuit is open: then so
 *   is this one. Failures are counted by each process for itself; the one whose circuit opens opens the fleet's, for as
 *   long as the back-off of the whole fleet says.
 * - When the open time is over the next call asks the store, and one process of the fleet probes. The others are rejected
 *   until the outcome is known. Then each of them closes by a probe and a `ramp` of its own: that the database answers
 *   somebody does not mean that it answers everybody, and a process that alone cannot reach it keeps that to itself.
 * - A store that is down, slow or answers nonsense is no reason to reject a call: the circuit of this process decides by
 *   itself until the store answers again. Both are logged once for each outage.
 * - `transitions` and `state` are those of this process. `isolate`, `disable` and `reset` act on this process alone: after
 *   a `reset` the next failure asks whether the fleet's circuit is still open.
 *
 * `storeTimeout` is how long the store may take for an answer, and so the most that it delays a call: the one that would
 * be the probe. At most `probeLease`. Default: 250 milliseconds, or `probeLease` when that is shorter.
 *
 * A process that dies while it probes keeps the others from it until the lease in the store ends: its `probeLease`, 10
 * seconds by default in Redis. The store in memory has no lease.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerShared = (
  options: Options & { readonly storeTimeout?: Duration.Input | undefined } = {}
): Layer.Layer<Breaker, Errors.InvalidOption, CircuitBreaker.CircuitBreakerStore> =>
  Layer.effect(
    Breaker,
    Effect.flatMap(CircuitBreaker.CircuitBreakerStore, (store) =>
      makeIn((local) => {
        const { probeLease } = local.settings
        const value = options.storeTimeout
        const storeTimeout = value === undefined ? Math.min(250, probeLease) : millis(value)
        return storeTimeout >= 1 && storeTimeout <= probeLease
          ? Shared.make(local, store, storeTimeout)
          : Effect.fail(
            new Errors.InvalidOption({
              option: "breaker.storeTimeout",
              value,
              allowed: "a duration from 1 millisecond to probeLease"
            })
          )
      }, options))
  )

/**
 * A breaker that lets every call in and never opens, not even by hand.
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
    reachedUnsafe: () => {},
    state: Effect.succeed(state),
    stateUnsafe: () => state,
    transitions: Stream.empty,
    probeTimeout: Infinity,
    isolate: () => Effect.void,
    disable: Effect.void,
    reset: Effect.void,
    snapshot: Effect.map(Clock.currentTimeMillis, (takenAt): Snapshot => ({
      version: 1,
      key: "default",
      takenAt,
      lastFailure: null,
      circuit: Memory.blank
    }))
  }
})

/**
 * A breaker that remembers: it goes on from the snapshot that `load` gives, and has the snapshot of every change of
 * state saved, so that a cold start does not have to find out by failing calls that the database is down.
 *
 * `load` runs while the layer is built. `save` runs in the background, one at a time and always with the newest
 * snapshot, and once more when the scope closes; it never delays a call. Failures of either are logged as warnings: the
 * circuit then begins closed, or is not saved. Bound their time yourself.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerHydrated = <R = never, R2 = never>(
  { load, save, ...options }: Omit<Options, "snapshot"> & {
    readonly load: Effect.Effect<unknown, unknown, R>
    readonly save: (snapshot: Snapshot) => Effect.Effect<unknown, unknown, R2>
  }
): Layer.Layer<Breaker, Errors.InvalidOption, R | R2> =>
  Layer.effect(
    Breaker,
    Effect.gen(function*() {
      const book = yield* Logbook.make(undefined)
      const failed = (step: "load" | "save", key: string) => (cause: Cause.Cause<unknown>) =>
        Effect.sync(() =>
          book.write("breakerSnapshotFailed", () => ({
            "db.breaker.key": key,
            "db.breaker.step": step,
            ...LogFields.ofDefect(Cause.squash(cause))
          }))
        )
      const loaded = yield* Effect.catchCause(load, failed("load", options.key ?? Settings.defaultKey))
      const saveNow = Effect.suspend(() => breaker.snapshot).pipe(
        Effect.flatMap(save),
        Effect.catchCause((cause) => failed("save", breaker.key)(cause))
      )
      const saveSoon = yield* Latest.make(saveNow)
      const breaker: Breaker["Service"] = yield* make({
        ...options,
        snapshot: loaded ?? undefined,
        onTransition: (transition) => {
          saveSoon()
          options.onTransition?.(transition)
        }
      })
      yield* Effect.addFinalizer(() => saveNow)
      return breaker
    })
  )

/**
 * Names the circuit of one server, and of one role of it where they fail apart: `db1:5432/app#standby`. The port is
 * 5432 if it is left out.
 *
 * @category keys
 * @since 0.1.0
 */
export const keyOf = (
  { database, host, port = 5432, role }: {
    readonly host: string
    readonly port?: number | undefined
    readonly database?: string | undefined
    readonly role?: string | undefined
  }
): string =>
  `${host.includes(":") ? `[${host}]` : host}:${port}${database === undefined ? "" : `/${database}`}${
    role === undefined ? "" : `#${role}`
  }`

/**
 * Many circuits, one for each key: two servers fail by themselves, and so should their circuits. See {@link keyOf}.
 *
 * @category services
 * @since 0.1.0
 */
export class Breakers extends /* @__PURE__ */ Context.Service<Breakers, {
  /**
   * The circuit of this key, made when it is first asked for, with these options over those of the layer. Without
   * options it is given as it is; with others than it was made with it fails with an `InvalidOption` that names the key.
   */
  readonly get: (
    key: string,
    options?: Omit<Options, "key"> | undefined
  ) => Effect.Effect<Breaker["Service"], Errors.InvalidOption>
}>()("effect-pg-pool/Breaker/Breakers") {
  /**
   * Circuits for as long as the layer's scope is open. The options are those of every circuit that asks for no other.
   *
   * @since 0.1.0
   */
  static readonly layer = (
    common: Omit<Options, "key" | "snapshot"> = {}
  ): Layer.Layer<Breakers, Errors.InvalidOption> =>
    Layer.effect(
      Breakers,
      Effect.gen(function*() {
        yield* settingsOf(common)
        const scope = yield* Effect.scope
        const known = new Map<
          string,
          { readonly breaker: Breaker["Service"]; readonly made: string; readonly by: Options }
        >()
        const one = Semaphore.makeUnsafe(1)
        const get = Effect.fnUntraced(function*(key: string, own?: Omit<Options, "key">) {
          const options: Options = { ...common, ...own, key }
          const made = JSON.stringify(yield* settingsOf(options))
          const existing = known.get(key)
          if (existing === undefined) {
            const breaker = yield* Scope.provide(make(options), scope)
            known.set(key, { breaker, made, by: options })
            return breaker
          }
          const isSame = own === undefined ||
            (made === existing.made && options.onTransition === existing.by.onTransition)
          return isSame ? existing.breaker : yield* Effect.fail(
            new Errors.InvalidOption({
              option: "breaker.key",
              value: key,
              allowed: "asked for with the options that its circuit was made with"
            })
          )
        })
        // One at a time, so that two who ask at once get the same circuit.
        return { get: (key, options) => one.withPermit(get(key, options)) }
      })
    )
}
