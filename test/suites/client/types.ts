import { PgClient } from "@effect/sql-pg/PgClient"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { SqlClient } from "effect/sql/SqlClient"
import type { Engine, It, Room } from "./engine.ts"
import { assertReason, over } from "./engine.ts"

export const types = (it: Room, engine: Engine): void => {
  it.layer(over(engine))("values of every type", values)
  it.layer(over(engine, { max: 1 }))("values that cannot be read", unreadable)
  it.layer(over(engine, { types: points() }))("types of the program's own", custom)
}

const values = (it: It): void => {
  it.effect("JavaScript values find their PostgreSQL types", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const instant = new Date("2024-05-06T07:08:09.123Z")
      const [row] = yield* sql`SELECT
        pg_typeof(${1})::text AS small, pg_typeof(${2 ** 40})::text AS large, pg_typeof(${1.5})::text AS fraction,
        pg_typeof(${1n})::text AS bigint, pg_typeof(${true})::text AS boolean, pg_typeof(${instant})::text AS date,
        pg_typeof(${new Uint8Array(1)})::text AS bytes, pg_typeof(${[1, 2]})::text AS numbers`
      assert.deepStrictEqual(row, {
        small: "integer",
        large: "bigint",
        fraction: "double precision",
        bigint: "bigint",
        boolean: "boolean",
        date: "timestamp with time zone",
        bytes: "bytea",
        numbers: "integer[]"
      })
    }))

  it.effect("numbers keep their value: whole, fractional, large and odd", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const [row] = yield* sql`SELECT
        ${-32768}::int2 AS int2, ${2147483647}::int4 AS int4, ${9007199254740993n}::int8 AS int8,
        ${0.1}::float8 AS float8, ${"123456789012345678901234567890.123456789"}::numeric AS numeric,
        'NaN'::float8 AS nan, '-Infinity'::float8 AS infinity`
      assert.deepStrictEqual(row, {
        int2: -32768,
        int4: 2147483647,
        int8: 9007199254740993n,
        float8: 0.1,
        numeric: "123456789012345678901234567890.123456789",
        nan: NaN,
        infinity: -Infinity
      })
    }))

  it.effect("text keeps every character", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      for (const text of ["", "it's \"quoted\"", "back\\slash", "Zürich 世界 🐘", "line\nbreak\ttab", "$1 ? :name"]) {
        assert.deepStrictEqual(yield* sql`SELECT ${text} AS text, ${text}::varchar AS varchar`, [{
          text,
          varchar: text
        }])
      }
    }))

  it.effect("null and undefined are null, and an unknown parameter is text", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(yield* sql`SELECT ${null}::int4 AS a, ${undefined}::text AS b, ${"x"} AS c`, [
        { a: null, b: null, c: "x" }
      ])
    }))

  it.effect("text is cast by the column it goes into", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE casted (id bigint, at timestamptz, uid uuid, mood text)`
      const uid = "0b9a7c1e-5d3f-4f1e-8c8f-000000000001"
      const rows = yield* sql`INSERT INTO casted ${
        sql.insert({ id: "12345678901234", at: "2024-05-06T07:08:09Z", uid, mood: "fine" }).returning("*")
      }`
      assert.deepStrictEqual(rows, [
        { id: 12345678901234n, at: new Date(Date.UTC(2024, 4, 6, 7, 8, 9)), uid, mood: "fine" }
      ])
      yield* sql`INSERT INTO casted (id) VALUES (${1755000000000})`
      assert.deepStrictEqual(yield* sql`SELECT id FROM casted WHERE id = ${1755000000000}`, [{ id: 1755000000000n }])
    }))

  it.effect("bytes go there and back", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const bytes = Uint8Array.from({ length: 256 }, (_, index) => index)
      const [row] = yield* sql<{ bytes: Uint8Array; signed: Uint8Array; none: Uint8Array }>`SELECT
        ${bytes} AS bytes, ${new Int8Array([1, -1])} AS signed, ''::bytea AS none`
      assert.deepStrictEqual(Uint8Array.from(row!.bytes), bytes)
      assert.deepStrictEqual(Uint8Array.from(row!.signed), new Uint8Array([1, 255]))
      assert.strictEqual(row!.none.length, 0)
    }))

  it.effect("instants are dates of JavaScript; days, times and intervals keep their own form", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const instant = new Date("2024-05-06T07:08:09.123Z")
      const [row] = yield* sql`SELECT
        ${instant} AS instant, ${instant}::timestamp AS local, ${new Date(-1234)} AS early,
        '2024-02-29'::date AS date, '12:34:56'::time AS time, '1 year 2 days 3 seconds'::interval AS interval`
      assert.deepStrictEqual(row, {
        instant,
        local: instant,
        early: new Date(-1234),
        date: "2024-02-29",
        time: 45_296_000_000n,
        interval: { months: 12, days: 2, microseconds: 3_000_000n }
      })
    }))

  it.effect("arrays hold elements of one type, nulls among them", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const [row] = yield* sql`SELECT
        ${[1, null, 3]}::int4[] AS numbers, ${["a", "b, \"c\"", null]}::text[] AS texts, ${[1n, 2n]} AS bigints,
        ${[true, false]} AS booleans, '{}'::int4[] AS none,
        ${[1.5, 2.5]} AS fractions`
      assert.deepStrictEqual(row, {
        numbers: [1, null, 3],
        texts: ["a", "b, \"c\"", null],
        bigints: [1n, 2n],
        booleans: [true, false],
        none: [],
        fractions: [1.5, 2.5]
      })
      assert.deepStrictEqual(yield* sql`SELECT n FROM generate_series(1, 5) AS n WHERE n = ANY(${[2, 4]})`, [
        { n: 2 },
        { n: 4 }
      ])
    }))

  it.effect("JSON goes there and back as a fragment", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      for (const value of [{ a: [1, null, { b: "ü" }] }, [], "text", 1.5, true, null]) {
        assert.deepStrictEqual(yield* sql`SELECT ${sql.json(value)} AS j`, [{ j: value }])
        assert.deepStrictEqual(yield* sql`SELECT ${sql.json(value)}::json AS j`, [{ j: value }])
      }
      assert.deepStrictEqual(
        yield* sql`SELECT ${sql.json({ a: 1 })} @> ${sql.json({})} AS held, ${sql.json({ a: 7 })} ->> 'a' AS a`,
        [{ held: true, a: "7" }]
      )
    }))

  it.effect("parameters may be given their type by hand", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const [row] = yield* sql`SELECT
        ${PgTypes.int8(7n)} AS int8, ${PgTypes.uuid("0b9a7c1e-5d3f-4f1e-8c8f-000000000001")} AS uuid,
        ${PgTypes.numeric("1.10")} AS numeric, ${PgTypes.date("2024-02-29")} AS date,
        ${PgTypes.jsonb({ a: 1 })} AS jsonb, ${Result.getOrThrow(PgTypes.array([1n, 2n], PgTypes.OID.int8))} AS list,
        ${PgTypes.inet("10.0.0.1/8")}::text AS inet`
      assert.deepStrictEqual(row, {
        int8: 7n,
        uuid: "0b9a7c1e-5d3f-4f1e-8c8f-000000000001",
        numeric: "1.10",
        date: "2024-02-29",
        jsonb: { a: 1 },
        list: [1n, 2n],
        inet: "10.0.0.1/8"
      })
    }))

  it.effect("enums, domains and ranges read as text", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TYPE mood AS ENUM ('sad', 'happy')`
      yield* sql`CREATE DOMAIN positive AS int4 CHECK (VALUE > 0)`
      yield* sql`CREATE TABLE moods (mood mood, n positive)`
      yield* sql`INSERT INTO moods ${sql.insert({ mood: "happy", n: 1 })}`
      assert.deepStrictEqual(yield* sql`SELECT mood, n FROM moods WHERE mood = ${"happy"}`, [{ mood: "happy", n: 1 }])
      const error = yield* Effect.flip(sql`INSERT INTO moods ${sql.insert({ mood: "angry", n: 1 })}`)
      assertReason(error, "UnknownError", "22P02")
    }))

  it.effect("a value that no type fits fails alone, and the session lives on", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const misfits = [Symbol("nothing"), { plain: "object" }, PgTypes.int4(2 ** 40), [1, 1.5], [[1]], [null]]
      for (const misfit of misfits) {
        const error = yield* Effect.flip(sql`SELECT ${misfit} AS misfit`)
        assert.strictEqual(error.reason._tag, "UnknownError")
        assert.isFalse(error.isRetryable)
      }
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))
}

const unreadable = (it: It): void => {
  it.effect("a row that cannot be read fails with the driver's complaint, and a new session takes over", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      for (let round = 0; round < 3; round++) {
        // Arrays of several dimensions are beyond the driver.
        const error = yield* Effect.flip(sql`SELECT '{{1,2},{3,4}}'::int4[] AS nested`)
        assert.strictEqual(error.reason._tag, "UnknownError")
        assert.strictEqual(error.message, "PgConnection: Failed to decode row")
        assert.isFalse(error.isRetryable)
        assert.instanceOf(error.reason.cause, PgTypes.CodecError)
        assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
      }
    }))
}

interface Point {
  readonly x: number
  readonly y: number
}

/** The built-in `point`, which the driver reads as text otherwise: two doubles. */
const points = (): PgTypes.Registry => {
  const registry = PgTypes.makeRegistry()
  registry.register<Point>(600, {
    encode: ({ x, y }) => {
      const bytes = new DataView(new ArrayBuffer(16))
      bytes.setFloat64(0, x)
      bytes.setFloat64(8, y)
      return Result.succeed(new Uint8Array(bytes.buffer))
    },
    decode: (bytes) => {
      const view = new DataView(bytes.buffer, bytes.byteOffset, 16)
      return Result.succeed({ x: view.getFloat64(0), y: view.getFloat64(8) })
    }
  }, { arrayOid: 1017 })
  return registry
}

const custom = (it: It): void => {
  it.effect("values of a registered type are decoded, alone and in arrays", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(
        yield* sql`SELECT point(1.5, -2) AS p, ARRAY[point(1, 2), point(3, 4)] AS ps, NULL::point AS none`,
        [{ p: { x: 1.5, y: -2 }, ps: [{ x: 1, y: 2 }, { x: 3, y: 4 }], none: null }]
      )
      assert.deepStrictEqual(yield* sql`SELECT point(1, 2) AS p`.values, [[{ x: 1, y: 2 }]])
    }))

  it.effect("the registry of one client is not that of another", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      assert.isDefined(sql.config.types)
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one, 'x'::text AS x, 2::int8 AS two`, [{ one: 1, x: "x", two: 2n }])
    }))
}
