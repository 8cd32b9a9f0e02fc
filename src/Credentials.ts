/**
 * Passwords that expire: IAM tokens, and secrets that somebody rotates.
 *
 * The option `password` may be an effect. It is run for each connect, and once more, at once, when the server refuses
 * what it yields. `cached` makes one call of many, and asks again before the answer expires or when it was refused.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { InvalidOption } from "./Errors.ts"
import * as Logbook from "./internal/logbook.ts"
import * as LogFields from "./internal/logFields.ts"
import * as Login from "./internal/login.ts"
import { millis } from "./internal/millis.ts"

/**
 * A password, and until when it is good: milliseconds since 1970, a `Date` or a `DateTime`. Default: until it is refused.
 *
 * @category models
 * @since 0.1.0
 */
export interface Credential {
  readonly password: Redacted.Redacted
  readonly expiresAt?: number | Date | DateTime.DateTime | undefined
}

/**
 * The settings of a cache.
 *
 * @category options
 * @since 0.1.0
 */
export interface CacheOptions {
  /** How long a password is good, from the moment it is asked for: above 0. The earlier of this and `expiresAt` counts. */
  readonly timeToLive?: Duration.Input | undefined
  /**
   * How long before it expires a password is renewed, by the connect that needs one then: 0 or more. It serves for half of
   * its life in any case. Default: a fifth of its life, 3 minutes for the 15 of an RDS token.
   */
  readonly renewBefore?: Duration.Input | undefined
}

/**
 * A cached password, for the option `password` of a pool or of several.
 *
 * @category models
 * @since 0.1.0
 */
export interface Cached<E = never, R = never> extends Effect.Effect<Redacted.Redacted, E, R> {
  /** Forgets the password, so that the next connect asks for another one. */
  readonly invalidate: Effect.Effect<void>
}

/**
 * The password that the server has just refused, while the effect `password` is run for the second time; `undefined` while it
 * is run for the first time. For a cache of your own: yield something else than this, or fail.
 *
 * @category references
 * @since 0.1.0
 */
export const Refused: Context.Reference<Redacted.Redacted | undefined> = Login.Refused

/** A renewal that is not needed yet may take this long, in milliseconds, before the password at hand is used. */
const patience = 2000

/** What is kept, with wall-clock milliseconds. */
interface Held {
  readonly password: Redacted.Redacted
  readonly expiresAt: number
  readonly renewAt: number
}

const expiryOf = ({ expiresAt }: Credential): number => {
  if (expiresAt === undefined) return Infinity
  const at = typeof expiresAt === "number" ? expiresAt : Number(
    DateTime.isDateTime(expiresAt) ? DateTime.toEpochMillis(expiresAt) : expiresAt
  )
  if (!Number.isNaN(at)) return at
  throw new InvalidOption({
    option: "expiresAt",
    value: expiresAt,
    allowed: "milliseconds since 1970, a Date or a DateTime"
  })
}

/** A duration in milliseconds. */
const duration = (
  option: keyof CacheOptions,
  input: Duration.Input | undefined,
  allowed: string,
  holds: (value: number) => boolean
): number | undefined => {
  if (input === undefined) return undefined
  const value = millis(input)
  if (holds(value)) return value
  throw new InvalidOption({ option, value: input, allowed })
}

/**
 * Keeps what `fetch` yields, a `Credential` or just a password, until it expires or is refused.
 *
 * - A thousand connects at once make one call, and share what comes of it. When the one who makes it is interrupted, another
 *   one of those who wait makes it.
 * - Nothing happens in the background: a password is renewed by the first connect after `renewBefore`, while the others go
 *   on with the one at hand. So does that one, with a warning in the log, if the renewal fails or takes longer than
 *   2 seconds; the next is tried after half of the time that is left.
 * - A password that the server has refused is not handed out again, whatever it says of its life. Without any expiry this
 *   alone renews it, which is what a rotated secret needs.
 *
 * The call counts towards `connectTimeout`. Nothing is kept of a call that failed: the pool's own pauses between failed
 * connects keep its repetitions apart.
 *
 * Throws `InvalidOption` when a setting is impossible.
 *
 * **Example** (A token that expires)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Redacted from "effect/Redacted"
 * import * as Pg from "effect-pg-pool"
 *
 * // `getAuthToken` of the `Signer` in `@aws-sdk/rds-signer`, say.
 * declare const signer: { readonly getAuthToken: () => Promise<string> }
 *
 * export const DatabaseLive = Pg.layer({
 *   host: "orders.cluster-x.eu-central-1.rds.amazonaws.com",
 *   username: "app",
 *   ssl: true,
 *   password: Pg.Credentials.cached(
 *     Effect.map(Effect.tryPromise(() => signer.getAuthToken()), Redacted.make),
 *     { timeToLive: "15 minutes" }
 *   )
 * })
 * ```
 *
 * **Example** (A secret that somebody rotates)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * import * as Redacted from "effect/Redacted"
 * import * as Pg from "effect-pg-pool"
 *
 * // Read once, and again when the server has refused it.
 * export const mounted = Effect.map(FileSystem.FileSystem, (files) =>
 *   Pg.Credentials.cached(
 *     Effect.map(files.readFileString("/run/secrets/database"), (text) => Redacted.make(text.trim()))
 *   ))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const cached = <E, R>(
  fetch: Effect.Effect<Redacted.Redacted | Credential, E, R>,
  options: CacheOptions = {}
): Cached<E, R> => {
  const timeToLive = duration("timeToLive", options.timeToLive, "a duration above 0", (value) => value > 0) ?? Infinity
  const renewBefore = duration("renewBefore", options.renewBefore, "a duration of at least 0", (value) => value >= 0)

  let held: Held | undefined
  /** The call under way. It ends with `None` when somebody else has to make another one. */
  let call: Deferred.Deferred<Option.Option<Redacted.Redacted>, E> | undefined

  const toHeld = (issued: Redacted.Redacted | Credential, askedAt: number): Held => {
    const credential = Redacted.isRedacted(issued) ? { password: issued } : issued
    const expiresAt = Math.min(expiryOf(credential), askedAt + timeToLive)
    const life = expiresAt - askedAt
    return {
      password: Login.checked(credential.password),
      expiresAt,
      // Infinity minus Infinity is no number.
      renewAt: life === Infinity ? Infinity : Math.max(askedAt + life / 2, expiresAt - (renewBefore ?? life / 5))
    }
  }

  const conclude = (
    mine: NonNullable<typeof call>,
    exit: Exit.Exit<Option.Option<Held>, E>,
    now: number
  ): void => {
    const renewed = Exit.isSuccess(exit) ? Option.getOrUndefined(exit.value) : undefined
    // After `invalidate` it is nobody's but theirs who wait for it.
    if (call === mine) {
      call = undefined
      if (renewed !== undefined) held = renewed
      else if (held !== undefined) held = { ...held, renewAt: now + Math.max(0, held.expiresAt - now) / 2 }
    }
    Deferred.doneUnsafe(
      mine,
      Exit.isFailure(exit) && !Cause.hasInterruptsOnly(exit.cause)
        ? Effect.failCause(exit.cause)
        : Effect.succeed(Option.fromUndefinedOr(renewed?.password))
    )
  }

  const password = Effect.uninterruptibleMask((restore) =>
    Effect.withFiber<Redacted.Redacted, E, R>((fiber) => {
      const clock = fiber.getRef(Clock.Clock)
      const refused = fiber.getRef(Refused)
      const now = () => clock.currentTimeMillisUnsafe()
      const isRefused = (password: Redacted.Redacted) => refused !== undefined && Login.isSame(password, refused)

      const ask = (within: number): Effect.Effect<Option.Option<Held>, E, R> => {
        const mine: NonNullable<typeof call> = Deferred.makeUnsafe()
        const askedAt = now()
        const issued = Effect.map(fetch, (issued) => toHeld(issued, askedAt))
        call = mine
        return Effect.onExit(
          restore(within === Infinity ? Effect.asSome(issued) : Effect.timeoutOption(issued, within)),
          (exit) => Effect.sync(() => conclude(mine, exit, now()))
        )
      }

      const renew = ({ expiresAt, password }: Held) => {
        const goOn = (why: string) =>
          Effect.as(
            Logbook.write("credentialsNotRenewed", {
              "error.type": why,
              "db.credentials.expires_at": DateTime.formatIso(DateTime.makeUnsafe(expiresAt))
            }),
            password
          )
        return Effect.matchCauseEffect(ask(patience), {
          onSuccess: Option.match({
            onNone: () => goOn("TimeoutError"),
            onSome: (renewed) => Effect.succeed(renewed.password)
          }),
          onFailure: (cause) =>
            Cause.hasInterruptsOnly(cause)
              ? Effect.succeed(password)
              : goOn(LogFields.ofDefect(Cause.squash(cause))["error.type"])
        })
      }

      /** A call that was under way already may have been answered before the password was refused. */
      const look = (mayBeLate: boolean): Effect.Effect<Redacted.Redacted, E, R> => {
        if (held !== undefined && isRefused(held.password)) held = undefined
        const at = now()
        if (held !== undefined && at < held.expiresAt) {
          return at < held.renewAt || call !== undefined ? Effect.succeed(held.password) : renew(held)
        }
        if (call === undefined) {
          return Effect.flatMap(ask(Infinity), (issued) => Effect.succeed(Option.getOrThrow(issued).password))
        }
        return Effect.flatMap(restore(Deferred.await(call)), (shared) =>
          Option.isNone(shared)
            ? look(mayBeLate)
            : mayBeLate && isRefused(shared.value)
            ? look(false)
            : Effect.succeed(shared.value))
      }

      return look(true)
    })
  )

  return Object.assign(password, {
    invalidate: Effect.sync(() => {
      held = undefined
      call = undefined
    })
  })
}
