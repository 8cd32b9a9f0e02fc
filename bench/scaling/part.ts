/** The scaling part of the set: what an answer costs against callers, sessions, and the size of the answer. */
import type { Name } from "../load/contender.ts"
import { type Cell, measure } from "../load/measure.ts"
import type { Thoroughness } from "../load/part.ts"
import type { Server } from "../load/server.ts"
import { head, show } from "../load/table.ts"
import { usualSize } from "../load/workload.ts"
import type { LoadRow } from "../performance/row.ts"
import { axes, type Axis, suiteOf } from "./axes.ts"

const contenders: ReadonlyArray<Name> = [
  "postgres.js",
  "PgClient",
  "PgClient, multiplexed",
  "effect-pg-pool",
  "effect-pg-pool, multiplexed"
]

const cellOf = ({ name }: Axis, point: number, isQuick: boolean): Cell => {
  const callers = name === "callers" ? point : name === "max" ? 200 : 10
  const lasting = isQuick ? 200 : 400
  const cell = {
    contenders,
    max: 10,
    callers,
    size: usualSize,
    // Many sessions or callers on few processors answer now this and now that.
    rounds: (name === "max" || name === "callers") && !isQuick ? 3 : 1,
    prime: { atLeast: 150, atMost: 600, answers: isQuick ? 3000 : 4000 },
    // A crowd has to be there before the cost of one of it can be asked, which needs no answer to everybody.
    warmUp: { atLeast: 150, atMost: 6000, answers: callers },
    lasts: { atLeast: lasting, atMost: lasting, answers: 0 }
  }
  switch (name) {
    case "callers":
      return { ...cell, suite: "read" }
    case "max":
      return { ...cell, suite: "read", max: point }
    case "rows":
      return { ...cell, suite: "range", size: point }
    case "bytes":
      return { ...cell, suite: "payload", size: point }
  }
}

export const run = async (thoroughness: Thoroughness, server: Server): Promise<ReadonlyArray<LoadRow>> => {
  console.log(head)
  const isQuick = thoroughness !== "full"
  const rows: Array<LoadRow> = []
  for (const axis of axes) {
    for (const point of isQuick ? axis.quickPoints : axis.points) {
      const measured = await measure(cellOf(axis, point, isQuick), server)
      for (const row of measured) console.log(show(row))
      rows.push(...measured.map((row) => ({ ...row, suite: suiteOf(axis) })))
    }
  }
  return rows
}
