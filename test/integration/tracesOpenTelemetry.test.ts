import * as NodeSdk from "@effect/opentelemetry/NodeSdk"
import * as OtelTracer from "@effect/opentelemetry/OtelTracer"
import { assert, describe, it } from "@effect/vitest"
import { type AttributeValue, SpanKind, SpanStatusCode, TraceFlags } from "@opentelemetry/api"
import { InMemoryLogRecordExporter, SimpleLogRecordProcessor } from "@opentelemetry/sdk-logs"
import {
  AlwaysOnSampler,
  InMemorySpanExporter,
  ParentBasedSampler,
  type ReadableSpan,
  SimpleSpanProcessor
} from "@opentelemetry/sdk-trace-base"
import { NodeTracerProvider } from "@opentelemetry/sdk-trace-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeTable } from "./witness.ts"

/** The SDK, and what it has exported. */
const makeSdk = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => {
      const exporter = new InMemorySpanExporter()
      const provider = new NodeTracerProvider({
        sampler: new ParentBasedSampler({ root: new AlwaysOnSampler() }),
        spanProcessors: [new SimpleSpanProcessor(exporter)]
      })
      return { exporter, provider }
    }),
    ({ provider }) => Effect.promise(() => provider.shutdown())
  ),
  ({ exporter, provider }) => ({
    exported: () => exporter.getFinishedSpans(),
    named: (name: string) => exporter.getFinishedSpans().filter((span) => span.name === name),
    layer: OtelTracer.layer.pipe(Layer.provide(Layer.succeed(OtelTracer.OtelTracerProvider, provider)))
  })
)

const only = <A>(list: ReadonlyArray<A>): A => {
  assert.strictEqual(list.length, 1)
  return list[0]!
}

const parentOf = (span: ReadableSpan): string | undefined => span.parentSpanContext?.spanId
const idOf = (span: ReadableSpan): string => span.spanContext().spanId
const statements = (spans: ReadonlyArray<ReadableSpan>) =>
  spans.filter((span) => span.kind === SpanKind.CLIENT && span.name !== "db.pool.connect")

const nanos = ([seconds, nanos]: readonly [number, number]): bigint => BigInt(seconds) * 1_000_000_000n + BigInt(nanos)

const failure = (span: ReadableSpan): Record<string, AttributeValue | undefined> => ({
  code: span.status.code,
  sqlState: span.attributes["db.response.status_code"],
  type: span.attributes["error.type"]
})

/** Work with one of everything. */
const work = (url: Redacted.Redacted) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    yield* sql`SELECT 1`
    yield* Effect.flip(sql`INSERT INTO t VALUES (1), (1)`)
    yield* Effect.flip(Stream.runDrain(sql`SELEKT 1`.stream))
    yield* sql.withTransaction(sql`SELECT 2`)
    yield* Effect.flip(sql.withTransaction(sql`SELECT 1 / 0`))
  }).pipe(Effect.provide(Pg.layer({ url, name: "orders", max: 1 })))

describe("what OpenTelemetry's SDK exports", () => {
  it.live("of a statement that was cut off at a deadline is an error, and no interruption", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const sdk = yield* makeSdk
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        yield* Effect.provide(Effect.flip(Pg.Executor.run(sql`SELECT pg_sleep(20)`, { deadline: 200 })), sdk.layer)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))
      const statement = only(statements(sdk.exported()))
      assert.deepStrictEqual(failure(statement), {
        code: SpanStatusCode.ERROR,
        sqlState: undefined,
        type: "DeadlineExceeded"
      })
      assert.notProperty(statement.attributes, "effect.fiber.interrupted")
    }))

  it.live("is one trace under the request, with all that the conventions ask of a statement", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* witness.query("CREATE UNIQUE INDEX ON t (n)")
      const sdk = yield* makeSdk
      yield* work(url).pipe(Effect.withSpan("GET /orders", { kind: "server" }), Effect.provide(sdk.layer))
      const request = only(sdk.named("GET /orders"))
      const [first, insert, stream, inside, division] = statements(sdk.exported())
      assert.strictEqual(statements(sdk.exported()).length, 5)
      for (const span of [first, insert, stream]) assert.strictEqual(parentOf(span!), idOf(request))
      const transactions = sdk.named("sql.transaction")
      assert.deepStrictEqual([inside, division].map((span) => parentOf(span!)), transactions.map(idOf))
      for (const span of transactions) assert.strictEqual(parentOf(span), idOf(request))

      assert.deepStrictEqual(
        statements(sdk.exported()).map(({ attributes }) => attributes["db.operation.name"]),
        ["SELECT", "INSERT", "SELEKT", "SELECT", "SELECT"]
      )
      for (const { attributes } of [...statements(sdk.exported()), ...transactions]) {
        assert.strictEqual(attributes["db.client.connection.pool.name"], "orders")
        assert.strictEqual(attributes["db.system.name"], "postgresql")
      }
      const well = { code: SpanStatusCode.OK, sqlState: undefined, type: undefined }
      const ill = (sqlState: string) => ({ code: SpanStatusCode.ERROR, sqlState, type: sqlState })
      assert.deepStrictEqual(
        [first, insert, stream, inside, division].map((span) => failure(span!)),
        [well, ill("23505"), ill("42601"), well, ill("22012")]
      )
      assert.deepStrictEqual(transactions.map(failure), [well, ill("22012")])

      const acquire = only(sdk.named("db.pool.acquire"))
      assert.strictEqual(parentOf(acquire), idOf(first!))
      assert.deepStrictEqual(acquire.attributes["db.acquire.phases"], ["Connect"])
      assert.isTrue(nanos(acquire.startTime) >= nanos(first!.startTime))
      assert.isTrue(nanos(acquire.endTime) <= nanos(first!.endTime))

      const connect = only(sdk.named("db.pool.connect"))
      assert.isUndefined(connect.parentSpanContext)
      assert.notStrictEqual(connect.spanContext().traceId, request.spanContext().traceId)
      assert.deepStrictEqual(connect.links.map(({ context }) => context.spanId), [idOf(first!)])
      assert.strictEqual(connect.kind, SpanKind.CLIENT)
      assert.strictEqual(connect.attributes["db.connection.outcome"], "ok")
      // And nothing else: request, statements, transactions, one wait, one connect.
      assert.strictEqual(sdk.exported().length, 1 + 5 + 2 + 1 + 1)
    }))

  it.live("goes on a trace that somebody else has begun, and leaves one alone that is not sampled", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* witness.query("CREATE UNIQUE INDEX ON t (n)")
      const sdk = yield* makeSdk
      const traceId = "0af7651916cd43dd8448eb211c80319c"
      const request = (traceFlags: TraceFlags) =>
        work(url).pipe(
          OtelTracer.withSpanContext({ traceId, spanId: "b7ad6b7169203331", traceFlags }),
          Effect.provide(sdk.layer)
        )
      yield* request(TraceFlags.NONE)
      assert.deepStrictEqual(sdk.exported().map(({ name }) => name), [])
      yield* request(TraceFlags.SAMPLED)
      const own = sdk.exported().filter(({ name }) => name !== "db.pool.connect")
      assert.strictEqual(own.length, 8)
      for (const span of own) assert.strictEqual(span.spanContext().traceId, traceId)
    }))

  it.live("shows why a server could not be reached, and how often that was tried", () =>
    Effect.gen(function*() {
      const sdk = yield* makeSdk
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* Effect.flip(sql`SELECT 1`)
        yield* Effect.flip(sql`SELECT 2`)
      }).pipe(
        Effect.provide(Pg.layer({
          host: "127.0.0.1",
          port: 1,
          breaker: { failures: 2 },
          retry: { attempts: 2, base: 10 }
        })),
        Effect.provide(sdk.layer)
      )
      const [inVain, rejected] = statements(sdk.exported())
      assert.strictEqual(inVain!.attributes["db.retry.attempts"], 2)
      assert.deepStrictEqual(failure(inVain!), {
        code: SpanStatusCode.ERROR,
        sqlState: undefined,
        type: "ECONNREFUSED"
      })
      assert.strictEqual(rejected!.attributes["error.type"], "CircuitOpen")
      assert.deepStrictEqual(
        sdk.exported().filter((span) => parentOf(span) === idOf(inVain!)).map(({ name }) => name),
        ["db.pool.acquire", "db.retry", "db.pool.acquire"]
      )
      assert.deepStrictEqual(
        sdk.exported().filter((span) => parentOf(span) === idOf(rejected!)).map(({ name }) => name),
        ["db.circuit_breaker.rejected"]
      )
      assert.strictEqual(sdk.named("db.pool.connect").length, 2)
    }))

  it.live("has one span for a healthy statement", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const sdk = yield* makeSdk
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        const before = sdk.exported().length
        yield* sql`SELECT 1`
        assert.strictEqual(sdk.exported().length, before + 1)
      }).pipe(Effect.provide(Pg.layer({ url, max: 1 })), Effect.provide(sdk.layer))
    }))

  it.live("reaches the SDK through NodeSdk as a user sets it up, the log lines with the trace that they belong to", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const spans = new InMemorySpanExporter()
      const records = new InMemoryLogRecordExporter()
      const sdk = NodeSdk.layer(() => ({
        resource: { serviceName: "shop" },
        spanProcessor: new SimpleSpanProcessor(spans),
        logRecordProcessor: new SimpleLogRecordProcessor({ exporter: records })
      }))
      // Both exporters forget everything when the SDK is shut down.
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const serialization = sql`DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`
        yield* Effect.flip(Pg.Executor.run(serialization, { idempotent: true, retry: Schedule.recurs(1) }))
        const retry = only(spans.getFinishedSpans().filter(({ name }) => name === "db.retry"))
        assert.strictEqual(retry.resource.attributes["service.name"], "shop")
        const line = records.getFinishedLogRecords().find(({ attributes }) =>
          attributes["event.name"] === "db.query.retry"
        )
        assert.strictEqual(line?.spanContext?.traceId, retry.spanContext().traceId)
        assert.strictEqual(line?.attributes["db.response.status_code"], "40001")
      }).pipe(Effect.withSpan("request"), Effect.provide(Pg.layer({ url, max: 1 })), Effect.provide(sdk))
    }))
})
