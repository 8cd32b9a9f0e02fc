/**
 * The keeper: a small shell process in a session of its own that owns the end of an embedded server. It holds the
 * reading end of a pipe whose writing end only this process has, so the kernel tells it when we are gone, however we
 * went (`SIGKILL` included): it then ends the server and removes the folder. Closing the scope takes the same path,
 * which is why that path is known to work.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcessByStdio, spawn } from "node:child_process"
import type { Readable, Writable } from "node:stream"

/** A signal for every process of the server; the keeper answers when it has been delivered (`KILL`: when all are gone). */
export type Order = "STOP" | "CONT" | "KILL"

/** Every path of the server lies in `directory`, and its data in `directory/data`. */
export interface Keeper {
  /** Fails when the keeper itself is gone. */
  readonly order: (order: Order) => Effect.Effect<void, Error>
}

/*
 * Each backend makes itself the leader of its own session, so no process group covers the server. What all of them
 * share is the working directory: the data folder (the folder itself for initdb). Where there is no /proc, the name of
 * the folder is looked for in the command line: it is the server's `cluster_name`, which PostgreSQL puts in every title.
 *
 * STOP goes out twice: the first round may miss a process that the postmaster was just forking, the second cannot,
 * because the postmaster is stopped by then. SIGQUIT first, at the end, because a postmaster that ends by itself also
 * gives back its System V shared memory; if it had no chance to, ipcrm does so by the id in postmaster.pid (line 7).
 */
const script = `
trap '' HUP INT QUIT TERM TSTP PIPE
directory=$KEEPER_DIRECTORY
ours() {
  if [ -e /proc/self/cwd ]; then
    for process in /proc/[0-9]*; do
      if [ "$process/cwd" -ef "$directory/data" ] || [ "$process/cwd" -ef "$directory" ]; then
        echo "\${process#/proc/}"
      fi
    done
  else
    pgrep -f "\${directory##*/}"
  fi
}
signal() { for pid in $(ours); do kill -s "$1" "$pid"; done; }
gone() {
  turns=0
  while [ -n "$(ours)" ]; do
    turns=$((turns + 1))
    [ $turns -gt "$1" ] && return 1
    sleep 0.02 || sleep 1
  done
}
crash() { signal STOP; signal STOP; signal KILL; gone 250; }
while read -r order; do
  case $order in
    STOP) signal STOP; signal STOP ;;
    CONT) signal CONT ;;
    KILL) crash ;;
  esac
  echo "$order"
done
signal CONT
signal QUIT
gone 100 || crash
if [ -s "$directory/data/postmaster.pid" ]; then
  set -- $(sed -n 7p "$directory/data/postmaster.pid")
  [ -n "$2" ] && ipcrm -m "$2"
fi
turns=0
until rm -rf "$directory" || [ $turns -gt 50 ]; do
  turns=$((turns + 1))
  sleep 0.1 || sleep 1
done
[ ! -e "$directory" ]
`

type Process = ChildProcessByStdio<Writable, Readable, null>

const hire = (directory: string): Process => {
  const child = spawn("/bin/sh", ["-c", script, "effect-pg-pool-keeper"], {
    // A session of its own: neither Ctrl-C nor the end of the terminal reaches it.
    detached: true,
    cwd: "/",
    env: { PATH: process.env.PATH ?? "/usr/bin:/bin", KEEPER_DIRECTORY: directory },
    stdio: ["pipe", "pipe", "ignore"]
  })
  child.stdin.on("error", () => {})
  rest(child)
  return child
}

/** A keeper without an order must not keep the program alive: a program that ends without closing its scope may end. */
const rest = (child: Process): void => {
  child.unref()
  for (const stream of [child.stdin, child.stdout]) (stream as Writable & { unref?: () => void }).unref?.()
}

const attend = (child: Process): void => {
  child.ref()
  ;(child.stdout as Readable & { ref?: () => void }).ref?.()
}

const dismiss = (child: Process): Effect.Effect<number | null> =>
  Effect.callback((resume) => {
    if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.succeed(child.exitCode))
    attend(child)
    child.once("exit", (code) => resume(Effect.succeed(code)))
    child.once("error", () => resume(Effect.succeed(null)))
    child.stdin.end()
  })

const tell = (child: Process, order: Order): Effect.Effect<void, Error> =>
  Effect.callback((resume) => {
    const gone = Effect.fail(new Error("its keeper was ended by somebody else"))
    if (child.exitCode !== null || child.signalCode !== null) return resume(gone)
    const settle = (outcome: Effect.Effect<void, Error>): void => {
      child.stdout.off("data", onAnswer)
      child.off("exit", onExit)
      rest(child)
      resume(outcome)
    }
    const onAnswer = (): void => settle(Effect.void)
    const onExit = (): void => settle(gone)
    attend(child)
    child.stdout.once("data", onAnswer)
    child.once("exit", onExit)
    child.stdin.write(`${order}\n`)
  })

/** Hires a keeper for a folder that need not exist yet. When the scope closes, server and folder are gone. */
export const make = (directory: string): Effect.Effect<Keeper, Error, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Process, Error>((resume) => {
      const child = hire(directory)
      child.ref()
      child.once("error", (error) => resume(Effect.fail(error)))
      child.once("spawn", () => {
        rest(child)
        resume(Effect.succeed(child))
      })
    }),
    // A keeper that was itself killed is replaced by one whose only work is the end.
    (child) =>
      Effect.flatMap(
        dismiss(child),
        (code) => code === 0 ? Effect.void : dismiss(hire(directory))
      )
  ).pipe(
    Effect.map((child) => ({
      // One order at a time is the caller's duty; it also cannot be taken back half-way.
      order: (order) => Effect.uninterruptible(tell(child, order))
    }))
  )
