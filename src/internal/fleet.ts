/** How many sessions each of many equal pools may have, so that all of them together fit into what the server allows. */

/** What a program says of its fleet: all the pools that share one application name, user and database. */
export interface FleetOptions {
  /**
   * Most environments that run at once: the reserved or maximum concurrency of a function, `maxInstances` of a container.
   * No platform tells it, so it has to be given. A whole number of at least 1.
   */
  readonly environments: number
  /**
   * Processes or worker threads of one environment that have a pool of their own: 8 for each vCPU on Lambda Managed
   * Instances, the cluster's workers in a container. A whole number. Default: 1.
   */
  readonly workers?: number | undefined
  /** How many times the fleet is there while a deployment replaces it: 2 for old beside new. At least 1. Default: 2. */
  readonly overlap?: number | undefined
  /** The share of what is left by others that the fleet may fill: above 0, at most 1. Default: 0.8. */
  readonly share?: number | undefined
  /**
   * What becomes of a fleet for which even one session per pool is too much. `"warn"`: each pool has one all the same, and
   * a log line says the numbers and the cure. `"fail"`: connects fail with `FleetTooLarge`. The first borrower of a new
   * session then waits one round trip longer, since what it is to be told has to be known. Default: `"warn"`.
   */
  readonly whenUnsafe?: "warn" | "fail" | undefined
}

/** The options after defaults. */
export type Plan = { readonly [K in keyof FleetOptions]-?: NonNullable<FleetOptions[K]> }

export const planOf = (options: FleetOptions): Plan => ({
  environments: options.environments,
  workers: options.workers ?? 1,
  overlap: options.overlap ?? 2,
  share: options.share ?? 0.8,
  whenUnsafe: options.whenUnsafe ?? "warn"
})

const isWhole = (value: number): boolean => Number.isInteger(value) && value >= 1

const rules: ReadonlyArray<readonly [option: keyof Plan, allowed: string, holds: (plan: Plan) => boolean]> = [
  ["environments", "a whole number of at least 1", ({ environments }) => isWhole(environments)],
  ["workers", "a whole number of at least 1", ({ workers }) => isWhole(workers)],
  ["overlap", "a number of at least 1", ({ overlap }) => overlap >= 1 && overlap < Infinity],
  ["share", "above 0 and at most 1", ({ share }) => share > 0 && share <= 1],
  ["whenUnsafe", "one of warn, fail", ({ whenUnsafe }) => whenUnsafe === "warn" || whenUnsafe === "fail"]
]

/** What is impossible about it, if anything is. */
export const firstBroken = (options: FleetOptions) => {
  const plan = planOf(options)
  const broken = rules.find(([, , holds]) => !holds(plan))
  if (broken === undefined) return undefined
  const [option, allowed] = broken
  return { option: `fleet.${option}`, value: String(plan[option]), allowed }
}

/** What the server has said of its places. */
export interface Census {
  /** `max_connections` of the server. */
  readonly maxConnections: number
  /** `superuser_reserved_connections`. */
  readonly superuserReserved: number
  /** `reserved_connections`, which PostgreSQL has from version 16 on; 0 before. */
  readonly reserved: number
  /** Whether the user may take those: a superuser, or a member of `pg_use_reserved_connections`. */
  readonly mayUseReserved: boolean
  /** `CONNECTION LIMIT` of the user, `null` for none, or for a superuser, whom none holds. */
  readonly roleLimit: number | null
  /** `CONNECTION LIMIT` of the database, in the same way. */
  readonly databaseLimit: number | null
  /** Sessions on the server; those among them of the user, in the database, and of the fleet. */
  readonly used: number
  readonly usedByRole: number
  readonly usedByDatabase: number
  readonly usedByFleet: number
  /** Whether it is a standby: the numbers are its own, not those of its primary. */
  readonly isStandby: boolean
}

/** Which limit leaves the fleet the least. */
export type Bound = "server" | "role" | "database"

/** What follows from a census for one pool of the fleet. */
export interface Sizing {
  readonly bound: Bound
  /** What that limit is. */
  readonly limit: number
  /** Sessions of others that count against it. */
  readonly others: number
  /** What is left for the fleet: `limit - others`, 0 at least. */
  readonly budget: number
  /** The most sessions that a pool may have, 1 at least. */
  readonly size: number
  /** Whether the whole fleet fits in with `size` sessions for each pool. */
  readonly isSafe: boolean
  /** The most environments that fit in with one session for each of their pools. */
  readonly safeEnvironments: number
  /** How full the server is for this user and database: the fullest of the limits, from 0 to 1. */
  readonly utilisation: number
}

interface Limit {
  readonly bound: Bound
  readonly limit: number
  readonly used: number
}

const limitsOf = (census: Census): ReadonlyArray<Limit> => {
  const { databaseLimit, mayUseReserved, maxConnections, reserved, roleLimit, superuserReserved } = census
  const limits: Array<Limit> = [{
    bound: "server",
    limit: Math.max(0, maxConnections - superuserReserved - (mayUseReserved ? 0 : reserved)),
    used: census.used
  }]
  if (roleLimit !== null) limits.push({ bound: "role", limit: roleLimit, used: census.usedByRole })
  if (databaseLimit !== null) limits.push({ bound: "database", limit: databaseLimit, used: census.usedByDatabase })
  return limits
}

/** Decimal shares are no binary ones: 0.29 of 100 is 29, and not 28.999999999999996. */
const floor = (value: number): number => Math.floor(value + 1e-9)

/**
 * `clamp(floor(share * budget / (environments * workers * overlap)), 1, ceiling)`.
 *
 * Each limit counts sessions of its own kind, so each is lessened by those of others that it counts, and the least that is
 * left is the budget.
 *
 * https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-MAX-CONNECTIONS
 */
export const sizeOf = (plan: Plan, census: Census, ceiling: number): Sizing => {
  const left = limitsOf(census).map(({ bound, limit, used }) => {
    const others = Math.max(0, used - census.usedByFleet)
    return { bound, limit, others, budget: Math.max(0, limit - others), fullness: limit > 0 ? used / limit : 1 }
  })
  const { bound, budget, limit, others } = left.reduce((least, next) => next.budget < least.budget ? next : least)
  const { environments, overlap, share, workers } = plan
  const forEach = floor(share * budget / (environments * workers * overlap))
  return {
    bound,
    limit,
    others,
    budget,
    size: Math.min(Math.max(forEach, 1), ceiling),
    isSafe: forEach >= 1,
    safeEnvironments: floor(share * budget / (workers * overlap)),
    utilisation: Math.min(1, Math.max(...left.map(({ fullness }) => fullness)))
  }
}

const whoLimits: { readonly [_ in Bound]: string } = {
  server: "the server's max_connections less what is reserved",
  role: "the user's CONNECTION LIMIT",
  database: "the database's CONNECTION LIMIT"
}

/** What is wrong with a fleet that is too large, what helps, and the numbers. */
export const tooLarge = (
  { bound, environments, limit, others, overlap, safeEnvironments, share, workers }:
    & Omit<Plan, "whenUnsafe">
    & Pick<Sizing, "bound" | "limit" | "others" | "safeEnvironments">
): string =>
  "No pool size is safe: " +
  (safeEnvironments > 0 ? `limit the concurrency to ${safeEnvironments} environments` : "make room") +
  `, put a transaction pooler in between, or raise the limit. ${environments} environments` +
  (workers > 1 ? ` with ${workers} pools each` : "") +
  (overlap > 1 ? `, ${overlap} times over while a deployment replaces them,` : "") +
  ` need ${Math.ceil(environments * workers * overlap)} sessions, but ${whoLimits[bound]} allows ${limit}, ` +
  `others have ${others} of them, and the fleet may fill ${percent(share)} of the rest.`

const percent = (share: number): string => `${Number((share * 100).toFixed(1))} %`

/**
 * One row of what any user may read. Who is not privileged sees neither `state` nor `backend_type` of other users'
 * sessions, so these are told from the server's own processes by their database. `session_user`, because limits hold for
 * who has logged in; `application_name` as the server has it, cut to 63 bytes. `LOCAL` settings end with the message.
 *
 * It is the first statement of a session, whose catalog caches are empty: the function below `pg_stat_activity` and a cast
 * instead of a second look into `pg_roles` take half of the time off it.
 *
 * https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-FUNCTIONS
 */
export const query = `SET LOCAL statement_timeout = 1000; SELECT
  pg_catalog.current_setting('max_connections'),
  pg_catalog.current_setting('superuser_reserved_connections'),
  coalesce(pg_catalog.current_setting('reserved_connections', true), '0'),
  me.rolsuper OR coalesce(pg_catalog.pg_has_role(
    me.oid, pg_catalog.to_regrole('pg_use_reserved_connections')::oid, 'USAGE'), false),
  CASE WHEN me.rolsuper THEN -1 ELSE me.rolconnlimit END,
  CASE WHEN me.rolsuper THEN -1 ELSE home.datconnlimit END,
  seen.*,
  pg_catalog.pg_is_in_recovery()
FROM pg_catalog.pg_roles AS me, pg_catalog.pg_database AS home, LATERAL (
  SELECT count(*),
    count(*) FILTER (WHERE s.usesysid = me.oid),
    count(*) FILTER (WHERE s.datid = home.oid),
    count(*) FILTER (WHERE s.usesysid = me.oid AND s.datid = home.oid
      AND s.application_name = pg_catalog.current_setting('application_name'))
  FROM pg_catalog.pg_stat_get_activity(NULL) AS s
  WHERE s.datid IS NOT NULL AND coalesce(s.backend_type, 'client backend') = 'client backend'
) AS seen
WHERE me.rolname = session_user AND home.datname = pg_catalog.current_database()`

/** Reads the row; `undefined` if it is none of these. */
export const censusOf = (row: ReadonlyArray<string | null>): Census | undefined => {
  const [max, superuser, reserved, mayUse, role, database, used, byRole, byDatabase, byFleet, standby] = row
  const counts = [max, superuser, reserved, role, database, used, byRole, byDatabase, byFleet].map((text) =>
    Number(text ?? Number.NaN)
  )
  if (!counts.every(Number.isInteger)) return undefined
  // Below 0 there is none: -1, and -2 for a database that was left half dropped.
  const limit = (text: string | null | undefined) => Number(text) < 0 ? null : Number(text)
  return {
    maxConnections: Number(max),
    superuserReserved: Number(superuser),
    reserved: Number(reserved),
    mayUseReserved: mayUse === "t",
    roleLimit: limit(role),
    databaseLimit: limit(database),
    used: Number(used),
    usedByRole: Number(byRole),
    usedByDatabase: Number(byDatabase),
    usedByFleet: Number(byFleet),
    isStandby: standby === "t"
  }
}

/**
 * Names by which poolers are known: what can be read through one is about the server behind it, and not about the places
 * that the pooler has for its clients. Supabase, Neon and RDS Proxy; 6543 is Supabase's port for transactions.
 */
export const looksLikePooler = ({ host, port }: { readonly host: string; readonly port: number }): boolean =>
  port === 6543 || /-pooler\.|\.proxy-|\.pooler\.supabase\.com$/i.test(host)
