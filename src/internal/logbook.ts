/**
 * Where every line of ours is written. A line goes to the loggers of the fiber that it happens to, where it happens to
 * one, and else to those that were there when the pool was built; nothing is built of one that nobody wants to read.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import type { Fields } from "./logFields.ts"
import * as LogLimit from "./logLimit.ts"
import type { Line } from "./logLines.ts"
import { lines } from "./logLines.ts"
import * as StatementSpan from "./statementSpan.ts"

export type Name = keyof typeof lines

/** What has to be said in a line. */
export type About<N extends Name> = (typeof lines)[N] extends Line<infer K> ? Pick<Fields, K> : never

export interface Logbook {
  /** Writes a line, unless nobody listens or there have been too many. `about` is asked only if somebody listens. */
  readonly write: <N extends Name>(name: N, about: () => About<N>, span?: Tracer.AnySpan) => void
  /** How many lines were left out and not yet told of. */
  readonly suppressed: () => number
}

const poolName = "db.client.connection.pool.name"

/** As any of them, for who has the fields that it asks for. */
const lineOf = (name: Name): Line => lines[name] as unknown as Line

const isHeard = (level: LogLevel.Severity, context: Context.Context<never>): boolean =>
  !LogLevel.isGreaterThan(Context.get(context, References.MinimumLogLevel), level) &&
  Context.get(context, Logger.CurrentLoggers).size > 0

const present = (fields: Readonly<Record<string, unknown>>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))

const entry = <N extends Name>(
  name: N,
  about: About<N>,
  more: Readonly<Record<string, unknown>>
): Effect.Effect<void> => {
  const { event, level, says } = lineOf(name)
  const words = says(about as Fields)
  return Effect.annotateLogs(Effect.logWithLevel(level)(words), present({ "event.name": event, ...more, ...about }))
}

const trace = (span: Tracer.AnySpan | undefined): Readonly<Record<string, unknown>> =>
  span === undefined ? {} : { trace_id: span.traceId, span_id: span.spanId }

/** What is logged from now on names the pool: what its hooks and its password have to say, too. */
export const naming = (context: Context.Context<never>, pool: string): Context.Context<never> =>
  Context.add(context, References.CurrentLogAnnotations, {
    ...Context.get(context, References.CurrentLogAnnotations),
    [poolName]: pool
  })

/** The line as an effect of the fiber that it happens to, without any limit: for what happens rarely. */
export const write = <N extends Name>(name: N, about: About<N>): Effect.Effect<void> =>
  Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => entry(name, about, trace(StatementSpan.nearest(fiber))))

/** A logbook of the pool, or of what belongs to none, for the rest of the life of what is built here. */
export const make = (pool: string | undefined): Effect.Effect<Logbook> =>
  Effect.contextWith((built: Context.Context<never>) => Effect.sync(() => open(pool, built)))

const open = (pool: string | undefined, built: Context.Context<never>): Logbook => {
  const clock = Context.get(built, Clock.Clock)
  // The span in which a layer is built is over when something happens.
  const home = Context.add(
    Context.omit(Tracer.ParentSpan)(built),
    References.CurrentLogSpans,
    []
  ) as Context.Context<never>
  const limits = new Map<string, LogLimit.Limit>()

  const admit = (name: Name, about: Fields): number | undefined => {
    const { limitedBy } = lineOf(name)
    if (limitedBy === false) return 0
    const key = `${name} ${limitedBy(about)}`
    let limit = limits.get(key)
    if (limit === undefined) {
      limit = LogLimit.make()
      limits.set(key, limit)
    }
    return LogLimit.admit(limit, clock.currentTimeMillisUnsafe())
  }

  return {
    write: (name, about, span) => {
      const { level, of } = lines[name]
      const fiber = of === "caller" ? Fiber.getCurrent() : undefined
      const context: Context.Context<never> = fiber?.context ?? home
      // Whoever silences the layer silences all that is written for it.
      if (!isHeard(level, home) || (fiber !== undefined && !isHeard(level, context))) return
      const told = about()
      const suppressed = admit(name, told as Fields)
      if (suppressed === undefined) return
      const more = {
        [poolName]: pool,
        ...trace(span ?? (fiber && StatementSpan.nearest(fiber))),
        suppressed: suppressed === 0 ? undefined : suppressed
      }
      Effect.runForkWith(context)(entry(name, told, more))
    },
    suppressed: () => {
      let sum = 0
      for (const { suppressed } of limits.values()) sum += suppressed
      return sum
    }
  }
}
