/** Lambda functions that answer bit by bit. */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { read } from "./failure.ts"
import * as Invocation from "./invocation.ts"
import * as LambdaFunction from "./lambdaFunction.ts"

/** What AWS's runtime hands to a handler: the part of a `Writable` of Node that it lets through. */
export interface ResponseStream {
  readonly write: (chunk: string | Uint8Array) => boolean
  readonly end: (onFinish?: () => void) => unknown
  readonly destroy: (error?: Error) => unknown
  readonly on: (event: "drain" | "error" | "close", listener: (error?: Error) => void) => unknown
  readonly off: (event: "drain" | "error" | "close", listener: (error?: Error) => void) => unknown
  readonly setContentType?: ((contentType: string) => void) | undefined
}

/** What stands above the body of an HTTP answer. */
export interface Metadata {
  readonly statusCode?: number | undefined
  readonly headers?: Readonly<Record<string, string>> | undefined
  readonly cookies?: ReadonlyArray<string> | undefined
}

type Body<E, R> = Stream.Stream<string | Uint8Array, E, R>

export type Answer<E, R> = Body<E, R> | { readonly metadata?: Metadata | undefined; readonly body: Body<E, R> }

/** Whether it is one: programs without types may answer with anything. */
export const isAnswer = (answer: unknown): boolean => Stream.isStream(answer) || Stream.isStream(read(answer, "body"))

export type Handler<Event, C> = (event: Event, responseStream: ResponseStream, context: C) => Promise<void>

/** What AWS's runtime brings along as a global. */
export interface AwsLambda {
  readonly streamifyResponse?: (<Event, C>(handler: Handler<Event, C>) => Handler<Event, C>) | undefined
  readonly HttpResponseStream?: {
    readonly from: (responseStream: ResponseStream, metadata: Metadata) => ResponseStream
  } | undefined
}

/** What runs the invocations; a failed one may have any error. */
interface Runner<R> {
  readonly runExit: <A, E>(
    effect: Effect.Effect<A, E, R | Scope.Scope>,
    options: ReturnType<typeof LambdaFunction.particularsOf> & { readonly signal: AbortSignal }
  ) => Promise<Exit.Exit<A, unknown>>
}

const typeWithMetadata = "application/vnd.awslambda.http-integration-response"

/** As https://docs.aws.amazon.com/lambda/latest/dg/response-streaming-tutorial.html has it, for runtimes without a helper. */
const writeMetadata = (responseStream: ResponseStream, metadata: Metadata): ResponseStream => {
  responseStream.setContentType?.(typeWithMetadata)
  responseStream.write(JSON.stringify(metadata))
  responseStream.write(new Uint8Array(8))
  return responseStream
}

const drained = (responseStream: ResponseStream): Effect.Effect<void> =>
  Effect.callback((resume) => {
    const onDrain = () => {
      responseStream.off("drain", onDrain)
      resume(Effect.void)
    }
    responseStream.on("drain", onDrain)
    return Effect.sync(() => responseStream.off("drain", onDrain))
  })

/** As fast as the client takes them. */
const writeAll = (
  responseStream: ResponseStream,
  chunks: ReadonlyArray<string | Uint8Array>,
  from = 0
): Effect.Effect<void> =>
  Effect.suspend(() => {
    for (let index = from; index < chunks.length; index++) {
      if (responseStream.write(chunks[index]!)) continue
      return Effect.andThen(drained(responseStream), writeAll(responseStream, chunks, index + 1))
    }
    return Effect.void
  })

/** `begin` is called when there is something to write: whatever fails before has left no trace in the answer. */
const pour = <E, R>(body: Body<E, R>, begin: () => ResponseStream): Effect.Effect<void, E, R> => {
  let sink: ResponseStream | undefined
  return Stream.runForEachArray(body, (chunks) => writeAll(sink ??= begin(), chunks)).pipe(
    Effect.andThen(Effect.sync(() => {
      sink ??= begin()
    }))
  )
}

/** Whether somebody still listens at the other end. */
const watch = (responseStream: ResponseStream) => {
  const controller = new AbortController()
  let isTrusted = true
  const onError = (error?: Error) => controller.abort(error)
  const onClose = () => {
    if (isTrusted) controller.abort(new Error("The client has left before the whole answer was sent."))
  }
  responseStream.on("error", onError)
  responseStream.on("close", onClose)
  return {
    signal: controller.signal,
    /** An error that nobody listens to would end the process, so that listener stays. */
    stop: () => {
      isTrusted = false
      responseStream.off("close", onClose)
    }
  }
}

/** Milliseconds of what the platform leaves that are kept for telling it that a client was too slow. */
const margin = 250

const tooSlow = () => new Error("The client had not taken the whole answer when the time of the invocation was up.")

/** Succeeds when the last byte is on its way; `left` is what the platform leaves for that. */
const finish = (responseStream: ResponseStream, signal: AbortSignal, left = Infinity): Promise<void> => {
  const flushed = Effect.callback<void, unknown>((resume) => {
    const onGone = () => resume(Effect.fail(signal.reason))
    if (signal.aborted) return onGone()
    signal.addEventListener("abort", onGone, { once: true })
    responseStream.end(() => resume(Effect.void))
  })
  const { allowed } = Invocation.times(0, Math.max(0, left), margin)
  return Effect.runPromise(
    Effect.timeoutOrElse(flushed, { duration: allowed, orElse: () => Effect.fail(tooSlow()) })
  )
}

/**
 * The scope of the invocation is closed before the stream is ended, so that the platform, which may freeze the process
 * then, finds nothing left to do.
 *
 * What fails in the middle rejects. AWS's runtime ends the answer by itself then, with the error in its trailers, and waits
 * for that end: a stream that was destroyed would never have it. Other hosts know no trailers, and a client that was sent
 * less than all can tell only by a connection that breaks.
 */
export const make = <Event, C extends LambdaFunction.Context, E, EB, R>(
  runner: Runner<R>,
  handler: (event: Event, context: C) => Effect.Effect<Answer<EB, R | Scope.Scope>, E, R | Scope.Scope>,
  errorOf: (cause: Cause.Cause<unknown>, id: string | undefined) => Error,
  { HttpResponseStream, streamifyResponse }: AwsLambda
): Handler<Event, C> => {
  const open = (responseStream: ResponseStream, metadata: Metadata | undefined): ResponseStream => {
    if (metadata === undefined) return responseStream
    if (HttpResponseStream === undefined) return writeMetadata(responseStream, metadata)
    const sink = HttpResponseStream.from(responseStream, metadata)
    // AWS's helper waits for a write before it says anything; an answer may have no body.
    sink.write("")
    return sink
  }

  const invoke: Handler<Event, C> = (event, responseStream, context) => {
    if (context !== undefined) LambdaFunction.answerAtOnce(context)
    const client = watch(responseStream)
    let hasBegun = false
    const answer = Effect.suspend(() => handler(event, context)).pipe(
      Effect.flatMap((answer) => {
        const { body, metadata } = Stream.isStream(answer) ? { body: answer, metadata: undefined } : answer
        return pour(body, () => {
          hasBegun = true
          return open(responseStream, metadata)
        })
      })
    )
    const breakOff = (error: Error): never => {
      client.stop()
      if (hasBegun && streamifyResponse === undefined) responseStream.destroy(error)
      throw error
    }
    const particulars = LambdaFunction.particularsOf(event, context)
    return runner.runExit(answer, { ...particulars, signal: client.signal }).then((exit) => {
      if (Exit.isSuccess(exit)) {
        return finish(responseStream, client.signal, context?.getRemainingTimeInMillis?.()).catch(breakOff)
      }
      if (client.signal.aborted) throw client.signal.reason
      return breakOff(errorOf(exit.cause, particulars.invocation.id))
    })
  }
  return streamifyResponse === undefined ? invoke : streamifyResponse(invoke)
}
