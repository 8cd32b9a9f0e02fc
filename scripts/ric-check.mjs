// Whether the loop of the local Lambda does what the official Node.js runtime does: the same handlers under both, on the
// same Runtime API, and a table of how each case ended. Downloads the official runtime, so it is no part of `npm test`.
// Its HTTP client is an addon in C++, which is not compiled here: a stand-in over node:http takes its place.
import { LocalLambda } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { spawnSync } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { isDeepStrictEqual } from "node:util"

const version = "4.0.2"

/** What `rapid-client.node` exports. Its posts block; here the next poll waits for them. */
const standIn = `
const Http = require("node:http")
const Module = require("node:module")
const [hostname, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(":")
const call = (method, path, body, headers = {}) =>
  new Promise((resolve, reject) => {
    const length = body === undefined ? {} : { "Content-Length": Buffer.byteLength(body) }
    const options = { hostname, port, method, path: "/2018-06-01/runtime/invocation/" + path }
    Http.request({ ...options, headers: { ...length, ...headers } }, (response) => {
      let bodyJson = ""
      response.setEncoding("utf8").on("data", (text) => { bodyJson += text })
      response.on("end", () => resolve({ bodyJson, headers: response.headers }))
    }).on("error", reject).end(body)
  })
let posted = Promise.resolve()
const client = {
  initializeClient() {},
  next: () => posted.then(() => call("GET", "next")),
  done(id, body) {
    posted = call("POST", id + "/response", body, { "Content-Type": "application/json" })
  },
  error(id, body) {
    const { errorType } = JSON.parse(body)
    posted = call("POST", id + "/error", body, { "Lambda-Runtime-Function-Error-Type": errorType })
  }
}
const load = Module._load
Module._load = (request, ...rest) => request.endsWith("rapid-client.node") ? client : load(request, ...rest)
`

const folder = mkdtempSync(join(tmpdir(), "ric-check-"))
process.once("exit", () => rmSync(folder, { recursive: true, force: true }))

writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true }))
const install = spawnSync(
  "npm",
  ["install", `aws-lambda-ric@${version}`, "--ignore-scripts", "--no-audit", "--no-fund", "--silent"],
  { cwd: folder, stdio: ["ignore", "inherit", "inherit"] }
)
if (install.status !== 0) throw new Error(`npm could not install aws-lambda-ric@${version}`)
writeFileSync(join(folder, "standIn.cjs"), standIn)
const handlers = new URL("../test/integration/fixtures/lambda.ts", import.meta.url).href
// The official runtime looks for JavaScript.
writeFileSync(join(folder, "handlers.mjs"), `export * from ${JSON.stringify(handlers)}\n`)

const official = [
  process.execPath,
  "--require",
  join(folder, "standIn.cjs"),
  join(folder, "node_modules", "aws-lambda-ric", "index.mjs")
]

/** How an invocation ended, without what differs from run to run. */
const ending = (exit, pick = (payload) => payload) =>
  Exit.match(exit, {
    onSuccess: ({ metadata, payload }) => metadata === undefined ? pick(payload) : [metadata, pick(payload)],
    onFailure: (cause) => {
      const { _tag, errorMessage, errorType } = cause.reasons[0]?.error ?? { _tag: String(cause) }
      return [_tag, errorType, errorMessage?.replace(/RequestId: \S+ /, "")].filter((word) => word !== undefined)
    }
  })

const type = (words) => Array.isArray(words) ? words.slice(0, 2) : words

const invoke = (lambda, event, options) => Effect.exit(lambda.invoke(event, options))
const once = (event, pick) => (lambda) => Effect.map(invoke(lambda, event), (exit) => ending(exit, pick))
const twice = (event, pick, options) => (lambda) =>
  Effect.gen(function*() {
    const first = yield* invoke(lambda, event)
    return [ending(first, pick), ending(yield* invoke(lambda, event, options), pick)]
  })
const written = (lambda) =>
  Effect.map(lambda.logs, (lines) => lines.filter(({ source }) => source === "runtime").map(({ text }) => text))

const cases = [
  ["warm start", "count", {}, twice({ a: 1 }, ({ call, event, loads }) => ({ call, event, loads }))],
  ["no result", "nothing", {}, once()],
  ["the handler throws", "fails", {}, twice()],
  ["the response is too large", "big", {}, once()],
  ["a handler with a callback", "withCallback", {}, (lambda) => Effect.map(once()(lambda), type)],
  ["no such export", "nobody", {}, (lambda) => Effect.map(once()(lambda), type)],
  ["init throws", "count", { env: { INIT: "throws" } }, once()],
  ["init exits", "count", { env: { INIT: "exits" } }, once()],
  ["process.exit(7)", "exits", {}, once({ code: 7 })],
  ["an uncaught exception", "throwsLater", {}, once()],
  ["a time-out, then another try", "sleeps", { timeout: "1 second" }, (lambda) =>
    Effect.gen(function*() {
      const late = yield* invoke(lambda, { millis: 5000 })
      return [ending(late), ending(yield* invoke(lambda, { millis: 0 }), ({ call }) => call)]
    })],
  ["a streamed response", "streams", {}, once({ pause: 20 })],
  ["a stream that breaks off", "breaksOff", {}, twice()],
  [
    "10 minutes frozen",
    "clocks",
    {},
    (lambda) =>
      Effect.map(
        Effect.all([lambda.invoke(), lambda.invoke(null, { after: "10 minutes" })]),
        ([before, after]) => Math.round((after.payload.now - before.payload.now) / 60_000)
      )
  ],
  ["what is left behind runs in the next one", "leaves", {}, (lambda) =>
    Effect.gen(function*() {
      yield* lambda.invoke()
      yield* lambda.thaw()
      yield* Effect.sleep(200)
      return (yield* lambda.invoke()).payload
    })],
  ["SIGTERM without an extension", "count", { env: { ON_SIGTERM: "leaves" } }, (lambda) =>
    Effect.gen(function*() {
      yield* lambda.invoke()
      const [{ exitCode, isForced, signal }] = yield* lambda.shutdown()
      return [signal, isForced, exitCode, ...yield* written(lambda)]
    })],
  [
    "SIGTERM with an internal extension",
    "count",
    { env: { INIT: "registers", ON_SIGTERM: "leaves" } },
    (lambda) =>
      Effect.gen(function*() {
        yield* lambda.invoke()
        const [{ exitCode, isForced, signal }] = yield* lambda.shutdown()
        return [signal, isForced, exitCode, ...yield* written(lambda)]
      })
  ],
  ["4 at a time, 2 worker threads", "together", { concurrency: 4, workers: 2 }, (lambda) =>
    Effect.map(
      Effect.all(Array.from({ length: 4 }, () => lambda.invoke({ millis: 1000 })), { concurrency: "unbounded" }),
      (results) => ({
        processes: new Set(results.map(({ payload }) => payload.pid)).size,
        shared: results.some(({ payload }) => payload.most > 1)
      })
    )]
]

const run = (runtime, [, name, options, check]) =>
  Effect.runPromise(
    Effect.scoped(Effect.flatMap(
      LocalLambda.make({
        handler: `${join(folder, "handlers.mjs")}#${name}`,
        timeout: "20 seconds",
        ...options,
        ...(runtime === undefined ? {} : { runtime })
      }),
      check
    )).pipe(Effect.catch((error) => Effect.succeed([error._tag, error.message])))
  )

let differences = 0
console.log(`\naws-lambda-ric ${version} and the loop of LocalLambda, Node ${process.versions.node}\n`)
for (const test of cases) {
  const theirs = await run(official, test)
  const ours = await run(undefined, test)
  const agree = isDeepStrictEqual(theirs, ours)
  if (!agree) differences++
  const text = JSON.stringify(theirs)
  console.log(
    `${agree ? "agree " : "DIFFER"}  ${test[0].padEnd(42)} ${text.length > 100 ? `${text.slice(0, 97)}...` : text}`
  )
  if (!agree) console.log(`        ${"the loop of LocalLambda:".padEnd(42)} ${JSON.stringify(ours).slice(0, 300)}`)
}
console.log(`\n${cases.length - differences} of ${cases.length} agree`)
process.exitCode = differences === 0 ? 0 : 1
