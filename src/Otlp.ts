/**
 * Telemetry for functions that are frozen between invocations: pushed at the end of each, over OTLP/HTTP.
 *
 * Effect's own exporters send from a timer, which does not run while a function is frozen. Here there is no timer:
 * {@link flush}, or {@link withFlush} around an invocation, sends metrics, traces and logs in one go, and never costs more than
 * it may, whatever the collector does. Nothing that a collector does fails an invocation.
 *
 * - A collector that is **slow** costs no more than `within` per flush, each time that it is. Its request goes on; the next flush
 *   finds the answer, or waits for it once more and then gives it up: one that is silent costs that twice a minute.
 * - A collector that **fails** (refuses, hangs up, answers with an error, does not answer twice) is asked again at once while
 *   there is time, and is then left alone for a minute, in which flushes cost nothing.
 * - **Metrics** are deltas since what the collector has last acknowledged. Those of a failed flush are part of the next one that
 *   works. **Spans and log records** of a failed flush are lost, and so are those of the minute after it.
 *
 * This module is not part of the barrel: import it from `effect-pg-pool/Otlp`, so that only programs which use it load it.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import type * as Headers from "effect/http/Headers"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as OtlpExporter from "effect/observability/OtlpExporter"
import * as OtlpLogger from "effect/observability/OtlpLogger"
import type { AggregationTemporality } from "effect/observability/OtlpMetrics"
import * as OtlpMetrics from "effect/observability/OtlpMetrics"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as OtlpTracer from "effect/observability/OtlpTracer"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import * as Errors from "./Errors.ts"
import * as Deadlines from "./internal/deadline.ts"
import * as Deltas from "./internal/deltas.ts"
import * as Flights from "./internal/flights.ts"
import { millis } from "./internal/millis.ts"

// -----------------------------------------------------------------------------
// models and options
// -----------------------------------------------------------------------------

/**
 * How a flush ended. `Sent`: the collector has taken everything. `Failed`: it has not taken something, and is left alone for a
 * minute. `Late`: it has not answered yet. `Skipped`: nothing was sent, since there was no time left for it, nothing to send, or the
 * collector is being left alone.
 *
 * @category models
 * @since 0.1.0
 */
export type Outcome = Flights.Outcome

/**
 * What can be sent.
 *
 * @category models
 * @since 0.1.0
 */
export type Signal = "metrics" | "traces" | "logs"

/**
 * @category options
 * @since 0.1.0
 */
export interface FlushOptions {
  /**
   * The longest time that a flush may take. Default: 300 milliseconds, where a collector nearby takes 5 to 50, and one in another
   * region 200.
   */
  readonly within?: Duration.Input | undefined
  /**
   * What a flush leaves of the `Executor.Deadline` around it, so that the answer of the invocation still gets out. Default: 50
   * milliseconds.
   */
  readonly margin?: Duration.Input | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Where the collector is, without `/v1/...`. Default: `http://localhost:4318`, an extension or a sidecar. */
  readonly baseUrl?: string | undefined
  /**
   * Who sends. Default: what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, or the name of the Lambda function. Leave out what tells instances of a function
   * apart: each of them is a time series of its own for ever.
   */
  readonly resource?: {
    readonly serviceName?: string | undefined
    readonly serviceVersion?: string | undefined
    readonly attributes?: Record<string, unknown>
  } | undefined
  /** Sent along with every request, an API key say. Default: none. */
  readonly headers?: Headers.Input | undefined
  /** What is sent. Default: metrics, traces and logs. */
  readonly signals?: ReadonlyArray<Signal> | undefined
  /**
   * Whether a count is that since the last flush (`delta`), or that since the start (`cumulative`), which a Prometheus needs unless
   * its collector adds deltas up. Default: `"delta"`.
   */
  readonly temporality?: AggregationTemporality | undefined
  /** How requests are written. Default: `"protobuf"`, a third of the size of `"json"`. */
  readonly encoding?: "protobuf" | "json" | undefined
  /** Default: `"none"`; `"gzip"` for what is above 1 KB. */
  readonly compression?: "gzip" | "none" | undefined
  /** The longest time that the last flush may take, when the layer's scope closes. Default: 300 milliseconds. */
  readonly shutdownTimeout?: Duration.Input | undefined
}

const defaults = { baseUrl: "http://localhost:4318", within: 300, margin: 50, shutdownTimeout: 300 }

const allSignals: ReadonlyArray<Signal> = ["metrics", "traces", "logs"]

const duration = (
  option: "within" | "margin" | "shutdownTimeout",
  input: Duration.Input | undefined
): number | Errors.InvalidOption => {
  const value = input === undefined ? defaults[option] : millis(input)
  const isPossible = option === "margin" ? value >= 0 && value < Infinity : value > 0 && value < Infinity
  return isPossible ? value : new Errors.InvalidOption({
    option: `otlp.${option}`,
    value: input,
    allowed: option === "margin" ? "a duration of at least 0" : "a finite duration above 0"
  })
}

/** Milliseconds. What is no duration is a mistake in the program, and not a failure that it could handle. */
const certain = (value: number | Errors.InvalidOption): number => {
  if (typeof value === "number") return value
  throw value
}

interface Settings extends Options {
  readonly baseUrl: string
  /** Milliseconds. */
  readonly shutdownTimeout: number
}

/** Effect's exporters read these too, and die where nobody has named the service. */
const environment = Config.all({
  service: Config.option(Config.String("OTEL_SERVICE_NAME")),
  resource: Config.withDefault(Config.String("OTEL_RESOURCE_ATTRIBUTES"), ""),
  lambda: Config.withDefault(Config.String("AWS_LAMBDA_FUNCTION_NAME"), "unknown_service")
})

/** The name of the service where neither the program nor OpenTelemetry's own variables name it. */
const fallbackName: Effect.Effect<string | undefined> = Effect.map(
  environment,
  ({ lambda, resource, service }) =>
    Option.exists(service, (name) => name !== "") || /(^|,)\s*service\.name\s*=/.test(resource) ? undefined : lambda
).pipe(Effect.orDie)

const settle = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<Settings, Errors.InvalidOption> {
  const shutdownTimeout = duration("shutdownTimeout", options.shutdownTimeout)
  if (typeof shutdownTimeout !== "number") return yield* shutdownTimeout
  const baseUrl = options.baseUrl ?? defaults.baseUrl
  if (!/^https?:$/.test(URL.parse(baseUrl)?.protocol ?? "")) {
    return yield* new Errors.InvalidOption({
      option: "otlp.baseUrl",
      value: baseUrl.replace(/^.*@/s, "***@"),
      allowed: "a URL, with http:// or https://"
    })
  }
  const isNamed = options.resource?.serviceName !== undefined ||
    options.resource?.attributes?.["service.name"] !== undefined
  const serviceName = isNamed ? undefined : yield* fallbackName
  const resource = serviceName === undefined ? options.resource : { ...options.resource, serviceName }
  return { ...options, resource, baseUrl, shutdownTimeout }
})

// -----------------------------------------------------------------------------
// service
// -----------------------------------------------------------------------------

/**
 * Sends what has been collected, when it is told to.
 *
 * @category services
 * @since 0.1.0
 */
export class Exporter extends Context.Service<Exporter, {
  /** Sends everything, and waits for the collector no longer than so many milliseconds. See {@link flush}. */
  readonly flushWithin: (millis: number) => Effect.Effect<Outcome>
}>()("effect-pg-pool/Otlp/Exporter") {}

class Transport extends Context.Service<Transport, Flights.Flights>()("effect-pg-pool/Otlp/Transport") {}

const transport: Layer.Layer<Transport | OtlpExporter.Flusher | HttpClient.HttpClient> = Layer.effectContext(
  Effect.gen(function*() {
    const flights = yield* Flights.make(yield* HttpClient.HttpClient)
    return Context.make(Transport, flights).pipe(
      Context.add(OtlpExporter.Flusher, flights.flusher),
      Context.add(HttpClient.HttpClient, flights.client)
    )
  })
).pipe(Layer.provide(FetchHttpClient.layer))

const exporter = (shutdownTimeout: number): Layer.Layer<Exporter | OtlpExporter.Flusher, never, Transport> =>
  Layer.effectContext(
    Effect.gen(function*() {
      const flights = yield* Transport
      // Closes before the exporters do, which would each send what is left on their own.
      yield* Effect.addFinalizer(() => flights.close(shutdownTimeout))
      return Context.make(Exporter, Exporter.of({ flushWithin: flights.flush })).pipe(
        Context.add(OtlpExporter.Flusher, flights.flusher)
      )
    })
  )

const serialization = (encoding: Options["encoding"]): Layer.Layer<OtlpSerialization.OtlpSerialization> =>
  Layer.effect(
    OtlpSerialization.OtlpSerialization,
    OtlpSerialization.OtlpSerialization.use((inner) =>
      Effect.succeed({ ...inner, metrics: (data) => inner.metrics(Deltas.withoutZeros(data)) })
    )
  ).pipe(Layer.provide(encoding === "json" ? OtlpSerialization.layerJson : OtlpSerialization.layerProtobuf))

const build = (settings: Settings): Layer.Layer<Exporter | OtlpExporter.Flusher> => {
  const { baseUrl, compression, encoding, headers, resource, shutdownTimeout, temporality } = settings
  const signals = settings.signals ?? allSignals
  const to = (signal: Signal) => ({
    url: HttpClientRequest.appendUrl(HttpClientRequest.get(baseUrl), `/v1/${signal}`).url,
    resource,
    headers,
    compression,
    // Never by itself: a function that is frozen has no intervals.
    exportInterval: Duration.infinity,
    shutdownTimeout
  })
  const exporters = Layer.mergeAll(
    signals.includes("metrics")
      ? Layer.effectDiscard(OtlpMetrics.make({ ...to("metrics"), temporality: temporality ?? "delta" }))
      : Layer.empty,
    signals.includes("traces") ? Layer.effect(Tracer.Tracer, OtlpTracer.make(to("traces"))) : Layer.empty,
    signals.includes("logs") ? Logger.layer([OtlpLogger.make(to("logs"))], { mergeWithExisting: true }) : Layer.empty
  )
  return exporter(shutdownTimeout).pipe(
    Layer.provideMerge(exporters),
    Layer.provide([transport, serialization(encoding)])
  )
}

/**
 * Sends metrics (everything in Effect's metric registry: the pool's get there by `Metrics.layerOpenTelemetry`), traces and logs to a
 * collector, only when {@link flush} says so and when the layer's scope closes. Requests are made by `fetch`.
 *
 * Fails with `InvalidOption` when a setting is impossible; a collector that is not there does not fail it.
 *
 * @example
 * ```ts
 * import * as Effect from "effect/Effect"
 * import * as ManagedRuntime from "effect/ManagedRuntime"
 * import * as Otlp from "effect-pg-pool/Otlp"
 *
 * const runtime = ManagedRuntime.make(Otlp.layer({ resource: { serviceName: "orders" } }))
 *
 * export const handler = () => runtime.runPromise(Effect.succeed("done").pipe(Otlp.withFlush({ within: "300 millis" })))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<Exporter | OtlpExporter.Flusher, Errors.InvalidOption> =>
  Layer.unwrap(Effect.map(settle(options), build))

// -----------------------------------------------------------------------------
// flushing
// -----------------------------------------------------------------------------

/**
 * Sends everything that has been collected, and waits for the collector no longer than `within`, nor than what is left of the
 * `Executor.Deadline` but for `margin`. It cannot fail, and what went wrong is logged, five times at once and from then on after
 * pauses of up to 5 minutes, like everything that the pool logs.
 *
 * Flushes that meet share their requests: nothing is counted twice, and each of them covers what was there when it was asked for.
 *
 * On platforms that let work go on after the answer, hand it over: `waitUntil(runtime.runPromise(Otlp.flush()))`.
 *
 * @category combinators
 * @since 0.1.0
 */
export const flush = (options: FlushOptions = {}): Effect.Effect<Outcome, never, Exporter> => {
  const within = certain(duration("within", options.within))
  const margin = certain(duration("margin", options.margin))
  return Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
    const deadlineAt = fiber.getRef(Deadlines.Deadline)
    const left = deadlineAt - fiber.getRef(Clock.Clock).currentTimeMillisUnsafe() - margin
    return Exporter.use(({ flushWithin }) => flushWithin(Math.min(within, left)))
  })
}

/**
 * Runs an effect, an invocation say, and {@link flush}es when it has ended: succeeded, failed or interrupted. Its result is not
 * touched.
 *
 * Work that has a deadline inside of this one leaves time for the flush:
 * `Otlp.withFlush(Executor.run(work, { deadline: left - 400 }), { within: "300 millis" })`.
 *
 * @category combinators
 * @since 0.1.0
 */
export const withFlush: {
  (options?: FlushOptions): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R | Exporter>
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: FlushOptions): Effect.Effect<A, E, R | Exporter>
} = /* @__PURE__ */ dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: FlushOptions): Effect.Effect<A, E, R | Exporter> =>
    Effect.ensuring(self, flush(options))
)
