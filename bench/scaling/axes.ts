/** Along what a cost may grow, and how fast it does. */
import type { LoadRow } from "../performance/row.ts"

/** What is varied; everything else stays as it is. */
export interface Axis {
  readonly name: "max" | "callers" | "bytes" | "rows"
  readonly title: string
  readonly label: string
  readonly points: ReadonlyArray<number>
  readonly quickPoints: ReadonlyArray<number>
  readonly at: (row: LoadRow) => number
  /**
   * What is called linear: the cost of an answer may grow in proportion to its bytes and rows, and that of everybody's
   * answers together in proportion to how many ask or how many sessions there are, so that one answer costs the same.
   */
  readonly isPerAnswer: boolean
}

export const axes: ReadonlyArray<Axis> = [
  {
    name: "callers",
    title: "Callers",
    label: "callers in a closed loop (point reads, 10 sessions)",
    points: [1, 10, 100, 1000, 10_000, 50_000],
    quickPoints: [10, 100, 1000, 10_000, 50_000],
    at: ({ callers }) => callers,
    isPerAnswer: false
  },
  {
    name: "max",
    title: "Sessions",
    label: "max (point reads, 200 callers)",
    points: [1, 3, 10, 30, 100],
    quickPoints: [1, 10, 100],
    at: ({ max }) => max,
    isPerAnswer: false
  },
  {
    name: "rows",
    title: "Rows of an answer",
    label: "rows of an answer (10 callers, 10 sessions)",
    points: [1, 10, 100, 1000, 10_000],
    quickPoints: [1, 100, 10_000],
    at: ({ size }) => size!,
    isPerAnswer: true
  },
  {
    name: "bytes",
    title: "Bytes of a row",
    label: "bytes of the only row and column of an answer (10 callers, 10 sessions)",
    points: [10, 1000, 10_000, 100_000, 1_000_000],
    quickPoints: [10, 10_000, 1_000_000],
    at: ({ size }) => size!,
    isPerAnswer: true
  }
]

export const suiteOf = ({ name }: Axis): string => `scaling/${name}`

/** The slope of a line through these points on logarithmic scales: 1 is linear, 2 quadratic. */
export const slopeOf = (points: ReadonlyArray<readonly [x: number, y: number]>): number => {
  const logs = points.map(([x, y]) => [Math.log(x), Math.log(y)] as const)
  const mean = (side: 0 | 1) => logs.reduce((sum, each) => sum + each[side], 0) / logs.length
  const [x, y] = [mean(0), mean(1)]
  const above = logs.reduce((sum, each) => sum + (each[0] - x) * (each[1] - y), 0)
  return above / logs.reduce((sum, each) => sum + (each[0] - x) ** 2, 0)
}

/** Noise of ten percent between the ends of a decade makes as much of a slope of exactly one. */
export const steepest = 1.1

/** How the total cost of a contender grows at the upper end of an axis, where a worse law than linear would show. */
export const growthOf = (axis: Axis, rows: ReadonlyArray<LoadRow>): number =>
  slopeOf(
    rows.slice(-3).map((row) => {
      const x = axis.at(row)
      return [x, axis.isPerAnswer ? row.clientCpuUs : row.clientCpuUs * x]
    })
  )
