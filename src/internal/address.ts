import * as Redacted from "effect/Redacted"
import * as Os from "node:os"
import * as Hosts from "./hosts.ts"

/** One server. */
export interface HostAddress {
  readonly host: string
  readonly port: number
  /** The Unix socket, when there is one: it wins over host and port. */
  readonly path: string | undefined
}

/** Where the server is, as far as it can be read off the options without asking anybody: the first of `hosts`. */
export interface Address extends HostAddress {
  readonly hosts: ReadonlyArray<HostAddress>
  readonly sessionAttrs: Hosts.SessionAttrs
  /** The URL as those can read it who know of one host only. */
  readonly url: Redacted.Redacted | undefined
  readonly database: string
  readonly username: string
  /** What the URL's `sslmode` says. */
  readonly sslMode: SslMode | undefined
  /** What the URL's `sslnegotiation` says. */
  readonly sslNegotiation: SslNegotiation | undefined
  /** Milliseconds, what the URL's `connect_timeout` says; 0 there means none. */
  readonly connectTimeout: number | undefined
}

export const sslModes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] as const
export type SslMode = (typeof sslModes)[number]

/** Whether nothing but TLS will do. An explicit `ssl` wins over the URL. */
export const requiresTls = (ssl: unknown, mode: SslMode | undefined): boolean =>
  ssl === undefined ? mode === "require" || mode === "verify-ca" || mode === "verify-full" : ssl !== false

export const sslNegotiations = ["postgres", "direct"] as const
export type SslNegotiation = (typeof sslNegotiations)[number]

/** `?ssl=true` is what node-postgres takes and platforms hand out. Passed over, it would leave the session in the clear. */
const sslFlags: Readonly<Record<string, SslMode>> = { true: "require", 1: "require", false: "disable", 0: "disable" }

export interface AddressOptions {
  readonly url?: Redacted.Redacted | undefined
  readonly host?: string | undefined
  readonly port?: number | undefined
  readonly path?: string | undefined
  readonly hosts?: ReadonlyArray<{ readonly host: string; readonly port?: number | undefined }> | undefined
  readonly targetSessionAttrs?: Hosts.SessionAttrs | undefined
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

/** A piece of a URL, where it is no more than a word: an address in the wrong place has a password in it. */
const shown = (text: string): string => /^[\w.-]{0,20}$/.test(text) ? text : "<redacted>"

/** An address where a name is wanted would be asked for, shown and traced as one. */
const isUrl = (name: string | undefined): boolean => name !== undefined && /:\/\/|^[^/].*@/.test(name)

const nameOnly = "the name or address of one server; a URL belongs into url"

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

/** The hosts of a URL as libpq writes them: `postgres://user@one:5432,two:5433/database`. */
const authority = /^(postgres(?:ql)?:\/\/(?:[^@/?#]*@)?)([^/?#]*)/i

/** As many URLs as there are hosts in it, each with one of them. */
const splitHosts = (raw: string): ReadonlyArray<string> => {
  const [head, prefix, list] = authority.exec(raw) ?? []
  if (head === undefined || !list!.includes(",")) return [raw]
  // A URL with a user must have a host.
  return list!.split(",").map((host) => prefix! + host.replace(/^(?=:|$)/, "localhost") + raw.slice(head.length))
}

/** A URL that has been resolved, as that of its first host. */
export const firstUrl = (url: Redacted.Redacted): URL => new URL(splitHosts(Redacted.value(url))[0]!)

const hostsOfUrl = (urls: ReadonlyArray<URL>): ReadonlyArray<Partial<HostAddress>> | BadAddress => {
  const [{ searchParams }] = urls as [URL]
  const names = searchParams.get("host")?.split(",") ?? urls.map(({ hostname }) => hostname)
  const ports = searchParams.get("port")?.split(",") ?? urls.map(({ port }) => port)
  // One port is that of all hosts.
  if (ports.length !== 1 && ports.length !== names.length) {
    return bad("url", `${names.length} hosts with ${ports.length} ports`, "one port, or as many as there are hosts")
  }
  const hosts: Array<Partial<HostAddress>> = []
  for (const [index, encoded] of names.entries()) {
    const name = searchParams.has("host") ? encoded : decode(encoded)
    if (name === undefined) return bad("url", "<redacted>", encodedShape)
    const port = ports[ports.length === 1 ? 0 : index]!
    hosts.push({
      ...(name === "" ? {} : { host: name.replace(/^\[|\]$/g, "") }),
      ...(port === "" ? {} : { port: Number(port) })
    })
  }
  return hosts
}

/** The first of its hosts is enough for whoever gets the sockets from here. */
const withOneHost = (urls: ReadonlyArray<URL>, url: Redacted.Redacted): Redacted.Redacted => {
  const single = new URL(urls[0]!)
  const isList = ["host", "port"].some((name) => single.searchParams.get(name)?.includes(",") === true)
  if (urls.length === 1 && !isList) return url
  single.searchParams.delete("host")
  single.searchParams.delete("port")
  return Redacted.make(single.href)
}

const isPort = (port: number): boolean => Number.isInteger(port) && port >= 1 && port <= 65535

const hostAddress = (host = "localhost", port = 5432, path?: string): HostAddress => ({
  host,
  port,
  path: path ?? (host.startsWith("/") ? `${host}/.s.PGSQL.${port}` : undefined)
})

/** An explicit list of hosts. */
const listed = (options: AddressOptions): ReadonlyArray<Partial<HostAddress>> | BadAddress | undefined => {
  const { host, hosts, path, port } = options
  if (hosts === undefined) return undefined
  const [other] = Object.entries({ host, port, path }).filter(([, value]) => value !== undefined)
  if (other !== undefined) return bad(other[0], String(other[1]), "left out where hosts is given")
  if (!Array.isArray(hosts) || hosts.length === 0) return bad("hosts", "empty", "a list of at least one { host, port }")
  for (const [index, each] of hosts.entries()) {
    if (typeof each?.host !== "string") {
      return bad(`hosts[${index}]`, isUrl(String(each)) ? "<redacted>" : String(each), "{ host, port }")
    }
    if (isUrl(each.host)) return bad(`hosts[${index}].host`, "<redacted>", nameOnly)
    if (!/^[^\s,]+$/.test(each.host)) {
      return bad(`hosts[${index}].host`, each.host, "the name or address of one server")
    }
    if (each.port !== undefined && !isPort(each.port)) {
      return bad(`hosts[${index}].port`, String(each.port), "a whole number from 1 to 65535")
    }
  }
  return hosts.map(({ host, port }) => ({ host, ...(port === undefined ? {} : { port }) }))
}

/**
 * Resolves the address the way the driver does (explicit fields win over the URL), because the sockets are opened
 * here and the driver's own resolution is private. Several hosts are those of libpq, which the driver does not know. A
 * secret never becomes part of the complaint.
 */
export const resolve = (options: AddressOptions): Address | BadAddress => {
  const explicit = listed(options)
  if (explicit !== undefined && "_tag" in explicit) return explicit
  const { targetSessionAttrs } = options
  if (targetSessionAttrs !== undefined && !Hosts.allSessionAttrs.includes(targetSessionAttrs)) {
    return bad("targetSessionAttrs", String(targetSessionAttrs), `one of ${Hosts.allSessionAttrs.join(", ")}`)
  }
  if (isUrl(options.host)) return bad("host", "<redacted>", nameOnly)
  if (isUrl(options.database)) return bad("database", "<redacted>", "the name of a database; a URL belongs into url")
  let ofUrl: ReadonlyArray<Partial<HostAddress>> = [{}]
  let database = options.database
  let username = options.username
  let sslMode: SslMode | undefined
  let sslNegotiation: SslNegotiation | undefined
  let connectTimeout: number | undefined
  let sessionAttrs: Hosts.SessionAttrs | undefined
  let url = options.url
  if (options.url !== undefined) {
    const raws = splitHosts(Redacted.value(options.url))
    if (!raws.every((raw) => URL.canParse(raw))) return bad("url", "<redacted>", encodedShape)
    const urls = raws.map((raw) => new URL(raw))
    const [first] = urls as [URL]
    if (first.protocol !== "postgres:" && first.protocol !== "postgresql:") {
      return bad("url", `${first.protocol}//<redacted>`, urlShape)
    }
    const path = decode(first.pathname.replace(/^\//, ""))
    const user = decode(first.username)
    if (path === undefined || user === undefined || decode(first.password) === undefined) {
      return bad("url", "<redacted>", encodedShape)
    }
    const found = hostsOfUrl(urls)
    if ("_tag" in found) return found
    ofUrl = found
    url = withOneHost(urls, options.url)
    const { searchParams } = first
    username ??= searchParams.get("user") ?? (user === "" ? undefined : user)
    const mode = searchParams.get("sslmode")
    sslMode = sslModes.find((known) => known === mode)
    if (mode !== null && sslMode === undefined) {
      return bad("url", `sslmode=${shown(mode)}`, `one of ${sslModes.join(", ")}`)
    }
    const flag = searchParams.get("ssl")
    if (flag !== null && !Object.hasOwn(sslFlags, flag)) {
      return bad("url", `ssl=${shown(flag)}`, "ssl=true or ssl=false")
    }
    sslMode ??= sslFlags[flag ?? ""]
    const negotiation = searchParams.get("sslnegotiation")
    sslNegotiation = sslNegotiations.find((known) => known === negotiation)
    if (negotiation !== null && sslNegotiation === undefined) {
      return bad("url", `sslnegotiation=${shown(negotiation)}`, `one of ${sslNegotiations.join(", ")}`)
    }
    const seconds = searchParams.get("connect_timeout")
    if (seconds !== null) {
      if (!/^\d+$/.test(seconds)) return bad("url", `connect_timeout=${shown(seconds)}`, "a whole number of seconds")
      connectTimeout = seconds === "0" ? Infinity : Number(seconds) * 1000
    }
    const attrs = searchParams.get("target_session_attrs")
    sessionAttrs = Hosts.allSessionAttrs.find((known) => known === attrs)
    if (attrs !== null && sessionAttrs === undefined) {
      return bad("url", `target_session_attrs=${shown(attrs)}`, `one of ${Hosts.allSessionAttrs.join(", ")}`)
    }
    database ??= searchParams.get("dbname") ?? (path === "" ? undefined : path)
  }
  username ??= systemUser()
  if (username === undefined) return bad("username", "not set", "the name of a PostgreSQL role (PGUSER, DATABASE_URL)")
  const { host, path, port } = options
  // A host of its own is not one of the URL's list.
  const candidates = explicit ??
    (host === undefined && path === undefined ? ofUrl : [{ ...ofUrl[0], ...(host !== undefined && { host }) }])
  const hosts = candidates.map((each) => hostAddress(each.host, port ?? each.port, path))
  for (const each of hosts) if (!isPort(each.port)) return bad("port", String(each.port), "1 to 65535")
  return {
    ...hosts[0]!,
    hosts,
    sessionAttrs: targetSessionAttrs ?? sessionAttrs ?? "any",
    url,
    database: database ?? username,
    username,
    sslMode,
    sslNegotiation,
    connectTimeout
  }
}

/** One host as it is told of. */
export const shownHost = ({ host, path, port }: HostAddress): string =>
  path ?? `${host.includes(":") ? `[${host}]` : host}:${port}`

/**
 * By OpenTelemetry's names. Which of several hosts a statement went to is not known before it is sent: they are named
 * together.
 */
export const attributes = ({ database, hosts }: Address): Readonly<Record<string, string | number>> => {
  const [{ host, path, port }] = hosts as readonly [HostAddress]
  return {
    "db.namespace": database,
    ...(hosts.length === 1
      ? { "server.address": path ?? host, "server.port": port }
      : { "server.address": hosts.map(shownHost).join(",") })
  }
}
