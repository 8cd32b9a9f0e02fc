/** docs/fleet.md. */
import { availableParallelism, cpus, totalmem } from "node:os"
import type { Finding, Measured } from "./claims.ts"
import { room, type Setting } from "./contestants.ts"
import type { PhaseFigures } from "./figures.ts"
import { lengthOfCrash, type PhaseName, type Plan } from "./life.ts"

export interface Chapter {
  readonly setting: Setting
  readonly environments: number
  readonly measured: ReadonlyArray<Measured>
  readonly findings: ReadonlyArray<Finding>
}

const table = (head: ReadonlyArray<string>, body: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = head.map((_, column) => Math.max(3, ...[head, ...body].map((row) => row[column]!.length)))
  const line = (row: ReadonlyArray<string>) =>
    `| ${
      row.map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!))).join(
        " | "
      )
    } |`
  const rule = `| ${
    widths.map((width, column) => (column === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`)).join(" | ")
  } |`
  return [line(head), rule, ...body.map(line)].join("\n")
}

const names: ReadonlyArray<readonly [phase: PhaseName, title: string]> = [
  ["cold start", "A cold start"],
  ["steady", "B steady"],
  ["thaw", "D thaw"],
  ["restart", "E crash"]
]

const byPhase = (measured: ReadonlyArray<Measured>, cell: (figures: PhaseFigures) => string): string =>
  table(
    ["", ...names.map(([, title]) => title)],
    measured.map(({ figures, life }) => [
      life.contestant.title,
      ...names.map(([name]) => cell(figures.phases.find((phase) => phase.name === name)!))
    ])
  )

const millis = (value: number | undefined): string => (value === undefined ? "–" : value.toFixed(0))
const seconds = (
  value: number | undefined
): string => (value === undefined ? "not seen" : `${(value / 1000).toFixed(2)} s`)

const failures = ({ figures }: Measured): string => {
  const times = new Map<string, number>()
  for (const [failure, count] of figures.phases.flatMap((phase) => phase.failures)) {
    times.set(failure, (times.get(failure) ?? 0) + count)
  }
  const most = Array.from(times).toSorted(([, one], [, other]) => other - one)
  // A port is of no interest.
  const shown = most.slice(0, 5).map(([failure, count]) => `${count} × ${failure.replaceAll(/127\.0\.0\.1:\d+/g, "…")}`)
  const more = most.slice(5).reduce((sum, [, count]) => sum + count, 0)
  return shown.length === 0 ? "none" : [...shown, ...(more > 0 ? [`${more} others`] : [])].join(", ")
}

const chapter = ({ environments, findings, measured, setting }: Chapter): string =>
  `## ${setting.title}

${environments} environments${
    setting.isPooled ? ", and PgBouncer in transaction mode with 20 sessions" : ""
  }. ${setting.note}

![Sessions and connects of each client](fleet/${setting.id}.svg)

Requests that failed, and how many of those because the server was full (53300):

${
    byPhase(
      measured,
      ({ failed, full, requests }) => failed === 0 ? `0 of ${requests}` : `${failed} of ${requests} (${full} full)`
    )
  }

Milliseconds that the others took, queueing included: half of them, 99 of 100, the slowest:

${byPhase(measured, ({ max, p50, p99 }) => `${millis(p50)} / ${millis(p99)} / ${millis(max)}`)}

Connects that reached the server, and how many of those it refused; the most sessions at once:

${byPhase(measured, ({ connects, mostSessions, refused }) => `${connects} (${refused}), ${mostSessions}`)}

After the crash:

${
    table(
      ["", "first success", "normal again", "connects in the busiest second", "callers then", "connects", "requests"],
      measured.map(({ figures: { recovery }, life }) => [
        life.contestant.title,
        seconds(recovery.firstSuccess),
        seconds(recovery.normal),
        String(recovery.connectsInASecond),
        String(recovery.callersThen),
        String(recovery.connects),
        String(recovery.requests)
      ])
    )
  }

What callers got in all phases together:

${measured.map((each) => `- ${each.life.contestant.title}: ${failures(each)}`).join("\n")}

${
    findings.map(({ claim, found, holds }) => `- ${holds ? "Holds" : "**Does not hold**"}: ${claim} (${found}).`).join(
      "\n"
    )
  }
`

export const write = (plan: Plan, chapters: ReadonlyArray<Chapter>, date: string): string =>
  `# A fleet of functions

What pools do to a PostgreSQL server with \`max_connections = 100\` when they live in serverless environments: in each one a
pool of its own that knows nothing of the others. Written by \`npm run bench:fleet -- --write\`; \`-- --smoke\` runs in CI with a
smaller fleet, and both fail when a claim at the end of a chapter does not hold.

Each client goes through the same five phases, with the same requests at the same moments (seed ${plan.seed}):

- **A, cold start**: one request to every environment, all at once, nothing connected yet.
- **B, steady load**: ${plan.steady} s of independent requests, ${plan.rate} a second, each to some environment.
- **C, freeze**: all environments are stopped (SIGSTOP) with their sockets open. Meanwhile every second session is ended on the
  server, as its limits, a failover or a NAT would, and the wall clock moves on by ten minutes. Timers do not.
- **D, thaw**: one request to every environment, all at once.
- **E, crash**: ${
    lengthOfCrash(plan)
  } s of requests, ${plan.rate} a second. After ${plan.crash.at} s the server is killed, ${plan.crash.lasts} s later it is started again.

A request is an invocation: two reads at once, then a write; the platform ends it after ${
    plan.deadline / 1000
  } s. An environment serves one
invocation at a time, and the next one waits for it.

The server keeps 3 of its 100 places for superusers, so the fleet has ${room} (one less while the witness that counts sessions has
its own). Connects are counted in the server's log, so those that it refuses count as well.

## The clients

- **effect-pg-pool**: \`Serverless.make\` with \`Serverless.preset()\` and \`Pool.sizeForFleet\` for the fleet, and the release policy in its
  name: \`keep\` keeps its session for the next invocation, \`close\` closes it at the end of each, \`adaptive\` closes it when the server
  is nearly full. Behind PgBouncer \`pooler: "transaction"\` with the preset's \`max: 2\`.
- **PgClient** of \`@effect/sql-pg\`: \`PgClient.layer\` in a \`ManagedRuntime\` of each environment, with its default of ten connections and
  with one; behind PgBouncer \`prepare: false\`.
- **pg**: one \`Pool\` outside of the handler with \`idleTimeoutMillis\` and \`connectionTimeoutMillis\` of 10 s and a listener for \`error\`,
  with the two connections that a handler with two queries at once can use, and with one; and with \`client.release(true)\` at the end
  of each invocation, which closes it.

None of them is given a retry by its handler: what an error is told to its caller, is told here.

## How to read it

A bar of red below the sessions is a herd at a closed door. Failures in A and D are what users of a burst meet; those in E from
the second without a server are nobody's fault, those after it are. Latencies are of those requests that succeeded: a client
that refuses nine of ten at once has the better median. Figures of two runs differ by some tens of percent; the orders of magnitude, and who is refused, do not.

What this does not show: between two invocations the environments of one process are not frozen one by one, so that timers of idle
connections run here that would not on Lambda; and no socket is half open, which \`Serverless\` has tests of its own for.

${chapters.map(chapter).join("\n")}
## This run

${date}; Node ${process.version}, ${cpus()[0]?.model ?? "unknown CPU"} × ${availableParallelism()}, ${
    (totalmem() / 2 ** 30).toFixed(0)
  } GiB, Linux ${process.arch}; the server, PgBouncer and ${plan.processes} processes with the environments share this machine, so a cold start
is bound by its processors. Seed ${plan.seed}.
`
