/**
 * The books of a pool: who holds which session, which sessions are idle, and who waits. A plain machine: it is told the
 * time, knows nothing of sockets, and never waits.
 *
 * Idle sessions lie on a shelf, last in, first out, so that surplus ones go cold. Who waits stands in a line, first come,
 * first served: sessions are handed to the head of the line, and nobody can take one past it. Whoever was handed a session
 * that turned out to be worthless goes back to the place that the ticket says.
 */
export interface Machine<S extends Member<S>, E> {
  readonly members: Set<S>
  /** How many borrowers share a session before another one is looked for. */
  readonly concurrency: number
  /** How many may share one when there is no other. */
  readonly depth: number
  /** The one that was filled beyond its share last, or came back to it, while there may be more room in it. */
  deepest: S | undefined
  /** Whether every session has been found to be filled to its depth. */
  isCrammed: boolean
  /** The session that came back last, and the one that has been idle for longest. */
  top: S | undefined
  bottom: S | undefined
  head: Waiter<S, E> | undefined
  tail: Waiter<S, E> | undefined
  /** How many stand in line. */
  waiting: number
  /** How many shares of a session they want together. */
  wanted: number
  /** Leases on members. */
  borrowed: number
  isSuspended: boolean
  lastTicket: number
}

/** What the machine keeps of a session. */
export interface Member<S> {
  isMember: boolean
  /** Leases, those on a session that is no member any more included. */
  borrowers: number
  /** Why nobody else may have it for now: it is used exclusively, or being looked at. */
  exclusions: number
  /** Wall-clock milliseconds of its arrival, or of its last return. */
  idleSince: number
  /** Wall-clock milliseconds at which the first of its present borrowers got it. */
  lentSince: number
  isShelved: boolean
  above: S | undefined
  below: S | undefined
}

/** The fields of a {@link Member} before it has arrived. */
export const unlisted = {
  isMember: false,
  borrowers: 0,
  exclusions: 0,
  idleSince: 0,
  lentSince: 0,
  isShelved: false,
  above: undefined,
  below: undefined
} as const

/** A borrower in line. */
export interface Waiter<S, E> {
  /** The order of arrival. */
  readonly ticket: number
  /** Monotonic milliseconds of the arrival. */
  readonly since: number
  /** Whether nobody else shall get a share of the session from now on. */
  readonly isExclusive: boolean
  /** Hears that `session` is there, or why there is none. It must not act at once: the machine is still at work. */
  onServed(refusal: E | undefined): void
  session: S | undefined
  isQueued: boolean
  next: Waiter<S, E> | undefined
  previous: Waiter<S, E> | undefined
}

export const make = <S extends Member<S>, E>(concurrency: number, depth: number = concurrency): Machine<S, E> => ({
  members: new Set(),
  concurrency,
  depth,
  deepest: undefined,
  isCrammed: false,
  top: undefined,
  bottom: undefined,
  head: undefined,
  tail: undefined,
  waiting: 0,
  wanted: 0,
  borrowed: 0,
  isSuspended: false,
  lastTicket: 0
})

// -------------------------------------------------------------------------------------------------------------------
// sessions
// -------------------------------------------------------------------------------------------------------------------

/** Puts a session where the next borrower finds it, if there is a share of it to be had. */
export const shelve = <S extends Member<S>, E>(machine: Machine<S, E>, session: S): void => {
  if (
    session.isShelved || !session.isMember || session.exclusions > 0 || session.borrowers >= machine.concurrency
  ) return
  session.isShelved = true
  session.above = undefined
  session.below = machine.top
  if (machine.top === undefined) machine.bottom = session
  else machine.top.above = session
  machine.top = session
}

export const unshelve = <S extends Member<S>, E>(machine: Machine<S, E>, session: S): void => {
  if (!session.isShelved) return
  session.isShelved = false
  if (session.above === undefined) machine.top = session.below
  else session.above.below = session.below
  if (session.below === undefined) machine.bottom = session.above
  else session.below.above = session.above
  session.above = undefined
  session.below = undefined
}

export const admit = <S extends Member<S>, E>(machine: Machine<S, E>, session: S, now: number): void => {
  session.isMember = true
  session.idleSince = now
  machine.members.add(session)
  machine.isCrammed = false
  shelve(machine, session)
}

/** A session that leaves is lost to its borrowers too, but they still have to give it back. */
export const dismiss = <S extends Member<S>, E>(machine: Machine<S, E>, session: S): void => {
  if (!session.isMember) return
  unshelve(machine, session)
  session.isMember = false
  machine.members.delete(session)
  if (machine.deepest === session) machine.deepest = undefined
  machine.borrowed -= session.borrowers
}

/** An exclusive lease ends with `include` besides `giveBack`. */
export const lend = <S extends Member<S>, E>(
  machine: Machine<S, E>,
  session: S,
  now: number,
  isExclusive: boolean
): void => {
  if (session.borrowers++ === 0) session.lentSince = now
  machine.borrowed++
  if (isExclusive) exclude(machine, session)
  else if (session.borrowers >= machine.concurrency) unshelve(machine, session)
}

export const giveBack = <S extends Member<S>, E>(machine: Machine<S, E>, session: S, now: number): void => {
  session.borrowers--
  if (!session.isMember) return
  machine.borrowed--
  if (session.borrowers === 0) session.idleSince = now
  if (machine.depth > machine.concurrency) {
    machine.isCrammed = false
    machine.deepest = session
  }
  shelve(machine, session)
}

/** Keeps a session from being lent to anybody else; those who share it already keep their share. */
export const exclude = <S extends Member<S>, E>(machine: Machine<S, E>, session: S): void => {
  session.exclusions++
  unshelve(machine, session)
}

export const include = <S extends Member<S>, E>(machine: Machine<S, E>, session: S): void => {
  session.exclusions--
  machine.isCrammed = false
  shelve(machine, session)
}

// -------------------------------------------------------------------------------------------------------------------
// the line
// -------------------------------------------------------------------------------------------------------------------

export const makeWaiter = <S extends Member<S>, E>(
  machine: Machine<S, E>,
  since: number,
  isExclusive: boolean,
  ticket: number = ++machine.lastTicket
): Waiter<S, E> => ({
  ticket,
  since,
  isExclusive,
  onServed: () => {},
  session: undefined,
  isQueued: false,
  next: undefined,
  previous: undefined
})

/** Somebody new goes to the end, and somebody who comes back to where the ticket belongs. */
export const enqueue = <S extends Member<S>, E>(machine: Machine<S, E>, waiter: Waiter<S, E>): void => {
  let previous = machine.tail
  if (previous !== undefined && previous.ticket > waiter.ticket) {
    // Those who come back have waited for longest, so the place is near the head.
    let next = machine.head
    while (next !== undefined && next.ticket < waiter.ticket) next = next.next
    previous = next?.previous
  }
  const next = previous === undefined ? machine.head : previous.next
  waiter.isQueued = true
  waiter.previous = previous
  waiter.next = next
  if (previous === undefined) machine.head = waiter
  else previous.next = waiter
  if (next === undefined) machine.tail = waiter
  else next.previous = waiter
  machine.waiting++
  machine.wanted += shares(machine, waiter)
}

const shares = <S extends Member<S>, E>(machine: Machine<S, E>, { isExclusive }: Waiter<S, E>): number =>
  isExclusive ? machine.concurrency : 1

export const dequeue = <S extends Member<S>, E>(machine: Machine<S, E>, waiter: Waiter<S, E>): void => {
  if (!waiter.isQueued) return
  waiter.isQueued = false
  if (waiter.previous === undefined) machine.head = waiter.next
  else waiter.previous.next = waiter.next
  if (waiter.next === undefined) machine.tail = waiter.previous
  else waiter.next.previous = waiter.previous
  waiter.next = undefined
  waiter.previous = undefined
  machine.waiting--
  machine.wanted -= shares(machine, waiter)
}

/** A session that its borrower would not have to wait for others to leave. */
const unshared = <S extends Member<S>, E>(machine: Machine<S, E>): S | undefined => {
  let session = machine.top
  while (session !== undefined && session.borrowers > 0) session = session.below
  return session
}

const canBeDeeper = <S extends Member<S>, E>(machine: Machine<S, E>, session: S): boolean =>
  session.isMember && session.exclusions === 0 && session.borrowers >= machine.concurrency &&
  session.borrowers < machine.depth

/**
 * A session that has its share of borrowers, for one more: to be asked for when the shelf is empty, and no session can be
 * added. One is filled to its depth before the next, so that what is sent goes out in few writes.
 */
export const deeper = <S extends Member<S>, E>(
  machine: Machine<S, E>,
  now: number,
  isWorthy: (session: S, now: number) => boolean
): S | undefined => {
  if (machine.depth === machine.concurrency || machine.isCrammed) return undefined
  let best = machine.deepest
  if (best !== undefined && canBeDeeper(machine, best) && isWorthy(best, now)) return best
  best = undefined
  for (const session of Array.from(machine.members)) {
    if (
      canBeDeeper(machine, session) && (best === undefined || session.borrowers < best.borrowers) &&
      isWorthy(session, now)
    ) best = session
  }
  machine.deepest = best
  machine.isCrammed = best === undefined
  return best
}

/**
 * Hands sessions to the line for as long as there are both. `isWorthy` takes a session that is not off the shelf;
 * `refusal` is asked of whoever is next, and turns those away that have an answer. While `isAtMax`, no session can be added,
 * so those there are are filled to their depth.
 */
export const serve = <S extends Member<S>, E>(
  machine: Machine<S, E>,
  now: number,
  isWorthy: (session: S, now: number) => boolean,
  refusal: (waiter: Waiter<S, E>, now: number) => E | undefined,
  isAtMax: () => boolean = never
): void => {
  while (machine.head !== undefined && !machine.isSuspended) {
    const waiter = machine.head
    let session: S | undefined
    if (machine.top !== undefined) {
      session = waiter.isExclusive ? unshared(machine) ?? machine.top : machine.top
      if (!isWorthy(session, now)) continue
    } else if (!waiter.isExclusive && isAtMax()) session = deeper(machine, now, isWorthy)
    if (session === undefined) return
    dequeue(machine, waiter)
    const refused = refusal(waiter, now)
    if (refused === undefined) {
      lend(machine, session, now, waiter.isExclusive)
      waiter.session = session
    }
    waiter.onServed(refused)
  }
}

const never = (): boolean => false

export const refuseAll = <S extends Member<S>, E>(machine: Machine<S, E>, refusal: E): void => {
  while (machine.head !== undefined) {
    const waiter = machine.head
    dequeue(machine, waiter)
    waiter.onServed(refusal)
  }
}

/**
 * How many stand in line for what somebody has to give back: who waits for a session that may still be opened is not
 * queueing. Negative when there is more than is wanted.
 */
export const queueing = <S extends Member<S>, E>(machine: Machine<S, E>, max: number): number => {
  if (machine.isSuspended) return machine.waiting
  let spare = Math.max(0, max - machine.members.size) * machine.concurrency
  for (let session = machine.top; session !== undefined; session = session.below) {
    spare += machine.concurrency - session.borrowers
  }
  return machine.waiting - spare
}

/** How many sessions the line needs beyond those that `connecting` connects will bring. */
export const shortfall = <S extends Member<S>, E>(machine: Machine<S, E>, connecting: number): number =>
  machine.isSuspended ? 0 : Math.ceil(machine.wanted / machine.concurrency) - connecting
