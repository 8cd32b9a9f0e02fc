import * as Effect from "effect/Effect"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo, Socket } from "node:net"

/** How the receiver answers: a status, after a while, with headers but a body without end, not at all, or by hanging up. */
export type Answer = number | { readonly status: number; readonly after: number } | "slow body" | "hang" | "hang up"

/** What arrived, in the order of arrival. */
export interface Arrival {
  readonly path: string
  readonly headers: IncomingMessage["headers"]
  readonly body: any
  readonly answered: Answer
}

export interface Receiver {
  url: string
  readonly arrivals: Array<Arrival>
  /** What it says from now on; asked per request. */
  answer: (path: string, nth: number) => Answer
  /** Ends the requests that it has left hanging. */
  readonly release: () => void
  /** No longer listens: connections are refused from now on. */
  readonly stop: Effect.Effect<void>
}

const collect = (request: IncomingMessage, done: (body: Buffer) => void) => {
  const chunks: Array<Buffer> = []
  request.on("data", (chunk: Buffer) => chunks.push(chunk))
  request.on("end", () => done(Buffer.concat(chunks)))
}

const reply = (response: ServerResponse, answer: Answer, hanging: Set<ServerResponse>): void => {
  if (typeof answer === "number") {
    response.writeHead(answer, { "content-type": "application/json" }).end("{}")
  } else if (typeof answer === "object") {
    setTimeout(() => reply(response, answer.status, hanging), answer.after)
  } else if (answer === "hang up") {
    response.destroy()
  } else {
    if (answer === "slow body") response.writeHead(200, { "content-type": "application/json" }).write("{")
    hanging.add(response)
  }
}

/** A collector that speaks OTLP/HTTP with JSON on a port of its own, until the scope closes. */
export const make = Effect.acquireRelease(
  Effect.callback<Receiver>((resume) => {
    const arrivals: Array<Arrival> = []
    const hanging = new Set<ServerResponse>()
    const sockets = new Set<Socket>()
    const server = createServer((request, response) =>
      collect(request, (body) => {
        const path = request.url ?? ""
        const answered = receiver.answer(path, arrivals.filter((arrival) => arrival.path === path).length)
        const isJson = request.headers["content-type"] === "application/json"
        arrivals.push({ path, headers: request.headers, body: isJson ? JSON.parse(body.toString()) : body, answered })
        reply(response, answered, hanging)
      })
    )
    server.on("connection", (socket) => {
      sockets.add(socket)
      socket.on("close", () => sockets.delete(socket))
    })
    const release = () => {
      for (const response of hanging) response.end("}")
      hanging.clear()
    }
    const stop = Effect.callback<void>((done) => {
      for (const socket of sockets) socket.destroy()
      server.close(() => done(Effect.void))
    })
    const receiver: Receiver = { url: "", arrivals, answer: () => 200, release, stop }
    server.listen(0, "127.0.0.1", () => {
      receiver.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
      resume(Effect.succeed(receiver))
    })
  }),
  ({ stop }) => stop
)

/** The data points of the metric bodies that were taken: `name{attributes}` and its figure. */
export const points = (
  body: any
): ReadonlyArray<{ readonly series: string; readonly point: any; readonly kind: string }> =>
  body.resourceMetrics.flatMap((resource: any) =>
    resource.scopeMetrics.flatMap((scope: any) =>
      scope.metrics.flatMap((metric: any) => {
        const kind = ["sum", "gauge", "histogram"].find((kind) => metric[kind] !== undefined)!
        return metric[kind].dataPoints.map((point: any) => ({
          series: `${metric.name}{${
            point.attributes.map((pair: any) => `${pair.key}=${pair.value.stringValue}`).toSorted().join(",")
          }}`,
          point,
          kind
        }))
      })
    )
  )
