/**
 * How to wait between attempts, as values: plain schedules of Effect, to be used with `Effect.retry` and composed with
 * everything in `effect/Schedule`.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import { InvalidOption } from "./Errors.ts"
import { millis } from "./internal/millis.ts"
import { RetryBudget } from "./internal/retryBudget.ts"

/**
 * The settings of a retry schedule.
 *
 * @category options
 * @since 0.1.0
 */
export interface RetryOptions {
  /** Attempts in total, the first one included: a whole number from 1 to 1000. Default: 5, which makes 4 delays. */
  readonly attempts?: number | undefined
  /** The delay after the first attempt. Default: 100 milliseconds. */
  readonly base?: Duration.Input | undefined
  /** Each delay is this times the one before: 1 or more. Default: 1.5. */
  readonly factor?: number | undefined
  /** No delay is longer. At least `base`. Default: 2 seconds, or `base` when that is longer. */
  readonly cap?: Duration.Input | undefined
  /**
   * `"full"` waits a random time from 0 to the delay, so that callers who failed together do not come back together
   * (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter); `"none"` waits exactly the delay.
   * Default: `"full"`.
   */
  readonly jitter?: "full" | "none" | undefined
}

interface Settings {
  readonly attempts: number
  readonly base: number
  readonly factor: number
  readonly cap: number
  readonly full: boolean
}

const settingsOf = (options: RetryOptions): Settings | InvalidOption => {
  const { attempts = 5, factor = 1.5, jitter = "full" } = options
  const base = millis(options.base ?? 100)
  const cap = options.cap === undefined ? Math.max(2_000, base) : millis(options.cap)
  const rules: ReadonlyArray<readonly [option: keyof RetryOptions, allowed: string, holds: boolean]> = [
    ["attempts", "a whole number from 1 to 1000", Number.isInteger(attempts) && attempts >= 1 && attempts <= 1000],
    ["base", "a finite duration, 0 or more", base >= 0 && base < Infinity],
    ["factor", "a finite number, 1 or more", factor >= 1 && factor < Infinity],
    ["cap", "a finite duration, base or more", cap >= base && cap < Infinity],
    ["jitter", "\"full\" or \"none\"", jitter === "full" || jitter === "none"]
  ]
  const broken = rules.find(([, , holds]) => !holds)
  return broken === undefined
    ? { attempts, base, factor, cap, full: jitter === "full" }
    : new InvalidOption({ option: `retry.${broken[0]}`, value: options[broken[0]], allowed: broken[1] })
}

const settingsOrThrow = (options: RetryOptions): Settings => {
  const settings = settingsOf(options)
  if (settings instanceof InvalidOption) throw settings
  return settings
}

/** The longest wait after the n-th attempt, in milliseconds. */
const delayAfter = (attempt: number, { base, cap, factor }: Settings): number =>
  base === 0 ? 0 : Math.min(cap, base * Math.pow(factor, attempt - 1))

const fromSettings = (settings: Settings): Schedule.Schedule<Duration.Duration> =>
  Schedule.fromStepWithMetadata(Effect.succeed(({ attempt }) => {
    if (attempt >= settings.attempts) return Cause.done(Duration.zero)
    const delay = delayAfter(attempt, settings)
    const wait = settings.full ? Effect.map(Random.next, (draw) => draw * delay) : Effect.succeed(delay)
    return Effect.map(wait, (ms): [Duration.Duration, Duration.Duration] => [Duration.millis(ms), Duration.millis(ms)])
  }))

/**
 * A schedule that tries `attempts` times in total, and waits longer each time: by default after 100, 150, 225 and 337.5
 * milliseconds at the most, a random part of each (through `Random`, so `Random.withSeed` makes it reproducible). Its
 * output is the delay it waits.
 *
 * It says when to retry, not whether that is safe: pair it with a `while` that asks `Errors.isSafeToRepeat`.
 *
 * Throws `InvalidOption` when a setting is impossible; `make` fails with it instead.
 *
 * **Example** (Retrying with the exact delays)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Schedule from "effect-pg-pool/Schedule"
 *
 * declare const query: Effect.Effect<number, Error>
 *
 * const program = Effect.retry(query, Schedule.retry({ jitter: "none" }))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const retry = (options: RetryOptions = {}): Schedule.Schedule<Duration.Duration> =>
  fromSettings(settingsOrThrow(options))

/**
 * The same as `retry` for settings that come from outside: fails with `InvalidOption` when one is impossible.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: RetryOptions = {}): Effect.Effect<Schedule.Schedule<Duration.Duration>, InvalidOption> =>
  Effect.suspend(() => {
    const settings = settingsOf(options)
    return settings instanceof InvalidOption ? Effect.fail(settings) : Effect.succeed(fromSettings(settings))
  })

/**
 * The schedule for failures that pass by themselves: `retry` with its defaults.
 *
 * @category schedules
 * @since 0.1.0
 */
export const transient: Schedule.Schedule<Duration.Duration> = /* @__PURE__ */ retry()

/**
 * The longest wait after each attempt but the last, in milliseconds: `[100, 150, 225, 337.5]` by default. With jitter
 * `"none"` these are the waits. Throws `InvalidOption` when a setting is impossible.
 *
 * @category inspection
 * @since 0.1.0
 */
export const delays = (options: RetryOptions = {}): ReadonlyArray<number> => {
  const settings = settingsOrThrow(options)
  return Array.from({ length: settings.attempts - 1 }, (_, index) => delayAfter(index + 1, settings))
}

// ---------------------------------------------------------------------------------------------------------------------
// Retry budget
// ---------------------------------------------------------------------------------------------------------------------

/**
 * The settings of a retry budget.
 *
 * @category options
 * @since 0.1.0
 */
export interface BudgetOptions {
  /** Tokens in a full budget, which is how it starts: a number, 1 or more. Default: 10. */
  readonly capacity?: number | undefined
  /** Tokens that each success brings back: above 0, at most `capacity`. Default: 0.1, so ten successes pay for a retry. */
  readonly refill?: number | undefined
}

/**
 * A bucket of tokens that pays for retries. One that is shared by all calls to a server bounds what retries add to its
 * load: with everything failing, retries stop once the tokens are spent, and come back with the successes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Budget {
  /** Tokens in a full budget. */
  readonly capacity: number
  /** Tokens left now. */
  readonly tokens: number
  /**
   * Takes `cost` tokens and answers true, or takes none and answers false. A `source` that has been paid for lately
   * costs nothing: what fails together is one event, however many calls it hit.
   */
  readonly withdraw: (cost: number, source?: number) => boolean
  /** Brings back what one success is worth. */
  readonly succeeded: () => void
  /** Brings back a number of tokens; never more than `capacity` are kept. */
  readonly deposit: (tokens: number) => void
}

const budgetOf = (options: BudgetOptions): Budget | InvalidOption => {
  const { capacity = 10, refill = 0.1 } = options
  const rules: ReadonlyArray<readonly [option: keyof BudgetOptions, allowed: string, holds: boolean]> = [
    ["capacity", "a finite number, 1 or more", capacity >= 1 && capacity < Infinity],
    ["refill", "a number above 0, at most capacity", refill > 0 && refill <= capacity]
  ]
  const broken = rules.find(([, , holds]) => !holds)
  return broken === undefined
    ? new RetryBudget(capacity, refill)
    : new InvalidOption({ option: `retryBudget.${broken[0]}`, value: options[broken[0]], allowed: broken[1] })
}

/**
 * A full budget of tokens for retries (gRPC A6: https://github.com/grpc/proposal/blob/master/A6-client-retries.md).
 * Fails with `InvalidOption` when a setting is impossible.
 *
 * @category constructors
 * @since 0.1.0
 */
export const budget = (options: BudgetOptions = {}): Effect.Effect<Budget, InvalidOption> =>
  Effect.suspend(() => {
    const made = budgetOf(options)
    return made instanceof InvalidOption ? Effect.fail(made) : Effect.succeed(made)
  })

/**
 * Ends a schedule where the budget cannot pay for another retry: each step costs `cost` tokens, 1 by default.
 *
 * **Example** (At most ten retries at a time, whoever asks)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Schedule from "effect-pg-pool/Schedule"
 *
 * declare const query: Effect.Effect<number, Error>
 *
 * const program = Effect.flatMap(Schedule.budget({ capacity: 10 }), (budget) =>
 *   query.pipe(
 *     Effect.tap(() => Effect.sync(() => budget.succeeded())),
 *     Effect.retry(Schedule.transient.pipe(Schedule.withBudget(budget)))
 *   ))
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const withBudget: {
  (
    budget: Budget,
    cost?: number
  ): <Output, Input, E, R>(
    self: Schedule.Schedule<Output, Input, E, R>
  ) => Schedule.Schedule<Output, Input, E, R>
  <Output, Input, E, R>(
    self: Schedule.Schedule<Output, Input, E, R>,
    budget: Budget,
    cost?: number
  ): Schedule.Schedule<Output, Input, E, R>
} = /* @__PURE__ */ dual(
  (args) => Schedule.isSchedule(args[0]),
  <Output, Input, E, R>(self: Schedule.Schedule<Output, Input, E, R>, budget: Budget, cost = 1) =>
    Schedule.while(self, () => Effect.sync(() => budget.withdraw(cost)))
)
