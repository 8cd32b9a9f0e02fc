/**
 * SQLSTATE -> the verdict before circumstances are looked at, in the order of PostgreSQL 18's Appendix A
 * (https://www.postgresql.org/docs/18/errcodes-appendix.html), so that it can be checked against it line by line.
 *
 * Each class has a rule; a code is listed below its class where its rule differs, or where it is often met. A code that
 * is not here falls to its class, and a class that is not here to `rejected`: the server answered, and nothing is
 * repeated on a guess.
 */
import { lazy } from "./lazy.ts"
import type { Rule } from "./verdict.ts"

/** The server answered and said no. Repeating the same statement gives the same answer. */
export const rejected: Rule = {
  kind: "Rejected",
  proof: "Undone",
  retry: "Never",
  breaker: "Success",
  connection: "Keep"
}

/** Rejected, and the session is no longer in the state that this side believes it to be in. */
export const soiled: Rule = { ...rejected, connection: "Evict" }

/** An internal error, of the server or of a gateway that speaks through its codes. */
const doubtful: Rule = { ...rejected, proof: "Doubtful", connection: "Evict" }

/** The connection is gone, and the answer with it. */
export const lost: Rule = {
  kind: "Unreachable",
  proof: "Lost",
  retry: "Backoff",
  breaker: "Failure",
  connection: "Evict"
}

/** No session was given, so a statement that waited for one was never accepted. */
export const refused: Rule = { ...lost, proof: "Refused" }

/** The same for want of room. */
export const full: Rule = { ...refused, kind: "Overloaded", retry: "BackoffSlow" }

/** The server ran short while it worked. The session survives an ERROR. */
const exhausted: Rule = { ...full, proof: "Undone", connection: "Keep" }

/** A race with another transaction was lost; the loser was rolled back and is meant to be repeated. */
const contention: Rule = {
  kind: "Contention",
  proof: "Undone",
  retry: "Backoff",
  breaker: "Success",
  connection: "Keep"
}

/**
 * Not repeated here: NOWAIT asks not to wait, and after lock_timeout another wait would be as long. Rolled back all the
 * same, so the caller may repeat it, and the driver's error says so.
 */
const locked: Rule = { ...contention, retry: "Never" }

/** Who asks, or what for, is wrong. Asking again would at best lock the account. */
export const denied: Rule = {
  kind: "Denied",
  proof: "Refused",
  retry: "Never",
  breaker: "Ignored",
  connection: "Keep"
}

/** Stopped on purpose: repeated only where the caller declared it idempotent (`isSafeToRepeat`). */
const cancelled: Rule = {
  kind: "Cancelled",
  proof: "Undone",
  retry: "Backoff",
  breaker: "Ignored",
  connection: "Keep"
}

/** Stopped on purpose, together with its session. */
export const dismissed: Rule = { ...cancelled, connection: "Evict" }

/** The session was retired while idle. The server is well. */
export const retired: Rule = {
  kind: "StaleConnection",
  proof: "Refused",
  retry: "Now",
  breaker: "Ignored",
  connection: "Evict"
}

/**
 * The server only reads: a demoted primary, most often. All sessions of this generation look at the wrong server, and
 * the breaker must stay shut so that the search for the writer can go on (Shopify's Semian does the same).
 */
const readOnly: Rule = {
  kind: "ReadOnly",
  proof: "Undone",
  retry: "Now",
  breaker: "Ignored",
  connection: "EvictAll"
}

type Entry = readonly [name: string, rule: Rule]

/** Keys of two characters are classes. */
const table = lazy((): Readonly<Record<string, Entry>> => ({
  // Class 00: Successful Completion. An error cannot carry these three; they are here for completeness.
  "00": ["successful_completion", rejected],
  // Class 01: Warning
  "01": ["warning", rejected],
  // Class 02: No Data
  "02": ["no_data", rejected],

  // Class 03: SQL Statement Not Yet Complete
  "03": ["sql_statement_not_yet_complete", rejected],

  // Class 08: Connection Exception. PostgreSQL itself raises few of them; poolers relay a lost server with them, so the
  // statement may have run.
  "08": ["connection_exception", lost],
  "08000": ["connection_exception", lost],
  "08003": ["connection_does_not_exist", refused],
  "08006": ["connection_failure", lost],
  "08001": ["sqlclient_unable_to_establish_sqlconnection", refused],
  "08004": ["sqlserver_rejected_establishment_of_sqlconnection", refused],
  // The outcome is unknown by definition, inside a transaction too (the AWS wrapper draws the same line, 08007 vs 08S02).
  "08007": ["transaction_resolution_unknown", { ...lost, proof: "Unknowable" }],
  // Depends on who says it and when: rule.ts.
  "08P01": ["protocol_violation", lost],

  // Class 09: Triggered Action Exception
  "09": ["triggered_action_exception", rejected],

  // Class 0A: Feature Not Supported. With "cached plan must not change result type" the session is soiled: rule.ts.
  "0A": ["feature_not_supported", rejected],
  "0A000": ["feature_not_supported", rejected],

  // Class 0B: Invalid Transaction Initiation
  "0B": ["invalid_transaction_initiation", rejected],
  // Class 0F: Locator Exception
  "0F": ["locator_exception", rejected],
  // Class 0L: Invalid Grantor
  "0L": ["invalid_grantor", rejected],
  // Class 0P: Invalid Role Specification
  "0P": ["invalid_role_specification", rejected],
  // Class 0Z: Diagnostics Exception
  "0Z": ["diagnostics_exception", rejected],
  // Class 10: XQuery Error
  "10": ["xquery_error", rejected],
  // Class 20: Case Not Found
  "20": ["case_not_found", rejected],
  // Class 21: Cardinality Violation
  "21": ["cardinality_violation", rejected],

  // Class 22: Data Exception
  "22": ["data_exception", rejected],
  "22001": ["string_data_right_truncation", rejected],
  "22003": ["numeric_value_out_of_range", rejected],
  "22007": ["invalid_datetime_format", rejected],
  "22012": ["division_by_zero", rejected],
  "22023": ["invalid_parameter_value", rejected],
  "22P02": ["invalid_text_representation", rejected],

  // Class 23: Integrity Constraint Violation
  "23": ["integrity_constraint_violation", rejected],
  "23001": ["restrict_violation", rejected],
  "23502": ["not_null_violation", rejected],
  "23503": ["foreign_key_violation", rejected],
  "23505": ["unique_violation", rejected],
  "23514": ["check_violation", rejected],
  "23P01": ["exclusion_violation", rejected],

  // Class 24: Invalid Cursor State
  "24": ["invalid_cursor_state", rejected],

  // Class 25: Invalid Transaction State
  "25": ["invalid_transaction_state", rejected],
  "25006": ["read_only_sql_transaction", readOnly],
  "25P01": ["no_active_sql_transaction", rejected],
  // In flight, outside of a transaction of ours, it means that the session came with one: rule.ts.
  "25P02": ["in_failed_sql_transaction", rejected],
  // Detected before the next command is read (PostgresMain, step 4 and 5), so a COMMIT that crossed it was not run.
  "25P03": ["idle_in_transaction_session_timeout", { ...dismissed, proof: "Ended" }],
  // FATAL, and it can strike at the first interrupt check after a commit: only an open transaction is surely undone.
  "25P04": ["transaction_timeout", dismissed],

  // Class 26: Invalid SQL Statement Name. The driver has already repeated what it could without the statement's name;
  // if that was not enough, the session and its statement cache disagree.
  "26": ["invalid_sql_statement_name", soiled],
  "26000": ["invalid_sql_statement_name", soiled],

  // Class 27: Triggered Data Change Violation
  "27": ["triggered_data_change_violation", rejected],

  // Class 28: Invalid Authorization Specification. Not retried here: a password that is an Effect has by then been
  // evaluated afresh once, where the connection is made.
  "28": ["invalid_authorization_specification", denied],
  "28000": ["invalid_authorization_specification", denied],
  "28P01": ["invalid_password", denied],

  // Class 2B: Dependent Privilege Descriptors Still Exist
  "2B": ["dependent_privilege_descriptors_still_exist", rejected],
  // Class 2D: Invalid Transaction Termination
  "2D": ["invalid_transaction_termination", rejected],
  // Class 2F: SQL Routine Exception
  "2F": ["sql_routine_exception", rejected],
  // Class 34: Invalid Cursor Name
  "34": ["invalid_cursor_name", rejected],
  // Class 38: External Routine Exception
  "38": ["external_routine_exception", rejected],
  // Class 39: External Routine Invocation Exception
  "39": ["external_routine_invocation_exception", rejected],
  // Class 3B: Savepoint Exception
  "3B": ["savepoint_exception", rejected],

  // Class 3D: Invalid Catalog Name
  "3D": ["invalid_catalog_name", denied],
  "3D000": ["invalid_catalog_name", denied],

  // Class 3F: Invalid Schema Name
  "3F": ["invalid_schema_name", rejected],

  // Class 40: Transaction Rollback
  "40": ["transaction_rollback", rejected],
  "40000": ["transaction_rollback", rejected],
  "40002": ["transaction_integrity_constraint_violation", rejected],
  // https://www.postgresql.org/docs/18/mvcc-serialization-failure-handling.html: retry the complete transaction.
  "40001": ["serialization_failure", contention],
  // Unknown by definition. CockroachDB says it of a commit whose result it cannot tell.
  "40003": ["statement_completion_unknown", { ...rejected, proof: "Unknowable", connection: "Evict" }],
  "40P01": ["deadlock_detected", contention],

  // Class 42: Syntax Error or Access Rule Violation
  "42": ["syntax_error_or_access_rule_violation", rejected],
  "42601": ["syntax_error", rejected],
  "42501": ["insufficient_privilege", rejected],
  "42703": ["undefined_column", rejected],
  "42883": ["undefined_function", rejected],
  "42P01": ["undefined_table", rejected],
  "42P05": ["duplicate_prepared_statement", soiled],

  // Class 44: WITH CHECK OPTION Violation
  "44": ["with_check_option_violation", rejected],

  // Class 53: Insufficient Resources
  "53": ["insufficient_resources", exhausted],
  "53000": ["insufficient_resources", exhausted],
  "53100": ["disk_full", exhausted],
  "53200": ["out_of_memory", exhausted],
  // Said at the door, before any statement; a pooler relays it to a statement that waited for the session.
  "53300": ["too_many_connections", full],
  "53400": ["configuration_limit_exceeded", exhausted],

  // Class 54: Program Limit Exceeded
  "54": ["program_limit_exceeded", rejected],

  // Class 55: Object Not In Prerequisite State
  "55": ["object_not_in_prerequisite_state", rejected],
  "55000": ["object_not_in_prerequisite_state", rejected],
  "55006": ["object_in_use", rejected],
  "55P02": ["cant_change_runtime_param", rejected],
  "55P03": ["lock_not_available", locked],
  "55P04": ["unsafe_new_enum_value_usage", rejected],

  // Class 57: Operator Intervention
  "57": ["operator_intervention", rejected],
  "57000": ["operator_intervention", rejected],
  // A cancel request or statement_timeout. An ERROR: rolled back, and the session is sound.
  "57014": ["query_canceled", cancelled],
  // One backend ended by pg_terminate_backend says the same as all of them in a fast shutdown. So only this session
  // goes; where the others are ended too, their own sockets close and tell it. Whether the server still lets anybody in is
  // known at once, by the one connect that all who lost a session wait for: nothing is gained by a pause before that.
  "57P01": ["admin_shutdown", { ...lost, retry: "Now" }],
  // The postmaster ends every backend when one of them crashed: all sessions are dead by definition.
  "57P02": ["crash_shutdown", { ...lost, connection: "EvictAll" }],
  // Said at the door while starting, stopping or recovering. Sessions that are open may live on (smart shutdown).
  "57P03": ["cannot_connect_now", refused],
  // Every session of this pool was connected to that database; connecting again is futile.
  "57P04": ["database_dropped", { ...denied, proof: "Lost", connection: "EvictAll" }],
  // The session was idle, so it had not read another statement (the same check as for 25P03).
  "57P05": ["idle_session_timeout", retired],

  // Class 58: System Error (errors external to PostgreSQL itself)
  "58": ["system_error", doubtful],
  "58000": ["system_error", doubtful],
  "58030": ["io_error", doubtful],
  "58P01": ["undefined_file", rejected],
  "58P02": ["duplicate_file", rejected],
  "58P03": ["file_name_too_long", rejected],

  // Class 60 and 99: not PostgreSQL's; gateways use them for failures of their own.
  "60": ["system_error", doubtful],
  "99": ["unexpected_error", doubtful],

  // Class 72: Snapshot Failure (until PostgreSQL 16)
  "72": ["snapshot_failure", rejected],

  // Class F0: Configuration File Error
  F0: ["config_file_error", doubtful],
  F0000: ["config_file_error", doubtful],
  F0001: ["lock_file_exists", doubtful],

  // Class HV: Foreign Data Wrapper Error (SQL/MED)
  HV: ["fdw_error", rejected],
  // Class P0: PL/pgSQL Error
  P0: ["plpgsql_error", rejected],
  P0001: ["raise_exception", rejected],
  P0004: ["assert_failure", rejected],

  // Class XX: Internal Error
  XX: ["internal_error", doubtful],
  XX000: ["internal_error", doubtful],
  XX001: ["data_corrupted", doubtful],
  XX002: ["index_corrupted", doubtful]
}))

const entryOf = (sqlState: string): Entry | undefined =>
  Object.hasOwn(table(), sqlState)
    ? table()[sqlState]
    : Object.hasOwn(table(), sqlState.slice(0, 2))
    ? table()[sqlState.slice(0, 2)]
    : undefined

/** The rule of the code, else of its class, else `rejected`. */
export const ruleOfSqlState = (sqlState: string): Rule => entryOf(sqlState)?.[1] ?? rejected

/** The condition name of the code, else of its class, as Appendix A spells it. */
export const conditionOf = (sqlState: string): string | undefined => entryOf(sqlState)?.[0]

/** Every SQLSTATE and class with a rule of its own. */
export const listed: ReadonlyArray<string> = /* @__PURE__ */ Object.keys(/* @__PURE__ */ table())
