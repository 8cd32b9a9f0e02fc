import * as Redacted from "effect/Redacted"
import * as Address from "./address.ts"
import type { PoolOptions } from "./poolSettings.ts"

interface Login {
  readonly username?: string | undefined
  readonly password?: string | undefined
  readonly database?: string | undefined
}

/** Who connects to what, as far as a URL says; a parameter of it wins over the part in front, as for the driver. */
const loginOf = ({ password, pathname, searchParams, username }: URL): Login => {
  const either = (parameter: string, part: string): string | undefined => {
    const text = searchParams.get(parameter) ?? decodeURIComponent(part)
    return text === "" ? undefined : text
  }
  return {
    username: either("user", username),
    password: either("password", password),
    database: either("dbname", pathname.slice(1))
  }
}

/**
 * The options of the pool whose sessions do nothing but listen, past the transaction pooler: each is opened for its
 * listener and closed with it. The URL says where and as whom; what it leaves open is as for the pooled sessions.
 */
export const optionsOf = (options: PoolOptions, directUrl: Redacted.Redacted): PoolOptions => {
  const direct = loginOf(Address.firstUrl(directUrl))
  const pooled: Login = options.url === undefined ? {} : loginOf(Address.firstUrl(options.url))
  const password = pooled.password === undefined ? undefined : Redacted.make(pooled.password)
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
    username: direct.username === undefined ? options.username ?? pooled.username : undefined,
    password: direct.password === undefined ? options.password ?? password : undefined,
    database: direct.database === undefined ? options.database ?? pooled.database : undefined,
    min: 0,
    maxUses: 1,
    multiplex: false,
    reapEvery: undefined,
    shedding: false,
    // To be held for long is what a listener is there for.
    leakThreshold: undefined,
    // It waits for others to speak, for as long as it takes.
    serverReaping: options.serverReaping && { ...options.serverReaping, idleSession: undefined },
    // A listener has nothing to finish.
    closeTimeout: 0
  }
}
