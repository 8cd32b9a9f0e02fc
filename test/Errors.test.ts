import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import {
  AuthenticationError,
  ConnectionError,
  LockTimeoutError,
  SerializationError,
  SqlError,
  StatementTimeoutError,
  UniqueViolation,
  UnknownError
} from "effect/sql/SqlError"
import * as Errors from "../src/Errors.ts"

/** As the driver builds it: the fields of an ErrorResponse on an Error. */
const reply = (fields: Record<string, string>): Error => Object.assign(new Error(fields["message"] ?? ""), fields)

const socketError = (code: string, message: string): Error =>
  Object.assign(new Error(message), { code, errno: -104, syscall: "read" })

const connectionError = (cause: unknown, message: string, operation = "query"): SqlError =>
  new SqlError({ reason: new ConnectionError({ cause, message, operation }) })

const unknownError = (cause: unknown, message: string, operation = "query"): SqlError =>
  new SqlError({ reason: new UnknownError({ cause, message, operation }) })

const closed = connectionError(new Error("Connection closed"), "PgConnection: Connection closed")

const stats: Errors.PoolStats = {
  total: 20,
  idle: 0,
  active: 20,
  waiting: 7,
  connecting: 0,
  max: 20,
  min: 5,
  oldestLease: 40
}

const refused: Errors.Failure = { code: "ECONNREFUSED", message: "connect ECONNREFUSED 127.0.0.1:5432" }

const one: { readonly [Tag in Errors.PoolError["_tag"]]: Extract<Errors.PoolError, { readonly _tag: Tag }> } = {
  AcquireTimeout: new Errors.AcquireTimeout({ phase: "Queue", waited: 60_000, stats, lastConnectFailure: refused }),
  PoolSaturated: new Errors.PoolSaturated({ by: "Length", waiting: 100, waited: 0, maxWaiting: 100, stats }),
  PoolClosed: new Errors.PoolClosed(),
  CircuitOpen: new Errors.CircuitOpen({ key: "default", retryAfter: 12_340, lastFailure: refused }),
  CircuitHalfOpen: new Errors.CircuitHalfOpen({ key: "default", retryAfter: 900 }),
  CircuitIsolated: new Errors.CircuitIsolated({ key: "db1:5432/app", reason: "moving to the new host" }),
  OutcomeUnknown: new Errors.OutcomeUnknown({ operation: "commit", failure: { code: "ECONNRESET" }, cause: closed }),
  StatementTimeout: new Errors.StatementTimeout({
    timeout: 15_000,
    by: "client",
    effect: "Unknown",
    failure: { code: "ETIMEDOUT" }
  }),
  DeadlineExceeded: new Errors.DeadlineExceeded({ deadline: 400, effect: "NotRun" }),
  RetriesExhausted: new Errors.RetriesExhausted({
    attempts: 5,
    stoppedBy: "attempts",
    last: closed,
    history: [{ attempt: 1, kind: "Unreachable", effect: "Unknown", failure: refused, delay: 100 }]
  }),
  HookFailed: new Errors.HookFailed({ hook: "afterConnect", cause: Redacted.make(new Error("no")) }),
  CredentialsFailed: new Errors.CredentialsFailed({
    cause: Redacted.make(Object.assign(new Error("hunter2 was no token"), { name: "ThrottlingException" })),
    refusal: { sqlState: "28P01", severity: "FATAL", message: "password authentication failed for user \"app\"" }
  }),
  NoSuitableHost: new Errors.NoSuitableHost({
    targetSessionAttrs: "read-write",
    hosts: [{ host: "db1:5432", role: "standby", failure: null }, { host: "db2:5432", role: null, failure: refused }]
  }),
  FleetTooLarge: new Errors.FleetTooLarge({
    environments: 200,
    workers: 8,
    overlap: 1,
    share: 0.8,
    bound: "role",
    limit: 20,
    others: 20,
    safeEnvironments: 0
  }),
  InvalidOption: new Errors.InvalidOption({ option: "max", value: -1, allowed: "a whole number of at least 1" })
}
const all: ReadonlyArray<Errors.PoolError> = Object.values(one)

describe("retries that are exhausted", () => {
  const exhausted = (effect: Errors.Outcome, last: unknown) =>
    new Errors.RetriesExhausted({
      attempts: 2,
      stoppedBy: "attempts",
      last,
      history: [
        { attempt: 1, kind: "Unreachable", effect, failure: refused, delay: 100 },
        { attempt: 2, kind: "Unreachable", effect: "NotRun", failure: refused, delay: 0 }
      ]
    })

  it("may be tried again later when no attempt was run", () => {
    assert.isTrue(exhausted("NotRun", one.AcquireTimeout).isRetryable)
  })

  it("may not when an attempt may have been applied, whatever the last one says", () => {
    assert.isFalse(exhausted("Unknown", one.AcquireTimeout).isRetryable)
  })

  it("may not when the last error says so", () => {
    assert.isFalse(exhausted("NotRun", one.PoolClosed).isRetryable)
  })
})

describe("a failure is read", () => {
  // dprint-ignore
  const rows: ReadonlyArray<readonly [sentence: string, error: unknown, failure: Errors.Failure]> = [
    [
      "from the server's reply below the driver's error",
      unknownError(reply({ code: "57P01", severity: "FATAL", message: "terminating connection due to administrator command" }), "PgConnection: The server reported an error"),
      { sqlState: "57P01", severity: "FATAL", message: "terminating connection due to administrator command" }
    ],
    [
      "with the severity that is the same in every language",
      reply({ code: "57P01", severity: "ВАЖНО", severityUnlocalized: "FATAL", message: "закрытие подключения" }),
      { sqlState: "57P01", severity: "FATAL", message: "закрытие подключения" }
    ],
    ["from a reason without its wrapper", closed.reason, { code: "ECONNRESET", message: "PgConnection: Connection closed" }],
    [
      "from the socket's error below the driver's error",
      connectionError(socketError("ECONNRESET", "read ECONNRESET"), "PgConnection: Socket error"),
      { code: "ECONNRESET", message: "read ECONNRESET" }
    ],
    ["from a code of five letters that is no SQLSTATE", socketError("EPIPE", "write EPIPE"), { code: "EPIPE", message: "write EPIPE" }],
    ["from a bare code of five letters that is no SQLSTATE", { code: "EPERM" }, { code: "EPERM" }],
    ["from a bare SQLSTATE of another driver", { code: "40001", message: "could not serialize access" }, { sqlState: "40001", message: "could not serialize access" }],
    ["from a SQLSTATE that begins with an E, given its severity", { code: "EX001", severity: "ERROR" }, { sqlState: "EX001", severity: "ERROR" }],
    [
      "from all the addresses of one host",
      Object.assign(
        new AggregateError([
          socketError("ECONNREFUSED", "connect ECONNREFUSED ::1:5432"),
          socketError("ECONNREFUSED", "connect ECONNREFUSED 127.0.0.1:5432")
        ]),
        { code: "ECONNREFUSED" }
      ),
      { code: "ECONNREFUSED", message: "connect ECONNREFUSED ::1:5432; connect ECONNREFUSED 127.0.0.1:5432" }
    ],
    ["from an AggregateError without a code", new AggregateError([socketError("ETIMEDOUT", "connect ETIMEDOUT")]), { code: "ETIMEDOUT", message: "connect ETIMEDOUT" }],
    ["from a chain of causes", new Error("a", { cause: new Error("b", { cause: socketError("EPIPE", "write EPIPE") }) }), { code: "EPIPE", message: "write EPIPE" }],
    ["from the Cause of an Effect", Cause.fail(closed), { code: "ECONNRESET", message: "PgConnection: Connection closed" }],
    [
      "from what the driver says of connecting",
      connectionError(new Error("Expected one ErrorResponse after SSLRequest"), "PgConnection: Invalid SSLRequest response", "connect"),
      { code: "EPROTO", message: "PgConnection: Invalid SSLRequest response: Expected one ErrorResponse after SSLRequest" }
    ],
    ["from an unknown outcome", one.OutcomeUnknown, { code: "ECONNRESET" }],
    ["from the last of several attempts", one.RetriesExhausted, { code: "ECONNRESET", message: "PgConnection: Connection closed" }],
    ["from a typed error inside a SqlError", Errors.toSqlError(one.StatementTimeout), { code: "ETIMEDOUT" }],
    ["from the hook that failed", new Errors.HookFailed({ hook: "afterConnect", cause: Redacted.make(reply({ code: "42501", severity: "ERROR", message: "permission denied" })) }), { sqlState: "42501", severity: "ERROR" }],
    [
      "from a password that could not be had, by its tag: what its issuer said is not about the database",
      new Errors.CredentialsFailed({ cause: Redacted.make(socketError("ECONNREFUSED", "connect ECONNREFUSED 169.254.169.254:80")), refusal: null }),
      { code: "CredentialsFailed", message: "The password could not be had: the effect that yields it failed with ECONNREFUSED. See the cause, and check whoever issues it and the right to ask there." }
    ],
    [
      "from hosts of which none was reached, as the first of them has it",
      new Errors.NoSuitableHost({
        targetSessionAttrs: "primary",
        hosts: [
          { host: "db1:5432", role: null, failure: { sqlState: "57P03", severity: "FATAL", message: "the database system is starting up" } },
          { host: "db2:5432", role: null, failure: refused }
        ]
      }),
      { sqlState: "57P03", severity: "FATAL", message: "the database system is starting up" }
    ],
    ["from a text", "Connection closed", { message: "Connection closed" }],
    ["from nothing", undefined, {}],
    ["from null", null, {}],
    ["from a number", 42, {}]
  ]
  for (const [sentence, error, failure] of rows) {
    it(`${sentence}`, () => {
      assert.deepStrictEqual(Errors.failureOf(error), failure)
    })
  }

  it("from our own refusal, by its tag", () => {
    assert.strictEqual(Errors.failureOf(Errors.toSqlError(one.PoolSaturated)).code, "PoolSaturated")
    assert.strictEqual(
      Errors.classify(Errors.failureOf(one.CircuitOpen), { phase: "Connect", reused: false, replied: false }).kind,
      "Local"
    )
  })

  it("without the values that a server's text may quote", () => {
    const failure = Errors.failureOf(
      reply({
        code: "22P02",
        severity: "ERROR",
        message: "invalid input syntax for type integer: \"4111 1111 1111 1111\"",
        detail: "row (4111)"
      })
    )
    assert.deepStrictEqual(failure, { sqlState: "22P02", severity: "ERROR" })
  })

  it("without the value that the driver could not encode", () => {
    const failure = Errors.failureOf(
      unknownError(new Error("Cannot infer a PostgreSQL type for hunter2"), "PgConnection: Failed to encode query")
    )
    assert.deepStrictEqual(failure, { message: "PgConnection: Failed to encode query" })
  })

  it("without credentials", () => {
    const { message } = Errors.failureOf(
      new Error("cannot reach postgres://bob:hun/t@er2@db:5432/shop with password=hunter2; giving up")
    )
    assert.strictEqual(message, "cannot reach postgres://***@db:5432/shop with password=***; giving up")
  })

  it("without end", () => {
    assert.strictEqual(Errors.failureOf(new Error("x".repeat(5_000))).message?.length, 300)
  })
})

describe("a typed error", () => {
  // dprint-ignore
  const messages: ReadonlyArray<readonly [error: Errors.PoolError, message: string]> = [
    [one.AcquireTimeout, "No connection within 60 s: 20 of at most 20 sessions in use, 0 connecting, 7 callers waiting. The last attempt to connect failed with connect ECONNREFUSED 127.0.0.1:5432. Shorten or bound the work that holds sessions, or raise max or acquireTimeout."],
    [new Errors.AcquireTimeout({ phase: "Connect", waited: 750, stats, lastConnectFailure: { sqlState: "57P03", severity: "FATAL", message: "the database system is starting up" } }), "No connection within 750 ms: the server did not accept one. The last attempt to connect failed with 57P03 cannot_connect_now: the database system is starting up. Check host, port, network and that the server is up."],
    [new Errors.AcquireTimeout({ phase: "Validate", waited: 1_500, stats, lastConnectFailure: null }), "No connection within 1.5 s: idle sessions did not answer the liveness check. The server or the network stalls; check both."],
    [one.PoolSaturated, "The queue for a connection is full: 100 callers wait and maxWaiting is 100; 20 of at most 20 sessions in use, 0 connecting, 7 callers waiting. Admit less work at once, or raise max or maxWaiting."],
    [one.PoolClosed, "The pool is closed or being drained. End the work that uses it before, or keep its scope open for longer."],
    [one.CircuitOpen, "The database circuit is open; the next probe is due in 12.3 s. It opened on connect ECONNREFUSED 127.0.0.1:5432. Answer without the database until then."],
    [one.CircuitIsolated, "The database circuit db1:5432/app is isolated: moving to the new host. Answer without the database until whoever isolated it ends that."],
    [one.CircuitHalfOpen, "The database circuit is half open and its probe is under way; it is decided within 900 ms. Answer without the database until then."],
    [one.OutcomeUnknown, "The COMMIT may have been applied: it was sent, and its answer was lost (ECONNRESET). Verify in the database before repeating it, or declare it idempotent."],
    [one.StatementTimeout, "No answer within 15 s. It may have been applied: verify in the database before repeating it. Check the server and the network, or allow more time."],
    [new Errors.StatementTimeout({ timeout: 15_000, by: "server", effect: "RolledBack", failure: { sqlState: "57014" } }), "The server's statement_timeout ended the statement after 15 s. It was rolled back. Make it faster, or give it more time."],
    [one.DeadlineExceeded, "The call was not done within its deadline of 400 ms. Nothing of it was run. Allow more time, or do less within it."],
    [one.RetriesExhausted, "Failed 5 times, the last time with ECONNRESET: PgConnection: Connection closed. Retrying is over. Look for the cause in the server or the network."],
    [one.HookFailed, "The hook afterConnect failed, so its connection was not used. See the cause, and make the hook succeed or handle its own errors."],
    [one.CredentialsFailed, "The password could not be had: the effect that yields it failed with ThrottlingException. The server had refused the one before with 28P01 invalid_password: password authentication failed for user \"app\". See the cause, and check whoever issues it and the right to ask there."],
    [new Errors.CredentialsFailed({ cause: Redacted.make("hunter2"), refusal: null }), "The password could not be had: the effect that yields it failed. See the cause, and check whoever issues it and the right to ask there."],
    [one.NoSuitableHost, "No host takes writes (targetSessionAttrs \"read-write\"): db1:5432 is a standby; db2:5432 failed with connect ECONNREFUSED 127.0.0.1:5432. Look at the servers, wait for the end of a failover, or correct hosts or targetSessionAttrs."],
    [one.FleetTooLarge, "No pool size is safe: make room, put a transaction pooler in between, or raise the limit. 200 environments with 8 pools each need 1600 sessions, but the user's CONNECTION LIMIT allows 20, others have 20 of them, and the fleet may fill 80 % of the rest."],
    [one.InvalidOption, "max is -1, but must be a whole number of at least 1."]
  ]
  for (const [error, message] of messages) {
    it(`${error._tag} says cause and cure: ${message.slice(0, 60)}...`, () => {
      assert.strictEqual(error.message, message)
    })
  }

  it("invites a retry only where nothing ran and the same call may succeed later", () => {
    assert.deepStrictEqual(
      all.filter((error) => error.isRetryable).map((error) => error._tag),
      ["AcquireTimeout", "PoolSaturated", "CredentialsFailed", "NoSuitableHost"]
    )
  })

  it("shows no secret and no row data in its message, wherever they come from", () => {
    const leak = reply({
      code: "22P02",
      severity: "ERROR",
      message: "invalid input syntax for type uuid: \"hunter2\"",
      detail: "Key (password)=(hunter2)",
      where: "hunter2"
    })
    const raw: Errors.Failure = { sqlState: "P0001", message: "hunter2" }
    const url: Errors.Failure = { code: "ENOTFOUND", message: "postgres://bob:hunter2@db" }
    const messages = [raw, url].flatMap((failure) => [
      new Errors.AcquireTimeout({ phase: "Queue", waited: 1, stats, lastConnectFailure: failure }),
      new Errors.AcquireTimeout({ phase: "Connect", waited: 1, stats, lastConnectFailure: failure }),
      new Errors.AcquireTimeout({ phase: "Validate", waited: 1, stats, lastConnectFailure: failure }),
      new Errors.CircuitOpen({ key: "default", retryAfter: 1, lastFailure: failure }),
      new Errors.OutcomeUnknown({ operation: "work", failure, cause: leak }),
      new Errors.StatementTimeout({ timeout: 1, by: "client", effect: "Unknown", failure }),
      new Errors.RetriesExhausted({ attempts: 1, stoppedBy: "attempts", last: leak, history: [] }),
      new Errors.HookFailed({ hook: "afterConnect", cause: Redacted.make(leak) }),
      new Errors.CredentialsFailed({ cause: Redacted.make(leak), refusal: failure }),
      new Errors.CredentialsFailed({ cause: Redacted.make("hunter2"), refusal: null }),
      new Errors.NoSuitableHost({ targetSessionAttrs: "any", hosts: [{ host: "db", role: null, failure }] }),
      new Errors.InvalidOption({ option: "url", value: "postgres://bob:hunter2@db/shop", allowed: "a URL" }),
      new Errors.InvalidOption({ option: "password", value: "hunter2", allowed: "Redacted" }),
      new Errors.InvalidOption({ option: "key", value: Redacted.make("hunter2"), allowed: "text" }),
      new Errors.InvalidOption({ option: "ssl", value: { key: "hunter2" }, allowed: "a boolean" })
    ]).map((error) => `${error.message} ${Errors.toSqlError(error).message}`)
    assert.deepStrictEqual(messages.filter((message) => message.includes("hunter2")), [])
  })

  it.effect("can be failed with and caught by its tag", () =>
    Effect.gen(function*() {
      const caught = yield* Effect.catchTag(one.CircuitOpen, "CircuitOpen", (error) => Effect.succeed(error.retryAfter))
      assert.strictEqual(caught, 12_340)
    }))

  it("is recognized, and nothing else is", () => {
    assert.isTrue(all.every(Errors.isPoolError))
    assert.isFalse([closed, new Error("no"), null, undefined, { _tag: "PoolClosed" }].some(Errors.isPoolError))
  })

  for (const error of all) {
    it(`${error._tag} survives JSON`, () => {
      const codec = Schema.toCodecJson(Errors.PoolError)
      const json: unknown = JSON.parse(JSON.stringify(Schema.encodeSync(codec)(error)))
      const back = Schema.decodeUnknownSync(codec)(json)
      assert.strictEqual(back._tag, error._tag)
      assert.strictEqual(back.isRetryable, error.isRetryable)
      if (back._tag !== "RetriesExhausted") assert.strictEqual(back.message, error.message)
    })
  }
})

describe("through SqlClient", () => {
  for (const error of all) {
    it(`${error._tag} travels as a SqlError that tells the truth, and comes back as itself`, () => {
      const sqlError = Errors.toSqlError(error)
      assert.strictEqual(Errors.fromSqlError(sqlError), error)
      assert.strictEqual(sqlError.isRetryable, error.isRetryable)
      assert.strictEqual(sqlError.message, error.message)
      assert.strictEqual(sqlError.reason._tag, error.isRetryable ? "ConnectionError" : "UnknownError")
    })
  }

  it("the driver's own error carries no typed error", () => {
    assert.isUndefined(Errors.fromSqlError(closed))
  })
})

describe("the driver's error", () => {
  const judged = (error: SqlError, phase: Errors.Phase): SqlError =>
    Errors.truthful(error, Errors.classify(Errors.failureOf(error), { phase, reused: false, replied: true }))

  const answered = (code: string, severity: string, message = "PgConnection: Query failed"): SqlError =>
    unknownError(reply({ code, severity, message: "said the server" }), message)

  // dprint-ignore
  const repeatable: ReadonlyArray<readonly [sqlState: string, severity: string, phase: Errors.Phase]> = [
    ["57P03", "FATAL", "Connect"],
    ["53300", "FATAL", "Connect"],
    ["57P01", "FATAL", "BeforeWrite"],
    ["57P01", "FATAL", "Transaction"],
    ["57P05", "FATAL", "BeforeWrite"],
    ["25006", "ERROR", "InFlight"]
  ]
  for (const [sqlState, severity, phase] of repeatable) {
    it(`${sqlState} in phase ${phase} becomes retryable, with its cause and its words`, () => {
      const error = answered(sqlState, severity)
      const told = judged(error, phase)
      assert.isFalse(error.isRetryable)
      assert.isTrue(told.isRetryable)
      assert.strictEqual(told.reason._tag, "ConnectionError")
      assert.strictEqual(told.reason.cause, error.reason.cause)
      assert.strictEqual(told.message, error.message)
    })
  }

  // dprint-ignore
  const openQuestions: ReadonlyArray<readonly [sentence: string, error: SqlError, phase: Errors.Phase]> = [
    ["a reset in mid-INSERT", connectionError(socketError("ECONNRESET", "read ECONNRESET"), "PgConnection: Socket error"), "InFlight"],
    ["a close in mid-INSERT", closed, "InFlight"],
    ["a close in COMMIT", closed, "Commit"],
    ["57P01 after the write", answered("57P01", "FATAL"), "InFlight"],
    ["08007", connectionError(reply({ code: "08007", severity: "ERROR" }), "PgConnection: Query failed"), "InFlight"],
    ["40003", answered("40003", "ERROR"), "InFlight"]
  ]
  for (const [sentence, error, phase] of openQuestions) {
    it(`${sentence} becomes an OutcomeUnknown that is not retryable and keeps the driver's error`, () => {
      const told = judged(error, phase)
      const typed = Errors.fromSqlError(told)
      assert.isFalse(told.isRetryable)
      assert.instanceOf(typed, Errors.OutcomeUnknown)
      assert.strictEqual(typed._tag === "OutcomeUnknown" ? typed.cause : undefined, error)
      assert.deepStrictEqual(Errors.failureOf(told), Errors.failureOf(error))
    })
  }

  it("names the operation whose outcome is unknown", () => {
    const verdict = Errors.classify({ code: "EPIPE" }, { phase: "Commit", reused: false, replied: true })
    const typed = Errors.fromSqlError(Errors.truthful(closed, verdict, "commit"))
    assert.strictEqual(typed?._tag === "OutcomeUnknown" ? typed.operation : undefined, "commit")
  })

  it("that only somebody gets who takes a transaction pooler for the server says so, once", () => {
    const error = unknownError(
      reply({ code: "26000", severity: "ERROR", message: "prepared statement \"effect_0_1\" does not exist" }),
      "PgConnection: Query failed"
    )
    const told = judged(error, "InFlight")
    assert.match(
      told.message,
      /^PgConnection: Query failed: prepared statement .* does not exist\. .*pooler: "transaction"/
    )
    assert.strictEqual(judged(told, "InFlight"), told)
    const byHand = reply({ code: "26000", severity: "ERROR", message: "prepared statement \"mine\" does not exist" })
    assert.strictEqual(judged(unknownError(byHand, "Query failed"), "InFlight").message, "Query failed")
  })

  it("about a pooler's refusal of the user is one of authentication", () => {
    for (const message of ["SASL authentication failed", "password authentication failed", "no such user"]) {
      const error = connectionError(
        reply({ code: "08P01", severity: "FATAL", message }),
        "Failed to connect",
        "connect"
      )
      const told = judged(error, "Connect")
      assert.strictEqual(told.reason._tag, "AuthenticationError")
      assert.isFalse(told.isRetryable)
      assert.strictEqual(judged(told, "Connect"), told)
    }
    const ofThePooler =
      "server login has been failing, cached error: password authentication failed (server_login_retry)"
    const error = connectionError(reply({ code: "08P01", severity: "FATAL", message: ofThePooler }), "no", "connect")
    assert.strictEqual(judged(error, "Connect").reason._tag, "UnknownError")
  })

  it("that is retryable in vain becomes one that is not", () => {
    const error = connectionError(
      reply({ code: "08P01", severity: "FATAL", message: "unsupported startup parameter: lock_timeout" }),
      "PgConnection: Failed to connect",
      "connect"
    )
    const told = judged(error, "Connect")
    assert.isTrue(error.isRetryable)
    assert.strictEqual(told.reason._tag, "UnknownError")
    assert.strictEqual(told.reason.cause, error.reason.cause)
    assert.strictEqual(told.reason.operation, "connect")
  })

  const cause = (code: string): Error => reply({ code, severity: "ERROR", message: "said the server" })
  // dprint-ignore
  const honest: ReadonlyArray<readonly [sentence: string, error: SqlError, phase: Errors.Phase]> = [
    ["a unique violation", new SqlError({ reason: new UniqueViolation({ cause: cause("23505"), constraint: "users_pkey" }) }), "InFlight"],
    ["a serialization failure", new SqlError({ reason: new SerializationError({ cause: cause("40001") }) }), "Transaction"],
    ["a lock timeout", new SqlError({ reason: new LockTimeoutError({ cause: cause("55P03") }) }), "InFlight"],
    ["a statement timeout", new SqlError({ reason: new StatementTimeoutError({ cause: cause("57014") }) }), "InFlight"],
    ["a wrong password", new SqlError({ reason: new AuthenticationError({ cause: cause("28P01") }) }), "Connect"],
    ["a refused connection", connectionError(socketError("ECONNREFUSED", "connect ECONNREFUSED"), "PgConnection: Failed to connect", "connect"), "Connect"],
    ["a lost connection before COMMIT", closed, "Transaction"],
    ["a row that cannot be decoded", unknownError(new Error("bad"), "PgConnection: Failed to decode row"), "InFlight"],
    ["a typed error of ours", Errors.toSqlError(one.PoolClosed), "InFlight"]
  ]
  for (const [sentence, error, phase] of honest) {
    it(`${sentence} tells the truth already and stays the same object`, () => {
      assert.strictEqual(judged(error, phase), error)
    })
  }
})

describe("work is repeated", () => {
  const verdict: Errors.Verdict = {
    kind: "Unreachable",
    effect: "NotRun",
    retry: "Backoff",
    breaker: "Failure",
    connection: "Evict"
  }
  // dprint-ignore
  const rows: ReadonlyArray<readonly [sentence: string, verdict: Errors.Verdict, undeclared: boolean, idempotent: boolean]> = [
    ["if it never ran", verdict, true, true],
    ["if it was rolled back", { ...verdict, effect: "RolledBack" }, true, true],
    ["if its effect is unknown, only where declared", { ...verdict, effect: "Unknown" }, false, true],
    ["if it was cancelled, only where declared", { ...verdict, kind: "Cancelled", effect: "RolledBack" }, false, true],
    ["never where it would fail again", { ...verdict, retry: "Never" }, false, false]
  ]
  for (const [sentence, verdict, undeclared, idempotent] of rows) {
    it(`${sentence}`, () => {
      assert.deepStrictEqual(
        [Errors.isSafeToRepeat(verdict, false), Errors.isSafeToRepeat(verdict, true)],
        [undeclared, idempotent]
      )
    })
  }
})
