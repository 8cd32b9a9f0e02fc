// What a closed breaker costs a call, in microseconds of CPU: each engine around the same work, in turns with the bare
// work, so that the difference is the breaker's own. Effects are compared with a bare effect, promises with a bare async
// function. Prints a table.
//   npm run bench:breaker              about half a minute
//   npm run bench:breaker -- --smoke   shows that it runs
import { circuitBreaker, ConsecutiveBreaker, handleAll } from "cockatiel"
import { Effect } from "effect"
import * as Breaker from "effect-pg-pool/Breaker"
import { CircuitBreaker } from "effect/persistence"
import Opossum from "opossum"

const isSmoke = process.argv.includes("--smoke")
const calls = isSmoke ? 500 : 20_000
const rounds = isSmoke ? 3 : 101
// The first rounds are the compiler's.
const warmUp = isSmoke ? 1 : 20

const costOf = (before: NodeJS.CpuUsage): number => {
  const { system, user } = process.cpuUsage(before)
  return (user + system) / calls
}

type Round = Effect.Effect<number>

const roundOf = (call: Effect.Effect<unknown, unknown>): Round =>
  Effect.orDie(Effect.gen(function*() {
    const before = process.cpuUsage()
    for (let index = 0; index < calls; index++) yield* call
    return costOf(before)
  }))

const roundOfPromises = (call: () => Promise<unknown>): Round =>
  Effect.promise(async () => {
    const before = process.cpuUsage()
    for (let index = 0; index < calls; index++) await call()
    return costOf(before)
  })

const median = (values: ReadonlyArray<number>): number => values.toSorted((a, b) => a - b)[values.length >> 1]!

interface Rival {
  readonly name: string
  readonly round: Round
}

interface Match {
  readonly bare: Rival
  readonly rivals: ReadonlyArray<Rival>
}

const matches = Effect.gen(function*() {
  const ours = yield* Breaker.make()
  const theirs = yield* CircuitBreaker.make({
    tripPolicy: CircuitBreaker.consecutive(5),
    openDuration: "30 seconds"
  })
  const around = (what: string, work: Effect.Effect<number>): Match => ({
    bare: { name: `bare ${what}`, round: roundOf(work) },
    rivals: [
      { name: "effect-pg-pool, protect", round: roundOf(ours.protect(work)) },
      { name: "effect-pg-pool, withPermit", round: roundOf(ours.withPermit(() => work)) },
      { name: "effect/persistence, execute", round: roundOf(theirs.execute(work, { key: "db" })) }
    ]
  })
  const work = async () => 1
  const cockatiel = circuitBreaker(handleAll, { halfOpenAfter: 30_000, breaker: new ConsecutiveBreaker(5) })
  // Its cheapest: no timeout of its own, no latencies kept, no snapshots.
  const opossum = new Opossum(work, { timeout: false, rollingPercentilesEnabled: false, enableSnapshots: false })
  yield* Effect.addFinalizer(() => Effect.sync(() => opossum.shutdown()))
  const promises: Match = {
    bare: { name: "bare async function", round: roundOfPromises(work) },
    rivals: [
      { name: "cockatiel, execute", round: roundOfPromises(() => cockatiel.execute(work)) },
      { name: "opossum, fire", round: roundOfPromises(() => opossum.fire()) }
    ]
  }
  const all: ReadonlyArray<Match> = [
    around("Effect.succeed", Effect.succeed(1)),
    around("suspended effect", Effect.suspend(() => Effect.succeed(1))),
    promises
  ]
  return all
})

const compare = Effect.fnUntraced(function*({ bare, rivals }: Match) {
  const costs: Array<number> = []
  const over = rivals.map((): Array<number> => [])
  for (let round = 0; round < rounds; round++) {
    const plain = yield* bare.round
    const guarded = yield* Effect.forEach(rivals, (rival) => rival.round)
    if (round < warmUp) continue
    costs.push(plain)
    for (const [index, cost] of guarded.entries()) over[index]!.push(cost - plain)
  }
  const row = (name: string, cost: number, difference: string) =>
    console.log(`${name.padEnd(28)} ${cost.toFixed(3).padStart(8)} ${difference.padStart(9)}`)
  const plain = median(costs)
  row(bare.name, plain, "")
  for (const [index, { name }] of rivals.entries()) {
    const difference = median(over[index]!)
    row(name, plain + difference, `${difference < 0 ? "" : "+"}${difference.toFixed(3)}`)
  }
})

const program = Effect.gen(function*() {
  console.log(`${"us of CPU a call".padEnd(28)} ${"in all".padStart(8)} ${"over bare".padStart(9)}`)
  for (const match of yield* matches) yield* compare(match)
  console.log(`medians of ${rounds - warmUp} rounds of ${calls} calls, in turns`)
})

await Effect.runPromise(Effect.provide(Effect.scoped(program), CircuitBreaker.layerStoreMemory()))
