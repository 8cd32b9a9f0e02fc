import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Redacted from "effect/Redacted"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as fc from "fast-check"
import * as Errors from "../src/Errors.ts"
import { compose } from "../src/internal/classifier.ts"
import { PoolErrorTypeId } from "../src/internal/failure.ts"

const runs = { numRuns: 10_000 }

const phases: ReadonlyArray<Errors.Phase> = ["Connect", "BeforeWrite", "InFlight", "Transaction", "Commit"]
const circumstances = fc.record({ phase: fc.constantFrom(...phases), reused: fc.boolean(), replied: fc.boolean() })

const text = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.constantFrom(
    "FATAL",
    "57P01",
    "ECONNRESET",
    "OutcomeUnknown",
    "RetriesExhausted",
    "PgConnection: Connection closed"
  )
)

/** What an object may answer when it is asked for a property. */
type Answer =
  | { readonly is: "value"; readonly value: unknown }
  | { readonly is: "node"; readonly index: number }
  | { readonly is: "nodes"; readonly indices: ReadonlyArray<number> }
  | { readonly is: "throw" }

const answer: fc.Arbitrary<Answer> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ is: fc.constant("value" as const), value: text }) },
  { weight: 1, arbitrary: fc.record({ is: fc.constant("value" as const), value: fc.anything() }) },
  { weight: 4, arbitrary: fc.record({ is: fc.constant("node" as const), index: fc.nat(7) }) },
  { weight: 2, arbitrary: fc.record({ is: fc.constant("nodes" as const), indices: fc.array(fc.nat(7)) }) },
  { weight: 1, arbitrary: fc.constant({ is: "throw" as const }) }
)

const keys = [
  "message",
  "code",
  "severity",
  "severityUnlocalized",
  "cause",
  "reason",
  "errors",
  "_tag",
  "failure",
  "last",
  "operation",
  "~effect/sql/SqlError/Reason",
  PoolErrorTypeId
]

const node = fc.record({
  shape: fc.constantFrom("error", "record", "function", "deaf", "revoked"),
  answers: fc.dictionary(fc.constantFrom(...keys), answer, { maxKeys: 6 })
})

/** Refuses every question, those of `in` and `instanceof` included. */
const deaf = () => {
  const no = () => {
    throw new Error("no")
  }
  return new Proxy({}, { get: no, has: no, getPrototypeOf: no, getOwnPropertyDescriptor: no, ownKeys: no })
}

const revoked = () => {
  const { proxy, revoke } = Proxy.revocable([], {})
  revoke()
  return proxy
}

const shapes: Readonly<Record<string, () => object>> = {
  error: () => new Error("of the graph"),
  record: () => ({}),
  function: () => () => {},
  deaf,
  revoked
}

/** Makes objects that refer to each other in any way, circles included. A thunk: fast-check looks at what it is given. */
const graph = fc.array(node, { minLength: 1, maxLength: 8 }).map((specs) => (): unknown => {
  const nodes = specs.map(({ shape }) => shapes[shape]!())
  specs.forEach(({ answers, shape }, position) => {
    if (shape === "deaf" || shape === "revoked") return
    for (const [key, answer] of Object.entries(answers)) {
      Object.defineProperty(nodes[position], key, {
        configurable: true,
        get: () => {
          switch (answer.is) {
            case "value":
              return answer.value
            case "node":
              return nodes[answer.index % nodes.length]
            case "nodes":
              return answer.indices.map((index) => nodes[index % nodes.length])
            case "throw":
              throw new Error("no")
          }
        }
      })
    }
  })
  return nodes[0]!
})

describe("an error of any shape", () => {
  const anything = fc.oneof(
    { weight: 3, arbitrary: graph },
    {
      weight: 1,
      arbitrary: fc.anything({ withBigInt: true, withSparseArray: true, withNullPrototype: true })
        .map((value) => () => value)
    }
  )
  const wrapped = fc.oneof(
    anything,
    anything.map((make) => () => Cause.fail(make())),
    anything.map((make) => () =>
      new SqlError({ reason: new ConnectionError({ cause: make(), message: "m", operation: "query" }) })
    )
  )

  it("is read without an exception, as texts, and judged", () => {
    fc.assert(
      fc.property(wrapped, circumstances, (make, circumstances) => {
        const failure = Errors.failureOf(make())
        for (const value of Object.values(failure)) assert.strictEqual(typeof value, "string")
        for (const value of Object.values(Errors.serverReply(make()) ?? {})) {
          assert.include(["string", "undefined"], typeof value)
        }
        const { effect } = Errors.classify(failure, circumstances)
        assert.strictEqual(
          effect === "NotRun",
          circumstances.phase === "Connect" || circumstances.phase === "BeforeWrite"
        )
      }),
      runs
    )
  })
})

describe("a failure of any text", () => {
  const failure = fc.record({ sqlState: text, severity: text, code: text, message: text }, { requiredKeys: [] })

  it("gets a whole verdict, and never one that nothing ran where something may have", () => {
    fc.assert(
      fc.property(failure, circumstances, (failure, circumstances) => {
        const verdict = Errors.classify(failure, circumstances)
        assert.strictEqual(Object.values(verdict).filter((word) => typeof word === "string").length, 5)
        assert.strictEqual(
          verdict.effect === "NotRun",
          circumstances.phase === "Connect" || circumstances.phase === "BeforeWrite"
        )
      }),
      runs
    )
  })

  it("keeps this whatever a classifier says, and stays unknown without an answer", () => {
    const said = fc.oneof(
      fc.record({
        kind: fc.constantFrom(...Errors.Kind.literals),
        effect: fc.constantFrom(...Errors.Outcome.literals),
        retry: fc.constantFrom("Never", "Now", "Backoff", "BackoffSlow"),
        breaker: fc.constantFrom("Success", "Failure", "Ignored"),
        connection: fc.constantFrom("Keep", "Evict", "EvictAll")
      }),
      fc.anything()
    )
    fc.assert(
      fc.property(failure, circumstances, said, (failure, circumstances, said) => {
        const byDefault = Errors.classify(failure, circumstances)
        const verdict = compose([(() => said) as Errors.Classify], () => {})(failure, circumstances, byDefault)
        assert.strictEqual(verdict.effect === "NotRun", byDefault.effect === "NotRun")
        if (failure.sqlState === undefined && byDefault.effect === "Unknown") {
          assert.strictEqual(verdict.effect, "Unknown")
          assert.isFalse(Errors.isSafeToRepeat(verdict, false))
        }
      }),
      runs
    )
  })
})

describe("a secret in an error", () => {
  const secret = fc.stringMatching(/^[A-Za-z0-9!#$%^~:/?.,;&@_-]{4,24}$/).map((rest) => `S3CR${rest}`)
  const prose = fc.oneof(
    fc.constantFrom("", "cannot reach ", "retry with ", "a=1&", "{", "x".repeat(990), "words and ".repeat(120)),
    fc.nat(1_100).map((length) => "y".repeat(length) + " ")
  )
  const planted = fc.oneof(
    fc.tuple(fc.constantFrom("postgres", "postgresql", "https"), secret).map(([scheme, secret]) =>
      `${scheme}://bob:${secret}@db.example:5432/shop`
    ),
    fc.tuple(fc.constantFrom("password", "Password", "PGPASSWORD", "pwd", "api_key", "secret", "token"), secret).map((
      [name, secret]
    ) => `${name}=${secret}`),
    secret.map((secret) => `host=db password='${secret} and\\' more' user=bob`),
    secret.map((secret) => `{"user":"bob","password":"${secret}"}`)
  )
  const telling = fc.tuple(prose, planted, prose).map(([before, planted, after]) => `${before}${planted} ${after}`)

  const carriers: ReadonlyArray<(text: string) => unknown> = [
    (text) => text,
    (text) => new Error(text),
    (text) => new Error("outer", { cause: new Error("inner", { cause: new Error(text) }) }),
    (text) => Object.assign(new Error(text), { code: "ENOTFOUND", syscall: "getaddrinfo" }),
    (text) => Object.assign(new AggregateError([new Error(text)], ""), { code: "ECONNREFUSED" }),
    (text) => Object.assign(new Error(text), { code: "28P01", severity: "FATAL" }),
    (text) => Object.assign(new Error(text), { code: "XX000", severity: "ERROR" }),
    (text) => Object.assign(new Error("said the server"), { code: "57P01", severity: text }),
    (text) => Object.assign(new Error("said the server"), { code: text, severity: "ERROR" }),
    (text) =>
      new SqlError({ reason: new ConnectionError({ cause: new Error(text), message: text, operation: "connect" }) }),
    (text) => new Errors.OutcomeUnknown({ operation: "work", failure: { message: text }, cause: new Error(text) }),
    (text) => new Errors.HookFailed({ hook: "afterConnect", cause: Redacted.make(new Error(text)) }),
    (text) =>
      new Errors.NoSuitableHost({
        targetSessionAttrs: "any",
        hosts: [{ host: "db", role: null, failure: { message: text } }]
      }),
    (text) =>
      new Errors.CredentialsFailed({
        cause: Redacted.make(new Error(text)),
        refusal: { sqlState: "28P01", message: text }
      })
  ]

  it("is never shown, wherever it stands and wherever the text is cut", () => {
    fc.assert(
      fc.property(fc.constantFrom(...carriers), telling, (carrier, text) => {
        const failure = Errors.failureOf(carrier(text))
        assert.notInclude(JSON.stringify(failure), "S3CR")
        assert.notInclude(new Errors.CircuitOpen({ key: "k", retryAfter: 1, lastFailure: failure }).message, "S3CR")
      }),
      runs
    )
  })

  it("in a megabyte of text is looked for in no time", () => {
    const { message } = Errors.failureOf(new Error(`${"a".repeat(1_000_000)} password=S3CRET`))
    assert.strictEqual(message?.length, 300)
  }, 2_000)
})
