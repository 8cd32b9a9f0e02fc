/**
 * The whole classification as a page that can be read line by line: every cell is what `Errors.classify` and
 * `Errors.isSafeToRepeat` return.
 */
import * as Errors from "../src/Errors.ts"
import { listed as listedCodes } from "../src/internal/socketCode.ts"
import { conditionOf, listed as listedStates } from "../src/internal/sqlState.ts"
import { poolerTexts } from "./pooler-texts.ts"

/** Said with the end of the session, by PostgreSQL or by a pooler. All other codes are shown as an ERROR. */
const fatal = /^(08|28|3D|F0|53300|57P|25P03|25P04)/

const severityOf = (sqlState: string) => (fatal.test(sqlState) ? "FATAL" : "ERROR")

const judge = (failure: Errors.Failure, phase: Errors.Phase): Errors.Verdict =>
  Errors.classify(failure, { phase, reused: true, replied: true })

const effects: Readonly<Record<Errors.Outcome, string>> = {
  NotRun: "not run",
  RolledBack: "rolled back",
  Unknown: "**unknown**"
}

const repetition = (verdict: Errors.Verdict): string => {
  if (!Errors.isSafeToRepeat(verdict, false)) return Errors.isSafeToRepeat(verdict, true) ? "if idempotent" : "no"
  return verdict.retry === "Now" ? "at once" : verdict.retry === "BackoffSlow" ? "slowly" : "yes"
}

/** Values that are the same in several phases are named once. */
const merged = (values: ReadonlyArray<readonly [phase: string, value: string]>): string => {
  const different = new Set(values.map(([, value]) => value))
  if (different.size === 1) return values[0]![1]
  return [...different]
    .map((value) => `${values.filter((each) => each[1] === value).map(([phase]) => phase).join(", ")}: ${value}`)
    .join("; ")
}

const written = [["in flight", "InFlight"], ["in a transaction", "Transaction"], ["in COMMIT", "Commit"]] as const

const columns = ["Kind", "Before a write", "In flight", "In a transaction", "In COMMIT", "Breaker", "Session"]

const cells = (failure: Errors.Failure): ReadonlyArray<string> => {
  const outcome = (phase: Errors.Phase) => {
    const verdict = judge(failure, phase)
    return `${effects[verdict.effect]}, ${repetition(verdict)}`
  }
  const afterWrite = (value: (verdict: Errors.Verdict) => string) =>
    merged(written.map(([name, phase]) => [name, value(judge(failure, phase))]))
  return [
    afterWrite(({ kind }) => kind),
    merged([
      ["connecting", repetition(judge(failure, "Connect"))],
      ["later", repetition(judge(failure, "BeforeWrite"))]
    ]),
    ...written.map(([, phase]) => outcome(phase)),
    afterWrite(({ breaker }) => breaker),
    afterWrite(({ connection }) => connection)
  ]
}

const code = (text: string): string => (text.includes("`") ? `\`\`${text}\`\`` : `\`${text}\``)

const table = (head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = head.map((name, column) => Math.max(name.length, ...rows.map((row) => row[column]!.length)))
  const line = (row: ReadonlyArray<string>) =>
    `| ${row.map((cell, column) => cell.padEnd(widths[column]!)).join(" | ")} |`
  return [line(head), `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`, ...rows.map(line)].join("\n")
}

const wrapped = (words: ReadonlyArray<string>): string => {
  const lines: Array<string> = []
  for (const word of words) {
    const last = lines.at(-1)
    if (last === undefined || `${last} ${word}`.length > 120) lines.push(word)
    else lines[lines.length - 1] = `${last} ${word}`
  }
  return lines.join("\n")
}

const stateRow = (sqlState: string): ReadonlyArray<string> => {
  const severity = severityOf(sqlState)
  const name = sqlState.length === 2 ? `${sqlState}xxx` : sqlState
  return [code(name), conditionOf(sqlState)!, severity, ...cells({ sqlState: sqlState.padEnd(5, "_"), severity })]
}

/** Each class, and below it the codes that are judged otherwise. Sorted they are in the order of Appendix A. */
const states = (): string => {
  const rows = listedStates.filter((each) => each.length === 2).sort().flatMap((each) => {
    const ofClass = stateRow(each)
    const verdict = (row: ReadonlyArray<string>) => row.slice(2).join()
    const others = listedStates
      .filter((state) => state.length === 5 && state.startsWith(each))
      .map(stateRow)
      .filter((row) => verdict(row) !== verdict(ofClass))
    return [ofClass, ...others]
  })
  return table(["SQLSTATE", "Condition", "Severity", ...columns], rows)
}

/** One code that means several things. */
const toldApart: ReadonlyArray<readonly [sqlState: string, severity: string, message: string]> = [
  ["08P01", "ERROR", "bind message supplies 1 parameters, but prepared statement \"\" requires 2"],
  ["08P01", "FATAL", "any text that is in no list"],
  ["08001", "ERROR", "could not connect to server \"warehouse\""],
  ["08001", "ERROR", "could not establish connection"],
  ["0A000", "ERROR", "cached plan must not change result type"]
]

/** What the driver says without a code: a sample of each kind. */
const sentences: ReadonlyArray<string> = [
  "PgConnection: Connection closed",
  "PgConnection: Connection timed out",
  "PgConnection: Query cancellation timed out",
  "PgConnection: Failed to write query",
  "PgConnection: Server refused TLS",
  "PgConnection: Server refused direct TLS",
  "PgConnection: SCRAM server verification failed",
  "PgConnection: No password configured",
  "PgConnection: Unrecognized sslmode in URL: \"maybe\"",
  "PgConnection: Failed to encode query",
  "PgClient: COMMIT rolled back an aborted transaction"
]

/** Codes with the same verdict, in one paragraph. */
const codes = (): string => {
  const groups = new Map<string, { readonly row: ReadonlyArray<string>; readonly codes: Array<string> }>()
  for (const each of listedCodes) {
    const row = cells({ code: each })
    const group = groups.get(row.join()) ?? { row, codes: [] }
    group.codes.push(each)
    groups.set(row.join(), group)
  }
  return [...groups.values()].map(({ codes, row }) =>
    `${table(columns, [row])}\n\n${wrapped(codes.map((each) => code(each)))}`
  ).join("\n\n")
}

const poolers = (): string => {
  const sources = new Map(poolerTexts.map(({ pooler, source, sqlState }) => [`${pooler}, ${source} (${sqlState})`, 0]))
  return [...sources.keys()].map((title) => {
    const rows = poolerTexts
      .filter(({ pooler, source, sqlState }) => `${pooler}, ${source} (${sqlState})` === title)
      .map(({ severity, sqlState, text }) => [code(text), ...cells({ sqlState, severity, message: text })])
    return `### ${title}\n\n${table(["Text", ...columns], rows)}`
  }).join("\n\n")
}

/** The text of `docs/classification.md`. */
export const render = (): string =>
  `# What every failure means

Written by \`npm run docs:classification\` from \`Errors.classify\` itself; a test compares. The rules that make these
verdicts, and their sources, are in the docstring of \`classify\` (\`src/Errors.ts\`); the tables behind them are
\`src/internal/sqlState.ts\`, \`socketCode.ts\`, \`refusal.ts\` and \`rule.ts\`. Each pool can judge otherwise:
\`Errors.Classifier\`, or the option \`classify\`.

How to read it:

- **Before a write** is a failed connect, or a session that failed before the first byte: nothing ran, whatever the failure
  says. The word is what happens next. The other three say what became of the work, and then what happens next: in flight
  (a statement outside of a transaction was written), in a transaction (its COMMIT was not written), in COMMIT.
- What happens next: **yes** is a repetition after a back-off, **slowly** one after a longer back-off, **at once** a single one
  on a fresh connection; **if idempotent** is only where the caller declared the work repeatable; **no** is not even then.
  What is repeated is the whole transaction, never a statement of it.
- **Breaker** is what the circuit is told (\`Success\`: the server answered), **Session** what becomes of the session.
  After a failed connect there is none to keep.
- An old session that is lost before a write, without an answer since its checkout, is a \`StaleConnection\` instead of
  \`Unreachable\`: repeated at once, and not counted.

## SQLSTATEs

In the order of [PostgreSQL's Appendix A](https://www.postgresql.org/docs/18/errcodes-appendix.html): each class, and below it
the codes that are judged otherwise than their class. Any of them may come as FATAL: then nothing is proved in flight or in
COMMIT by what would prove it as an ERROR, and the session is over. Classes 60 and 99 are gateways', 72 is PostgreSQL's up
to 16. A class that is not here is judged as \`rejected\` ones are: final, and the server answered.

${states()}

Told apart by their text or their moment (\`src/internal/rule.ts\`):

${
    table(
      ["SQLSTATE", "Severity", "Text", ...columns],
      toldApart.map(([sqlState, severity, message]) => [
        code(sqlState),
        severity,
        code(message),
        ...cells({ sqlState, severity, message })
      ])
    )
  }

## Sockets, DNS and TLS

Sources: \`man 2 connect\`, \`man 7 ip\`; [libuv](https://docs.libuv.org/en/v1.x/errors.html);
Node on [DNS](https://nodejs.org/api/dns.html#error-codes), [certificates](https://nodejs.org/api/tls.html#x509-certificate-error-codes)
and [its own errors](https://nodejs.org/api/errors.html). The last groups have the errors of this library, which are final
for whoever meets them here, except for a password that could not be had: the pool and the breaker have their own ways. A code beginning with \`ERR_SSL_\` that is not
here is judged as a certificate that is not trusted; any other is final, except that a failure to connect is \`Unreachable\`
whatever its code.

${codes()}

## The driver's own sentences

\`@effect/sql-pg\`, \`PgConnection.ts\`: a sample of each kind.

${table(["Text", ...columns], sentences.map((message) => [code(message), ...cells({ message })]))}

## Poolers and gateways

${poolers()}
`
