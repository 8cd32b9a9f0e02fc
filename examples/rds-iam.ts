// A password that is signed and not kept: IAM authentication of RDS and Aurora. Signing asks nobody, so the tokens are real
// ones. This server has no IAM to ask whether they are good, and is told each beforehand.
import "./support/database.ts"
import { Signer } from "@aws-sdk/rds-signer"
import { PgConnection } from "@effect/sql-pg"
import { Effect, Redacted } from "effect"
import * as Pg from "effect-pg-pool"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import assert from "node:assert/strict"
import { randomUUID } from "node:crypto"

const server = new URL(process.env.DATABASE_URL!)
const [hostname, port] = [server.hostname, Number(server.port || 5432)]
const username = `iam_${randomUUID().slice(0, 8)}`

const signer = new Signer({
  hostname,
  port,
  username,
  region: "eu-central-1",
  // Left out in a Lambda: there they are those of its role.
  credentials: { accessKeyId: "AKIAIOSFODNN7EXAMPLE", secretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" }
})

let signed = 0
const token = Effect.tryPromise(() => signer.getAuthToken()).pipe(
  Effect.tap((token) => {
    signed++
    return whatIamDoes(token)
  }),
  Effect.map(Redacted.make)
)

export const DatabaseLive = Pg.layer({
  host: hostname,
  port,
  username,
  database: server.pathname.slice(1),
  // ssl: { ca: readFileSync("eu-central-1-bundle.pem") }: RDS takes tokens over TLS only, with certificates of its own authority.
  // A token lasts for 15 minutes, and its session for as long as it likes. It is renewed 3 minutes before that.
  password: Pg.Credentials.cached(token, { timeToLive: "15 minutes" }),
  max: 5,
  maxUses: 1 // so that each statement connects
})

const direct = (sql: string) =>
  Effect.scoped(
    Effect.flatMap(
      PgConnection.make({ url: Redacted.make(server.href) }),
      (connection) => connection.query(sql, [], false)
    )
  )
const whatIamDoes = (token: string) => direct(`ALTER ROLE ${username} PASSWORD '${token}'`)

const program = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const whoAmI = sql<{ user: string }>`SELECT current_user AS user, pg_sleep(0.01)`
  const twentyConnects = Effect.forEach(Array(20).fill(0), () => whoAmI, { concurrency: "unbounded" })

  const rows = yield* twentyConnects
  assert.deepEqual([...new Set(rows.map(([row]) => row?.user))], [username])
  assert.equal(signed, 1)
  console.log(`20 connects at once as ${username}: ${signed} token`)

  yield* TestClock.adjust("11 minutes")
  yield* twentyConnects
  assert.equal(signed, 1)
  yield* TestClock.adjust("1 minute")
  yield* twentyConnects
  assert.equal(signed, 2)
  console.log(`20 after 11 minutes, and 20 after 12: ${signed} tokens`)
})

await program.pipe(
  Effect.provide(DatabaseLive),
  Effect.provide(TestClock.layer()), // a clock of its own, so that nobody has to wait for 12 minutes
  (work) =>
    Effect.acquireUseRelease(
      direct(`CREATE ROLE ${username} LOGIN`),
      () => work,
      () => Effect.orDie(direct(`DROP ROLE ${username}`))
    ),
  Effect.runPromise
)
