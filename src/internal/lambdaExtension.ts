/**
 * An internal extension that does nothing: with one registered, Lambda sends SIGTERM and waits for half a second before it
 * kills the process; without, it kills at once.
 */
import type { ClientRequest, IncomingMessage } from "node:http"

const version = "2020-01-01"

/** Milliseconds of the ten seconds that Lambda gives the init phase; it answers within one. */
const answersWithin = 1000

let registration: Promise<string | undefined> | undefined

/** Speaks to the Extensions API of the environment that the process runs in. */
const ask = (
  method: "GET" | "POST",
  path: string,
  headers: Readonly<Record<string, string>>,
  body?: string
): { readonly request: ClientRequest; readonly answer: Promise<IncomingMessage> } => {
  // Loaded only where it is asked for: nothing else of ours needs it.
  const { request: open } = process.getBuiltinModule("node:http")
  const url = `http://${process.env["AWS_LAMBDA_RUNTIME_API"]}/${version}/extension/${path}`
  const request = open(url, { method, headers, agent: false })
  const answer = new Promise<IncomingMessage>((resolve, reject) => {
    request.on("error", reject)
    request.on("response", (response) => {
      response.resume()
      if (response.statusCode === 200) resolve(response)
      else reject(Object.assign(new Error(), { code: `status ${response.statusCode}` }))
    })
  })
  request.end(body)
  return { request, answer }
}

/** The answer never comes, and whoever waits for it must not keep a process alive that has nothing else to do. */
const waitForEver = (id: string): void => {
  const { answer, request } = ask("GET", "event/next", { "Lambda-Extension-Identifier": id })
  request.on("socket", (socket) => socket.unref())
  // The platform ends, and the process with it.
  answer.catch(() => {})
}

/** Rejects, rather than throws, where the variable names no address: this is called while a module is loaded. */
const askToRegister = (): Promise<IncomingMessage> =>
  new Promise((resolve) => {
    const { answer, request } = ask("POST", "register", {
      "Lambda-Extension-Name": "effect-pg-pool",
      "Content-Type": "application/json"
    }, JSON.stringify({ events: [] }))
    request.setTimeout(answersWithin, () => request.destroy(Object.assign(new Error(), { code: "ETIMEDOUT" })))
    resolve(answer)
  })

/**
 * Registers once per process, where there is a Lambda around it: what came of it otherwise is the name of what went wrong. No
 * event is asked for, so the next one never comes; that it is waited for tells Lambda that the extension is ready.
 */
export const register = (): Promise<string | undefined> => {
  if (process.env["AWS_LAMBDA_RUNTIME_API"] === undefined) return Promise.resolve(undefined)
  return registration ??= askToRegister().then(({ headers }) => {
    const id = headers["lambda-extension-identifier"]
    if (typeof id !== "string") return "no identifier"
    waitForEver(id)
    return undefined
  }).catch((error: NodeJS.ErrnoException) => error.code ?? error.name)
}
