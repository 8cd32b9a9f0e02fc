/**
 * The warden: a small shell process that knows which processes of ours may be frozen, and so could not see that we are
 * gone. It reads their ids from a pipe that the kernel closes when we end, however we end, and then kills them.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import type { Writable } from "node:stream"

/** Each process is the leader of a process group, which goes with it. */
export interface Warden {
  readonly watch: (pid: number) => void
  /** It has ended: its id may soon be somebody else's. */
  readonly forget: (pid: number) => void
}

const script = `
trap '' HUP INT QUIT TERM TSTP PIPE
watched=
while read -r order pid; do
  rest=
  for other in $watched; do [ "$other" = "$pid" ] || rest="$rest $other"; done
  case $order in
    watch) watched="$rest $pid" ;;
    forget) watched=$rest ;;
  esac
done
for pid in $watched; do kill -s KILL -- "-$pid"; done
`

/** Hires a warden, who leaves when the scope closes. */
export const make: Effect.Effect<Warden, Error, Scope.Scope> = Effect.acquireRelease(
  Effect.callback<{ readonly stdin: Writable; readonly gone: Promise<void> }, Error>((resume) => {
    const child = spawn("/bin/sh", ["-c", script, "effect-pg-pool-warden"], {
      // A session of its own: neither Ctrl-C nor the end of the terminal reaches it.
      detached: true,
      cwd: "/",
      stdio: ["pipe", "ignore", "ignore"]
    })
    const { stdin } = child
    stdin.on("error", () => {})
    child.once("error", (error) => resume(Effect.fail(error)))
    const gone = new Promise<void>((resolve) => child.once("close", () => resolve()))
    child.once("spawn", () => resume(Effect.succeed({ stdin, gone })))
  }),
  ({ gone, stdin }) =>
    Effect.promise(() => {
      stdin.end()
      return gone
    })
).pipe(Effect.map(({ stdin }) => ({
  watch: (pid) => void stdin.write(`watch ${pid}\n`),
  forget: (pid) => void stdin.write(`forget ${pid}\n`)
})))
