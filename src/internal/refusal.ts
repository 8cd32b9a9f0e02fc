/**
 * What poolers and gateways say through a SQLSTATE that means something else: PgBouncer gives nearly every refusal the
 * code 08P01 (`src/proto.c`), Supavisor and Neon give theirs XX000, PgCat 58000. Only the text tells them apart.
 *
 * Sources: PgBouncer `src/client.c`, `src/server.c`, `src/objects.c`, `src/janitor.c`; Supavisor `lib/supavisor/errors/`
 * (and `client_handler/error.ex` before them); Neon `proxy/src/auth/mod.rs`, `proxy/src/control_plane/errors.rs`,
 * `messages.rs`, `proxy/src/compute/mod.rs` and https://neon.com/docs/connect/connection-errors;
 * https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-proxy.troubleshooting.html. The texts themselves, one by
 * one, are in `scripts/pooler-texts.ts`, and their verdicts in `docs/classification.md`.
 */
import { denied, dismissed, full, lost, refused, rejected, retired } from "./sqlState.ts"
import type { Rule } from "./verdict.ts"

/** A misconfiguration that no repetition cures. It is said before any statement is accepted. */
const misconfigured: Rule = { ...rejected, proof: "Refused", connection: "Evict" }

const barred: Rule = { ...denied, connection: "Evict" }

/** Who says so will not try again for minutes. */
const paused: Rule = { ...refused, retry: "BackoffSlow" }

/** The first that fits counts. */
const texts: ReadonlyArray<readonly [text: RegExp, rule: Rule]> = [
  // PgBouncer: for ever. It also says "bouncer config error" to a client whose auth_query it could not run.
  [/unsupported (options )?startup parameter|unsupported frontend protocol|protocol not supported/i, misconfigured],
  [/bouncer config error|invalid server parameter|^(username|password) too long|^no username supplied/i, misconfigured],
  [/transaction blocks not allowed in statement pooling|^PQexec disallowed|wrong password type/i, misconfigured],
  [/(TLS|SSL)( connection| client certificate)?( is)? required/i, misconfigured],
  [/no such (database|user)|^not allowed|(auth|authentication) failed|login rejected|^empty password/i, barred],
  [/database "[^"]*" (is disabled|does not exist)|database does not allow connections/i, barred],
  // PgBouncer: no room
  [/no more connections allowed|query_wait_timeout|client connections exceeded|max_(client|db|user)_/i, full],
  [/bouncer resources exhaustion|^no memory for/i, full],
  // PgBouncer: no server behind it
  [/server.login.(has.been.)?fail|server_login_retry|client_login_timeout|server DNS lookup failed/i, refused],
  [/cannot connect to server|server down|^server shutting down/i, refused],
  // PgBouncer: it ended the session
  [/client_idle_timeout/i, retired],
  [/idle.transaction.timeout|^transaction.timeout/i, { ...dismissed, proof: "Lost" }],
  [/query.timeout|server conn(ection)? crashed|server closed the connection|suspend_timeout|shutting down/i, lost],
  [/^database (removed|configuration changed)/i, lost],
  // Supavisor: for ever
  [/tenant or user not found|tenant\/user .* not found|^(\(\w+\) )?user not found/i, barred],
  [/tenant is banned|not in tenant allow_list|no tenant identifier|Authentication error, reason/i, barred],
  [/too many authentication errors|no auth_query configured/i, barred],
  [/not allowed in transaction mode|transaction mode only supports|max prepared statements/i, misconfigured],
  [/invalid startup message|protocol violation during authentication/i, misconfigured],
  // Supavisor: no room
  [/MaxClients|max ((client|proxy) connections|clients|pools count) reached|check ?out .*(timeout|timed out)/i, full],
  [/unable to check ?out|ECHECKOUTTIMEOUT|EMAX\w*(CONN|CLIENT|SESSION)/i, full],
  // Supavisor: no server behind it. Its own circuit stays open for ten minutes.
  [/ECIRCUITBREAKER|unable to establish connection to upstream|failed to retrieve database credentials/i, paused],
  [/(authentication query|auth_query connection) failed|failed to (subscribe to tenant|reach JIT)/i, refused],
  [/DbHandler ?exited|connection to database (closed|not available)/i, lost],
  // Neon: for ever, or until somebody pays
  [/endpoint id is not specified|is not allowed to connect to this endpoint|from a blocked network/i, barred],
  [/(endpoint|project|branch) .*(not (be )?found|disabled|does not exist)|exceeded the .*quota/i, barred],
  [/unsupported authentication method|malformed password/i, barred],
  [/missing in startup packet|inconsistent project name|project name must contain only/i, misconfigured],
  // Neon: no room
  [/too many (database )?connections? attempts|too many (connections|clients)/i, full],
  [/connection slots are reserved|limit of concurrently active endpoints/i, full],
  // Neon: no server behind it, or one that starts: what its compute says at the door comes through as XX000 too
  [/endpoint is temporarily unavailable/i, paused],
  [/could ?n.t connect to compute|failed to acquire permit|compute (node )?(is )?(starting|waking)/i, refused],
  [/control plane request failed|authentication timed out/i, refused],
  [/the database system is (starting up|in recovery mode|not (yet )?accepting connections)/i, refused],
  [/terminating connection due to/i, lost],
  // PgCat, RDS Proxy
  [/could not get connection from the pool|waiting to acquire (a )?database connection/i, full]
]

const spokenThrough = (sqlState: string): boolean =>
  sqlState.startsWith("08") || sqlState === "XX000" || sqlState === "58000"

/** Refusals are short. What a function raised may be of any length, and is not searched to its end. */
const longestRefusal = 500

/** The rule of a refusal by something in front of the server, if that is what it is. */
export const ruleOfRefusal = (sqlState: string, message: string | undefined): Rule | undefined => {
  if (message === undefined || !spokenThrough(sqlState)) return undefined
  const text = message.slice(0, longestRefusal)
  return texts.find(([pattern]) => pattern.test(text))?.[1]
}
