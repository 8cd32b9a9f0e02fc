/** Response streaming as the official Node.js runtime does it, for the loop of a local Lambda. */
import type * as Http from "node:http"

const streaming = Symbol.for("aws.lambda.runtime.handler.streaming")
const preludeType = "application/vnd.awslambda.http-integration-response"
/** Between the prelude and the body: eight zero bytes, which no JSON holds. */
const delimiter = new Uint8Array(8)

/** What a streaming handler writes its response to: the open request to the Runtime API. */
export interface ResponseStream extends Http.ClientRequest {
  setContentType: (contentType: string) => void
  beforeFirstWrite?: (() => void) | undefined
}

export const isStreaming = (handler: unknown): boolean =>
  typeof handler === "function" && (handler as { [streaming]?: string })[streaming] === "response"

/** Sets the global `awslambda`, before the handler's module is loaded. */
export const install = (): void => {
  Object.assign(globalThis, {
    awslambda: {
      streamifyResponse: (handler: object) => Object.assign(handler, { [streaming]: "response" }),
      HttpResponseStream: {
        from: (stream: ResponseStream, metadata: unknown) => {
          stream.setContentType(preludeType)
          stream.beforeFirstWrite = () => {
            stream.write(JSON.stringify(metadata))
            stream.write(delimiter)
          }
          return stream
        }
      }
    }
  })
}

/** Opens the response. It is chunked, and its trailers tell of an error that came after the first byte. */
export const open = (
  request: (headers: Http.OutgoingHttpHeaders) => Http.ClientRequest
): { readonly stream: ResponseStream; readonly isTaken: Promise<void> } => {
  const stream = request({
    "Lambda-Runtime-Function-Response-Mode": "streaming",
    Trailer: ["Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"],
    "Content-Type": "application/octet-stream",
    "Transfer-Encoding": "chunked"
  }) as ResponseStream
  const isTaken = new Promise<void>((resolve, reject) => {
    stream.once("error", reject)
    stream.once("response", (response: Http.IncomingMessage) => {
      response.resume().once("end", resolve).once("error", reject)
    })
  })
  // A handler that fails is not waiting for it.
  isTaken.catch(() => {})
  stream.setContentType = (contentType) => stream.setHeader("Content-Type", contentType)
  const write = stream.write.bind(stream) as (...args: ReadonlyArray<unknown>) => boolean
  stream.write = ((chunk: unknown, ...rest: ReadonlyArray<unknown>) => {
    const before = stream.beforeFirstWrite
    stream.beforeFirstWrite = undefined
    before?.()
    return write(typeof chunk === "string" || chunk instanceof Uint8Array ? chunk : JSON.stringify(chunk), ...rest)
  }) as typeof stream.write
  return { stream, isTaken }
}

/** Ends the response with an error. */
export const fail = (stream: ResponseStream, error: { readonly errorType: string }): Promise<void> =>
  new Promise((resolve) => {
    stream.addTrailers({
      "Lambda-Runtime-Function-Error-Type": error.errorType,
      "Lambda-Runtime-Function-Error-Body": Buffer.from(JSON.stringify(error)).toString("base64")
    })
    stream.end(() => resolve())
  })
