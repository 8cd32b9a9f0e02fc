/**
 * An external extension that does nothing: a process of its own beside the runtime, whose mere presence gives the
 * runtime a SIGTERM and 300 ms before it is killed.
 */
import { exchange, type Reply } from "./exchange.ts"

const [hostname, port] = (process.env.AWS_LAMBDA_RUNTIME_API ?? "").split(":")

const call = (method: string, path: string, headers: Record<string, string>, body?: string): Promise<Reply> =>
  exchange({ hostname, port, method, path: `/2020-01-01/extension/${path}`, headers }, body)

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
