/** The function of `fixtures/lambdaDatabase.ts` on a database of its own, as it would be deployed: one bundled file. */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { build } from "esbuild"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll } from "vitest"
import type * as Pg from "../../src/index.ts"
import { LocalLambda } from "../../src/testing/index.ts"
import { freshDatabase } from "./database.ts"
import { makeWitness } from "./witness.ts"

let bundle: Promise<string> | undefined
let folder: string | undefined

afterAll(() => {
  if (folder !== undefined) Fs.rmSync(folder, { recursive: true, force: true })
})

/** Once per test file. */
const bundled = (): Promise<string> => bundle ??= bundling()

const bundling = async (): Promise<string> => {
  folder = Fs.mkdtempSync(Path.join(Os.tmpdir(), "lambda-function-"))
  const outfile = Path.join(folder, "function.mjs")
  await build({
    entryPoints: [fileURLToPath(new URL("./fixtures/lambdaDatabase.ts", import.meta.url))],
    bundle: true,
    minify: true,
    platform: "node",
    target: "node22",
    format: "esm",
    logLevel: "error",
    outfile
  })
  return outfile
}

export interface Options extends Omit<LocalLambda.Options, "handler"> {
  readonly pool?: Omit<Pg.Options, "url">
  readonly environment?: Record<string, unknown>
  readonly export?: "handler" | "stream"
}

/** A database with an empty table `t`, and somebody who looks into it. */
export const makeServer = Effect.gen(function*() {
  const url = yield* freshDatabase
  const witness = yield* makeWitness(url)
  yield* witness.query("CREATE TABLE t (n int UNIQUE)")
  return { url, witness, rows: witness.value<number>("SELECT count(*)::int FROM t") }
})

export const deploy = Effect.fnUntraced(function*(
  url: Redacted.Redacted,
  { env, environment, export: name = "handler", pool, ...options }: Options = {}
) {
  const module = yield* Effect.promise(bundled)
  const lambda = yield* LocalLambda.make({
    timeout: "20 seconds",
    ...options,
    handler: `${module}#${name}`,
    env: {
      DATABASE_URL: Redacted.value(url),
      SETTINGS: JSON.stringify({ pool, environment }),
      // Every environment compiles the same files.
      NODE_COMPILE_CACHE: Path.join(Path.dirname(module), "compiled"),
      ...env
    }
  })
  return {
    ...lambda,
    /** Asks for one of the fixture's actions. */
    ask: (action: string, event: Record<string, unknown> = {}, options?: LocalLambda.InvokeOptions) =>
      lambda.invoke({ ...event, do: action }, options)
  }
})
