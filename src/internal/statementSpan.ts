/**
 * How what happens below a statement finds its span. Effect makes that span before it asks for a connection, and hands it to
 * the statement's transformer only, so the client gives each of its statements a transformer that remembers it. (Why not
 * otherwise: docs/decisions/0014-statement-spans.md.)
 */
import * as Effect from "effect/Effect"
import type { Fiber } from "effect/Fiber"
import * as Statement from "effect/sql/Statement"
import type * as Tracer from "effect/Tracer"

/** A transformer that changes nothing, but for what the program's own one does. */
export interface Witness extends Statement.Transformer {
  readonly pool: string
  span: Tracer.Span | undefined
}

/** Whether anybody would see a span of this fiber: without a tracer, Effect's own makes spans that nobody keeps. */
export const isTraced = ({ cache }: Fiber<unknown, unknown>): boolean =>
  cache.tracer !== undefined && cache.tracerEnabled && cache.span?.sampled !== false

export const witness = (
  fiber: Fiber<unknown, unknown>,
  pool: string,
  onSpan: (span: Tracer.Span) => void
): Witness => {
  const own = fiber.getRef(Statement.CurrentTransformer)
  const transform: Statement.Transformer = (statement, sql, fiber, span) => {
    // A hook that runs statements does so inside of the one that it is for.
    if (made.span === undefined) {
      made.span = span
      onSpan(span)
    }
    return own === undefined ? Effect.succeed(statement) : own(statement, sql, fiber, span)
  }
  const made: Witness = Object.assign(transform, { pool, span: undefined })
  return made
}

const witnessOf = (fiber: Fiber<unknown, unknown>): Partial<Witness> | undefined =>
  fiber.cache.tracer === undefined
    ? undefined
    : fiber.getRef(Statement.CurrentTransformer) as Partial<Witness> | undefined

/** The span of the statement that a fiber is at work for, whosever it is; else the fiber's own. */
export const nearest = (fiber: Fiber<unknown, unknown>): Tracer.AnySpan | undefined =>
  witnessOf(fiber)?.span ?? fiber.cache.span

/** The same, if it is one of the pool's, and will be kept. */
export const of = (fiber: Fiber<unknown, unknown>, pool: string): Tracer.Span | undefined => {
  const witness = witnessOf(fiber)
  return witness?.pool === pool && witness.span?.sampled === true ? witness.span : undefined
}
