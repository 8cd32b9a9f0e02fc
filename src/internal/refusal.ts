/**
 * What poolers and gateways say through a SQLSTATE that means something else: PgBouncer gives nearly every refusal the
 * code 08P01 (`src/proto.c`), Supavisor and Neon give theirs XX000, PgCat 58000. Only the text tells them apart.
 *
 * Sources: PgBouncer `src/client.c`, `src/objects.c`, `src/janitor.c`; Supavisor `lib/supavisor/error.ex` and its
 * troubleshooting pages; Neon `proxy/src/error.rs` and https://neon.com/docs/connect/connection-errors;
 * https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-proxy.html.
 */
import { denied, dismissed, full, lost, refused, rejected, retired } from "./sqlState.ts"
import type { Rule } from "./verdict.ts"

/** A misconfiguration that no repetition cures. It is said before any statement is accepted. */
const misconfigured: Rule = { ...rejected, proof: "Refused", connection: "Evict" }

const barred: Rule = { ...denied, connection: "Evict" }

const texts: ReadonlyArray<readonly [text: RegExp, rule: Rule]> = [
  // PgBouncer: for ever
  [/unsupported startup parameter|unsupported frontend protocol|bouncer config error/i, misconfigured],
  [/(TLS|SSL) (connection |client certificate )?required/i, misconfigured],
  [/no such (database|user)|^not allowed|(auth|authentication) failed|login rejected/i, barred],
  // PgBouncer: no room
  [/no more connections allowed|query_wait_timeout|client connections exceeded|max_(client|db|user)_/i, full],
  // PgBouncer: no server behind it
  [/server.login.has.been.failing|server_login_retry|client_login_timeout|server DNS lookup failed/i, refused],
  [/cannot connect to server|server down|^server shutting down/i, refused],
  // PgBouncer: it ended the session
  [/client_idle_timeout/i, retired],
  [/idle.transaction.timeout|^transaction.timeout/i, { ...dismissed, proof: "Lost" }],
  [/query.timeout|server conn(ection)? crashed|server closed the connection|suspend_timeout|shutting down/i, lost],
  // Supavisor
  [/tenant or user not found|tenant\/user .* not found/i, barred],
  [/MaxClients|max (client connections|clients) reached|check ?out (process )?.*(timeout|timed out)/i, full],
  [/unable to check ?out|ECHECKOUTTIMEOUT|EMAXCONN/i, full],
  [/DbHandler ?exited|connection to database (closed|not available)/i, lost],
  // Neon
  [/too many connections? attempts|too many (connections|clients)/i, full],
  [/endpoint id is not specified|(endpoint|project|branch) .*(not found|disabled|does not exist)/i, barred],
  [/could ?n.t connect to compute|failed to acquire permit|compute (node )?(is )?(starting|waking)/i, refused],
  // PgCat, RDS Proxy
  [/could not get connection from the pool|waiting to acquire (a )?database connection/i, full]
]

const spokenThrough = (sqlState: string): boolean =>
  sqlState.startsWith("08") || sqlState === "XX000" || sqlState === "58000"

/** The rule of a refusal by something in front of the server, if that is what it is. */
export const ruleOfRefusal = (sqlState: string, message: string | undefined): Rule | undefined =>
  message === undefined || !spokenThrough(sqlState)
    ? undefined
    : texts.find(([pattern]) => pattern.test(message))?.[1]
