/** What a fleet's life comes to in numbers. Milliseconds throughout. */
import { isFull } from "./failure.ts"
import type { Life, Phase, PhaseName } from "./life.ts"
import type { Outcome } from "./order.ts"

export interface PhaseFigures {
  readonly name: PhaseName
  readonly requests: number
  readonly failed: number
  /** Those that failed because the server was full. */
  readonly full: number
  /** How often each failure was seen, the most frequent first. */
  readonly failures: ReadonlyArray<readonly [failure: string, times: number]>
  /** Of those that succeeded; `undefined` when none did. */
  readonly p50: number | undefined
  readonly p99: number | undefined
  readonly max: number | undefined
  readonly mostSessions: number
  /** That the server saw, and those that it refused. */
  readonly connects: number
  readonly refused: number
}

export interface RecoveryFigures {
  /** Connects that the server saw in the busiest second after it was back, and in all, until the end of the phase. */
  readonly connectsInASecond: number
  /** Requests that came or waited in that second. */
  readonly callersThen: number
  readonly connects: number
  readonly requests: number
  /** From the server's return to the first success, and to the moment from which on 99 of 100 requests are as in steady load. */
  readonly firstSuccess: number | undefined
  readonly normal: number | undefined
}

export interface Figures {
  readonly phases: ReadonlyArray<PhaseFigures>
  readonly recovery: RecoveryFigures
}

const quantile = (sorted: ReadonlyArray<number>, share: number): number | undefined =>
  sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)]

const within = (from: number, to: number) => (at: number): boolean => at >= from && at <= to

/** The second into which most of them fall. */
const busiestSecond = (moments: ReadonlyArray<number>): { readonly until: number; readonly count: number } => {
  const sorted = moments.toSorted((one, other) => one - other)
  let first = 0
  let busiest = { until: -Infinity, count: 0 }
  for (const [index, until] of sorted.entries()) {
    while (sorted[first]! < until - 1000) first++
    const count = index - first + 1
    if (count > busiest.count) busiest = { until, count }
  }
  return busiest
}

const phaseFigures = (life: Life, { from, name, outcomes, to }: Phase): PhaseFigures => {
  const times = new Map<string, number>()
  for (const [, , failure] of outcomes) if (failure !== "") times.set(failure, (times.get(failure) ?? 0) + 1)
  const took = outcomes.flatMap(([, took, failure]) => (failure === "" ? [took] : [])).toSorted((a, b) => a - b)
  const here = within(from, to)
  return {
    name,
    requests: outcomes.length,
    failed: outcomes.length - took.length,
    full: outcomes.filter(([, , failure]) => isFull(failure)).length,
    failures: Array.from(times).toSorted(([, one], [, other]) => other - one),
    p50: quantile(took, 0.5),
    p99: quantile(took, 0.99),
    max: took.at(-1),
    mostSessions: Math.max(0, ...life.samples.filter(({ at }) => here(at)).map(({ sessions }) => sessions)),
    connects: life.connects.filter(here).length,
    refused: life.refusals.filter(here).length
  }
}

/** As many have to follow for a statement about 99 of 100. */
const enough = 20

const normalAfter = (up: number, outcomes: ReadonlyArray<Outcome>, limit: number): number | undefined => {
  const after = outcomes.filter(([at]) => at >= up).toSorted(([one], [other]) => one - other)
  let bad = 0
  let since: number | undefined
  for (const [index, [at, took, failure]] of Array.from(after.entries()).toReversed()) {
    if (failure !== "" || took > limit) bad++
    const following = after.length - index
    if (following >= enough && bad / following <= 0.01) since = at - up
  }
  return since
}

const recoveryFigures = (life: Life, steady: PhaseFigures | undefined): RecoveryFigures => {
  const { up } = life.crash
  const { outcomes, to } = life.phases.find(({ name }) => name === "restart")!
  const connects = life.connects.filter(within(up - 50, to))
  const successes = outcomes.flatMap((
    [at, took, failure]
  ) => (failure === "" && at + took > up ? [at + took - up] : []))
  const { count, until } = busiestSecond(connects)
  return {
    connectsInASecond: count,
    callersThen: outcomes.filter(([at, took]) => at <= until && at + took >= until - 1000).length,
    connects: connects.length,
    requests: outcomes.filter(([at, took]) => at + took > up).length,
    firstSuccess: successes.length === 0 ? undefined : Math.min(...successes),
    normal: steady?.p99 === undefined ? undefined : normalAfter(up, outcomes, Math.max(100, 2 * steady.p99))
  }
}

export const figuresOf = (life: Life): Figures => {
  const phases = life.phases.filter(({ name }) => name !== "freeze").map((phase) => phaseFigures(life, phase))
  return { phases, recovery: recoveryFigures(life, phases.find(({ name }) => name === "steady")) }
}
