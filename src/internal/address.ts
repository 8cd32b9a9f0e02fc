import * as Redacted from "effect/Redacted"
import * as Os from "node:os"

/** Where the server is, as far as it can be read off the options without asking anybody. */
export interface Address {
  readonly host: string
  readonly port: number
  /** The Unix socket, when there is one: it wins over host and port. */
  readonly path: string | undefined
  readonly database: string
  readonly username: string
  /** What the URL's `sslmode` says. */
  readonly sslMode: SslMode | undefined
  /** Milliseconds, what the URL's `connect_timeout` says; 0 there means none. */
  readonly connectTimeout: number | undefined
}

export const sslModes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] as const
export type SslMode = (typeof sslModes)[number]

export interface AddressOptions {
  readonly url?: Redacted.Redacted | undefined
  readonly host?: string | undefined
  readonly port?: number | undefined
  readonly path?: string | undefined
  readonly database?: string | undefined
  readonly username?: string | undefined
}

/** What is wrong with an option, for the caller to turn into its own error. */
export interface BadAddress {
  readonly _tag: "BadAddress"
  readonly option: string
  readonly value: string
  readonly allowed: string
}

const bad = (option: string, value: string, allowed: string): BadAddress => ({
  _tag: "BadAddress",
  option,
  value,
  allowed
})

const urlShape = "postgres://user:password@host:port/database"
/** An unencoded "#", "/" or "@" in a password is the usual cause. */
const encodedShape = `${urlShape}, with special characters of its parts percent-encoded`

/** As libpq does; there is none in many containers. */
const systemUser = (): string | undefined => {
  try {
    return Os.userInfo().username
  } catch {
    return undefined
  }
}

const decode = (text: string): string | undefined => {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

/**
 * Resolves the address the way the driver does (explicit fields win over the URL), because the sockets are opened
 * here and the driver's own resolution is private. A secret never becomes part of the complaint.
 */
export const resolve = (options: AddressOptions): Address | BadAddress => {
  let host = options.host
  let port = options.port
  let database = options.database
  let username = options.username
  let sslMode: SslMode | undefined
  let connectTimeout: number | undefined
  if (options.url !== undefined) {
    const raw = Redacted.value(options.url)
    if (!URL.canParse(raw)) return bad("url", "<redacted>", encodedShape)
    const url = new URL(raw)
    if (url.protocol !== "postgres:" && url.protocol !== "postgresql:") {
      return bad("url", `${url.protocol}//<redacted>`, urlShape)
    }
    const name = decode(url.hostname)
    const path = decode(url.pathname.replace(/^\//, ""))
    const user = decode(url.username)
    if (name === undefined || path === undefined || user === undefined || decode(url.password) === undefined) {
      return bad("url", "<redacted>", encodedShape)
    }
    host ??= url.searchParams.get("host") ?? (name === "" ? undefined : name.replace(/^\[|\]$/g, ""))
    const urlPort = url.searchParams.get("port") ?? url.port
    if (port === undefined && urlPort !== "") port = Number(urlPort)
    username ??= url.searchParams.get("user") ?? (user === "" ? undefined : user)
    const mode = url.searchParams.get("sslmode")
    sslMode = sslModes.find((known) => known === mode)
    if (mode !== null && sslMode === undefined) return bad("url", `sslmode=${mode}`, `one of ${sslModes.join(", ")}`)
    const seconds = url.searchParams.get("connect_timeout")
    if (seconds !== null) {
      if (!/^\d+$/.test(seconds)) return bad("url", `connect_timeout=${seconds}`, "a whole number of seconds")
      connectTimeout = seconds === "0" ? Infinity : Number(seconds) * 1000
    }
    database ??= url.searchParams.get("dbname") ?? (path === "" ? undefined : path)
  }
  username ??= systemUser()
  if (username === undefined) return bad("username", "not set", "the name of a PostgreSQL role (PGUSER, DATABASE_URL)")
  host ??= "localhost"
  port ??= 5432
  if (!Number.isInteger(port) || port < 1 || port > 65535) return bad("port", String(port), "1 to 65535")
  return {
    host,
    port,
    path: options.path ?? (host.startsWith("/") ? `${host}/.s.PGSQL.${port}` : undefined),
    database: database ?? username,
    username,
    sslMode,
    connectTimeout
  }
}
