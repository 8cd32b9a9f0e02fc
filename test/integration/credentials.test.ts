import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import { SqlClient } from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import { inspect } from "node:util"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { makeProxy } from "./proxy.ts"
import { ended, eventually, makeWitness, soon } from "./witness.ts"

/** The pool alone: what it says reaches the test without a retry or a breaker in between. */
const alone = { retry: false, breaker: false } as const

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** A role of its own behind a proxy that counts connects, and the one who changes its password. */
const makeRole = Effect.gen(function*() {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  const role = new URL(Redacted.value(url)).pathname.slice(1)
  yield* witness.query(`CREATE ROLE ${role} LOGIN PASSWORD 'secret-0'`)
  yield* Effect.addFinalizer(() => Effect.orDie(witness.query(`DROP ROLE ${role}`)))
  const proxy = yield* makeProxy(url)
  const own = new URL(Redacted.value(proxy.url))
  own.username = role
  own.password = ""
  let number = 0
  let asked = 0
  const rotation = Semaphore.makeUnsafe(1)
  return {
    url: Redacted.make(own.href),
    witness,
    proxy,
    role,
    /** What a secret manager does: whoever asks gets what is valid. */
    secret: rotation.withPermit(Effect.sync(() => {
      asked++
      return Redacted.make(`secret-${number}`)
    })),
    asked: () => asked,
    rotate: rotation.withPermit(
      Effect.andThen(
        Effect.suspend(() => witness.query(`ALTER ROLE ${role} PASSWORD 'secret-${number + 1}'`)),
        Effect.sync(() => number++)
      )
    )
  }
})

const opened = Effect.flatMap(
  Pg.Metrics.Metrics,
  (metrics) => Effect.map(metrics.snapshot, ({ connectionsOpened }) => connectionsOpened)
)

const failedCredentials = (error: { readonly _tag: string; readonly message: string }): Pg.Errors.CredentialsFailed =>
  error instanceof Pg.Errors.CredentialsFailed ? error : assert.fail(`unexpected ${error._tag}: ${error.message}`)

describe("a password that is rotated under load", () => {
  const max = 8
  const sources = [
    ["cached", (secret: Effect.Effect<Redacted.Redacted>) => Pg.Credentials.cached(secret)],
    ["asked for at each connect", (secret: Effect.Effect<Redacted.Redacted>) => secret]
  ] as const

  for (const [title, source] of sources) {
    it.live(
      `costs none of 50 borrowers an error, and at most one more connect per slot: ${title}`,
      () =>
        Effect.gen(function*() {
          const { asked, proxy, rotate, secret, url, witness } = yield* makeRole
          yield* Effect.gen(function*() {
            const sql = yield* SqlClient
            const watch = yield* witness.watch
            let served = 0
            let isOver = false
            const borrower = sql`SELECT 1`.pipe(
              Effect.tap(() => Effect.sync(() => served++)),
              Effect.repeat({ until: () => isOver })
            )
            const borrowers = yield* Effect.forEach(range(50), () => Effect.forkChild(borrower))
            // Sessions last for five statements here, so every slot is connected anew many times.
            const many = Effect.suspend(() => {
              const goal = served + max * 30
              return eventually("many more statements", Effect.sync(() => served > goal), 30)
            })
            yield* many
            for (const _ of range(4)) yield* Effect.andThen(rotate, many)
            isOver = true
            for (const fiber of borrowers) assert.isTrue(Exit.isSuccess(yield* ended(fiber)))
            const refusals = proxy.accepted() - (yield* opened)
            assert.isAtMost(refusals, 4 * max)
            assert.isAtMost(watch.most(), max)
            if (title === "cached") {
              assert.isAtLeast(refusals, 4)
              assert.strictEqual(asked(), 5, "once at first, and once for each rotation")
            }
          }).pipe(Effect.provide(Pg.layer({ ...alone, url, max, maxUses: 5, password: source(secret) })))
        }),
      90_000
    )
  }

  it.live("is not asked for again while its sessions live: a password is for the door", () =>
    Effect.gen(function*() {
      const { asked, proxy, rotate, secret, url } = yield* makeRole
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        yield* rotate
        yield* sql`SELECT 1`
        assert.deepStrictEqual([asked(), proxy.accepted()], [1, 1])
      }).pipe(Effect.provide(Pg.layer({ ...alone, url, max: 1, password: secret })))
    }))
})

describe("a token that a signer issues", () => {
  /** Of the shape of the `Signer` in `@aws-sdk/rds-signer`: no Effect, and nothing said of its 15 minutes. */
  interface Signer {
    readonly getAuthToken: () => Promise<string>
  }

  it.live("is signed once for 50 connects, and once more for those that come before its 15 minutes are over", () =>
    Effect.gen(function*() {
      const { asked, proxy, secret, url } = yield* makeRole
      const signer: Signer = { getAuthToken: () => Effect.runPromise(Effect.map(secret, Redacted.value)) }
      const token = Effect.map(Effect.tryPromise(() => signer.getAuthToken()), Redacted.make)
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const connects = Effect.forEach(range(50), () => sql`SELECT pg_sleep(0.01)`, { concurrency: "unbounded" })
        yield* connects
        assert.deepStrictEqual([proxy.accepted(), asked()], [50, 1])
        yield* TestClock.adjust("11 minutes")
        yield* connects
        assert.deepStrictEqual([proxy.accepted(), asked()], [100, 1])
        yield* TestClock.adjust("1 minute")
        yield* connects
        assert.deepStrictEqual([proxy.accepted(), asked()], [150, 2])
      }).pipe(
        Effect.provide(Pg.layer({
          ...alone,
          url,
          max: 10,
          maxUses: 1,
          password: Pg.Credentials.cached(token, { timeToLive: "15 minutes" })
        })),
        Effect.provide(TestClock.layer())
      )
    }))
})

describe("a password that is refused", () => {
  const refused = (error: { readonly _tag: string; readonly message: string }) =>
    assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "28P01", error.message)

  it.live("is not tried again when it is the only one", () =>
    Effect.gen(function*() {
      const { proxy, url } = yield* makeRole
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        refused(yield* Effect.flip(pool.use(() => Effect.void)))
        assert.strictEqual(proxy.accepted(), 1)
      }).pipe(Effect.provide(Pg.layer({ ...alone, url, max: 2, password: Redacted.make("wrong") })))
    }))

  it.live("is not tried again when whoever issues it has no other one", () =>
    Effect.gen(function*() {
      const { proxy, url } = yield* makeRole
      let asked = 0
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        refused(yield* Effect.flip(pool.use(() => Effect.void)))
        assert.deepStrictEqual([asked, proxy.accepted()], [2, 1])
      }).pipe(
        Effect.provide(Pg.layer({
          ...alone,
          url,
          max: 2,
          password: Effect.sync(() => {
            asked++
            return Redacted.make("wrong")
          })
        }))
      )
    }))

  it.live("is replaced once and at once on the same slot, and a second refusal is told", () =>
    Effect.gen(function*() {
      const { proxy, url } = yield* makeRole
      const seen: Array<string | undefined> = []
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        refused(yield* Effect.flip(pool.use(() => Effect.void)))
        assert.deepStrictEqual(seen, [undefined, "wrong-1"])
        assert.strictEqual(proxy.accepted(), 2)
        const { connecting, total } = yield* pool.stats
        assert.deepStrictEqual([connecting, total], [0, 0])
        // The one slot there is has not been lost.
        yield* eventually(
          "the next connect",
          Effect.map(Effect.exit(pool.use(() => Effect.void)), Exit.isSuccess)
        )
        yield* eventually("no other socket", Effect.sync(() => proxy.open() === 1))
      }).pipe(
        Effect.provide(Pg.layer({
          ...alone,
          url,
          max: 1,
          password: Effect.map(Pg.Credentials.Refused, (refused) => {
            seen.push(refused === undefined ? undefined : Redacted.value(refused))
            return Redacted.make(seen.length > 2 ? "secret-0" : `wrong-${seen.length}`)
          })
        }))
      )
    }))

  it.live("keeps its place on the server while another one is asked for", () =>
    Effect.gen(function*() {
      const { proxy, secret, url } = yield* makeRole
      const asked = yield* Deferred.make<void>()
      const gate = yield* Deferred.make<void>()
      let connects = 0
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const use = pool.use(() => Effect.void)
        const borrowers = yield* Effect.scoped(Effect.gen(function*() {
          yield* pool.reserve()
          const first = yield* Effect.forkDetach(use)
          yield* soon("the refusal", Deferred.await(asked))
          yield* eventually("the end of the refused socket", Effect.sync(() => proxy.open() === 1))
          const others = yield* Effect.forEach(range(20), () => Effect.forkDetach(use, { startImmediately: true }))
          yield* Effect.sleep(100)
          assert.strictEqual(proxy.accepted(), 2)
          yield* Deferred.succeed(gate, undefined)
          return [first, ...others]
        }))
        for (const fiber of borrowers) assert.isTrue(Exit.isSuccess(yield* ended(fiber)))
        assert.strictEqual(proxy.accepted(), 3)
      }).pipe(
        Effect.provide(Pg.layer({
          ...alone,
          url,
          max: 2,
          password: Effect.flatMap(
            Pg.Credentials.Refused,
            (refused) =>
              refused === undefined
                ? ++connects === 2 ? Effect.succeed(Redacted.make("wrong")) : secret
                : Effect.andThen(Effect.andThen(Deferred.succeed(asked, undefined), Deferred.await(gate)), secret)
          )
        }))
      )
    }))

  it.live("leaves the breaker closed, and is never shown", () =>
    Effect.gen(function*() {
      const { url } = yield* makeRole
      let number = 0
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        const executor = yield* Pg.Executor.Executor
        const breaker = yield* Pg.Breaker.Breaker
        for (const _ of range(4)) {
          const exit = yield* Effect.exit(executor.run(sql`SELECT 1`))
          assert.isTrue(Exit.isFailure(exit))
          assert.notInclude(shownOf(exit), "hunter2")
          assert.notInclude(shownOf(yield* Effect.exit(sql`SELECT 1`)), "hunter2")
        }
        assert.strictEqual((yield* breaker.state)._tag, "Closed")
        const pool = yield* Pg.Pool.Pool
        assert.notInclude(inspect(pool.settings, { depth: 9 }) + JSON.stringify(pool.settings), "hunter2")
      }).pipe(
        Effect.provide(Pg.layer({
          url,
          max: 2,
          retry: false,
          breaker: { failures: 2 },
          password: Effect.sync(() => Redacted.make(`hunter2-${++number}`))
        }))
      )
    }))

  it.live("at a role that may not log in at all is no reason to ask for another one", () =>
    Effect.gen(function*() {
      const { asked, proxy, role, secret, url, witness } = yield* makeRole
      yield* witness.query(`ALTER ROLE ${role} NOLOGIN`)
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = yield* Effect.flip(pool.use(() => Effect.void))
        assert.strictEqual(Pg.Errors.failureOf(error).sqlState, "28000")
        assert.deepStrictEqual([asked(), proxy.accepted()], [1, 1])
      }).pipe(Effect.provide(Pg.layer({ ...alone, url, max: 2, password: secret })))
    }))
})

/** All that a log, a console or a report might make of it. */
const shownOf = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return ""
  const error = Cause.squash(exit.cause)
  const typed = Pg.Errors.isPoolError(error) ? Schema.encodeSync(Schema.toCodecJson(Pg.Errors.PoolError))(error) : null
  return [
    Cause.pretty(exit.cause),
    String(error),
    inspect(error, { depth: 9, showHidden: true }),
    JSON.stringify(exit),
    JSON.stringify(error),
    JSON.stringify(typed),
    JSON.stringify(Pg.Errors.failureOf(error))
  ].join("\n")
}

describe("a password that cannot be had", () => {
  const failures: ReadonlyArray<
    readonly [title: string, password: Effect.Effect<Redacted.Redacted, unknown>, cause: unknown]
  > = [
    ["since its effect fails", Effect.fail("throttled"), "throttled"],
    ["since its effect dies", Effect.die("bug"), "bug"],
    ["since its effect throws", Effect.sync(() => assert.fail("bug")), undefined],
    ["since its effect gives itself up", Effect.interrupt, undefined],
    ["since it is no text", Effect.sync(() => Redacted.make(undefined as never)), undefined],
    ["since it is not wrapped", Effect.succeed("hunter2" as never), undefined]
  ]
  it.live.each(failures)(
    "%s, is one typed error for all who ask, and nobody connects",
    ([, password, cause]) =>
      Effect.gen(function*() {
        const { proxy, url } = yield* makeRole
        let asked = 0
        yield* Effect.gen(function*() {
          const pool = yield* Pg.Pool.Pool
          const sql = yield* SqlClient
          const errors = yield* soon(
            "an answer for everybody",
            Effect.forEach(range(1000), () => Effect.flip(pool.use(() => Effect.void)), { concurrency: "unbounded" })
          )
          for (const error of errors) {
            const typed = failedCredentials(error)
            if (cause !== undefined) assert.strictEqual(Redacted.value(typed.cause), cause)
            assert.isNull(typed.refusal)
            assert.isTrue(typed.isRetryable)
          }
          assert.notInclude(shownOf(Exit.fail(errors[0]!)), "hunter2")
          assert.isAtMost(asked, 5 + 5)
          const sqlError = yield* Effect.flip(sql`SELECT 1`)
          assert.strictEqual(Pg.Errors.fromSqlError(sqlError)?._tag, "CredentialsFailed")
          assert.isTrue(sqlError.isRetryable)
          assert.strictEqual(proxy.accepted(), 0)
          const { active, connecting, total, waiting } = yield* pool.stats
          assert.deepStrictEqual([active, connecting, total, waiting], [0, 0, 0, 0])
        }).pipe(
          Effect.provide(Pg.layer({ ...alone, url, max: 5, password: Effect.suspend(() => (asked++, password)) }))
        )
      })
  )

  it.live("leaves those who wait to the sessions there are", () =>
    Effect.gen(function*() {
      const { secret, url } = yield* makeRole
      let connects = 0
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        yield* sql`SELECT 1`
        const answers = yield* Effect.forEach(range(20), () => sql`SELECT pg_sleep(0.01)`, { concurrency: "unbounded" })
        assert.lengthOf(answers, 20)
        assert.isAtLeast(connects, 2)
      }).pipe(
        Effect.provide(Pg.layer({
          ...alone,
          url,
          max: 5,
          password: Effect.suspend(() => ++connects === 1 ? secret : Effect.fail("throttled"))
        }))
      )
    }))

  it.live("opens no breaker", () =>
    Effect.gen(function*() {
      const { url } = yield* makeRole
      yield* Effect.gen(function*() {
        const executor = yield* Pg.Executor.Executor
        const sql = yield* SqlClient
        const breaker = yield* Pg.Breaker.Breaker
        for (const _ of range(8)) failedCredentials(yield* Effect.flip(executor.run(sql`SELECT 1`)))
        assert.strictEqual((yield* breaker.state)._tag, "Closed")
        const metrics = yield* Pg.Metrics.Metrics
        assert.isAtLeast((yield* metrics.snapshot).errors.Denied, 1)
      }).pipe(
        Effect.provide(Pg.layer({ url, max: 2, retry: false, breaker: { failures: 2 }, password: Effect.fail("no") }))
      )
    }))

  it.live("for a moment, is asked for again by the retries", () =>
    Effect.gen(function*() {
      const { secret, url } = yield* makeRole
      let asked = 0
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient
        assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
        assert.strictEqual(asked, 3)
      }).pipe(
        Effect.provide(Pg.layer({
          url,
          max: 1,
          password: Effect.suspend(() => ++asked < 3 ? Effect.fail("throttled") : secret)
        }))
      )
    }))

  it.live("in time, counts towards connectTimeout and is interrupted then", () =>
    Effect.gen(function*() {
      const { proxy, url } = yield* makeRole
      const interrupted = yield* Deferred.make<void>()
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = yield* soon("the end of the connect", Effect.flip(pool.use(() => Effect.void)))
        assert.include(error.message, "timed out after 100 ms")
        yield* soon("the end of its effect", Deferred.await(interrupted))
        assert.strictEqual(proxy.accepted(), 0)
      }).pipe(
        Effect.provide(Pg.layer({
          ...alone,
          url,
          max: 1,
          connectTimeout: 100,
          password: Effect.onInterrupt(Effect.never, () => Deferred.succeed(interrupted, undefined))
        }))
      )
    }))

  it.live("in time, does not keep the connect waiting when its effect cannot be interrupted", () =>
    Effect.gen(function*() {
      const { secret, url } = yield* makeRole
      const gate = yield* Deferred.make<void>()
      let asked = 0
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = yield* soon("the end of the connect", Effect.flip(pool.use(() => Effect.void)))
        assert.include(error.message, "timed out")
        yield* eventually("the next one", Effect.map(Effect.exit(pool.use(() => Effect.void)), Exit.isSuccess))
        yield* Deferred.succeed(gate, undefined)
      }).pipe(
        Effect.provide(Pg.layer({
          ...alone,
          url,
          max: 1,
          connectTimeout: 2000,
          password: Effect.suspend(() =>
            ++asked > 1 ? secret : Effect.andThen(
              Effect.uninterruptible(Deferred.await(gate)),
              secret
            )
          )
        }))
      )
    }))

  it.live("after the one before was refused, says so", () =>
    Effect.gen(function*() {
      const { url } = yield* makeRole
      yield* Effect.gen(function*() {
        const pool = yield* Pg.Pool.Pool
        const error = failedCredentials(yield* Effect.flip(pool.use(() => Effect.void)))
        assert.strictEqual(error.refusal?.sqlState, "28P01")
        assert.include(error.message, "28P01")
        assert.notInclude(shownOf(Exit.fail(error)), "hunter2")
      }).pipe(
        Effect.provide(Pg.layer({
          ...alone,
          url,
          max: 1,
          password: Effect.flatMap(
            Pg.Credentials.Refused,
            (refused) => refused === undefined ? Effect.succeed(Redacted.make("hunter2")) : Effect.fail("throttled")
          )
        }))
      )
    }))

  it.live("yet, does not keep the pool from closing", () =>
    Effect.gen(function*() {
      const { url } = yield* makeRole
      const asked = yield* Deferred.make<void>()
      const borrower = yield* soon(
        "the end of the pool",
        Effect.gen(function*() {
          const pool = yield* Pg.Pool.Pool
          const fiber = yield* Effect.forkDetach(Effect.exit(pool.use(() => Effect.void)))
          yield* Deferred.await(asked)
          return fiber
        }).pipe(
          Effect.provide(Pg.layer({
            ...alone,
            url,
            max: 1,
            closeTimeout: 100,
            connectTimeout: "1 hour",
            password: Effect.andThen(Deferred.succeed(asked, undefined), Effect.never)
          }))
        )
      )
      const exit = yield* soon("the end of its borrower", Fiber.join(borrower))
      assert.isTrue(Exit.isFailure(exit))
    }))
})
