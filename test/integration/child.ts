import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { type ChildProcess, spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { eventually, soon } from "./witness.ts"

/** A program of `fixtures/` in a process of its own, which ends with the scope at the latest. */
export const launch = Effect.fnUntraced(function*(
  name: string,
  url: Redacted.Redacted,
  args: ReadonlyArray<string | number>
) {
  const fixture = fileURLToPath(new URL(`./fixtures/${name}.ts`, import.meta.url))
  const lines: Array<string> = []
  let output = ""
  let end: { readonly code: number | null; readonly signal: string | null } | undefined
  const child = yield* Effect.acquireRelease(
    Effect.sync((): ChildProcess => {
      const child = spawn(process.execPath, [fixture, ...args.map(String)], {
        env: { ...process.env, NODE_OPTIONS: "", DATABASE_URL: Redacted.value(url) },
        stdio: ["ignore", "pipe", "pipe"]
      })
      for (const stream of [child.stdout, child.stderr]) {
        stream.setEncoding("utf8").on("data", (text: string) => {
          output += text
          lines.splice(0, lines.length, ...output.split("\n").slice(0, -1))
        })
      }
      return child.once("close", (code, signal) => {
        end = { code, signal }
      })
    }),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )
  return {
    child,
    /** What it has printed, line by line. */
    lines,
    /** A loaded machine takes its time to start a process. */
    says: (line: string) =>
      eventually(`"${line}"`, Effect.sync(() => lines.includes(line)), 30).pipe(
        Effect.tapDefect(() => Effect.logError(`It has said: ${output}`))
      ),
    ended: soon("the end of the process", eventually("its end", Effect.sync(() => end !== undefined))).pipe(
      Effect.map(() => end!)
    )
  }
})
