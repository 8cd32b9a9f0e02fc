/**
 * The span of a transaction, for those who work on its edges. Effect makes it, and shows it to what runs inside of the
 * transaction only: not to the checkout before, nor to the COMMIT after. The tracer sees it being made.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Fiber } from "effect/Fiber"
import * as Tracer from "effect/Tracer"
import * as Spans from "./spans.ts"
import * as StatementSpan from "./statementSpan.ts"
import * as UnitOfWork from "./unitOfWork.ts"

interface Cell {
  span: Tracer.Span | undefined
}

const Current = Context.Reference<Cell | undefined>("effect-pg-pool/TransactionSpan", {
  defaultValue: () => undefined
})

/** The same tracer, which keeps the first of its spans in a cell. */
const observed = (tracer: Tracer.Tracer, cell: Cell, fiber: Fiber<unknown, unknown>): Tracer.Tracer => {
  const attempt = fiber.getRef(UnitOfWork.CurrentAttempt)
  return Tracer.make({
    context: tracer.context,
    span: (options) => {
      const span = tracer.span(options)
      if (cell.span === undefined) {
        cell.span = span
        if (attempt > 1) span.attribute(Spans.attribute.attempt, attempt)
        Spans.watchTime(fiber, span)
      }
      return span
    }
  })
}

const marked = <A, E, R>(work: Effect.Effect<A, E, R>, cell: Cell): Effect.Effect<A, E, R> =>
  Effect.onExit(work, (exit) =>
    Effect.sync(() => {
      if (cell.span !== undefined) Spans.mark(cell.span, Spans.failureOf(exit))
    }))

/** Runs `inside` as a transaction whose span tells how it ended. */
export const transact = <A, E, R, E2>(
  inside: Effect.Effect<A, E, R>,
  inTransaction: <A, E, R>(inside: Effect.Effect<A, E, R>) => Effect.Effect<A, E | E2, R>
): Effect.Effect<A, E | E2, R> =>
  Effect.withFiber((fiber: Fiber<unknown, unknown>) => {
    const { tracer } = fiber.cache
    if (tracer === undefined || !StatementSpan.isTraced(fiber)) return inTransaction(inside)
    const cell: Cell = { span: undefined }
    return inTransaction(marked(Effect.provideService(inside, Tracer.Tracer, tracer), cell)).pipe(
      Effect.provideService(Current, cell),
      Effect.provideService(Tracer.Tracer, observed(tracer, cell, fiber))
    )
  })

/** What is done for a transaction outside of it is a part of it all the same. */
export const edge = <A, E, R>(work: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withFiber((fiber: Fiber<unknown, unknown>): Effect.Effect<A, E, R> => {
    const cell = fiber.cache.tracer === undefined ? undefined : fiber.getRef(Current)
    return cell?.span === undefined
      ? work
      : Effect.provideService(marked(work, cell), Tracer.ParentSpan, cell.span) as Effect.Effect<A, E, R>
  })
