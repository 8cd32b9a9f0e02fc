import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as EffectSchedule from "effect/Schedule"
import type { Judgement } from "./evidence.ts"
import * as History from "./history.ts"
import type { Lookout } from "./lookout.ts"
import * as Spans from "./spans.ts"
import type { Kind, Verdict } from "./verdict.ts"
import { isSafeToRepeat } from "./verdict.ts"

/** Why there is no further attempt although one would be safe. */
export type Stop = "attempts" | "deadline" | "budget" | "refusal"

/** What a call may do when it fails. */
export interface Terms {
  readonly retry: EffectSchedule.Schedule<unknown, unknown> | false
  readonly idempotent: boolean
  /** Wall-clock milliseconds. */
  readonly deadlineAt: number
  /** A transaction is repeated as a whole or not at all, by whoever is outside of it. */
  readonly inTransaction: boolean
  /** Wall-clock milliseconds up to which a circuit that rejects the call is waited for; `undefined`: not at all. */
  readonly waitForCircuitUntil: number | undefined
  /** False once something of the failed attempt has taken effect. */
  readonly isTraceless: () => boolean
  /** Hears of an error that nobody has judged, when it is not waited out. */
  readonly onRefusal: (error: unknown) => void
}

/** What recovery needs to know of its surroundings. */
export interface Surroundings<E> {
  /** Wall-clock milliseconds. */
  readonly now: () => number
  /** A random number from 0 to 1. */
  readonly draw: () => number
  readonly find: (error: unknown) => Judgement | undefined
  /** Milliseconds until the next connect is tried after failed ones. */
  readonly connectPause: () => number
  /** Milliseconds after which it is worth asking a circuit again that has rejected a call; `undefined` otherwise. */
  readonly circuitPause: (error: unknown) => number | undefined
  /** Who looks out for a server that cannot be reached. */
  readonly lookout: Lookout
  readonly budget:
    | {
      readonly tokens: number
      readonly withdraw: (cost: number, source?: number) => boolean
      readonly deposit: (tokens: number) => void
    }
    | undefined
  /** An attempt begins after one that failed, in the fiber that it belongs to. */
  readonly onRetry: (kind: Kind, attempt: History.Attempt, error: unknown) => void
  /** An attempt has failed, and what followed is over, which somebody wants to see. */
  readonly onPause: (since: Spans.Beginning, pause: Spans.Pause) => void
  readonly exhausted: (last: unknown, history: ReadonlyArray<History.Attempt>, stoppedBy: Stop) => E
}

/** Overload is answered more slowly than a lost connection, and costs more of the budget. */
const slowFactor = 5

/** Milliseconds over which callers that wait for a circuit come back. */
const spread = 100

/** Milliseconds before its time is up at which a call that waits in vain says what it waited for. */
const lastMoment = 5

/** What a retry costs: nothing where the server is well, so that a race for a row cannot use up what an outage needs. */
const costOf = ({ breaker, kind, retry }: Verdict): number =>
  kind === "Contention" || (retry === "Now" && breaker !== "Failure") ? 0 : retry === "BackoffSlow" ? 2 : 1

export interface Recovery<E0> {
  /** Entered only on failure: decides whether the attempt may be repeated, waits, and repeats it. */
  readonly recover: <A, E, R>(
    first: Cause.Cause<E>,
    attempt: (number: number) => Effect.Effect<A, E, R>,
    terms: Terms,
    history: Array<History.Attempt>
  ) => Effect.Effect<A, E | E0, R>
}

export const make = <E0>(surroundings: Surroundings<E0>): Recovery<E0> => {
  const { budget, find, lookout, now } = surroundings

  /** Milliseconds for which a call that a circuit has rejected waits for it; `undefined`: it must not. */
  const waitForCircuit = (error: unknown, { waitForCircuitUntil = -Infinity }: Terms): number | undefined => {
    const pause = surroundings.circuitPause(error)
    if (pause === undefined) return undefined
    // Those who were rejected together must not come back together.
    const wait = pause + surroundings.draw() * spread
    const left = waitForCircuitUntil - now() - lastMoment
    // A server that is looked out for may be back long before the circuit would ask.
    return wait < left ? wait : lookout.isNeeded() && left > 0 ? left : undefined
  }

  /** The same for a call whose attempt found no server there. */
  const waitForServer = ({ isOfConnect, verdict }: Judgement, { waitForCircuitUntil = -Infinity }: Terms) => {
    const left = waitForCircuitUntil - now() - lastMoment
    return isOfConnect && verdict.kind === "Unreachable" && left > 0 ? left : undefined
  }

  /** Waits for the server, at most as long as it may be waited for, and otherwise as long as nothing better is known. */
  const sitOut = (longest: number, otherwise: number): Effect.Effect<number> =>
    Effect.suspend(() => {
      const since = now()
      const waited = () => Math.max(0, now() - since)
      const sleep = Effect.suspend(() => Effect.sleep(Math.max(0, Math.min(otherwise, longest - waited()))))
      const wait = lookout.isNeeded()
        ? Effect.flatMap(lookout.wait(longest), (isSound) => isSound ? Effect.void : sleep)
        : sleep
      return Effect.map(wait, waited)
    })

  const recover: Recovery<E0>["recover"] = Effect.fnUntraced(function*<A, E, R>(
    first: Cause.Cause<E>,
    attempt: (number: number) => Effect.Effect<A, E, R>,
    terms: Terms,
    history: Array<History.Attempt>
  ): Effect.fn.Return<A, E | E0, R> {
    let cause = first
    let attempts = 1
    let took = 0
    let usedFreshConnection = false
    let spent = 0
    const fiber = yield* Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => Effect.succeed(fiber))
    const step = terms.retry === false ? undefined : yield* EffectSchedule.toStep(terms.retry)

    const again = Effect.suspend(() => {
      const startedAt = now()
      return Effect.onExit(attempt(attempts), () =>
        Effect.sync(() => {
          took = now() - startedAt
        }))
    })
    const failAsItIs = () => {
      const error = Cause.findErrorOption(cause)
      if (error._tag === "Some") History.remember(error.value, history)
      return Effect.failCause(cause)
    }

    for (;;) {
      const error = Cause.findErrorOption(cause)
      if (error._tag === "None") return yield* Effect.failCause(cause)
      const judgement = find(error.value)
      const pausedAt = Spans.begin(fiber)
      const paused = (delay: number) => {
        if (pausedAt === undefined) return
        const kind = judgement?.verdict.kind
        surroundings.onPause(pausedAt, { attempt: attempts + 1, delay, error: error.value, kind })
      }
      if (judgement === undefined) {
        const pause = waitForCircuit(error.value, terms)
        if (pause === undefined) {
          paused(0)
          terms.onRefusal(error.value)
          // A refusal of ours says that nothing ran, which after a doubtful attempt is not the whole truth.
          const isDoubtful = history.some(({ effect }) => effect === "Unknown")
          return yield* isDoubtful
            ? Effect.fail(surroundings.exhausted(error.value, history, "refusal"))
            : failAsItIs()
        }
        paused(yield* sitOut(pause, pause))
      } else {
        if (step === undefined || terms.inTransaction) return yield* failAsItIs()
        const { elapsed, failure, source, verdict } = judgement
        const safe = isSafeToRepeat(verdict, terms.idempotent) && (terms.idempotent || terms.isTraceless())
        const attempted = (delay: number) =>
          history.push({ attempt: attempts, kind: verdict.kind, effect: verdict.effect, failure, delay })
        // What must not be repeated comes out as itself: an earlier failure changes nothing about what it says.
        if (!safe) {
          if (history.length > 0) attempted(0)
          return yield* failAsItIs()
        }
        const giveUp = (stoppedBy: Stop): Effect.Effect<never, E | E0> => {
          attempted(0)
          return stoppedBy === "attempts" && attempts === 1
            ? failAsItIs()
            : Effect.fail(surroundings.exhausted(error.value, history, stoppedBy))
        }
        let stoppedBy: Stop | undefined
        let delay = 0
        if (verdict.retry === "Now" && !usedFreshConnection) {
          usedFreshConnection = true
        } else {
          const next = yield* Effect.exit(step(now(), error.value))
          if (next._tag === "Failure") stoppedBy = "attempts"
          else delay = Duration.toMillis(next.value[1]) * (verdict.retry === "BackoffSlow" ? slowFactor : 1)
          // While connects pause, an earlier attempt would only be told so.
          delay = Math.max(delay, surroundings.connectPause())
        }
        // An attempt that takes as long as the last one must fit in too.
        const isTooLate = now() + delay + Math.max(took, elapsed) >= terms.deadlineAt
        if (stoppedBy === undefined && isTooLate) return yield* giveUp("deadline")
        const cost = costOf(verdict)
        if (stoppedBy === undefined && cost > 0 && budget !== undefined) {
          const before = budget.tokens
          if (!budget.withdraw(cost, source)) stoppedBy = "budget"
          // Nothing, if somebody else has paid for the same event.
          spent += before - budget.tokens
        }
        if (stoppedBy === undefined) {
          attempted(delay)
          // A server that is looked out for may be back long before that.
          const left = waitForServer(judgement, terms)
          const pause = left === undefined
            ? Effect.as(Effect.sleep(delay), delay)
            : sitOut(Math.min(delay, left), delay)
          const waited = delay > 0 ? yield* pause : 0
          history[history.length - 1] = { ...history.at(-1)!, delay: waited }
          paused(waited)
          surroundings.onRetry(verdict.kind, history.at(-1)!, error.value)
          attempts++
        } else {
          const left = waitForServer(judgement, terms)
          if (left === undefined) return yield* giveUp(stoppedBy)
          paused(yield* sitOut(left, delay + surroundings.draw() * spread))
        }
      }
      const exit = yield* Effect.exit(again)
      if (exit._tag === "Success") {
        // What a retry that worked has cost was no storm.
        if (spent > 0) budget?.deposit(spent)
        return exit.value
      }
      cause = exit.cause
    }
  })

  return { recover }
}
