import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import { SqlClient } from "effect/sql/SqlClient"
import * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { databaseUrl } from "../../integration/database.ts"
import type { Engine, It, Room } from "./engine.ts"
import { over } from "./engine.ts"

export const tracing = (it: Room, engine: Engine): void => {
  const { hostname, port } = new URL(Redacted.value(databaseUrl))
  it.layer(
    over(engine, { host: hostname, port: Number(port), database: "postgres", spanAttributes: { "team.name": "suite" } })
  )("spans", spans({ address: hostname, port: Number(port) }))
}

/** Runs an effect and gives the spans it has ended. */
const traced = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const ended: Array<Tracer.Span> = []
    const tracer = Tracer.make({
      span: (options) => {
        const span = new Tracer.NativeSpan(options)
        ended.push(span)
        return span
      }
    })
    return Effect.as(Effect.withTracer(Effect.exit(effect), tracer), ended)
  })

const spans = (server: { readonly address: string; readonly port: number }) => (it: It): void => {
  it.effect("a statement's span says what was asked of whom", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const [span] = yield* traced(sql`SELECT ${1}::int4 AS n`)
      assert.strictEqual(span?.kind, "client")
      assert.strictEqual(span?.name, "postgres")
      const attributes = Object.fromEntries(span!.attributes)
      assert.strictEqual(attributes["db.system.name"], "postgresql")
      assert.strictEqual(attributes["db.namespace"], "postgres")
      assert.strictEqual(attributes["server.address"], server.address)
      assert.strictEqual(attributes["server.port"], server.port)
      assert.strictEqual(attributes["db.query.text"], "SELECT $1::int4 AS n")
      assert.strictEqual(attributes["team.name"], "suite")
    }))

  it.effect("each form of a statement names itself", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const query = sql`SELECT 1 AS n`
      const seen = yield* traced(Effect.gen(function*() {
        yield* query
        yield* query.withoutTransform
        yield* query.raw
        yield* query.values
        yield* query.unprepared
        yield* query.valuesUnprepared
        yield* Stream.runDrain(query.stream)
      }))
      assert.deepStrictEqual(seen.map((span) => span.attributes.get("effect.sql.method")), [
        "execute",
        "executeWithoutTransform",
        "executeRaw",
        "executeValues",
        "executeUnprepared",
        "executeValuesUnprepared",
        "executeStream"
      ])
      assert.isTrue(seen.every((span) => span.attributes.get("db.query.text") === "SELECT 1 AS n"))
    }))

  it.effect("a transaction is a span around its statements, and says how it ended", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const work = sql.withTransaction(Effect.andThen(
        sql`SELECT 1`,
        Effect.exit(sql.withTransaction(Effect.andThen(sql`SELECT 2`, Effect.fail("no"))))
      ))
      const seen = yield* traced(work)
      const transactions = seen.filter((span) => span.name === "sql.transaction")
      const [outer, inner] = transactions
      assert.lengthOf(transactions, 2)
      assert.strictEqual(outer!.attributes.get("db.system.name"), "postgresql")
      const events = (span: Tracer.Span) => (span as Tracer.NativeSpan).events.map(([name]) => name)
      assert.deepStrictEqual(events(outer!), ["effect.sql.transaction.commit"])
      assert.deepStrictEqual(events(inner!), ["effect.sql.transaction.rollback"])
      const parentOf = (text: string) =>
        Option.getOrUndefined(seen.find((span) => span.attributes.get("db.query.text") === text)!.parent)
      assert.strictEqual(parentOf("SELECT 1"), outer)
      assert.strictEqual(parentOf("SELECT 2"), inner)
    }))

  it.effect("a failed statement ends its span with the failure", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const [span] = yield* traced(sql`SELECT 1 / 0`)
      assert.isTrue(span?.status._tag === "Ended" && span.status.exit._tag === "Failure")
    }))

  it.effect("the client's parts are told under the statement's span when that is asked for", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const [span] = yield* traced(
        Effect.provideService(sql`SELECT 1`, Statement.SpanPropagationEnabled, true)
      )
      assert.isTrue(span!.attributes.has("db.client.connection.wait_time_ms"))
    }))

  it.effect("nothing is traced when tracing is off", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const seen = yield* traced(Effect.provideService(sql`SELECT 1`, References.TracerEnabled, false))
      assert.deepStrictEqual(seen.filter((span) => span.attributes.has("db.query.text")), [])
    }))
}
