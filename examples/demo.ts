/**
 * A shop on a database that is treated badly: `npm run demo`.
 *
 * Sixty-four shoppers browse, pay and order through one pool while its sessions are killed and the server is stopped
 * and started again. In the end every write is compared with what its caller was told. Exit code 0 means: nothing that
 * was acknowledged is lost, and nothing was applied twice.
 *
 * `-- --lambda` plays a day in the life of one Lambda instead.
 * `-- --quick` takes half the time, `-- --serve` keeps the shop open and serves /metrics and /health/database.
 * An embedded PostgreSQL server is started, unless DATABASE_URL names one.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Pg from "effect-pg-pool"
import { EmbeddedPostgres, type Server } from "effect-pg-pool/testing"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { randomUUID } from "node:crypto"
import { createServer } from "node:http"
import * as Chaos from "./demo/chaos.ts"
import * as Dataset from "./demo/dataset.ts"
import * as Day from "./demo/day.ts"
import * as Ledger from "./demo/ledger.ts"
import * as Proof from "./demo/proof.ts"
import * as Sessions from "./demo/sessions.ts"
import { count, heading, line, plural, seconds, type Span, tally, Terminal } from "./demo/terminal.ts"
import * as Timeline from "./demo/timeline.ts"
import * as Workload from "./demo/workload.ts"

class DemoFailed extends Schema.TaggedError<DemoFailed>("demo/DemoFailed")("DemoFailed", {
  problems: Schema.Array(Schema.String)
}) {
  override get message() {
    return `The proof failed.\n${this.problems.map((problem) => `  ✘ ${problem}`).join("\n")}`
  }
}

/** All that the shop has to know about the pool: everything else is its default. */
const poolOf = ({ name, url }: Sessions.Options) =>
  Pg.layer({
    url,
    applicationName: name,
    name: "shop",
    max: 16,
    startupParameters: { search_path: name },
    // 30 seconds and more by default, which is longer than this demo wants to last.
    breaker: { openFor: "1 second", maxOpenFor: "1 second" }
  }).pipe(
    // The demo says itself what happens.
    Layer.provide(Logger.layer([]))
  )

const startServer = Effect.gen(function*() {
  const startedAt = yield* Clock.currentTimeMillis
  const terminal = yield* Terminal
  if (terminal.live) yield* terminal.status(["dim", "  starting PostgreSQL ..."])
  const server = yield* EmbeddedPostgres.make()
  // Names the pool's sessions, and the schema that holds every table of the demo.
  const options: Sessions.Options = { url: server.url, name: `demo_${randomUUID().slice(0, 8)}` }
  yield* Effect.acquireRelease(
    Sessions.direct(options, (connection) => connection.query(`CREATE SCHEMA ${options.name}`, [], false)),
    // The embedded server goes with everything that is in it.
    () =>
      server.external
        ? Effect.ignore(
          Sessions.direct(options, (connection) => connection.query(`DROP SCHEMA ${options.name} CASCADE`, [], false))
        )
        : Effect.void
  )
  const version = yield* Sessions.direct(options, (connection) => connection.query("SHOW server_version", [], false))
  const took = (yield* Clock.currentTimeMillis) - startedAt
  yield* terminal.endStatus
  yield* line(
    ["green", "✔ "],
    `PostgreSQL ${String(version.rows[0]?.server_version).split(" ")[0]}, `,
    server.external
      ? `given by DATABASE_URL; schema ${options.name}, dropped at the end`
      : `embedded, in ${seconds(took)}`
  )
  if (server.external) {
    yield* line(["yellow", "! "], "It belongs to somebody else, so it is not stopped: the demo only ends")
    yield* line("  sessions of its own with pg_terminate_backend.")
  }
  return { server, options }
})

const statusSpans = (timeline: Timeline.Timeline, pool: Pg.Pool.Stats, breaker: Pg.Breaker.State): Array<Span> => {
  const errors = tally(timeline.recentErrors())
  const style = breaker._tag === "Closed" ? "green" : breaker._tag === "Open" ? "red" : "yellow"
  const [busy, idle] = [String(pool.active).padStart(2), String(pool.idle).padStart(2)]
  return [
    `${seconds(timeline.now()).padStart(8)} `,
    ["bold", `${count(timeline.rate()).padStart(6)} ops/s`],
    "  ",
    [style, breaker._tag.padEnd(8)],
    ` ${busy} busy ${idle} idle ${String(pool.waiting).padStart(2)} waiting`,
    errors === "" ? ["dim", "  no errors"] : `  ${errors}`
  ]
}

/** Shows how the shop is doing until the scope closes. */
const watch = Effect.fnUntraced(function*(timeline: Timeline.Timeline, every: number) {
  const terminal = yield* Terminal
  const pool = yield* Pg.Pool.Pool
  const breaker = yield* Pg.Breaker.Breaker
  yield* Effect.gen(function*() {
    yield* terminal.status(...statusSpans(timeline, yield* pool.stats, yield* breaker.state))
  }).pipe(
    Effect.schedule(Schedule.fixed(terminal.live ? 100 : every)),
    Effect.ensuring(terminal.endStatus),
    Effect.forkScoped
  )
})

const announcing = Effect.map(
  Terminal,
  (terminal) => (at: number, actor: Timeline.Actor, spans: ReadonlyArray<Span>) =>
    // The breaker's state is in the status line already.
    actor === "breaker" ? Effect.void : terminal.line(...Timeline.entrySpans(at, actor, spans))
)

const explanation = [
  "All through one Pg.layer with at most 16 sessions. Its breaker opens after",
  "5 failures in a row, as by default, but for 1 second and not for 30, so that",
  "this demo is short. Reads are declared idempotent, writes are not."
]

const openShop = Effect.fnUntraced(function*(server: Server, options: Sessions.Options, plan: Chaos.Plan) {
  const shop = yield* Dataset.load
  const ledgers: Proof.Ledgers = { payments: Ledger.make(1), orders: Ledger.make(shop.pastOrders + 1) }

  yield* heading(`The shop is open for ${plan.close / 1000} seconds`)
  for (const text of explanation) yield* line(["dim", `  ${text}`])
  yield* line()
  const timeline = yield* Timeline.make(yield* announcing)
  const back = yield* Effect.scoped(Effect.gen(function*() {
    yield* timeline.note("workload", "64 shoppers: 60 % reads, 25 % payments, 15 % orders")
    const workload = yield* Workload.start({ ...timeline, ...ledgers, shop, shoppers: 64, thinkTime: 20 })
    yield* watch(timeline, 1000)
    const back = yield* Chaos.run(server, options, timeline, plan)
    yield* workload.stop
    return back
  }))
  yield* timeline.note("workload", "the shop closes")
  yield* timeline.report
  return { firstOrder: shop.pastOrders + 1, ledgers, back }
}, Effect.scoped)

const demonstrate = Effect.fnUntraced(function*(plan: Chaos.Plan) {
  const { options, server } = yield* startServer
  const { back, firstOrder, ledgers } = yield* Effect.provide(openShop(server, options, plan), poolOf(options))

  // The pool is closed by now. PostgreSQL takes a moment to notice that a client has said goodbye.
  const [left, proof] = yield* Sessions.direct(options, (connection) =>
    Effect.all([
      Sessions.count(connection, options).pipe(
        Effect.repeat({ schedule: Schedule.spaced(50), until: (n) => n === 0, times: 40 })
      ),
      Proof.check(connection, ledgers, firstOrder)
    ]))
  const problems = [...proof.problems]
  yield* line(
    left === 0 ? ["green", "  ✔ "] : ["red", "  ✘ "],
    `the pool is closed and left ${plural(left, "session")} on the server`
  )
  if (left > 0) problems.push(`${plural(left, "session")} of the closed pool are still on the server`)
  if (back !== undefined && back.firstSuccess === undefined) {
    problems.push("no call succeeded after the server was started again")
  }
  yield* line()
  if (problems.length > 0) return yield* new DemoFailed({ problems })
  if (back?.firstSuccess !== undefined) {
    yield* line(
      `Recovered: the first call succeeded ${seconds(back.firstSuccess - back.from, 2)} after the server was back.`
    )
  }
  yield* line(
    ["green", "Proved: "],
    `${count(proof.acknowledged)} acknowledged writes, none of them lost; no write applied twice.`
  )
}, Effect.scoped)

const live = Effect.gen(function*() {
  const { options } = yield* startServer
  const problems = yield* Day.play(options)
  if (problems.length > 0) return yield* new DemoFailed({ problems })
}).pipe(Effect.scoped)

const routes = HttpRouter.serve(Pg.Health.layerRoutes({ metrics: Pg.Metrics.render }), {
  disableListenLog: true,
  disableLogger: true
})

/** Keeps the shop open, with little traffic, until it is interrupted. */
const keepOpen = Effect.gen(function*() {
  const shop = yield* Dataset.load
  const address = yield* HttpServer.addressFormattedWith(Effect.succeed)
  yield* heading("The shop stays open; Ctrl-C closes it")
  yield* line("  ", ["cyan", `${address}/metrics`])
  yield* line("  ", ["cyan", `${address}/health/database`])
  yield* line()
  const timeline = yield* Timeline.make(yield* announcing)
  const ledgers: Proof.Ledgers = { payments: Ledger.make(1), orders: Ledger.make(shop.pastOrders + 1) }
  yield* Workload.start({ ...timeline, ...ledgers, shop, shoppers: 8, thinkTime: 100 })
  yield* watch(timeline, 10_000)
  return yield* Effect.never
}).pipe(Effect.scoped)

const serve = Effect.gen(function*() {
  const { options } = yield* startServer
  const http = NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1", gracefulShutdownTimeout: "1 second" })
  yield* Effect.provide(keepOpen, routes.pipe(Layer.provideMerge(http), Layer.provideMerge(poolOf(options))))
}).pipe(Effect.scoped)

const demo = Command.make(
  "npm run demo --",
  {
    quick: Flag.Boolean("quick").pipe(
      Flag.withDescription("Take about 12 seconds instead of 30"),
      Flag.withDefault(false)
    ),
    serve: Flag.Boolean("serve").pipe(
      Flag.withDescription("Keep the shop open, unharmed, and serve /metrics and /health/database until Ctrl-C"),
      Flag.withDefault(false)
    ),
    lambda: Flag.Boolean("lambda").pipe(
      Flag.withDescription("Play a day in the life of one Lambda instead, in about 10 seconds"),
      Flag.withDefault(false)
    )
  },
  (flags) =>
    Effect.gen(function*() {
      const title = flags.lambda ? "a day in the life of one Lambda" : "a shop on a database that is treated badly"
      yield* line(["bold", "effect-pg-pool"], `: ${title}`)
      yield* line()
      yield* flags.lambda ? live : flags.serve ? serve : demonstrate(flags.quick ? Chaos.quick : Chaos.full)
    }).pipe(
      Effect.onInterrupt(() => line("Interrupted. Nothing is left behind.")),
      Effect.raceFirst(Effect.andThen(Effect.flatMap(Terminal, ({ abandoned }) => abandoned), Effect.interrupt)),
      Effect.tapError((error) => line(["red", error.message])),
      Effect.provide(Terminal.layer)
    )
).pipe(
  Command.withDescription(
    "Runs a shop on PostgreSQL through one pool, kills its sessions, stops and starts the server, and proves from the "
      + "database that no acknowledged write was lost and none was applied twice. An embedded server is started, unless "
      + "DATABASE_URL names one."
  )
)

Command.run(demo, { version: "demo" }).pipe(
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain({ disableErrorReporting: true })
)
