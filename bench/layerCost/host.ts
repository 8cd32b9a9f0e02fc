// Subjects in a process: it is told which of them has to make how many calls, and answers with what they cost.
import type { Setting } from "./statements.ts"
import type { Subject } from "./subject.ts"
import { type Name, subjects } from "./subjects.ts"

export interface Task {
  readonly name: Name
  readonly callers: number
  readonly calls: number
}

export interface Result {
  /** Microseconds of CPU per call, of all threads: the compiler's and the collector's as well. */
  readonly cpuUs: number
  readonly seconds: number
  readonly rssMb: number
}

/** What was not as it should be, of each subject. */
export type Faults = ReadonlyArray<readonly [Name, ReadonlyArray<string>]>

interface Lodger {
  readonly subject: Subject
  made: number
}

const [names, setting] = process.argv.slice(2).map((text) => JSON.parse(text)) as [ReadonlyArray<Name>, Setting]
const lodgers = new Map<Name, Lodger>()
for (const name of names) lodgers.set(name, { subject: await subjects[name](setting), made: 0 })

const perform = async ({ callers, calls, name }: Task): Promise<Result> => {
  const lodger = lodgers.get(name)!
  const startedAt = performance.now()
  const before = process.cpuUsage()
  await lodger.subject.run(callers, calls)
  const { system, user } = process.cpuUsage(before)
  const seconds = (performance.now() - startedAt) / 1000
  lodger.made += calls
  return { cpuUs: (user + system) / calls, seconds, rssMb: process.memoryUsage.rss() / 2 ** 20 }
}

const end = async (): Promise<void> => {
  for (const { subject } of lodgers.values()) await subject.close()
  process.exit(0)
}

process.on("message", (task: Task | "end") => {
  if (task !== "end") return void perform(task).then((result) => process.send!(result))
  const faults: Faults = Array.from(lodgers, ([name, { made, subject }]) => [name, subject.faults(made)])
  process.send!(faults, () => void end())
})
// Whoever asks may be stopped in the middle of it.
process.on("disconnect", () => process.exit(1))
process.send!("open")
