/** Telemetry is pushed at the end of an invocation, within its bound, whatever the collector does. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as ConfigProvider from "effect/ConfigProvider"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as OtlpExporter from "effect/observability/OtlpExporter"
import * as Scheduler from "effect/Scheduler"
import { TestClock } from "effect/testing"
import * as Executor from "../src/Executor.ts"
import * as Metrics from "../src/Metrics.ts"
import * as Otlp from "../src/Otlp.ts"
import * as Receiver from "./otlpReceiver.ts"

const queries = Metric.counter("queries", { incremental: true })
const latency = Metric.histogram("latency", { boundaries: [0.01, 0.1, 1], attributes: { pool: "shop" } })

/** One invocation of a program: a counted query in a span, and a log record. */
const invocation = Effect.all([
  Metric.update(queries, 1),
  Metric.update(latency, 0.05),
  Effect.logInfo("invoked").pipe(Effect.withSpan("invocation"))
], { discard: true })

/** Runs an effect with a metric registry of its own, and collects its log lines from info on. */
const alone = <A, E, R>(
  f: (lines: Array<string>) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make(({ message }) => void lines.push(String(message)))
    return f(lines).pipe(
      Effect.provideService(Metric.MetricRegistry, new Map()),
      Effect.provide(Logger.layer([logger]))
    )
  })

const warnings = (lines: ReadonlyArray<string>) => lines.filter((line) => line.startsWith("The collector"))

/** What the collector has counted: the deltas of all that it has taken. */
const counted = (receiver: Receiver.Receiver, series = "queries{}"): number =>
  receiver.arrivals
    .filter(({ answered, path }) =>
      path === "/v1/metrics" && (answered === 200 || (typeof answered === "object" && answered.status === 200))
    )
    .flatMap(({ body }) => Receiver.points(body))
    .filter((point) => point.series === series)
    .reduce((sum, { point }) => sum + (point.asDouble ?? point.count), 0)

const paths = ({ arrivals }: Receiver.Receiver) => arrivals.map(({ path }) => path).toSorted()

describe("Otlp, with a collector", () => {
  const within = (url: string, options?: Otlp.Options) =>
    Otlp.layer({ baseUrl: url, encoding: "json", resource: { serviceName: "orders" }, ...options })

  /** Milliseconds that an effect takes. */
  const took = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.gen(function*() {
      const before = yield* Clock.currentTimeMillis
      const value = yield* effect
      return { value, millis: (yield* Clock.currentTimeMillis) - before }
    })

  it.live("sends nothing by itself, and metrics, spans and log records with one flush", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        yield* Effect.gen(function*() {
          yield* invocation
          yield* Effect.sleep(50)
          assert.deepEqual(paths(receiver), [])
          assert.strictEqual(yield* Otlp.flush({ within: "5 seconds" }), "Sent")
          assert.deepEqual(paths(receiver), ["/v1/logs", "/v1/metrics", "/v1/traces"])
        }).pipe(Effect.provide(within(receiver.url)))
        const [logs, metrics, traces] = ["/v1/logs", "/v1/metrics", "/v1/traces"].map((path) =>
          receiver.arrivals.find((arrival) => arrival.path === path)
        )
        assert.strictEqual(logs?.body.resourceLogs[0].scopeLogs[0].logRecords[0].body.stringValue, "invoked")
        assert.strictEqual(traces?.body.resourceSpans[0].scopeSpans[0].spans[0].name, "invocation")
        assert.deepEqual(
          Receiver.points(metrics?.body).map((
            { kind, point, series }
          ) => [series, kind, point.asDouble ?? point.bucketCounts]),
          [["queries{}", "sum", 1], ["latency{pool=shop}", "histogram", [0, 1, 0, 0]]]
        )
        assert.strictEqual(metrics?.body.resourceMetrics[0].scopeMetrics[0].metrics[0].sum.aggregationTemporality, 1)
      })
    ))

  it.live("sends only the signals that are asked for, in protobuf unless told otherwise, with the headers given", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        yield* Effect.andThen(invocation, Otlp.flush({ within: "5 seconds" })).pipe(
          Effect.provide(
            within(receiver.url, { signals: ["metrics"], encoding: undefined, headers: { "api-key": "k" } })
          )
        )
        assert.deepEqual([...new Set(paths(receiver))], ["/v1/metrics"])
        assert.strictEqual(receiver.arrivals[0]?.headers["content-type"], "application/x-protobuf")
        assert.strictEqual(receiver.arrivals[0]?.headers["api-key"], "k")
      })
    ))

  it.live("sends under the name of the program, else under that of the environment, else under that of the function", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        const nameOf = (env: Record<string, string>, resource?: Otlp.Options["resource"]) =>
          Effect.gen(function*() {
            yield* invocation
            yield* Otlp.flush({ within: "5 seconds" })
            const { attributes } = receiver.arrivals.at(-1)!.body.resourceMetrics[0].resource
            return attributes.find(({ key }: { readonly key: string }) => key === "service.name").value.stringValue
          }).pipe(
            Effect.provide(within(receiver.url, { signals: ["metrics"], resource })),
            Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(env)))
          )
        const lambda = { AWS_LAMBDA_FUNCTION_NAME: "of-lambda" }
        const named = { ...lambda, OTEL_SERVICE_NAME: "of-env" }
        assert.strictEqual(yield* nameOf(named, { serviceName: "of-program" }), "of-program")
        assert.strictEqual(yield* nameOf(named), "of-env")
        assert.strictEqual(
          yield* nameOf({ ...lambda, OTEL_RESOURCE_ATTRIBUTES: "a=b,service.name=of-attributes" }),
          "of-attributes"
        )
        assert.strictEqual(yield* nameOf(lambda), "of-lambda")
        assert.strictEqual(yield* nameOf({ ...lambda, OTEL_SERVICE_NAME: "" }), "of-lambda")
        assert.strictEqual(yield* nameOf({}), "unknown_service")
      })
    ))

  it.live("leaves out of a delta what has not changed, and of totals nothing", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        const seriesOf = (options: Otlp.Options) =>
          Effect.gen(function*() {
            const from = receiver.arrivals.length
            yield* Metric.update(Metric.gauge("open"), 0)
            yield* invocation
            yield* Otlp.flush({ within: "5 seconds" })
            yield* Otlp.flush({ within: "5 seconds" })
            return receiver.arrivals.slice(from).map(({ body }) =>
              Receiver.points(body).map(({ series }) => series).toSorted()
            )
          }).pipe(Effect.provide(within(receiver.url, { signals: ["metrics"], ...options })))
        const all = ["latency{pool=shop}", "open{}", "queries{}"]
        assert.deepEqual(yield* seriesOf({}), [all, ["open{}"]])
        assert.deepEqual(yield* seriesOf({ temporality: "cumulative" }), [all, all])
      })
    ))

  it.live("sends what is left when its scope closes, once", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        yield* invocation.pipe(Effect.provide(within(receiver.url, { shutdownTimeout: "10 seconds" })))
        assert.deepEqual(paths(receiver), ["/v1/logs", "/v1/metrics", "/v1/traces"])
        assert.strictEqual(counted(receiver), 1)
      })
    ))

  it.live("counts everything once, with as many invocations at a time as there may be", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        receiver.answer = (_, nth) => ({ status: 200, after: nth % 3 })
        yield* Effect.forEach(
          Array.from({ length: 200 }, (_, index) => index),
          (index) => Otlp.withFlush(Effect.andThen(Effect.sleep(index % 7), invocation), { within: "10 seconds" }),
          { concurrency: 20, discard: true }
        ).pipe(Effect.provide(within(receiver.url)))
        assert.strictEqual(counted(receiver), 200)
        assert.strictEqual(counted(receiver, "latency{pool=shop}"), 200)
        const spans = receiver.arrivals
          .filter(({ path }) => path === "/v1/traces")
          .flatMap(({ body }) => body.resourceSpans[0].scopeSpans[0].spans)
        assert.strictEqual(new Set(spans.map((span: { spanId: string }) => span.spanId)).size, 200)
        assert.strictEqual(spans.length, 200)
      })
    ))

  const troubles: ReadonlyArray<
    readonly [name: string, answer: Receiver.Answer, outcomes: ReadonlyArray<Otlp.Outcome>, reason: RegExp]
  > = [
    ["answers 500", 500, ["Failed", "Skipped"], /metrics \(status 500\)/],
    ["answers 401", 401, ["Failed", "Skipped"], /metrics \(status 401\)/],
    ["asks for patience with 429", 429, ["Failed", "Skipped"], /metrics \(status 429\)/],
    ["hangs up", "hang up", ["Failed", "Skipped"], /metrics \((UND_ERR_SOCKET|ECONNRESET)\)/],
    ["does not answer", "hang", ["Late", "Failed"], /has not answered within 400 ms/],
    ["does not end its answer", "slow body", ["Late", "Failed"], /has not answered within 400 ms/]
  ]
  for (const [name, answer, outcomes, reason] of troubles) {
    it.live(`costs no more than its bound with a collector that ${name}, and neither fails nor counts wrongly`, () =>
      alone((lines) =>
        Effect.gen(function*() {
          const receiver = yield* Receiver.make
          yield* Effect.gen(function*() {
            receiver.answer = () => answer
            for (const expected of outcomes) {
              yield* invocation
              const bound = outcomes[0] === "Late" ? 400 : 10_000
              const { millis, value } = yield* took(Otlp.flush({ within: bound }))
              assert.strictEqual(value, expected)
              assert.isBelow(millis, bound + 5000)
            }
            // It is given up, and is left alone.
            yield* Effect.sleep(20)
            receiver.answer = () => 200
            const before = receiver.arrivals.length
            const { millis, value } = yield* took(Effect.andThen(invocation, Otlp.flush({ within: "2 seconds" })))
            assert.strictEqual(value, "Skipped")
            assert.strictEqual(receiver.arrivals.length, before)
            assert.isBelow(millis, 5000)
          }).pipe(Effect.provide(within(receiver.url)))
          const told = warnings(lines)
          assert.match(told.join("\n"), reason)
          assert.isAtMost(told.length, 2)
          assert.strictEqual(counted(receiver), 0)
        })
      ))
  }

  it.live("asks again at once when a failure may pass, so that a hiccup loses nothing", () =>
    alone((lines) =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        receiver.answer = (_, nth) => nth === 0 ? 503 : nth === 1 ? "hang up" : 200
        yield* Effect.gen(function*() {
          yield* invocation
          assert.strictEqual(yield* Otlp.flush({ within: "10 seconds" }), "Sent")
        }).pipe(Effect.provide(within(receiver.url, { signals: ["metrics"] })))
        assert.strictEqual(counted(receiver), 1)
        assert.deepEqual(warnings(lines), [])
      })
    ))

  it.live("does without a collector: refused connections cost next to nothing", () =>
    alone((lines) =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        yield* receiver.stop
        const { millis, value } = yield* took(
          Effect.andThen(invocation, Otlp.flush({ within: "5 seconds" })).pipe(Effect.provide(within(receiver.url)))
        )
        assert.strictEqual(value, "Failed")
        assert.isBelow(millis, 4000)
        assert.match(warnings(lines).join("\n"), /metrics \(ECONNREFUSED\)/)
      })
    ))

  it.live("lets a slow answer come in after its flush, and counts once what it acknowledges", () =>
    alone((lines) =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        yield* Effect.gen(function*() {
          for (let count = 0; count < 3; count++) {
            receiver.answer = () => "hang"
            yield* invocation
            assert.strictEqual(yield* Otlp.flush({ within: "100 millis" }), "Late")
            receiver.answer = () => 200
            receiver.release()
            yield* invocation
            assert.strictEqual(yield* Otlp.flush({ within: "10 seconds" }), "Sent")
          }
        }).pipe(Effect.provide(within(receiver.url, { signals: ["metrics"] })))
        const sent = receiver.arrivals.flatMap(({ body }) => Receiver.points(body))
          .filter(({ series }) => series === "queries{}")
          .map(({ point }) => point.asDouble)
        assert.deepEqual(sent, [1, 1, 1, 1, 1, 1])
        assert.strictEqual(warnings(lines).length, 3)
      })
    ))

  it.live("keeps the result of an invocation, and flushes when it fails or is interrupted", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        const [ok, failed, interrupted] = yield* Effect.all([
          Effect.exit(Effect.succeed(1).pipe(Otlp.withFlush({ within: "5 seconds" }))),
          Effect.exit(Otlp.withFlush(Effect.andThen(invocation, Effect.fail("no")), { within: "5 seconds" })),
          Effect.andThen(invocation, Effect.never).pipe(
            Otlp.withFlush({ within: "5 seconds" }),
            Effect.timeoutOption(20),
            Effect.exit
          )
        ]).pipe(Effect.provide(within(receiver.url, { signals: ["metrics"] })))
        assert.deepEqual(ok, Exit.succeed(1))
        assert.deepEqual(failed, Exit.fail("no"))
        assert.strictEqual(interrupted._tag, "Success")
        assert.strictEqual(counted(receiver), 2)
        assert.strictEqual(receiver.arrivals.length, 4)
      })
    ))

  it.live("goes on flushing after a flush that was interrupted between any two of its steps", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        yield* Effect.gen(function*() {
          for (let ops = 3; ops < 31; ops++) {
            yield* invocation
            // Makes the fiber yield after a few operations, so that the interruption meets it between two steps.
            const fiber = yield* Effect.forkChild(
              Effect.provideService(Otlp.flush({ within: "5 seconds" }), Scheduler.MaxOpsBeforeYield, ops),
              { startImmediately: true }
            )
            yield* Fiber.interrupt(fiber)
            yield* invocation
            assert.strictEqual(
              yield* Otlp.flush({ within: "5 seconds" }),
              "Sent",
              `interrupted after ${ops} operations`
            )
          }
          assert.strictEqual(counted(receiver), 56)
        }).pipe(Effect.provide(within(receiver.url)))
      })
    ))

  it.live("stays within its bound when it is interrupted, too", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        receiver.answer = () => "hang"
        const { millis } = yield* took(
          Otlp.withFlush(Effect.never, { within: "200 millis" }).pipe(
            Effect.timeoutOption(50),
            Effect.provide(within(receiver.url, { shutdownTimeout: "200 millis" }))
          )
        )
        assert.isAtLeast(millis, 200)
        assert.isBelow(millis, 5000)
      })
    ))
})

describe("Otlp, with a pool's metrics", () => {
  it.live("brings what the metrics say, added up over flushes", () =>
    alone(() =>
      Effect.gen(function*() {
        const receiver = yield* Receiver.make
        const metrics = yield* Effect.gen(function*() {
          const metrics = yield* Metrics.Metrics
          const { store } = metrics
          for (let invocation = 1; invocation <= 3; invocation++) {
            for (let count = 0; count < 10 * invocation; count++) {
              store.queries.succeeded("SELECT 1", count / 100)
              store.acquire.acquired.observe(count / 1000)
            }
            // Appears with the second flush.
            if (invocation > 1) store.queries.failed("INSERT INTO t", "Unreachable", 2)
            store.errors.INSERT.Unreachable += invocation
            store.connectionsOpened++
            yield* Otlp.flush({ within: "10 seconds" })
          }
          return yield* metrics.snapshot
        }).pipe(
          Effect.provide(
            Metrics.layerOpenTelemetry().pipe(
              Layer.provideMerge(Metrics.layer({ name: "shop" })),
              Layer.provideMerge(
                Otlp.layer({
                  baseUrl: receiver.url,
                  encoding: "json",
                  signals: ["metrics"],
                  resource: { serviceName: "orders" }
                })
              )
            )
          )
        )
        const arrived = receiver.arrivals.flatMap(({ body }) => Receiver.points(body))
        const pool = "db.client.connection.pool.name=shop"
        const sum = (start: string, figure: (point: any) => number) =>
          arrived.filter(({ series }) => series.startsWith(`${start}`)).reduce(
            (sum, { point }) => sum + figure(point),
            0
          )
        const selects = `db.client.operation.duration{${pool},db.operation.name=SELECT`
        assert.strictEqual(sum(selects, ({ count }) => count), metrics.query.ok.count)
        assert.approximately(sum(selects, ({ sum }) => sum), metrics.query.ok.sum, 1e-9)
        for (const [index, [, cumulative]] of metrics.query.ok.buckets.entries()) {
          assert.strictEqual(
            sum(
              selects,
              ({ bucketCounts }) => bucketCounts.slice(0, index + 1).reduce((a: number, b: number) => a + b)
            ),
            cumulative
          )
        }
        assert.strictEqual(
          sum(`db.client.operation.duration{${pool},db.operation.name=INSERT`, ({ count }) => count),
          metrics.query.error.count
        )
        assert.strictEqual(sum("db.client.connection.wait_time{", ({ count }) => count), metrics.acquire.acquired.count)
        assert.strictEqual(
          sum(`db.query.errors{${pool},db.operation.name=INSERT,error.type=Unreachable`, ({ asDouble }) => asDouble),
          metrics.errors.Unreachable
        )
        assert.strictEqual(sum("db.pool.connections.opened{", ({ asDouble }) => asDouble), metrics.connectionsOpened)
      })
    ))
})

interface ScriptedRequest {
  readonly url: string
  readonly respond: (status: number) => void
  aborted: boolean
}

/** A collector under the test clock: each request is answered when the test says so. */
const scripted = Effect.fnUntraced(function*(
  body: (collector: {
    readonly requests: ReadonlyArray<ScriptedRequest>
    readonly lines: ReadonlyArray<string>
  }) => Effect.Effect<void, unknown, Otlp.Exporter | OtlpExporter.Flusher>,
  options?: Otlp.Options
) {
  const requests: Array<ScriptedRequest> = []
  let isOver = false
  const fetch: typeof globalThis.fetch = (url, init) =>
    new Promise((resolve, reject) => {
      const request = {
        url: String(url),
        respond: (status: number) => resolve(new Response(null, { status })),
        aborted: false
      }
      init?.signal?.addEventListener("abort", () => {
        request.aborted = true
        reject(new Error("aborted"))
      })
      if (isOver) request.respond(200)
      else requests.push(request)
    })
  // The last flush, too, needs its answer: the clock stands still then.
  const end = Effect.sync(() => {
    isOver = true
    for (const { respond } of requests) respond(200)
  })
  yield* alone((lines) =>
    Effect.ensuring(body({ requests, lines }), end).pipe(
      Effect.provide(Otlp.layer({ signals: ["metrics"], shutdownTimeout: "1 millis", ...options })),
      Effect.provideService(FetchHttpClient.Fetch, fetch)
    )
  )
})

/** Lets promises settle, and what waits for them. */
const settle = Effect.promise(() => new Promise<void>((resolve) => setImmediate(resolve))).pipe(
  Effect.repeat({ times: 4 })
)

describe("Otlp, under the test clock", () => {
  const flushed = (options?: Otlp.FlushOptions) =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(Otlp.flush(options), { startImmediately: true })
      yield* settle
      return fiber
    })
  const advance = (duration: Duration.Input) => Effect.andThen(TestClock.adjust(duration), settle)

  it.effect("waits for 300 milliseconds when it is not told otherwise", () =>
    scripted(() =>
      Effect.gen(function*() {
        const flush = yield* flushed()
        yield* advance(299)
        assert.isUndefined(flush.pollUnsafe())
        yield* advance(1)
        assert.strictEqual(yield* Fiber.join(flush), "Late")
      })
    ))

  it.effect("gives a request up when a second flush has waited for it in vain, and then rests for a minute", () =>
    scripted(({ lines, requests }) =>
      Effect.gen(function*() {
        const first = yield* flushed()
        yield* advance(300)
        assert.strictEqual(yield* Fiber.join(first), "Late")
        assert.isFalse(requests[0]?.aborted)
        // The function is frozen.
        yield* advance("1 hour")
        assert.isFalse(requests[0]?.aborted)
        const second = yield* flushed()
        yield* advance(300)
        assert.strictEqual(yield* Fiber.join(second), "Failed")
        assert.isTrue(requests[0]?.aborted)
        assert.strictEqual(requests.length, 1)
        yield* advance("59 seconds")
        assert.strictEqual(yield* Otlp.flush(), "Skipped")
        yield* advance("1 second")
        const third = yield* flushed()
        requests[1]?.respond(200)
        yield* settle
        assert.strictEqual(yield* Fiber.join(third), "Sent")
        assert.deepEqual(warnings(lines).map((line) => line.slice(0, line.indexOf("."))), [
          "The collector has not answered within 300 ms",
          "The collector has not taken metrics (no answer)"
        ])
      })
    ))

  it.effect("finds the answer that came while the function was frozen, and sends on", () =>
    scripted(({ requests }) =>
      Effect.gen(function*() {
        const first = yield* flushed()
        yield* advance(300)
        yield* Fiber.join(first)
        yield* advance("1 hour")
        const second = yield* flushed()
        requests[0]?.respond(200)
        yield* settle
        requests[1]?.respond(200)
        yield* settle
        assert.strictEqual(yield* Fiber.join(second), "Sent")
        assert.strictEqual(requests.length, 2)
      })
    ))

  it.effect("shares one request among all flushes that are asked for while another is under way", () =>
    scripted(({ requests }) =>
      Effect.gen(function*() {
        const first = yield* flushed()
        const others = yield* Effect.forEach([1, 2, 3], () => flushed())
        assert.strictEqual(requests.length, 1)
        requests[0]?.respond(200)
        yield* settle
        assert.strictEqual(requests.length, 2)
        requests[1]?.respond(200)
        yield* settle
        assert.deepEqual(yield* Fiber.joinAll([first, ...others]), ["Sent", "Sent", "Sent", "Sent"])
      })
    ))

  it.effect("leaves a margin of the deadline around it", () =>
    scripted(() =>
      Effect.gen(function*() {
        const started = yield* Clock.currentTimeMillis
        const flush = yield* flushed({ within: "1 second" })
        yield* advance(149)
        assert.isUndefined(flush.pollUnsafe())
        yield* advance(1)
        assert.strictEqual(yield* Fiber.join(flush), "Late")
        assert.strictEqual((yield* Clock.currentTimeMillis) - started, 150)
      }).pipe((test) =>
        Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.provideService(test, Executor.Deadline, now + 200))
      )
    ))

  it.effect("does not begin when there is no time left", () =>
    scripted(({ requests }) =>
      Effect.gen(function*() {
        const now = yield* Clock.currentTimeMillis
        const outcome = yield* Otlp.flush().pipe(Effect.provideService(Executor.Deadline, now + 50))
        assert.strictEqual(outcome, "Skipped")
        assert.deepEqual(requests, [])
      })
    ))

  it.effect("flushes for those who use Effect's own Flusher", () =>
    scripted(({ requests }) =>
      Effect.gen(function*() {
        const { flush } = yield* OtlpExporter.Flusher
        const fiber = yield* Effect.forkChild(flush, { startImmediately: true })
        yield* settle
        requests[0]?.respond(200)
        yield* Fiber.join(fiber)
        assert.deepEqual(requests.map(({ url }) => url), ["http://localhost:4318/v1/metrics"])
      })
    ))
})

describe("Otlp's options", () => {
  const impossible: ReadonlyArray<readonly [Otlp.Options, string]> = [
    [{ baseUrl: "localhost:4318" }, "otlp.baseUrl is \"localhost:4318\", but must be a URL, with http:// or https://."],
    [{ baseUrl: "key@collector" }, "otlp.baseUrl is \"***@collector\", but must be a URL, with http:// or https://."],
    [
      { baseUrl: "me:k/e@collector" },
      "otlp.baseUrl is \"***@collector\", but must be a URL, with http:// or https://."
    ],
    [{ shutdownTimeout: 0 }, "otlp.shutdownTimeout is 0, but must be a finite duration above 0."],
    [
      { shutdownTimeout: "1 parsec" as never },
      "otlp.shutdownTimeout is \"1 parsec\", but must be a finite duration above 0."
    ]
  ]
  for (const [options, message] of impossible) {
    it.effect(`are refused by name: ${message}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Effect.scoped(Layer.build(Otlp.layer(options))))
        assert.strictEqual(error.message, message)
      }))
  }

  it("of a flush are refused where they are written", () => {
    assert.throws(() => Otlp.flush({ within: 0 }), /otlp.within is 0, but must be a finite duration above 0/)
    assert.throws(
      () => Otlp.withFlush(Effect.void, { margin: -1 }),
      /otlp.margin is -1, but must be a duration of at least 0/
    )
  })
})
