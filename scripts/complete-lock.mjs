// Completes package-lock.json after dprint, oxlint or knip were updated: npm records only those platform builds that
// the registry in use has, and `npm ci` then refuses the lock elsewhere. The versions come from the parents' own lists.
//   node scripts/complete-lock.mjs && npm ci
import { readFileSync, writeFileSync } from "node:fs"

const parents = ["node_modules/dprint", "node_modules/oxlint", "node_modules/oxc-parser"]
const platform =
  /\/(?:binding-)?(android|darwin|freebsd|linux|openharmony|win32)-(arm64|arm|x64|ia32|ppc64|riscv64|s390x|loong64)(?:-(.+))?$/

const lock = JSON.parse(readFileSync("package-lock.json", "utf8"))
const packages = lock.packages
const added = []

for (const parent of parents) {
  for (const [name, version] of Object.entries(packages[parent].optionalDependencies ?? {})) {
    const key = `node_modules/${name}`
    if (packages[key] !== undefined) {
      if (packages[key].version !== version) throw new Error(`${key} is not ${version}`)
      continue
    }
    const match = platform.exec(name)
    if (match === null) throw new Error(`${name} names no platform`)
    const [, os, cpu, rest = ""] = match
    const scope = key.slice(0, key.lastIndexOf("/") + 1)
    const sibling = Object.entries(packages).find(([path, entry]) => path.startsWith(scope) && entry.os !== undefined)
    packages[key] = {
      version,
      cpu: [cpu],
      dev: true,
      ...(os === "linux" && { libc: [rest.includes("musl") ? "musl" : "glibc"] }),
      license: "MIT",
      optional: true,
      os: [os],
      ...(sibling?.[1].engines !== undefined && { engines: sibling[1].engines })
    }
    added.push(name)
  }
}

lock.packages = Object.fromEntries(Object.entries(packages).sort(([a], [b]) => a.localeCompare(b, "en")))
writeFileSync("package-lock.json", `${JSON.stringify(lock, null, 2)}\n`)
console.log(`${added.length} packages added`)
