/** A primary and a standby that follows it by streaming replication, to be stopped, killed, promoted and demoted. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import { execFile, execFileSync, spawn } from "node:child_process"
import { randomInt } from "node:crypto"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { eventually } from "./witness.ts"

class ClusterError extends Schema.TaggedError<ClusterError>()("ClusterError", {
  operation: Schema.String,
  detail: Schema.String
}) {
  override get message(): string {
    return `The cluster failed to ${this.operation}: ${this.detail}`
  }
}

/** One server of the cluster. */
export interface Node {
  readonly port: number
  readonly url: Redacted.Redacted
  readonly start: Effect.Effect<void, ClusterError>
  /** Fast shutdown: sessions get 57P01, and a standby all that was written. */
  readonly stop: Effect.Effect<void, ClusterError>
  /** SIGKILL to all of its processes. */
  readonly kill: Effect.Effect<void, ClusterError>
  /** From now on its standby gets nothing, although the primary goes on. */
  readonly stallReplication: Effect.Effect<void, SqlError>
  /** Ends recovery: returns when the server takes writes. */
  readonly promote: Effect.Effect<void, ClusterError>
  /** To be started as a standby of another node, with what both have in common. */
  readonly demoteTo: (primary: Node) => Effect.Effect<void, ClusterError>
  /** One statement on a session of its own. */
  readonly ask: <A>(sql: string) => Effect.Effect<A, SqlError>
}

export interface Cluster {
  readonly primary: Node
  readonly standby: Node
}

const folder = "/usr/lib/postgresql"

/** The newest of Debian's. */
const newestBin = (): string => {
  const versions = Fs.existsSync(folder) ? Fs.readdirSync(folder).map(Number).filter(Number.isInteger) : []
  const bin = Path.join(folder, String(Math.max(...versions)), "bin")
  if (versions.length === 0 || !Fs.existsSync(Path.join(bin, "pg_basebackup"))) {
    throw new Error(`there is no pg_basebackup in ${folder}/*/bin: install the Debian package postgresql`)
  }
  return bin
}

/** PostgreSQL refuses to run as root. */
const account = () => {
  if (process.getuid?.() !== 0) return {}
  const id = (flag: string) => Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }))
  return { uid: id("-u"), gid: id("-g") }
}

const environment = { PATH: process.env.PATH ?? "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" }

const makeNode = (bin: string, directory: string, port: number) => {
  const as = account()
  const data = Path.join(directory, `data-${port}`)
  const run = (operation: string, program: string, ...args: ReadonlyArray<string>) =>
    Effect.callback<void, ClusterError>((resume) => {
      const options = { ...as, cwd: directory, env: environment, timeout: 60_000 }
      execFile(Path.join(bin, program), args, options, (error, stdout, stderr) => {
        const detail = error === null ? "" : `${error.message}\n${stdout}${stderr}`
        resume(error === null ? Effect.void : Effect.fail(new ClusterError({ operation, detail })))
      })
    })
  const log = Path.join(directory, `${port}.log`)
  const control = (operation: string, ...args: ReadonlyArray<string>) =>
    run(operation, "pg_ctl", operation, "-D", data, "-w", "-t", "50", ...args)
  const settings = [
    `port = ${port}`,
    "listen_addresses = '127.0.0.1'",
    `unix_socket_directories = ''`,
    "fsync = off",
    "wal_level = replica",
    "max_wal_senders = 8",
    "hot_standby = on",
    "wal_log_hints = on",
    "max_connections = 60",
    "wal_keep_size = '256MB'",
    "dynamic_shared_memory_type = mmap",
    ""
  ].join("\n")
  const url = Redacted.make(`postgres://postgres@127.0.0.1:${port}/postgres`)
  const follow = (primary: number) => {
    Fs.appendFileSync(
      Path.join(data, "postgresql.auto.conf"),
      `primary_conninfo = 'host=127.0.0.1 port=${primary} user=postgres application_name=standby'\n`
    )
    Fs.writeFileSync(Path.join(data, "standby.signal"), "")
    if (as.uid !== undefined) Fs.chownSync(Path.join(data, "standby.signal"), as.uid, as.gid)
  }
  const postmaster = () => Number(Fs.readFileSync(Path.join(data, "postmaster.pid"), "utf8").split("\n")[0])
  const node: Node = {
    port,
    url,
    // The server must not keep the pipes of pg_ctl open.
    start: control("start", "-l", log),
    stop: control("stop", "-m", "fast"),
    kill: Effect.sync(() => {
      const pid = postmaster()
      // Its children first cannot be: the postmaster would start others.
      process.kill(pid, "SIGSTOP")
      const children = Fs.readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").map(Number)
      for (const each of [...children, pid]) if (each > 0) process.kill(each, "SIGKILL")
    }).pipe(
      Effect.andThen(eventually("the end of the killed server", Effect.sync(() => !isAlive(postmaster())))),
      Effect.andThen(Effect.sync(() => Fs.rmSync(Path.join(data, "postmaster.pid"), { force: true })))
    ),
    stallReplication: Effect.map(
      Effect.suspend(() => node.ask<number>("SELECT pid FROM pg_stat_replication")),
      (pid) => void process.kill(pid, "SIGSTOP")
    ),
    promote: control("promote"),
    demoteTo: (primary) => Effect.sync(() => follow(primary.port)),
    ask: <A>(sql: string) =>
      Effect.scoped(Effect.flatMap(
        PgConnection.make({ url, applicationName: "test-administration" }),
        (connection) => Effect.map(connection.queryValues(sql, [], false), (rows) => rows[0]?.[0] as A)
      ))
  }
  return {
    node,
    initialise: Effect.andThen(
      run(
        "initialise",
        "initdb",
        `--pgdata=${data}`,
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--no-instructions"
      ),
      Effect.sync(() => Fs.appendFileSync(Path.join(data, "postgresql.conf"), settings))
    ),
    copy: (primary: Node) =>
      run("copy the primary", "pg_basebackup", "-D", data, "-d", Redacted.value(primary.url), "-c", "fast", "--no-sync")
        .pipe(
          Effect.andThen(Effect.sync(() => {
            Fs.appendFileSync(Path.join(data, "postgresql.conf"), settings)
            follow(primary.port)
          }))
        ),
    destroy: Effect.ignore(control("stop", "-m", "immediate"))
  }
}

/** One that has ended may stay in the table until somebody asks for it. */
const isAlive = (pid: number): boolean => {
  try {
    return !Fs.readFileSync(`/proc/${pid}/stat`, "utf8").includes(") Z ")
  } catch {
    return false
  }
}

/** Ends both servers and removes their folder when this process is gone, however it went. */
const keep = (directory: string, bin: string): void => {
  const script =
    `read -r _; for data in "${directory}"/data-*; do "${bin}/pg_ctl" stop -m immediate -D "$data"; done; rm -rf "${directory}"`
  const keeper = spawn("/bin/sh", ["-c", script], {
    ...account(),
    detached: true,
    cwd: "/",
    env: environment,
    stdio: ["pipe", "ignore", "ignore"]
  })
  keeper.unref()
  ;(keeper.stdin as unknown as { unref: () => void }).unref()
}

/** Below the ports that outgoing connections take, so that it is still free when a server comes back to it. */
const freePort = (from: number): Effect.Effect<number> =>
  Effect.suspend(() => {
    const port = from + randomInt(4000)
    const probe = Effect.callback<boolean>((resume) => {
      const server = Net.createServer()
      server.once("error", () => resume(Effect.succeed(false)))
      server.listen({ port, host: "127.0.0.1", exclusive: true }, () => {
        server.close(() => resume(Effect.succeed(true)))
      })
    })
    return Effect.flatMap(probe, (isFree) => isFree ? Effect.succeed(port) : freePort(from))
  })

const makeFolder = (bin: string): Effect.Effect<string, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const made = Fs.mkdtempSync(Path.join(Os.tmpdir(), "effect-pg-pool-cluster-"))
      const { gid, uid } = account()
      if (uid !== undefined) Fs.chownSync(made, uid, gid)
      keep(made, bin)
      return made
    }),
    (made) => Effect.sync(() => Fs.rmSync(made, { recursive: true, force: true }))
  )

const startPrimary = Effect.fnUntraced(function*(bin: string, directory: string) {
  const primary = makeNode(bin, directory, yield* freePort(12_000))
  yield* primary.initialise
  yield* Effect.addFinalizer(() => primary.destroy)
  yield* primary.node.start
  return primary.node
})

/** A new server of Debian's version, alone, gone with the scope. */
export const makeDebianServer: Effect.Effect<Node, ClusterError, Scope.Scope> = Effect.suspend(() => {
  const bin = newestBin()
  return Effect.flatMap(makeFolder(bin), (directory) => startPrimary(bin, directory))
})

/** A new cluster, gone with the scope. */
export const makeCluster: Effect.Effect<Cluster, ClusterError | SqlError, Scope.Scope> = Effect.gen(function*() {
  const bin = newestBin()
  const directory = yield* makeFolder(bin)
  const primary = yield* startPrimary(bin, directory)
  const second = makeNode(bin, directory, yield* freePort(16_000))
  yield* Effect.addFinalizer(() => second.destroy)
  yield* second.copy(primary)
  yield* second.node.start
  yield* eventually(
    "streaming replication",
    Effect.map(primary.ask<string>("SELECT state FROM pg_stat_replication"), (state) => state === "streaming")
  )
  return { primary, standby: second.node }
})
