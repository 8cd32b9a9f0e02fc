import type * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Result from "effect/Result"
import type { Value } from "./reply.ts"

/** https://www.postgresql.org/docs/18/protocol-message-formats.html */
export const message = (type: string, ...parts: ReadonlyArray<Uint8Array>): Buffer => {
  const header = Buffer.alloc(5)
  header.write(type, "latin1")
  header.writeInt32BE(4 + parts.reduce((sum, part) => sum + part.length, 0), 1)
  return Buffer.concat([header, ...parts])
}

export const int16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2)
  bytes.writeInt16BE(value)
  return bytes
}

export const int32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  return bytes
}

const cString = (text: string): Buffer => Buffer.from(`${text}\0`)

export const parseComplete = message("1")
export const bindComplete = message("2")
export const closeComplete = message("3")
export const noData = message("n")
export const emptyQuery = message("I")

export const authentication = (code: number, data: Uint8Array = new Uint8Array(0)): Buffer =>
  message("R", int32(code), data)

export const parameterStatus = (name: string, value: string): Buffer => message("S", cString(name), cString(value))

export const backendKeyData = (processId: number, secret: number): Buffer =>
  message("K", int32(processId), int32(secret))

export const ready = (status: PgProtocol.TransactionStatus): Buffer => message("Z", Buffer.from(status))

export const commandComplete = (tag: string): Buffer => message("C", cString(tag))

export const notification = (processId: number, channel: string, payload: string): Buffer =>
  message("A", int32(processId), cString(channel), cString(payload))

export const parameterDescription = (types: ReadonlyArray<number>): Buffer =>
  message("t", int16(types.length), ...types.map(int32))

const fieldCodes = {
  severity: "S",
  severityUnlocalized: "V",
  code: "C",
  message: "M",
  detail: "D",
  hint: "H",
  position: "P",
  internalPosition: "p",
  internalQuery: "q",
  where: "W",
  schema: "s",
  table: "t",
  column: "c",
  dataType: "d",
  constraint: "n",
  file: "F",
  line: "L",
  routine: "R"
} as const

const report = (type: "E" | "N") => (fields: PgProtocol.ErrorFields): Buffer =>
  message(
    type,
    ...Object.entries({ severity: fields.severity, severityUnlocalized: fields.severity, ...fields }).flatMap((
      [name, value]
    ) => value === undefined ? [] : [cString(`${fieldCodes[name as keyof typeof fieldCodes] ?? name}${value}`)]),
    Buffer.alloc(1)
  )

export const error = report("E")
export const notice = report("N")

/** The name of a column and the OID of its type. */
export interface Column {
  readonly name: string
  readonly type: number
}

const isInt4 = (value: Value): boolean =>
  typeof value !== "number" || (Number.isInteger(value) && value === (value | 0))

const typeOf = (values: ReadonlyArray<Value>): number => {
  const value = values.find((value) => value !== null)
  const { OID } = PgTypes
  if (typeof value === "boolean") return OID.bool
  if (typeof value === "number") return values.every(isInt4) ? OID.int4 : OID.float8
  if (typeof value === "bigint") return OID.int8
  if (value instanceof Date) return OID.timestamptz
  if (value instanceof Uint8Array) return OID.bytea
  return value === undefined || typeof value === "string" ? OID.text : OID.jsonb
}

export const columnsOf = (
  rows: ReadonlyArray<Readonly<Record<string, Value>>>,
  types: Readonly<Record<string, number>>
): ReadonlyArray<Column> => {
  const names = [...new Set([...rows.flatMap((row) => Object.keys(row)), ...Object.keys(types)])]
  return names.map((name) => ({ name, type: types[name] ?? typeOf(rows.map((row) => row[name] ?? null)) }))
}

/** One code for every column, or one for each: 0 is text, 1 is binary, and none at all means text. */
export type Formats = ReadonlyArray<number>

const formatOf = (formats: Formats, index: number): number => (formats.length > 1 ? formats[index] : formats[0]) ?? 0

export const rowDescription = (columns: ReadonlyArray<Column>, formats: Formats): Buffer =>
  message(
    "T",
    int16(columns.length),
    ...columns.flatMap(({ name, type }, index) => [
      cString(name),
      int32(0),
      int16(0),
      int32(type),
      int16(-1),
      int32(-1),
      int16(formatOf(formats, index))
    ])
  )

const asText = (value: NonNullable<Value>): string => {
  if (typeof value === "boolean") return value ? "t" : "f"
  if (value instanceof Date) return value.toISOString().replace("T", " ").replace("Z", "+00")
  if (value instanceof Uint8Array) return `\\x${Buffer.from(value).toString("hex")}`
  return typeof value === "object" ? JSON.stringify(value) : String(value)
}

const encodeValue = (value: Value, { name, type }: Column, format: number): ReadonlyArray<Uint8Array> => {
  if (value === null) return [int32(-1)]
  if (format === 0) {
    const text = Buffer.from(asText(value))
    return [int32(text.length), text]
  }
  const bytes = Result.getOrThrowWith(
    PgTypes.encode(value, type),
    (error) => new TypeError(`the value of column "${name}" does not go with the type of OID ${type}: ${error.message}`)
  )
  return [int32(bytes.length), bytes]
}

export const dataRow = (
  row: Readonly<Record<string, Value>>,
  columns: ReadonlyArray<Column>,
  formats: Formats
): Buffer =>
  message(
    "D",
    int16(columns.length),
    ...columns.flatMap((column, index) => encodeValue(row[column.name] ?? null, column, formatOf(formats, index)))
  )
