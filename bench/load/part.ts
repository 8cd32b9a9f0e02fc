/** The load part of the set: every suite, from one caller to ten thousand. */
import type { LoadRow } from "../performance/row.ts"
import { names } from "./contender.ts"
import { type Cell, measure } from "./measure.ts"
import type { Server } from "./server.ts"
import { head, show } from "./table.ts"
import { type Suite, suites, usualSize } from "./workload.ts"

export type Thoroughness = "full" | "quick" | "smoke"

const max = 10

const cellsOf = (thoroughness: Thoroughness): ReadonlyArray<Cell> => {
  const cell = (suite: Suite, callers: number): Cell => {
    const cell = { suite, size: usualSize, callers, max, contenders: names }
    if (thoroughness === "smoke") return { ...cell, rounds: 1, prime: 50, warmUp: 50, lasts: 50, patience: 5 }
    // Ten thousand callers take seconds to get an answer each, and as long to stop.
    const isCrowd = callers >= 10_000
    if (thoroughness === "quick") {
      return { ...cell, rounds: isCrowd ? 1 : 2, prime: 250, warmUp: 100, lasts: 250, patience: isCrowd ? 6 : 3 }
    }
    return isCrowd
      ? { ...cell, rounds: 3, prime: 400, warmUp: 300, lasts: 400, patience: 3 }
      : { ...cell, rounds: 5, prime: 400, warmUp: 150, lasts: 400, patience: 3 }
  }
  const counts = thoroughness === "smoke" ? [20] : [1, 10, 100, 1000, 10_000]
  return suites.flatMap((suite) =>
    counts
      .filter((callers) => thoroughness !== "quick" || callers < 10_000 || suite === "read")
      .map((callers) => cell(suite, callers))
  )
}

export const run = async (thoroughness: Thoroughness, server: Server): Promise<ReadonlyArray<LoadRow>> => {
  console.log(head)
  const rows: Array<LoadRow> = []
  for (const cell of cellsOf(thoroughness)) {
    const measured = await measure(cell, server)
    for (const row of measured) console.log(show(row))
    rows.push(...measured)
  }
  return rows
}
