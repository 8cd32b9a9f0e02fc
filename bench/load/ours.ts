// The README's configuration: breaker, retry and metrics are on by default.
import * as Pg from "effect-pg-pool"
import * as Redacted from "effect/Redacted"
import { isMultiplexed, type Name, type Setting } from "./contender.ts"
import { contend } from "./sqlClient.ts"

export const open = ({ max, url }: Setting, name: Name) =>
  contend(Pg.layer({ url: Redacted.make(url), max, multiplex: isMultiplexed(name) }))
