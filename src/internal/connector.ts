import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as Bell from "./bell.ts"
import * as ConnectGate from "./connectGate.ts"
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
  readonly runFork: (effect: Effect.Effect<void>) => unknown
  readonly generation: () => number
  /** The error that refuses a connect, while there must be no more of them. */
  readonly refusal: () => E | undefined
  readonly hookFailed: (hook: string, cause: unknown) => E
  readonly onOpen: (session: Session.Session) => void
  /** The socket of a session that was opened is gone. */
  readonly onGone: (session: Session.Session) => void
}

export interface Connector<E> {
  /** Opens a session, unless a failed connect has just shown that there is no use: then it fails with that one's cause. */
  readonly acquire: Effect.Effect<Session.Session, E | SqlError, Scope.Scope>
  readonly connecting: () => number
  /** Milliseconds until the next connect is tried after failed ones, 0 when it may be tried now. */
  readonly pause: () => number
  readonly lastFailure: () => E | SqlError | undefined
  readonly sockets: () => number
  /** Succeeds once no socket is left. */
  readonly socketsGone: Effect.Effect<void>
}

const timedOut = (millis: number): SqlError =>
  new SqlError({
    reason: new ConnectionError({
      cause: new Error("Connection timed out"),
      message: `PgConnection: Connection timed out after ${millis} ms`,
      operation: "connect"
    })
  })

export const make = <E>(owner: Owner<E>): Connector<E> => {
  const { now, settings } = owner
  const gate = ConnectGate.make<E | SqlError>()
  const connectEnded = Bell.make()
  const socketClosed = Bell.make()
  // Counts sockets, not sessions: one that is saying goodbye still holds its place on the server.
  const slots = Semaphore.makeUnsafe(settings.max)
  let sockets = 0
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

  const open = (wire: Socket.Wire, onOpen: (session: Session.Session) => void) =>
    runHook("beforeConnect", settings.beforeConnect).pipe(
      Effect.andThen(Effect.suspend(() =>
        Session.open({
          id: ++lastId,
          wire,
          generation: owner.generation(),
          config: settings.connection,
          now,
          lifetime: settings.maxLifetime * (1 - owner.draw() * settings.maxLifetimeJitter),
          silence: settings.silence
        })
      )),
      Effect.tap((session) => Effect.sync(() => onOpen(session))),
      Effect.tap((session) => runHook("afterConnect", settings.afterConnect?.(session.connection))),
      Effect.tap((session) =>
        settings.beforeDisconnect === undefined ? Effect.void : Effect.addFinalizer(() => sayGoodbye(session))
      )
    )

  const connect: Effect.Effect<Session.Session, E | SqlError, Scope.Scope> = Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(restore(slots.take(1)), () => {
      let session: Session.Session | undefined
      let isOpen = true
      sockets++
      const wire = Socket.make({
        target: settings.target,
        runFork: owner.runFork,
        farewell: settings.farewell,
        cancelsAreOurs: settings.cancelsAreOurs,
        cancelsGetLost: settings.cancelsGetLost,
        onClose: () => {
          if (!isOpen) return
          isOpen = false
          sockets--
          if (session !== undefined) owner.onGone(session)
          owner.runFork(Effect.asVoid(slots.release(1)))
          socketClosed.notify()
        }
      })
      const giveUp = Effect.sync(() => wire.destroy({ by: "pool", message: "the session was not taken up" }))
      const opening = open(wire, (opened) => {
        session = opened
        owner.onOpen(opened)
      })
      // The socket goes before the work is interrupted: whatever waits for it then ends at once.
      const timeUp = Effect.sleep(settings.connectTimeout).pipe(
        Effect.andThen(giveUp),
        Effect.andThen(Effect.fail(timedOut(settings.connectTimeout)))
      )
      return Effect.onError(restore(Effect.raceFirst(opening, timeUp)), () => giveUp)
    })
  )

  const conclude = (exit: Exit.Exit<Session.Session, E | SqlError>): void => {
    gate.connecting--
    if (Exit.isSuccess(exit)) ConnectGate.succeeded(gate)
    else {
      const error = Cause.findErrorOption(exit.cause)
      if (error._tag === "Some") {
        lastFailure = error.value
        ConnectGate.failed(gate, error.value, now())
      }
    }
    connectEnded.notify()
  }

  const acquire: Connector<E>["acquire"] = Effect.suspend(() => {
    const refusal = owner.refusal()
    if (refusal !== undefined) return Effect.fail(refusal)
    const decision = ConnectGate.decide(gate, now())
    if (decision === "Wait") {
      const inFlight = gate.connecting
      return Effect.andThen(connectEnded.until(() => gate.connecting < inFlight), acquire)
    }
    if (decision !== "Go") return Effect.fail(decision.cause)
    gate.connecting++
    return Effect.onExit(connect, (exit) => Effect.sync(() => conclude(exit)))
  })

  return {
    acquire,
    connecting: () => gate.connecting,
    pause: () => gate.failures === 0 ? 0 : Math.max(0, gate.shutUntil - now()),
    lastFailure: () => lastFailure,
    sockets: () => sockets,
    socketsGone: socketClosed.until(() => sockets === 0)
  }
}
