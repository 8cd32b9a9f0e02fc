import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as Bell from "./bell.ts"
import * as Berth from "./berth.ts"
import * as ConnectGate from "./connectGate.ts"
import * as Login from "./login.ts"
import type { Settings } from "./poolSettings.ts"
import * as Session from "./session.ts"
import * as Socket from "./socket.ts"

/** What the owner of the sessions decides and wants to know. */
export interface Owner<E> {
  readonly settings: Settings
  /** Wall-clock milliseconds. */
  readonly now: () => number
  /** A random number from 0 to 1. */
  readonly draw: () => number
  readonly runFork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly generation: () => number
  readonly hookFailed: (hook: string, cause: unknown) => E
  /** The error when no password can be had; `refusal` is what the server said of the one before. */
  readonly credentialsFailed: (cause: unknown, refusal: SqlError | undefined) => E
  /** A session is open, and its hooks have run. */
  readonly onReady: (session: Session.Session) => void
  readonly onFailed: (error: E | SqlError) => void
  /** The server has accepted a session. */
  readonly onOpen: (session: Session.Session) => void
  /** A session that was opened is dead. Its place may be free only later. */
  readonly onGone: (session: Session.Session) => void
  /** The place of a session, or of a connect that failed, is free. */
  readonly onPlace: () => void
}

export interface Connector<E> {
  /** Whether to connect now, wait for a connect under way, or take the cause of one that has just failed for an answer. */
  readonly decide: () => ConnectGate.Decision<E>
  /** Sets out to open a session. It takes a place from now until the server has let go of it. */
  readonly connect: () => void
  readonly connecting: () => number
  /** Milliseconds until the next connect is tried after failed ones, 0 when it may be tried now. */
  readonly pause: () => number
  readonly lastFailure: () => E | undefined
  /** Places that are taken: connects, sessions, and those that are saying goodbye. */
  readonly taken: () => number
  /** Succeeds once no place is taken. */
  readonly allFree: Effect.Effect<void>
  /** Ends the connects under way. */
  readonly abort: Effect.Effect<void>
  /** Closes every socket that is left, whatever the server still does. */
  readonly abandon: Effect.Effect<void>
}

const timedOut = (millis: number): SqlError =>
  new SqlError({
    reason: new ConnectionError({
      cause: new Error("Connection timed out"),
      message: `PgConnection: Connection timed out after ${millis} ms`,
      operation: "connect"
    })
  })

export const make = <E>(owner: Owner<E>): Connector<E | SqlError> => {
  const { now, settings } = owner
  const gate = ConnectGate.make<E | SqlError>()
  const placeFreed = Bell.make()
  const underWay = new Map<Fiber.Fiber<Session.Session, E | SqlError>, Effect.Effect<void>>()
  const berths = new Set<Berth.Berth>()
  let taken = 0
  let lastId = 0
  let lastFailure: E | SqlError | undefined

  const runHook = (hook: string, effect: Effect.Effect<unknown, unknown> | undefined): Effect.Effect<unknown, E> =>
    effect === undefined ? Effect.void : Effect.mapError(effect, (cause) => owner.hookFailed(hook, cause))

  const sayGoodbye = (session: Session.Session) =>
    session.wire.isDead() ? Effect.void : Effect.suspend(() => settings.beforeDisconnect!(session.connection)).pipe(
      Effect.timeoutOption(settings.farewell),
      Effect.ignoreCause({
        log: "Warn",
        message: "the beforeDisconnect hook failed; the session is closed all the same"
      })
    )

  const logIn = (berth: Berth.Berth, scope: Scope.Closeable) =>
    Login.login<Session.Session, E, Scope.Scope>({
      password: settings.password,
      failed: owner.credentialsFailed,
      changeSocket: berth.change,
      attempt: (password) =>
        Effect.suspend(() =>
          Session.open({
            id: ++lastId,
            scope,
            wire: berth.wire(),
            generation: owner.generation(),
            config: { ...settings.connection, password },
            now,
            lifetime: settings.maxLifetime * (1 - owner.draw() * settings.maxLifetimeJitter),
            silence: settings.silence
          })
        )
    })

  const open = (berth: Berth.Berth, scope: Scope.Closeable, onOpen: (session: Session.Session) => void) =>
    runHook("beforeConnect", settings.beforeConnect).pipe(
      Effect.andThen(logIn(berth, scope)),
      Effect.tap((session) => Effect.sync(() => onOpen(session))),
      Effect.tap((session) => runHook("afterConnect", settings.afterConnect?.(session.connection))),
      Effect.tap((session) =>
        settings.beforeDisconnect === undefined ? Effect.void : Effect.addFinalizer(() => sayGoodbye(session))
      )
    )

  /** Counts sockets, not sessions: one that is saying goodbye still holds its place on the server. */
  const freePlace = (): void => {
    taken--
    if (taken === 0) ConnectGate.forget(gate)
    placeFreed.notify()
    owner.onPlace()
  }

  /** One session, on the socket that could log in. The place is free again when the socket has closed, whatever becomes of the session. */
  const attempt = () => {
    const scope = Scope.makeUnsafe()
    let session: Session.Session | undefined
    const mourn = () => {
      const dead = session
      session = undefined
      if (dead !== undefined) owner.onGone(dead)
    }
    const berth = Berth.make({
      open: (onClose) =>
        Socket.make({
          target: settings.target,
          runFork: owner.runFork,
          farewell: settings.farewell,
          cancelsAreOurs: settings.cancelsAreOurs,
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
    const giveUp = Effect.suspend(() => {
      berth.leave()
      berth.wire().destroy({ by: "pool", message: "the session was not taken up" })
      return Scope.close(scope, Exit.void)
    })
    const opening = open(berth, scope, (opened) => {
      session = opened
      owner.onOpen(opened)
      berth.leave()
    })
    // The socket goes before the work is interrupted: whatever waits for it then ends at once.
    const timeUp = Effect.sleep(settings.connectTimeout).pipe(
      Effect.andThen(giveUp),
      Effect.andThen(Effect.fail(timedOut(settings.connectTimeout)))
    )
    const connect: Effect.Effect<Session.Session, E | SqlError> = Effect.raceFirst(
      Scope.provide(opening, scope),
      timeUp
    )
    return { connect, giveUp }
  }

  const conclude = (exit: Exit.Exit<Session.Session, E | SqlError>, round: number): void => {
    gate.connecting--
    if (Exit.isSuccess(exit)) {
      ConnectGate.succeeded(gate)
      return owner.onReady(exit.value)
    }
    const error = Cause.findErrorOption(exit.cause)
    if (error._tag === "None") return
    lastFailure = error.value
    ConnectGate.failed(gate, round, error.value, now())
    owner.onFailed(error.value)
  }

  return {
    decide: () => ConnectGate.decide(gate, now()),
    connect: () => {
      taken++
      const round = ConnectGate.begin(gate)
      const { connect, giveUp } = attempt()
      const fiber = owner.runFork(connect)
      underWay.set(fiber, giveUp)
      // An observer also hears of a fiber that was interrupted before it began.
      fiber.addObserver((exit) => {
        underWay.delete(fiber)
        if (Exit.isFailure(exit)) owner.runFork(giveUp)
        conclude(exit, round)
      })
    },
    connecting: () => gate.connecting,
    pause: () => gate.failures === 0 ? 0 : Math.max(0, gate.shutUntil - now()),
    lastFailure: () => lastFailure,
    taken: () => taken,
    allFree: placeFreed.until(() => taken === 0),
    abort: Effect.suspend(() =>
      Effect.forEach(
        Array.from(underWay),
        ([fiber, giveUp]) => Effect.andThen(giveUp, Fiber.interrupt(fiber)),
        { concurrency: "unbounded", discard: true }
      )
    ),
    abandon: Effect.sync(() => {
      for (const berth of berths) berth.wire().abandon()
    })
  }
}
