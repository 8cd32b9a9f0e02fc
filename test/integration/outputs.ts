import * as OtelTracer from "@effect/opentelemetry/OtelTracer"
import * as Resource from "@effect/opentelemetry/Resource"
import { InMemorySpanExporter, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base"
import { NodeTracerProvider } from "@opentelemetry/sdk-trace-node"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Formatter from "effect/Formatter"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Otlp from "effect/observability/Otlp"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { format, inspect } from "node:util"

/** Something that left the program as text, and the way it took. */
export interface Output {
  readonly by: string
  readonly text: string
}

/** All that a program prints, logs, traces and exports, kept to be looked through. */
export interface Outputs {
  readonly all: () => ReadonlyArray<Output>
  /** Adds a text that was rendered elsewhere: a metrics page, a health answer, a line for CloudWatch. */
  readonly add: (by: string, text: string) => void
  /** Adds a value as everything prints it that is known to print values. */
  readonly print: (by: string, value: unknown) => void
  /** Runs an effect with every logger at level Trace. */
  readonly heard: <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /**
   * Runs an effect inside a span, once for each tracer, with every logger at level Trace, and logs what it ends with. Gives
   * the exit of the last run.
   */
  readonly observe: <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) => Effect.Effect<Exit.Exit<A, E>, never, R>
}

/** Everything inherited as well, as pino and the like do it. */
const enumerated = (value: object): string => {
  const fields: Record<string, unknown> = {}
  for (const key in value) fields[key] = (value as Record<string, unknown>)[key]
  return inspect(fields, { depth: Infinity })
}

/** Printers that walk through the whole of a value refuse a few (a BigInt, a cycle), and then print nothing. */
const attempt = (print: () => string | undefined): string => {
  try {
    return print() ?? ""
  } catch (error) {
    return `not printed: ${error instanceof Error ? error.name : "?"}`
  }
}

/** The ways of one value. */
const waysOf = (value: unknown): ReadonlyArray<readonly [way: string, print: () => string | undefined]> => {
  const cause = Cause.fail(value)
  const pretty = (cause: Cause.Cause<unknown>, includeCauseInStack: boolean) =>
    Cause.prettyErrors(cause, { includeCauseInStack }).map((error) =>
      `${error.stack}\n${inspect(error, { depth: Infinity })}\n${JSON.stringify(error)}`
    ).join("\n")
  return [
    ["String", () => String(value)],
    ["console.log", () => format(value)],
    ["console.log %s", () => format("%s %o %j", value, value, value)],
    ["inspect", () => inspect(value, { depth: Infinity, getters: true })],
    ["JSON", () => JSON.stringify(value)],
    ["JSON, spread", () => JSON.stringify({ ...(value as object) })],
    ["for in", () => typeof value === "object" && value !== null ? enumerated(value) : ""],
    ["stack", () => value instanceof Error ? value.stack : ""],
    ["Formatter.format", () => Formatter.format(value)],
    ["Formatter.formatJson", () => Formatter.formatJson(value)],
    ["Cause.pretty", () => Cause.pretty(cause)],
    ["Cause.pretty of a defect", () => Cause.pretty(Cause.die(value))],
    ["Cause.prettyErrors", () => pretty(cause, false)],
    ["Cause.prettyErrors with causes", () => pretty(cause, true)],
    ["Cause", () => `${String(cause)} ${JSON.stringify(cause)} ${inspect(cause, { depth: Infinity })}`],
    ["Exit", () => `${String(Exit.fail(value))} ${JSON.stringify(Exit.fail(value))}`],
    ["an Error around it", () => inspect(new Error("around", { cause: value }), { depth: Infinity })],
    ["an Error around it, pretty", () => Cause.pretty(Cause.fail(new Error("around", { cause: value })))]
  ]
}

/** What programs take out of an error and print on its own. */
const partsOf = (value: unknown): ReadonlyArray<readonly [part: string, value: unknown]> => {
  const parts: Array<readonly [string, unknown]> = []
  const walk = (path: string, each: unknown): void => {
    if (typeof each !== "object" || each === null || parts.length > 20) return
    parts.push([path, each])
    for (const below of ["reason", "cause", "last", "history"]) {
      if (below in each) walk(`${path}.${below}`, (each as Record<string, unknown>)[below])
    }
  }
  walk("", value)
  return parts.length === 0 ? [["", value]] : parts
}

/** A collector of OpenTelemetry's protocol that keeps what it is sent. */
const makeReceiver = (keep: (path: string, body: string) => void) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly url: string; readonly close: () => void }>((resume) => {
      const server = createServer((request, response) => {
        const chunks: Array<Buffer> = []
        request.on("data", (chunk: Buffer) => chunks.push(chunk))
        request.on("end", () => {
          keep(request.url ?? "", Buffer.concat(chunks).toString("utf8"))
          response.setHeader("content-type", "application/json")
          response.end("{}")
        })
      })
      server.listen(0, "127.0.0.1", () => {
        const { port } = server.address() as AddressInfo
        resume(Effect.succeed({
          url: `http://127.0.0.1:${port}`,
          close: () => {
            server.closeAllConnections()
            server.close()
          }
        }))
      })
    }),
    ({ close }) => Effect.sync(close)
  )

export const makeOutputs: Effect.Effect<Outputs, never, Scope.Scope> = Effect.gen(function*() {
  const found: Array<Output> = []
  const add = (by: string, text: string): void => {
    found.push({ by, text })
  }
  const receiver = yield* makeReceiver((path, body) => add(`OTLP ${path}`, body))

  const print = (by: string, value: unknown): void => {
    for (const [part, each] of partsOf(value)) {
      for (const [way, text] of waysOf(each)) add(`${by}${part}, ${way}`, attempt(text))
    }
  }

  const said = (by: string) => (...parts: ReadonlyArray<unknown>) =>
    add(by, `${format(...parts)}\n${inspect(parts, { depth: Infinity })}`)
  const captured = (by: string): Console.Console =>
    new Proxy(console, { get: () => said(by) }) as unknown as Console.Console

  const loggers = Logger.layer([
    Logger.defaultLogger,
    Logger.consolePretty({ colors: false }),
    Logger.consoleJson,
    Logger.consoleLogFmt,
    Logger.consoleStructured,
    Logger.withConsoleLog(Logger.formatSimple),
    Logger.tracerLogger
  ])

  const otlp = Otlp.layerJson({
    baseUrl: receiver.url,
    resource: { serviceName: "test" },
    loggerMergeWithExisting: true
  }).pipe(
    Layer.provide(FetchHttpClient.layer)
  )

  const underSdk = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => {
      const exporter = new InMemorySpanExporter()
      const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
      const sdk = OtelTracer.layer.pipe(
        Layer.provide(Layer.succeed(OtelTracer.OtelTracerProvider, provider)),
        Layer.provide(Resource.layer({ serviceName: "test" }))
      )
      const keep = Effect.sync(() => {
        for (const { attributes, events, name, status } of exporter.getFinishedSpans()) {
          add(`${what}, SDK span ${name}`, inspect({ attributes, events, status }, { depth: Infinity }))
        }
      })
      return Effect.provide(Effect.ensuring(effect, keep), sdk)
    })

  const heard = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) =>
    effect.pipe(
      Effect.provide(loggers),
      Effect.provideService(References.MinimumLogLevel, "Trace"),
      Effect.provideService(Console.Console, captured(what))
    )

  const observe = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) => {
    const told = Effect.withSpan(effect, what).pipe(
      Effect.tapCause((cause) => Effect.logError(`${what} ended`, cause)),
      Effect.tapError((error) => Effect.annotateLogs(Effect.logError(`${what} failed`, error), { error })),
      Effect.withSpan("the caller"),
      Effect.exit
    )
    // The collector is told of everything when its layer closes.
    return Effect.andThen(
      heard(what, Effect.provide(told, otlp, { local: true })),
      underSdk(what, heard(what, told))
    ).pipe(
      Effect.tap((exit) =>
        Effect.sync(() => {
          if (Exit.isSuccess(exit)) return
          print(what, Cause.squash(exit.cause))
          add(`${what}, Exit`, `${inspect(exit, { depth: Infinity })} ${JSON.stringify(exit)} ${String(exit)}`)
        })
      )
    )
  }

  return { all: () => found, add, print, heard, observe }
})

/** A text as it may look inside of others. */
const disguises = (text: string): ReadonlyArray<string> => {
  const bytes = Buffer.from(text)
  // The bits of a neighbour leave the first and the last character of a base64 text open.
  const inBase64 = [0, 1, 2].map((shift) =>
    Buffer.concat([Buffer.alloc(shift), bytes]).toString("base64").replace(/=+$/, "").slice(
      shift === 0 ? 0 : shift + 1,
      -1
    )
  )
  const all = [text, encodeURIComponent(text), JSON.stringify(text).slice(1, -1), bytes.toString("hex"), ...inBase64]
  return [...new Set([...all, ...inBase64.map((each) => each.replaceAll("+", "-").replaceAll("/", "_"))])]
}

/** Where a text can be read, plainly or in disguise and in letters of any case, and the words around it. */
export const leaksOf = (outputs: ReadonlyArray<Output>, text: string): ReadonlyArray<string> => {
  const looks = disguises(text).map((look) => look.toLowerCase())
  return outputs.flatMap(({ by, text: output }) => {
    const searched = output.toLowerCase()
    const at = looks.map((look) => searched.indexOf(look)).find((index) => index >= 0)
    return at === undefined ? [] : [`${by}: ...${output.slice(Math.max(0, at - 80), at + 80)}...`]
  })
}
