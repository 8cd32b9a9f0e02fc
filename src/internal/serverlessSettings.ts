/** What an environment can be told, and what it may not be told. */
import * as Duration from "effect/Duration"
import { millis } from "./millis.ts"
import * as Release from "./release.ts"

export interface EnvironmentOptions {
  /**
   * How long before the platform's deadline an invocation is interrupted, so that its transaction is rolled back, its statement
   * cancelled and its answer sent. Never more than a quarter of what is left when the invocation begins. Default: 250 ms.
   */
  readonly margin?: Duration.Input | undefined
  /**
   * After a freeze, sessions that have been idle for longer are destroyed without asking: what lies between may have
   * forgotten them (AWS gives up idle connections after 350 s). Younger ones are proved by the pool's `validateAfter`. Default:
   * 5 minutes.
   */
  readonly staleAfter?: Duration.Input | undefined
  /**
   * What becomes of idle sessions at the end of an invocation, when no other one runs. Default: `"keep"`.
   *
   * - `"keep"`: the next invocation uses them.
   * - `"close"`: they are closed before the answer. Each invocation costs a connect, and no frozen environment has a session.
   * - `"adaptive"`: they are closed when the server is more than 80 % full, which is known by `Pool.sizeForFleet` alone, or when
   *   the gaps between invocations are longer than `staleAfter` on average.
   */
  readonly release?: Release.Policy | undefined
  /**
   * Builds the layer and opens one session before the first invocation. A failure is logged, and the first invocation
   * tries again; so does it when that takes longer than 8 seconds. Await `ready` at the top level of the module, or the
   * platform may freeze it half done. Default: false.
   */
  readonly warm?: boolean | undefined
  readonly shutdown?: {
    /** How long `dispose` takes at most. Default: 200 ms, which fits what Lambda gives. */
    readonly within?: Duration.Input | undefined
  } | undefined
}

/** Milliseconds throughout. */
export interface Settings {
  readonly margin: number
  readonly staleAfter: number
  readonly release: Release.Policy
  readonly warm: boolean
  readonly shutdownWithin: number
}

export interface BadOption {
  readonly option: string
  readonly value: unknown
  readonly allowed: string
}

/** Throws what `bad` makes of an impossible value. */
export const settle = (options: EnvironmentOptions, bad: (option: BadOption) => Error): Settings => {
  const duration = (option: string, value: Duration.Input | undefined, normally: number): number => {
    const given = value === undefined ? normally : millis(value)
    if (given >= 0) return given
    throw bad({ option, value, allowed: "a duration of 0 or more" })
  }
  const release = options.release ?? "keep"
  if (!Release.policies.includes(release)) {
    throw bad({ option: "release", value: release, allowed: `one of ${Release.policies.join(", ")}` })
  }
  return {
    margin: duration("margin", options.margin, 250),
    staleAfter: duration("staleAfter", options.staleAfter, 300_000),
    release,
    warm: options.warm ?? false,
    shutdownWithin: duration("shutdown.within", options.shutdown?.within, 200)
  }
}
