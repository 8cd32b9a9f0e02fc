/**
 * What a server is asked to look after by itself, so that the sessions of a process that was killed, or whose machine is
 * gone, do not stay: nobody will ever say goodbye for them.
 */
import type * as Duration from "effect/Duration"
import { digWhole } from "./failure.ts"
import { millis } from "./millis.ts"

/** Each is a setting of the server for the sessions of the pool. Absence leaves it as the server has it. */
export interface ServerReaping {
  /**
   * The server ends a session that has been idle outside of a transaction for this long. It must be above `idleTimeout`, so
   * that the pool comes first while it is alive. `idle_session_timeout`, PostgreSQL 14 and newer. A listener is exempt; a
   * lease of `reserve` is not, so a borrower must not hold one for longer between two statements.
   *
   * https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT
   */
  readonly idleSession?: Duration.Input | undefined
  /**
   * How long nothing may be heard from this side before the server asks whether it is there. `tcp_keepalives_idle`, whole
   * seconds, 1 to 32767. Where nothing is set, Linux waits for two hours. Without effect on a Unix socket.
   *
   * https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-TCP-KEEPALIVES-IDLE
   */
  readonly keepaliveIdle?: Duration.Input | undefined
  /** How long until it asks again. `tcp_keepalives_interval`, whole seconds, 1 to 32767. */
  readonly keepaliveInterval?: Duration.Input | undefined
  /** How often it asks before it takes this side for dead. `tcp_keepalives_count`, 1 to 127. */
  readonly keepaliveCount?: number | undefined
  /**
   * How often the server looks while it executes a statement whether this side is still there: without it, what a dead
   * client has asked for runs to its end, with all its locks. `client_connection_check_interval`, PostgreSQL 14 and newer
   * on systems whose `poll` tells of a closed connection (Linux, macOS, BSD). Each look is a system call.
   *
   * https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-CLIENT-CONNECTION-CHECK-INTERVAL
   */
  readonly connectionCheck?: Duration.Input | undefined
}

/** Milliseconds: the default of `idleTimeout`. */
export const usualIdleTimeout = 10_000

/** As startup parameters. */
export type Parameters = Readonly<Record<string, string>>

const idleSessionTimeout = "idle_session_timeout"

const wholeMillis = (duration: number): string => (duration === Infinity ? "0" : String(Math.ceil(duration)))
const wholeSeconds = (duration: number): string => String(Math.ceil(duration / 1000))

/** The largest number that the server takes, in milliseconds. */
const longest = 2_147_483_647

const isShown = (value: number): boolean => value >= 1 && (value <= longest || value === Infinity)
const isSeconds = (value: number): boolean => value >= 1000 && value <= 32_767_000

const rules = {
  idleSession: [idleSessionTimeout, "a duration from 1 ms to 24 days, or infinity", isShown, wholeMillis],
  keepaliveIdle: ["tcp_keepalives_idle", "a duration from 1 to 32767 seconds", isSeconds, wholeSeconds],
  keepaliveInterval: ["tcp_keepalives_interval", "a duration from 1 to 32767 seconds", isSeconds, wholeSeconds],
  keepaliveCount: [
    "tcp_keepalives_count",
    "a whole number from 1 to 127",
    (value) => Number.isInteger(value) && value >= 1 && value <= 127,
    String
  ],
  connectionCheck: [
    "client_connection_check_interval",
    "a duration from 1 ms to 24 days, or infinity",
    isShown,
    wholeMillis
  ]
} satisfies Record<
  keyof ServerReaping,
  readonly [parameter: string, allowed: string, holds: (value: number) => boolean, text: (value: number) => string]
>

const fields = Object.keys(rules) as ReadonlyArray<keyof ServerReaping>

/** What is impossible about it. */
export const broken = (
  reaping: ServerReaping,
  idleTimeout: number
): { readonly option: string; readonly value: string; readonly allowed: string } | undefined => {
  for (const field of fields) {
    const input = reaping[field]
    const [, allowed, holds] = rules[field]
    if (input !== undefined && !holds(millis(input))) {
      return { option: `serverReaping.${field}`, value: String(input), allowed }
    }
  }
  const { idleSession } = reaping
  if (idleSession === undefined || millis(idleSession) > idleTimeout || millis(idleSession) === Infinity) {
    return undefined
  }
  return {
    option: "serverReaping.idleSession",
    value: String(idleSession),
    allowed: `above idleTimeout, which is ${idleTimeout} ms: the pool must close an idle session before the server does`
  }
}

export const parametersOf = (reaping: ServerReaping): Parameters => {
  const parameters: Record<string, string> = {}
  for (const field of fields) {
    const input = reaping[field]
    const [parameter, , , text] = rules[field]
    if (input !== undefined) parameters[parameter] = text(millis(input))
  }
  return parameters
}

/** Whether the server is asked to end sessions that say nothing. */
export const endsIdle = (parameters: Parameters): boolean => Object.hasOwn(parameters, idleSessionTimeout)

/** Takes a session out of that for as long as it listens, and back again. Says nothing to a server that does not know it. */
const setIdle = (value: string): string =>
  `SELECT pg_catalog.set_config(name, ${value}, false) FROM pg_catalog.pg_settings WHERE name = '${idleSessionTimeout}'`
export const exempt = setIdle("'0'")
export const include = setIdle("reset_val")

/** Unknown before PostgreSQL 14: where one of them is, the other is, too. */
const ofFourteen = [idleSessionTimeout, "client_connection_check_interval"]

/** What the servers of one pool are asked for: all of it, until one has refused a part. */
export interface Wishes {
  readonly parameters: () => Parameters
  /** Whether a server that was asked for these has refused one of them. That will not be asked for again. */
  readonly isRefusal: (error: unknown, asked: Parameters) => boolean
}

export const makeWishes = (wished: Parameters): Wishes => {
  let parameters: Parameters = wished
  const without = (names: ReadonlyArray<string>) => {
    parameters = Object.fromEntries(Object.entries(parameters).filter(([name]) => !names.includes(name)))
  }
  return {
    parameters: () => parameters,
    isRefusal: (error, asked) => {
      const { message = "", sqlState } = digWhole(error)
      const named = Object.keys(asked).find((name) => message.includes(name))
      if (named === undefined) return false
      switch (sqlState) {
        // The server does not know it.
        case "42704":
          without(ofFourteen.includes(named) ? ofFourteen : [named])
          return true
        // Its platform cannot do it (`check_client_connection_check_interval` in src/backend/tcop/postgres.c), or it is a
        // pooler that takes none but those it knows.
        case "22023":
        case "08P01":
          without([named])
          return true
        default:
          return false
      }
    }
  }
}
