/** One line per invocation, of which CloudWatch makes metrics. */
import { assert, describe, it } from "@effect/vitest"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { TestClock } from "effect/testing"
import { execFileSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import * as CloudWatch from "../src/CloudWatch.ts"
import * as Pg from "../src/index.ts"
import * as Metrics from "../src/Metrics.ts"
import { makeMemoryServer } from "./memoryServer.ts"

/** Pairs of value and count, whichever form they are written in. */
const pairsOf = (target: any): ReadonlyArray<readonly [value: number, count: number]> =>
  typeof target === "number"
    ? [[target, 1]]
    : Array.isArray(target)
    ? target.map((value) => [value, 1])
    : target.Values.map((value: number, index: number) => [value, target.Counts[index]])

const sumOf = (target: any): number => pairsOf(target).reduce((sum, [value, count]) => sum + value * count, 0)

const countOf = (target: any): number => pairsOf(target).reduce((sum, [, count]) => sum + count, 0)

/** The rules of the specification, and its JSON schema, as far as they concern one document. */
const assertValid = (line: string): any => {
  assert.notInclude(line, "\n")
  assert.isAtMost(Buffer.byteLength(line), 256 * 1024)
  const document = JSON.parse(line)
  const { CloudWatchMetrics, Timestamp } = document._aws
  assert.isTrue(Number.isInteger(Timestamp))
  assert.isArray(CloudWatchMetrics)
  for (const { Dimensions, Metrics, Namespace, ...rest } of CloudWatchMetrics) {
    assert.deepEqual(rest, {})
    assert.match(Namespace, /^.{1,255}$/)
    assert.isAtLeast(Dimensions.length, 1)
    for (const set of Dimensions) {
      assert.isAtMost(set.length, 30)
      for (const name of set) {
        assert.match(name, /^.{1,250}$/)
        assert.match(document[name], /^[\x20-\x7e]{1,1024}$/)
      }
    }
    assert.isAtMost(Metrics.length, 100)
    assert.strictEqual(new Set(Metrics.map(({ Name }: { Name: string }) => Name)).size, Metrics.length)
    for (const { Name, Unit, ...rest } of Metrics) {
      assert.deepEqual(rest, {})
      assert.match(Name, /^.{1,255}$/)
      assert.match(Unit, /^(Seconds|Count)$/)
      const pairs = pairsOf(document[Name])
      assert.isAtMost(pairs.length, 100)
      for (const number of pairs.flat()) assert.isTrue(Number.isFinite(number), `${Name}: ${number}`)
    }
  }
  return document
}

const makeSink = () => {
  const lines: Array<string> = []
  const console: Console.Console = { ...globalThis.console, log: (line: string) => void lines.push(line) }
  return { lines, layer: Layer.succeed(Console.Console, console) }
}

/** Runs a test with the metrics of a pool named `shop`, and the lines that are written. */
const emitting = Effect.fnUntraced(function*<E>(
  body: (
    store: Metrics.Store,
    lines: ReadonlyArray<string>,
    metrics: Metrics.Metrics["Service"]
  ) => Effect.Effect<void, E, CloudWatch.Emitter>,
  options?: CloudWatch.Options
) {
  const sink = makeSink()
  yield* Effect.gen(function*() {
    const metrics = yield* Metrics.Metrics
    yield* body(metrics.store, sink.lines, metrics)
  }).pipe(
    Effect.provide(
      CloudWatch.layer(options).pipe(Layer.provideMerge(Metrics.layer({ name: "shop" })), Layer.merge(sink.layer))
    )
  )
})

/** Each counter and each histogram gets values of its own. */
const fillAll = (store: Metrics.Store, seconds: number) => {
  store.queries.succeeded("SELECT 1", seconds)
  store.queries.failed("INSERT INTO t", "Rejected", seconds)
  store.queries.interrupted("UPDATE t", seconds)
  for (const histogram of [...Object.values(store.acquire), ...Object.values(store.connect), store.use]) {
    histogram.observe(seconds)
  }
  for (
    const record of [
      ...Object.values(store.errors),
      store.acquireErrors,
      store.retries,
      store.connectionsClosed,
      store.breakerTransitions,
      store.breakerRejections
    ] as Array<Record<string, number>>
  ) {
    for (const key of Object.keys(record)) record[key]!++
  }
  store.connectionsOpened++
}

describe("CloudWatch", () => {
  it.effect("writes what has happened, as the specification has it", () =>
    emitting((store, lines, metrics) =>
      Effect.gen(function*() {
        metrics.registerPool(() => ({
          total: 2,
          idle: 1,
          active: 1,
          waiting: 3,
          connecting: 0,
          max: 2,
          min: 0,
          oldestLease: 0
        }))
        yield* TestClock.setTime(1_700_000_000_000)
        store.queries.succeeded("SELECT 1", 0.004)
        store.queries.succeeded("SELECT 2", 0.03)
        store.queries.failed("INSERT INTO t", "Unreachable", 0.25)
        store.errors.INSERT.Unreachable++
        store.errors.CHECKOUT.Unreachable++
        store.retries.Unreachable++
        yield* CloudWatch.emit({ requestId: "r1" })
        assert.strictEqual(lines.length, 1)
        const document = assertValid(lines[0]!)
        assert.strictEqual(document._aws.Timestamp, 1_700_000_000_000)
        assert.deepEqual(document._aws.CloudWatchMetrics, [{
          Namespace: "effect-pg-pool",
          Dimensions: [["service", "pool"]],
          Metrics: [
            { Name: "db_query_duration_seconds", Unit: "Seconds" },
            { Name: "db_query_errors_total_Unreachable", Unit: "Count" },
            { Name: "db_query_retries_total", Unit: "Count" },
            { Name: "db_pool_connections", Unit: "Count" },
            { Name: "db_pool_pending_requests", Unit: "Count" },
            { Name: "db_circuit_breaker_open", Unit: "Count" },
            { Name: "db_up", Unit: "Count" }
          ]
        }])
        const { _aws, db_query_duration_seconds: durations, ...rest } = document
        assert.approximately(sumOf(durations), 0.284, 1e-6)
        assert.strictEqual(durations.length, 3)
        assert.deepEqual(rest, {
          queries: { SELECT: { ok: 2 }, INSERT: { Unreachable: 1 } },
          requestId: "r1",
          service: "orders",
          pool: "shop",
          db_query_errors_total_Unreachable: 2,
          db_query_retries_total: 1,
          db_pool_connections: 2,
          db_pool_pending_requests: 3,
          db_circuit_breaker_open: 0,
          db_up: 1
        })
      }), { dimensions: { service: "orders" } }))

  it.effect("stays within the limits when there is something to tell of everything", () =>
    emitting((store, lines) =>
      Effect.gen(function*() {
        for (let count = 0; count < 1000; count++) fillAll(store, count / 50)
        yield* CloudWatch.emit()
        const document = assertValid(lines[0]!)
        assert.strictEqual(countOf(document.db_query_duration_seconds), 3000)
        assert.approximately(sumOf(document.db_query_duration_seconds), 3 * 9990, 1e-3)
      }), {
      namespace: "n".repeat(255),
      dimensions: Object.fromEntries(
        Array.from({ length: 29 }, (_, index) => [`${"d".repeat(248)}${index + 10}`, "v".repeat(1024)])
      )
    }))

  it.effect("writes nothing when nothing has happened", () =>
    emitting((store, lines) =>
      Effect.gen(function*() {
        yield* CloudWatch.emit()
        store.connectionsOpened++
        yield* CloudWatch.emit()
        yield* CloudWatch.emit()
        assert.strictEqual(lines.length, 1)
      })
    ))

  it.effect("adds up over lines to what the metrics say", () =>
    emitting((store, lines, metrics) =>
      Effect.gen(function*() {
        for (let count = 1; count <= 40; count++) {
          for (let times = 0; times < count; times++) fillAll(store, (count * times) / 300)
          yield* CloudWatch.emit()
        }
        const documents = lines.map(assertValid)
        const added = (name: string, of: (target: any) => number) =>
          documents.reduce((sum, document) => sum + of(document[name] ?? []), 0)
        const { connect, errors, query, retries } = yield* metrics.snapshot
        const all = [query.ok, query.error, query.interrupted]
        assert.strictEqual(
          added("db_query_duration_seconds", countOf),
          all.reduce((sum, { count }) => sum + count, 0)
        )
        assert.approximately(
          added("db_query_duration_seconds", sumOf),
          all.reduce((sum, one) => sum + one.sum, 0),
          1e-3
        )
        assert.strictEqual(added("db_pool_connect_duration_seconds", countOf), connect.ok.count + connect.error.count)
        for (const [kind, count] of Object.entries(errors)) {
          assert.strictEqual(added(`db_query_errors_total_${kind}`, sumOf), count)
        }
        assert.strictEqual(
          added("db_query_retries_total", sumOf),
          Object.values(retries).reduce((sum, count) => sum + count, 0)
        )
        assert.strictEqual(
          documents.reduce((sum, { queries }) => sum + queries.INSERT.Rejected, 0),
          query.error.count
        )
      })
    ))

  it.effect("tells the most callers that have waited since the last line", () =>
    emitting((store, lines) =>
      Effect.gen(function*() {
        store.peakWaiting = 7
        store.connectionsOpened++
        yield* CloudWatch.emit()
        store.connectionsOpened++
        yield* CloudWatch.emit()
        assert.deepEqual(lines.map((line) => assertValid(line).db_pool_pending_requests), [7, 0])
      })
    ))

  it.effect("says that the circuit is open", () =>
    emitting((store, lines) =>
      Effect.gen(function*() {
        store.breakerState = "Open"
        store.breakerTransitions.Open++
        store.breakerRejections.open += 4
        yield* CloudWatch.emit()
        const document = assertValid(lines[0]!)
        assert.deepInclude(document, {
          db_circuit_breaker_open: 1,
          db_circuit_breaker_opened_total: 1,
          db_circuit_breaker_rejections_total: 4,
          db_up: 0
        })
      })
    ))

  it.effect("keeps the result of an invocation, and writes when it fails or is interrupted", () =>
    emitting((store, lines) =>
      Effect.gen(function*() {
        const count = Effect.sync(() => void store.connectionsOpened++)
        const ends = [Effect.succeed(1), Effect.fail("no"), Effect.interrupt]
        const exits = yield* Effect.forEach(ends, (end) =>
          Effect.exit(CloudWatch.withEmission(Effect.andThen(count, end as Effect.Effect<number, string>))))
        assert.deepEqual(exits.slice(0, 2), [Exit.succeed(1), Exit.fail("no")])
        assert.isTrue(Exit.hasInterrupts(exits[2]!))
        assert.strictEqual(lines.length, 3)
      })
    ))

  it.effect("has each thing in one line, with many invocations at a time", () =>
    emitting((store, lines) =>
      Effect.gen(function*() {
        yield* Effect.forEach(
          Array.from({ length: 300 }),
          () =>
            CloudWatch.withEmission(Effect.andThen(Effect.yieldNow, Effect.sync(() => void store.connectionsOpened++))),
          { concurrency: 25, discard: true }
        )
        assert.strictEqual(
          lines.reduce((sum, line) => sum + assertValid(line).db_pool_connections_opened_total, 0),
          300
        )
      })
    ))

  it.effect("leaves properties out that would make the line too long, and does not let them in the way of metrics", () =>
    emitting((store, lines) =>
      Effect.gen(function*() {
        store.connectionsOpened++
        yield* CloudWatch.emit({ body: "x".repeat(300_000) })
        store.connectionsOpened++
        yield* CloudWatch.emit({ _aws: "x", pool: "x", db_pool_connections_opened_total: 5 })
        const [long, clashing] = lines.map(assertValid)
        assert.isUndefined(long.body)
        assert.strictEqual(long.db_pool_connections_opened_total, 1)
        assert.deepInclude(clashing, { pool: "shop", db_pool_connections_opened_total: 1 })
      })
    ))

  it.effect("tells what a pool does: statements, a connection, and those who had to wait for it", () => {
    const sink = makeSink()
    return Effect.gen(function*() {
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        yield* CloudWatch.withEmission(
          Effect.forEach([1, 2, 3], () => pool.use(() => Effect.yieldNow), { concurrency: "unbounded", discard: true })
        )
      }).pipe(
        Effect.provide(
          CloudWatch.layer().pipe(
            Layer.provideMerge(Pg.Pool.layer({
              url: Redacted.make("postgres://user@db/app"),
              stream: makeMemoryServer().stream,
              max: 1,
              min: 0
            })),
            Layer.provideMerge(Metrics.layer({ name: "shop" })),
            Layer.merge(sink.layer)
          )
        )
      )
      const document = assertValid(sink.lines[0]!)
      assert.strictEqual(document.db_pool_connections_opened_total, 1)
      assert.strictEqual(document.db_pool_connections, 1)
      assert.strictEqual(document.db_pool_pending_requests, 3)
      assert.strictEqual(countOf(document.db_pool_acquire_duration_seconds), 3)
      assert.strictEqual(countOf(document.db_pool_use_duration_seconds), 3)
    })
  })

  it("writes to standard output itself, where Lambda has put its own words before what the console says", () => {
    const program = `
      import * as Effect from "effect/Effect"
      import * as Layer from "effect/Layer"
      import * as CloudWatch from "${new URL("../src/CloudWatch.ts", import.meta.url)}"
      import * as Metrics from "${new URL("../src/Metrics.ts", import.meta.url)}"
      const log = console.log
      console.log = (line) => log("2026-11-23T00:00:00.000Z\\tr1\\tINFO\\t" + line)
      await Effect.gen(function*() {
        const { store } = yield* Metrics.Metrics
        store.connectionsOpened++
        yield* CloudWatch.emit()
      }).pipe(Effect.provide(Layer.provideMerge(CloudWatch.layer(), Metrics.layer())), Effect.runPromise)
    `
    const output = execFileSync(process.execPath, ["--input-type=module", "--eval", program], {
      cwd: fileURLToPath(new URL("..", import.meta.url)),
      encoding: "utf8"
    })
    assert.match(output, /^\{.*\}\n$/)
    assert.strictEqual(assertValid(output.trimEnd()).db_pool_connections_opened_total, 1)
  })

  const impossible: ReadonlyArray<readonly [CloudWatch.Options, RegExp]> = [
    [{ namespace: "" }, /cloudWatch.namespace is "", but must be 1 to 255 ASCII/],
    [{ namespace: "AWS/RDS" }, /cloudWatch.namespace/],
    [{ dimensions: { service: "" } }, /cloudWatch.dimensions.service is "", but must be 1 to 1024 ASCII/],
    [{ dimensions: { pool: "x" } }, /cloudWatch.dimensions is "pool", but must be names/],
    [{ dimensions: { "": "x" } }, /cloudWatch.dimensions/],
    [
      { dimensions: Object.fromEntries(Array.from({ length: 30 }, (_, index) => [`d${index}`, "v"])) },
      /at most 29 names/
    ]
  ]
  for (const [options, message] of impossible) {
    it.effect(`refuses what CloudWatch would: ${JSON.stringify(options).slice(0, 40)}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Effect.provide(CloudWatch.make(options), Metrics.layer()))
        assert.match(error.message, message)
      }))
  }
})
