/** Answers to standard requests, whose bodies may go on after the answer has been given. */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { read } from "./failure.ts"

/** What a platform passes beside the request. */
export interface WebContext {
  /** Keeps the process from being frozen until the promise has settled. */
  readonly waitUntil?: ((promise: Promise<unknown>) => void) | undefined
}

export interface WebSettings {
  readonly deadline?: Duration.Input | ((request: Request) => Duration.Input | undefined) | undefined
  readonly waitUntil?: WebContext["waitUntil"]
}

/** What runs the requests; a failed one may have any error. */
interface Runner<R> {
  readonly runExit: <A, E>(
    effect: Effect.Effect<A, E, R | Scope.Scope>,
    options: { readonly deadline?: Duration.Input | undefined; readonly signal: AbortSignal }
  ) => Promise<Exit.Exit<A, unknown>>
}

type Reader = ReadableStreamDefaultReader<Uint8Array>
type Read = Awaited<ReturnType<Reader["read"]>>

/** Of whichever realm. What Effect calls a response has no such method. */
export const isResponse = (answer: unknown): boolean => typeof read(answer, "arrayBuffer") === "function"

const headOf = ({ headers, status, statusText }: Response) => ({ headers, status, statusText })

/** Nobody is left who could be told that a body does not like to be given up. */
const giveUp = (reader: Reader, reason?: unknown): Effect.Effect<void> =>
  Effect.ignore(Effect.tryPromise(() => reader.cancel(reason)))

/** A body that goes on for longer than the handler, and what waits for its end. */
interface Relay {
  readonly body: ReadableStream<Uint8Array>
  /** Ends with the body; interrupted, it gives the body up. */
  readonly ended: Effect.Effect<void, unknown>
}

/**
 * Hands on what is read as it is asked for. Of its end the client is told when the run around it has ended, scope and all:
 * a platform may freeze the process as soon as the last byte is out.
 */
const relay = (
  reader: Reader,
  ahead: ReadonlyArray<Promise<Read>>,
  run: Promise<Exit.Exit<unknown, unknown>>,
  errorOf: (cause: Cause.Cause<unknown>) => unknown
): Relay => {
  const reads = [...ahead]
  let isOver = false
  const ending = Deferred.makeUnsafe<void, unknown>()
  const end = (exit: Exit.Exit<void, unknown>): Promise<void> => {
    Deferred.doneUnsafe(ending, exit)
    return run.then(() => {})
  }
  const body = new ReadableStream<Uint8Array>({
    start: (controller) => {
      run.then((exit) => {
        if (isOver) return
        isOver = true
        if (Exit.isSuccess(exit)) controller.close()
        else controller.error(errorOf(exit.cause))
      })
    },
    pull: (controller) =>
      (reads.shift() ?? reader.read()).then(
        ({ done, value }) => {
          if (isOver) return
          return done ? end(Exit.void) : controller.enqueue(value)
        },
        (error: unknown) => end(Exit.fail(error))
      ),
    cancel: (reason) => {
      isOver = true
      return Effect.runPromise(giveUp(reader, reason)).then(() => end(Exit.interrupt()))
    }
  }, { highWaterMark: 0 })
  return { body, ended: Effect.onInterrupt(Deferred.await(ending), () => giveUp(reader)) }
}

/** Such a stream has its head sent at once: its first event may be long in coming. */
const isEventStream = ({ headers }: Response): boolean =>
  headers.get("content-type")?.startsWith("text/event-stream") === true

/**
 * What a body yields before it has to wait for anything but its own microtasks: the end of one that was at hand as a whole
 * is among that. An error in its first read is the handler's, which nothing has been said after yet.
 */
const readAhead = (reader: Reader): Effect.Effect<
  { readonly isWhole: boolean; readonly chunk: Uint8Array | undefined; readonly reads: ReadonlyArray<Promise<Read>> },
  unknown
> =>
  Effect.gen(function*() {
    const first = reader.read()
    const { done, value } = yield* Effect.onInterrupt(
      Effect.tryPromise({ try: () => first, catch: (error) => error }),
      () => giveUp(reader)
    )
    if (done) return { isWhole: true, chunk: undefined, reads: [] }
    const second = reader.read()
    let isWhole = false
    second.then(
      (read) => {
        isWhole = read.done
      },
      () => {} // Whoever reads it hears of it.
    )
    yield* Effect.onInterrupt(Effect.yieldNow, () => giveUp(reader))
    return { isWhole, chunk: value, reads: [first, second] }
  })

/** The answer as it is given: at the end of the run, or in the middle of it. */
interface Answer {
  readonly response: Response
  readonly isUnderWay: boolean
}

/** What becomes of a request that has failed. */
interface Failures {
  /** What is answered in its place. */
  readonly answerOf: (cause: Cause.Cause<unknown>) => Response
  /** What a body ends with whose rest has failed. */
  readonly errorOf: (cause: Cause.Cause<unknown>) => unknown
  /** Tells whom it concerns; `isUnderWay` if an answer had been given already, which breaks off. */
  readonly report: (cause: Cause.Cause<unknown>, isUnderWay: boolean) => void
}

/** nginx's number for a client that has left: nobody reads it but a log. */
const clientLeft = 499

/**
 * A body that is at hand as a whole is read before the scope closes, and the answer is given after that. Of any other the
 * beginning is given as soon as it is there, and the scope stays open until the client has read or left it.
 */
export const make = <R, E>(
  runner: Runner<R>,
  handler: (request: Request) => Effect.Effect<Response, E, R | Scope.Scope>,
  { deadline, waitUntil }: WebSettings,
  { answerOf, errorOf, report }: Failures
) =>
(request: Request, context?: WebContext): Promise<Response> => {
  // The handler may have given its answer before there is a promise of the run.
  let settle!: (exit: Promise<Exit.Exit<Response | undefined, unknown>>) => void
  const run = new Promise<Exit.Exit<Response | undefined, unknown>>((resolve) => {
    settle = resolve
  })
  let isUnderWay = false
  const given = new Promise<Answer>((resolve, reject) => {
    const give = (response: Response): Effect.Effect<Response | undefined, unknown> => {
      if (response.body === null) return Effect.succeed(response)
      const reader = response.body.getReader() as Reader
      const head = headOf(response)
      if (request.method === "HEAD") return Effect.as(giveUp(reader), new Response(null, head))
      const goOn = (reads: ReadonlyArray<Promise<Read>>) =>
        Effect.suspend(() => {
          const { body, ended } = relay(reader, reads, run, errorOf)
          isUnderWay = true
          resolve({ response: new Response(body, head), isUnderWay })
          return Effect.as(ended, undefined)
        })
      if (isEventStream(response)) return goOn([])
      return Effect.flatMap(
        readAhead(reader),
        ({ chunk, isWhole, reads }) => isWhole ? Effect.succeed(new Response(chunk ?? null, head)) : goOn(reads)
      )
    }
    const answer = Effect.flatMap(Effect.suspend(() => handler(request)), give)
    settle(runner.runExit(answer, {
      deadline: typeof deadline === "function" ? deadline(request) : deadline,
      signal: request.signal
    }))
    run.then((exit) => {
      if (Exit.isFailure(exit)) report(exit.cause, isUnderWay)
      const response = Exit.isSuccess(exit)
        ? exit.value
        : request.signal.aborted && Cause.hasInterruptsOnly(exit.cause)
        ? new Response(null, { status: clientLeft })
        : answerOf(exit.cause)
      if (response !== undefined) resolve({ response, isUnderWay: false })
    }).catch(reject)
  })
  // Platforms find out by the asynchronous context whose request it is, and fibers share theirs.
  return given.then(({ isUnderWay, response }) => {
    if (isUnderWay) {
      const ended = run.then(() => {})
      if (context?.waitUntil !== undefined) context.waitUntil(ended)
      else waitUntil?.(ended)
    }
    return response
  })
}
