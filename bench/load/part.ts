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
    // Ten thousand callers take seconds to get an answer each, and as long to stop.
    const isCrowd = callers >= 10_000
    const span = (atLeast: number, atMost: number) => ({ atLeast, atMost, answers: callers })
    switch (thoroughness) {
      case "smoke":
        return { ...cell, rounds: 1, prime: span(50, 50), warmUp: span(50, 250), lasts: span(50, 250) }
      case "quick":
        return {
          ...cell,
          rounds: isCrowd ? 1 : 2,
          prime: { atLeast: 200, atMost: 600, answers: 4000 },
          warmUp: span(100, 1500),
          lasts: span(250, 1500)
        }
      case "full":
        return {
          ...cell,
          // Few callers are put off by whatever else the machine does, and many even that out.
          rounds: isCrowd ? 3 : callers > 100 ? 5 : 9,
          prime: span(3000, 3000),
          warmUp: span(100, 1500),
          lasts: span(350, 1500)
        }
    }
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
