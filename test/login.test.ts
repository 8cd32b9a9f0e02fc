import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { AuthenticationError, ConnectionError, SqlError, UnknownError } from "effect/sql/SqlError"
import * as Login from "../src/internal/login.ts"

const reply = (
  code: string,
  message: string,
  Reason: typeof AuthenticationError | typeof UnknownError = UnknownError
) =>
  new SqlError({
    reason: new Reason({ cause: Object.assign(new Error(message), { code, severity: "FATAL", message }) })
  })

/** How often a login is tried at a door that says no. */
const attempts = Effect.fnUntraced(function*(refusal: SqlError) {
  let count = 0
  const error = yield* Effect.flip(Login.login({
    password: Effect.sync(() => Redacted.make(`token-${count}`)),
    failed: (cause) => cause,
    changeSocket: Effect.void,
    attempt: () =>
      Effect.suspend(() => {
        count++
        return Effect.fail(refusal)
      })
  }))
  assert.strictEqual(error, refusal)
  return count
})

describe("a login is tried again with another password", () => {
  // dprint-ignore
  const refusals: ReadonlyArray<readonly [who: string, refusal: SqlError]> = [
    ["PostgreSQL", reply("28P01", "password authentication failed for user \"app\"", AuthenticationError)],
    ["PostgreSQL, in any language", reply("28P01", "Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen")],
    ["RDS, of an IAM token", reply("28000", "PAM authentication failed for user \"app\"")],
    ["LDAP", reply("28000", "LDAP authentication failed for user \"app\"")],
    ["Entra", reply("28000", "The access token has expired. Acquire a new token and retry.")],
    ["Neon", reply("XX000", "password authentication failed for user 'app'")],
    ["PgBouncer", reply("08P01", "SASL authentication failed")],
    ["an older PgBouncer", reply("08P01", "auth failed")]
  ]
  it.effect.each(refusals)(
    "when it is refused by %s",
    ([, refusal]) => Effect.map(attempts(refusal), (count) => assert.strictEqual(count, 2))
  )
})

describe("a login is not tried again", () => {
  // dprint-ignore
  const others: ReadonlyArray<readonly [what: string, failure: SqlError]> = [
    ["the host is not let in", reply("28000", "no pg_hba.conf entry for host \"10.0.0.1\", user \"app\", database \"shop\", no encryption")],
    ["the host is rejected", reply("28000", "authentication failed for user \"app\": host rejected")],
    ["the role may not log in", reply("28000", "role \"app\" is not permitted to log in")],
    ["a certificate is refused", reply("28000", "certificate authentication failed for user \"app\"")],
    ["there is no such database", reply("3D000", "database \"shop\" does not exist")],
    ["the server starts", reply("57P03", "the database system is starting up")],
    ["the pooler could not log in itself", reply("08P01", "server login has been failing, cached error: password authentication failed for user \"app\" (server_login_retry)")],
    ["nobody is there", new SqlError({ reason: new ConnectionError({ cause: Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" }) }) })]
  ]
  it.effect.each(others)(
    "when %s",
    ([, failure]) => Effect.map(attempts(failure), (count) => assert.strictEqual(count, 1))
  )
})
