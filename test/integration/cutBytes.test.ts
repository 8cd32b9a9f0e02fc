import { assert, describe, it } from "@effect/vitest"
import { FaultProxy } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import * as Pg from "../../src/index.ts"
import { ResolveCommit } from "../../src/internal/unitOfWork.ts"
import { freshDatabase } from "./database.ts"
import { makeLedger, putInAndCount } from "./ledger.ts"
import { chance } from "./witness.ts"

const directions: ReadonlyArray<FaultProxy.Direction> = ["to the server", "to the client"]

/** ParseComplete, BindComplete and CommandComplete "BEGIN". */
const answerToBegin = 21

interface Cut {
  readonly direction: FaultProxy.Direction
  /** So many bytes get through in this direction, from the beginning of the transaction or the last cut on. */
  readonly after: number
  /** Milliseconds by which the server learns of it later than the client. */
  readonly lag: number
}

/** What has come through since the watch began. */
interface Passed {
  /** Since the last cut. */
  bytes: Record<FaultProxy.Direction, number>
  /** The length of the first request. */
  first: number
  cuts: number
}

const none = (): Passed["bytes"] => ({ "to the server": 0, "to the client": 0 })

/** Keeps both ends from learning of each other, until each is told by hand. */
const apart = FaultProxy.hold()

/** A proxy that cuts a connection after some number of bytes, be it in the middle of a message. */
const makeCutter = Effect.fnUntraced(function*(url: Redacted.Redacted) {
  const proxy = yield* FaultProxy.make(url)
  let planned: ReadonlyArray<Cut> = []
  let passed: Passed
  const watch = (cuts: ReadonlyArray<Cut>): Passed => {
    planned = cuts
    return passed = { bytes: none(), first: 0, cuts: 0 }
  }
  watch([])
  const look = (direction: FaultProxy.Direction): FaultProxy.Look => (bytes, link) => {
    if (direction === "to the server" && passed.first === 0) passed.first = bytes.length
    const [cut] = planned
    const room = cut?.direction === direction ? cut.after - passed.bytes[direction] : Infinity
    passed.bytes[direction] += bytes.length
    if (cut === undefined || bytes.length < room) return "pass"
    const { lag } = cut
    planned = planned.slice(1)
    passed.bytes = none()
    passed.cuts++
    link.set(apart)
    const end = () => {
      link.cut("client")
      if (lag === 0) link.cut("server")
      else setTimeout(() => link.cut("server"), lag)
    }
    if (room === 0) end()
    else link.deliver(bytes.subarray(0, room), direction, end)
    return "drop"
  }
  for (const direction of directions) {
    yield* direction === "to the server" ? proxy.onRequest(look(direction)) : proxy.onReply(look(direction))
  }
  return { url: proxy.url, watch }
})

const seeds = [1, 2, 3, 4]
const turns = 200

describe("a transaction whose connection is cut at a random byte", () => {
  for (const multiplex of [false, true]) {
    for (const manner of ["with names", "without names", "resolved in time"] as const) {
      const prepare = manner !== "without names"
      const isResolved = manner === "resolved in time"
      it.live(
        `is there once when acknowledged, not when failed, and unknown only if COMMIT was sent, ${manner}${
          multiplex ? ", multiplexed" : ""
        }`,
        () =>
          Effect.gen(function*() {
            const url = yield* freshDatabase
            const ledger = yield* makeLedger(url)
            const cutter = yield* makeCutter(url)
            const options = {
              url: cutter.url,
              max: 1,
              multiplex,
              prepare,
              breaker: false,
              retryBudget: false,
              retry: { base: 0, jitter: "none", attempts: 12 }
            } as const satisfies Pg.Options
            let cutsInBegin = 0
            yield* Effect.gen(function*() {
              const sql = yield* SqlClient
              const pool = yield* Pg.Pool.Pool
              const ask = Pg.Executor.idempotent(sql`SELECT 1`)
              const transact = (id: string, cuts: ReadonlyArray<Cut>, isGivenUp = false) =>
                Effect.gen(function*() {
                  // There is a session, and it knows the statements that it will ever know.
                  yield* ask
                  const passed = cutter.watch(cuts)
                  let bodies = 0
                  let isBodyDone = false
                  const body = Effect.gen(function*() {
                    bodies++
                    yield* putInAndCount(id, bodies)
                    isBodyDone = true
                    if (isGivenUp) yield* Effect.fail("given up")
                  })
                  const story = () => `${id}: ${JSON.stringify(cuts)}, passed ${JSON.stringify(passed)}`
                  // What the server is asked and told goes with BEGIN.
                  const transaction = isResolved
                    ? Effect.provideService(sql.withTransaction(body), ResolveCommit, true).pipe(
                      Pg.Executor.withDeadline("1 minute")
                    )
                    : sql.withTransaction(body)
                  const told = yield* ledger.note(id, transaction, { mayBeUnknown: !isResolved, story })
                  cutter.watch([])
                  assert.strictEqual(bodies, 1, story())
                  // Nothing but COMMIT is sent after the body.
                  if (told === "unknown") assert.isTrue(isBodyDone, story())
                  const [cut] = cuts
                  const isBeforeBegin = cut !== undefined && passed.cuts > 0 &&
                    (cut.direction === "to the server" ? cut.after < passed.first : cut.after < answerToBegin)
                  if (isBeforeBegin) cutsInBegin++
                  if (isGivenUp) assert.strictEqual(told, "failed", story())
                  else if (passed.cuts === 0 || (isBeforeBegin && passed.cuts === 1)) {
                    assert.strictEqual(told, "acknowledged", story())
                  }
                  return passed
                })
              yield* transact("known", [])
              const { bytes, first } = yield* transact("measured", [])
              const beginning = cutter.watch([])
              yield* Effect.andThen(pool.evictAll, ask)
              const login = beginning.bytes
              for (const seed of seeds) {
                const { below, pick } = chance(seed)
                for (let turn = 0; turn < turns / seeds.length; turn++) {
                  const draw = (): Cut => {
                    const direction = pick(directions)
                    // The first exchange is where BEGIN rides, so half of the cuts are there.
                    const most = below(2) === 0
                      ? bytes[direction] + 1
                      : direction === "to the server"
                      ? first
                      : 2 * answerToBegin
                    return { direction, after: below(most), lag: below(3) === 0 ? below(10) : 0 }
                  }
                  const again = (): Cut => {
                    const direction = pick(directions)
                    return { direction, after: below(login[direction] + bytes[direction]), lag: 0 }
                  }
                  const cuts = below(3) === 0 ? [draw(), again()] : [draw()]
                  yield* transact(`${seed}/${turn}`, cuts, below(6) === 0)
                }
              }
            }).pipe(Effect.provide(Pg.layer(options)))
            assert.deepStrictEqual(yield* ledger.contradictions, [])
            assert.isAbove(cutsInBegin, turns / 5)
            for (const told of ["acknowledged", "failed"] as const) assert.isAbove(ledger.told(told), 5, told)
            if (!isResolved) assert.isAbove(ledger.told("unknown"), 5)
          }),
        60_000
      )
    }
  }
})
