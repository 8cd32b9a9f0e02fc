/**
 * The front door: one Layer with everything in it.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type * as Config from "effect/Config"
import { map as mapConfig, unwrap } from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as SqlClient from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as Breaker from "./Breaker.ts"
import * as Errors from "./Errors.ts"
import * as Executor from "./Executor.ts"
import * as Address from "./internal/address.ts"
import * as Client from "./internal/client.ts"
import * as Environment from "./internal/environment.ts"
import * as ListenerPool from "./internal/listenerPool.ts"
import * as Logbook from "./internal/logbook.ts"
import * as LogFields from "./internal/logFields.ts"
import { infallible } from "./internal/login.ts"
import * as Outage from "./internal/outage.ts"
import * as ServerReaping from "./internal/serverReaping.ts"
import * as Spans from "./internal/spans.ts"
import * as Metrics from "./Metrics.ts"
import * as Pool from "./Pool.ts"
import type * as Schedule from "./Schedule.ts"

/**
 * Everything that can be configured: the pool, the breaker, the retries, and the driver's client.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options extends Pool.Options {
  /**
   * The pool's name in metrics and logs, unique in the process: not blank, and without control characters. Default:
   * `applicationName`, else `default`.
   */
  readonly name?: string | undefined
  /** The circuit breaker; `false` for none. */
  readonly breaker?: Breaker.Options | false | undefined
  /** Retries of what is proved not to have run; `false` for none. */
  readonly retry?: Schedule.RetryOptions | false | undefined
  /** What bounds the retries of all calls together; `false` for no bound. Default: 10 tokens, 0.1 back for each success. */
  readonly retryBudget?: Schedule.BudgetOptions | false | undefined
  /** Judges failures that the program knows better, for this pool only: see {@link Errors.Classifier}. */
  readonly classify?: Errors.Classify | undefined
  /** Attributes of every statement's span. */
  readonly spanAttributes?: Record<string, unknown> | undefined
  /** Turns column names into property names. */
  readonly transformResultNames?: ((name: string) => string) | undefined
  /** Turns property names into column names. */
  readonly transformQueryNames?: ((name: string) => string) | undefined
  /** Whether the transforms reach into JSON values. Default: true. */
  readonly transformJson?: boolean | undefined
}

/**
 * What {@link layer} provides.
 *
 * @category models
 * @since 0.1.0
 */
export type Services =
  | PgClient.PgClient
  | SqlClient.SqlClient
  | Executor.Executor
  | Pool.Pool
  | Breaker.Breaker
  | Metrics.Metrics

/**
 * Replaces `PgClient.layer`: provides `PgClient` and `SqlClient` over a guarded pool, and the `Pool`, `Breaker`,
 * `Executor` and `Metrics` beside them. Nothing is opened until the first use, and a database that is down does not
 * make it fail: only impossible options do.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<Services, Errors.InvalidOption> =>
  house(options, breakerLayer(options.breaker))

/**
 * {@link layer} over the `Breaker` of the context, for one that is shared by a fleet (`Breaker.layerShared`), that remembers
 * (`Breaker.layerHydrated`), or that several pools have in common. Give it the pool's `max` as its `ramp`.
 *
 * **Example** (A circuit that outlives the process)
 *
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Pg from "effect-pg-pool"
 *
 * declare const readState: Effect.Effect<unknown, Error>
 * declare const writeState: (snapshot: unknown) => Effect.Effect<void, Error>
 *
 * export const DatabaseLive = Pg.layerWithBreaker({ max: 4 }).pipe(
 *   Layer.provideMerge(Pg.Breaker.layerHydrated({ load: readState, save: writeState, ramp: 4 }))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWithBreaker = (
  options: Omit<Options, "breaker"> = {}
): Layer.Layer<Exclude<Services, Breaker.Breaker>, Errors.InvalidOption, Breaker.Breaker> =>
  house(options, followBreaker)

/** PostgreSQL knows an application without a name, and metrics no pool without one. */
const nameOf = ({ applicationName, name }: Options): string | undefined =>
  name ?? (applicationName === "" ? undefined : applicationName)

const house = <A, E, R>(options: Options, breaker: Layer.Layer<A, E, R>) =>
  client(options).pipe(
    Layer.provideMerge(
      executor(options)
    ),
    Layer.provideMerge(breaker),
    Layer.provideMerge(Pool.layer(options)),
    Layer.provideMerge(Metrics.layer({ name: nameOf(options) })),
    Layer.provide(Reactivity.layer)
  )

/**
 * {@link layer} with its options read through `Config`. Without an argument it reads the environment variables of
 * {@link fromEnvironment}.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options> = fromEnvironment as Config.Wrap<Options>
): Layer.Layer<Services, Errors.InvalidOption | Config.ConfigError> => Layer.unwrap(Effect.map(unwrap(options), layer))

/**
 * The options as the environment has them: `DATABASE_URL` (or `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`,
 * `PGDATABASE`, `PGSSLMODE`, `PGSSLNEGOTIATION`, `PGTARGETSESSIONATTRS`) and the `DB_*` variables. A bare number is milliseconds; `"15 seconds"` and `"infinity"`
 * work too. A bad value is a `ConfigError` that names the variable, the value and what is allowed. What is not set is not
 * there: {@link withEnvironment} lays the rest over options of yours.
 *
 * @category configuration
 * @since 0.1.0
 */
export const fromEnvironment: Config.Config<Options> = Environment.options

/**
 * Options of the program with the environment laid over them: whatever {@link fromEnvironment} finds wins. An address takes the
 * place of the program's, of which `DATABASE_URL` leaves what it does not say itself (the user, the password, the database). Of
 * `retry` and `breaker` only what is set there changes, and of `ssl` the certificates stay; a `min` above `DB_POOL_MAX` comes down to it, and `DB_BREAKER_FAILURES` takes the
 * place of a `trip`. Fails as {@link fromEnvironment} does.
 *
 * **Example** (Operators have the last word)
 *
 * ```ts
 * import * as Pg from "effect-pg-pool"
 *
 * export const DatabaseLive = Pg.layerConfig(
 *   Pg.withEnvironment({ applicationName: "orders", max: 20, min: 5, breaker: { openFor: "10 seconds" } })
 * )
 * ```
 *
 * @category configuration
 * @since 0.1.0
 */
export const withEnvironment = (options: Options): Config.Config<Options> =>
  mapConfig(Environment.options, (found) => Environment.over(options, found))

const executor = ({ classify, retry, retryBudget }: Options) => Executor.layer({ retry, retryBudget, classify })

const noting = (store: Metrics.Store, book: Logbook.Logbook): (transition: Breaker.Transition) => void => {
  const { breakerRejections: turnedAway } = store
  const outage = Outage.watch(() => turnedAway.open + turnedAway.half_open + turnedAway.isolated)
  return (transition) => {
    const over = outage(transition)
    book.write(
      LogFields.isAlarm(transition) ? "breakerOpened" : "breakerMoved",
      () => LogFields.changed(transition, over)
    )
    if (transition.from === transition.to) return
    store.breakerState = transition.to
    store.breakerChangedAt = transition.at
    store.breakerTransitions[transition.to]++
  }
}

/** Another role of the same hosts is another service, which fails by itself. */
const breakerKey = ({ sessionAttrs, target, targets }: Pool.Pool["Service"]["settings"]): string => {
  const keys = targets.map(({ address: { host, path, port } }, index) =>
    Breaker.keyOf({
      host: path ?? host,
      port,
      ...(index === targets.length - 1 && {
        database: target.address.database,
        role: sessionAttrs === "any" ? undefined : sessionAttrs
      })
    })
  )
  return keys.join(",")
}

const breakerLayer = (options: Breaker.Options | false | undefined) =>
  options === false ? Breaker.layerNoop : Layer.effect(
    Breaker.Breaker,
    Effect.gen(function*() {
      const { pool, store } = yield* Metrics.Metrics
      const book = yield* Logbook.make(pool)
      const note = noting(store, book)
      const { settings } = yield* Pool.Pool
      const breaker = yield* Breaker.make({
        key: breakerKey(settings),
        ramp: settings.max,
        ...options,
        onTransition: (transition) => {
          note(transition)
          options?.onTransition?.(transition)
        }
      })
      // A snapshot may have opened it without a change to tell.
      store.breakerState = (yield* breaker.state)._tag
      return breaker
    })
  )

/** Somebody else's breaker is followed from outside. */
const followBreaker = /* @__PURE__ */ Layer.effectDiscard(/* @__PURE__ */ Effect.gen(function*() {
  const { pool, store } = yield* Metrics.Metrics
  const book = yield* Logbook.make(pool)
  const note = noting(store, book)
  const breaker = yield* Breaker.Breaker
  yield* breaker.transitions.pipe(
    Stream.runForEach((transition) => Effect.sync(() => note(transition))),
    Effect.forkScoped({ startImmediately: true })
  )
  store.breakerState = (yield* breaker.state)._tag
}))

const noDirectUrl = () =>
  new Errors.InvalidOption({
    option: "directUrl",
    value: undefined,
    allowed: "the URL of the server itself: LISTEN needs a session that stays, which a transaction pooler does not give"
  })

/** Who lends listeners their sessions. Their figures count as the pool's; the gauges are those of the pool alone. */
const listeners = (options: Options) =>
  Effect.gen(function*() {
    if (options.pooler !== "transaction") return (yield* Executor.Executor).reserve
    if (options.directUrl === undefined) return Errors.toSqlError(noDirectUrl())
    const metrics = yield* Metrics.Metrics
    const direct = yield* Layer.build(
      executor(options).pipe(
        // The circuit is the pooler's, and failed connects are kept apart without one.
        Layer.provide(Breaker.layerNoop),
        Layer.provide(Pool.layer(ListenerPool.optionsOf(options, options.directUrl))),
        Layer.provide(Layer.succeed(Metrics.Metrics, {
          ...metrics,
          registerPool: () => () => {},
          registerBudget: () => {}
        }))
      )
    )
    return Context.get(direct, Executor.Executor).reserve
  })

const client = (options: Options) =>
  Layer.effectContext(Effect.gen(function*() {
    const executor = yield* Executor.Executor
    const pool = yield* Pool.Pool
    const { address } = pool.settings.target
    const pgClient = yield* Client.make(
      {
        borrow: executor.borrow,
        sendUnsafe: executor.sendUnsafe,
        lease: executor.lease,
        reserve: executor.reserve,
        hold: executor.hold,
        renew: executor.renew,
        evict: ({ session }) => pool.evictUnsafe(session, "invalid"),
        enforce: executor.enforce,
        resolve: executor.resolve
      },
      {
        pool: pool.name,
        config: { ...options, password: infallible(options.password) },
        listenOn: yield* listeners(options),
        endsIdle: ServerReaping.endsIdle(pool.settings.reaping),
        transactionSettings: pool.settings.transactionSettings,
        spanAttributes: [
          ...Object.entries(options.spanAttributes ?? {}),
          ["db.system.name", "postgresql"],
          [Spans.attribute.pool, pool.name],
          ...Object.entries(Address.attributes(address))
        ]
      }
    )
    return Context.make(PgClient.PgClient, pgClient).pipe(Context.add(SqlClient.SqlClient, pgClient))
  }))
