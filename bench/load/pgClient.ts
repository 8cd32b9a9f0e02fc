// The driver's own pool; its statements are prepared by default.
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Redacted from "effect/Redacted"
import { isMultiplexed, type Name, type Setting } from "./contender.ts"
import { contend } from "./sqlClient.ts"

export const open = ({ max, url }: Setting, name: Name) =>
  contend(PgClient.layer({ url: Redacted.make(url), maxConnections: max, multiplex: isMultiplexed(name) }))
