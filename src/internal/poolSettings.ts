import type * as PgConnection from "@effect/sql-pg/PgConnection"
import type * as PgTypes from "@effect/sql-pg/PgTypes"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Os from "node:os"
import type { Duplex } from "node:stream"
import type { ConnectionOptions } from "node:tls"
import * as Address from "./address.ts"
import type * as Dial from "./dial.ts"
import type * as Discretion from "./discretion.ts"
import * as FleetSize from "./fleetSize.ts"
import type * as Hosts from "./hosts.ts"
import * as Login from "./login.ts"
import { millis } from "./millis.ts"
import * as Reset from "./reset.ts"
import * as ServerReaping from "./serverReaping.ts"
import * as Sizing from "./sizing.ts"

/** What the pool remembers of a session; durations in milliseconds. */
export interface SessionUsage {
  /** Since it was opened. */
  readonly age: number
  /** Since it was last given back; 0 while others share it, and at that moment itself. */
  readonly idleFor: number
  /** Checkouts so far. */
  readonly uses: number
}

type CheckoutHook = (
  connection: PgConnection.PgConnection,
  usage: SessionUsage
) => Effect.Effect<unknown, unknown>

/** Everything a pool can be told. Absence means the default; durations are never below 0. */
export interface PoolOptions {
  /**
   * `postgres://user:password@host:port/database?sslmode=...`, with several hosts as libpq has them:
   * `postgres://user:password@one:5432,two:5432/database?target_session_attrs=read-write`. Explicit fields win over it.
   */
  readonly url?: Redacted.Redacted | undefined
  /** Default: `localhost`. A value that begins with `/` is the directory of a Unix socket. */
  readonly host?: string | undefined
  /** Default: 5432. */
  readonly port?: number | undefined
  /** The Unix socket itself; wins over host and port. */
  readonly path?: string | undefined
  /**
   * Several servers of one database, instead of `host` and `port`: a primary and its standbys. A connect tries one after
   * another, each for `connectTimeout`, until one will do; those that have just failed come last. Default port: 5432.
   */
  readonly hosts?: ReadonlyArray<{ readonly host: string; readonly port?: number | undefined }> | undefined
  /**
   * Which servers will do, as libpq has it: `"any"`; `"read-write"` and `"read-only"`, by whether transactions may write
   * there; `"primary"` and `"standby"`, by whether it follows another one; `"prefer-standby"`, a standby if one is up, else
   * any. All but `"any"` are checked at each connect, without a round trip from PostgreSQL 14 on. If none will do, the
   * connect fails with `NoSuitableHost`. Default: the URL's `target_session_attrs`, else `"any"`.
   *
   * https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS
   */
  readonly targetSessionAttrs?: Hosts.SessionAttrs | undefined
  /** Default: the user's name. */
  readonly database?: string | undefined
  /** Default: the operating system's user. */
  readonly username?: string | undefined
  /**
   * A static password, or an effect that is run for each connect (IAM tokens), within `connectTimeout`. When it fails, the
   * connect fails with `CredentialsFailed`; when the server refuses what it yields, it is run once more and the connect
   * repeated at once. `Credentials.cached` keeps what it yields until it expires.
   */
  readonly password?: Login.Password | undefined
  /** TLS. Default: what the URL's `sslmode` says, else none. */
  readonly ssl?: boolean | ConnectionOptions | undefined
  /**
   * `"direct"` begins with TLS, where `"postgres"` asks the server first whether it has any: one round trip less for each
   * connect and each CancelRequest. It needs PostgreSQL 17, or a proxy that begins with TLS, and TLS that is not optional
   * (`ssl`, or `sslmode=require` and above). A server that does not understand it is told of as what it is, a failure to
   * connect. Default: the URL's `sslnegotiation`, else `"postgres"`.
   *
   * https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-SSLNEGOTIATION
   */
  readonly sslNegotiation?: Address.SslNegotiation | undefined
  /** Opens the raw socket instead of `node:net`: for Unix peers, tunnels and tests. */
  readonly stream?: (() => Duplex) | undefined
  /** Idle time before TCP keepalive probes start, whole seconds. Default: 30 seconds. */
  readonly keepAlive?: Duration.Input | undefined
  /** Custom codecs of the driver. */
  readonly types?: PgTypes.Registry | undefined
  /** Largest message accepted from the server, in bytes. Default: 16 MiB. */
  readonly maxMessageSize?: number | undefined

  /** Called `max` here. */
  readonly maxConnections?: never
  /** Called `min` here. */
  readonly minConnections?: never
  /** Called `maxLifetime` here. */
  readonly connectionTTL?: never

  /** Most physical sessions, replacements and connects under way included. Default: `sizeFromCpus().max`. */
  readonly max?: number | undefined
  /**
   * How many idle sessions are kept however long they idle. None is opened ahead of need. Default:
   * `sizeFromCpus().min`, never above `max`.
   */
  readonly min?: number | undefined
  /**
   * Sizes the pool by what the server allows to all environments of the program together: see `Pool.sizeForFleet`, which
   * returns it. The pool then begins with one session, and `max` is the most that it may grow to. Default: no fleet.
   */
  readonly fleet?: FleetSize.FleetOption | undefined
  /** Bounds a checkout: queue, connect and liveness check together. Default: 60 seconds. */
  readonly acquireTimeout?: Duration.Input | undefined
  /**
   * What becomes of those whose connect is refused because the server takes no more sessions: 53300, or what a pooler says
   * instead. `"fail"` tells them at once, unless others of the pool's sessions will come back. `"wait"` lets them wait for
   * `acquireTimeout`, or until their deadline, while the connect is tried again for all of them together: after a pause of
   * up to 100 ms, twice that each time, up to 2 seconds, each drawn by chance, so that the processes of a fleet do not come
   * back at the same moment. At the end they get `AcquireTimeout` with the last refusal. Default: `"fail"`.
   */
  readonly whenServerFull?: "fail" | "wait" | undefined
  /** Most borrowers that may wait; the next one fails at once. Default: no bound. */
  readonly maxWaiting?: number | undefined
  /**
   * Turns borrowers away by how long they have waited (CoDel): when for a whole `interval` nobody has been served within
   * `target`, those who have waited for twice the target get `PoolSaturated`, so that those behind them are served in time.
   * `true` for 50 ms and 500 ms. Default: false.
   */
  readonly shedding?: boolean | {
    readonly target?: Duration.Input | undefined
    readonly interval?: Duration.Input | undefined
  } | undefined
  /**
   * A session that is held for longer is told of in a log line, with the fiber, span and call site that took it.
   * Default: never.
   */
  readonly leakThreshold?: Duration.Input | undefined
  /** Bounds one connect to one host: TCP, TLS, password, authentication and hooks. Default: the URL's `connect_timeout`, else 5 seconds. */
  readonly connectTimeout?: Duration.Input | undefined
  /** Idle sessions above `min` are closed after this long. Default: 10 seconds. */
  readonly idleTimeout?: Duration.Input | undefined
  /**
   * How often to look for idle sessions to close while nobody asks for one. Default: never; the next checkout looks.
   * Meant for long-lived servers: a timer sleeps with a frozen process.
   */
  readonly reapEvery?: Duration.Input | undefined
  /** A session idle for longer than this is checked by a round trip before it is lent. Default: 30 seconds. */
  readonly validateAfter?: Duration.Input | undefined
  /** `"always"` checks before every use, as `SELECT 1` pools do. Default: `"idle"`, see `validateAfter`. */
  readonly validate?: "always" | "idle" | undefined
  /** How long a check may take before the session is taken for dead. Default: 1 second. */
  readonly validationTimeout?: Duration.Input | undefined
  /** Sessions are replaced at this age. Default: 30 minutes. */
  readonly maxLifetime?: Duration.Input | undefined
  /** Each session's lifetime is shortened by up to this share, so that they do not all end at once. Default: 0.1. */
  readonly maxLifetimeJitter?: number | undefined
  /**
   * Sessions are replaced after this many checkouts, however young they are. Default: 5000, but not within a minute of being
   * opened: a busy session would not last longer than a second.
   */
  readonly maxUses?: number | undefined
  /** How long work under way may go on when the pool closes. Default: 5 seconds. */
  readonly closeTimeout?: Duration.Input | undefined

  /** `statement_timeout` of every session. Default: 15 seconds. `Duration.infinity` turns it off. */
  readonly statementTimeout?: Duration.Input | undefined
  /** `lock_timeout` of every session. Default: 10 seconds. */
  readonly lockTimeout?: Duration.Input | undefined
  /** `idle_in_transaction_session_timeout` of every session. Default: 60 seconds. */
  readonly idleInTransactionTimeout?: Duration.Input | undefined
  /**
   * The client's own bound, for a server that no longer answers: a socket that stays silent for this long with a
   * statement in flight is destroyed. The server's `statement_timeout` gets one second more to speak first.
   * Default: 15 seconds, or `statementTimeout` when that is longer.
   */
  readonly queryTimeout?: Duration.Input | undefined
  /**
   * What the server is to notice by itself of a process that was killed: sessions that stay behind idle, and statements
   * that nobody waits for any more. Sent with the startup packet. A server that does not know one of them is asked without
   * it, at once and from then on. Not sent behind a transaction pooler, which would refuse them: there, its own limits and
   * `ALTER ROLE ... SET` say the same. Default: nothing, so that the server's own settings hold.
   */
  readonly serverReaping?: ServerReaping.ServerReaping | undefined
  /** `application_name`, and the pool's name in metrics. Default: `effect-pg-pool`. */
  readonly applicationName?: string | undefined
  /** More session settings, sent with the startup packet; they win over the ones above. */
  readonly startupParameters?: Readonly<Record<string, string>> | undefined
  /** The `options` startup parameter, as is. */
  readonly startupOptions?: string | undefined
  /**
   * `"transaction"` behind a pooler that lends a server session per transaction, as PgBouncer does: no prepared names and
   * no startup parameter but `application_name`, since such poolers refuse them. The server's time limits then hold
   * inside of transactions only, with whose BEGIN they are sent; one of `Duration.infinity` is not sent, and what the role
   * has set holds. Default: `"none"`.
   */
  readonly pooler?: "none" | "transaction" | undefined
  /**
   * The server itself, past the transaction pooler: each LISTEN gets a session there, which is closed with the listener.
   * At most `max` of them, beside the sessions of the pool. User, password and database are those of `url` where it
   * names none. Not used without a pooler. Default: none, and LISTEN is refused behind a transaction pooler.
   */
  readonly directUrl?: Redacted.Redacted | undefined
  /**
   * What is undone on a session that comes back after it was used, so that the next borrower does not find it: settings
   * (back to the startup parameters), role, temporary tables, session advisory locks, cursors, `LISTEN`, and the state
   * of sequences.
   *
   * - `"none"`: nothing. A transaction left open closes the session all the same.
   * - `"clean"`: all of that; prepared statements stay.
   * - `"discard-all"`: all that `DISCARD ALL` does, prepared statements included, so `prepare` is false.
   *
   * It is sent as soon as the session comes back, and costs the next statement no round trip, but the server and this
   * process some 30 to 40 microseconds each. A session that cannot be reset is closed, and what was on its way behind is
   * refused by the server, so that it can be run on another one.
   * What `afterConnect` has set is undone as well: use `startupParameters`. Impossible with `multiplex`, whose borrowers
   * share a session, and behind a transaction pooler, which resets its own. Default: `"none"`.
   */
  readonly reset?: Reset.Reset | undefined

  /** Pipelines the statements of several fibers on each session. Default: false. */
  readonly multiplex?: boolean | undefined
  /**
   * How many statements may share one session with `multiplex`. Default: 32, and up to 100 once there are `max` sessions that
   * have as many.
   */
  readonly multiplexConcurrency?: number | undefined
  /**
   * Named prepared statements. Default: true, false with `reset: "discard-all"` and behind a transaction pooler: of
   * those, PgBouncer from 1.21 on with `max_prepared_statements` can stand `true`.
   */
  readonly prepare?: boolean | undefined
  /** How many statements a session keeps prepared. Default: 100. */
  readonly preparedStatementCacheSize?: number | undefined

  /**
   * How much an error shows where it is printed, logged, traced or serialised. `"discreet"`: SQLSTATE and its name, constraint,
   * table, column, position, and the server's text only where it cannot quote a row or a parameter; errors of hooks and of
   * the `password` effect by their names. `"full"`: all that was said, for development. Programs read all of it in either
   * case: see `Errors.serverReply`. Default: `"discreet"`.
   */
  readonly errorText?: Discretion.ErrorText | undefined
  /** Runs before each connect; a failure refuses it. */
  readonly beforeConnect?: Effect.Effect<unknown, unknown> | undefined
  /** Runs on each new session before it is lent; a failure closes it and fails the checkout. */
  readonly afterConnect?: ((connection: PgConnection.PgConnection) => Effect.Effect<unknown, unknown>) | undefined
  /**
   * Runs on a session before it is lent, as part of the checkout. `false` refuses the session: it is closed and another
   * one is tried. A failure closes it and fails the checkout with `HookFailed`, and so does the refusal of more than `max`
   * new sessions in a row (three at least). One that does not end is given up, and its session closed, after
   * `acquireTimeout`, with `AcquireTimeout`.
   */
  readonly beforeAcquire?: CheckoutHook | undefined
  /**
   * Runs on a session that has come back, for one second at most, before anybody else can get it. `false`, or a failure,
   * which is logged, closes the session. With `multiplex` it runs when the last one who shares the session has left.
   */
  readonly afterRelease?: CheckoutHook | undefined
  /** Runs before a live session is closed, for one second at most; a failure is logged. */
  readonly beforeDisconnect?: ((connection: PgConnection.PgConnection) => Effect.Effect<unknown, unknown>) | undefined
}

/** The options after defaults: numbers in milliseconds, `Infinity` for none. */
export interface Settings {
  /** The first of `targets`. */
  readonly target: Dial.Target
  /** One for each host. */
  readonly targets: ReadonlyArray<Dial.Target>
  readonly sessionAttrs: Hosts.SessionAttrs
  readonly connection: PgConnection.Config
  /** Startup parameters that a server may refuse. */
  readonly reaping: ServerReaping.Parameters
  /** Statements that give a transaction what no session of its own gives it. */
  readonly transactionSettings: ReadonlyArray<string>
  readonly password: Login.Password | undefined
  readonly connectTimeout: number
  readonly max: number
  readonly min: number
  /** `undefined` without a fleet, and behind a pooler, whose places are not the server's. */
  readonly fleet: FleetSize.Keeper | undefined
  /** The host by whose name the fleet is taken to be behind a pooler. */
  readonly fleetOffAt: string | undefined
  readonly concurrency: number
  /** How many statements share a session when no other can be had. */
  readonly depth: number
  readonly acquireTimeout: number
  /** Whether borrowers wait while the server takes no more sessions. */
  readonly waitsForRoom: boolean
  readonly maxWaiting: number
  readonly shedding: { readonly target: number; readonly interval: number } | undefined
  readonly leakThreshold: number | undefined
  readonly idleTimeout: number
  readonly reapEvery: number | undefined
  readonly validateAfter: number
  readonly validateAlways: boolean
  readonly validationTimeout: number
  readonly maxLifetime: number
  readonly maxLifetimeJitter: number
  readonly maxUses: number
  /** Milliseconds of age before which a session is never replaced for its uses. */
  readonly minAgeForUses: number
  readonly closeTimeout: number
  readonly farewell: number
  /** What to send to a session that comes back. */
  readonly resetFrame: Uint8Array | undefined
  /** Whether a CancelRequest for a session cannot hit anybody's statement but its borrower's. */
  readonly cancelsAreOurs: boolean
  /** Whether other clients' statements run where a CancelRequest for a session goes, and it may be lost in a queue. */
  readonly behindPooler: boolean
  readonly statementTimeout: number
  readonly queryTimeout: number
  readonly silence: number
  readonly errorText: Discretion.ErrorText
  readonly beforeConnect: PoolOptions["beforeConnect"]
  readonly afterConnect: PoolOptions["afterConnect"]
  readonly beforeAcquire: PoolOptions["beforeAcquire"]
  readonly afterRelease: PoolOptions["afterRelease"]
  readonly beforeDisconnect: PoolOptions["beforeDisconnect"]
}

export interface BadOption {
  readonly option: string
  readonly value: string
  readonly allowed: string
}

const farewell = 1000
/** Sessions used this recently are trusted, whatever `validateAfter` says: HikariCP's alive-bypass window. */
const trustWindow = 500
/** The server's own timeout speaks first. */
const grace = 1000

const atLeast = (bound: number) => (value: number) => value >= bound
const wholeFrom = (bound: number) => (value: number) => Number.isInteger(value) && value >= bound
const isPort = (value: number) => Number.isInteger(value) && value >= 1 && value <= 65535

type Rule = readonly [option: keyof PoolOptions, allowed: string, holds: (value: number) => boolean]

const countRules: ReadonlyArray<Rule> = [
  ["port", "a whole number from 1 to 65535", isPort],
  ["max", "a whole number of at least 1", wholeFrom(1)],
  ["min", "a whole number of at least 0", wholeFrom(0)],
  ["maxWaiting", "a whole number of at least 0", wholeFrom(0)],
  ["maxLifetimeJitter", "from 0 to below 1", (value) => value >= 0 && value < 1],
  ["maxUses", "a whole number of at least 1", wholeFrom(1)],
  ["multiplexConcurrency", "a whole number of at least 1", wholeFrom(1)],
  ["preparedStatementCacheSize", "a whole number of at least 0", wholeFrom(0)],
  ["maxMessageSize", "a whole number of at least 1", wholeFrom(1)]
]

const durationRules: ReadonlyArray<Rule> = [
  ["keepAlive", "a duration of at least 1 second", atLeast(1000)],
  ["acquireTimeout", "a duration above 0", (value) => value > 0],
  ["connectTimeout", "a duration above 0", (value) => value > 0],
  ["leakThreshold", "a duration above 0", (value) => value > 0],
  ["idleTimeout", "a duration of at least 0", atLeast(0)],
  ["reapEvery", "a duration above 0", (value) => value > 0 && value < Infinity],
  ["validateAfter", "a duration of at least 0", atLeast(0)],
  ["validationTimeout", "a duration above 0", (value) => value > 0],
  ["maxLifetime", "a duration above 0", (value) => value > 0],
  ["closeTimeout", "a duration of at least 0", atLeast(0)],
  ["statementTimeout", "a duration of at least 1 ms", atLeast(1)],
  ["lockTimeout", "a duration of at least 1 ms", atLeast(1)],
  ["idleInTransactionTimeout", "a duration of at least 1 ms", atLeast(1)],
  ["queryTimeout", "a duration above 0", (value) => value > 0]
]

const choices = [
  ["validate", ["always", "idle"]],
  ["pooler", ["none", "transaction"]],
  ["whenServerFull", ["fail", "wait"]],
  ["reset", ["none", "clean", "discard-all"]],
  ["sslNegotiation", Address.sslNegotiations],
  ["errorText", ["discreet", "full"]]
] as const

/** Names of `PgClient.layer` that would otherwise be passed over without a word. */
const renamed = [["maxConnections", "max"], ["minConnections", "min"], ["connectionTTL", "maxLifetime"]] as const

const isFunction = (value: unknown): boolean => typeof value === "function"
const hookShape = "a function from a connection to an Effect"

/** What a compiler would have caught. */
const shapes: ReadonlyArray<
  readonly [option: keyof PoolOptions, allowed: string, holds: (value: unknown) => boolean, isSecret?: boolean]
> = [
  ["url", "a text that is wrapped by Redacted.make", Redacted.isRedacted, true],
  ["directUrl", "a text that is wrapped by Redacted.make", Redacted.isRedacted, true],
  [
    "password",
    "a Redacted, or an Effect that yields one",
    (value) => Redacted.isRedacted(value) || Effect.isEffect(value),
    true
  ],
  ["ssl", "true, false or TLS options", (value) => typeof value === "boolean" || value === Object(value), true],
  ["fleet", "what Pool.sizeForFleet returns as fleet", FleetSize.isFleet],
  ["shedding", "true, false or { target, interval }", (value) => value === Object(value) || typeof value === "boolean"],
  ["serverReaping", "an object", (value) => value === Object(value)],
  ["beforeConnect", "an Effect", Effect.isEffect],
  ["afterConnect", hookShape, isFunction],
  ["beforeAcquire", hookShape, isFunction],
  ["afterRelease", hookShape, isFunction],
  ["beforeDisconnect", hookShape, isFunction]
]

const firstBroken = (options: PoolOptions): BadOption | undefined => {
  for (const [option, name] of renamed) {
    const value: unknown = options[option]
    if (value !== undefined) return { option, value: String(value), allowed: `given as ${name}` }
  }
  for (const [option, allowed, holds] of countRules) {
    const value = options[option] as number | undefined
    if (value !== undefined && !holds(value)) return { option, value: String(value), allowed }
  }
  for (const [option, allowed, holds] of durationRules) {
    const value = options[option] as Duration.Input | undefined
    if (value !== undefined && !holds(millis(value))) return { option, value: String(value), allowed }
  }
  for (const [option, allowed, holds, isSecret = false] of shapes) {
    const value: unknown = options[option]
    if (value !== undefined && !holds(value)) return { option, value: isSecret ? "<redacted>" : String(value), allowed }
  }
  const { interval, target } = typeof options.shedding === "object" ? options.shedding : {}
  for (const [option, value] of [["shedding.target", target], ["shedding.interval", interval]] as const) {
    if (value !== undefined && !(millis(value) > 0)) {
      return { option, value: String(value), allowed: "a duration above 0" }
    }
  }
  const brokenFleet = options.fleet === undefined ? undefined : FleetSize.keeperOf(options.fleet).broken
  if (brokenFleet !== undefined) return brokenFleet
  for (const [option, allowed] of choices) {
    const value: unknown = options[option]
    if (value !== undefined && !allowed.some((choice) => choice === value)) {
      return { option, value: String(value), allowed: `one of ${allowed.join(", ")}` }
    }
  }
  if (options.directUrl !== undefined) {
    const address = Address.resolve({ url: options.directUrl, username: "anybody" })
    if ("_tag" in address) return { option: "directUrl", value: address.value, allowed: address.allowed }
  }
  return minAbove(options.max, options.min)
}

const minAbove = (max: number | undefined, min: number | undefined): BadOption | undefined =>
  min !== undefined && max !== undefined && min > max
    ? { option: "min", value: String(min), allowed: `at most max, which is ${max}` }
    : undefined

/** The bounds after a change, or what is wrong with it. */
export const resize = (
  now: Sizing.Size,
  next: { readonly max?: number | undefined; readonly min?: number | undefined }
): Effect.Effect<Sizing.Size, BadOption> => {
  const max = next.max ?? now.max
  const broken = firstBroken(next) ?? minAbove(max, next.min)
  return broken === undefined ? Effect.succeed({ max, min: next.min ?? Math.min(now.min, max) }) : Effect.fail(broken)
}

const brokenReset = ({ multiplex, pooler, prepare, reset }: PoolOptions): BadOption | undefined => {
  if (reset === undefined || reset === "none") return undefined
  if (multiplex === true) {
    return { option: "reset", value: reset, allowed: "\"none\" with multiplex, whose borrowers share a session" }
  }
  if (pooler === "transaction") {
    return { option: "reset", value: reset, allowed: "\"none\" behind a transaction pooler, which resets its sessions" }
  }
  return reset === "discard-all" && prepare === true
    ? {
      option: "prepare",
      value: "true",
      allowed: "false with reset \"discard-all\"; \"clean\" keeps what is prepared"
    }
    : undefined
}

/** An explicit `ssl` wins over the URL. Unlike libpq, `allow` tries TLS first, and whatever uses TLS verifies. */
const tlsMode = (
  { ssl, sslNegotiation }: PoolOptions,
  { sslMode: mode, sslNegotiation: ofUrl }: Address.Address
): Dial.TlsMode | BadOption => {
  const isDirect = (sslNegotiation ?? ofUrl) === "direct"
  if (isDirect && !Address.requiresTls(ssl, mode)) {
    const allowed = "\"postgres\" unless TLS is required: by ssl: true, or sslmode=require and above"
    return { option: "sslNegotiation", value: "direct", allowed }
  }
  const isOff = ssl === undefined ? mode === undefined || mode === "disable" : ssl === false
  if (isOff) return { _tag: "Off" }
  const isOptional = ssl === undefined && (mode === "prefer" || mode === "allow")
  return { _tag: "On", isOptional, isDirect, options: typeof ssl === "object" ? ssl : {} }
}

const sheddingOf = (shedding: PoolOptions["shedding"]): Settings["shedding"] => {
  if (shedding === undefined || shedding === false) return undefined
  const { interval, target } = shedding === true ? {} : shedding
  return { target: millis(target ?? 50), interval: millis(interval ?? 500) }
}

const without = <A>(these: Readonly<Record<string, A>>, those: object): Readonly<Record<string, A>> =>
  Object.fromEntries(Object.entries(these).filter(([name]) => !Object.hasOwn(those, name)))

/** How PostgreSQL spells "no limit" for its timeouts. */
const none = "0"
const guc = (duration: number): string => (duration === Infinity ? none : String(Math.ceil(duration)))

/** Turns options into settings, or says which one is impossible. */
export const settle = (options: PoolOptions): Effect.Effect<Settings, BadOption> =>
  Effect.suspend(() => {
    const broken = firstBroken(options) ?? brokenReset(options)
    if (broken !== undefined) return Effect.fail(broken)
    const address = Address.resolve(options)
    if (options.hosts !== undefined && options.stream !== undefined) {
      return Effect.fail({ option: "stream", value: "a function", allowed: "left out where hosts is given" })
    }
    if ("_tag" in address) {
      return Effect.fail({ option: address.option, value: address.value, allowed: address.allowed })
    }
    const tls = tlsMode(options, address)
    if (!("_tag" in tls)) return Effect.fail(tls)
    const time = (input: Duration.Input | undefined, otherwise: number) =>
      input === undefined ? otherwise : millis(input)
    const size = Sizing.fromCpus(Os.availableParallelism())
    const max = options.max ?? size.max
    const behindPooler = options.pooler === "transaction"
    const statementTimeout = time(options.statementTimeout, 15_000)
    const timeLimits = {
      statement_timeout: guc(statementTimeout),
      lock_timeout: guc(time(options.lockTimeout, 10_000)),
      idle_in_transaction_session_timeout: guc(time(options.idleInTransactionTimeout, 60_000))
    }
    const idleTimeout = time(options.idleTimeout, ServerReaping.usualIdleTimeout)
    const reaping = options.serverReaping ?? {}
    const brokenReaping = ServerReaping.broken(reaping, idleTimeout)
    if (brokenReaping !== undefined) return Effect.fail(brokenReaping)
    const queryTimeout = time(options.queryTimeout, Math.max(15_000, statementTimeout))
    const multiplex = options.multiplex ?? false
    const connection: PgConnection.Config = {
      url: address.url,
      host: address.host,
      port: address.port,
      path: address.path,
      // The socket that the driver gets is encrypted already.
      ssl: false,
      database: options.database,
      username: address.username,
      // The connector's own clock covers dialling and hooks as well.
      connectTimeout: "Infinity",
      applicationName: options.applicationName ?? "effect-pg-pool",
      startupParameters: behindPooler ? options.startupParameters : { ...timeLimits, ...options.startupParameters },
      startupOptions: options.startupOptions,
      types: options.types,
      multiplex,
      prepare: options.prepare ?? !(behindPooler || options.reset === "discard-all"),
      preparedStatementCacheSize: options.preparedStatementCacheSize,
      maxMessageSize: options.maxMessageSize
    }
    const targets = address.hosts.map((host): Dial.Target => ({
      address: { ...address, ...host },
      tls,
      keepAlive: time(options.keepAlive, 30_000),
      stream: options.stream
    }))
    const fleet = options.fleet === undefined || behindPooler ? undefined : FleetSize.keeperOf(options.fleet)
    const pooled = targets.find(({ address }) => address.path === undefined && fleet?.looksLikePooler(address))
    return Effect.succeed<Settings>({
      target: targets[0]!,
      targets,
      sessionAttrs: address.sessionAttrs,
      connection,
      // What the program has said by name wins, and is not taken back.
      reaping: behindPooler ? {} : without(ServerReaping.parametersOf(reaping), options.startupParameters ?? {}),
      // A setting of the session would be left to whoever the pooler lends it to next.
      transactionSettings: behindPooler
        ? Object.entries(timeLimits).flatMap(([name, limit]) => limit === none ? [] : [`SET LOCAL ${name} = ${limit}`])
        : [],
      password: Login.unseen(options.password),
      connectTimeout: time(options.connectTimeout, address.connectTimeout ?? 5000),
      max,
      min: Math.min(options.min ?? size.min, max),
      fleet: pooled === undefined ? fleet : undefined,
      fleetOffAt: pooled?.address.host,
      concurrency: multiplex ? options.multiplexConcurrency ?? 32 : 1,
      depth: multiplex ? options.multiplexConcurrency ?? 100 : 1,
      acquireTimeout: time(options.acquireTimeout, 60_000),
      waitsForRoom: options.whenServerFull === "wait",
      maxWaiting: options.maxWaiting ?? Infinity,
      shedding: sheddingOf(options.shedding),
      leakThreshold: options.leakThreshold === undefined ? undefined : millis(options.leakThreshold),
      idleTimeout,
      reapEvery: options.reapEvery === undefined ? undefined : millis(options.reapEvery),
      validateAfter: Math.max(time(options.validateAfter, 30_000), trustWindow),
      validateAlways: options.validate === "always",
      validationTimeout: time(options.validationTimeout, 1000),
      maxLifetime: time(options.maxLifetime, 30 * 60_000),
      maxLifetimeJitter: options.maxLifetimeJitter ?? 0.1,
      maxUses: options.maxUses ?? 5000,
      minAgeForUses: options.maxUses === undefined ? 60_000 : 0,
      closeTimeout: time(options.closeTimeout, 5000),
      farewell,
      resetFrame: options.reset === undefined || options.reset === "none" ? undefined : Reset.frameOf(options.reset),
      // A shared session has many borrowers, and a transaction pooler's has those of other clients besides.
      cancelsAreOurs: !multiplex && !behindPooler,
      behindPooler,
      statementTimeout,
      queryTimeout,
      silence: queryTimeout + grace,
      errorText: options.errorText ?? "discreet",
      beforeConnect: options.beforeConnect,
      afterConnect: options.afterConnect,
      beforeAcquire: options.beforeAcquire,
      afterRelease: options.afterRelease,
      beforeDisconnect: options.beforeDisconnect
    })
  })
