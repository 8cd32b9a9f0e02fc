import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Case } from "../case.ts"
import { Trouble } from "../engine.ts"
import { attempt, demand, down, fail, fatal, is, pass, rejects, reply, seconds, settle, start } from "../trial.ts"

/** What a call says about the database, and what it does not. */
export const evidence: ReadonlyArray<Case> = [
  {
    number: 14,
    title: "5 times a unique violation, a syntax error, a serialization failure",
    expected: "closed, the streak ended: the server answered",
    run: Effect.fnUntraced(function*(engine) {
      for (const code of ["23505", "42601", "40001"]) {
        const circuit = yield* engine.make()
        yield* fail(circuit, 4)
        yield* fail(circuit, 5, reply(code))
        yield* is(circuit, "Closed", { failures: 0 })
        yield* fail(circuit, 4)
        yield* is(circuit, "Closed", { failures: 4 })
      }
    })
  },
  {
    number: 15,
    title: "5 times 57P03, 53300, ECONNREFUSED, a connect timeout",
    expected: "open",
    run: Effect.fnUntraced(function*(engine) {
      for (
        const trouble of [
          fatal("57P03"),
          fatal("53300"),
          new Trouble({ code: "ECONNREFUSED" }),
          new Trouble({ code: "ETIMEDOUT" })
        ]
      ) {
        const circuit = yield* engine.make()
        yield* fail(circuit, 5, trouble)
        yield* is(circuit, "Open", { retryAfter: seconds(30) })
        yield* rejects(circuit)
      }
    })
  },
  {
    number: 16,
    title: "5 times a wrong password (28P01), a database that does not exist (3D000)",
    expected: "closed, ignored: the streak is unchanged",
    run: Effect.fnUntraced(function*(engine) {
      for (const code of ["28P01", "3D000"]) {
        const circuit = yield* engine.make()
        yield* fail(circuit, 4)
        yield* fail(circuit, 5, fatal(code))
        yield* is(circuit, "Closed", { failures: 4 })
        yield* fail(circuit, 1)
        yield* rejects(circuit)
      }
    })
  },
  {
    number: 18,
    title: "20 calls to a black hole that their callers give up after 2 s, with an attempt timeout of 1 s inside",
    expected: "open after 5",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make({ attemptTimeout: seconds(1) })
      let runs = 0
      const blackHole = Effect.suspend(() => {
        runs++
        return Effect.never
      })
      for (let i = 0; i < 20; i++) {
        const caller = yield* Effect.forkChild(
          Effect.exit(Effect.timeout(circuit.call(blackHole), seconds(2))),
          { startImmediately: true }
        )
        yield* settle
        for (let quarter = 0; quarter < 8 && caller.pollUnsafe() === undefined; quarter++) {
          yield* pass(250)
        }
        yield* Fiber.await(caller)
      }
      yield* demand(runs === 5, `${runs} calls of 20 ran into it`)
      yield* rejects(circuit)
    })
  },
  {
    number: 19,
    title: "the callers of 100 healthy calls interrupt them",
    expected: "closed, nothing counted",
    run: Effect.fnUntraced(function*(engine) {
      const circuit = yield* engine.make()
      yield* fail(circuit, 4)
      const calls = yield* Effect.forEach(Array.from({ length: 100 }), () => start(circuit))
      for (const call of calls) yield* call.interrupt
      yield* is(circuit, "Closed", { failures: 4 })
      yield* fail(circuit, 1)
      yield* rejects(circuit)
    })
  },
  {
    number: 47,
    title: "4 failures and a success, over and over (80 % failures)",
    expected: "counting failures in a row stays closed; a rate policy opens",
    run: Effect.fnUntraced(function*(engine) {
      const patient = yield* engine.make()
      for (let i = 0; i < 25; i++) {
        yield* fail(patient, 4)
        yield* attempt(patient, Effect.succeed("row"))
        yield* is(patient, "Closed", { failures: 0 })
      }
      const strict = yield* engine.make({ rate: { threshold: 0.5, size: 10 } })
      for (let i = 0; i < 3; i++) {
        for (let failures = 0; failures < 4; failures++) yield* attempt(strict, Effect.fail(down))
        yield* attempt(strict, Effect.succeed("row"))
      }
      yield* is(strict, "Open")
      yield* rejects(strict)
    })
  }
]
