import * as Duration from "effect/Duration"

/**
 * Which way bytes go.
 *
 * @category models
 * @since 0.1.0
 */
export type Direction = "to the server" | "to the client"

/**
 * Where a fault strikes.
 *
 * @category options
 * @since 0.1.0
 */
export interface Where {
  /** Default: both. */
  readonly direction?: Direction | undefined
}

interface Directed {
  readonly directions: ReadonlyArray<Direction>
}

/**
 * Every byte arrives later. See `delay`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Delay extends Directed {
  readonly _tag: "Delay"
  /** In milliseconds. */
  readonly by: number
  /** In milliseconds. */
  readonly jitter: number
}

/**
 * Bytes arrive a few at a time. See `drip`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Drip extends Directed {
  readonly _tag: "Drip"
  readonly bytes: number
  /** In milliseconds. */
  readonly every: number
}

/**
 * Bytes wait. See `hold`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Hold extends Directed {
  readonly _tag: "Hold"
}

/**
 * Bytes are lost. See `drop`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Drop extends Directed {
  readonly _tag: "Drop"
}

/**
 * The connection is cut at a certain byte. See `cutAfter`.
 *
 * @category models
 * @since 0.1.0
 */
export interface CutAfter extends Directed {
  readonly _tag: "CutAfter"
  readonly bytes: number
}

/**
 * One direction ends in good order. See `halfClose`.
 *
 * @category models
 * @since 0.1.0
 */
export interface HalfClose extends Directed {
  readonly _tag: "HalfClose"
}

/**
 * Nothing gets through, and nobody is told. See `blackhole`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Blackhole extends Directed {
  readonly _tag: "Blackhole"
}

/**
 * No new connection is made. See `refuse`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Refuse {
  readonly _tag: "Refuse"
  readonly how: "closed" | "reset"
}

/**
 * What can go wrong on one link.
 *
 * @category models
 * @since 0.1.0
 */
export type LinkFault = Delay | Drip | Hold | Drop | CutAfter | HalfClose | Blackhole

/**
 * What can go wrong.
 *
 * @category models
 * @since 0.1.0
 */
export type Fault = LinkFault | Refuse

const both: ReadonlyArray<Direction> = ["to the server", "to the client"]

const directionsOf = (where: Where | undefined): ReadonlyArray<Direction> =>
  where?.direction === undefined ? both : [where.direction]

/** A wrong value is a mistake in the test itself, which must not go on with another one. */
const atLeast = (option: string, value: number, least: number): number => {
  if (value >= least) return value
  throw new RangeError(`FaultProxy: ${option} is ${value}, and must be at least ${least}.`)
}

const millis = (option: string, input: Duration.Input): number =>
  atLeast(option, Duration.toMillis(Duration.fromInputUnsafe(input)), 0)

/**
 * Every byte arrives later by `by`, and by up to `jitter` more (default: none), drawn from `Random` for each piece that
 * comes in. Bytes never overtake each other. Lifted: what is on its way arrives at once.
 *
 * @category constructors
 * @since 0.1.0
 */
export const delay = (
  options: Where & { readonly by: Duration.Input; readonly jitter?: Duration.Input | undefined }
): Delay => ({
  _tag: "Delay",
  directions: directionsOf(options),
  by: millis("delay.by", options.by),
  jitter: millis("delay.jitter", options.jitter ?? 0)
})

/**
 * At most `bytes` (at least 1) get through, then none for `every`, and so on. Lifted: what is left arrives at once.
 *
 * @category constructors
 * @since 0.1.0
 */
export const drip = (options: Where & { readonly bytes: number; readonly every: Duration.Input }): Drip => ({
  _tag: "Drip",
  directions: directionsOf(options),
  bytes: atLeast("drip.bytes", options.bytes, 1),
  every: millis("drip.every", options.every)
})

/**
 * Nothing gets through, the end of the connection included, and nothing is lost: as a network that is interrupted for
 * less time than TCP tries again. Lifted: everything arrives, in order.
 *
 * @category constructors
 * @since 0.1.0
 */
export const hold = (options?: Where): Hold => ({ _tag: "Hold", directions: directionsOf(options) })

/**
 * Bytes are lost; the end of the connection still gets through. Lifted: a link that has lost bytes is cut, since the
 * rest of a stream with a hole in it would be what no network can deliver.
 *
 * @category constructors
 * @since 0.1.0
 */
export const drop = (options?: Where): Drop => ({ _tag: "Drop", directions: directionsOf(options) })

/**
 * Lets the next `bytes` of a link through, in each direction that it is about, and cuts the link when the last of them
 * has arrived: the client sees a reset, the server the end of the connection. `0`: at the next byte, which is lost.
 *
 * @category constructors
 * @since 0.1.0
 */
export const cutAfter = (bytes: number, options?: Where): CutAfter => ({
  _tag: "CutAfter",
  directions: directionsOf(options),
  bytes: atLeast("cutAfter.bytes", bytes, 0)
})

/**
 * Ends one direction in good order (FIN) after what is under way, and leaves the other one open: at once on links that
 * are open, from the beginning on those to come. It cannot be undone for a link that it has struck.
 *
 * @category constructors
 * @since 0.1.0
 */
export const halfClose = (direction: Direction): HalfClose => ({ _tag: "HalfClose", directions: [direction] })

/**
 * As if the network had gone: links fall silent both ways and nobody learns of anybody's end; new ones are accepted
 * and lead nowhere. Lifted: links that have lost bytes are cut, the others go on.
 *
 * @category constructors
 * @since 0.1.0
 */
export const blackhole = (): Blackhole => ({ _tag: "Blackhole", directions: both })

/**
 * No new link: `"closed"` (default) stops listening, so that a connect fails with ECONNREFUSED; `"reset"` accepts it and
 * resets it at once. Links that are open stay.
 *
 * @category constructors
 * @since 0.1.0
 */
export const refuse = (how: "closed" | "reset" = "closed"): Refuse => ({ _tag: "Refuse", how })
