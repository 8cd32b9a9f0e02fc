/**
 * In which order the hosts of one database are tried, and which of them will do, as libpq has it
 * (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS). Numbers in, decisions
 * out: nothing here connects or reads a clock. Hosts go by their place in the list.
 */

export const allSessionAttrs = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"] as const
/** What a session must be good for. */
export type SessionAttrs = (typeof allSessionAttrs)[number]

/** What a server is. A primary may be told to begin all transactions as read-only ones. */
export interface Role {
  readonly isStandby: boolean
  readonly isReadOnly: boolean
}

export const nameOf = ({ isReadOnly, isStandby }: Role): "primary" | "read-only primary" | "standby" =>
  isStandby ? "standby" : isReadOnly ? "read-only primary" : "primary"

/** The names under which PostgreSQL 14 and newer says so of itself, in the startup and whenever it changes. */
export const roleParameters = ["in_hot_standby", "default_transaction_read_only"] as const

/** The role by what the server has said of itself, if it has said that. */
export const roleBy = (parameter: (name: string) => string | undefined): Role | undefined => {
  const [standby, readOnly] = roleParameters.map(parameter)
  if (standby === undefined || readOnly === undefined) return undefined
  return { isStandby: standby === "on", isReadOnly: standby === "on" || readOnly === "on" }
}

/** What one host was found to be. */
interface Host {
  role: Role | undefined
  /** Wall-clock milliseconds; of the role. */
  seenAt: number
  /** Wall-clock milliseconds of the last connect, if that failed. */
  failedAt: number | undefined
}

/** All hosts, and what is remembered of them. */
export interface Hosts {
  readonly attrs: SessionAttrs
  readonly list: ReadonlyArray<Host>
  /** The host that did last, where there can be only one that does. */
  writer: number | undefined
  /** Searches so far, where they take turns. */
  turn: number
}

/** Milliseconds after which what is known of a host is not relied upon any more: Npgsql's Host Recheck Seconds. */
export const recheckAfter = 10_000

export const make = (attrs: SessionAttrs, count: number): Hosts => ({
  attrs,
  list: Array.from({ length: count }, () => ({ role: undefined, seenAt: 0, failedAt: undefined })),
  writer: undefined,
  turn: 0
})

/** Whether a session on such a server is what is wanted. A standby that is only preferred is looked for first. */
export const fits = (attrs: SessionAttrs, { isReadOnly, isStandby }: Role): boolean => {
  switch (attrs) {
    case "any":
      return true
    case "read-write":
      return !isReadOnly
    case "read-only":
      return isReadOnly
    case "primary":
      return !isStandby
    case "standby":
    case "prefer-standby":
      return isStandby
  }
}

/** Whether there can be no more than one host that does. */
const wantsWriter = (attrs: SessionAttrs): boolean => attrs === "read-write" || attrs === "primary"

/** Whether a write is the caller's mistake, and says nothing about the host. */
export const isForReading = (attrs: SessionAttrs): boolean =>
  attrs === "read-only" || attrs === "standby" || attrs === "prefer-standby"

/** What lies in the future was noted before the clock was set back. */
const isFresh = (since: number, now: number): boolean => now >= since && now - since < recheckAfter

const backsOff = ({ failedAt }: Host, now: number): boolean => failedAt !== undefined && isFresh(failedAt, now)

/** The lower, the earlier it is tried. */
const rankOf = ({ attrs, list, writer }: Hosts, index: number, now: number): number => {
  const host = list[index]!
  if (backsOff(host, now)) return 4
  if (attrs === "any") return 1
  // A writer that has gone is looked for elsewhere first, since those who answer do so at once.
  if (host.failedAt !== undefined && wantsWriter(attrs)) return 3
  if (index === writer) return 0
  return host.role !== undefined && isFresh(host.seenAt, now) && !fits(attrs, host.role) ? 2 : 1
}

/** One search for a host: all are tried, one after another. */
export interface Pass {
  readonly hosts: Hosts
  queue: Array<number>
  /** Those that would do if there is none that is preferred. */
  fallback: Array<number>
  isSecondChoice: boolean
}

/** Begins a search. Those that failed lately come last; readers are spread over those that come first. */
export const begin = (hosts: Hosts, now: number): Pass => {
  const ranked = hosts.list
    .map((_, index) => ({ index, rank: rankOf(hosts, index, now) }))
    .sort((one, other) => one.rank - other.rank)
  const queue = ranked.map(({ index }) => index)
  if (isForReading(hosts.attrs)) {
    const best = queue.splice(0, ranked.filter(({ rank }) => rank === ranked[0]!.rank).length)
    const first = hosts.turn++ % best.length
    queue.unshift(...best.slice(first), ...best.slice(0, first))
  }
  return { hosts, queue, fallback: [], isSecondChoice: false }
}

/** The host to try next, `undefined` when all were tried. */
export const next = (pass: Pass): number | undefined => {
  if (pass.queue.length === 0) {
    pass.queue = pass.fallback
    pass.fallback = []
    pass.isSecondChoice = true
  }
  return pass.queue.shift()
}

/** Notes what a host is. */
const saw = ({ list }: Hosts, index: number, role: Role, now: number): void => {
  const host = list[index]!
  host.role = role
  host.seenAt = now
  host.failedAt = undefined
}

/** Notes that a host could not be connected to. */
export const failed = ({ list }: Hosts, index: number, now: number): void => {
  list[index]!.failedAt = now
}

/** What becomes of a host that has answered. `Moved`: it is taken, and another one than before is the writer. */
export type Answer = "Taken" | "Moved" | "Refused"

/** Decides on a host that has answered; `role` is `undefined` where nobody has asked for it. */
export const answered = (pass: Pass, index: number, role: Role | undefined, now: number): Answer => {
  const { hosts } = pass
  if (role === undefined) {
    hosts.list[index]!.failedAt = undefined
    return "Taken"
  }
  saw(hosts, index, role, now)
  if (fits(hosts.attrs, role)) {
    if (!wantsWriter(hosts.attrs)) return "Taken"
    const hasMoved = hosts.writer !== undefined && hosts.writer !== index
    hosts.writer = index
    return hasMoved ? "Moved" : "Taken"
  }
  if (hosts.attrs !== "prefer-standby") return "Refused"
  // A standby that has just failed is not waited for.
  if (pass.isSecondChoice || pass.queue.every((other) => backsOff(hosts.list[other]!, now))) return "Taken"
  pass.fallback.push(index)
  return "Refused"
}
