/**
 * Whether the database can be used, told without making things worse.
 *
 * Real traffic is the best witness: while queries succeed, nothing is asked. Only a quiet pool is asked, with one
 * `SELECT 1` for all who want to know at that moment. A busy database is not a dead one, and an open breaker is believed.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpRouter from "effect/http/HttpRouter"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type * as Layer from "effect/Layer"
import type * as ManagedRuntime from "effect/ManagedRuntime"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as SqlError from "effect/sql/SqlError"
import * as Breaker from "./Breaker.ts"
import * as Errors from "./Errors.ts"
import * as Address from "./internal/address.ts"
import * as HealthEndpoint from "./internal/healthEndpoint.ts"
import * as Ladder from "./internal/healthLadder.ts"
import * as HealthPaths from "./internal/healthPaths.ts"
import * as Logbook from "./internal/logbook.ts"
import * as LogFields from "./internal/logFields.ts"
import { millis } from "./internal/millis.ts"
import { exitWithin, goodFor, shared } from "./internal/patience.ts"
import * as Traffic from "./internal/traffic.ts"
import type * as VitalSigns from "./internal/vitalSigns.ts"
import * as Metrics from "./Metrics.ts"
import * as Pool from "./Pool.ts"

// -----------------------------------------------------------------------------
// models
// -----------------------------------------------------------------------------

/**
 * `up`: the database answers. `degraded`: send work, but expect delays or some failures. `down`: send work elsewhere.
 *
 * @category models
 * @since 0.1.0
 */
export type State = Ladder.State

/**
 * What is known about the database at one moment. It names no host and no user, and no text of a failure; the one text
 * of the server in it is its version, which the routes leave out unless `details` are asked for.
 *
 * @category models
 * @since 0.1.0
 */
export interface Report {
  /** The pool's name, as metrics and logs call it. */
  readonly name: string
  readonly state: State
  /** Why, in words: all that holds, and at least one. */
  readonly reasons: ReadonlyArray<string>
  /** How the pool stands. */
  readonly pool: Errors.PoolStats
  /** The state of the circuit breaker. */
  readonly breaker: Breaker.State["_tag"]
  /** How long the last `SELECT 1` took, checkout included, in milliseconds; absent when this check needed none. */
  readonly latencyMs?: number | undefined
  /**
   * What the statements that have succeeded since an earlier check took on average, in milliseconds: those of the last 10
   * to 20 seconds, where checks come often. Absent when there was none.
   */
  readonly trafficLatencyMs?: number | undefined
  /** When asking again makes sense, in milliseconds; only when the breaker is open. */
  readonly retryAfter?: number | undefined
  /** When the database has last answered; absent when it never has. A long statement counts from when it was sent. */
  readonly lastSuccessAt?: DateTime.Utc | undefined
  /** The last failure, whatever has succeeded since: its kind, and its SQLSTATE or socket code. */
  readonly lastFailure?: {
    readonly at: DateTime.Utc
    readonly kind: Errors.Kind
    readonly code?: string | undefined
  } | undefined
  /** What the server has said of itself, as far as it has: its version, and whether it is the primary. */
  readonly server?: VitalSigns.Server | undefined
  readonly checkedAt: DateTime.Utc
}

/**
 * What strangers must not see. There is no password in it, and nothing of a statement or a row.
 *
 * @category models
 * @since 0.1.0
 */
export interface Details {
  /** Each as `host:port`, or the path of a Unix socket. */
  readonly hosts: ReadonlyArray<string>
  readonly database: string
  readonly username: string
  /** Why somebody has isolated the circuit breaker. */
  readonly isolation?: string | undefined
  /** Why the database cannot be reached, in the words of the server or the operating system. */
  readonly failure?: string | undefined
}

/**
 * Looks after one pool. All who ask it share a query.
 *
 * @category models
 * @since 0.1.0
 */
export interface Monitor {
  /** The pool's name. */
  readonly name: string
  /**
   * The state of the database, by the ladder of {@link make}. Never fails, waits no longer than the `deadline`, and neither
   * opens nor closes the breaker.
   */
  readonly check: Effect.Effect<Report>
  /** The same, but real traffic does not suffice, and `probe: false` does not count: the database is asked if it may be. */
  readonly ask: Effect.Effect<Report>
  /** What strangers must not see. Asks nothing. */
  readonly details: Effect.Effect<Details>
}

/**
 * How a {@link Monitor} goes about it.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * Whether a pool that nobody uses is asked. With `false` only real traffic tells, so that nothing wakes a database
   * which is suspended when it is not used, or keeps it awake; a request can ask all the same by `?probe=1`. Such a
   * pool is never `down` by itself, since no traffic would then come to find out. Default: true.
   */
  readonly probe?: boolean | undefined
  /** How long an answer to real traffic speaks for the database. Default: 5 seconds. */
  readonly freshFor?: Duration.Input | undefined
  /** How long the answer to `SELECT 1` may take, checkout included. Default: 1 second. */
  readonly deadline?: Duration.Input | undefined
}

/**
 * What a monitor looks at. {@link monitor} takes it from the pool, its breaker and its metrics. Times are milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Sources {
  readonly name: string
  readonly stats: () => Errors.PoolStats
  readonly breaker: Effect.Effect<Breaker.State>
  /** Whether the pool is closing, or closed. */
  readonly isClosing: () => boolean
  /** What can be told of the database without asking it. */
  readonly signs: () => VitalSigns.VitalSigns
  /** The last failure of real traffic. */
  readonly lastFailure: () => Metrics.LastFailure | undefined
  /** Sessions that have ended here, and not yet on the server. */
  readonly leaving: () => number
  /** Until the next connect is tried after failed ones. */
  readonly connectPause: () => number
  /** How many statements have succeeded so far, and the seconds that they took together. */
  readonly traffic: () => { readonly count: number; readonly sum: number }
  /**
   * Asks the database something small, past the breaker, so that asking neither opens nor closes it. Nobody waits for it
   * after `deadline` milliseconds.
   */
  readonly ping: (deadline: number) => Effect.Effect<unknown, unknown>
  readonly address: Pick<Details, "hosts" | "database" | "username">
  readonly connectFailure: () => unknown
}

// -----------------------------------------------------------------------------
// check
// -----------------------------------------------------------------------------

const typedError = (error: unknown): Errors.PoolError | undefined =>
  Errors.isPoolError(error) ? error : SqlError.isSqlError(error) ? Errors.fromSqlError(error) : undefined

const kindOf = (error: unknown): Errors.Kind => {
  const tag = typedError(error)?._tag
  return tag !== undefined && tag !== "NoSuitableHost" && tag !== "CredentialsFailed"
    ? "Local"
    : Errors.classify(Errors.failureOf(error), { phase: "Connect", reused: false, replied: false }).kind
}

/** A code names neither hosts nor users nor rows; what is none may do. */
const codeOf = (code: string | undefined): string | undefined =>
  code !== undefined && /^[A-Z0-9_]{1,40}$/.test(code) ? code : undefined

/** Names a failure by its kind and code. The server's text stays here. */
const nameOf = (error: unknown): string => {
  const { code, sqlState } = Errors.failureOf(error)
  const kind = typedError(error)?._tag ?? kindOf(error)
  const shown = codeOf(sqlState ?? code)
  return shown === undefined ? kind : `${kind}, ${shown}`
}

/** A checkout that failed for want of a free connection says nothing about the database. */
const isCrowded = (error: unknown): boolean => {
  const typed = typedError(error)
  return typed?._tag === "PoolSaturated" || (typed?._tag === "AcquireTimeout" && typed.phase === "Queue")
}

const checkedSettings = (
  options: Options
): Effect.Effect<Ladder.Rules & { readonly deadline: number }, Errors.InvalidOption> => {
  const settings = {
    probe: options.probe ?? true,
    freshFor: millis(options.freshFor ?? 5_000),
    deadline: millis(options.deadline ?? 1_000)
  }
  const refuse = (option: "freshFor" | "deadline", allowed: string) =>
    Effect.fail(new Errors.InvalidOption({ option: `health.${option}`, value: options[option], allowed }))
  if (!(settings.freshFor >= 0)) return refuse("freshFor", "a duration")
  if (!(settings.deadline > 0 && settings.deadline < Infinity)) return refuse("deadline", "a finite duration above 0")
  return Effect.succeed(settings)
}

/**
 * Makes a monitor whose checks go down this ladder and stop at the first step that tells. The report gives all reasons
 * that hold, not only the first; the state is the worst of them.
 *
 * 1. The pool is closing, or the breaker is isolated by hand, or open: `down`, without a query. When the time of an open
 *    breaker is over it waits for a call to let through, which a balancer that went by our answer would never send: then
 *    the database is asked, and `degraded` calls for traffic.
 * 2. A statement had an answer within the last 5 seconds, and no later one found the database unreachable or overloaded:
 *    `up`, without a query. It is `degraded` when callers wait although all connections are in use, when new connections
 *    fail, or while the breaker is half open.
 * 3. The breaker is half open, the pool is suspended, or asking would take the last free connection from a borrower:
 *    `degraded`, without a query. A pool with `max: 1` has no other to be asked by, and lends it while nobody waits.
 * 4. `probe: false`: what was heard last, without a query.
 * 5. `SELECT 1` within 1 second: `up`, otherwise `down`. All who ask at the same time share one query, and its answer
 *    is good for 1 second. A pool that has not opened anything yet is asked as well: whoever is told that it is ready has
 *    seen the database.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (sources: Sources, options: Options = {}): Effect.Effect<Monitor, Errors.InvalidOption> =>
  Effect.flatMap(checkedSettings(options), (settings) =>
    Effect.gen(function*() {
      const { deadline } = settings
      /** Of the questions, whatever was answered since. */
      let lastFailedAsk: Metrics.LastFailure | undefined
      /** Of the last question, if that failed. */
      let lastError: unknown
      const traffic = Traffic.make(sources.traffic)

      const asked = yield* shared(
        Effect.gen(function*() {
          const clock = yield* Clock.Clock
          const started = clock.monotonicTimeNanosUnsafe()
          const exit = yield* exitWithin(sources.ping(deadline), deadline)
          lastError = undefined
          if (Option.isSome(exit) && Exit.isSuccess(exit.value)) {
            const latency = Number(clock.monotonicTimeNanosUnsafe() - started) / 1e6
            return { _tag: "Answered", latency } satisfies Ladder.Answer
          }
          const error = Option.isSome(exit) ? Option.getOrUndefined(Exit.findErrorOption(exit.value)) : undefined
          const { active, max } = sources.stats()
          // Others may have taken the last connection in the meantime.
          if (isCrowded(error) || (Option.isNone(exit) && active >= max)) {
            return { _tag: "Crowded" } satisfies Ladder.Answer
          }
          const at = clock.currentTimeMillisUnsafe()
          if (Option.isNone(exit)) {
            lastFailedAsk = { kind: "Unreachable", code: undefined, at }
            return { _tag: "Silent", after: deadline } satisfies Ladder.Answer
          }
          if (error === undefined) return { _tag: "Failed", name: undefined } satisfies Ladder.Answer
          const { code, sqlState } = Errors.failureOf(error)
          lastError = error
          lastFailedAsk = { kind: kindOf(error), code: sqlState ?? code, at }
          return { _tag: "Failed", name: nameOf(error) } satisfies Ladder.Answer
        }),
        goodFor
      )

      const lastFailure = (): Metrics.LastFailure | undefined => {
        const ofTraffic = sources.lastFailure()
        return lastFailedAsk !== undefined && lastFailedAsk.at >= (ofTraffic?.at ?? 0) ? lastFailedAsk : ofTraffic
      }

      const look = Effect.gen(function*() {
        const breaker = yield* sources.breaker
        const stats = sources.stats()
        const signs = sources.signs()
        const clock = yield* Clock.Clock
        const facts: Ladder.Facts = {
          // Read last: what was noted a moment ago must not lie in the future.
          now: clock.currentTimeMillisUnsafe(),
          breaker,
          isClosing: sources.isClosing(),
          pool: { ...stats, leaving: sources.leaving() },
          signs,
          lastFailure: lastFailure(),
          connectPause: sources.connectPause()
        }
        return { facts, stats }
      })

      const report = (
        { facts, stats }: Effect.Success<typeof look>,
        { reasons, state }: Ladder.Findings,
        latencyMs?: number
      ): Report => {
        const { breaker, lastFailure, now, signs } = facts
        return {
          name: sources.name,
          state,
          reasons,
          // Copied figure by figure, so that what a pool may add to them does not get out with them.
          pool: {
            total: stats.total,
            idle: stats.idle,
            active: stats.active,
            waiting: stats.waiting,
            connecting: stats.connecting,
            max: stats.max,
            min: stats.min,
            oldestLease: stats.oldestLease
          },
          breaker: breaker._tag,
          latencyMs,
          trafficLatencyMs: traffic.meanMillis(now),
          retryAfter: breaker._tag === "Open" && breaker.retryAfter > 0 ? breaker.retryAfter : undefined,
          lastSuccessAt: signs.lastAnswerAt === undefined ? undefined : DateTime.makeUnsafe(signs.lastAnswerAt),
          lastFailure: lastFailure && {
            at: DateTime.makeUnsafe(lastFailure.at),
            kind: lastFailure.kind,
            code: codeOf(lastFailure.code)
          },
          server: signs.server,
          checkedAt: DateTime.makeUnsafe(now)
        }
      }

      const checked = (insists: boolean) =>
        Effect.gen(function*() {
          const before = yield* look
          const known = Ladder.judge(before.facts, settings, insists)
          if (!known.asks) return report(before, known)
          const answer = yield* asked
          const after = yield* look
          return report(
            after,
            Ladder.conclude(after.facts, answer),
            answer._tag === "Answered" ? answer.latency : undefined
          )
        })

      const failureText = (breaker: Breaker.State): string | undefined => {
        const error = lastError ?? sources.connectFailure()
        if (error !== undefined) return Errors.failureOf(error).message
        return breaker._tag === "Open" ? breaker.lastFailure?.message : undefined
      }

      return {
        name: sources.name,
        check: checked(false),
        ask: checked(true),
        details: Effect.map(sources.breaker, (breaker): Details => ({
          ...sources.address,
          isolation: breaker._tag === "Isolated" ? breaker.reason : undefined,
          failure: failureText(breaker)
        }))
      }
    }))

const sourcesOf = Effect.gen(function*() {
  const pool = yield* Pool.Pool
  const breaker = yield* Breaker.Breaker
  const { store } = yield* Metrics.Metrics
  const { address } = pool.settings.target
  const sources: Sources = {
    name: pool.name,
    stats: pool.statsUnsafe,
    breaker: breaker.state,
    isClosing: pool.isClosing,
    signs: pool.vitalSignsUnsafe,
    lastFailure: () => store.lastFailure,
    leaving: pool.leavingUnsafe,
    connectPause: pool.connectPauseUnsafe,
    traffic: () => store.queries.succeededInAll(),
    // Proved, so that one dead connection is replaced rather than taken for the database, which takes half of the time;
    // and asked even when it is new, since a pooler answers a connect by itself. What others share the pool does not prove.
    ping: (deadline) =>
      pool.use(
        ({ borrowers, connection }) => borrowers > 1 ? connection.query("SELECT 1", [], false) : Effect.void,
        { prove: true, proveWithin: deadline / 2 }
      ),
    address: {
      hosts: address.hosts.map(Address.shownHost),
      database: address.database,
      username: address.username
    },
    connectFailure: pool.lastConnectFailureUnsafe
  }
  return { pool, sources }
})

/**
 * The monitor of this pool, by the ladder of {@link make}: for options, or to have several pools in one answer. Fails
 * with `InvalidOption` for an impossible option.
 *
 * @category constructors
 * @since 0.1.0
 */
export const monitor = (
  options?: Options
): Effect.Effect<Monitor, Errors.InvalidOption, Pool.Pool | Breaker.Breaker | Metrics.Metrics> =>
  Effect.flatMap(sourcesOf, ({ sources }) => make(sources, options))

// One per pool, so that all who ask about it share a query.
const monitors = new WeakMap<object, Monitor>()

const defaultMonitor: Effect.Effect<Monitor, never, Pool.Pool | Breaker.Breaker | Metrics.Metrics> = Effect.flatMap(
  sourcesOf,
  ({ pool, sources }) => {
    const known = monitors.get(pool)
    if (known !== undefined) return Effect.succeed(known)
    return Effect.map(Effect.orDie(make(sources)), (made) => {
      monitors.set(pool, made)
      return made
    })
  }
)

/**
 * The state of the database behind this pool, by the ladder of {@link make}. Never fails, never waits longer than about
 * a second, and neither opens nor closes the breaker.
 *
 * @example
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Health from "effect-pg-pool/Health"
 *
 * // Before a long job: is it worth beginning?
 * export const isUsable = Effect.map(Health.check, ({ state }) => state !== "down")
 * ```
 *
 * @category checks
 * @since 0.1.0
 */
export const check: Effect.Effect<Report, never, Pool.Pool | Breaker.Breaker | Metrics.Metrics> = Effect.flatMap(
  defaultMonitor,
  (monitor) => monitor.check
)

// -----------------------------------------------------------------------------
// http
// -----------------------------------------------------------------------------

/**
 * Something that renders metrics on its own: a `Registry` of prom-client or `@prometheus-io/client`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Scrapable {
  readonly contentType: string
  metrics(): Promise<string>
}

/**
 * As much of a request as `details` may go by.
 *
 * @category models
 * @since 0.1.0
 */
export interface Inquiry extends HealthEndpoint.Inquiry {}

/**
 * What the routes answer, and where.
 *
 * @category options
 * @since 0.1.0
 */
export interface RoutesOptions<R = never, E = never, RP = Pool.Pool | Breaker.Breaker | Metrics.Metrics> {
  /**
   * The pools that the routes tell of: one {@link monitor}, or several, each of a pool with a name of its own: two of one name
   * are an `InvalidOption`. Default: the pool of the context.
   */
  readonly pools?: Effect.Effect<Monitor | ReadonlyArray<Monitor>, E, RP> | undefined
  /**
   * What else the application needs to be ready, by name: `/readyz` is 503 while one of them fails, dies, or takes longer
   * than 1 second. They run at the same time, at most once a second. Default: nothing else.
   */
  readonly checks?: Readonly<Record<string, Effect.Effect<unknown, unknown, R>>> | undefined
  /**
   * Who may see {@link Details}, the version of the server, and the texts of failed `checks`: everybody, nobody, or whose
   * request the function says yes to. Default: nobody.
   */
  readonly details?: boolean | ((request: Inquiry) => boolean) | undefined
  /**
   * What `/metrics` serves: an Effect such as `Metrics.render`, in Prometheus' text format 0.0.4, or a registry. When it
   * fails, the answer is 500. Default: there is no such route.
   */
  readonly metrics?: Effect.Effect<string, unknown, R> | Scrapable | undefined
  /** Goes before all paths: `"/internal"`. Default: nothing. */
  readonly prefix?: string | undefined
  /**
   * Where each route is, no two at the same place; `false` for nowhere. Default: `/health/database`, `/livez`, `/readyz` and
   * `/metrics`.
   */
  readonly paths?: {
    readonly database?: string | false | undefined
    readonly livez?: string | false | undefined
    readonly readyz?: string | false | undefined
    readonly metrics?: string | false | undefined
  } | undefined
}

/**
 * What a {@link toWebHandler} answers, and where.
 *
 * @category options
 * @since 0.1.0
 */
export interface WebHandlerOptions<R = never, E = never, RP = Pool.Pool | Breaker.Breaker | Metrics.Metrics>
  extends RoutesOptions<R, E, RP>
{
  /** Answers this whatever the path of the request is. Default: the path decides. */
  readonly route?: "database" | "livez" | "readyz" | "metrics" | undefined
}

const isScrapable = (value: unknown): value is Scrapable =>
  typeof value === "object" && value !== null && "metrics" in value && typeof value.metrics === "function"

const isFunction = (value: unknown): boolean => typeof value === "function"

/** What a compiler would have caught, but for the last: who writes JavaScript is told as well. */
const complaint = <R, E, RP>(options: WebHandlerOptions<R, E, RP>): HealthPaths.BadPath | undefined => {
  const { checks = {}, details, metrics, pools, route } = options
  if (route !== undefined && !HealthPaths.routes.includes(route)) {
    return { option: "route", value: route, allowed: `one of ${HealthPaths.routes.join(", ")}` }
  }
  if (pools !== undefined && !Effect.isEffect(pools)) {
    return { option: "pools", value: pools, allowed: "an Effect of one monitor or several: yield* Health.monitor()" }
  }
  for (const [name, check] of Object.entries(checks)) {
    if (!Effect.isEffect(check)) return { option: `checks.${name}`, value: check, allowed: "an Effect" }
  }
  if (details !== undefined && typeof details !== "boolean" && !isFunction(details)) {
    return { option: "details", value: details, allowed: "true, false, or a function that looks at the request" }
  }
  if (metrics !== undefined && !Effect.isEffect(metrics) && !isScrapable(metrics)) {
    return { option: "metrics", value: metrics, allowed: "an Effect such as Metrics.render, or a registry" }
  }
  return HealthPaths.complaint(options, metrics !== undefined)
}

const invalidOption = ({ option, ...bad }: HealthPaths.BadPath) =>
  new Errors.InvalidOption({ ...bad, option: `health.${option}` })

const pathsOf = <R, E, RP>(options: WebHandlerOptions<R, E, RP>): HealthEndpoint.Paths | Errors.InvalidOption => {
  const bad = complaint(options)
  return bad === undefined ? HealthPaths.resolve(options, options.metrics !== undefined) : invalidOption(bad)
}

/** Each pool is asked for by its name. */
const namesake = (monitors: ReadonlyArray<Monitor>): Errors.InvalidOption | undefined => {
  const names = monitors.map(({ name }) => name)
  return new Set(names).size === names.length ? undefined : invalidOption({
    option: "pools",
    value: names.join(", "),
    allowed: "monitors of pools that each have a name of their own, for example by Pg.layer({ name: \"orders\" })"
  })
}

const endpointOf = <R, E, RP>(
  options: RoutesOptions<R, E, RP>
): Effect.Effect<HealthEndpoint.Endpoint, E | Errors.InvalidOption, RP | Exclude<R, Scope.Scope>> =>
  Effect.gen(function*() {
    const context = yield* Effect.context<Exclude<R, Scope.Scope>>()
    const provided = <A, E2>(effect: Effect.Effect<A, E2, R>) => Effect.provideContext(Effect.scoped(effect), context)
    // Without `pools` RP is what the pool of the context needs, which the compiler cannot see.
    const given = yield* options.pools ?? (defaultMonitor as Effect.Effect<Monitor, never, RP>)
    const pools = "name" in given ? [given] : given
    const bad = namesake(pools)
    if (bad !== undefined) return yield* bad
    const { checks = {}, details = false, metrics } = options
    return yield* HealthEndpoint.make({
      pools,
      checks: Object.fromEntries(Object.entries(checks).map(([name, check]) => [name, provided(check)])),
      isTrusted: typeof details === "function" ? details : () => details,
      metrics: metrics === undefined
        ? undefined
        : Effect.isEffect(metrics)
        ? Effect.map(provided(metrics), (text) => ({ text, contentType: Metrics.contentType }))
        : Effect.map(Effect.tryPromise(() => metrics.metrics()), (text) => ({ text, contentType: metrics.contentType }))
    })
  })

/**
 * Adds the routes to your router. All answer `GET` and `HEAD` with `cache-control: no-store`.
 *
 * - `/health/database`: the {@link Report} in `application/health+json`: 200 when `up` or `degraded` (`"status": "pass"` or
 *   `"warn"`), 503 with `retry-after` when `down` (`"fail"`). `/health/database/<name>` is one pool of several.
 *   `?probe=1` asks the database even where traffic or `probe: false` speak for not asking.
 * - `/readyz`: whether the application can do its work: its pools, and its own `checks`. 503 from the moment the pool drains,
 *   so that a rolling update sends requests elsewhere. Use it for readiness.
 * - `/livez`: 200 for as long as the process answers at all. It never looks at the database, since restarting a process
 *   does not mend one. Use it for liveness.
 * - `/metrics`, if `metrics` is given. Reading them never asks the database.
 *
 * Fails with `InvalidOption` for an impossible option: two routes at one place, two pools of one name.
 *
 * @example
 * ```ts
 * import * as HttpRouter from "effect/http/HttpRouter"
 * import * as Health from "effect-pg-pool/Health"
 * import * as Metrics from "effect-pg-pool/Metrics"
 *
 * // Needs the pool, its breaker, its metrics, and an HttpServer.
 * export const Server = HttpRouter.serve(
 *   Health.layerRoutes({
 *     metrics: Metrics.render,
 *     details: ({ headers }) => headers.get("authorization") === `Bearer ${process.env.OPS_TOKEN}`
 *   })
 * )
 * ```
 *
 * **Example** (A rolling update: not ready at once, and 10 seconds later the end)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Health from "effect-pg-pool/Health"
 *
 * let isStopping = false
 *
 * export const Routes = Health.layerRoutes({
 *   checks: { process: Effect.suspend(() => isStopping ? Effect.fail("stopping") : Effect.void) }
 * })
 *
 * // Built last and taken down first: `Goodbye.pipe(Layer.provide(Server), Layer.launch, NodeRuntime.runMain)`.
 * export const Goodbye = Layer.effectDiscard(Effect.addFinalizer(() => {
 *   isStopping = true
 *   return Effect.sleep("10 seconds")
 * }))
 * ```
 *
 * **Example** (Two pools)
 *
 * ```ts
 * import * as Context from "effect/Context"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Pg from "effect-pg-pool"
 *
 * class Orders extends Context.Service<Orders, Pg.Health.Monitor>()("Orders") {}
 * class Archive extends Context.Service<Archive, Pg.Health.Monitor>()("Archive") {}
 *
 * const Monitors = Layer.merge(
 *   Layer.effect(Orders, Pg.Health.monitor()).pipe(Layer.provide(Pg.layer({ name: "orders" }))),
 *   Layer.effect(Archive, Pg.Health.monitor({ probe: false })).pipe(Layer.provide(Pg.layer({ name: "archive" })))
 * )
 *
 * export const Routes = Pg.Health.layerRoutes({ pools: Effect.all([Orders, Archive]) }).pipe(Layer.provide(Monitors))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerRoutes = <R = never, E = never, RP = Pool.Pool | Breaker.Breaker | Metrics.Metrics>(
  options: RoutesOptions<R, E, RP> = {}
): Layer.Layer<never, E | Errors.InvalidOption, HttpRouter.HttpRouter | RP | Exclude<R, Scope.Scope>> =>
  HttpRouter.use(Effect.fnUntraced(function*(router: HttpRouter.HttpRouter) {
    const paths = pathsOf(options)
    if (paths instanceof Errors.InvalidOption) return yield* paths
    const endpoint = yield* endpointOf(options)
    const serve = (route: HealthEndpoint.Route) => ({ headers, url }: HttpServerRequest.HttpServerRequest) =>
      Effect.gen(function*() {
        const { name } = yield* HttpRouter.params
        const { body, headers: told, status } = yield* endpoint.answer(route, name, {
          url,
          headers: new Headers({ ...headers })
        })
        return HttpServerResponse.text(body, { status, headers: told })
      })
    for (const route of HealthPaths.routes) {
      const path = paths[route]
      if (path !== undefined) yield* router.add("GET", path, serve(route))
    }
    if (paths.database !== undefined) yield* router.add("GET", `${paths.database}/:name`, serve("database"))
  }))

const toResponse = ({ body, headers, status }: HealthEndpoint.Answer, method: string): Response =>
  new Response(method === "HEAD" ? null : body, { status, headers })

/**
 * {@link layerRoutes} as a plain function for any framework that speaks `Request` and `Response`: Next.js, Hono, Bun, Deno,
 * Cloudflare, and Node by the bridge of its framework. The services are those of your `ManagedRuntime`; when they could not
 * be built, or have ended, the answer is 503. `/livez` never waits for them. Throws `InvalidOption` for an impossible option; when
 * two pools have one name, the answer is 503 and the log says so.
 *
 * The path of the request decides; any other is 404. Where the framework has done the routing, `route` names what to answer.
 *
 * @example
 * ```ts
 * import * as ManagedRuntime from "effect/ManagedRuntime"
 * import * as Pg from "effect-pg-pool"
 *
 * const runtime = ManagedRuntime.make(Pg.layerConfig())
 *
 * // Bun, Deno, Hono and the like: one handler for all paths.
 * export default { fetch: Pg.Health.toWebHandler(runtime) }
 *
 * // Next.js, app/api/health/route.ts: one handler for one path.
 * export const GET = Pg.Health.toWebHandler(runtime, { route: "database" })
 * ```
 *
 * **Example** (`node:http`)
 *
 * ```ts
 * import * as ManagedRuntime from "effect/ManagedRuntime"
 * import { createServer } from "node:http"
 * import * as Pg from "effect-pg-pool"
 *
 * const health = Pg.Health.toWebHandler(ManagedRuntime.make(Pg.layerConfig()))
 *
 * createServer(async ({ headers, method = "GET", url = "/" }, outgoing) => {
 *   const { authorization = "" } = headers
 *   const response = await health(new Request(new URL(url, "http://localhost"), { method, headers: { authorization } }))
 *   outgoing.writeHead(response.status, Object.fromEntries(response.headers))
 *   outgoing.end(await response.text())
 * })
 * ```
 *
 * @category converting
 * @since 0.1.0
 */
export const toWebHandler = <R = never, E = never, RP = Pool.Pool | Breaker.Breaker | Metrics.Metrics, ER = never>(
  runtime: ManagedRuntime.ManagedRuntime<NoInfer<RP> | NoInfer<Exclude<R, Scope.Scope>>, ER>,
  options: WebHandlerOptions<R, E, RP> = {}
): (request: Request) => Promise<Response> => {
  const paths = pathsOf(options)
  if (paths instanceof Errors.InvalidOption) throw paths
  let known: HealthEndpoint.Endpoint | undefined
  const endpoint = Effect.runSync(Effect.cached(Effect.tap(endpointOf(options), (made) =>
    Effect.sync(() => {
      known = made
    }))))
  let isTold = false
  const orUnavailable = (exit: Exit.Exit<HealthEndpoint.Answer, unknown>): HealthEndpoint.Answer => {
    if (Exit.isSuccess(exit)) {
      isTold = false
      return exit.value
    }
    if (runtime.scope.state._tag === "Closed") {
      known?.outlived()
      return HealthEndpoint.unavailable
    }
    // Nobody else hears why, and balancers ask often.
    if (!isTold) Effect.runFork(Logbook.write("healthUnavailable", LogFields.ofBuild(Cause.squash(exit.cause))))
    isTold = true
    return HealthEndpoint.unavailable
  }
  return ({ headers, method, url }) => {
    const found = options.route === undefined
      ? HealthEndpoint.find(paths, new URL(url).pathname)
      : { route: options.route, name: undefined }
    const answer = (answer: HealthEndpoint.Answer) => toResponse(answer, method)
    if (found === undefined) return Promise.resolve(answer(HealthEndpoint.notFound))
    if (method !== "GET" && method !== "HEAD") return Promise.resolve(answer(HealthEndpoint.notAllowed))
    if (found.route === "livez") return Promise.resolve(answer(HealthEndpoint.alive))
    return runtime.runPromiseExit(
      Effect.flatMap(endpoint, ({ answer }) => answer(found.route, found.name, { url, headers }))
    ).then((exit) => answer(orUnavailable(exit)))
  }
}
