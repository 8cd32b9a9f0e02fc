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
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as EffectPool from "effect/Pool"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as Os from "node:os"
import * as Errors from "./Errors.ts"
import * as Connector from "./internal/connector.ts"
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
  /** Wall-clock milliseconds at which a live session was last opened or given back. */
  readonly lastProofUnsafe: () => number | undefined
  /** Closes idle sessions now and lent ones when they come back: after a failover, or a change of credentials. */
  readonly evictAll: Effect.Effect<void>
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

type Item = EffectPool.PoolItem<Session.Session, AcquireError>

type Standing = "Ready" | "Unproven" | Metrics.CloseReason

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
  const now = () => clock.currentTimeMillisUnsafe()

  const sessions = new Map<Session.Session, Item>()
  /** Dead sessions that are still lent: whoever comes next must not wait for the end of their leases. */
  const fallen = new Set<Session.Session>()
  let generation = 0
  let closing = false

  const connector = Connector.make<AcquireError>({
    settings,
    now,
    draw: () => random.nextDoubleUnsafe(),
    runFork,
    generation: () => generation,
    refusal: () => closing ? new Errors.PoolClosed() : undefined,
    hookFailed: (hook, cause) => new Errors.HookFailed({ hook, cause }),
    onOpen: () => {
      store.connectionsOpened++
    },
    onGone: (session) => {
      evictUnsafe(session, closing ? "shutdown" : "error")
      sessions.delete(session)
      store.connectionsClosed[session.condemned ?? "error"]++
    }
  })

  // The sessions live in a scope of their own, so that closing the pool is bounded by its grace period and not by the
  // slowest borrower.
  const sessionScope = yield* Scope.make()
  const pool = yield* Scope.provide(
    EffectPool.makeWithStrategy<Session.Session, AcquireError, Scope.Scope>({
      acquire: connector.acquire,
      // The floor is kept by not retiring, never by opening ahead of need: see `min`.
      min: 0,
      max: settings.max,
      concurrency: settings.concurrency,
      strategy: {
        run: () => Effect.void,
        reclaim: () => Effect.undefined,
        onAcquire: (item) =>
          Effect.sync(() => {
            if (item.exit._tag === "Failure") return
            const session = item.exit.value
            // A session that died on its way here never enters the books: its socket tells it apart.
            if (!session.wire.isDead()) sessions.set(session, item)
            const giveBack = item.release(Exit.void)
            // Whoever gives a worn-out session back does not wait for its goodbye.
            if (settings.beforeDisconnect !== undefined) {
              item.finalizer = Effect.asVoid(Effect.forkDetach(item.finalizer, { startImmediately: true }))
            }
            item.release = () => takeBack(session, item, giveBack)
          })
      }
    }),
    sessionScope
  )

  // ---------------------------------------------------------------------------------------------------------------
  // what a session is worth
  // ---------------------------------------------------------------------------------------------------------------

  /** Others may share a session with `multiplex`, so it is idle only without a borrower, whoever asks being one. */
  const idleFor = (item: Item | undefined, borrowers: number, at: number): number =>
    item === undefined || item.refCount > borrowers ? 0 : at - item.idleSince

  const standing = (session: Session.Session, idleFor: number, at: number): Standing => {
    if (session.condemned !== undefined) return session.condemned
    if (session.wire.isDead()) return "error"
    if (session.generation !== generation) return "invalid"
    if (at >= session.expiresAt) return "lifetime"
    if (idleFor > settings.idleTimeout && sessions.size > settings.min && session.uses > 0) return "idle"
    // Waiting for it may take as long as opening another one, and longer.
    if (idleFor > settings.validationTimeout && session.wire.isResetting()) return "invalid"
    if (settings.validateAlways || idleFor > settings.validateAfter) return "Unproven"
    return "Ready"
  }

  const evictUnsafe = (session: Session.Session, reason: Metrics.CloseReason): void => {
    session.condemned ??= reason
    const item = sessions.get(session)
    // A lent session is replaced when it comes back. With borrowers waiting its replacement is opened at once, and
    // then connects as soon as the old socket is gone.
    if (item === undefined) return
    if (item.refCount === 0 || pool.state.waiters.size > 0) {
      runFork(EffectPool.invalidate(pool, session))
    } else if (session.wire.isDead()) {
      fallen.add(session)
    }
  }

  /**
   * Somebody's BEGIN is open, a statement or listener still at work, or something unasked for came last: the next
   * borrower must not find out. On a shared session, what others have at work there is in nobody's way.
   */
  const isLeftUnfinished = ({ busy, pins, wire }: Session.Session): boolean =>
    settings.concurrency === 1
      ? busy > 0 || pins > 0 || wire.isOwed() || !wire.isIdle()
      : busy === 0 && !wire.isIdle()

  /** The end of every lease, on every exit. A session that must go leaves before a waiting borrower can get it. */
  const takeBack = (session: Session.Session, item: Item, giveBack: Effect.Effect<void>): Effect.Effect<void> => {
    fallen.delete(session)
    const contended = pool.state.waiters.size > 0
    const threat = session.wire.cancelThreat()
    if (threat === "Pending" && session.condemned === undefined && !session.wire.isDead()) {
      return afterCancel(session, Effect.suspend(() => takeBack(session, item, giveBack)))
    }
    if (threat !== "None") {
      // It would hit the next borrower's statement.
      session.condemned ??= "invalid"
    } else if (session.wire.isDead()) {
      session.condemned ??= "error"
    } else if (item.refCount === 1 && isLeftUnfinished(session)) {
      session.condemned ??= "invalid"
    } else if (contended && now() >= session.expiresAt) {
      session.condemned ??= "lifetime"
    }
    if (session.condemned === undefined) {
      if (settings.resetFrame !== undefined) session.wire.reset(settings.resetFrame)
      return giveBack
    }
    const remove = EffectPool.invalidate(pool, session)
    return contended ? Effect.andThen(remove, giveBack) : Effect.andThen(giveBack, remove)
  }

  /** Whoever gives the session back does not wait for the end of the CancelRequest, whoever wants it next does. */
  const afterCancel = (session: Session.Session, then: Effect.Effect<void>): Effect.Effect<void> => {
    const decided = Effect.timeoutOrElse(session.wire.cancelsDecided, {
      duration: settings.farewell,
      orElse: () =>
        Effect.sync(() => {
          session.condemned ??= "invalid"
        })
    })
    return Effect.sync(() => runFork(Effect.andThen(decided, then)))
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
      EffectPool.reserve(pool, session),
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

  const evictOlderThan = (session: Session.Session): void => {
    for (const other of sessions.keys()) {
      if (other.openedAt <= session.openedAt) evictUnsafe(other, "invalid")
    }
  }

  const replaceFallen = (): void => {
    for (const session of fallen) runFork(EffectPool.invalidate(pool, session))
    fallen.clear()
  }

  const retireIdle = (at: number): void => {
    for (const [session, item] of sessions) {
      if (item.refCount > 0) continue
      const verdict = standing(session, at - item.idleSince, at)
      if (verdict === "Ready" || verdict === "Unproven") continue
      sessions.delete(session)
      session.condemned ??= verdict
      runFork(EffectPool.invalidate(pool, session))
    }
  }

  // ---------------------------------------------------------------------------------------------------------------
  // checkout
  // ---------------------------------------------------------------------------------------------------------------

  const lend = (session: Session.Session): Session.Session => {
    if (++session.uses >= settings.maxUses) evictUnsafe(session, "uses")
    return session
  }

  const use = <A, E, R>(
    f: (session: Session.Session) => Effect.Effect<A, E, R>,
    options?: CheckoutOptions
  ): Effect.Effect<A, E | AcquireError, R> =>
    Effect.suspend(() => {
      const { availableHead: head, availableTail: tail, waiters } = pool.state
      if (
        options !== undefined || closing || waiters.size > 0 || head === undefined || head.exit._tag === "Failure"
      ) {
        return useAfterWait(f, options)
      }
      const at = now()
      if (standing(head.exit.value, idleFor(head, 0, at), at) !== "Ready") return useAfterWait(f, options)
      if (tail !== undefined && tail !== head && at - tail.idleSince > settings.idleTimeout) retireIdle(at)
      store.acquire.observe(0)
      return EffectPool.use(pool, (session) => f(lend(session)))
    })

  const useAfterWait = <A, E, R>(
    f: (session: Session.Session) => Effect.Effect<A, E, R>,
    options: CheckoutOptions | undefined
  ): Effect.Effect<A, E | AcquireError, R> =>
    Effect.scopedWith((scope) => Effect.flatMap(Scope.provide(get(options), scope), f))

  const get = (options?: CheckoutOptions): Effect.Effect<Session.Session, AcquireError, Scope.Scope> =>
    Effect.flatMap(Effect.scope, (scope) => checkout(scope, options, (session) => Effect.succeed(session)))

  /** Takes the session out of circulation and waits for what others still have on the wire. */
  const pin: Prepare<Lease> = (session, lease, progress) => {
    const pinned = Scope.provide(EffectPool.reserve(pool, session), lease).pipe(
      Effect.andThen(Scope.provide(session.connection.pin, lease)),
      Effect.map((connection): Lease => ({ session, connection }))
    )
    if (settings.concurrency === 1) return pinned
    // The driver's own wait cannot be interrupted, so it goes on by itself when its borrower gives up.
    return Effect.flatMap(Effect.forkDetach(pinned, { startImmediately: true }), (fiber) => {
      progress.pinning = fiber
      return Fiber.join(fiber)
    })
  }

  const reserve = (options?: CheckoutOptions): Effect.Effect<Lease, AcquireError, Scope.Scope> =>
    Effect.flatMap(Effect.scope, (scope) => checkout(scope, options, pin))

  /** Everything that may take time before a session is in its borrower's hands, under one bound. */
  const checkout = <A>(
    scope: Scope.Scope,
    options: CheckoutOptions | undefined,
    prepare: Prepare<A>
  ) =>
    Effect.suspend((): Effect.Effect<A, AcquireError> => {
      if (closing) return Effect.fail(new Errors.PoolClosed())
      // Whoever waits for a session that may still be opened is not queueing.
      const queueing = pool.state.usage - settings.max * settings.concurrency
      if (queueing >= settings.maxWaiting) {
        return Effect.fail(
          new Errors.PoolSaturated({ waiting: queueing, maxWaiting: settings.maxWaiting, stats: statsUnsafe() })
        )
      }
      const startedAt = now()
      const timeout = options?.timeout ?? settings.acquireTimeout
      const progress: Progress = { proving: false, pinning: undefined }
      const lease = Scope.forkUnsafe(scope)
      return firstWorthy(lease, progress, options?.prove ?? false).pipe(
        Effect.flatMap((session) => prepare(session, lease, progress)),
        Effect.timeoutOrElse({
          duration: timeout,
          orElse: () => {
            store.acquireTimeouts++
            return Effect.fail(acquireTimeout(now() - startedAt, progress))
          }
        }),
        Effect.onExit((exit) => {
          store.acquire.observe((now() - startedAt) / 1000)
          if (Exit.isSuccess(exit)) return Effect.void
          const giveBack = Scope.close(lease, exit)
          return progress.pinning === undefined
            ? giveBack
            : Effect.forkDetach(Effect.andThen(Fiber.await(progress.pinning), giveBack))
        })
      )
    })

  /** Takes sessions until one is worth handing out; whatever is not goes back and out. */
  const firstWorthy = (
    lease: Scope.Scope,
    progress: Progress,
    alwaysProve: boolean
  ): Effect.Effect<Session.Session, AcquireError> =>
    Effect.suspend(() => {
      if (closing) return Effect.fail(new Errors.PoolClosed())
      retireIdle(now())
      replaceFallen()
      const attempt = Scope.forkUnsafe(lease)
      const again = Effect.suspend(() =>
        Effect.andThen(Scope.close(attempt, Exit.void), firstWorthy(lease, progress, alwaysProve))
      )
      return Scope.provide(EffectPool.get(pool), attempt).pipe(
        Effect.catchCause((cause) =>
          closing && Cause.hasInterruptsOnly(cause)
            ? Effect.fail(new Errors.PoolClosed())
            : Effect.failCause(cause)
        ),
        Effect.flatMap((session) => {
          const at = now()
          const item = sessions.get(session)
          const verdict = standing(session, idleFor(item, 1, at), at)
          const isShared = item !== undefined && item.refCount > 1
          if (verdict !== "Ready" && verdict !== "Unproven") {
            evictUnsafe(session, verdict)
            return again
          }
          // One in use is watched by its statements. A new one may only have been proved by a pooler.
          const isProved = verdict === "Ready" && !alwaysProve
          if (isProved || isShared) return Effect.succeed(lend(session))
          progress.proving = true
          return Effect.flatMap(prove(session), (alive) => {
            progress.proving = false
            if (alive) return Effect.succeed(lend(session))
            evictOlderThan(session)
            return again
          })
        })
      )
    })

  const acquireTimeout = (waited: number, progress: Progress) => {
    const stats = statsUnsafe()
    const lastConnectFailure = connector.lastFailure()
    return new Errors.AcquireTimeout({
      phase: progress.proving ? "Validate" : stats.active >= stats.max ? "Queue" : "Connect",
      waited,
      stats,
      lastConnectFailure: lastConnectFailure === undefined ? null : Errors.failureOf(lastConnectFailure)
    })
  }

  // ---------------------------------------------------------------------------------------------------------------
  // looking in, and the end
  // ---------------------------------------------------------------------------------------------------------------

  const statsUnsafe = (): Stats => {
    const { idle, used } = Effect.runSync(EffectPool.stats(pool))
    return {
      total: idle + used,
      idle,
      active: used,
      waiting: pool.state.waiters.size,
      connecting: connector.connecting(),
      max: settings.max,
      min: settings.min
    }
  }

  const evictAll = Effect.sync(() => {
    generation++
    for (const session of Array.from(sessions.keys())) evictUnsafe(session, "invalid")
  })

  /** A server does not look at a dead socket while it executes: what is not cancelled would run on, and commit. */
  const cancelAll = Effect.suspend(() =>
    Effect.forEach(
      Array.from(sessions).filter(([session, item]) => item.refCount > 0 && !session.wire.isDead()),
      ([session]) => session.connection.interrupt,
      { concurrency: "unbounded", discard: true }
    )
  )

  const destroyAll = Effect.sync(() => {
    for (const session of Array.from(sessions.keys())) {
      session.condemned ??= "shutdown"
      session.wire.destroy({ by: "pool", message: "the pool closed before the work was done" })
    }
  })

  const close = Effect.gen(function*() {
    closing = true
    for (const [session, item] of sessions) if (item.refCount === 0) session.condemned ??= "shutdown"
    yield* Effect.forkDetach(Scope.close(sessionScope, Exit.void), { startImmediately: true })
    const { sockets, socketsGone } = connector
    yield* Effect.timeoutOption(socketsGone, settings.closeTimeout)
    if (sockets() > 0) yield* Effect.timeoutOption(Effect.andThen(cancelAll, socketsGone), cancelGrace)
    yield* destroyAll
    yield* Effect.timeoutOption(socketsGone, settings.farewell)
  })

  yield* Effect.addFinalizer(() => close)
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
    exclude: (session) => EffectPool.reserve(pool, session),
    stats: Effect.sync(statsUnsafe),
    statsUnsafe,
    connectPauseUnsafe: connector.pause,
    lastProofUnsafe: () => {
      let latest: number | undefined
      for (const [session, item] of sessions) {
        if (session.condemned === undefined && session.isAnswering && !session.wire.isDead()) {
          latest = Math.max(latest ?? 0, item.idleSince)
        }
      }
      return latest
    },
    evictAll,
    evictUnsafe,
    isClosing: () => closing
  })
})

/** How far a checkout has come. */
interface Progress {
  proving: boolean
  pinning: Fiber.Fiber<unknown> | undefined
}

/** The last step of a checkout. Everything it takes belongs to the lease. */
type Prepare<A> = (session: Session.Session, lease: Scope.Scope, progress: Progress) => Effect.Effect<A>

/**
 * Provides a {@link Pool}. Fails only for impossible options, never for a database that is down.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<Pool, Errors.InvalidOption, Metrics.Metrics> =>
  Layer.effect(Pool, make(options))
