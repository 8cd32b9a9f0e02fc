import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import type { Time } from "../engine.ts"

const shift = (ms: number) => Effect.flatMap(Clock.currentTimeMillis, (now) => TestClock.setTime(now + ms))

/**
 * The time of engines that ask Effect's `Clock`. What sleeps on it when a freeze ends wakes at once; the engines here
 * do not sleep.
 */
export const testTime: Effect.Effect<Time["Service"]> = Effect.succeed({
  pass: (ms) => TestClock.adjust(ms),
  freeze: shift,
  turnBack: (ms) => shift(-ms)
})
