import * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as Effect from "effect/Effect"
import type { SqlError } from "effect/sql/SqlError"
import * as Net from "node:net"
import type { Duplex } from "node:stream"
import * as Tls from "node:tls"
import type * as Aside from "./aside.ts"
import * as BackendMessages from "./backendMessages.ts"
import * as CancelRequests from "./cancelRequests.ts"
import * as Departure from "./departure.ts"
import * as Dial from "./dial.ts"
import * as Interludes from "./interludes.ts"
import type * as Reset from "./reset.ts"
import type * as Rider from "./rider.ts"
import * as Silence from "./silence.ts"

/**
 * The socket under one session: what the driver does not tell is read off it here, at no cost to a healthy query.
 *
 * The driver asks its `stream` factory for the session's socket first and for one more per CancelRequest afterwards,
 * which is how the two are told apart.
 */
export interface Wire {
  /** Connects, TLS included. */
  readonly dial: Effect.Effect<void, SqlError>
  /** The factory to hand to the driver, once dialled. */
  readonly stream: () => Duplex
  /** Grows with every byte handed to the socket: unchanged means that nothing of it was or will be run. */
  readonly mark: () => number
  /** Whether a CancelRequest that was sent for this session may hit its next statement. */
  readonly cancelThreat: () => CancelRequests.Threat
  /** Waits until that is not pending any more. */
  readonly cancelsDecided: Effect.Effect<void>
  /** True once the socket cannot carry another statement. */
  readonly isDead: () => boolean
  /** Why the server or we ended the session, when known. */
  readonly obituary: () => Obituary | undefined
  /** Whether the last thing the server said is that it is ready and outside of a transaction. */
  readonly isIdle: () => boolean
  /** Whether something was sent to which the server has not begun to say anything. */
  readonly isOwed: () => boolean
  /**
   * Undoes what a borrower has left on the session, unless nothing was sent since the last time. Nobody waits for the
   * answer: what is sent next goes behind it. Call when the session is idle and nothing is owed. A session that
   * cannot be reset is destroyed, and what was sent behind is taken back from `mark` when it is known not to run.
   */
  readonly reset: (frame: Uint8Array) => void
  /** Whether the answer to `reset` has still to come. */
  readonly isResetting: () => boolean
  /**
   * Asks the server something on the pool's behalf: a statement in a transaction of its own. Nobody waits for the answer:
   * what is sent next goes behind it. Call when the session is idle and nothing is owed. `onAnswer` hears once what came of
   * it, `undefined` when the session has ended.
   */
  readonly ask: (sql: string, onAnswer: (answer: Aside.Answer | undefined) => void) => void
  /**
   * Call once the session is open: from then on silence while `isBusy()` destroys the socket. What is cut off while
   * `isCommitting()` is not cancelled on the server.
   */
  readonly watchSilence: (millis: number, isBusy: () => boolean, isCommitting: () => boolean) => void
  /**
   * Call when a caller has given up on a statement that goes on: on a shared session the next ones would keep a timer
   * of reads and writes from ever noticing that nothing is read any more.
   */
  readonly suspect: () => void
  /** Call when rows are asked for: the server has all the time again from now on. */
  readonly expectAnswer: () => void
  /** What the server has last reported of one of its settings. */
  readonly parameter: (name: string) => string | undefined
  /** Hears of it when the server reports a setting from now on. */
  readonly onParameter: (listener: () => void) => void
  /**
   * Sends a BEGIN ahead of the driver's next statement, and what is to come with it, in the same write and under the same
   * Sync. Call when the session is idle and whoever asks is the only one to use it.
   */
  readonly lead: (luggage: ReadonlyArray<string>) => Interludes.Lead
  /**
   * Sends statements along with the driver's next one, which has to open a transaction, and hands back what became of
   * them: `undefined` when the session ended. Whoever stops waiting for it while it is under way loses the session.
   */
  readonly ride: (statements: ReadonlyArray<string>) => Effect.Effect<Rider.Answer | undefined>
  /** Call when the driver has said goodbye. */
  readonly expectClose: () => void
  /** Ends the session for all who use it, at once. Its place is free when the server has let go of it, too. */
  readonly destroy: (reason: Obituary) => void
  /** The same, and whatever the server executes for it is cancelled at once: this process may be stopped the next moment. */
  readonly cutOff: (reason: Obituary) => void
  /**
   * Ends a session that nobody uses, and that the server may have ended long ago: told so, it gets so many milliseconds to
   * let go of it.
   */
  readonly dismiss: (reason: Obituary, patience: number) => void
  /** Closes the socket, whatever the server still does with the session. */
  readonly abandon: () => void
  /** Whether the socket has closed. */
  readonly isClosed: () => boolean
  /** Wall-clock milliseconds since which nothing but the server's end is waited for. */
  readonly leavingSince: () => number | undefined
}

/** The last words of a session: a FATAL of the server's, or a reason of ours. */
export interface Obituary {
  readonly by: "server" | "silence" | "pool" | "driver"
  readonly sqlState?: string | undefined
  readonly message: string
}

/** What a server may still be doing with a session when it ends, and how long that may take. */
type Parting =
  | { readonly _tag: "Usual" }
  | { readonly _tag: "Urgent" }
  | { readonly _tag: "Idle"; readonly patience: number }

/** The server's answer to a CancelRequest; it gives the same SQLSTATE to a statement that ran out of its time. */
const isAnswerToCancel = ({ code, message }: PgProtocol.ErrorFields): boolean =>
  code === "57014" && !/timeout/i.test(message ?? "")

/** Nothing goes ahead where nothing can go. */
const unsent: Interludes.Lead = { outcome: () => "Unanswered", row: () => undefined, withdraw: () => {} }

/** A COMMIT is left to come to its end, which statement_timeout does not bound: so many farewells for it. */
const commitPatience = 5

export const make = (options: {
  readonly target: Dial.Target
  /** Wall-clock milliseconds. */
  readonly now: () => number
  readonly runFork: (effect: Effect.Effect<void>) => unknown
  /** Milliseconds that the end of a session may take. */
  readonly farewell: number
  /** The CancelRequests that the pool has under way. */
  readonly requests: Dial.Requests
  /** Whether a CancelRequest for this session cannot hit anybody's statement but its borrower's. */
  readonly cancelsAreOurs: boolean
  readonly onResetRefused: (sqlState: string | undefined) => void
  /** Whether it goes to a pooler: then it is lost for a statement that is not running yet, and may hit others' there. */
  readonly behindPooler: boolean
  /** Nobody can use the session any more. */
  readonly onDeath: () => void
  /** Its place on the server is free, as far as can be known. */
  readonly onClose: () => void
}): Wire => {
  let socket: Duplex | undefined
  let written = 0
  let chunks = 0
  let isAnswered = true
  let hearOfParameter = (): void => {}
  const messages = BackendMessages.makeScanner(() => hearOfParameter())
  let obituary: Obituary | undefined
  let leavingSince: number | undefined
  let stopWaiting = (): void => {}
  let closeSocket = (): void => {}
  // Kept by hand, since every checkout asks and a stream computes its own answers from a dozen flags.
  let isGone = true
  let isDestroyed = false
  let isTaken = false
  let isClosed = false
  let firstError: Error | undefined
  /** What is open below the session's socket while it is dialled. */
  const layers: Array<Duplex> = []
  const cancelSockets = new Set<Duplex>()
  /** Those who are told of the socket's own end, and not of the session's. */
  const bookkeepers = new Set<unknown>()
  /** What had been written at the last reset. */
  let cleanAt = 0
  const cancels = CancelRequests.make(options.cancelsAreOurs)
  let errorBefore: PgProtocol.ErrorFields | undefined

  /** Past what is counted and watched for the driver. */
  let writeAside: (frame: Uint8Array) => unknown = () => {}
  let interludes: Interludes.Interludes | undefined
  let commits = (): boolean => false
  let silence = Silence.none

  const lastWords = (): Obituary | undefined => {
    const fatal = messages.fatal()
    return fatal === undefined ? undefined : { by: "server", ...fatal }
  }

  /** For the driver's side alone: what is on its way still arrives, and its end is still watched for. */
  const hangUpOnCancels = (): void => {
    for (const cancel of cancelSockets) cancel.destroy()
  }

  /** The driver fails what it has under way when it hears of the end, which the socket itself will tell only later. */
  const tellOfEnd = (duplex: Duplex): void => {
    for (const listener of duplex.rawListeners("close")) if (!bookkeepers.has(listener)) listener.call(duplex, false)
  }

  const askToCancel = (duplex: Duplex): ((onEnd: Departure.OnCancelled) => void) | undefined => {
    const key = messages.cancelKey()
    if (key === undefined || options.behindPooler) return undefined
    return (onEnd) => {
      const request = Dial.later(
        cancelTarget(duplex),
        options.farewell,
        options.runFork,
        onEnd,
        () => false,
        options.requests
      )
      request.on("error", () => {})
      request.write(PgProtocol.encodeCancelRequest(key))
      request.destroy()
    }
  }

  /** A session begins with the startup message: whatever was not sent needs no goodbye. */
  const isUnknownToServer = (duplex: Duplex): boolean =>
    written === 0 || (duplex instanceof Net.Socket && duplex.connecting)

  const depart = (duplex: Duplex, parting: Parting = { _tag: "Usual" }): void => {
    if (leavingSince !== undefined || duplex.destroyed) return
    leavingSince = options.now()
    isGone = true
    if (isUnknownToServer(duplex)) return closeSocket()
    const { farewell } = options
    const close = closeSocket
    stopWaiting = Departure.begin(
      duplex,
      commits()
        ? { close, patience: commitPatience * farewell, cancel: undefined }
        : parting._tag === "Idle"
        ? { close, patience: parting.patience, cancel: undefined }
        : { close, patience: farewell, cancel: askToCancel(duplex), isUrgent: parting._tag === "Urgent" }
    )
  }

  const closeLayers = (): void => {
    isDestroyed = true
    isClosed = true
    for (const layer of layers) layer.destroy()
    options.onClose()
  }

  const destroyNow = (duplex: Duplex, parting?: Parting): void => {
    // The driver would wait five seconds for a silent server's answer.
    isDestroyed = true
    hangUpOnCancels()
    depart(duplex, parting)
    process.nextTick(() => {
      tellOfEnd(duplex)
      options.onDeath()
    })
  }

  /**
   * The driver destroys the socket of a session that it cannot use any more, a live server's too. Said with the
   * closing half alone, the server notices and answers, and the place is not given away while its session is there.
   */
  const departInstead = (duplex: Duplex): void => {
    const { destroy } = duplex
    closeSocket = () => void destroy.call(duplex)
    duplex.destroy = (error) => {
      const isFailure = error !== undefined && error !== null
      if (isFailure || duplex.destroyed || duplex.readableEnded) {
        isGone = true
        return destroy.call(duplex, error)
      }
      if (leavingSince !== undefined) return duplex
      obituary ??= lastWords() ?? { by: "driver", message: "the driver gave the session up" }
      depart(duplex)
      process.nextTick(options.onDeath)
      return duplex
    }
    // A socket of Node's own below TLS destroys the one above without a word about the reason.
    for (const layer of layers) if (layer !== duplex) layer.once("close", closeSocket)
  }

  /** A borrower has one statement under way, so a chunk brings one error at most. */
  const lookForAnswer = (): void => {
    const error = messages.lastError()
    if (error === undefined || error === errorBefore) return
    errorBefore = error
    if (!isAnswerToCancel(error)) return
    cancels.answered()
    // The driver waits for the end of the request, which says nothing more to the one whom the statement belonged to.
    if (!cancels.isAnswerDue()) hangUpOnCancels()
  }

  /** The very server of the session, and not another one of its name's. */
  const cancelTarget = (duplex: Duplex): Dial.Target => {
    const { target } = options
    const ip = duplex instanceof Net.Socket ? duplex.remoteAddress : undefined
    // The secret of an encrypted session must not go out in plain text.
    const tls = target.tls._tag === "On" && duplex instanceof Tls.TLSSocket
      ? { ...target.tls, isOptional: false }
      : target.tls
    return { ...target, ip, tls }
  }

  const adopt = (duplex: Duplex): Duplex => {
    isGone = duplex.destroyed
    departInstead(duplex)
    const write = duplex.write
    writeAside = (frame) => (write as (chunk: Uint8Array) => boolean).call(duplex, frame)
    const own = interludes = Interludes.make(duplex, {
      write: writeAside,
      messages,
      onChunk: () => void chunks++,
      isDeparting: () => leavingSince !== undefined,
      isDead: () => isGone
    })
    duplex.write = function(this: Duplex, chunk: Uint8Array, encoding?: unknown, callback?: unknown) {
      // The driver may not know yet. A stream that is written to after its end would be destroyed, and its place lost.
      if (isGone) return true
      isAnswered = false
      written += (chunk as Uint8Array | undefined)?.length ?? 1
      return (write as (...args: Array<unknown>) => boolean).call(duplex, own.laden(chunk), encoding, callback)
    } as typeof duplex.write
    duplex.on("data", (chunk: Uint8Array) => {
      chunks++
      isAnswered = true
      messages.scan(chunk)
      if (cancels.isAnswerDue()) lookForAnswer()
    })
    // The driver takes its own listeners off when it lets go of the socket: a late error must still find one.
    duplex.on("error", (error) => {
      isGone = true
      firstError ??= error
    })
    duplex.once("end", () => {
      isGone = true
      // Half of a connection is of no use, but a stream of the caller's may leave it open.
      if (duplex.writable) duplex.destroy()
    })
    duplex.once("close", () => {
      isGone = true
      isClosed = true
      obituary ??= lastWords()
      silence.stop()
      cancels.giveUp()
      stopWaiting()
      options.onClose()
    })
    return duplex
  }

  /** Nothing that a server says after it could be trusted to belong to the next borrower. */
  const giveUpUnclean = (duplex: Duplex, { fields, isSealed }: Reset.Refusal): void => {
    if (isSealed) written = cleanAt
    obituary ??= { by: "pool", message: `the session could not be reset: ${fields?.message ?? "no reason given"}` }
    options.onResetRefused(fields?.code)
    destroyNow(duplex)
  }

  /** A CancelRequest names no statement: until ours has been answered, it would end that instead of its caller's. */
  const forkAfterQuestions = (effect: Effect.Effect<void>): unknown =>
    interludes === undefined || !interludes.isAsking()
      ? options.runFork(effect)
      : options.runFork(Effect.flatMap(interludes.answered, () => isGone ? Effect.void : effect))

  const end = (reason: Obituary, parting?: Parting): void => {
    obituary ??= reason
    if (socket === undefined) closeLayers()
    else destroyNow(socket, parting)
  }

  return {
    dial: Effect.map(Dial.dial(options.target, (layer) => layers.push(layer)), (duplex) => {
      socket = adopt(duplex)
    }),
    stream: () => {
      if (socket === undefined || isDestroyed) {
        throw new Error("the session is gone, and with it whatever was to be cancelled")
      }
      if (!isTaken) {
        // The driver fetches the password first, and would listen in vain for what has happened meanwhile.
        if (isGone) throw firstError ?? new Error("Connection closed")
        isTaken = true
        for (const listener of socket.rawListeners("close")) bookkeepers.add(listener)
        return socket
      }
      if (!cancels.isAnswerDue()) errorBefore = messages.lastError()
      cancels.sent()
      const inVain = () => options.behindPooler && !isGone && cancels.isAnswerDue()
      const cancel = Dial.later(
        cancelTarget(socket),
        options.farewell,
        forkAfterQuestions,
        cancels.ended,
        inVain,
        options.requests
      )
      cancelSockets.add(cancel)
      cancel.once("close", () => cancelSockets.delete(cancel))
      return cancel
    },
    mark: () => written,
    cancelThreat: cancels.threat,
    cancelsDecided: cancels.decided,
    isDead: () => isGone,
    obituary: () => obituary ?? lastWords(),
    isIdle: messages.isIdle,
    isOwed: () => !isAnswered,
    reset: (frame) => {
      if (socket === undefined || interludes === undefined || isGone || written === cleanAt) return
      const duplex = socket
      cleanAt = written
      interludes.reset(frame, (refusal) => giveUpUnclean(duplex, refusal))
    },
    isResetting: () => interludes?.isResetting() ?? false,
    ask: (sql, onAnswer) => {
      if (interludes === undefined || isGone) return onAnswer(undefined)
      interludes.ask(sql, onAnswer)
    },
    watchSilence: (allowed, isBusy, isCommitting) => {
      commits = isCommitting
      cleanAt = written
      if (socket === undefined) return
      const watched = socket
      silence = Silence.watch(watched, {
        millis: allowed,
        received: () => chunks,
        written: () => written,
        isBusy,
        onSilence: (millis) => {
          obituary = { by: "silence", message: `no byte came from the server for ${millis} ms` }
          destroyNow(watched)
        }
      })
    },
    suspect: () => {
      if (!isAnswered) silence.suspect()
    },
    expectAnswer: () => silence.expectAnswer(),
    parameter: messages.parameter,
    onParameter: (listener) => {
      hearOfParameter = listener
    },
    lead: (luggage) => interludes?.lead(luggage) ?? unsent,
    ride: (statements) =>
      Effect.suspend(() => {
        if (socket === undefined || interludes === undefined || isGone) return Effect.undefined
        const duplex = socket
        return interludes.ride(statements, () => {
          obituary ??= { by: "driver", message: "an answer that was on its way was not waited for" }
          destroyNow(duplex)
        })
      }),
    expectClose: () => {
      if (socket !== undefined) depart(socket)
    },
    destroy: (reason) => end(reason),
    cutOff: (reason) => end(reason, { _tag: "Urgent" }),
    dismiss: (reason, patience) => {
      if (!isGone) writeAside(PgProtocol.encodeTerminate())
      end(reason, { _tag: "Idle", patience })
    },
    abandon: () => {
      if (socket === undefined) closeLayers()
      else closeSocket()
    },
    isClosed: () => isClosed,
    leavingSince: () => leavingSince
  }
}
