/** Who is measured, where, and what each is called on the page. */

export type ClientName =
  | "ours, keep"
  | "ours, close"
  | "ours, adaptive"
  | "PgClient, 10"
  | "PgClient, 1"
  | "pg, 2"
  | "pg, 1"
  | "pg, 1, not kept"

export interface Contestant {
  readonly client: ClientName
  readonly isOurs: boolean
  readonly title: string
}

const named = (client: ClientName, title: string): Contestant => ({
  client,
  title,
  isOurs: client.startsWith("ours")
})

const ours = {
  keep: named("ours, keep", "effect-pg-pool, release keep"),
  close: named("ours, close", "effect-pg-pool, release close"),
  adaptive: named("ours, adaptive", "effect-pg-pool, release adaptive")
}
const pgClient = {
  ten: named("PgClient, 10", "PgClient, its default of 10"),
  one: named("PgClient, 1", "PgClient, maxConnections 1")
}
const pg = {
  two: named("pg, 2", "pg, max 2"),
  one: named("pg, 1", "pg, max 1"),
  notKept: named("pg, 1, not kept", "pg, max 1, release(true)")
}

export interface Setting {
  readonly id: "fits" | "direct" | "pgbouncer"
  readonly title: string
  readonly isPooled: boolean
  /** What to know before reading its figures. */
  readonly note: string
  /** Whether there is a size of pool with which the server has room for all environments at once. */
  readonly isSafe: boolean
  readonly environments: (all: number) => number
  readonly contestants: ReadonlyArray<Contestant>
}

/** What `max_connections = 100` leaves to those who are no superusers. */
export const room = 97

export const settings: ReadonlyArray<Setting> = [
  {
    id: "fits",
    title: "A fleet that the server has room for",
    note: "`sizeForFleet` gives each environment one session, which all of them together may keep.",
    isPooled: false,
    isSafe: true,
    environments: (all) => Math.min(70, all),
    contestants: [ours.keep, pgClient.ten, pgClient.one, pg.two, pg.one]
  },
  {
    id: "direct",
    title: "A fleet ten times too large",
    note:
      "Not even one session each is safe: no size of pool helps, and `sizeForFleet` says so in the log. With `whenServerFull: "
      + "\"wait\"` callers wait for room instead of being turned away, and those who get none within their deadline fail "
      + "with `InvocationTimeout`. That works only where sessions come back, so `keep` is not among them: the first who come keep "
      + "all places, and the others wait for nothing. A fleet like this wants a pooler, or a limit to its concurrency.",
    isPooled: false,
    isSafe: false,
    environments: (all) => all,
    contestants: [ours.close, ours.adaptive, pgClient.ten, pgClient.one, pg.one, pg.notKept]
  },
  {
    id: "pgbouncer",
    title: "The same fleet behind PgBouncer",
    note: "Each environment may have two sessions, of the pooler's: it is the one that shares the server.",
    isPooled: true,
    isSafe: true,
    environments: (all) => all,
    contestants: [ours.keep, pgClient.ten, pgClient.one, pg.two]
  }
]
