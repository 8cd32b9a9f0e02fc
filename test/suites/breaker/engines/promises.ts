// What engines of promises have in common: their time is Node's, and their calls are functions.
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { mock } from "node:test"
import type { Event, Rejected, Time } from "../engine.ts"
import { epoch, outcomeOf } from "../engine.ts"
import { settle } from "../trial.ts"

/** `Date` and the timers of Node, in step with Effect's clock. Turns of the event loop stay real. */
export const fakeTimers: Effect.Effect<Time["Service"], never, Scope.Scope> = Effect.gen(function*() {
  yield* Effect.acquireRelease(
    Effect.sync(() => mock.timers.enable({ apis: ["Date", "setTimeout", "setInterval"], now: epoch })),
    () => Effect.sync(() => mock.timers.reset())
  )
  // Timers go by a clock of their own, which does not jump with the wall clock.
  const ticked = Date.now
  let jumped = 0
  Date.now = () => ticked() + jumped
  const jump = (ms: number) =>
    Effect.suspend(() => {
      jumped += ms
      return TestClock.setTime(Date.now())
    })
  return {
    pass: (ms) =>
      Effect.gen(function*() {
        yield* Effect.sync(() => mock.timers.tick(ms))
        yield* settle
        yield* TestClock.adjust(ms)
      }),
    freeze: jump,
    turnBack: (ms) => jump(-ms)
  }
})

/** For engines that leave jitter to their users: always the same numbers from 0 to 1, evenly spread. */
export const draw = (() => {
  let drawn = 0
  return () => (drawn = (drawn + 0.618_033_988_75) % 1)
})()

/** Cancelled by the caller, as functions that take an `AbortSignal` say it. */
const aborted = () => new DOMException("The operation was aborted", "AbortError")

const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === "AbortError"

/** Whether an error speaks against the database, as far as two values can tell: engines of promises have no third. */
export const isFailure = (error: unknown): boolean => !isAbort(error) && outcomeOf(error) === "Failure"

/**
 * Makes a call out of an engine's way to run an async function. An interruption of the call aborts the signal, and the
 * function rejects then.
 */
export const calling = (
  execute: (work: () => Promise<string>, signal: AbortSignal) => Promise<string>,
  rejectionOf: (error: unknown) => Rejected | undefined
) =>
(effect: Effect.Effect<string, unknown>): Effect.Effect<string, unknown> =>
  Effect.contextWith((context) =>
    Effect.callback<string, unknown>((resume) => {
      const controller = new AbortController()
      let own: { readonly thrown: unknown; readonly exit: Exit.Exit<string, unknown> } | undefined
      const work = async () => {
        const exit = await Effect.runPromiseExitWith(context)(effect, { signal: controller.signal })
        if (Exit.isSuccess(exit)) return exit.value
        const interrupted = Cause.hasInterruptsOnly(exit.cause)
        const error = Option.getOrUndefined(Cause.findErrorOption(exit.cause))
        own = { thrown: interrupted ? aborted() : error ?? Cause.squash(exit.cause), exit }
        throw own.thrown
      }
      execute(work, controller.signal).then(
        (value) => resume(Effect.succeed(value)),
        (error: unknown) =>
          resume(own !== undefined && own.thrown === error ? own.exit : Effect.fail(rejectionOf(error) ?? error))
      )
      return Effect.andThen(Effect.sync(() => controller.abort()), settle)
    })
  )

/**
 * An observer as a listener of an event emitter: what it does before it first waits happens in the emitter's own turn,
 * and its bugs are thrown there.
 */
export const listening = (observer: (event: Event) => Effect.Effect<void>) => (event: Event): void => {
  const exit = Effect.runFork(observer(event)).pollUnsafe()
  if (exit !== undefined && Exit.isFailure(exit)) throw Cause.squash(exit.cause)
}
