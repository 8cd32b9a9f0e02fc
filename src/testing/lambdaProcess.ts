/** A process of a local Lambda, as its platform sees it. */
import { type ChildProcess, spawn } from "node:child_process"
import type { Warden } from "./warden.ts"

/** How a process has ended. */
export interface End {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface LambdaProcess {
  readonly pid: number
  readonly end: () => End | undefined
  /** Settles when it has ended and everything it wrote has been read. */
  readonly gone: Promise<void>
  readonly freeze: () => void
  readonly thaw: () => void
  readonly terminate: () => void
  readonly kill: () => void
}

export interface Options {
  readonly command: readonly [string, ...ReadonlyArray<string>]
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string
  readonly warden: Warden
  readonly onLine: (stream: "stdout" | "stderr", line: string) => void
  readonly onEnd: () => void
}

/** In the words of the platform. */
export const describe = ({ code, signal }: End): string => {
  if (signal !== null) return `Runtime exited with error: signal: ${signal.replace("SIG", "").toLowerCase()}`
  return code === 0 ? "Runtime exited without providing a reason" : `Runtime exited with error: exit status ${code}`
}

const lines = (child: ChildProcess, name: "stdout" | "stderr", onLine: Options["onLine"]): void => {
  let rest = ""
  child[name]?.setEncoding("utf8").on("data", (text: string) => {
    const all = (rest + text).split("\n")
    rest = all.pop() ?? ""
    for (const line of all) onLine(name, line)
  }).once("end", () => {
    if (rest !== "") onLine(name, rest)
  })
}

export const start = ({ command: [file, ...args], cwd, env, onEnd, onLine, warden }: Options): LambdaProcess => {
  // The leader of a group of its own, so that a freeze also stops what the handler starts.
  const child = spawn(file, args, { env, cwd, detached: true, stdio: ["ignore", "pipe", "pipe"] })
  const { pid = 0 } = child
  let end: End | undefined
  if (pid > 0) warden.watch(pid)
  lines(child, "stdout", onLine)
  lines(child, "stderr", onLine)
  const ended = (how: End): void => {
    if (end !== undefined) return
    end = how
    if (pid > 0) {
      // What it has started ends with it; the group may be empty.
      signal(-pid, "SIGKILL")
      warden.forget(pid)
    }
    onEnd()
  }
  const signal = (target: number, name: NodeJS.Signals): void => {
    try {
      process.kill(target, name)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error
    }
  }
  const send = (target: number, name: NodeJS.Signals) => (): void => {
    if (end === undefined && pid > 0) signal(target, name)
  }
  child.once("exit", (code, name) => ended({ code, signal: name }))
  const gone = new Promise<void>((resolve) => {
    child.once("close", () => resolve())
    child.once("error", (error) => {
      onLine("stderr", error.message)
      ended({ code: 127, signal: null })
      resolve()
    })
  })
  return {
    pid,
    end: () => end,
    gone,
    freeze: send(-pid, "SIGSTOP"),
    thaw: send(-pid, "SIGCONT"),
    terminate: send(pid, "SIGTERM"),
    kill: send(-pid, "SIGKILL")
  }
}
