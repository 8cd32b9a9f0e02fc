import * as Effect from "effect/Effect"
import type * as Aside from "./aside.ts"
import * as Fleet from "./fleet.ts"
import type * as Logbook from "./logbook.ts"
import * as LogFields from "./logFields.ts"
import type { Session } from "./session.ts"

/** What the server has said of its places, and what follows from it for this pool. */
export interface Report extends Fleet.Plan, Fleet.Census, Fleet.Sizing {
  /** Wall-clock milliseconds at which it was asked. */
  readonly at: number
}

const mark = "~effect-pg-pool/Fleet"

/** What has to be known of a pool that belongs to a fleet. */
export interface Member {
  readonly settings: { readonly max: number }
  readonly max: number
  readonly generation: number
  readonly now: () => number
  readonly book: Logbook.Logbook
}

/** What a fleet does for a pool that belongs to it. */
export interface Keeper {
  /** What is impossible about the fleet, if anything is. */
  readonly broken: ReturnType<typeof Fleet.firstBroken>
  readonly looksLikePooler: typeof Fleet.looksLikePooler
  readonly keep: <E>(
    pool: Member,
    resize: (max: number) => void,
    tooLarge: (report: Report) => E
  ) => FleetSize<E>
}

/** A fleet as an option of a pool. It brings its keeper along, so that a program without a fleet is spared the code. */
export interface FleetOption {
  readonly [mark]: Keeper
}

export const optionOf = (options: Fleet.FleetOptions): FleetOption => ({
  [mark]: {
    broken: Fleet.firstBroken(options),
    looksLikePooler: Fleet.looksLikePooler,
    keep: (pool, resize, tooLarge) => make(Fleet.planOf(options), pool, resize, tooLarge)
  }
})

export const isFleet = (value: unknown): value is FleetOption => Object(value)[mark] !== undefined

export const keeperOf = (fleet: FleetOption): Keeper => fleet[mark]

/** Keeps a pool to its share of what the server allows to the fleet. */
export interface FleetSize<E> {
  /** Asks by a session that is new, unless the answer is known. The borrower's first statement goes behind the question. */
  readonly met: (session: Session) => void
  /** Asks by a session that is about to be used, if the answer has grown old. */
  readonly lent: (session: Session) => void
  /** Fails if the fleet is too large and nothing is to be opened for it. `undefined` where that only leads to a log line. */
  readonly approve: ((session: Session) => Effect.Effect<void, E>) | undefined
  readonly report: () => Report | undefined
  /** Somebody has sized the pool by hand: what the server says is told from now on, and changes nothing. */
  readonly overrule: () => void
}

/** What is known is trusted for so many milliseconds. */
const trustedFor = 60_000

const make = <E>(
  plan: Fleet.Plan,
  pool: Member,
  resize: (max: number) => void,
  tooLarge: (report: Report) => E
): FleetSize<E> => {
  const { book, now, settings } = pool
  let report: Report | undefined
  let knownOf: { readonly host: number; readonly generation: number } | undefined
  let askedAt = -Infinity
  let isAsking = false
  let isOverruled = false

  const isRecent = (at: number): boolean => at >= askedAt && at - askedAt < trustedFor

  const isKnown = (session: Session): boolean =>
    isRecent(now()) && knownOf?.host === session.host && knownOf.generation === pool.generation

  const learn = (census: Fleet.Census, at: number, { generation, host }: Session): Report => {
    const wasSafe = report?.isSafe ?? true
    const next = { ...plan, ...census, ...Fleet.sizeOf(plan, census, settings.max), at }
    report = next
    knownOf = { host, generation }
    if (wasSafe && !next.isSafe) book.write("fleetTooLarge", () => LogFields.ofFleet(next))
    if (!isOverruled && pool.max !== next.size) resize(next.size)
    return next
  }

  /** Nothing that goes wrong here is anybody's concern but the log's: the pool keeps its size. */
  const ask = (session: Session, onAnswer: (report: Report | undefined) => void): void => {
    const at = now()
    askedAt = at
    isAsking = true
    session.wire.ask(Fleet.query, (answer: Aside.Answer | undefined) => {
      isAsking = false
      const census = answer?.row === undefined ? undefined : Fleet.censusOf(answer.row)
      if (answer !== undefined && census === undefined) {
        knownOf = undefined
        book.write("fleetUnknown", () => LogFields.ofUnknownFleet(answer.refusedBy, pool.max))
      }
      onAnswer(census === undefined ? undefined : learn(census, at, session))
    })
  }

  const isQuiet = ({ borrowers, busy, pins, wire }: Session): boolean =>
    borrowers === 1 && busy === 0 && pins === 0 && wire.isIdle() && !wire.isOwed() && !wire.isResetting()

  const approve = (session: Session): Effect.Effect<void, E> =>
    Effect.callback((resume) => {
      if (isOverruled || (isKnown(session) && report?.isSafe === true)) return resume(Effect.void)
      ask(session, (found) =>
        resume(
          found === undefined || found.isSafe || isOverruled ? Effect.void : Effect.fail(tooLarge(found))
        ))
    })

  return {
    met: (session) => {
      if (!isAsking && !isKnown(session)) ask(session, () => {})
    },
    lent: (session) => {
      if (!isAsking && !isRecent(now()) && isQuiet(session)) ask(session, () => {})
    },
    approve: plan.whenUnsafe === "fail" ? approve : undefined,
    report: () => report,
    overrule: () => {
      isOverruled = true
    }
  }
}
