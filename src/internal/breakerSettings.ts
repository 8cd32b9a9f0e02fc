import type * as Duration from "effect/Duration"
import type { Config } from "./breakerMachine.ts"
import { millis } from "./millis.ts"

/** When a circuit opens, as `consecutive` and `rate` of the breaker make it. */
export type Trip =
  | { readonly _tag: "Consecutive"; readonly failures: number }
  | {
    readonly _tag: "Rate"
    readonly threshold: number
    readonly size: number
    readonly minimumCalls: number
    readonly window?: Duration.Input | undefined
  }

/** Everything about a circuit that can be told in numbers. Absence means the default. */
export interface BreakerOptions {
  /** Names the circuit in errors, transitions and snapshots. Default: `"default"`. */
  readonly key?: string | undefined
  /** What opens the circuit: `consecutive` or `rate`. Default: five failures in a row. */
  readonly trip?: Trip | undefined
  /** Failures in a row that open the circuit: short for `trip: consecutive(failures)`, and not together with it. */
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
   * environment was frozen and one after it do not open the circuit. With `rate`, the age from which outcomes do not
   * count. Default: 60 seconds.
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
   * After a close one call is let in at a time, then 2, 4, and so on up to this many, each limit until as many calls
   * have succeeded; then any number. Calls over the limit wait in turn, for `probeLease` at most. A failure meanwhile
   * reopens the circuit at once. It is over when the circuit has been closed for `openFor`. `false` lets all in at once.
   * Default: 8; a pool's own breaker has the pool's `max`.
   */
  readonly ramp?: number | false | undefined
}

/** A circuit's config, and what else is told in numbers. */
export interface Settings extends Config {
  readonly key: string
  readonly probeTimeout: number
}

/** An option that cannot be, for the room to make its own error of. */
export interface Refusal {
  readonly option: string
  readonly value: unknown
  readonly allowed: string
}

const optional = (input: Duration.Input | undefined, byDefault: number): number =>
  input === undefined ? byDefault : millis(input)

const isWhole = (value: number, min: number, max = Infinity): boolean =>
  Number.isSafeInteger(value) && value >= min && value <= max

type Rule = readonly [option: string, value: unknown, allowed: string, holds: boolean]

const rulesOfTrip = (trip: Trip, streakWindow: number): ReadonlyArray<Rule> => {
  if (trip._tag === "Consecutive") {
    return [["trip.failures", trip.failures, "a whole number, 1 or more", isWhole(trip.failures, 1)]]
  }
  const { minimumCalls, size, threshold } = trip
  return [
    ["trip.threshold", threshold, "a number from 0 to 1", threshold >= 0 && threshold <= 1],
    ["trip.size", size, "a whole number, 1 or more", isWhole(size, 1)],
    ["trip.minimumCalls", minimumCalls, "a whole number from 1 to size", isWhole(minimumCalls, 1, size)],
    [
      "trip.window",
      trip.window,
      "a duration, 1 millisecond or more",
      optional(trip.window, streakWindow) >= 1 || trip.window === undefined
    ]
  ]
}

/** The settings behind the options, or the first option that makes them impossible. */
export const defaultKey = "default"

export const resolve = (options: BreakerOptions): Settings | Refusal => {
  const failures = options.failures ?? 5
  const openFor = optional(options.openFor, 30_000)
  const [jitterMin, jitterMax] = options.jitter === "none" ? [1, 1] : options.jitter ?? [1, 1.2]
  const maxOpenFor = optional(options.maxOpenFor, Math.max(300_000, openFor))
  const streakWindow = optional(options.streakWindow, 60_000)
  const probeLease = optional(options.probeLease, Math.min(5_000, openFor))
  const probeTimeout = optional(options.probeTimeout, Math.min(2_000, probeLease))
  const ramp = options.ramp === false ? 0 : options.ramp ?? 8
  const rules: ReadonlyArray<Rule> = [
    ["failures", options.failures, "left out when trip is given", !(options.failures !== undefined && options.trip)],
    ["failures", options.failures, "a whole number, 1 or more", isWhole(failures, 1)],
    ["openFor", options.openFor, "a finite duration, 1 millisecond or more", openFor >= 1 && openFor < Infinity],
    [
      "jitter",
      options.jitter,
      "\"none\", or two finite numbers [min, max] with 1 <= min <= max",
      jitterMin >= 1 && jitterMax >= jitterMin && jitterMax < Infinity
    ],
    [
      "maxOpenFor",
      options.maxOpenFor,
      "a finite duration, openFor or more",
      maxOpenFor >= openFor && maxOpenFor < Infinity
    ],
    ["streakWindow", options.streakWindow, "a duration, 1 millisecond or more", streakWindow >= 1],
    ...(options.trip === undefined ? [] : rulesOfTrip(options.trip, streakWindow)),
    [
      "probeLease",
      options.probeLease,
      "a duration from 1 millisecond to openFor",
      probeLease >= 1 && probeLease <= openFor
    ],
    [
      "probeTimeout",
      options.probeTimeout,
      "a duration from 1 millisecond to probeLease",
      probeTimeout >= 1 && probeTimeout <= probeLease
    ],
    ["ramp", options.ramp, "false, or a whole number, 1 or more", options.ramp === false || isWhole(ramp, 1)]
  ]
  const broken = rules.find(([, , , holds]) => !holds)
  if (broken !== undefined) {
    const [option, value, allowed] = broken
    return { option, value, allowed }
  }
  const trip = options.trip ?? { _tag: "Consecutive", failures }
  return {
    key: options.key ?? defaultKey,
    trip: trip._tag === "Consecutive"
      ? { ...trip, window: streakWindow }
      : { ...trip, window: optional(trip.window, streakWindow) },
    openFor,
    jitterMin,
    jitterMax,
    maxOpenFor,
    probeLease,
    probeTimeout,
    ramp
  }
}
