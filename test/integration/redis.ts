/** A Redis server of the scope's own, to be shared through, killed, stalled and counted. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync } from "node:fs"
import { connect, createServer } from "node:net"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"

class RedisError extends Schema.TaggedError<RedisError>()("RedisError", { message: Schema.String }) {}

export interface RedisServer {
  readonly url: string
  /** How many commands it has executed since it was started, those of this question left out. */
  readonly commands: Effect.Effect<number, RedisError>
  /** Kills it: its connections break. */
  readonly kill: Effect.Effect<void>
  /** Starts it again on the same port, with all it knew forgotten. */
  readonly start: Effect.Effect<void, RedisError>
  /** Stops it without a trace: its connections stay open, and nobody answers. */
  readonly stall: Effect.Effect<void>
  readonly resume: Effect.Effect<void>
}

/** Why there can be no server here, `undefined` when there can. */
export const absence: string | undefined = spawnSync("redis-server", ["--version"]).status === 0
  ? undefined
  : "redis-server is not on the PATH: install the Debian package redis-server (brew install redis)"

const freePort = Effect.promise(async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, "close")
  return port
})

/** Everything that the server says to one command. */
const say = (port: number, command: string): Effect.Effect<string, RedisError> =>
  Effect.callback((resume) => {
    let said = ""
    const socket = connect(port, "127.0.0.1", () => socket.write(`${command}\r\nQUIT\r\n`))
    socket.on("data", (data) => (said += data.toString()))
    socket.on("error", (error) => resume(Effect.fail(new RedisError({ message: error.message }))))
    socket.on("end", () => resume(Effect.succeed(said)))
    return Effect.sync(() => socket.destroy())
  })

export const makeRedis: Effect.Effect<RedisServer, RedisError, Scope.Scope> = Effect.gen(function*() {
  if (absence !== undefined) return yield* new RedisError({ message: absence })
  const dir = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "redis-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
  )
  const port = yield* freePort
  const launch = () =>
    spawn("redis-server", [
      "--port",
      `${port}`,
      "--bind",
      "127.0.0.1",
      "--dir",
      dir,
      "--save",
      "",
      "--appendonly",
      "no"
    ], {
      stdio: "ignore"
    })
  let child: ReturnType<typeof launch> | undefined
  const kill = Effect.promise(async () => {
    if (child === undefined) return
    const gone = once(child, "exit")
    child.kill("SIGKILL")
    child = undefined
    await gone
  })
  const start = Effect.suspend(() => {
    child = launch()
    return say(port, "PING").pipe(
      Effect.filterOrFail((said) => said.startsWith("+PONG"), (said) => new RedisError({ message: said })),
      Effect.retry(Schedule.spaced(20)),
      Effect.timeoutOrElse({
        duration: "10 seconds",
        orElse: () => Effect.fail(new RedisError({ message: `redis-server did not answer on port ${port}` }))
      }),
      Effect.asVoid
    )
  })
  yield* Effect.acquireRelease(start, () => kill, { interruptible: true })
  return {
    url: `redis://127.0.0.1:${port}`,
    commands: Effect.map(say(port, "INFO commandstats"), (said) => {
      const counts = [...said.matchAll(/cmdstat_(\S+):calls=(\d+)/g)]
      return counts.reduce(
        (sum, [, name, calls]) => (name === "info" || name === "quit" ? sum : sum + Number(calls)),
        0
      )
    }),
    kill,
    start,
    stall: Effect.sync(() => void child?.kill("SIGSTOP")),
    resume: Effect.sync(() => void child?.kill("SIGCONT"))
  }
})
