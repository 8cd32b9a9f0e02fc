/**
 * AWS Lambda on this computer, as far as a handler can tell: its life cycle rather than its cloud. Every execution
 * environment is a process of its own that asks for events over the Runtime API; it is stopped (`SIGSTOP`) between
 * invocations, killed when its time is up, and sent `SIGTERM` only when an extension is there.
 *
 * ```ts run
 * import { Effect } from "effect"
 * import { LocalLambda } from "effect-pg-pool/testing"
 * import assert from "node:assert/strict"
 * import { mkdtempSync, writeFileSync } from "node:fs"
 * import { tmpdir } from "node:os"
 * import { join } from "node:path"
 *
 * const module = join(mkdtempSync(join(tmpdir(), "lambda-")), "hello.mjs")
 * writeFileSync(
 *   module,
 *   `let calls = 0
 *    export const handler = async ({ name }) => ({ greeting: "Hello " + name, call: ++calls })`
 * )
 *
 * const test = Effect.gen(function*() {
 *   const lambda = yield* LocalLambda.make({ handler: `${module}#handler`, timeout: "3 seconds" })
 *   const cold = yield* lambda.invoke({ name: "you" })
 *   assert.deepEqual(cold.payload, { greeting: "Hello you", call: 1 })
 *   // Ten minutes later on its wall clock; the process was stopped meanwhile, and is the same.
 *   const warm = yield* lambda.invoke({ name: "you" }, { after: "10 minutes" })
 *   assert.deepEqual(warm.payload, { greeting: "Hello you", call: 2 })
 *   assert.equal(warm.environment, cold.environment)
 * })
 * await Effect.runPromise(Effect.scoped(test))
 * ```
 *
 * What is as on AWS: initialization within 10 seconds, tried a second time as part of the first invocation; one
 * invocation at a time in an environment, and one more environment for each that comes meanwhile; response streaming;
 * the reset after a time-out or a crash; internal and external extensions; the windows of shutdown; the loop of Node 24's
 * runtime, which refuses handlers with callbacks. What is not: memory and CPU are not limited, nothing is isolated, no
 * role, no `/opt`, and no event source. Time is real, also under a `TestClock`, except for what `after` and `advance`
 * add. Works where there are POSIX signals: not on Windows.
 *
 * Facts: https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Platform from "./lambdaPlatform.ts"
import type { Ending } from "./lambdaSandbox.ts"
import { fileOf } from "./lambdaSandbox.ts"
import type { Answer } from "./runtimeApi.ts"
import * as Warden from "./warden.ts"

// ---------------------------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------------------------

/**
 * The function ended with an error: its handler threw (`errorType` is the error's name), or its process ended under it
 * (`Runtime.ExitError`). After an exit the environment is reset; after an error of the handler it is used again.
 *
 * @category errors
 * @since 0.1.0
 */
export class FunctionError extends Schema.TaggedError<FunctionError>("effect-pg-pool/testing/FunctionError")(
  "FunctionError",
  {
    requestId: Schema.String,
    environment: Schema.Number,
    errorType: Schema.String,
    errorMessage: Schema.String,
    stackTrace: Schema.Array(Schema.String)
  }
) {
  override get message(): string {
    return `The function ended with ${this.errorType}: ${this.errorMessage}\n`
      + `What it wrote meanwhile is in the logs of this LocalLambda.`
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The initialization failed twice: in the phase of its own, and again as part of the invocation. The environment is
 * replaced by a new one.
 *
 * @category errors
 * @since 0.1.0
 */
export class InitError extends Schema.TaggedError<InitError>("effect-pg-pool/testing/InitError")("InitError", {
  environment: Schema.Number,
  errorType: Schema.String,
  errorMessage: Schema.String,
  stackTrace: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return `The function could not be initialized, ${this.errorType}: ${this.errorMessage}\n`
      + `Nothing outside of a handler may throw or take longer than initTimeout.`
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The time of the invocation was up, and the environment has been reset: its processes are gone, and the next
 * invocation starts with a new initialization.
 *
 * @category errors
 * @since 0.1.0
 */
export class TimedOut extends Schema.TaggedError<TimedOut>("effect-pg-pool/testing/TimedOut")("TimedOut", {
  requestId: Schema.String,
  environment: Schema.Number,
  /** Milliseconds. */
  timeout: Schema.Number
}) {
  override get message(): string {
    return `Task timed out after ${(this.timeout / 1000).toFixed(2)} seconds. `
      + `Let the handler answer earlier, or raise the function's timeout.`
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The payload is larger than what Lambda takes, and nothing was started for it. On AWS: `RequestTooLargeException`.
 *
 * @category errors
 * @since 0.1.0
 */
export class RequestTooLarge extends Schema.TaggedError<RequestTooLarge>("effect-pg-pool/testing/RequestTooLarge")(
  "RequestTooLarge",
  {
    /** Bytes of the payload as JSON. */
    size: Schema.Number,
    /** Bytes. */
    limit: Schema.Number
  }
) {
  override get message(): string {
    return `${this.size} byte payload is too large for the RequestResponse invocation type (limit ${this.limit} bytes). `
      + `Put what is large somewhere else, and send where it is.`
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The local Lambda itself could not do what it was asked to.
 *
 * @category errors
 * @since 0.1.0
 */
export class LocalLambdaFailed
  extends Schema.TaggedError<LocalLambdaFailed>("effect-pg-pool/testing/LocalLambdaFailed")(
    "LocalLambdaFailed",
    { operation: Schema.String, detail: Schema.String }
  )
{
  override get message(): string {
    return `The local Lambda could not ${this.operation}: ${this.detail}`
  }
  get isRetryable(): boolean {
    return false
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Models
// ---------------------------------------------------------------------------------------------------------------------

/**
 * The function and its configuration.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * The module, by its absolute path or `file:` URL, and the name of its export: `"/path/module.ts#handler"` or both by
   * name. TypeScript works as far as Node strips its types. The default export name is `handler`.
   */
  readonly handler: string | { readonly module: string | URL; readonly export?: string | undefined }
  /** How long an invocation may take. Default: 3 seconds, as on AWS. */
  readonly timeout?: Duration.Input | undefined
  /** How long the initialization may take. Default: 10 seconds, as on AWS. */
  readonly initTimeout?: Duration.Input | undefined
  /**
   * Environment variables of the function, on top of those that Lambda sets. Nothing is inherited from this process but
   * `PATH`.
   */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** Megabytes that the function is told it has. Nothing enforces them. Default: 128. */
  readonly memory?: number | undefined
  /** The function's name. Default: `"local"`. */
  readonly name?: string | undefined
  /**
   * A program with its arguments that runs the handler in place of the loop that ships with this: any client of the
   * Runtime API. `_HANDLER` and `LAMBDA_TASK_ROOT` say where the handler is.
   */
  readonly runtime?: readonly [string, ...ReadonlyArray<string>] | undefined
  /** Whether an external extension runs beside the runtime, in a process of its own. Default: `false`. */
  readonly externalExtension?: boolean | undefined
  /**
   * How many invocations an environment takes at a time. With more than one it is never frozen, as on Lambda Managed
   * Instances, and the loop starts `workers` threads. Default: 1.
   */
  readonly concurrency?: number | undefined
  /** Worker threads when `concurrency` is above 1. Default: 8 for each CPU, as on AWS. */
  readonly workers?: number | undefined
}

/**
 * One invocation.
 *
 * @category models
 * @since 0.1.0
 */
export interface InvokeOptions {
  /** Another time limit than the function's. */
  readonly timeout?: Duration.Input | undefined
  /** Time that passes on the wall clock before it, while the environments are frozen: `advance`. Default: none. */
  readonly after?: Duration.Input | undefined
}

/**
 * How an environment came to an invocation: as a new one, as one that was kept (frozen, but for managed instances), or as
 * one that had to be initialized again after a time-out or a crash.
 *
 * @category models
 * @since 0.1.0
 */
export type Start = Platform.Start

/**
 * A response.
 *
 * @category models
 * @since 0.1.0
 */
export interface Result {
  readonly requestId: string
  /** The number of the environment, counted from 1. */
  readonly environment: number
  readonly start: Start
  /** The response out of its JSON, or its text when it is none. */
  readonly payload: unknown
  /** Of a streamed HTTP response: its prelude with the status, the headers and the cookies. */
  readonly metadata: unknown
  readonly contentType: string
  /** The response as it came: of a streamed one, each piece with the milliseconds after the event was handed out. */
  readonly chunks: ReadonlyArray<{ readonly after: number; readonly text: string }>
  /** Milliseconds of the initialization; 0 for a warm start. */
  readonly initMillis: number
  /** Milliseconds from the event to the environment's next request for one. */
  readonly millis: number
}

/**
 * An execution environment.
 *
 * - `Starting`: it is being initialized.
 * - `Busy`: an invocation is under way, or an extension is not done with the last one.
 * - `Frozen`: its processes are stopped.
 * - `Idle`: it waits, and runs on (managed instances).
 * - `Reset`: it has no process; the next invocation starts one.
 *
 * @category models
 * @since 0.1.0
 */
export type Environment = Platform.View

/**
 * How an environment was shut down.
 *
 * @category models
 * @since 0.1.0
 */
export type Shutdown = Ending & { readonly environment: number }

/**
 * A line of the log: what the function (`runtime`) and the extension wrote, and what the platform says of them.
 *
 * @category models
 * @since 0.1.0
 */
export type LogLine = Platform.Line

/**
 * A function that can be invoked.
 *
 * @category models
 * @since 0.1.0
 */
export interface LocalLambda {
  /**
   * Invokes the function and waits until the environment rests again. The payload goes through JSON, of which Lambda takes
   * 6 MB. Interruption takes the caller away; the invocation goes on.
   */
  readonly invoke: (
    payload?: unknown,
    options?: InvokeOptions
  ) => Effect.Effect<Result, FunctionError | InitError | TimedOut | RequestTooLarge | LocalLambdaFailed>
  /** Initializes one more environment ahead of any request, as Lambda does for provisioned concurrency and on occasion. */
  readonly provision: Effect.Effect<void, InitError | LocalLambdaFailed>
  /** Lets time pass on the wall clock of all environments. Monotonic clocks and timers do not see it. */
  readonly advance: (by: Duration.Input) => Effect.Effect<void>
  readonly environments: Effect.Effect<ReadonlyArray<Environment>>
  /** Everything that was written so far, oldest first. */
  readonly logs: Effect.Effect<ReadonlyArray<LogLine>>
  /** Stops the processes at once, also in the middle of an invocation; of all environments, or of one. */
  readonly freeze: (environment?: number) => Effect.Effect<void>
  /** Lets them run again, as the next invocation does by itself. */
  readonly thaw: (environment?: number) => Effect.Effect<void>
  /**
   * Ends environments as the platform does when they have been idle for long. Without an extension the runtime is killed
   * at once. With internal ones only it has 500 ms after `SIGTERM`. With an external one it has 300 ms, and everybody
   * together 2 seconds.
   */
  readonly shutdown: (environment?: number) => Effect.Effect<ReadonlyArray<Shutdown>>
  /** Ends environments as when their machine is lost: nobody is told. */
  readonly kill: (environment?: number) => Effect.Effect<void>
}

// ---------------------------------------------------------------------------------------------------------------------
// The clock, the variables, the answers
// ---------------------------------------------------------------------------------------------------------------------

/** The file in which the processes find how far their wall clock is ahead of this computer's. */
const wallClock = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => {
      const directory = Fs.mkdtempSync(Path.join(Os.tmpdir(), "local-lambda-"))
      const path = Path.join(directory, "clock")
      const file = Fs.openSync(path, "w", 0o600)
      return { directory, path, file }
    }),
    ({ directory, file }) =>
      Effect.sync(() => {
        Fs.closeSync(file)
        Fs.rmSync(directory, { recursive: true, force: true })
      })
  ),
  ({ file, path }) => {
    const offset = new Float64Array(1)
    const advance = (millis: number): void => {
      offset[0] = (offset[0] as number) + millis
      Fs.writeSync(file, offset, 0, 8, 0)
    }
    advance(0)
    return { path, advance, now: () => Date.now() + Math.round(offset[0] as number) }
  }
)

interface Handler {
  readonly path: string
  readonly name: string
}

const failed = (operation: string) => (detail: string) => new LocalLambdaFailed({ operation, detail })

const handlerOf = (handler: Options["handler"]): Effect.Effect<Handler, LocalLambdaFailed> => {
  const fail = failed("find the handler")
  const [module, name = "handler"] = typeof handler === "string"
    ? handler.split(/#(?=[^#]*$)/)
    : [handler.module, handler.export]
  const given = String(module)
  const path = given.startsWith("file:") ? fileURLToPath(given) : given
  if (!Path.isAbsolute(path)) {
    return Effect.fail(fail(`${given} is no absolute path. Allowed: "/path/module.ts#handler"`))
  }
  if (!Fs.existsSync(path)) return Effect.fail(fail(`there is no file ${path}`))
  return Effect.succeed({ path, name })
}

const variablesOf = (options: Options, handler: Handler, clock: string): Record<string, string> => {
  const { concurrency = 1, env = {}, memory = 128, name = "local", workers } = options
  return {
    PATH: process.env.PATH ?? "/usr/local/bin:/usr/bin:/bin",
    LANG: "en_US.UTF-8",
    TZ: ":UTC",
    _HANDLER: `${Path.parse(handler.path).name}.${handler.name}`,
    LAMBDA_TASK_ROOT: Path.dirname(handler.path),
    LAMBDA_RUNTIME_DIR: Path.dirname(fileURLToPath(fileOf("lambdaRuntime"))),
    LOCAL_LAMBDA_MODULE: handler.path,
    LOCAL_LAMBDA_EXPORT: handler.name,
    LOCAL_LAMBDA_CLOCK: clock,
    AWS_EXECUTION_ENV: `AWS_Lambda_nodejs${process.versions.node.split(".")[0]}.x`,
    AWS_LAMBDA_FUNCTION_NAME: name,
    AWS_LAMBDA_FUNCTION_VERSION: "$LATEST",
    AWS_LAMBDA_FUNCTION_MEMORY_SIZE: String(memory),
    AWS_LAMBDA_LOG_GROUP_NAME: `/aws/lambda/${name}`,
    AWS_LAMBDA_LOG_STREAM_NAME: "local",
    AWS_LAMBDA_INITIALIZATION_TYPE: concurrency > 1 ? "lambda-managed-instances" : "on-demand",
    AWS_REGION: "us-east-1",
    AWS_DEFAULT_REGION: "us-east-1",
    ...(concurrency > 1 ? { AWS_LAMBDA_MAX_CONCURRENCY: String(concurrency) } : {}),
    ...(workers === undefined ? {} : { AWS_LAMBDA_NODEJS_WORKER_COUNT: String(workers) }),
    ...env,
    // First of all, so that nothing has taken hold of the true clock.
    NODE_OPTIONS: `--import=${fileOf("lambdaClock").href} ${env.NODE_OPTIONS ?? ""}`.trim()
  }
}

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

/** Bytes of an event, as Lambda limits it: https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html */
const maxRequest = 6_291_456

const textOf = (payload: unknown): Effect.Effect<string, RequestTooLarge | LocalLambdaFailed> =>
  Effect.try({
    try: () => JSON.stringify(payload) as string | undefined ?? "null",
    catch: (error) => failed("send the payload")(`it does not go through JSON: ${String(error)}`)
  }).pipe(Effect.flatMap((text) => {
    const size = Buffer.byteLength(text)
    return size > maxRequest ? Effect.fail(new RequestTooLarge({ size, limit: maxRequest })) : Effect.succeed(text)
  }))

const preludeType = "application/vnd.awslambda.http-integration-response"
const delimiter = "\0".repeat(8)

const resultOf = (delivery: Platform.Delivery, answer: Answer): Result => {
  const text = Buffer.concat(answer.chunks.map(({ bytes }) => bytes)).toString()
  const end = answer.contentType === preludeType ? text.indexOf(delimiter) : -1
  return {
    ...delivery,
    payload: parsed(end < 0 ? text : text.slice(end + delimiter.length)),
    metadata: end < 0 ? undefined : parsed(text.slice(0, end)),
    contentType: answer.contentType,
    chunks: answer.chunks.map(({ after, bytes }) => ({ after, text: Buffer.from(bytes).toString() }))
  }
}

const settle = (
  result: Platform.Result
): Effect.Effect<Result, FunctionError | InitError | TimedOut | LocalLambdaFailed> => {
  switch (result._tag) {
    case "Answered": {
      const { answer: { error }, delivery } = result
      if (error === undefined) return Effect.succeed(resultOf(delivery, result.answer))
      const { environment, requestId } = delivery
      const { errorMessage, errorType, trace } = error
      return Effect.fail(new FunctionError({ requestId, environment, errorType, errorMessage, stackTrace: trace }))
    }
    case "Exited": {
      const { delivery: { environment, requestId }, message } = result
      const errorType = "Runtime.ExitError"
      return Effect.fail(
        new FunctionError({ requestId, environment, errorType, errorMessage: message, stackTrace: [] })
      )
    }
    case "TimedOut": {
      const { delivery: { environment, requestId }, timeout } = result
      return Effect.fail(new TimedOut({ requestId, environment, timeout }))
    }
    case "InitFailed": {
      const { environment, error: { errorMessage, errorType, trace } } = result
      return Effect.fail(new InitError({ environment, errorType, errorMessage, stackTrace: trace }))
    }
    case "Broken":
      return Effect.fail(failed("invoke the function")(result.detail))
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Constructor
// ---------------------------------------------------------------------------------------------------------------------

/**
 * A function that can be invoked until the scope closes. Nothing is started before it is invoked. When the scope has
 * closed, no process of it is left and nothing listens; should this process be killed, they are killed too.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<LocalLambda, LocalLambdaFailed, Scope.Scope> {
  if (process.platform === "win32") return yield* failed("start")("it needs SIGSTOP, which Windows does not have")
  const handler = yield* handlerOf(options.handler)
  const clock = yield* wallClock
  const warden = yield* Effect.mapError(Warden.make, ({ message }) => failed("hire its warden")(message))
  const timeout = Duration.toMillis(options.timeout ?? 3000)
  const platform = yield* Effect.acquireRelease(
    Effect.sync(() =>
      Platform.make({
        settings: {
          command: options.runtime ?? [process.execPath, fileURLToPath(fileOf("lambdaRuntime"))],
          env: variablesOf(options, handler, clock.path),
          cwd: Path.dirname(handler.path),
          handler: `${Path.parse(handler.path).name}.${handler.name}`,
          externalExtension: options.externalExtension ?? false,
          warden,
          wallClock: clock.now
        },
        functionArn: `arn:aws:lambda:us-east-1:000000000000:function:${options.name ?? "local"}`,
        initTimeout: Duration.toMillis(options.initTimeout ?? 10_000),
        concurrency: options.concurrency ?? 1
      })
    ),
    ({ close }) => Effect.promise(close)
  )
  const advance = (by: Duration.Input) => Effect.sync(() => clock.advance(Duration.toMillis(by)))
  return {
    invoke: (payload = null, { after, timeout: own } = {}) =>
      Effect.gen(function*() {
        if (after !== undefined) yield* advance(after)
        const limit = own === undefined ? timeout : Duration.toMillis(own)
        const text = yield* textOf(payload)
        return yield* settle(yield* Effect.promise(() => platform.invoke(text, limit)))
      }),
    provision: Effect.gen(function*() {
      const failure = yield* Effect.promise(platform.provision)
      if (failure?._tag === "InitFailed") {
        const { environment, error: { errorMessage, errorType, trace } } = failure
        return yield* new InitError({ environment, errorType, errorMessage, stackTrace: trace })
      }
      if (failure?._tag === "Broken") return yield* failed("provision an environment")(failure.detail)
    }),
    advance,
    environments: Effect.sync(platform.views),
    logs: Effect.sync(platform.lines),
    freeze: (environment) => Effect.sync(() => platform.freeze(environment)),
    thaw: (environment) => Effect.sync(() => platform.thaw(environment)),
    shutdown: (environment) => Effect.promise(() => platform.shutdown(environment)),
    kill: (environment) => Effect.promise(() => platform.kill(environment))
  }
})
