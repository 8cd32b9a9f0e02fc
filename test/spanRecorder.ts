import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"

/** Keeps every span that is made, in the order in which they are made. */
export interface SpanRecorder {
  readonly spans: ReadonlyArray<Tracer.NativeSpan>
  readonly tracer: Tracer.Tracer
  readonly named: (name: string) => ReadonlyArray<Tracer.NativeSpan>
  readonly names: () => ReadonlyArray<string>
  readonly forget: () => void
  /** Runs an effect with all of its spans recorded. */
  readonly record: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

export const make = (sampled?: (name: string) => boolean): SpanRecorder => {
  const spans: Array<Tracer.NativeSpan> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan({ ...options, sampled: sampled?.(options.name) ?? options.sampled })
      spans.push(span)
      return span
    }
  })
  return {
    spans,
    tracer,
    named: (name) => spans.filter((span) => span.name === name),
    names: () => spans.map((span) => span.name),
    forget: () => {
      spans.length = 0
    },
    record: (effect) => Effect.provideService(effect, Tracer.Tracer, tracer)
  }
}

export const attributesOf = (span: Tracer.Span | undefined): Record<string, unknown> =>
  Object.fromEntries(span?.attributes ?? [])

export const parentOf = (span: Tracer.Span | undefined): Tracer.AnySpan | undefined =>
  span === undefined ? undefined : Option.getOrUndefined(span.parent)
