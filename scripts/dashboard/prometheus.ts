/** A real Prometheus that scrapes one address and has our alerts loaded, gone with the scope. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"

class PrometheusFailed extends Schema.TaggedError<PrometheusFailed>()("PrometheusFailed", { message: Schema.String }) {}

export interface Series {
  readonly labels: Readonly<Record<string, string>>
  /** Seconds since 1970, and the value. */
  readonly points: ReadonlyArray<readonly [at: number, value: number]>
}

interface Rule {
  readonly type: "alerting" | "recording"
  readonly name: string
  readonly query: string
  readonly health: string
  readonly lastError?: string
  /** Of an alert. */
  readonly state?: "inactive" | "pending" | "firing"
}

export interface Prometheus {
  readonly targets: Effect.Effect<
    ReadonlyArray<{ readonly health: string; readonly lastError: string }>,
    PrometheusFailed
  >
  readonly rules: Effect.Effect<ReadonlyArray<Rule>, PrometheusFailed>
  /** The values of a label, by the `label_values` of a dashboard's variable. */
  readonly labelValues: (query: string) => Effect.Effect<ReadonlyArray<string>, PrometheusFailed>
  /** Evaluates an expression at every step from one time to another; all are seconds. What is NaN is left out. */
  readonly range: (
    expr: string,
    from: number,
    to: number,
    step: number
  ) => Effect.Effect<ReadonlyArray<Series>, PrometheusFailed>
}

const alerts = fileURLToPath(new URL("../../dashboards/alerts.yml", import.meta.url))

/** Seconds. */
const config = (address: string, interval: number): string =>
  JSON.stringify({
    global: { scrape_interval: `${interval}s`, scrape_timeout: `${interval}s`, evaluation_interval: `${interval}s` },
    rule_files: [alerts],
    scrape_configs: [{ job_name: "shop", static_configs: [{ targets: [address], labels: { instance: "shop-1" } }] }]
  })

const launch = (folder: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const flags = ["config.file=config.yml", "storage.tsdb.path=data", "web.listen-address=127.0.0.1:0"]
      const child = spawn("prometheus", flags.map((flag) => `--${flag}`), {
        cwd: folder,
        stdio: ["ignore", "ignore", "pipe"]
      })
      let said = ""
      child.stderr.setEncoding("utf8").on("data", (chunk: string) => (said += chunk))
      child.on(
        "error",
        (error) => (said += `prometheus cannot be started: ${error.message}. Install the Debian package `
          + "prometheus (brew install prometheus); it has to be on the PATH.")
      )
      return { child, said: () => said }
    }),
    ({ child }) =>
      Effect.promise(async () => {
        if (child.pid === undefined || child.exitCode !== null) return
        const gone = once(child, "exit")
        child.kill("SIGKILL")
        await gone
      })
  )

/** `address` is the host and port to scrape, `interval` the seconds between two scrapes. The first has been by then. */
export const make = (
  address: string,
  interval: number
): Effect.Effect<Prometheus, PrometheusFailed, Scope.Scope> =>
  Effect.gen(function*() {
    const folder = yield* Effect.acquireRelease(
      Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "prometheus-"))),
      (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
    )
    Fs.writeFileSync(Path.join(folder, "config.yml"), config(address, interval))
    const { child, said } = yield* launch(folder)

    const url = yield* Effect.suspend(() => {
      const found = /msg="Listening on" address=(\S+)/.exec(said())?.[1]
      if (found !== undefined && said().includes("Server is ready to receive web requests")) {
        return Effect.succeed(`http://${found}/api/v1`)
      }
      return Effect.fail(new PrometheusFailed({ message: `prometheus did not start: ${said()}` }))
    }).pipe(
      Effect.retry({
        schedule: Schedule.spaced("20 millis"),
        times: 1000,
        while: () => child.pid !== undefined && child.exitCode === null
      })
    )

    const get = <A>(path: string, parameters: Readonly<Record<string, string>> = {}) =>
      Effect.tryPromise({
        try: async () => {
          const response = await fetch(`${url}/${path}?${new URLSearchParams(parameters)}`)
          return await response.json() as { readonly data: A; readonly error?: string }
        },
        catch: (error) => new PrometheusFailed({ message: `${path}: ${error}` })
      }).pipe(
        Effect.filterOrFail(
          ({ error }) => error === undefined,
          ({ error }) => new PrometheusFailed({ message: `${path}: ${error}, of ${JSON.stringify(parameters)}` })
        ),
        Effect.map(({ data }) => data)
      )

    interface Groups {
      readonly groups: ReadonlyArray<{ readonly rules: ReadonlyArray<Rule> }>
    }
    interface Targets {
      readonly activeTargets: ReadonlyArray<{ readonly health: string; readonly lastError: string }>
    }
    interface Matrix {
      readonly result: ReadonlyArray<{
        readonly metric: Readonly<Record<string, string>>
        readonly values: ReadonlyArray<readonly [at: number, value: string]>
      }>
    }
    const targets = Effect.map(get<Targets>("targets"), ({ activeTargets }) => activeTargets)
    // The first scrape comes at some moment of the first interval.
    yield* Effect.repeat(targets, {
      schedule: Schedule.spaced("50 millis"),
      while: (all) => all.length === 0 || all.some(({ health }) => health === "unknown")
    })
    return {
      targets,
      rules: Effect.map(get<Groups>("rules"), ({ groups }) => groups.flatMap(({ rules }) => rules)),
      labelValues: (query) => {
        const [, selector, label] = /^label_values\((.*), (\w+)\)$/.exec(query)!
        return get<ReadonlyArray<string>>(`label/${label}/values`, { "match[]": selector! })
      },
      range: (query, from, to, step) =>
        Effect.map(
          get<Matrix>("query_range", { query, start: `${from}`, end: `${to}`, step: `${step}` }),
          ({ result }) =>
            result.map(({ metric, values }) => ({
              labels: metric,
              points: values.map(([at, value]) => [at, Number(value)] as const).filter(([, value]) =>
                !Number.isNaN(value)
              )
            }))
        )
    }
  })

/** An expression of the dashboard as Grafana would send it: everything is chosen. */
export const chooseAll = (expr: string, rateInterval: string): string =>
  expr.replaceAll("$__rate_interval", rateInterval).replaceAll(/\$(job|instance|pool)\b/g, ".*")
