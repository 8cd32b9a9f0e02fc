import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import * as fc from "fast-check"
import { vi } from "vitest"
import * as Metrics from "../src/Metrics.ts"
import * as Pool from "../src/Pool.ts"
import type { Manner, MemoryServer, Peer } from "./memoryServer.ts"
import { makeMemoryServer } from "./memoryServer.ts"

// -------------------------------------------------------------------------------------------------------------------
// what may happen
// -------------------------------------------------------------------------------------------------------------------

const does = <K extends string>(kind: K) => fc.record({ do: fc.constant(kind) })
const doesTo = <K extends string>(kind: K) => fc.record({ do: fc.constant(kind), which: fc.nat(5) })

const borrow = fc.record({
  do: fc.constant("borrow" as const),
  by: fc.constantFrom("use", "use", "get", "reserve"),
  prove: fc.constantFrom(false, false, false, true),
  timeout: fc.constantFrom(undefined, undefined, undefined, 100, 1000),
  asks: fc.boolean()
})

const several = fc.array(borrow, { minLength: 2, maxLength: 5 })

const act = fc.oneof(
  { weight: 24, arbitrary: borrow },
  { weight: 6, arbitrary: fc.record({ do: fc.constant("borrow all" as const), several }) },
  { weight: 18, arbitrary: doesTo("finish") },
  { weight: 3, arbitrary: doesTo("interrupt a waiter") },
  { weight: 4, arbitrary: doesTo("interrupt a holder") },
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant("kill" as const),
      which: fc.nat(5),
      how: fc.constantFrom("reset" as const, "end" as const, "administrator" as const)
    })
  },
  { weight: 3, arbitrary: doesTo("mute") },
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant("connects" as const),
      manner: fc.constantFrom<Manner>(
        "accepts",
        "accepts",
        "accepts",
        "accepts when told",
        "accepts when told",
        "accepts when told",
        "refuses",
        "is full",
        "closes",
        "is silent"
      )
    })
  },
  { weight: 8, arbitrary: does("greet") },
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant("wait" as const),
      ms: fc.constantFrom(1, 50, 100, 100, 500, 500, 1001, 3001, 5000, 11_000, 120_000, 3_600_000)
    })
  },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("resize" as const), max: fc.integer({ min: 1, max: 5 }), min: fc.nat(2) })
  },
  { weight: 2, arbitrary: does("evict all") },
  { weight: 1, arbitrary: does("suspend") },
  { weight: 3, arbitrary: does("resume") },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("warm" as const), count: fc.integer({ min: 1, max: 4 }) }) }
)

/** The lines of the log are put together, and printed nowhere: there are tens of thousands. */
/** All of its times are those that the test sets. */
const clock: Clock.Clock = Object.assign(Object.create(Context.get(Context.empty(), Clock.Clock)), {
  monotonicTimeNanosUnsafe: () => BigInt(Date.now()) * 1_000_000n
})

const unprinted = Effect.provideService(Logger.CurrentLoggers, new Set([Logger.make(() => {})]))

/** What is done, and how much of its consequences comes to pass before the next thing is. */
export const step = fc.record({
  act,
  then: fc.constantFrom(
    "settle" as const,
    "settle" as const,
    "settle" as const,
    "one round" as const,
    "nothing" as const
  )
})

/** What the hook on new sessions does; one that dies is left to a test of its own. */
type SetUp = "at once" | "slow" | "dies"

export const world = fc.record({
  max: fc.integer({ min: 1, max: 4 }),
  min: fc.nat(2),
  multiplex: fc.constantFrom(false, false, true),
  maxUses: fc.constantFrom(undefined, undefined, 3),
  maxWaiting: fc.constantFrom(undefined, undefined, undefined, 2),
  whenServerFull: fc.constantFrom("fail" as const, "wait" as const),
  hooks: fc.constantFrom("none" as const, "none" as const, "veto" as const, "slow" as const),
  setUp: fc.constantFrom<SetUp>("at once", "at once", "slow"),
  end: fc.constantFrom(
    "release" as const,
    "release" as const,
    "close" as const,
    "drain" as const,
    "deserted drain" as const
  )
})

export type Act = typeof act extends fc.Arbitrary<infer A> ? A : never
type Step = typeof step extends fc.Arbitrary<infer A> ? A : never
export type World = typeof world extends fc.Arbitrary<infer A> ? A : never

// -------------------------------------------------------------------------------------------------------------------
// the model
// -------------------------------------------------------------------------------------------------------------------

const concurrency = 2
const connectTimeout = 5000

interface Borrower {
  readonly name: number
  readonly isExclusive: boolean
  readonly since: number
  readonly deadline: number
  state: "waiting" | "holding" | "leaving" | "gone"
  pid: number
  isInterrupted: boolean
  finish: () => void
  fiber: Fiber.Fiber<unknown, unknown>
}

/** Since everything last came to rest. */
interface Window {
  served: Array<Borrower>
  closedBefore: number
  vetoes: number
  askedBefore: number
  isSuspended: boolean
  /** Whether sessions were told to go. */
  isTurnedOut: boolean
}

const round = () => new Promise<void>((resolve) => setImmediate(resolve))

/** A pool, its server and its borrowers, and what must be true of them whatever happens. */
export class Model {
  readonly world: World
  readonly seen: Map<string, number>
  readonly server: MemoryServer
  readonly scope = Scope.makeUnsafe()
  pool!: Pool.Pool["Service"]
  bound: number
  max: number
  borrowers: Array<Borrower> = []
  warming = 0
  vetoes = 0
  /** Those who come from now on leave as soon as they are served. */
  isHasty = false
  isSuspended = false
  isOver = false
  /** Those whom a drain has to serve. */
  promised: ReadonlyArray<Borrower> = []
  connectsFailed = 0
  readonly begun = Date.now()
  window: Window = { served: [], closedBefore: 0, vetoes: 0, askedBefore: 0, isSuspended: false, isTurnedOut: false }
  wrong: string | undefined
  happened = 0

  constructor(world: World, seen: Map<string, number>) {
    this.world = world
    this.seen = seen
    this.max = world.max
    this.bound = world.max
    this.server = makeMemoryServer(() => this.checkBound())
  }

  note(what: string): void {
    this.seen.set(what, (this.seen.get(what) ?? 0) + 1)
  }

  holds(condition: boolean, what: () => string): void {
    if (!condition) this.wrong ??= what()
  }

  /** A pool that has been made smaller counts down only. */
  checkBound(): void {
    const open = this.server.open().length
    this.bound = Math.max(this.max, Math.min(this.bound, open))
    this.holds(open <= this.bound, () => `${open} sessions are open, ${this.max} may be`)
    this.holds(this.server.peers.length < 1000, () => "it connects without end")
  }

  async open(): Promise<void> {
    const { hooks, max, maxUses, maxWaiting, min, multiplex, setUp, whenServerFull } = this.world
    const options: Pool.Options = {
      stream: this.server.stream,
      username: "somebody",
      prepare: false,
      max,
      min: Math.min(min, max),
      multiplex,
      multiplexConcurrency: concurrency,
      maxUses,
      maxWaiting,
      whenServerFull,
      connectTimeout,
      validateAfter: 3000,
      validationTimeout: 500,
      idleTimeout: 10_000,
      maxLifetime: 60_000,
      maxLifetimeJitter: 0,
      ...(setUp === "at once" ? {} : {
        afterConnect: () => (setUp === "slow" ? Effect.sleep(20) : Effect.die(new Error("the hook died")))
      }),
      ...(hooks === "none" ? {} : {
        beforeAcquire: () =>
          Effect.suspend(() => {
            if (this.isHasty || hooks === "slow" || ++this.happened % 5 !== 0) return Effect.void
            this.vetoes++
            return Effect.succeed(false)
          }),
        afterRelease: () => (hooks === "slow" ? Effect.sleep(20) : Effect.void)
      })
    }
    const layer = Layer.provide(Pool.layer(options), Metrics.layer())
    const context = await Effect.runPromise(
      Effect.provideService(unprinted(Layer.buildWithScope(layer, this.scope)), Clock.Clock, clock)
    )
    this.pool = Context.get(context, Pool.Pool)
  }

  in(state: Borrower["state"]): ReadonlyArray<Borrower> {
    return this.borrowers.filter((borrower) => borrower.state === state)
  }

  borrow(one: Extract<Act, { readonly do: "borrow" }>): Borrower {
    const timeout = one.timeout ?? 60_000
    const borrower: Borrower = {
      name: this.borrowers.length + 1,
      isExclusive: one.by === "reserve",
      since: Date.now(),
      deadline: Date.now() + timeout,
      state: "waiting",
      pid: 0,
      isInterrupted: false,
      finish: () => {},
      fiber: undefined as never
    }
    const options = one.timeout === undefined && !one.prove ? undefined : { prove: one.prove, timeout: one.timeout }
    // A shared session cannot be asked to cancel one statement of several.
    const asks = one.asks && !this.world.multiplex
    const work = ({ connection, session }: Pick<Pool.Lease, "connection" | "session">) => {
      this.onServed(borrower, session)
      if (this.isHasty) return Effect.void
      if (!asks) {
        return Effect.callback<void>((resume) => {
          borrower.finish = () => resume(Effect.void)
        })
      }
      borrower.finish = () => this.peerOf(borrower)?.answer()
      session.busy++
      return Effect.ensuring(
        Effect.ignore(connection.query("SELECT hold")),
        Effect.sync(() => session.busy--)
      )
    }
    const effect = one.by === "use"
      ? this.pool.use(
        (session) =>
          // The next one may be served before this one hears that it has left.
          Effect.ensuring(
            work({ session, connection: session.connection }),
            Effect.sync(() => {
              borrower.state = "leaving"
            })
          ),
        options
      )
      : one.by === "get"
      ? Effect.scoped(
        Effect.flatMap(this.pool.get(options), (session) => work({ session, connection: session.connection }))
      )
      : Effect.scoped(Effect.flatMap(this.pool.reserve(options), work))
    this.borrowers.push(borrower)
    const fiber = Effect.runFork(unprinted(effect))
    borrower.fiber = fiber
    fiber.addObserver((exit) => this.onGone(borrower, exit))
    return borrower
  }

  onServed(borrower: Borrower, session: Pool.PoolSession): void {
    this.happened++
    this.note(`served by ${borrower.isExclusive ? "reserve" : "a share"}`)
    const pid = session.connection.processId
    const holders = this.in("holding").filter((other) => other.pid === pid)
    borrower.state = "holding"
    borrower.pid = pid
    this.window.served.push(borrower)
    const allowed = this.world.multiplex ? concurrency : 1
    this.holds(holders.length < allowed, () => `session ${pid} was lent ${holders.length + 1} times`)
    // Those who were handed it in one go may wake up in any order.
    const { served } = this.window
    this.holds(
      !holders.some((other) => other.isExclusive && (borrower.isExclusive || !served.includes(other))),
      () => `session ${pid} was lent although it is used exclusively`
    )
    const isRefused = this.isSuspended && this.window.isSuspended && this.window.askedBefore === 0
    this.holds(!isRefused, () => `${borrower.name} was served while the pool is suspended`)
  }

  onGone(borrower: Borrower, exit: Exit.Exit<unknown, unknown>): void {
    this.happened++
    const was = borrower.state
    borrower.state = "gone"
    if (Exit.isSuccess(exit) || was === "holding" || was === "leaving") return
    const why = this.whyNot(borrower, exit.cause)
    this.note(why)
    this.holds(!why.startsWith("?"), () => `${borrower.name} got ${why}`)
  }

  whyNot(borrower: Borrower, cause: Cause.Cause<unknown>): string {
    if (Cause.hasInterruptsOnly(cause)) return borrower.isInterrupted ? "interrupted" : "? an interruption"
    const error = Cause.squash(cause)
    const tag = typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : String(error)
    switch (tag) {
      case "AcquireTimeout":
        return Date.now() >= borrower.deadline ? tag : `? ${tag} at ${Date.now() - borrower.since} ms`
      case "PoolSaturated":
        return this.world.maxWaiting === undefined ? `? ${tag}` : tag
      case "PoolClosed":
        return this.isOver && !this.promised.includes(borrower) ? tag : `? ${tag}`
      case "SqlError":
        // A new session that does not answer when it is asked for proof is a failed connect as well.
        if (String(error).includes("failed its liveness check")) return "a failed connect"
        return this.connectsFailed > 0 || Date.now() - this.begun >= connectTimeout
          ? "a failed connect"
          : `? ${tag} ${String(error)}`
      case "HookFailed":
        return this.world.setUp === "dies" ? tag : `? ${tag}`
      default:
        return `? ${tag}`
    }
  }

  peerOf({ pid }: Borrower): Peer | undefined {
    return this.server.peers[pid - 1]
  }

  stats(): Pool.Stats {
    return this.pool.statsUnsafe()
  }

  /** Lets everything come to rest that needs no time to. */
  async settle(): Promise<void> {
    let before = ""
    let calm = 0
    for (let index = 0; calm < 5; index++) {
      assert(index < 500, "it never comes to rest")
      await round()
      const { connecting, total, waiting } = this.stats()
      const now = [this.server.activity(), this.happened, connecting, total, waiting].join()
      calm = now === before ? calm + 1 : 0
      before = now
    }
    this.checkAtRest()
  }

  /** In growing steps: what goes wrong over and over is noticed before it has for an hour. */
  async wait(ms: number): Promise<void> {
    for (let left = ms, next = 1000; left > 0; left -= next, next *= 2) {
      await vi.advanceTimersByTimeAsync(Math.min(left, next))
      if (this.wrong !== undefined) assert.fail(this.wrong)
    }
  }

  async take({ act, then }: Step): Promise<void> {
    this.do(act)
    if (act.do === "wait") await this.wait(act.ms)
    if (then === "settle") await this.settle()
    else if (then === "one round") await round()
    if (this.wrong !== undefined) assert.fail(this.wrong)
  }

  do(one: Act): void {
    const { pool, server } = this
    switch (one.do) {
      case "borrow":
        this.borrow(one)
        return
      case "borrow all":
        for (const each of one.several) this.borrow(each)
        return
      case "finish":
        return pick(this.in("holding"), one.which)?.finish()
      case "interrupt a waiter":
      case "interrupt a holder": {
        const borrower = pick(this.in(one.do === "interrupt a waiter" ? "waiting" : "holding"), one.which)
        if (borrower === undefined) return
        borrower.isInterrupted = true
        return borrower.fiber.interruptUnsafe()
      }
      case "kill":
        // One that is being set up may be hit.
        if (this.stats().connecting > 0) this.connectsFailed++
        return pick(server.open().filter((peer) => peer.isGreeted()), one.which)?.close(one.how)
      case "mute":
        return pick(server.open().filter((peer) => peer.isGreeted()), one.which)?.mute()
      case "connects":
        server.manner = one.manner
        if (one.manner !== "accepts" && one.manner !== "accepts when told") this.connectsFailed++
        return
      case "greet":
        return server.greet()
      case "wait":
        return
      case "resize":
        this.max = one.max
        this.window.isTurnedOut = true
        Effect.runSync(pool.resize({ max: one.max, min: Math.min(one.min, one.max) }))
        return this.checkBound()
      case "evict all":
        this.window.isTurnedOut = true
        return Effect.runSync(pool.evictAll)
      case "suspend":
        this.isSuspended = true
        return Effect.runSync(pool.suspend)
      case "resume":
        this.isSuspended = false
        this.window.isSuspended = false
        return Effect.runSync(pool.resume)
      case "warm":
        this.warming++
        Effect.runFork(pool.warm(one.count)).addObserver(() => {
          this.happened++
          this.warming--
        })
    }
  }

  /** Sessions that have ended, or are about to. */
  closed(): number {
    return this.server.peers.filter((peer) => !peer.isOpen() || peer.isParting()).length
  }

  asked(): number {
    return this.server.open().filter((peer) => peer.isAsked() && !peer.isParting()).length
  }

  checkAtRest(): void {
    this.checkBound()
    this.checkOrder()
    this.checkStats()
    this.checkNobodyStranded()
    if (this.wrong !== undefined) assert.fail(this.wrong)
  }

  /** Who was handed a session that turned out to be worthless is overtaken until it has been noticed. */
  checkOrder(): void {
    const { askedBefore, closedBefore, served, vetoes } = this.window
    const last = Math.max(0, ...served.map(({ name }) => name))
    const overtaken = this.in("waiting").filter(({ name }) => name < last)
    const worthless = this.closed() - closedBefore + Math.max(askedBefore, this.asked())
    const { maxUses, multiplex } = this.world
    // Between being handed a shared session and waking up one may lose it, while another goes on with it.
    const mayWear = multiplex && (maxUses !== undefined || this.window.isTurnedOut)
    const worn = mayWear ? served.length : 0
    const excused = worthless * (multiplex ? concurrency : 1) + worn + this.vetoes - vetoes
    if (served.length > 0 && this.in("waiting").length > 0 && excused === 0) this.note("order checked strictly")
    this.holds(
      overtaken.length <= excused,
      () => `${last} was served before ${overtaken.map(({ name }) => name).join(", ")}`
    )
    this.window = {
      served: [],
      closedBefore: this.closed(),
      vetoes: this.vetoes,
      askedBefore: this.asked(),
      isSuspended: this.isSuspended,
      isTurnedOut: false
    }
  }

  checkStats(): void {
    const { active, connecting, idle, max, total, waiting } = this.stats()
    const open = this.server.open()
    const asked = this.asked()
    this.holds(total === active + idle, () => `total ${total} is not active ${active} and idle ${idle}`)
    this.holds(max === this.max, () => `max is ${max}, not ${this.max}`)
    this.holds(
      total <= max || idle === 0,
      () => `${total} sessions, ${idle} of them idle, are above max, which is ${max}`
    )
    const inLine = this.in("waiting").length
    this.holds(
      waiting <= inLine && waiting >= inLine - asked,
      () => `waiting is ${waiting}, but ${inLine} wait, ${asked} of them for a check`
    )
    // One that dies while it is being set up is given up when the hook ends.
    const unready = this.world.setUp === "slow" ? connecting : 0
    this.holds(total + connecting - unready <= open.length, () => `${total} and ${connecting} of ${open.length} open`)
    if (asked > 0 || this.world.hooks === "slow" || this.isOver) return
    const held = new Set(this.in("holding").filter((one) => this.peerOf(one)?.isOpen()).map(({ pid }) => pid))
    if (open.some((peer) => peer.isMute())) return
    this.holds(active === held.size, () => `active is ${active}, but ${held.size} are held`)
    const there = open.filter((peer) => peer.isGreeted() && !peer.isParting()).length
    this.holds(total <= there && there <= total + unready, () => `total is ${total}, but ${there} are there`)
    this.note("stats checked strictly")
  }

  /** Whoever waits, waits for something. */
  checkNobodyStranded(): void {
    const { connecting, idle, waiting } = this.stats()
    if (waiting === 0 || this.isSuspended || this.isOver) return
    this.holds(idle === 0, () => `${waiting} wait although ${idle} sessions are idle`)
    const room = this.max - this.server.open().length
    this.holds(
      room <= 0 || connecting > 0 || this.pool.connectPauseUnsafe() > 0,
      () => `${waiting} wait although ${room} sessions more may be opened, and none is`
    )
    this.note("somebody waited for good reason")
  }

  // -----------------------------------------------------------------------------------------------------------------
  // the end
  // -----------------------------------------------------------------------------------------------------------------

  healServer(): void {
    const { server } = this
    server.manner = "accepts"
    server.greet()
    this.connectsFailed++
    for (const peer of server.open()) if (peer.isMute() || !peer.isGreeted()) peer.close("reset")
  }

  releaseAll(): void {
    this.isHasty = true
    for (const borrower of this.in("holding")) {
      borrower.finish()
    }
  }

  /** Long enough for pauses between connects, and for everybody to be served in turn. */
  async waitForAll(): Promise<void> {
    await this.settle()
    for (let turn = 0; turn < 100 && (this.in("waiting").length > 0 || turn < 4); turn++) {
      await this.wait(turn < 4 ? 1000 : 50)
      await this.settle()
    }
  }

  /** After everybody has gone, all of the capacity is there, and nobody waits any more. */
  async endByRelease(): Promise<void> {
    this.do({ do: "resume" })
    this.healServer()
    this.releaseAll()
    await this.waitForAll()
    const left = this.in("waiting").map(({ name }) => name)
    assert.strictEqual(left.join(), "", "nobody is stranded")
    assert.strictEqual(this.in("holding").length, 0)
    assert.strictEqual(this.warming, 0)
    this.isHasty = false
    for (let count = 0; count < this.max; count++) {
      this.borrow({ do: "borrow", by: "reserve", prove: false, timeout: undefined, asks: false })
    }
    for (let rounds = 0; rounds < 3; rounds++) {
      await this.settle()
      await this.wait(100)
    }
    await this.settle()
    const { active, total } = this.stats()
    assert.strictEqual(active, this.max, "no lease and no place was lost")
    assert.strictEqual(total, this.max)
    this.releaseAll()
    await this.settle()
    await this.wait(100)
    await this.settle()
    assert.strictEqual(this.stats().active, 0)
    await this.endByClose()
  }

  async endByClose(): Promise<void> {
    this.isOver = true
    const proving = this.asked()
    const closing = Effect.runFork(Scope.close(this.scope, Exit.void))
    let isClosed = false
    closing.addObserver(() => {
      this.happened++
      isClosed = true
    })
    await this.settle()
    assert.isAtMost(this.in("waiting").length, proving, "who waits hears of the end at once")
    // closeTimeout, the cancelled work's grace, and the goodbyes.
    for (const ms of [5000, 250, 1000]) {
      await this.wait(ms)
      await this.settle()
    }
    assert.isTrue(isClosed, "the end has a bound")
    await this.checkNothingLeft()
  }

  /** Takes the pool out of service while everything is as it is. */
  async drain(): Promise<() => number | undefined> {
    this.do({ do: "resume" })
    this.isOver = true
    let cut: number | undefined
    Effect.runFork(this.pool.drain(600_000)).addObserver((exit) => {
      this.happened++
      cut = Exit.isSuccess(exit) ? exit.value : -1
    })
    const late = this.borrow({ do: "borrow", by: "use", prove: false, timeout: undefined, asks: false })
    await this.settle()
    assert.strictEqual(late.state, "gone", "nobody gets in any more")
    return () => cut
  }

  async endByDrain(): Promise<void> {
    this.promised = this.in("waiting")
    const cut = await this.drain()
    this.healServer()
    this.releaseAll()
    await this.waitForAll()
    assert.strictEqual(cut(), 0, "nobody was cut off")
    await this.endByClose()
  }

  async endByDesertedDrain(): Promise<void> {
    const cut = await this.drain()
    for (const borrower of this.in("waiting")) {
      borrower.isInterrupted = true
      borrower.fiber.interruptUnsafe()
    }
    this.releaseAll()
    for (const peer of this.server.open()) if (peer.isMute()) peer.close("reset")
    // Hooks, and the end itself: a goodbye takes a second at most.
    for (const ms of [100, 1250, 1000]) {
      await this.settle()
      await this.wait(ms)
    }
    await this.settle()
    assert.strictEqual(cut(), 0, "a drain is over when everybody has gone")
    await this.endByClose()
  }

  async checkNothingLeft(): Promise<void> {
    for (const borrower of this.in("holding")) borrower.finish()
    await this.settle()
    assert.strictEqual(this.server.open().length, 0, "no session is left")
    assert.strictEqual(this.in("waiting").length, 0, "nobody is left waiting")
    assert.strictEqual(this.in("holding").length, 0)
    assert.strictEqual(this.warming, 0)
    // A CancelRequest that a silent server does not take is given up by itself.
    await this.wait(1000)
    await this.settle()
    assert.strictEqual(this.server.sockets(), 0, "no socket is left")
    assert.strictEqual(vi.getTimerCount(), 0, "no timer is left")
    const { active, total, waiting } = this.stats()
    assert.strictEqual(`${total} ${active} ${waiting}`, "0 0 0")
  }

  async run(steps: ReadonlyArray<Step>): Promise<void> {
    await this.open()
    for (const one of steps) await this.take(one)
    await this.settle()
    this.note(`ended by ${this.world.end}`)
    switch (this.world.end) {
      case "release":
        return this.endByRelease()
      case "close":
        return this.endByClose()
      case "drain":
        return this.endByDrain()
      case "deserted drain":
        return this.endByDesertedDrain()
    }
  }
}

const pick = <A>(list: ReadonlyArray<A>, which: number): A | undefined => list[which % list.length]
