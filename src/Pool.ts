/**
 * A scoped pool of PostgreSQL sessions: sizing, checkout, liveness, retirement and an orderly end.
 *
 * The pool owns no policy about failing work: it lends sessions and says the truth about why it cannot. Breaking and
 * retrying is done above it.
 *
 * @since 0.1.0
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as Os from "node:os"
import * as Errors from "./Errors.ts"
import * as Bell from "./internal/bell.ts"
import * as Codel from "./internal/codel.ts"
import * as Connector from "./internal/connector.ts"
import * as Leaks from "./internal/leaks.ts"
import * as PoolMachine from "./internal/poolMachine.ts"
import * as PoolSettings from "./internal/poolSettings.ts"
import type * as Session from "./internal/session.ts"
import * as Sizing from "./internal/sizing.ts"
import * as Metrics from "./Metrics.ts"

/**
 * Everything a pool can be told. Absence means the default.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends PoolSettings.PoolOptions {}

/**
 * A physical session in the hands of a borrower.
 *
 * @category models
 * @since 0.1.0
 */
export interface Lease {
  readonly session: Session.Session
  /** The driver's connection: exclusive when it came from `reserve`. */
  readonly connection: PgConnection.PgConnection
}

/**
 * The session behind a lease: the driver's connection, its socket, and what the pool remembers of it.
 *
 * @category models
 * @since 0.1.0
 */
export type PoolSession = Session.Session

/**
 * A snapshot of the pool: sessions by state, borrowers waiting, connects under way, and the bounds.
 *
 * @category models
 * @since 0.1.0
 */
export type Stats = Errors.PoolStats

/**
 * Why no session could be had.
 *
 * - `AcquireTimeout`: none within `acquireTimeout`.
 * - `PoolSaturated`: `maxWaiting` borrowers wait already.
 * - `PoolClosed`: the pool's scope is closing or closed.
 * - `HookFailed`: a hook refused the connection.
 * - `SqlError`: the connect failed; the server's or the socket's own words.
 *
 * @category errors
 * @since 0.1.0
 */
export type AcquireError =
  | Errors.AcquireTimeout
  | Errors.PoolSaturated
  | Errors.PoolClosed
  | Errors.HookFailed
  | SqlError

/**
 * How a checkout differs from the usual one.
 *
 * @category models
 * @since 0.1.0
 */
export interface CheckoutOptions {
  /** Prove the session by a round trip before it is handed out. Default: only when it has been idle for long. */
  readonly prove?: boolean | undefined
  /** Milliseconds; default: the pool's `acquireTimeout`. */
  readonly timeout?: number | undefined
}

/**
 * The pool service.
 *
 * @category services
 * @since 0.1.0
 */
export class Pool extends Context.Service<Pool, {
  /** The pool's name, as metrics and logs call it. */
  readonly name: string
  /** What the pool was built from, after defaults. */
  readonly settings: PoolSettings.Settings
  /**
   * Lends a session while an effect runs. The cheapest way to run one statement: no scope, and no timer unless the
   * borrower has to wait. With `multiplex` the session may be shared. What is asked of `session.connection` is asked of
   * the driver: judging failures and watching for silence is the executor's.
   */
  readonly use: <A, E, R>(
    f: (session: PoolSession) => Effect.Effect<A, E, R>,
    options?: CheckoutOptions
  ) => Effect.Effect<A, E | AcquireError, R>
  /** Lends a session until the scope closes. With `multiplex` it may be shared. */
  readonly get: (options?: CheckoutOptions) => Effect.Effect<PoolSession, AcquireError, Scope.Scope>
  /**
   * Lends a session for exclusive use until the scope closes: for transactions, listeners, and whatever sets session
   * state. A session that comes back inside a transaction, or with a statement or listener open, is closed.
   */
  readonly reserve: (options?: CheckoutOptions) => Effect.Effect<Lease, AcquireError, Scope.Scope>
  /** Keeps a session that is shared by `multiplex` from being lent to anybody else until the scope closes. */
  readonly exclude: (session: PoolSession) => Effect.Effect<void, never, Scope.Scope>
  readonly stats: Effect.Effect<Stats>
  readonly statsUnsafe: () => Stats
  /** Milliseconds until the next connect is tried after failed ones, 0 when it may be tried now. */
  readonly connectPauseUnsafe: () => number
  /** Sessions that have ended here, and not yet on the server: their places are taken. */
  readonly leavingUnsafe: () => number
  /** Wall-clock milliseconds at which a live session was last opened or given back. */
  readonly lastProofUnsafe: () => number | undefined
  /** Closes idle sessions now and lent ones when they come back: after a failover, or a change of credentials. */
  readonly evictAll: Effect.Effect<void>
  /**
   * Changes the bounds. A larger pool serves those who wait at once; a smaller one closes idle sessions now and lent ones
   * when they come back. Fails with `InvalidOption` for an impossible size. A `min` above a new `max` becomes that.
   */
  readonly resize: (
    size: { readonly max?: number | undefined; readonly min?: number | undefined }
  ) => Effect.Effect<void, Errors.InvalidOption>
  /** Lends nothing more until {@link resume}: whoever asks waits in line. Work under way goes on. */
  readonly suspend: Effect.Effect<void>
  /** Ends {@link suspend}. */
  readonly resume: Effect.Effect<void>
  /**
   * Opens sessions until there are `count`, `max` at most. They are closed like any others once they have been idle for
   * long. Fails with what the connect failed with, or with `AcquireTimeout` after `acquireTimeout`.
   */
  readonly warm: (count: number) => Effect.Effect<void, AcquireError>
  /**
   * Takes the pool out of service before its scope closes: new borrowers get `PoolClosed` at once, those who wait already
   * are served, and what is idle is closed. At the deadline the rest is cut off as at the end of the scope. Succeeds with
   * the number of borrowers that were cut off.
   */
  readonly drain: (deadline: Duration.Input) => Effect.Effect<number>
  /** Takes one session out of circulation: now when it is idle, when it comes back otherwise. */
  readonly evictUnsafe: (session: PoolSession, reason: Metrics.CloseReason) => void
  /** True from the moment the pool's scope starts to close. */
  readonly isClosing: () => boolean
}>()("effect-pg-pool/Pool") {}

/**
 * The size for a long-lived server: `max = min(cpus * 2 + 4, 100)`, `min = max(floor(max / 4), 5)` and never above max.
 * 8 CPUs: 20 and 5. Default CPUs: those the process may use (`os.availableParallelism()`).
 *
 * @example
 * ```ts run
 * import * as Pg from "effect-pg-pool"
 *
 * console.log(Pg.Pool.sizeFromCpus(8)) // => { max: 20, min: 5 }
 * ```
 *
 * @category sizing
 * @since 0.1.0
 */
export const sizeFromCpus = (cpus: number = Os.availableParallelism()): Sizing.Size => Sizing.fromCpus(cpus)

/**
 * The size for one serverless environment: at most 2 sessions, none kept. One would do for most handlers; the second
 * lets a query run beside an open transaction or listener.
 *
 * @category sizing
 * @since 0.1.0
 */
export const sizeServerless = (): Sizing.Size => Sizing.serverless

/** Milliseconds that cancelled work gets to end by itself when the pool closes. */
const cancelGrace = 250

type Waiter = PoolMachine.Waiter<Session.Session, AcquireError>

/**
 * Makes a pool in the current scope. Nothing is opened until the first checkout, and a dead database does not make it
 * fail: only impossible options do.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<Pool["Service"], Errors.InvalidOption, Scope.Scope | Metrics.Metrics> {
  const settings = yield* Effect.mapError(PoolSettings.settle(options), (bad) => new Errors.InvalidOption(bad))
  const clock = yield* Clock.Clock
  const random = yield* Random.Random
  const metrics = yield* Metrics.Metrics
  const store = metrics.store
  const runFork = Effect.runForkWith(yield* Effect.context<never>())
  const dispatcher = yield* Effect.withFiber((fiber) => Effect.succeed(fiber.currentDispatcher))
  const now = () => clock.currentTimeMillisUnsafe()

  const machine = PoolMachine.make<Session.Session, AcquireError>(settings.concurrency)
  const { members } = machine
  const changed = Bell.make()
  const codel = settings.shedding === undefined ? undefined : Codel.make(settings.shedding)
  const leaks = settings.leakThreshold === undefined
    ? undefined
    : Leaks.make({ threshold: settings.leakThreshold, pool: metrics.pool, now, runFork })
  let { max, min } = settings
  let generation = 0
  let phase: "Open" | "Draining" | "Closed" = "Open"

  const connector = Connector.make<AcquireError>({
    settings,
    now,
    draw: () => random.nextDoubleUnsafe(),
    runFork,
    generation: () => generation,
    hookFailed: (hook, cause) => new Errors.HookFailed({ hook, cause }),
    onOpen: () => {
      store.connectionsOpened++
    },
    onReady: (session) => {
      // One that died on its way here never enters the books.
      if (session.wire.isDead()) return
      PoolMachine.admit(machine, session, now())
      if (phase === "Closed") retire(session, "shutdown")
      else if (session.generation !== generation) retire(session, "invalid")
      else if (members.size > max) retire(session, "resize")
      pump()
    },
    onFailed: (error) => {
      // Others that set out with it may still arrive, and a server that is only full has those who come back.
      if (connector.connecting() === 0 && (members.size === 0 || !isRefusal(error))) refuseAll(error)
      pump()
    },
    onGone: (session) => {
      session.condemned ??= phase === "Open" ? "error" : "shutdown"
      PoolMachine.dismiss(machine, session)
      store.connectionsClosed[session.condemned]++
      runFork(Scope.close(session.scope, Exit.void))
    },
    onPlace: () => pump()
  })

  // ---------------------------------------------------------------------------------------------------------------
  // what a session is worth
  // ---------------------------------------------------------------------------------------------------------------

  /** Others may share a session with `multiplex`, so it is idle only without a borrower, whoever asks being one. */
  const idleFor = (session: Session.Session, borrowers: number, at: number): number =>
    session.borrowers > borrowers ? 0 : at - session.idleSince

  const standing = (
    session: Session.Session,
    idleFor: number,
    at: number
  ): "Ready" | "Unproven" | Metrics.CloseReason => {
    if (session.condemned !== undefined) return session.condemned
    if (session.wire.isDead()) return "error"
    if (session.generation !== generation) return "invalid"
    if (at >= session.expiresAt) return "lifetime"
    // A new one is not idle: somebody has waited for it.
    if (idleFor > settings.idleTimeout && members.size > min && session.uses > 0) return "idle"
    if (settings.validateAlways || idleFor > settings.validateAfter) return "Unproven"
    return "Ready"
  }

  /** Takes a session out of the pool and lets it say goodbye. Its place is free when its socket has closed. */
  const retire = (session: Session.Session, reason: Metrics.CloseReason): void => {
    session.condemned ??= reason
    PoolMachine.dismiss(machine, session)
    runFork(Scope.close(session.scope, Exit.void))
  }

  const evictUnsafe = (session: Session.Session, reason: Metrics.CloseReason): void => {
    session.condemned ??= reason
    if (session.borrowers === 0) retire(session, reason)
    else PoolMachine.unshelve(machine, session)
  }

  const evictOlderThan = (session: Session.Session): void => {
    for (const other of Array.from(members)) {
      if (other.openedAt <= session.openedAt) evictUnsafe(other, "invalid")
    }
  }

  const retireIdle = (at: number): void => {
    for (const session of Array.from(members)) {
      if (session.borrowers > 0 || session.exclusions > 0 || !session.isMember) continue
      const idle = at - session.idleSince
      const verdict = idle > settings.idleTimeout && members.size > min ? "idle" : standing(session, idle, at)
      if (verdict !== "Ready" && verdict !== "Unproven") retire(session, verdict)
    }
  }

  /**
   * A round trip under its own deadline, on a session that nobody else can get meanwhile. A session that is not proved
   * is worth nothing, so its socket goes before the question is interrupted: the driver would wait for the answer.
   */
  const prove = (session: Session.Session): Effect.Effect<boolean> => {
    const giveUp = (message: string) => Effect.sync(() => session.wire.destroy({ by: "silence", message }))
    const question = Effect.suspend(() => {
      session.busy++
      return session.connection.query("SELECT 1")
    }).pipe(
      Effect.onExit(() => Effect.sync(() => session.busy--)),
      Effect.exit,
      Effect.map(Exit.isSuccess)
    )
    return Effect.scoped(Effect.andThen(
      exclude(session),
      Effect.flatMap(Effect.forkDetach(question, { startImmediately: true }), (fiber) =>
        Effect.raceFirst(
          Fiber.join(fiber),
          Effect.sleep(settings.validationTimeout).pipe(
            Effect.andThen(giveUp(`no answer within ${settings.validationTimeout} ms`)),
            Effect.as(false)
          )
        ).pipe(Effect.onInterrupt(() => giveUp("nobody waited for the answer"))))
    ))
  }

  const exclude = (session: Session.Session): Effect.Effect<void, never, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.sync(() => PoolMachine.exclude(machine, session)),
      () =>
        Effect.sync(() => {
          PoolMachine.include(machine, session)
          pump()
        })
    )

  const usage = (session: Session.Session): PoolSettings.SessionUsage => {
    const at = now()
    return { age: at - session.openedAt, idleFor: idleFor(session, 1, at), uses: session.uses }
  }

  // ---------------------------------------------------------------------------------------------------------------
  // the line, and what is opened for it
  // ---------------------------------------------------------------------------------------------------------------

  /** A server that answers, but takes no more sessions, goes on serving those it has. */
  const isRefusal = (error: AcquireError): boolean => {
    const failure = Errors.failureOf(error)
    const { kind } = Errors.classify(failure, { phase: "Connect", reused: false, replied: false })
    return kind === "Overloaded" || kind === "Denied"
  }

  const isWorthy = (session: Session.Session): boolean => {
    const at = now()
    const verdict = standing(session, idleFor(session, 0, at), at)
    if (verdict === "Ready" || verdict === "Unproven") return true
    evictUnsafe(session, verdict)
    return false
  }

  const refusalOf = (waiter: Waiter): AcquireError | undefined => {
    if (codel === undefined) return undefined
    const at = now()
    const waited = at - waiter.since
    return Codel.isLate(codel, waited, at) ? saturated("Lateness", waited) : undefined
  }

  const saturated = (by: "Length" | "Lateness", waited: number) =>
    new Errors.PoolSaturated({
      by,
      waited,
      waiting: machine.waiting,
      maxWaiting: settings.maxWaiting === Infinity ? null : settings.maxWaiting,
      stats: statsUnsafe()
    })

  /** Those who want the pool to have a number of sessions. */
  const wishes = new Set<Wish>()
  let retry: Fiber.Fiber<void> | undefined

  const refuseAll = (error: AcquireError): void => {
    PoolMachine.refuseAll(machine, error)
    for (const wish of wishes) wish.settle(Effect.fail(error))
  }

  /** Whenever something has changed: hands out what there is, and opens what the line needs. */
  const pump = (): void => {
    PoolMachine.serve(machine, now(), isWorthy, refusalOf)
    for (const wish of wishes) if (members.size >= Math.min(wish.count, max)) wish.settle(Effect.void)
    openMore()
    changed.notify()
  }

  const mayConnect = () => phase !== "Closed"

  const openMore = (): void => {
    while (connector.taken() < max && mayConnect()) {
      const connecting = connector.connecting()
      let missing = PoolMachine.shortfall(machine, connecting)
      for (const { count } of wishes) missing = Math.max(missing, Math.min(count, max) - members.size - connecting)
      if (missing <= 0) return
      const decision = connector.decide()
      if (decision === "Wait") return
      if (decision !== "Go") {
        if (members.size === 0 || !isRefusal(decision.cause)) return refuseAll(decision.cause)
        retry ??= runFork(Effect.map(Effect.sleep(decision.retryAfter), () => {
          retry = undefined
          openMore()
        }))
        return
      }
      connector.connect()
    }
  }

  // ---------------------------------------------------------------------------------------------------------------
  // checkout
  // ---------------------------------------------------------------------------------------------------------------

  /** The whole way of a healthy borrower: the session that came back last, if nobody waits and nothing speaks against it. */
  const takeReady = (isExclusive: boolean): Session.Session | undefined => {
    const { bottom, head, isSuspended, top } = machine
    if (
      top === undefined || head !== undefined || isSuspended || phase !== "Open" || settings.beforeAcquire !== undefined
    ) return undefined
    const at = now()
    if (standing(top, idleFor(top, 0, at), at) !== "Ready") return undefined
    if (bottom !== top && at - bottom!.idleSince > settings.idleTimeout) retireIdle(at)
    store.acquire.observe(0)
    if (codel !== undefined) Codel.isLate(codel, 0, at)
    PoolMachine.lend(machine, top, at, isExclusive)
    return countUse(top)
  }

  const countUse = (session: Session.Session): Session.Session => {
    if (++session.uses >= settings.maxUses) evictUnsafe(session, "uses")
    return session
  }

  const use = <A, E, R>(
    f: (session: Session.Session) => Effect.Effect<A, E, R>,
    options?: CheckoutOptions
  ): Effect.Effect<A, E | AcquireError, R> =>
    Effect.suspend(() => {
      let lent: Session.Session | undefined
      // Whoever is interrupted between two steps must have the way back laid before the session is taken.
      return Effect.onExitPrimitive(
        Effect.suspend((): Effect.Effect<A, E | AcquireError, R> => {
          if (options !== undefined || leaks !== undefined) return useAfterWait(f, options)
          lent = takeReady(false)
          return lent === undefined ? useAfterWait(f, options) : f(lent)
        }),
        () => {
          if (lent !== undefined) takeBack(lent, false)
          return undefined
        }
      )
    })

  const useAfterWait = <A, E, R>(
    f: (session: Session.Session) => Effect.Effect<A, E, R>,
    options: CheckoutOptions | undefined
  ): Effect.Effect<A, E | AcquireError, R> =>
    Effect.scopedWith((scope) => Effect.flatMap(Scope.provide(get(options), scope), f))

  const get = (options?: CheckoutOptions): Effect.Effect<Session.Session, AcquireError, Scope.Scope> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(Effect.scope, (scope) => lease(scope, false, checkout(options, false, restore)))
    )

  /** From here on the session belongs to the scope. */
  const lease = (scope: Scope.Scope, isExclusive: boolean, checkout: Effect.Effect<Session.Session, AcquireError>) =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) =>
      Effect.flatMap(checkout, (session) => {
        const hold = leaks?.begin(session, fiber)
        const giveBack = Effect.sync(() => {
          if (hold !== undefined) leaks!.end(hold)
          takeBack(session, isExclusive)
        })
        return Effect.as(Scope.addFinalizer(scope, giveBack), session)
      })
    )

  const reserve = (options?: CheckoutOptions): Effect.Effect<Lease, AcquireError, Scope.Scope> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(Effect.scope, (parent) => {
        const scope = Scope.forkUnsafe(parent)
        const endsAt = now() + (options?.timeout ?? settings.acquireTimeout)
        return Effect.matchCauseEffect(lease(scope, true, checkout(options, true, restore)), {
          onFailure: (cause) => Effect.andThen(Scope.close(scope, Exit.void), Effect.failCause(cause)),
          onSuccess: (session) => pin(session, scope, endsAt, restore)
        })
      })
    )

  /** Waits for what others still have on the wire. */
  const pin = (
    session: Session.Session,
    scope: Scope.Closeable,
    endsAt: number,
    restore: Restore
  ): Effect.Effect<Lease, AcquireError> => {
    const pinned = Scope.provide(
      Effect.map(session.connection.pin, (connection): Lease => ({ session, connection })),
      scope
    )
    if (settings.concurrency === 1) return pinned
    // The driver's own wait cannot be interrupted, so it goes on by itself when its borrower gives up.
    return Effect.flatMap(Effect.forkDetach(pinned, { startImmediately: true }), (fiber) => {
      const startedAt = now()
      return Effect.onError(
        restore(Effect.timeoutOrElse(Fiber.join(fiber), {
          duration: Math.max(0, endsAt - startedAt),
          orElse: () => Effect.fail(timedOut(startedAt, "Queue"))
        })),
        (cause) => Effect.forkDetach(Effect.andThen(Fiber.await(fiber), Scope.close(scope, Exit.failCause(cause))))
      )
    })
  }

  /**
   * Everything that may take time before a session is in its borrower's hands, under one bound. Whoever asks must not be
   * interruptible: the session is theirs as soon as this succeeds.
   */
  const checkout = (
    options: CheckoutOptions | undefined,
    isExclusive: boolean,
    restore: Restore
  ): Effect.Effect<Session.Session, AcquireError> =>
    Effect.suspend((): Effect.Effect<Session.Session, AcquireError> => {
      if (phase !== "Open") return Effect.fail(new Errors.PoolClosed())
      const ready = options?.prove === true ? undefined : takeReady(isExclusive)
      if (ready !== undefined) return Effect.succeed(ready)
      // Whoever waits for a session that may still be opened is not queueing.
      const queueing = machine.borrowed + machine.waiting - max * settings.concurrency
      if (queueing >= settings.maxWaiting) return Effect.fail(saturated("Length", 0))
      const startedAt = now()
      const attempt: Attempt = { waiter: PoolMachine.makeWaiter(machine, startedAt, isExclusive), isProving: false }
      const worthy = Effect.timeoutOrElse(firstWorthy(attempt, options?.prove ?? false), {
        duration: options?.timeout ?? settings.acquireTimeout,
        orElse: () => Effect.fail(timedOut(startedAt, attempt.isProving ? "Validate" : undefined))
      })
      return Effect.onExitPrimitive(restore(worthy), (exit) => {
        store.acquire.observe((now() - startedAt) / 1000)
        if (exit._tag === "Failure") abandon(attempt.waiter)
        return undefined
      })
    })

  const abandon = (waiter: Waiter): void => {
    PoolMachine.dequeue(machine, waiter)
    const { session } = waiter
    waiter.session = undefined
    if (session !== undefined) takeBack(session, waiter.isExclusive)
  }

  /** Stands in line until a session is there, in `waiter.session`, which is the waiter's from that moment on. */
  const stand = (waiter: Waiter): Effect.Effect<Session.Session, AcquireError> =>
    Effect.callback((resume) => {
      let isArriving = true
      waiter.onServed = (refusal) => {
        const answer = refusal === undefined ? Effect.sync(() => waiter.session!) : Effect.fail(refusal)
        if (isArriving) resume(answer)
        else dispatcher.scheduleTask(() => resume(answer), 0)
      }
      PoolMachine.enqueue(machine, waiter)
      retireIdle(now())
      pump()
      isArriving = false
      return Effect.sync(() => PoolMachine.dequeue(machine, waiter))
    })

  /** Takes sessions until one is worth handing out. Whoever gets one that is not goes back to the head of the line. */
  const firstWorthy = (attempt: Attempt, alwaysProve: boolean): Effect.Effect<Session.Session, AcquireError> =>
    Effect.flatMap(stand(attempt.waiter), (session) => {
      const again = (reason: Metrics.CloseReason) => {
        evictUnsafe(session, reason)
        abandon(attempt.waiter)
        return phase === "Closed" ? Effect.fail(new Errors.PoolClosed()) : firstWorthy(attempt, alwaysProve)
      }
      const at = now()
      const verdict = standing(session, idleFor(session, 1, at), at)
      if (verdict !== "Ready" && verdict !== "Unproven") return again(verdict)
      // One in use is watched by its statements. A new one may only have been proved by a pooler.
      const isProved = session.borrowers > 1 || (verdict === "Ready" && !alwaysProve)
      if (isProved) return welcome(session, again)
      attempt.isProving = true
      return Effect.flatMap(prove(session), (isAlive) => {
        attempt.isProving = false
        if (isAlive) return welcome(session, again)
        evictOlderThan(session)
        return again("invalid")
      })
    })

  const welcome = (
    session: Session.Session,
    again: (reason: Metrics.CloseReason) => Effect.Effect<Session.Session, AcquireError>
  ): Effect.Effect<Session.Session, AcquireError> => {
    const hook = settings.beforeAcquire
    if (hook === undefined) return Effect.succeed(countUse(session))
    return Effect.suspend(() => hook(session.connection, usage(session))).pipe(
      Effect.matchCauseEffect({
        onSuccess: (answer) => answer === false ? again("invalid") : Effect.succeed(countUse(session)),
        onFailure: (cause) => {
          evictUnsafe(session, "invalid")
          return Cause.hasInterruptsOnly(cause)
            ? Effect.failCause(cause as Cause.Cause<never>)
            : Effect.fail(new Errors.HookFailed({ hook: "beforeAcquire", cause: Cause.squash(cause) }))
        }
      })
    )
  }

  const timedOut = (startedAt: number, phase: "Queue" | "Validate" | undefined) => {
    store.acquireTimeouts++
    const stats = statsUnsafe()
    const lastConnectFailure = connector.lastFailure()
    return new Errors.AcquireTimeout({
      phase: phase ?? (stats.active >= stats.max ? "Queue" : "Connect"),
      waited: now() - startedAt,
      stats,
      lastConnectFailure: lastConnectFailure === undefined ? null : Errors.failureOf(lastConnectFailure)
    })
  }

  // ---------------------------------------------------------------------------------------------------------------
  // return
  // ---------------------------------------------------------------------------------------------------------------

  /** The end of every lease, on every exit. A session that must go leaves before anybody else can get it. */
  const takeBack = (session: Session.Session, isExclusive: boolean): void => {
    if (session.isMember && session.condemned === undefined) {
      if (session.wire.cancelThreat() === "Pending" && !session.wire.isDead()) return afterCancel(session, isExclusive)
      session.condemned = objection(session, now())
      if (session.condemned === undefined && session.borrowers === 1 && settings.afterRelease !== undefined) {
        return afterRelease(session, isExclusive, settings.afterRelease)
      }
    }
    putBack(session, isExclusive)
  }

  /** Why the session must not be lent again. */
  const objection = (session: Session.Session, at: number): Metrics.CloseReason | undefined => {
    if (session.wire.isDead()) return "error"
    // It would hit the next borrower's statement.
    if (session.wire.cancelThreat() !== "None") return "invalid"
    // Somebody's BEGIN is open, or something unasked for came last: the next borrower must not find out.
    if (session.borrowers === 1 && session.busy === 0 && !session.wire.isIdle()) return "invalid"
    // Those who wait must not wait for the check at the next checkout and then for a connect.
    if (machine.waiting > 0 && at >= session.expiresAt) return "lifetime"
    if (members.size > max) return "resize"
    if (phase === "Closed" || (phase === "Draining" && machine.waiting === 0)) return "shutdown"
    return undefined
  }

  const putBack = (session: Session.Session, isExclusive: boolean): void => {
    if (isExclusive) PoolMachine.include(machine, session)
    PoolMachine.giveBack(machine, session, now())
    if (session.isMember && session.condemned !== undefined) evictUnsafe(session, session.condemned)
    if (machine.waiting > 0) pump()
    else if (phase !== "Open") changed.notify()
  }

  /** Whoever gives the session back does not wait for the end of the CancelRequest, whoever wants it next does. */
  const afterCancel = (session: Session.Session, isExclusive: boolean): void => {
    const tooLate = Effect.sync(() => {
      session.condemned ??= "invalid"
    })
    runFork(
      Effect.timeoutOrElse(session.wire.cancelsDecided, { duration: settings.farewell, orElse: () => tooLate }).pipe(
        Effect.andThen(Effect.sync(() => takeBack(session, isExclusive)))
      )
    )
  }

  /** Nobody else gets the session while the hook is at work, and nobody waits for it. */
  const afterRelease = (
    session: Session.Session,
    isExclusive: boolean,
    hook: NonNullable<typeof settings.afterRelease>
  ): void => {
    PoolMachine.exclude(machine, session)
    runFork(
      Effect.suspend(() => hook(session.connection, usage(session))).pipe(
        Effect.timeout(settings.farewell),
        Effect.catchCause((cause) =>
          Effect.as(Effect.logWarning("the afterRelease hook failed; its session is closed", cause), false)
        ),
        Effect.map((answer) => {
          session.condemned ??= answer === false ? "invalid" : objection(session, now())
          session.exclusions--
          putBack(session, isExclusive)
        })
      )
    )
  }

  // ---------------------------------------------------------------------------------------------------------------
  // control
  // ---------------------------------------------------------------------------------------------------------------

  const statsUnsafe = (): Stats => {
    let active = 0
    let oldestLease = 0
    const at = now()
    for (const { borrowers, lentSince } of members) {
      if (borrowers === 0) continue
      active++
      oldestLease = Math.max(oldestLease, at - lentSince)
    }
    return {
      total: members.size,
      idle: members.size - active,
      active,
      waiting: machine.waiting,
      connecting: connector.connecting(),
      max,
      min,
      oldestLease
    }
  }

  const evictAll = Effect.sync(() => {
    generation++
    for (const session of Array.from(members)) evictUnsafe(session, "invalid")
  })

  const resize = (size: { readonly max?: number | undefined; readonly min?: number | undefined }) =>
    Effect.mapError(PoolSettings.resize({ max, min }, size), (bad) => new Errors.InvalidOption(bad)).pipe(
      Effect.map((next) => {
        max = next.max
        min = next.min
        while (members.size > max && machine.bottom !== undefined && machine.bottom.borrowers === 0) {
          retire(machine.bottom, "resize")
        }
        pump()
      })
    )

  const suspend = Effect.sync(() => {
    machine.isSuspended = true
  })

  const resume = Effect.sync(() => {
    machine.isSuspended = false
    pump()
  })

  const warm = (count: number): Effect.Effect<void, AcquireError> =>
    Effect.suspend(() => {
      if (phase !== "Open") return Effect.fail(new Errors.PoolClosed())
      const startedAt = now()
      return Effect.callback<void, AcquireError>((settle) => {
        const wish: Wish = {
          count,
          settle: (outcome) => {
            wishes.delete(wish)
            settle(outcome)
          }
        }
        wishes.add(wish)
        pump()
        return Effect.sync(() => wishes.delete(wish))
      }).pipe(Effect.timeoutOrElse({
        duration: settings.acquireTimeout,
        orElse: () => Effect.fail(timedOut(startedAt, undefined))
      }))
    })

  // ---------------------------------------------------------------------------------------------------------------
  // the end
  // ---------------------------------------------------------------------------------------------------------------

  /** A server does not look at a dead socket while it executes: what is not cancelled would run on, and commit. */
  const cancelAll = Effect.suspend(() =>
    Effect.forEach(
      Array.from(members).filter(({ borrowers, wire }) => borrowers > 0 && !wire.isDead()),
      ({ connection }) => connection.interrupt,
      { concurrency: "unbounded", discard: true }
    )
  )

  const destroyAll = Effect.sync(() => {
    for (const session of Array.from(members)) {
      session.condemned ??= "shutdown"
      session.wire.destroy({ by: "pool", message: "the pool closed before the work was done" })
    }
  })

  const retireUnused = (): void => {
    for (const session of Array.from(members)) if (session.borrowers === 0) retire(session, "shutdown")
  }

  const isQuiet = changed.until(() => machine.borrowed === 0 && machine.waiting === 0)

  /** New borrowers are turned away, those who wait are served, and what is idle goes. */
  const drain = (deadline: Duration.Input): Effect.Effect<number> =>
    Effect.suspend(() => {
      if (phase === "Open") phase = "Draining"
      machine.isSuspended = false
      if (machine.waiting === 0) retireUnused()
      pump()
      return Effect.timeoutOption(isQuiet, deadline).pipe(
        Effect.flatMap(() => {
          const cut = machine.borrowed + machine.waiting
          return Effect.as(end(0), cut)
        })
      )
    })

  const end = (grace: number): Effect.Effect<void> =>
    Effect.gen(function*() {
      phase = "Closed"
      refuseAll(new Errors.PoolClosed())
      retireUnused()
      if (retry !== undefined) yield* Fiber.interrupt(retry)
      yield* connector.abort
      const { allFree, taken } = connector
      yield* Effect.timeoutOption(allFree, grace)
      if (taken() > 0) yield* Effect.timeoutOption(Effect.andThen(cancelAll, allFree), cancelGrace)
      yield* destroyAll
      yield* Effect.timeoutOption(allFree, settings.farewell)
      yield* connector.abandon
    })

  yield* Effect.addFinalizer(() => end(settings.closeTimeout))
  const unregister = metrics.registerPool(statsUnsafe)
  yield* Effect.addFinalizer(() => Effect.sync(unregister))
  if (settings.reapEvery !== undefined) {
    yield* Effect.sync(() => retireIdle(now())).pipe(
      Effect.schedule(Schedule.spaced(settings.reapEvery)),
      Effect.forkScoped
    )
  }

  return Pool.of({
    name: metrics.pool,
    settings,
    use,
    get,
    reserve,
    exclude,
    stats: Effect.sync(statsUnsafe),
    statsUnsafe,
    connectPauseUnsafe: connector.pause,
    leavingUnsafe: () => connector.taken() - connector.connecting() - members.size,
    lastProofUnsafe: () => {
      let latest: number | undefined
      for (const { condemned, idleSince, isAnswering, wire } of members) {
        if (condemned === undefined && isAnswering && !wire.isDead()) latest = Math.max(latest ?? 0, idleSince)
      }
      return latest
    },
    evictAll,
    evictUnsafe,
    resize,
    suspend,
    resume,
    warm,
    drain,
    isClosing: () => phase !== "Open"
  })
})

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** One checkout that could not be served at once. */
interface Attempt {
  readonly waiter: Waiter
  isProving: boolean
}

/** Somebody who waits until there are so many sessions. */
interface Wish {
  readonly count: number
  readonly settle: (outcome: Effect.Effect<void, AcquireError>) => void
}

/**
 * Provides a {@link Pool}. Fails only for impossible options, never for a database that is down.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<Pool, Errors.InvalidOption, Metrics.Metrics> =>
  Layer.effect(Pool, make(options))
