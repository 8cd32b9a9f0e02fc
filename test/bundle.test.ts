import { assert, beforeAll, describe, it } from "@effect/vitest"
import { build } from "esbuild"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { gzipSync } from "node:zlib"

const root = fileURLToPath(new URL("..", import.meta.url))

interface Bundle {
  readonly code: string
  readonly gzipped: number
  /** The files of which something is left: `Pool.ts`, `internal/supply.ts`, `effect/dist/Effect.js`. */
  readonly files: ReadonlyArray<string>
  /** Node's modules that are loaded before the first line is run. */
  readonly builtins: ReadonlyArray<string>
}

/** What a bundler leaves of a program. The package's own name means `src`, by the paths of `tsconfig.json`. */
const bundle = async (program: string, target = "node22"): Promise<Bundle> => {
  const { metafile, outputFiles } = await build({
    stdin: { contents: program, resolveDir: root, loader: "ts" },
    bundle: true,
    minify: true,
    format: "esm",
    platform: "node",
    target,
    external: ["@prometheus-io/client", "prom-client", "@opentelemetry/*", "@effect/opentelemetry"],
    metafile: true,
    write: false,
    absWorkingDir: root
  })
  const [output] = Object.values(metafile.outputs)
  return {
    code: outputFiles[0]!.text,
    gzipped: gzipSync(outputFiles[0]!.contents, { level: 9 }).length,
    files: Object.entries(output!.inputs)
      .filter(([, { bytesInOutput }]) => bytesInOutput > 0)
      .map(([path]) => path.replace(/^.*node_modules\//, "").replace(/^src\//, "")),
    builtins: [...new Set(output!.imports.filter(({ kind }) => kind === "import-statement").map(({ path }) => path))]
      .toSorted()
  }
}

/** A handler of `bench/cold`, as it is measured there. */
const handler = (name: string): Promise<Bundle> =>
  bundle(readFileSync(new URL(`../bench/cold/handlers/${name}.ts`, import.meta.url), "utf8"))

/** What only an exporter needs: words of the table, and the files that know a registry. */
const wordsOfExporters = ["Most connections that the pool may have", "db.client.connection.create_time"]
const registries = ["internal/promRegistry.ts", "internal/metricRegistry.ts"]

/** What a handler of Lambda has no use for, by the names of files. */
const unused: Readonly<Record<string, RegExp>> = {
  "HTTP, RPC, sockets, workers and processes of Effect":
    /^effect\/dist\/(http|rpc|socket|workers|process|cli|cluster)\//,
  "the shared circuit": /^effect\/dist\/persistence\/|^internal\/sharedCircuit/,
  exporters: /^(Otlp|CloudWatch)\.ts|^internal\/(flights|deltas|spread|promRegistry|metricRegistry|instrumentTable)/,
  health: /^Health\.ts|^internal\/health/,
  tokens: /^Credentials\.ts/,
  "the environment's variables": /^internal\/environment\.ts|^effect\/dist\/Config(Provider)?\.js/,
  "the adapters of other platforms": /^internal\/(webHandler|responseStream|vercelPool|processSignals)/,
  "tools for tests": /^testing\//,
  "queues for many": /^effect\/dist\/PubSub\.js/,
  "packages but the driver and Effect": /^(?!effect\/|@effect\/sql-pg\/)(@[\w-]+\/)?[\w-]+\/(dist|lib|src|build)\//
}

describe("the bundle of a program", () => {
  it("has no exporter in it when the program only uses Pg.layer", async () => {
    const { code, files } = await handler("layer")
    assert.include(code, "acquireTimeout")
    for (const words of wordsOfExporters) assert.notInclude(code, words)
    for (const file of registries) assert.notInclude(files, file)
  })

  it("has the ones that the program uses", async () => {
    const { code, files } = await bundle(`import { render } from "effect-pg-pool/Metrics"; globalThis.page = render`)
    for (const words of wordsOfExporters) assert.include(code, words)
    for (const file of registries) assert.notInclude(files, file)
  })

  it("is as large from the barrel as from the room, for what the barrel has of its own", async () => {
    const program = (from: string) => `import * as Pg from "${from}"; globalThis.live = Pg.layer({ max: 2 })`
    const [barrel, room] = await Promise.all([
      bundle(program("effect-pg-pool")),
      bundle(program("effect-pg-pool/Layer"))
    ])
    assert.strictEqual(barrel.code.length, room.code.length)
  })

  it("is plain ASCII, as one letter beyond Latin-1 makes Node hold all of it in twice the memory", async () => {
    const { code } = await handler("lambda")
    assert.deepStrictEqual(code.match(/[^\0-\x7f]/g), null)
  })

  // For Node 22 esbuild writes `new RegExp` instead; others do not. Node builds the sets of Unicode when it reads such a literal, run or not: a quarter of a millisecond for each.
  it("has no literal of a regular expression with classes of Unicode", async () => {
    const { code } = await bundle(`export * from "effect-pg-pool"; export * from "effect-pg-pool/Otlp"`, "esnext")
    assert.deepStrictEqual(code.match(/\/[^/\n]{0,80}\\p\{\w+\}[^/\n]{0,80}\/\w*u/g), null)
  })
})

describe("the bundle of a handler", () => {
  let lambda: Bundle
  let plain: Bundle
  beforeAll(async () => {
    ;[lambda, plain] = await Promise.all([handler("lambda"), handler("plain")])
  })

  for (const [what, files] of Object.entries(unused)) {
    it(`does not have ${what}`, () => {
      assert.deepStrictEqual(lambda.files.filter((file) => files.test(file)), [])
    })
  }

  // By words that minifying leaves as they are.
  const brought = [
    ["the sizing of a fleet", "pg_stat_get_activity", "Pool", "sizeForFleet"],
    ["the error of a registry", "RegistryConflict", "Metrics", "renderAll"]
  ] as const
  for (const [what, words, room, name] of brought) {
    it(`does not have ${what}, which ${name} brings along`, async () => {
      const { code } = await bundle(`import { ${name} } from "effect-pg-pool/${room}"; globalThis.it = ${name}`)
      assert.include(code, words)
      assert.notInclude(lambda.code, words)
    })
  }

  it("loads no module of Node's that the driver does not load, but for node:os and node:stream", () => {
    assert.deepStrictEqual(lambda.builtins.filter((name) => !plain.builtins.includes(name)), ["node:os", "node:stream"])
  })

  /**
   * What `gzip -9` makes of what `Serverless.lambda` adds to the plain driver, in bytes. It is read, and then compiled, in
   * every cold start: who makes it more should know what for, and raise this. A tenth of it is the short ways: of a healthy
   * statement, of those who wait in line and share a session, and of transactions whose BEGIN rides with their first statement,
   * with all that belongs to it, and the timer that all whose time is bounded share.
   */
  const budget = 76_500
  it(`is at most ${budget} bytes larger than that of the plain driver`, () => {
    assert.isAtMost(lambda.gzipped - plain.gzipped, budget)
  })
})
