import * as Redacted from "effect/Redacted"
import * as Address from "./address.ts"
import type { PoolOptions } from "./poolSettings.ts"

/**
 * The options of the pool whose sessions do nothing but listen, past the transaction pooler: each is opened for its
 * listener and closed with it. The URL says where and as whom; what it leaves open is as for the pooled sessions.
 */
export const optionsOf = (options: PoolOptions, directUrl: Redacted.Redacted): PoolOptions => {
  const direct = Address.firstUrl(directUrl)
  const pooled = options.url === undefined ? undefined : Address.firstUrl(options.url)
  const fromPooled = (part: "username" | "password"): string | undefined => {
    const text = direct[part] === "" ? pooled?.[part] : undefined
    return text === undefined || text === "" ? undefined : decodeURIComponent(text)
  }
  const names = (part: string, parameter: string) => part !== "" || direct.searchParams.has(parameter)
  const password = fromPooled("password")
  return {
    ...options,
    url: directUrl,
    directUrl: undefined,
    pooler: "none",
    host: undefined,
    port: undefined,
    path: undefined,
    stream: undefined,
    hosts: undefined,
    targetSessionAttrs: undefined,
    username: names(direct.username, "user") ? undefined : options.username ?? fromPooled("username"),
    password: direct.password === ""
      ? options.password ?? (password === undefined ? undefined : Redacted.make(password))
      : undefined,
    database: names(direct.pathname.slice(1), "dbname") ? undefined : options.database ?? pooled?.pathname.slice(1),
    min: 0,
    maxUses: 1,
    multiplex: false,
    reapEvery: undefined,
    shedding: false,
    // To be held for long is what a listener is there for.
    leakThreshold: undefined,
    // A listener has nothing to finish.
    closeTimeout: 0
  }
}
