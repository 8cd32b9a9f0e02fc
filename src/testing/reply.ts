import type * as PgProtocol from "@effect/sql-pg/PgProtocol"

/**
 * A value in a row. What is none of PostgreSQL's simple types goes as `jsonb`.
 *
 * @category models
 * @since 0.1.0
 */
export type Value = null | boolean | number | bigint | string | Date | Uint8Array | object

/**
 * What the server says. See the constructors.
 *
 * @category models
 * @since 0.1.0
 */
export type Reply =
  | {
    readonly _tag: "Rows"
    readonly rows: ReadonlyArray<Readonly<Record<string, Value>>>
    readonly types: Readonly<Record<string, number>>
    readonly command: string | undefined
  }
  | { readonly _tag: "Command"; readonly command: string }
  | { readonly _tag: "Error"; readonly fields: PgProtocol.ErrorFields }
  | { readonly _tag: "Notice"; readonly fields: PgProtocol.ErrorFields }
  | { readonly _tag: "ParameterStatus"; readonly name: string; readonly value: string }
  | { readonly _tag: "Notification"; readonly channel: string; readonly payload: string }
  | { readonly _tag: "Authentication"; readonly code: number; readonly data: Uint8Array }
  | { readonly _tag: "Raw"; readonly bytes: Uint8Array }
  | { readonly _tag: "Silence" }
  | { readonly _tag: "Close" }
  | { readonly _tag: "Reset" }

/**
 * Rows, and that the command is complete. Columns and their types follow from the values (`number` is `int4`, or
 * `float8` when one of them is no such integer; `bigint` is `int8`); `types` names the OIDs of columns where that is not
 * meant, and of those that are always null or have no rows. `command` is the command tag. Default: `SELECT` and the
 * number of rows. `null`: none, because another reply comes after the rows.
 *
 * @category constructors
 * @since 0.1.0
 */
export const rows = (
  rows: ReadonlyArray<Readonly<Record<string, Value>>>,
  options: {
    readonly types?: Readonly<Record<string, number>> | undefined
    readonly command?: string | null | undefined
  } = {}
): Reply => ({
  _tag: "Rows",
  rows,
  types: options.types ?? {},
  command: options.command === null ? undefined : options.command ?? `SELECT ${rows.length}`
})

/**
 * A command without rows is complete. Example: `command("INSERT 0 1")`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const command = (tag: string): Reply => ({ _tag: "Command", command: tag })

/**
 * An error with this SQLSTATE. Its severity is `ERROR`, and `FATAL` before the session is ready. A session ends with a
 * `FATAL` or a `PANIC`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const error = (sqlState: string, message: string, fields: PgProtocol.ErrorFields = {}): Reply => ({
  _tag: "Error",
  fields: { code: sqlState, message, ...fields }
})

/**
 * The error that ends a session. Example: `fatal("57P01", "terminating connection due to administrator command")`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fatal = (sqlState: string, message: string): Reply => error(sqlState, message, { severity: "FATAL" })

/**
 * A notice, severity `NOTICE` unless `fields` say otherwise.
 *
 * @category constructors
 * @since 0.1.0
 */
export const notice = (message: string, fields: PgProtocol.ErrorFields = {}): Reply => ({
  _tag: "Notice",
  fields: { severity: "NOTICE", code: "00000", message, ...fields }
})

/**
 * Tells that a parameter of the server has changed.
 *
 * @category constructors
 * @since 0.1.0
 */
export const parameterStatus = (name: string, value: string): Reply => ({ _tag: "ParameterStatus", name, value })

/**
 * A `NOTIFY`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const notification = (channel: string, payload = ""): Reply => ({ _tag: "Notification", channel, payload })

/**
 * Asks the client to prove who it is in the way of this code (7: GSSAPI, 9: SSPI, 10: SASL, ...), and says nothing more.
 * https://www.postgresql.org/docs/18/protocol-message-formats.html
 *
 * @category constructors
 * @since 0.1.0
 */
export const authentication = (code: number, data: Uint8Array = new Uint8Array(0)): Reply => ({
  _tag: "Authentication",
  code,
  data
})

/**
 * These bytes, whatever they mean. The server goes on as if it had answered; end with `silence` if it must not.
 *
 * @category constructors
 * @since 0.1.0
 */
export const raw = (bytes: Uint8Array): Reply => ({ _tag: "Raw", bytes })

/**
 * From now on, the session says nothing, whatever it is sent.
 *
 * @category constructors
 * @since 0.1.0
 */
export const silence: Reply = { _tag: "Silence" }

/**
 * The connection is closed in good order, after what was said before.
 *
 * @category constructors
 * @since 0.1.0
 */
export const close: Reply = { _tag: "Close" }

/**
 * The connection is reset.
 *
 * @category constructors
 * @since 0.1.0
 */
export const reset: Reply = { _tag: "Reset" }
