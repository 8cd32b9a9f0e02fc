import type { Case, CaseOfPool } from "./case.ts"
import { cycle } from "./cases/cycle.ts"
import { evidence } from "./cases/evidence.ts"
import { interleavings } from "./cases/interleavings.ts"
import { lateResults } from "./cases/lateResults.ts"
import { powers } from "./cases/powers.ts"
import { time } from "./cases/time.ts"

/**
 * What is expected of a circuit breaker for a database, in 48 cases. Unless a case says otherwise, five failures in a
 * row open it, for 30 seconds; a probe has 5 seconds; failures more than 60 seconds apart make no streak.
 */
export const cases: ReadonlyArray<Case> = [...cycle, ...lateResults, ...evidence, ...time, ...powers, interleavings]
  .toSorted((one, other) => one.number - other.number)

/** Those that a breaker alone cannot answer. The tests of the executor and of the pool do. */
export const casesOfPool: ReadonlyArray<CaseOfPool> = [
  {
    number: 17,
    title: "the first use of each of 5 pooled sockets fails after a thaw, a fresh connect works",
    expected: "each is repeated once on a fresh connection; closed"
  },
  {
    number: 20,
    title: "acquire timeout, or a full wait queue",
    expected: "`PoolSaturated`, the breaker unchanged"
  },
  {
    number: 36,
    title: "COMMIT or ROLLBACK of a running transaction after the circuit opened",
    expected: "runs, never rejected"
  },
  { number: 37, title: "12 failing statements in one transaction", expected: "one outcome for the transaction" },
  {
    number: 38,
    title: "retry: the database fails 4 times, then works",
    expected: "the result on attempt 5 after 812.5 ms; 4 retries reported"
  },
  { number: 39, title: "a retry meets `CircuitOpen`", expected: "stops at once with it, without a sleep" },
  {
    number: 40,
    title: "the deadline is nearer than the next delay",
    expected: "no sleep; the last error, with a note of the deadline"
  },
  { number: 41, title: "a budget of 10, 10 callers on a dead database", expected: "20 queries in total at most" },
  {
    number: 42,
    title: "an INSERT that is not idempotent, the socket dies after the send",
    expected: "not repeated: `OutcomeUnknown`; repeated if declared idempotent, or if nothing was sent"
  },
  {
    number: 43,
    title: "40001 inside `withTransaction`",
    expected: "the whole transaction runs again, not the statement"
  },
  {
    number: 44,
    title: "interrupted during back-off",
    expected: "no further attempt, no connection leaked, no fiber left"
  }
]
