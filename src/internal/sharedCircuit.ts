/**
 * One circuit for a fleet: how the circuit of this process follows the one in a store, and tells it what it finds.
 *
 * The store is asked only when something has failed. A failure that counts asks whether the fleet's circuit is open; an
 * opening here opens the fleet's; and when the open time is over the store decides which process probes. No call waits
 * for the store but the one that would be the probe, and that one not for long. Whenever the store does not answer, the
 * circuit of this process decides, as if there were no fleet.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as CircuitBreaker from "effect/persistence/CircuitBreaker"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import type { Circuit, HalfOpen, Open, Outcome, Permit } from "./breakerMachine.ts"
import * as Machine from "./breakerMachine.ts"
import type { Settings } from "./breakerSettings.ts"
import * as Logbook from "./logbook.ts"
import * as LogFields from "./logFields.ts"

interface Tagged {
  readonly _tag: string
}

/** What a call that wants in is told: leave, a rejection, or `undefined`: it has to wait for room. */
export type Answer<Rejection> = Permit | Rejection | undefined

/** The circuit of this process, for the fleet to move. */
export interface Local<Rejection> {
  readonly settings: Settings
  readonly circuit: () => Circuit
  readonly advance: (next: Circuit, now: number) => void
  /** What this circuit alone says to one call. */
  readonly ask: (now: number) => Answer<Rejection>
  /** Rejects a call because another one is about to probe. */
  readonly reject: (retryAfter: number) => Rejection
}

/** What the circuit of this process tells and asks its fleet. */
export interface Fleet<Rejection> {
  /**
   * What a call is told that comes now, `undefined` when that is for this process to say. `onAnswer` is called at once
   * when the answer is there, be the caller still there or not.
   */
  readonly leave: (
    now: number,
    onAnswer: (answer: Answer<Rejection>) => void
  ) => Effect.Effect<Answer<Rejection>> | undefined
  /** Tells that a call was settled, and what the circuit was before and after. */
  readonly settled: (permit: Permit, outcome: Outcome, previous: Circuit, next: Circuit, now: number) => void
}

type Store = CircuitBreaker.CircuitBreakerStore["Service"]
type Rejected = CircuitBreaker.CircuitOpen | CircuitBreaker.CircuitHalfOpen

/** One question to the store, whether this process may probe. */
interface Inquiry<Rejection> {
  readonly since: number
  /** Who takes the answer, `undefined` when nobody does. */
  taker: ((answer: Answer<Rejection>) => void) | undefined
  isLate: boolean
}

interface Verdict {
  readonly outcome: Outcome
  /** Milliseconds, `undefined` when the circuit of this process has not opened. */
  readonly openFor: number | undefined
}

/** A failure told to the store always opens its circuit: it has been counted here. */
const tripPolicy: CircuitBreaker.TripPolicy = { _tag: "Consecutive", failures: 1 }

/** How long the answer that the fleet's circuit is closed is good for, in milliseconds. */
const checkInterval = 1000

class NoAnswer extends Data.TaggedError("NoAnswer") {}

/** The store has answered what none of its kind would. */
class Nonsense extends Data.TaggedError("Nonsense") {}

export const make = Effect.fnUntraced(
  function*<Rejection extends Tagged>(
    { advance, ask, circuit: circuitNow, reject, settings }: Local<Rejection>,
    store: Store,
    storeTimeout: number
  ): Effect.fn.Return<Fleet<Rejection>, never, Scope.Scope> {
    const { key } = settings
    const random = yield* Random.Random
    const scope = yield* Effect.scope
    const runFork = Effect.runForkWith(yield* Effect.context())
    const book = yield* Logbook.make(undefined)
    const inBackground = (effect: Effect.Effect<unknown, NoAnswer>): void => {
      runFork(Effect.forkIn(Effect.ignore(effect), scope))
    }

    /** Nothing runs in the background any more: that a question has no answer then says nothing about the store. */
    let isClosed = false
    yield* Scope.addFinalizer(
      scope,
      Effect.sync(() => {
        isClosed = true
      })
    )

    let isSilent = false
    let isChecking = false
    let checkedAt = -Infinity
    /** Whether the store has known of this opening: then a closed circuit there means that others have recovered. */
    let isKnown = false
    let inquiry: Inquiry<Rejection> | undefined
    let probe: { readonly permit: Permit; readonly verdict: Deferred.Deferred<Verdict> } | undefined

    // -------------------------------------------------------------------------------------------------------------
    // talking to the store
    // -------------------------------------------------------------------------------------------------------------

    const noteAnswer = (): void => {
      if (!isSilent) return
      isSilent = false
      book.write("breakerStoreBack", () => ({ "db.breaker.key": key }))
    }

    const noteSilence = (cause: Cause.Cause<unknown>): void => {
      if (isSilent || isClosed) return
      isSilent = true
      book.write("breakerStoreLost", () => ({ "db.breaker.key": key, ...LogFields.ofDefect(Cause.squash(cause)) }))
    }

    /** The answer of the store, a rejection being one; fails when there is none that means anything. */
    const answerOf = <A>(
      question: Effect.Effect<A, CircuitBreaker.CircuitBreakerError, Scope.Scope>,
      isSense: (answer: A) => boolean
    ): Effect.Effect<A | Rejected, unknown, Scope.Scope> =>
      question.pipe(
        Effect.filterOrElse(isSense, () => Effect.fail(new Nonsense())),
        Effect.catchTag("CircuitBreakerError", (error): Effect.Effect<Rejected, unknown> => {
          const { reason } = error
          if (reason._tag === "CircuitBreakerStoreError") return Effect.fail(error)
          return reason._tag === "CircuitHalfOpen" || isWithinBounds(reason)
            ? Effect.succeed(reason)
            : Effect.fail(new Nonsense())
        })
      )

    /** An opening that no process of the fleet can have made is one that a clock has moved away from. */
    const isWithinBounds = ({ retryAfter }: { readonly retryAfter: Duration.Duration }): boolean =>
      Duration.toMillis(retryAfter) <= settings.maxOpenFor

    const isState = (state: CircuitBreaker.State): boolean => {
      switch (state._tag) {
        case "Closed":
          return true
        case "Open":
          return isCount(state.consecutiveOpenings) && isWithinBounds(state)
        case "HalfOpen":
          return isCount(state.consecutiveOpenings)
        default:
          return false
      }
    }

    /** Asks within the time that the store has. Without an answer there is nothing more to do: it has been reported. */
    const consult = <A>(
      question: Effect.Effect<A, CircuitBreaker.CircuitBreakerError, Scope.Scope>,
      isSense: (answer: A) => boolean
    ): Effect.Effect<A | Rejected, NoAnswer, Scope.Scope> =>
      answerOf(question, isSense).pipe(
        Effect.timeout(storeTimeout),
        Effect.tap(() => Effect.sync(noteAnswer)),
        Effect.catchCause((cause) => {
          if (Cause.hasInterrupts(cause)) return Effect.interrupt
          noteSilence(cause)
          return Effect.fail(new NoAnswer())
        })
      )

    const record = (generation: number, outcome: Outcome, openFor: number) =>
      consult(
        store.record({ key, generation, outcome, tripPolicy, openFor: Duration.millis(openFor) }),
        () => true
      )

    // -------------------------------------------------------------------------------------------------------------
    // following the fleet
    // -------------------------------------------------------------------------------------------------------------

    /** How long to leave a probe alone that runs elsewhere: the store does not say, and not all shall ask at once. */
    const pause = (): number => settings.probeTimeout * (0.25 + random.nextDoubleUnsafe() / 4)

    /** At least a millisecond: when that is over it is the store, not this circuit, that gives leave to probe. */
    const openUntil = (current: Circuit, wait: number, openings: number, now: number): Open => ({
      _tag: "Open",
      generation: current.generation + 1,
      openedAt: now,
      openFor: Math.min(settings.maxOpenFor, Math.max(1, Math.ceil(wait))),
      openings: Math.max(1, openings)
    })

    /** The circuit with the back-off of the fleet, where that has gone further. */
    const withOpenings = (current: Open | HalfOpen, openings: number, now: number): Open | HalfOpen => {
      if (openings <= current.openings) return current
      const openFor = Machine.openFor(openings, 0, settings)
      if (current._tag === "HalfOpen") return { ...current, openings, lastOpenFor: openFor }
      return { ...current, openings, openFor, openedAt: now - openFor }
    }

    const follow = (reply: CircuitBreaker.Admission | Rejected, current: Open | HalfOpen, now: number): void => {
      if ("generation" in reply) {
        const informed = withOpenings(current, reply.consecutiveOpenings, now)
        return advance(informed, now)
      }
      isKnown = true
      const { generation, openings } = current
      if (reply._tag === "CircuitOpen") {
        return advance(openUntil(current, Duration.toMillis(reply.retryAfter), openings, now), now)
      }
      advance({
        _tag: "HalfOpen",
        generation: generation + 1,
        probeSince: now - settings.probeLease + pause(),
        openings,
        lastOpenFor: current._tag === "Open" ? current.openFor : current.lastOpenFor
      }, now)
    }

    /** Opens the circuit of this process when the fleet's is not closed. */
    const check = Effect.fnUntraced(function*(isStillAsked: (current: Circuit) => boolean) {
      const state = yield* consult(store.state(key), isState)
      const now = yield* Clock.currentTimeMillis
      const current = circuitNow()
      if (state._tag === "Closed" || !("consecutiveOpenings" in state) || !isStillAsked(current)) return
      const wait = state._tag === "Open" ? Duration.toMillis(state.retryAfter) : state.probing ? pause() : 0
      isKnown = true
      advance(openUntil(current, wait, state.consecutiveOpenings, now), now)
    })

    /** A database that fails and answers in turns begins a streak with every other call. */
    const isCheckDue = (now: number): boolean => now - checkedAt >= checkInterval || now < checkedAt

    const checkOnce = Effect.suspend(() => check(({ _tag }) => _tag === "Closed" || _tag === "Ramping")).pipe(
      Effect.ensuring(Effect.sync(() => {
        isChecking = false
      })),
      Effect.scoped
    )

    /** Opens the fleet's circuit, for as long as the fleet's back-off says. */
    const publish = (opened: Open) =>
      Effect.scoped(Effect.gen(function*() {
        const reply = yield* consult(store.admit(key), isAdmission)
        const now = yield* Clock.currentTimeMillis
        const isStill = circuitNow() === opened
        if (!("generation" in reply)) return isStill ? follow(reply, opened, now) : undefined
        const openings = Math.max(opened.openings, reply.consecutiveOpenings + 1)
        const shared: Open = openings === opened.openings
          ? opened
          : { ...opened, openings, openFor: Machine.openFor(openings, random.nextDoubleUnsafe(), settings) }
        const left = Machine.retryAfter(shared, now, settings)
        const transition = yield* record(reply.generation, isStill ? "Failure" : "Ignored", left)
        if (circuitNow() !== opened) return
        // Somebody else was faster: his opening is the fleet's.
        if (transition === undefined) return yield* check((current) => current === opened)
        isKnown = true
        advance(shared, yield* Clock.currentTimeMillis)
      }))

    // -------------------------------------------------------------------------------------------------------------
    // probing for the fleet
    // -------------------------------------------------------------------------------------------------------------

    const wouldProbe = (now: number): boolean => {
      const current = circuitNow()
      return (current._tag === "Open" || current._tag === "HalfOpen") &&
        Machine.admit(current, now, settings).permit !== undefined
    }

    /** Passes the reply of the store on; a promise of what the probe finds, when that is a probe for the fleet. */
    const handOut = (
      reply: CircuitBreaker.Admission | Rejected | undefined,
      taker: (answer: Answer<Rejection>) => void,
      now: number
    ): Deferred.Deferred<Verdict> | undefined => {
      const current = circuitNow()
      if (reply !== undefined && (current._tag === "Open" || current._tag === "HalfOpen") && wouldProbe(now)) {
        follow(reply, current, now)
      }
      const answer = ask(now)
      const isForFleet = reply !== undefined && "generation" in reply && reply.probe
      if (!isForFleet || !isPermit(answer) || !answer.probe) {
        taker(answer)
        return undefined
      }
      isKnown = true
      const verdict = Deferred.makeUnsafe<Verdict>()
      probe = { permit: answer, verdict }
      taker(answer)
      return verdict
    }

    /**
     * Asks the store for leave to probe, and holds the slot there until the probe is settled, at most for a lease. Not
     * in the fiber of the caller: an answer that comes when the caller has gone is a slot that must be given back.
     */
    const inquire = (own: Inquiry<Rejection>) =>
      Effect.scoped(Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          const exit = yield* Effect.exit(
            restore(Effect.timeout(answerOf(store.admit(key), isAdmission), settings.probeLease))
          )
          inquiry = undefined
          // The scope closes.
          if (exit._tag === "Failure" && Cause.hasInterrupts(exit.cause)) return
          if (exit._tag === "Failure") noteSilence(exit.cause)
          else if (!own.isLate) noteAnswer()
          const reply = exit._tag === "Success" ? exit.value : undefined
          const now = yield* Clock.currentTimeMillis
          const verdict = own.taker === undefined ? undefined : handOut(reply, own.taker, now)
          if (reply === undefined || !("generation" in reply) || !reply.probe) return
          const ignored: Verdict = { outcome: "Ignored", openFor: undefined }
          const { openFor, outcome } = verdict === undefined ? ignored : yield* restore(
            Deferred.await(verdict).pipe(
              Effect.timeoutOrElse({ duration: settings.probeLease, orElse: () => Effect.succeed(ignored) })
            )
          ).pipe(
            // The scope closes.
            Effect.catchCause(() => Effect.succeed(ignored))
          )
          if (probe?.verdict === verdict) probe = undefined
          const wait = openFor ?? Machine.openFor(reply.consecutiveOpenings + 1, random.nextDoubleUnsafe(), settings)
          // In a fiber of its own, which goes on for as long as it may when the scope closes: the slot is the fleet's.
          const told = yield* Fiber.await(runFork(Effect.scoped(record(reply.generation, outcome, wait))))
          if (outcome === "Failure" && (told._tag === "Failure" || told.value === undefined)) isKnown = false
        })
      ))

    /** Waits for the answer to an inquiry, for as long as the store has, and then does without. */
    const awaitAnswer = (
      own: Inquiry<Rejection>,
      onAnswer: (answer: Answer<Rejection>) => void,
      now: number
    ): Effect.Effect<Answer<Rejection>> => {
      const answered = Deferred.makeUnsafe<Answer<Rejection>>()
      const taker = (answer: Answer<Rejection>): void => {
        own.taker = undefined
        onAnswer(answer)
        Deferred.doneUnsafe(answered, Effect.succeed(answer))
      }
      const doWithout = Effect.flatMap(Clock.currentTimeMillis, (later) => {
        if (own.taker === taker) {
          own.isLate = true
          noteSilence(Cause.fail(`It did not answer within ${storeTimeout} ms.`))
          taker(ask(later))
        }
        return Deferred.await(answered)
      })
      return Effect.ensuring(
        Effect.suspend(() => {
          // Somebody else may have come first since this call was found to be the probe.
          const isMine = inquiry === undefined || inquiry === own
          if (!isMine || own.taker !== undefined) return Effect.succeed(reject(timeLeft(inquiry ?? own, now)))
          own.taker = taker
          if (inquiry === undefined) {
            inquiry = own
            inBackground(inquire(own))
          }
          return Effect.timeoutOrElse(Deferred.await(answered), { duration: storeTimeout, orElse: () => doWithout })
        }),
        Effect.sync(() => {
          if (own.taker === taker) own.taker = undefined
        })
      )
    }

    const timeLeft = ({ since }: Inquiry<Rejection>, now: number): number =>
      Math.max(1, storeTimeout - Math.max(0, now - since))

    return {
      leave: (now, onAnswer) => {
        if (isClosed || !wouldProbe(now) || inquiry?.isLate === true) return undefined
        return awaitAnswer(inquiry ?? { since: now, taker: undefined, isLate: false }, onAnswer, now)
      },
      settled: (permit, outcome, previous, next, now) => {
        if (probe?.permit === permit) {
          const openFor = next !== previous && next._tag === "Open" ? next.openFor : undefined
          Deferred.doneUnsafe(probe.verdict, Effect.succeed({ outcome, openFor }))
          probe = undefined
          return
        }
        if (next === previous) return
        if (next._tag === "Open") {
          checkedAt = -Infinity
          // The others have recovered since: that the database does not answer this process alone is no news for them.
          if (previous._tag === "HalfOpen" && isKnown) return
          isKnown = false
          inBackground(publish(next))
        } else if (outcome === "Failure" && next._tag === "Closed" && !isChecking && isCheckDue(now)) {
          isChecking = true
          checkedAt = now
          inBackground(checkOnce)
        }
      }
    }
  }
)

const isPermit = <Rejection extends Tagged>(answer: Answer<Rejection>): answer is Permit => answer?._tag === "Permit"

const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0

const isAdmission = ({ consecutiveOpenings, generation }: CircuitBreaker.Admission): boolean =>
  isCount(consecutiveOpenings) && Number.isSafeInteger(generation)
