/** The shape that AWS Lambda calls, and what has to be arranged with it beforehand. */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Life } from "./environmentLife.ts"
import * as LambdaExtension from "./lambdaExtension.ts"
import * as Logbook from "./logbook.ts"
import * as Termination from "./termination.ts"

export interface Context {
  readonly awsRequestId: string
  readonly getRemainingTimeInMillis: () => number
}

interface Environment<R> {
  readonly runExit: <A, E>(
    effect: Effect.Effect<A, E, R>,
    options: {
      readonly deadline: number | undefined
      readonly invocation: { readonly id: string | undefined; readonly event: unknown; readonly context: unknown }
    }
  ) => Promise<Exit.Exit<A, unknown>>
}

/** Before Node 24, a handler may be answered for only when nothing is left to do, sessions that idle included. */
export const answerAtOnce = (context: object): void => {
  if ("callbackWaitsForEmptyEventLoop" in context) context.callbackWaitsForEmptyEventLoop = false
}

/** Unit tests call handlers with half a context, or with none. */
export const particularsOf = (event: unknown, context: Partial<Context> | undefined) => ({
  deadline: context?.getRemainingTimeInMillis?.(),
  invocation: { id: context?.awsRequestId, event, context }
})

/** Two parameters: the runtime of Node 24 takes a function with three for one with a callback, and refuses it. */
export const make = <Event, C extends Context, A, E, R>(
  environment: Environment<R>,
  handler: (event: Event, context: C) => Effect.Effect<A, E, R>,
  encodeError: (cause: Cause.Cause<unknown>, id: string | undefined) => Error
) =>
(event: Event, context: C): Promise<A> => {
  if (context !== undefined) answerAtOnce(context)
  const particulars = particularsOf(event, context)
  return environment.runExit(Effect.suspend(() => handler(event, context)), particulars).then((exit) => {
    if (Exit.isSuccess(exit)) return exit.value
    throw encodeError(exit.cause, particulars.invocation.id)
  })
}

/** Has the environment end when Lambda says so, and Lambda say so. */
export const prepareEnd = (
  { dispose, tell }: Pick<Life<never, unknown, never, object, unknown>, "dispose" | "tell">,
  withExtension: boolean
): Promise<void> => {
  if (!Termination.isAnnounced()) return Promise.resolve()
  Termination.atSigterm(dispose)
  if (!withExtension) return Promise.resolve()
  return LambdaExtension.register().then((trouble) =>
    trouble === undefined
      ? undefined
      : tell(Logbook.write("extensionNotRegistered", { "error.type": trouble }))
  )
}
