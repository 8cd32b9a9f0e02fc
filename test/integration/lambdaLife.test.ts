/** A pool in the life of a Lambda function, on the real server: what the platform does to it, and what becomes of its sessions. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import { FaultProxy, type LocalLambda } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Pg from "../../src/index.ts"
import { deploy, makeServer } from "./lambdaFunction.ts"
import { eventually, soon } from "./witness.ts"

const failure = Effect.flip

const only = <A>(list: ReadonlyArray<A>): A => {
  assert.lengthOf(list, 1)
  return list[0] as A
}

const stateOf = (lambda: LocalLambda.LocalLambda) => Effect.map(lambda.environments, only)

const written = (lambda: LocalLambda.LocalLambda) =>
  Effect.map(lambda.logs, (lines) => lines.map(({ text }) => text).join("\n"))

/** Statements of others that run, or that hold a transaction open. */
const underWay = `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database()
  AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'`

/** Between two statements a server would hear of a client's end by itself. */
const asleep = `${underWay} AND wait_event = 'PgSleep'`

describe("a cold start", () => {
  it.live("opens nothing before the first invocation", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url)
      yield* lambda.provision
      assert.strictEqual(yield* witness.count, 0)
      const { payload } = yield* lambda.ask("pid")
      assert.deepStrictEqual(yield* witness.sessions, [payload as number])
    }))

  it.live("with `warm` brings a session along, which may have waited for an hour", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url, { environment: { warm: true } })
      yield* lambda.provision
      const waiting = only(yield* witness.sessions)
      yield* witness.terminate([waiting])
      const { payload, start } = yield* lambda.ask("pid", {}, { after: "1 hour" })
      assert.strictEqual(start, "warm")
      assert.notStrictEqual(payload, waiting)
    }))

  it.live("with `warm` does not fail when there is no database yet", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const proxy = yield* FaultProxy.make(url)
      const closed = FaultProxy.refuse("closed")
      yield* proxy.set(closed)
      const lambda = yield* deploy(proxy.url, { environment: { warm: true } })
      yield* lambda.provision
      yield* proxy.lift(closed)
      const { environment, payload } = yield* lambda.ask("pid")
      assert.strictEqual(environment, 1)
      assert.deepStrictEqual(yield* witness.sessions, [payload as number])
    }))

  it.live("whose layer fails answers with the failure, and heals in the same environment", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const folder = Fs.mkdtempSync(Path.join(Os.tmpdir(), "secret-"))
      yield* Effect.addFinalizer(() => Effect.sync(() => Fs.rmSync(folder, { recursive: true })))
      const file = Path.join(folder, "secret")
      const lambda = yield* deploy(url, { env: { NEEDS_FILE: file }, environment: { warm: true } })
      const error = yield* failure(lambda.ask("pid"))
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "SecretUnavailable" })
      assert.deepInclude(yield* failure(lambda.ask("pid")), { _tag: "FunctionError", errorType: "SecretUnavailable" })
      Fs.writeFileSync(file, "")
      yield* lambda.ask("pid")
      assert.deepInclude(yield* stateOf(lambda), { initializations: 1, invocations: 3, state: "Frozen" })
    }))
})

describe("a warm start", () => {
  it.live("uses the session of the last invocation, and is told so", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url, { timeout: "5 seconds" })
      const cold = (yield* lambda.ask("invocation")).payload as Record<string, unknown>
      const first = yield* lambda.ask("pid")
      const second = yield* lambda.ask("pid")
      assert.strictEqual(second.payload, first.payload)
      assert.deepStrictEqual(yield* witness.sessions, [second.payload as number])
      const again = yield* lambda.ask("invocation")
      const warm = again.payload as Record<string, unknown>
      assert.deepInclude(cold, { isCold: true, runs: 1 })
      assert.deepInclude(warm, { isCold: false, runs: 2, id: again.requestId })
      // What is left is the platform's time without the margin.
      assert.isAtMost(warm.left as number, 4750)
      assert.isAbove(warm.left as number, 3000)
    }))

  it.live("after an error of the handler is one as any other", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const lambda = yield* deploy(url)
      const { payload } = yield* lambda.ask("pid")
      yield* failure(lambda.ask("statement", { text: "SELECT 1/0" }))
      yield* failure(lambda.ask("throws", { text: "a bug" }))
      assert.strictEqual((yield* lambda.ask("pid")).payload, payload)
      assert.deepInclude(yield* stateOf(lambda), { initializations: 1 })
    }))
})

describe("a freeze", () => {
  it.live("of 10 minutes in which the server has ended the sessions goes unnoticed", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url)
      const { payload } = yield* lambda.ask("pid")
      assert.strictEqual(yield* witness.terminate([payload as number]), 1)
      yield* eventually("it has ended", Effect.map(witness.count, (count) => count === 0))
      const thawed = yield* lambda.ask("pid", {}, { after: "10 minutes" })
      assert.deepInclude(thawed, { start: "warm", environment: 1 })
      assert.deepStrictEqual(yield* witness.sessions, [thawed.payload as number])
    }))

  it.live("of no length in which the server has ended the sessions goes unnoticed, too", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url)
      for (let turn = 0; turn < 10; turn++) {
        const { environment, payload } = yield* lambda.ask("pid")
        assert.strictEqual(environment, 1)
        yield* witness.terminate([payload as number])
        yield* eventually("it has ended", Effect.map(witness.count, (count) => count === 0))
      }
    }))

  it.live("is over for the sockets before it is over for the work", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const environment = yield* Pg.Serverless.environment(Pg.layer({ url, max: 1, retry: false }))
      const pid = Effect.flatMap(PgClient.PgClient, (sql) => sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`)
      const [row] = yield* Effect.promise(() => environment.run(pid))
      const ending = yield* Effect.forkChild(witness.terminate([row?.pid ?? 0]), { startImmediately: true })
      const exit = yield* Effect.callback<Exit.Exit<unknown, unknown>>((resume) => {
        setImmediate(() => {
          // Nothing of this process runs, as in a freeze; the goodbye of the session waits at its socket.
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300)
          environment.runExit(pid).then((exit) => resume(Effect.succeed(exit)))
        })
      })
      assert.strictEqual(exit._tag, "Success")
      assert.strictEqual(yield* Fiber.join(ending), 1)
    }))

  it.live("in which nothing happened keeps a session that is not too old", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const lambda = yield* deploy(url)
      const { payload } = yield* lambda.ask("pid")
      assert.strictEqual((yield* lambda.ask("pid", {}, { after: "4 minutes" })).payload, payload)
      assert.notStrictEqual((yield* lambda.ask("pid", {}, { after: "6 minutes" })).payload, payload)
    }))

  for (const after of ["10 seconds", "1 minute", "10 minutes"] as const) {
    it.live(`of ${after} in which the network has forgotten the connections does not hang`, () =>
      Effect.gen(function*() {
        const { url } = yield* makeServer
        const proxy = yield* FaultProxy.make(url)
        const lambda = yield* deploy(proxy.url)
        const { payload } = yield* lambda.ask("pid")
        for (const link of yield* proxy.links) link.set(FaultProxy.blackhole())
        const thawed = yield* lambda.ask("pid", {}, { after })
        assert.deepInclude(thawed, { start: "warm", environment: 1 })
        assert.notStrictEqual(thawed.payload, payload)
        // The deadline of a check is 1 second; the function would have had 20.
        assert.isBelow(thawed.millis, 5000)
      }))
  }
})

/** A margin of a second: a busy machine that needs a quarter of it more for the answer is still in time. */
const unhurried = { timeout: "4 seconds", environment: { margin: "1 second" } } as const

describe("an invocation whose time is up", () => {
  it.live("is answered before the platform kills, its transaction rolled back and its statement ended", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeServer
      const lambda = yield* deploy(url, unhurried)
      yield* lambda.ask("pid")
      const error = yield* failure(lambda.ask("transaction", { millis: 60_000 }))
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "InvocationTimeout" })
      yield* soon(
        "the server has let go of it",
        eventually("nothing runs", Effect.map(witness.value<number>(underWay), (count) => count === 0)),
        1
      )
      assert.strictEqual(yield* rows, 0)
      const next = yield* lambda.ask("pid")
      assert.deepInclude(next, { start: "warm", environment: 1 })
      assert.deepInclude(yield* stateOf(lambda), { initializations: 1 })
    }))

  it.live("is answered in time by a server that has fallen silent", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeServer
      const proxy = yield* FaultProxy.make(url)
      const lambda = yield* deploy(proxy.url, unhurried)
      yield* lambda.ask("pid")
      const hole = FaultProxy.blackhole()
      const error = yield* lambda.ask("transaction", { millis: 0 }).pipe(proxy.during(hole), failure)
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "InvocationTimeout" })
      assert.deepInclude(yield* lambda.ask("pid"), { start: "warm", environment: 1 })
      assert.strictEqual(yield* rows, 0)
    }))

  it.live("is answered in time also when its work ignores interruption", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const lambda = yield* deploy(url, unhurried)
      const { payload } = yield* lambda.ask("pid")
      const error = yield* failure(lambda.ask("stubborn", { millis: 8000 }))
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "InvocationTimeout" })
      const next = yield* lambda.ask("pid")
      assert.deepInclude(next, { start: "warm", environment: 1, payload })
      assert.include(yield* written(lambda), "is answered although its work goes on")
    }))

  it.live("is killed by the platform when its process does nothing but compute: the server rolls back, and the next one starts anew", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeServer
      const lambda = yield* deploy(url, { timeout: "2 seconds" })
      yield* lambda.ask("pid")
      assert.deepInclude(yield* failure(lambda.ask("busy", { millis: 60_000 })), { _tag: "TimedOut" })
      yield* eventually("its sessions have ended", Effect.map(witness.count, (count) => count === 0))
      assert.strictEqual(yield* rows, 0)
      assert.deepInclude(yield* lambda.ask("pid"), { start: "reset", environment: 1 })
    }))
})

describe("an invocation that is over", () => {
  it.live("leaves no fiber that runs on in the next one", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const lambda = yield* deploy(url)
      yield* lambda.ask("leavesFiber")
      const { payload } = yield* lambda.ask("ticks")
      yield* lambda.thaw()
      yield* Effect.sleep(200)
      assert.strictEqual((yield* lambda.ask("ticks")).payload, payload)
    }))

  it.live("keeps no event loop from being frozen or an answer from being sent: idle sessions are no reason to wait", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const lambda = yield* deploy(url)
      yield* lambda.ask("pid")
      const { millis } = yield* lambda.ask("pid")
      // Who waited for an empty event loop would wait for the 20 seconds of the function.
      assert.isBelow(millis, 10_000)
      assert.deepInclude(yield* stateOf(lambda), { state: "Frozen" })
    }))

  it.live("with `release: close` leaves no session to a frozen environment", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url, { environment: { release: "close" } })
      yield* lambda.ask("pid")
      assert.strictEqual(yield* witness.count, 0)
      yield* lambda.ask("pid")
      assert.strictEqual(yield* witness.count, 0)
    }))

  it.live("is not disturbed by a session that ends while nobody uses it", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url)
      const { payload } = yield* lambda.ask("pid")
      yield* lambda.thaw()
      yield* witness.terminate([payload as number])
      yield* eventually("it has ended", Effect.map(witness.count, (count) => count === 0))
      yield* Effect.sleep(100)
      assert.deepInclude(yield* lambda.ask("pid"), { start: "warm", environment: 1 })
      assert.deepInclude(yield* stateOf(lambda), { initializations: 1 })
    }))
})

describe("an answer to a failure", () => {
  it.live("has its name and a sentence with the SQLSTATE, and no secret", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const lambda = yield* deploy(url)
      const duplicate = yield* failure(lambda.ask("twice"))
      assert.deepInclude(duplicate, { _tag: "FunctionError", errorType: "SqlError" })
      assert.include(duplicate.message, "23505")
      assert.notInclude(duplicate.message, "(7)")
      const syntax = yield* failure(lambda.ask("statement", { text: "SELEKT 'card 4111'" }))
      assert.include(syntax.message, "42601")
      const password = new URL(Redacted.value(url)).password
      const bug = yield* failure(lambda.ask("throws", { text: `cannot reach ${Redacted.value(url)}` }))
      assert.deepInclude(bug, { _tag: "FunctionError", errorType: "Error" })
      const all = `${bug.message} ${JSON.stringify(bug)} ${yield* written(lambda)}`
      assert.isAbove(password.length, 0)
      assert.notInclude(all, password)
      assert.notInclude(all, "4111")
    }))

  it.live("of an unreachable server names what has happened to the connect", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const proxy = yield* FaultProxy.make(url)
      yield* proxy.set(FaultProxy.refuse("closed"))
      const lambda = yield* deploy(proxy.url, { pool: { retry: false } })
      const error = yield* failure(lambda.ask("pid"))
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "SqlError" })
      assert.include(error.message, "ECONNREFUSED")
      assert.notInclude(error.message, new URL(Redacted.value(url)).pathname)
    }))
})

describe("a streamed answer", () => {
  it.live("comes row by row with its status, and the session is kept for the next one", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url, { export: "stream" })
      const first = yield* lambda.ask("stream")
      assert.deepInclude(first, { payload: "1\n2\n3\n", start: "cold" })
      assert.deepInclude(first.metadata as object, { statusCode: 200 })
      const session = only(yield* witness.sessions)
      yield* lambda.ask("stream")
      assert.deepStrictEqual(yield* witness.sessions, [session])
    }))

  it.live("that breaks off is an error, and the environment goes on", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const lambda = yield* deploy(url, { export: "stream" })
      const error = yield* failure(lambda.ask("stream", { text: "breaks" }))
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "TypeError" })
      assert.deepInclude(yield* lambda.ask("stream"), { start: "warm", environment: 1 })
    }))
})

/** Node's own answer to SIGTERM is to be ended by it: then there is no exit code. */
const inOrder = { signal: "SIGTERM", isForced: false, exitCode: 0 } as const

describe("the end of an environment", () => {
  it.live("by SIGTERM, which an internal extension brings about, closes its sessions in order", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url, { environment: { shutdown: { internalExtension: true } } })
      yield* lambda.ask("pid")
      const ending = only(yield* lambda.shutdown())
      assert.deepInclude(ending, inOrder)
      assert.strictEqual(yield* witness.count, 0)
    }))

  it.live("by SIGTERM, which an external extension brings about, is the same in 300 ms", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url, { externalExtension: true })
      yield* lambda.ask("pid")
      const ending = only(yield* lambda.shutdown())
      assert.deepInclude(ending, inOrder)
      assert.strictEqual(yield* witness.count, 0)
    }))

  it.live("by SIGTERM comes in time also when the server does not answer", () =>
    Effect.gen(function*() {
      const { url } = yield* makeServer
      const proxy = yield* FaultProxy.make(url)
      const lambda = yield* deploy(proxy.url, { environment: { shutdown: { internalExtension: true } } })
      yield* lambda.ask("pid")
      const ending = yield* Effect.map(lambda.shutdown(), only).pipe(proxy.during(FaultProxy.blackhole()))
      assert.deepInclude(ending, inOrder)
    }))

  it.live("without an extension is sudden, and the server hears of it from the kernel", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url)
      yield* lambda.ask("pid")
      assert.deepInclude(only(yield* lambda.shutdown()), { signal: "SIGKILL" })
      yield* eventually("its session has ended", Effect.map(witness.count, (count) => count === 0))
    }))

  it.live("of which the server hears nothing is found out by the server itself", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const proxy = yield* FaultProxy.make(url)
      const lambda = yield* deploy(proxy.url, {
        pool: { idleTimeout: "500 millis", serverReaping: { idleSession: "1 second" } }
      })
      yield* lambda.ask("pid")
      yield* proxy.set(FaultProxy.hold({ direction: "to the server" }))
      yield* lambda.kill()
      assert.strictEqual(yield* witness.count, 1)
      yield* eventually("the server has reaped it", Effect.map(witness.count, (count) => count === 0), 10)
    }))

  it.live("in the middle of a statement is found out by the server, which stops to work on it", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeServer
      const lambda = yield* deploy(url, {
        // Nothing else is to end the statement.
        pool: { statementTimeout: "2 minutes", serverReaping: { connectionCheck: "500 millis" } }
      })
      const work = yield* Effect.forkChild(Effect.exit(lambda.ask("transaction", { millis: 60_000 })))
      yield* eventually("it sleeps", Effect.map(witness.value<number>(asleep), (count) => count === 1))
      yield* lambda.kill()
      yield* Fiber.join(work)
      yield* eventually("the server has let go of it", Effect.map(witness.count, (count) => count === 0))
      assert.strictEqual(yield* rows, 0)
    }))

  it.live("by a crash in the middle of a transaction is the end of that, and the next one starts anew", () =>
    Effect.gen(function*() {
      const { rows, url, witness } = yield* makeServer
      const lambda = yield* deploy(url)
      const error = yield* failure(lambda.ask("crashes"))
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "Runtime.ExitError" })
      yield* eventually("its session has ended", Effect.map(witness.count, (count) => count === 0))
      assert.strictEqual(yield* rows, 0)
      assert.deepInclude(yield* lambda.ask("pid"), { start: "reset", environment: 1 })
    }))

  it.live("comes a hundred times, in order or suddenly, and no session is left", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lane = Effect.gen(function*() {
        const lambda = yield* deploy(url, { environment: { shutdown: { internalExtension: true } } })
        const pids: Array<unknown> = []
        for (let turn = 1; turn <= 50; turn++) {
          const { environment, payload } = yield* lambda.ask("pid")
          assert.strictEqual(environment, turn)
          pids.push(payload)
          if (turn % 2 === 0) yield* lambda.kill()
          else yield* lambda.shutdown()
        }
        return pids
      })
      const pids = yield* Effect.all([lane, lane], { concurrency: 2 })
      assert.strictEqual(new Set(pids.flat()).size, 100)
      yield* eventually("all sessions have ended", Effect.map(witness.count, (count) => count === 0))
    }), 120_000)
})

describe("an environment that takes several invocations at a time", () => {
  it.live("has a pool in each of its worker threads, and answers all of them", () =>
    Effect.gen(function*() {
      const { url, witness } = yield* makeServer
      const lambda = yield* deploy(url, { concurrency: 4, workers: 2, pool: { max: 2 } })
      const watch = yield* witness.watch
      const results = yield* Effect.all(Array.from({ length: 8 }, () => lambda.ask("slow", { millis: 300 })), {
        concurrency: 4
      })
      const payloads = results.map(({ payload }) => payload as { most: number; session: number })
      assert.isAbove(Math.max(...payloads.map(({ most }) => most)), 1)
      assert.isAbove(new Set(payloads.map(({ session }) => session)).size, 1)
      assert.isAtMost(watch.most(), 4)
      assert.deepInclude(yield* stateOf(lambda), { initializations: 1, invocations: 8, state: "Idle" })
    }))

  it.live("ends one invocation at its deadline, and leaves the others alone", () =>
    Effect.gen(function*() {
      const { rows, url } = yield* makeServer
      const lambda = yield* deploy(url, { concurrency: 4, workers: 1, pool: { max: 4 } })
      yield* lambda.ask("pid")
      const other = yield* Effect.forkChild(lambda.ask("slow", { millis: 3000 }), { startImmediately: true })
      const error = yield* failure(lambda.ask("transaction", { millis: 60_000 }, { timeout: "1500 millis" }))
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "InvocationTimeout" })
      assert.deepInclude((yield* Fiber.join(other)).payload as object, { most: 1 })
      assert.strictEqual(yield* rows, 0)
    }))
})
