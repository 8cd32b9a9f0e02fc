// Keeps the documentation true: every ```ts fence of README.md, docs/ and the docstrings in src is type-checked, and
// those opened with ```ts run are executed as well (against dist, as a user would). A fence must stand on its own.
// Fences keep their line numbers, so a compiler message points at the right line of the original.
import { spawnSync } from "node:child_process"
import { globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const folder = join(root, ".docs-test")
const sources = globSync(["README.md", "docs/**/*.md", "src/**/*.ts"], { cwd: root }).sort()

/** The fences of one file: [{ line, run, code }]. `line` is that of the opening fence. */
const fencesOf = (source) => {
  const fences = []
  let open
  for (const [index, raw] of readFileSync(join(root, source), "utf8").split("\n").entries()) {
    const line = source.endsWith(".ts") ? raw.replace(/^\s*\* ?/, "") : raw
    if (source.endsWith(".ts") && !/^\s*\*/.test(raw)) open = undefined
    const fence = /^\s*```(\S*) ?(\S*)\s*$/.exec(line)
    if (fence === null) open?.code.push(line)
    else if (open !== undefined) open = void (open.kept && fences.push(open))
    else open = { line: index + 1, kept: fence[1] === "ts", run: fence[2] === "run", code: [] }
  }
  return fences
}

rmSync(folder, { recursive: true, force: true })
mkdirSync(folder)
const fences = sources.flatMap((source) =>
  fencesOf(source).map((fence) => {
    const file = `${source.replaceAll("/", "__")}__L${fence.line}.ts`
    writeFileSync(join(folder, file), "\n".repeat(fence.line) + fence.code.join("\n") + "\n")
    return { ...fence, source, file }
  })
)
writeFileSync(
  join(folder, "tsconfig.json"),
  JSON.stringify({
    extends: "../tsconfig.json",
    // Checked against dist, like a user's program; examples may leave a name unused.
    compilerOptions: { paths: {}, noUnusedLocals: false, noUnusedParameters: false },
    include: ["*.ts"]
  })
)

const node = (...args) => spawnSync(process.execPath, args, { cwd: root, encoding: "utf8", timeout: 60_000 })
const readable = (text) => text.replace(/\.docs-test\/(\S+?)__L\d+\.ts/g, (_, name) => name.replaceAll("__", "/"))

let failures = 0
if (fences.length > 0) {
  const check = node("node_modules/typescript/bin/tsc", "-p", ".docs-test/tsconfig.json", "--pretty", "false")
  if (check.status !== 0) {
    failures++
    console.error(readable(check.stdout + check.stderr))
  }
}
for (const fence of fences.filter((fence) => fence.run)) {
  const result = node(join(folder, fence.file))
  if (result.status === 0) continue
  failures++
  console.error(`${fence.source}:${fence.line} ${result.error?.message ?? `exit ${result.status ?? result.signal}`}`)
  console.error(readable(result.stdout + result.stderr))
}
rmSync(folder, { recursive: true, force: true })
console.log(
  `${fences.length} fences type-checked, ${fences.filter((fence) => fence.run).length} of them run, ` +
    (failures === 0 ? "all fine" : "with failures")
)
process.exitCode = failures === 0 ? 0 : 1
