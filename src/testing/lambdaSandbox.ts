/**
 * One life of an execution environment: the runtime's process, an external extension's beside it, and the API that both
 * speak to, from the start of the processes to their end. The rules are those of
 * https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html; what that page leaves open (who is sent
 * SIGTERM, and for how long it is waited) is as in AWS' own emulator, `internal/lambda/rapid/shutdown.go` of
 * https://github.com/aws/aws-lambda-runtime-interface-emulator.
 */
import { fileURLToPath } from "node:url"
import * as LambdaProcess from "./lambdaProcess.ts"
import * as RuntimeApi from "./runtimeApi.ts"
import type { Warden } from "./warden.ts"

export interface Settings {
  readonly command: readonly [string, ...ReadonlyArray<string>]
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string
  /** The handler's name, as `_HANDLER` has it. */
  readonly handler: string
  readonly externalExtension: boolean
  readonly warden: Warden
  readonly onLine: (source: "runtime" | "extension", stream: "stdout" | "stderr", line: string) => void
  /** Milliseconds since the epoch, on the wall clock of the processes. */
  readonly wallClock: () => number
}

/** Why an initialization did not come to its end; without it, its time ran out. */
export type InitFailure = "time" | RuntimeApi.PostedError

export type Outcome =
  | { readonly _tag: "Answered"; readonly answer: RuntimeApi.Answer; readonly isOver: boolean }
  | { readonly _tag: "TimedOut" }
  | { readonly _tag: "Exited"; readonly description: string }

export type ShutdownReason = "spindown" | "timeout" | "failure"

export interface Ending {
  /** What the runtime was sent first: `SIGTERM` only when an extension was registered. */
  readonly signal: "SIGTERM" | "SIGKILL"
  /** Whether its time after `SIGTERM` was not enough, so that it was killed. */
  readonly isForced: boolean
  /** What the runtime ended with; `null` when a signal ended it. */
  readonly exitCode: number | null
  /** Milliseconds from the first signal until all processes had ended. */
  readonly millis: number
}

export interface Sandbox {
  readonly pid: () => number
  readonly isOver: () => boolean
  readonly isFrozen: () => boolean
  /** Starts the processes. `undefined` when all of them have asked for their first event. */
  readonly init: (within: number) => Promise<InitFailure | undefined>
  /**
   * Has an event handled. With `alone` it is over when the runtime and every extension have asked for the next event;
   * otherwise others may be under way beside it.
   */
  readonly handle: (event: RuntimeApi.Event, options: HandleOptions) => Promise<Outcome>
  readonly freeze: () => void
  readonly thaw: () => void
  /** The end in good order. */
  readonly shutdown: (reason: ShutdownReason) => Promise<Ending>
  /** The end without one word to anybody. */
  readonly kill: () => Promise<Ending>
}

interface HandleOptions {
  readonly within: number
  readonly alone: boolean
}

const extensionName = "local-lambda-extension"
const source = import.meta.url.endsWith(".ts") ? "ts" : "js"
/** A file that ships beside this one, to be run by a process of its own. */
export const fileOf = (name: string): URL => new URL(`./${name}.${source}`, import.meta.url)

/** Milliseconds for the runtime after SIGTERM, and for everybody together. */
const windows = { internal: { runtime: 500, all: 500 }, external: { runtime: 300, all: 2000 } } as const

const longestTimer = 2 ** 31 - 1

export const make = async (settings: Settings): Promise<Sandbox> => {
  const watchers = new Set<() => void>()
  const onNews = (): void => {
    for (const look of watchers) look()
  }
  const until = (holds: () => boolean, millis: number): Promise<boolean> =>
    new Promise((resolve) => {
      if (holds()) return resolve(true)
      const settle = (outcome: boolean): void => {
        clearTimeout(timer)
        watchers.delete(look)
        resolve(outcome)
      }
      const look = (): void => {
        if (holds()) settle(true)
      }
      const timer = setTimeout(() => settle(holds()), Math.min(Math.max(0, millis), longestTimer))
      watchers.add(look)
    })

  const api = await RuntimeApi.make({
    handler: settings.handler,
    externalExtensions: settings.externalExtension ? [extensionName] : [],
    onNews
  })
  const env = { ...settings.env, AWS_LAMBDA_RUNTIME_API: `127.0.0.1:${api.port}` }
  const start = (name: "runtime" | "extension", command: Settings["command"]): LambdaProcess.LambdaProcess =>
    LambdaProcess.start({
      command,
      env,
      cwd: settings.cwd,
      warden: settings.warden,
      onLine: (stream, line) => settings.onLine(name, stream, line),
      onEnd: onNews
    })

  let runtime: LambdaProcess.LambdaProcess | undefined
  let extension: LambdaProcess.LambdaProcess | undefined
  let isFrozen = false
  let ending: Promise<Ending> | undefined
  const processes = (): ReadonlyArray<LambdaProcess.LambdaProcess> =>
    [runtime, extension].filter((process) => process !== undefined)
  const hasEnded = (): boolean => runtime?.end() !== undefined
  const external = (): RuntimeApi.Extension | undefined => api.extensions().find(({ isExternal }) => isExternal)

  const freeze = (): void => {
    isFrozen = true
    for (const process of processes()) process.freeze()
  }
  const thaw = (): void => {
    isFrozen = false
    for (const process of processes()) process.thaw()
  }

  const init: Sandbox["init"] = async (within) => {
    const startedAt = performance.now()
    const left = (): number => within - (performance.now() - startedAt)
    if (ending !== undefined) return "time"
    if (settings.externalExtension) {
      const path = fileURLToPath(fileOf("lambdaExtension"))
      const process = extension = start("extension", [globalThis.process.execPath, path, extensionName])
      await until(() => external() !== undefined || process.end() !== undefined, left())
      if (ending !== undefined) return "time"
    }
    const process = runtime = start("runtime", settings.command)
    const isReady = (): boolean =>
      api.polls() > 0 && api.extensions().every((one) => one.isReady())
      && (external() !== undefined || !settings.externalExtension)
    await until(() => isReady() || api.initError() !== undefined || process.end() !== undefined, left())
    api.closeRegistration()
    const end = process.end()
    const exit = end && { errorType: "Runtime.ExitError", errorMessage: LambdaProcess.describe(end), trace: [] }
    const failure = api.initError() ?? exit
    return failure ?? (isReady() ? undefined : "time")
  }

  const handle: Sandbox["handle"] = async (event, { alone, within }) => {
    const startedAt = performance.now()
    const left = (): number => within - (performance.now() - startedAt)
    const interested = api.extensions().filter(({ events }) => events.has("INVOKE"))
    // Somebody else's event may have taken the poll that was waited for.
    while (api.polls() === 0 && !hasEnded() && await until(() => api.polls() > 0 || hasEnded(), left())) continue
    if (api.polls() > 0 && !hasEnded()) {
      api.deliver(event)
      for (const one of interested) {
        one.tell({
          eventType: "INVOKE",
          deadlineMs: event.deadline,
          requestId: event.id,
          invokedFunctionArn: event.arn,
          tracing: { type: "X-Amzn-Trace-Id", value: event.traceId }
        })
      }
      await until(() => api.answer(event.id) !== undefined || hasEnded(), left())
    }
    const answer = api.answer(event.id)
    const end = runtime?.end()
    if (answer === undefined) {
      api.drop(event.id)
      return end === undefined
        ? { _tag: "TimedOut" }
        : { _tag: "Exited", description: LambdaProcess.describe(end) }
    }
    const isRested = (): boolean => api.polls() > 0 && interested.every((one) => one.isReady())
    const isOver = alone && (!(await until(() => isRested() || hasEnded(), left())) || hasEnded())
    api.drop(event.id)
    return { _tag: "Answered", answer, isOver }
  }

  const close = async (finish: () => Promise<{ readonly isForced: boolean; readonly signal: Ending["signal"] }>) => {
    const startedAt = performance.now()
    thaw()
    const how = await finish()
    await Promise.all(processes().map(({ gone }) => gone))
    await api.close()
    return { ...how, exitCode: runtime?.end()?.code ?? null, millis: performance.now() - startedAt }
  }

  const killAll = (): void => {
    for (const process of processes()) process.kill()
  }

  const inGoodOrder = async (reason: ShutdownReason) => {
    if (runtime === undefined || api.extensions().length === 0) {
      killAll()
      return { signal: "SIGKILL", isForced: false } as const
    }
    const startedAt = performance.now()
    const agent = external()
    const window = agent === undefined ? windows.internal : windows.external
    runtime.terminate()
    const isForced = !(await until(hasEnded, window.runtime))
    if (isForced) runtime.kill()
    if (agent !== undefined && extension !== undefined) {
      const process = extension
      const left = (): number => window.all - (performance.now() - startedAt)
      const hasLeft = (): boolean => process.end() !== undefined
      // It may still be busy with the last event.
      await until(() => agent.isReady() || hasLeft(), left())
      agent.tell({ eventType: "SHUTDOWN", shutdownReason: reason, deadlineMs: settings.wallClock() + left() })
      await until(hasLeft, left())
    }
    killAll()
    return { signal: "SIGTERM", isForced } as const
  }

  return {
    pid: () => runtime?.pid ?? 0,
    isOver: () => ending !== undefined || hasEnded(),
    isFrozen: () => isFrozen,
    init,
    handle,
    freeze,
    thaw,
    shutdown: (reason) => ending ??= close(() => inGoodOrder(reason)),
    kill: () => {
      // Also in the middle of an end in good order.
      if (ending !== undefined) killAll()
      return ending ??= close(() => {
        killAll()
        return Promise.resolve({ signal: "SIGKILL", isForced: false })
      })
    }
  }
}
