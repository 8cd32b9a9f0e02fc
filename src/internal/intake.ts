import type { Duplex } from "node:stream"

/** Takes its own from what comes in and passes on the rest, in order. */
export type Look = (chunk: Uint8Array, passOn: (rest: Uint8Array) => void) => void

/** What comes in over a stream, while some of it is not for whoever listens to the stream. */
export interface Intake {
  /**
   * Looks at whatever comes from now on, after those who were here before: they have asked before, and are answered
   * before. Returns how to stop.
   */
  readonly join: (look: Look) => () => void
}

/** Nothing stands between the stream and its listeners while nobody looks. */
export const make = (duplex: Duplex): Intake => {
  const emit = duplex.emit
  const looks: Array<Look> = []

  const pass = (chunk: Uint8Array, remaining: ReadonlyArray<Look>): void => {
    if (chunk.length === 0) return
    const [look, ...later] = remaining
    if (look === undefined) emit.call(duplex, "data", chunk)
    else look(chunk, (rest) => pass(rest, later))
  }

  const emitLookedThrough = function(this: Duplex, event: string | symbol, ...args: Array<unknown>) {
    if (event !== "data") return (emit as (...args: Array<unknown>) => boolean).call(duplex, event, ...args)
    pass(args[0] as Uint8Array, looks.slice())
    return true
  } as typeof emit

  return {
    join: (look) => {
      if (looks.push(look) === 1) duplex.emit = emitLookedThrough
      return () => {
        const at = looks.indexOf(look)
        if (at < 0) return
        looks.splice(at, 1)
        if (looks.length === 0) duplex.emit = emit
      }
    }
  }
}
