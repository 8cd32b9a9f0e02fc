/**
 * An external extension that does nothing: a process of its own beside the runtime, whose mere presence gives the
 * runtime a SIGTERM and 300 ms before it is killed.
 */
import * as Http from "node:http"

const [hostname, port] = (process.env.AWS_LAMBDA_RUNTIME_API ?? "").split(":")

interface Reply {
  readonly headers: Http.IncomingHttpHeaders
  readonly body: string
}

const call = (method: string, path: string, headers: Record<string, string>, body?: string): Promise<Reply> =>
  new Promise((resolve, reject) => {
    const request = Http.request(
      { hostname, port, method, path: `/2020-01-01/extension/${path}`, headers },
      (response) => {
        let text = ""
        response.setEncoding("utf8")
        response.on("data", (chunk: string) => {
          text += chunk
        })
        response.once("end", () => resolve({ headers: response.headers, body: text }))
        response.once("error", reject)
      }
    )
    request.once("error", reject)
    request.end(body)
  })

const registration = await call(
  "POST",
  "register",
  { "Lambda-Extension-Name": process.argv[2] ?? "" },
  JSON.stringify({ events: ["INVOKE", "SHUTDOWN"] })
)
const identifier = String(registration.headers["lambda-extension-identifier"])

while (true) {
  const { body } = await call("GET", "event/next", { "Lambda-Extension-Identifier": identifier })
  const event = JSON.parse(body) as { readonly eventType: string; readonly shutdownReason?: string }
  process.stdout.write(`${event.eventType}${event.shutdownReason === undefined ? "" : ` ${event.shutdownReason}`}\n`)
  if (event.eventType === "SHUTDOWN") break
}
