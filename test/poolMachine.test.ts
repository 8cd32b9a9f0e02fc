import { assert, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import * as Machine from "../src/internal/poolMachine.ts"

interface Item extends Machine.Member<Item> {
  readonly name: number
  condemned: boolean
}

type Waiter = Machine.Waiter<Item, string>

interface Lease {
  readonly item: Item
  readonly isExclusive: boolean
}

const does = <K extends string>(kind: K) => fc.record({ do: fc.constant(kind) })
const doesTo = <K extends string>(kind: K) => fc.record({ do: fc.constant(kind), which: fc.nat(7) })
const arrives = <K extends string>(kind: K) => fc.record({ do: fc.constant(kind), isExclusive: fc.boolean() })

const step = fc.oneof(
  { weight: 4, arbitrary: does("admit") },
  { weight: 2, arbitrary: doesTo("dismiss") },
  { weight: 2, arbitrary: doesTo("condemn") },
  { weight: 4, arbitrary: arrives("lend the top") },
  { weight: 6, arbitrary: doesTo("give back") },
  { weight: 2, arbitrary: doesTo("exclude") },
  { weight: 3, arbitrary: doesTo("include") },
  { weight: 8, arbitrary: arrives("stand in line") },
  { weight: 2, arbitrary: doesTo("give up waiting") },
  { weight: 3, arbitrary: doesTo("come back to the line") },
  { weight: 1, arbitrary: doesTo("come to refuse") },
  { weight: 1, arbitrary: does("refuse all") },
  { weight: 1, arbitrary: does("suspend") },
  { weight: 2, arbitrary: does("resume") }
)

type Step = typeof step extends fc.Arbitrary<infer A> ? A : never

/** The same books kept with arrays, and what must be true of both after every step. */
class Model {
  readonly machine: Machine.Machine<Item, string>
  readonly concurrency: number
  readonly seen: Set<string>
  now = 0
  named = 0
  /** In the order of their last arrival on the shelf, the last one first. */
  shelf: Array<Item> = []
  members: Array<Item> = []
  leases: Array<Lease> = []
  exclusions: Array<Item> = []
  line: Array<Waiter> = []
  /** Those who were served and may find that it was worth nothing. */
  served: Array<Waiter> = []
  unwanted = new Set<Waiter>()
  heard: Array<{ readonly waiter: Waiter; readonly refusal: string | undefined }> = []
  isSuspended = false

  constructor(concurrency: number, seen: Set<string>) {
    this.concurrency = concurrency
    this.machine = Machine.make(concurrency)
    this.seen = seen
  }

  borrowersOf(item: Item): number {
    return this.leases.filter((lease) => lease.item === item).length
  }

  isFree(item: Item): boolean {
    return this.members.includes(item) && !this.exclusions.includes(item) && this.borrowersOf(item) < this.concurrency
  }

  /** Puts on the shelf, or takes off, what has become free or has ceased to be. */
  reshelve(item: Item): void {
    const isShelved = this.shelf.includes(item)
    if (this.isFree(item) && !isShelved) this.shelf.unshift(item)
    else if (!this.isFree(item) && isShelved) this.shelf = this.shelf.filter((other) => other !== item)
  }

  takeLease(item: Item, isExclusive: boolean): void {
    this.leases.push({ item, isExclusive })
    if (isExclusive) this.exclusions.push(item)
    this.reshelve(item)
  }

  dismiss(item: Item): void {
    this.members = this.members.filter((other) => other !== item)
    this.reshelve(item)
    Machine.dismiss(this.machine, item)
  }

  isWorthy(item: Item): boolean {
    if (!item.condemned) return true
    if (item.borrowers === 0) Machine.dismiss(this.machine, item)
    else Machine.unshelve(this.machine, item)
    return false
  }

  stand(waiter: Waiter): void {
    this.line.push(waiter)
    this.line.sort((a, b) => a.ticket - b.ticket)
    Machine.enqueue(this.machine, waiter)
  }

  /** What `serve` is expected to do, done to the arrays: the answers in their order. */
  serveByHand(): Array<{ readonly waiter: Waiter; readonly session: Item | undefined }> {
    const expected = []
    while (this.line.length > 0 && this.shelf.length > 0 && !this.isSuspended) {
      const waiter = this.line[0]!
      const unshared = this.shelf.find((item) => this.borrowersOf(item) === 0)
      const item = waiter.isExclusive ? unshared ?? this.shelf[0]! : this.shelf[0]!
      if (item.condemned) {
        this.seen.add("passed over a condemned session")
        if (this.borrowersOf(item) === 0) this.members = this.members.filter((other) => other !== item)
        this.shelf = this.shelf.filter((other) => other !== item)
        continue
      }
      this.line.shift()
      if (this.unwanted.has(waiter)) {
        this.seen.add("refused at the head of the line")
        expected.push({ waiter, session: undefined })
        continue
      }
      this.seen.add(waiter.isExclusive ? "served exclusively" : "served")
      this.takeLease(item, waiter.isExclusive)
      this.served.push(waiter)
      expected.push({ waiter, session: item })
    }
    return expected
  }

  serve(): void {
    this.heard = []
    Machine.serve(
      this.machine,
      this.now,
      (item) => this.isWorthy(item),
      (waiter) => (this.unwanted.has(waiter) ? "unwanted" : undefined)
    )
    const answers = this.heard.map(({ refusal, waiter }) => {
      assertSame(refusal, waiter.session === undefined ? "unwanted" : undefined, "the answer")
      return { waiter, session: waiter.session }
    })
    const expected = this.serveByHand()
    const told = (list: typeof expected) => list.map(({ session, waiter }) => `${waiter.ticket}: ${session?.name}`)
    assertSameList(told(answers), told(expected), "who is served, with what, in which order")
  }

  take(one: Step): void {
    const { machine } = this
    this.now++
    switch (one.do) {
      case "admit": {
        const item: Item = { ...Machine.unlisted, name: ++this.named, condemned: false }
        this.members.push(item)
        this.reshelve(item)
        return Machine.admit(machine, item, this.now)
      }
      case "dismiss": {
        const item = pick(this.members, one.which)
        if (item === undefined) return
        if (this.borrowersOf(item) > 0) this.seen.add("dismissed a lent session")
        return this.dismiss(item)
      }
      case "condemn": {
        const item = pick(this.members, one.which)
        if (item !== undefined) item.condemned = true
        return
      }
      case "lend the top": {
        const item = this.shelf[0]
        if (item === undefined || this.line.length > 0) return
        assertSame(machine.top, item, "the top")
        this.takeLease(item, one.isExclusive)
        return Machine.lend(machine, item, this.now, one.isExclusive)
      }
      case "give back": {
        const lease = pick(this.leases, one.which)
        if (lease === undefined) return
        this.leases = this.leases.filter((other) => other !== lease)
        if (lease.isExclusive) {
          this.exclusions.splice(this.exclusions.indexOf(lease.item), 1)
          Machine.include(machine, lease.item)
        }
        Machine.giveBack(machine, lease.item, this.now)
        return this.reshelve(lease.item)
      }
      case "exclude": {
        const item = pick(this.members, one.which)
        if (item === undefined) return
        this.exclusions.push(item)
        this.reshelve(item)
        return Machine.exclude(machine, item)
      }
      case "include": {
        const own = this.exclusions.filter((item) =>
          this.exclusions.filter((other) => other === item).length >
            this.leases.filter((lease) => lease.item === item && lease.isExclusive).length
        )
        const item = pick(own, one.which)
        if (item === undefined) return
        this.exclusions.splice(this.exclusions.indexOf(item), 1)
        this.reshelve(item)
        return Machine.include(machine, item)
      }
      case "stand in line": {
        const waiter = Machine.makeWaiter(machine, this.now, one.isExclusive)
        waiter.onServed = (refusal) => void this.heard.push({ waiter, refusal })
        return this.stand(waiter)
      }
      case "give up waiting": {
        const waiter = pick(this.line, one.which)
        if (waiter === undefined) return
        this.line = this.line.filter((other) => other !== waiter)
        Machine.dequeue(machine, waiter)
        // Whoever gives up twice, or has been served meanwhile, changes nothing.
        return Machine.dequeue(machine, waiter)
      }
      case "come back to the line": {
        const waiter = pick(this.served, one.which)
        if (waiter === undefined) return
        this.served = this.served.filter((other) => other !== waiter)
        const lease = this.leases.find(({ isExclusive, item }) =>
          item === waiter.session && isExclusive === waiter.isExclusive
        )
        if (lease === undefined) return
        this.leases = this.leases.filter((other) => other !== lease)
        if (lease.isExclusive) {
          this.exclusions.splice(this.exclusions.indexOf(lease.item), 1)
          Machine.include(machine, lease.item)
        }
        Machine.giveBack(machine, lease.item, this.now)
        this.reshelve(lease.item)
        waiter.session = undefined
        if (this.line.some(({ ticket }) => ticket > waiter.ticket)) this.seen.add("went back before others")
        if (this.line.some(({ ticket }) => ticket < waiter.ticket)) this.seen.add("went back behind others")
        return this.stand(waiter)
      }
      case "come to refuse": {
        const waiter = pick(this.line, one.which)
        if (waiter !== undefined) this.unwanted.add(waiter)
        return
      }
      case "refuse all": {
        this.heard = []
        Machine.refuseAll(machine, "closed")
        assertSameList(
          this.heard.map(({ refusal, waiter }) => `${waiter.ticket}: ${refusal}`),
          this.line.map(({ ticket }) => `${ticket}: closed`),
          "all of the line, in its order"
        )
        this.line = []
        return
      }
      case "suspend":
      case "resume":
        this.isSuspended = one.do === "suspend"
        machine.isSuspended = this.isSuspended
        return
    }
  }

  check(): void {
    const { concurrency, leases, line, machine, members, shelf } = this
    const shelved = links(machine.top, machine.bottom, ({ below }) => below, ({ above }) => above)
    assertSameList(names(shelved), names(shelf), "the shelf")
    const queued = links(machine.head, machine.tail, ({ next }) => next, ({ previous }) => previous)
    assertSameList(queued.map(({ ticket }) => ticket), line.map(({ ticket }) => ticket), "the line")
    assertSameList(names([...machine.members]), names(members), "the members")
    for (const item of members) {
      assertSame(item.isShelved, shelf.includes(item), "shelved")
      assertSame(item.borrowers, this.borrowersOf(item), "borrowers")
      assertSame(item.exclusions, this.exclusions.filter((other) => other === item).length, "exclusions")
      assertSame(item.borrowers <= concurrency, true, "no more than may share it")
    }
    assertSame(machine.borrowed, leases.filter(({ item }) => members.includes(item)).length, "borrowed")
    assertSame(machine.waiting, line.length, "waiting")
    const wanted = line.reduce((sum, one) => sum + (one.isExclusive ? concurrency : 1), 0)
    assertSame(machine.wanted, wanted, "wanted")
    const missing = this.isSuspended ? 0 : Math.ceil(wanted / concurrency) - 1
    assertSame(Machine.shortfall(machine, 1), missing, "the shortfall")
  }

  /** Once everybody has been served who can be. */
  checkServed(): void {
    const { line, shelf } = this
    if (this.isSuspended) return
    assertSame(line.length === 0 || shelf.length === 0, true, "nobody waits while there is a session")
  }
}

const pick = <A>(list: ReadonlyArray<A>, which: number): A | undefined => list[which % list.length]
const names = (items: ReadonlyArray<Item>): ReadonlyArray<number> => items.map(({ name }) => name)

/** A million assertions of chai's that hold would take most of the time of this test. */
const assertSame = <A>(actual: A, expected: A, what: string): void => {
  if (actual !== expected) assert.fail(`${what}: ${String(actual)}, not ${String(expected)}`)
}

const assertSameList = (
  actual: ReadonlyArray<number | string>,
  expected: ReadonlyArray<number | string>,
  what: string
): void => assertSame(actual.join(", "), expected.join(", "), what)

/** Follows a list to its end, and sees that it leads back the same way. */
const links = <A>(
  first: A | undefined,
  last: A | undefined,
  forwards: (item: A) => A | undefined,
  backwards: (item: A) => A | undefined
): ReadonlyArray<A> => {
  const list: Array<A> = []
  for (let at = first; at !== undefined; at = forwards(at)) {
    assertSame(backwards(at), list.at(-1), "the way back")
    list.push(at)
    assertSame(list.length < 1000, true, "a list with an end")
  }
  assertSame(last, list.at(-1), "the end of the list")
  return list
}

describe("poolMachine", () => {
  it("keeps the same books as arrays would, whatever happens in whatever order", () => {
    const seen = new Set<string>()
    fc.assert(
      fc.property(fc.constantFrom(1, 1, 2, 3), fc.array(step, { minLength: 1, maxLength: 40, size: "max" }), (
        concurrency,
        steps
      ) => {
        const model = new Model(concurrency, seen)
        for (const one of steps) {
          model.take(one)
          model.check()
          model.serve()
          model.check()
          model.checkServed()
        }
      }),
      { numRuns: 10_000 }
    )
    // What was never reached was not proved.
    assert.deepStrictEqual([...seen].sort(), [
      "dismissed a lent session",
      "passed over a condemned session",
      "refused at the head of the line",
      "served",
      "served exclusively",
      "went back before others",
      "went back behind others"
    ])
  })
})
