/**
 * A scoped pool of PostgreSQL sessions: sizing, checkout, liveness, retirement and an orderly end.
 *
 * The pool owns no policy about failing work: it lends sessions and says the truth about why it cannot. Breaking and
 * retrying is done above it.
 *
 * @since 0.1.0
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as Os from "node:os"
import * as Errors from "./Errors.ts"
import * as Address from "./internal/address.ts"
import * as Census from "./internal/census.ts"
import * as Checkout from "./internal/checkout.ts"
import * as Connector from "./internal/connector.ts"
import * as Discretion from "./internal/discretion.ts"
import * as Exclusive from "./internal/exclusive.ts"
import type * as FleetPlan from "./internal/fleet.ts"
import * as FleetSize from "./internal/fleetSize.ts"
import * as Hosts from "./internal/hosts.ts"
import * as Leaks from "./internal/leaks.ts"
import * as Lending from "./internal/lending.ts"
import * as Lodger from "./internal/lodger.ts"
import * as Logbook from "./internal/logbook.ts"
import * as LogFields from "./internal/logFields.ts"
import * as PoolMachine from "./internal/poolMachine.ts"
import * as PoolSettings from "./internal/poolSettings.ts"
import * as PoolSpans from "./internal/poolSpans.ts"
import * as PoolState from "./internal/poolState.ts"
import * as Retirement from "./internal/retirement.ts"
import * as Returns from "./internal/returns.ts"
import type * as Session from "./internal/session.ts"
import * as Shutdown from "./internal/shutdown.ts"
import * as Sizing from "./internal/sizing.ts"
import * as Supply from "./internal/supply.ts"
import * as Turns from "./internal/turns.ts"
import * as VitalSigns from "./internal/vitalSigns.ts"
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
  /** The same, with its errors as the driver makes them: they show all that the server says. */
  readonly driver: PgConnection.PgConnection
}

/**
 * A lease that its borrower ends by himself.
 *
 * @category models
 * @since 0.1.0
 */
export interface ExclusiveLease extends Lease {
  /** Whether the driver keeps others from the session, and the lease's statements in order. */
  readonly isPinned: boolean
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
 * - `CredentialsFailed`: no password could be had.
 * - `NoSuitableHost`: none of the hosts could be connected to and is what `targetSessionAttrs` asks for.
 * - `FleetTooLarge`: the server has no room for the fleet, and `whenUnsafe` is `"fail"`.
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
  | Errors.CredentialsFailed
  | Errors.NoSuitableHost
  | Errors.FleetTooLarge
  | SqlError

/**
 * How a checkout differs from the usual one.
 *
 * @category models
 * @since 0.1.0
 */
export interface CheckoutOptions extends Checkout.CheckoutOptions {}

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
  /**
   * The healthy checkout by itself: a session at once, or `undefined`, and then {@link use} has to wait for one. Every
   * session must come back by `giveBackUnsafe`, once, whatever becomes of the work.
   */
  readonly takeUnsafe: () => PoolSession | undefined
  /**
   * Ends what `takeUnsafe` has begun. `seconds` says for how long the session was lent; without it, that is how long the last
   * statement on it took.
   */
  readonly giveBackUnsafe: (session: PoolSession, seconds?: number) => void
  /**
   * What {@link use} does for whoever has to wait and is not traced, in fewer steps; `undefined` where `use` has more to do.
   * Whoever gets a place has to run it once, and to leave it on every exit.
   */
  readonly standUnsafe: (passenger: Turns.Passenger) => Turns.Place | undefined
  /** Lends what somebody in line was handed, once it has been looked at. */
  readonly examinedUnsafe: <A, E, R>(
    claim: Turns.Claim,
    f: (session: PoolSession) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | AcquireError, R>
  /** Lends a session until the scope closes. With `multiplex` it may be shared. */
  readonly get: (options?: CheckoutOptions) => Effect.Effect<PoolSession, AcquireError, Scope.Scope>
  /**
   * Lends a session for exclusive use until the scope closes: for transactions, listeners, and whatever sets session
   * state. A session that comes back inside a transaction, or with a statement or listener open, is closed.
   */
  readonly reserve: (options?: CheckoutOptions) => Effect.Effect<Lease, AcquireError, Scope.Scope>
  /**
   * The same for whoever cannot be interrupted but where `restore` allows it, and gives the session back by himself: it is
   * his as soon as `take` succeeds, and nobody's any more when what `giveBack` returns has been run. The lease is its
   * session's own connection where nobody could share it, and does not keep its statements in order then.
   */
  readonly exclusiveUnsafe: {
    readonly take: (
      restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
    ) => Effect.Effect<ExclusiveLease, AcquireError>
    readonly giveBack: (lease: ExclusiveLease) => Effect.Effect<void> | undefined
  }
  /** Keeps a session that is shared by `multiplex` from being lent to anybody else until the scope closes. */
  readonly exclude: (session: PoolSession) => Effect.Effect<void, never, Scope.Scope>
  readonly stats: Effect.Effect<Stats>
  readonly statsUnsafe: () => Stats
  /**
   * What the server has said of its places, and what follows from it for a pool that is sized by {@link sizeForFleet}.
   * `None` without a fleet, behind a pooler, and until the first session has asked. Asks nobody.
   */
  readonly fleet: Effect.Effect<Option.Option<FleetReport>>
  /** Milliseconds until the next connect is tried after failed ones, 0 when it may be tried now. */
  readonly connectPauseUnsafe: () => number
  /** Lets the next connect be tried now, whatever is left of the pause after failed ones, which is not changed if it fails. */
  readonly outOfTurnUnsafe: () => void
  /** Why the last connect failed, when none has worked since. */
  readonly lastConnectFailureUnsafe: () => AcquireError | undefined
  /** Sessions that have ended here, and not yet on the server: their places are taken. */
  readonly leavingUnsafe: () => number
  /** What can be told of the database without asking it. */
  readonly vitalSignsUnsafe: () => VitalSigns.VitalSigns
  /** Closes idle sessions now and lent ones when they come back: after a failover, or a change of credentials. */
  readonly evictAll: Effect.Effect<void>
  /**
   * Changes the bounds. A larger pool serves those who wait at once; a smaller one closes idle sessions now and lent ones
   * when they come back. Fails with `InvalidOption` for an impossible size. A `min` above a new `max` becomes that.
   * A `max` given here stays, whatever {@link sizeForFleet} finds out later.
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
   * are served, and what is idle is closed. At the deadline the rest is cut off: whoever waits gets `PoolClosed`, statements
   * are cancelled, and soon after sockets are destroyed. Succeeds with the number of borrowers that were left at the deadline.
   */
  readonly drain: (deadline: Duration.Input) => Effect.Effect<number>
  /** Takes one session out of circulation: now when it is idle, when it comes back otherwise. */
  readonly evictUnsafe: (session: PoolSession, reason: Metrics.CloseReason) => void
  /** True from the moment the pool's scope starts to close. */
  readonly isClosing: () => boolean
  /** Succeeds then. */
  readonly closing: Effect.Effect<void>
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

/**
 * The fleet that a pool belongs to: all the pools that share its `applicationName`, user and database.
 *
 * @category models
 * @since 0.1.0
 */
export interface FleetOptions extends FleetPlan.FleetOptions {}

/**
 * A fleet as an option of a pool. Opaque: only {@link sizeForFleet} makes one.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fleet extends FleetSize.FleetOption {}

/**
 * What the server has said of its places, at `at` (wall-clock milliseconds), and what follows from it for the pool.
 *
 * @category models
 * @since 0.1.0
 */
export interface FleetReport extends FleetSize.Report {}

/**
 * The size for one of many equal environments (Lambda, Cloud Run, a fleet of containers), so that all of them together stay
 * within what the server allows. To be spread into the options of a pool that reaches the server itself.
 *
 * The server's own limits say how much there is; what other programs use of each is taken off, and the least that is left
 * is the budget of the fleet:
 *
 * ```
 * budget = min(max_connections - superuser_reserved_connections - reserved_connections - others on the server,
 *              CONNECTION LIMIT of the user - others of that user,
 *              CONNECTION LIMIT of the database - others in it)
 * max    = clamp(floor(share * budget / (environments * workers * overlap)), 1, ceiling)
 * ```
 *
 * Who belongs to the fleet is told by `applicationName`, user and database, so each program needs a name of its own. Until
 * the first session has asked, the pool has one session. The question travels in front of the first statement and costs it
 * no round trip; it is asked again when a minute has gone by, and after a failover. What the server answers is in
 * `Pool.fleet`. Any user may ask; a server that does not answer leaves the pool as it is, with a line in the log.
 *
 * - `ceiling` becomes the `max` of the options: more than one environment has use for helps nobody. Default: 2, as in
 *   {@link sizeServerless}.
 * - When not even one session each is safe, `whenUnsafe` says whether that is a log line (`"warn"`, the default), or the
 *   error `FleetTooLarge` (`"fail"`). Either names the concurrency that would be safe.
 * - Behind a pooler (`pooler: "transaction"`, or a host that looks like one) the limits are not those of its clients: the
 *   pool has `ceiling` sessions at most, and nothing is asked.
 * - `resize` with a `max` wins from then on.
 *
 * Limits: https://www.postgresql.org/docs/current/runtime-config-connection.html and
 * https://www.postgresql.org/docs/current/sql-createrole.html
 *
 * @example
 * ```ts
 * import * as Pg from "effect-pg-pool"
 *
 * export const DatabaseLive = Pg.layer({
 *   applicationName: "orders",
 *   // The function's reserved concurrency.
 *   ...Pg.Pool.sizeForFleet({ environments: 30 })
 * })
 * ```
 *
 * @category sizing
 * @since 0.1.0
 */
export const sizeForFleet = (
  { ceiling = Sizing.serverless.max, ...fleet }: FleetOptions & { readonly ceiling?: number | undefined }
): Sizing.Size & { readonly whenServerFull: "wait"; readonly fleet: Fleet } => ({
  max: ceiling,
  min: 0,
  whenServerFull: "wait",
  fleet: FleetSize.optionOf(fleet)
})

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
  const runFork = Effect.runForkWith(Logbook.naming(yield* Effect.context<never>(), metrics.pool))
  const book = yield* Logbook.make(metrics.pool)
  const home = yield* Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => Effect.succeed(fiber))
  const dispatcher = home.currentDispatcher
  const now = () => clock.currentTimeMillisUnsafe()
  const monotonicNanos = () => clock.monotonicTimeNanosUnsafe()
  const monotonic = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

  const treat = Discretion.treatmentOf(settings.errorText)
  const state = PoolState.make<AcquireError>(settings, now, monotonic, runFork, book)
  const { elapsed, machine } = state
  const { members } = machine

  const statsUnsafe = (): Stats => Census.take(state, connector.connecting())

  const closed = () => new Errors.PoolClosed()

  const saturated = (by: "Length" | "Lateness", waited: number) =>
    new Errors.PoolSaturated({
      by,
      waited,
      waiting: machine.waiting,
      maxWaiting: settings.maxWaiting === Infinity ? null : settings.maxWaiting,
      stats: statsUnsafe()
    })

  const timedOut = (waited: number, phase: Errors.AcquireTimeout["phase"] = Census.lineFor(state)) => {
    const lastConnectFailure = connector.lastFailure()
    const error = new Errors.AcquireTimeout({
      phase,
      waited,
      stats: statsUnsafe(),
      lastConnectFailure: lastConnectFailure === undefined ? null : Errors.failureOf(lastConnectFailure)
    })
    book.write("acquireTimeout", () => LogFields.waitedInVain(error))
    return error
  }

  const hookFailed = (hook: string, cause: unknown, text = Discretion.wordsOf(cause, settings.errorText)) =>
    new Errors.HookFailed({ hook, cause: Discretion.seal(cause), text })

  const retirement = Retirement.make(state)
  const vitalSigns = VitalSigns.make(state, () => clock.monotonicTimeNanosUnsafe())
  const supply = Supply.make(state, retirement, () => connector, (waited) => saturated("Lateness", waited))
  const spans = PoolSpans.make({
    pool: metrics.pool,
    database: settings.target.address.database,
    home,
    machine,
    connecting: () => connector.connecting()
  })
  const setSize = (size: Sizing.Size): void => {
    Object.assign(state, size)
    retirement.retireSurplus()
    retirement.spare()
    supply.pump()
  }
  /** A fleet that leaves no room for it takes it back for a while only. */
  let wantedMin = settings.min
  const fleet = settings.fleet?.keep<AcquireError>(
    state,
    (max) => setSize({ max, min: Math.min(wantedMin, max) }),
    (report) => new Errors.FleetTooLarge(report)
  )
  if (settings.fleetOffAt !== undefined) {
    book.write("fleetOff", () => ({ "server.address": settings.fleetOffAt!, "db.pool.max": settings.max }))
  }
  const connector: Connector.Connector<AcquireError> = Connector.make<AcquireError>({
    settings,
    now,
    monotonicNanos,
    draw: () => random.nextDoubleUnsafe(),
    runFork,
    book,
    generation: () => state.generation,
    hookFailed,
    credentialsFailed: (cause, refusal) =>
      new Errors.CredentialsFailed({
        cause: Discretion.seal(cause),
        text: Discretion.wordsOf(cause, settings.errorText),
        refusal: refusal === undefined ? null : Errors.failureOf(refusal)
      }),
    noSuitableHost: (findings) =>
      new Errors.NoSuitableHost({
        targetSessionAttrs: settings.sessionAttrs,
        hosts: findings.map(({ address, failure, role }) => ({
          host: Address.shownHost(address),
          role: role === undefined ? null : Hosts.nameOf(role),
          failure: failure === undefined ? null : Errors.failureOf(failure)
        }))
      }),
    evict: (session) => retirement.evict(session, "invalid"),
    approve: fleet?.approve,
    onSetOut: spans.connecting,
    onOpen: (session) => {
      vitalSigns.met(session)
      if (fleet?.approve === undefined) fleet?.met(session)
      store.connectionsOpened++
      book.write("connectionOpened", () => LogFields.opened(session, settings))
    },
    onReady: supply.arrived,
    onFailed: supply.failed,
    onConnect: (outcome, seconds) => store.connect[outcome].observe(seconds),
    onGone: (session) => {
      vitalSigns.parted(session)
      session.condemned ??= state.phase === "Open" ? "error" : "shutdown"
      store.connectionsClosed[session.condemned]++
      PoolMachine.dismiss(machine, session)
      runFork(Scope.close(session.scope, Exit.void))
      book.write("connectionClosed", () => LogFields.closed(session, settings, now()))
    },
    onPlace: supply.pump
  })
  const usage = (session: Session.Session): PoolSettings.SessionUsage => {
    const at = now()
    return { age: at - session.openedAt, idleFor: retirement.idleFor(session, 1, at), uses: session.uses }
  }
  const rest = () => turns.rest()
  const { takeBack } = Returns.make(state, retirement, usage, supply.pump, rest)
  const leaks = settings.leakThreshold === undefined
    ? undefined
    : Leaks.make({ threshold: settings.leakThreshold, book, now, runFork })

  const exclude = (session: Session.Session): Effect.Effect<void, never, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.sync(() => PoolMachine.exclude(machine, session)),
      () =>
        Effect.sync(() => {
          PoolMachine.include(machine, session)
          supply.pump()
        })
    )

  const rooms = { state, retirement, supply, connector, store, dispatcher, takeBack, timedOut }
  const checkouts = Checkout.make<AcquireError>({
    ...rooms,
    spans,
    usage,
    exclude,
    lent: fleet?.lent,
    rest,
    closed,
    saturated,
    hookFailed
  })
  const { turns, ...lending } = Lending.make<AcquireError>({ ...rooms, checkouts, leaks })
  const exclusive = Exclusive.make<AcquireError>({ ...rooms, checkouts, turns, leaks, treat })

  const resize = (size: { readonly max?: number | undefined; readonly min?: number | undefined }) =>
    Effect.suspend(() => PoolSettings.resize(state, size)).pipe(
      Effect.mapError((bad) => new Errors.InvalidOption(bad)),
      Effect.map((next) => {
        if (size.max !== undefined) fleet?.overrule()
        if (size.min !== undefined) wantedMin = size.min
        setSize(next)
      })
    )

  const suspend = Effect.sync(() => {
    machine.isSuspended = true
  })

  const resume = Effect.sync(() => {
    machine.isSuspended = false
    supply.pump()
  })

  const warm = (count: number): Effect.Effect<void, AcquireError> =>
    Effect.suspend(() => {
      if (state.phase !== "Open") return Effect.fail(closed())
      const startedAt = now()
      return supply.warm(count).pipe(Effect.timeoutOrElse({
        duration: settings.acquireTimeout,
        orElse: () => Effect.fail(timedOut(elapsed(startedAt)))
      }))
    })

  const { drain, end } = Shutdown.make({
    state,
    supply,
    retirement,
    connector,
    attempts: () => checkouts.attempts() + turns.attempts(),
    closed
  })

  const isUp = () => connector.lastFailure() === undefined || members.size > 0
  const unregister = metrics.registerPool(statsUnsafe, {
    isUp,
    lastAnswerAt: () => vitalSigns.read().lastAnswerAt,
    server: Address.attributes(settings.target.address)
  })
  // The last to go: who closes is told of until the end.
  yield* Effect.addFinalizer(() => Effect.sync(unregister))
  yield* Lodger.enter({
    name: metrics.pool,
    state,
    retirement,
    connector,
    serverUtilisation: () => fleet?.report()?.utilisation,
    warm
  })
  if (leaks !== undefined) yield* Effect.addFinalizer(() => Effect.sync(leaks.close))
  yield* Effect.addFinalizer(() => end(settings.closeTimeout))
  if (settings.reapEvery !== undefined) {
    yield* Effect.sleep(settings.reapEvery).pipe(
      Effect.andThen(Effect.sync(() => retirement.retireIdle(now()))),
      Effect.forever,
      Effect.forkScoped
    )
  }

  const isClosing = () => state.phase !== "Open"

  return Pool.of({
    name: metrics.pool,
    settings,
    ...lending,
    reserve: exclusive.reserve,
    exclusiveUnsafe: exclusive,
    exclude,
    stats: Effect.sync(statsUnsafe),
    statsUnsafe,
    fleet: Effect.sync(() => Option.fromUndefinedOr(fleet?.report())),
    connectPauseUnsafe: connector.pause,
    outOfTurnUnsafe: connector.outOfTurn,
    lastConnectFailureUnsafe: connector.lastFailure,
    leavingUnsafe: () => connector.taken() - connector.connecting() - members.size,
    vitalSignsUnsafe: vitalSigns.read,
    evictAll: Effect.sync(retirement.evictAll),
    evictUnsafe: retirement.evict,
    resize,
    suspend,
    resume,
    warm,
    drain,
    isClosing,
    closing: state.changed.until(isClosing)
  })
})

/**
 * Provides a {@link Pool}. Fails only for impossible options, never for a database that is down.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<Pool, Errors.InvalidOption, Metrics.Metrics> =>
  Layer.effect(Pool, make(options))
