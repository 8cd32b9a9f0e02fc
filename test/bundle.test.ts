import { assert, describe, it } from "@effect/vitest"
import { createRequire } from "node:module"
import { pathToFileURL } from "node:url"

/** The part of Vite that is used: vitest brings it, so nobody has to install it for one test. */
interface Vite {
  readonly build: (config: object) => Promise<{ readonly output: ReadonlyArray<{ readonly code?: string }> }>
}

const entry = "virtual:entry"

/** What a bundler leaves of a program. */
const bundle = async (program: string): Promise<string> => {
  const fromVitest = createRequire(import.meta.resolve("vitest/package.json"))
  const { build } = (await import(pathToFileURL(fromVitest.resolve("vite")).href)) as Vite
  const { output } = await build({
    configFile: false,
    logLevel: "silent",
    build: {
      write: false,
      minify: false,
      ssr: true,
      target: "node22",
      rolldownOptions: { input: entry, external: /^(effect|@effect|node:)/ }
    },
    plugins: [{
      name: "entry",
      resolveId: (id: string) => id === entry ? `\0${entry}` : undefined,
      load: (id: string) => id === `\0${entry}` ? program : undefined
    }]
  })
  return output.map(({ code }) => code ?? "").join("\n")
}

const barrel = JSON.stringify(new URL("../src/index.ts", import.meta.url).pathname)

/** What only an exporter needs: the words of the table, and the wiring of each registry. */
const ofExporters = [
  "Most connections that the pool may have",
  "db.client.connection.wait_time",
  "registerMetric",
  "registerUnsafe"
]

describe("the bundle of a program", () => {
  it("has no exporter in it when the program only uses Pg.layer", async () => {
    const code = await bundle(`import * as Pg from ${barrel}; globalThis.live = Pg.layer({ max: 2 })`)
    assert.include(code, "acquireTimeout")
    for (const words of ofExporters) assert.notInclude(code, words)
  })

  it("has the ones that the program uses", async () => {
    const code = await bundle(`import * as Pg from ${barrel}; globalThis.page = Pg.Metrics.render`)
    assert.include(code, ofExporters[0]!)
    assert.notInclude(code, "registerMetric")
    assert.notInclude(code, "registerUnsafe")
  })
})
