// Makes `npm test`, `npm run demo` and the others work in a bare clone: installs what package-lock.json asks for and
// node_modules lacks. Runs before them under whatever Node the machine has (18 or newer), hence plain JavaScript
// without dependencies. Silent when there is nothing to do.
import { spawnSync } from "node:child_process"
import { copyFileSync, mkdtempSync, readFileSync, realpathSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const windows = process.platform === "win32"
const pinnedNode = join(root, "node_modules", ".bin", windows ? "node.cmd" : "node")

const readLock = (...path) => {
  try {
    return JSON.parse(readFileSync(join(root, ...path), "utf8")).packages
  } catch {
    return undefined
  }
}

const wanted = readLock("package-lock.json")
if (wanted === undefined) fail("package-lock.json is missing or unreadable")
const pinnedVersion = wanted["node_modules/node"].version

const reason = missing()
if (reason !== undefined) {
  console.error(`Installing dependencies: ${reason}`)
  const npm = basename(process.env.npm_execpath ?? "") === "npm-cli.js" ? process.env.npm_execpath : undefined
  // The Node that runs npm, not the pinned one: that one is about to be replaced.
  install(process.env.npm_node_execpath ?? process.execPath, npm)
  if (nodeProblem() === undefined && missing() !== undefined && npm !== undefined && !windows) {
    // npm drops optional packages (native bindings among them) that do not name the Node it runs under. An old Node
    // therefore needs a second pass under the pinned one, from a copy because npm ci deletes node_modules.
    const folder = mkdtempSync(join(tmpdir(), "effect-pg-pool-"))
    try {
      const copy = join(folder, "node")
      copyFileSync(realpathSync(pinnedNode), copy)
      console.error(`Installing again under Node ${pinnedVersion}: ${missing()}`)
      install(copy, npm)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }
  const left = nodeProblem() ?? missing()
  if (left !== undefined) {
    fail(`${left} after npm ci. Are install scripts blocked (npm config get ignore-scripts, npm install-scripts ls)?`)
  }
}

/** Why an install is needed, or undefined. */
function missing() {
  const installed = readLock("node_modules", ".package-lock.json")
  if (installed === undefined) return "nothing is installed yet"
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === "") continue
    const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length)
    const found = installed[path]
    if (found === undefined) {
      if (!entry.optional || isForThisMachine(entry)) return `${name} is not installed`
    } else if (found.version !== entry.version) {
      return `${name} is ${found.version}, package-lock.json says ${entry.version}`
    }
  }
  return nodeProblem()
}

/** Optional packages for other machines are rightly absent; one that names no machine follows its parent. */
function isForThisMachine({ cpu, libc, os }) {
  if (os === undefined && cpu === undefined) return false
  const glibc = process.platform === "linux" && process.report?.getReport().header.glibcVersionRuntime !== undefined
  return fits(os, process.platform) && fits(cpu, process.arch) && fits(libc, glibc ? "glibc" : "musl")
}

function fits(list, value) {
  if (list === undefined) return true
  const all = [].concat(list)
  if (all.includes(`!${value}`)) return false
  return all.includes(value) || all.every((item) => item.startsWith("!"))
}

function nodeProblem() {
  const result = spawnSync(windows ? `"${pinnedNode}"` : pinnedNode, ["--version"], {
    encoding: "utf8",
    shell: windows
  })
  const version = result.stdout?.trim()
  if (result.status === 0 && version === `v${pinnedVersion}`) return undefined
  const found = result.status === 0 ? `is ${version}` : "is absent or does not run"
  return `the pinned Node ${pinnedVersion} (node_modules/.bin/node) ${found}`
}

function install(node, npm) {
  const args = [
    "ci",
    "--include=dev",
    "--include=optional",
    "--include=peer",
    "--loglevel=error",
    "--no-audit",
    "--no-fund"
  ]
  const result = npm === undefined
    ? spawnSync("npm", args, { cwd: root, stdio: ["ignore", 2, 2], shell: windows })
    : spawnSync(node, [npm, ...args], { cwd: root, stdio: ["ignore", 2, 2] })
  if (result.status !== 0) {
    fail(`npm ci failed (${result.error?.message ?? result.signal ?? `exit code ${result.status}`}), see above`)
  }
}

function fail(message) {
  console.error(`effect-pg-pool: ${message}`)
  process.exit(1)
}
