/** What somebody has given in place of what was asked for, without any of it: it may hold anything. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"

export const kindOf = (value: unknown): string | null | undefined => {
  if (value === undefined || value === null) return value
  if (Effect.isEffect(value)) return "an Effect"
  if (Layer.isLayer(value)) return "a Layer"
  if (Predicate.hasProperty(value, "then")) return "a Promise"
  if (Predicate.hasProperty(value, "next")) return "a generator"
  if (Predicate.hasProperty(value, "runExit")) return "an Environment"
  return Array.isArray(value) ? "an array" : typeof value === "object" ? "an object" : `a ${typeof value}`
}

/** Nobody waits for what was not asked for: that it rejects must not be an unhandled rejection of another invocation. */
export const hush = (value: unknown): void => {
  if (Predicate.hasProperty(value, "then")) Promise.resolve(value).catch(() => {})
}
