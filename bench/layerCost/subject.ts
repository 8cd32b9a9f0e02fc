import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"

/** Something whose calls are measured. */
export interface Subject {
  /** Makes this many calls, by so many callers who each have one under way. */
  readonly run: (callers: number, calls: number) => Promise<unknown>
  /** What is not as it should be after this many calls: answers that were wrong, figures that do not add up. */
  readonly faults: (calls: number) => ReadonlyArray<string>
  readonly close: () => Promise<unknown>
}

/** What one caller has to do of all calls; the first has what is left over. */
const shares = (callers: number, calls: number): ReadonlyArray<number> => {
  const each = Math.floor(calls / callers)
  return Array.from({ length: callers }, (_, index) => index === 0 ? calls - each * (callers - 1) : each)
}

let id = 0
/** An id that nobody else has asked for lately. */
const nextId = (): number => id = (id + 1) & 0x3fffffff

/** Answers that were not those that were asked for. */
export class Wrong {
  answers = 0

  note(asked: number, answer: unknown): void {
    const [row, ...more] = answer as ReadonlyArray<{ readonly id?: unknown; readonly name?: unknown }>
    if (more.length > 0 || row?.id !== asked || row.name !== "a thing") this.answers++
  }

  faults(): ReadonlyArray<string> {
    return this.answers === 0 ? [] : [`${this.answers} wrong answers`]
  }
}

/** Callers that are fibers. `call` asks for an id, and `check` hears of the answer. */
export const fibers = <R>(
  context: Context.Context<R>,
  call: (id: number) => Effect.Effect<unknown, unknown, R>,
  check: (id: number, answer: unknown) => void
): Subject["run"] => {
  const caller = (calls: number) =>
    Effect.suspend(() => {
      let left = calls
      let asked = 0
      return Effect.whileLoop({
        while: () => left-- > 0,
        body: () => call(asked = nextId()),
        step: (answer) => check(asked, answer)
      })
    })
  return (callers, calls) =>
    Effect.runPromiseWith(context)(
      callers === 1
        ? caller(calls)
        : Effect.forEach(shares(callers, calls), caller, { concurrency: "unbounded", discard: true })
    )
}

/** Callers that are async functions. */
export const promises = (
  call: (id: number) => Promise<unknown>,
  check: (id: number, answer: unknown) => void
): Subject["run"] => {
  const caller = async (calls: number) => {
    for (let left = calls; left > 0; left--) {
      const asked = nextId()
      check(asked, await call(asked))
    }
  }
  return (callers, calls) => Promise.all(shares(callers, calls).map(caller))
}

export const unchecked = (): void => {}
