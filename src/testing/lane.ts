import type * as Random from "effect/Random"
import type * as Net from "node:net"
import { performance } from "node:perf_hooks"
import type * as Fault from "./fault.ts"

/** One direction of a link: what comes in on one socket goes out on the other one, or whatever the faults make of it. */
export interface Lane {
  readonly arrive: (bytes: Uint8Array) => void
  /** After everything that is under way, the end: in good order, or by a reset. */
  readonly end: (how: "FIN" | "RST") => void
  /** Whether bytes have been lost here. */
  readonly hasHole: () => boolean
  /** Call when a fault has been set or lifted. */
  readonly refresh: () => void
  /** Call when a fault may be set afresh. */
  readonly forget: (fault: Fault.LinkFault) => void
  /** Nothing goes out any more. */
  readonly close: () => void
}

interface Bytes {
  readonly _tag: "Bytes"
  bytes: Uint8Array
  /** By `performance.now()`. */
  readonly due: number
}

type Item = Bytes | { readonly _tag: "Cut" } | { readonly _tag: "End"; readonly how: "FIN" | "RST" }

/** Bytes under way from which on the sender is not read any more, so that it feels a slow receiver. */
const capacity = 1024 * 1024

export const make = (options: {
  readonly source: Net.Socket
  /** `undefined`: leads nowhere. */
  readonly sink: Net.Socket | undefined
  /** Those that are set now, and are about this direction. */
  readonly faults: () => ReadonlyArray<Fault.LinkFault>
  readonly random: Random.Random
  /** The last byte before a cut has been sent. */
  readonly onCut: () => void
}): Lane => {
  const { faults, sink, source } = options
  const queue: Array<Item> = []
  const left = new Map<Fault.LinkFault, number>()
  let size = 0
  let hasHole = false
  let isOver = false
  let isClosed = sink === undefined
  let isFull = false
  let timer: NodeJS.Timeout | undefined

  const active = <Tag extends Fault.LinkFault["_tag"]>(
    tag: Tag
  ): ReadonlyArray<Extract<Fault.LinkFault, { _tag: Tag }>> =>
    faults().filter((fault): fault is Extract<Fault.LinkFault, { _tag: Tag }> => fault._tag === tag)

  const isHeld = (): boolean => faults().some(({ _tag }) => _tag === "Hold" || _tag === "Blackhole")

  const matchSpeed = (): void => {
    if (!isClosed && (isFull || size > capacity)) source.pause()
    else source.resume()
  }

  const again = (millis: number): void => {
    timer = setTimeout(() => {
      timer = undefined
      pump()
    }, millis)
  }

  const write = (bytes: Uint8Array, onSent?: () => void): void => {
    if (sink === undefined || !sink.writable) return onSent?.()
    if (sink.write(bytes, () => onSent?.()) || isFull) return
    isFull = true
    sink.once("drain", () => {
      isFull = false
      matchSpeed()
    })
  }

  /** Sends what may go; says how long the rest has to wait. */
  const sendSome = (): number | undefined => {
    for (let head = queue[0]; head !== undefined && !isHeld(); head = queue[0]) {
      if (head._tag !== "Bytes") {
        queue.shift()
        if (head._tag === "Cut") write(new Uint8Array(0), options.onCut)
        else if (head.how === "RST") sink?.resetAndDestroy()
        else sink?.end()
        continue
      }
      const wait = head.due - performance.now()
      if (wait > 0 && active("Delay").length > 0) return wait
      const drips = active("Drip")
      const piece = head.bytes.subarray(0, Math.min(head.bytes.length, ...drips.map(({ bytes }) => bytes)))
      head.bytes = head.bytes.subarray(piece.length)
      if (head.bytes.length === 0) queue.shift()
      size -= piece.length
      write(piece)
      if (drips.length > 0) return Math.max(...drips.map(({ every }) => every))
    }
    return undefined
  }

  const pump = (): void => {
    if (isClosed || timer !== undefined) return
    const wait = sendSome()
    if (wait !== undefined) again(wait)
    matchSpeed()
  }

  /** What gets through until the first cut, if there is one. */
  const untilCut = (bytes: Uint8Array): { readonly bytes: Uint8Array; readonly isCut: boolean } => {
    let through = bytes.length
    let isCut = false
    for (const cut of active("CutAfter")) {
      const more = left.get(cut) ?? cut.bytes
      left.set(cut, more - bytes.length)
      if (more > bytes.length) continue
      isCut = true
      through = Math.min(through, more)
    }
    return { bytes: bytes.subarray(0, through), isCut }
  }

  return {
    arrive: (incoming) => {
      if (isOver) return
      if (faults().some(({ _tag }) => _tag === "Drop" || _tag === "Blackhole")) {
        hasHole = true
        return
      }
      const { bytes, isCut } = untilCut(incoming)
      const late = active("Delay").reduce(
        (sum, { by, jitter }) => sum + by + jitter * options.random.nextDoubleUnsafe(),
        0
      )
      if (bytes.length > 0) {
        queue.push({ _tag: "Bytes", bytes, due: late === 0 ? 0 : performance.now() + late })
        size += bytes.length
      }
      if (isCut) {
        isOver = true
        queue.push({ _tag: "Cut" })
      }
      pump()
    },
    end: (how) => {
      if (isOver) return
      isOver = true
      queue.push({ _tag: "End", how })
      pump()
    },
    hasHole: () => hasHole,
    refresh: () => {
      clearTimeout(timer)
      timer = undefined
      pump()
    },
    forget: (fault) => left.delete(fault),
    close: () => {
      isClosed = true
      clearTimeout(timer)
      queue.length = 0
      matchSpeed()
    }
  }
}
