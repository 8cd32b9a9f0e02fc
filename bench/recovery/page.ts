/** What docs/performance.md says of faults, written from the rows. */
import { draw } from "./chart.ts"
import type { Row } from "./row.ts"

const stories = {
  "recovery/terminate": {
    title: "All sessions terminated",
    what: "`pg_terminate_backend` of every session of the client, under load."
  },
  "recovery/restart": {
    title: "The server stopped and started",
    what: "A fast shutdown; the server is started again three seconds after it began."
  },
  "recovery/freeze": {
    title: "The server frozen",
    what: "SIGSTOP of all processes of the server, SIGCONT five seconds later: sockets stay open, nobody answers."
  }
} as const
type Suite = keyof typeof stories
const suites = Object.keys(stories) as ReadonlyArray<Suite>

const fileOf = (suite: Suite): string => `${suite.replace("/", "-")}.svg`

/** The charts, by the names of their files in docs/performance. */
export const charts = (rows: ReadonlyArray<Row>): Readonly<Record<string, string>> =>
  Object.fromEntries(suites.flatMap((suite) => {
    const own = rows.filter((row) => row.suite === suite)
    return own.length === 0 ? [] : [[fileOf(suite), draw(stories[suite].title, own)]]
  }))

const ms = (value: number): string => value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${Math.round(value)} ms`

const table = (rows: ReadonlyArray<Row>): string =>
  [
    "| | back after | rounds | failed reads | failed writes | of which perhaps made | untrue | longest silence | slowest |",
    "| --- | --: | --- | --: | --: | --: | --: | --: | --: |",
    ...rows.map((row) =>
      `| ${
        [
          row.contender,
          row.recoveryMs === null ? "not while watched" : ms(row.recoveryMs),
          row.rounds.map((each) => each === null ? "-" : ms(each)).join(", "),
          row.readErrors,
          row.writeErrors,
          row.unknownWrites,
          row.untruthful,
          ms(row.longestGapMs),
          ms(row.peakMs)
        ].join(" | ")
      } |`
    )
  ].join("\n")

/** The section, without its heading. */
export const section = (rows: ReadonlyArray<Row>): string => {
  const [{ callers, max } = { callers: 0, max: 0 }] = rows
  return [
    `${callers} callers in a closed loop, ${max} connections, one operation in ten a write. A caller that failed waits 10 ms. Each client is in a`
    + ` process of its own and handles errors as its documentation says; this library's calls are`
    + ` \`Executor.run(read, { idempotent: true, waitForCircuit: true })\` and \`Executor.run(write, { waitForCircuit: true })\`.`,
    "",
    "_Back after_: from the end of the fault until 100 ms have at least 90 % of the median throughput before. _Perhaps made_: the error leaves open"
    + " whether the write was made. _Untrue_ (over all rounds): writes that were acknowledged and are missing, that were said not to have been made and"
    + " are there, or that are there twice. All others are medians of the rounds.",
    ...suites.flatMap((suite) => {
      const own = rows.filter((row) => row.suite === suite)
      const { title, what } = stories[suite]
      return own.length === 0
        ? []
        : ["", `### ${title}`, "", what, "", table(own), "", `![${title}](performance/${fileOf(suite)})`]
    }),
    ""
  ].join("\n")
}
