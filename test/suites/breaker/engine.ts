import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/** What a case finds wrong with an engine. */
export class Failed extends Data.TaggedError("Failed")<{ readonly message: string }> {}

/** The engine has no such power, so the case cannot be asked of it. */
export class Unsupported extends Data.TaggedError("Unsupported")<{ readonly message: string }> {}

/** What goes wrong in the calls of the cases: a SQLSTATE or a socket's code, in the shape in which the driver reports it. */
export class Trouble extends Data.TaggedError("Trouble")<{ readonly code: string; readonly severity?: string }> {}

/** A call that the breaker did not let in. What the engine does not tell is `undefined`. */
export class Rejected extends Data.TaggedError("Rejected")<{
  readonly state?: State["tag"] | undefined
  readonly retryAfter?: number | undefined
}> {}

/** The state of a circuit, times in milliseconds. What the engine does not tell is `undefined`. */
export interface State {
  readonly tag: "Closed" | "Open" | "HalfOpen" | "Isolated" | "Disabled"
  readonly retryAfter?: number | undefined
  readonly failures?: number | undefined
  /** Only while it recovers: how many calls it lets in at a time. */
  readonly limit?: number | undefined
}

/**
 * What differs from the standard configuration: five failures in a row open it, for 30 seconds without jitter or
 * back-off; a probe has 5 seconds; failures further apart than 60 seconds make no streak; no recovery ramp. An engine
 * for which a setting would mean a power that it lacks answers `Unsupported`.
 */
export interface Settings {
  readonly failures?: number | undefined
  /** Open when this share of the last `size` calls failed. */
  readonly rate?: { readonly threshold: number; readonly size: number } | undefined
  /** Spread the open time, by 20 percent of it at least. */
  readonly jitter?: boolean | undefined
  /** Openings in a row last 30, 60, 120 ... seconds, five minutes at most. */
  readonly backoff?: boolean | undefined
  /** The most milliseconds that one call may take, by the means that the engine has or recommends. */
  readonly attemptTimeout?: number | undefined
  /** Let in 1, 2, 4 ... up to so many calls at a time after a close. Engines that cannot, let all in. */
  readonly ramp?: number | undefined
  /** Go on from this snapshot, which has been through JSON. */
  readonly snapshot?: unknown
}

/** Something that a circuit told its observers: the state that it has come to, or that it would have opened. */
export type Event = State["tag"] | "WouldOpen"

/** A breaker under test. Powers that an engine may lack are optional. */
export interface Circuit {
  /**
   * Runs the effect through the breaker: ends as the effect does, or fails with `Rejected`. Engines that tell sockets
   * apart count the failures of one `socket` once; the others do not know about it.
   */
  readonly call: (effect: Effect.Effect<string, unknown>, socket?: number) => Effect.Effect<string, unknown>
  readonly state: Effect.Effect<State>
  /** What it has told its observers so far. */
  readonly events: Effect.Effect<ReadonlyArray<Event>>
  /** Attaches an observer, which may be slow or die. */
  readonly observe: (observer: (event: Event) => Effect.Effect<void>) => Effect.Effect<void, never, Scope.Scope>
  readonly isolate?: Effect.Effect<void, never, Scope.Scope>
  readonly disable?: Effect.Effect<void, never, Scope.Scope>
  readonly snapshot?: Effect.Effect<unknown>
  /** A store that it shares with others, to take down and up again. */
  readonly store?: { readonly down: Effect.Effect<void>; readonly up: Effect.Effect<void> }
}

/** Makes circuits that share a key if they have the same one. Fails with `Failed` when it refuses the settings. */
export type Registry = (key: string, settings: Settings) => Effect.Effect<Circuit, Failed | Unsupported>

/** A circuit breaker to ask the cases of. */
export interface Engine {
  readonly name: string
  /** Makes a closed circuit of its own. */
  readonly make: (settings?: Settings) => Effect.Effect<Circuit, Unsupported | Failed, Scope.Scope>
  readonly registry?: Effect.Effect<Registry, never, Scope.Scope>
  /** A module that opens a circuit and then has nothing more to do. */
  readonly openAndIdle: string
  /** The time that it lives in. */
  readonly time: Effect.Effect<Time["Service"], never, Scope.Scope>
  /** The same without the classification of errors that `outcomeOf` stands for. */
  readonly byDefault?: Engine
}

/** The time of a case, which begins at `epoch`. Durations are in milliseconds. */
export class Time extends Context.Service<Time, {
  /** Time passes; timers that are due run. */
  readonly pass: (ms: number) => Effect.Effect<void>
  /** The environment was frozen: the wall clock has moved on, and no timer has run yet. */
  readonly freeze: (ms: number) => Effect.Effect<void>
  /** The wall clock is set back. */
  readonly turnBack: (ms: number) => Effect.Effect<void>
}>()("test/breaker/Time") {}

/** What was logged during a case, from warnings on. */
export class Reports extends Context.Service<Reports, ReadonlyArray<string>>()("test/breaker/Reports") {}

export const epoch = 1_800_000_000_000

const outcomes: { readonly [code: string]: "Success" | "Ignored" } = {
  "23505": "Success",
  "42601": "Success",
  "40001": "Success",
  "28P01": "Ignored",
  "3D000": "Ignored"
}

/**
 * What an error says about the database: the classification that a user of the engines that have none of PostgreSQL
 * would write for the errors of the cases. Whatever it does not know is a failure.
 */
export const outcomeOf = (error: unknown): "Success" | "Failure" | "Ignored" =>
  error instanceof Trouble ? outcomes[error.code] ?? "Failure" : "Failure"
