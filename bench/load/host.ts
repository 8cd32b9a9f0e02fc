// One contender in a process of its own: it is told what to do, and answers with what that took.
import { makeTally } from "./callers.ts"
import { contenders, type Name, type Work } from "./contender.ts"

/** How long something is done: until there were so many answers, within bounds of milliseconds. */
export interface Span {
  readonly atLeast: number
  readonly atMost: number
  readonly answers: number
}

export interface Task extends Work {
  readonly callers: number
  readonly warmUp: Span
  readonly lasts: Span
}

export interface Result {
  readonly count: number
  readonly seconds: number
  /** `undefined` where not even one answer came for each caller, so that the slow ones are not among them. */
  readonly p50Ms: number | undefined
  readonly p99Ms: number | undefined
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

const perform = async (task: Task): Promise<void> => {
  const { callers, lasts, warmUp } = task
  const tally = makeTally()
  const answers = tally.latencies.count
  const spend = async (span: Span): Promise<void> => {
    const end = performance.now() + span.atMost
    await sleep(span.atLeast)
    while (answers() < span.answers && performance.now() < end) await sleep(10)
  }
  const ended = contender.run(task, callers, tally)
  await spend(warmUp)
  process.send!("warm")
  tally.latencies.clear()
  const cpuBefore = process.cpuUsage()
  const startedAt = performance.now()
  let rss = 0
  const watch = setInterval(() => {
    rss = Math.max(rss, process.memoryUsage.rss())
  }, 25)
  await spend(lasts)
  const seconds = (performance.now() - startedAt) / 1000
  const { system, user } = process.cpuUsage(cpuBefore)
  clearInterval(watch)
  const count = answers()
  const isComplete = count >= callers
  process.send!(
    {
      count,
      seconds,
      p50Ms: isComplete ? tally.latencies.quantile(0.5) : undefined,
      p99Ms: isComplete ? tally.latencies.quantile(0.99) : undefined,
      clientCpuUs: (user + system) / Math.max(1, count),
      rssMb: Math.max(rss, process.memoryUsage.rss()) / 2 ** 20,
      // Those while it warmed up as well: there may be none at all.
      errors: tally.errors,
      firstError: tally.firstError
    } satisfies Result
  )
  tally.isOver = true
  await ended
}

process.on("message", (task: Task | "close") => {
  if (task === "close") {
    void contender.close().then(() => process.exit(0))
  } else {
    void perform(task).then(() => process.send!("done"))
  }
})
process.send!("open")
