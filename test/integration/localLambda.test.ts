/** The local Lambda itself, by plain handlers: what it does to them is what AWS documents. */
import { afterAll, assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { LocalLambda } from "../../src/testing/index.ts"
import { eventually } from "./witness.ts"

const module = fileURLToPath(new URL("./fixtures/lambda.ts", import.meta.url))

/** Every environment compiles the same files. */
const compiled = Fs.mkdtempSync(Path.join(Os.tmpdir(), "compiled-"))
afterAll(() => Fs.rmSync(compiled, { recursive: true }))

const make = (name: string, { env, ...options }: Omit<LocalLambda.Options, "handler"> = {}) =>
  LocalLambda.make({ handler: `${module}#${name}`, env: { NODE_COMPILE_CACHE: compiled, ...env }, ...options })

const failure = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.flip(effect)

/** The letter that the kernel has for the state of a process: `T` is stopped. */
const stateOf = (pid: number | undefined): string => {
  try {
    return /^State:\s+(\w)/m.exec(Fs.readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? "?"
  } catch {
    return "gone"
  }
}

const pidOf = (lambda: LocalLambda.LocalLambda) =>
  Effect.map(lambda.environments, ([environment]) => environment?.pid ?? assert.fail("no process"))

const textsOf = (lambda: LocalLambda.LocalLambda, source: LocalLambda.LogLine["source"]) =>
  Effect.map(lambda.logs, (lines) => lines.filter((line) => line.source === source).map(({ text }) => text))

describe("an invocation", () => {
  it.live("is cold once, and finds the module's state again after that", () =>
    Effect.gen(function*() {
      const lambda = yield* make("count", { timeout: "5 seconds", name: "counter" })
      assert.deepStrictEqual(yield* lambda.environments, [])
      const cold = yield* lambda.invoke({ of: "mine" })
      const warm = yield* lambda.invoke()
      const [first, second] = [cold.payload, warm.payload] as [Record<string, unknown>, Record<string, unknown>]
      assert.deepInclude(first, { call: 1, event: { of: "mine" }, requestId: cold.requestId, functionName: "counter" })
      assert.deepInclude(second, { call: 2, event: null, requestId: warm.requestId, pid: first.pid })
      assert.deepInclude(first, { handler: "lambda.count", inherited: null })
      assert.isAtMost(first.remaining as number, 5000)
      assert.isAbove(first.remaining as number, 3000)
      assert.deepStrictEqual([cold.start, warm.start, cold.environment, warm.environment], ["cold", "warm", 1, 1])
      assert.isAbove(cold.initMillis, 0)
      assert.strictEqual(warm.initMillis, 0)
    }))

  it.live("that returns nothing is answered with null", () =>
    Effect.gen(function*() {
      const lambda = yield* make("nothing")
      assert.strictEqual((yield* lambda.invoke()).payload, null)
    }))

  it.live("that comes while another is under way gets an environment of its own", () =>
    Effect.gen(function*() {
      const lambda = yield* make("sleeps", { timeout: "20 seconds" })
      const both = yield* Effect.all([lambda.invoke({ millis: 200 }), lambda.invoke({ millis: 200 })], {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(both.map(({ environment }) => environment).toSorted(), [1, 2])
      assert.strictEqual((yield* lambda.invoke({ millis: 0 })).start, "warm")
      assert.lengthOf(yield* lambda.environments, 2)
    }))

  it.live("goes on when its caller is interrupted", () =>
    Effect.gen(function*() {
      const lambda = yield* make("sleeps", { timeout: "20 seconds" })
      yield* lambda.invoke({ millis: 0 })
      const caller = yield* Effect.forkChild(lambda.invoke({ millis: 300 }), { startImmediately: true })
      yield* Fiber.interrupt(caller)
      assert.deepInclude((yield* lambda.environments)[0], { state: "Busy" })
      yield* eventually("it rests", Effect.map(lambda.environments, ([one]) => one?.state === "Frozen"))
      assert.deepInclude((yield* lambda.invoke({ millis: 0 })).payload as object, { call: 3 })
    }))

  it.live("whose handler throws is an error with name and message, and the environment is used again", () =>
    Effect.gen(function*() {
      const lambda = yield* make("fails")
      const error = yield* failure(lambda.invoke())
      assert.instanceOf(error, LocalLambda.FunctionError)
      assert.deepInclude(error, { errorType: "TypeError", errorMessage: "no good: café", environment: 1 })
      assert.include(error.stackTrace.join("\n"), "lambda.ts")
      yield* failure(lambda.invoke())
      assert.deepInclude((yield* lambda.environments)[0], { initializations: 1, invocations: 2, state: "Frozen" })
    }))

  it.live("with a payload above 6 MB is refused before anything is started", () =>
    Effect.gen(function*() {
      const lambda = yield* make("nothing", { timeout: "20 seconds" })
      const limit = 6 * 1024 * 1024
      const error = yield* failure(lambda.invoke("é".repeat(limit / 2)))
      assert.deepInclude(error, { _tag: "RequestTooLarge", size: limit + 2, limit })
      assert.deepStrictEqual(yield* lambda.environments, [])
      yield* lambda.invoke("é".repeat(limit / 2 - 1))
    }))

  it.live("with a payload that is no JSON fails", () =>
    Effect.gen(function*() {
      const error = yield* failure((yield* make("count")).invoke({ of: 1n }))
      assert.instanceOf(error, LocalLambda.LocalLambdaFailed)
      assert.match(error.message, /payload.*BigInt/)
    }))

  for (const concurrency of [1, 2]) {
    it.live(`of a process that this computer does not start fails, where ${concurrency} may be under way at a time`, () =>
      Effect.gen(function*() {
        // Linux takes 128 KiB for a variable.
        const lambda = yield* make("count", { env: { LONG: "x".repeat(200_000) }, concurrency })
        for (const attempt of [lambda.invoke(), lambda.provision, lambda.invoke()]) {
          const error = yield* failure(attempt as Effect.Effect<unknown, { readonly message: string }>)
          assert.instanceOf(error, LocalLambda.LocalLambdaFailed)
          assert.match(error.message, /E2BIG/)
        }
        assert.deepStrictEqual(yield* lambda.environments, [])
      }))
  }

  it.live("with a response above 6 MB is an error", () =>
    Effect.gen(function*() {
      const error = yield* failure((yield* make("big")).invoke())
      assert.deepInclude(error, { _tag: "FunctionError", errorType: "Function.ResponseSizeTooLarge" })
    }))
})

describe("a streamed response", () => {
  it.live("arrives piece by piece, with its prelude apart", () =>
    Effect.gen(function*() {
      const result = yield* (yield* make("streams")).invoke({ pause: 1000 })
      assert.strictEqual(result.payload, "first second")
      assert.deepStrictEqual(result.metadata, { statusCode: 201, headers: { "x-of": "streams" } })
      const second = result.chunks.find(({ text }) => text === "second")
      assert.isAbove((second?.after ?? 0) - (result.chunks[0]?.after ?? 0), 300)
    }))

  it.live("needs no prelude", () =>
    Effect.gen(function*() {
      const result = yield* (yield* make("streamsPlainly")).invoke()
      assert.match(String(result.payload), /^[0-9a-f]{64}$/)
      assert.strictEqual(result.metadata, undefined)
      assert.strictEqual(result.contentType, "application/octet-stream")
    }))

  it.live("that breaks off is an error, by its trailers", () =>
    Effect.gen(function*() {
      const lambda = yield* make("breaksOff")
      const error = yield* failure(lambda.invoke())
      assert.deepInclude(error, { errorType: "TypeError", errorMessage: "the source has dried up" })
      yield* failure(lambda.invoke())
      assert.lengthOf(yield* lambda.environments, 1)
    }))
})

describe("between invocations", () => {
  it.live("an environment is frozen: nothing of it runs, and everything goes on after the thaw", () =>
    Effect.gen(function*() {
      const lambda = yield* make("ticking")
      yield* lambda.invoke()
      assert.deepInclude((yield* lambda.environments)[0], { state: "Frozen" })
      const pid = yield* pidOf(lambda)
      yield* eventually("it is stopped", Effect.sync(() => stateOf(pid) === "T"))
      yield* Effect.sleep(400)
      // At 5 ms for each it would have counted to 80.
      const frozen = (yield* lambda.invoke()).payload as number
      assert.isBelow(frozen, 40)
      yield* lambda.thaw()
      yield* Effect.sleep(400)
      assert.isAbove((yield* lambda.invoke()).payload as number, frozen + 5)
    }))

  it.live("the wall clock goes on, and the monotonic one stands still", () =>
    Effect.gen(function*() {
      const lambda = yield* make("clocks")
      type Clocks = Record<"loadedAt" | "now" | "date" | "monotonic", number> & { isDate: boolean; epoch: string }
      const before = (yield* lambda.invoke()).payload as Clocks
      const after = (yield* lambda.invoke(null, { after: "10 minutes" })).payload as Clocks
      assert.isAtLeast(after.now - before.now, 600_000)
      assert.isBelow(after.now - before.now, 630_000)
      assert.isBelow(Math.abs(after.date - after.now), 1000)
      assert.isBelow(after.monotonic - before.monotonic, 30_000)
      assert.isTrue(after.isDate)
      assert.strictEqual(after.epoch, "1970-01-01T00:00:00.000Z")
      // An environment that starts later lives at that time from its beginning.
      yield* lambda.kill()
      assert.isAtLeast(((yield* lambda.invoke()).payload as Clocks).loadedAt - before.now, 600_000)
    }))

  it.live("the deadline of an invocation is told in the time of its own clock", () =>
    Effect.gen(function*() {
      const lambda = yield* make("count", { timeout: "5 seconds" })
      yield* lambda.advance("2 days")
      const { remaining } = (yield* lambda.invoke()).payload as { remaining: number }
      assert.isAtMost(remaining, 5000)
      assert.isAbove(remaining, 3000)
    }))

  it.live("what a handler has left behind runs on in the next invocation", () =>
    Effect.gen(function*() {
      const lambda = yield* make("leaves")
      assert.deepStrictEqual((yield* lambda.invoke()).payload, { ran: false, calls: 1 })
      yield* Effect.sleep(100)
      yield* lambda.thaw()
      yield* Effect.sleep(100)
      assert.deepStrictEqual((yield* lambda.invoke()).payload, { ran: true, calls: 2 })
    }))
})

describe("an initialization", () => {
  it.live("that throws is tried again as part of the invocation, and then the environment is replaced", () =>
    Effect.gen(function*() {
      const lambda = yield* make("count", { env: { INIT: "throws" } })
      const error = yield* failure(lambda.invoke())
      assert.deepInclude(error, { _tag: "InitError", errorType: "RangeError", errorMessage: "no such configuration" })
      const told = (yield* textsOf(lambda, "platform")).filter((text) => text.startsWith("INIT_REPORT"))
      assert.lengthOf(told, 2)
      assert.include(told[0], "Status: error\tError Type: RangeError")
      assert.deepStrictEqual(yield* lambda.environments, [])
      assert.deepInclude(yield* failure(lambda.invoke()), { _tag: "InitError", environment: 2 })
    }))

  it.live("that ends the process is an exit", () =>
    Effect.gen(function*() {
      const error = yield* failure((yield* make("count", { env: { INIT: "exits" } })).invoke())
      assert.deepInclude(error, {
        _tag: "InitError",
        errorType: "Runtime.ExitError",
        errorMessage: "Runtime exited with error: exit status 3"
      })
    }))

  it.live("has a time of its own, and then the time of the invocation", () =>
    Effect.gen(function*() {
      const lambda = yield* make("count", { env: { INIT: "hangs" }, initTimeout: "700 millis", timeout: "900 millis" })
      const error = yield* failure(lambda.invoke())
      assert.deepInclude(error, {
        _tag: "InitError",
        errorType: "Sandbox.Timedout",
        errorMessage: "Task timed out after 0.90 seconds"
      })
    }))

  it.live("refuses a handler that wants a callback, and one that is not there", () =>
    Effect.gen(function*() {
      assert.deepInclude(yield* failure((yield* make("withCallback")).invoke()), {
        _tag: "InitError",
        errorType: "Runtime.CallbackHandlerDeprecated"
      })
      assert.deepInclude(yield* failure((yield* make("nobody")).invoke()), {
        _tag: "InitError",
        errorType: "Runtime.HandlerNotFound"
      })
    }))

  it.live("may come ahead of the first request, by any time", () =>
    Effect.gen(function*() {
      const lambda = yield* make("clocks")
      yield* lambda.provision
      assert.deepInclude((yield* lambda.environments)[0], { state: "Frozen", invocations: 0, initializations: 1 })
      const { payload, start } = yield* lambda.invoke(null, { after: "1 hour" })
      const { loadedAt, now } = payload as { loadedAt: number; now: number }
      assert.isAtLeast(now - loadedAt, 3_600_000)
      assert.strictEqual(start, "warm")
    }))

  it.live("is of the type that its variable says, also after a reset", () =>
    Effect.gen(function*() {
      const typeOf = <E>(result: Effect.Effect<LocalLambda.Result, E>) => Effect.map(result, ({ payload }) => payload)
      const lambda = yield* make("initializationType", { timeout: "20 seconds" })
      assert.strictEqual(yield* typeOf(lambda.invoke()), "on-demand")
      yield* lambda.shutdown()
      yield* lambda.provision
      assert.strictEqual(yield* typeOf(lambda.invoke()), "provisioned-concurrency")
      yield* failure(lambda.invoke({ exits: true }))
      assert.strictEqual(yield* typeOf(lambda.invoke()), "provisioned-concurrency")
      const managed = yield* make("initializationType", { concurrency: 2, workers: 1, timeout: "20 seconds" })
      yield* managed.provision
      assert.strictEqual(yield* typeOf(managed.invoke()), "lambda-managed-instances")
    }))

  it.live("without a module is refused at once", () =>
    Effect.gen(function*() {
      const error = yield* failure(LocalLambda.make({ handler: "handlers.ts#handler" }))
      assert.include(error.message, "no absolute path")
      assert.include((yield* failure(LocalLambda.make({ handler: "/nowhere/at/all.ts" }))).message, "there is no file")
    }))
})

describe("a reset", () => {
  it.live("comes at the end of the time: the process is gone, and the next invocation initializes again", () =>
    Effect.gen(function*() {
      const lambda = yield* make("sleeps", { timeout: "10 seconds" })
      yield* lambda.invoke({ millis: 0 })
      const pid = yield* pidOf(lambda)
      const error = yield* failure(lambda.invoke({ millis: 5000 }, { timeout: "150 millis" }))
      assert.deepInclude(error, { _tag: "TimedOut", timeout: 150, environment: 1 })
      assert.strictEqual(stateOf(pid), "gone")
      assert.deepInclude((yield* lambda.environments)[0], { state: "Reset", pid: undefined })
      const next = yield* lambda.invoke({ millis: 0 })
      assert.deepInclude(next, { start: "reset", environment: 1 })
      assert.deepInclude(next.payload as object, { call: 1 })
      assert.isAbove(next.initMillis, 0)
    }))

  it.live("follows an exit, however it comes", () =>
    Effect.gen(function*() {
      const one = yield* make("exits", { timeout: "10 seconds" })
      const left = yield* failure(one.invoke({ code: 7 }))
      assert.deepInclude(left, { _tag: "FunctionError", errorType: "Runtime.ExitError" })
      assert.include(left.message, "exit status 7")
      assert.include((yield* failure(one.invoke({ code: 0 }))).message, "exited without providing a reason")
      assert.deepInclude((yield* one.environments)[0], { state: "Reset", initializations: 2 })
      const killed = yield* failure((yield* make("killed", { timeout: "10 seconds" })).invoke())
      assert.include(killed.message, "signal: kill")
      const thrown = yield* make("throwsLater", { timeout: "10 seconds" })
      assert.include((yield* failure(thrown.invoke())).message, "exit status 1")
      assert.include((yield* textsOf(thrown, "runtime")).join("\n"), "nobody listens")
    }))
})

describe("a shutdown", () => {
  it.live("is a kill when there is no extension: nobody hears of it", () =>
    Effect.gen(function*() {
      const lambda = yield* make("count", { env: { ON_SIGTERM: "leaves" } })
      yield* lambda.invoke()
      assert.deepInclude((yield* lambda.shutdown())[0], { signal: "SIGKILL", isForced: false, exitCode: null })
      assert.deepStrictEqual(yield* textsOf(lambda, "runtime"), [])
      assert.deepStrictEqual(yield* lambda.environments, [])
    }))

  it.live("begins with SIGTERM when an internal extension has registered, and 500 ms later the runtime is killed", () =>
    Effect.gen(function*() {
      const env = { INIT: "registers" }
      const polite = yield* make("count", { env: { ...env, ON_SIGTERM: "leaves" } })
      yield* polite.invoke()
      assert.deepInclude((yield* polite.shutdown())[0], { signal: "SIGTERM", isForced: false, exitCode: 0 })
      assert.deepStrictEqual(yield* textsOf(polite, "runtime"), ["SIGTERM was heard"])
      const deaf = yield* make("count", { env: { ...env, ON_SIGTERM: "stays" } })
      yield* deaf.invoke()
      const [ending] = yield* deaf.shutdown()
      assert.deepInclude(ending, { signal: "SIGTERM", isForced: true, exitCode: null })
      assert.isAtLeast(ending?.millis ?? 0, 490)
    }))

  it.live("gives the runtime 300 ms beside an external extension, which is told last", () =>
    Effect.gen(function*() {
      const lambda = yield* make("count", { externalExtension: true, env: { ON_SIGTERM: "stays" } })
      yield* lambda.invoke()
      yield* lambda.invoke()
      const [ending] = yield* lambda.shutdown()
      assert.deepInclude(ending, { signal: "SIGTERM", isForced: true })
      assert.isAtLeast(ending?.millis ?? 0, 290)
      assert.deepStrictEqual(yield* textsOf(lambda, "extension"), ["INVOKE", "INVOKE", "SHUTDOWN spindown"])
      assert.deepStrictEqual(yield* textsOf(lambda, "runtime"), ["SIGTERM was heard"])
    }))

  it.live("after a time-out tells an external extension why", () =>
    Effect.gen(function*() {
      const lambda = yield* make("sleeps", { externalExtension: true })
      yield* lambda.invoke({ millis: 0 })
      yield* failure(lambda.invoke({ millis: 5000 }, { timeout: "100 millis" }))
      assert.deepStrictEqual(yield* textsOf(lambda, "extension"), ["INVOKE", "INVOKE", "SHUTDOWN timeout"])
    }))
})

describe("with several invocations at a time in an environment", () => {
  it.live("worker threads share the work, nothing is frozen, and a time-out is the affair of one of them", () =>
    Effect.gen(function*() {
      const lambda = yield* make("together", { concurrency: 4, workers: 2, timeout: "20 seconds" })
      const four = yield* Effect.all(Array.from({ length: 4 }, () => lambda.invoke({ millis: 700 })), {
        concurrency: "unbounded"
      })
      const payloads = four.map(({ payload }) => payload as { most: number; pid: number })
      assert.lengthOf(new Set(payloads.map(({ pid }) => pid)), 1)
      assert.isAbove(Math.max(...payloads.map(({ most }) => most)), 1)
      assert.deepInclude((yield* lambda.environments)[0], { state: "Idle", invocations: 4 })
      const pid = yield* pidOf(lambda)
      const late = yield* failure(lambda.invoke({ millis: 3000 }, { timeout: "100 millis" }))
      assert.deepInclude(late, { _tag: "TimedOut" })
      assert.strictEqual(((yield* lambda.invoke({ millis: 0 })).payload as { pid: number }).pid, pid)
    }))
})

describe("the end of the scope", () => {
  it.live("leaves no process, in whatever state the environments are", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const lambda = yield* make("sleeps", { externalExtension: true, timeout: "20 seconds" }).pipe(
        Scope.provide(scope)
      )
      yield* lambda.invoke({ millis: 0 })
      const busy = yield* Effect.forkChild(Effect.exit(lambda.invoke({ millis: 10_000 })), { startImmediately: true })
      const starting = yield* Effect.forkChild(Effect.exit(lambda.invoke({ millis: 0 })), { startImmediately: true })
      const pids = (yield* lambda.environments).map(({ pid }) => pid)
      yield* Scope.close(scope, Exit.void)
      for (const pid of pids) assert.strictEqual(stateOf(pid), "gone")
      assert.isTrue(Exit.isFailure(yield* Fiber.join(busy)))
      assert.isTrue(Exit.isFailure(yield* Fiber.join(starting)))
      assert.deepInclude(yield* failure(lambda.invoke()), { _tag: "LocalLambdaFailed" })
    }))

  it.live("also leaves none when the program is killed", () =>
    Effect.gen(function*() {
      const folder = Fs.mkdtempSync(Path.join(Os.tmpdir(), "warden-"))
      yield* Effect.addFinalizer(() => Effect.sync(() => Fs.rmSync(folder, { recursive: true })))
      const program = spawn(process.execPath, [
        "--input-type=module-typescript",
        "--eval",
        `import * as Effect from "effect/Effect"
         import { LocalLambda } from ${JSON.stringify(new URL("../../src/testing/index.ts", import.meta.url).href)}
         await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
           const lambda = yield* LocalLambda.make({ handler: ${JSON.stringify(`${module}#count`)} })
           yield* lambda.invoke()
           process.stdout.write((yield* lambda.environments)[0].pid + "\\n")
           yield* Effect.never
         })))`
      ], { stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, TMPDIR: folder }, cwd: process.cwd() })
      yield* Effect.addFinalizer(() => Effect.sync(() => program.kill("SIGKILL")))
      const pid = yield* Effect.callback<number>((resume) => {
        program.stdout.once("data", (line: Buffer) => resume(Effect.succeed(Number(line))))
      })
      yield* eventually("it is frozen", Effect.sync(() => stateOf(pid) === "T"))
      program.kill("SIGKILL")
      yield* eventually("it is gone", Effect.sync(() => stateOf(pid) === "gone"))
    }))
})
