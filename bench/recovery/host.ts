// One contender in a process of its own, with callers who never stop asking, and a record of what they saw.
import { type Contender, contenders, type Fate, type Name } from "./contender.ts"
import { type Bin, bin, type Task, type Testimony } from "./testimony.ts"

/** One operation in so many is a write. */
const writeEvery = 10
/** What a caller does after a failure: the same for all, and short, so that none waits for its callers. */
const patience = 10
const rows = 100_000

const sleep = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))
const now = (): number => performance.timeOrigin + performance.now()

const work = (contender: Contender, { callers, firstId }: Task) => {
  const from = now()
  const bins: Array<Bin> = []
  const failures: Record<string, number> = {}
  const acknowledged: Array<number> = []
  const failed: Array<readonly [number, Fate]> = []
  const slow: Array<readonly [number, number]> = []
  const life = { isOver: false }
  let operations = 0
  let nextId = firstId
  let seed = firstId >>> 0

  const binAt = (at: number): Bin => {
    const index = Math.floor((at - from) / bin)
    while (bins.length <= index) bins.push({ successes: 0, readErrors: 0, writeErrors: 0 })
    return bins[index]!
  }
  const nextKey = (): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    return 1 + (seed % rows)
  }
  const caller = async (): Promise<void> => {
    while (!life.isOver) {
      const isWrite = ++operations % writeEvery === 0
      const id = isWrite ? nextId++ : nextKey()
      const startedAt = now()
      try {
        await (isWrite ? contender.write(id) : contender.read(id))
        binAt(now()).successes++
        if (isWrite) acknowledged.push(id)
      } catch (error) {
        const { fate, name } = contender.trouble(error)
        const failure = `${isWrite ? "write" : "read"}: ${name}`
        failures[failure] = (failures[failure] ?? 0) + 1
        if (isWrite) failed.push([id, fate])
        binAt(now())[isWrite ? "writeErrors" : "readErrors"]++
        await sleep(patience)
      }
      const took = now() - startedAt
      if (took > bin) slow.push([startedAt, took])
    }
  }
  const ended = Promise.all(Array.from({ length: callers }, caller))
  return async (): Promise<Testimony> => {
    life.isOver = true
    await Promise.race([ended, sleep(2_000)])
    return { from, bins, failures, acknowledged, failed, slow }
  }
}

const [name, url, max] = process.argv.slice(2) as [Name, string, string]
const { open } = await contenders[name]()
const contender = await open({ url, max: Number(max) }, name)
let end: (() => Promise<Testimony>) | undefined

process.on("message", (message: Task | "end") => {
  if (message === "end") void end!().then((testimony) => process.send!(testimony, () => process.exit(0)))
  else end = work(contender, message)
})
process.on("unhandledRejection", () => {})
process.send!("open")
