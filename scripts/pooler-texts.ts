/**
 * What poolers and gateways are known to say, each text as it comes over the wire, with the file it was read in. The
 * test checks that each has the meaning it should have; `docs/classification.md` shows what follows from it.
 */
import type { Kind, Outcome } from "../src/Errors.ts"

export interface PoolerText {
  readonly pooler: string
  readonly source: string
  readonly sqlState: string
  readonly severity: "ERROR" | "FATAL"
  readonly text: string
  readonly kind: Kind
  /** What is left of a statement that was written when this came. */
  readonly inFlight: Outcome
}

type Row = readonly [text: string, kind: Kind, inFlight?: Outcome]

const said = (
  pooler: string,
  source: string,
  sqlState: string,
  severity: "ERROR" | "FATAL",
  rows: ReadonlyArray<Row>
): ReadonlyArray<PoolerText> =>
  rows.map(([text, kind, inFlight = "RolledBack"]) => ({ pooler, source, sqlState, severity, text, kind, inFlight }))

export const poolerTexts: ReadonlyArray<PoolerText> = [
  ...said("PgBouncer", "src/client.c", "08P01", "FATAL", [
    ["unsupported startup parameter: statement_timeout", "Rejected"],
    ["unsupported startup parameter in options: lock_timeout", "Rejected"],
    ["unsupported options startup parameter: only '-c config=val' is allowed", "Rejected"],
    ["old V2 protocol not supported", "Rejected"],
    ["bouncer config error", "Rejected"],
    ["no username supplied", "Rejected"],
    ["username too long", "Rejected"],
    ["PQexec disallowed", "Rejected"],
    ["SSL required", "Rejected"],
    ["no such database: shop", "Denied"],
    ["no such user", "Denied"],
    ["database \"shop\" is disabled", "Denied"],
    ["database does not allow connections: shop", "Denied"],
    ["authentication database \"auth\" is disabled", "Denied"],
    ["password authentication failed", "Denied"],
    ["SASL authentication failed", "Denied"],
    ["certificate authentication failed", "Denied"],
    ["unix socket login rejected", "Denied"],
    ["login rejected", "Denied"],
    ["empty password returned by client", "Denied"],
    ["no more connections allowed (max_client_conn)", "Overloaded"],
    ["client connections exceeded (max_db_client_connections)", "Overloaded"],
    ["client connections exceeded (max_user_client_connections)", "Overloaded"],
    ["bouncer resources exhaustion", "Overloaded"],
    ["no memory for pool", "Overloaded"]
  ]),
  ...said("PgBouncer", "src/objects.c", "08P01", "FATAL", [
    ["server login has been failing, try again later (server_login_retry)", "Unreachable"],
    [
      "server login has been failing, cached error: the database system is starting up (server_login_retry)",
      "Unreachable"
    ],
    [
      "server login has been failing, cached error: password authentication failed for user \"app\" (server_login_retry)",
      "Denied"
    ],
    ["server login has been failing, cached error: database \"shop\" does not exist (server_login_retry)", "Denied"],
    ["server DNS lookup failed", "Unreachable"],
    ["pooler is shutting down", "Unreachable", "Unknown"]
  ]),
  ...said("PgBouncer", "src/server.c", "08P01", "FATAL", [
    ["server login failed: wrong password type", "Rejected"],
    ["invalid server parameter", "Rejected"],
    ["transaction blocks not allowed in statement pooling mode", "Rejected"],
    ["server conn crashed?", "Unreachable", "Unknown"]
  ]),
  ...said("PgBouncer", "src/janitor.c", "08P01", "FATAL", [
    ["query_wait_timeout", "Overloaded"],
    ["client_login_timeout", "Unreachable"],
    ["client_login_timeout (server down)", "Unreachable"],
    ["server shutting down", "Unreachable"],
    ["client_idle_timeout", "StaleConnection"],
    ["query_timeout", "Unreachable", "Unknown"],
    ["query timeout", "Unreachable", "Unknown"],
    ["idle transaction timeout", "Cancelled", "Unknown"],
    ["transaction timeout", "Cancelled", "Unknown"],
    ["suspend_timeout", "Unreachable", "Unknown"],
    ["database removed", "Unreachable", "Unknown"],
    ["database configuration changed", "Unreachable", "Unknown"]
  ]),
  ...said("Supavisor", "lib/supavisor/client_handler/error.ex (2024)", "XX000", "FATAL", [
    ["Tenant or user not found", "Denied"],
    ["Address not in tenant allow_list: {127, 0, 0, 1}", "Denied"],
    ["Authentication error, reason: \"Invalid format for user or db_name\"", "Denied"],
    ["SSL connection is required", "Rejected"],
    ["Supavisor transaction mode only supports prepared statements using the Extended Query Protocol", "Rejected"],
    ["max prepared statements limit reached. Limit: 100 per connection", "Rejected"],
    ["max prepared statements memory limit reached. Limit: 16MB per connection", "Rejected"],
    ["Max client connections reached", "Overloaded"],
    ["Max pools count reached", "Overloaded"],
    [
      "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
      "Overloaded"
    ],
    ["Unable to check out process from the pool due to timeout", "Overloaded"],
    ["Failed to subscribe to tenant after multiple retries. Terminating.", "Unreachable"],
    ["DbHandler exited", "Unreachable", "Unknown"]
  ]),
  ...said("Supavisor", "lib/supavisor/errors/", "XX000", "FATAL", [
    ["(ENOTFOUND) tenant/user app.shop not found", "Denied"],
    ["(ETENANTNOTFOUND) tenant or user not found", "Denied"],
    ["(EADDRNOTALLOWED) address not in tenant allow_list: {127, 0, 0, 1}", "Denied"],
    ["(EBANNED) tenant is banned: abuse", "Denied"],
    ["(ENOIDENTIFIER) no tenant identifier provided (external_id or sni_hostname required)", "Denied"],
    ["(EINVALIDUSERINFO) Authentication error, reason: \"Invalid format for user or db_name\"", "Denied"],
    ["(EAUTHQUERY) user not found in the database", "Denied"],
    ["(EAUTHQUERY) no auth_query configured for this tenant", "Denied"],
    ["(ECIRCUITBREAKER) Too many authentication errors", "Denied"],
    ["(ESSLREQUIRED) SSL connection is required for user: app", "Rejected"],
    ["(ESETNOTALLOWED) session-level SET statements are not allowed in transaction mode", "Rejected"],
    ["(ESESSIONLEAK) a session-level advisory lock is not allowed in transaction mode", "Rejected"],
    ["(EMAXCONN) max client connections reached, limit: 200", "Overloaded"],
    ["(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to pool_size: 15", "Overloaded"],
    ["(EMAXCLIENTCONN) max client connections reached, limit: 200", "Overloaded"],
    ["(EMAXPROXYCONN) max proxy connections reached, limit: 200", "Overloaded"],
    ["(ECHECKOUTTIMEOUT) Pool checkout timeout. Request was dropped after 15000ms in Transaction mode.", "Overloaded"],
    ["(EAUTHQUERY) authentication query failed: connection to database not available", "Unreachable"],
    ["(EAUTHQUERY) auth_query connection failed: timeout", "Unreachable"],
    ["(ECIRCUITBREAKER) Unable to establish connection to upstream database", "Unreachable"],
    ["(ECIRCUITBREAKER) Failed to retrieve database credentials", "Unreachable"],
    ["(EJITREQUESTFAILED) failed to reach JIT provider for user \"app\"", "Unreachable"],
    ["(EDBHANDLEREXITED) connection to database closed. Check logs for more information", "Unreachable", "Unknown"],
    ["(EDBHANDLEREXITED) DbHandler exited. Check logs for more information", "Unreachable", "Unknown"]
  ]),
  ...said("Supavisor", "lib/supavisor/errors/", "08P01", "FATAL", [
    ["(ESTARTUPMESSAGE) Invalid startup message: :bad", "Rejected"],
    ["protocol violation during authentication", "Rejected"]
  ]),
  ...said("Neon", "proxy/src/auth/mod.rs", "XX000", "ERROR", [
    [
      "Endpoint ID is not specified. Either please upgrade the postgres client library (libpq) for SNI support",
      "Denied"
    ],
    ["VPC endpoint ID is not specified. This endpoint requires a VPC endpoint ID to connect.", "Denied"],
    ["password authentication failed for user 'app'", "Denied"],
    ["This IP address 10.0.0.1 is not allowed to connect to this endpoint.", "Denied"],
    ["This VPC endpoint id vpce-1 is not allowed to connect to this endpoint.", "Denied"],
    ["This connection is trying to access this endpoint from a blocked network.", "Denied"],
    ["Unsupported authentication method: md5", "Denied"],
    ["Malformed password message: missing terminator", "Denied"],
    ["Too many connections to this endpoint. Please try again later.", "Overloaded"],
    ["Authentication timed out", "Unreachable"]
  ]),
  ...said("Neon", "proxy/src/auth/credentials.rs", "XX000", "ERROR", [
    ["Parameter `user` is missing in startup packet", "Rejected"],
    ["Inconsistent project name inferred from SNI and project option.", "Rejected"],
    ["Project name must contain only alphanumeric characters and hyphens ('-').", "Rejected"]
  ]),
  ...said("Neon", "proxy/src/control_plane/messages.rs, errors.rs", "XX000", "ERROR", [
    ["Control plane request failed: endpoint cannot be found", "Denied"],
    ["Control plane request failed: endpoint is disabled", "Denied"],
    ["The requested endpoint could not be found, or you don't have access to it", "Denied"],
    ["Your account or project has exceeded the compute time quota. Upgrade your plan to increase limits.", "Denied"],
    ["Too many connections attempts", "Overloaded"],
    [
      "Failed to acquire permit to connect to the database. Too many database connection attempts are currently ongoing.",
      "Overloaded"
    ],
    ["You have exceeded the limit of concurrently active endpoints.", "Overloaded"],
    ["Control plane request failed", "Unreachable"],
    [
      "Control plane request failed: endpoint is temporarily unavailable. Check your quotas and/or contact our support.",
      "Unreachable"
    ]
  ]),
  ...said("Neon", "proxy/src/compute/mod.rs", "XX000", "ERROR", [
    ["unsupported startup parameter: statement_timeout. Please use unpooled connection", "Rejected"],
    ["database \"shop\" does not exist", "Denied"],
    ["sorry, too many clients already", "Overloaded"],
    ["remaining connection slots are reserved for roles with the SUPERUSER attribute", "Overloaded"],
    ["Couldn't connect to compute node", "Unreachable"],
    ["the database system is starting up", "Unreachable"],
    ["terminating connection due to administrator command", "Unreachable", "Unknown"]
  ]),
  ...said("PgCat", "src/client.rs", "58000", "FATAL", [
    ["could not get connection from the pool", "Overloaded"]
  ]),
  // AWS documents the text; the SQLSTATE is what users report.
  ...said("RDS Proxy", "rds-proxy.troubleshooting.html", "08000", "FATAL", [
    ["Timed-out waiting to acquire database connection", "Overloaded"]
  ])
]
