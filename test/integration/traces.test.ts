import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import { SqlClient } from "effect/sql/SqlClient"
import * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import type * as Tracer from "effect/Tracer"
import * as Pg from "../../src/index.ts"
import { attributesOf, make, parentOf, type SpanRecorder } from "../spanRecorder.ts"
import { freshDatabase } from "./database.ts"
import { eventually, makeTable, makeWitness } from "./witness.ts"

/** The spans of ours, and Effect's of statements and transactions, by what they are. */
const ours = ["db.pool.acquire", "db.pool.connect", "db.retry", "db.circuit_breaker.rejected"]
const statementsOf = (recorder: SpanRecorder) =>
  recorder.spans.filter(({ kind, name }) => kind === "client" && !ours.includes(name))
const oursOf = (recorder: SpanRecorder) => recorder.names().filter((name) => ours.includes(name))

const only = <A>(list: ReadonlyArray<A>): A => {
  assert.strictEqual(list.length, 1)
  return list[0]!
}

/** Some of its attributes. */
const pick = (span: Tracer.Span | undefined, ...names: ReadonlyArray<string>) => {
  const attributes = attributesOf(span)
  return Object.fromEntries(names.filter((name) => name in attributes).map((name) => [name, attributes[name]]))
}

/** A pool with one session open, and what it made until then forgotten. */
const warm = (recorder: SpanRecorder) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient
    yield* sql`SELECT 1`
    recorder.forget()
    return sql
  })

/** Fails with 40001 until it was called `times` times, outside of any transaction. */
const makeContended = (witness: { readonly query: (sql: string) => Effect.Effect<unknown, unknown> }, times: number) =>
  Effect.andThen(
    witness.query("CREATE SEQUENCE runs"),
    witness.query(`CREATE FUNCTION contended() RETURNS int LANGUAGE plpgsql AS $$
      BEGIN
        IF nextval('runs') <= ${times} THEN RAISE serialization_failure; END IF;
        RETURN 1;
      END $$`)
  )

const refused = { host: "127.0.0.1", port: 1, database: "orders" } as const

describe("the span of a statement", () => {
  it.live("says what was done, through which pool, and is the only one when all is well", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { hostname, pathname, port } = new URL(Redacted.value(url))
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        yield* sql`SELECT ${1}::int AS one`
        yield* sql`select 2`.raw
        yield* sql`/* three */ (SELECT 3)`.values
        yield* sql.unsafe("-- four\nSELECT $1::int", [4]).unprepared
        yield* sql`SELECT 5`.withoutTransform
        yield* sql`SELECT 6`.valuesUnprepared
        yield* Stream.runDrain(sql`SELECT 7`.stream)
        yield* sql`CREATE TABLE t (n int)`
        const spans = statementsOf(recorder)
        assert.strictEqual(recorder.spans.length, spans.length)
        assert.deepStrictEqual(
          spans.map((span) => attributesOf(span)["db.operation.name"]),
          ["SELECT", "SELECT", "SELECT", "SELECT", "SELECT", "SELECT", "SELECT", "CREATE"]
        )
        assert.deepStrictEqual(attributesOf(spans[0]), {
          "db.system.name": "postgresql",
          "db.namespace": pathname.slice(1),
          "server.address": hostname,
          "server.port": Number(port),
          "db.client.connection.pool.name": "orders",
          "effect.sql.method": "execute",
          "db.query.text": "SELECT $1::int AS one",
          "db.operation.name": "SELECT"
        })
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, name: "orders", max: 2 })))
    }))

  it.live("has the SQLSTATE, for a unique violation and for a syntax error, in whatever form it is run", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* witness.query("CREATE UNIQUE INDEX ON t (n)")
      yield* witness.query("INSERT INTO t VALUES (1)")
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        const violation = sql`INSERT INTO t VALUES (1)`
        const mistake = sql`SELEKT 1`
        yield* Effect.flip(violation)
        yield* Effect.flip(violation.raw)
        yield* Effect.flip(violation.unprepared)
        yield* Effect.flip(mistake.values)
        yield* Effect.flip(Stream.runDrain(mistake.stream))
        yield* Effect.flip(sql.withTransaction(mistake))
        const states = statementsOf(recorder).map((span) =>
          pick(span, "db.operation.name", "db.response.status_code", "error.type")
        )
        const state = (operation: string, code: string) => ({
          "db.operation.name": operation,
          "db.response.status_code": code,
          "error.type": code
        })
        assert.deepStrictEqual(states, [
          ...Array.from({ length: 3 }, () => state("INSERT", "23505")),
          ...Array.from({ length: 3 }, () => state("SELEKT", "42601"))
        ])
        const [inserted] = statementsOf(recorder)
        assert.deepStrictEqual(pick(inserted, "db.error.kind", "db.error.constraint", "db.collection.name"), {
          "db.error.kind": "Rejected",
          "db.error.constraint": "t_n_idx",
          "db.collection.name": "t"
        })
        assert.deepStrictEqual(oursOf(recorder), [])
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2 })))
    }))

  it.live("says how often it was run, and has no error when the last attempt worked", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* makeContended(witness, 2)
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        yield* sql`SELECT contended()`
        const span = only(statementsOf(recorder))
        assert.deepStrictEqual(pick(span, "db.retry.attempts", "db.response.status_code", "error.type"), {
          "db.retry.attempts": 3
        })
        assert.deepStrictEqual(oursOf(recorder), ["db.retry", "db.retry"])
        for (const [index, retry] of recorder.named("db.retry").entries()) {
          assert.strictEqual(parentOf(retry), span)
          const { "db.retry.delay_ms": delay, ...rest } = attributesOf(retry)
          assert.deepStrictEqual(rest, {
            "db.client.connection.pool.name": "default",
            "db.retry.attempt": index + 2,
            "db.retry.reason": "Contention",
            "db.response.status_code": "40001",
            "db.error.kind": "Contention",
            "error.type": "40001"
          })
          assert.isAtLeast(Number(delay), 0)
          assert.isAtMost(Number(delay), 15)
        }
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2, retry: { base: 10 } })))
    }))

  it.live("is what the log line of its retry names", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* makeContended(witness, 1)
      const recorder = make()
      const lines: Array<Readonly<Record<string, unknown>>> = []
      const logger = Logger.make(({ fiber }) => {
        lines.push(fiber.getRef(References.CurrentLogAnnotations))
      })
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        lines.length = 0
        yield* sql`SELECT contended()`
        const { spanId, traceId } = only(statementsOf(recorder))
        const { "event.name": event, span_id, trace_id } = only(lines)
        assert.deepStrictEqual({ event, span_id, trace_id }, {
          event: "db.query.retry",
          span_id: spanId,
          trace_id: traceId
        })
      }).pipe(
        recorder.record,
        Effect.provide(Pg.layer({ url, max: 2, retry: { base: 10 } })),
        Effect.provide(Logger.layer([logger]))
      )
    }))

  it.live("says which attempt of the work around it it belongs to", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      yield* makeContended(witness, 1)
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        yield* Effect.withSpan(Pg.Executor.transaction(sql`SELECT contended()`), "checkout")
        const attempts = (spans: ReadonlyArray<Tracer.Span>) =>
          spans.map((span) => pick(span, "db.retry.attempt", "error.type"))
        const expected = [{ "error.type": "40001" }, { "db.retry.attempt": 2 }]
        assert.deepStrictEqual(attempts(statementsOf(recorder)), expected)
        assert.deepStrictEqual(attempts(recorder.named("sql.transaction")), expected)
        // The transaction as a whole is repeated, so that is a part of what the caller does.
        assert.strictEqual(parentOf(only(recorder.named("db.retry"))), only(recorder.named("checkout")))
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2, retry: { base: 10 } })))
    }))

  it.live("says what became of it when its backend was killed", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        yield* Effect.flip(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        const span = only(statementsOf(recorder))
        assert.deepStrictEqual(pick(span, "db.response.status_code", "error.type"), {
          "db.response.status_code": "57P01",
          "error.type": "57P01"
        })
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 1, retry: false })))
    }))

  it.live("has the server that it really went to, where there are several", () =>
    Effect.gen(function*() {
      const url = new URL(Redacted.value(yield* freshDatabase))
      const { hostname, port } = url
      url.host = `127.0.0.1:1,${hostname}:${port}`
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        assert.deepStrictEqual(pick(only(statementsOf(recorder)), "server.address", "server.port"), {
          "server.address": hostname,
          "server.port": Number(port)
        })
        assert.deepStrictEqual(pick(only(recorder.named("db.pool.connect")), "server.address", "server.port"), {
          "server.address": hostname,
          "server.port": Number(port)
        })
      }).pipe(
        recorder.record,
        Effect.provide(Pg.layer({
          hosts: [{ host: "127.0.0.1", port: 1 }, { host: hostname, port: Number(port) }],
          username: decodeURIComponent(url.username),
          password: Redacted.make(decodeURIComponent(url.password)),
          database: url.pathname.slice(1)
        }))
      )
    }))

  it.live("is not failed by an interruption, and says nothing of an error then", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        const fiber = yield* Effect.forkChild(sql`SELECT pg_sleep(60)`)
        yield* eventually(
          "the statement runs",
          witness.value<boolean>("SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")
        )
        yield* Fiber.interrupt(fiber)
        const span = only(statementsOf(recorder))
        assert.deepStrictEqual(pick(span, "db.operation.name", "db.response.status_code", "error.type"), {
          "db.operation.name": "SELECT"
        })
        assert.strictEqual(span.status._tag, "Ended")
        assert.deepStrictEqual(oursOf(recorder), [])
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2 })))
    }))

  it.live("ends with the error itself", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        const error = yield* Effect.flip(sql`SELECT 'canary-4711'::int`)
        const { attributes, status } = only(statementsOf(recorder))
        assert.strictEqual(status._tag === "Ended" && status.exit._tag, "Failure")
        // What an error shows of itself is its own affair; what we say of it beside that is none of the row.
        attributes.delete("db.query.text")
        assert.notInclude(JSON.stringify(Array.from(attributes)), "canary-4711")
        assert.strictEqual(error._tag, "SqlError")
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2 })))
    }))

  it.live("is that of the right one of two pools, also when one is used inside of a stream of the other", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      const clientOf = (name: string) =>
        Effect.map(Layer.build(Layer.fresh(Pg.layer({ url, name, max: 2 }))), Context.get(SqlClient))
      yield* recorder.record(Effect.gen(function*() {
        const orders = yield* clientOf("orders")
        const customers = yield* clientOf("customers")
        yield* orders`SELECT n FROM generate_series(1, 2) AS n`.stream.pipe(
          Stream.mapEffect(() => Effect.flip(customers`DELETE FROM nowhere`)),
          Stream.runDrain
        )
        const told = statementsOf(recorder).map((span) =>
          pick(span, "db.client.connection.pool.name", "db.operation.name", "error.type")
        )
        const failed = {
          "db.client.connection.pool.name": "customers",
          "db.operation.name": "DELETE",
          "error.type": "42P01"
        }
        assert.deepStrictEqual(told, [
          { "db.client.connection.pool.name": "orders", "db.operation.name": "SELECT" },
          failed,
          failed
        ])
      }))
    }))

  it.live("is its own also when a hook asks another pool first", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* recorder.record(Effect.gen(function*() {
        const customers = Context.get(
          yield* Layer.build(Layer.fresh(Pg.layer({ url, name: "customers", max: 2 }))),
          SqlClient
        )
        const orders = Context.get(
          yield* Layer.build(Layer.fresh(Pg.layer({
            url,
            name: "orders",
            max: 2,
            beforeAcquire: () => Effect.as(customers`VALUES (1)`, true)
          }))),
          SqlClient
        )
        yield* Effect.flip(orders`DELETE FROM nowhere`)
        assert.deepStrictEqual(
          statementsOf(recorder).map((span) =>
            pick(span, "db.client.connection.pool.name", "db.operation.name", "error.type")
          ),
          [
            { "db.client.connection.pool.name": "orders", "db.operation.name": "DELETE", "error.type": "42P01" },
            { "db.client.connection.pool.name": "customers", "db.operation.name": "VALUES" }
          ]
        )
      }))
    }))

  it.live("leaves a transformer of the program's own at work", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        const seen: Array<string> = []
        const rows = yield* sql`SELECT 1 AS n`.pipe(
          Effect.provideService(Statement.CurrentTransformer, (statement, sql, _fiber, span) =>
            Effect.sync(() => {
              seen.push(span.name)
              return sql`SELECT 2 AS n FROM (${statement}) AS before`
            }))
        )
        assert.deepStrictEqual(rows, [{ n: 2 }])
        assert.strictEqual(seen.length, 1)
        assert.strictEqual(attributesOf(only(statementsOf(recorder)))["db.operation.name"], "SELECT")
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2 })))
    }))
})

describe("a span of ours is there", () => {
  it.live("for a connect, apart from the statement that it was made for, which it may outlive", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { hostname, pathname, port } = new URL(Redacted.value(url))
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* Effect.withSpan(sql`SELECT 1`, "GET /orders")
        const statement = only(statementsOf(recorder))
        assert.strictEqual(parentOf(statement), only(recorder.named("GET /orders")))
        const connect = only(recorder.named("db.pool.connect"))
        assert.isUndefined(parentOf(connect))
        assert.deepStrictEqual(connect.links.map(({ span }) => span), [statement])
        assert.strictEqual(connect.kind, "client")
        assert.deepStrictEqual(attributesOf(connect), {
          "db.system.name": "postgresql",
          "db.namespace": pathname.slice(1),
          "db.client.connection.pool.name": "default",
          "server.address": hostname,
          "server.port": Number(port),
          "db.connection.outcome": "ok"
        })
        const acquire = only(recorder.named("db.pool.acquire"))
        assert.strictEqual(parentOf(acquire), statement)
        const { "db.acquire.waited_ms": waited, ...rest } = attributesOf(acquire)
        assert.isAtLeast(Number(waited), 0)
        assert.deepStrictEqual(rest, {
          "db.client.connection.pool.name": "default",
          "db.acquire.outcome": "acquired",
          "db.acquire.phases": ["Connect"]
        })
        for (const span of [acquire, connect]) {
          const { status } = span
          const within = status._tag === "Ended" && statement.status._tag === "Ended" &&
            status.startTime >= statement.status.startTime && status.endTime <= statement.status.endTime &&
            status.startTime <= status.endTime
          assert.isTrue(within, `${span.name} takes place while its statement waits`)
        }
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2 })))
    }))

  it.live("for whoever had to queue, and for whoever did so in vain", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        const pool = yield* Pg.Pool.Pool
        const queued = yield* Effect.scoped(Effect.gen(function*() {
          yield* pool.reserve()
          yield* Effect.flip(Pg.Executor.run(sql`SELECT 1`, { acquireTimeout: 20, retry: false }))
          const impatient = yield* Effect.forkChild(sql`SELECT 2`)
          yield* eventually("a waiter", Effect.map(pool.stats, ({ waiting }) => waiting === 1))
          yield* Fiber.interrupt(impatient)
          const patient = yield* Effect.forkChild(sql`SELECT 3`)
          yield* eventually("a waiter", Effect.map(pool.stats, ({ waiting }) => waiting === 1))
          return patient
        }))
        yield* Fiber.join(queued)
        const waits = recorder.named("db.pool.acquire")
        assert.deepStrictEqual(
          waits.map((span) => pick(span, "db.acquire.outcome", "db.acquire.phases", "error.type")),
          [
            {
              "db.acquire.outcome": "timeout",
              "db.acquire.phases": ["Queue"],
              "error.type": "AcquireTimeout"
            },
            { "db.acquire.outcome": "interrupted", "db.acquire.phases": ["Queue"] },
            { "db.acquire.outcome": "acquired", "db.acquire.phases": ["Queue"] }
          ]
        )
        assert.deepStrictEqual(waits.map(parentOf), statementsOf(recorder))
        assert.isAtLeast(Number(attributesOf(waits[0])["db.acquire.waited_ms"]), 19)
        const [inVain] = statementsOf(recorder)
        assert.deepStrictEqual(pick(inVain, "db.operation.name", "db.response.status_code", "error.type"), {
          "db.operation.name": "SELECT",
          "error.type": "AcquireTimeout"
        })
        assert.deepStrictEqual(recorder.named("db.pool.connect"), [])
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 1 })))
    }))

  it.live("for a session that had to prove that it lives, and not for a hook that is content", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        yield* sql`SELECT 1`
        const [acquire] = recorder.named("db.pool.acquire")
        assert.deepStrictEqual(attributesOf(acquire)["db.acquire.phases"], ["Validate"])
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 1, validate: "always" })))
      recorder.forget()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        yield* sql`SELECT 1`
        assert.deepStrictEqual(oursOf(recorder), [])
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 1, beforeAcquire: () => Effect.succeed(true) })))
    }))

  it.live("for connects that are refused, the attempts after them, and the circuit that rejects at last", () =>
    Effect.gen(function*() {
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* Effect.flip(sql`SELECT 1`)
        const statement = only(statementsOf(recorder))
        assert.deepStrictEqual(pick(statement, "db.operation.name", "db.retry.attempts", "error.type"), {
          "db.operation.name": "SELECT",
          "db.retry.attempts": 2,
          "error.type": "ECONNREFUSED"
        })
        const connects = recorder.named("db.pool.connect")
        assert.strictEqual(connects.length, 2)
        for (const connect of connects) {
          assert.deepStrictEqual(
            pick(connect, "server.address", "server.port", "db.connection.outcome", "error.type"),
            {
              "server.address": "127.0.0.1",
              "server.port": 1,
              "db.connection.outcome": "error",
              "error.type": "ECONNREFUSED"
            }
          )
          assert.strictEqual(connect.status._tag === "Ended" && connect.status.exit._tag, "Failure")
        }
        const retry = only(recorder.named("db.retry"))
        assert.strictEqual(parentOf(retry), statement)
        assert.deepStrictEqual(pick(retry, "db.retry.attempt", "db.retry.reason"), {
          "db.retry.attempt": 2,
          "db.retry.reason": "Unreachable"
        })
        recorder.forget()
        yield* Effect.flip(Pg.Executor.run(Pg.Executor.run(sql`SELECT 1`)))
        yield* Effect.flip(sql.withTransaction(sql`SELECT 1`))
        assert.deepStrictEqual(oursOf(recorder), ["db.circuit_breaker.rejected", "db.circuit_breaker.rejected"])
        const [first, second] = recorder.named("db.circuit_breaker.rejected")
        assert.strictEqual(parentOf(first), only(statementsOf(recorder)))
        assert.strictEqual(parentOf(second), only(recorder.named("sql.transaction")))
        assert.deepStrictEqual(pick(first, "db.client.connection.pool.name", "db.breaker.state"), {
          "db.client.connection.pool.name": "default",
          "db.breaker.state": "open"
        })
        assert.isAbove(Number(attributesOf(first)["db.breaker.retry_after_ms"]), 0)
        for (const rejected of [first, second, parentOf(first), parentOf(second)]) {
          assert.deepStrictEqual(pick(rejected as Tracer.Span, "error.type"), { "error.type": "CircuitOpen" })
        }
      }).pipe(
        recorder.record,
        Effect.provide(Pg.layer({ ...refused, breaker: { failures: 2 }, retry: { attempts: 2, base: 10 } }))
      )
    }))

  it.live("for a connect that nobody waits for, on its own", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      const warmed = Effect.flatMap(Pg.Pool.Pool, (pool) => pool.warm(2)).pipe(
        Effect.provide(Pg.layer({ url, max: 2 }))
      )
      yield* recorder.record(Effect.withSpan(warmed, "start"))
      assert.deepStrictEqual(recorder.names(), ["start", "db.pool.connect", "db.pool.connect"])
      for (const connect of recorder.named("db.pool.connect")) {
        assert.isUndefined(parentOf(connect))
        assert.deepStrictEqual(connect.links, [])
      }
    }))

  it.live("for each of those who wait, if a connect was made for them, and not for the others", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* Effect.all([sql`SELECT pg_sleep(0.2)`, sql`SELECT pg_sleep(0.2)`, sql`SELECT 1`], { concurrency: 3 })
        const statements = statementsOf(recorder)
        const causes = recorder.named("db.pool.connect").map(({ links }) => only(links).span)
        assert.deepStrictEqual(causes.map((span) => statements.indexOf(span as Tracer.NativeSpan)), [0, 1])
        assert.deepStrictEqual(
          recorder.named("db.pool.acquire").map((span) => attributesOf(span)["db.acquire.phases"]),
          [["Connect"], ["Connect"], ["Queue"]]
        )
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2 })))
    }))

  it.live("under the transaction that waits for its session, and not beside it", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* Effect.withSpan(sql.withTransaction(sql`SELECT 1`), "POST /orders")
        const transaction = only(recorder.named("sql.transaction"))
        assert.strictEqual(parentOf(transaction), only(recorder.named("POST /orders")))
        assert.strictEqual(parentOf(only(recorder.named("db.pool.acquire"))), transaction)
        assert.strictEqual(parentOf(only(statementsOf(recorder))), transaction)
        assert.deepStrictEqual(only(recorder.named("db.pool.connect")).links.map(({ span }) => span), [transaction])
        assert.deepStrictEqual(pick(transaction, "db.client.connection.pool.name", "error.type"), {
          "db.client.connection.pool.name": "default"
        })
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 2 })))
    }))
})

describe("the span of a transaction", () => {
  it.live("has what ended it: a statement, the program's own error, or its COMMIT", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeTable
      yield* witness.query("CREATE TABLE u (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
      const recorder = make()
      yield* Effect.gen(function*() {
        const sql = yield* warm(recorder)
        yield* Effect.flip(sql.withTransaction(sql`SELEKT 1`))
        yield* Effect.flip(sql.withTransaction(Effect.fail({ _tag: "OutOfStock" })))
        yield* Effect.flip(sql.withTransaction(sql`INSERT INTO u VALUES (1), (1)`))
        yield* Effect.exit(sql.withTransaction(Effect.interrupt))
        yield* sql.withTransaction(Effect.ignore(sql.withTransaction(Effect.fail({ _tag: "Inner" }))))
        assert.deepStrictEqual(
          recorder.named("sql.transaction").map((span) => pick(span, "db.response.status_code", "error.type")),
          [
            { "db.response.status_code": "42601", "error.type": "42601" },
            { "error.type": "OutOfStock" },
            { "db.response.status_code": "23505", "error.type": "23505" },
            {},
            {},
            { "error.type": "Inner" }
          ]
        )
        assert.deepStrictEqual(oursOf(recorder), [])
      }).pipe(recorder.record, Effect.provide(Pg.layer({ url, max: 1 })))
    }))
})

describe("nothing of ours is made", () => {
  const busy = (url: Redacted.Redacted) =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.all([sql`SELECT 1`, sql`SELECT 2`, sql`SELECT 3`], { concurrency: 3 })
      yield* Effect.flip(sql`SELEKT 1`)
      yield* Stream.runDrain(sql`SELECT 1`.stream)
      yield* sql.withTransaction(sql`SELECT 1`)
    }).pipe(Effect.provide(Pg.layer({ url, max: 1 })))

  it.live("for a trace that is not sampled", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make(() => false)
      yield* recorder.record(Effect.withSpan(busy(url), "GET /orders"))
      assert.strictEqual(statementsOf(recorder).length, 6)
      assert.deepStrictEqual(oursOf(recorder), [])
      for (const span of statementsOf(recorder)) assert.isUndefined(attributesOf(span)["db.operation.name"])
      // Nor when it is the statement that the sampler sees first.
      recorder.forget()
      yield* recorder.record(busy(url))
      assert.strictEqual(statementsOf(recorder).length, 6)
      assert.deepStrictEqual(oursOf(recorder), [])
    }))

  it.live("while tracing is off, or without a tracer", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const recorder = make()
      yield* recorder.record(Effect.provideService(busy(url), References.TracerEnabled, false))
      assert.deepStrictEqual(recorder.names(), [])
      yield* busy(url)
      assert.deepStrictEqual(recorder.names(), [])
    }))
})
