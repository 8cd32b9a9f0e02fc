/** One suite over the driver's own client and over ours: what holds on the first must hold on the others. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Pg from "effect-pg-pool"
import { discreet } from "../suites/client/deviations.ts"
import { clientSuite } from "../suites/clientSuite.ts"

clientSuite("the driver's client", ({ max, ...config }) => PgClient.layer({ ...config, maxConnections: max }))

clientSuite(
  "the driver's client, multiplexed",
  ({ max, ...config }) => PgClient.layer({ ...config, maxConnections: max, multiplex: true })
)

clientSuite("the pool's client", (options) => Pg.layer({ ...options, errorText: "full" }))

clientSuite("the pool's client, multiplexed", (options) => Pg.layer({ ...options, multiplex: true }), discreet)
