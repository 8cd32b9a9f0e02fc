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

/**
 * After a crash nobody knocks more often than callers need: each of those who wait or come needs one session at most. Or,
 * where that is more, than the calmest of the others does.
 */
const noHerd = (
  { figures: { recovery }, life }: Measured,
  peers: ReadonlyArray<Measured>,
  setting: Setting
): Finding => {
  const theirs = peers.map((peer) => peer.figures.recovery.connectsInASecond)
  const calmest = theirs.length === 0 ? 0 : Math.min(...theirs)
  const most = Math.ceil(allowance * Math.max(5, calmest, recovery.callersThen))
  return {
    claim: `${setting.title}: ${life.contestant.title}: no stampede after the restart`,
    holds: recovery.connectsInASecond <= most,
    found: [
      `${recovery.connectsInASecond} connects in the busiest second, in which ${recovery.callersThen} callers waited or came`,
      ...(theirs.length === 0 ? [] : [`the others had ${Math.min(...theirs)} to ${Math.max(...theirs)}`])
    ].join("; ")
  }
}

export const check = (setting: Setting, measured: ReadonlyArray<Measured>): ReadonlyArray<Finding> => {
  const ours = measured.filter(({ life }) => life.contestant.isOurs)
  const peers = measured.filter(({ life }) => !life.contestant.isOurs)
  return ours.flatMap((each) => [
    ...(setting.isSafe ? [noneTurnedAway(each, setting)] : []),
    noHerd(each, peers, setting)
  ])
}
