// Sets DATABASE_URL to a PostgreSQL of the example's own, unless it is set. That server ends with the process.
import { Effect, Redacted, Scope } from "effect"
import { EmbeddedPostgres } from "effect-pg-pool/testing"

if (!process.env.DATABASE_URL) {
  const server = EmbeddedPostgres.make({ useDatabaseUrl: false })
  const { url } = await Effect.runPromise(Scope.provide(server, Scope.makeUnsafe()))
  process.env.DATABASE_URL = Redacted.value(url)
}
