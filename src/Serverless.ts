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
import * as LambdaAnswer from "./internal/lambdaAnswer.ts"
import * as LambdaFunction from "./internal/lambdaFunction.ts"
import { millis } from "./internal/millis.ts"
import * as ServerlessSettings from "./internal/serverlessSettings.ts"

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
  const settings = ServerlessSettings.settle(options, (bad) => new Errors.InvalidOption(bad))
  const life = EnvironmentLife.make(layer, settings, vocabulary, home)
  const runExit: Environment<R, E>["runExit"] = (effect, options) =>
    life.run(effect, { ...options, deadline: options?.deadline === undefined ? undefined : timeLeft(options.deadline) })
  const environment: Environment<R, E> = {
    runExit,
    run: (effect, options) =>
      runExit(effect, options).then((exit) => {
        if (Exit.isSuccess(exit)) return exit.value
        throw Cause.squash(exit.cause)
      }),
    resume: life.resume,
    suspend: life.suspend,
    dispose: (within) => life.dispose(within === undefined ? undefined : millis(within)),
    ready: life.ready
  }
  lives.set(environment, life)
  return environment
}

/** What is left of a time that has passed is less than nothing: that is no mistake. */
const timeLeft = (deadline: Duration.Input): number => {
  const left = millis(deadline)
  if (!Number.isNaN(left)) return left
  throw new Errors.InvalidOption({ option: "deadline", value: deadline, allowed: "a duration" })
}

/**
 * An environment for a layer. Nothing is built before the first run, unless it is to be `warm`. Throws `InvalidOption` for an
 * impossible option.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <R, E>(layer: Layer.Layer<R, E>, options: EnvironmentOptions = {}): Environment<R, E> =>
  open(layer, options, Context.empty())

/**
 * {@link make} inside an Effect program, or a test: it goes by the clock, the loggers and whatever else the context has, and is
 * disposed of when the scope closes.
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
    (environment) => Effect.promise(() => environment.dispose())
  )

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
 * How a handler for Lambda behaves.
 *
 * @category options
 * @since 0.1.0
 */
export interface LambdaOptions<R, E> extends Omit<EnvironmentOptions, "shutdown"> {
  /** What the handler needs; or an environment, which several handlers share, and whose own options then count. */
  readonly layer: Layer.Layer<R, E> | Environment<R, E>
  /** What is answered to a failure. Default: its name, a discreet message, and the SQLSTATE where there is one. */
  readonly encodeError?: ((cause: Cause.Cause<unknown>) => Error) | undefined
  readonly shutdown?: {
    /** How long the end may take. Default: 200 ms. */
    readonly within?: Duration.Input | undefined
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
 * @category adapters
 * @since 0.1.0
 */
export const lambda = <Event, A, E, R, EL = never, C extends LambdaContext = LambdaContext>(
  handler: (event: Event, context: C) => Effect.Effect<A, E, NoInfer<R> | Scope.Scope | Invocation>,
  options: LambdaOptions<R, EL>
): LambdaHandler<Event, C, A> => {
  const { encodeError = LambdaAnswer.encode } = options
  const { environment, ready } = initialised(options)
  const handle = LambdaFunction.make(environment, handler, encodeError)
  return Object.assign(handle, { ready })
}

/** What has to be done while the module of a handler is loaded. */
const initialised = <R, E>(
  { encodeError: _, layer, shutdown, ...rest }: LambdaOptions<R, E>
): { readonly environment: Environment<R, E>; readonly ready: Promise<void> } => {
  const environment = Layer.isLayer(layer)
    ? make(layer as Layer.Layer<R, E>, { ...rest, shutdown })
    : layer as Environment<R, E>
  const registered = LambdaFunction.prepareEnd(lives.get(environment)!, shutdown?.internalExtension === true)
  return { environment, ready: Promise.all([environment.ready, registered]).then(() => {}) }
}
