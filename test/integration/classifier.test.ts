import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { makeTable } from "./witness.ts"

/** A sequence is not rolled back: it says how often the function ran. It raises `message` until the third time. */
const makeRaiser = Effect.fnUntraced(function*(message: string) {
  const { url, witness } = yield* makeTable
  yield* witness.query("CREATE SEQUENCE runs")
  yield* witness.query(
    `CREATE FUNCTION book() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
       INSERT INTO t VALUES (1);
       IF nextval('runs') < 3 THEN RAISE EXCEPTION '${message}'; END IF;
       RETURN 1;
     END $$`
  )
  const value = (sql: string) => witness.value<number>(sql)
  return {
    url,
    runs: value("SELECT last_value::int FROM runs"),
    rows: value("SELECT count(*)::int FROM t")
  }
})

const book = Effect.flatMap(SqlClient, (sql) => sql`SELECT book()`)
const errors = Effect.map(Effect.flatMap(Pg.Metrics.Metrics, (metrics) => metrics.snapshot), ({ errors }) => errors)

const taken: Pg.Errors.Classify = (failure, _circumstances, byDefault) =>
  failure.sqlState === "P0001" && failure.message === "seat was taken"
    ? { ...byDefault, kind: "Contention", retry: "Backoff" }
    : byDefault

const instantly = { retry: { base: 0, jitter: "none" } } as const

describe("an error that a function raised", () => {
  it.live("is repeated where its text means contention, and is counted as that", () =>
    Effect.gen(function*() {
      const { rows, runs, url } = yield* makeRaiser("seat was taken")
      yield* Effect.gen(function*() {
        assert.strictEqual((yield* book).length, 1)
        assert.strictEqual((yield* errors).Contention, 2)
        assert.strictEqual((yield* errors).Rejected, 0)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1, classify: taken })))
      assert.strictEqual(yield* runs, 3)
      assert.strictEqual(yield* rows, 1)
    }))

  it.live("repeats its whole transaction", () =>
    Effect.gen(function*() {
      const { rows, runs, url } = yield* makeRaiser("seat was taken")
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const executor = yield* Pg.Executor.Executor
        let tries = 0
        yield* executor.run(sql.withTransaction(Effect.suspend(() => {
          tries++
          return Effect.andThen(sql`INSERT INTO t VALUES (0)`, book)
        })))
        assert.strictEqual(tries, 3)
      }).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1, classify: taken })))
      assert.strictEqual(yield* runs, 3)
      assert.strictEqual(yield* rows, 2)
    }))

  it.live("is final where it says something else", () =>
    Effect.gen(function*() {
      const { rows, runs, url } = yield* makeRaiser("no such seat")
      yield* Effect.flip(book).pipe(Effect.provide(Pg.layer({ ...instantly, url, max: 1, classify: taken })))
      assert.strictEqual(yield* runs, 1)
      assert.strictEqual(yield* rows, 0)
    }))

  it.live("is final for another pool of the same process", () =>
    Effect.gen(function*() {
      const here = yield* makeRaiser("seat was taken")
      const there = yield* makeRaiser("seat was taken")
      const mine = yield* Layer.build(Pg.layer({ ...instantly, url: here.url, max: 1, classify: taken }))
      const others = yield* Layer.build(Pg.layer({ ...instantly, url: there.url, max: 1 }))
      yield* Effect.all([Effect.provide(book, mine), Effect.flip(Effect.provide(book, others))], { concurrency: 2 })
      assert.strictEqual(yield* here.runs, 3)
      assert.strictEqual(yield* there.runs, 1)
      assert.strictEqual((yield* Effect.provide(errors, others)).Rejected, 1)
    }))

  it.live("is judged by the reference first, and then by the option", () =>
    Effect.gen(function*() {
      const { runs, url } = yield* makeRaiser("seat was taken")
      const seen: Array<string> = []
      const layer = Pg.layer({
        ...instantly,
        url,
        max: 1,
        classify: (_failure, _circumstances, byDefault) => {
          seen.push(byDefault.kind)
          return { ...byDefault, retry: "Never" }
        }
      }).pipe(Layer.provide(Layer.succeed(Pg.Errors.Classifier, taken)))
      yield* Effect.flip(book).pipe(Effect.provide(layer))
      assert.deepStrictEqual(seen, ["Contention"])
      assert.strictEqual(yield* runs, 1)
    }))

  it.live("is repeated by the pool that the reference was provided to, and not inside of a program that provides it", () =>
    Effect.gen(function*() {
      const one = yield* makeRaiser("seat was taken")
      const classifier = Layer.succeed(Pg.Errors.Classifier, taken)
      yield* book.pipe(Effect.provide(
        Pg.layer({ ...instantly, url: one.url, max: 1 }).pipe(Layer.provide(classifier))
      ))
      assert.strictEqual(yield* one.runs, 3)
      const other = yield* makeRaiser("seat was taken")
      const exit = yield* Effect.exit(Effect.provide(book, classifier)).pipe(
        Effect.provide(Pg.layer({ ...instantly, url: other.url, max: 1 }))
      )
      assert.strictEqual(exit._tag, "Failure")
      assert.strictEqual(yield* other.runs, 1)
    }))

  it.live("keeps its default verdict when the classifier throws, with one warning", () =>
    Effect.gen(function*() {
      const { url } = yield* makeRaiser("seat was taken")
      const said: Array<unknown> = []
      const logger = Logger.layer([Logger.make(({ message }) => void said.push(message))])
      yield* Effect.gen(function*() {
        yield* Effect.flip(book)
        yield* Effect.flip(book)
        yield* book
        assert.strictEqual((yield* errors).Rejected, 2)
      }).pipe(
        Effect.provide(
          Pg.layer({
            url,
            max: 1,
            classify: () => {
              throw new Error("a mistake of the program")
            }
          })
        ),
        Effect.provide(logger)
      )
      assert.strictEqual(said.length, 1)
      assert.include(String(said[0]), "A classifier failed; the default verdict stands")
    }))
})

describe("a connect that failed", () => {
  it.live("is judged by the classifier as well", () =>
    Effect.gen(function*() {
      const { url } = yield* makeTable
      const seen: Array<string> = []
      const error = yield* Effect.flip(book).pipe(Effect.provide(Pg.layer({
        url,
        database: "nobody_made_this",
        max: 1,
        retry: { attempts: 3, base: 0, jitter: "none" },
        classify: (failure, { phase }, byDefault) => {
          seen.push(`${failure.sqlState} ${phase} ${byDefault.kind}`)
          return { ...byDefault, kind: "Unreachable", retry: "Backoff" }
        }
      })))
      assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "3D000")
      assert.deepStrictEqual(seen, Array.from({ length: 3 }, () => "3D000 Connect Denied"))
    }))
})
