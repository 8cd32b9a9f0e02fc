// Draws the pictures of docs/observability.md: runs the example server on an embedded PostgreSQL for some minutes, does
// to its database what scripts/dashboard/scene.ts says, and asks the Prometheus that has scraped it meanwhile.
// `-- --beat 2` is a short run, in seconds for a beat of the scene.
import * as Effect from "effect/Effect"
import { fileURLToPath } from "node:url"
import { record } from "./dashboard/pictures.ts"

const flag = process.argv.indexOf("--beat")
const beat = flag < 0 ? 12 : Number(process.argv[flag + 1])

await Effect.runPromise(Effect.scoped(record(fileURLToPath(new URL("../docs/dashboard", import.meta.url)), beat)))
