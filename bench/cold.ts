// From the start of a process to the first row, and the size of what has to be loaded for it: a minimal handler with this
// library, with the plain driver, with `pg` and with `postgres`, as one file and as the packages are installed.
//   npm run bench:cold              prints what it finds; --rounds 15
//   npm run bench:cold -- --write   writes docs/cold-start.md
//   npm run bench:cold -- --smoke   one round, and whether the sizes are still about those of the page
import { EmbeddedPostgres } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { execFile } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import { cpus } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs, promisify } from "node:util"
import { type Build, builds, contentsOf, makeProject, type Size, sizeOf } from "./cold/builds.ts"
import { pageOf, type Run, sizesOn, tablesOf } from "./cold/page.ts"
import { subjects } from "./cold/subjects.ts"

const { values } = parseArgs({
  options: {
    // Of bench/index.ts.
    only: { type: "string" },
    rounds: { type: "string", default: "15" },
    smoke: { type: "boolean", default: false },
    write: { type: "boolean", default: false }
  }
})
const rounds = values.smoke ? 1 : Number(values.rounds)
const page = new URL("../docs/cold-start.md", import.meta.url)
const probe = fileURLToPath(new URL("cold/probe.mjs", import.meta.url))

/** How far a size may be from the one on the page, which nobody writes anew for each commit. */
const tolerance = 0.05

const start = async (file: string, url: string, cache: string | undefined): Promise<Run> => {
  const { NODE_COMPILE_CACHE: _, NODE_OPTIONS: __, ...env } = process.env
  const { stdout } = await promisify(execFile)(process.execPath, [probe, file], {
    env: { ...env, DATABASE_URL: url, ...(cache !== undefined && { NODE_COMPILE_CACHE: cache }) }
  })
  return JSON.parse(stdout)
}

interface Entrant {
  readonly build: Build
  readonly subject: string
  readonly file: string
  readonly cache: string | undefined
  readonly runs: Array<Run>
}

const measure = async (url: string) => {
  const project = makeProject(subjects.map(({ name }) => name))
  try {
    const entrants: Array<Entrant> = []
    const sizes = new Map<string, Map<string, Size>>()
    for (const build of builds) {
      for (const { name } of subjects) {
        const file = await build.make(project.folder, name)
        const cache = build.isCached ? join(project.folder, `cache-${name}`) : undefined
        if (cache !== undefined) await start(file, url, cache)
        entrants.push({ build, subject: name, file, cache, runs: [] })
        if (build.name !== "esbuild" && build.name !== "rolldown") continue
        sizes.set(build.name, (sizes.get(build.name) ?? new Map()).set(name, sizeOf(file)))
      }
    }
    // In turns, so that whatever else the machine does meets them all. The first round fills the caches of the disk.
    for (let round = values.smoke ? 1 : 0; round <= rounds; round++) {
      for (const { cache, file, runs } of entrants) {
        const run = await start(file, url, cache)
        if (round > 0) runs.push(run)
      }
    }
    const runs = new Map<string, Map<string, ReadonlyArray<Run>>>()
    for (const { build, runs: found, subject } of entrants) {
      runs.set(build.name, (runs.get(build.name) ?? new Map()).set(subject, found))
    }
    const contents = new Map<string, ReadonlyMap<string, number>>()
    for (const { name } of subjects) contents.set(name, await contentsOf(project.folder, name))
    return { runs, sizes, contents, rounds }
  } finally {
    project.remove()
  }
}

const found = await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
  const server = yield* EmbeddedPostgres.make({ useDatabaseUrl: false })
  return yield* Effect.promise(() => measure(Redacted.value(server.url)))
})))

console.log(tablesOf(found))
if (values.write) {
  const machine = `${cpus().length} x ${cpus()[0]?.model ?? "an unknown processor"}, Node ${process.versions.node}`
  writeFileSync(page, pageOf(found, machine))
}
if (values.smoke) {
  const written = sizesOn(readFileSync(page, "utf8"))
  for (const [build, sizes] of found.sizes) {
    for (const [subject, { gzip }] of sizes) {
      const before = written.get(`${build} ${subject}`)
      if (before !== undefined && Math.abs(gzip - before) <= tolerance * before) continue
      console.error(`${build}, ${subject}: ${gzip} bytes, but docs/cold-start.md has ${before ?? "no such figure"}`)
      console.error("Write it anew, on a machine that has nothing else to do: npm run bench:cold -- --write")
      process.exitCode = 1
    }
  }
}
