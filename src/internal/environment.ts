import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Address from "./address.ts"
import { type ErrorText, errorTexts } from "./discretion.ts"
import * as Hosts from "./hosts.ts"
import { millis } from "./millis.ts"
import * as RefusedVariable from "./refusedVariable.ts"
import * as ServerReaping from "./serverReaping.ts"
import { discreet } from "./showable.ts"

/** The options that environment variables can set. */
export interface EnvironmentOptions {
  readonly url?: Redacted.Redacted | undefined
  readonly host?: string | undefined
  readonly port?: number | undefined
  readonly hosts?: ReadonlyArray<{ readonly host: string; readonly port: number | undefined }> | undefined
  readonly targetSessionAttrs?: Hosts.SessionAttrs | undefined
  readonly username?: string | undefined
  readonly password?: Redacted.Redacted | undefined
  readonly database?: string | undefined
  readonly ssl?: boolean | undefined
  readonly sslNegotiation?: Address.SslNegotiation | undefined
  readonly max?: number | undefined
  readonly min?: number | undefined
  readonly maxWaiting?: number | undefined
  readonly acquireTimeout?: Duration.Duration | undefined
  readonly idleTimeout?: Duration.Duration | undefined
  readonly serverReaping?: { readonly idleSession: Duration.Duration } | undefined
  readonly statementTimeout?: Duration.Duration | undefined
  readonly queryTimeout?: Duration.Duration | undefined
  readonly lockTimeout?: Duration.Duration | undefined
  readonly idleInTransactionTimeout?: Duration.Duration | undefined
  readonly connectTimeout?: Duration.Duration | undefined
  readonly maxLifetime?: Duration.Duration | undefined
  readonly maxUses?: number | undefined
  readonly errorText?: ErrorText | undefined
  readonly validate?: "always" | "idle" | undefined
  readonly shedding?: boolean | undefined
  readonly pooler?: "none" | "transaction" | undefined
  readonly prepare?: boolean | undefined
  readonly multiplex?: boolean | undefined
  readonly retry?: { readonly attempts: number } | false | undefined
  readonly breaker?:
    | { readonly failures?: number | undefined; readonly openFor?: Duration.Duration | undefined }
    | false
    | undefined
}

type Parse<A> = (text: string) => A | undefined

const refuse = (message: string) => Effect.fail(RefusedVariable.make(message))

/** Reads one variable. Empty counts as absent, as a deployment that wants to unset one often can only empty it. */
const variable = <A>(name: string, allowed: string, parse: Parse<A>): Config.Config<A | undefined> =>
  Config.option(Config.String(name)).pipe(
    Config.mapEffect((found) => {
      const text = Option.getOrElse(found, () => "").trim()
      if (text === "") return Effect.succeed(undefined)
      const value = parse(text)
      return value !== undefined
        ? Effect.succeed(value)
        : refuse(`${name} is "${discreet(text)}", but must be ${allowed}.`)
    })
  )

const whole = (name: string, least: number) =>
  variable(name, `a whole number, ${least} or more`, (text) => {
    const value = Number(text)
    return Number.isInteger(value) && value >= least ? value : undefined
  })

const duration = (name: string, least = 1) =>
  variable(
    name,
    `a whole number of milliseconds, ${least} or more, a duration such as "15 seconds", or "infinity"`,
    (text): Duration.Duration | undefined => {
      const value = /^\d+$/.test(text)
        ? Duration.millis(Number(text))
        : text.toLowerCase() === "infinity"
        ? Duration.infinity
        : Option.getOrUndefined(Duration.fromInput(text as Duration.Input))
      return value !== undefined && Duration.toMillis(value) >= least ? value : undefined
    }
  )

const choice = <const A extends string>(name: string, choices: ReadonlyArray<A>) =>
  variable(name, `one of ${choices.join(", ")}`, (value) => choices.find((known) => known === value))

/** A feature that an operator may have to turn off, or on, before the next deployment. */
const toggle = (name: string): Config.Config<boolean | undefined> =>
  Config.map(choice(name, ["on", "off"]), (found) => (found === undefined ? undefined : found === "on"))

const text = (name: string) => variable(name, "", (value) => value)

const secret = (name: string): Config.Config<Redacted.Redacted | undefined> =>
  Config.map(
    Config.option(Config.Redacted(name)),
    (found) => Option.getOrUndefined(Option.filter(found, (value) => Redacted.value(value) !== ""))
  )

/** What is wrong with an address is said without the address: it holds a password. */
const addressUrl = Config.mapEffect(secret("DATABASE_URL"), (url) => {
  if (url === undefined) return Effect.succeed(undefined)
  const bad = Address.resolve({ url, username: "anybody" })
  return "_tag" in bad ? refuse(`DATABASE_URL is ${bad.value}, but must be ${bad.allowed}.`) : Effect.succeed(url)
})

/** One port, or one for each of `PGHOST`. */
const ports = variable("PGPORT", "a whole number from 1 to 65535, or one for each host of PGHOST", (value) => {
  const list = value.split(",").map(Number)
  return list.every((port) => Number.isInteger(port) && port >= 1 && port <= 65535) ? list : undefined
})

/** libpq takes lists in `PGHOST` and `PGPORT`; one port is that of all hosts. */
const hostsOf = (host: string | undefined, ports: ReadonlyArray<number> | undefined) => {
  const names = host?.split(",").map((name) => name.trim()) ?? []
  if (ports !== undefined && ports.length > 1 && ports.length !== names.length) {
    return refuse(
      `PGPORT has ${ports.length} ports, but must have one, or one for each host of PGHOST (${names.length}).`
    )
  }
  return Effect.succeed(
    names.length > 1
      ? { hosts: names.map((host, index) => ({ host, port: ports?.[index] ?? ports?.[0] })) }
      : { host, port: ports?.[0] }
  )
}

/** "TLS if the server has it", which only a URL can say. They name no server. */
const tlsOnly = {
  allow: Redacted.make("postgres:///?sslmode=allow"),
  prefer: Redacted.make("postgres:///?sslmode=prefer")
} as const

/** Leaves out what is not set, so that the rest can be laid over other options. */
const present = <A extends object>(found: A): A =>
  Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined)) as A

const breakerOf = (
  isOn: boolean | undefined,
  failures: number | undefined,
  openFor: Duration.Duration | undefined
): EnvironmentOptions["breaker"] => {
  if (isOn === false) return false
  // That it is on takes back a `breaker: false` of the program.
  return isOn === undefined && failures === undefined && openFor === undefined
    ? undefined
    : present({ failures, openFor })
}

export const options: Config.Config<EnvironmentOptions> = Config.mapEffect(
  Config.all({
    url: addressUrl,
    host: text("PGHOST"),
    ports,
    targetSessionAttrs: choice("PGTARGETSESSIONATTRS", Hosts.allSessionAttrs),
    username: text("PGUSER"),
    password: secret("PGPASSWORD"),
    database: text("PGDATABASE"),
    sslMode: choice("PGSSLMODE", Address.sslModes),
    sslNegotiation: choice("PGSSLNEGOTIATION", Address.sslNegotiations),
    max: whole("DB_POOL_MAX", 1),
    min: whole("DB_POOL_MIN", 0),
    maxWaiting: whole("DB_MAX_WAITING", 0),
    acquireTimeout: duration("DB_ACQUIRE_TIMEOUT"),
    idleTimeout: duration("DB_IDLE_TIMEOUT", 0),
    idleSessionTimeout: duration("DB_IDLE_SESSION_TIMEOUT"),
    statementTimeout: duration("DB_STATEMENT_TIMEOUT"),
    queryTimeout: duration("DB_QUERY_TIMEOUT"),
    lockTimeout: duration("DB_LOCK_TIMEOUT"),
    idleInTransactionTimeout: duration("DB_IDLE_IN_TRANSACTION_TIMEOUT"),
    connectTimeout: duration("DB_CONNECT_TIMEOUT"),
    maxLifetime: duration("DB_MAX_LIFETIME"),
    maxUses: whole("DB_MAX_USES", 1),
    errorText: choice("DB_ERROR_TEXT", errorTexts),
    validate: choice("DB_VALIDATE", ["always", "idle"]),
    shedding: toggle("DB_SHEDDING"),
    pooler: choice("DB_POOLER", ["none", "transaction"]),
    prepare: toggle("DB_PREPARE"),
    multiplex: toggle("DB_MULTIPLEX"),
    retryAttempts: whole("DB_RETRY_ATTEMPTS", 1),
    breaker: toggle("DB_BREAKER"),
    breakerFailures: whole("DB_BREAKER_FAILURES", 1),
    breakerOpen: duration("DB_BREAKER_OPEN")
  }),
  Effect.fnUntraced(function*(
    {
      breaker,
      breakerFailures,
      breakerOpen,
      database,
      host,
      idleSessionTimeout,
      password,
      ports,
      retryAttempts,
      sslMode,
      sslNegotiation,
      targetSessionAttrs,
      url,
      username,
      ...rest
    }
  ) {
    if (rest.min !== undefined && rest.max !== undefined && rest.min > rest.max) {
      return yield* refuse(`DB_POOL_MIN is "${rest.min}", but must be at most DB_POOL_MAX, which is ${rest.max}.`)
    }
    if (idleSessionTimeout !== undefined && rest.idleTimeout !== undefined) {
      const bound = Duration.toMillis(rest.idleTimeout)
      if (Duration.toMillis(idleSessionTimeout) <= bound) {
        return yield* refuse(`DB_IDLE_SESSION_TIMEOUT must be above DB_IDLE_TIMEOUT, which is ${bound} ms.`)
      }
    }
    const optional = sslMode === "prefer" || sslMode === "allow"
    if (url === undefined && sslNegotiation === "direct" && (optional || sslMode === "disable")) {
      return yield* refuse(
        `PGSSLNEGOTIATION is "direct", but must be "postgres" where PGSSLMODE is "${sslMode}": TLS has to be required.`
      )
    }
    return present({
      ...rest,
      // A whole address wins over its parts, which often come from the platform and mean something else.
      ...(url !== undefined
        ? { url, host: undefined, port: undefined, username: undefined, password: undefined, database: undefined }
        : {
          url: optional ? tlsOnly[sslMode] : undefined,
          ...(yield* hostsOf(host, ports)),
          targetSessionAttrs,
          sslNegotiation,
          username,
          password,
          database
        }),
      ssl: url !== undefined || sslMode === undefined || optional ? undefined : sslMode !== "disable",
      // One attempt means one: not even the repetition at once that a stale session gets by itself.
      retry: retryAttempts === undefined ? undefined : retryAttempts === 1 ? false : { attempts: retryAttempts },
      serverReaping: idleSessionTimeout === undefined ? undefined : { idleSession: idleSessionTimeout },
      breaker: breakerOf(breaker, breakerFailures, breakerOpen)
    })
  })
)

/** What a program asks for, as far as the environment has a say in it. */
interface Adjustable extends Address.AddressOptions {
  readonly ssl?: boolean | object | undefined
  readonly sslNegotiation?: Address.SslNegotiation | undefined
  readonly min?: number | undefined
  readonly idleTimeout?: Duration.Input | undefined
  readonly serverReaping?: { readonly idleSession?: Duration.Input | undefined } | undefined
  readonly retry?: object | false | undefined
  readonly breaker?: object | false | undefined
}

/** `false` of either side is a switch; between two sets of settings, the later one wins where both speak. */
const adjusted = (settings: object | false | undefined, found: object | false): object | false =>
  found === false ? false : { ...(settings === false ? undefined : settings), ...found }

const withMode = (url: Redacted.Redacted, mode: string): Redacted.Redacted => {
  const text = Redacted.value(url).replace(/([?&])(sslmode|ssl)=[^&#]*&?/g, "$1").replace(/[?&]$/, "")
  return Redacted.make(`${text}${text.includes("?") ? "&" : "?"}sslmode=${mode}`)
}

/** What a URL says wins over what the program says in other words: `undefined` of it. */
const unsaid = (url: Redacted.Redacted, { ssl }: Adjustable) => {
  const { password, pathname, searchParams, username } = Address.firstUrl(url)
  const mode = searchParams.get("sslmode")
  return {
    host: undefined,
    port: undefined,
    path: undefined,
    hosts: undefined,
    ...((username !== "" || searchParams.has("user")) && { username: undefined }),
    ...(password !== "" && { password: undefined }),
    ...((pathname.length > 1 || searchParams.has("dbname")) && { database: undefined }),
    ...(searchParams.has("target_session_attrs") && { targetSessionAttrs: undefined }),
    ...(searchParams.has("sslnegotiation") && { sslNegotiation: undefined }),
    ...((mode === "disable" || (mode !== null && typeof ssl === "boolean")) && { ssl: undefined })
  }
}

/** What becomes of the address of a program whose environment has another one, or a part of one. */
const addressOver = (options: Adjustable, { host, hosts, port, ssl, url }: EnvironmentOptions) => {
  const mode = url === tlsOnly.prefer ? "prefer" : url === tlsOnly.allow ? "allow" : undefined
  return {
    ...(url !== undefined && mode === undefined && unsaid(url, options)),
    ...(mode !== undefined && options.url !== undefined && { url: withMode(options.url, mode) }),
    ...(mode !== undefined && typeof options.ssl === "boolean" && { ssl: undefined }),
    // Whose certificates are trusted is the program's to say.
    ...(ssl === true && typeof options.ssl === "object" && { ssl: options.ssl }),
    ...(host !== undefined && { hosts: undefined, path: undefined }),
    ...(hosts !== undefined && { host: undefined, port: undefined, path: undefined }),
    ...(host === undefined && port !== undefined && options.hosts !== undefined &&
      { hosts: options.hosts.map((each) => ({ ...each, port })), port: undefined })
  }
}

/** Whoever turns TLS off, or makes it optional, does not begin with it either: of the program's words, that one goes. */
const negotiated = <O extends Adjustable>(options: O, { ssl, sslNegotiation, url }: EnvironmentOptions): O => {
  if (sslNegotiation !== undefined || (ssl === undefined && url === undefined)) return options
  const address = Address.resolve({ ...options, username: "anybody" })
  if ("_tag" in address) return options
  const isOfProgram = url === undefined || url === tlsOnly.prefer || url === tlsOnly.allow
  const asked = options.sslNegotiation ?? (isOfProgram ? address.sslNegotiation : undefined)
  return asked !== "direct" || Address.requiresTls(options.ssl, address.sslMode)
    ? options
    : { ...options, sslNegotiation: "postgres" }
}

/**
 * A pool must close an idle session before the server does. Where only one of the two times is the operator's, the other
 * one makes room for it.
 */
const idleOver = (options: Adjustable, { idleTimeout, serverReaping }: EnvironmentOptions): Adjustable => {
  const own = options.serverReaping?.idleSession
  if (serverReaping !== undefined) {
    const bound = Duration.toMillis(serverReaping.idleSession)
    const before = millis(idleTimeout ?? options.idleTimeout ?? ServerReaping.usualIdleTimeout)
    return {
      serverReaping: { ...options.serverReaping, ...serverReaping },
      ...(idleTimeout === undefined && bound < Infinity && before >= bound && { idleTimeout: Math.floor(bound * 0.75) })
    }
  }
  if (idleTimeout === undefined || own === undefined || millis(own) > Duration.toMillis(idleTimeout)) return {}
  return { serverReaping: { ...options.serverReaping, idleSession: Duration.times(idleTimeout, 4 / 3) } }
}

/**
 * Lays what the environment says over the options of a program, in such a way that an operator who turns one knob gets
 * what that knob says, and not a program that refuses to start because of another.
 */
export const over = <O extends Adjustable>(options: O, found: EnvironmentOptions): O & EnvironmentOptions => {
  const { breaker, retry } = found
  const failures = breaker === undefined || breaker === false ? undefined : breaker.failures
  const laid = {
    ...options,
    ...found,
    ...addressOver(options, found),
    ...idleOver(options, found),
    // The floor of a program that is given less room is as low.
    ...(found.max !== undefined && found.min === undefined && options.min !== undefined &&
      { min: Math.min(options.min, found.max) }),
    ...(retry !== undefined && { retry: adjusted(options.retry, retry) }),
    ...(breaker !== undefined && {
      // So many failures in a row are a way to trip, and take the place of another one.
      breaker: adjusted(failures === undefined ? options.breaker : { ...options.breaker, trip: undefined }, breaker)
    })
  } as O & EnvironmentOptions
  return negotiated(laid, found)
}
