/**
 * What a healthy statement is made of: counted, and not timed. Whoever adds a look at the clock, a timer, a fiber or a
 * frame to it meets the number here.
 */
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as EffectSchedule from "effect/Schedule"
import { SqlClient } from "effect/sql/SqlClient"
import { vi } from "vitest"
import * as Pg from "../src/index.ts"
import * as SpanRecorder from "./spanRecorder.ts"
import { type Answers, makeStubServer } from "./stubServer.ts"

const statements = 20

/** A service whose methods and effects are counted by their names, each time that they are run. */
const counted = <S extends object>(service: S, count: (name: string) => void): S =>
  new Proxy(service, {
    get: (target, name) => {
      const member: unknown = Reflect.get(target, name)
      if (typeof member === "function") {
        return (...args: ReadonlyArray<unknown>) => {
          count(String(name))
          return Reflect.apply(member, target, args)
        }
      }
      return Effect.isEffect(member)
        ? Effect.suspend(() => {
          count(String(name))
          return member
        })
        : member
    }
  })

const names = {
  currentTimeMillisUnsafe: "wall clock",
  currentTimeMillis: "wall clock",
  currentTimeNanosUnsafe: "wall clock",
  currentTimeNanos: "wall clock",
  monotonicTimeNanosUnsafe: "monotonic clock",
  monotonicTimeNanos: "monotonic clock",
  sleep: "sleeps",
  nextIntUnsafe: "random numbers",
  nextDoubleUnsafe: "random numbers"
} as const

const nothing = {
  "wall clock": 0,
  "monotonic clock": 0,
  sleeps: 0,
  "random numbers": 0,
  timers: 0,
  judgements: 0,
  "steps of a schedule": 0,
  fibers: 0
}

type Counts = typeof nothing

/** Fibers are numbered as they are made, so this is how many there have been. */
const fibersSoFar = Effect.map(Effect.forkChild(Effect.void), ({ id }) => id)

const settings = (multiplex: boolean) => ({ username: "somebody", multiplex })

/** Clients on stubs of their own, and what is counted while one of them is at work. */
const setUp = Effect.gen(function*() {
  let counts: Counts = { ...nothing }
  const count = (name: string) => {
    counts[names[name as keyof typeof names]]++
  }
  const services = Context.mergeAll(
    Context.make(Clock.Clock, counted(yield* Clock.Clock, count)),
    Context.make(Random.Random, counted(yield* Random.Random, count))
  )
  const judge: Pg.Errors.Classify = (_failure, _circumstances, verdict) => {
    counts.judgements++
    return verdict
  }
  const steps = EffectSchedule.fromStep(Effect.sync(() => {
    counts["steps of a schedule"]++
    return () => Effect.die("nothing has failed")
  }))
  const build = <R, E>(layer: Layer.Layer<R, E>) =>
    Layer.build(Layer.fresh(layer)).pipe(Effect.provideContext(services))

  return {
    ours: (answers: Answers, options: Pg.Options) =>
      build(Pg.layer({ ...settings(false), stream: makeStubServer(answers).stream, classify: judge, ...options })),
    theirs: (answers: Answers, multiplex: boolean) =>
      build(PgClient.layer({ ...settings(multiplex), stream: makeStubServer(answers).stream, maxConnections: 10 })),
    /** What is never asked, where nothing fails. */
    unasked: steps,
    counted: <A, E, R>(work: Effect.Effect<A, E, R>) =>
      Effect.gen(function*() {
        const before = yield* fibersSoFar
        const spies = [vi.spyOn(globalThis, "setTimeout"), vi.spyOn(globalThis, "setInterval")]
        counts = { ...nothing }
        yield* work
        const seen = { ...counts, timers: spies.reduce((sum, { mock }) => sum + mock.calls.length, 0) }
        for (const spy of spies) spy.mockRestore()
        return { ...seen, fibers: (yield* fibersSoFar) - before - 1 }
      }).pipe(Effect.provideContext(services))
  }
})

const statementOf = (sql: SqlClient, id: number) =>
  sql<{ readonly id: number }>`SELECT id, name FROM item WHERE id = ${id}`

/** What each of many statements costs, beyond what the driver's own client pays for it. */
const beyond = (ours: Counts, theirs: Counts): Counts =>
  Object.fromEntries(
    Object.entries(ours).map(([name, count]) => [name, (count - theirs[name as keyof Counts]) / statements])
  ) as Counts

const many = (sql: SqlClient) => Effect.replicateEffect(statementOf(sql, 1), statements, { discard: true })

/** How many continuations stand on a fiber's stack: each is kept for as long as the statement is under way, or waits. */
const framesOf = (fiber: Fiber.Fiber<unknown, unknown>): number =>
  (fiber as unknown as { readonly _stack: ReadonlyArray<unknown> })._stack.length

const here = Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) =>
  Effect.succeed({
    frames: framesOf(fiber),
    /** Taken since it last came back to life. */
    steps: fiber.currentOpCount,
    context: fiber.context
  })
)

/** What work that is done at once leaves on the stack below itself, and how many steps it takes around itself. */
const around = <E>(lend: (work: typeof here) => Effect.Effect<Effect.Success<typeof here>, E>) =>
  Effect.gen(function*() {
    const before = yield* here
    const inside = yield* lend(here)
    const after = yield* here
    return { frames: inside.frames - before.frames, steps: after.steps - before.steps }
  })

describe.each([
  { mode: "on a session of its own", multiplex: false, looks: { "wall clock": -1, "monotonic clock": 2 } },
  { mode: "on a shared session", multiplex: true, looks: { "wall clock": -1, "monotonic clock": 2 } }
])("a healthy statement $mode", ({ looks, multiplex }) => {
  it.live("looks at the clock, and has no timer, fiber, random number, judgement or step of a schedule", () =>
    Effect.gen(function*() {
      const { counted, ours, theirs, unasked } = yield* setUp
      const own = yield* ours("next turn", { multiplex })
      const plain = Context.get(yield* theirs("next turn", multiplex), SqlClient)
      const sql = Context.get(own, SqlClient)
      const { run } = Context.get(own, Pg.Executor.Executor)
      yield* many(sql)
      yield* many(plain)
      const of = {
        ours: yield* counted(many(sql)),
        ofUnit: yield* counted(run(many(sql), { retry: unasked })),
        theirs: yield* counted(many(plain))
      }
      const seen = beyond(of.ours, of.theirs)
      assert.isAtMost(seen["wall clock"], looks["wall clock"])
      assert.isAtMost(seen["monotonic clock"], looks["monotonic clock"])
      assert.deepStrictEqual({ ...seen, "wall clock": 0, "monotonic clock": 0 }, nothing)
      assert.strictEqual(of.ofUnit["steps of a schedule"], 0)
      assert.strictEqual(of.ofUnit.timers, of.theirs.timers)
    }))

  it.live("runs where its caller stands: in no scope, and with nothing provided", () =>
    Effect.gen(function*() {
      const { ours } = yield* setUp
      const own = yield* ours("at once", { multiplex })
      const { use } = Context.get(own, Pg.Pool.Pool)
      const { borrow } = Context.get(own, Pg.Executor.Executor)
      yield* use(() => Effect.void)
      const { context } = yield* here
      assert.strictEqual((yield* use(() => here)).context, context)
      assert.strictEqual((yield* borrow(() => here)).context, context)
    }))

  it.live("has few frames of ours below it, and takes few steps", () =>
    Effect.gen(function*() {
      const { ours } = yield* setUp
      const own = yield* ours("at once", { multiplex })
      const { use } = Context.get(own, Pg.Pool.Pool)
      const { borrow } = Context.get(own, Pg.Executor.Executor)
      yield* use(() => Effect.void)
      const bare = yield* around((work) => work)
      const lent = yield* around((work) => use(() => work))
      const borrowed = yield* around((work) => borrow(() => work))
      assert.isAtMost(lent.frames, 1)
      assert.isAtMost(lent.steps - bare.steps, 4)
      assert.isAtMost(borrowed.frames, 2)
      assert.isAtMost(borrowed.steps - bare.steps, 6)
    }))

  // Answers on a shared session come after the turn of whoever has asked, who begins to count anew.
  if (!multiplex) {
    it.live("takes fewer steps than with the driver's own client", () =>
      Effect.gen(function*() {
        const { ours, theirs } = yield* setUp
        const clients = [yield* ours("at once", { multiplex }), yield* theirs("at once", multiplex)] as const
        const [own, plain] = yield* Effect.forEach(clients, (client) =>
          Effect.gen(function*() {
            const sql = Context.get(client, SqlClient)
            yield* many(sql)
            const before = yield* here
            yield* statementOf(sql, 1)
            return (yield* here).steps - before.steps
          }))
        assert.isAtMost(own! - plain!, -11)
      }))
  }

  it.live("is the one span that Effect makes of it", () =>
    Effect.gen(function*() {
      const { ours } = yield* setUp
      const sql = Context.get(yield* ours("next turn", { multiplex }), SqlClient)
      yield* many(sql)
      const recorder = SpanRecorder.make()
      yield* recorder.record(many(sql))
      assert.strictEqual(recorder.spans.length, statements)
    }))
})

describe.each([
  { mode: "on a session of its own", multiplex: false },
  { mode: "on a shared session", multiplex: true }
])("a healthy statement inside of a run, $mode,", ({ multiplex }) => {
  it.live("is made of nothing more than one outside", () =>
    Effect.gen(function*() {
      const { counted, ours, unasked } = yield* setUp
      const own = yield* ours("next turn", { multiplex })
      const sql = Context.get(own, SqlClient)
      const { run } = Context.get(own, Pg.Executor.Executor)
      const options = { retry: unasked, idempotent: true, waitForCircuit: true, acquireTimeout: "5 seconds" } as const
      const manyInside = (options: Pg.Executor.RunOptions) =>
        Effect.replicateEffect(run(statementOf(sql, 1), options), statements, { discard: true })
      yield* many(sql)
      const outside = yield* counted(many(sql))
      assert.deepStrictEqual(yield* counted(run(many(sql), options)), outside)
      assert.deepStrictEqual(yield* counted(manyInside(options)), outside)
    }))

  it.live("shares one timer with all whose time is bounded, and has one fiber for that", () =>
    Effect.gen(function*() {
      const { counted, ours } = yield* setUp
      const own = yield* ours("next turn", { multiplex })
      const sql = Context.get(own, SqlClient)
      const { run } = Context.get(own, Pg.Executor.Executor)
      const atOnce = (one: Effect.Effect<unknown, unknown>) =>
        Effect.all(Array.from({ length: 10 }, () => one), { concurrency: "unbounded", discard: true })
      yield* atOnce(statementOf(sql, 1))
      const unbounded = yield* counted(atOnce(statementOf(sql, 1)))
      for (const bound of [{ deadline: "5 seconds" }, { attemptTimeout: "5 seconds" }] as const) {
        const seen = yield* counted(atOnce(run(statementOf(sql, 1), bound)))
        assert.strictEqual(seen.fibers - unbounded.fibers, 10 + 1)
        assert.strictEqual(seen.sleeps - unbounded.sleeps, 1)
        assert.strictEqual(seen.timers - unbounded.timers, 1)
      }
    }))

  // As above: the steps of one turn can be counted.
  if (!multiplex) {
    it.live("takes few steps more than one outside", () =>
      Effect.gen(function*() {
        const { ours } = yield* setUp
        const own = yield* ours("at once", { multiplex })
        const sql = Context.get(own, SqlClient)
        const { run } = Context.get(own, Pg.Executor.Executor)
        yield* many(sql)
        const stepsOf = (work: Effect.Effect<unknown, unknown>) =>
          Effect.gen(function*() {
            const before = yield* here
            yield* work
            return (yield* here).steps - before.steps
          })
        const outside = yield* stepsOf(statementOf(sql, 1))
        assert.isAtMost((yield* stepsOf(run(statementOf(sql, 1)))) - outside, 6)
        const two = Effect.andThen(statementOf(sql, 1), statementOf(sql, 1))
        assert.isAtMost((yield* stepsOf(run(two))) - (yield* stepsOf(two)), 6)
        const { frames } = yield* around((work) => run(work))
        assert.isAtMost(frames, 2)
      }))
  }
})

const waiting = 10

describe.each([
  { mode: "for a session", options: { max: 1 }, atWork: 1 },
  { mode: "for their share of a session", options: { max: 1, multiplex: true, multiplexConcurrency: 2 }, atWork: 2 }
])("callers who wait $mode", ({ atWork, options }) => {
  it.live("have one timer and one fiber together", () =>
    Effect.gen(function*() {
      const { counted, ours } = yield* setUp
      const own = yield* ours("next turn", options)
      const sql = Context.get(own, SqlClient)
      yield* many(sql)
      const callers = Array.from({ length: atWork + waiting }, (_, id) => id)
      const seen = yield* counted(
        Effect.forEach(
          callers,
          (id) => Effect.map(statementOf(sql, id), ([row]) => assert.strictEqual(row!.id, id)),
          { concurrency: "unbounded", discard: true }
        )
      )
      assert.strictEqual(Context.get(own, Pg.Metrics.Metrics).store.peakWaiting, waiting)
      assert.isAtMost(seen.timers, 1)
      assert.isAtMost(seen.fibers - callers.length, 1)
      assert.strictEqual(seen["random numbers"], 0)
      assert.strictEqual(seen.judgements, 0)
    }))

  it.live("stand in line on few frames", () =>
    Effect.gen(function*() {
      const { ours } = yield* setUp
      const own = yield* ours("next turn", options)
      const sql = Context.get(own, SqlClient)
      yield* many(sql)
      const callers = yield* Effect.replicateEffect(
        Effect.forkChild(statementOf(sql, 1), { startImmediately: true }),
        atWork + waiting
      )
      const last = callers.at(-1)!
      assert.strictEqual(Context.get(own, Pg.Pool.Pool).statsUnsafe().waiting, waiting)
      assert.isAtMost(framesOf(last), 12)
      yield* Fiber.joinAll(callers)
    }))
})

type AsCaller = (
  held: Effect.Effect<void, unknown>,
  executor: Pg.Executor.Executor["Service"]
) => Effect.Effect<void, unknown>

describe("callers who wait for a session of their own", () => {
  it.live.each(
    [
      ["as they are", 8, (held) => held],
      ["inside of a run", 10, (held, { run }) => run(held)]
    ] as const satisfies ReadonlyArray<readonly [string, number, AsCaller]>
  )(
    "%s have one timer and one fiber together, and at most %d frames",
    ([, most, asCaller]) =>
      Effect.gen(function*() {
        const { counted, ours } = yield* setUp
        const own = yield* ours("next turn", { max: 1 })
        const executor = Context.get(own, Pg.Executor.Executor)
        const { statsUnsafe } = Context.get(own, Pg.Pool.Pool)
        yield* many(Context.get(own, SqlClient))
        const held = Effect.uninterruptibleMask((restore) =>
          Effect.flatMap(executor.hold(restore), ({ release }) =>
            Effect.onExit(
              Effect.yieldNow,
              (exit) => release(exit) ?? Effect.void
            ))
        )
        let frames = 0
        const seen = yield* counted(Effect.gen(function*() {
          const callers = yield* Effect.replicateEffect(
            Effect.forkChild(asCaller(held, executor), { startImmediately: true }),
            1 + waiting
          )
          assert.strictEqual(statsUnsafe().waiting, waiting)
          frames = framesOf(callers.at(-1)!)
          yield* Fiber.joinAll(callers)
        }))
        assert.isAtMost(frames, most)
        assert.isAtMost(seen.timers, 1)
        assert.isAtMost(seen.fibers - 1 - waiting, 1)
        assert.strictEqual(seen["random numbers"], 0)
        assert.strictEqual(seen.judgements, 0)
      })
  )
})
