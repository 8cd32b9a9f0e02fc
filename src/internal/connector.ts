import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { ConnectionError, isSqlError, SqlError } from "effect/sql/SqlError"
import type * as Address from "./address.ts"
import * as Bell from "./bell.ts"
import * as Berth from "./berth.ts"
import { classify } from "./classify.ts"
import * as ConnectGate from "./connectGate.ts"
import type * as Dial from "./dial.ts"
import * as Errand from "./errand.ts"
import { digWhole } from "./failure.ts"
import { isFull } from "./fullServer.ts"
import * as Hosts from "./hosts.ts"
import type { Logbook } from "./logbook.ts"
import * as LogFields from "./logFields.ts"
import * as Login from "./login.ts"
import type { Settings } from "./poolSettings.ts"
import type { Onlooker } from "./poolSpans.ts"
import * as ServerReaping from "./serverReaping.ts"
import * as Session from "./session.ts"
import * as Socket from "./socket.ts"
import type { Kind } from "./verdict.ts"

/** What the owner of the sessions decides and wants to know. */
export interface Owner<E> {
  readonly settings: Settings
  /** Wall-clock milliseconds. */
  readonly now: () => number
  readonly monotonicNanos: () => bigint
  /** A random number from 0 to 1. */
  readonly draw: () => number
  readonly runFork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly book: Logbook
  readonly generation: () => number
  readonly hookFailed: (hook: string, cause: unknown) => E
  /** The error when no password can be had; `refusal` is what the server said of the one before. */
  readonly credentialsFailed: (cause: unknown, refusal: SqlError | undefined) => E
  /** The error when no host would do. */
  readonly noSuitableHost: (findings: ReadonlyArray<Finding>) => E
  /** Takes a session out of circulation whose server is not what it was. */
  readonly evict: (session: Session.Session) => void
  /** A connect is about to begin. Whoever wants to see what becomes of it is told. */
  readonly onSetOut: () => Onlooker | undefined
  /** A session is open, and its hooks have run. */
  readonly onReady: (session: Session.Session) => void
  readonly onFailed: (error: E | SqlError) => void
  /** A connect has ended after so many seconds, hooks included. Not of those that were given up with the pool. */
  readonly onConnect: (outcome: "ok" | "error", seconds: number) => void
  /** Looks at a session that the server has accepted, before the hooks do: a failure refuses it. */
  readonly approve: ((session: Session.Session) => Effect.Effect<void, E>) | undefined
  /** The server has accepted a session. */
  readonly onOpen: (session: Session.Session) => void
  /** A session that was opened is dead. Its place may be free only later. */
  readonly onGone: (session: Session.Session) => void
  /** The place of a session, or of a connect that failed, is free. */
  readonly onPlace: () => void
}

/** What a search has found out about a host that would not do. */
export interface Finding {
  readonly address: Address.HostAddress
  readonly role: Hosts.Role | undefined
  readonly failure: unknown
}

export interface Connector<E> {
  /** Whether to connect now, wait for a connect under way, or take the cause of one that has just failed for an answer. */
  readonly decide: () => ConnectGate.Decision<E>
  /** Sets out to open a session. It takes a place from now until the server has let go of it. */
  readonly connect: () => void
  readonly connecting: () => number
  /** Milliseconds until the next connect is tried after failed ones, 0 when it may be tried now. */
  readonly pause: () => number
  /** Lets the next connect be tried now. */
  readonly reopen: () => void
  /** The same for one that is nobody's failure if nobody answers it. */
  readonly outOfTurn: () => void
  /** Of the connects since one worked. */
  readonly lastFailure: () => E | undefined
  /** Notes that a session that was opened a moment ago does not work: opening more of them has to wait. */
  readonly disproved: (error: SqlError) => void
  /** Places that are taken: connects, sessions, and those that are saying goodbye. */
  readonly taken: () => number
  /** Succeeds once no place is taken. */
  readonly allFree: Effect.Effect<void>
  /** Ends the connects under way: they have not failed, nobody wants them any more. */
  readonly recall: Effect.Effect<void>
  /** Ends the connects under way, and those that are to come. */
  readonly abort: Effect.Effect<void>
  /** Closes every socket that is left, whatever the server still does. */
  readonly abandon: Effect.Effect<void>
  /** Closes the sockets that have waited since before then for their servers to let go of sessions that have ended. */
  readonly abandonLeft: (before: number) => void
  /** Ends the CancelRequests under way: for when nobody is left whose work they could end. */
  readonly hangUp: Effect.Effect<void>
}

const failed = (message: string, cause: unknown): SqlError =>
  new SqlError({ reason: new ConnectionError({ cause, message: `PgConnection: ${message}`, operation: "connect" }) })

const timedOut = (millis: number, hook: string | undefined): SqlError =>
  failed(
    `Connection timed out after ${millis} ms${hook === undefined ? "" : `, in the hook ${hook}`}`,
    Object.assign(new Error("Connection timed out"), hook !== undefined && { hook })
  )

/** The server has accepted a session, and closed it again before it was ready. */
const lost = (obituary: Socket.Obituary | undefined): SqlError =>
  failed("Connection closed before the session was set up", new Error(obituary?.message ?? "Connection closed"))

/** Whatever ends a connect is a failure of it: who waits must hear of it, and the next one must not follow at once. */
const failureOf = <E>(cause: Cause.Cause<E>): E | SqlError => {
  const error = Cause.findErrorOption(cause)
  return error._tag === "Some" ? error.value : failed("Failed to connect", Cause.squash(cause))
}

const kindOf = (error: unknown): Kind =>
  classify(digWhole(error), { phase: "Connect", reused: false, replied: false }).kind

/**
 * Whether another host may do where this one has failed. Who is refused as a user, and who cannot verify the server, is
 * told so; libpq draws the same line.
 */
const isPassedOver = (error: unknown): error is SqlError => {
  if (!isSqlError(error)) return false
  const kind = kindOf(error)
  return kind === "Unreachable" || kind === "Overloaded"
}

/** For servers that do not say by themselves what they are: before PostgreSQL 14, and behind poolers. */
const roleQuery = "SELECT pg_catalog.pg_is_in_recovery() AS standby, " +
  "pg_catalog.current_setting('transaction_read_only') = 'on' AS readonly"

const findRole = ({ connection, wire }: Session.Session): Effect.Effect<Hosts.Role, SqlError> => {
  const told = Hosts.roleBy(wire.parameter)
  return told !== undefined
    ? Effect.succeed(told)
    : Effect.map(connection.queryValues(roleQuery, [], false), ([row]) => ({
      isStandby: row?.[0] === true,
      isReadOnly: row?.[1] === true
    }))
}

export const make = <E extends { readonly _tag: string }>(owner: Owner<E>): Connector<E | SqlError> => {
  const { now, settings } = owner
  const { sessionAttrs, targets } = settings
  const hosts = Hosts.make(sessionAttrs, targets.length)
  const openSessions = new Set<Session.Session>()
  const gate = ConnectGate.make<E | SqlError>()
  const placeFreed = Bell.make()
  const underWay = new Map<Fiber.Fiber<Session.Session, E | SqlError>, Effect.Effect<void>>()
  const recalled = new WeakSet<Fiber.Fiber<Session.Session, E | SqlError>>()
  const wishes = ServerReaping.makeWishes(settings.reaping)
  const requests: Dial.Requests = new Set()
  const berths = new Set<Berth.Berth>()
  let isAborted = false
  let taken = 0
  let lastId = 0
  let lastFailure: E | SqlError | undefined

  const runHook = (hook: string, effect: Effect.Effect<unknown, unknown>): Effect.Effect<unknown, E> =>
    Effect.catchCause(effect, (cause) => Effect.fail(owner.hookFailed(hook, Cause.squash(cause))))

  const sayGoodbye = (session: Session.Session) =>
    session.wire.isDead() ? Effect.void : Errand.run(
      Effect.suspend(() => settings.beforeDisconnect!(session.connection)),
      session.wire,
      { millis: settings.farewell, onTimeUp: () => new Error(`it took longer than ${settings.farewell} ms`) }
    ).pipe(
      Effect.catchCause((cause) =>
        Effect.sync(() =>
          owner.book.write("hookFailed", () =>
            LogFields.ofHook("beforeDisconnect", Cause.squash(cause), settings.errorText))
        )
      )
    )

  const logIn = (berth: Berth.Berth, scope: Scope.Closeable, host: number) => {
    const openWith = (password: Redacted.Redacted | undefined, asked: ServerReaping.Parameters) =>
      Session.open({
        id: ++lastId,
        scope,
        host,
        wire: berth.wire(),
        generation: owner.generation(),
        config: {
          ...settings.connection,
          password,
          startupParameters: { ...asked, ...settings.connection.startupParameters }
        },
        now,
        isDoubted: settings.validateAlways,
        lifetime: settings.maxLifetime * (1 - owner.draw() * settings.maxLifetimeJitter),
        silence: settings.silence,
        errorText: settings.errorText
      })
    /** The server ends a session that begins with a parameter which it does not take. */
    const attempt = (password: Redacted.Redacted | undefined): ReturnType<typeof openWith> =>
      Effect.suspend(() => {
        const asked = wishes.parameters()
        return Effect.catchIf(
          openWith(password, asked),
          (error) => wishes.isRefusal(error, asked),
          () => Effect.andThen(berth.change, attempt(password))
        )
      })
    return Login.login<Session.Session, E, Scope.Scope>({
      password: settings.password,
      failed: owner.credentialsFailed,
      changeSocket: berth.change,
      attempt
    })
  }

  /** Whether the session is on a server that will do; from then on, whether it stays one is watched. */
  const isWanted = (session: Session.Session, pass: Hosts.Pass): Effect.Effect<boolean, SqlError> => {
    if (sessionAttrs === "any") return Effect.succeed(Hosts.answered(pass, session.host, undefined, now()) === "Taken")
    return Effect.map(findRole(session), (role) => {
      const answer = Hosts.answered(pass, session.host, role, now())
      if (answer === "Refused") return false
      // What is left on the writer of before could at best read old rows.
      if (answer === "Moved") {
        for (const other of Array.from(openSessions)) if (other.host !== session.host) owner.evict(other)
      }
      session.wire.onParameter(() => {
        const role = Hosts.roleBy(session.wire.parameter)
        if (role !== undefined && sessionAttrs !== "prefer-standby" && !Hosts.fits(sessionAttrs, role)) {
          owner.evict(session)
        }
      })
      return true
    })
  }

  /** The session that is ready to be lent, `undefined` if its server will not do. `onHook` hears which hook is at work. */
  const open = (
    berth: Berth.Berth,
    scope: Scope.Closeable,
    host: number,
    pass: Hosts.Pass,
    onHook: (hook: string | undefined) => void,
    onOpen: (session: Session.Session) => void
  ) => {
    const { afterConnect, beforeConnect, beforeDisconnect } = settings
    const during = (hook: string, effect: Effect.Effect<unknown, unknown>) =>
      Effect.suspend(() => {
        onHook(hook)
        return Effect.tap(runHook(hook, effect), () => Effect.sync(() => onHook(undefined)))
      })
    const welcome = (session: Session.Session) =>
      Effect.sync(() => {
        onOpen(session)
        return session
      }).pipe(
        Effect.tap(owner.approve ?? (() => Effect.void)),
        Effect.tap(
          afterConnect === undefined
            ? Effect.void
            : during("afterConnect", Effect.suspend(() => afterConnect(session.connection)))
        ),
        Effect.tap(beforeDisconnect === undefined ? Effect.void : Effect.addFinalizer(() => sayGoodbye(session)))
      )
    return (beforeConnect === undefined ? Effect.void : during("beforeConnect", beforeConnect)).pipe(
      Effect.andThen(logIn(berth, scope, host)),
      Effect.flatMap((session) =>
        Effect.flatMap(
          isWanted(session, pass),
          (isWanted) => isWanted ? welcome(session) : Effect.as(Scope.close(scope, Exit.void), undefined)
        )
      )
    )
  }

  /** Counts sockets, not sessions: one that is saying goodbye still holds its place on the server. */
  const freePlace = (): void => {
    taken--
    if (taken === 0) ConnectGate.forget(gate)
    placeFreed.notify()
    owner.onPlace()
  }

  /**
   * One session, on the first host that will do and the socket that could log in there. The hosts are tried one after
   * another in one place, which is free again when the last socket has closed, whatever becomes of the session.
   */
  const attempt = () => {
    const pass = Hosts.begin(hosts, now())
    const findings = new Map<number, Finding>()
    let host = Hosts.next(pass)!
    let scope = Scope.makeUnsafe()
    let isOver = false
    let isFound = false
    let session: Session.Session | undefined
    let hookAtWork: string | undefined
    const mourn = () => {
      const dead = session
      session = undefined
      if (dead === undefined) return
      openSessions.delete(dead)
      owner.onGone(dead)
    }
    const berth = Berth.make({
      open: (onClose) =>
        Socket.make({
          target: targets[host]!,
          now,
          runFork: owner.runFork,
          farewell: settings.farewell,
          requests,
          cancelsAreOurs: settings.cancelsAreOurs,
          onResetRefused: (sqlState) => owner.book.write("resetFailed", () => LogFields.ofReset(sqlState)),
          behindPooler: settings.behindPooler,
          onDeath: mourn,
          onClose
        }),
      onFree: () => {
        berths.delete(berth)
        mourn()
        freePlace()
      }
    })
    berths.add(berth)
    const hangUp = Effect.suspend(() => {
      berth.wire().destroy({ by: "pool", message: "the session was not taken up" })
      return Scope.close(scope, Exit.void)
    })
    const giveUp = Effect.suspend(() => {
      isOver = true
      berth.leave()
      return hangUp
    })
    // The socket goes before the work is interrupted: whatever waits for it then ends at once.
    const timeUp = Effect.sleep(settings.connectTimeout).pipe(
      Effect.andThen(hangUp),
      Effect.andThen(Effect.suspend(() => Effect.fail(timedOut(settings.connectTimeout, hookAtWork))))
    )
    const onHook = (hook: string | undefined): void => {
      hookAtWork = hook
    }
    const onOpen = (opened: Session.Session): void => {
      session = opened
      isFound = true
      openSessions.add(opened)
      owner.onOpen(opened)
      berth.leave()
    }
    const ask = Effect.suspend(() =>
      Effect.raceFirst(Scope.provide(open(berth, scope, host, pass, onHook, onOpen), scope), timeUp)
    )
    const connect: Effect.Effect<Session.Session, E | SqlError> = Effect.flatMap(Effect.exit(ask), (exit) => {
      if (Exit.isSuccess(exit) && exit.value !== undefined) return Effect.succeed(exit.value)
      let failure: unknown
      if (Exit.isFailure(exit)) {
        failure = Option.getOrUndefined(Cause.findErrorOption(exit.cause))
        // One that is open has found its host: what fails then is a hook, or the time for it.
        const isDecided = isOver || isFound || targets.length === 1
        if (isDecided || !isPassedOver(failure)) return Effect.failCause(exit.cause)
        Hosts.failed(hosts, host, now())
      }
      const role = failure === undefined ? hosts.list[host]!.role : undefined
      findings.set(host, { address: targets[host]!.address, failure, role })
      const next = Hosts.next(pass)
      if (next === undefined) return Effect.fail(owner.noSuitableHost(Array.from(findings.values())))
      return goOn(next, failure !== undefined)
    })
    const goOn = (next: number, hasFailed: boolean): Effect.Effect<Session.Session, E | SqlError> =>
      Effect.andThen(
        hasFailed ? hangUp : Effect.void,
        Effect.suspend(() => {
          host = next
          scope = Scope.makeUnsafe()
          return Effect.andThen(berth.change, Effect.suspend(() => isOver ? Effect.interrupt : connect))
        })
      )
    const hasAnswer = () => Array.from(findings.values()).some(({ role }) => role !== undefined)
    return { connect, giveUp, hasAnswer, host: () => targets[host]!.address }
  }

  const fail = (error: E | SqlError, round: number, { hasAnswer = false, isAway = false } = {}): void => {
    lastFailure = error
    const pauseOf = settings.waitsForRoom && isFull(error)
      ? ConnectGate.crowdPauseAfter(owner.draw())
      : hasAnswer
      ? ConnectGate.searchPauseAfter
      : undefined
    ConnectGate.failed(gate, round, error, now(), pauseOf, isAway)
  }

  const conclude = (
    exit: Exit.Exit<Session.Session, E | SqlError>,
    round: number,
    hasAnswer: boolean,
    startedAt: bigint
  ): void => {
    gate.connecting--
    const isOpen = Exit.isSuccess(exit) && !exit.value.wire.isDead()
    if (isOpen || !isAborted) owner.onConnect(isOpen ? "ok" : "error", Number(owner.monotonicNanos() - startedAt) / 1e9)
    if (Exit.isSuccess(exit) && !exit.value.wire.isDead()) {
      ConnectGate.succeeded(gate)
      lastFailure = undefined
      return owner.onReady(exit.value)
    }
    const error = Exit.isSuccess(exit) ? lost(exit.value.wire.obituary()) : failureOf(exit.cause)
    fail(error, round, { hasAnswer, isAway: kindOf(error) === "Unreachable" })
    owner.onFailed(error)
  }

  const end = (fiber: Fiber.Fiber<unknown, unknown>, giveUp: Effect.Effect<void>): Effect.Effect<void> =>
    Effect.andThen(giveUp, Fiber.interrupt(fiber))

  const endAll = Effect.suspend(() =>
    Effect.forEach(Array.from(underWay), ([fiber, giveUp]) => end(fiber, giveUp), {
      concurrency: "unbounded",
      discard: true
    })
  )

  return {
    decide: () => ConnectGate.decide(gate, now()),
    connect: () => {
      const startedAt = owner.monotonicNanos()
      const onlooker = owner.onSetOut()
      const { connect, giveUp, hasAnswer, host } = attempt()
      // From here on, it is its own end that gives the place back.
      taken++
      const round = ConnectGate.begin(gate, now())
      const fiber = owner.runFork(connect)
      underWay.set(fiber, giveUp)
      // An observer also hears of a fiber that was interrupted before it began.
      fiber.addObserver((exit) => {
        underWay.delete(fiber)
        if (Exit.isFailure(exit)) owner.runFork(giveUp)
        onlooker?.(exit, host())
        if (Exit.isSuccess(exit) || !recalled.has(fiber)) return conclude(exit, round, hasAnswer(), startedAt)
        gate.connecting--
        owner.onPlace()
      })
      // What it begins with may have closed the pool.
      if (isAborted) owner.runFork(end(fiber, giveUp))
    },
    connecting: () => gate.connecting,
    pause: () => ConnectGate.remainingPause(gate, now()),
    reopen: () => ConnectGate.reopen(gate),
    outOfTurn: () => ConnectGate.outOfTurn(gate, now()),
    lastFailure: () => lastFailure,
    disproved: (error) => fail(error, gate.round),
    taken: () => taken,
    allFree: placeFreed.until(() => taken === 0),
    recall: Effect.suspend(() => {
      for (const fiber of underWay.keys()) recalled.add(fiber)
      return endAll
    }),
    abort: Effect.suspend(() => {
      isAborted = true
      return endAll
    }),
    abandon: Effect.sync(() => {
      for (const berth of berths) berth.wire().abandon()
    }),
    abandonLeft: (before) => {
      for (const berth of berths) if ((berth.wire().leavingSince() ?? Infinity) < before) berth.wire().abandon()
    },
    hangUp: Effect.sync(() => {
      for (const giveUp of Array.from(requests)) giveUp()
    })
  }
}
