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
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as Os from "node:os"
import * as Errors from "./Errors.ts"
import * as Address from "./internal/address.ts"
import * as Census from "./internal/census.ts"
import * as Connector from "./internal/connector.ts"
import * as Discretion from "./internal/discretion.ts"
import * as Errand from "./internal/errand.ts"
import type * as FleetPlan from "./internal/fleet.ts"
import * as FleetSize from "./internal/fleetSize.ts"
import * as Hosts from "./internal/hosts.ts"
import * as Leaks from "./internal/leaks.ts"
import * as Liveness from "./internal/liveness.ts"
import * as Lodger from "./internal/lodger.ts"
import * as Logbook from "./internal/logbook.ts"
import * as LogFields from "./internal/logFields.ts"
import { millis } from "./internal/millis.ts"
import * as PoolMachine from "./internal/poolMachine.ts"
import * as PoolSettings from "./internal/poolSettings.ts"
import * as PoolSpans from "./internal/poolSpans.ts"
import * as PoolState from "./internal/poolState.ts"
import * as Retirement from "./internal/retirement.ts"
import * as Returns from "./internal/returns.ts"
import type * as Session from "./internal/session.ts"
import * as Shutdown from "./internal/shutdown.ts"
import * as Sizing from "./internal/sizing.ts"
import type * as Spans from "./internal/spans.ts"
import * as StatementSpan from "./internal/statementSpan.ts"
import * as Store from "./internal/store.ts"
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
export interface CheckoutOptions {
  /** Prove the session by a round trip before it is handed out. Default: only when it has been idle for long. */
  readonly prove?: boolean | undefined
  /** Bounds that round trip. Default: the pool's `validationTimeout`. */
  readonly proveWithin?: Duration.Input | undefined
  /** Bounds this checkout. Default: the pool's `acquireTimeout`. */
  readonly timeout?: Duration.Input | undefined
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
   * his as soon as `take` succeeds. `undefined` with `multiplex` or `leakThreshold`. `since` is when it was taken, in
   * nanoseconds of the monotonic clock.
   */
  readonly exclusiveUnsafe: {
    readonly take: (
      restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
    ) => Effect.Effect<PoolSession, AcquireError>
    readonly giveBack: (session: PoolSession, since: bigint) => void
  } | undefined
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
  /** Lets the next connect be tried now, whatever is left of the pause after failed ones. */
  readonly reopenUnsafe: () => void
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

/** How many new sessions in a row `beforeAcquire` may refuse in a pool that is smaller. */
const fewestRefusals = 3

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
  const runFork = Effect.runForkWith(Logbook.naming(yield* Effect.context<never>(), metrics.pool))
  const book = yield* Logbook.make(metrics.pool)
  const home = yield* Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => Effect.succeed(fiber))
  const dispatcher = home.currentDispatcher
  const now = () => clock.currentTimeMillisUnsafe()
  const monotonicNanos = () => clock.monotonicTimeNanosUnsafe()
  const monotonic = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const secondsSince = (since: number) => (monotonic() - since) / 1000
  /** The wall clock may be set back. */
  const elapsed = (since: number) => Math.max(0, now() - since)

  const treat = Discretion.treatmentOf(settings.errorText)
  const hookFailed = (hook: string, cause: unknown, text = Discretion.wordsOf(cause, settings.errorText)) =>
    new Errors.HookFailed({ hook, cause: Discretion.seal(cause), text })

  const state = PoolState.make<AcquireError>(settings, now, monotonic, runFork, book)
  const { machine } = state
  const { members } = machine
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
  /** Checkouts under way: in line, or with a session that is being looked at. */
  let attempts = 0
  const usage = (session: Session.Session): PoolSettings.SessionUsage => {
    const at = now()
    return { age: at - session.openedAt, idleFor: retirement.idleFor(session, 1, at), uses: session.uses }
  }
  const { takeBack } = Returns.make(state, retirement, usage, supply.pump, () => turns.rest())
  const leaks = settings.leakThreshold === undefined
    ? undefined
    : Leaks.make({ threshold: settings.leakThreshold, book, now, runFork })

  // ---------------------------------------------------------------------------------------------------------------
  // checkout
  // ---------------------------------------------------------------------------------------------------------------

  /** Whoever wants a session that others share has it when they have let go of it. */
  const isPinnedLater = settings.concurrency > 1

  const countRefusal = <E extends AcquireError>(error: E): Effect.Effect<never, E> => {
    const refused = Exit.fail(error)
    Store.countAcquire(store, 0, refused)
    return refused
  }

  const countAcquire = (exit: Exit.Exit<unknown, unknown>, since: number): void =>
    Store.countAcquire(store, secondsSince(since), exit)

  /** The whole way of a healthy borrower: the session that came back last, if nobody waits and nothing speaks against it. */
  const takeReady = (isExclusive: boolean): Session.Session | undefined => {
    const { bottom, head, isSuspended } = machine
    if (head !== undefined || isSuspended || state.phase !== "Open" || settings.beforeAcquire !== undefined) {
      return undefined
    }
    if (machine.top === undefined && (isExclusive || !isPinnedLater)) return undefined
    const at = now()
    const top = machine.top ?? supply.deeper(at)
    if (top === undefined || (isExclusive && top.borrowers > 0)) return undefined
    if (retirement.standing(top, 0, at) !== "Ready") return undefined
    if (
      bottom !== undefined && bottom !== top && at - bottom.idleSince > settings.idleTimeout && retirement.isDue(at)
    ) {
      retirement.retireIdle(at)
      // One that nobody has used yet may have been idle for as long as the others.
      if (!top.isMember) return undefined
    }
    if (!isExclusive || !isPinnedLater) store.acquire.acquired.observe(0)
    supply.servedAtOnce(at)
    PoolMachine.lend(machine, top, at, isExclusive)
    return countUse(top)
  }

  const countUse = (session: Session.Session): Session.Session => {
    if (++session.uses >= settings.maxUses && elapsed(session.openedAt) >= settings.minAgeForUses) {
      retirement.evict(session, "uses")
    }
    if (fleet !== undefined) fleet.lent(session)
    return session
  }

  const takeUnsafe = (): Session.Session | undefined => {
    if (leaks !== undefined) return undefined
    const session = takeReady(false)
    if (session !== undefined && !isPinnedLater) session.lastTook = 0
    return session
  }

  const giveBackUnsafe = (session: Session.Session, seconds: number = lentFor(session)): void => {
    store.use.observe(seconds)
    takeBack(session, false)
  }

  const hasNone = () => machine.top === undefined && (!isPinnedLater || machine.isCrammed)

  const use = <A, E, R>(
    f: (session: Session.Session) => Effect.Effect<A, E, R>,
    options?: CheckoutOptions
  ): Effect.Effect<A, E | AcquireError, R> =>
    Effect.suspend(() => {
      // Whoever has to wait pays for nothing that the others need.
      if (options === undefined && (machine.head !== undefined || hasNone())) return useInTurn(f)
      let lent: Session.Session | undefined
      let since: number | undefined
      // Whoever is interrupted between two steps must have the way back laid before the session is taken.
      return Effect.onExitPrimitive(
        Effect.suspend((): Effect.Effect<A, E | AcquireError, R> => {
          if (options === undefined) lent = takeUnsafe()
          if (lent === undefined) return options === undefined ? useInTurn(f) : useAfterWait(f, options)
          if (isPinnedLater) since = monotonic()
          return f(lent)
        }),
        () => {
          if (lent === undefined) return undefined
          giveBackUnsafe(lent, since === undefined ? undefined : secondsSince(since))
          return undefined
        }
      )
    })

  /** One that nobody shares was lent for as long as its statement took, which has looked at the clock. */
  const lentFor = ({ lastTook, lentSince }: Session.Session): number =>
    lastTook > 0 ? lastTook : elapsed(lentSince) / 1000

  /** A hook or a leak watch is no part of the line. */
  const needsMore = leaks !== undefined || settings.beforeAcquire !== undefined

  const standUnsafe: Pool["Service"]["standUnsafe"] = (passenger) => needsMore ? undefined : turns.stand(passenger)

  /** The way of a borrower who has to wait, and of whom nothing else has to be known. */
  const useInTurn = <A, E, R>(
    f: (session: Session.Session) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | AcquireError, R> =>
    needsMore
      ? useAfterWait(f, undefined)
      : Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) =>
        StatementSpan.isTraced(fiber) ? useAfterWait(f, undefined) : turns.use(f)
      )

  /** Whoever comes to the line finds nothing to do there while all places are taken and all sessions lent. */
  const isExhausted = () => machine.top === undefined && connector.taken() >= state.max

  const turns = Turns.make<AcquireError>({
    state,
    dispatcher,
    obstacle: () => state.phase === "Open" ? overfull() : new Errors.PoolClosed(),
    arrived: () => {
      if (!isExhausted()) {
        retirement.retireIdle(now())
        supply.pump()
      }
      store.peakWaiting = Math.max(store.peakWaiting, machine.waiting)
    },
    timedOut: (waited) => timedOut(Math.floor(waited), undefined),
    isWorthy: (session) => {
      const verdict = retirement.standing(session, 1, now())
      return verdict === "Ready" || (verdict === "Unproven" && session.borrowers > 1)
    },
    examined: (claim, f) => examinedUnsafe(claim, f),
    exchanged: (claim, restore) => checkoutOf(claim, restore),
    waited: (millis, exit) =>
      exit === undefined
        ? store.acquire.acquired.observe(millis / 1000)
        : Store.countAcquire(store, millis / 1000, exit),
    lent: (session) => {
      if (!isPinnedLater) session.lastTook = 0
      countUse(session)
    },
    returned: (session, since) => store.use.observe(isPinnedLater ? secondsSince(since) : lentFor(session)),
    takeBack
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

  const examinedUnsafe: Pool["Service"]["examinedUnsafe"] = (claim, f) =>
    Effect.scopedWith((scope) => Effect.flatMap(Scope.provide(examined(claim), scope), f))

  const examined = (claim: Turns.Claim): Effect.Effect<Session.Session, AcquireError, Scope.Scope> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(Effect.scope, (scope) => lease(scope, false, checkoutOf(claim, restore)))
    )

  /** From here on the session belongs to the scope. */
  const lease = (scope: Scope.Scope, isExclusive: boolean, checkout: Effect.Effect<Session.Session, AcquireError>) =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) =>
      Effect.flatMap(checkout, (session) => {
        const hold = leaks?.begin(session, fiber)
        const since = monotonic()
        const giveBack = Effect.sync(() => {
          store.use.observe(secondsSince(since))
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
        const startedAt = now()
        const since = isPinnedLater ? monotonic() : undefined
        const timeout = timeoutOf(options)
        return Effect.matchCauseEffect(lease(scope, true, checkout(options, true, restore)), {
          onFailure: (cause) => Effect.andThen(Scope.close(scope, Exit.void), Effect.failCause(cause)),
          onSuccess: (session) => {
            const pinned = pin(session, scope, startedAt, timeout, restore)
            return since === undefined
              ? pinned
              : Effect.onExit(pinned, (exit) => Effect.sync(() => countAcquire(exit, since)))
          }
        })
      })
    )

  const exclusiveUnsafe: Pool["Service"]["exclusiveUnsafe"] = isPinnedLater || leaks !== undefined ? undefined : {
    take: (restore) =>
      Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<Session.Session, AcquireError> => {
        const ready = takeReady(true)
        if (ready !== undefined) return Effect.succeed(ready)
        return settings.beforeAcquire !== undefined || StatementSpan.isTraced(fiber)
          ? checkout(undefined, true, restore)
          : turns.take(restore)
      }),
    giveBack: (session, since) => {
      store.use.observe(secondsSince(Number(since) / 1e6))
      takeBack(session, true)
    }
  }

  /** Waits for what others still have on the wire. */
  const pin = (
    session: Session.Session,
    scope: Scope.Closeable,
    startedAt: number,
    timeout: number,
    restore: Restore
  ): Effect.Effect<Lease, AcquireError> => {
    const pinned = Scope.provide(
      Effect.map(session.driver.pin, (driver): Lease => ({
        session,
        driver,
        get connection() {
          return Discretion.guard(driver, treat)
        }
      })),
      scope
    )
    if (settings.concurrency === 1) return pinned
    const pinnedApart = Effect.tap(pinned, () => Scope.addFinalizer(scope, leaveToOthers(session)))
    // The driver's own wait cannot be interrupted, so it goes on by itself when its borrower gives up.
    return Effect.flatMap(
      Effect.forkDetach(pinnedApart, { startImmediately: true }),
      (fiber) =>
        // There was nothing to wait for.
        fiber.pollUnsafe() ?? Effect.onError(
          restore(Effect.timeoutOrElse(Fiber.join(fiber), {
            duration: Math.max(0, timeout - elapsed(startedAt)),
            orElse: () => Effect.fail(timedOut(elapsed(startedAt), "Queue"))
          })),
          (cause) => Effect.forkDetach(Effect.andThen(Fiber.await(fiber), Scope.close(scope, Exit.failCause(cause))))
        )
    )
  }

  /**
   * To be run before a pin is released: statements of those who share the session may be waiting behind it, and would run
   * in a transaction that was left open, to be rolled back with it.
   */
  const leaveToOthers = (session: Session.Session): Effect.Effect<void> =>
    Effect.suspend(() => session.wire.isIdle() ? Effect.void : retirement.expel(session, "invalid"))

  /**
   * Everything that may take time before a session is in its borrower's hands, under one bound. Whoever asks must not be
   * interruptible: the session is theirs as soon as this succeeds.
   */
  const checkout = (
    options: CheckoutOptions | undefined,
    isExclusive: boolean,
    restore: Restore
  ): Effect.Effect<Session.Session, AcquireError> =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<Session.Session, AcquireError> => {
      if (state.phase !== "Open") return countRefusal(new Errors.PoolClosed())
      const ready = options?.prove === true ? undefined : takeReady(isExclusive)
      if (ready !== undefined) return Effect.succeed(ready)
      const full = overfull()
      if (full !== undefined) return countRefusal(full)
      return search(PoolMachine.makeWaiter(machine, monotonic(), isExclusive), options, fiber, restore)
    })

  /** The same for somebody who has come to the head of the line, with what was handed out there. */
  const checkoutOf = (claim: Turns.Claim, restore: Restore): Effect.Effect<Session.Session, AcquireError> =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const waiter: Waiter = PoolMachine.makeWaiter(machine, claim.since, claim.isExclusive, claim.ticket)
      waiter.session = claim.take()
      return search(waiter, undefined, fiber, restore)
    })

  const overfull = (): Errors.PoolSaturated | undefined =>
    settings.maxWaiting < Infinity && supply.deeper(now()) === undefined &&
      PoolMachine.queueing(machine, state.max) >= settings.maxWaiting
      ? saturated("Length", 0)
      : undefined

  const search = (
    waiter: Waiter,
    options: CheckoutOptions | undefined,
    fiber: Fiber.Fiber<unknown, unknown>,
    restore: Restore
  ): Effect.Effect<Session.Session, AcquireError> => {
    const { isExclusive, since } = waiter
    const attempt: Attempt = { waiter, spentOn: undefined, refused: 0, phases: new Set() }
    const trace = spans.begin(fiber, waiter)
    const waited = () => Math.floor(monotonic() - since)
    attempts++
    const worthy = Effect.timeoutOrElse(firstWorthy(attempt, options), {
      duration: Math.max(0, timeoutOf(options) - waited()),
      orElse: () => Effect.fail(timedOut(waited(), attempt.spentOn ?? (attempt.refused > 0 ? "Hook" : undefined)))
    })
    return Effect.onExitPrimitive(restore(worthy), (exit) => {
      if (exit._tag === "Failure" || !isExclusive || !isPinnedLater) countAcquire(exit, since)
      if (trace !== undefined) tellOfWait(trace, attempt, waited(), exit)
      if (exit._tag === "Failure") abandon(waiter)
      attempts--
      turns.rest()
      if (state.phase !== "Open") state.changed.notify()
      return undefined
    })
  }

  /** A hook that is content is no wait. */
  const tellOfWait = (
    since: Spans.Beginning,
    { phases }: Attempt,
    waited: number,
    exit: Exit.Exit<unknown, AcquireError>
  ): void => {
    const error = Exit.findErrorOption(exit)
    if (Option.isSome(error) && error.value._tag === "AcquireTimeout") phases.add(error.value.phase)
    else if (Exit.isFailure(exit) && phases.size === 0) phases.add(lineFor())
    if (Exit.isFailure(exit) || phases.size > (phases.has("Hook") ? 1 : 0)) {
      spans.acquired(since, phases, waited, exit)
    }
  }

  const abandon = (waiter: Waiter): void => {
    PoolMachine.dequeue(machine, waiter)
    const { session } = waiter
    waiter.session = undefined
    if (session !== undefined) takeBack(session, waiter.isExclusive)
  }

  /** Stands in line until a session is there, in `waiter.session`, which is the waiter's from that moment on. */
  const stand = ({ phases, waiter }: Attempt): Effect.Effect<Session.Session, AcquireError> =>
    Effect.callback((resume) => {
      // Nobody is served, nor refused, any more.
      if (state.phase === "Closed") return resume(Effect.fail(new Errors.PoolClosed()))
      let isArriving = true
      waiter.onServed = (refusal) => {
        const answer = refusal === undefined ? Effect.sync(() => waiter.session!) : Effect.fail(refusal)
        if (isArriving) return resume(answer)
        phases.add(waiter.session === undefined ? lineFor() : waiter.session.uses === 0 ? "Connect" : "Queue")
        dispatcher.scheduleTask(() => resume(answer), 0)
      }
      PoolMachine.enqueue(machine, waiter)
      retirement.retireIdle(now())
      supply.pump()
      store.peakWaiting = Math.max(store.peakWaiting, machine.waiting)
      isArriving = false
      return Effect.sync(() => PoolMachine.dequeue(machine, waiter))
    })

  /** Takes sessions until one is worth handing out. Whoever gets one that is not goes back to the head of the line. */
  const firstWorthy = (
    attempt: Attempt,
    options: CheckoutOptions | undefined
  ): Effect.Effect<Session.Session, AcquireError> =>
    Effect.flatMap(
      attempt.waiter.session === undefined ? stand(attempt) : Effect.succeed(attempt.waiter.session),
      (session) => {
        const again = (reason: Metrics.CloseReason) => {
          retirement.evict(session, reason)
          abandon(attempt.waiter)
          return firstWorthy(attempt, options)
        }
        const at = now()
        const verdict = retirement.standing(session, 1, at)
        if (verdict !== "Ready" && verdict !== "Unproven") return again(verdict)
        // One in use is watched by its statements. A new one may only have been proved by a pooler.
        const isProved = session.borrowers > 1 || (verdict === "Ready" && options?.prove !== true)
        if (isProved) return welcome(session, attempt, again)
        const isNew = session.uses === 0 && at - session.openedAt < settings.validateAfter
        attempt.spentOn = "Validate"
        attempt.phases.add("Validate")
        return Effect.flatMap(
          Effect.scoped(Effect.andThen(exclude(session), Liveness.prove(session, proofTimeoutOf(options)))),
          (objection) => {
            attempt.spentOn = undefined
            session.isDoubted = settings.validateAlways
            if (objection === undefined) return welcome(session, attempt, again)
            retirement.evictOlderThan(session)
            // A pooler without a server opens sessions, and answers nothing.
            if (isNew) connector.disproved(objection)
            return again("invalid")
          }
        )
      }
    )

  const welcome = (
    session: Session.Session,
    attempt: Attempt,
    again: (reason: Metrics.CloseReason) => Effect.Effect<Session.Session, AcquireError>
  ): Effect.Effect<Session.Session, AcquireError> => {
    const hook = settings.beforeAcquire
    if (hook === undefined) return Effect.succeed(countUse(session))
    const failed = (cause: unknown, text?: string) => {
      retirement.evict(session, "invalid")
      return Effect.fail(hookFailed("beforeAcquire", cause, text))
    }
    // A hook that wants none must not have sessions opened and closed for as long as its borrower waits.
    const refuse = (reason: Metrics.CloseReason) => {
      if (session.uses === 0) attempt.refused++
      if (attempt.refused <= Math.max(state.max, fewestRefusals)) return again(reason)
      const why = `${attempt.refused} new sessions in a row refused, or lost while it was at work`
      return failed(new Error(why), why)
    }
    const work = Effect.suspend(() => hook(session.connection, usage(session)))
    attempt.spentOn = "Hook"
    attempt.phases.add("Hook")
    // A shared session is others' as well, so its socket stays.
    const welcomed = settings.concurrency === 1
      ? Errand.run(work, session.wire)
      : Effect.onInterrupt(work, () => Effect.sync(() => retirement.evict(session, "invalid")))
    // A hook that waits for something else would not hear that the pool has closed.
    const lost = Effect.flatMap(state.changed.until(session.wire.isDead), () => Effect.fail("the session is gone"))
    return Effect.matchCauseEffect(Effect.raceFirst(welcomed, lost), {
      onSuccess: (answer) => {
        attempt.spentOn = undefined
        return answer === false ? refuse("invalid") : Effect.succeed(countUse(session))
      },
      onFailure: (cause) => {
        attempt.spentOn = undefined
        // Its session has died under it, which says nothing of the hook.
        return session.wire.isDead() ? refuse("error") : failed(Cause.squash(cause))
      }
    })
  }

  /** What those in line wait for. */
  const lineFor = (): "Suspended" | "Queue" | "Connect" => {
    if (machine.isSuspended) return "Suspended"
    const { active, max } = statsUnsafe()
    return active >= max ? "Queue" : "Connect"
  }

  const timeoutOf = (options: CheckoutOptions | undefined): number =>
    options?.timeout === undefined ? settings.acquireTimeout : millis(options.timeout)

  const proofTimeoutOf = (options: CheckoutOptions | undefined): number =>
    options?.proveWithin === undefined ? settings.validationTimeout : millis(options.proveWithin)

  const timedOut = (waited: number, phase: Errors.AcquireTimeout["phase"] | undefined) => {
    const stats = statsUnsafe()
    const lastConnectFailure = connector.lastFailure()
    const error = new Errors.AcquireTimeout({
      phase: phase ?? lineFor(),
      waited,
      stats,
      lastConnectFailure: lastConnectFailure === undefined ? null : Errors.failureOf(lastConnectFailure)
    })
    book.write("acquireTimeout", () => LogFields.waitedInVain(error))
    return error
  }

  // ---------------------------------------------------------------------------------------------------------------
  // control
  // ---------------------------------------------------------------------------------------------------------------

  const statsUnsafe = (): Stats => Census.take(state, connector.connecting())

  const saturated = (by: "Length" | "Lateness", waited: number) =>
    new Errors.PoolSaturated({
      by,
      waited,
      waiting: machine.waiting,
      maxWaiting: settings.maxWaiting === Infinity ? null : settings.maxWaiting,
      stats: statsUnsafe()
    })

  const exclude = (session: Session.Session): Effect.Effect<void, never, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.sync(() => PoolMachine.exclude(machine, session)),
      () =>
        Effect.sync(() => {
          PoolMachine.include(machine, session)
          supply.pump()
        })
    )

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
      if (state.phase !== "Open") return Effect.fail(new Errors.PoolClosed())
      const startedAt = now()
      return supply.warm(count).pipe(Effect.timeoutOrElse({
        duration: settings.acquireTimeout,
        orElse: () => Effect.fail(timedOut(elapsed(startedAt), undefined))
      }))
    })

  const { drain, end } = Shutdown.make({
    state,
    supply,
    retirement,
    connector,
    attempts: () => attempts + turns.attempts(),
    closed: () => new Errors.PoolClosed()
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

  return Pool.of({
    name: metrics.pool,
    settings,
    use,
    takeUnsafe,
    giveBackUnsafe,
    standUnsafe,
    examinedUnsafe,
    get,
    reserve,
    exclusiveUnsafe,
    exclude,
    stats: Effect.sync(statsUnsafe),
    statsUnsafe,
    fleet: Effect.sync(() => Option.fromUndefinedOr(fleet?.report())),
    connectPauseUnsafe: connector.pause,
    reopenUnsafe: connector.reopen,
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
    isClosing: () => state.phase !== "Open"
  })
})

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** One checkout that could not be served at once. */
interface Attempt {
  readonly waiter: Waiter
  /** What is at work on the session at hand. */
  spentOn: "Validate" | "Hook" | undefined
  /** New sessions that the hook did not want, or that died under it. */
  refused: number
  /** What it has had to wait for. */
  readonly phases: Set<PoolSpans.Phase>
}

/**
 * Provides a {@link Pool}. Fails only for impossible options, never for a database that is down.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<Pool, Errors.InvalidOption, Metrics.Metrics> =>
  Layer.effect(Pool, make(options))
