/** A PgBouncer in transaction mode, of the scope's own: in front of the server of this run, or of any other. */
import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { chmodSync, chownSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { type AddressInfo, connect, createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"

class PgBouncerError extends Schema.TaggedError<PgBouncerError>()("PgBouncerError", { message: Schema.String }) {}

export interface PgBouncer {
  /** The same database with the same user and password, through PgBouncer. */
  readonly through: (url: Redacted.Redacted) => Redacted.Redacted
  /** A command of the admin console (`SHOW POOLS`, `PAUSE`, ...); the rows of its answer. */
  readonly say: (command: string) => Effect.Effect<ReadonlyArray<Readonly<Record<string, string>>>, PgBouncerError>
  /** How many clients are connected, the console's own left out. */
  readonly clients: Effect.Effect<number, PgBouncerError>
  /** Ends it at once: its connections break. */
  readonly kill: Effect.Effect<void>
  /** Starts it again on the same port. */
  readonly start: Effect.Effect<void, PgBouncerError>
  /** What it has written so far. */
  readonly log: () => string
}

const version = spawnSync("pgbouncer", ["--version"], { encoding: "utf8" })

/** Why there can be no PgBouncer here, `undefined` when there can. */
const absence: string | undefined = version.status === 0
  ? undefined
  : "pgbouncer is not on the PATH: install the Debian package pgbouncer (brew install pgbouncer)"

/** It refuses to run as root. */
const account = (): { readonly uid?: number; readonly gid?: number } => {
  if (process.getuid?.() !== 0) return {}
  const id = (flag: string) => Number(execFileSync("id", [flag, "nobody"], { encoding: "utf8" }))
  return { uid: id("-u"), gid: id("-g") }
}

const freePort = Effect.promise(async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, "close")
  return port
})

/** The console speaks the simple query protocol only, which the driver does not. */
const ask = (
  port: number,
  command: string
): Effect.Effect<ReadonlyArray<Readonly<Record<string, string>>>, PgBouncerError> =>
  Effect.callback<ReadonlyArray<Readonly<Record<string, string>>>, PgBouncerError>((resume) => {
    const parser = PgProtocol.makeParser()
    const rows: Array<Record<string, string>> = []
    let names: ReadonlyArray<string> = []
    let isAsked = false
    const fail = (message: string) => resume(Effect.fail(new PgBouncerError({ message: `${command}: ${message}` })))
    const socket = connect(
      port,
      "127.0.0.1",
      () => socket.write(PgProtocol.encodeStartupMessage({ user: "console", database: "pgbouncer" } as never))
    )
    socket.on("error", (error) => fail(error.message))
    socket.on("close", () => fail("the console hung up"))
    socket.on("data", (chunk) => {
      for (const message of parser.push(chunk)) {
        if (message._tag === "ErrorResponse") fail(message.fields.message ?? "refused")
        if (message._tag === "RowDescription") names = message.fields.map(({ name }) => name)
        if (message._tag === "DataRow") {
          rows.push(Object.fromEntries(
            message.values.map((value, index) => [names[index]!, value === null ? "" : Buffer.from(value).toString()])
          ))
        }
        if (message._tag !== "ReadyForQuery") continue
        if (isAsked) return resume(Effect.succeed(rows))
        isAsked = true
        const text = Buffer.from(`${command}\0`)
        const header = Buffer.alloc(5)
        header.write("Q")
        header.writeUInt32BE(text.length + 4, 1)
        socket.write(Buffer.concat([header, text]))
      }
    })
    return Effect.sync(() => socket.destroy())
  }).pipe(
    Effect.timeoutOrElse({
      duration: "10 seconds",
      orElse: () => Effect.fail(new PgBouncerError({ message: `${command}: no answer` }))
    })
  )

/**
 * Starts one. Every database of the server is known to it under its own name. The console is open to user `console`.
 *
 * `settings` are lines of its `[pgbouncer]` section.
 */
export const makePgBouncer = Effect.fnUntraced(function*(options: {
  /** The server behind it, with the user and password that it also asks its clients for. Default: that of this run. */
  readonly server?: Redacted.Redacted | undefined
  readonly settings?: Readonly<Record<string, string | number>> | undefined
} = {}): Effect.fn.Return<PgBouncer, PgBouncerError, Scope.Scope> {
  if (absence !== undefined) return yield* new PgBouncerError({ message: absence })
  // Loaded when it is asked for: only a test run has a server of its own.
  const ofThisRun = Effect.promise(async () => (await import("./database.ts")).databaseUrl)
  const server = new URL(Redacted.value(options.server ?? (yield* ofThisRun)))
  const owner = account()
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "pgbouncer-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
  )
  const port = yield* freePort
  const settings = {
    listen_addr: "127.0.0.1",
    listen_port: port,
    unix_socket_dir: "",
    pool_mode: "transaction",
    auth_type: "hba",
    auth_hba_file: join(directory, "hba"),
    auth_file: join(directory, "users"),
    admin_users: "console",
    default_pool_size: 20,
    max_client_conn: 500,
    // A server that comes back is found soon: the default is 15 seconds.
    server_login_retry: 0.2,
    ...options.settings
  }
  const user = decodeURIComponent(server.username)
  const files = {
    users: `"${user}" "${decodeURIComponent(server.password)}"\n"console" ""\n`,
    hba: "host pgbouncer console 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
    "pgbouncer.ini": [
      "[databases]",
      `* = host=${server.hostname} port=${server.port || 5432}`,
      "[pgbouncer]",
      ...Object.entries(settings).map(([name, value]) => `${name} = ${value}`),
      ""
    ].join("\n")
  }
  yield* Effect.sync(() => {
    for (const [name, text] of Object.entries(files)) {
      const path = join(directory, name)
      writeFileSync(path, text, { mode: 0o600 })
      if (owner.uid !== undefined) chownSync(path, owner.uid, owner.gid!)
    }
    chmodSync(directory, 0o755)
  })

  let log = ""
  let child: ChildProcess | undefined
  const kill = Effect.promise(async () => {
    const running = child
    child = undefined
    if (running === undefined || running.exitCode !== null || running.signalCode !== null) return
    const gone = once(running, "exit")
    running.kill("SIGKILL")
    await gone
  })
  const start = Effect.suspend(() => {
    const started = child = spawn("pgbouncer", [join(directory, "pgbouncer.ini")], { ...owner, cwd: "/" })
    for (const stream of [started.stdout, started.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        log += text
      })
    }
    return ask(port, "SHOW VERSION").pipe(
      Effect.retry(Schedule.spaced(20)),
      Effect.timeoutOrElse({
        duration: "10 seconds",
        orElse: () => Effect.fail(new PgBouncerError({ message: `it did not start: ${log}` }))
      }),
      Effect.asVoid
    )
  })
  yield* Effect.acquireRelease(start, () => kill, { interruptible: true })

  return {
    through: (url) => {
      const through = new URL(Redacted.value(url))
      through.hostname = "127.0.0.1"
      through.port = String(port)
      return Redacted.make(through.href)
    },
    say: (command) => ask(port, command),
    clients: Effect.map(ask(port, "SHOW CLIENTS"), (rows) => rows.filter(({ user }) => user !== "console").length),
    kill,
    start,
    log: () => log
  }
})
