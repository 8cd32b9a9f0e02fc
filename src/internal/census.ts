import type { PoolState } from "./poolState.ts"

/** The sessions of a pool by what they do, who waits, and the bounds. `oldestLease` is in milliseconds. */
export const take = <E>({ machine, max, min, now }: PoolState<E>, connecting: number) => {
  let active = 0
  let oldestLease = 0
  const at = now()
  for (const { borrowers, lentSince } of machine.members) {
    if (borrowers === 0) continue
    active++
    oldestLease = Math.max(oldestLease, at - lentSince)
  }
  const total = machine.members.size
  return { total, idle: total - active, active, waiting: machine.waiting, connecting, max, min, oldestLease }
}

/** What those in line wait for. */
export const lineFor = <E>(state: PoolState<E>): "Suspended" | "Queue" | "Connect" => {
  if (state.machine.isSuspended) return "Suspended"
  const { active, max } = take(state, 0)
  return active >= max ? "Queue" : "Connect"
}
