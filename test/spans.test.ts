import { assert, describe, it } from "@effect/vitest"
import { ConnectionError, SqlError, UnknownError } from "effect/sql/SqlError"
import * as Fs from "node:fs"
import * as Errors from "../src/Errors.ts"
import * as Operation from "../src/internal/operation.ts"
import * as Spans from "../src/internal/spans.ts"

const stats = { total: 1, idle: 0, active: 1, waiting: 1, connecting: 0, max: 1, min: 0, oldestLease: 0 }

const reply = (code: string) =>
  new SqlError({
    reason: new UnknownError({
      cause: Object.assign(new Error("canary"), { code, severity: "ERROR" }),
      message: "canary",
      operation: "execute"
    })
  })

const refused = new SqlError({
  reason: new ConnectionError({
    cause: Object.assign(new Error("connect ECONNREFUSED 127.0.0.1:1"), { code: "ECONNREFUSED" }),
    message: "PgConnection: Failed to connect",
    operation: "connect"
  })
})

const silent = new SqlError({
  reason: new ConnectionError({
    cause: new Error("Connection closed"),
    message: "PgConnection: Connection closed",
    operation: "query"
  })
})

const vague = new SqlError({
  reason: new ConnectionError({
    cause: new Error("no reason given"),
    message: "PgConnection: Failed to connect",
    operation: "connect"
  })
})

const acquireTimeout = new Errors.AcquireTimeout({
  phase: "Connect",
  waited: 5,
  stats,
  lastConnectFailure: { sqlState: "53300" }
})

describe("an error in a span", () => {
  const cases: ReadonlyArray<readonly [what: string, error: unknown, sqlState: string | undefined, type: string]> = [
    ["is its SQLSTATE", reply("23505"), "23505", "23505"],
    ["is the socket's code, where the server said nothing", refused, undefined, "ECONNREFUSED"],
    ["is the code of the socket's that says the same, where the driver has none", silent, undefined, "ECONNRESET"],
    ["is its kind, where nobody has a code for it", vague, undefined, "Unreachable"],
    ["is its tag, where it is one of ours", new Errors.PoolClosed(), undefined, "PoolClosed"],
    ["is its tag, also inside of a SqlError", Errors.toSqlError(new Errors.PoolClosed()), undefined, "PoolClosed"],
    ["is not the failure of somebody else that it remembers", acquireTimeout, undefined, "AcquireTimeout"],
    [
      "is not what a circuit has opened on",
      new Errors.CircuitOpen({ key: "k", retryAfter: 1, lastFailure: { sqlState: "57P03" } }),
      undefined,
      "CircuitOpen"
    ],
    [
      "is what was tried in vain",
      Errors.toSqlError(
        new Errors.RetriesExhausted({ attempts: 2, last: reply("53300"), history: [], stoppedBy: "attempts" })
      ),
      "53300",
      "53300"
    ],
    [
      "is what was tried in vain, of ours too",
      new Errors.RetriesExhausted({ attempts: 2, last: acquireTimeout, history: [], stoppedBy: "attempts" }),
      undefined,
      "AcquireTimeout"
    ],
    [
      "is that nobody knows, where that is so",
      new Errors.OutcomeUnknown({ operation: "commit", failure: { code: "ECONNRESET" }, cause: new Error("reset") }),
      undefined,
      "OutcomeUnknown"
    ],
    ["is the tag of what a program failed with", { _tag: "OutOfStock" }, undefined, "OutOfStock"],
    ["is the class of a defect", new RangeError("canary"), undefined, "RangeError"],
    ["is other, where it has no name", "canary", undefined, "_OTHER"]
  ]
  for (const [what, error, sqlState, type] of cases) {
    it(`${what}`, () => {
      const { "db.response.status_code": said, "error.type": called, ...rest } = Spans.describe(error)
      assert.deepStrictEqual({ said, called }, { said: sqlState, called: type })
      assert.notInclude(JSON.stringify(rest), "canary")
    })
  }
})

describe("the operation of a statement", () => {
  const cases: ReadonlyArray<readonly [sql: string, operation: string | undefined]> = [
    ["SELECT 1", "SELECT"],
    ["select*from t", "SELECT"],
    ["  \n\tWith x AS (SELECT 1) SELECT", "WITH"],
    ["-- a\n/* b /* c */ d */ ((VALUES (1)))", "VALUES"],
    ["VACUUM", "VACUUM"],
    ["", undefined],
    ["-- nothing", undefined],
    ["/* never closed", undefined],
    ["; SELECT 1", undefined],
    ["$1", undefined]
  ]
  for (const [sql, operation] of cases) {
    it(`of ${JSON.stringify(sql)} is ${operation ?? "not told"}`, () => {
      assert.strictEqual(Operation.wordOf(sql), operation)
    })
  }
})

describe("the page on traces", () => {
  const page = Fs.readFileSync(new URL("../docs/traces.md", import.meta.url), "utf8")
  const written = new Set(Array.from(page.matchAll(/`((?:db|server|error)\.[a-z_.]+)`/g), ([, name]) => name))

  it("has every span and every attribute of ours", () => {
    for (const name of [...Object.values(Spans.name), ...Object.values(Spans.attribute)]) {
      assert.isTrue(written.has(name), name)
    }
  })

  it("has no other names but those of Effect's statements and of errors", () => {
    const ours = new Set<string>([...Object.values(Spans.name), ...Object.values(Spans.attribute)])
    const ofErrors = Object.keys(Spans.describe(new Error("any")))
    assert.deepStrictEqual(
      Array.from(written).filter((name) => !ours.has(name!) && !ofErrors.includes(name!)),
      ["db.system.name", "db.namespace", "db.query.text"]
    )
  })
})
