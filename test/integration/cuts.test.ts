import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { freshDatabase } from "./database.ts"
import { type Ledger, makeLedger, putIn, putInAndCount } from "./ledger.ts"
import { type Direction, type Fate, type Fault, makeMessageProxy } from "./messageProxy.ts"
import { chance } from "./witness.ts"

const { run, transaction } = Pg.Executor

const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

const directions: ReadonlyArray<Direction> = ["to the server", "to the client"]

/** Neither the breaker nor the budget shall end the experiment. */
const undaunted = {
  breaker: false,
  retryBudget: false,
  retry: { base: 0, jitter: "none", attempts: 12 },
  statementTimeout: "60 seconds"
} as const satisfies Pg.Options

const describeFault = (fault: Fault | undefined): string =>
  fault === undefined
    ? "no fault"
    : `${fault.fate} ${fault.boundary} ${fault.direction}, stall ${fault.stall ?? 0}, lag ${fault.lag ?? "none"}`

const manners: ReadonlyArray<{ readonly name: string; readonly prepare: boolean; readonly isWarm: boolean }> = [
  { name: "names that the session does not know yet", prepare: true, isWarm: false },
  { name: "names that the session knows", prepare: true, isWarm: true },
  { name: "no names", prepare: false, isWarm: false }
]

describe("a transaction whose connection is cut at each of its messages", () => {
  for (const resolveCommit of [false, true]) {
    for (const { isWarm, name, prepare } of manners) {
      it.live(
        `${resolveCommit ? "is applied once" : "is applied once or unknown"}, its statements having ${name}`,
        () =>
          Effect.gen(function*() {
            const url = yield* freshDatabase
            const ledger = yield* makeLedger(url)
            const proxy = yield* makeMessageProxy(url)
            /** Fates of COMMIT: how often the server had it when the connection was cut, and how often it had not. */
            const resolved = { committed: 0, repeated: 0 }
            const unknown = { committed: 0, "rolled back": 0 }
            yield* Effect.gen(function*() {
              const pool = yield* Pg.Pool.Pool
              let runs = 0
              const warmUp = Effect.suspend(() => {
                const id = `before ${runs + 1}`
                return ledger.note(id, transaction(putInAndCount(id, 0), { resolveCommit }), {
                  mayBeUnknown: false,
                  story: "undisturbed"
                })
              })
              const tryOnce = (fault: Fault | undefined) =>
                Effect.gen(function*() {
                  proxy.plan(() => undefined)
                  yield* isWarm ? warmUp : pool.evictAll
                  const faults = fault === undefined ? [] : [fault]
                  proxy.plan(() => faults.shift())
                  const id = `${++runs}`
                  let attempts = 0
                  const body = Effect.andThen(Effect.sync(() => attempts++), putInAndCount(id, runs % ledger.tills))
                  const told = yield* ledger.note(id, transaction(body, { resolveCommit }), {
                    mayBeUnknown: !resolveCommit,
                    story: describeFault(fault)
                  })
                  if (told === "unknown") {
                    const isThere = (yield* ledger.times(id)) === 1
                    unknown[isThere ? "committed" : "rolled back"]++
                  }
                  if (attempts === 1) resolved.committed++
                  if (attempts === 2) resolved.repeated++
                  return told
                })

              yield* tryOnce(undefined)
              const whole = proxy.done().at(-1) ?? assert.fail("no transaction has come to its end")
              assert.isAtLeast(whole["to the server"], 4)
              assert.isAtLeast(whole["to the client"], 8)
              for (const direction of directions) {
                for (const boundary of range(whole[direction])) {
                  for (const fate of ["lose", "split", "deliver", "pause"] as const) {
                    const fault: Fault = { direction, boundary, fate, stall: fate === "pause" ? 2 : undefined }
                    const before = proxy.faults().length
                    const told = yield* tryOnce(fault)
                    assert.strictEqual(proxy.faults().length, before + 1, `did not happen: ${describeFault(fault)}`)
                    assert.notStrictEqual(told, "failed", describeFault(fault))
                    if (fate === "pause") assert.strictEqual(told, "acknowledged", describeFault(fault))
                  }
                }
              }
            }).pipe(Effect.provide(Pg.layer({ ...undaunted, url: proxy.url, max: 1, prepare })))

            assert.deepStrictEqual(yield* ledger.contradictions, [])
            if (resolveCommit) {
              assert.strictEqual(ledger.told("unknown"), 0)
              assert.isAbove(resolved.committed, 0)
              assert.isAbove(resolved.repeated, 0)
            } else {
              assert.isAbove(unknown.committed, 0)
              assert.isAbove(unknown["rolled back"], 0)
            }
          }),
        120_000
      )
    }
  }
})

describe("a transaction whose messages come in two pieces", () => {
  it.live("keeps its session: the end of the answer to BEGIN was taken for that of what rode along", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const { contradictions, note, witness } = yield* makeLedger(url)
      const proxy = yield* makeMessageProxy(url)
      yield* Effect.gen(function*() {
        const write = (id: string, story: string) =>
          note(id, transaction(putInAndCount(id, 0), { resolveCommit: true }), { mayBeUnknown: false, story })
        yield* write("first", "undisturbed")
        yield* write("second", "undisturbed")
        const whole = proxy.done().at(-1) ?? assert.fail("no transaction has come to its end")
        const session = yield* witness.sessions
        assert.strictEqual(session.length, 1)
        for (const boundary of range(whole["to the client"])) {
          const fault: Fault = { direction: "to the client", boundary, fate: "pause", stall: 5 }
          const faults = [fault]
          proxy.plan(() => faults.shift())
          yield* write(`${boundary}`, describeFault(fault))
          assert.deepStrictEqual(yield* witness.sessions, session, describeFault(fault))
        }
      }).pipe(Effect.provide(Pg.layer({ ...undaunted, url: proxy.url, max: 1 })))
      assert.deepStrictEqual(yield* contradictions, [])
    }))
})

// ---------------------------------------------------------------------------------------------------------------------
// by chance
// ---------------------------------------------------------------------------------------------------------------------

type Chance = ReturnType<typeof chance>

interface Kind {
  readonly name: string
  readonly mayBeUnknown: boolean
  readonly make: (id: string, ledger: Ledger, dice: Chance) => Effect.Effect<
    unknown,
    unknown,
    SqlClient | Pg.Executor.Executor
  >
}

const kinds: ReadonlyArray<Kind> = [
  {
    name: "a transaction",
    mayBeUnknown: true,
    make: (id, { tills }, { below }) => transaction(putInAndCount(id, below(tills)))
  },
  {
    name: "a transaction, resolved",
    mayBeUnknown: false,
    make: (id, { tills }, { below }) => transaction(putInAndCount(id, below(tills)), { resolveCommit: true })
  },
  {
    name: "a serializable transaction, resolved",
    mayBeUnknown: false,
    make: (id, { tills }, { below }) =>
      transaction(putInAndCount(id, below(tills)), { isolation: "serializable", resolveCommit: true })
  },
  {
    name: "a transaction with savepoints, resolved",
    mayBeUnknown: false,
    make: (id, { tills }, { below }) =>
      Effect.andThen(
        Effect.ignore(transaction(Effect.andThen(putIn(id), Effect.fail("rolled back to the savepoint")))),
        transaction(putInAndCount(id, below(tills)))
      ).pipe(transaction({ resolveCommit: true }))
  },
  {
    name: "one INSERT, resolved",
    mayBeUnknown: false,
    make: (id) => transaction(putIn(id), { resolveCommit: true })
  },
  { name: "one INSERT by itself", mayBeUnknown: true, make: (id) => run(putIn(id)) }
]

const fates: ReadonlyArray<Fate> = ["lose", "split", "deliver", "pause"]

/** More messages than any work has: what lies behind its end does not come to pass. */
const furthest = 34

const drawFault = ({ below, next, pick }: Chance, probability: number): Fault | undefined => {
  if (next() >= probability) return undefined
  return {
    direction: pick(directions),
    boundary: below(furthest),
    fate: pick(fates),
    stall: below(10) === 0 ? 1 + below(10) : undefined,
    lag: below(20) === 0 ? 5 + below(30) : undefined
  }
}

interface Lane {
  readonly url: Redacted.Redacted
  readonly ledger: Ledger
  readonly seed: number
  readonly works: number
  /** How many of them at a time. */
  readonly writers: number
  readonly options: Pg.Options
  /** How likely each piece of work meets a fault, its repetitions included. */
  readonly probability: number
}

/** Writers over a pool of their own; with a single one, the seed decides everything. */
const drive = ({ ledger, options, probability, seed, url, works, writers }: Lane) =>
  Effect.scoped(Effect.gen(function*() {
    const proxy = yield* makeMessageProxy(url)
    const dice = chance(seed)
    proxy.plan(() => drawFault(dice, probability))
    yield* Effect.forEach(range(works), (turn) => {
      const choice = chance(seed * 100_003 + turn)
      const kind = choice.pick(kinds)
      const id = `${seed}/${turn}`
      const before = proxy.faults().length
      return ledger.note(id, kind.make(id, ledger, choice), {
        mayBeUnknown: kind.mayBeUnknown,
        story: () =>
          `seed ${seed}, turn ${turn}, ${kind.name}, meanwhile ${
            proxy.faults().slice(before).map(describeFault).join("; ")
          }.`
      })
    }, { concurrency: writers, discard: true }).pipe(
      Effect.provide(Pg.layer({ ...options, url: proxy.url }), { local: true })
    )
    return proxy.faults().length
  }))

describe("transactions whose connections are cut at random", () => {
  it.live(
    "are there exactly once when acknowledged, never when failed, at most once when unknown",
    () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const ledger = yield* makeLedger(url)
        const lane = { url, ledger, probability: 0.7 }
        const lanes: ReadonlyArray<Lane> = [
          ...range(6).map((index): Lane => ({
            ...lane,
            seed: 1000 + index,
            works: 300,
            writers: 1,
            options: { ...undaunted, max: 1, prepare: index % 2 === 0 }
          })),
          ...range(3).map((index): Lane => ({
            ...lane,
            seed: 2000 + index,
            works: 400,
            writers: 8,
            options: { ...undaunted, max: 4, prepare: index !== 1, multiplex: index === 2 }
          }))
        ]
        const faults = yield* Effect.forEach(lanes, drive, { concurrency: "unbounded" })
        const wrong = yield* ledger.contradictions
        assert.deepStrictEqual(wrong.slice(0, 20), [], `${wrong.length} contradictions`)
        assert.isAbove(faults.reduce((sum, count) => sum + count, 0), 1000)
        assert.isAbove(ledger.told("acknowledged"), 2000)
        assert.isAbove(ledger.told("unknown"), 0)
      }),
    120_000
  )

  it.live("keep this with the default breaker and budget, whose refusals are failures", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const ledger = yield* makeLedger(url)
      yield* drive({
        url,
        ledger,
        seed: 3000,
        works: 300,
        writers: 6,
        probability: 0.3,
        options: { max: 3, breaker: { openFor: 50 } }
      })
      const wrong = yield* ledger.contradictions
      assert.deepStrictEqual(wrong.slice(0, 20), [], `${wrong.length} contradictions`)
      assert.isAbove(ledger.told("acknowledged"), 100)
    }), 120_000)
})
