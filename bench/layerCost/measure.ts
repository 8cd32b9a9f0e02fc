/** Runs subjects side by side: in turns, many short rounds. */
import { type ChildProcess, fork } from "node:child_process"
import { on } from "node:events"
import { fileURLToPath } from "node:url"
import { median, type Row as AnyRow } from "../performance/row.ts"
import type { Faults, Result, Task } from "./host.ts"
import { max, type Setting } from "./statements.ts"
import type { Name } from "./subjects.ts"

/** One line of the results. Calls per second are those of one core, on the stub, and so of no database. */
export interface Row extends AnyRow {
  readonly suite: "layer-cost"
  readonly callers: number
  readonly clientCpuUs: number
  readonly errors: number
  readonly heat: string
  /** What it is compared with; `null` for those that others are compared with. */
  readonly beyond: string | null
  /** The median of what a call costs beyond that, else of what it costs, in nanoseconds of CPU. */
  readonly nanos: number
  /** Half of the rounds lie within so many nanoseconds. */
  readonly spread: number
  /** The same of the lower quartiles: what else a machine does only ever adds to what a call costs. */
  readonly quietNanos: number
  /** What was not as it should be. */
  readonly faults: ReadonlyArray<string>
}

/** Subjects that are compared with the first of them. */
export interface Heat {
  readonly title: string
  readonly setting: Setting
  readonly callers: number
  readonly base: Name | undefined
  readonly others: ReadonlyArray<Name>
  /** Calls in a round. */
  readonly calls: number
  /** Whether the subjects are clients, of a pool each. */
  readonly isOfClients: boolean
}

export interface Effort {
  readonly rounds: number
  /** Rounds that are the compiler's. */
  readonly warmUp: number
  /** The share of a heat's calls in a round. */
  readonly share: number
  /** Whether each subject has a process of its own, so that the compiler knows of no other. */
  readonly isApart: boolean
}

interface Host {
  readonly process: ChildProcess
  readonly answer: () => Promise<unknown>
}

const start = async (names: ReadonlyArray<Name>, setting: Setting): Promise<Host> => {
  const child = fork(
    fileURLToPath(new URL("host.ts", import.meta.url)),
    [names, setting].map((each) => JSON.stringify(each))
  )
  const answers = on(child, "message", { close: ["exit"] })
  const host: Host = {
    process: child,
    answer: async () => {
      const next = await answers.next()
      if (next.done === true) {
        throw new Error(`${names.join(", ")}: the process has ended with exit code ${child.exitCode}`)
      }
      return (next.value as [unknown])[0]
    }
  }
  await host.answer()
  return host
}

const quantile = (sorted: ReadonlyArray<number>, share: number): number => {
  const at = (sorted.length - 1) * share
  const below = sorted[Math.floor(at)]!
  return below + (sorted[Math.ceil(at)]! - below) * (at % 1)
}

const sortedOf = (values: ReadonlyArray<number>) => values.toSorted((a, b) => a - b)

/** Nanoseconds. */
const quietOf = (costs: ReadonlyArray<number>): number => 1000 * quantile(sortedOf(costs), 0.25)

export const measure = async (heat: Heat, { isApart, rounds, share, warmUp }: Effort): Promise<ReadonlyArray<Row>> => {
  const { base, callers, isOfClients, others, setting, title } = heat
  const names = base === undefined ? others : [base, ...others]
  const calls = Math.max(callers, Math.round(heat.calls * share))
  const households = isApart || isOfClients ? names.map((name) => [name]) : [names]
  const hosts = new Map<Name, Host>()
  const results = new Map<Name, Array<Result>>(names.map((name) => [name, []]))
  const faults = new Map<Name, ReadonlyArray<string>>()
  try {
    const started = await Promise.all(households.map((names) => start(names, setting)))
    for (const [index, host] of started.entries()) for (const name of households[index]!) hosts.set(name, host)
    for (let round = -warmUp; round < rounds; round++) {
      for (let turn = 0; turn < names.length; turn++) {
        const name = names[(turn + round + warmUp) % names.length]!
        const host = hosts.get(name)!
        host.process.send({ name, callers, calls } satisfies Task)
        const result = await host.answer() as Result
        if (round >= 0) results.get(name)!.push(result)
      }
    }
    for (const host of started) {
      host.process.send("end")
      for (const [name, found] of await host.answer() as Faults) faults.set(name, found)
    }
  } finally {
    for (const host of hosts.values()) host.process.kill()
  }
  const costs = (name: Name) => results.get(name)!.map(({ cpuUs }) => cpuUs)
  const speeds = (name: Name) => results.get(name)!.map(({ seconds }) => calls / seconds)
  return names.map((name): Row => {
    const beyond = base === undefined || name === base ? null : base
    const own = costs(name)
    const theirs = beyond === null ? undefined : costs(beyond)
    const nanos = sortedOf(own.map((each, round) => 1000 * (each - (theirs?.[round] ?? 0))))
    const found = faults.get(name)!
    return {
      suite: "layer-cost",
      contender: `${name}${setting.multiplex ? ", multiplexed" : ""}`,
      callers,
      max: isOfClients ? max : null,
      qps: isOfClients ? median(speeds(name)) : null,
      ratioToPgClient: isOfClients && base === "PgClient"
        ? median(speeds(name).map((each, round) => each / speeds(base)[round]!))
        : null,
      p50Ms: null,
      p99Ms: null,
      clientCpuUs: median(own),
      serverCpuUs: null,
      rssMb: median(results.get(name)!.map(({ rssMb }) => rssMb)),
      errors: found.length,
      heat: title,
      beyond,
      nanos: quantile(nanos, 0.5),
      spread: quantile(nanos, 0.75) - quantile(nanos, 0.25),
      quietNanos: quietOf(own) - (theirs === undefined ? 0 : quietOf(theirs)),
      faults: found
    }
  })
}
