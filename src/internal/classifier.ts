/**
 * What a program knows better than the tables: its own functions of the failure, asked after the tables and held to
 * what the tables know for certain.
 */
import type { Circumstances, Failure, Verdict } from "./verdict.ts"
import { isFatal, kinds } from "./verdict.ts"

/** A judgement on a failure that has a verdict already. */
export type Classify = (failure: Failure, circumstances: Circumstances, byDefault: Verdict) => Verdict

/** Has nothing to add. */
export const abstain: Classify = (_failure, _circumstances, byDefault) => byDefault

const words: { readonly [Key in keyof Verdict]: ReadonlyArray<Verdict[Key]> } = {
  kind: kinds,
  effect: ["NotRun", "RolledBack", "Unknown"],
  retry: ["Never", "Now", "Backoff", "BackoffSlow"],
  breaker: ["Success", "Failure", "Ignored"],
  connection: ["Keep", "Evict", "EvictAll"]
}

const isVerdict = (said: unknown): said is Verdict =>
  typeof said === "object" && said !== null &&
  Object.entries(words).every(([key, allowed]) =>
    (allowed as ReadonlyArray<unknown>).includes((said as Record<string, unknown>)[key])
  )

const effectOf = (said: Verdict, byDefault: Verdict, isReply: boolean): Verdict["effect"] => {
  // Whether anything ran follows from the phase alone.
  if (byDefault.effect === "NotRun") return "NotRun"
  // Nothing can be read out of an answer that never came.
  if (byDefault.effect === "Unknown" && !isReply) return "Unknown"
  return said.effect === "NotRun" ? "RolledBack" : said.effect
}

/** The verdict, without what cannot be so. */
const heldToFacts = (said: Verdict, byDefault: Verdict, { severity, sqlState }: Failure): Verdict => {
  const isReply = sqlState !== undefined
  const isOver = !isReply || isFatal(severity) || byDefault.effect === "NotRun"
  return {
    kind: said.kind,
    effect: effectOf(said, byDefault, isReply),
    retry: said.retry,
    breaker: said.breaker,
    connection: said.connection === "Keep" && isOver ? byDefault.connection : said.connection
  }
}

/**
 * Asks the functions in turn: each sees the verdict so far, the last has the last word. One that throws, or returns something else, has said nothing; its first defect is reported.
 */
export const compose = (
  classifiers: ReadonlyArray<Classify | undefined>,
  report: (defect: unknown) => void
): Classify => {
  const asked = classifiers.filter((each) => each !== undefined && each !== abstain) as ReadonlyArray<Classify>
  const reported = new Set<Classify>()
  const ask = (classify: Classify, failure: Failure, circumstances: Circumstances, byDefault: Verdict): Verdict => {
    try {
      const said: unknown = classify(failure, circumstances, byDefault)
      if (isVerdict(said)) return heldToFacts(said, byDefault, failure)
      throw new TypeError("The classifier did not return a verdict. Return byDefault, or a copy of it with changes.")
    } catch (defect) {
      if (!reported.has(classify)) {
        reported.add(classify)
        report(defect)
      }
      return byDefault
    }
  }
  return (failure, circumstances, byDefault) =>
    asked.reduce((verdict, classify) => ask(classify, failure, circumstances, verdict), byDefault)
}
