// Lets two pools, and many that live for a moment, work for as long as it is told to while their sessions are killed,
// their server is stopped, crashed and frozen, their network delays, drops, cuts and swallows, their callers leave and
// their knobs are turned. Then it compares the database with what each caller was told. Exit code 0: nothing that was
// acknowledged is lost, nothing was applied twice, nothing is left behind, and nobody waited for ever.
//   npm run soak -- --minutes 20
//   npm run soak -- --seconds 60 --seed 7    the same faults in the same order; the times are the machine's own
//   npm run soak -- --verbose                what was done and when, also when all is well
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Pg from "effect-pg-pool"
import { EmbeddedPostgres, FaultProxy } from "effect-pg-pool/testing"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { randomInt } from "node:crypto"
import { parseArgs } from "node:util"
import * as Chance from "./soak/chance.ts"
import * as Faults from "./soak/faults.ts"
import * as Ledger from "./soak/ledger.ts"
import * as Lives from "./soak/lives.ts"
import * as Variety from "./soak/variety.ts"
import * as Watch from "./soak/watch.ts"
import * as Workload from "./soak/workload.ts"

const { values: given } = parseArgs({
  options: {
    minutes: { type: "string" },
    seconds: { type: "string" },
    seed: { type: "string" },
    verbose: { type: "boolean" }
  }
})
const duration = 1000 * (given.seconds === undefined ? 60 * Number(given.minutes ?? 1) : Number(given.seconds))
const seed = given.seed === undefined ? randomInt(1_000_000) : Number(given.seed)
if (!(duration > 0) || !Number.isInteger(seed)) {
  console.error("Usage: npm run soak -- [--minutes 1 | --seconds 60] [--seed <whole number>] [--verbose]")
  process.exit(2)
}

const beginning = performance.now()
const now = () => performance.now() - beginning
const line = (text = "") => console.log(text)
const clock = () => `[${(now() / 1000).toFixed(0).padStart(5)} s]`

const max = 6
const closeTimeout = 2000
const settings = {
  acquireTimeout: 5000,
  connectTimeout: 2000,
  idleTimeout: 1000,
  validateAfter: 600,
  statementTimeout: 3000,
  lockTimeout: 2000,
  queryTimeout: 2000,
  closeTimeout,
  multiplexConcurrency: 8,
  breaker: { openFor: 500, maxOpenFor: 1000 }
} satisfies Pg.Options

/** Milliseconds that one operation may take: every wait of it is bounded by the settings, and it is tried five times. */
const bound = 90_000
/** What the server may take to notice that everybody has left. */
const farewell = 30_000

const eventually = (holds: Effect.Effect<boolean>, within: number): Effect.Effect<boolean> =>
  Effect.suspend(() => {
    const until = now() + within
    return Effect.repeat(Effect.delay(holds, 50), { until: (yes) => yes || now() > until })
  })

const soak = Effect.gen(function*() {
  line(`effect-pg-pool: ${duration / 1000} seconds of faults, seed ${seed}, ${process.version}`)
  const ledger = Ledger.make(now)
  const server = yield* EmbeddedPostgres.make({
    useDatabaseUrl: false,
    // What was acknowledged outlives a crash.
    settings: { fsync: "on", full_page_writes: "on" }
  })
  const direct = <A, E>(f: (connection: PgConnection.PgConnection) => Effect.Effect<A, E>) =>
    Effect.scoped(Effect.flatMap(PgConnection.make({ url: server.url, applicationName: "proof of the soak" }), f))
  yield* direct((connection) => Effect.forEach(Ledger.tables, (sql) => connection.query(sql, [], false)))
  const sockets = yield* Watch.sockets

  // -------------------------------------------------------------------------------------------------------------------
  // the pools
  // -------------------------------------------------------------------------------------------------------------------

  const house = Effect.fnUntraced(function*(name: string, most: number) {
    const chance = yield* Chance.make(seed, name)
    const proxy = yield* FaultProxy.make(server.url).pipe(Random.withSeed(`${seed}/${name}/proxy`))
    const watched = Watch.make(name, most, now())
    const count = Effect.sync(() => Watch.countSockets(watched, proxy.port, sockets, ledger))
    const options = { ...settings, max: most, url: proxy.url, name, applicationName: `soak ${name}` }
    return { name, chance, proxy, watched, count, options: { ...options, afterConnect: () => count } }
  })
  const pooled = Effect.fnUntraced(function*(name: string, callers: number, multiplex: boolean) {
    const built = yield* house(name, max)
    const scope = Scope.makeUnsafe()
    const variety = Variety.make(built.chance, max, multiplex)
    line(`  ${name}: ${variety.description}`)
    const layer = Pg.layer({ ...built.options, ...variety.options })
    const services = yield* Scope.provide(Layer.build(layer), scope)
    const succeeded = () => Watch.succeeded(built.watched, now())
    const workload = yield* Workload.start({ name, callers, services, chance: built.chance, ledger, succeeded })
    return { ...built, scope, services, pool: Context.get(services, Pg.Pool.Pool), workload }
  })

  const plain = yield* pooled("plain", 12, false)
  const multiplexed = yield* pooled("multiplexed", 24, true)
  const pools = [plain, multiplexed]
  const brief = yield* house("brief", 2)
  const houses = [...pools, brief]
  // Of the brief ones nobody can say how many of them the server has not let go of yet.
  const watched = pools.map(({ watched }) => watched)
  const everybody = houses.map(({ watched }) => watched)

  // -------------------------------------------------------------------------------------------------------------------
  // the faults
  // -------------------------------------------------------------------------------------------------------------------

  const scene: Faults.Scene = {
    server,
    now,
    done: new Map(),
    chronicle: [],
    say: (text) => line(`${clock()} ${text}`),
    isOver: false
  }
  const faults = yield* Effect.forEach([
    Faults.onServer(scene, everybody, yield* Chance.make(seed, "server")),
    ...(yield* Effect.forEach(
      pools,
      ({ name, pool, proxy, watched }) =>
        Effect.map(Chance.make(seed, `${name} faults`), (chance) => Faults.onPool(scene, watched, pool, proxy, chance))
    )),
    Faults.onNetworkAlone(scene, brief.watched, brief.proxy, yield* Chance.make(seed, "brief faults"))
  ], (torment) => Effect.forkDetach(torment))
  const lives = yield* Effect.forkDetach(Lives.live({
    ...brief,
    options: { ...brief.options, closeTimeout: 500 },
    port: brief.proxy.port,
    sockets,
    ledger,
    now,
    isOver: () => scene.isOver
  }))

  // -------------------------------------------------------------------------------------------------------------------
  // the watch
  // -------------------------------------------------------------------------------------------------------------------

  const watch = yield* Effect.forkDetach(Effect.all([
    Watch.sessions(server.url, watched, ledger, now),
    Watch.lookForStuck(watched, ledger, now),
    Effect.forEach(houses, ({ count }) => count, { discard: true }).pipe(Effect.schedule(Schedule.spaced(50)))
  ], { concurrency: "unbounded" }))
  const stranded = new Set<number>()
  const lookForStranded = (patience: number) => {
    for (const entry of ledger.pending()) {
      if (now() - entry.from < patience || stranded.has(entry.id)) continue
      stranded.add(entry.id)
      ledger.problems.push(["stranded", ledger.story(entry)])
    }
  }
  const progress = yield* Effect.forkDetach(
    Effect.suspend(() => {
      lookForStranded(bound)
      let faultCount = 0
      for (const times of scene.done.values()) faultCount += times
      const busy = pools.map(({ name, pool }) => {
        const { active, idle, waiting } = pool.statsUnsafe()
        return `${name} ${active} busy ${idle} idle ${waiting} waiting`
      })
      line(
        `${clock()} ${ledger.entries.size} operations, ${faultCount} faults; ${busy.join("; ")}`
          + (ledger.problems.length === 0 ? "" : `; ${ledger.problems.length} problems`)
      )
      return Effect.void
    }).pipe(Effect.delay(10_000), Effect.forever)
  )

  yield* Effect.sleep(duration)

  // -------------------------------------------------------------------------------------------------------------------
  // the end
  // -------------------------------------------------------------------------------------------------------------------

  scene.isOver = true
  yield* Fiber.awaitAll(faults)
  yield* Fiber.interrupt(progress)
  yield* server.start
  for (const { proxy } of houses) yield* proxy.liftAll
  // A break is no stall.
  for (const one of watched) one.faults++
  for (const { workload } of pools) workload.pause()
  line(`${clock()} the faults are over`)
  const isSettled = yield* eventually(Effect.sync(() => ledger.pending().length === 0), bound)
  if (!isSettled) lookForStranded(0)
  for (const { name, pool } of pools) {
    const isFree = Effect.sync(() => pool.statsUnsafe().active === 0 && pool.statsUnsafe().waiting === 0)
    if (!(yield* eventually(isFree, farewell))) {
      ledger.problems.push(["leaked", `${name}: leases are left: ${JSON.stringify(pool.statsUnsafe())}`])
    }
  }
  const ended = yield* Fiber.await(lives).pipe(Effect.timeoutOption(bound))
  const life = ended._tag === "Some" && Exit.isSuccess(ended.value) ? ended.value.value : undefined
  if (life === undefined) ledger.problems.push(["stranded", `the brief pools: ${JSON.stringify(ended)}`])

  // All of each pool still works, and is closed in the middle of it.
  for (const { workload } of pools) workload.resume()
  const before = now()
  for (const one of watched) {
    one.faults--
    one.lastFault = before
  }
  const isBack = Effect.sync(() => watched.every(({ lastSuccess }) => lastSuccess > before))
  if (!(yield* eventually(isBack, farewell))) {
    ledger.problems.push(["stuck", `nothing succeeded after the last fault: ${JSON.stringify(watched)}`])
  }
  yield* Effect.sleep(1000)
  const closing = yield* Effect.forEach(pools, ({ name, scope, workload }) =>
    Effect.gen(function*() {
      const from = now()
      const isClosed = yield* Effect.timeoutOption(Scope.close(scope, Exit.void), closeTimeout + farewell)
      workload.end()
      if (isClosed._tag === "None") ledger.problems.push(["slow", name])
      return now() - from
    }), { concurrency: "unbounded" })
  if (!(yield* eventually(Effect.sync(() => ledger.pending().length === 0), farewell))) lookForStranded(0)
  yield* Fiber.interrupt(watch)

  const open = () => houses.map(({ name, proxy }) => [name, sockets.left(proxy.port)] as const)
  if (!(yield* eventually(Effect.sync(() => open().every(([, left]) => left.length === 0)), farewell))) {
    ledger.problems.push(["leaked", `sockets: ${JSON.stringify(open())}`])
  }
  const others = "SELECT application_name, state, query FROM pg_stat_activity WHERE application_name LIKE 'soak %'"
  const left = direct((connection) => Effect.map(connection.query(others, [], false), ({ rows }) => rows))
  yield* Effect.orDie(left).pipe(Effect.map((rows) => rows.length === 0), (isAlone) => eventually(isAlone, farewell))
  for (const row of yield* left) ledger.problems.push(["leaked", `a session on the server: ${JSON.stringify(row)}`])

  // -------------------------------------------------------------------------------------------------------------------
  // the proof
  // -------------------------------------------------------------------------------------------------------------------

  const found = yield* direct((connection) => Ledger.reconcile(ledger, connection))
  report({ ledger, scene, watched, found, closing, life })
  return Object.values(found.wrong).every((stories) => stories.length === 0)
}).pipe(Effect.scoped)

interface Report {
  readonly ledger: Ledger.Ledger
  readonly scene: Faults.Scene
  readonly watched: ReadonlyArray<Watch.Watched>
  readonly found: Ledger.Findings
  readonly closing: ReadonlyArray<number>
  readonly life: Lives.Lives | undefined
}

const row = (label: string, ...numbers: ReadonlyArray<number | string>) =>
  line(`  ${label.padEnd(62)}${numbers.map((number) => String(number).padStart(13)).join("")}`)

/** As many stories of one kind as somebody would read. */
const most = 20

const report = ({ closing, found, ledger, life, scene, watched }: Report) => {
  line("\nOperations".padEnd(65) + ["acknowledged", "failed", "unknown"].map((name) => name.padStart(13)).join(""))
  const all = [...ledger.entries.values()]
  const names = [...new Set(all.map(({ operation }) => operation))].toSorted()
  for (const name of ["all", ...names]) {
    const entries = name === "all" ? all : all.filter(({ operation }) => operation === name)
    const told = (which: Ledger.Fate) => entries.filter(({ fate }) => fate === which).length
    row(name, told("acknowledged"), told("failed"), told("unknown"))
  }
  const counted = (title: string, counts: ReadonlyMap<string, number>) => {
    line(`\n${title}`)
    for (const [name, times] of [...counts].toSorted(([, one], [, other]) => other - one)) row(name, times)
  }
  counted("Faults", scene.done)
  counted("Errors", ledger.errors)
  line("\nPools".padEnd(65) + watched.map(({ name }) => name.padStart(13)).join(""))
  row("most sockets at once", ...watched.map(({ max, mostSockets }) => `${mostSockets} of ${max}`))
  row("most sessions counted by the server", ...watched.map(({ max, mostSessions }) => `${mostSessions} of ${max}`))
  const span = (of: (one: Watch.Watched) => Watch.Span) => watched.map(of).map((it) => Watch.lengthOf(it).toFixed(0))
  row("longest stall with nothing wrong, ms", ...span(({ longestStall }) => longestStall))
  row("longest time from a fault to a success, ms", ...span(({ slowestRecovery }) => slowestRecovery))
  row("closed under load in, ms", ...closing.map((took) => took.toFixed(0)))
  if (life !== undefined) {
    row("brief pools", life.lives)
    row("longest time that one took to close, ms", life.slowest.toFixed(0))
    row("longest time that a socket was there afterwards, ms", life.lastSocket.toFixed(0))
  }
  line("\nProof")
  row("rows in the database", found.rows)
  for (const [name, stories] of Object.entries(found.wrong)) {
    row(`${name}: ${Ledger.wrongs[name as Ledger.Wrong]}`, stories.length, stories.length === 0 ? "✔" : "✘")
  }
  const isWrong = Object.values(found.wrong).some((stories) => stories.length > 0)
  if (isWrong || given.verbose === true) {
    line("\nWhat was done, and when")
    for (const deed of scene.chronicle) line(`  ${deed}`)
    for (const { longestStall, name, slowestRecovery } of watched) {
      const of = ({ from, until }: Watch.Span) => `${from.toFixed(0)} to ${until.toFixed(0)} ms`
      line(`  ${name}: longest stall ${of(longestStall)}, slowest recovery ${of(slowestRecovery)}`)
    }
  }
  if (!isWrong) return line(`\nNothing is lost, nothing is doubled, nothing is left behind (seed ${seed}).`)
  for (const [name, stories] of Object.entries(found.wrong)) {
    if (stories.length === 0) continue
    line(`\n${name}`)
    for (const story of stories.slice(0, most)) line(`  ${story}`)
    if (stories.length > most) line(`  and ${stories.length - most} more`)
  }
  line(`\nIt does not hold. The same faults again: npm run soak -- --seconds ${duration / 1000} --seed ${seed}`)
}

// Whatever is stranded must not keep the process.
// It is after trouble, and tells of it by itself.
Effect.runPromise(Effect.provide(soak, Logger.layer([]))).then(
  (holds) => process.exit(holds ? 0 : 1),
  (error) => {
    console.error(error)
    process.exit(1)
  }
)
