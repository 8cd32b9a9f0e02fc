/** Runs contenders side by side: each in a process of its own, in turns, several rounds. */
import { type ChildProcess, fork } from "node:child_process"
import { on, once } from "node:events"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import type { Name } from "./contender.ts"
import type { Result, Task } from "./host.ts"
import type { Suite } from "./workload.ts"

/** One line of the results. */
export interface Row {
  readonly suite: string
  readonly contender: string
  readonly callers: number
  readonly max: number
  readonly qps: number
  /** The median of the rounds' ratios to the driver's own pool in the same mode. */
  readonly ratioToPgClient: number | null
  readonly p50Ms: number
  readonly p99Ms: number
  readonly clientCpuUs: number
  readonly serverCpuUs: number | null
  readonly rssMb: number
  readonly errors: number
  /** The results of each round, in their order. */
  readonly rounds: ReadonlyArray<number>
}

export interface Cell {
  readonly suite: Suite
  readonly callers: number
  readonly max: number
  readonly contenders: ReadonlyArray<Name>
  readonly rounds: number
  /** Milliseconds. */
  readonly warmUp: number
  readonly lasts: number
}

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** Clock ticks that the server's processes have used; `undefined` where there is no /proc. */
const serverTicks = (postmaster: number): number | undefined => {
  const stat = (pid: number) => readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /, "").split(" ").map(Number)
  try {
    const own = stat(postmaster)
    // Those that have ended are in the parent's account.
    let ticks = own[11]! + own[12]! + own[13]! + own[14]!
    for (const pid of readFileSync(`/proc/${postmaster}/task/${postmaster}/children`, "utf8").trim().split(" ")) {
      const fields = stat(Number(pid))
      ticks += fields[11]! + fields[12]!
    }
    return ticks
  } catch {
    return undefined
  }
}
const microsPerTick = 10_000

/** A contender's process, and what it has said that nobody has heard yet. */
interface Host {
  readonly process: ChildProcess
  readonly answer: () => Promise<unknown>
}

const start = async (name: Name, url: string, max: number): Promise<Host> => {
  const child = fork(fileURLToPath(new URL("host.ts", import.meta.url)), [name, url, String(max)])
  const answers = on(child, "message", { close: ["exit"] })
  const host: Host = {
    process: child,
    answer: async () => {
      const next = await answers.next()
      if (next.done === true) throw new Error(`${name} has ended with exit code ${child.exitCode}`)
      return (next.value as [unknown])[0]
    }
  }
  await host.answer()
  return host
}

export const measure = async (cell: Cell, url: string, postmaster: number): Promise<ReadonlyArray<Row>> => {
  const { callers, contenders, lasts, max, rounds, suite, warmUp } = cell
  const hosts = new Map<Name, Host>()
  for (const name of contenders) hosts.set(name, await start(name, url, max))
  const results = new Map<Name, Array<Result & { readonly serverCpuUs: number | undefined }>>(
    contenders.map((name) => [name, []])
  )
  try {
    for (let round = 0; round < rounds; round++) {
      for (let turn = 0; turn < contenders.length; turn++) {
        const name = contenders[(turn + round) % contenders.length]!
        const host = hosts.get(name)!
        const task: Task = { suite, callers, warmUp: round === 0 ? 2 * warmUp : warmUp, lasts }
        host.process.send(task)
        await host.answer()
        const before = serverTicks(postmaster)
        const result = await host.answer() as Result
        const after = serverTicks(postmaster)
        await host.answer()
        const ticks = before === undefined || after === undefined ? undefined : after - before
        results.get(name)!.push({
          ...result,
          serverCpuUs: ticks === undefined ? undefined : (ticks * microsPerTick) / result.count
        })
        if (result.firstError !== undefined) console.error(`${name}: ${result.firstError}`)
      }
    }
  } finally {
    for (const host of hosts.values()) {
      if (host.process.exitCode !== null) continue
      host.process.send("close")
      await once(host.process, "exit")
    }
  }
  const qpsOf = (name: Name) => results.get(name)!.map(({ count, seconds }) => count / seconds)
  return contenders.map((name): Row => {
    const own = results.get(name)!
    const qps = qpsOf(name)
    const base: Name = name.endsWith(", multiplexed") ? "PgClient, multiplexed" : "PgClient"
    const baseQps = contenders.includes(base) ? qpsOf(base) : undefined
    const server = own.flatMap(({ serverCpuUs }) => serverCpuUs === undefined ? [] : [serverCpuUs])
    return {
      suite,
      contender: name,
      callers,
      max,
      qps: median(qps),
      ratioToPgClient: baseQps === undefined ? null : median(qps.map((each, round) => each / baseQps[round]!)),
      p50Ms: median(own.map(({ p50Ms }) => p50Ms)),
      p99Ms: median(own.map(({ p99Ms }) => p99Ms)),
      clientCpuUs: median(own.map(({ clientCpuUs }) => clientCpuUs)),
      serverCpuUs: server.length === 0 ? null : median(server),
      rssMb: median(own.map(({ rssMb }) => rssMb)),
      errors: own.reduce((sum, { errors }) => sum + errors, 0),
      rounds: qps
    }
  })
}
