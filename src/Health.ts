/**
 * Whether the database can be used, told without making things worse.
 *
 * Real traffic is the best witness: while queries succeed, nothing is asked. Only a quiet pool is asked, with one
 * `SELECT 1` for all who want to know at that moment. A busy database is not a dead one, and an open breaker is believed.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as SqlError from "effect/sql/SqlError"
import * as Breaker from "./Breaker.ts"
import * as Errors from "./Errors.ts"
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
export type Status = "up" | "degraded" | "down"

/**
 * What is known about the database at one moment. It holds no host, no user and no text of the server, so it may be
 * shown to strangers.
 *
 * @category models
 * @since 0.1.0
 */
export interface Report {
  readonly status: Status
  /** Why, in words. At least one. */
  readonly reasons: ReadonlyArray<string>
  /** How the pool stands. */
  readonly pool: Errors.PoolStats
  /** The state of the circuit breaker. */
  readonly breaker: Breaker.State["_tag"]
  /** How long `SELECT 1` took, checkout included, in milliseconds; absent when it was not needed or had no answer. */
  readonly latencyMs?: number | undefined
  /** When asking again makes sense, in milliseconds; only when the breaker is open. */
  readonly retryAfter?: number | undefined
  readonly checkedAt: DateTime.Utc
}

/**
 * What a check looks at. `check` takes it from the pool and its breaker.
 *
 * @category models
 * @since 0.1.0
 */
export interface Sources {
  readonly stats: Effect.Effect<Errors.PoolStats>
  readonly breaker: Effect.Effect<Breaker.State>
  /** Whether the pool is closing, or closed. */
  readonly isClosing: () => boolean
  /** When the database was last used with success, in milliseconds of the wall clock. */
  readonly lastReplyAt: () => number | undefined
  /** Asks the database something small, past the breaker, so that asking neither opens nor closes it. */
  readonly ping: Effect.Effect<unknown, unknown>
}

// -----------------------------------------------------------------------------
// check
// -----------------------------------------------------------------------------

/** A success this recent (milliseconds) speaks for the database. */
const freshFor = 5_000

/** How long the answer to `SELECT 1` may take, in milliseconds, checkout included. */
const patience = 1_000

type Answer =
  | { readonly _tag: "Answered"; readonly latencyMs: number }
  | { readonly _tag: "Silent" }
  | { readonly _tag: "Failed"; readonly error: unknown }

const ask = (ping: Sources["ping"]): Effect.Effect<Answer> =>
  Effect.gen(function*() {
    const clock = yield* Clock.Clock
    const started = clock.monotonicTimeNanosUnsafe()
    // In a fiber of its own: interrupting a query on a dead connection takes seconds, which the answer must not wait for.
    const fiber = yield* Effect.forkDetach(ping)
    const exit = yield* Effect.timeoutOption(Fiber.await(fiber), patience).pipe(
      Effect.ensuring(Effect.sync(() => fiber.interruptUnsafe()))
    )
    if (Option.isNone(exit)) return { _tag: "Silent" }
    if (Exit.isFailure(exit.value)) {
      const error = Exit.findErrorOption(exit.value)
      return { _tag: "Failed", error: Option.getOrUndefined(error) }
    }
    return { _tag: "Answered", latencyMs: Number(clock.monotonicTimeNanosUnsafe() - started) / 1e6 }
  })

const typedError = (error: unknown): Errors.PoolError | undefined =>
  Errors.isPoolError(error) ? error : SqlError.isSqlError(error) ? Errors.fromSqlError(error) : undefined

/** Names a failure by its kind and code. The server's text stays here: it may name hosts, users and rows. */
const nameOf = (error: unknown): string => {
  const failure = Errors.failureOf(error)
  const kind = typedError(error)?._tag ??
    Errors.classify(failure, { phase: "InFlight", reused: true, replied: false }).kind
  const code = failure.sqlState ?? failure.code
  return code !== undefined && /^[A-Z0-9_]{1,40}$/.test(code) ? `${kind}, ${code}` : kind
}

/** Nothing is free: asking would mean to queue, and a probe that queues measures the queue. */
const isFull = (stats: Errors.PoolStats): boolean => stats.idle === 0 && stats.active >= stats.max

/** A checkout that failed for want of a free connection says nothing about the database. */
const isCrowded = (error: unknown): boolean => {
  const typed = typedError(error)
  return typed?._tag === "PoolSaturated" || (typed?._tag === "AcquireTimeout" && typed.phase === "Queue")
}

const seconds = (milliseconds: number): string => `${(milliseconds / 1_000).toFixed(1)} s`

/**
 * Makes a check that goes down this ladder and stops at the first step that tells:
 *
 * 1. The pool is closing: `down`.
 * 2. The breaker is isolated by hand: `down`, without a query. The breaker is open: `down`, without a query. When its time is over it waits for a call to let through, which a
 *    balancer that went by our answer would never send: then the database is asked, and `degraded` calls for traffic.
 *    Half-open: `degraded`.
 * 3. A query succeeded within the last 5 seconds: `up`, without a query.
 * 4. All connections are in use: `degraded`, without a query.
 * 5. `SELECT 1` within 1 second: `up`, otherwise `down`. All who ask at the same time share one query, and its answer
 *    is good for 1 second.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (sources: Sources): Effect.Effect<Effect.Effect<Report>> =>
  Effect.map(Effect.cachedWithTTL(ask(sources.ping), "1 second"), (asked) =>
    Effect.gen(function*() {
      const now = yield* Clock.currentTimeMillis
      const breaker = yield* sources.breaker
      const report = (
        status: Status,
        reason: string,
        details?: Pick<Report, "latencyMs" | "retryAfter">
      ): Effect.Effect<Report> =>
        Effect.map(sources.stats, (stats) => ({
          status,
          reasons: [reason],
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
          ...details,
          checkedAt: DateTime.makeUnsafe(now)
        }))

      if (sources.isClosing()) return yield* report("down", "The pool is closing and takes no new work.")

      if (breaker._tag === "Isolated") {
        return yield* report("down", `The circuit breaker was isolated by hand: ${breaker.reason}`)
      }
      if (breaker._tag === "Open" && breaker.retryAfter > 0) {
        const { retryAfter } = breaker
        const reason = `The circuit breaker is open after repeated failures; it lets a call through in ${
          seconds(retryAfter)
        }.`
        return yield* report("down", reason, { retryAfter })
      }
      if (breaker._tag === "HalfOpen") {
        return yield* report(
          "degraded",
          "The circuit breaker lets one call through to see whether the database is back."
        )
      }

      const lastReplyAt = sources.lastReplyAt()
      const age = lastReplyAt === undefined ? Infinity : now - lastReplyAt
      // A negative age is a clock that was set back, and proves nothing.
      if (breaker._tag !== "Open" && age >= 0 && age <= freshFor) {
        return yield* report("up", `The database was used with success ${seconds(age)} ago.`)
      }

      const crowded = (stats: Errors.PoolStats) =>
        report("degraded", `All ${stats.max} connections are in use and ${stats.waiting} callers wait; not asked.`)
      const before = yield* sources.stats
      if (isFull(before)) return yield* crowded(before)

      const answer = yield* asked
      if (answer._tag === "Answered") {
        const details = { latencyMs: answer.latencyMs }
        return yield* breaker._tag !== "Open"
          ? report("up", "The database answered SELECT 1.", details)
          : report("degraded", "The database answers again; the circuit breaker closes with the next call.", details)
      }
      // Others may have taken the last connection in the meantime.
      const after = yield* sources.stats
      if (answer._tag === "Silent") {
        return yield* isFull(after)
          ? crowded(after)
          : report("down", `The database did not answer SELECT 1 within ${seconds(patience)}.`)
      }
      if (isCrowded(answer.error)) return yield* crowded(after)
      return yield* answer.error === undefined
        ? report("down", "SELECT 1 was cut short.")
        : report("down", `SELECT 1 failed: ${nameOf(answer.error)}.`)
    }))

// One per pool, so that all who ask about it share a query.
const checks = new WeakMap<object, Effect.Effect<Report>>()

/**
 * The state of the database behind this pool, by the ladder of {@link make}. Never fails, never waits longer than about
 * a second, and neither opens nor closes the breaker.
 *
 * @category checks
 * @since 0.1.0
 */
export const check: Effect.Effect<Report, never, Pool.Pool | Breaker.Breaker> = Effect.gen(function*() {
  const pool = yield* Pool.Pool
  const breaker = yield* Breaker.Breaker
  const fresh = yield* make({
    stats: pool.stats,
    breaker: breaker.state,
    isClosing: pool.isClosing,
    lastReplyAt: pool.lastProofUnsafe,
    // Proved first, so that one dead connection is replaced rather than taken for the database; and asked even when it
    // is new, since a pooler answers a connect by itself.
    ping: pool.use((session) => session.connection.query("SELECT 1", [], false), { prove: true })
  })
  const known = checks.get(pool) ?? fresh
  checks.set(pool, known)
  return yield* known
})

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
 * @category options
 * @since 0.1.0
 */
export interface RoutesOptions<R = never> {
  /**
   * What `/metrics` serves: an Effect such as `Metrics.render`, in Prometheus' text format 0.0.4, or a registry.
   * Default: there is no such route.
   */
  readonly metrics?: Effect.Effect<string, never, R> | Scrapable | undefined
}

const respond = (report: Report): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.jsonUnsafe(report, {
    status: report.status === "down" ? 503 : 200,
    contentType: "application/health+json",
    headers: {
      "cache-control": "no-store",
      ...(report.retryAfter === undefined
        ? {}
        : { "retry-after": String(Math.max(1, Math.ceil(report.retryAfter / 1_000))) })
    }
  })

const serveMetrics = <R>(
  metrics: Effect.Effect<string, never, R> | Scrapable
): Effect.Effect<HttpServerResponse.HttpServerResponse, never, R> =>
  Effect.isEffect(metrics)
    ? Effect.map(metrics, (text) =>
      HttpServerResponse.text(text, { contentType: Metrics.contentType, headers: { "cache-control": "no-store" } }))
    : Effect.tryPromise(() =>
      metrics.metrics()
    ).pipe(
      Effect.map((text) =>
        HttpServerResponse.text(text, { contentType: metrics.contentType, headers: { "cache-control": "no-store" } })
      ),
      // One bad collector of the user's fails a whole registry. The scraper learns that, but not the error's text.
      Effect.catch((error) =>
        Effect.as(
          Effect.logError("The metrics registry could not be read", error),
          HttpServerResponse.text("The metrics could not be read.\n", { status: 500 })
        )
      )
    )

/**
 * Adds the routes to your router:
 *
 * - `GET /health/database`: the {@link Report} as `application/health+json`; 200 when `up` or `degraded`, 503 when
 *   `down`. It is about this one dependency: use it for readiness, never for liveness, since restarting a process does
 *   not mend a database.
 * - `GET /metrics`, if `metrics` is given. Reading them never asks the database.
 *
 * @example
 * ```ts
 * import * as HttpRouter from "effect/http/HttpRouter"
 * import * as Health from "effect-pg-pool/Health"
 * import * as Metrics from "effect-pg-pool/Metrics"
 *
 * // Needs the pool, its breaker, its metrics, and an HttpServer.
 * export const Server = HttpRouter.serve(Health.layerRoutes({ metrics: Metrics.render }))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerRoutes = <R = never>(
  options: RoutesOptions<R> = {}
): Layer.Layer<never, never, HttpRouter.HttpRouter | Pool.Pool | Breaker.Breaker | Exclude<R, Scope.Scope>> =>
  HttpRouter.use(Effect.fnUntraced(function*(router: HttpRouter.HttpRouter) {
    // The routes use the services of this layer, so that a request does not have to bring them.
    const context = yield* Effect.context<Pool.Pool | Breaker.Breaker>()
    yield* router.add("GET", "/health/database", Effect.provideContext(Effect.map(check, respond), context))
    const metrics = options.metrics
    if (metrics === undefined) return
    // The compiler cannot see that nothing is left of R without R.
    const served = Effect.provideContext(serveMetrics(metrics), yield* Effect.context<R>()) as Effect.Effect<
      HttpServerResponse.HttpServerResponse
    >
    yield* router.add("GET", "/metrics", served)
  }))
