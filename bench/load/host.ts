// One contender in a process of its own: it is told what to do, and answers with what that took.
import { makeTally } from "./callers.ts"
import { contenders, type Name } from "./contender.ts"
import type { Suite } from "./workload.ts"

/** Times in milliseconds. */
export interface Task {
  readonly suite: Suite
  readonly callers: number
  readonly warmUp: number
  readonly lasts: number
}

export interface Result {
  readonly count: number
  readonly seconds: number
  readonly p50Ms: number
  readonly p99Ms: number
  readonly clientCpuUs: number
  /** The most that was resident meanwhile. */
  readonly rssMb: number
  readonly errors: number
  readonly firstError: string | undefined
}

const sleep = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

const [name, url, max] = process.argv.slice(2) as [Name, string, string]
const { open } = await contenders[name]()
const contender = await open({ url, max: Number(max) }, name)

const perform = async ({ callers, lasts, suite, warmUp }: Task): Promise<Result> => {
  const tally = makeTally()
  const ended = contender.run(suite, callers, tally)
  await sleep(warmUp)
  process.send!("warm")
  tally.latencies.clear()
  tally.errors = 0
  const cpuBefore = process.cpuUsage()
  const startedAt = performance.now()
  let rss = 0
  const watch = setInterval(() => {
    rss = Math.max(rss, process.memoryUsage.rss())
  }, 25)
  await sleep(lasts)
  const seconds = (performance.now() - startedAt) / 1000
  const { system, user } = process.cpuUsage(cpuBefore)
  clearInterval(watch)
  const count = tally.latencies.count()
  const result: Result = {
    count,
    seconds,
    p50Ms: tally.latencies.quantile(0.5),
    p99Ms: tally.latencies.quantile(0.99),
    clientCpuUs: (user + system) / count,
    rssMb: Math.max(rss, process.memoryUsage.rss()) / 2 ** 20,
    errors: tally.errors,
    firstError: tally.firstError
  }
  process.send!(result)
  tally.isOver = true
  await ended
  return result
}

process.on("message", (task: Task | "close") => {
  if (task === "close") {
    void contender.close().then(() => process.exit(0))
  } else {
    void perform(task).then(() => process.send!("done"))
  }
})
process.send!("open")
