import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import { TestClock } from "effect/testing"
import type { Case } from "./case.ts"
import type { Engine } from "./engine.ts"
import { epoch, Failed, Reports, Time, Unsupported } from "./engine.ts"

export type Verdict =
  | { readonly _tag: "Pass" }
  | { readonly _tag: "Fail"; readonly reason: string }
  | { readonly _tag: "Cannot"; readonly reason: string }

/** Asks a case of an engine, in a time of its own and with the same dice in every run. Logs nothing. */
export const judge = (subject: Case, engine: Engine): Effect.Effect<Verdict> =>
  Effect.suspend(() => {
    const reports: Array<string> = []
    const recorder = Logger.make(({ logLevel, message }) => {
      if (LogLevel.isGreaterThanOrEqualTo(logLevel, "Warn")) reports.push(String(message))
    })
    return Effect.gen(function*() {
      yield* TestClock.setTime(epoch)
      const time = yield* engine.time
      yield* Effect.provideService(subject.run(engine), Time, time)
    }).pipe(
      Effect.scoped,
      Random.withSeed(`case ${subject.number}`),
      Effect.provideService(Reports, reports),
      Effect.provide(Layer.merge(TestClock.layer(), Logger.layer([recorder]))),
      Effect.exit,
      Effect.map(verdictOf)
    )
  })

const verdictOf = (exit: Exit.Exit<unknown, Failed | Unsupported>): Verdict => {
  if (Exit.isSuccess(exit)) return { _tag: "Pass" }
  const error = Cause.findErrorOption(exit.cause)
  if (Option.isNone(error)) {
    const thrown = Cause.squash(exit.cause)
    return { _tag: "Fail", reason: `it threw ${thrown instanceof Error ? thrown.message : String(thrown)}` }
  }
  return { _tag: error.value instanceof Unsupported ? "Cannot" : "Fail", reason: error.value.message }
}
