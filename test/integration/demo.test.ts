import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { beforeAll } from "vitest"

const root = fileURLToPath(new URL("../..", import.meta.url))

const newest = (folder: string): number =>
  Math.max(
    ...Fs.readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => Fs.statSync(Path.join(entry.parentPath, entry.name)).mtimeMs)
  )

/** The demo uses the package as its users do, from dist. */
const build = (): void => {
  const built = Path.join(root, "dist/index.js")
  if (Fs.existsSync(built) && Fs.statSync(built).mtimeMs > newest(Path.join(root, "src"))) return
  const tsc = spawnSync(process.execPath, [
    Path.join(root, "node_modules/typescript/bin/tsc"),
    "-p",
    "tsconfig.build.json"
  ], {
    cwd: root,
    encoding: "utf8"
  })
  assert.strictEqual(tsc.status, 0, tsc.stdout + tsc.stderr)
}

interface Demo {
  readonly child: ChildProcess
  readonly output: () => string
  readonly ended: Promise<number | NodeJS.Signals | null>
  /** Everything temporary of the demo is in here. */
  readonly folder: string
}

const start = (...flags: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.sync((): Demo => {
      const folder = Fs.realpathSync(Fs.mkdtempSync(Path.join(Os.tmpdir(), "demo-test-")))
      // The server may run as another account.
      Fs.chmodSync(folder, 0o777)
      const env: NodeJS.ProcessEnv = { ...process.env, TMPDIR: folder, NO_COLOR: "1" }
      delete env.DATABASE_URL
      const child = spawn(process.execPath, ["examples/demo.ts", ...flags], {
        cwd: root,
        env,
        stdio: ["ignore", "pipe", "pipe"]
      })
      let output = ""
      for (const stream of [child.stdout, child.stderr]) {
        stream?.setEncoding("utf8").on("data", (chunk: string) => (output += chunk))
      }
      const ended = new Promise<number | NodeJS.Signals | null>((resolve) =>
        child.once("close", (code, signal) => resolve(code ?? signal))
      )
      return { child, output: () => output, ended, folder }
    }),
    ({ child, ended, folder }) =>
      Effect.promise(async () => {
        if (child.exitCode === null && child.signalCode === null) child.kill("SIGTERM")
        await ended
        Fs.rmSync(folder, { recursive: true, force: true })
      })
  )

const said = (demo: Demo, words: RegExp) =>
  Effect.promise(async () => {
    const until = performance.now() + 60_000
    while (!words.test(demo.output())) {
      if (performance.now() > until || demo.child.exitCode !== null) {
        assert.fail(`it never said ${words}:\n${demo.output()}`)
      }
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  })

/** Folders of embedded servers, local Lambdas and the demo, and the processes that carry their names in title, command line or environment. */
const leftOf = ({ folder }: Demo): ReadonlyArray<string> => {
  const folders = Fs.readdirSync(folder).filter((name) => /^(effect-pg-pool|local-lambda)-/.test(name))
  const processes = spawnSync("pgrep", ["-f", Path.basename(folder)], { encoding: "utf8" }).stdout ?? ""
  return [...folders, ...processes.split("\n").filter((pid) => pid !== "").map((pid) => `process ${pid}`)]
}

describe("the demo", { timeout: 120_000 }, () => {
  beforeAll(build, 120_000)

  it.live("proves that nothing was lost or doubled, says what happened, and ends by itself with code 0", () =>
    Effect.gen(function*() {
      const demo = yield* start("--quick")
      const code = yield* Effect.promise(() => demo.ended)
      const output = demo.output()
      assert.strictEqual(code, 0, output)
      const lines = output.split("\n")
      const zeros = ["acknowledged, but lost", "in the database all the same", "applied twice", "but never sent"]
      for (const words of zeros) {
        assert.match(lines.find((line) => line.includes(words)) ?? "", /\s0\s+0\s+✔$/, output)
      }
      const numbers = (words: string) =>
        lines.find((line) => line.trim().startsWith(words))?.match(/[\d,]+/g)?.map((n) => Number(n.replaceAll(",", "")))
      const acknowledged = numbers("acknowledged ")
      assert.deepStrictEqual(numbers("in the database exactly once"), acknowledged)
      assert.isTrue(acknowledged?.every((n) => n > 0))
      assert.match(output, /✔ stock left \+ units sold = initial stock/)
      assert.match(output, /✔ the total of each of [\d,]+ orders is the sum of its items/)
      assert.match(output, /✔ the pool is closed and left 0 sessions on the server/)
      assert.match(output, /Recovered: the first call succeeded [\d.]+ s after the server was back/)
      assert.match(output, /Proved: [\d,]+ acknowledged writes, none of them lost/)
      // The timeline: what was done to the server, and the breaker's answer in its order.
      const positions = [
        /pg_terminate_backend for \d+ of \d+ sessions/,
        /pg_terminate_backend for all \d+ session/,
        /stopped, for about/,
        /Closed → Open/,
        /Open → HalfOpen/,
        /HalfOpen → Closed/
      ].map((words) => output.slice(output.indexOf("What happened")).search(words))
      assert.notInclude(positions, -1, output)
      assert.isBelow(positions[3]!, positions[4]!)
      assert.isBelow(positions[4]!, positions[5]!)
      assert.notInclude(output, "\u001b")
      assert.deepStrictEqual(leftOf(demo), [])
    }))

  for (
    const [signal, moment, flag, words] of [
      ["SIGINT", "while the shop is loaded", "--quick", /embedded, in/],
      ["SIGINT", "while sessions are killed", "--quick", /pg_terminate_backend for all/],
      ["SIGTERM", "while the server is stopped", "--quick", /stopped, for about/],
      ["SIGINT", "while a function is frozen", "--lambda", /freezes it/]
    ] as const
  ) {
    it.live(`leaves no process and no folder behind on ${signal} ${moment}`, () =>
      Effect.gen(function*() {
        const demo = yield* start(flag)
        yield* said(demo, words)
        // A server that has been stopped by then has still left its folder.
        assert.isNotEmpty(leftOf(demo), "the search finds the server")
        demo.child.kill(signal)
        const code = yield* Effect.promise(() => demo.ended)
        assert.strictEqual(code, 130, demo.output())
        assert.match(demo.output(), /Interrupted\. Nothing is left behind\.\n$/)
        assert.deepStrictEqual(leftOf(demo), [])
      }))
  }

  it.live("plays a day in the life of one Lambda, in which all is as it should be", () =>
    Effect.gen(function*() {
      const demo = yield* start("--lambda")
      const code = yield* Effect.promise(() => demo.ended)
      const output = demo.output()
      assert.strictEqual(code, 0, output)
      const events = [
        String.raw`08:\d\d:\d\d {2}starts it in \d+ ms, and invokes it +✔ 3 orders in \d+ ms, session (\d+)\n`,
        String.raw`invokes it again +✔ 3 orders in \d+ ms, session \1: the same\n`,
        String.raw`freezes it\n`,
        String.raw`meanwhile the server ends session \1\n`,
        String.raw`thaws and invokes it +✔ 3 orders in \d+ ms, session \d+: a new one, and no error\n`,
        String.raw`an order that takes 60 +✔ InvocationTimeout after \d\.\d\d s\n`,
        String.raw`✔ the server: 0 statements under way, 3 orders: rolled back\n`,
        String.raw`invokes it again +✔ 3 orders`,
        String.raw`ends it by SIGTERM +✔ gone in \d+ ms`,
        String.raw`starts another one, and invokes it +✔ SecretUnavailable: the secret store does not answer\n`,
        String.raw`with the store back +✔ 3 orders in \d+ ms, session \d+: healed\n`,
        String.raw`ends it by SIGTERM +✔ gone in \d+ ms`,
        String.raw`✔ the function is gone and left 0 sessions on the server\n`
      ]
      assert.match(output, new RegExp(events.join("[^]*")))
      assert.notInclude(output, "✘")
      assert.notInclude(output, "\u001b")
      assert.deepStrictEqual(leftOf(demo), [])
    }))

  it.live("serves metrics and health on the port that it prints until Ctrl-C", () =>
    Effect.gen(function*() {
      const demo = yield* start("--serve")
      yield* said(demo, /\/health\/database/)
      const address = /http:\/\/[\d.]+:\d+/.exec(demo.output())?.[0] ?? assert.fail(demo.output())
      const get = (path: string) => Effect.promise(() => fetch(address + path))
      const metrics = yield* get("/metrics")
      assert.strictEqual(metrics.status, 200)
      assert.match(yield* Effect.promise(() => metrics.text()), /^db_pool_size\{pool="shop",state="total"\} \d+$/m)
      const health = yield* get("/health/database")
      assert.strictEqual(health.status, 200)
      const { state, status } = yield* Effect.promise(() => health.json()) as Effect.Effect<Record<string, unknown>>
      assert.deepStrictEqual([state, status], ["up", "pass"])
      demo.child.kill("SIGINT")
      yield* Effect.promise(() => demo.ended)
      assert.deepStrictEqual(leftOf(demo), [])
    }))
})
