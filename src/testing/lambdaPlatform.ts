/** The platform's side of a local Lambda: its execution environments, and which of them an invocation goes to. */
import { randomBytes, randomUUID } from "node:crypto"
import * as Sandbox from "./lambdaSandbox.ts"
import type { Answer, PostedError } from "./runtimeApi.ts"

export type State = "Starting" | "Busy" | "Idle" | "Frozen" | "Reset"
export type Start = "cold" | "warm" | "reset"

export interface View {
  readonly id: number
  readonly state: State
  readonly pid: number | undefined
  readonly invocations: number
  readonly initializations: number
}

export interface Line {
  readonly environment: number
  readonly source: "platform" | "runtime" | "extension"
  readonly stream: "stdout" | "stderr"
  readonly text: string
}

export interface Delivery {
  readonly requestId: string
  readonly environment: number
  readonly start: Start
  readonly initMillis: number
  readonly millis: number
}

export type Result =
  | { readonly _tag: "Answered"; readonly delivery: Delivery; readonly answer: Answer }
  | { readonly _tag: "Exited"; readonly delivery: Delivery; readonly message: string }
  | { readonly _tag: "TimedOut"; readonly delivery: Delivery; readonly timeout: number }
  | { readonly _tag: "InitFailed"; readonly environment: number; readonly error: PostedError }
  | { readonly _tag: "Broken"; readonly detail: string }

export interface Platform {
  readonly invoke: (payload: string, timeout: number) => Promise<Result>
  /** Starts one more environment ahead of any request. */
  readonly provision: () => Promise<Result | undefined>
  readonly views: () => ReadonlyArray<View>
  readonly lines: () => ReadonlyArray<Line>
  readonly freeze: (environment?: number) => void
  readonly thaw: (environment?: number) => void
  readonly shutdown: (environment?: number) => Promise<ReadonlyArray<Sandbox.Ending & { readonly environment: number }>>
  readonly kill: (environment?: number) => Promise<void>
  readonly close: () => Promise<void>
}

interface Environment {
  readonly id: number
  /** Whether it was asked for ahead of any request. */
  readonly isProvisioned: boolean
  sandbox: Sandbox.Sandbox | undefined
  state: State
  /** Invocations under way. */
  active: number
  invocations: number
  initializations: number
  lastUsed: number
}

interface Options {
  readonly settings: Omit<Sandbox.Settings, "onLine">
  readonly functionArn: string
  readonly initTimeout: number
  /** Invocations at a time in one environment. With more than one it is never frozen, as on managed instances. */
  readonly concurrency: number
}

const timeIsUp = (initTimeout: number): PostedError => ({
  errorType: "Sandbox.Timedout",
  errorMessage: `Task timed out after ${(initTimeout / 1000).toFixed(2)} seconds`,
  trace: []
})

const traceId = (now: number): string =>
  `Root=1-${Math.floor(now / 1000).toString(16)}-${randomBytes(12).toString("hex")};Parent=${
    randomBytes(8).toString("hex")
  };Sampled=0`

export const make = ({ concurrency, functionArn, initTimeout, settings }: Options): Platform => {
  const environments = new Map<number, Environment>()
  const lines: Array<Line> = []
  let lastId = 0
  let uses = 0
  let isClosed = false
  const isShared = concurrency > 1

  const tell = (environment: number, text: string): void => {
    lines.push({ environment, source: "platform", stream: "stdout", text })
  }

  const found = (isProvisioned = false): Environment => {
    const environment: Environment = {
      id: ++lastId,
      isProvisioned,
      sandbox: undefined,
      state: "Starting",
      active: 0,
      invocations: 0,
      initializations: 0,
      lastUsed: 0
    }
    environments.set(environment.id, environment)
    return environment
  }

  const isFree = ({ active, state }: Environment): boolean =>
    state === "Frozen" || state === "Reset" || (isShared && state === "Idle" && active < concurrency)

  /** The one that was used last: the platform lets the others grow old. */
  const free = (): Environment | undefined =>
    [...environments.values()].filter(isFree).toSorted((a, b) => b.lastUsed - a.lastUsed)[0]

  const rest = (environment: Environment): void => {
    if (isShared) {
      environment.state = environment.active < concurrency ? "Idle" : "Busy"
    } else {
      environment.state = "Frozen"
      environment.sandbox?.freeze()
    }
  }

  const reset = async (environment: Environment, reason: Sandbox.ShutdownReason): Promise<void> => {
    const { sandbox } = environment
    await sandbox?.shutdown(reason)
    if (environment.sandbox === sandbox) {
      environment.sandbox = undefined
      environment.state = "Reset"
    }
  }

  /** A new life of the environment. */
  const init = async (environment: Environment, within: number): Promise<PostedError | undefined> => {
    const startedAt = performance.now()
    environment.initializations++
    const { id, isProvisioned } = environment
    const sandbox = environment.sandbox = await Sandbox.make({
      ...settings,
      env: isProvisioned && !isShared
        ? { ...settings.env, AWS_LAMBDA_INITIALIZATION_TYPE: "provisioned-concurrency" }
        : settings.env,
      onLine: (source, stream, text) => lines.push({ environment: id, source, stream, text })
    })
    const failure = environments.has(id) ? await sandbox.init(within) : "time"
    if (failure === undefined) return undefined
    const error = failure === "time" ? timeIsUp(within) : failure
    tell(
      id,
      `INIT_REPORT Init Duration: ${(performance.now() - startedAt).toFixed(2)} ms\tStatus: `
        + (failure === "time" ? "timeout" : `error\tError Type: ${error.errorType}`)
    )
    await reset(environment, failure === "time" ? "timeout" : "failure")
    return error
  }

  /** An environment whose initialization fails when a request needs it is replaced. */
  const discard = async (environment: Environment): Promise<void> => {
    environments.delete(environment.id)
    await environment.sandbox?.kill()
  }

  const run = async (environment: Environment, payload: string, timeout: number): Promise<Result> => {
    const { id } = environment
    const requestId = randomUUID()
    const arrivedAt = performance.now()
    const isCold = environment.initializations === 0
    const needsInit = environment.sandbox === undefined
    let left = timeout
    if (needsInit) {
      if (isCold) await init(environment, initTimeout)
      // The second attempt counts as part of the invocation.
      if (environment.sandbox === undefined) {
        const startedAt = performance.now()
        const error = environments.has(id) ? await init(environment, timeout) : timeIsUp(0)
        if (error !== undefined) {
          await discard(environment)
          return { _tag: "InitFailed", environment: id, error }
        }
        left = timeout - (performance.now() - startedAt)
      }
    }
    const { sandbox } = environment
    if (sandbox === undefined) return { _tag: "Broken", detail: "its scope was closed meanwhile" }
    const initMillis = needsInit ? performance.now() - arrivedAt : 0
    environment.state = isShared && environment.active < concurrency ? "Idle" : "Busy"
    environment.invocations++
    sandbox.thaw()
    const now = settings.wallClock()
    const startedAt = performance.now()
    tell(id, `START RequestId: ${requestId} Version: $LATEST`)
    const outcome = await sandbox.handle(
      { id: requestId, payload, deadline: now + Math.round(left), arn: functionArn, traceId: traceId(now) },
      { within: left, alone: !isShared }
    )
    const millis = performance.now() - startedAt
    const start = isCold ? "cold" : needsInit ? "reset" : "warm"
    const delivery: Delivery = { requestId, environment: id, start, initMillis, millis }
    tell(id, `END RequestId: ${requestId}`)
    tell(
      id,
      `REPORT RequestId: ${requestId}\tDuration: ${millis.toFixed(2)} ms`
        + (needsInit ? `\tInit Duration: ${initMillis.toFixed(2)} ms` : "")
        + (outcome._tag === "TimedOut" ? "\tStatus: timeout" : outcome._tag === "Exited" ? "\tStatus: error" : "")
    )
    environment.active--
    // On managed instances a time-out is the affair of that invocation alone.
    if (
      outcome._tag === "Exited" ||
      (outcome._tag === "Answered" ? outcome.isOver : outcome._tag === "TimedOut" && !isShared)
    ) {
      await reset(environment, outcome._tag === "TimedOut" ? "timeout" : "failure")
    } else {
      rest(environment)
    }
    switch (outcome._tag) {
      case "Answered":
        return { _tag: "Answered", delivery, answer: outcome.answer }
      case "Exited":
        return { _tag: "Exited", delivery, message: `RequestId: ${requestId} Error: ${outcome.description}` }
      case "TimedOut":
        return { _tag: "TimedOut", delivery, timeout }
    }
  }

  const take = (environment: Environment): void => {
    environment.active++
    environment.lastUsed = ++uses
    environment.state = environment.sandbox === undefined ? "Starting" : "Busy"
  }

  /** The computer may have no more processes or ports to give, or not take what they are to be started with. */
  const unlessBroken = async <A>(environment: Environment, work: Promise<A>): Promise<A | Result> => {
    try {
      return await work
    } catch (error) {
      await discard(environment)
      return { _tag: "Broken", detail: String(error) }
    }
  }

  let starting: Promise<Result | undefined> | undefined
  const start = async (environment: Environment): Promise<Result | undefined> => {
    environment.state = "Starting"
    const error = await init(environment, initTimeout).finally(() => {
      starting = undefined
    })
    if (error === undefined) {
      rest(environment)
      return undefined
    }
    await discard(environment)
    return { _tag: "InitFailed", environment: environment.id, error }
  }

  const startOne = (environment: Environment) => unlessBroken(environment, start(environment))

  /** What has to come to its end before the platform has. */
  const underWay = new Set<Promise<unknown>>()
  const track =
    <Args extends ReadonlyArray<unknown>, A>(f: (...args: Args) => Promise<A>) => (...args: Args): Promise<A> => {
      const promise = f(...args)
      underWay.add(promise)
      const forget = (): void => void underWay.delete(promise)
      promise.then(forget, forget)
      return promise
    }

  const invoke: Platform["invoke"] = async (payload, timeout) => {
    if (isClosed) return { _tag: "Broken", detail: "its scope is closed" }
    if (!isShared) {
      const environment = free() ?? found()
      take(environment)
      return unlessBroken(environment, run(environment, payload, timeout))
    }
    while (true) {
      const environment = free()
      if (environment?.sandbox !== undefined) {
        environment.active++
        environment.lastUsed = ++uses
        return unlessBroken(environment, run(environment, payload, timeout))
      }
      // All who come meanwhile wait for the one environment that starts.
      const error = await (starting ??= startOne(environment ?? found()))
      if (error !== undefined) return error
    }
  }

  const provision: Platform["provision"] = async () => {
    if (isClosed) return { _tag: "Broken", detail: "its scope is closed" }
    return startOne(found(true))
  }

  const these = (id: number | undefined): ReadonlyArray<Environment> =>
    id === undefined ? [...environments.values()] : [environments.get(id)].filter((one) => one !== undefined)

  const kill: Platform["kill"] = async (id) => {
    await Promise.all(these(id).map(discard))
  }

  return {
    invoke: track(invoke),
    provision: track(provision),
    views: () =>
      [...environments.values()].map(({ id, initializations, invocations, sandbox, state }) => ({
        id,
        state,
        pid: sandbox?.pid(),
        invocations,
        initializations
      })),
    lines: () => [...lines],
    freeze: (id) => these(id).forEach(({ sandbox }) => sandbox?.freeze()),
    thaw: (id) => these(id).forEach(({ sandbox }) => sandbox?.thaw()),
    shutdown: (id) =>
      Promise.all(
        these(id).map(async (environment) => {
          environments.delete(environment.id)
          const ending = await environment.sandbox?.shutdown("spindown")
          return ending && { ...ending, environment: environment.id }
        })
      ).then((endings) => endings.filter((ending) => ending !== undefined)),
    kill,
    close: async () => {
      isClosed = true
      await kill()
      await Promise.allSettled(underWay)
    }
  }
}
