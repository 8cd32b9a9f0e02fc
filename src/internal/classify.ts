import { ruleOfFailure } from "./rule.ts"
import type { Circumstances, Failure, Verdict } from "./verdict.ts"
import { effectOf, isFatal } from "./verdict.ts"

/** What a failure means in its circumstances: see `classify` of `Errors.ts`, which publishes it. */
export const classify = (failure: Failure, circumstances: Circumstances): Verdict => {
  const { phase, replied, reused } = circumstances
  const rule = ruleOfFailure(failure, phase)
  const effect = effectOf(rule.proof, phase, failure.severity)
  const connection = rule.connection === "Keep" && (phase === "Connect" || isFatal(failure.severity))
    ? "Evict"
    : rule.connection
  const stale = rule.kind === "Unreachable" && phase === "BeforeWrite" && reused && !replied
  return stale
    ? { kind: "StaleConnection", effect, retry: "Now", breaker: "Ignored", connection }
    : { kind: rule.kind, effect, retry: rule.retry, breaker: rule.breaker, connection }
}
