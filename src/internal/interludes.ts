import * as Effect from "effect/Effect"
import type { Duplex } from "node:stream"
import * as Aside from "./aside.ts"
import type { Scanner } from "./backendMessages.ts"
import * as Bell from "./bell.ts"
import * as Intake from "./intake.ts"
import * as Reset from "./reset.ts"
import * as Rider from "./rider.ts"
import * as Vanguard from "./vanguard.ts"

/** A BEGIN that waits for the driver's next write, or went with it. */
export interface Lead {
  readonly outcome: () => Vanguard.Outcome
  /** The first row of what came with it. */
  readonly row: () => Rider.Answer["row"]
  /** To be called when the statement that it was for has ended: it does not go with another one. */
  readonly withdraw: () => void
}

/**
 * What the pool itself says on a session's connection, before, behind or in one packet with what the driver says. The
 * driver knows nothing of it: the answers are taken out of what comes in before it listens.
 */
export interface Interludes {
  /** What the driver writes, with what is to travel along. */
  readonly laden: (chunk: Uint8Array) => Uint8Array
  /** See `Wire.lead`. */
  readonly lead: (luggage: ReadonlyArray<string>) => Lead
  /** See `Wire.ride`; whoever stops waiting for an answer that is on its way calls `onLost`. */
  readonly ride: (statements: ReadonlyArray<string>, onLost: () => void) => Effect.Effect<Rider.Answer | undefined>
  /** Sends a reset; a server that refuses it is told of to `onRefused`. */
  readonly reset: (frame: Uint8Array, onRefused: (refusal: Reset.Refusal) => void) => void
  readonly isResetting: () => boolean
  /** See `Wire.ask`. */
  readonly ask: (sql: string, onAnswer: (answer: Aside.Answer | undefined) => void) => void
  /** Whether the answer to a question has still to come. */
  readonly isAsking: () => boolean
  /** Succeeds once there is none, or nobody is left who could give it. */
  readonly answered: Effect.Effect<void>
}

export const make = (duplex: Duplex, wire: {
  /** Past what is counted and watched for the driver. */
  readonly write: (frame: Uint8Array) => void
  /** Who reads what the driver is answered. */
  readonly messages: Pick<Scanner, "learn" | "scan">
  /** Hears of each chunk that the driver does not. */
  readonly onChunk: () => void
  /** Whether nothing but the end of the session is waited for. */
  readonly isDeparting: () => boolean
  readonly isDead: () => boolean
}): Interludes => {
  const { messages } = wire
  const inbound = Intake.make(duplex)
  /** Waits for the driver's next write. */
  let rider: Rider.Rider | undefined
  /** Goes ahead of the driver's next write. */
  let vanguard: Vanguard.Vanguard | undefined
  let isResetting = false
  let questions = 0
  const questionAnswered = Bell.make()

  /**
   * While a rider is under way, its part of what comes in is kept from whoever listens to the socket. The answer gives it
   * up: one that has not set out is taken off, and after one that has, nobody could read what comes.
   */
  const board = (next: Rider.Rider, onDone: () => void, onLost: () => void): () => void => {
    const leave = (): void => {
      if (rider === next) rider = undefined
      stopLooking()
      duplex.off("close", endUnanswered)
    }
    const endUnanswered = (): void => {
      leave()
      onDone()
    }
    rider = next
    const stopLooking = inbound.join((chunk, passOn) => {
      const { after, before, own } = next.take(chunk)
      // At once: the driver's part may end a statement, and then the next one comes with a rider of its own.
      if (next.isDone()) leave()
      // In the order in which they came: a message of the driver's may have begun in the last chunk.
      passOn(before)
      if (own.length > 0) messages.scan(own)
      if (next.isDone()) onDone()
      passOn(after)
    })
    duplex.once("close", endUnanswered)
    return () => {
      if (next.isDone()) return
      const hasSetOut = rider !== next
      leave()
      if (hasSetOut) onLost()
    }
  }

  const setOut = (first: Vanguard.Vanguard, chunk: Uint8Array): Uint8Array => {
    vanguard = undefined
    const stopLooking = inbound.join((answer, passOn) => {
      wire.onChunk()
      first.take(answer, (rest) => {
        // At once: the driver's part may end its statement.
        if (first.isDone()) stopLooking()
        passOn(rest)
      })
      if (first.isDone()) stopLooking()
    })
    return Buffer.concat([first.frame, chunk])
  }

  return {
    lead: (luggage) => {
      const next = vanguard = Vanguard.make(luggage)
      return {
        outcome: next.outcome,
        row: next.row,
        withdraw: () => {
          if (vanguard === next) vanguard = undefined
        }
      }
    },
    laden: (chunk) => {
      if (vanguard !== undefined) return setOut(vanguard, chunk)
      if (rider === undefined) return chunk
      const both = Buffer.concat([chunk, rider.frame])
      rider = undefined
      return both
    },
    ride: (statements, onLost) =>
      Effect.callback((resume) => {
        const next = Rider.make(statements)
        const tell = () => resume(Effect.sync(() => ({ row: next.answer(), refusedBy: next.refusedBy() })))
        return Effect.sync(board(next, tell, onLost))
      }),
    reset: (frame, onRefused) => {
      const answer = Reset.makeAnswer(messages.learn)
      const stopLooking = inbound.join((chunk, passOn) => {
        // Nobody is to be lent the session any more, and who waits for its end wants to hear of every sign of life.
        if (wire.isDeparting()) return passOn(chunk)
        wire.onChunk()
        const rest = answer.take(chunk)
        if (!answer.isDone()) return
        stopLooking()
        isResetting = false
        const refusal = answer.refusal()
        if (refusal === undefined) passOn(rest)
        else onRefused(refusal)
      })
      isResetting = true
      wire.write(frame)
    },
    isResetting: () => isResetting,
    ask: (sql, onAnswer) => {
      questions++
      const frame = Aside.board(duplex, inbound, sql, {
        onParameter: messages.learn,
        isDeparting: wire.isDeparting,
        onChunk: wire.onChunk,
        onAnswer: (answer) => {
          questions--
          questionAnswered.notify()
          onAnswer(answer)
        }
      })
      wire.write(frame)
    },
    isAsking: () => questions > 0,
    answered: questionAnswered.until(() => questions === 0 || wire.isDead())
  }
}
