/**
 * Preloaded into every process of a local Lambda (`node --import`): moves its wall clock by what the file says, so that
 * a frozen process wakes up in a later hour. The file is read at every look at the clock, because the hour has to be
 * right before the first timer that is overdue runs, and nobody announces a thaw. What is measured monotonically
 * (`performance.now`, timers) does not move: it stands still in a machine that is paused, too.
 */
import * as Fs from "node:fs"

const path = process.env.LOCAL_LAMBDA_CLOCK

if (path !== undefined) {
  const file = Fs.openSync(path, "r")
  const offset = new Float64Array(1)
  const RealDate = Date
  const realNow = Date.now
  const now = (): number => {
    Fs.readSync(file, offset, 0, 8, 0)
    return realNow() + Math.round(offset[0] as number)
  }
  RealDate.now = now
  globalThis.Date = new Proxy(RealDate, {
    apply: () => new RealDate(now()).toString(),
    construct: (target, args, newTarget) => Reflect.construct(target, args.length === 0 ? [now()] : args, newTarget)
  })
  RealDate.prototype.constructor = globalThis.Date
}
