// One subject in a process of its own: it is told how many calls to make, and answers with what they cost.
import type { Setting } from "./statements.ts"
import { type Name, subjects } from "./subjects.ts"

export interface Task {
  readonly callers: number
  readonly calls: number
}

export interface Result {
  /** Microseconds of CPU per call, of all threads: the compiler's and the collector's as well. */
  readonly cpuUs: number
  readonly seconds: number
  readonly rssMb: number
}

const [name, setting] = process.argv.slice(2) as [Name, string]
const subject = await subjects[name](JSON.parse(setting) as Setting)
let made = 0

const perform = async ({ callers, calls }: Task): Promise<Result> => {
  const startedAt = performance.now()
  const before = process.cpuUsage()
  await subject.run(callers, calls)
  const { system, user } = process.cpuUsage(before)
  const seconds = (performance.now() - startedAt) / 1000
  made += calls
  return { cpuUs: (user + system) / calls, seconds, rssMb: process.memoryUsage.rss() / 2 ** 20 }
}

process.on("message", (task: Task | "end") => {
  if (task !== "end") return void perform(task).then((result) => process.send!(result))
  process.send!(subject.faults(made), () => void subject.close().then(() => process.exit(0)))
})
// Whoever asks may be stopped in the middle of it.
process.on("disconnect", () => process.exit(1))
process.send!("open")
