/** The ways in which a handler comes to a Lambda. */
import * as Esbuild from "esbuild"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import { fileURLToPath } from "node:url"
import { brotliCompressSync, gzipSync } from "node:zlib"
import * as Rolldown from "rolldown"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** A project that has installed what the handlers import, as a user's has. */
export const makeProject = (names: ReadonlyArray<string>) => {
  const folder = mkdtempSync(join(tmpdir(), "effect-pg-pool-cold-"))
  const modules = join(folder, "node_modules")
  mkdirSync(modules)
  writeFileSync(join(folder, "package.json"), `{ "type": "module" }`)
  for (const name of ["effect", "@effect", "pg", "postgres"]) {
    symlinkSync(join(root, "node_modules", name), join(modules, name), "junction")
  }
  symlinkSync(root, join(modules, "effect-pg-pool"), "junction")
  for (const name of names) {
    const source = readFileSync(new URL(`handlers/${name}.ts`, import.meta.url), "utf8")
    const { code } = Esbuild.transformSync(source, { loader: "ts", target: "node22" })
    writeFileSync(join(folder, `${name}.mjs`), code)
  }
  return { folder, remove: () => rmSync(folder, { recursive: true, force: true }) }
}

/** Packages of CommonJS ask for Node's modules by `require`, which a module has to make itself. */
const banner =
  `import{createRequire as createRequireOfNode}from"node:module";const require=createRequireOfNode(import.meta.url);`

const ofCommonJs = ["pg.mjs"]

const esbuild = (input: string, file: string, format: "cjs" | "esm") =>
  Esbuild.build({
    entryPoints: [input],
    outfile: file,
    bundle: true,
    minify: true,
    metafile: true,
    format,
    platform: "node",
    target: "node22",
    external: ["pg-native"],
    logLevel: "error",
    ...(format === "esm" && ofCommonJs.includes(basename(input)) && { banner: { js: banner } })
  })

/** Minified bytes of each package in the one file of a handler. */
export const contentsOf = async (folder: string, handler: string): Promise<ReadonlyMap<string, number>> => {
  const { metafile } = await esbuild(join(folder, `${handler}.mjs`), join(folder, "contents.mjs"), "esm")
  const found = new Map<string, number>()
  for (const { inputs } of Object.values(metafile.outputs)) {
    for (const [path, { bytesInOutput }] of Object.entries(inputs)) {
      const name = /.*node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1] ?? "effect-pg-pool"
      found.set(name, (found.get(name) ?? 0) + bytesInOutput)
    }
  }
  return found
}

const rolldown = async (input: string, file: string): Promise<void> => {
  const bundle = await Rolldown.rolldown({ input, platform: "node", external: ["pg-native"], logLevel: "silent" })
  await bundle.write({ file, format: "esm", minify: true, codeSplitting: false })
  await bundle.close()
}

export interface Build {
  readonly name: string
  /** What the page says of it. */
  readonly says: string
  /** The file to be loaded. */
  readonly make: (folder: string, handler: string) => Promise<string>
  /** Node keeps what it has compiled, in a folder that is shipped with the file. */
  readonly isCached?: boolean
}

const built = (suffix: string, make: (input: string, file: string) => Promise<unknown>): Build["make"] =>
async (
  folder,
  handler
) => {
  const file = join(folder, `${handler}.${suffix}`)
  await make(join(folder, `${handler}.mjs`), file)
  return file
}

export const builds: ReadonlyArray<Build> = [
  {
    name: "esbuild",
    says: "one file, `--bundle --minify --format=esm --platform=node --target=node22`",
    make: built("esbuild.mjs", (input, file) => esbuild(input, file, "esm"))
  },
  {
    name: "esbuild, compile cache",
    says: "the same file, with Node's compile cache beside it (`NODE_COMPILE_CACHE`, written by one run before)",
    make: built("cached.mjs", (input, file) => esbuild(input, file, "esm")),
    isCached: true
  },
  {
    name: "esbuild, CommonJS",
    says: "`--format=cjs` instead",
    make: built("esbuild.cjs", (input, file) => esbuild(input, file, "cjs"))
  },
  {
    name: "rolldown",
    says: "one file, `platform: \"node\"`, `minify: true`, ESM",
    make: built("rolldown.mjs", rolldown)
  },
  {
    name: "unbundled",
    says: "the packages as they are installed, hundreds of files",
    make: async (folder, handler) => join(folder, `${handler}.mjs`)
  }
]

export interface Size {
  readonly min: number
  readonly gzip: number
  readonly brotli: number
}

export const sizeOf = (file: string): Size => {
  const code = readFileSync(file)
  return {
    min: statSync(file).size,
    gzip: gzipSync(code, { level: 9 }).length,
    brotli: brotliCompressSync(code).length
  }
}
