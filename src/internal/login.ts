/** Logs in with the password of the moment: one that may have to be fetched, and may have expired since. */
import { squash } from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { isSqlError, type SqlError } from "effect/sql/SqlError"
import { digWhole } from "./failure.ts"

/** Published by `Credentials.ts`. */
export const Refused = Context.Reference<Redacted.Redacted | undefined>("effect-pg-pool/Credentials/Refused", {
  defaultValue: () => undefined
})

export type Password = Redacted.Redacted | Effect.Effect<Redacted.Redacted, unknown>

export const isSame = (one: Redacted.Redacted, other: Redacted.Redacted): boolean =>
  Redacted.value(one) === Redacted.value(other)

/** The password as it is, if it is one: what was read from an unset variable is not. */
export const checked = (password: Redacted.Redacted): Redacted.Redacted => {
  if (Redacted.isRedacted(password) && typeof Redacted.value(password) === "string") return password
  throw new TypeError("expected a text that is wrapped by Redacted.make")
}

/** An effect is printed with what it yields, one that was suspended is not. */
export const unseen = (password: Password | undefined): Password | undefined =>
  Effect.isEffect(password) ? Effect.suspend(() => password) : password

/** The driver takes an effect that cannot fail. */
export const infallible = (
  password: Password | undefined
): Redacted.Redacted | Effect.Effect<Redacted.Redacted> | undefined =>
  Effect.isEffect(password) ? Effect.suspend(() => Effect.orDie(password)) : password

/** In a fiber of its own: whoever gives up does not wait until the effect has noticed. */
const evaluate = (password: Effect.Effect<Redacted.Redacted, unknown>) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      Effect.forkDetach(Effect.map(password, checked), { startImmediately: true }),
      (fiber) => Effect.onInterrupt(restore(Fiber.await(fiber)), () => Effect.sync(() => fiber.interruptUnsafe()))
    )
  )

/** Methods of `pg_hba.conf` by which the server asks for a password and has somebody else look at it. */
const elsewhere = /\b(password|PAM|LDAP|RADIUS|BSD|OAuth\w*|IAM)\b.* authentication failed|\btoken\b/i

/**
 * Whether the server has refused the password rather than the role, the host or the database. 28000 is what PostgreSQL
 * says of those and of a password that it had checked elsewhere (`auth_failed` in `src/backend/libpq/auth.c`), XX000
 * and 08P01 are Neon's and PgBouncer's.
 */
const isRefusal = (error: unknown): error is SqlError => {
  if (!isSqlError(error)) return false
  const { message = "", sqlState } = digWhole(error)
  switch (sqlState) {
    case "28P01":
      return true
    case "28000":
      return elsewhere.test(message)
    case "08P01":
    case "XX000":
      return /^((password|SASL) authentication|auth) failed/i.test(message)
    default:
      return false
  }
}

/**
 * Tries to log in, and once more if the password was refused and a fresh one can be had: tokens expire, and secrets are
 * rotated. A password that was refused is not tried again.
 */
export const login = <A, E, R>(options: {
  readonly password: Password | undefined
  /** The error when no password can be had; `refusal` is what the server said of the one before. */
  readonly failed: (cause: unknown, refusal: SqlError | undefined) => E
  readonly attempt: (password: Redacted.Redacted | undefined) => Effect.Effect<A, E | SqlError, R>
  /** The server ends the session whose password it refuses. */
  readonly changeSocket: Effect.Effect<void>
}): Effect.Effect<A, E | SqlError, R> => {
  const { attempt, changeSocket, failed, password } = options
  if (!Effect.isEffect(password)) return attempt(password)
  const fetch = (refused: Redacted.Redacted | undefined, refusal: SqlError | undefined) =>
    Effect.flatMap(
      evaluate(Effect.provideService(password, Refused, refused)),
      (exit) => exit._tag === "Success" ? Effect.succeed(exit.value) : Effect.fail(failed(squash(exit.cause), refusal))
    )
  return Effect.flatMap(fetch(undefined, undefined), (first) =>
    Effect.catchIf(
      attempt(first),
      isRefusal,
      (refusal) =>
        Effect.flatMap(
          fetch(first, refusal),
          (second) => isSame(first, second) ? Effect.fail(refusal) : Effect.andThen(changeSocket, attempt(second))
        )
    ))
}
