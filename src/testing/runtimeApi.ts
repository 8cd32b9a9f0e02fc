/**
 * The HTTP API that a Lambda function's runtime and its extensions speak to: the Runtime API 2018-06-01 and the
 * Extensions API 2020-01-01, for one life of one execution environment. It only keeps what it was told; what follows
 * from it is the sandbox's business.
 *
 * https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
 * https://docs.aws.amazon.com/lambda/latest/dg/runtimes-extensions-api.html
 */
import { randomUUID } from "node:crypto"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"

/** A function's error, as its runtime posts it. */
export interface PostedError {
  readonly errorType: string
  readonly errorMessage: string
  readonly trace: ReadonlyArray<string>
}

/** A piece of a response, and how many milliseconds after the event it came. */
export interface Chunk {
  readonly after: number
  readonly bytes: Uint8Array
}

export interface Answer {
  readonly contentType: string
  readonly isStreamed: boolean
  readonly chunks: ReadonlyArray<Chunk>
  readonly error: PostedError | undefined
}

export interface Event {
  readonly id: string
  readonly payload: string
  readonly deadline: number
  readonly arn: string
  readonly traceId: string
}

export interface Extension {
  readonly id: string
  readonly name: string
  readonly isExternal: boolean
  readonly events: ReadonlySet<string>
  /** Whether it has asked for its next event since the last one. */
  readonly isReady: () => boolean
  /** Answers the long poll, when it is there. */
  readonly tell: (event: Record<string, unknown>) => void
}

export interface RuntimeApi {
  readonly port: number
  /** How many of the runtime's polls for an event are waiting. */
  readonly polls: () => number
  readonly extensions: () => ReadonlyArray<Extension>
  readonly initError: () => PostedError | undefined
  /** Hands an event to the poll that waits longest; there has to be one. */
  readonly deliver: (event: Event) => void
  /** The complete answer to that event. */
  readonly answer: (id: string) => Answer | undefined
  /** Nobody waits for that answer any more. */
  readonly drop: (id: string) => void
  readonly closeRegistration: () => void
  readonly close: () => Promise<void>
}

/** Bytes of a buffered response, as Lambda limits it. */
const maxResponse = 6_291_556

const body = (request: Http.IncomingMessage): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    const parts: Array<Buffer> = []
    request.on("data", (part: Buffer) => parts.push(part))
    request.once("end", () => resolve(Buffer.concat(parts)))
    request.once("error", reject)
    request.once("close", () => reject(new Error("the request was cut off")))
  })

const parse = (text: string): Record<string, unknown> => {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === "object" && value !== null ? value as Record<string, unknown> : {}
  } catch {
    return {}
  }
}

const postedError = (text: string, header: string | undefined): PostedError => {
  const { errorMessage, errorType, stackTrace, trace } = parse(text)
  const lines = trace ?? stackTrace
  return {
    errorType: typeof errorType === "string" ? errorType : header ?? "Runtime.Unknown",
    errorMessage: typeof errorMessage === "string" ? errorMessage : text,
    trace: Array.isArray(lines) ? lines.map(String) : []
  }
}

const first = (value: string | ReadonlyArray<string> | undefined): string | undefined =>
  typeof value === "string" ? value : value?.[0]

interface Options {
  readonly handler: string
  readonly externalExtensions: ReadonlyArray<string>
  /** Called whenever there is news. */
  readonly onNews: () => void
}

export const make = async ({ externalExtensions, handler, onNews }: Options): Promise<RuntimeApi> => {
  const polls: Array<Http.ServerResponse> = []
  const extensions = new Map<string, Extension & { readonly poll: (response: Http.ServerResponse) => void }>()
  const underWay = new Map<string, number>()
  const answers = new Map<string, Answer>()
  let isOpen = true
  let initError: PostedError | undefined

  const reply = (
    response: Http.ServerResponse,
    status: number,
    content: Record<string, unknown>,
    headers: Http.OutgoingHttpHeaders = {}
  ): void => {
    response.writeHead(status, { "Content-Type": "application/json", ...headers })
    response.end(JSON.stringify(content))
  }
  const accept = (response: Http.ServerResponse): void => reply(response, 202, { status: "OK" })
  const refuse = (response: Http.ServerResponse, status: number, errorType: string, errorMessage: string): void =>
    reply(response, status, { errorMessage, errorType })

  const onNext = (response: Http.ServerResponse): void => {
    polls.push(response)
    response.once("close", () => {
      const index = polls.indexOf(response)
      if (index >= 0) polls.splice(index, 1)
    })
  }

  /** An answer to a known event; an event is answered once. */
  const answerTo = (
    id: string,
    response: Http.ServerResponse,
    answer: (startedAt: number) => Promise<Answer>
  ): Promise<void> => {
    const startedAt = underWay.get(id)
    if (startedAt === undefined) {
      refuse(response, 400, "InvalidRequestID", "Invalid request ID")
      return Promise.resolve()
    }
    return answer(startedAt).then((complete) => {
      // Its time may have run out meanwhile.
      if (underWay.delete(id)) answers.set(id, complete)
      if (complete.error?.errorType === "Function.ResponseSizeTooLarge") {
        return refuse(response, 413, "RequestEntityTooLarge", complete.error.errorMessage)
      }
      accept(response)
    })
  }

  const onResponse = (request: Http.IncomingMessage) => async (startedAt: number): Promise<Answer> => {
    const isStreamed = request.headers["lambda-runtime-function-response-mode"] === "streaming"
    const chunks: Array<Chunk> = []
    request.on("data", (bytes: Buffer) => chunks.push({ after: performance.now() - startedAt, bytes }))
    const { length } = await body(request)
    const { trailers } = request
    const failure = trailers["lambda-runtime-function-error-type"]
    const error = failure !== undefined
      ? postedError(
        Buffer.from(trailers["lambda-runtime-function-error-body"] ?? "", "base64").toString(),
        failure
      )
      : isStreamed || length <= maxResponse
      ? undefined
      : {
        errorType: "Function.ResponseSizeTooLarge",
        errorMessage: `Response payload size exceeded maximum allowed payload size (${maxResponse} bytes).`,
        trace: []
      }
    return { contentType: request.headers["content-type"] ?? "application/json", isStreamed, chunks, error }
  }

  const onError = (request: Http.IncomingMessage) => async (startedAt: number): Promise<Answer> => {
    const bytes = await body(request)
    return {
      contentType: "application/json",
      isStreamed: false,
      chunks: [{ after: performance.now() - startedAt, bytes }],
      error: postedError(bytes.toString(), first(request.headers["lambda-runtime-function-error-type"]))
    }
  }

  const onInitError = async (request: Http.IncomingMessage, response: Http.ServerResponse): Promise<void> => {
    const text = (await body(request)).toString()
    initError ??= postedError(text, first(request.headers["lambda-runtime-function-error-type"]))
    accept(response)
  }

  const onRegister = async (request: Http.IncomingMessage, response: Http.ServerResponse): Promise<void> => {
    const { events = [] } = parse((await body(request)).toString())
    const name = first(request.headers["lambda-extension-name"])
    if (!isOpen) {
      return refuse(response, 403, "Extension.RegistrationError", "Extensions register during initialization only")
    }
    if (name === undefined || name === "") {
      return refuse(response, 400, "Extension.InvalidExtensionName", "Empty extension name")
    }
    const isExternal = externalExtensions.includes(name)
    const wanted = new Set(Array.isArray(events) ? events.map(String) : [])
    if (!isExternal && wanted.has("SHUTDOWN")) {
      return refuse(
        response,
        403,
        "ShutdownEventNotSupportedForInternalExtension",
        "SHUTDOWN is not supported for internal extensions"
      )
    }
    const id = randomUUID()
    let waiting: Http.ServerResponse | undefined
    extensions.set(id, {
      id,
      name,
      isExternal,
      events: wanted,
      isReady: () => waiting !== undefined,
      poll: (poll) => {
        waiting = poll
        poll.once("close", () => {
          if (waiting === poll) waiting = undefined
        })
      },
      tell: (event) => {
        const poll = waiting
        waiting = undefined
        if (poll !== undefined) reply(poll, 200, event, { "Lambda-Extension-Event-Identifier": randomUUID() })
      }
    })
    reply(response, 200, { functionName: "local", functionVersion: "$LATEST", handler }, {
      "Lambda-Extension-Identifier": id
    })
  }

  const onExtensionNext = (request: Http.IncomingMessage, response: Http.ServerResponse): void => {
    const extension = extensions.get(first(request.headers["lambda-extension-identifier"]) ?? "")
    if (extension === undefined) {
      return refuse(response, 403, "Extension.UnknownExtensionIdentifier", "Unknown extension")
    }
    extension.poll(response)
  }

  const route = async (request: Http.IncomingMessage, response: Http.ServerResponse): Promise<void> => {
    const what = `${request.method} ${request.url}`
    const invocation = /^POST \/2018-06-01\/runtime\/invocation\/([^/]+)\/(response|error)$/.exec(what)
    if (invocation !== null) {
      const [, id = "", kind] = invocation
      return answerTo(id, response, kind === "response" ? onResponse(request) : onError(request))
    }
    switch (what) {
      case "GET /2018-06-01/runtime/invocation/next":
        return onNext(response)
      case "POST /2018-06-01/runtime/init/error":
        return onInitError(request, response)
      case "POST /2020-01-01/extension/register":
        return onRegister(request, response)
      case "GET /2020-01-01/extension/event/next":
        return onExtensionNext(request, response)
      case "POST /2020-01-01/extension/init/error":
      case "POST /2020-01-01/extension/exit/error":
        return onInitError(request, response)
      default:
        refuse(response, 404, "NotFound", `There is no ${what}`)
    }
  }

  const server = Http.createServer({ keepAliveTimeout: 0, requestTimeout: 0 }, (request, response) => {
    // A process that is killed cuts its requests off; its end is news enough.
    route(request, response).then(onNews, onNews)
  })
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject)
    server.listen(0, "127.0.0.1", resolve)
  })

  return {
    port: (server.address() as AddressInfo).port,
    polls: () => polls.length,
    extensions: () => [...extensions.values()],
    initError: () => initError,
    deliver: ({ arn, deadline, id, payload, traceId }) => {
      underWay.set(id, performance.now())
      const poll = polls.shift()
      poll?.writeHead(200, {
        "Content-Type": "application/json",
        "Lambda-Runtime-Aws-Request-Id": id,
        "Lambda-Runtime-Deadline-Ms": String(deadline),
        "Lambda-Runtime-Invoked-Function-Arn": arn,
        "Lambda-Runtime-Trace-Id": traceId
      })
      poll?.end(payload)
    },
    answer: (id) => answers.get(id),
    drop: (id) => {
      underWay.delete(id)
      answers.delete(id)
    },
    closeRegistration: () => {
      isOpen = false
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      })
  }
}
