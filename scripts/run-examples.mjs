// Runs every example, one after another, and fails if any exits non-zero or takes longer than a minute.
// An example that is not meant to end by itself has `@long-running` in its first lines and is left out, as is the demo.
// Each example brings its own PostgreSQL, or uses DATABASE_URL. Arguments, if any, name the examples to run.
import { spawn } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"
import { basename, join } from "node:path"
import { fileURLToPath } from "node:url"

const limit = 60_000
const root = fileURLToPath(new URL("..", import.meta.url))
const folder = join(root, "examples")
const only = process.argv.slice(2).map((name) => basename(name, ".ts"))

const names = readdirSync(folder)
  .filter((file) => file.endsWith(".ts") && file !== "demo.ts")
  .filter((file) => only.length === 0 || only.includes(basename(file, ".ts")))
  .filter((file) => !/@long-running/.test(readFileSync(join(folder, file), "utf8").split("\n", 15).join("\n")))

/** Exit code or reason, and everything the example printed. */
const run = (file) =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, [join(folder, file)], { cwd: root, stdio: ["ignore", "pipe", "pipe"] })
    let output = ""
    let late = false
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (output += chunk))
    // SIGTERM first, so that an embedded server is stopped too.
    const timers = [["SIGTERM", limit], ["SIGKILL", limit + 10_000]].map(([signal, after]) =>
      setTimeout(() => {
        late = true
        child.kill(signal)
      }, after)
    )
    child.on("error", (error) => (output += error.stack))
    child.on("close", (code, signal) => {
      timers.forEach(clearTimeout)
      resolve({
        problem: late ? `still running after ${limit / 1000} s` : code === 0 ? "" : `exit ${code ?? signal}`,
        output
      })
    })
  })

const failed = []
for (const file of names) {
  const start = performance.now()
  const { output, problem } = await run(file)
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  console.log(`${problem === "" ? "ok    " : "FAILED"} examples/${file} ${seconds} s ${problem}`.trimEnd())
  if (problem !== "") {
    failed.push(file)
    console.log(output.replace(/^/gm, "    | "))
  }
}
console.log(`${names.length - failed.length} examples ran, ${failed.length} failed`)
if (names.length === 0) console.error("No example to run")
process.exitCode = failed.length > 0 || names.length === 0 ? 1 : 0
