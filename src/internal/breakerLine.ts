import * as Effect from "effect/Effect"

/**
 * Callers that wait for room, in turn. Whoever makes room serves them, so that no timer has to.
 *
 * `ask` answers for the caller at the head, `undefined` while there is no room.
 */
export interface Line<A> {
  readonly isEmpty: () => boolean
  /** Answers those for whom there is room now. */
  readonly serve: (now: number) => void
  /**
   * Waits for an answer. `onAnswer` is called with it at once, in the fiber that made room: from then on the answer is
   * the caller's, however the waiting ends.
   */
  readonly stand: (now: () => number, onAnswer: (answer: A) => void) => Effect.Effect<A>
}

export const make = <A>(ask: (now: number) => A | undefined): Line<A> => {
  const waiting = new Set<(answer: A) => void>()
  let isServing = false
  const serve = (now: number): void => {
    // Asking may tell an observer, who may make room: what is being served goes on being so.
    if (isServing || waiting.size === 0) return
    isServing = true
    for (const answerTo of waiting) {
      const answer = ask(now)
      if (answer === undefined) break
      waiting.delete(answerTo)
      answerTo(answer)
    }
    isServing = false
  }
  return {
    isEmpty: () => waiting.size === 0,
    serve,
    stand: (now, onAnswer) =>
      Effect.withFiber((fiber) =>
        Effect.callback((resume) => {
          const answerTo = (answer: A): void => {
            onAnswer(answer)
            // Later, so that it does not run inside of whoever made room.
            fiber.currentDispatcher.scheduleTask(() => resume(Effect.succeed(answer)), 0)
          }
          waiting.add(answerTo)
          // Room may have been made on the way here, and perhaps never will be again.
          serve(now())
          return Effect.sync(() => waiting.delete(answerTo))
        })
      )
  }
}
