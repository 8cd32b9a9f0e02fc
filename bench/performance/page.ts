/** docs/performance.md and its charts, of nothing but what the runs have written down. */
import { charts as faultCharts, section } from "../recovery/page.ts"
import type { Row as Fault } from "../recovery/row.ts"
import { axes, growthOf, steepest, suiteOf } from "../scaling/axes.ts"
import { draw, type Series } from "./chart.ts"
import type { Origin, Part, Results } from "./results.ts"
import { parts } from "./results.ts"
import type { LoadRow } from "./row.ts"
import { type CostRow, type FaultRow, judge, ours, oursMultiplexed, verdictOf } from "./targets.ts"
import { aligned, brief, orDash, table, whole } from "./text.ts"

export interface Everything {
  readonly load?: Results<LoadRow> | undefined
  readonly scaling?: Results<LoadRow> | undefined
  readonly "layer-cost"?: Results<CostRow> | undefined
  readonly recovery?: Results<FaultRow & Fault> | undefined
}

const unique = <A>(values: ReadonlyArray<A>): ReadonlyArray<A> => Array.from(new Set(values))
const contendersOf = (rows: ReadonlyArray<LoadRow>) => unique(rows.map(({ contender }) => contender))
const callersOf = (rows: ReadonlyArray<LoadRow>) => unique(rows.map(({ callers }) => callers))

const missing = (part: Part): string => `Not measured yet: \`npm run bench -- --only ${part}\`.`

// What is written by hand stays where it is.

const ownText = { begin: "<!-- by hand: begin -->", end: "<!-- by hand: end -->" }
const nothingYet = "What the profiles show stands here."

/** The part of a page that nobody's script writes. */
export const byHandOf = (page: string): string => {
  const from = page.indexOf(ownText.begin)
  const to = page.indexOf(ownText.end)
  return from === -1 || to < from ? nothingYet : page.slice(from + ownText.begin.length, to).trim()
}

// The load part.

const suiteChart = (suite: string): string => `performance/${suite}.svg`

const overview = (rows: ReadonlyArray<LoadRow>): string => {
  const reads = rows.filter(({ suite }) => suite === "read")
  const counts = callersOf(reads)
  const cell = (contender: string, callers: number, figure: (row: LoadRow) => number) => {
    const row = reads.find((each) => each.contender === contender && each.callers === callers)
    return row === undefined ? "–" : whole(figure(row))
  }
  return table(
    ["callers", ...counts.map(whole), "client CPU, us", "server CPU, us", "MiB at most"],
    contendersOf(reads).map((contender) => [
      contender,
      ...counts.map((callers) => cell(contender, callers, ({ qps }) => qps)),
      cell(contender, 1000, ({ clientCpuUs }) => clientCpuUs),
      cell(contender, 1000, ({ serverCpuUs }) => serverCpuUs ?? NaN),
      cell(contender, counts.at(-1)!, ({ rssMb }) => rssMb)
    ])
  )
}

const inWords = (rows: ReadonlyArray<LoadRow>): string => {
  const read = (contender: string, callers: number) =>
    rows.find((row) => row.suite === "read" && row.contender === contender && row.callers === callers)
  const ratio = (value: number | null | undefined) => orDash(value, (value) => value.toFixed(2))
  const line = (contender: string, callers: number) => {
    const row = read(contender, callers)
    return row === undefined
      ? ""
      : `- **${contender}, ${whole(callers)} ${callers === 1 ? "caller" : "callers"}**: ${
        whole(row.qps)
      } reads a second, ${ratio(row.ratioToPgClient)} of PgClient in the same mode, ${
        ratio(row.ratioToPostgresJs)
      } of postgres.js, ${ratio(row.ratioToPg)} of pg; half of them within ${
        orDash(row.p50Ms, brief)
      } ms, 99 of 100 within ${orDash(row.p99Ms, brief)} ms.`
  }
  return [[ours, 1], [ours, 1000], [oursMultiplexed, 100], [oursMultiplexed, 1000], [oursMultiplexed, 10_000]]
    .map(([contender, callers]) => line(String(contender), Number(callers)))
    .filter((each) => each !== "")
    .join("\n")
}

const spread = ({ ratios }: LoadRow): string =>
  ratios === null ? "–" : `${Math.min(...ratios).toFixed(2)}–${Math.max(...ratios).toFixed(2)}`

const suiteTable = (rows: ReadonlyArray<LoadRow>): string =>
  table(
    [
      "",
      "callers",
      "per second",
      "of PgClient",
      "rounds",
      "p50 ms",
      "p99 ms",
      "client us",
      "server us",
      "MiB",
      "errors"
    ],
    callersOf(rows).flatMap((callers) =>
      rows.filter((row) => row.callers === callers).map((row) => [
        row.contender,
        whole(row.callers),
        whole(row.qps),
        orDash(row.ratioToPgClient, (value) => value.toFixed(2)),
        spread(row),
        orDash(row.p50Ms, brief),
        orDash(row.p99Ms, brief),
        brief(row.clientCpuUs),
        orDash(row.serverCpuUs, brief),
        whole(row.rssMb),
        String(row.errors)
      ])
    )
  )

const suiteTitles: Readonly<Record<string, string>> = {
  read: "Point reads",
  range: "Reads of 100 rows",
  insert: "Inserts",
  transaction: "Transactions of three statements"
}

const loadSection = (rows: ReadonlyArray<LoadRow>): string =>
  unique(rows.map(({ suite }) => suite)).map((suite) =>
    `### ${suiteTitles[suite] ?? suite}
${suite === "read" ? "" : `\n![${suiteTitles[suite]} by callers](${suiteChart(suite)})\n`}
${suiteTable(rows.filter((row) => row.suite === suite))}
`
  ).join("\n")

// The others.

const axisSection = (rows: ReadonlyArray<LoadRow>): string =>
  axes.map((axis) => {
    const own = rows.filter(({ suite }) => suite === suiteOf(axis))
    const points = unique(own.map(axis.at))
    return `### ${axis.title}

![Client CPU per answer against ${axis.title.toLowerCase()}](performance/scaling-${axis.name}.svg)

Microseconds of client CPU per answer, and how ${
      axis.isPerAnswer ? "that grows" : `the total of that for all of them grows`
    } at the upper end (1 is linear):

${
      table(
        [axis.name, ...points.map(whole), "slope"],
        contendersOf(own).map((contender) => {
          const line = own.filter((row) => row.contender === contender)
          return [
            contender,
            ...points.map((point) => orDash(line.find((row) => axis.at(row) === point)?.clientCpuUs, brief)),
            growthOf(axis, line).toFixed(2)
          ]
        })
      )
    }
`
  }).join("\n")

const costSection = (rows: ReadonlyArray<CostRow>): string =>
  unique(rows.map(({ heat }) => heat)).map((heat) => {
    const own = rows.filter((row) => row.heat === heat)
    const base = own.find(({ beyond }) => beyond !== null)?.beyond
    return `### ${heat}

${
      table(
        ["nanoseconds of CPU", "in all", base === undefined ? "beyond" : `beyond ${base}`, "± rounds", "quiet rounds"],
        own.map((row) => [
          row.contender,
          orDash(row.clientCpuUs, (value) => whole(1000 * value)),
          row.beyond === null ? "–" : whole(row.nanos),
          whole(row.spread),
          orDash(row.quietNanos, whole)
        ])
      )
    }
`
  }).join("\n")

const verdicts = (everything: Everything): string =>
  table(
    ["Promise", "Measured", "Verdict"],
    judge({
      load: everything.load?.rows,
      scaling: everything.scaling?.rows,
      "layer-cost": everything["layer-cost"]?.rows,
      recovery: everything.recovery?.rows
    }).map((verdict) => [
      verdict.target,
      verdict.measured,
      verdictOf(verdict).replace("missed", "**missed**")
    ]),
    [0, 1, 2]
  )

const machineOf = ({ machine, node }: Origin): string =>
  `${machine.cpu} × ${machine.cores}, ${machine.memoryGiB} GiB, ${machine.system}, Node ${node}`

const runs = (everything: Everything): string => {
  const found = parts.flatMap((part) => {
    const results = everything[part]
    return results === undefined ? [] : [[part, results] as const]
  })
  if (found.length === 0) return "None yet."
  const versions = Object.entries(Object.assign({}, ...found.map(([, { versions }]) => versions)) as Origin["versions"])
  return `${
    found.map(([part, results]) =>
      `- \`${part}\`${results.isQuick ? ", quick" : ""}: ${results.date} UTC, ${whole(results.seconds)} s, on ${
        machineOf(results)
      }.`
    ).join("\n")
  }

Versions: ${versions.map(([name, version]) => `${name} ${version}`).join(", ")}.`
}

/** A page of such figures is told to be one. */
const quickParts = (everything: Everything): string => {
  const quick = parts.filter((part) => everything[part]?.isQuick === true)
  return quick.length === 0
    ? ""
    : `
**Not to be quoted**: ${quick.map((part) => `\`${part}\``).join(", ")} ${
      quick.length === 1 ? "is" : "are"
    } of a quick run, one or two short rounds, which shows no more than that everything works.
`
}

/** The page, with what was written into it by hand. */
export const pageOf = (everything: Everything, byHand: string): string => {
  const { load, recovery, scaling } = everything
  const cost = everything["layer-cost"]
  return aligned(`# Performance

What this pool costs, and what it gives, beside the other clients of PostgreSQL for Node: reads of one row by its primary key a
second, by how many callers ask at once, with 10 sessions and prepared statements; then what one of them costs at 1,000 callers,
and the memory of the process with the most.

${load === undefined ? missing("load") : overview(load.rows)}
${quickParts(everything)}
![Point reads a second by callers](${suiteChart("read")})

${load === undefined ? "" : inWords(load.rows)}

Client and server share the processors of one small machine, and nothing is between them: take the ratios with you, not the
figures. A database with a network in between answers later, and then all of these cost even less of what a caller waits for.

## Plain or multiplexed

Plain, which is the default, gives a session to one statement at a time: a slow statement is nobody else's trouble, and a
session cannot do more than one answer for each round trip. With \`multiplex: true\` up to \`multiplexConcurrency\` statements of
several callers share a session, and go to the server in one write; transactions, streams and listeners still have a session to themselves.

- **Take plain** where statements take more than a few milliseconds on the server: others would wait behind a slow one, up to its
  \`statement_timeout\`, and one that was given up is not cancelled on the server while others share its session. Also where
  most of the work is transactions: they cannot share, and cost a little more to set apart.
- **Take multiplexed** for many short statements at once: resolvers that load one row each, inserts of
  events, an API that reads. It is also what a database far away gains the most by, as a round trip is shared.
- Have both with two layers, and the slow reports on the plain one: [several hosts](../README.md#several-hosts) shows how a second pool is made.

## What it promises, what was measured

Ratios are medians of the ratios of each round, so that whatever else the machine did met both. \`level\` is missed
by less than the 20 ms that times of recovery can be told apart by.

${verdicts(everything)}

## The driver's limit

What the pool cannot do better while the driver is what it is, and what would have to change upstream.

${ownText.begin}

${byHand}

${ownText.end}

## Repeat it

| Command | What it does |
| ------- | ------------ |
| \`npm run bench\` | all parts, about 35 minutes; writes \`bench/results/*.json\`, this page and its charts |
| \`npm run bench -- --quick --json FILE\` | all parts in five minutes, the same fields; writes nothing but that file |
| \`npm run bench -- --only NAME\` | one part: ${
    parts.map((part) => `\`${part}\``).join(", ")
  }; \`--no-write\` leaves files alone |
| \`npm run bench -- --page\` | measures nothing, and writes this page of the results that are there |
| \`node --import ./scripts/source.mjs bench/load.ts --suite read --callers 100 --contender pg\` | any cells of the load part; also \`--rounds\`, and \`--lasts\` in milliseconds; Node 22.19 or newer |

Nothing has to be installed: the server is an embedded PostgreSQL 18, and the other clients are development dependencies at pinned
versions. It ends with exit code 1 when any client was told an error where none may be.

The JSON file has \`rows\`, each with \`suite\`, \`contender\`, \`callers\`, \`max\`, \`qps\` (operations a second), \`ratioToPgClient\`, \`p50Ms\`,
\`p99Ms\`, \`clientCpuUs\` and \`serverCpuUs\` (microseconds of CPU per operation), \`rssMb\` (MiB) and \`errors\`; \`null\` where a figure makes no
sense; some suites have more.

## How it is measured

- **In turns.** Each client has a process of its own, all of them run side by side on one server, and one works while the
  others are idle. A round is a turn of each; the first of a round is another one each time. A ratio is one of two turns of the same
  round, and what is told is the median of five rounds (nine with up to 100 callers, three with 10,000 and along the sessions and callers of scaling, one along its other axes).
- **Closed loops.** Each caller has one operation under way and begins the next when it is answered. Latency is a caller's, the
  wait for a session included.
- **Warm.** Before its first round a client works for three seconds with as many callers, 400 at most, which compiles its code and opens all
  its sessions (of scaling: some thousand answers); a client goes through a fault after 3.7 seconds of work. Before each measurement it works until every caller has had an answer, for 1.5 s at most.
- **Percentiles** are told only where at least as many answers as callers came while it was measured: else those that
  take longest are not among them.
- **CPU** of the client is that of its process with all threads, and of the server that of all its processes, background writers included,
  from \`/proc\` in ticks of 10 ms. **Memory** is the most that was resident in the client's process while it was measured.

What is equal: the server, the statements and what they return, types parsed (two integers and two texts), \`max\`, prepared statements, a new
process for each number of callers, and no TLS. The server has \`fsync\`, \`synchronous_commit\` and \`autovacuum\` off, so that no client waits for
the disk or a clean-up in its turn.

What is not: each client is as its own documentation has it. **pg** is given a \`name\` with each statement, without which it
prepares nothing. **postgres.js** prepares by itself and always pipelines, up to 100 statements on a session, which is why it is compared
with the multiplexed modes. **PgClient** of \`@effect/sql-pg\` has its defaults, plain and with \`multiplex\`. **effect-pg-pool** has the
README's configuration, that is its defaults: breaker, retry and metrics are on, and a session is replaced after 5,000 statements, but not before it is a minute old. The four in Effect run their callers as
fibers, the two others as promises. slonik is measured for its recovery only. \`pgbench\` is left out: the embedded server brings none.

Noise: two runs differ by some percent in ratios and by tens of percent in absolute figures; the column \`rounds\` has the lowest and the
highest ratio of the rounds. A difference of less than that is none.

## Load

Per operation, with 10 sessions at most. \`of PgClient\` is the ratio to PgClient in the same mode.

${load === undefined ? missing("load") : loadSection(load.rows)}
## The cost of the layer

What a healthy statement costs beyond the driver's own pool: on a stub that answers every statement, so that what is left is the
client's code. \`± rounds\`: half of the rounds lie within so many nanoseconds.

${cost === undefined ? missing("layer-cost") : costSection(cost.rows)}
## Recovery

${recovery === undefined ? missing("recovery") : section(recovery.rows).trim()}

## Scaling

How the cost of an answer grows. Nothing is worse than linear where the slope of the total cost, on logarithmic scales and over the
three largest values, is at most ${steepest}: ten percent of noise at the end of a decade are worth 0.05.

${scaling === undefined ? missing("scaling") : axisSection(scaling.rows)}
## The runs

${runs(everything)}
`)
}

/** The charts of the page by their names in `docs/performance`. */
export const chartsOf = ({ load, recovery, scaling }: Everything): ReadonlyMap<string, string> => {
  const charts = new Map<string, string>()
  const seriesOf = (
    rows: ReadonlyArray<LoadRow>,
    x: (row: LoadRow) => number,
    y: (row: LoadRow) => number
  ): ReadonlyArray<Series> =>
    contendersOf(rows).map((name) => ({
      name,
      points: rows.filter(({ contender }) => contender === name).map((row) => [x(row), y(row)] as const)
    }))
  for (const suite of unique(load?.rows.map(({ suite }) => suite) ?? [])) {
    charts.set(
      `${suite}.svg`,
      draw({
        title: `${suiteTitles[suite]} a second`,
        xLabel: "callers in a closed loop, 10 sessions",
        yLabel: "per second",
        isLogarithmic: false,
        series: seriesOf(load!.rows.filter((row) => row.suite === suite), ({ callers }) => callers, ({ qps }) => qps)
      })
    )
  }
  for (const axis of axes) {
    const rows = scaling?.rows.filter(({ suite }) => suite === suiteOf(axis)) ?? []
    if (rows.length === 0) continue
    charts.set(
      `scaling-${axis.name}.svg`,
      draw({
        title: `Client CPU of an answer against ${axis.title.toLowerCase()}`,
        xLabel: axis.label,
        yLabel: "microseconds",
        isLogarithmic: true,
        series: seriesOf(rows, axis.at, ({ clientCpuUs }) => clientCpuUs)
      })
    )
  }
  for (const [name, svg] of Object.entries(faultCharts(recovery?.rows ?? []))) charts.set(name, svg)
  return charts
}
