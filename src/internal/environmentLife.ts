/**
 * What an execution environment lives through: the layer that is built once, invocations one after the other or several
 * at a time, the freezes between them, and its end.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Deadline from "./deadline.ts"
import * as LayerMemo from "./layerMemo.ts"
import * as Release from "./release.ts"
import type { Lodger } from "./roster.ts"
import type { Settings } from "./serverlessSettings.ts"
import * as UnitOfWork from "./unitOfWork.ts"
import type { Outcome } from "./verdict.ts"

/** What is known of one invocation. */
export interface Particulars {
  readonly id: string
  readonly event: unknown
  readonly context: unknown
  /** Wall-clock milliseconds by which its work has to be done. */
  readonly deadlineAt: number
  /** Whether it is the first of its environment. */
  readonly isCold: boolean
}

export interface RunOptions {
  /** What the platform leaves, from now. */
  readonly deadline?: number | undefined
  readonly signal?: AbortSignal | undefined
  readonly invocation?: Pick<Particulars, "event" | "context" | "id"> | undefined
}

/** Who has something to do about every invocation. */
export interface Attendant {
  readonly begins: () => void
  /** In the asynchronous context of whoever has begun it. */
  readonly ends: () => void
  /** The environment is coming to its end. */
  readonly closes: () => void
}

/** What the public rooms call things. */
export interface Vocabulary<I, T, C> {
  readonly invocation: Context.Key<I, Particulars>
  readonly timedOut: (allowed: number, effect: Outcome) => T
  readonly closed: () => C
}

export interface Life<R, E, I, T, C> {
  readonly run: <A, E2>(
    effect: Effect.Effect<A, E2, R | Scope.Scope | I>,
    options?: RunOptions
  ) => Promise<Exit.Exit<A, E | E2 | T | C>>
  /** Builds the layer if need be, and does something with its pools. */
  readonly prepare: (
    work: (lodgers: ReadonlySet<Lodger>) => Effect.Effect<void, unknown>
  ) => Effect.Effect<void, unknown>
  readonly resume: () => Promise<void>
  readonly suspend: () => Promise<void>
  readonly dispose: (within?: number) => Promise<void>
  /** Tells somebody of all invocations that begin from now on. */
  readonly attend: (attendant: Attendant) => void
  readonly lodgers: ReadonlySet<Lodger>
  /** What the life itself runs in. */
  readonly home: Context.Context<never>
}

/** An environment that rested for less has not been frozen for so long that a socket could have died of it. */
const trusted = 1000

/** Of the time for the end: until then work may end by itself, and until then sockets may be closed politely. */
const untilInterrupted = 3 / 4
const untilDestroyed = 7 / 8

/** An invocation under way. */
interface Stay {
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  unit: UnitOfWork.UnitOfWork | undefined
}

export const make = <R, E, I, T extends object, C>(
  layer: Layer.Layer<R, E>,
  settings: Settings,
  vocabulary: Vocabulary<I, T, C>,
  home: Context.Context<never>
): Life<R, E, I, T, C> => {
  const clock = Context.get(home, Clock.Clock)
  const now = () => clock.currentTimeMillisUnsafe()
  const runFork = Effect.runForkWith(home)
  const settled = (effect: Effect.Effect<unknown>): Promise<void> =>
    new Promise((resolve) => runFork(effect).addObserver(() => resolve()))

  const memo = LayerMemo.make(layer, home)
  const { lodgers } = memo.roster
  const release = Release.make(settings.release, settings.staleAfter)
  const stays = new Set<Stay>()
  const attendants = new Set<Attendant>()
  let invocations = 0
  let restingSince = now()
  let isStale = false
  let thawing: Deferred.Deferred<void> | undefined
  let isClosing = false
  let disposal: Promise<void> | undefined
  let onIdle: (() => void) | undefined

  const each = (chosen: Iterable<Lodger>, act: (lodger: Lodger) => Effect.Effect<unknown>) =>
    Effect.forEach(Array.from(chosen), act, { concurrency: "unbounded", discard: true })

  // -------------------------------------------------------------------------------------------------------------------
  // freeze and thaw
  // -------------------------------------------------------------------------------------------------------------------

  /** All who come meanwhile wait for the same thaw. */
  const thaw: Effect.Effect<void> = Effect.suspend(() => {
    if (thawing !== undefined) return Deferred.await(thawing)
    isStale = false
    const done = thawing = Deferred.makeUnsafe<void>()
    runFork(Effect.onExit(each(lodgers, (lodger) => lodger.thaw(settings.staleAfter)), (exit) => {
      thawing = undefined
      return Deferred.done(done, exit)
    }))
    return Deferred.await(done)
  })

  /** Nothing announces a thaw: the wall clock has gone on while nothing ran. */
  const wakeUp = (at: number): Effect.Effect<void> | undefined => {
    if (stays.size === 0) {
      const gap = Math.max(0, at - restingSince)
      if (invocations > 1) release.rested(gap)
      // One that was out of time before it could look leaves that to the next.
      isStale ||= gap > trusted && lodgers.size > 0
    }
    return isStale || thawing !== undefined ? thaw : undefined
  }

  // -------------------------------------------------------------------------------------------------------------------
  // one invocation
  // -------------------------------------------------------------------------------------------------------------------

  const run: Life<R, E, I, T, C>["run"] = <A, E2>(
    effect: Effect.Effect<A, E2, R | Scope.Scope | I>,
    options: RunOptions = {}
  ) =>
    new Promise<Exit.Exit<A, E | E2 | T | C>>((resolve) => {
      if (isClosing) return resolve(Exit.fail(vocabulary.closed()))
      if (options.signal?.aborted === true) return resolve(Exit.interrupt())
      const { deadline = Infinity, invocation } = options
      const startedAt = now()
      const margin = Math.max(0, Math.min(settings.margin, deadline / 4))
      const allowed = deadline - margin
      const deadlineAt = startedAt + allowed
      const isCold = invocations++ === 0
      const resumed = wakeUp(startedAt)
      const stay: Stay = { fiber: undefined, unit: undefined }
      stays.add(stay)

      let isAnswered = false
      /** How the work itself has ended, while its scope is being closed. */
      let own: Exit.Exit<A, E2> | undefined

      const answer = (exit: Exit.Exit<A, E | E2 | T>): void => {
        restingSince = now()
        const isCutOff = isClosing && Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
        resolve(isCutOff ? Exit.fail(vocabulary.closed()) : exit)
      }
      const end = (exit: Exit.Exit<A, E | E2 | T>): void => {
        if (isAnswered) return
        isAnswered = true
        watchdog?.interruptUnsafe()
        stays.delete(stay)
        if (stays.size > 0) return answer(exit)
        onIdle?.()
        const due = !isClosing ? release.due(lodgers) : []
        if (due.length === 0) return answer(exit)
        const within = Math.max(0, Math.min(settings.shutdownWithin, deadlineAt + margin / 2 - now()))
        runFork(each(due, (lodger) => lodger.closeIdle(within))).addObserver(() => answer(exit))
      }

      const particulars: Particulars = {
        id: invocation?.id ?? String(invocations),
        event: invocation?.event,
        context: invocation?.context,
        deadlineAt,
        isCold
      }
      const inside = (context: Context.Context<R>): Effect.Effect<A, E2> => {
        const scope = Scope.makeUnsafe()
        const services = context.pipe(
          Context.add(Scope.Scope, scope),
          Context.add(vocabulary.invocation, particulars),
          Context.add(Deadline.Deadline, deadlineAt)
        )
        return Effect.onExit(Effect.provideContext(effect, services), (exit) => {
          own = exit
          return Scope.close(scope, exit)
        })
      }
      const work = Effect.flatMap(memo.get, ({ context }) => inside(context))
      const afterThaw = resumed === undefined ? work : Effect.andThen(resumed, work)
      const bounded: Effect.Effect<A, E | E2 | T> = deadlineAt === Infinity ? afterThaw : Deadline.enforce(
        Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
          stay.unit = UnitOfWork.of(fiber)
          return afterThaw
        }),
        deadlineAt,
        now,
        (_, unit) => vocabulary.timedOut(allowed, UnitOfWork.effectOf(unit))
      )

      /** The end for what ignores being interrupted: its sockets first, and then it is not waited for any more. */
      const watch = Effect.gen(function*() {
        yield* Effect.sleep(Math.max(0, deadlineAt + margin / 2 - now()))
        for (const session of stay.unit?.awaited.keys() ?? []) {
          session.wire.destroy({ by: "silence", message: "the invocation is out of time" })
        }
        // Whose the other sessions are is not known while others run.
        if (stays.size === 1) yield* each(lodgers, (lodger) => lodger.destroyBusy)
        yield* Effect.sleep(Math.max(0, deadlineAt + 3 * margin / 4 - now()))
        end(own ?? Exit.fail(vocabulary.timedOut(allowed, stay.unit?.hasStarted === true ? "Unknown" : "NotRun")))
      })

      const fiber = stay.fiber = runFork(bounded, { signal: options.signal })
      const watchdog = deadlineAt === Infinity || fiber.pollUnsafe() !== undefined ? undefined : runFork(watch)
      fiber.addObserver(end)
    })

  // -------------------------------------------------------------------------------------------------------------------
  // the end
  // -------------------------------------------------------------------------------------------------------------------

  const quiet = Effect.callback<void>((resume) => {
    if (stays.size === 0) return resume(Effect.void)
    onIdle = () => resume(Effect.void)
  })

  const stopAll = Effect.suspend(() =>
    Effect.forEach(Array.from(stays), ({ fiber }) => fiber === undefined ? Effect.void : Fiber.interrupt(fiber), {
      concurrency: "unbounded",
      discard: true
    })
  )

  const closing = (within: number): Effect.Effect<void> =>
    Effect.gen(function*() {
      isClosing = true
      const orderly = Effect.timeoutOption(quiet, within * untilInterrupted).pipe(
        Effect.andThen(stopAll),
        Effect.andThen(memo.close)
      )
      const closer = yield* Effect.forkDetach(orderly, { startImmediately: true })
      const inTime = yield* Effect.timeoutOption(Fiber.await(closer), within * untilDestroyed)
      if (inTime._tag === "Some") return
      yield* Effect.timeoutOption(
        Effect.andThen(
          each(lodgers, (lodger) => Effect.andThen(lodger.destroyBusy, lodger.closeIdle(0))),
          Fiber.await(closer)
        ),
        within * (1 - untilDestroyed)
      )
    })

  /** Fibers resume in whichever asynchronous context has woken them; promises go on in the one that they were made in. */
  const attended: typeof run = (effect, options) => {
    if (attendants.size === 0) return run(effect, options)
    const present = Array.from(attendants)
    for (const { begins } of present) begins()
    return run(effect, options).then((exit) => {
      for (const { ends } of present) ends()
      return exit
    })
  }

  return {
    run: attended,
    prepare: (work) =>
      Effect.onExit(Effect.andThen(memo.get, Effect.suspend(() => work(lodgers))), () =>
        Effect.sync(() => {
          restingSince = now()
        })),
    resume: () => settled(thaw),
    suspend: () => settled(each(lodgers, (lodger) => lodger.closeIdle(settings.shutdownWithin))),
    dispose: (within = settings.shutdownWithin) => {
      for (const { closes } of attendants) closes()
      return disposal ??= settled(closing(within))
    },
    attend: (attendant) => {
      attendants.add(attendant)
    },
    lodgers,
    home
  }
}
