/** What this library claims of a fleet, held against what was measured. */
import type { Setting } from "./contestants.ts"
import type { Figures } from "./figures.ts"
import type { Life } from "./life.ts"

export interface Measured {
  readonly life: Life
  readonly figures: Figures
}

export interface Finding {
  readonly claim: string
  readonly holds: boolean
  readonly found: string
}

/** A herd is told from bad luck in one second. */
const allowance = 1.5

const all = (list: ReadonlyArray<number>) => list.reduce((sum, each) => sum + each, 0)

const noneTurnedAway = ({ figures, life }: Measured, setting: Setting): Finding => {
  const full = all(figures.phases.map((phase) => phase.full))
  return {
    claim: `${setting.title}: ${life.contestant.title}: no caller is told that the server is full`,
    holds: full === 0,
    found: `${full} callers were`
  }
}

/** Nobody knocks more often after the crash than the calmest of the others that keep as many sessions, with an allowance. */
const noHerd = ({ figures, life }: Measured, peers: ReadonlyArray<Measured>, setting: Setting): Finding => {
  const ours = figures.recovery.connectsInASecond
  const theirs = peers.map((peer) => peer.figures.recovery.connectsInASecond)
  const most = Math.max(5, Math.ceil(allowance * Math.min(...theirs)))
  return {
    claim: `${setting.title}: ${life.contestant.title}: no stampede after the restart`,
    holds: ours <= most,
    found: `${ours} connects in the busiest second; the others had ${Math.min(...theirs)} to ${
      Math.max(...theirs)
    }, and ${most} are allowed`
  }
}

export const check = (setting: Setting, measured: ReadonlyArray<Measured>): ReadonlyArray<Finding> => {
  const ours = measured.filter(({ life }) => life.contestant.isOurs)
  const peers = measured.filter(({ life }) => !life.contestant.isOurs)
  return ours.flatMap((each) => [
    ...(setting.isSafe ? [noneTurnedAway(each, setting)] : []),
    ...(peers.length === 0 ? [] : [noHerd(each, peers, setting)])
  ])
}
