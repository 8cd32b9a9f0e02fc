/** Runs contenders side by side: each in a process of its own, in turns, several rounds. */
import { type ChildProcess, fork } from "node:child_process"
import { on, once } from "node:events"
import { fileURLToPath } from "node:url"
import { type LoadRow, median } from "../performance/row.ts"
import { isMultiplexed, type Name } from "./contender.ts"
import type { Result, Span, Task } from "./host.ts"
import type { Server } from "./server.ts"
import { cleanup, type Suite } from "./workload.ts"

export interface Cell {
  readonly suite: Suite
  /** Rows of a range, bytes of a payload. */
  readonly size: number
  readonly callers: number
  readonly max: number
  readonly contenders: ReadonlyArray<Name>
  readonly rounds: number
  /** How long each contender works before its first round: for the compiler, and until all sessions are open. */
  readonly prime: Span
  readonly warmUp: Span
  readonly lasts: Span
}

/** Anything that a contender is asked for takes far less. */
const deadline = 120_000

/** As many draining callers as this are not waited for when nothing is measured afterwards. */
const crowd = 10_000

/** Callers for whom ten sessions are opened even where one is shared by 32 of them. */
const fullHouse = 400

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
      const timer = setTimeout(() => child.kill("SIGKILL"), deadline)
      const next = await answers.next()
      clearTimeout(timer)
      if (next.done === true) {
        throw new Error(`${name} has ended with ${child.signalCode ?? `exit code ${child.exitCode}`} in mid-task`)
      }
      return (next.value as [unknown])[0]
    }
  }
  await host.answer()
  return host
}

const end = async ({ process }: Host): Promise<void> => {
  if (process.exitCode !== null || process.signalCode !== null) return
  const ended = once(process, "exit")
  process.send("close")
  const timer = setTimeout(() => process.kill("SIGKILL"), 2_000)
  await ended
  clearTimeout(timer)
}

type Measured = Result & { readonly serverCpuUs: number | undefined }

const rowsOf = (cell: Cell, results: ReadonlyMap<Name, ReadonlyArray<Measured>>): ReadonlyArray<LoadRow> => {
  const { callers, contenders, max, size, suite } = cell
  const rounds = (name: Name, figure: (result: Measured) => number | undefined): ReadonlyArray<number> | undefined => {
    const figures = results.get(name)?.map(figure)
    return figures?.every((each) => each !== undefined) ? figures : undefined
  }
  const qps = ({ count, seconds }: Measured) => count / seconds
  const medianOf = (figures: ReadonlyArray<number> | undefined) => (figures === undefined ? null : median(figures))
  const ratios = (name: Name, base: Name, figure: (result: Measured) => number | undefined) => {
    const own = rounds(name, figure)
    const others = rounds(base, figure)
    return own === undefined || others === undefined ? undefined : own.map((each, round) => each / others[round]!)
  }
  return contenders.map((name): LoadRow => {
    const own = results.get(name)!
    const base = isMultiplexed(name) ? "PgClient, multiplexed" : "PgClient"
    const toPgClient = ratios(name, base, qps)
    return {
      suite,
      contender: name,
      callers,
      max,
      qps: median(own.map(qps)),
      ratioToPgClient: medianOf(toPgClient),
      p50Ms: medianOf(rounds(name, ({ p50Ms }) => p50Ms)),
      p99Ms: medianOf(rounds(name, ({ p99Ms }) => p99Ms)),
      clientCpuUs: median(own.map(({ clientCpuUs }) => clientCpuUs)),
      serverCpuUs: medianOf(rounds(name, ({ serverCpuUs }) => serverCpuUs)),
      rssMb: median(own.map(({ rssMb }) => rssMb)),
      errors: own.reduce((sum, { errors }) => sum + errors, 0),
      size: suite === "range" || suite === "payload" ? size : null,
      ratioToPostgresJs: medianOf(ratios(name, "postgres.js", qps)),
      ratioToPg: medianOf(ratios(name, "pg", qps)),
      p50RatioToPgClient: medianOf(ratios(name, base, ({ p50Ms }) => p50Ms)),
      p99RatioToPostgresJs: medianOf(ratios(name, "postgres.js", ({ p99Ms }) => p99Ms)),
      rounds: own.map(qps),
      ratios: toPgClient ?? null
    }
  })
}

export const measure = async (cell: Cell, server: Server): Promise<ReadonlyArray<LoadRow>> => {
  const { callers, contenders, lasts, max, prime, rounds, size, suite, warmUp } = cell
  await server.run(cleanup)
  const hosts = new Map<Name, Host>()
  const results = new Map<Name, Array<Measured>>(contenders.map((name) => [name, []]))
  try {
    for (const [index, host] of (await Promise.all(contenders.map((name) => start(name, server.url, max)))).entries()) {
      hosts.set(contenders[index]!, host)
    }
    const perform = async (host: Host, task: Task, isLeft: boolean): Promise<Measured> => {
      host.process.send(task)
      await host.answer()
      const before = server.cpuTicks()
      const result = await host.answer() as Result
      const after = server.cpuTicks()
      if (isLeft) {
        host.process.kill("SIGKILL")
        await once(host.process, "exit")
      } else await host.answer()
      const ticks = before === undefined || after === undefined ? undefined : after - before
      return { ...result, serverCpuUs: ticks === undefined ? undefined : ticks * server.microsPerTick / result.count }
    }
    const primer: Task = {
      suite,
      size,
      callers: Math.max(max, Math.min(callers, fullHouse)),
      warmUp: prime,
      lasts: { atLeast: 1, atMost: 1, answers: 0 }
    }
    for (const host of hosts.values()) await perform(host, primer, false)
    const task: Task = { suite, size, callers, warmUp, lasts }
    for (let round = 0; round < rounds; round++) {
      const isLeft = callers >= crowd && round === rounds - 1
      for (let turn = 0; turn < contenders.length; turn++) {
        const name = contenders[(turn + round) % contenders.length]!
        const result = await perform(hosts.get(name)!, task, isLeft)
        results.get(name)!.push(result)
        if (result.firstError !== undefined) console.error(`${name}: ${result.firstError}`)
      }
    }
  } finally {
    await Promise.all(Array.from(hosts.values(), end))
  }
  return rowsOf(cell, results)
}
