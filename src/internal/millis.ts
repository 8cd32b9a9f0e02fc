import * as Duration from "effect/Duration"
import * as Option from "effect/Option"

/** A duration in milliseconds, `NaN` when it is not one: every bound refuses that. */
export const millis = (input: Duration.Input): number =>
  typeof input === "number" ? input : Option.match(Duration.fromInput(input), {
    onNone: () => NaN,
    onSome: Duration.toMillis
  })
