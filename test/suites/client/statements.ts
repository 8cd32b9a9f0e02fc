import { PgClient } from "@effect/sql-pg/PgClient"
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import { SqlClient } from "effect/sql/SqlClient"
import * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import * as Str from "effect/String"
import type { Engine, It, Room } from "./engine.ts"
import { over } from "./engine.ts"

export const statements = (it: Room, engine: Engine): void => {
  it.layer(over(engine))("statements that are built", built)
  it.layer(over(engine))("statements that are run", run)
  it.layer(
    over(engine, { transformQueryNames: Str.camelToSnake, transformResultNames: Str.snakeToCamel })
  )("names that are transformed", transformed)
  it.layer(
    over(engine, {
      transformQueryNames: Str.camelToSnake,
      transformResultNames: Str.snakeToCamel,
      transformJson: false
    })
  )("names that are transformed, but for those in JSON", shallow)
}

const built = (it: It): void => {
  it.effect("one record is inserted", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(sql`INSERT INTO people ${sql.insert({ name: "Ada", age: 36 })}`.compile(), [
        `INSERT INTO people ("name","age") VALUES ($1,$2)`,
        ["Ada", 36]
      ])
    }))

  it.effect("many records are inserted with the columns of the first", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const records = [{ name: "Ada", age: 36 }, { name: "Alan", age: 41 }] as const
      assert.deepStrictEqual(sql`INSERT INTO people ${sql.insert(records)}`.compile(), [
        `INSERT INTO people ("name","age") VALUES ($1,$2),($3,$4)`,
        ["Ada", 36, "Alan", 41]
      ])
    }))

  it.effect("an insert returns columns said as text, as an identifier or as a fragment", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const insert = sql.insert({ name: "Ada" })
      const compiled = (returning: string | Statement.Identifier | Statement.Fragment) =>
        sql`INSERT INTO people ${insert.returning(returning)}`.compile()
      const head = `INSERT INTO people ("name") VALUES ($1) RETURNING`
      assert.deepStrictEqual(compiled("*"), [`${head} *`, ["Ada"]])
      assert.deepStrictEqual(compiled(sql("name")), [`${head} "name"`, ["Ada"]])
      assert.deepStrictEqual(compiled(sql`id, ${1} AS one`), [`${head} id, $2 AS one`, ["Ada", 1]])
    }))

  it.effect("a returning fragment that has been compiled alone is numbered anew", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const returning = sql`${"label"} AS label`
      assert.deepStrictEqual(returning.compile(), ["$1 AS label", ["label"]])
      assert.deepStrictEqual(
        sql`INSERT INTO people ${sql.insert({ name: "Ada" }).returning(returning)}, ${2} AS two`.compile(),
        [`INSERT INTO people ("name") VALUES ($1) RETURNING $2 AS label, $3 AS two`, ["Ada", "label", 2]]
      )
    }))

  it.effect("fragments take their place among the values of an insert", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const [text, params] = sql`INSERT INTO people ${sql.insert({ name: "Ada", data: sql.json({ a: 1 }) })}`.compile()
      assert.strictEqual(text, `INSERT INTO people ("name","data") VALUES ($1,$2)`)
      assert.lengthOf(params, 2)
    }))

  it.effect("one record is updated, but for the columns left out", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(sql`UPDATE people SET ${sql.update({ name: "Ada", age: 36 })}`.compile(), [
        `UPDATE people SET "name" = $1, "age" = $2`,
        ["Ada", 36]
      ])
      assert.deepStrictEqual(sql`UPDATE people SET ${sql.update({ name: "Ada", age: 36 }, ["age"])}`.compile(), [
        `UPDATE people SET "name" = $1`,
        ["Ada"]
      ])
      assert.deepStrictEqual(sql`UPDATE people SET ${sql.update({ name: "Ada" }).returning("*")}`.compile(), [
        `UPDATE people SET "name" = $1 RETURNING *`,
        ["Ada"]
      ])
    }))

  it.effect("many records are updated from a list of values", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const values = [{ name: "Ada" }, { name: "Alan" }] as const
      assert.deepStrictEqual(
        sql`UPDATE people SET name = data.name FROM ${sql.updateValues(values, "data")}`.compile(),
        [
          `UPDATE people SET name = data.name FROM (values ($1),($2)) AS "data"("name")`,
          ["Ada", "Alan"]
        ]
      )
      assert.deepStrictEqual(
        sql`UPDATE people SET name = data.name FROM ${sql.updateValues(values, "data").returning("*")}`.compile(),
        [
          `UPDATE people SET name = data.name FROM (values ($1),($2)) AS "data"("name") RETURNING *`,
          ["Ada", "Alan"]
        ]
      )
      const [text, params] = sql`UPDATE people SET data = v.data FROM ${
        sql.updateValues([{ data: sql.json({ a: 1 }) }, { data: sql.json({ b: 1 }) }], "v")
      } WHERE id > ${7}`.compile()
      assert.strictEqual(
        text,
        `UPDATE people SET data = v.data FROM (values ($1),($2)) AS "v"("data") WHERE id > $3`
      )
      assert.lengthOf(params, 3)
    }))

  it.effect("a list becomes one parameter each, with or without a column", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(sql`SELECT * FROM ${sql("people")} WHERE id IN ${sql.in([1, 2, "three"])}`.compile(), [
        `SELECT * FROM "people" WHERE id IN ($1,$2,$3)`,
        [1, 2, "three"]
      ])
      assert.deepStrictEqual(sql`SELECT * FROM people WHERE ${sql.in("id", [1, 2])}`.compile(), [
        `SELECT * FROM people WHERE "id" IN ($1,$2)`,
        [1, 2]
      ])
      assert.deepStrictEqual(sql`SELECT * FROM people WHERE ${sql.in("id", [])}`.compile(), [
        "SELECT * FROM people WHERE 1=0",
        []
      ])
    }))

  it.effect("clauses are joined by AND and OR, and none at all holds for every row", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const clauses = [sql.in("name", ["Ada", "Alan"]), sql`age < ${40}`, "true"]
      assert.deepStrictEqual(sql`WHERE ${sql.and(clauses)}`.compile(), [
        `WHERE ("name" IN ($1,$2) AND age < $3 AND true)`,
        ["Ada", "Alan", 40]
      ])
      assert.deepStrictEqual(sql`WHERE ${sql.or([sql`a = ${1}`, sql.and(clauses.slice(1))])}`.compile(), [
        "WHERE (a = $1 OR (age < $2 AND true))",
        [1, 40]
      ])
      assert.deepStrictEqual(sql`WHERE ${sql.and(["only"])} OR ${sql.or([])} AND ${sql.and([])}`.compile(), [
        "WHERE only OR 1=1 AND 1=1",
        []
      ])
    }))

  it.effect("values are listed with commas and joined by anything else", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(
        sql`SELECT ${sql.csv(["a", sql`b + ${1}`])} FROM t ${sql.csv("ORDER BY", ["a", "b"])}`.compile(),
        ["SELECT a,b + $1 FROM t ORDER BY a,b", [1]]
      )
      assert.strictEqual(sql`SELECT 1${sql.csv("GROUP BY", [])}`.compile()[0], "SELECT 1")
      assert.strictEqual(sql`${sql.join(" || ")(["a", "b"])}`.compile()[0], "(a || b)")
      assert.strictEqual(sql`${sql.join(" || ", false, "''")(["a", "b"])}`.compile()[0], "a || b")
      assert.strictEqual(sql`${sql.join(" || ", false, "''")([])}`.compile()[0], "''")
    }))

  it.effect("identifiers are quoted, and their quotes doubled", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.strictEqual(sql`${sql("public.people")}`.compile()[0], `"public"."people"`)
      assert.strictEqual(sql`${sql("we\"ird")}`.compile()[0], `"we""ird"`)
      assert.strictEqual(sql`${sql("peopleTest")}`.compile()[0], `"peopleTest"`)
    }))

  it.effect("literals and unsafe text are taken as they are", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(sql`SELECT ${sql.literal("now()")}, ${1}`.compile(), ["SELECT now(), $1", [1]])
      assert.deepStrictEqual(sql.unsafe("SELECT $1", [2]).compile(), ["SELECT $1", [2]])
    }))

  it.effect("a statement is a fragment of the next one", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const inner = sql`SELECT id FROM people WHERE age > ${30}`
      assert.deepStrictEqual(sql`SELECT ${1}, (${inner}) WHERE ${2} = ${3}`.compile(), [
        "SELECT $1, (SELECT id FROM people WHERE age > $2) WHERE $3 = $4",
        [1, 30, 2, 3]
      ])
    }))

  it.effect("the dialect is PostgreSQL", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const say = (word: string) => () => word
      assert.strictEqual(
        sql.onDialect({
          pg: say("pg"),
          sqlite: say("sqlite"),
          mysql: say("mysql"),
          mssql: say("mssql"),
          clickhouse: say("clickhouse")
        }),
        "pg"
      )
      assert.strictEqual(sql.onDialectOrElse({ orElse: say("other"), pg: say("pg") }), "pg")
      assert.strictEqual(sql.onDialectOrElse({ orElse: say("other"), mysql: say("mysql") }), "other")
    }))

  it.effect("PgClient and SqlClient are one client, which keeps the configuration it was given", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      assert.strictEqual(sql as SqlClient, yield* SqlClient)
      assert.strictEqual(sql.safe, sql)
      assert.isDefined(sql.config.url)
      assert.strictEqual(sql.withoutTransforms(), sql)
    }))
}

const run = (it: It): void => {
  it.effect("records are inserted, updated, selected and deleted", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      yield* sql`CREATE TABLE people (id serial PRIMARY KEY, name text NOT NULL, age int4, data jsonb)`
      const inserted = yield* sql`INSERT INTO people ${
        sql.insert([
          { name: "Ada", age: 36, data: sql.json({ field: "mathematics" }) },
          { name: "Alan", age: 41, data: null },
          { name: "Grace", age: null, data: sql.json([1, { two: 2 }]) }
        ]).returning("*")
      }`
      assert.deepStrictEqual(inserted, [
        { id: 1, name: "Ada", age: 36, data: { field: "mathematics" } },
        { id: 2, name: "Alan", age: 41, data: null },
        { id: 3, name: "Grace", age: null, data: [1, { two: 2 }] }
      ])
      const updated = yield* sql`UPDATE people SET ${
        sql.update({ age: 37, data: sql.json({ field: "computing" }) })
      } WHERE id = ${1} RETURNING age, data`
      assert.deepStrictEqual(updated, [{ age: 37, data: { field: "computing" } }])
      const renamed = yield* sql`UPDATE people SET name = v.name FROM ${
        sql.updateValues([{ id: 1, name: "Lovelace" }, { id: 2, name: "Turing" }], "v")
      } WHERE people.id = v.id::int4 RETURNING people.id, people.name`
      assert.sameDeepMembers([...renamed], [{ id: 1, name: "Lovelace" }, { id: 2, name: "Turing" }])
      const found = yield* sql`SELECT name FROM people WHERE ${
        sql.and([sql.in("id", [1, 2, 3]), sql.or([sql`age > ${40}`, sql`age IS NULL`])])
      } ${sql.csv("ORDER BY", ["name DESC"])}`
      assert.deepStrictEqual(found, [{ name: "Turing" }, { name: "Grace" }])
      assert.deepStrictEqual(yield* sql`SELECT id FROM people WHERE id IN ${sql.in([])}`, [])
      assert.lengthOf(yield* sql`SELECT id FROM people WHERE id NOT IN ${sql.in([])}`, 3)
      assert.deepStrictEqual(yield* sql`DELETE FROM people WHERE id < ${3}`, [])
      assert.deepStrictEqual(yield* sql`SELECT count(*)::int4 AS n FROM people`, [{ n: 1 }])
    }))

  it.effect("rows come as objects, as values, and raw with the command and the columns", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const statement = sql<
        { n: number; label: string }
      >`SELECT n, ${"x"}::text AS label FROM generate_series(1, 2) AS n`
      const rows = [{ n: 1, label: "x" }, { n: 2, label: "x" }]
      assert.deepStrictEqual(yield* statement, rows)
      assert.deepStrictEqual(yield* statement.unprepared, rows)
      assert.deepStrictEqual(yield* statement.withoutTransform, rows)
      assert.deepStrictEqual(yield* Stream.runCollect(statement.stream), rows)
      assert.deepStrictEqual(yield* statement.values, [[1, "x"], [2, "x"]])
      assert.deepStrictEqual(yield* statement.valuesUnprepared, [[1, "x"], [2, "x"]])
      const raw = (yield* statement.raw) as PgConnection.Result
      assert.strictEqual(raw.command, "SELECT")
      assert.strictEqual(raw.rowCount, 2)
      assert.strictEqual(raw.oid, null)
      assert.deepStrictEqual(raw.rows, rows)
      assert.deepStrictEqual(raw.fields, [{ name: "n", dataTypeId: 23 }, { name: "label", dataTypeId: 25 }])
    }))

  it.effect("raw says how many rows a write has touched", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const told = (statement: Statement.Statement<unknown>) =>
        Effect.map(statement.raw as Effect.Effect<PgConnection.Result>, (result) => [result.command, result.rowCount])
      assert.deepStrictEqual(yield* told(sql`CREATE TABLE counted (n int4)`), ["CREATE", 0])
      assert.deepStrictEqual(yield* told(sql`INSERT INTO counted SELECT generate_series(1, 5)`), ["INSERT", 5])
      assert.deepStrictEqual(yield* told(sql`UPDATE counted SET n = n + 1 WHERE n > 3`), ["UPDATE", 2])
      assert.deepStrictEqual(yield* told(sql`DELETE FROM counted`), ["DELETE", 5])
    }))

  it.effect("a statement without rows has none in every form", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const statement = sql`SELECT 1 AS one WHERE false`
      assert.deepStrictEqual(yield* statement, [])
      assert.deepStrictEqual(yield* statement.values, [])
      assert.deepStrictEqual(yield* statement.unprepared, [])
      assert.deepStrictEqual(yield* Stream.runCollect(statement.stream), [])
    }))

  it.effect("an empty statement and a mere comment are run too", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(yield* sql``, [])
      assert.deepStrictEqual(yield* sql`-- nothing to do`, [])
      assert.deepStrictEqual(yield* sql.unsafe(" ").unprepared, [])
      assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
    }))

  it.effect("of two columns with one name the last is in the object, and both in the values", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(yield* sql`SELECT 1 AS n, 2 AS n`, [{ n: 2 }])
      assert.deepStrictEqual(yield* sql`SELECT 1 AS n, 2 AS n`.values, [[1, 2]])
    }))

  it.effect("a column may be called __proto__ and does no harm", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const rows = yield* sql`SELECT '{"polluted":true}'::jsonb AS "__proto__", 1 AS one`
      assert.strictEqual(({} as { polluted?: unknown }).polluted, undefined)
      assert.strictEqual(rows[0]?.one, 1)
      assert.deepStrictEqual(yield* sql`SELECT '{"a":1}'::jsonb AS "__proto__"`.values, [[{ a: 1 }]])
    }))

  it.effect("unsafe text is run with its parameters", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(yield* sql.unsafe("SELECT $1::int4 + $2::int4 AS sum", [1, 2]), [{ sum: 3 }])
      assert.deepStrictEqual(yield* sql.unsafe("SELECT 1 AS one"), [{ one: 1 }])
    }))

  it.effect("one statement value is run many times", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE ticks (n serial)`
      const tick = sql<{ n: number }>`INSERT INTO ticks DEFAULT VALUES RETURNING n`
      const seen = yield* Effect.replicateEffect(tick, 3)
      assert.deepStrictEqual(seen.map((rows) => rows[0]!.n), [1, 2, 3])
    }))

  it.effect("a statement is rewritten by the transformer of the context", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const rows = yield* sql`SELECT 1 AS n`.pipe(
        Effect.provideService(
          Statement.CurrentTransformer,
          (self, constructor) => Effect.succeed(constructor`SELECT n + 41 AS n FROM (${self}) AS inner_query`)
        )
      )
      assert.deepStrictEqual(rows, [{ n: 42 }])
    }))

  it.effect("a hundred thousand rows arrive complete and in order", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const rows = yield* sql<{ n: number }>`SELECT n, repeat('x', 20) AS filler FROM generate_series(1, 100000) AS n`
      assert.lengthOf(rows, 100_000)
      assert.isTrue(rows.every((row, index) => row.n === index + 1))
      const values = yield* sql`SELECT n FROM generate_series(1, 100000) AS n`.values
      assert.lengthOf(values, 100_000)
    }))

  it.effect("megabytes go there and back in one parameter", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const text = "Zürich ".repeat(500_000)
      const bytes = new Uint8Array(4 << 20).map((_, index) => index % 251)
      const [row] = yield* sql<
        { text: string; bytes: Uint8Array }
      >`SELECT ${text}::text AS text, ${bytes}::bytea AS bytes`
      assert.isTrue(row!.text === text)
      assert.isTrue(Buffer.from(bytes).equals(row!.bytes))
    }))

  it.effect("thousands of parameters fit into one statement", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE wide (n int4, label text)`
      const records = Arr.makeBy(10_000, (n) => ({ n, label: `row ${n}` }))
      yield* sql`INSERT INTO wide ${sql.insert(records)}`.unprepared
      assert.deepStrictEqual(yield* sql`SELECT count(*)::int4 AS count, sum(n)::int4 AS sum FROM wide`, [
        { count: 10_000, sum: 49_995_000 }
      ])
    }))

  it.effect("statements of many fibers get their own answers", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const answers = yield* Effect.forEach(
        Array.from({ length: 500 }, (_, n) => n),
        (n) => Effect.map(sql<{ n: number }>`SELECT ${n}::int4 AS n`, (rows) => rows[0]!.n),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(answers, Array.from({ length: 500 }, (_, n) => n))
    }))
}

const transformed = (it: It): void => {
  it.effect("property names become column names and back", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      assert.deepStrictEqual(sql`INSERT INTO ${sql("bigPeople")} ${sql.insert({ firstName: "Ada" })}`.compile(), [
        `INSERT INTO "big_people" ("first_name") VALUES ($1)`,
        ["Ada"]
      ])
      yield* sql`CREATE TABLE ${sql("bigPeople")} (first_name text, born_in int4)`
      const rows = yield* sql`INSERT INTO ${sql("bigPeople")} ${
        sql.insert({ firstName: "Ada", bornIn: 1815 }).returning("*")
      }`
      assert.deepStrictEqual(rows, [{ firstName: "Ada", bornIn: 1815 }])
      yield* sql`UPDATE ${sql("bigPeople")} SET ${sql.update({ bornIn: 1816 })} WHERE ${sql.in("firstName", ["Ada"])}`
      assert.deepStrictEqual(yield* sql`SELECT * FROM big_people`.unprepared, [{ firstName: "Ada", bornIn: 1816 }])
      assert.deepStrictEqual(yield* Stream.runCollect(sql`SELECT * FROM big_people`.stream), [
        { firstName: "Ada", bornIn: 1816 }
      ])
      assert.deepStrictEqual(yield* sql`SELECT born_in FROM big_people`.values, [[1816]])
      const raw = (yield* sql`SELECT born_in FROM big_people`.raw) as PgConnection.Result
      assert.deepStrictEqual(raw.rows, [{ born_in: 1816 }])
    }))

  it.effect("one statement is run without transforms, or a whole client", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      assert.deepStrictEqual(yield* sql`SELECT 1 AS big_one`.withoutTransform, [{ big_one: 1 }])
      const plain = sql.withoutTransforms()
      assert.deepStrictEqual(plain`INSERT INTO ${plain("bigPeople")} ${plain.insert({ firstName: 1 })}`.compile(), [
        `INSERT INTO "bigPeople" ("firstName") VALUES ($1)`,
        [1]
      ])
      assert.deepStrictEqual(yield* plain`SELECT 1 AS big_one`, [{ big_one: 1 }])
      assert.deepStrictEqual(yield* plain`SELECT ${plain.json({ bigOne: 1 })} AS j`, [{ j: { bigOne: 1 } }])
      assert.deepStrictEqual(yield* Stream.runCollect(plain`SELECT 1 AS big_one`.stream), [{ big_one: 1 }])
      assert.strictEqual(plain.withoutTransforms(), plain)
      assert.strictEqual(plain.safe, plain)
    }))

  it.effect("a client without transforms works in the same transaction", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const plain = sql.withoutTransforms()
      const pid = sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
      yield* sql.withTransaction(Effect.gen(function*() {
        const [one] = yield* pid
        assert.deepStrictEqual(yield* plain`SELECT pg_backend_pid() AS pid`, [one!])
        assert.deepStrictEqual(yield* plain.withTransaction(plain`SELECT pg_backend_pid() AS pid`), [one!])
      }))
    }))

  it.effect("names inside of JSON are transformed both ways", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const value = { outerName: 1, innerList: [{ innerName: true }], plain: ["textValue"] }
      assert.deepStrictEqual(yield* sql`SELECT ${sql.json(value)} AS big_json`, [{ bigJson: value }])
      assert.deepStrictEqual(yield* sql`SELECT ${sql.json(value)}::text AS text`, [
        { text: `{"plain": ["textValue"], "inner_list": [{"inner_name": true}], "outer_name": 1}` }
      ])
    }))

  it.effect("the configuration keeps the transforms it was given", () =>
    Effect.gen(function*() {
      const { config } = yield* PgClient
      assert.strictEqual(config.transformResultNames, Str.snakeToCamel)
      assert.strictEqual(config.transformQueryNames, Str.camelToSnake)
    }))
}

const shallow = (it: It): void => {
  it.effect("names inside of JSON stay as they are", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient
      const value = { outerName: 1, inner_list: [{ inner_name: true }] }
      assert.deepStrictEqual(yield* sql`SELECT ${sql.json(value)} AS big_json`, [{ bigJson: value }])
      assert.deepStrictEqual(yield* sql`SELECT ${sql.json({ outerName: 1 })}::text AS text`, [
        { text: `{"outerName": 1}` }
      ])
    }))
}
