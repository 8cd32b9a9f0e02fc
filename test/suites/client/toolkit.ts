import { NodeServices } from "@effect/platform-node"
import { PgClient } from "@effect/sql-pg/PgClient"
import * as PgMigrator from "@effect/sql-pg/PgMigrator"
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as KeyValueStore from "effect/persistence/KeyValueStore"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Schema from "effect/Schema"
import * as Model from "effect/schema/Model"
import { SqlClient } from "effect/sql/SqlClient"
import * as SqlModel from "effect/sql/SqlModel"
import * as SqlResolver from "effect/sql/SqlResolver"
import * as SqlSchema from "effect/sql/SqlSchema"
import type { Engine, It, Room } from "./engine.ts"
import { assertReason, eventually, look, over } from "./engine.ts"

/** What others build on a client: they are given nothing but the services. */
export const toolkit = (it: Room, engine: Engine): void => {
  it.layer(over(engine))("migrations", migrations)
  it.layer(over(engine))("models, schemas and resolvers", models)
  it.layer(over(engine))("persistence", persistence)
}

const migrations = (it: It): void => {
  const applied = (table: string) =>
    Effect.map(
      look(`SELECT migration_id, name FROM ${table} ORDER BY migration_id`),
      (rows) => rows.map((row) => [row.migration_id, row.name])
    )

  it.effect("migrations run once, in order, each known by number and name", () =>
    Effect.gen(function*() {
      const create = Effect.flatMap(SqlClient, (sql) => sql`CREATE TABLE migrated (n int4)`)
      const fill = Effect.flatMap(SqlClient, (sql) => sql`INSERT INTO migrated VALUES (1)`)
      const run = (migrations: Record<string, Effect.Effect<void, unknown, SqlClient>>) =>
        PgMigrator.run({ loader: PgMigrator.fromRecord(migrations) }).pipe(Effect.provide(NodeServices.layer))
      const first = { "0002_fill": Effect.asVoid(fill), "0001_create": Effect.asVoid(create) }
      assert.deepStrictEqual(yield* run(first), [[1, "create"], [2, "fill"]])
      assert.deepStrictEqual(yield* run(first), [])
      assert.deepStrictEqual(yield* run({ ...first, "0003_more": Effect.asVoid(fill) }), [[3, "more"]])
      assert.deepStrictEqual(yield* applied("effect_sql_migrations"), [[1, "create"], [2, "fill"], [3, "more"]])
      assert.deepStrictEqual(yield* look("SELECT n FROM migrated"), [{ n: 1 }, { n: 1 }])
    }))

  it.effect("a migration that fails leaves nothing of itself or of those before it", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const exit = yield* Effect.exit(
        PgMigrator.run({
          table: "failed_migrations",
          loader: PgMigrator.fromRecord({
            "1_create": Effect.asVoid(sql`CREATE TABLE half_done (n int4)`),
            "2_break": Effect.asVoid(sql`SELECT 1 / 0`)
          })
        }).pipe(Effect.provide(NodeServices.layer))
      )
      assert.strictEqual(exit._tag, "Failure")
      assert.deepStrictEqual(yield* applied("failed_migrations"), [])
      assert.deepStrictEqual(yield* look("SELECT to_regclass('half_done')::text AS name"), [{ name: null }])
    }))

  it.effect("migrations may be a layer", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const pg = yield* PgClient
      const migrated = PgMigrator.layer({
        table: "layer_migrations",
        loader: PgMigrator.fromRecord({ "1_create": Effect.asVoid(sql`CREATE TABLE from_layer (n int4)`) })
      }).pipe(
        Layer.provide(NodeServices.layer),
        Layer.provide(Layer.succeed(SqlClient, sql)),
        Layer.provide(Layer.succeed(PgClient, pg))
      )
      yield* Effect.scoped(Layer.build(migrated))
      assert.deepStrictEqual(yield* applied("layer_migrations"), [[1, "create"]])
      assert.deepStrictEqual(yield* sql`SELECT * FROM from_layer`, [])
    }))

  it.effect("of several migrators that start together, only one runs the migrations", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      let runs = 0
      const migrate = Effect.exit(
        PgMigrator.run({
          table: "contended_migrations",
          loader: PgMigrator.fromRecord({
            "1_once": Effect.andThen(Effect.sync(() => void runs++), Effect.asVoid(sql`CREATE TABLE once (n int4)`))
          })
        }).pipe(Effect.provide(NodeServices.layer))
      )
      yield* Effect.all([migrate, migrate, migrate], { concurrency: "unbounded" })
      assert.strictEqual(runs, 1)
      assert.deepStrictEqual(yield* applied("contended_migrations"), [[1, "once"]])
    }))

  it.effect("a history table that somebody else is just creating is waited for", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const created = yield* Deferred.make<void>()
      const commit = yield* Deferred.make<void>()
      let runs = 0
      const creator = yield* Effect.forkScoped(sql.withTransaction(Effect.gen(function*() {
        yield* sql`CREATE TABLE raced_migrations (
          migration_id integer PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now(), name text NOT NULL)`
        yield* sql`INSERT INTO raced_migrations (migration_id, name) VALUES (1, 'init')`
        yield* Deferred.succeed(created, undefined)
        yield* Deferred.await(commit)
      })))
      yield* Deferred.await(created)
      const migrator = yield* Effect.forkScoped(
        PgMigrator.run({
          table: "raced_migrations",
          loader: PgMigrator.fromRecord({ "1_init": Effect.sync(() => void runs++) })
        }).pipe(Effect.provide(NodeServices.layer))
      )
      yield* eventually(Effect.map(
        look(`SELECT count(*)::int4 AS n FROM pg_stat_activity
          WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'CREATE TABLE%raced%'`),
        (rows) => rows[0]?.n === 1
      ))
      yield* Deferred.succeed(commit, undefined)
      yield* Fiber.join(creator)
      assert.deepStrictEqual(yield* Fiber.join(migrator), [])
      assert.strictEqual(runs, 0)
    }))
}

class Person extends Model.Class<Person>("Person")({
  id: Schema.Int.pipe(Model.FieldExcept(["insert"])),
  name: Schema.String,
  born: Model.DateTimeInsertFromDate
}) {}

const models = (it: It): void => {
  const makePeople = Effect.fnUntraced(function*(tableName: string) {
    const sql = yield* SqlClient
    yield* sql`CREATE TABLE ${sql(tableName)} (
      id serial PRIMARY KEY, name text NOT NULL UNIQUE, born timestamptz NOT NULL, gone timestamptz)`
    return yield* SqlModel.makeRepository(Person, { tableName, idColumn: "id", spanPrefix: "People" })
  })

  const someone = (name: string) =>
    Person.insert.makeEffect({ name, born: Model.Override(DateTime.makeUnsafe("1815-12-10T00:00:00Z")) })

  it.effect("a repository inserts, finds, updates and deletes", () =>
    Effect.gen(function*() {
      const people = yield* makePeople("repository")
      const ada = yield* people.insert(yield* someone("Ada"))
      assert.deepStrictEqual([ada.id, ada.name], [1, "Ada"])
      assert.strictEqual(DateTime.formatIso(ada.born), "1815-12-10T00:00:00.000Z")
      yield* people.insertVoid(yield* someone("Alan"))
      assert.deepStrictEqual(yield* people.findById(1), ada)
      const renamed = yield* people.update(Person.update.make({ id: 1, name: "Lovelace" }))
      assert.strictEqual(renamed.name, "Lovelace")
      yield* people.delete(2)
      const missing = yield* Effect.flip(people.findById(2))
      assert.isTrue(Cause.isNoSuchElementError(missing))
    }))

  it.effect("a repository fails with the server's reason", () =>
    Effect.gen(function*() {
      const people = yield* makePeople("repository_unique")
      yield* people.insertVoid(yield* someone("Ada"))
      const error = yield* Effect.flip(people.insert(yield* someone("Ada")))
      if (error._tag !== "SqlError") return assert.fail(error._tag)
      assertReason(error, "UniqueViolation", "23505")
    }))

  it.effect("a repository works inside a transaction", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      const people = yield* makePeople("repository_transaction")
      yield* Effect.exit(sql.withTransaction(Effect.gen(function*() {
        const ada = yield* people.insert(yield* someone("Ada"))
        assert.deepStrictEqual(yield* people.findById(ada.id), ada)
        return yield* Effect.fail("no")
      })))
      assert.isTrue(Cause.isNoSuchElementError(yield* Effect.flip(people.findById(1))))
    }))

  it.effect("what a repository deletes softly is no longer found, and still there", () =>
    Effect.gen(function*() {
      class Ghost extends Model.Class<Ghost>("Ghost")({
        id: Schema.Int.pipe(Model.FieldExcept(["insert"])),
        name: Schema.String,
        gone: Schema.NullOr(Schema.Unknown).pipe(Model.FieldExcept(["insert", "update"]))
      }) {}
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE ghosts (id serial PRIMARY KEY, name text NOT NULL, gone timestamptz)`
      const ghosts = yield* SqlModel.makeRepository(Ghost, {
        tableName: "ghosts",
        idColumn: "id",
        spanPrefix: "Ghosts",
        softDeleteColumn: "gone"
      })
      const ghost = yield* ghosts.insert(Ghost.insert.make({ name: "Boo" }))
      yield* ghosts.delete(ghost.id)
      assert.isTrue(Cause.isNoSuchElementError(yield* Effect.flip(ghosts.findById(ghost.id))))
      assert.deepStrictEqual(yield* sql`SELECT name, gone IS NOT NULL AS gone FROM ghosts`, [
        { name: "Boo", gone: true }
      ])
    }))

  it.effect("resolvers of a model gather inserts and look-ups into one statement each", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* makePeople("resolved")
      const resolvers = yield* SqlModel.makeResolvers(Person, {
        tableName: "resolved",
        idColumn: "id",
        spanPrefix: "People"
      })
      const insert = SqlResolver.request(resolvers.insert)
      const names = ["Ada", "Alan", "Grace"]
      const inserted = yield* Effect.forEach(names, (name) => Effect.flatMap(someone(name), insert), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(inserted.map((person) => person.name), names)
      assert.lengthOf(yield* sql`SELECT DISTINCT xmin::text FROM resolved`, 1)
      const find = SqlResolver.request(resolvers.findById)
      const found = yield* Effect.forEach([3, 1, 3], (id) => find(id), { concurrency: "unbounded" })
      assert.deepStrictEqual(found.map((person) => person.name), ["Grace", "Ada", "Grace"])
      assert.isTrue(Cause.isNoSuchElementError(yield* Effect.flip(find(99))))
      const remove = SqlResolver.request(resolvers.delete)
      yield* Effect.forEach([1, 2], (id) => remove(id), { concurrency: "unbounded", discard: true })
      assert.deepStrictEqual(yield* sql`SELECT name FROM resolved`, [{ name: "Grace" }])
    }))

  it.effect("schemas guard what goes into a statement and what comes out", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE guarded (n int4, label text)`
      const add = SqlSchema.void({
        Request: Schema.Struct({ n: Schema.Int, label: Schema.String }),
        execute: (request) => sql`INSERT INTO guarded ${sql.insert(request)}`
      })
      const Row = Schema.Struct({ n: Schema.Int, label: Schema.String })
      const above = (n: number) => sql`SELECT * FROM guarded WHERE n > ${n} ORDER BY n`
      const options = { Request: Schema.Int, Result: Row, execute: above }
      yield* add({ n: 1, label: "one" })
      yield* add({ n: 2, label: "two" })
      const [one, two] = [{ n: 1, label: "one" }, { n: 2, label: "two" }]
      assert.deepStrictEqual(yield* SqlSchema.findAll(options)(0), [one, two])
      assert.deepStrictEqual(yield* SqlSchema.findAll(options)(2), [])
      assert.deepStrictEqual(yield* SqlSchema.findNonEmpty(options)(1), [two])
      assert.isTrue(Cause.isNoSuchElementError(yield* Effect.flip(SqlSchema.findNonEmpty(options)(2))))
      assert.deepStrictEqual(yield* SqlSchema.findOne(options)(0), one)
      assert.isTrue(Cause.isNoSuchElementError(yield* Effect.flip(SqlSchema.findOne(options)(2))))
      assert.deepStrictEqual(yield* SqlSchema.findOneOption(options)(1), Option.some(two))
      assert.deepStrictEqual(yield* SqlSchema.findOneOption(options)(2), Option.none())
      const wrong = SqlSchema.findAll({ ...options, Result: Schema.Struct({ n: Schema.String }) })
      assert.isTrue(Schema.isSchemaError(yield* Effect.flip(wrong(0))))
      assert.isTrue(Schema.isSchemaError(yield* Effect.flip(SqlSchema.findAll(options)(1.5))))
    }))

  it.effect("grouped resolvers give each request its rows", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE grouped (owner int4, label text)`
      yield* sql`INSERT INTO grouped VALUES (1, 'a'), (1, 'b'), (2, 'c')`
      let statements = 0
      const byOwner = SqlResolver.request(SqlResolver.grouped({
        Request: Schema.Int,
        RequestGroupKey: (owner) => owner,
        Result: Schema.Struct({ owner: Schema.Int, label: Schema.String }),
        ResultGroupKey: (row) => row.owner,
        execute: (owners) => {
          statements++
          return sql`SELECT * FROM grouped WHERE ${sql.in("owner", owners)} ORDER BY label`
        }
      }))
      const [ones, twos, none] = yield* Effect.all([byOwner(1), byOwner(2), Effect.exit(byOwner(3))], {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(ones.map((row) => row.label), ["a", "b"])
      assert.deepStrictEqual(twos.map((row) => row.label), ["c"])
      assert.strictEqual(none._tag, "Failure")
      assert.strictEqual(statements, 1)
    }))

  it.effect("ordered and void resolvers gather writes", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE gathered (n int4, added serial)`
      const Request = Schema.Struct({ n: Schema.Int })
      const insert = SqlResolver.request(SqlResolver.ordered({
        Request,
        Result: Schema.Struct({ n: Schema.Int }),
        execute: (rows) => sql`INSERT INTO gathered ${sql.insert(rows).returning("n")}`
      }))
      const insertVoid = SqlResolver.request(SqlResolver.void({
        Request,
        execute: (rows) => sql`INSERT INTO gathered ${sql.insert(rows)}`
      }))
      const rows = yield* Effect.forEach([3, 1, 2], (n) => insert({ n }), { concurrency: "unbounded" })
      assert.deepStrictEqual(rows, [{ n: 3 }, { n: 1 }, { n: 2 }])
      yield* Effect.forEach([5, 4], (n) => insertVoid({ n }), { concurrency: "unbounded", discard: true })
      assert.deepStrictEqual(yield* sql`SELECT n FROM gathered ORDER BY added`.values, [[3], [1], [2], [5], [4]])
      const mismatch = SqlResolver.request(SqlResolver.ordered({
        Request,
        Result: Request,
        execute: () => sql`SELECT 1 AS n UNION ALL SELECT 2`
      }))
      const error = yield* Effect.flip(mismatch({ n: 1 }))
      assert.strictEqual(error._tag, "ResultLengthMismatch")
    }))

  it.effect("requests inside a transaction are answered inside it, and not along with those outside", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* sql`CREATE TABLE batched (id int4)`
      const batches: Array<ReadonlyArray<number>> = []
      const exists = SqlResolver.request(SqlResolver.findById({
        Id: Schema.Int,
        Result: Schema.Struct({ id: Schema.Int }),
        ResultId: (row) => row.id,
        execute: (ids) => {
          batches.push(ids)
          return sql`SELECT id FROM batched WHERE ${sql.in("id", ids)}`
        }
      }))
      const outside = Effect.isSuccess(exists(1))
      const inside = sql.withTransaction(
        Effect.andThen(sql`INSERT INTO batched VALUES (1)`, Effect.isSuccess(exists(1))).pipe(
          Effect.flatMap((found) => Effect.fail(found))
        )
      )
      const [before, found] = yield* Effect.all([outside, Effect.flip(inside)], { concurrency: "unbounded" })
      assert.deepStrictEqual([before, found], [false, true])
      assert.deepStrictEqual(batches, [[1], [1]])
    }))
}

const persistence = (it: It): void => {
  it.effect("a key-value store keeps its values in a table", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient
      yield* Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        yield* store.set("a", "one")
        yield* store.set("a", "two")
        yield* store.set("b", "three")
        assert.strictEqual(yield* store.get("a"), "two")
        assert.strictEqual(yield* store.size, 2)
        yield* store.remove("a")
        assert.isUndefined(yield* store.get("a"))
        yield* store.clear
        assert.strictEqual(yield* store.size, 0)
      }).pipe(Effect.provide(KeyValueStore.layerSql({ table: "key_values" })))
      assert.deepStrictEqual(yield* sql`SELECT * FROM key_values`, [])
    }))

  it.effect("a queue in a table hands each element to one of its workers", () =>
    Effect.gen(function*() {
      const makeQueue = Effect.gen(function*() {
        const store = yield* PersistedQueue.makeStoreSql({ tableName: "work", pollInterval: "10 millis" })
        const factory = yield* Effect.provideService(
          PersistedQueue.makeFactory,
          PersistedQueue.PersistedQueueStore,
          store
        )
        return yield* factory.make({ name: "numbers", schema: Schema.Number })
      })
      const [one, two] = [yield* makeQueue, yield* makeQueue]
      const numbers = Array.from({ length: 20 }, (_, n) => n)
      yield* Effect.forEach(numbers, (n) => one.offer(n), { concurrency: 8, discard: true })
      const seen: Array<number> = []
      const worker = (queue: typeof one) =>
        Effect.forkScoped(Effect.forever(queue.take((n) => Effect.sync(() => seen.push(n)))))
      yield* Effect.all([worker(one), worker(one), worker(two), worker(two)])
      yield* eventually(Effect.sync(() => seen.length >= 20))
      assert.deepStrictEqual(seen.toSorted((a, b) => a - b), numbers)
    }))
}
