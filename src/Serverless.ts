/**
 * Runs effects in an environment that is frozen, thawed and killed without being asked: AWS Lambda and its like.
 *
 * {@link make} is the core: a layer that is built once and healed when its build has failed, invocations with a scope and a
 * deadline of their own, sessions that are looked at after a freeze, and an end that takes no longer than it may. The adapters
 * give it the shapes that platforms ask for.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import * as Errors from "./Errors.ts"
import * as EnvironmentLife from "./internal/environmentLife.ts"
import * as FailedInvocation from "./internal/failedInvocation.ts"
import * as HttpFailure from "./internal/httpFailure.ts"
import * as LambdaAnswer from "./internal/lambdaAnswer.ts"
import * as LambdaFunction from "./internal/lambdaFunction.ts"
import { millis } from "./internal/millis.ts"
import * as Misfit from "./internal/misfit.ts"
import * as ProcessSignals from "./internal/processSignals.ts"
import * as ResponseStream from "./internal/responseStream.ts"
import * as ServerlessPreset from "./internal/serverlessPreset.ts"
import * as ServerlessSettings from "./internal/serverlessSettings.ts"
import * as VercelPools from "./internal/vercelPool.ts"
import * as WebHandler from "./internal/webHandler.ts"

/**
 * How an environment lives.
 *
 * @category options
 * @since 0.1.0
 */
export interface EnvironmentOptions extends ServerlessSettings.EnvironmentOptions {}

/**
 * What one invocation brings along.
 *
 * @category options
 * @since 0.1.0
 */
export interface RunOptions {
  /** When the platform ends the invocation, from now. Its work gets this, less the `margin`. Default: no deadline. */
  readonly deadline?: Duration.Input | undefined
  /** Interrupts the work when it is aborted. */
  readonly signal?: AbortSignal | undefined
  /** What the work finds in {@link Invocation}. Default: a number that counts up, and nothing else. */
  readonly invocation?: {
    readonly id?: string | undefined
    readonly event?: unknown
    readonly context?: unknown
  } | undefined
}

/**
 * The invocation that an effect runs in.
 *
 * - `id`: the platform's, else a number that counts up.
 * - `event`, `context`: what the platform has called the function with.
 * - `deadlineAt`: wall-clock milliseconds by which all work has to be done, the margin taken off; `Infinity` without a deadline.
 * - `isCold`: whether it is the first of its environment.
 *
 * @category services
 * @since 0.1.0
 */
export class Invocation extends Context.Service<Invocation, {
  readonly id: string
  readonly event: unknown
  readonly context: unknown
  readonly deadlineAt: number
  readonly isCold: boolean
}>()("effect-pg-pool/Invocation") {}

/**
 * What an environment adds to the errors of the work.
 *
 * @category errors
 * @since 0.1.0
 */
export type RunError = Errors.InvocationTimeout | Errors.PoolClosed

/**
 * A layer and the invocations that use it, from the first one to the end of the process.
 *
 * @category models
 * @since 0.1.0
 */
export interface Environment<in R, out E> {
  /**
   * Runs an effect with the layer, which is built if need be, in a scope of its own that is closed before the promise settles. A
   * layer whose build has failed is built again by the next run. Rejects with what the effect failed with, with a
   * defect, with `InvocationTimeout` at the deadline, or with `PoolClosed` after `dispose`.
   */
  readonly run: <A, E2>(
    effect: Effect.Effect<A, E2, R | Scope.Scope | Invocation>,
    options?: RunOptions
  ) => Promise<A>
  /** The same as an `Exit`: it never rejects. */
  readonly runExit: <A, E2>(
    effect: Effect.Effect<A, E2, R | Scope.Scope | Invocation>,
    options?: RunOptions
  ) => Promise<Exit.Exit<A, E | E2 | RunError>>
  /**
   * Destroys the sessions that have been idle for longer than `staleAfter`, and never one that is lent. `run` does so by
   * itself after a freeze.
   */
  readonly resume: () => Promise<void>
  /** Closes the sessions that nobody uses: what the release policy `"close"` does. */
  readonly suspend: () => Promise<void>
  /**
   * Ends the environment: runs under way get three quarters of `within` and are then interrupted, the layer's scope is
   * closed, and sockets that are left shortly before the end are destroyed. Default: `shutdown.within`.
   */
  readonly dispose: (within?: Duration.Input) => Promise<void>
  /** Resolves when the environment is `warm`, or cannot be: at once if it was not asked to. It never rejects. */
  readonly ready: Promise<void>
}

const lives = new WeakMap<
  object,
  EnvironmentLife.Life<never, unknown, Invocation, Errors.InvocationTimeout, Errors.PoolClosed>
>()

const vocabulary = {
  invocation: Invocation,
  timedOut: (allowed: number, effect: Errors.Outcome) => new Errors.InvocationTimeout({ allowed, effect }),
  closed: () => new Errors.PoolClosed()
}

const open = <R, E>(
  layer: Layer.Layer<R, E>,
  options: EnvironmentOptions,
  home: Context.Context<never>
): Environment<R, E> => {
  const isLayer: boolean = Layer.isLayer(layer)
  if (!isLayer) throw misfit("layer", layer, "a Layer")
  const settings = ServerlessSettings.settle(options, (bad) => new Errors.InvalidOption(bad))
  const life = EnvironmentLife.make(layer, settings, vocabulary, home)
  const runExit: Environment<R, E>["runExit"] = (given, options) => {
    const effect = effectOf("effect", given, "an Effect")
    const deadline = options?.deadline === undefined ? Infinity : millis(options.deadline)
    // What is left of a time that has passed is less than nothing: that is no mistake.
    return Number.isNaN(deadline)
      ? Promise.resolve(Exit.die(noDuration("deadline", options?.deadline)))
      : life.run(effect, { ...options, deadline })
  }
  const environment: Environment<R, E> = {
    runExit,
    run: (effect, options) =>
      runExit(effect, options).then((exit) => {
        if (Exit.isSuccess(exit)) return exit.value
        throw Cause.squash(exit.cause)
      }),
    resume: life.resume,
    suspend: life.suspend,
    dispose: (within) => {
      const allowed = within === undefined ? undefined : millis(within)
      return Number.isNaN(allowed) ? Promise.reject(noDuration("within", within)) : life.dispose(allowed)
    },
    ready: life.ready
  }
  lives.set(environment, life)
  return environment
}

const noDuration = (option: string, value: unknown) =>
  new Errors.InvalidOption({ option, value, allowed: "a duration" })

const misfit = (option: string, value: unknown, allowed: string) =>
  new Errors.InvalidOption({ option, value: Misfit.kindOf(value), allowed })

/** Programs without types return promises. */
const effectOf = <A, E, R>(option: string, given: Effect.Effect<A, E, R>, allowed: string): Effect.Effect<A, E, R> => {
  if (Effect.isEffect(given)) return given
  Misfit.hush(given)
  // The caller's types know nothing of it, as they do not know of what was given.
  return Effect.fail(misfit(option, given, allowed)) as Effect.Effect<never, never>
}

/** A handler that is looked at as it answers: its effect, and what that succeeds with. */
const checked = <Args extends ReadonlyArray<unknown>, A, E, R>(
  handler: (...args: Args) => Effect.Effect<A, E, R>,
  isAnswer: (answer: A) => boolean = () => true,
  answer = ""
) =>
(...args: Args): Effect.Effect<A, E | Errors.InvalidOption, R> =>
  Effect.filterOrFail(
    effectOf("handler", handler(...args), "a function that returns an Effect: Effect.tryPromise(() => ...)"),
    isAnswer,
    (given) => misfit("handler", given, `a function whose Effect succeeds with ${answer}`)
  )

/**
 * An environment for a layer: one per process, made where its module is loaded. Nothing is built before the first run, unless
 * it is to be `warm`. Throws `InvalidOption` for an impossible option.
 *
 * Time passes for a run as follows, for a platform that kills after 3 seconds and the `margin` of 250 ms:
 *
 * | Milliseconds | What happens                                                                                           |
 * | ------------ | ------------------------------------------------------------------------------------------------------ |
 * | 0            | after a pause of more than a second sessions are looked at; the layer is built if need be; work begins |
 * | 2750         | the work is interrupted: its statement is cancelled, its transaction rolled back, its scope closed     |
 * | 2875         | sockets that are still busy are destroyed                                                              |
 * | 2937         | the run is answered, and what has ignored all of it is told of in the log                              |
 *
 * @example
 * ```ts
 * import * as Effect from "effect/Effect"
 * import { SqlClient } from "effect/sql"
 * import * as Pg from "effect-pg-pool"
 *
 * const environment = Pg.Serverless.make(Pg.layer({ max: 2 }))
 *
 * // What some platform calls, with a time limit of 30 seconds.
 * export const answer = (id: number) =>
 *   environment.run(
 *     Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT * FROM orders WHERE id = ${id}`),
 *     { deadline: "30 seconds" }
 *   )
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <R, E>(layer: Layer.Layer<R, E>, options: EnvironmentOptions = {}): Environment<R, E> =>
  open(layer, options, Context.empty())

/**
 * {@link make} inside an Effect program, or a test: it goes by the clock, the loggers and whatever else the context has, and is
 * disposed of when the scope closes, which interrupts what still runs.
 *
 * @category constructors
 * @since 0.1.0
 */
export const environment = <R, E>(
  layer: Layer.Layer<R, E>,
  options: EnvironmentOptions = {}
): Effect.Effect<Environment<R, E>, Errors.InvalidOption, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.contextWith((context: Context.Context<never>) =>
      Effect.try({
        try: () => open(layer, options, Context.omit(Tracer.ParentSpan)(context) as Context.Context<never>),
        catch: (error) => error as Errors.InvalidOption
      })
    ),
    // As everywhere in a scope, what still runs when it closes is interrupted.
    (environment) => Effect.promise(() => lives.get(environment)!.dispose(undefined, 0))
  )

/**
 * Options of the pool of one environment, to be spread before a program's own. The environment is frozen between
 * invocations, killed without a word, and one of many that share a server.
 *
 * | option           | value                           | because                                                             |
 * | ---------------- | ------------------------------- | ------------------------------------------------------------------- |
 * | `max`, `min`     | 2, 0                            | one invocation at a time; a second query beside an open transaction |
 * | `idleTimeout`    | 5 minutes                       | the session is there for the next invocation                        |
 * | `closeTimeout`   | 200 ms                          | the platform waits for the end of an environment for 300 ms or so   |
 * | `acquireTimeout` | 10 seconds                      | a deadline, where the platform gives one, comes first               |
 * | `whenServerFull` | `"wait"`                        | environments come and go, and with them their sessions              |
 * | `serverReaping`  | idle sessions after 6 minutes   | nobody says goodbye for an environment that was killed              |
 * |                  | keepalive after 5 min, 3 x 10 s | nor for one whose machine is gone                                   |
 * |                  | a look at the client each 10 s  | so that what it had asked for does not run to its end               |
 * | `breaker`        | open for 1 second, 10 at most   | one caller at a time is no crowd that a new server must be kept from |
 *
 * For many environments on one server, `Pool.sizeForFleet` after it lowers `max` to what the server has room for.
 *
 * @example
 * ```ts
 * import * as Pg from "effect-pg-pool"
 *
 * const DatabaseLive = Pg.layer({
 *   ...Pg.Serverless.preset(),
 *   ...Pg.Pool.sizeForFleet({ environments: 100 })
 * })
 * ```
 *
 * @category options
 * @since 0.1.0
 */
export const preset = (): typeof ServerlessPreset.preset => ServerlessPreset.preset

/**
 * What a handler needs to know of Lambda's second argument.
 *
 * @category models
 * @since 0.1.0
 */
export interface LambdaContext {
  readonly awsRequestId: string
  readonly getRemainingTimeInMillis: () => number
}

/**
 * What a handler needs: a layer, with the options of the environment that is made for it; or an environment, which several
 * handlers share. Its options are then those that it was made with, and others are refused with `InvalidOption`.
 *
 * @category options
 * @since 0.1.0
 */
export type Home<R, E> = ({ readonly layer: Layer.Layer<R, E> } & EnvironmentOptions) | {
  readonly layer: Environment<R, E>
  readonly margin?: undefined
  readonly staleAfter?: undefined
  readonly release?: undefined
  readonly warm?: undefined
  readonly shutdown?: { readonly within?: undefined } | undefined
}

/**
 * How a handler for Lambda behaves.
 *
 * @category options
 * @since 0.1.0
 */
export type LambdaOptions<R, E> = Home<R, E> & {
  /**
   * What is answered to a failure. Default: its name, a discreet message, and the SQLSTATE where there is one; each failure is
   * logged then (`db.invocation.failed`).
   */
  readonly encodeError?: ((cause: Cause.Cause<unknown>) => Error) | undefined
  readonly shutdown?: {
    /**
     * Registers an extension, so that Lambda sends SIGTERM and waits for 500 ms before it kills the process. Default:
     * false: then it comes only if another extension is there.
     */
    readonly internalExtension?: boolean | undefined
  } | undefined
}

/**
 * A function that Lambda can call. It declares two parameters: Node 24 refuses more.
 *
 * @category models
 * @since 0.1.0
 */
export interface LambdaHandler<in Event, in C, out A> {
  (event: Event, context: C): Promise<A>
  /** Resolves when what is to be done before the first invocation is done (`warm`, `internalExtension`). It never rejects. */
  readonly ready: Promise<void>
}

/**
 * A handler for AWS Lambda out of an effect.
 *
 * - The layer is built by the first invocation, once per environment, and again if that has failed.
 * - Each invocation has a scope of its own, {@link Invocation}, and the deadline that Lambda's context tells, less the `margin`.
 *   What is not done by then is interrupted and answered with `InvocationTimeout`: see {@link make}.
 * - It rejects with an `Error` that has the name and a discreet message of what went wrong, and `sqlState` where the server
 *   has said one.
 * - At SIGTERM the environment is disposed of, and the process exits, unless somebody else listens for that, too. Lambda sends it
 *   where an extension is registered: `shutdown.internalExtension` registers one.
 * - It is a plain function of two parameters, as `middy` and others take it.
 *
 * Neither `warm` nor `internalExtension` is done when the module is loaded: await `ready` at its top level.
 *
 * @example
 * ```ts
 * import * as Effect from "effect/Effect"
 * import { SqlClient } from "effect/sql"
 * import * as Pg from "effect-pg-pool"
 *
 * export const handler = Pg.Serverless.lambda(
 *   (event: { readonly id: number }) =>
 *     Effect.gen(function*() {
 *       const sql = yield* SqlClient.SqlClient
 *       const [order] = yield* sql`SELECT * FROM orders WHERE id = ${event.id}`
 *       return order
 *     }),
 *   { layer: Pg.layerConfig(), warm: true, shutdown: { internalExtension: true } }
 * )
 *
 * await handler.ready
 * ```
 *
 * @category adapters
 * @since 0.1.0
 */
export const lambda = <Event, A, E, R, EL = never, C extends LambdaContext = LambdaContext>(
  handler: (event: Event, context: C) => Effect.Effect<A, E, NoInfer<R> | Scope.Scope | Invocation>,
  options: LambdaOptions<R, EL>
): LambdaHandler<Event, C, A> => {
  const { encode, environment, ready } = initialised(options)
  const handle = LambdaFunction.make(environment, checked(handler), encode)
  return Object.assign(handle, { ready })
}

/** What has to be done while the module of a handler is loaded. */
const initialised = <R, E>(options: LambdaOptions<R, E>) => {
  const { encodeError, layer, shutdown: { internalExtension, ...shutdown } = {}, ...rest } = given(options)
  const environment = environmentOf(layer, { ...rest, shutdown })
  const life = lifeOf(environment)
  const registered = LambdaFunction.prepareEnd(life, internalExtension === true)
  return {
    environment,
    ready: Promise.all([environment.ready, registered]).then(() => {}),
    encode: (cause: Cause.Cause<unknown>, id: string | undefined): Error => {
      if (encodeError !== undefined) return encodeError(cause)
      void life.tell(FailedInvocation.line(cause, id))
      return LambdaAnswer.encode(cause)
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Answers that are streams
// ---------------------------------------------------------------------------------------------------------------------

/**
 * What a handler of {@link lambdaStream} answers with: a body, or a body and what stands above it where the function answers
 * HTTP requests (a function URL, an API Gateway). Written out, with a `Stream` of `string | Uint8Array`:
 *
 * ```text
 * Stream | { metadata?: { statusCode?: number, headers?: Record<string, string>, cookies?: Array<string> }, body: Stream }
 * ```
 *
 * @category models
 * @since 0.1.0
 */
export type StreamedAnswer<E, R> = ResponseStream.Answer<E, R>

/**
 * What AWS's runtime hands to a handler that streams: the part of a `Writable` of Node that it lets through.
 *
 * @category models
 * @since 0.1.0
 */
export interface LambdaResponseStream extends ResponseStream.ResponseStream {}

/**
 * A function that Lambda can call with a stream to write to. It declares three parameters, by which the runtime knows it.
 *
 * @category models
 * @since 0.1.0
 */
export interface LambdaStreamHandler<in Event, in C> {
  (event: Event, responseStream: LambdaResponseStream, context: C): Promise<void>
  /** As that of {@link LambdaHandler}. */
  readonly ready: Promise<void>
}

/**
 * A handler for AWS Lambda that answers bit by bit: its first rows are on their way while the last ones are still read.
 *
 * - The body runs inside the invocation: in its scope, with its services, until its deadline. It is read as fast as the
 *   client takes it.
 * - The scope is closed before the answer ends: nothing of it is left running when Lambda freezes the process.
 * - Nothing is sent before the body yields its first chunk, the `metadata` neither; what fails until then has left no trace, and
 *   rejects as it does with {@link lambda}. An empty first chunk sends the `metadata` at once.
 * - What fails later, the deadline included, rejects as well; the client sees an answer that breaks off.
 * - A client that leaves interrupts the work, where the platform tells of it. (Lambda does not: it runs on.)
 *
 * AWS's runtime marks such functions by its global `awslambda.streamifyResponse`, and that is done here; where there is no such
 * global any `Writable` of Node will do for the stream.
 *
 * @example
 * ```ts
 * import * as Pg from "effect-pg-pool"
 * import * as Effect from "effect/Effect"
 * import { SqlClient } from "effect/sql"
 * import * as Stream from "effect/Stream"
 *
 * export const handler = Pg.Serverless.lambdaStream(
 *   (event: { readonly since: string }) =>
 *     Effect.map(SqlClient.SqlClient, (sql) => ({
 *       metadata: { statusCode: 200, headers: { "content-type": "application/x-ndjson" } },
 *       body: Stream.map(
 *         sql`SELECT id, total FROM orders WHERE created_at > ${event.since}`.stream,
 *         (row) => `${JSON.stringify(row)}\n`
 *       )
 *     })),
 *   { layer: Pg.layer() }
 * )
 * ```
 *
 * @category adapters
 * @since 0.1.0
 */
export const lambdaStream = <Event, E, R, EB = never, EL = never, C extends LambdaContext = LambdaContext>(
  handler: (event: Event, context: C) => Effect.Effect<
    StreamedAnswer<EB, NoInfer<R> | Scope.Scope | Invocation>,
    E,
    NoInfer<R> | Scope.Scope | Invocation
  >,
  options: LambdaOptions<R, EL>
): LambdaStreamHandler<Event, C> => {
  const { encode, environment, ready } = initialised(options)
  // Whoever has AWS's types has its global, too, with other types for the stream.
  const { awslambda = {} } = globalThis as unknown as { readonly awslambda?: ResponseStream.AwsLambda }
  return Object.assign(
    ResponseStream.make(
      environment,
      checked(handler, ResponseStream.isAnswer, "a Stream, or with { metadata, body } whose body is one"),
      encode,
      awslambda
    ),
    { ready }
  )
}

// ---------------------------------------------------------------------------------------------------------------------
// Standard requests
// ---------------------------------------------------------------------------------------------------------------------

/**
 * How a handler of standard requests behaves.
 *
 * @category options
 * @since 0.1.0
 */
export type WebOptions<R, E> = Home<R, E> & {
  /**
   * When the platform ends a request, from its beginning: the time limit of the function (Vercel's `maxDuration`, Cloud Run's
   * request timeout). A function is asked once per request. Default: no deadline.
   */
  readonly deadline?: Duration.Input | ((request: Request) => Duration.Input | undefined) | undefined
  /**
   * Where a platform has this as a function of its own, as `@vercel/functions` does; else it comes with the request. It is called
   * with a promise of the end of each body that goes on for longer than its handler.
   */
  readonly waitUntil?: ((promise: Promise<unknown>) => void) | undefined
  /** What is answered to a failure, and is not logged then. Default: as {@link web} says. */
  readonly encodeError?: ((cause: Cause.Cause<unknown>) => Response) | undefined
}

/**
 * What platforms pass beside a request.
 *
 * @category models
 * @since 0.1.0
 */
export interface WebContext extends WebHandler.WebContext {}

/**
 * A handler of standard requests, for Vercel, Bun, Deno, and for Cloud Run, Lambda Web Adapter and any other container behind
 * a few lines of `node:http` (`examples/web-handler.ts`).
 *
 * - A request that is aborted (`request.signal`) interrupts the work.
 * - A body that is at hand as a whole is answered with after the scope was closed. One that is a stream keeps the scope open
 *   until the client has read or left it, within the deadline, and `waitUntil` is called with a promise of that. Its status is
 *   sent when it yields its first chunk (that of `text/event-stream` at once), so an error until then has a status of its own.
 * - HEAD is answered without the body, which is not read.
 *
 * What fails is answered with a JSON object, `error` with the name of the error and `sqlState` where there is one, and with
 *
 * | Status | Error                                                                                                       |
 * | ------ | ----------------------------------------------------------------------------------------------------------- |
 * | 504    | `InvocationTimeout`, `DeadlineExceeded`, `StatementTimeout`                                                 |
 * | 503    | the other errors of this library after which nothing is applied; `Retry-After` where a circuit knows when   |
 * | 500    | all else, `OutcomeUnknown` too: proxies repeat what is answered with 503                                    |
 *
 * and logged (`db.invocation.failed`).
 *
 * @example
 * ```ts
 * import * as Pg from "effect-pg-pool"
 * import * as Effect from "effect/Effect"
 * import { SqlClient } from "effect/sql"
 *
 * export default {
 *   fetch: Pg.Serverless.web(
 *     (request) =>
 *       Effect.gen(function*() {
 *         const sql = yield* SqlClient.SqlClient
 *         const id = new URL(request.url).searchParams.get("id")
 *         const [order] = yield* sql`SELECT * FROM orders WHERE id = ${id}`
 *         return order === undefined ? new Response(null, { status: 404 }) : Response.json(order)
 *       }),
 *     { layer: Pg.layer(), deadline: "60 seconds" }
 *   )
 * }
 * ```
 *
 * @example
 * An app of `effect/http` inside: its routes, its errors, and its streams within the scope and the deadline of the request.
 *
 * ```ts
 * import * as Pg from "effect-pg-pool"
 * import * as Context from "effect/Context"
 * import * as Effect from "effect/Effect"
 * import { HttpEffect, HttpRouter, HttpServerRequest, HttpServerResponse } from "effect/http"
 * import * as Layer from "effect/Layer"
 * import { SqlClient } from "effect/sql"
 *
 * const Orders = HttpRouter.add(
 *   "GET",
 *   "/orders",
 *   Effect.gen(function*() {
 *     const sql = yield* SqlClient.SqlClient
 *     return yield* HttpServerResponse.json(yield* sql`SELECT * FROM orders`)
 *   })
 * )
 *
 * const routes = HttpRouter.toHttpEffect(Orders)
 * class App extends Context.Service<App, Effect.Success<typeof routes>>()("App") {}
 *
 * export const fetch = Pg.Serverless.web(
 *   (request) =>
 *     Effect.gen(function*() {
 *       const app = yield* App
 *       const context = yield* Effect.context<never>()
 *       let answer = new Response(null, { status: 500 })
 *       yield* HttpEffect.toHandled(app, (_, response) =>
 *         Effect.sync(() => {
 *           answer = HttpServerResponse.toWeb(HttpEffect.scopeTransferToStream(response), { context })
 *         })).pipe(
 *           Effect.provideService(HttpServerRequest.HttpServerRequest, HttpServerRequest.fromWeb(request)),
 *           Effect.ignoreCause // It has been answered, and told of.
 *         )
 *       return answer
 *     }),
 *   { layer: Layer.effect(App, routes).pipe(Layer.provideMerge(Pg.layer())), deadline: "60 seconds" }
 * )
 * ```
 *
 * @category adapters
 * @since 0.1.0
 */
export const web = <E, R, EL = never>(
  handler: (request: Request) => Effect.Effect<Response, E, NoInfer<R> | Scope.Scope | Invocation>,
  options: WebOptions<R, EL>
): (request: Request, context?: WebContext) => Promise<Response> => {
  const { deadline, encodeError, layer, waitUntil, ...rest } = given(options)
  const environment = environmentOf(layer, rest)
  const { tell } = lifeOf(environment)
  const failed = FailedInvocation.limited()
  return WebHandler.make(
    environment,
    checked(handler, WebHandler.isResponse, "a Response"),
    { deadline, waitUntil },
    {
      answerOf: encodeError ?? HttpFailure.answer,
      errorOf: LambdaAnswer.encode,
      report: (cause, isUnderWay) => {
        if (encodeError !== undefined && !isUnderWay) return
        // A client that has left is no failure.
        if (!Cause.hasInterruptsOnly(cause)) void tell(failed(cause))
      }
    }
  )
}

// ---------------------------------------------------------------------------------------------------------------------
// Platforms
// ---------------------------------------------------------------------------------------------------------------------

/**
 * What `attachDatabasePool` of `@vercel/functions` takes for a pool.
 *
 * @category models
 * @since 0.1.0
 */
export interface VercelPool extends VercelPools.VercelPool {}

/**
 * The pools of an environment as Vercel knows pools, for `attachDatabasePool`: after the last request the function stays awake
 * until its idle sessions are closed, so that none is left open by a suspended instance.
 *
 * They are closed when no request has come for the pool's `idleTimeout`. That time is paid for: make it short (5 seconds). An
 * environment without a session, or with an infinite `idleTimeout`, keeps nothing awake.
 *
 * @example
 * ```ts
 * import { attachDatabasePool, waitUntil } from "@vercel/functions"
 * import * as Pg from "effect-pg-pool"
 * import * as Effect from "effect/Effect"
 * import { SqlClient } from "effect/sql"
 *
 * const environment = Pg.Serverless.make(Pg.layer({ max: 5, idleTimeout: "5 seconds" }))
 * attachDatabasePool(Pg.Serverless.vercel(environment))
 *
 * export const GET = Pg.Serverless.web(
 *   () =>
 *     Effect.gen(function*() {
 *       const sql = yield* SqlClient.SqlClient
 *       return Response.json(yield* sql`SELECT now()`)
 *     }),
 *   { layer: environment, deadline: "60 seconds", waitUntil }
 * )
 * ```
 *
 * @category adapters
 * @since 0.1.0
 */
export const vercel = <R, E>(environment: Environment<R, E>): VercelPool => VercelPools.make(lifeOf(environment))

/**
 * How a program ends.
 *
 * @category options
 * @since 0.1.0
 */
export type ProcessOptions<R, E> = Home<R, E> & {
  /** How long the end may take from the signal on. Default: 8 seconds, as Cloud Run kills after 10. */
  readonly within?: Duration.Input | undefined
  /** What ends the program. Default: SIGTERM and SIGINT. */
  readonly signals?: ReadonlyArray<ProcessSignals.Signal> | undefined
}

/**
 * Runs a program in a container, from its start to the signal that ends it.
 *
 * - The first signal interrupts the program, whose finalizers run, and closes the layer; sockets that are left when `within`
 *   is nearly over are destroyed. Then the process exits with 128 + the number of the signal (143 for SIGTERM, 130 for
 *   SIGINT). A second signal ends it at once.
 * - A program that comes to its own end closes the layer likewise, and the promise resolves with what it has succeeded with.
 *   Nothing is left that keeps the process alive.
 * - One that fails rejects with its error and sets the exit code 1; a rejection that nobody catches is printed by Node.
 *
 * @example
 * ```ts
 * import * as Pg from "effect-pg-pool"
 * import * as Effect from "effect/Effect"
 * import * as Schedule from "effect/Schedule"
 * import { SqlClient } from "effect/sql"
 *
 * const work = Effect.gen(function*() {
 *   const sql = yield* SqlClient.SqlClient
 *   yield* sql`DELETE FROM sessions WHERE expires_at < now()`
 * })
 *
 * export const main = () =>
 *   Pg.Serverless.process(Effect.repeat(work, Schedule.spaced("1 minute")), { layer: Pg.layer() })
 * ```
 *
 * @category adapters
 * @since 0.1.0
 */
export const process = <A, E, R, EL = never>(
  main: Effect.Effect<A, E, NoInfer<R> | Scope.Scope | Invocation>,
  options: ProcessOptions<R, EL>
): Promise<A> => {
  const { layer, signals = ["SIGTERM", "SIGINT"], within = "8 seconds", ...rest } = given(options)
  const allowed = millis(within)
  if (!(allowed >= 0 && allowed < Infinity)) {
    throw new Errors.InvalidOption({ option: "within", value: within, allowed: "a duration that is finite" })
  }
  return ProcessSignals.run(environmentOf(layer, rest), main, { signals, within: allowed })
}

/** Options of which a program without types has given none, or its layer in their place. */
const given = <O extends object>(options: O): O => options ?? {}

const environmentOf = <R, E>(
  layer: Layer.Layer<R, E> | Environment<R, E>,
  options: EnvironmentOptions
): Environment<R, E> => {
  if (Layer.isLayer(layer)) return make(layer as Layer.Layer<R, E>, options)
  if (!lives.has(layer)) throw misfit("layer", layer, "a Layer, or what Serverless.make returns")
  const { margin, release, shutdown, staleAfter, warm } = options
  const strays = { margin, release, staleAfter, warm, "shutdown.within": shutdown?.within }
  for (const [option, value] of Object.entries(strays)) {
    if (value === undefined) continue
    throw new Errors.InvalidOption({
      option,
      value,
      allowed: "left out: it belongs to Serverless.make, where the environment was made"
    })
  }
  return layer as Environment<R, E>
}

const lifeOf = <R, E>(environment: Environment<R, E>) => {
  const life = lives.get(environment)
  if (life !== undefined) return life
  throw misfit("environment", environment, "what Serverless.make returns")
}
