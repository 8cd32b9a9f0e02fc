// What one healthy statement costs beyond the plain driver: both run on the same scripted connection that answers at
// once, in turns, so that what is left is the layer's own work. Prints microseconds of CPU per statement, and how many
// nanoseconds of them count what is measured: by running the same layer without the counting, which is within the noise,
// and by running the counting alone.
//   npm run bench -- --only layer-cost
import { PgClient } from "@effect/sql-pg"
import { Context, Effect, Layer } from "effect"
import * as Pg from "effect-pg-pool"
import { SqlClient } from "effect/sql"
import { Duplex } from "node:stream"

const statements = 5_000
const rounds = 121

// No session wears out meanwhile: opening one is not what is measured here.
const maxUses = 2 * statements * rounds

const int16 = (value: number) => {
  const bytes = Buffer.alloc(2)
  bytes.writeInt16BE(value)
  return bytes
}
const int32 = (value: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  return bytes
}
const message = (type: string, ...body: ReadonlyArray<Uint8Array>) => {
  const bytes = Buffer.concat(body)
  return Buffer.concat([Buffer.from(type), int32(bytes.length + 4), bytes])
}

const ready = message("Z", Buffer.from("I"))
const greeting = Buffer.concat([message("R", int32(0)), message("K", int32(1), int32(2)), ready])
const columns = message(
  "T",
  int16(1),
  Buffer.from("one\0"),
  int32(0),
  int16(0),
  int32(23),
  int16(4),
  int32(-1),
  int16(1)
)
const answer = Buffer.concat([
  message("D", int16(1), int32(4), int32(1)),
  message("C", Buffer.from("SELECT 1\0")),
  ready
])
const parsed = Buffer.concat([message("1"), message("2"), columns, answer])
const bound = Buffer.concat([message("2"), answer])

const parse = 0x50
const bind = 0x42
const terminate = 0x58

/** A server that knows one statement and has its answer ready. */
const stream = () => {
  let isGreeted = false
  return new Duplex({
    read() {},
    write(chunk: Uint8Array, _encoding, callback) {
      callback()
      if (!isGreeted) {
        isGreeted = true
        this.push(greeting)
      } else if (chunk[0] === terminate) this.destroy()
      else if (chunk[0] === parse) this.push(parsed)
      else if (chunk[0] === bind) this.push(bound)
    }
  })
}

const round = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const statement = sql`SELECT 1 AS one`
  const before = process.cpuUsage()
  for (let index = 0; index < statements; index++) yield* statement
  const { system, user } = process.cpuUsage(before)
  return (user + system) / statements
})

const median = (values: ReadonlyArray<number>) => values.toSorted((a, b) => a - b)[values.length >> 1]!

/** What is counted of one healthy statement, and nothing else. */
const count = (store: Pg.Metrics.Store, seconds: number): void => {
  store.acquire.acquired.observe(0)
  store.queries.succeeded("SELECT 1 AS one", seconds)
  store.use.observe(seconds)
}

const counting = (store: Pg.Metrics.Store): number => {
  const calls = 1_000_000
  // From 0.1 milliseconds to 3 seconds.
  const durations = Float64Array.from({ length: 1024 }, (_, index) => 0.0001 * 1.01 ** index)
  const times: Array<number> = []
  for (let index = 0; index < 15; index++) {
    const before = process.cpuUsage()
    for (let call = 0; call < calls; call++) count(store, durations[call & 1023]!)
    const { system, user } = process.cpuUsage(before)
    times.push(((user + system) * 1000) / calls)
  }
  return median(times)
}

const nothing = (): void => {}

/** From now on nothing is counted of healthy statements. */
const silence = ({ acquire, queries, use }: Pg.Metrics.Store): void => {
  acquire.acquired.observe = nothing
  queries.succeeded = nothing
  use.observe = nothing
}

const program = Effect.gen(function*() {
  const driver = yield* Layer.build(PgClient.layer({ stream, username: "bench", maxConnections: 10 }))
  const makePool = Layer.build(Layer.fresh(Pg.layer({ stream, username: "bench", max: 10, maxUses })))
  const pool = yield* makePool
  const differences: Array<number> = []
  const costs: Array<number> = []
  for (let index = 0; index < rounds; index++) {
    const plain = yield* Effect.provide(round, driver)
    const ours = yield* Effect.provide(round, pool)
    // The first rounds are the compiler's.
    if (index < 20) continue
    costs.push(plain)
    differences.push(ours - plain)
  }
  // Afterwards: a store of another shape makes the compiler's work at the same places worse for both.
  const uncounted = yield* makePool
  silence(Context.get(uncounted, Pg.Metrics.Metrics).store)
  const shares: Array<number> = []
  for (let index = 0; index < rounds; index++) {
    const ours = yield* Effect.provide(round, pool)
    const silent = yield* Effect.provide(round, uncounted)
    if (index >= 20) shares.push(ours - silent)
  }
  console.log(`plain driver            ${median(costs).toFixed(2)} us`)
  console.log(`the layer on top of it  ${median(differences).toFixed(2)} us (${differences.length} rounds, median)`)
  console.log(`  with counting minus without  ${(1000 * median(shares)).toFixed(0)} ns`)
  console.log(`  the counting alone           ${counting(Context.get(pool, Pg.Metrics.Metrics).store).toFixed(0)} ns`)
})

await Effect.runPromise(Effect.scoped(program))
