import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { SchedulerDispatcher } from "effect/Scheduler"
import * as PoolMachine from "./poolMachine.ts"
import type { PoolState } from "./poolState.ts"
import type { Session } from "./session.ts"

/**
 * Borrowers who wait for a session with nothing but a place in the line: no scope, no fiber and no timer of their own. What
 * one of them holds on to is paid for as often as there are borrowers in line.
 */
export interface Turns {
  /** Stands in line, and lends a session while the work on it runs. */
  readonly use: <A, E, R>(work: Work<A, E, R>) => Effect.Effect<A, E, R>
  /** A place in line for somebody who leaves it themselves, whatever becomes of it. */
  readonly stand: (passenger: Passenger) => Place
  /**
   * Takes a session back, and lets those whom that serves go on before it returns: what they send goes out with what else
   * is sent now. Whoever gives back as one of them has to pause first.
   */
  readonly giveBack: (session: Session) => void
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
  /** Counts the end of a wait, which came to that many milliseconds. Without an `exit`, it has led to a session. */
  readonly waited: (millis: number, exit?: Exit.Exit<unknown, unknown>) => void
  readonly lent: (session: Session) => void
  /** Counts the end of a lease that began at that monotonic millisecond. */
  readonly returned: (session: Session, since: number) => void
  readonly takeBack: (session: Session) => void
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
  private readonly passenger: Passenger
  readonly ticket: number
  readonly isExclusive = false
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

  constructor(line: Line<E>, passenger: Passenger) {
    super()
    const { state } = line.office
    this.line = line
    this.passenger = passenger
    this.ticket = ++state.machine.lastTicket
    this.since = state.monotonic()
  }

  onServed(refusal: E | undefined): void {
    this.refusal = refusal
    this.line.wake(this)
  }

  step(fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<any, any> {
    const { line: { office }, passenger } = this
    if (this.session !== undefined) return this.begin(this.session, fiber)
    if (this.refusal !== undefined) return passenger.refused(this.refusal, fiber)
    if (this.isLate) return passenger.refused(office.timedOut(this.waited()), fiber)
    const obstacle = office.obstacle()
    if (obstacle !== undefined) return passenger.refused(obstacle, fiber)
    return Effect.callback((resume) => {
      this.resume = resume
      this.line.enter(this)
    })
  }

  private begin(session: Session, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<any, any> {
    const { line: { office }, passenger } = this
    if (!office.isWorthy(session)) return passenger.examine(this, fiber)
    const at = office.state.monotonic()
    office.waited(at - this.since)
    office.lent(session)
    this.isLent = true
    this.since = at
    return passenger.board(session, fiber)
  }

  waited(): number {
    return this.line.office.state.monotonic() - this.since
  }

  /** The session goes on to whoever examines it, and so does the account of this wait. */
  take(): Session {
    const session = this.session!
    this.session = undefined
    this.isLent = true
    return session
  }

  leave(exit: Exit.Exit<unknown, unknown>): void {
    const { line, session } = this
    PoolMachine.dequeue(line.office.state.machine, this)
    if (!this.isLent) line.office.waited(this.waited(), exit)
    if (session === undefined) return line.leftEmptyHanded()
    this.session = undefined
    if (this.isLent) line.office.returned(session, this.since)
    line.giveBack(session)
  }
}

const unheard = (): void => {}

class Line<E> implements Turns {
  readonly office: Office<E>
  private woken: Array<Turn<E>> = []
  private arriving: Turn<E> | undefined = undefined
  private isWaking = false
  private isWakeScheduled = false
  private watch: Fiber.Fiber<void> | undefined = undefined

  constructor(office: Office<E>) {
    this.office = office
  }

  use<A, E2, R>(work: Work<A, E2, R>): Effect.Effect<A, E2, R> {
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

  enter(turn: Turn<E>): void {
    PoolMachine.enqueue(this.office.state.machine, turn)
    if (this.watch === undefined) this.keepWatch()
    this.arriving = turn
    this.office.arrived()
    this.arriving = undefined
  }

  /** The machine is still at work when somebody is served. */
  wake(turn: Turn<E>): void {
    // It is not waiting yet, and goes on when it has been served.
    if (turn === this.arriving) return turn.resume(turn)
    this.woken.push(turn)
    if (!this.isWaking) this.wakeLater()
  }

  giveBack(session: Session): void {
    // Whoever goes on may be done in no time, and give back in turn.
    if (this.isWaking) return this.office.takeBack(session)
    this.isWaking = true
    try {
      this.office.takeBack(session)
    } finally {
      this.wakeAll()
    }
  }

  private wakeAll(): void {
    this.isWaking = true
    let count = 0
    try {
      while (count < this.woken.length) {
        const turn = this.woken[count++]!
        turn.resume(turn)
      }
    } finally {
      this.isWaking = false
      this.woken.splice(0, count)
      if (this.woken.length > 0) this.wakeLater()
    }
  }

  private wakeLater(): void {
    if (this.isWakeScheduled) return
    this.isWakeScheduled = true
    this.office.dispatcher.scheduleTask(() => {
      this.isWakeScheduled = false
      this.wakeAll()
    }, 0)
  }

  /** Those who wait as long as is usual give up in the order in which they came, so the first of them says when. */
  private keepWatch(): void {
    const { runFork, settings } = this.office.state
    if (settings.acquireTimeout === Infinity) return
    const watch = runFork(this.watching)
    if (watch.pollUnsafe() === undefined) this.watch = watch
  }

  private readonly watching: Effect.Effect<void> = Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
    const first = this.firstInTime()
    if (first === undefined) {
      // Those who were turned away may have ended this watch, and somebody who came then has begun another one.
      if (this.watch === fiber) this.watch = undefined
      return Effect.void
    }
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

export const make = <E>(office: Office<E>): Turns => new Line(office)
