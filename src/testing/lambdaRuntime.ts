/**
 * The process in which a handler of a local Lambda runs: the loop of the official Node.js runtime (its fourth major,
 * Node 24), without its logging. It asks for an event, calls the handler, lets the event loop turn once, posts, and asks
 * for the next one. With `AWS_LAMBDA_MAX_CONCURRENCY` it starts worker threads, each of which loads the handler and
 * loops without waiting for it.
 */
import * as Http from "node:http"
import * as Os from "node:os"
import { pathToFileURL } from "node:url"
import { isMainThread, Worker } from "node:worker_threads"
import { exchange, type Reply } from "./exchange.ts"
import * as Streaming from "./lambdaStreaming.ts"

type Handler = (...args: ReadonlyArray<unknown>) => unknown

const variable = (name: string): string => process.env[name] ?? ""

const [hostname, port] = variable("AWS_LAMBDA_RUNTIME_API").split(":")
const isMultiConcurrent = process.env.AWS_LAMBDA_MAX_CONCURRENCY !== undefined
const agent = new Http.Agent({ keepAlive: true, maxSockets: 1 })
// A response that is being streamed has its connection to itself.
const streamAgent = isMultiConcurrent ? new Http.Agent() : agent

const options = (method: string, path: string) => ({ hostname, port, method, path: `/2018-06-01/runtime/${path}` })

const call = (method: string, path: string, body?: string, headers: Http.OutgoingHttpHeaders = {}): Promise<Reply> => {
  // The long poll of a worker must not hold up the answers of its other invocations.
  const own = isMultiConcurrent && method === "POST" ? {} : { agent }
  return exchange({ ...options(method, path), ...own, headers }, body)
}

const post = (path: string, value: unknown, headers?: Http.OutgoingHttpHeaders): Promise<Reply> => {
  const body = JSON.stringify(value === undefined ? null : value)
  return call("POST", path, body, {
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(body),
    ...headers
  })
}

const formatted = (error: unknown) =>
  error instanceof Error
    ? { errorType: error.name, errorMessage: error.message, trace: (error.stack ?? "").split("\n") }
    : { errorType: typeof error, errorMessage: String(error), trace: [] }

const report = async (path: string, error: unknown): Promise<void> => {
  const body = formatted(error)
  await post(path, body, { "Lambda-Runtime-Function-Error-Type": body.errorType })
}

const named = (name: string, message: string): Error => Object.assign(new Error(message), { name })

const isMissing = (error: unknown): boolean =>
  error instanceof Error && (error as NodeJS.ErrnoException).code === "ERR_MODULE_NOT_FOUND"

const load = async (): Promise<Handler> => {
  const path = variable("LOCAL_LAMBDA_MODULE")
  const name = variable("LOCAL_LAMBDA_EXPORT")
  const module = await import(pathToFileURL(path).href).catch((error: unknown) => {
    if (isMissing(error)) throw named("Runtime.ImportModuleError", `Error: ${(error as Error).message}`)
    if (error instanceof SyntaxError) throw named("Runtime.UserCodeSyntaxError", `SyntaxError: ${error.message}`)
    throw error
  }) as { readonly default?: object } & Record<string, unknown>
  const handler = module[name] ?? (module.default as Record<string, unknown> | undefined)?.[name]
  if (typeof handler !== "function") {
    throw named("Runtime.HandlerNotFound", `${path}.${name} is undefined or not exported`)
  }
  if (!Streaming.isStreaming(handler) && handler.length >= 3) {
    throw named(
      "Runtime.CallbackHandlerDeprecated",
      `The handler ${name} declares ${handler.length} parameters: this runtime calls no callback. Return a promise.`
    )
  }
  return handler as Handler
}

const contextOf = (headers: Http.IncomingHttpHeaders) => {
  const header = (name: string): string | undefined => headers[`lambda-runtime-${name}`] as string | undefined
  const deadline = Number(header("deadline-ms"))
  const clientContext = header("client-context")
  return {
    clientContext: clientContext === undefined ? undefined : JSON.parse(clientContext) as unknown,
    identity: undefined,
    invokedFunctionArn: header("invoked-function-arn"),
    awsRequestId: header("aws-request-id") ?? "",
    xRayTraceId: header("trace-id"),
    functionName: variable("AWS_LAMBDA_FUNCTION_NAME"),
    functionVersion: variable("AWS_LAMBDA_FUNCTION_VERSION"),
    memoryLimitInMB: variable("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"),
    logGroupName: variable("AWS_LAMBDA_LOG_GROUP_NAME"),
    logStreamName: variable("AWS_LAMBDA_LOG_STREAM_NAME"),
    getRemainingTimeInMillis: () => deadline - Date.now()
  }
}

const aTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

const tell = (error: unknown): void => {
  process.stderr.write(`ERROR Invoke Error ${JSON.stringify(formatted(error))}\n`)
}

const answer = async (handler: Handler, { body, headers }: Reply): Promise<void> => {
  const context = contextOf(headers)
  const path = `invocation/${context.awsRequestId}`
  try {
    const result = await handler(JSON.parse(body), context)
    await aTurn()
    await post(`${path}/response`, result)
  } catch (error) {
    await aTurn()
    tell(error)
    await report(`${path}/error`, error)
  }
}

const stream = async (handler: Handler, { body, headers }: Reply): Promise<void> => {
  const context = contextOf(headers)
  const { isTaken, stream } = Streaming.open((head) =>
    Http.request({
      ...options("POST", `invocation/${context.awsRequestId}/response`),
      agent: streamAgent,
      headers: head
    })
  )
  try {
    const handled = handler(JSON.parse(body), stream, context)
    if (!(handled instanceof Promise)) throw new Error("Streaming does not support non-async handlers.")
    await handled
    await isTaken
  } catch (error) {
    await aTurn()
    tell(error)
    await Streaming.fail(stream, formatted(error))
    await isTaken
  }
}

const loop = async (): Promise<never> => {
  Streaming.install()
  const handler = await load().catch(async (error: unknown) => {
    await report("init/error", error)
    throw error
  })
  const process = Streaming.isStreaming(handler) ? stream : answer
  while (true) {
    const event = await call("GET", "invocation/next")
    if (isMultiConcurrent) setImmediate(() => void process(handler, event))
    else await process(handler, event)
  }
}

const workers = async (): Promise<void> => {
  const count = Number(process.env.AWS_LAMBDA_NODEJS_WORKER_COUNT ?? 8 * Os.availableParallelism())
  const ends = Array.from({ length: count }, () =>
    new Promise<void>((resolve) => {
      const worker = new Worker(new URL(import.meta.url))
      worker.once("error", (error) => process.stderr.write(`${error.stack}\n`))
      worker.once("exit", () => resolve())
    }))
  await Promise.all(ends)
}

await (isMultiConcurrent && isMainThread ? workers() : loop())
