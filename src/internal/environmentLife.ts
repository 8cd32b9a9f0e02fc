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
import * as Invocation from "./invocation.ts"
import * as LayerMemo from "./layerMemo.ts"
import * as Logbook from "./logbook.ts"
import * as LogFields from "./logFields.ts"
import * as Release from "./release.ts"
import type { Lodger } from "./roster.ts"
import type { Settings } from "./serverlessSettings.ts"
import type * as UnitOfWork from "./unitOfWork.ts"
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
  readonly invocation?: {
    readonly id?: string | undefined
    readonly event?: unknown
    readonly context?: unknown
  } | undefined
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
  /** Resolves when it is as warm as it can be: that it did not work is told to the log. */
  readonly ready: Promise<void>
  readonly resume: () => Promise<void>
  readonly suspend: () => Promise<void>
  /** What runs is interrupted when it has had its `patience`: three quarters of `within`, if nobody says otherwise. */
  readonly dispose: (within?: number, patience?: number) => Promise<void>
  /** Tells somebody of all invocations that begin from now on. */
  readonly attend: (attendant: Attendant) => void
  /** Writes a line where the layer writes its own. */
  readonly tell: (line: Effect.Effect<void>) => Promise<void>
  readonly lodgers: ReadonlySet<Lodger>
  /** What the life itself runs in. */
  readonly home: Context.Context<never>
}

/** An environment that rested for less has not been frozen for so long that a socket could have died of it. */
const trusted = 1000

/** What begins after Lambda has given the init phase up begins once more, so this gives up before: milliseconds of its ten seconds. */
const initPhase = 8000
const tooSlow = `Operation timed out after '${initPhase / 1000}s'`

/** Of the time for the end: until then work may end by itself, and until then sockets may be closed politely. */
const untilInterrupted = 3 / 4
const untilDestroyed = 7 / 8

/** An invocation under way. */
interface Stay {
  stop: Effect.Effect<void>
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
  let onQuiet: (() => void) | undefined

  /** To the loggers of the layer, as soon as there are any. */
  const tell = (line: Effect.Effect<void>): Effect.Effect<void> =>
    Effect.suspend(() => Effect.provideContext(line, memo.built()?.context ?? home))

  const each = <E3>(chosen: Iterable<Lodger>, act: (lodger: Lodger) => Effect.Effect<unknown, E3>) =>
    Effect.forEach(Array.from(chosen), act, { concurrency: "unbounded", discard: true })

  // -------------------------------------------------------------------------------------------------------------------
  // freeze and thaw
  // -------------------------------------------------------------------------------------------------------------------

  /** Whose the other sessions are is not known while others run. */
  const destroy = ({ awaited }: UnitOfWork.UnitOfWork): Effect.Effect<void> =>
    Effect.suspend(() => {
      for (const { wire } of awaited.keys()) wire.cutOff({ by: "pool", message: "the time of the invocation was up" })
      return stays.size === 1 ? each(lodgers, (lodger) => lodger.destroyBusy) : Effect.void
    })

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
    // What sockets were told during the freeze lies there unread; a turn of the event loop reads it before work is sent.
    if (isStale || thawing !== undefined) return Effect.andThen(Effect.yieldNow, thaw)
    return stays.size === 0 && lodgers.size > 0 ? Effect.yieldNow : undefined
  }

  // -------------------------------------------------------------------------------------------------------------------
  // one invocation
  // -------------------------------------------------------------------------------------------------------------------

  const inScope = <A, E2>(
    effect: Effect.Effect<A, E2, R | Scope.Scope | I>,
    { context }: LayerMemo.Built<R>,
    particulars: Particulars,
    note: (exit: Exit.Exit<A, E2>) => void
  ): Effect.Effect<A, E2> => {
    const scope = Scope.makeUnsafe()
    const services = context.pipe(
      Context.add(Scope.Scope, scope),
      Context.add(vocabulary.invocation, particulars),
      Context.add(Deadline.Deadline, particulars.deadlineAt)
    )
    return Effect.onExit(Effect.provideContext(effect, services), (exit) => {
      note(exit)
      return Scope.close(scope, exit)
    })
  }

  /** The end of an invocation whose work is done, and whose sessions are back. */
  const leave = (stay: Stay, deadline: Invocation.Times, answer: () => void): void => {
    const conclude = () => {
      restingSince = now()
      answer()
    }
    stays.delete(stay)
    restingSince = now()
    if (stays.size > 0) return conclude()
    onQuiet?.()
    const due = isClosing ? [] : release.due(lodgers)
    if (due.length === 0) return conclude()
    const within = Math.max(0, Math.min(settings.shutdownWithin, deadline.destroyAt - now()))
    runFork(each(due, (lodger) => lodger.closeIdle(within))).addObserver(conclude)
  }

  const run: Life<R, E, I, T, C>["run"] = <A, E2>(
    effect: Effect.Effect<A, E2, R | Scope.Scope | I>,
    { deadline = Infinity, invocation, signal }: RunOptions = {}
  ) =>
    new Promise<Exit.Exit<A, E | E2 | T | C>>((resolve) => {
      if (isClosing) return resolve(Exit.fail(vocabulary.closed()))
      if (signal?.aborted === true) return resolve(Exit.interrupt())
      const startedAt = now()
      const times = Invocation.times(startedAt, deadline, settings.margin)
      const particulars: Particulars = {
        isCold: invocations++ === 0,
        id: invocation?.id ?? String(invocations),
        event: invocation?.event,
        context: invocation?.context,
        deadlineAt: times.deadlineAt
      }
      const resumed = wakeUp(startedAt)
      const stay: Stay = { stop: Effect.void }
      stays.add(stay)
      const { stop } = Invocation.start<A, E | E2, T>(
        (note) => {
          const work = Effect.flatMap(memo.get, (built) => inScope(effect, built, particulars, note))
          return resumed === undefined ? work : Effect.andThen(resumed, work)
        },
        times,
        signal,
        {
          now,
          runFork,
          timedOut: vocabulary.timedOut,
          destroy,
          overran: tell(
            Logbook.write("invocationOverran", {
              "faas.invocation_id": particulars.id,
              "db.deadline_ms": Math.round(times.allowed)
            })
          )
        },
        (exit) =>
          leave(stay, times, () => {
            const isCutOff = isClosing && Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
            resolve(isCutOff ? Exit.fail(vocabulary.closed()) : exit)
          })
      )
      stay.stop = stop
    })

  // -------------------------------------------------------------------------------------------------------------------
  // the end
  // -------------------------------------------------------------------------------------------------------------------

  const quiet = Effect.callback<void>((resume) => {
    if (stays.size === 0) return resume(Effect.void)
    onQuiet = () => resume(Effect.void)
  })

  const stopAll = Effect.suspend(() =>
    Effect.forEach(Array.from(stays), ({ stop }) => stop, { concurrency: "unbounded", discard: true })
  )

  const closing = (within: number, patience: number): Effect.Effect<void> =>
    Effect.gen(function*() {
      isClosing = true
      const orderly = (patience > 0 ? Effect.timeoutOption(quiet, patience) : Effect.void).pipe(
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

  const warm = memo.get.pipe(
    Effect.andThen(Effect.suspend(() => each(lodgers, (lodger) => lodger.warm(1)))),
    // `Effect.timeout` says the same, by way of all that can be said of durations.
    Effect.timeoutOrElse({ duration: initPhase, orElse: () => Effect.fail(new Cause.TimeoutError(tooSlow)) }),
    Effect.catchCause((cause) => tell(Logbook.write("environmentNotWarmed", LogFields.ofBuild(Cause.squash(cause))))),
    Effect.andThen(Effect.sync(() => {
      restingSince = now()
    }))
  )

  return {
    run: attended,
    ready: settings.warm ? settled(warm) : Promise.resolve(),
    resume: () => settled(thaw),
    suspend: () => settled(each(lodgers, (lodger) => lodger.closeIdle(settings.shutdownWithin))),
    dispose: (within = settings.shutdownWithin, patience = within * untilInterrupted) => {
      for (const { closes } of attendants) closes()
      return disposal ??= settled(closing(within, patience))
    },
    attend: (attendant) => {
      attendants.add(attendant)
    },
    tell: (line) => settled(tell(line)),
    lodgers,
    home
  }
}
