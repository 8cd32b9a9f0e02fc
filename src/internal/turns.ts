import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { SchedulerDispatcher } from "effect/Scheduler"
import type { Restore } from "./held.ts"
import * as PoolMachine from "./poolMachine.ts"
import type { PoolState } from "./poolState.ts"
import type { Session } from "./session.ts"

/**
 * Borrowers who wait for a session with nothing but a place in the line: no scope, no fiber and no timer of their own. What
 * one of them holds on to is paid for as often as there are borrowers in line.
 */
export interface Turns<E> {
  /** Stands in line, and lends a session while the work on it runs. */
  readonly use: <A, E2, R>(work: Work<A, E2, R>) => Effect.Effect<A, E | E2, R>
  /** A place in line for somebody who leaves it themselves, whatever becomes of it. */
  readonly stand: (passenger: Passenger) => Place
  /**
   * Stands in line for a session that nobody else shall have. For whoever cannot be interrupted but where `restore` allows
   * it, and has to give it back.
   */
  readonly take: (restore: Restore) => Effect.Effect<Session, E>
  /** How many are in line, or have been served and do not know it yet. */
  readonly attempts: () => number
  /** To be called when nobody has a session any more. */
  readonly rest: () => void
}

type Work<A, E, R> = (session: Session) => Effect.Effect<A, E, R>

/** Who stands in line. */
export interface Passenger {
  /** The session is theirs until they leave. */
  readonly board: (session: Session, fiber: Fiber.Fiber<unknown, unknown>) => Effect.Effect<any, any>
  readonly refused: (error: unknown, fiber: Fiber.Fiber<unknown, unknown>) => Effect.Effect<any, any>
  /** The session that they were handed has to be looked at first. */
  readonly examine: (claim: Claim, fiber: Fiber.Fiber<unknown, unknown>) => Effect.Effect<any, any>
}

/** To be run once, by the fiber that has it. */
export interface Place extends Effect.Effect<any, any> {
  /** To be called on every exit. It may come at any moment, between being served and hearing of it too. */
  readonly leave: (exit: Exit.Exit<unknown, unknown>) => void
}

/** A session that was handed to somebody who has waited, and is to be looked at before it is lent. */
export interface Claim {
  readonly ticket: number
  readonly isExclusive: boolean
  /** Monotonic milliseconds of the arrival. */
  readonly since: number
  /** Whoever calls this has to give the session back. */
  readonly take: () => Session
}

/** What the line is a part of. */
export interface Office<E> {
  readonly state: PoolState<E>
  readonly dispatcher: SchedulerDispatcher
  /** To be called when somebody has come to the line. */
  readonly arrived: () => void
  /** Why nobody may stand in line. */
  readonly obstacle: () => E | undefined
  /** What is said to whoever has waited for so many milliseconds in vain. */
  readonly timedOut: (waited: number) => E
  readonly isWorthy: (session: Session) => boolean
  readonly examined: <A, E2, R>(claim: Claim, work: Work<A, E2, R>) => Effect.Effect<A, E | E2, R>
  /** The same for whoever keeps the session. */
  readonly exchanged: (claim: Claim, restore: Restore) => Effect.Effect<Session, E>
  /** Counts the end of a wait, which came to that many milliseconds. Without an `exit`, it has led to a session. */
  readonly waited: (millis: number, isExclusive: boolean, exit?: Exit.Exit<unknown, unknown>) => void
  readonly lent: (session: Session) => void
  /** Counts the end of a lease that began at that monotonic millisecond. */
  readonly returned: (session: Session, since: number) => void
  /** To be called of one that goes back without having been lent. */
  readonly unused: (session: Session) => void
  readonly takeBack: (session: Session, isExclusive: boolean) => void
}

const Base = function() {} as unknown as new() => Effect.Effect<any, any>
Base.prototype = Effectable.Prototype<Turn<unknown>>({
  label: "Turn",
  evaluate(fiber: Fiber.Fiber<unknown, unknown>) {
    return this.step(fiber)
  }
})

/** Somebody in line: what waits there, and what is gone on with when it has been served. */
class Turn<E> extends Base implements PoolMachine.Waiter<Session, E>, Claim, Place {
  private readonly line: Line<E>
  /** Whom the session is lent to. Without one, it is kept, and nobody else shall have it. */
  private readonly passenger: Passenger | undefined
  readonly ticket: number
  /** Of the arrival, and from then on when the session was lent. */
  since: number
  isLent = false
  isLate = false
  refusal: E | undefined = undefined
  session: Session | undefined = undefined
  isQueued = false
  next: PoolMachine.Waiter<Session, E> | undefined = undefined
  previous: PoolMachine.Waiter<Session, E> | undefined = undefined
  resume: (effect: Effect.Effect<any, any>) => void = unheard

  constructor(line: Line<E>, passenger?: Passenger) {
    super()
    const { state } = line.office
    this.line = line
    this.passenger = passenger
    this.ticket = ++state.machine.lastTicket
    this.since = state.monotonic()
    line.underway++
  }

  get isExclusive(): boolean {
    return this.passenger === undefined
  }

  onServed(refusal: E | undefined): void {
    this.refusal = refusal
    this.line.wake(this)
  }

  step(fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<any, any> {
    const { line: { office }, passenger } = this
    if (this.session !== undefined) {
      return passenger === undefined ? Effect.succeed(this.session) : this.begin(this.session, passenger, fiber)
    }
    if (this.refusal !== undefined) return this.refuse(this.refusal, fiber)
    if (this.isLate) return this.refuse(office.timedOut(this.waited()), fiber)
    const obstacle = office.obstacle()
    if (obstacle !== undefined) return this.refuse(obstacle, fiber)
    return Effect.callback((resume) => {
      this.resume = resume
      this.line.enter(this)
    })
  }

  private refuse(error: E, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<any, any> {
    return this.passenger === undefined ? Effect.fail(error) : this.passenger.refused(error, fiber)
  }

  private begin(
    session: Session,
    passenger: Passenger,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Effect.Effect<any, any> {
    if (!this.line.office.isWorthy(session)) return passenger.examine(this, fiber)
    this.lend(session)
    return passenger.board(session, fiber)
  }

  /** To be run where nothing can be interrupted any more. */
  keep(restore: Restore): Effect.Effect<Session, E> {
    const { office } = this.line
    const session = this.session!
    if (!office.isWorthy(session)) return office.exchanged(this, restore)
    this.lend(session)
    return Effect.succeed(session)
  }

  private lend(session: Session): void {
    const { office } = this.line
    const at = office.state.monotonic()
    office.waited(at - this.since, this.isExclusive)
    office.lent(session)
    this.handOver()
    this.since = at
  }

  waited(): number {
    return this.line.office.state.monotonic() - this.since
  }

  /** The session goes on to whoever examines it, and so does the account of this wait. */
  take(): Session {
    const session = this.session!
    this.session = undefined
    this.handOver()
    return session
  }

  private handOver(): void {
    this.isLent = true
    this.line.underway--
  }

  leave(exit: Exit.Exit<unknown, unknown>): void {
    const { line, session } = this
    PoolMachine.dequeue(line.office.state.machine, this)
    if (!this.isLent) {
      line.underway--
      line.office.waited(this.waited(), this.isExclusive, exit)
    }
    if (session === undefined) return line.leftEmptyHanded()
    this.session = undefined
    if (this.isLent) line.office.returned(session, this.since)
    else line.office.unused(session)
    line.office.takeBack(session, this.isExclusive)
  }
}

const unheard = (): void => {}

class Line<E> implements Turns<E> {
  readonly office: Office<E>
  underway = 0
  private woken: Array<Turn<E>> = []
  private arriving: Turn<E> | undefined = undefined
  private watch: Fiber.Fiber<void> | undefined = undefined
  private turnedAway = 0

  constructor(office: Office<E>) {
    this.office = office
  }

  use<A, E2, R>(work: Work<A, E2, R>): Effect.Effect<A, E | E2, R> {
    // Its fiber has what it needs.
    const needing = work as Work<A, E2, never>
    return Effect.suspend(() => {
      const turn = new Turn(this, {
        board: needing,
        refused: Effect.fail,
        examine: (claim) => this.office.examined(claim, needing)
      })
      return Effect.onExitPrimitive(turn, (exit) => {
        turn.leave(exit)
        return undefined
      })
    })
  }

  stand(passenger: Passenger): Place {
    return new Turn(this, passenger)
  }

  take(restore: Restore): Effect.Effect<Session, E> {
    return Effect.suspend(() => {
      const turn = new Turn(this)
      return Effect.onExitPrimitive(Effect.flatMap(restore(turn), () => turn.keep(restore)), (exit) => {
        if (exit._tag === "Failure") turn.leave(exit)
        return undefined
      })
    })
  }

  readonly attempts = (): number => this.underway

  enter(turn: Turn<E>): void {
    PoolMachine.enqueue(this.office.state.machine, turn)
    this.arriving = turn
    try {
      this.office.arrived()
    } finally {
      this.arriving = undefined
    }
    // However short its time is, what it needs has been asked for.
    if (turn.isQueued && this.watch === undefined) this.keepWatch()
  }

  /**
   * Those who are served go on together, when all answers that are there have been read: the machine is still at work, and
   * a write between two answers costs more than one after the other.
   */
  wake(turn: Turn<E>): void {
    // It is not waiting yet, and goes on when it has been served.
    if (turn === this.arriving) return turn.resume(turn)
    this.woken.push(turn)
    if (this.woken.length === 1) this.office.dispatcher.scheduleTask(this.wakeAll, 0)
  }

  private readonly wakeAll = (): void => {
    let count = 0
    try {
      // Whoever goes on may be done in no time, and serve somebody in turn.
      while (count < this.woken.length) {
        const turn = this.woken[count++]!
        turn.resume(turn)
      }
    } finally {
      this.woken.splice(0, count)
      if (this.woken.length > 0) this.office.dispatcher.scheduleTask(this.wakeAll, 0)
    }
  }

  /** Those who wait as long as is usual give up in the order in which they came, so the first of them says when. */
  private keepWatch(): void {
    const { runFork, settings } = this.office.state
    if (settings.acquireTimeout === Infinity) return
    const before = this.turnedAway
    const watch = runFork(this.watching)
    const ended = watch.pollUnsafe()
    if (ended !== undefined) {
      // As below, and as often as there is one turned away less who has not been told.
      if (ended._tag === "Failure" && this.turnedAway > before && this.watch === undefined) this.keepWatch()
      return
    }
    this.watch = watch
    watch.addObserver(() => {
      // Those who were turned away may have ended this watch, and somebody who came then has begun another one.
      if (this.watch !== watch) return
      this.watch = undefined
      // Whoever observes one of them may have made it fail.
      if (this.office.state.machine.head !== undefined) this.keepWatch()
    })
  }

  private readonly watching: Effect.Effect<void> = Effect.suspend(() => {
    const first = this.firstInTime()
    if (first === undefined) return Effect.void
    const sleep = Effect.sleep(Math.ceil(this.left(first)))
    return Effect.flatMap(sleep, () => {
      if (first.isQueued) this.turnAway(first)
      return this.watching
    })
  })

  private left({ since }: Turn<E>): number {
    const { monotonic, settings } = this.office.state
    return since + settings.acquireTimeout - monotonic()
  }

  private turnAway(turn: Turn<E>): void {
    PoolMachine.dequeue(this.office.state.machine, turn)
    turn.isLate = true
    this.turnedAway++
    turn.resume(turn)
  }

  /** Turns those away whose time is up, and finds the next one. Others in line look after themselves. */
  private firstInTime(): Turn<E> | undefined {
    const { machine } = this.office.state
    let waiter = machine.head
    while (waiter !== undefined) {
      if (!(waiter instanceof Turn)) waiter = waiter.next
      else if (this.left(waiter) > 0) return waiter
      else {
        this.turnAway(waiter)
        waiter = machine.head
      }
    }
    return undefined
  }

  /** The watch outlasts the line: somebody else will stand there soon while there is work. */
  readonly rest = (): void => {
    const { borrowed, waiting } = this.office.state.machine
    if (this.watch === undefined || borrowed > 0 || waiting > 0) return
    this.watch.interruptUnsafe()
    this.watch = undefined
  }

  leftEmptyHanded(): void {
    const { changed, phase } = this.office.state
    this.rest()
    if (phase !== "Open") changed.notify()
  }
}

export const make = <E>(office: Office<E>): Turns<E> => new Line(office)
